"""Robometer's three small heads, and the decoding of progress.

Knows nothing of images, tokens or the backbone: takes hidden states.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["PredictionHead", "decode_progress"]


class PredictionHead(nn.Sequential):
    """Linear, LayerNorm, GELU, Dropout, Linear: from a hidden state to logits, in float32.

    Whatever dtype the weights have, the arithmetic is float32: published checkpoints mix bfloat16
    backbones with float32 heads, and a difference of two progresses should not be rounded.

    Args:
        hidden_size: D, of the backbone's hidden states.
        outputs: number of logits.

    Source: robometer/models/heads.py:71-101 at c7f38e2 (layers and their names).

    Example:
        >>> PredictionHead(hidden_size=8, outputs=10)(torch.zeros(3, 8)).shape
        torch.Size([3, 10])
    """

    def __init__(self, hidden_size: int, outputs: int) -> None:
        super().__init__(
            nn.Linear(hidden_size, hidden_size // 2),
            nn.LayerNorm(hidden_size // 2),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(hidden_size // 2, outputs),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the logits.

        Args:
            hidden: (..., D), any float dtype.

        Returns:
            (..., outputs) float32.
        """
        x = hidden.float()
        with torch.autocast(x.device.type, enabled=False):  # training runs the rest in bfloat16
            for layer in self:
                if isinstance(layer, nn.Linear):
                    x = functional.linear(x, layer.weight.float(), layer.bias.float())
                elif isinstance(layer, nn.LayerNorm):
                    weight, bias = layer.weight.float(), layer.bias.float()
                    x = functional.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
                else:
                    x = layer(x)
        return x


def decode_progress(logits: Tensor) -> Tensor:
    """Return the expected progress.

    Args:
        logits: (..., K) float32, over K bins evenly spaced from 0 to 1.

    Returns:
        (...) float32 in [0, 1].

    Source: convert_bins_to_continuous, robometer/models/utils.py:15-35 at c7f38e2, without its
    guess that rows with a sum of 1 are probabilities already.

    Example:
        >>> float(decode_progress(torch.zeros(10)))
        0.5
    """
    bins = torch.linspace(0.0, 1.0, logits.shape[-1], dtype=logits.dtype, device=logits.device)
    # The sum of a softmax can be 1 + 1e-7.
    return (logits.softmax(-1) * bins).sum(-1).clamp(0.0, 1.0)
