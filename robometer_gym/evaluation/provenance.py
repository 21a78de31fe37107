"""Provenance of numbers, for reports and JSON: the checkpoint and the library versions."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version

import robometer_gym
from robometer_gym.reward_model import DescribedRewardModel, RewardModel, model_name

__all__ = ["describe_model", "library_versions"]

_LIBRARIES = ("numpy", "gymnasium", "torch", "transformers", "stable_baselines3")


def describe_model(model: RewardModel) -> dict[str, str]:
    """Return the facts that identify a reward model: at least its name."""
    if isinstance(model, DescribedRewardModel):
        return model.describe()
    return {"name": model_name(model)}


def library_versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of the libraries that are imported."""
    versions = {"python": platform.python_version(), "robometer_gym": robometer_gym.__version__}
    for name in _LIBRARIES:
        if sys.modules.get(name) is not None:
            versions[name] = version(name.replace("_", "-"))
    return versions
