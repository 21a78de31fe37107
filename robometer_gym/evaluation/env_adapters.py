"""A scalar, a vector and a Stable-Baselines3 environment, looked at in one way.

Each kind says differently how an episode ends and the next begins; here both are a `Moment` and a
`begin`. Knows nothing of policies or of what is measured, and imports no Stable-Baselines3.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray

from robometer_gym.tracking.tracker import EpisodeTracker
from robometer_gym.wrappers.env_kinds import kind_of

__all__ = ["Moment", "Stage", "layers", "stage_of"]

_KEYS = ("robometer/progress", "robometer/success", "env_reward", "is_success", "success")


class Moment(NamedTuple):
    """What one step of one environment came to: the reward as paid, whether it was the last."""

    reward: float
    over: bool
    info: Mapping[str, Any]


class Stage(Protocol):
    """Where N environments act.

    Attributes:
        num_envs: N; 1 for a scalar environment.
        tracker: of the reward wrapper.
        seeds: N, what the current episode of each was seeded with; None where nobody knows.
        shape: what a policy's action for all N must be like; None where it is no single array.
    """

    num_envs: int
    tracker: EpisodeTracker
    seeds: list[int | None]
    shape: tuple[int, ...] | None

    def reset(self, seed: int) -> Any:
        """Begin an episode everywhere and return the observation."""

    def step(self, action: Any) -> tuple[Any, list[Moment | None]]:
        """Return the observation and N moments; None where it was only a reset."""

    def begin(self, observation: Any) -> tuple[Any, NDArray[np.bool_]]:
        """Begin the next episodes where the last have ended.

        Returns:
            The observation now, and (N,) bool: where it is the first of an episode.
        """

    def sampler(self, seed: int) -> Any:
        """Return a function of the observation that draws an action for all N."""


def stage_of(env: Any) -> Stage:
    """Return the stage for an environment.

    Raises:
        TypeError: it is no environment of the three kinds.
        ValueError: no reward wrapper is in its stack.
    """
    kind = kind_of(env)
    if kind == "gymnasium.Env":
        return _Scalar(env, _find_tracker(env, "RobometerRewardWrapper(env, task=...)"))
    if kind == "gymnasium.vector.VectorEnv":
        made = "robometer_gym.wrappers.vector.make_robometer_vec(env, task=...)"
        return _Vector(env, _find_tracker(env, made))
    if kind == "VecEnv of Stable-Baselines3":
        made = "robometer_gym.sb3.make_robometer_vec_env(env, task=...)"
        return _SB3(env, _find_tracker(env, made))
    raise TypeError(
        "env must be a gymnasium.Env, a gymnasium.vector.VectorEnv or a VecEnv of "
        f"Stable-Baselines3, got {type(env).__name__}."
    )


def layers(env: Any) -> list[Any]:
    """Return an environment and all that it wraps, the outermost first."""
    found = [env]
    while True:
        layer = found[-1]
        if isinstance(layer, gym.Wrapper | VectorWrapper):
            found.append(layer.env)
        elif not isinstance(layer, gym.Env) and "venv" in vars(layer):  # SB3's VecEnvWrapper
            found.append(layer.venv)
        else:
            return found


def _find_tracker(env: Any, made: str) -> EpisodeTracker:
    for layer in layers(env):
        tracker = vars(layer).get("tracker")
        if isinstance(tracker, EpisodeTracker):
            return tracker
    raise ValueError(
        f"No reward wrapper is around this {type(env).__name__}, so there is nothing to evaluate: "
        f"wrap it as a whole, {made}. One around each of its sub-environments is not seen."
    )


class _Scalar:
    """One environment: episode k is reset with seed + k."""

    def __init__(self, env: gym.Env[Any, Any], tracker: EpisodeTracker) -> None:
        self.env, self.tracker, self.num_envs = env, tracker, 1
        self.seeds: list[int | None] = [None]
        self.shape = env.action_space.shape
        self._over = False

    def reset(self, seed: int) -> Any:
        self.seeds, self._next = [seed], seed + 1
        return self.env.reset(seed=seed)[0]

    def step(self, action: Any) -> tuple[Any, list[Moment | None]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._over = bool(terminated or truncated)
        return observation, [Moment(float(reward), self._over, info)]

    def begin(self, observation: Any) -> tuple[Any, NDArray[np.bool_]]:
        if self._over:
            observation = self.reset(self._next)
        return observation, np.array([self._over])

    def sampler(self, seed: int) -> Any:
        space = _seeded(self.env.action_space, seed)
        return lambda _: space.sample()


class _Vector:
    """Environments of gymnasium.vector, in any of its autoreset modes."""

    def __init__(self, env: VectorEnv[Any, Any, Any], tracker: EpisodeTracker) -> None:
        self.env, self.tracker, self.num_envs = env, tracker, env.num_envs
        self.seeds: list[int | None] = [None] * self.num_envs
        self.shape = env.action_space.shape
        self._mode = env.metadata["autoreset_mode"]
        self._over = np.zeros(self.num_envs, bool)
        self._begun = np.zeros(self.num_envs, bool)

    def reset(self, seed: int) -> Any:
        self.seeds = [seed + number for number in range(self.num_envs)]
        self._over = np.zeros(self.num_envs, bool)
        return self.env.reset(seed=seed)[0]

    def step(self, action: Any) -> tuple[Any, list[Moment | None]]:
        was_over = self._over
        observation, rewards, terminated, truncated, infos = self.env.step(action)
        self._over = np.logical_or(terminated, truncated)
        last = infos.get("final_info", {}) if self._mode is AutoresetMode.SAME_STEP else infos
        moments: list[Moment | None] = [
            Moment(float(rewards[i]), bool(over), _of_one(last if over else infos, i))
            for i, over in enumerate(self._over)
        ]
        self._begun = self._over
        if self._mode is AutoresetMode.NEXT_STEP:
            self._begun = was_over
            moments = [
                None if reset else moment for reset, moment in zip(was_over, moments, strict=True)
            ]
        return observation, moments

    def begin(self, observation: Any) -> tuple[Any, NDArray[np.bool_]]:
        if self._mode is AutoresetMode.DISABLED and self._over.any():
            observation = self.env.reset(options={"reset_mask": self._over.copy()})[0]
        self.seeds = [
            None if begun else seed for begun, seed in zip(self._begun, self.seeds, strict=True)
        ]
        return observation, self._begun

    def sampler(self, seed: int) -> Any:
        space = _seeded(self.env.action_space, seed)
        return lambda _: space.sample()


class _SB3:
    """A VecEnv of Stable-Baselines3, which resets in the same step."""

    def __init__(self, env: Any, tracker: EpisodeTracker) -> None:
        self.env, self.tracker, self.num_envs = env, tracker, int(env.num_envs)
        self.seeds: list[int | None] = [None] * self.num_envs
        single = env.action_space.shape
        self.shape = None if single is None else (self.num_envs, *single)
        self._over = np.zeros(self.num_envs, bool)

    def reset(self, seed: int) -> Any:
        self.seeds = [seed + number for number in range(self.num_envs)]
        self.env.seed(seed)
        return self.env.reset()

    def step(self, action: Any) -> tuple[Any, list[Moment | None]]:
        observation, rewards, dones, infos = self.env.step(action)
        self._over = np.asarray(dones, bool)
        return observation, [
            Moment(float(reward), bool(over), info)
            for reward, over, info in zip(rewards, dones, infos, strict=True)
        ]

    def begin(self, observation: Any) -> tuple[Any, NDArray[np.bool_]]:
        self.seeds = [
            None if over else seed for over, seed in zip(self._over, self.seeds, strict=True)
        ]
        return observation, self._over

    def sampler(self, seed: int) -> Any:
        space = _seeded(self.env.action_space, seed)
        return lambda _: np.stack([space.sample() for _ in range(self.num_envs)])


def _of_one(infos: Mapping[str, Any], index: int) -> dict[str, Any]:
    """What the infos of a vector environment say of one of its environments."""
    return {key: infos[key][index] for key in _KEYS if key in infos and infos[f"_{key}"][index]}


def _seeded(space: gym.Space[Any], seed: int) -> gym.Space[Any]:
    """A copy: the environment's own space stays as it is."""
    space = deepcopy(space)
    space.seed(seed)
    return space
