"""Frame labels: target progress, target success, and which frames are trained.

Pure functions on numbers. Knows nothing of pixels, of networks or of how frames are chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robometer_gym.data.episodes import Episode

__all__ = ["Labels", "SuccessRule", "label_frames", "progress_targets", "success_frame_count"]

SuccessRule = Literal["done", "released"]


class Labels(NamedTuple):
    """Targets of T frames, and which of them are trained.

    Attributes:
        progress: (T,) float32 in [0, 1].
        progress_mask: (T,) bool, True for frames whose progress is trained.
        success: (T,) float32, 1 if the task is done, else 0.
        success_mask: (T,) bool, True for frames whose success is trained.
    """

    progress: NDArray[np.float32]
    progress_mask: NDArray[np.bool_]
    success: NDArray[np.float32]
    success_mask: NDArray[np.bool_]

    def masked_out(self) -> Labels:
        """Return the same targets with no frame trained."""
        no = np.zeros_like(self.progress_mask)
        return self._replace(progress_mask=no, success_mask=no)


def label_frames(
    episode: Episode,
    indices: Sequence[int],
    *,
    right_task: bool = True,
    success_rule: SuccessRule = "done",
    min_success: float = 0.5,
) -> Labels:
    """Return the labels of some frames of an episode.

    - Shown with another episode's instruction: no progress and no success, on every frame.
    - A successful episode: progress grows from the first of these frames; success is 1 if progress
      is complete, 0 if it is below `min_success`, and not trained in between.
    - A suboptimal or failed episode: no success on every frame; progress is unknown and not
      trained.
    - An episode with a partial success below 1: its last frame has that progress; the progress of
      other frames is not trained.

    Args:
        episode: the source of the frames.
        indices: T >= 1 of its frames, in the order in which they are shown; not necessarily
            increasing (a rewind is not).
        right_task: whether the frames are shown with the episode's own instruction.
        success_rule: "done" labels a frame a success when its progress is complete. "released" is
            the rule that the released checkpoint was trained with: when progress, which the cutoff
            has already scaled, reaches the cutoff again; a little early if there is a cutoff.
        min_success: the progress from which an incomplete frame is not trained as a failure; 0.5
            in the released training. 1.0 suits data whose success is exact to the frame.

    The released training labels an episode with a partial success below 1 differently. Its
    progress is trained only if the episode is called successful or comes from RoboReward. Called
    successful, its frames are labeled by their progress like those of any success: a partial
    success between `min_success` and the cutoff is not trained as a failure, and one at the cutoff
    is a success. Frames that repeat the last one as padding are not trained.

    Source: robometer/data/datasets/helpers.py:93-130 and 490-640, robometer/data/samplers/base.py,
    and robometer/data/collators/rbm_heads.py:45-92 at c7f38e2.

    Example:
        >>> from robometer_gym.data import Episode
        >>> episode = Episode(np.zeros((5, 8, 8, 3), np.uint8), "open the drawer")
        >>> labels = label_frames(episode, [0, 1, 3, 4])
        >>> labels.progress.tolist(), labels.success_mask.tolist()
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
    """Return the progress of each frame, relative to the earliest of them.

    Frame i of an episode of N frames, the earliest being s: (i - s) / (C - s - 1), at most 1, where
    C = int(cutoff * N) frames lead to success. The progress of the earliest is 0.

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
    frames = np.asarray(indices)
    start = frames.min()
    steps_to_success = max(1, success_frame_count(length, cutoff) - start - 1)
    return np.asarray(np.minimum(1.0, (frames - start) / steps_to_success), np.float32)


def success_frame_count(length: int, cutoff: float) -> int:
    """Return the number of frames up to and including the first that shows success."""
    return int(cutoff * length + 1e-9)  # 0.29 * 100 is 28.999999999999996
