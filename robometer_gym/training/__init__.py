"""Train Robometer: the objective, the examples made of episodes, and the trainer.

    episodes = read_episodes("rollouts")
    train("lerobot/Robometer-4B", episodes, "outputs/mine")

Names are imported on first use: labels and augmentation need neither torch nor the extra "train"
(peft, accelerate), the trainer needs both. Knows nothing of environments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robometer_gym._lazy import lazy_names

if TYPE_CHECKING:
    from robometer_gym.training.augmentation import Sampler, SamplingSettings
    from robometer_gym.training.losses import LossWeights
    from robometer_gym.training.trainer import (
        LORA,
        RobometerTrainer,
        prepare_model,
        train,
        training_arguments,
    )

__all__ = [
    "LORA",
    "LossWeights",
    "RobometerTrainer",
    "Sampler",
    "SamplingSettings",
    "prepare_model",
    "train",
    "training_arguments",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "LossWeights": "robometer_gym.training.losses",
        **dict.fromkeys(("Sampler", "SamplingSettings"), "robometer_gym.training.augmentation"),
        **dict.fromkeys(
            ("LORA", "RobometerTrainer", "prepare_model", "train", "training_arguments"),
            "robometer_gym.training.trainer",
        ),
    },
)
