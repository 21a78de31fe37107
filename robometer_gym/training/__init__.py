"""Train Robometer: the objective, the questions made of episodes, and the trainer.

    episodes = read_episodes("rollouts")
    train("lerobot/Robometer-4B", episodes, "outputs/mine")

Needs torch and the extra "train" (peft, accelerate). Knows nothing of environments.
"""

from importlib.util import find_spec

if missing := [name for name in ("accelerate", "peft") if find_spec(name) is None]:
    raise ImportError(
        f"robometer_gym.training needs {' and '.join(missing)}: pip install 'robometer-gym[train]'."
    )

from robometer_gym.training.losses import LossWeights
from robometer_gym.training.sampling import Sampler, SamplingSettings
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
