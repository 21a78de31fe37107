"""Choice of attention kernel, compiled functions and CUDA graphs for a CUDA device.

Each is tried and compared with the plain computation before it is used, and falls back with a
reason in `engine_info`. `tests/models/robometer/engine/test_fake_cuda.py` runs it without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robometer_gym.models.robometer.engine.attention import FlashAttention, PaddedAttention, Span
from robometer_gym.models.robometer.engine.batch_layout import upload
from robometer_gym.models.robometer.engine.cuda_graphs import (
    CudaGraphCache,
    cuda_graph_capture,
    first_line,
)
from robometer_gym.models.robometer.engine.runners import GraphRunner
from robometer_gym.models.robometer.engine.text_decoder import TextDecoder, rms_norm_rope, swiglu
from robometer_gym.models.robometer.network.modeling import RobometerModel
from robometer_gym.models.robometer.network.vision import apply_rope

__all__ = ["cuda_runner", "select_attention", "select_fusion"]

# Maximum relative difference of two right results in 16 bits: some roundings.
_TOLERANCE = 0.05


def cuda_runner(model: RobometerModel) -> tuple[TextDecoder, GraphRunner]:
    """Return the decoder and the fastest runner for a network on its CUDA device."""
    language_model: Any = model.backbone.language_model
    config, weight = language_model.config, model.backbone.get_input_embeddings().weight
    attention, attention_choice = select_attention(
        config.num_attention_heads,
        config.num_key_value_heads,
        language_model.layers[0].self_attn.head_dim,
        weight.dtype,
        weight.device,
    )
    fuse, fusion_choice = select_fusion(weight.dtype, weight.device)
    decoder = TextDecoder(language_model, fuse)
    graphs = CudaGraphCache(cuda_graph_capture)
    runner = GraphRunner(model, decoder, attention, graphs, fuse(apply_rope))
    runner.choices = {"attention": attention_choice, "compiled": fusion_choice}
    return decoder, runner


@cache
@torch.inference_mode()
def select_attention(
    heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[type[FlashAttention] | type[PaddedAttention], str]:
    """Return the kind of attention to use, and its name with the reason.

    The flash kernel is compared with the padded computation on rows that begin in the middle, in
    another order than their keys, or are empty; and on rows of one token, for which it has
    another code path.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return PaddedAttention, f"padded: flash attention has no {dtype}"
    several = [Span(300, np.arange(200, 257)), Span(0, np.arange(1, 9)), Span(40, np.array([77]))]
    alone = [Span(start, np.array([keys])) for start, keys in ((300, 256), (0, 1), (40, 77))]
    generator = torch.Generator(device).manual_seed(0)

    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, device=device, dtype=dtype)

    cached = random(2, 600, kv_heads, head_dim)
    for spans, tokens, width in ((several, 66, 64), (alone, 3, 1)):
        shape = {"rows": 4, "width": width, "tokens": max(4, tokens)}
        queries = random(shape["tokens"], heads, head_dim)
        try:
            flash, padded = (
                kind(*upload(kind.indices(spans, **shape), device), length=256, width=width)(
                    queries, *cached
                )[:tokens]
                for kind in (FlashAttention, PaddedAttention)
            )
            difference = _relative_difference(flash, padded)
        except torch.cuda.OutOfMemoryError:
            raise  # it may work later
        except (RuntimeError, TypeError, AttributeError) as error:  # no such operator or arguments
            return PaddedAttention, f"padded: flash attention failed: {first_line(error)}"
        if not difference < _TOLERANCE:
            return PaddedAttention, f"padded: flash attention is off by {difference:.3g}"
    return FlashAttention, "flash"


@cache
@torch.inference_mode()
def select_fusion(
    dtype: torch.dtype, device: torch.device
) -> tuple[Callable[[Callable[..., Tensor]], Callable[..., Tensor]], str]:
    """Return a function that compiles the elementwise functions of a layer, and a description.

    Only these: the matrix products are as fast without. torch compiles a function in seconds for
    any number of tokens, but again for one token, and for other memory layouts: the examples have
    the layouts of a layer, because compilation must not happen during a capture.
    """
    generator = torch.Generator(device).manual_seed(0)

    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, device=device, dtype=dtype)

    weight, cos, sin = random(6, 64), random(70, 1, 32), random(70, 1, 32)
    angles = random(70, 32).float(), random(70, 32).float()
    examples: dict[Callable[..., Tensor], list[tuple[Any, ...]]] = {
        rms_norm_rope: [
            (random(70, 6, 64), weight, cos, sin, 1e-6),
            (random(70, 9, 64)[:, :6], weight, cos, sin, 1e-6),
            (random(1, 6, 64), weight, cos[:1], sin[:1], 1e-6),
        ],
        swiglu: [(random(70, 128),), (random(1, 128),)],
        apply_rope: [
            (random(images, 70, 3, 4, 64).permute(2, 0, 3, 1, 4)[:2], *angles) for images in (3, 1)
        ],
    }
    compiled: dict[Callable[..., Tensor], Callable[..., Tensor]] = {}
    try:
        for function, inputs in examples.items():
            compiled[function] = torch.compile(function, dynamic=True)
            difference = max(
                _relative_difference(compiled[function](*x), function(*x)) for x in inputs
            )
            if not difference < _TOLERANCE:
                return _identity, f"nothing: {function.__name__} is off by {difference:.3g}"
    except torch.cuda.OutOfMemoryError:
        raise  # it may work later
    except Exception as error:  # a compiler that is missing or fails raises errors of many kinds
        return _identity, f"nothing: {type(error).__name__}: {first_line(error)}"
    return compiled.__getitem__, "elementwise functions"


def _relative_difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def _identity(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return function
