"""Preferences between episodes: which attempt at a task is better, by partial success or outcome.

Knows nothing of frames or networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from robometer_gym.data.episodes import OUTCOMES, Episode

__all__ = ["TaskEpisodes", "has_partial_success", "is_complete", "normalize_task"]

# Two partial successes that are closer make no preference pair. Source: pref.py at c7f38e2; a
# little less here, because 0.9 - 0.7 is 0.19999999999999996.
_MIN_PREFERENCE_GAP = 0.2 - 1e-9


def normalize_task(task: str) -> str:
    """Return an instruction without differences in case and spacing."""
    return " ".join(task.casefold().split())


def has_partial_success(episode: Episode) -> bool:
    """Return whether an episode's partial success adds to its outcome."""
    return episode.partial_success not in (None, 1.0)


def is_complete(episode: Episode) -> bool:
    """Return whether an episode's frames show its task from beginning to success."""
    return episode.outcome == "successful" and not has_partial_success(episode)


class TaskEpisodes(NamedTuple):
    """The episodes of one task with their quality.

    Attributes:
        indices: (N,) int, of the episodes in the data set.
        ranks: (N,) int: 0 failure, 1 suboptimal, 2 successful.
        shares: (N,) float64 partial successes, NaN where there is none or it is 1.
    """

    indices: NDArray[np.int64]
    ranks: NDArray[np.int64]
    shares: NDArray[np.float64]

    @classmethod
    def group(cls, episodes: Sequence[Episode]) -> dict[str, TaskEpisodes]:
        """Return the episodes of each task, by normalized instruction."""
        indices: dict[str, list[int]] = {}
        for index, episode in enumerate(episodes):
            indices.setdefault(normalize_task(episode.task), []).append(index)
        groups = {}
        for task, members in indices.items():
            ranks, shares = zip(*(_quality(episodes[n]) for n in members), strict=True)
            groups[task] = cls(np.array(members), np.array(ranks), np.array(shares))
        return groups

    def worse_and_better(self, episode: Episode) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the indices of the clearly worse and the clearly better episodes.

        Two partial successes are compared by their difference; otherwise outcomes decide.
        """
        rank, share = _quality(episode)
        gap = self.shares - share
        comparable = ~np.isnan(gap)
        worse = np.where(comparable, gap <= -_MIN_PREFERENCE_GAP, self.ranks < rank)
        better = np.where(comparable, gap >= _MIN_PREFERENCE_GAP, self.ranks > rank)
        return self.indices[worse], self.indices[better]


def _quality(episode: Episode) -> tuple[int, float]:
    """Return the rank of an episode's outcome, and its partial success or NaN."""
    rank = len(OUTCOMES) - 1 - OUTCOMES.index(episode.outcome)
    share = episode.partial_success
    return rank, share if share is not None and has_partial_success(episode) else np.nan
