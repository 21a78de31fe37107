"""Signals and rewards computed from progress: pure functions of numbers.

Knows nothing of episodes or models. `before` is the latest known progress in [0, 1] before a
step and `after` the latest known after it; on a step without a prediction they are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

__all__ = ["SIGNALS", "Mode", "Signal", "delta", "potential", "progress", "reward"]

Signal = Literal["delta", "potential", "progress"]
Mode = Literal["replace", "shape"]


def delta(before: float, after: float, *, gamma: float, terminated: bool) -> float:
    """Return the progress made; over an episode the sum is last minus first.

    Example:
        >>> delta(0.25, 0.75, gamma=0.99, terminated=False)
        0.5
    """
    return after - before


def potential(before: float, after: float, *, gamma: float, terminated: bool) -> float:
    """Return gamma * after - before, where the potential of a true end is 0.

    Added to an environment's reward it leaves the optimal policy unchanged. A truncated episode
    would have continued, so its last progress counts.

    Source: Ng, Harada and Russell, "Policy invariance under reward transformations", 1999.

    Example:
        >>> potential(0.25, 0.75, gamma=0.5, terminated=False)
        0.125
        >>> potential(0.25, 0.75, gamma=0.5, terminated=True)
        -0.25
    """
    return (0.0 if terminated else gamma * after) - before


def progress(before: float, after: float, *, gamma: float, terminated: bool) -> float:
    """Return the progress itself.

    Example:
        >>> progress(0.25, 0.75, gamma=0.99, terminated=False)
        0.75
    """
    return after


SIGNALS: dict[Signal, Callable[..., float]] = {
    "delta": delta,
    "potential": potential,
    "progress": progress,
}


def reward(mode: Mode, env_reward: float, signal: float, *, scale: float, bonus: float) -> float:
    """Return the reward of one step.

    Args:
        mode: "replace" leaves the environment's reward out, "shape" adds to it.
        env_reward: the environment's own reward.
        signal: the model's part, from one of `SIGNALS`.
        scale: multiplies the model's part, and nothing else.
        bonus: added as it is, not scaled.

    Example:
        >>> reward("shape", -1.0, 0.5, scale=2.0, bonus=10.0)
        10.0
    """
    return (env_reward if mode == "shape" else 0.0) + scale * signal + bonus
