"""Quantization of the language model's matrices to 8 or 4 bits, for small cards or for speed.

bitsandbytes converts to "int8" and "nf4", torchao to "float8". Embedding, vision tower and heads
stay as they are: they are a fifth of the weights, and rewards are differences of the heads'
outputs. Knows nothing of engines.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, get_args

import torch
from torch import nn

from robometer_gym.models.robometer.network.modeling import Quantization, RobometerModel

__all__ = ["check_quantization", "quantize"]

_FLOAT8_CAPABILITY = (8, 9)

# float8 divides each row by its largest absolute value, or by this one if all are 0.
_TINY = 1e-20


def check_quantization(kind: Quantization, device: torch.device, dtype: torch.dtype) -> None:
    """Raise unless `quantize` can run here; called before a checkpoint is loaded.

    Raises:
        ValueError: another kind; "float8" on a device without it, or not in bfloat16.
        ImportError: the library is not installed.
    """
    if kind not in (kinds := get_args(Quantization)):
        named = ", ".join(map(repr, kinds))
        raise ValueError(f"quantization must be {named} or None, got {kind!r}.")
    if kind == "float8":
        gpu = device.type == "cuda"
        capability = torch.cuda.get_device_capability(device) if gpu else (0, 0)
        if capability < _FLOAT8_CAPABILITY:
            found = "has {}.{}".format(*capability) if gpu else "is none"
            raise ValueError(
                "quantization='float8' needs a GPU of compute capability 8.9 or more (Ada, "
                f"Hopper): {device} {found}. Use quantization='int8' or 'nf4'."
            )
        if dtype != torch.bfloat16:
            raise ValueError(f"quantization='float8' needs dtype='bfloat16', got {dtype}.")
    _library(kind)


def quantize(model: RobometerModel, kind: Quantization, device: torch.device) -> RobometerModel:
    """Replace the matrices of the language model's layers by quantized ones, and move the model.

    The device never holds more than the quantized model and one plain matrix.

    Args:
        model: a network on the CPU; it is changed.
        kind: "int8" (LLM.int8), "nf4" (4-bit NormalFloat with double quantization) or "float8"
            (e4m3, weights and activations, with a scale for each output and each token).
        device: device of the result.

    Raises:
        ValueError: "float8" of a matrix with a side that is no multiple of 16, or "nf4" on a CPU
            with inputs that are no multiple of 64. The released model has neither.
        ImportError: the library is not installed.
    """
    convert = _float8_maker(device) if kind == "float8" else _bitsandbytes_maker(kind, device)
    for layer in model.backbone.language_model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, child in list(block.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(block, name, convert(child))
    model.quantization = kind
    return model.to(device)


def _library(kind: Quantization) -> Any:
    if kind == "float8":
        package, module, extra = "torchao", "torchao.quantization", "float8"
    else:
        package, module, extra = "bitsandbytes", "bitsandbytes", "quantize"
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"quantization={kind!r} needs {package}: pip install 'robometer-gym[{extra}]'."
        ) from error


def _float8_maker(device: torch.device) -> Callable[[nn.Linear], nn.Module]:
    torchao = _library("float8")
    config = torchao.Float8DynamicActivationFloat8WeightConfig(
        granularity=torchao.PerRow(),
        activation_value_lb=_TINY,
        set_inductor_config=False,  # a setting of the whole process
    )

    def convert(plain: nn.Linear) -> nn.Module:
        if plain.in_features % 16 or plain.out_features % 16:  # torchao would silently skip it
            raise ValueError(
                "quantization='float8' needs matrices with sides that are multiples of 16, got "
                f"{plain.in_features} to {plain.out_features}. Use quantization='int8' or 'nf4'."
            )
        weight = plain.to(device).weight.data
        weight[~weight.any(dim=1), 0] = _TINY
        torchao.quantize_(plain, config)
        return plain

    return convert


def _bitsandbytes_maker(
    kind: Quantization, device: torch.device
) -> Callable[[nn.Linear], nn.Module]:
    bnb = _library(kind)

    def convert(plain: nn.Linear) -> nn.Module:  # the conversion happens on the move to the device
        if kind == "nf4" and device.type == "cpu" and plain.in_features % 64:
            raise ValueError(
                "quantization='nf4' on a CPU needs matrices with inputs in multiples of 64, got "
                f"{plain.in_features}. Use quantization='int8'."
            )
        quantized: nn.Module
        sizes = plain.in_features, plain.out_features
        options: dict[str, Any] = {"bias": plain.bias is not None, "device": "meta"}
        if kind == "int8":
            quantized = bnb.nn.Linear8bitLt(*sizes, **options, has_fp16_weights=False)
            weight = bnb.nn.Int8Params(plain.weight.data, requires_grad=False)
        else:
            options["compute_dtype"] = plain.weight.dtype
            quantized = bnb.nn.Linear4bit(*sizes, **options, compress_statistics=True)
            kept = {"quant_type": "nf4", "module": quantized}
            weight = bnb.nn.Params4bit(plain.weight.data, requires_grad=False, **kept)
        quantized.weight, quantized.bias = weight, plain.bias
        return quantized

    return convert
