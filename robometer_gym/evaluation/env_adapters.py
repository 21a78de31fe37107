"""EvalEnv: one interface to scalar, vector and Stable-Baselines3 environments.

The kinds differ in how an episode ends and the next begins. Knows nothing of policies or metrics,
and imports no Stable-Baselines3.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from robometer_gym.tracking.find_tracker import find_tracker, unwrap
from robometer_gym.tracking.tracker import EpisodeTracker
from robometer_gym.wrappers.env_kinds import kind_of

__all__ = ["EvalEnv", "adapt_env"]


class EvalEnv(Protocol):
    """N environments that a policy acts in.

    Attributes:
        num_envs: N; 1 for a scalar environment.
        tracker: of the reward wrapper.
        seeds: N, the seed of each environment's current episode; None where it has none.
        action_shape: of an action for all N; None where it is no single array.
    """

    num_envs: int
    tracker: EpisodeTracker
    seeds: list[int | None]
    action_shape: tuple[int, ...] | None

    def reset(self, seed: int) -> Any:
        """Begin an episode in every environment and return the observation."""

    def step(self, action: Any) -> Any:
        """Make one step and return the observation."""

    def begin(self, observation: Any) -> tuple[Any, NDArray[np.bool_]]:
        """Begin the next episodes where the last have ended.

        Returns:
            The observation, and (N,) bool: where it is the first of an episode.
        """

    def action_sampler(self, seed: int) -> Callable[[], Any]:
        """Return a function that draws an action for all N."""


def adapt_env(env: Any) -> EvalEnv:
    """Return the EvalEnv of an environment.

    Raises:
        TypeError: not an environment of the three kinds.
        ValueError: no reward wrapper is in its stack.
    """
    kind = kind_of(env)
    adapters: dict[str | None, tuple[type[_Scalar | _Vector | _SB3], str]] = {
        "gymnasium.Env": (_Scalar, "RobometerRewardWrapper(env, task=...)"),
        "gymnasium.vector.VectorEnv": (_Vector, "make_robometer_vec(env, task=...)"),
        "VecEnv of Stable-Baselines3": (_SB3, "make_robometer_vec_env(env, task=...)"),
    }
    if kind not in adapters:
        raise TypeError(
            "env must be a gymnasium.Env, a gymnasium.vector.VectorEnv or a VecEnv of "
            f"Stable-Baselines3, got {type(env).__name__}."
        )
    adapter, wrap = adapters[kind]
    tracker = find_tracker(env)
    if tracker is None:
        raise ValueError(
            f"No reward wrapper is around this {type(env).__name__}, so there is nothing to "
            f"evaluate: wrap it as a whole, {wrap}. One around each of its sub-environments does "
            "not count."
        )
    if any(vars(layer).get("owed") is not None for layer in unwrap(env)):
        raise ValueError(
            "These environments were made with late=True: their rewards come when the agent's "
            "buffer settles them. Evaluate on environments made without it."
        )
    return adapter(env, tracker)


class _Scalar:
    """One environment: episode k is reset with seed + k, and "random" is seeded likewise."""

    def __init__(self, env: gym.Env[Any, Any], tracker: EpisodeTracker) -> None:
        self.env, self.tracker, self.num_envs = env, tracker, 1
        self.seeds: list[int | None] = [None]
        self.action_shape = env.action_space.shape
        self._action_space = deepcopy(env.action_space)  # the env's own random state stays
        self._over = False

    def reset(self, seed: int) -> Any:
        self.seeds, self._next_seed = [seed], seed + 1
        self._action_space.seed(seed)
        return self.env.reset(seed=seed)[0]

    def step(self, action: Any) -> Any:
        observation, _, terminated, truncated, _ = self.env.step(action)
        self._over = bool(terminated or truncated)
        return observation

    def begin(self, observation: Any) -> tuple[Any, NDArray[np.bool_]]:
        if self._over:
            observation = self.reset(self._next_seed)
        return observation, np.array([self._over])

    def action_sampler(self, seed: int) -> Callable[[], Any]:
        return self._action_space.sample


class _Vector:
    """Environments of gymnasium.vector, in any of its autoreset modes."""

    def __init__(self, env: VectorEnv[Any, Any, Any], tracker: EpisodeTracker) -> None:
        self.env, self.tracker, self.num_envs = env, tracker, env.num_envs
        self.seeds: list[int | None] = [None] * self.num_envs
        self.action_shape = env.action_space.shape
        self._mode = env.metadata["autoreset_mode"]
        self._over = np.zeros(self.num_envs, bool)
        self._begun = np.zeros(self.num_envs, bool)

    def reset(self, seed: int) -> Any:
        self.seeds = [seed + number for number in range(self.num_envs)]
        self._over = np.zeros(self.num_envs, bool)
        return self.env.reset(seed=seed)[0]

    def step(self, action: Any) -> Any:
        was_over = self._over
        observation, _, terminated, truncated, _ = self.env.step(action)
        self._over = np.logical_or(terminated, truncated)
        self._begun = was_over if self._mode is AutoresetMode.NEXT_STEP else self._over
        return observation

    def begin(self, observation: Any) -> tuple[Any, NDArray[np.bool_]]:
        if self._mode is AutoresetMode.DISABLED and self._over.any():
            observation = self.env.reset(options={"reset_mask": self._over.copy()})[0]
        _forget_seeds(self.seeds, self._begun)
        return observation, self._begun

    def action_sampler(self, seed: int) -> Callable[[], Any]:
        space = deepcopy(self.env.action_space)
        space.seed(seed)
        return space.sample


class _SB3:
    """A VecEnv of Stable-Baselines3, which resets in the same step."""

    def __init__(self, env: Any, tracker: EpisodeTracker) -> None:
        self.env, self.tracker, self.num_envs = env, tracker, int(env.num_envs)
        self.seeds: list[int | None] = [None] * self.num_envs
        single = env.action_space.shape
        self.action_shape = None if single is None else (self.num_envs, *single)
        self._over = np.zeros(self.num_envs, bool)

    def reset(self, seed: int) -> Any:
        self.seeds = [seed + number for number in range(self.num_envs)]
        self.env.seed(seed)
        return self.env.reset()

    def step(self, action: Any) -> Any:
        observation, _, dones, _ = self.env.step(action)
        self._over = np.asarray(dones, bool)
        return observation

    def begin(self, observation: Any) -> tuple[Any, NDArray[np.bool_]]:
        _forget_seeds(self.seeds, self._over)
        return observation, self._over

    def action_sampler(self, seed: int) -> Callable[[], Any]:
        space = deepcopy(self.env.action_space)
        space.seed(seed)
        return lambda: np.stack([space.sample() for _ in range(self.num_envs)])


def _forget_seeds(seeds: list[int | None], begun: NDArray[np.bool_]) -> None:
    """An episode that follows another in the same environment has no seed of its own."""
    for env in np.flatnonzero(begun).tolist():
        seeds[env] = None
