"""Checks of the backbone's part of a configuration, which transformers does not check.

Knows nothing of Robometer's heads or of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from math import isqrt
from typing import Any

from robometer_gym.models.robometer.network.schema import (
    Field,
    Schema,
    boolean,
    check_fields,
    constant,
    integer,
    number,
    one_of,
    optional,
    table,
)
from robometer_gym.reward_model import CheckpointError

__all__ = ["check_backbone", "known_fields", "with_portable_rope"]

_ACTIVATIONS = one_of("silu", "gelu", "gelu_pytorch_tanh", "gelu_new", "quick_gelu", "relu")
_TOKEN_ID = optional(integer(0, 1 << 20))
_INITIALIZER = number(0, 1)

_TOP: Schema = {
    "model_type": constant("qwen3_vl"),
    "text_config": table(required=True),
    "vision_config": table(required=True),
    **dict.fromkeys(("image_token_id", "video_token_id"), integer(0, 1 << 20)),
    **dict.fromkeys(("vision_start_token_id", "vision_end_token_id"), integer(0, 1 << 20)),
    "tie_word_embeddings": boolean(),
}
_TEXT: Schema = {
    "vocab_size": integer(1, 1 << 20),
    "hidden_size": integer(2, 1 << 15),
    "intermediate_size": integer(1, 1 << 17),
    "num_hidden_layers": integer(1, 256),
    "num_attention_heads": integer(1, 256),
    "num_key_value_heads": integer(1, 256),
    "head_dim": integer(2, 512),
    "hidden_act": _ACTIVATIONS,
    "max_position_embeddings": integer(1, 1 << 24),
    "initializer_range": _INITIALIZER,
    "rms_norm_eps": number(1e-12, 1e-2),
    "use_cache": boolean(),
    "tie_word_embeddings": boolean(),
    "rope_theta": number(1, 1e12, required=True),
    "rope_scaling": table(required=True),
    "attention_bias": constant(False),
    "attention_dropout": number(0, 0.9),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), _TOKEN_ID),
}
_ROPE: Schema = {
    **dict.fromkeys(("rope_type", "type"), constant("default")),
    "mrope_interleaved": constant(True),
    "mrope_section": Field(
        "a list of 3 integers >= 1",
        lambda value: (
            isinstance(value, list)
            and len(value) == 3
            and all(type(each) is int and each >= 1 for each in value)
        ),
        required=True,
    ),
}
_VISION: Schema = {
    "depth": integer(1, 256),
    "hidden_size": integer(4, 1 << 14),
    "hidden_act": _ACTIVATIONS,
    "intermediate_size": integer(1, 1 << 16),
    "num_heads": integer(1, 256),
    "in_channels": constant(3),
    "patch_size": integer(1, 64),
    "spatial_merge_size": integer(1, 4),
    "temporal_patch_size": integer(1, 4),
    "out_hidden_size": integer(2, 1 << 15),
    "num_position_embeddings": Field(
        "the square of an integer, at most 1048576",
        lambda value: type(value) is int and 1 <= value <= 1 << 20 and isqrt(value) ** 2 == value,
    ),
    "deepstack_visual_indexes": Field(
        "a list of increasing integers from 0",
        lambda value: (
            isinstance(value, list)
            and all(type(each) is int and each >= 0 for each in value)
            and value == sorted(set(value))
        ),
    ),
    "initializer_range": _INITIALIZER,
}


def check_backbone(backbone: Mapping[str, Any]) -> None:
    """Raise unless a Qwen3-VL configuration has possible values that do not contradict each other.

    Sizes that contradict the weights are found later, by the shapes of the tensors.

    Raises:
        CheckpointError: names the field.
    """
    check_fields(backbone, _TOP)
    text, vision = backbone["text_config"], backbone["vision_config"]
    check_fields(text, _TEXT, "text_config.")
    check_fields(text["rope_scaling"], _ROPE, "text_config.rope_scaling.")
    check_fields(vision, _VISION, "vision_config.")
    head_dim = text.get("head_dim", 128)
    heads, kv_heads = text.get("num_attention_heads", 32), text.get("num_key_value_heads", 32)
    hidden, vision_heads = vision.get("hidden_size", 1152), vision.get("num_heads", 16)
    levels = vision.get("deepstack_visual_indexes", [8, 16, 24])
    section_sum = sum(text["rope_scaling"]["mrope_section"])
    same_size = vision.get("out_hidden_size", 3584) == text.get("hidden_size", 4096)
    conditions = {
        "text_config.num_attention_heads must be a multiple of num_key_value_heads": (
            heads % kv_heads == 0
        ),
        "text_config.rope_scaling.mrope_section must add up to half of head_dim": (
            2 * section_sum == head_dim
        ),
        "vision_config.hidden_size must be a multiple of 4 num_heads": (
            hidden % (4 * vision_heads) == 0
        ),
        "vision_config.out_hidden_size must equal text_config.hidden_size": same_size,
        "vision_config.deepstack_visual_indexes must be below depth": (
            max(levels, default=-1) < vision.get("depth", 27)
        ),
        "vision_config.deepstack_visual_indexes must be fewer than text_config.num_hidden_layers": (
            len(levels) < text.get("num_hidden_layers", 32)
        ),
    }
    for condition, holds in conditions.items():
        if not holds:
            raise CheckpointError(f"{condition}.")


def known_fields(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy with the checked fields alone: others could change the computation."""
    known = {name: backbone[name] for name in _TOP if name in backbone and name != "model_type"}
    for part, schema in (("text_config", _TEXT), ("vision_config", _VISION)):
        known[part] = {k: v for k, v in backbone[part].items() if k in schema}
    return deepcopy(known)  # transformers 5 adds defaults to the dicts that it takes


def with_portable_rope(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Spell the rotary settings as transformers 4.57 does: 5.x reads both, 4.57 only its own.

    4.57 would ignore the new spelling and compute with a wrong base.

    Raises:
        CheckpointError: there is no rotary base.
    """
    check_fields(backbone, {"text_config": table(required=True)})
    portable = deepcopy(dict(backbone))
    text = portable["text_config"]
    rope = text.pop("rope_parameters", None) or {}
    check_fields({"rope_parameters": rope}, {"rope_parameters": table()}, "text_config.")
    if "rope_theta" not in {**text, **rope}:
        raise CheckpointError(
            "The backbone's text_config has no rope_theta. A default would be another model's."
        )
    if rope:
        text["rope_theta"] = rope.get("rope_theta", text.get("rope_theta"))
        text["rope_scaling"] = {key: rope[key] for key in rope if key != "rope_theta"}
    return portable
