"""Changes of an environment for the time of an evaluation: frozen statistics, held successes.

Knows nothing of policies or metrics, and imports no Stable-Baselines3.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, SupportsFloat

import gymnasium as gym
from gymnasium.wrappers import NormalizeObservation, NormalizeReward
from gymnasium.wrappers.vector import NormalizeObservation as VectorNormalizeObservation
from gymnasium.wrappers.vector import NormalizeReward as VectorNormalizeReward

from robometer_gym.tracking.events import read_true_success
from robometer_gym.tracking.find_tracker import unwrap
from robometer_gym.wrappers.single import RobometerRewardWrapper

__all__ = ["HoldSuccess", "freeze_statistics", "hold_successes"]

_NORMALIZERS = (
    NormalizeObservation,
    NormalizeReward,
    VectorNormalizeObservation,
    VectorNormalizeReward,
)


class HoldSuccess(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps an episode running for some steps after the environment has ended it with success.

    So a success detector, which needs several predictions, can see a success that the environment
    ends at once. Goes inside the reward wrapper (or `FrameCapture`). The environment must go on
    after its own end, which most do; an episode that ends without success ends as ever.

    Args:
        env: reports `is_success` or `success` in its infos.
        steps: how many follow the first successful end, >= 0.

    Example:
        >>> from robometer_gym.testing import CountingEnv
        >>> env = HoldSuccess(CountingEnv(lengths=[3], success=[True]), steps=2)
        >>> _ = env.reset()
        >>> [env.step(0)[2] for _ in range(5)]
        [False, False, False, False, True]
    """

    def __init__(self, env: gym.Env[Any, Any], steps: int) -> None:
        super().__init__(env)
        self._steps = steps
        self._left: int | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        self._left = None
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Make a step; `terminated` is held back until `steps` have followed a success."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self._left is not None:
            self._left -= 1
        elif terminated and read_true_success(info):
            self._left = self._steps
        if self._left is not None:
            terminated = self._left <= 0
        return observation, reward, terminated, truncated, info


@contextmanager
def hold_successes(env: Any, steps: int) -> Iterator[None]:
    """Put a `HoldSuccess` inside the reward wrapper of a scalar environment, for a while."""
    if not steps:
        yield
        return
    rewarded = next(layer for layer in unwrap(env) if isinstance(layer, RobometerRewardWrapper))
    inner = rewarded.env
    rewarded.env = HoldSuccess(inner, steps)
    try:
        yield
    finally:
        rewarded.env = inner


@contextmanager
def freeze_statistics(env: Any) -> Iterator[None]:
    """Stop the running means of normalizing wrappers for a while.

    Those of Gymnasium and `VecNormalize`, around the environment and around sub-environments of
    this process.
    """
    vec_env = sys.modules.get("stable_baselines3.common.vec_env")
    frozen: list[tuple[Any, str, bool]] = []
    for layer in _all_layers(env):
        if isinstance(layer, _NORMALIZERS):
            frozen.append((layer, "update_running_mean", layer.update_running_mean))
        elif vec_env is not None and isinstance(layer, vec_env.VecNormalize):
            frozen.append((layer, "training", layer.training))
    try:
        for layer, switch, _ in frozen:
            setattr(layer, switch, False)
        yield
    finally:
        for layer, switch, before in frozen:
            setattr(layer, switch, before)


def _all_layers(env: Any) -> Iterator[Any]:
    for layer in unwrap(env):
        yield layer
        sub_envs = getattr(layer, "__dict__", {}).get("envs")
        if isinstance(sub_envs, list | tuple):
            for sub_env in sub_envs:
                yield from unwrap(sub_env)
