"""What a frame of an episode should be answered with: progress, success, and whether it counts.

Pure functions on numbers. Knows nothing of pictures, of networks or of how frames are chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robometer_gym.data.episodes import Episode

__all__ = ["Labels", "SuccessRule", "count_leading", "label_frames", "progress_targets"]

SuccessRule = Literal["done", "released"]


class Labels(NamedTuple):
    """What T frames should be answered with.

    Attributes:
        progress: (T,) float32 in [0, 1].
        progress_counts: (T,) bool, where progress is trained.
        success: (T,) float32, 1 where the task is done, else 0.
        success_counts: (T,) bool, where success is trained.
    """

    progress: NDArray[np.float32]
    progress_counts: NDArray[np.bool_]
    success: NDArray[np.float32]
    success_counts: NDArray[np.bool_]

    def not_counted(self) -> Labels:
        """Return the same, none of which is trained."""
        no = np.zeros_like(self.progress_counts)
        return self._replace(progress_counts=no, success_counts=no)


def label_frames(
    episode: Episode,
    indices: Sequence[int],
    *,
    right_task: bool = True,
    success_rule: SuccessRule = "done",
    min_success: float = 0.5,
) -> Labels:
    """Return the labels of some frames of an episode.

    - Another instruction than the episode's own: no progress and no success, on every frame.
    - A successful episode: progress grows from the first of these frames; success where it is
      complete, none where it is below `min_success`, and in between success is not trained.
    - A suboptimal or failed one: no success on every frame; progress is not trained, because
      nobody knows it.
    - One whose partial success was judged (and is not 1): its last frame has that progress, and no
      other frame's is trained.

    Args:
        episode: where the frames come from.
        indices: T >= 1 of its frames, in the order in which they are shown; not necessarily
            increasing (a rewind is not).
        right_task: whether they are shown with the episode's own instruction.
        success_rule: "done" calls a frame a success when its progress is complete. "released" is
            what the released checkpoint was trained with: when its progress, which the cutoff has
            already scaled, reaches the cutoff again; a little early where there is a cutoff.

        min_success: from which progress on a frame that is not done might be taken for one that
            is; 0.5 in the released training. 1.0 where it is known to the frame when a task was
            done.

    Source: robometer/data/datasets/helpers.py:93-130 and 490-640, and
    robometer/data/collators/rbm_heads.py:45-92 at c7f38e2.

    Example:
        >>> from robometer_gym.data import Episode
        >>> episode = Episode(np.zeros((5, 8, 8, 3), np.uint8), "open the drawer")
        >>> labels = label_frames(episode, [0, 1, 3, 4])
        >>> labels.progress.tolist(), labels.success_counts.tolist()
        ([0.0, 0.25, 0.75, 1.0], [True, True, False, True])
    """
    zeros = np.zeros(len(indices), np.float32)
    no, yes = np.zeros(len(indices), bool), np.ones(len(indices), bool)
    if not right_task:
        return Labels(zeros, yes, zeros, yes)
    if episode.partial_success not in (None, 1.0):
        last = np.asarray(indices) == len(episode) - 1
        return Labels(np.float32(episode.partial_success) * last, last, zeros, yes)
    if episode.outcome != "successful":
        return Labels(zeros, no, zeros, yes)
    progress = progress_targets(indices, len(episode), episode.cutoff)
    done = progress >= np.float32(episode.cutoff if success_rule == "released" else 1.0)
    return Labels(progress, yes, done.astype(np.float32), done | (progress < min_success))


def progress_targets(
    indices: Sequence[int], length: int, cutoff: float = 1.0
) -> NDArray[np.float32]:
    """Return how far each frame has come, relative to the earliest of them.

    Frame i of an episode of N frames, the earliest being s: (i - s) / (C - s - 1), at most 1, where
    C = int(cutoff * N) frames lead to success. The earliest alone has come 0.

    Args:
        indices: (T,) in [0, length), in any order.
        length: N.
        cutoff: the share of the frames after which the task is done, in (0, 1].

    Returns:
        (T,) float32 in [0, 1].

    Source: "absolute_first_frame", robometer/data/datasets/helpers.py:490-640 at c7f38e2.

    Example:
        >>> progress_targets([2, 4, 9], length=10).tolist() == [0.0, np.float32(2 / 7), 1.0]
        True
        >>> progress_targets([0, 4, 9], length=10, cutoff=0.5).tolist()
        [0.0, 1.0, 1.0]
    """
    at = np.asarray(indices)
    start = at.min()
    come = np.minimum(1.0, (at - start) / max(1, count_leading(length, cutoff) - start - 1))
    return np.asarray(come, np.float32)


def count_leading(length: int, cutoff: float) -> int:
    """Return how many of an episode's frames lead to success, the last of which shows it."""
    return int(cutoff * length + 1e-9)  # 0.29 * 100 is 28.999999999999996
