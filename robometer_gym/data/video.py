"""Video files as frames: reading, sampling at a rate, writing.

Knows nothing of tasks or models. PyAV is imported only when a video file is read or written.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robometer_gym.data.arrays import read_arrays
from robometer_gym.data.decoding import (
    count_packets,
    decode_all,
    decode_at,
    import_av,
    read_frame_times,
)
from robometer_gym.reward_model import Frame
from robometer_gym.tracking.window import shrink
from robometer_gym.validation import frame_hint

__all__ = ["Video", "check_rate", "read_video", "sample_at_fps", "write_video"]

_VIDEO_FILES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".gif")
_ARRAY_FILES = (".npy", ".npz")
_WRITABLE = (".mp4", ".mov", ".mkv")
_MAX_BYTES = 2**33  # of frames that are held at once


class Video:
    """Frames with their times.

    Args:
        frames: (T, H, W, 3) uint8 RGB in [0, 255], oldest first, T >= 1.
        fps: frames per second of the file, > 0, by which `indices` count; None if unknown.
        seconds: (T,) float64, the time of each frame from the first one. By default `indices` at
            `fps`; None if that is unknown.
        indices: (T,) int64, the number of each frame in its file, increasing. By default 0, 1, ...

    Raises:
        ValueError: a wrong shape or dtype, or an fps that is not a positive number.

    Example:
        >>> Video(np.zeros((20, 48, 64, 3), np.uint8), fps=10.0)
        Video(20 frames of 48x64, 10 fps)
    """

    def __init__(
        self,
        frames: NDArray[np.uint8],
        fps: float | None,
        seconds: NDArray[np.float64] | None = None,
        indices: NDArray[np.int64] | None = None,
    ) -> None:
        _check_frames(frames)
        if fps is not None:
            check_rate("fps", fps)
        count = len(frames)
        self.frames, self.fps = frames, fps
        self.indices = np.arange(count) if indices is None else indices
        self.seconds = self.indices / fps if seconds is None and fps is not None else seconds
        for name, values in (("indices", self.indices), ("seconds", self.seconds)):
            if values is not None and np.shape(values) != (count,):
                raise ValueError(
                    f"{name} must be ({count},), one value per frame; got {np.shape(values)}."
                )

    def sample(self, fps: float | None) -> list[int]:
        """Return the positions of `fps` frames per second, or of all frames for None.

        The first and the last frame are always among them. Evenly spaced frames are taken by
        `sample_at_fps`; others by their times.

        Raises:
            ValueError: an `fps` that is not a positive number, or a video of unknown rate.
        """
        if fps is None:
            return list(range(len(self.frames)))
        check_rate("fps", fps)
        if self.fps is None or self.seconds is None:
            raise ValueError(
                f"fps={fps:g} needs the video's own rate, which is unknown. Leave fps out to "
                "take all frames, or save them as np.savez(path, frames=frames, fps=10)."
            )
        share = len(self.frames) / float(self.indices[-1] - self.indices[0] + 1)
        return _sample(self.seconds, self.fps * share, fps)

    def __repr__(self) -> str:
        count, height, width, _ = self.frames.shape
        rate = "unknown fps" if self.fps is None else f"{self.fps:g} fps"
        return f"Video({count} frames of {height}x{width}, {rate})"


def read_video(
    path: str | os.PathLike[str], *, fps: float | None = None, frame_size: int | None = None
) -> Video:
    """Read the frames of a file, all of them or `fps` per second.

    Frames that are not returned are decoded, but not held in memory.

    Args:
        path: .mp4, .mov, .avi, .mkv, .webm or .gif; a .npy array (T, H, W, 3) uint8; or an .npz
            with such an array named "frames" (or only one array) and, if known, a number "fps".
        fps: frames per second to return, as in `Video.sample`; None returns all.
        frame_size: shrink frames to this shortest edge while reading; never enlarges. None keeps
            the size.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken, its content does not fit the above, its rate is unknown and
            `fps` is given, or its frames take more than 8 GiB.
        MissingDependencyError: PyAV is missing.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _VIDEO_FILES + _ARRAY_FILES:
        raise ValueError(
            f"Cannot read {path}: a video must be one of "
            f"{', '.join(_VIDEO_FILES + _ARRAY_FILES)}; got {suffix or 'no suffix'}."
        )
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if fps is not None:
        check_rate("fps", fps)
    try:
        if suffix in _ARRAY_FILES:
            return _read_array_file(path, fps, frame_size)
        if suffix == ".avi":
            return _read_without_times(path, fps, frame_size)
        return _read_with_times(path, fps, frame_size)
    except ValueError as error:
        raise ValueError(f"Cannot read {path}: {error}") from error


def _read_array_file(path: Path, fps: float | None, frame_size: int | None) -> Video:
    frames, native_fps = read_arrays(path, _MAX_BYTES)
    _check_frames(frames)
    if frame_size is not None and min(frames.shape[1:3]) > frame_size:
        frames = np.stack([shrink(frame, frame_size) for frame in frames])
    return _take(Video(frames, native_fps), fps)


def _read_without_times(path: Path, fps: float | None, frame_size: int | None) -> Video:
    """Read an .avi, whose frames have no times: they are taken to be evenly spaced."""
    most, native_fps = count_packets(path)
    frames, _ = _collect(decode_all(path), most, frame_size)
    return _take(Video(frames, native_fps), fps)


def _read_with_times(path: Path, fps: float | None, frame_size: int | None) -> Video:
    times = read_frame_times(path)
    total, rate, indices = len(times.ticks), times.fps, None
    if fps is None:
        decoded = decode_all(path)
    else:
        positions = [0] if rate is None else _sample(times.seconds, rate, fps)
        indices = np.array(positions, np.int64)
        decoded = decode_at(path, times.ticks[indices], times.slack)
    frames, ticks = _collect(decoded, total if indices is None else len(indices), frame_size)
    return Video(frames, rate, (ticks - ticks[0]) * float(times.tick), indices)


def _take(video: Video, fps: float | None) -> Video:
    """Return the frames of a video that `fps` samples, with their times and numbers."""
    if fps is None:
        return video
    indices = np.array(video.sample(fps), np.int64)
    return Video(video.frames[indices], video.fps, None, indices)


def _collect(
    decoded: Iterator[tuple[float | None, Frame]], most: int, frame_size: int | None
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return at most `most` frames and their ticks; no second copy of the frames is made."""
    frames = np.empty((0, 0, 0, 3), np.uint8)
    ticks: list[float | None] = []
    for tick, frame in decoded:
        image = shrink(frame, frame_size)
        if not ticks:
            if most * image.nbytes > _MAX_BYTES:
                raise ValueError(
                    f"its {most} frames of {image.shape[0]}x{image.shape[1]} take "
                    f"{most * image.nbytes / 2**30:.1f} GiB, more than {_MAX_BYTES / 2**30:g}. "
                    "Pass fps= to take fewer, or a smaller frame_size=."
                )
            frames = np.empty((most, *image.shape), np.uint8)
        if len(ticks) == most:
            raise ValueError("it has more frames than its header has. Re-encode it.")
        if image.shape != frames.shape[1:]:
            raise ValueError("its frames change size. Re-encode it at one size.")
        frames[len(ticks)] = image
        ticks.append(tick)
    if not ticks:
        raise ValueError("it is empty: it has no frame.")
    return frames[: len(ticks)], np.array(ticks, np.float64)


def _sample(seconds: NDArray[np.float64], native_fps: float, fps: float) -> list[int]:
    """Return which frames to show for `fps` frames per second, given the time of each frame."""
    total = len(seconds)
    even = np.linspace(seconds[0], seconds[-1], total)
    interval = (seconds[-1] - seconds[0]) / max(1, total - 1)
    if np.abs(seconds - even).max() <= interval / 2:
        return sample_at_fps(total, native_fps, fps)
    wanted = max(2, min(total, round((seconds[-1] - seconds[0] + interval) * fps)))
    between = (seconds[1:] + seconds[:-1]) / 2
    nearest = np.searchsorted(between, np.linspace(seconds[0], seconds[-1], wanted))
    return [int(index) for index in np.unique(nearest)]


def sample_at_fps(total: int, native_fps: float, fps: float) -> list[int]:
    """Return which of `total` frames to show for `fps` frames per second.

    Evenly spaced from the first to the last, rounded down; at least these two, at most `total`.

    Source: robometer/scripts/example_inference.py at c7f38e2, which takes the first frame alone
    where one is enough.

    Raises:
        ValueError: no frames, or a rate that is not a positive number.

    Example:
        >>> sample_at_fps(32, native_fps=10, fps=3)
        [0, 3, 6, 10, 13, 17, 20, 24, 27, 31]
    """
    if total < 1:
        raise ValueError(f"total must be >= 1 frame, got {total!r}.")
    check_rate("native_fps", native_fps)
    check_rate("fps", fps)
    desired = min(total, max(2, round(total * fps / native_fps)))
    return [int(index) for index in np.linspace(0, total - 1, desired, dtype=int)]


def write_video(
    path: str | os.PathLike[str], frames: NDArray[np.uint8] | Sequence[Frame], fps: float
) -> None:
    """Write an h264 video that every player and browser shows.

    Args:
        path: .mp4, .mov or .mkv; overwritten if it exists.
        frames: (T, H, W, 3) uint8 RGB in [0, 255]. An odd height or width, which h264 cannot
            have, gets its last row or column twice.
        fps: frames per second, > 0.

    Raises:
        ValueError: another suffix, a wrong shape or dtype, or an fps that is not a positive number.
        MissingDependencyError: PyAV is missing.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITABLE:
        raise ValueError(f"Cannot write {path}: its suffix must be one of {', '.join(_WRITABLE)}.")
    check_rate("fps", fps)
    images = np.asarray(frames)
    _check_frames(images)
    height, width = images.shape[1:3]
    padding = ((0, height % 2), (0, width % 2), (0, 0))
    av = import_av("Writing")
    with av.open(str(path), "w") as container:
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
        stream.height, stream.width = height + height % 2, width + width % 2
        stream.pix_fmt = "yuv420p"
        for image in images:
            padded = np.ascontiguousarray(np.pad(image, padding, mode="edge"))
            frame = av.VideoFrame.from_ndarray(padded, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _check_frames(frames: Any) -> None:
    shape: tuple[int, ...] = getattr(frames, "shape", ())
    dtype = getattr(frames, "dtype", type(frames).__name__)
    if len(shape) == 4 and shape[3] == 3 and 0 not in shape and dtype == np.uint8:
        return
    hint = frame_hint(frames[0] if shape and shape[0] else frames)
    raise ValueError(f"frames must be (T, H, W, 3) uint8; got {tuple(shape)} {dtype}. {hint}")


def check_rate(name: str, rate: float) -> None:
    """Raise ValueError unless `rate` is a positive, finite number of frames per second."""
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"{name} must be a number of frames per second > 0, got {rate!r}.")
