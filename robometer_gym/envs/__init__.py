"""The built-in demo environment. Importing this package registers it with Gymnasium."""

import gymnasium as gym

from robometer_gym.envs.tabletop import COLOURS, TASK, TASKS, TabletopReachEnv

__all__ = ["COLOURS", "ENV_ID", "TASK", "TASKS", "TabletopReachEnv"]

ENV_ID = "robometer_gym/TabletopReach-v0"

# Gymnasium warns when an id is registered again, which a reload of this module would do.
if ENV_ID not in gym.registry:
    gym.register(
        ENV_ID,
        entry_point="robometer_gym.envs.tabletop:TabletopReachEnv",
        max_episode_steps=100,
    )
