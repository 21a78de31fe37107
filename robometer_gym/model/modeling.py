"""The network: Qwen3-VL's backbone and Robometer's three heads.

Knows nothing of files, of frames or of text: it is given an `Encoded` batch.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3VLConfig, Qwen3VLModel

from robometer_gym.model.config import RobometerConfig
from robometer_gym.model.heads import PredictionHead
from robometer_gym.model.processor import Encoded

__all__ = ["RobometerModel", "empty_model"]


class RobometerModel(nn.Module):
    """Reads a conversation and answers at some of its tokens.

    The hidden state is the one after the language model's final norm. (The last of all hidden
    states of Qwen3VLForConditionalGeneration is another in transformers 4.57.)

    Args:
        backbone: without a language-modelling head.
        progress_bins: K, see `RobometerConfig`.

    Example:
        >>> from robometer_gym.model.demo import demo_config
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

    def hidden_states(self, batch: Encoded) -> list[Tensor]:
        """Return, per sample of the batch, the hidden states where it is to be answered.

        Returns:
            B tensors of shape (A, D) in the backbone's dtype, A being the sample's answers.
        """
        device = self.backbone.device
        # Positions are given, so transformers does not need mm_token_type_ids (5.x wants them).
        hidden = self.backbone(
            input_ids=batch.input_ids.to(device),
            attention_mask=batch.attention_mask.to(device),
            position_ids=batch.position_ids.to(device),
            pixel_values=batch.pixel_values.to(device),
            image_grid_thw=batch.image_grid_thw.to(device),
            use_cache=False,
        ).last_hidden_state
        return [hidden[row, at.to(device)] for row, at in enumerate(batch.answers_at)]


def empty_model(config: RobometerConfig, dtype: torch.dtype = torch.float32) -> RobometerModel:
    """Build the network on the meta device: shapes and names, but no weights.

    Its computed buffers (the rotary frequencies) are real, and float32 whatever the dtype.
    """
    with torch.device("meta"):
        backbone = Qwen3VLModel(_backbone_config(config.backbone)).to(dtype)
        model = RobometerModel(backbone, config.progress_bins).to(dtype)
    # Buffers depend neither on the layers nor on the vocabulary: a model without them has them too.
    slim = _backbone_config(config.backbone)
    slim.text_config.num_hidden_layers = slim.vision_config.depth = 0
    slim.text_config.vocab_size = slim.vision_config.num_position_embeddings = 1
    slim.vision_config.deepstack_visual_indexes = []
    for name, buffer in Qwen3VLModel(slim).named_buffers():
        owner, _, leaf = name.rpartition(".")
        setattr(backbone.get_submodule(owner), leaf, buffer)
    return model.eval()


def _backbone_config(config: dict[str, Any]) -> Qwen3VLConfig:
    # A copy, because transformers 5 completes the dicts that it is given.
    return Qwen3VLConfig(**{k: deepcopy(v) for k, v in config.items() if k != "model_type"})
