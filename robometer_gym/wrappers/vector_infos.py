"""The infos of Gymnasium's vector environments: an array per key, and beside it a mask, both (N,).

What one environment says is taken out of them, and what is to be told of some is put in. Of what
the infos mean it knows only which are the `Capture` of an inner wrapper.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np

from robometer_gym.wrappers.frame_capture import CAPTURE, Capture

__all__ = ["Infos", "take_captures", "take_one", "tell"]

Infos = dict[str, Any]


def tell(infos: Infos, told: Sequence[tuple[int, Infos]], num_envs: int) -> None:
    """Add what is to be told of some environments, as `_add_info` would, but all at once.

    Args:
        infos: of all environments.
        told: the number of an environment and its infos; none twice.
        num_envs: how many there are.

    Example:
        >>> infos: Infos = {}
        >>> tell(infos, [(1, {"height": 0.5})], 2)
        >>> infos["height"].tolist(), infos["_height"].tolist()
        ([0.0, 0.5], [False, True])
    """
    everyone = np.ones(num_envs, np.bool_)
    alike: dict[tuple[str, ...], dict[int, Iterable[Any]]] = {}
    for env, info in told:
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
