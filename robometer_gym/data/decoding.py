"""Decoding of video files with PyAV: frame times, single frames and streams, damaged files refused.

Knows nothing of tasks, episodes or arrays. PyAV is imported only when a file is opened. Errors
describe the fault; callers add the name of the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robometer_gym.reward_model import Frame
from robometer_gym.tracking.window import shrink
from robometer_gym.validation import MissingDependencyError

__all__ = ["decode_all", "decode_at", "import_av", "open_video", "read_frame_times"]


def import_av(action: str) -> Any:
    """Return the module `av`.

    Raises:
        MissingDependencyError: PyAV is not installed; the message begins with `action`.
    """
    try:
        import av
    except ImportError as error:
        raise MissingDependencyError(
            f"{action} mp4 needs PyAV: pip install 'robometer-gym[video]'."
        ) from error
    return av


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a file: its container and its video stream.

    The stream keeps PyAV's default threads: with thread_type "FRAME", which is faster, a truncated
    file goes unnoticed.
    """
    av = import_av("Reading")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError("it has no frames: it is cut off, or holds only sound.")
            yield container, container.streams.video[0]
    except av.FFmpegError as error:
        raise ValueError(
            f"it is empty, broken or cut off ({error.strerror}). Does it play? Copy it again."
        ) from error


@lru_cache(maxsize=1024)
def read_frame_times(path: Path, size: int, modified: int) -> NDArray[np.float64]:
    """Return the time of each frame of a file, ascending, in ticks of its clock.

    `size` and `modified` are keys of the cache: a file that was replaced is opened again.
    """
    with open_video(path) as (container, stream):
        if stream.frames and stream.base_rate and stream.duration and stream.start_time is not None:
            ticks = float(1 / (stream.base_rate * stream.time_base))
            if abs(stream.duration / ticks - stream.frames) < 0.5:  # none missing, none too long
                return np.arange(stream.frames) * ticks + float(stream.start_time)
        # Without decoding, but the whole file.
        packets = [packet for packet in container.demux(stream) if packet.size]
    times = [packet.pts for packet in packets if not packet.is_discard]
    if None in times:
        raise ValueError("its frames have no times. Re-encode it as .mp4.")
    return np.sort(np.array(times, float))


def decode_all(path: Path, frame_size: int | None) -> tuple[list[Frame], float | None]:
    """Return all frames, shrunk to `frame_size`, and the frames per second, None if unknown."""
    with open_video(path) as (container, stream):
        decoded = _refuse_corrupt(container.decode(stream))
        frames = [shrink(_to_rgb(frame), frame_size) for frame in decoded]
        rate = stream.average_rate
    if not frames:
        raise ValueError("it is empty: it has no frame.")
    return frames, float(rate) if rate else None


def decode_at(path: Path, times: NDArray[np.float64], slack: float) -> Iterator[Frame]:
    """Yield the frames at `times`, which ascend; each may be off by `slack` ticks."""
    with open_video(path) as (container, stream):
        frames = _decode_from(container, stream, times[0] + slack)
        for time in times:
            reached = (frame for frame in frames if frame.pts >= time - slack)
            frame = next(reached, None)
            if frame is None:
                raise ValueError("it is cut off: it ends before the last requested frame.")
            if frame.pts > time + slack:
                raise ValueError("a frame is missing in it. Copy it again, or re-encode it.")
            yield _to_rgb(frame)


def _decode_from(container: Any, stream: Any, time: float) -> Iterator[Any]:
    """Yield frames in order, starting at a key frame that is not later than `time`."""
    # A seek finds key frames by their decoding times, which may precede earlier frames' times.
    second = round(1 / stream.time_base)
    for back in (0, second, 10 * second, None):
        start = stream.start_time or 0
        target = start if back is None else max(start, math.floor(time) - back)
        container.seek(target, stream=stream)
        frames = _refuse_corrupt(container.decode(stream))
        first = next(frames, None)
        if first is not None and first.pts <= time:
            break
    if first is not None:
        yield first
        yield from frames


def _refuse_corrupt(frames: Iterator[Any]) -> Iterator[Any]:
    for frame in frames:
        if frame.is_corrupt:
            raise ValueError("it is broken: parts of it are lost. Copy it again.")
        yield frame


def _to_rgb(frame: Any) -> Frame:
    # A phone held upright stores frames on their side, with a note of a quarter turn.
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
