"""Doubles that cost next to nothing: an environment and a reward model, to time what is between.

Worker processes import this module: it loads neither torch nor Stable-Baselines3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from robometer_gym import Clip, FrameCapture, Prediction

__all__ = ["BareEnv", "FreeModel", "captured_env"]


class BareEnv(gym.Env[Any, Any]):
    """Environment whose step does nothing and whose render returns one buffer, as renderers do."""

    def __init__(self, height: int = 240, width: int = 320) -> None:
        self.render_mode = "rgb_array"
        self.observation_space = gym.spaces.Box(0.0, 1.0, (1,))
        self.action_space = gym.spaces.Discrete(2)
        self._observation = np.zeros(1, np.float32)
        self._info: dict[str, Any] = {}
        rng = np.random.default_rng(0)
        self._frame = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode; it has no end of its own."""
        return self._observation, self._info

    def step(self, action: Any) -> Any:
        """Do nothing."""
        return self._observation, 0.0, False, False, self._info

    def render(self) -> Any:
        """Return the one buffer."""
        return self._frame


def captured_env() -> gym.Env[Any, Any]:
    """Return a bare environment as the vector wrappers need it."""
    return FrameCapture(BareEnv())


class FreeModel:
    """Reward model that returns one prepared prediction per length of the window."""

    def __init__(self) -> None:
        half = [np.full(length, 0.5, np.float32) for length in range(17)]
        none = [np.zeros(length, np.float32) for length in range(17)]
        self._predictions = [Prediction(p, s) for p, s in zip(half, none, strict=True)]

    def predict(self, clips: Sequence[Clip]) -> list[Prediction]:
        """Return the prepared predictions."""
        return [self._predictions[len(clip)] for clip in clips]
