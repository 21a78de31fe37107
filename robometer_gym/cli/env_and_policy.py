"""Environments and policies by the names that are given on a command line.

Every error names the correct form. Knows nothing of reward models or metrics; imports
Stable-Baselines3 only for a policy of its own.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.error import DependencyNotInstalled

from robometer_gym.validation import MissingDependencyError

__all__ = ["load_policy", "make_env", "read_env_kwargs"]

logger = logging.getLogger(__name__)

_ALGORITHMS = ("a2c", "ddpg", "dqn", "ppo", "sac", "td3")


def read_env_kwargs(texts: Sequence[str]) -> dict[str, Any]:
    """Return keyword arguments from "KEY=VALUE" and JSON objects.

    Args:
        texts: a value that is JSON (5, true, null, [1, 2], "5") is that, any other a string.

    Raises:
        ValueError: neither of the two.

    Example:
        >>> read_env_kwargs(["layout=random", '{"terminate_on_success": false}', "size=5"])
        {'layout': 'random', 'terminate_on_success': False, 'size': 5}
    """
    kwargs: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        whole = _json(text)
        if isinstance(whole, dict):
            kwargs |= whole
        elif equals and key.isidentifier():
            kwargs[key] = _json(value, otherwise=value)
        else:
            raise ValueError(
                f"--env-kwargs must be KEY=VALUE or a JSON object, got {text!r}. "
                "For example: --env-kwargs layout=random size=5"
            )
    return kwargs


def make_env(env_id: str, task: str, kwargs: Mapping[str, Any]) -> gym.Env[Any, Any]:
    """Make an environment that renders; a warning names a task of its own that differs.

    Args:
        env_id: as `gym.make` takes it; "module:Id" imports the module that registers it.
        task: the instruction that the model will read.
        kwargs: of the environment.

    Raises:
        ValueError: no such environment, or an argument that it does not take.
        DependencyNotInstalled: what it needs is missing.
    """
    if ":" in env_id and "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m robometer_gym` does
    try:
        env = gym.make(env_id, **{"render_mode": "rgb_array", **kwargs})
        return _WarnOfOtherTask(env, task)
    except DependencyNotInstalled:
        raise
    except (gym.error.Error, ImportError) as error:
        raise ValueError(
            f"Cannot make the environment {env_id!r}: {error} "
            "One of another package is written module:Id, as in gymnasium_robotics:FetchPush-v4."
        ) from error
    except TypeError as error:
        raise ValueError(
            f"Cannot make the environment {env_id!r} with {dict(kwargs)}: {error}"
        ) from error


def load_policy(name: str, env: gym.Env[Any, Any], vecnormalize: Path | None = None) -> Any:
    """Return what `evaluate` takes as its policy; one for another environment is refused.

    Args:
        name: "random", or "sb3:ALGORITHM:PATH", a model that Stable-Baselines3 has saved, such as
            "sb3:ppo:agent.zip" (a2c, ddpg, dqn, ppo, sac, td3). A saved model may run any code when
            it is loaded: give only your own.
        env: where it will act.
        vecnormalize: the file of the VecNormalize that the agent was trained with. It may run any
            code, too.

    Raises:
        ValueError: another name, no model in the file, or one for another environment.
        FileNotFoundError: no such file.
        MissingDependencyError: Stable-Baselines3 is missing.
    """
    if name == "random":
        if vecnormalize is not None:
            raise ValueError("--vecnormalize needs a trained agent: --policy sb3:ALGORITHM:PATH.")
        return "random"
    kind, _, rest = name.partition(":")
    algorithm, colon, path = rest.partition(":")
    algorithm = algorithm.lower()
    if kind != "sb3" or not colon or not path:
        raise ValueError(
            f"policy must be 'random' or 'sb3:ALGORITHM:PATH', as in sb3:ppo:agent.zip "
            f"({', '.join(_ALGORITHMS)}); got {name!r}. Any other acts from Python: "
            "robometer_gym.evaluation.evaluate(env, policy)."
        )
    if algorithm not in _ALGORITHMS:
        raise ValueError(
            f"The algorithm of a policy must be one of {', '.join(_ALGORITHMS)}, got {algorithm!r} "
            f"in {name!r}. Load any other in Python, and pass it to evaluate(env, policy)."
        )
    file = _find_saved_model(Path(path))
    try:
        import stable_baselines3
    except ImportError as error:
        raise MissingDependencyError(
            "A saved policy needs stable-baselines3: pip install 'robometer-gym[sb3]'."
        ) from error
    try:
        policy = getattr(stable_baselines3, algorithm.upper()).load(file)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{file} cannot be loaded as a {algorithm.upper()}: {error} "
            "Was it saved by another algorithm, or not by model.save(path)?"
        ) from error
    _check_fit(policy, env, file)
    return policy if vecnormalize is None else _NormalizingPolicy(policy, env, vecnormalize)


def _check_fit(policy: Any, env: gym.Env[Any, Any], file: Path) -> None:
    """Compare spaces, before a reward model is loaded."""
    for kind in ("observation", "action"):
        saved, here = (getattr(owner, f"{kind}_space") for owner in (policy, env))
        if _outline(saved) != _outline(here):
            raise ValueError(
                f"{file} was saved for another environment: its {kind}s are {saved}, those of this "
                f"one {here}."
            )


def _outline(space: gym.Space[Any]) -> Any:
    """Return kind and shape of a space; bounds and dtypes may differ between versions.

    The shape of an image is sorted: Stable-Baselines3 saves and takes it with channels first.
    """
    if isinstance(space, gym.spaces.Dict):
        return {name: _outline(part) for name, part in space.items()}
    if isinstance(space, gym.spaces.Discrete):
        return int(space.n)
    shape = space.shape or ()
    return type(space).__name__, tuple(sorted(shape)) if len(shape) == 3 else shape


class _NormalizingPolicy:
    """An agent that was trained within VecNormalize, for raw observations."""

    def __init__(self, policy: Any, env: gym.Env[Any, Any], file: Path) -> None:
        from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

        if not file.is_file():
            raise FileNotFoundError(
                f"There is no file {file}: give what VecNormalize.save() wrote."
            )
        try:
            self._normalizer = VecNormalize.load(str(file), DummyVecEnv([lambda: env]))
        except Exception as error:  # a pickle may raise anything
            raise ValueError(
                f"{file} is not the VecNormalize of this environment: {error} Give the file that "
                "VecNormalize.save() wrote after the training."
            ) from error
        self._policy = policy

    def predict(self, observation: Any, **more: Any) -> Any:
        """Predict from the normalized observation."""
        return self._policy.predict(self._normalizer.normalize_obs(observation), **more)


def _find_saved_model(path: Path) -> Path:
    """Return the file, whose .zip may be left out as in Stable-Baselines3."""
    for file in (path, path.with_name(path.name + ".zip")):
        if file.is_file():
            return file
    raise FileNotFoundError(f"There is no saved policy {path}: give the .zip that save() wrote.")


class _WarnOfOtherTask(gym.Wrapper[Any, Any, Any, Any]):
    """Warns, once, when the environment's own task is not the one that the model reads."""

    def __init__(self, env: gym.Env[Any, Any], task: str) -> None:
        super().__init__(env)
        self._task: str | None = task

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        own_task = info.get("task")
        if self._task is not None and isinstance(own_task, str) and own_task != self._task:
            logger.warning(
                "The environment's own task is %r, and the model reads %r: their successes are not "
                "comparable. Give both the same, for example --env-kwargs task=%r.",
                own_task,
                self._task,
                self._task,
            )
            self._task = None
        return observation, info


def _json(text: str, otherwise: Any = None) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return otherwise
