"""FrameHistory: one episode's frames in bounded memory, and the window shown to the model.

Also shrinks frames before they are kept. Knows nothing of environments, tasks or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from PIL import Image

from robometer_gym.reward_model import Frame

__all__ = ["FrameHistory", "Sampling", "linspace_indices", "shrink"]

Sampling = Literal["linspace", "tail", "anchored"]

# "linspace" keeps this many times more frames than it shows. An episode of up to
# 8 * max_frames kept frames is sampled exactly; in a longer one a shown frame is at most
# an eighth of the distance between two shown frames away from the exact one.
_SPARE = 8


def linspace_indices(total: int, wanted: int) -> list[int]:
    """Return which of `total` frames to show so that `wanted` are spread evenly over all.

    All of them where they are few enough; the newest where one is wanted; else the first, the
    newest, and evenly spaced ones between, halves rounded to even.

    Source: linspace_subsample_frames, robometer/data/datasets/helpers.py:277-339 at c7f38e2.

    Example:
        >>> linspace_indices(9, 8)
        [0, 1, 2, 3, 5, 6, 7, 8]
    """
    if total <= wanted:
        return list(range(total))
    if wanted == 1:
        return [total - 1]
    # Plain Python: for eight numbers a third of what np.linspace takes, and round() is np.rint.
    spacing = (total - 1) / (wanted - 1)
    return [round(index * spacing) for index in range(wanted)]


class FrameHistory:
    """The frames of one episode, in memory that does not grow with the episode.

    Frames are numbered 0, 1, 2, ... as they are appended. The first and the newest are always
    held, and of the others every `stride`-th; when there is no more room the stride doubles and
    every second frame is dropped. All three rules read their window from this one store.

    Args:
        max_frames: most frames in a window, >= 1. With 1 it is the newest, whatever the rule.
        sampling: which frames are in it:
            "linspace": spread evenly over the whole episode, the first and the newest always in,
            by `linspace_indices` (the authors' rule for online RL). Exact up to `8 * max_frames`
            appended frames. After that a frame is at most an eighth of the window's spacing away
            from the exact one, because memory is bounded. A window of fewer than `max_frames`
            frames stays short; the authors repeat its last frame.
            "tail": the newest `max_frames` (LeRobot's rule).
            "anchored": every `stride`-th frame and the newest; the stride doubles when
            `max_frames` is reached. Windows mostly grow at the end, which a model that keeps its
            computation can use.

    Example:
        >>> import numpy as np
        >>> history = FrameHistory(max_frames=3, sampling="linspace")
        >>> for step in range(0, 50, 10):
        ...     history.append(np.zeros((4, 4, 3), np.uint8), step)
        >>> history.window()[1]
        (0, 20, 40)
    """

    def __init__(self, max_frames: int = 8, sampling: Sampling = "linspace") -> None:
        if max_frames < 1:
            raise ValueError(f"max_frames must be an integer >= 1, got {max_frames!r}.")
        if sampling not in get_args(Sampling):
            raise ValueError(f"sampling must be one of {get_args(Sampling)}, got {sampling!r}.")
        self._max_frames = max_frames
        self._sampling = sampling if max_frames > 1 else "tail"  # a first and a newest need two
        self._capacity = max_frames * (_SPARE if sampling == "linspace" else 1)
        self._frames: list[Frame] = []
        self._steps: list[int] = []
        self._numbers: list[int] = []  # how many frames came before each held one
        self._stride = 1
        self._appended = 0

    def __len__(self) -> int:
        """Return how many frames are held: at most `8 * max_frames + 1`."""
        return len(self._frames)

    def append(self, frame: Frame, step: int) -> None:
        """Add the newest frame, (H, W, 3) uint8; it is kept as it is, not copied.

        Args:
            frame: must not be written to afterwards.
            step: the step of the episode that it shows, larger than that of the frame before.
        """
        if self._sampling == "tail":
            self._keep(slice(max(0, len(self) - self._max_frames + 1), None))
        else:
            self._make_room()
        self._frames.append(frame)
        self._steps.append(step)
        self._numbers.append(self._appended)
        self._appended += 1

    def _make_room(self) -> None:
        if self._numbers and self._numbers[-1] % self._stride:
            self._keep(slice(None, -1))  # it was held only for being the newest
        if len(self) >= self._capacity:
            # Held numbers are 0, stride, 2 * stride, ...: every second one fits the new stride.
            self._keep(slice(None, None, 2))
            self._stride *= 2

    def _keep(self, which: slice) -> None:
        self._frames, self._steps = self._frames[which], self._steps[which]
        self._numbers = self._numbers[which]

    def window(self) -> tuple[list[Frame], tuple[int, ...]]:
        """Return the frames to show, oldest first, and the step of each.

        The newest frame is always the last. No frame is copied.

        Raises:
            ValueError: nothing was appended yet.
        """
        if not self._frames:
            raise ValueError("The history is empty: append the episode's first frame.")
        shown = self._shown()
        return [self._frames[i] for i in shown], tuple(self._steps[i] for i in shown)

    def _shown(self) -> Sequence[int]:
        newest = len(self) - 1
        if self._sampling != "linspace":
            return range(newest + 1)
        return _spread(self._appended, self._max_frames, self._stride, newest)


@lru_cache(32)  # environments that run in step need the same, one after the other
def _spread(appended: int, wanted: int, stride: int, newest: int) -> tuple[int, ...]:
    """Return which held frames to show: the one nearest to each that is wanted."""
    numbers = linspace_indices(appended, wanted)
    # A dict drops the rare double.
    nearest = {min(round(number / stride), newest): None for number in numbers[:-1]}
    return (*(index for index in nearest if index < newest), newest)


def shrink(frame: Frame, frame_size: int | None) -> Frame:
    """Return the frame with its shortest edge at most `frame_size`, and the same aspect ratio.

    Pixels are averaged over the area that they come from.

    Args:
        frame: (H, W, 3) uint8.
        frame_size: pixels, or None. A frame that is small enough is returned as it is.

    Source: the training videos were shrunk by area as well (cv2.INTER_AREA),
    dataset_upload/helpers.py:97-150 of robometer at c7f38e2.

    Example:
        >>> shrink(np.zeros((720, 1280, 3), np.uint8), 240).shape
        (240, 427, 3)
    """
    height, width, _ = frame.shape
    shortest = min(height, width)
    if frame_size is None or shortest <= frame_size:
        return frame
    size = (round(width * frame_size / shortest), round(height * frame_size / shortest))
    image, factor = Image.fromarray(frame), shortest // frame_size
    if (size[0] * factor, size[1] * factor) == (width, height):
        return np.asarray(image.reduce(factor))  # the same, three times faster
    return np.asarray(image.resize(size, Image.Resampling.BOX))
