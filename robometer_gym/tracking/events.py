"""Events of an episode and their outcomes: what wrappers and the EpisodeTracker exchange.

Knows nothing of how an outcome is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from robometer_gym.reward_model import Clip, Frame, Prediction

__all__ = [
    "Event",
    "Listener",
    "Outcome",
    "Response",
    "Settled",
    "Start",
    "Step",
    "Stream",
    "read_reward",
    "read_true_success",
]


@dataclass(frozen=True, eq=False)
class Stream:
    """The identity of one camera's frames in one episode.

    Two streams are never equal, not even a copy and its original: after a copy of an environment
    the same step may show different frames.
    """

    env: int
    episode: int
    camera: str

    def __repr__(self) -> str:
        return f"<env {self.env}, episode {self.episode}, camera {self.camera!r}>"


class Start(NamedTuple):
    """The start of an episode: in which environment, its task, and its first frame by camera."""

    env: int
    task: str
    frames: Mapping[str, Frame]


class Step(NamedTuple):
    """One step of one environment.

    `reward`, `terminated` and `truncated` are the environment's own. `frames` holds the frame
    after the step, by camera; None exactly where no prediction is due, see `RewardSettings.due`.
    `true_success` is the environment's own verdict, None where it reports none.
    """

    env: int
    reward: float
    terminated: bool
    truncated: bool
    frames: Mapping[str, Frame] | None
    true_success: bool | None = None


Event = Start | Step


class Outcome(NamedTuple):
    """The result of one event: the reward, whether the episode has terminated, and infos.

    The start of an episode has the reward 0.0 and ends nothing.
    """

    reward: float
    terminated: bool
    info: dict[str, Any]


class Response(NamedTuple):
    """The response of a reward model: predictions, or the exception it raised; and its seconds."""

    answer: Sequence[Prediction] | Exception
    seconds: float


class Settled(NamedTuple):
    """One event with everything that came of it, for listeners.

    `clips` is empty where no prediction was due, one per camera elsewhere; `predictions` has as
    many entries, and is None where the reward model failed. `frame_steps` holds the step of each
    frame of the window.
    """

    event: Event
    outcome: Outcome
    episode: int
    clips: Sequence[Clip]
    predictions: Sequence[Prediction] | None
    frame_steps: tuple[int, ...]


Listener = Callable[[Sequence[Settled], float], None]
"""Receives every batch of events once it is settled, and the seconds that `predict` took."""


def read_true_success(info: Mapping[str, Any]) -> bool | None:
    """Return the environment's own success from its infos; None where it reports none.

    `is_success` comes before `success`. None and NaN mean that the outcome is unknown.

    Example:
        >>> read_true_success({"success": 1.0}), read_true_success({"is_success": float("nan")})
        (True, None)
    """
    value = info.get("is_success", info.get("success"))
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return None
    return bool(value)


def read_reward(reward: Any) -> float:
    """Return an environment's own reward as a float.

    Raises:
        TypeError: no number: None, an array of another shape than (), text.

    Example:
        >>> read_reward(2)
        2.0
    """
    if isinstance(reward, (float, int)) or getattr(reward, "shape", None) == ():
        return float(reward)
    raise TypeError(
        f"The environment's reward must be a number, got {reward!r}. Return a float from its "
        "step(), or wrap it in gymnasium.wrappers.TransformReward(env, lambda reward: ...)."
    )
