"""Networks of any size with random weights, and a processor whose prompts have a real length.

Nothing is downloaded: the predictions mean nothing, their time does.
"""

from __future__ import annotations

import json
import re
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from robometer_gym.models.robometer.demo import byte_tokenizer, demo_config
from robometer_gym.models.robometer.network import (
    RobometerConfig,
    RobometerModel,
    RobometerProcessor,
)
from robometer_gym.models.robometer.network.config import SPECIAL_TOKENS
from robometer_gym.models.robometer.network.images import ImageSettings
from robometer_gym.models.robometer.network.modeling import empty_model
from robometer_gym.models.robometer.network.prompt_text import PHRASES

__all__ = [
    "RELEASED_ROWS",
    "SHAPES",
    "TASK",
    "make_config",
    "make_processor",
    "prompt_tokens",
    "random_model",
]

RELEASED_ROWS = 151_674
"""Rows of the released checkpoint's embedding."""

TASK = "push the red block to the left"
_PROMPT = f"{PHRASES[0]}{PHRASES[1]}{TASK}{PHRASES[2]}"

# Text and vision; the rest is as in the demo architecture.
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tiny": ({}, {}),
    "8+8": (
        {
            "hidden_size": 512,
            "intermediate_size": 1952,
            "num_hidden_layers": 8,
            "num_attention_heads": 12,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "mrope_section": [12, 10, 10],
        },
        {
            "depth": 8,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_heads": 8,
            "out_hidden_size": 512,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [1, 3, 5],
        },
    ),
    "deep": (
        {"num_hidden_layers": 36},
        {"depth": 24, "deepstack_visual_indexes": [5, 11, 17]},
    ),
    "4b": (
        {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "mrope_section": [24, 20, 20],
        },
        {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "out_hidden_size": 2560,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [5, 11, 17],
        },
    ),
}
"""By name: "8+8" has the proportions of the released 4B, at a fifth of its width; "deep" has its
layers, as narrow as those of "tiny"."""


def make_processor(rows: int | None = None) -> RobometerProcessor:
    """Return a processor whose tokens are words, so that a prompt has its real length.

    (The released tokenizer makes 83 tokens of the prompt with a task of six words, and 5 of
    "Picture 1: ". That of bytes makes 348.)

    Args:
        rows: of the embedding; tokens that never occur fill the rest.
    """
    words = [*re.findall(r" ?[A-Za-z]+", _PROMPT), "Picture"]
    known = json.loads(byte_tokenizer(sorted(set(words))).backend_tokenizer.to_str())
    vocabulary, merges = known["model"]["vocab"], known["model"]["merges"]
    control = [token["content"] for token in known["added_tokens"]]
    control += [token for token in SPECIAL_TOKENS if token not in control]
    vocabulary = {word: at for at, word in enumerate(w for w in vocabulary if w not in control)}
    for unused in range(len(vocabulary), (rows or 0) - len(control)):
        vocabulary[f"unused {unused}"] = unused
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(merge) for merge in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(control)
    return RobometerProcessor(
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
        ),
        ImageSettings(),
    )


def prompt_tokens(processor: RobometerProcessor) -> int:
    """Return the number of tokens before the first image."""
    return 1 + len(processor.tokenizer(_PROMPT, add_special_tokens=False)["input_ids"])


def make_config(shape: str, processor: RobometerProcessor) -> RobometerConfig:
    """Return the configuration of one of the `SHAPES`, with the processor's vocabulary."""
    demo = demo_config(processor).backbone
    text, vision = (dict(part) for part in SHAPES[shape])
    rope = dict(demo["text_config"]["rope_scaling"])
    rope["mrope_section"] = text.pop("mrope_section", rope["mrope_section"])
    return RobometerConfig(
        {
            **demo,
            "text_config": {**demo["text_config"], **text, "rope_scaling": rope},
            "vision_config": {**demo["vision_config"], **vision},
        }
    )


def random_model(
    config: RobometerConfig,
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
    cast: torch.dtype | None = None,
) -> RobometerModel:
    """Return a network with random weights made on the device, the same for the same seed.

    Matrices keep the size of signals through the layers; no bias is 0, no norm is 1.

    Args:
        config: shape of the network.
        device: of the weights.
        dtype: of the random numbers.
        seed: of the random numbers.
        cast: dtype of the weights; `dtype` by default.
    """
    generator = torch.Generator(device).manual_seed(seed)
    model = empty_model(config, cast or dtype)
    weights = {}
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator, device=device, dtype=dtype)
        if tensor.ndim > 1:
            noise *= (tensor.numel() / tensor.shape[0]) ** -0.5
        else:
            noise = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
        weights[name] = noise.to(cast or dtype)
    model.load_state_dict(weights, assign=True)
    return model.to(device).requires_grad_(False)
