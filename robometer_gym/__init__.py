"""Robometer as the reward of any Gymnasium environment.

    env = gym.make("robometer_gym/TabletopReach-v0", render_mode="rgb_array", task=task)
    env = RobometerRewardWrapper(env, task=task, reward_model="lerobot/Robometer-4B")

Of many environments: `make_robometer_vec`; for Stable-Baselines3: `robometer_gym.sb3`.
Importing this imports neither torch nor transformers: `RobometerRewardModel` comes when asked for.
It registers the environment robometer_gym/TabletopReach-v0.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import robometer_gym.envs  # noqa: F401 - registers the environments
from robometer_gym.capture import FrameCapture, SubEnvironmentError
from robometer_gym.reward_model import (
    CheckpointError,
    Clip,
    Prediction,
    RewardModel,
    RewardModelError,
)
from robometer_gym.vector import RobometerVectorRewardWrapper, make_robometer_vec
from robometer_gym.wrapper import RobometerRewardWrapper

if TYPE_CHECKING:
    from robometer_gym.model.predictor import RobometerRewardModel

__all__ = [
    "CheckpointError",
    "Clip",
    "FrameCapture",
    "Prediction",
    "RewardModel",
    "RewardModelError",
    "RobometerRewardModel",
    "RobometerRewardWrapper",
    "RobometerVectorRewardWrapper",
    "SubEnvironmentError",
    "__version__",
    "make_robometer_vec",
]

__version__ = "0.1.0"

_NEEDS_TORCH = {"RobometerRewardModel": "robometer_gym.model.predictor"}


def __getattr__(name: str) -> Any:
    if name in _NEEDS_TORCH:
        return getattr(import_module(_NEEDS_TORCH[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
