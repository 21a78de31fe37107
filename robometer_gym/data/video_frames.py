"""VideoFrames: single frames of a video file, read on demand.

Knows nothing of tasks or models.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robometer_gym.data.decoding import decode_at, read_frame_times
from robometer_gym.validation import check_count

__all__ = ["VideoFrames"]

_SEEKABLE = (".mp4", ".mov", ".mkv", ".webm", ".gif")  # frames of .avi have no times


class VideoFrames:
    """Frames of a video file, read on demand: for more episodes than fit into memory.

    Opening reads the times of all frames, without decoding: from the header of an .mp4 or .mov at a
    steady rate, otherwise from the whole file. A file that is cut off is refused then. Each request
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
        >>> from robometer_gym.data import write_video
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
        try:
            times = read_frame_times(self.path)
        except ValueError as error:
            raise ValueError(f"Cannot read {self.path}: {error}") from error
        total, stop = len(times.ticks), start + (count or 1)
        if total < stop:
            raise ValueError(
                f"{self.path} has {total} frames; frames {start} to {stop - 1} were requested."
                " Is the file complete?"
            )
        self._start = start
        self._ticks = times.ticks[start:] if count is None else times.ticks[start:stop]
        self._slack = times.slack

    def __len__(self) -> int:
        return len(self._ticks)

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
            decoded = decode_at(self.path, self._ticks[ordered], self._slack)
            frames = {index: frame for index, (_, frame) in zip(ordered, decoded, strict=True)}
            if len({frame.shape for frame in frames.values()}) > 1:
                raise ValueError("its frames change size. Re-encode it at one size.")
            return np.stack([frames[index] for index in wanted])
        except ValueError as error:
            raise ValueError(f"Cannot read {self.path}: {error}") from error
