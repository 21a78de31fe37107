"""Configuration of a checkpoint, from and to either published format.

Reads and writes the dicts of config.json and config.yaml. Knows nothing of weights or of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

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


@dataclass(frozen=True)
class RobometerConfig:
    """Architecture and prompt settings of a checkpoint.

    Attributes:
        backbone: the Qwen3-VL configuration as a dict, as `Qwen3VLConfig` takes it.
        base_model_id: source of tokenizer and image settings, if the checkpoint has none.
        progress_bins: K, number of bins of the progress head, from 0 to 1.
        max_frames: maximum clip length in training.
        predict_pref_progress: whether the preference prompt also requests progress.

    Example:
        >>> text = {"vocab_size": 151674, "rope_parameters": {"rope_theta": 5e6}}
        >>> config = RobometerConfig({"model_type": "qwen3_vl", "text_config": text})
        >>> config.to_lerobot()["progress_discrete_bins"]
        10
    """

    backbone: dict[str, Any]
    base_model_id: str = BASE_MODEL
    progress_bins: int = 10
    max_frames: int = 8
    predict_pref_progress: bool = True

    def __post_init__(self) -> None:
        if self.backbone.get("model_type") != "qwen3_vl":
            raise CheckpointError(
                "The backbone must be a Qwen3-VL model (model_type 'qwen3_vl'), "
                f"got {self.backbone.get('model_type')!r}. Other backbones are not supported."
            )
        if not isinstance(self.backbone.get("text_config"), dict):
            raise CheckpointError("The backbone's configuration has no text_config.")
        object.__setattr__(self, "backbone", _with_portable_rope(self.backbone))

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
        _check_kind(config)
        return cls(
            backbone=dict(config["vlm_config"]),
            base_model_id=config.get("base_model_id", BASE_MODEL),
            progress_bins=config.get("progress_discrete_bins", 10),
            max_frames=config.get("max_frames") or 8,
        )

    @classmethod
    def from_upstream(cls, config: Mapping[str, Any], run: Mapping[str, Any]) -> RobometerConfig:
        """Read the authors' config.json (the backbone) and config.yaml (the training run).

        Source: robometer/configs/experiment_configs.py at c7f38e2.

        Raises:
            CheckpointError: a kind of Robometer that is not supported.
        """
        model, data = run.get("model") or {}, run.get("data") or {}
        # Defaults of the authors' code, not the values of the released model.
        defaults = {
            "use_multi_image": False,
            "use_per_frame_progress_token": False,
            "progress_loss_type": "l2",
        }
        _check_kind(
            {name: model.get(name, data.get(name, value)) for name, value in defaults.items()}
        )
        return cls(
            backbone={key: value for key, value in config.items() if key != "architectures"},
            base_model_id=model.get("base_model_id", BASE_MODEL),
            progress_bins=model.get("progress_discrete_bins") or 10,
            max_frames=data.get("max_frames") or 8,
            predict_pref_progress=(run.get("training") or {}).get("predict_pref_progress", False),
        )

    def to_lerobot(self, dtype: str = "bfloat16") -> dict[str, Any]:
        """Return LeRobot's config.json; LeRobot casts the weights to `dtype` when it loads them."""
        return {
            "type": "robometer",
            "base_model_id": self.base_model_id,
            "torch_dtype": dtype,
            "use_multi_image": True,
            "use_per_frame_progress_token": True,
            "progress_loss_type": "discrete",
            "progress_discrete_bins": self.progress_bins,
            "max_frames": self.max_frames,
            "vlm_config": self.backbone,
            "input_features": {},
            "output_features": {},
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
                f"This checkpoint has {name}={config[name]!r}; only {value!r}, as in the released "
                "Robometer-4B, is supported."
            )


def _with_portable_rope(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Spell the rotary settings as transformers 4.57 does: 5.x reads both, 4.57 only its own.

    4.57 would ignore the new spelling and compute with a wrong base.
    """
    portable = deepcopy(dict(backbone))
    text = portable["text_config"]
    rope = text.pop("rope_parameters", None) or {}
    if "rope_theta" not in {**text, **rope}:
        raise CheckpointError(
            "The backbone's text_config has no rope_theta. A default would be another model's."
        )
    if rope:
        text["rope_theta"] = rope["rope_theta"]
        text["rope_scaling"] = {key: rope[key] for key in rope if key != "rope_theta"}
    return portable
