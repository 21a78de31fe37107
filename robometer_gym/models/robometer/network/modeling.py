"""The network: Qwen3-VL's backbone and Robometer's three heads.

Knows nothing of files, of frames or of text: takes an `Encoded` batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Qwen3VLConfig, Qwen3VLModel

from robometer_gym.models.robometer.network.backbone_config import known_fields
from robometer_gym.models.robometer.network.config import RobometerConfig
from robometer_gym.models.robometer.network.heads import PredictionHead
from robometer_gym.models.robometer.network.processor import Encoded, RobometerProcessor
from robometer_gym.models.robometer.network.vision import encode_images
from robometer_gym.reward_model import CheckpointError

__all__ = ["Logits", "Quantization", "RobometerModel", "check_compatible", "empty_model"]

Quantization = Literal["int8", "nf4", "float8"]
"""Formats to which the matrices of the language model can be converted, see `quantize`."""


class Logits(NamedTuple):
    """Outputs of the heads for a batch, sample after sample, all float32.

    Attributes:
        progress: (N, K), per image, over the bins.
        success: (N,), per image.
        preference: (M,), per preference prompt: above 0, A is the better.
    """

    progress: Tensor
    success: Tensor
    preference: Tensor


class RobometerModel(nn.Module):
    """The backbone, and the three heads that read its hidden states at some tokens.

    The hidden state is the one after the language model's final norm. (The last of all hidden
    states of Qwen3VLForConditionalGeneration is another in transformers 4.57.)

    Args:
        backbone: without a language-modelling head.
        progress_bins: K, see `RobometerConfig`.

    Example:
        >>> from robometer_gym.models.robometer.demo import demo_config
        >>> model = empty_model(demo_config())
        >>> model.progress_head[4].out_features
        10
    """

    def __init__(self, backbone: Qwen3VLModel, progress_bins: int) -> None:
        super().__init__()
        hidden_size = backbone.config.text_config.hidden_size
        self.backbone = backbone
        self.progress_head = PredictionHead(hidden_size, progress_bins)
        self.preference_head = PredictionHead(hidden_size, 1)
        self.success_head = PredictionHead(hidden_size, 1)
        self.trainings = 0
        """Number of calls of `train()`: cached results from before a call may be out of date."""
        self.quantization: Quantization | None = None
        """Format of the language model's matrices, or None; quantized ones cannot be trained."""

    def train(self, mode: bool = True) -> RobometerModel:
        """Set training or evaluation mode, and count the former."""
        self.trainings += mode
        super().train(mode)
        return self

    def forward(self, batch: Encoded) -> Logits:
        """Return the logits of every sample of a batch."""
        hidden = self._hidden_states(batch)
        progress = _gather(hidden, batch.progress_at)
        preference = _gather(hidden, batch.preference_at)
        return Logits(
            self.progress_head(progress),
            self.success_head(progress)[:, 0],
            self.preference_head(preference)[:, 0],
        )

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Use less memory in training, and compute the activations of each layer twice.

        Transformers' Trainer calls this, or `activation_checkpointing_enable` in later versions.
        """
        self.backbone.gradient_checkpointing_enable(**options)

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """See `gradient_checkpointing_enable`."""
        self.backbone.activation_checkpointing_enable(**options)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switch off the caller's autocast and, if the network is in training, its dropout."""
        in_training = [m for m in self.modules() if m.training] if self.training else []
        for module in in_training:
            module.training = False
        try:
            with torch.autocast(self.backbone.device.type, enabled=False):
                yield
        finally:
            for module in in_training:
                module.training = True

    def _hidden_states(self, batch: Encoded) -> Tensor:
        """Return (B, L, D), in the backbone's dtype."""
        device = self.backbone.device
        grids = [(high, wide) for _, high, wide in batch.image_grid_thw.tolist()]
        images = encode_images(self.backbone, batch.pixel_values.to(device), grids)
        ids = batch.input_ids.to(device)
        is_image = ids == self.backbone.config.image_token_id
        embeddings = self.backbone.get_input_embeddings()(ids)
        features = images.embeddings.to(embeddings.dtype)  # they differ under autocast
        embeddings = embeddings.masked_scatter(is_image[..., None], features)
        hidden: Tensor = self.backbone.language_model(
            inputs_embeds=embeddings,
            attention_mask=batch.attention_mask.to(device),
            position_ids=batch.position_ids.to(device),
            visual_pos_masks=is_image,
            deepstack_visual_embeds=list(images.deepstack),
            use_cache=False,
        ).last_hidden_state
        return hidden


def _gather(hidden: Tensor, columns: list[Tensor]) -> Tensor:
    """Return the states of (B, L, D) at each row's columns, one row after the other."""
    return torch.cat([hidden[row, at.to(hidden.device)] for row, at in enumerate(columns)])


@torch.random.fork_rng(devices=[])  # leaves the caller's random state alone
def empty_model(config: RobometerConfig, dtype: torch.dtype = torch.float32) -> RobometerModel:
    """Build the network on the meta device: shapes and names, but no weights.

    Its computed buffers (the rotary frequencies) are real, and float32 whatever the dtype.
    """
    with torch.device("meta"):
        backbone = Qwen3VLModel(Qwen3VLConfig(**known_fields(config.backbone))).to(dtype)
        model = RobometerModel(backbone, config.progress_bins).to(dtype)
    # Buffers depend on the rotary settings and the heads' sizes only: build a minimal real model.
    slim = Qwen3VLConfig(**known_fields(config.backbone))
    text, vision = slim.text_config, slim.vision_config
    vision.hidden_size, vision.num_heads = vision.hidden_size // vision.num_heads, 1
    text.num_hidden_layers = vision.depth = 0
    text.vocab_size = vision.num_position_embeddings = 1
    text.hidden_size = vision.out_hidden_size = 1
    vision.deepstack_visual_indexes = []
    for name, buffer in Qwen3VLModel(slim).named_buffers():
        owner, _, leaf = name.rpartition(".")
        setattr(backbone.get_submodule(owner), leaf, buffer)
    return model.eval()


def check_compatible(model: RobometerModel, processor: RobometerProcessor) -> None:
    """Raise unless a network and a processor belong together.

    Raises:
        CheckpointError: they disagree about the vocabulary or about patches.
    """
    rows = model.backbone.get_input_embeddings().weight.shape[0]
    tokens = len(processor.tokenizer)
    if tokens != rows:
        raise CheckpointError(
            f"The embedding has {rows} rows, but the tokenizer with Robometer's special tokens has "
            f"{tokens} entries: token ids would mean something else. "
            "Name the tokenizer that the checkpoint was trained with: processor='Qwen/...'."
        )
    config = model.backbone.config
    model_values = (
        config.image_token_id,
        config.vision_config.patch_size,
        config.vision_config.spatial_merge_size,
        config.vision_config.temporal_patch_size,
    )
    images = processor.images
    processor_values = (
        processor.tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        images.patch_size,
        images.merge_size,
        images.temporal_patch_size,
    )
    if model_values != processor_values:
        raise CheckpointError(
            "The checkpoint and the processor disagree about (image token, patch size, merge "
            f"size, temporal patch size): {model_values} and {processor_values}. "
            "Name the right one with processor=..."
        )
