"""SuccessDetector: votes of the latest predictions decide whether a task is done.

Knows nothing of frames, rewards or environments: probabilities come in, one by one.
"""

from __future__ import annotations

from collections import deque

import numpy as np

__all__ = ["SuccessDetector"]


class SuccessDetector:
    """Fires when enough of the latest predictions reach the threshold; then stays fired.

    One high prediction is often a false alarm, two in a row seldom.

    Args:
        threshold: a prediction votes "done" when its success probability is >= this, in [0, 1].
        votes: number of votes required, 1 <= votes <= window.
        window: number of latest predictions that vote.

    Source: the vote of robometer's example_libero_robometer_wrapper.py at c7f38e2 (both of the
    last two at 0.65), generalized.

    Example:
        >>> detector = SuccessDetector(threshold=0.65, votes=2, window=2)
        >>> [detector.update(p) for p in (0.9, 0.1, 0.7, 0.8, 0.0)]
        [False, False, False, True, True]
    """

    def __init__(self, threshold: float = 0.65, votes: int = 2, window: int = 2) -> None:
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(
                f"success_threshold must be a probability in [0, 1], got {threshold!r}."
            )
        if not 1 <= votes <= window:
            raise ValueError(
                f"success_votes must be between 1 and success_window, got {votes!r} of {window!r}."
            )
        # Predictions are float32, and the float32 of 0.65 is a little less than 0.65. (That of a
        # number as small as 1e-50 is 0, which every prediction would reach.)
        self._threshold = min(threshold, float(np.float32(threshold))) or threshold
        self._needed = votes
        self._votes: deque[bool] = deque(maxlen=window)
        self.fired = False
        """Whether the task counts as done; stays True until `clear`."""

    def clear(self, first: float | None = None) -> None:
        """Forget all votes: a new episode begins.

        Args:
            first: the success probability at reset, if one was predicted. It votes, but cannot
                fire the detector by itself: nothing has been done yet.
        """
        self._votes.clear()
        self.fired = False
        if first is not None:
            self._votes.append(first >= self._threshold)

    def update(self, success: float) -> bool:
        """Count one more prediction.

        Args:
            success: its success probability, in [0, 1].

        Returns:
            Whether the task counts as done.
        """
        done = success >= self._threshold
        self._votes.append(done)
        self.fired = self.fired or (done and sum(self._votes) >= self._needed)
        return self.fired
