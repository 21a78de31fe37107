"""Policies of an evaluation: an agent of Stable-Baselines3, a function, or "random"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robometer_gym.evaluation.env_adapters import EvalEnv

__all__ = ["Act", "check_action", "make_actor", "policy_name"]

Act = Callable[[Any, NDArray[np.bool_]], Any]
"""From an observation, and (N,) bool where it is the first of an episode, to an action."""


def make_actor(policy: Any, env: EvalEnv, seed: int) -> Act:
    """Return the policy as a function that keeps its own state.

    Args:
        policy: as `evaluate` takes it.
        env: where it will act.
        seed: of the actions of "random".

    Raises:
        TypeError: it cannot act.
        ValueError: another text than "random".
    """
    if isinstance(policy, str):
        if policy != "random":
            raise ValueError(f"policy must be 'random', a model or a function, got {policy!r}.")
        sample = env.action_sampler(seed)
        return lambda observation, first: sample()
    if callable(getattr(policy, "predict", None)) and not isinstance(policy, type):
        state: Any = None

        def act(observation: Any, first: NDArray[np.bool_]) -> Any:
            nonlocal state
            action, state = policy.predict(
                observation, state=state, episode_start=first, deterministic=True
            )
            return action

        return act
    if not callable(policy) or isinstance(policy, type):
        raise TypeError(
            "policy must be a model of Stable-Baselines3, a function from an observation to an "
            f"action, or 'random'; got {policy!r}."
        )
    return lambda observation, first: policy(observation)


def check_action(action: Any, env: EvalEnv) -> None:
    """Refuse an action of another shape: environments may take any part of it.

    Raises:
        ValueError: the shape of an action for another number of environments, or for another one.
    """
    if env.action_shape is not None and np.shape(action) != env.action_shape:
        each = f", one action for each of {env.num_envs} environments" * (env.num_envs > 1)
        raise ValueError(
            f"The policy's action must be of shape {env.action_shape}{each}; "
            f"got {np.shape(action)}."
        )


def policy_name(policy: Any) -> str:
    """Return the name of a policy for reports."""
    if isinstance(policy, str):
        return policy
    name = str(getattr(policy, "__name__", type(policy).__name__))
    return "function" if name == "<lambda>" else name
