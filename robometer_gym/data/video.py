"""Video files to frames and back, and which frames of a video to show.

Knows nothing of tasks or models. PyAV is imported only when a video file is read or written.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robometer_gym.reward_model import Frame
from robometer_gym.tracking.window import shrink
from robometer_gym.validation import MissingDependencyError, frame_hint

__all__ = ["Video", "VideoFrames", "read_video", "sample_at_fps", "write_video"]

_VIDEO_FILES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".gif")
_ARRAY_FILES = (".npy", ".npz")
_WRITABLE = (".mp4", ".mov", ".mkv")
_SEEKABLE = (".mp4", ".mov", ".mkv", ".webm", ".gif")  # .avi does not say when a frame is shown


@dataclass(frozen=True, eq=False)
class Video:
    """Frames, and how fast they were taken.

    Attributes:
        frames: (T, H, W, 3) uint8 RGB in [0, 255], oldest first, T >= 1.
        fps: frames per second, > 0; None where nobody knows.

    Raises:
        ValueError: a wrong shape or dtype, or an fps that is no rate.

    Example:
        >>> Video(np.zeros((20, 48, 64, 3), np.uint8), fps=10.0)
        Video(20 frames of 48x64, 10 fps)
    """

    frames: NDArray[np.uint8]
    fps: float | None

    def __post_init__(self) -> None:
        _check_frames(self.frames)
        if self.fps is not None:
            _check_rate("fps", self.fps)

    def sample(self, fps: float | None) -> list[int]:
        """Return which frames to show for `fps` frames per second, or all of them for None.

        Raises:
            ValueError: an `fps` that is no rate, or for a video that does not know its own.
        """
        if fps is None:
            return list(range(len(self.frames)))
        _check_rate("fps", fps)
        if self.fps is None:
            raise ValueError(
                f"fps={fps:g} needs the video's own rate, which is not known. Leave fps out to "
                "take all frames, or save them as np.savez(path, frames=frames, fps=10)."
            )
        return sample_at_fps(len(self.frames), self.fps, fps)

    def __repr__(self) -> str:
        count, height, width, _ = self.frames.shape
        rate = "unknown fps" if self.fps is None else f"{self.fps:g} fps"
        return f"Video({count} frames of {height}x{width}, {rate})"


class VideoFrames:
    """Frames of a video file, read when asked for: for more episodes than memory holds.

    Nothing but the file's header is read at first, unless it does not say how many frames there
    are and when: that of an .mp4 or .mov does, if they come at a steady rate. Each request opens
    the file and decodes from the key frame before the first frame asked for to the last one: ask
    for many at once. No file stays open in between, so that other processes can be sent a copy.

    Args:
        path: .mp4, .mov, .mkv, .webm or .gif.
        start: the first frame, >= 0, of a file that holds several episodes.
        count: how many frames, >= 1. None takes all from `start` on.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken or of another kind, or has fewer frames.
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
        if start < 0 or (count is not None and count < 1):
            raise ValueError(f"start must be >= 0 and count >= 1, got {start!r} and {count!r}.")
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"There is no file {self.path}.")
        if self.path.suffix.lower() not in _SEEKABLE:
            raise ValueError(
                f"Cannot read single frames of {self.path}: its suffix must be one of "
                f"{', '.join(_SEEKABLE)}. Write it anew, as .mp4."
            )
        about = self.path.stat()
        try:
            times = _frame_times(self.path, about.st_size, about.st_mtime_ns)
        except ValueError as error:
            raise ValueError(f"Cannot read {self.path}: {error}") from error
        stop = start + (count or 1)
        if len(times) < stop:
            raise ValueError(
                f"{self.path} has {len(times)} frames; frames {start} to {stop - 1} were asked for."
                " Is it the whole file?"
            )
        self._start = start
        self._times = times[start:] if count is None else times[start:stop]
        # A header's rate gives times that may be wrong by a tick of the file's clock.
        self._slack = float(np.diff(times).min()) / 4 if len(times) > 1 else 0.0

    def __len__(self) -> int:
        return len(self._times)

    def __repr__(self) -> str:
        return f"VideoFrames({str(self.path)!r}, start={self._start}, count={len(self)})"

    def __getitem__(self, indices: Sequence[int], /) -> NDArray[np.uint8]:
        """Return the frames at `indices`, in that order: (n, H, W, 3) uint8 RGB, n >= 1.

        Raises:
            IndexError: no index, or one that is not in [0, len).
            ValueError: the file turns out to be broken.
        """
        wanted = [int(index) for index in indices]
        if not wanted or min(wanted) < 0 or max(wanted) >= len(self):
            raise IndexError(f"indices must be in [0, {len(self)}), at least one; got {wanted}.")
        try:
            frames = dict(zip(sorted(set(wanted)), self._read(wanted), strict=True))
            return _stack([frames[index] for index in wanted])
        except ValueError as error:
            raise ValueError(f"Cannot read {self.path}: {error}") from error

    def _read(self, wanted: list[int]) -> Iterator[Frame]:
        """Yield the frames at `wanted`, each once, oldest first."""
        times = self._times[sorted(set(wanted))]
        with _opened(self.path) as (container, stream):
            pictures = _pictures_from(container, stream, times[0] + self._slack)
            for time in times:
                reached = (picture for picture in pictures if picture.pts >= time - self._slack)
                picture = next(reached, None)
                if picture is None:
                    raise ValueError("it is cut off: it ends before the last frame asked for.")
                if picture.pts > time + self._slack:
                    raise ValueError("a frame is missing in it. Copy it again, or write it anew.")
                yield _rgb(picture)


def read_video(path: str | os.PathLike[str], *, frame_size: int | None = None) -> Video:
    """Read all frames of a file.

    They are all held: two minutes of 640x480 at 30 frames a second, shrunk to 240 pixels, were
    measured to take 2.9 GB at their peak. Cut a longer video first.

    Args:
        path: .mp4, .mov, .avi, .mkv, .webm or .gif; a .npy array (T, H, W, 3) uint8; or an .npz
            with such an array named "frames" (or only one array) and, if known, a number "fps".
        frame_size: shrink frames to this shortest edge while reading; never enlarges. None keeps
            the size.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken, or does not hold what is described above.
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
    read = _read_arrays if suffix in _ARRAY_FILES else _decode
    try:
        return read(path, frame_size)
    except ValueError as error:
        raise ValueError(f"Cannot read {path}: {error}") from error


def sample_at_fps(total: int, native_fps: float, fps: float) -> list[int]:
    """Return which of `total` frames to show for `fps` frames per second.

    Evenly spaced from the first to the last, cut to whole numbers; never more than there are, and
    the first alone where one is enough.

    Source: robometer/scripts/example_inference.py at c7f38e2.

    Raises:
        ValueError: no frames, or a rate that is not a positive number.

    Example:
        >>> sample_at_fps(32, native_fps=10, fps=3)
        [0, 3, 6, 10, 13, 17, 20, 24, 27, 31]
    """
    if total < 1:
        raise ValueError(f"total must be >= 1 frame, got {total!r}.")
    _check_rate("native_fps", native_fps)
    _check_rate("fps", fps)
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
        ValueError: another suffix, a wrong shape or dtype, or an fps that is no rate.
        MissingDependencyError: PyAV is missing.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITABLE:
        raise ValueError(f"Cannot write {path}: its suffix must be one of {', '.join(_WRITABLE)}.")
    _check_rate("fps", fps)
    images = np.asarray(frames)
    _check_frames(images)
    height, width = images.shape[1:3]
    images = np.pad(images, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    av = _import_av("Writing")
    with av.open(str(path), "w") as container:
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in images:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _decode(path: Path, frame_size: int | None) -> Video:
    with _opened(path) as (container, stream):
        pictures = _sound(container.decode(stream))
        frames = [shrink(_rgb(picture), frame_size) for picture in pictures]
        rate = stream.average_rate
    if not frames:
        raise ValueError("it is empty: it has no frame.")
    return Video(_stack(frames), float(rate) if rate else None)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a file: its container and its video stream.

    The stream keeps PyAV's default way to decode, although thread_type "FRAME" would be faster: it
    hides that a file is cut off.
    """
    av = _import_av("Reading")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError("it has no pictures: it is cut off, or holds only sound.")
            yield container, container.streams.video[0]
    except av.FFmpegError as error:
        raise ValueError(
            f"it is empty, broken or cut off ({error.strerror}). Does it play? Copy it again."
        ) from error


@lru_cache(maxsize=1024)
def _frame_times(path: Path, size: int, modified: int) -> NDArray[np.float64]:
    """When each frame of a file is shown, in ticks of its clock, ascending.

    `size` and `modified` are there for the cache: a file that was replaced is opened again.
    """
    with _opened(path) as (container, stream):
        if stream.frames and stream.base_rate and stream.duration and stream.start_time is not None:
            ticks = float(1 / (stream.base_rate * stream.time_base))
            if abs(stream.duration / ticks - stream.frames) < 0.5:  # none missing, none too long
                return np.arange(stream.frames) * ticks + float(stream.start_time)
        # Without decoding, but the whole file.
        packets = [packet for packet in container.demux(stream) if packet.size]
    times = [packet.pts for packet in packets if not packet.is_discard]
    if None in times:
        raise ValueError("its frames do not say when they are shown. Write it anew, as .mp4.")
    return np.sort(np.array(times, float))


def _pictures_from(container: Any, stream: Any, time: float) -> Iterator[Any]:
    """Yield pictures in their order from a key frame on that is not later than `time`."""
    # A seek finds key frames by when they are decoded, which may be before earlier frames are.
    second = round(1 / stream.time_base)
    for back in (0, second, 10 * second, None):
        beginning = stream.start_time or 0
        target = beginning if back is None else max(beginning, math.floor(time) - back)
        container.seek(target, stream=stream)
        pictures = _sound(container.decode(stream))
        first = next(pictures, None)
        if first is not None and first.pts <= time:
            break
    if first is not None:
        yield first
        yield from pictures


def _sound(pictures: Iterator[Any]) -> Iterator[Any]:
    """Refuse pictures that are damaged."""
    for picture in pictures:
        if picture.is_corrupt:
            raise ValueError("it is broken: parts of it are lost. Copy it again.")
        yield picture


def _rgb(picture: Any) -> Frame:
    # A phone held upright films lying frames and notes a quarter turn.
    return np.rot90(picture.to_ndarray(format="rgb24"), round(picture.rotation / 90))


def _stack(frames: list[Frame]) -> NDArray[np.uint8]:
    if any(frame.shape != frames[0].shape for frame in frames):
        raise ValueError("its frames change size. Write it again with one size.")
    return np.stack(frames)


def _read_arrays(path: Path, frame_size: int | None) -> Video:
    with path.open("rb") as file:  # np.load would leave a broken file open
        try:
            loaded = np.load(file, allow_pickle=False)  # a pickle could run any program
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                "it holds no plain array (it is empty, cut off, or full of pickled Python "
                "objects). Write it with np.save(path, frames), frames being (T, H, W, 3) uint8."
            ) from error
        archive = isinstance(loaded, np.lib.npyio.NpzFile)
        frames, fps = _unpack(loaded) if archive else (loaded, None)
    _check_frames(frames)
    if frame_size is not None and min(frames.shape[1:3]) > frame_size:
        frames = np.stack([shrink(frame, frame_size) for frame in frames])
    return Video(frames, fps)


def _unpack(archive: np.lib.npyio.NpzFile) -> tuple[NDArray[Any], float | None]:
    """Frames and fps from an .npz."""
    names = [name for name in archive.files if name != "fps"]
    if "frames" in names:
        names = ["frames"]
    if len(names) != 1:
        raise ValueError(f"an .npz must hold an array 'frames' or only one array, got {names}.")
    try:
        frames = archive[names[0]]
        fps = archive["fps"] if "fps" in archive.files else None
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            "its arrays are broken or pickled Python objects. "
            "Write it with np.savez(path, frames=frames, fps=10)."
        ) from error
    if fps is not None and (fps.size != 1 or fps.dtype.kind not in "iuf"):
        raise ValueError(f"fps must be one number, got {fps.dtype} of shape {fps.shape}.")
    return frames, None if fps is None else float(fps.item())


def _check_frames(frames: Any) -> None:
    shape: tuple[int, ...] = getattr(frames, "shape", ())
    dtype = getattr(frames, "dtype", type(frames).__name__)
    if len(shape) == 4 and shape[3] == 3 and 0 not in shape and dtype == np.uint8:
        return
    cure = frame_hint(frames[0] if shape and shape[0] else frames)
    raise ValueError(f"frames must be (T, H, W, 3) uint8; got {tuple(shape)} {dtype}. {cure}")


def _check_rate(name: str, rate: float) -> None:
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"{name} must be a number of frames per second > 0, got {rate!r}.")


def _import_av(doing: str) -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingDependencyError(
            f"{doing} mp4 needs PyAV: pip install 'robometer-gym[video]'."
        ) from error
    return av
