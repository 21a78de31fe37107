"""Decoding of video files with PyAV: times of frames, single frames, damaged files refused.

Knows nothing of tasks, episodes or arrays. PyAV is imported only when a file is opened. Errors
describe the fault; callers add the name of the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robometer_gym.reward_model import Frame
from robometer_gym.validation import MissingDependencyError

__all__ = [
    "FrameTimes",
    "count_packets",
    "decode_all",
    "decode_at",
    "import_av",
    "read_frame_times",
]

MAX_PIXELS = 2**26  # per frame: 8K video has half of it
_MAX_ENDING = 0.1  # seconds, beside two frames, by which a file may be shorter than its header


@dataclass(frozen=True, eq=False)
class FrameTimes:
    """The times of all frames of a file.

    Attributes:
        ticks: (T,) time of each frame on the file's clock, increasing, T >= 1.
        slack: ticks by which a time may be wrong: those computed from a header are rounded.
        tick: seconds per tick.
        fps: frames per second on average; None for a single frame of unknown rate.
    """

    ticks: NDArray[np.float64]
    slack: float
    tick: Fraction
    fps: float | None

    @property
    def seconds(self) -> NDArray[np.float64]:
        """(T,) seconds of each frame, from the first one."""
        seconds: NDArray[np.float64] = (self.ticks - self.ticks[0]) * float(self.tick)
        return seconds


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


def read_frame_times(path: Path) -> FrameTimes:
    """Return the times of all frames of a file, without decoding them.

    Reads only the header of an .mp4 or .mov at a steady rate, and otherwise the whole file. Results
    and faults are kept until the file changes.

    Raises:
        ValueError: a file that is broken or cut off, or whose frames have no times.
    """
    stat = path.stat()
    found = _cached_frame_times(path, stat.st_size, stat.st_mtime_ns)
    if isinstance(found, str):
        raise ValueError(found)
    return found


@lru_cache(maxsize=1024)
def _cached_frame_times(path: Path, size: int, modified: int) -> FrameTimes | str:
    """Return the times, or the fault of a file: a broken one is not read once per episode."""
    try:
        with _open(path) as (container, stream):
            from_header = _times_from_header(container, stream, size)
            ticks = _times_from_packets(container, stream) if from_header is None else from_header
            slack = float(np.diff(ticks).min()) / 4 if len(ticks) > 1 else 0.0
            rate = float(stream.average_rate) if stream.average_rate else None
            if rate is None and ticks[-1] > ticks[0]:
                rate = float((len(ticks) - 1) / ((ticks[-1] - ticks[0]) * float(stream.time_base)))
            return FrameTimes(ticks, slack, stream.time_base, rate)
    except ValueError as error:
        return str(error)


def _times_from_header(container: Any, stream: Any, size: int) -> NDArray[np.float64] | None:
    """Return the times of an .mp4 or .mov at a steady rate; None for other files."""
    entries = stream.index_entries
    if not (
        container.format.name.startswith("mov,")
        and stream.start_time is not None
        and 0 < stream.frames == len(entries)
    ):
        return None
    if max(entry.pos + entry.size for entry in entries) > size:
        raise ValueError("it is cut off: frames lie beyond its end. Copy it again.")
    # The index has decoding times. At a steady rate, the times at which frames are shown are the
    # same ones, in another order and shifted; elsewhere the packets have them.
    decoding = np.array([entry.timestamp for entry in entries], np.float64)
    even = np.linspace(decoding[0], decoding[-1], len(decoding))
    if any(entry.is_discard for entry in entries) or np.abs(decoding - even).max() > 1.0:
        return None
    ticks: NDArray[np.float64] = even - even[0] + float(stream.start_time)
    return ticks


def _times_from_packets(container: Any, stream: Any) -> NDArray[np.float64]:
    times, end = [], 0.0
    for packet in container.demux():
        if packet.pts is not None and packet.time_base is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index == stream.index and packet.size and not packet.is_discard:
            times.append(packet.pts)
    if None in times:
        raise ValueError("its frames have no times. Re-encode it as .mp4.")
    if not times:
        raise ValueError("it is empty: it has no frame.")
    ticks = np.sort(np.array(times, np.float64))
    if "matroska" in container.format.name and container.duration:
        ending = _MAX_ENDING + 2 * float((ticks[-1] - ticks[0]) * stream.time_base) / len(ticks)
        if container.duration / 1e6 > end + ending:
            raise ValueError(
                f"it is cut off: its header has {container.duration / 1e6:g} seconds, and it ends "
                f"after {end:g}. Copy it again."
            )
    return ticks


def count_packets(path: Path) -> tuple[int, float | None]:
    """Return the largest possible number of frames, and the frames per second, None if unknown."""
    with _open(path) as (container, stream):
        count = sum(packet.size > 0 for packet in container.demux(stream))
        return count, float(stream.average_rate) if stream.average_rate else None


def decode_all(path: Path) -> Iterator[tuple[float | None, Frame]]:
    """Yield all frames in order, each with its time in ticks, None if it has none."""
    with _open(path) as (container, stream):
        yield from _to_rgb(_refuse_corrupt(container.decode(stream)))


def decode_at(
    path: Path, ticks: NDArray[np.float64], slack: float
) -> Iterator[tuple[float | None, Frame]]:
    """Yield the frames at `ticks`, which increase; each may be off by `slack`."""
    with _open(path) as (container, stream):
        frames = _decode_from(container, stream, ticks[0] + slack)
        yield from _to_rgb(_pick(frames, ticks, slack))


def _pick(frames: Iterator[Any], ticks: NDArray[np.float64], slack: float) -> Iterator[Any]:
    for time in ticks:
        frame = next((frame for frame in frames if frame.pts >= time - slack), None)
        if frame is None:
            raise ValueError("it is cut off: it ends before the last requested frame.")
        if frame.pts > time + slack:
            raise ValueError("a frame is missing in it. Copy it again, or re-encode it.")
        yield frame


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a file: its container and its video stream.

    The stream keeps PyAV's default threads: with thread_type "FRAME", which is faster, a truncated
    file goes unnoticed.
    """
    av = import_av("Reading")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError("it has no frames: it is cut off, or holds only sound.")
            stream = container.streams.video[0]
            if stream.codec_context is None or not stream.time_base:
                raise ValueError("its frames have an unknown format. Re-encode it as .mp4.")
            width, height = stream.codec_context.width, stream.codec_context.height
            if width * height > MAX_PIXELS:
                raise ValueError(
                    f"its frames of {height}x{width} are larger than {MAX_PIXELS} pixels."
                )
            yield container, stream
    except av.FFmpegError as error:
        raise ValueError(
            f"it is empty, broken or cut off ({error.strerror}). Does it play? Copy it again."
        ) from error


def _decode_from(container: Any, stream: Any, time: float) -> Iterator[Any]:
    """Yield frames in order, starting at a key frame that is not later than `time`."""
    # A seek finds key frames by their decoding times, which may precede earlier frames' times.
    second = round(1 / stream.time_base)
    for back in (0, second, 10 * second, None):
        start = stream.start_time or 0
        target = start if back is None else max(start, math.floor(time) - back)
        container.seek(target, stream=stream)
        frames = _refuse_corrupt(container.decode(stream), timed=True)
        first = next(frames, None)
        if first is not None and first.pts <= time:
            break
    if first is not None:
        yield first
        yield from frames


def _refuse_corrupt(frames: Iterator[Any], timed: bool = False) -> Iterator[Any]:
    for frame in frames:
        if timed and frame.pts is None:
            raise ValueError("it has a frame without a time. Re-encode it as .mp4.")
        if frame.is_corrupt:
            raise ValueError("it is broken: parts of it are lost. Copy it again.")
        yield frame


def _to_rgb(frames: Iterator[Any]) -> Iterator[tuple[float | None, Frame]]:
    """Yield the time and the (H, W, 3) uint8 RGB of frames, turned and mirrored as players do."""
    rotation, matrix = None, (1, 0, 0, 1)
    for frame in frames:
        if frame.rotation != rotation:  # once: `side_data` keeps its frame in memory
            rotation, matrix = frame.rotation, _read_display_matrix(frame)
        # A pixel at (x, y) is shown at (a * x + c * y, b * x + d * y), in units of 2**16.
        a, b, c, d = matrix
        image: Frame = frame.to_ndarray(format="rgb24")
        if abs(b) > abs(a):
            image, a, d = image.transpose(1, 0, 2), c, b
        yield frame.pts, image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _read_display_matrix(frame: Any) -> tuple[int, int, int, int]:
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
    return a, b, c, d
