"""The built-in demo environment, and scripted episodes in it."""

from robometer_gym.envs.tabletop import COLORS, ENV_ID, TASK, TASKS, TabletopReachEnv

__all__ = ["COLORS", "ENV_ID", "TASK", "TASKS", "TabletopReachEnv"]
