"""The language model's matrices in 8 or 4 bits, for graphics cards with 8 to 12 GB.

bitsandbytes does the work. Embedding, vision tower and heads stay as they are: they are a fifth of
the weights, and rewards are differences of what the heads say. Knows nothing of caches.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal

from torch import nn

from robometer_gym.model.modeling import RobometerModel

__all__ = ["Quantization", "quantize"]

Quantization = Literal["int8", "nf4"]


def quantize(model: RobometerModel, kind: Quantization) -> None:
    """Replace the matrices of the language model's layers by quantised ones.

    They are converted when the model is moved to a device, `model.to(device)`, which has to follow.

    Args:
        model: a network on the CPU.
        kind: "int8" (LLM.int8) or "nf4" (4-bit NormalFloat with double quantisation).

    Raises:
        ImportError: bitsandbytes is not installed.
    """
    new_layer = _layer_maker(kind)
    for layer in model.backbone.language_model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, child in list(block.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(block, name, new_layer(child))


def _layer_maker(kind: Quantization) -> Callable[[nn.Linear], nn.Module]:
    try:
        bnb: Any = import_module("bitsandbytes")
    except ImportError as error:
        raise ImportError(
            f"quantization={kind!r} needs bitsandbytes: pip install 'robometer-gym[quantize]'."
        ) from error

    def new_layer(plain: nn.Linear) -> nn.Module:
        quantised: nn.Module
        sizes = plain.in_features, plain.out_features
        options: dict[str, Any] = {"bias": plain.bias is not None, "device": "meta"}
        if kind == "int8":
            quantised = bnb.nn.Linear8bitLt(*sizes, **options, has_fp16_weights=False)
            weight = bnb.nn.Int8Params(plain.weight.data, requires_grad=False)
        else:
            options["compute_dtype"] = plain.weight.dtype
            quantised = bnb.nn.Linear4bit(*sizes, **options, compress_statistics=True)
            kept = {"quant_type": "nf4", "module": quantised}
            weight = bnb.nn.Params4bit(plain.weight.data, requires_grad=False, **kept)
        quantised.weight, quantised.bias = weight, plain.bias
        return quantised

    return new_layer
