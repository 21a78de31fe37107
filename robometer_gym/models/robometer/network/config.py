"""Configuration of a checkpoint, from and to either published format.

Reads and writes the dicts of config.json and config.yaml. Knows nothing of weights or of torch.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from robometer_gym.models.robometer.network.backbone_config import (
    check_backbone,
    with_portable_rope,
)
from robometer_gym.models.robometer.network.schema import (
    Schema,
    boolean,
    check_fields,
    integer,
    number,
    one_of,
    optional,
    table,
    text,
)
from robometer_gym.reward_model import CheckpointError

__all__ = ["BASE_MODEL", "SPECIAL_TOKENS", "Format", "RobometerConfig"]

Format = Literal["lerobot", "upstream"]

BASE_MODEL = "Qwen/Qwen3-VL-4B-Instruct"

SPECIAL_TOKENS = (
    "<|split_token|>",
    "<|reward_token|>",
    "<|pref_token|>",
    "<|sim_token|>",
    "<|prog_token|>",
)
"""Tokens added to Qwen's tokenizer, in this order: their ids are rows of the embedding.

Source: robometer/utils/setup_utils.py:519-536 at c7f38e2.
"""

_MODEL: Schema = {
    "base_model_id": text(),
    "progress_discrete_bins": optional(integer(2, 1024)),
}
_DATA: Schema = {"max_frames": optional(integer(1, 1024))}
_TRAINING: Schema = {"predict_pref_progress": boolean()}
_SECTIONS: Schema = dict.fromkeys(("model", "data", "training", "loss"), optional(table()))
_LEROBOT: Schema = {
    **_MODEL,
    **_DATA,
    "progress_discrete_bins": integer(2, 1024),
    "reward_output": one_of("progress", "success"),
    "success_threshold": number(0, 1),
    "vlm_config": table(required=True),
}


@dataclass(frozen=True)
class RobometerConfig:
    """Architecture and prompt settings of a checkpoint.

    Attributes:
        backbone: the Qwen3-VL configuration as a dict, as `Qwen3VLConfig` takes it.
        base_model_id: source of tokenizer and image settings, if the checkpoint has none.
        progress_bins: K, number of bins of the progress head, from 0 to 1.
        max_frames: maximum clip length in training.
        predict_pref_progress: whether the preference prompt also requests progress.
        reward_output: default of `RobometerRewardModel.compute_reward`.
        success_threshold: likewise.
        other_fields: further fields of LeRobot's config.json, kept for saving.

    Example:
        >>> from robometer_gym.models.robometer.demo import demo_config
        >>> demo_config().to_lerobot()["progress_discrete_bins"]
        10
    """

    backbone: dict[str, Any]
    base_model_id: str = BASE_MODEL
    progress_bins: int = 10
    max_frames: int = 8
    predict_pref_progress: bool = True
    reward_output: Literal["progress", "success"] = "progress"
    success_threshold: float = 0.5
    other_fields: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        backbone = with_portable_rope(self.backbone)
        check_backbone(backbone)
        object.__setattr__(self, "backbone", backbone)

    def with_vocabulary(self, rows: int) -> RobometerConfig:
        """Return the same with another vocabulary size."""
        text = {**self.backbone["text_config"], "vocab_size": rows}
        return replace(self, backbone={**self.backbone, "text_config": text})

    @classmethod
    def from_lerobot(cls, config: Mapping[str, Any]) -> RobometerConfig:
        """Read LeRobot's config.json.

        Source: RobometerConfig in lerobot/rewards/robometer/configuration_robometer.py at 7427f31.

        Raises:
            CheckpointError: a kind of Robometer that is not supported.
        """
        if not config.get("vlm_config"):
            raise CheckpointError("config.json has no vlm_config, which describes the backbone.")
        check_fields(config, _LEROBOT)
        _check_kind(config)
        return cls(
            backbone=config["vlm_config"],
            base_model_id=config.get("base_model_id", BASE_MODEL),
            progress_bins=config.get("progress_discrete_bins", 10),
            max_frames=config.get("max_frames") or 8,
            reward_output=config.get("reward_output", "progress"),
            success_threshold=config.get("success_threshold", 0.5),
            other_fields={key: config[key] for key in config if key != "vlm_config"},
        )

    @classmethod
    def from_upstream(cls, config: Mapping[str, Any], run: Mapping[str, Any]) -> RobometerConfig:
        """Read the authors' config.json (the backbone) and config.yaml (the training run).

        Source: robometer/configs/experiment_configs.py at c7f38e2.

        Raises:
            CheckpointError: a kind of Robometer that is not supported.
        """
        check_fields(run, _SECTIONS)
        model, data, training, loss = (run.get(name) or {} for name in _SECTIONS)
        check_fields(model, _MODEL, "model.")
        check_fields(data, _DATA, "data.")
        check_fields(training, _TRAINING, "training.")
        # Defaults of the authors' code, not the values of the released model.
        defaults = {
            "use_multi_image": False,
            "use_per_frame_progress_token": False,
            "progress_loss_type": "l2",
        }
        _check_kind({**defaults, **loss, **data, **model})
        return cls(
            backbone={key: value for key, value in config.items() if key != "architectures"},
            base_model_id=model.get("base_model_id", BASE_MODEL),
            progress_bins=model.get("progress_discrete_bins") or 10,
            max_frames=data.get("max_frames") or 8,
            predict_pref_progress=training.get("predict_pref_progress", False),
        )

    def to_lerobot(self, dtype: str = "bfloat16") -> dict[str, Any]:
        """Return LeRobot's config.json; LeRobot casts the weights to `dtype` when it loads them."""
        return {
            "input_features": {},
            "output_features": {},
            **self.other_fields,
            "type": "robometer",
            "base_model_id": self.base_model_id,
            "torch_dtype": dtype,
            "use_multi_image": True,
            "use_per_frame_progress_token": True,
            "progress_loss_type": "discrete",
            "progress_discrete_bins": self.progress_bins,
            "max_frames": self.max_frames,
            "reward_output": self.reward_output,
            "success_threshold": self.success_threshold,
            "vlm_config": self.backbone,
        }

    def to_upstream(self, dtype: str = "bfloat16") -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the authors' config.json and config.yaml; their code casts to `dtype` likewise."""
        shared = {
            "use_multi_image": True,
            "use_per_frame_progress_token": True,
            "progress_loss_type": "discrete",
            "progress_discrete_bins": self.progress_bins,
        }
        run = {
            "model": {"base_model_id": self.base_model_id, "torch_dtype": dtype, **shared},
            "data": {"max_frames": self.max_frames, **shared},
            "training": {"predict_pref_progress": self.predict_pref_progress},
            # Their inference code reads the kind of progress here, with "l2" as its default.
            "loss": {
                "progress_loss_type": "discrete",
                "progress_discrete_bins": self.progress_bins,
            },
        }
        return {**self.backbone, "architectures": ["RFM"]}, run


def _check_kind(config: Mapping[str, Any]) -> None:
    """Refuse kinds of Robometer that this package does not implement; LeRobot's defaults pass."""
    supported = {
        "use_multi_image": True,
        "use_per_frame_progress_token": True,
        "progress_loss_type": "discrete",
    }
    for name, value in supported.items():
        if config.get(name) not in (value, None):
            raise CheckpointError(
                f"This checkpoint has {name}={reprlib.repr(config[name])}; only {value!r}, as in "
                "the released Robometer-4B, is supported."
            )
