"""Stable-Baselines3: a VecEnv with the reward of a reward model, and a callback that logs it.

Needs the extra "sb3".
"""

from robometer_gym.validation import MissingDependencyError

try:
    import stable_baselines3  # noqa: F401
except ImportError as error:
    raise MissingDependencyError(
        "robometer_gym.sb3 needs stable-baselines3: pip install 'robometer-gym[sb3]'."
    ) from error

from robometer_gym.sb3.callback import RobometerCallback
from robometer_gym.sb3.late_rewards import (
    LateDictReplayBuffer,
    LateDictRolloutBuffer,
    LateNStepReplayBuffer,
    LateReplayBuffer,
    LateRewards,
    LateRolloutBuffer,
)
from robometer_gym.sb3.vec_env import VecRobometerReward, make_robometer_vec_env

__all__ = [
    "LateDictReplayBuffer",
    "LateDictRolloutBuffer",
    "LateNStepReplayBuffer",
    "LateReplayBuffer",
    "LateRewards",
    "LateRolloutBuffer",
    "RobometerCallback",
    "VecRobometerReward",
    "make_robometer_vec_env",
]
