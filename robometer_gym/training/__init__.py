"""Training of Robometer: examples drawn from episodes, objective, and trainer.

    episodes = read_episodes("rollouts")
    train("lerobot/Robometer-4B", episodes, "outputs/mine")

Names are imported on first use: `Sampler` and `SamplingSettings` need neither torch nor the extra
"train" (peft, accelerate), the trainer needs both. Knows nothing of environments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robometer_gym._lazy import lazy_names

if TYPE_CHECKING:
    from robometer_gym.training.losses import LossWeights
    from robometer_gym.training.sampler import Sampler, SamplingSettings
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
        **dict.fromkeys(("Sampler", "SamplingSettings"), "robometer_gym.training.sampler"),
        **dict.fromkeys(
            ("LORA", "RobometerTrainer", "prepare_model", "train", "training_arguments"),
            "robometer_gym.training.trainer",
        ),
    },
)
