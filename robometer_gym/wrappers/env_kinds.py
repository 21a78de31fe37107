"""Env factories, env-kind checks, and refusals that the wrappers share.

Every error names the wrapper or the argument that fits instead. Knows nothing of rewards, and
imports no Stable-Baselines3: a caller with a VecEnv has imported it already.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NoReturn

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

__all__ = [
    "MONITOR_INSIDE",
    "Kind",
    "check_kind",
    "env_factory",
    "kind_of",
    "refuse_compute_reward",
    "refuse_monitor",
]

Kind = Literal["gymnasium.Env", "gymnasium.vector.VectorEnv", "VecEnv of Stable-Baselines3"]

_WRAPPERS: dict[Kind, str] = {
    "gymnasium.Env": "RobometerRewardWrapper",
    "gymnasium.vector.VectorEnv": "RobometerVectorRewardWrapper",
    "VecEnv of Stable-Baselines3": "robometer_gym.sb3.VecRobometerReward",
}


def kind_of(env: object) -> Kind | None:
    """Return the kind of an environment; None if it is no environment."""
    if isinstance(env, gym.Env):
        return "gymnasium.Env"
    if isinstance(env, VectorEnv):
        return "gymnasium.vector.VectorEnv"
    vec_env = sys.modules.get("stable_baselines3.common.vec_env")
    if vec_env is not None and isinstance(env, vec_env.VecEnv):
        return "VecEnv of Stable-Baselines3"
    return None


def check_kind(env: object, expected: Kind) -> None:
    """Raise unless `env` is of the expected kind.

    Raises:
        TypeError: another kind, for which the message names the wrapper, or no environment.
    """
    kind = kind_of(env)
    if kind != expected:
        hint = f", a {kind}: use {_WRAPPERS[kind]}" if kind else ""
        raise TypeError(
            f"{_WRAPPERS[expected]} takes a {expected}, got {type(env).__name__}{hint}."
        )


def env_factory(
    env: str | EnvSpec | Callable[..., gym.Env[Any, Any]], env_kwargs: dict[str, Any] | None
) -> Callable[[], gym.Env[Any, Any]]:
    """Return a function that makes one environment.

    Args:
        env: an id, a spec, or a function or class that makes an environment.
        env_kwargs: for `gym.make`, or for the function. An id is made with
            render_mode="rgb_array" unless they set another one.

    Raises:
        TypeError: none of these, such as a finished environment.

    Example:
        >>> from robometer_gym.testing import CountingEnv
        >>> env_factory(CountingEnv, {"lengths": [4]})().lengths
        (4,)
    """
    if isinstance(env, str | EnvSpec):
        return partial(gym.make, env, **{"render_mode": "rgb_array", **(env_kwargs or {})})
    if kind_of(env) or not callable(env):
        raise TypeError(
            "Each environment is made separately: give an id, a spec, or a function or class that "
            f"makes one (lambda: ...), not an environment; got {env!r}."
        )
    return partial(env, **(env_kwargs or {}))


def refuse_compute_reward(*_: Any, **__: Any) -> NoReturn:
    """Refuse `compute_reward`, the method from which HER gets the rewards of relabeled goals.

    Without this it would be found in the environment inside, and HER would learn from that
    environment's rewards.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(
        "compute_reward: a reward model needs frames and a task, and a relabeled goal (HER) has "
        "neither. Use another replay buffer, such as SAC's default."
    )


def refuse_monitor(env: gym.Env[Any, Any]) -> None:
    """Raise if SB3's `Monitor` is inside `env`, where it misses ends by detected success.

    `evaluate_policy` would wait for its episodes for ever, and its returns are the environment's.

    Raises:
        ValueError: it is.
    """
    monitor = sys.modules.get("stable_baselines3.common.monitor")
    layer: Any = env
    while monitor is not None and isinstance(layer, gym.Wrapper):
        if isinstance(layer, monitor.Monitor):
            raise ValueError(MONITOR_INSIDE)
        layer = layer.env


MONITOR_INSIDE = (
    "Stable-Baselines3's Monitor is inside: it counts the environment's own rewards and misses "
    "episodes that a detected success ends, so evaluate_policy would never return. Put it outside: "
    "Monitor(RobometerRewardWrapper(env, ...)), VecMonitor(VecRobometerReward(venv, ...)) as "
    "make_robometer_vec_env does, or set terminate_on_success=False."
)
"""Message of `refuse_monitor`."""
