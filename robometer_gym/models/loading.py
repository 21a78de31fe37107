"""From the `reward_model=` argument to a reward model: lazily, and once per process.

Knows nothing of networks: the model half is imported only when a name has to be loaded, so that
a process that never predicts never imports torch.
"""

from __future__ import annotations

import os
from functools import cache
from threading import Lock

from robometer_gym.reward_model import RewardModel

__all__ = [
    "DEFAULT_REWARD_MODEL",
    "RewardModelLike",
    "check_reward_model_like",
    "load_reward_model",
]

DEFAULT_REWARD_MODEL = "lerobot/Robometer-4B"

_loading = Lock()

RewardModelLike = str | os.PathLike[str] | RewardModel
"""A hub id, a folder, "demo" (the bundled small checkpoint), or a model that is there already."""


def check_reward_model_like(reward_model: RewardModelLike) -> str | RewardModel:
    """Return `reward_model`, a path as its text, if it can be loaded or asked; loads nothing.

    Raises:
        TypeError: neither a name nor an object with `predict`.
        ValueError: an empty name.
    """
    if isinstance(reward_model, str | os.PathLike):
        if not os.fspath(reward_model):
            raise ValueError("reward_model must not be empty: give a hub id, a folder or 'demo'.")
        return os.fspath(reward_model)
    if isinstance(reward_model, type) or not callable(getattr(reward_model, "predict", None)):
        raise TypeError(
            "reward_model must be a hub id, a folder, 'demo', or an object with "
            f"predict(clips) -> list of Prediction; got {reward_model!r}."
        )
    return reward_model


def load_reward_model(
    reward_model: RewardModelLike,
    *,
    device: str | None = None,
    dtype: str | None = None,
    processor: str | None = None,
    quantization: str | None = None,
) -> RewardModel:
    """Return the model itself: loaded if a name was given, and then shared by all who name it.

    Args:
        reward_model: a name, or a model, which is returned as it is.
        device: see `RobometerRewardModel.from_pretrained`; for a name.
        dtype: likewise.
        processor: likewise.
        quantization: likewise.

    Raises:
        CheckpointError: the name cannot be loaded.
        ValueError: a device, dtype or quantization that is not there or cannot be used here.
        ImportError: the library that quantises is not installed.
    """
    if isinstance(reward_model, str | os.PathLike):
        with _loading:  # the cache alone would let two threads load the same model
            return _load(os.fspath(reward_model), device, dtype, processor, quantization)
    return reward_model


@cache
def _load(
    name: str,
    device: str | None,
    dtype: str | None,
    processor: str | None,
    quantization: str | None,
) -> RewardModel:
    from robometer_gym.models.robometer.predictor import RobometerRewardModel

    return RobometerRewardModel.from_pretrained(
        name,
        device=device,
        dtype=dtype,
        processor=processor,
        quantization=quantization,  # type: ignore[arg-type]  # another is refused there
    )
