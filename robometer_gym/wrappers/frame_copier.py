"""FrameCopier: copies of frames in memory that earlier copies no longer need.

Knows nothing of cameras or episodes.
"""

from __future__ import annotations

import sys

import numpy as np

from robometer_gym.reward_model import Frame

__all__ = ["FrameCopier"]

_MAX_COPIES = 256  # to search for a free one


class FrameCopier:
    """Copies frames, and reuses the memory of a copy once nothing refers to it any more.

    The allocator alone may return the memory of a freed frame to the operating system, which then
    provides it again page by page. Whether it does depends on the layout of the heap: with eight
    environments of 240x320 in a DummyVecEnv, `frame.copy()` made a prediction cost 27, 108 or 154
    microseconds each from one program to the next, a FrameCopier always 28 to 31
    (benchmarks/wrapper_overhead.py). A view of a copy counts as a reference to it, so a model may
    keep any frame.

    Example:
        >>> import numpy as np
        >>> copier = FrameCopier()
        >>> first = copier.copy(np.zeros((4, 4, 3), np.uint8))
        >>> copier.copy(np.ones((4, 4, 3), np.uint8)) is first
        False
    """

    def __init__(self) -> None:
        self._copies: list[Frame] = []  # the latest one last: it may be in the CPU's cache

    def copy(self, frame: Frame) -> Frame:
        """Return a copy of `frame`, (H, W, 3) uint8."""
        for index in range(len(self._copies) - 1, -1, -1):
            if _references(self._copies, index) == _FREE:
                copy = self._copies.pop(index)
                if copy.shape == frame.shape:
                    np.copyto(copy, frame)
                    break
        else:
            copy = frame.copy()
            del self._copies[:-_MAX_COPIES]  # all are in use: forget the oldest
        self._copies.append(copy)
        return copy


def _references(frames: list[Frame], index: int) -> int:
    return sys.getrefcount(frames[index])


_FREE = _references([np.zeros((1, 1, 3), np.uint8)], 0)
"""References that this Python counts for a frame in a list and nowhere else."""
