"""Infos of Gymnasium's vector environments: an array per key, with a mask (N,) beside it.

Takes one environment's infos out of them, and merges infos of some environments into them. Of the
meaning of infos it knows only the environments' own success and the `Capture` of an inner wrapper.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np

from robometer_gym.tracking.events import read_true_success
from robometer_gym.wrappers.frame_capture import CAPTURE, Capture

__all__ = ["Infos", "merge_env_infos", "read_true_successes", "take_captures", "take_env_infos"]

Infos = dict[str, Any]


def merge_env_infos(infos: Infos, updates: Sequence[tuple[int, Infos]], num_envs: int) -> None:
    """Add infos of some environments to those of all, as `VectorEnv._add_info` but in one go.

    Args:
        infos: of all environments.
        updates: the index of an environment and its infos; no index twice.
        num_envs: number of environments.

    Example:
        >>> infos: Infos = {}
        >>> merge_env_infos(infos, [(1, {"height": 0.5})], 2)
        >>> infos["height"].tolist(), infos["_height"].tolist()
        ([0.0, 0.5], [False, True])
    """
    all_envs = np.ones(num_envs, np.bool_)
    by_keys: dict[tuple[str, ...], dict[int, Iterable[Any]]] = {}
    for env, info in updates:
        by_keys.setdefault(tuple(info), {})[env] = info.values()
    for keys, group in by_keys.items():
        for key, value_of_each in zip(keys, zip(*group.values(), strict=True), strict=True):
            values = np.array(value_of_each)
            if len(group) == num_envs:
                infos[key], infos[f"_{key}"] = values, all_envs.copy()
                continue
            if key not in infos:
                infos[key] = np.zeros(num_envs, values.dtype)
                infos[f"_{key}"] = np.zeros(num_envs, np.bool_)
            infos[key][list(group)] = values
            infos[f"_{key}"][list(group)] = True


def read_true_successes(infos: Infos, num_envs: int) -> list[bool | None]:
    """Return each environment's own success of a step; None where it reports none.

    Example:
        >>> read_true_successes({"success": np.array([True, False])}, 2)
        [True, False]
    """
    successes: list[bool | None] = [None] * num_envs
    for key in ("success", "is_success"):  # the second wins, as in `read_true_success`
        if key in infos:
            mask = infos.get(f"_{key}", np.ones(num_envs, np.bool_))
            for env in np.flatnonzero(mask).tolist():
                successes[env] = read_true_success({key: infos[key][env]})
    return successes


def take_captures(infos: Infos) -> dict[int, Capture]:
    """Take the captures of the inner wrappers out of the infos, by index of the environment."""
    if CAPTURE not in infos:
        return {}
    captures, mask = infos.pop(CAPTURE), infos.pop(f"_{CAPTURE}")
    return {env: captures[env] for env in np.flatnonzero(mask).tolist()}


def take_env_infos(infos: Infos, env: int) -> Infos:
    """Take the infos of one environment out of those of all."""
    taken: Infos = {}
    for key, value in list(infos.items()):
        mask = infos.get(f"_{key}")
        if mask is None or not mask[env]:
            continue
        mask[env] = False
        if isinstance(value, dict):
            taken[key] = take_env_infos(value, env)
        else:
            one = value[env]
            taken[key] = bool(one) if value.dtype == np.bool_ and value.ndim == 1 else deepcopy(one)
            value[env] = None if value.dtype == object else 0
        if not mask.any():  # or its dtype and shape would be forced on the infos of the reset
            del infos[key], infos[f"_{key}"]
    return taken
