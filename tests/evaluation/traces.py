"""Hand-made episode traces for the tests of reports, plots and videos."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from robometer_gym.tracking.settings import RewardSettings
from robometer_gym.tracking.trace import EpisodeTrace, TraceStep

MAGENTA = (255, 0, 255)
"""A color that nothing else in a plot has."""


def make_trace(
    prediction_steps: Sequence[int],
    progress: Any,
    success: Any,
    *,
    task: str = "open the drawer",
    num_steps: int | None = None,
    episode_return: float = 0.0,
    env_return: float = 0.0,
    true_success_step: int | None = None,
    truth_known: bool = True,
    fps: float | None = 10.0,
    settings: RewardSettings | None = None,
    **more: Any,
) -> EpisodeTrace:
    """Return a trace with predictions at some steps, and the given sums and marks.

    The rewards are those of the first step; truth is unknown unless `truth_known`.
    """
    num_steps = prediction_steps[-1] if num_steps is None else num_steps
    steps = [
        TraceStep(
            env_reward=env_return if number == 1 else 0.0,
            reward=episode_return if number == 1 else 0.0,
            env_terminated=False,
            terminated=False,
            truncated=number == num_steps,
            true_success=number == true_success_step if truth_known else None,
        )
        for number in range(1, num_steps + 1)
    ]
    predicted = EpisodeTrace(task, ())
    if len(prediction_steps):
        predicted = EpisodeTrace.from_values(task, prediction_steps, progress, success)
    return replace(
        predicted, steps=tuple(steps), settings=settings or RewardSettings(), fps=fps, **more
    )


def paint(length: int, height: int = 48, width: int = 64) -> tuple[np.ndarray, ...]:
    """Return magenta frames, (height, width, 3) uint8 each."""
    return tuple(np.full((length, height, width, 3), MAGENTA, np.uint8))
