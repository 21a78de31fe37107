"""Frame orders of training clips: forward, rewound and reversed stretches of an episode.

An order is a list of frame indices. Knows nothing of pixels, labels or networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robometer_gym.data.episodes import Episode
from robometer_gym.training.labels import success_frame_count

__all__ = ["forward", "reverse", "rewind", "sample_order", "subsample", "success_index"]


def forward(length: int, rng: np.random.Generator) -> list[int]:
    """Draw a stretch of an episode: all frames from one to another, at least three.

    Source: robometer/data/samplers/pref.py at c7f38e2, which draws three frames in order and
    takes the outer two.

    Args:
        length: frames of the episode; one of fewer than three is taken whole.
        rng: source of randomness.
    """
    if length < 3:
        return list(range(length))
    start, _, end = np.sort(rng.choice(length, 3, replace=False))
    return list(range(start, end + 1))


def rewind(length: int, rng: np.random.Generator) -> list[int]:
    """Draw a stretch of an episode that plays forward, and then back to before its peak.

    Args:
        length: frames of the episode, >= 3.
        rng: source of randomness.

    Source: the paper's "video rewind", robometer/data/samplers/pref.py at c7f38e2: from `start` to
    `middle` and back to `end`, start < end < middle.
    """
    start, end, middle = np.sort(rng.choice(length, 3, replace=False))
    return [*range(start, middle + 1), *range(middle - 1, end - 1, -1)]


def reverse(length: int, rng: np.random.Generator) -> list[int]:
    """Draw a stretch of an episode that plays backwards."""
    return forward(length, rng)[::-1]


_DRAW_ORDER = {"forward": forward, "rewind": rewind, "reverse": reverse}


def sample_order(playback: str, episode: Episode, rng: np.random.Generator) -> list[int]:
    """Draw a stretch of an episode, played "forward", "rewind" or "reverse".

    A forward stretch begins, and a rewound or reversed one ends, before the task is done: among
    frames that all show success, none has more progress than another. An episode with too few
    frames before its success is drawn from without this rule.
    """
    done = success_index(episode)
    earliest = 0 if playback == "forward" else -1
    possible = done >= (2 if playback == "rewind" else 1)
    length = min(len(episode), 3 * (done + 1)) if possible else len(episode)  # or few would fit
    while True:
        order = _DRAW_ORDER[playback](length, rng)
        if order[earliest] < done or not possible:
            return order


def success_index(episode: Episode) -> int:
    """Return the first frame that shows a successful episode's task done."""
    return success_frame_count(len(episode), episode.cutoff) - 1


def subsample(order: Sequence[int], count: int) -> list[int]:
    """Return `count` entries, evenly spaced from the first to the last.

    A shorter order is padded with its last entry. For a count of 1, the last entry.

    Source: robometer/data/datasets/helpers.py:194-231 and 277-339 at c7f38e2.

    Example:
        >>> subsample(range(10, 20), 4), subsample([3, 4, 5], 5)
        ([10, 13, 16, 19], [3, 4, 5, 5, 5])
    """
    if len(order) <= count:
        return [*order, *[order[-1]] * (count - len(order))]
    if count == 1:
        return [order[-1]]
    return [order[int(i)] for i in np.rint(np.linspace(0, len(order) - 1, count))]
