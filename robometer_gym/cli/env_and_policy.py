"""From what is written on a command line to an environment and a policy.

Every error says what to write instead. Knows nothing of reward models or of what is measured; of
Stable-Baselines3 only when a name says so.
"""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import DependencyNotInstalled

from robometer_gym.validation import MissingDependencyError
from robometer_gym.wrappers.cameras import Cameras

__all__ = ["load_policy", "make_env", "read_env_kwargs"]

logger = logging.getLogger(__name__)

# What the saved settings of each algorithm hold and those of the ones below it do not. A DDPG is
# taken for a TD3, of which it is a special case; it acts the same.
_TELLTALES = {
    "ppo": "clip_range",
    "dqn": "exploration_fraction",
    "sac": "target_entropy",
    "td3": "policy_delay",
    "a2c": "gae_lambda",
}
_ALGORITHMS = (*_TELLTALES, "ddpg")


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
    """Make an environment that can be seen; a task of its own that is another is warned of.

    Args:
        env_id: as `gym.make` takes it; "module:Id" imports the module that registers it.
        task: the instruction that the model will be given.
        kwargs: of the environment.

    Raises:
        ValueError: no such environment, or none of its arguments; or it cannot be seen.
        DependencyNotInstalled: what it needs is missing.
    """
    try:
        env = gym.make(env_id, **{"render_mode": "rgb_array", **kwargs})
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
    Cameras("render", None, env)  # refuses one that cannot be seen, before a model is loaded
    return _WarnsOfOtherTask(env, task)


def load_policy(name: str, env: gym.Env[Any, Any]) -> Any:
    """Return what `evaluate` takes as its policy; one for another environment is refused.

    Args:
        name: "random"; "sb3:PATH", a model that Stable-Baselines3 has saved, whose algorithm is
            read from the file; or "sb3:ppo:PATH" (a2c, ddpg, dqn, sac, td3), which names it. A
            saved model may run any code when it is loaded: give only your own.
        env: where it will act.

    Raises:
        ValueError: nothing of the kind, no model in the file, or one for another environment.
        FileNotFoundError: no such file.
        MissingDependencyError: Stable-Baselines3 is missing.
    """
    kind, _, rest = name.partition(":")
    if name == "random":
        return "random"
    if kind != "sb3" or not rest:
        raise ValueError(
            f"policy must be 'random', 'sb3:PATH' or 'sb3:ppo:PATH', got {name!r}. Any other "
            "acts from Python: robometer_gym.evaluation.evaluate(env, policy)."
        )
    named, _, path = rest.partition(":")
    if named.lower() not in _ALGORITHMS:
        named, path = "", rest
    file = _saved_model(Path(path))
    algorithm = named.lower() or _algorithm_in(file)
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
            "Another algorithm is named so: sb3:sac:PATH."
        ) from error
    _check_fit(policy, env, file)
    return policy


def _check_fit(policy: Any, env: gym.Env[Any, Any], file: Path) -> None:
    """Let it act once, before a reward model is loaded."""
    try:
        action, _ = policy.predict(env.observation_space.sample())
    except (ValueError, AssertionError) as error:
        raise ValueError(f"{file} was saved for another environment: {error}") from error
    if np.shape(action) != env.action_space.shape:
        raise ValueError(
            f"{file} was saved for another environment: its actions are of shape "
            f"{np.shape(action)}, those of this one of shape {env.action_space.shape}."
        )


def _saved_model(path: Path) -> Path:
    """The file, whose .zip may be left out as in Stable-Baselines3."""
    for file in (path, path.with_name(path.name + ".zip")):
        if file.is_file():
            return file
    raise FileNotFoundError(f"There is no saved policy {path}: give the .zip that save() wrote.")


def _algorithm_in(file: Path) -> str:
    """Which algorithm a model was saved by: the file does not name it."""
    try:
        with zipfile.ZipFile(file) as archive:
            saved: dict[str, Any] = json.loads(archive.read("data"))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(
            f"{file} is no model that Stable-Baselines3 has saved: {error}. Give the .zip that "
            "model.save(path) wrote."
        ) from error
    module = str(dict(saved.get("policy_class", {})).get("__module__", ""))
    if not module.startswith("sb3_contrib"):
        for algorithm, telltale in _TELLTALES.items():
            if telltale in saved:
                return algorithm
    raise ValueError(
        f"Which algorithm saved {file} is not to be seen. Write it: sb3:ppo:{file} "
        f"({', '.join(_ALGORITHMS)}); load any other in Python and give it to evaluate()."
    )


class _WarnsOfOtherTask(gym.Wrapper[Any, Any, Any, Any]):
    """Warns, once, where the environment is about another task than the model is told."""

    def __init__(self, env: gym.Env[Any, Any], task: str) -> None:
        super().__init__(env)
        self._task: str | None = task

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        its = info.get("task")
        if self._task is not None and isinstance(its, str) and its != self._task:
            logger.warning(
                "The environment's own task is %r, and the model is told %r: what it calls success "
                "is another thing. Give both the same, for example --env-kwargs task=%r.",
                its,
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
