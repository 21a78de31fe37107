"""make_robometer_vec: a vector environment with model rewards, every wrapper in its place."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from typing_extensions import Unpack

from robometer_gym.models.loading import DEFAULT_REWARD_MODEL, RewardModelLike
from robometer_gym.tracking.settings import (
    RewardOptions,
    expose_settings_in_signature,
    read_settings,
)
from robometer_gym.validation import check_tasks
from robometer_gym.wrappers.env_kinds import env_factory
from robometer_gym.wrappers.frame_capture import FrameCapture
from robometer_gym.wrappers.vector import RobometerVectorRewardWrapper

__all__ = ["make_robometer_vec"]

if TYPE_CHECKING:
    _Statistics = RecordEpisodeStatistics[Any, Any]
else:
    _Statistics = RecordEpisodeStatistics  # takes no types in Gymnasium 1.1


@expose_settings_in_signature
def make_robometer_vec(
    env: str | gym.envs.registration.EnvSpec | Callable[..., gym.Env[Any, Any]],
    task: str | Sequence[str],
    num_envs: int = 1,
    reward_model: RewardModelLike = DEFAULT_REWARD_MODEL,
    *,
    vectorization_mode: Literal["sync", "async"] = "sync",
    env_kwargs: dict[str, Any] | None = None,
    vector_kwargs: dict[str, Any] | None = None,
    wrappers: Sequence[Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]] = (),
    **settings: Unpack[RewardOptions],
) -> RecordEpisodeStatistics[Any, Any]:
    """Make a vector environment with model rewards, every wrapper in its place.

    From the inside: the environment, `wrappers`, `FrameCapture`, the vector environment,
    `RobometerVectorRewardWrapper`, `RecordEpisodeStatistics` (so that it counts our rewards).

    Args:
        env: an id, a spec, or a function or class that makes an environment.
        task: see `RobometerVectorRewardWrapper`.
        num_envs: number of environments.
        reward_model: see `RobometerVectorRewardWrapper`.
        vectorization_mode: "sync" steps them one after the other, "async" in processes.
        env_kwargs: for `gym.make`, or for the function. An id is made with
            render_mode="rgb_array" unless they set another one.
        vector_kwargs: for `SyncVectorEnv` or `AsyncVectorEnv`: `autoreset_mode`, `context`, ...
        wrappers: applied to each environment, the first one innermost.
        **settings: see `robometer_gym.tracking.settings.RewardSettings`.

    Raises:
        ValueError: an unknown mode; see `RobometerVectorRewardWrapper` for the rest.
        TypeError: a finished environment; an unknown setting.

    Example:
        >>> from robometer_gym.testing import CountingEnv, ScriptedRewardModel
        >>> model = ScriptedRewardModel(progress=lambda clip: clip.steps[-1] / 8)
        >>> envs = make_robometer_vec(CountingEnv, "push it", 2, model, env_kwargs={"lengths": [4]})
        >>> _ = envs.reset(seed=0)
        >>> [envs.step([0, 0])[1].tolist() for _ in range(4)][-1]
        [0.5, 0.5]
    """
    if vectorization_mode not in ("sync", "async"):
        raise ValueError(
            f"vectorization_mode must be 'sync' or 'async', got {vectorization_mode!r}."
        )
    check_tasks(task, num_envs)
    read_settings(make_robometer_vec, settings)  # before an environment is made
    make = env_factory(env, env_kwargs)

    def captured() -> gym.Env[Any, Any]:
        single = make()
        for wrapper in wrappers:
            single = wrapper(single)
        return FrameCapture(single)

    kind = SyncVectorEnv if vectorization_mode == "sync" else AsyncVectorEnv
    envs = kind([captured] * num_envs, **(vector_kwargs or {}))
    try:
        rewarded = RobometerVectorRewardWrapper(envs, task, reward_model, **settings)
    except BaseException:
        envs.close()
        raise
    same_step = rewarded.autoreset_mode is AutoresetMode.SAME_STEP
    return (_SameStepStatistics if same_step else RecordEpisodeStatistics)(rewarded)


class _SameStepStatistics(_Statistics):
    """RecordEpisodeStatistics under SAME_STEP, which Gymnasium before 1.4 counts wrongly.

    There it takes the first step of each episode for a reset, as under NEXT_STEP.
    """

    def step(self, actions: Any) -> Any:
        results = super().step(actions)
        ended = self.prev_dones
        self.episode_returns[ended] = 0
        self.episode_lengths[ended] = 0
        self.episode_start_times[ended] = time.perf_counter()
        self.prev_dones = np.zeros_like(ended)
        return results
