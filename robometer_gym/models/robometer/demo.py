"""The small architecture of the demo checkpoint, and random checkpoints of its size for tests.

examples/train_demo_checkpoint.py trains the demo checkpoint. Knows nothing of environments.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from robometer_gym.models.robometer.network.config import Format, RobometerConfig
from robometer_gym.models.robometer.network.images import ImageSettings
from robometer_gym.models.robometer.network.modeling import RobometerModel, empty_model
from robometer_gym.models.robometer.network.processor import RobometerProcessor
from robometer_gym.models.robometer.predictor import RobometerRewardModel

__all__ = ["byte_tokenizer", "demo_config", "make_random_checkpoint"]

_CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def make_random_checkpoint(
    path: str | os.PathLike[str],
    *,
    seed: int = 0,
    format: Format = "lerobot",
    processor: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a small random checkpoint in a published format.

    Args:
        path: the folder; created if necessary.
        seed: of the weights.
        format: "lerobot" or "upstream".
        processor: folder of a real tokenizer and image settings, instead of the byte tokenizer.

    Returns:
        The folder.
    """
    used = (
        RobometerProcessor.from_pretrained(processor)
        if processor
        else RobometerProcessor(byte_tokenizer(), ImageSettings())
    )
    config = demo_config(used)
    model = RobometerRewardModel(random_model(config, seed), used, config)
    model.save_pretrained(path, format=format)
    return Path(path)


def demo_config(processor: RobometerProcessor | None = None) -> RobometerConfig:
    """Return the small architecture: under a million parameters, and every part of the real one.

    Args:
        processor: determines the vocabulary size; by default that of the byte tokenizer.
    """
    processor = processor or RobometerProcessor(byte_tokenizer(), ImageSettings())
    text = {
        "vocab_size": len(processor.tokenizer),
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "rope_theta": 5e6,
        "rope_scaling": {
            "rope_type": "default",
            "mrope_interleaved": True,
            "mrope_section": [6, 5, 5],
        },
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 2,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_heads": 4,
        "out_hidden_size": 96,
        "num_position_embeddings": 256,
        "deepstack_visual_indexes": [0],
    }
    token_id = processor.tokenizer.convert_tokens_to_ids
    backbone = {
        "model_type": "qwen3_vl",
        "text_config": text,
        "vision_config": vision,
        "image_token_id": token_id("<|image_pad|>"),
        "video_token_id": token_id("<|video_pad|>"),
        "vision_start_token_id": token_id("<|vision_start|>"),
        "vision_end_token_id": token_id("<|vision_end|>"),
        "tie_word_embeddings": True,
    }
    return RobometerConfig(backbone)


def random_model(config: RobometerConfig, seed: int) -> RobometerModel:
    """Return a float32 network in which every weight has an effect: no bias is 0, no norm is 1."""
    generator = torch.Generator().manual_seed(seed)
    model = empty_model(config)
    state = {}
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim > 1:  # variance 1 / fan-in keeps signals of one size through the layers
            state[name] = noise * (tensor.numel() / tensor.shape[0]) ** -0.5
        else:
            state[name] = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
    model.load_state_dict(state, assign=True)
    return model


def byte_tokenizer(texts: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are bytes, with Qwen's control tokens.

    Args:
        texts: each becomes one more token, which makes prompts shorter.

    Example:
        >>> len(byte_tokenizer())
        263
        >>> byte_tokenizer(["open the"]).tokenize("open the door")
        ['openĠthe', 'Ġ', 'd', 'o', 'o', 'r']
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if texts:
        trainer = trainers.BpeTrainer(
            vocab_size=2**16, min_frequency=1, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in _CONTROL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
