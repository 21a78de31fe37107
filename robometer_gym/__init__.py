"""Robometer as the reward of any Gymnasium environment.

    env = gym.make("robometer_gym/TabletopReach-v0", render_mode="rgb_array", task=task)
    env = RobometerRewardWrapper(env, task=task, reward_model="lerobot/Robometer-4B")

For vector environments: `make_robometer_vec`; for Stable-Baselines3: `robometer_gym.sb3`.
All names are imported on first use, so `import robometer_gym` needs neither torch nor Gymnasium.
Where Gymnasium is installed it registers the environment robometer_gym/TabletopReach-v0.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from robometer_gym._lazy import lazy_names

if TYPE_CHECKING:
    from robometer_gym.models.loading import LazyRewardModel
    from robometer_gym.models.remote import RemoteRewardModel
    from robometer_gym.models.robometer.predictor import RobometerRewardModel
    from robometer_gym.reward_model import (
        CheckpointError,
        Clip,
        Prediction,
        RewardModel,
        RewardModelError,
    )
    from robometer_gym.tracking.recorder import RecordTraces
    from robometer_gym.tracking.replay import replay
    from robometer_gym.tracking.trace import EpisodeTrace, read_traces
    from robometer_gym.wrappers.frame_capture import FrameCapture, SubEnvironmentError
    from robometer_gym.wrappers.make_vec import make_robometer_vec
    from robometer_gym.wrappers.record_episodes import RecordEpisodes
    from robometer_gym.wrappers.single import RobometerRewardWrapper
    from robometer_gym.wrappers.vector import RobometerVectorRewardWrapper

__all__ = [
    "CheckpointError",
    "Clip",
    "EpisodeTrace",
    "FrameCapture",
    "LazyRewardModel",
    "Prediction",
    "RecordEpisodes",
    "RecordTraces",
    "RemoteRewardModel",
    "RewardModel",
    "RewardModelError",
    "RobometerRewardModel",
    "RobometerRewardWrapper",
    "RobometerVectorRewardWrapper",
    "SubEnvironmentError",
    "__version__",
    "make_robometer_vec",
    "read_traces",
    "replay",
]

__version__ = "0.1.0"

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        **dict.fromkeys(
            ("CheckpointError", "Clip", "Prediction", "RewardModel", "RewardModelError"),
            "robometer_gym.reward_model",
        ),
        "EpisodeTrace": "robometer_gym.tracking.trace",
        "FrameCapture": "robometer_gym.wrappers.frame_capture",
        "LazyRewardModel": "robometer_gym.models.loading",
        "RecordEpisodes": "robometer_gym.wrappers.record_episodes",
        "RecordTraces": "robometer_gym.tracking.recorder",
        "RemoteRewardModel": "robometer_gym.models.remote",
        "RobometerRewardModel": "robometer_gym.models.robometer.predictor",
        "RobometerRewardWrapper": "robometer_gym.wrappers.single",
        "RobometerVectorRewardWrapper": "robometer_gym.wrappers.vector",
        "SubEnvironmentError": "robometer_gym.wrappers.frame_capture",
        "make_robometer_vec": "robometer_gym.wrappers.make_vec",
        "read_traces": "robometer_gym.tracking.trace",
        "replay": "robometer_gym.tracking.replay",
    },
)

if find_spec("gymnasium"):
    try:
        import gymnasium
    except KeyboardInterrupt:
        # Most of the command's first second; it cannot catch this itself: see cli/main.py.
        if sys.argv[0] != "-m" and Path(sys.argv[0]).name != "robometer-gym":
            raise
        print("robometer-gym: interrupted", file=sys.stderr)
        sys.exit(130)

    # Gymnasium warns when an id is registered again, as a reload of this module would do.
    if "robometer_gym/TabletopReach-v0" not in gymnasium.registry:
        gymnasium.register(
            "robometer_gym/TabletopReach-v0",
            entry_point="robometer_gym.envs.tabletop:TabletopReachEnv",
            max_episode_steps=100,
        )
