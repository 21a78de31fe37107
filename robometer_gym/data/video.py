"""Video files as frames: reading, sampling at a rate, writing.

Knows nothing of tasks or models. PyAV is imported only when a video file is read or written.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robometer_gym.data.arrays import read_arrays
from robometer_gym.data.decoding import decode_all, decode_at, import_av, read_frame_times
from robometer_gym.reward_model import Frame
from robometer_gym.tracking.window import shrink
from robometer_gym.validation import check_count, frame_hint

__all__ = ["Video", "VideoFrames", "check_rate", "read_video", "sample_at_fps", "write_video"]

_VIDEO_FILES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".gif")
_ARRAY_FILES = (".npy", ".npz")
_WRITABLE = (".mp4", ".mov", ".mkv")
_SEEKABLE = (".mp4", ".mov", ".mkv", ".webm", ".gif")  # frames of .avi have no times


@dataclass(frozen=True, eq=False)
class Video:
    """Frames and their rate.

    Attributes:
        frames: (T, H, W, 3) uint8 RGB in [0, 255], oldest first, T >= 1.
        fps: frames per second, > 0; None if unknown.

    Raises:
        ValueError: a wrong shape or dtype, or an fps that is not a positive number.

    Example:
        >>> Video(np.zeros((20, 48, 64, 3), np.uint8), fps=10.0)
        Video(20 frames of 48x64, 10 fps)
    """

    frames: NDArray[np.uint8]
    fps: float | None

    def __post_init__(self) -> None:
        _check_frames(self.frames)
        if self.fps is not None:
            check_rate("fps", self.fps)

    def sample(self, fps: float | None) -> list[int]:
        """Return the indices of `fps` frames per second, or of all frames for None.

        Raises:
            ValueError: an `fps` that is not a positive number, or a video of unknown rate.
        """
        if fps is None:
            return list(range(len(self.frames)))
        check_rate("fps", fps)
        if self.fps is None:
            raise ValueError(
                f"fps={fps:g} needs the video's own rate, which is unknown. Leave fps out to "
                "take all frames, or save them as np.savez(path, frames=frames, fps=10)."
            )
        return sample_at_fps(len(self.frames), self.fps, fps)

    def __repr__(self) -> str:
        count, height, width, _ = self.frames.shape
        rate = "unknown fps" if self.fps is None else f"{self.fps:g} fps"
        return f"Video({count} frames of {height}x{width}, {rate})"


class VideoFrames:
    """Frames of a video file, read on demand: for more episodes than fit into memory.

    Opening reads only the file's header if that gives the number and the times of the frames, as
    in .mp4 and .mov at a steady rate; otherwise the whole file, without decoding. Each request
    opens the file and decodes from the key frame before the first requested frame to the last one:
    request many at once. No file stays open in between, so copies can be sent to other processes.

    Args:
        path: .mp4, .mov, .mkv, .webm or .gif.
        start: first frame, >= 0, of a file that holds several episodes.
        count: number of frames, >= 1. None takes all from `start` on.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken or of another type, or has fewer frames.
        MissingDependencyError: PyAV is missing.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_video(f"{folder}/rollout.mp4", np.zeros((30, 48, 64, 3), np.uint8), fps=10)
        ...     VideoFrames(f"{folder}/rollout.mp4")[[0, 20, 10]].shape
        (3, 48, 64, 3)
    """

    def __init__(
        self, path: str | os.PathLike[str], start: int = 0, count: int | None = None
    ) -> None:
        start = check_count("start", start, minimum=0)
        count = None if count is None else check_count("count", count)
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"There is no file {self.path}.")
        if self.path.suffix.lower() not in _SEEKABLE:
            raise ValueError(
                f"Cannot read single frames of {self.path}: its suffix must be one of "
                f"{', '.join(_SEEKABLE)}. Re-encode it as .mp4."
            )
        stat = self.path.stat()
        try:
            times = read_frame_times(self.path, stat.st_size, stat.st_mtime_ns)
        except ValueError as error:
            raise ValueError(f"Cannot read {self.path}: {error}") from error
        stop = start + (count or 1)
        if len(times) < stop:
            raise ValueError(
                f"{self.path} has {len(times)} frames; frames {start} to {stop - 1} were requested."
                " Is the file complete?"
            )
        self._start = start
        self._times = times[start:] if count is None else times[start:stop]
        # Times from a header's rate may be wrong by a tick of the file's clock.
        self._slack = float(np.diff(times).min()) / 4 if len(times) > 1 else 0.0

    def __len__(self) -> int:
        return len(self._times)

    def __repr__(self) -> str:
        return f"VideoFrames({str(self.path)!r}, start={self._start}, count={len(self)})"

    def __getitem__(self, indices: Sequence[int], /) -> NDArray[np.uint8]:
        """Return the frames at `indices`, in that order: (n, H, W, 3) uint8 RGB, n >= 1.

        Raises:
            IndexError: no index, or one outside [0, len).
            ValueError: the file turns out to be broken.
        """
        wanted = [int(index) for index in indices]
        if not wanted or min(wanted) < 0 or max(wanted) >= len(self):
            raise IndexError(f"indices must be in [0, {len(self)}), at least one; got {wanted}.")
        ordered = sorted(set(wanted))
        try:
            decoded = decode_at(self.path, self._times[ordered], self._slack)
            frames = dict(zip(ordered, decoded, strict=True))
            return _stack([frames[index] for index in wanted])
        except ValueError as error:
            raise ValueError(f"Cannot read {self.path}: {error}") from error


def read_video(path: str | os.PathLike[str], *, frame_size: int | None = None) -> Video:
    """Read all frames of a file.

    All of them are held in memory: two minutes of 640x480 at 30 frames per second, shrunk to 240
    pixels, were measured to take 2.9 GB at their peak. Cut a longer video first.

    Args:
        path: .mp4, .mov, .avi, .mkv, .webm or .gif; a .npy array (T, H, W, 3) uint8; or an .npz
            with such an array named "frames" (or only one array) and, if known, a number "fps".
        frame_size: shrink frames to this shortest edge while reading; never enlarges. None keeps
            the size.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken, or its content does not fit the above.
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
    try:
        if suffix in _ARRAY_FILES:
            frames, fps = read_arrays(path)
            _check_frames(frames)
        else:
            decoded, fps = decode_all(path, frame_size)
            frames = _stack(decoded)
        if frame_size is not None and min(frames.shape[1:3]) > frame_size:
            frames = np.stack([shrink(frame, frame_size) for frame in frames])
        return Video(frames, fps)
    except ValueError as error:
        raise ValueError(f"Cannot read {path}: {error}") from error


def sample_at_fps(total: int, native_fps: float, fps: float) -> list[int]:
    """Return which of `total` frames to show for `fps` frames per second.

    Evenly spaced from the first to the last, rounded down; at most `total`, and the first alone
    if one is enough.

    Source: robometer/scripts/example_inference.py at c7f38e2.

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
    desired = max(1, min(total, round(total * fps / native_fps)))
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
    images = np.pad(images, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    av = import_av("Writing")
    with av.open(str(path), "w") as container:
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in images:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _stack(frames: list[Frame]) -> NDArray[np.uint8]:
    if any(frame.shape != frames[0].shape for frame in frames):
        raise ValueError("its frames change size. Re-encode it at one size.")
    return np.stack(frames)


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
