"""The infos of Gymnasium's vector environments: an array per key, and beside it a mask, both (N,).

What one environment says is taken out of them, and what is to be told of some is put in. Of what
the infos mean it knows only which are the `Capture` of an inner wrapper.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np

from robometer_gym.tracking.events import read_true_success
from robometer_gym.wrappers.frame_capture import CAPTURE, Capture

__all__ = ["Infos", "merge_env_infos", "read_true_successes", "take_captures", "take_one"]

Infos = dict[str, Any]


def merge_env_infos(infos: Infos, updates: Sequence[tuple[int, Infos]], num_envs: int) -> None:
    """Add what is to be told of some environments, as `_add_info` would, but all at once.

    Args:
        infos: of all environments.
        updates: the number of an environment and its infos; none twice.
        num_envs: how many there are.

    Example:
        >>> infos: Infos = {}
        >>> merge_env_infos(infos, [(1, {"height": 0.5})], 2)
        >>> infos["height"].tolist(), infos["_height"].tolist()
        ([0.0, 0.5], [False, True])
    """
    everyone = np.ones(num_envs, np.bool_)
    alike: dict[tuple[str, ...], dict[int, Iterable[Any]]] = {}
    for env, info in updates:
        alike.setdefault(tuple(info), {})[env] = info.values()
    for keys, group in alike.items():
        for key, told_of_each in zip(keys, zip(*group.values(), strict=True), strict=True):
            values = np.array(told_of_each)
            if len(group) == num_envs:
                infos[key], infos[f"_{key}"] = values, everyone.copy()
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
    """Take what the inner wrappers said out of the infos, by the number of each environment."""
    if CAPTURE not in infos:
        return {}
    said, mask = infos.pop(CAPTURE), infos.pop(f"_{CAPTURE}")
    return {env: said[env] for env in np.flatnonzero(mask).tolist()}


def take_one(infos: Infos, env: int) -> Infos:
    """Take the infos of one environment out of those of all."""
    taken: Infos = {}
    for key, value in list(infos.items()):
        mask = infos.get(f"_{key}")
        if mask is None or not mask[env]:
            continue
        mask[env] = False
        if isinstance(value, dict):
            taken[key] = take_one(value, env)
        else:
            one = value[env]
            taken[key] = bool(one) if value.dtype == np.bool_ and value.ndim == 1 else deepcopy(one)
            value[env] = None if value.dtype == object else 0
        if not mask.any():  # or its dtype and shape would be forced on what the reset says
            del infos[key], infos[f"_{key}"]
    return taken
