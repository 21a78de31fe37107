"""What is faster on a CUDA device, tried before it is used: kernels, compilation, recording.

Each of these falls back by itself, and says why in `engine_info`. Imported only where there is
such a device. None of this was run on one yet: see `engine_info` and the tests' fake recordings.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robometer_gym.engine.attention import FlashAttention, PaddedAttention, Span
from robometer_gym.engine.graphs import Graphs, cuda_recorder
from robometer_gym.engine.layout import upload
from robometer_gym.engine.runner import StaticRunner
from robometer_gym.engine.text import TextDecoder, gated, turned
from robometer_gym.model.modeling import RobometerModel

__all__ = ["attention_for", "cuda_runner", "fused"]

# The largest difference between two right results in 16 bits: some roundings of numbers around 1.
_TOLERANCE = 0.05


def cuda_runner(model: RobometerModel) -> tuple[TextDecoder, StaticRunner]:
    """Return the fastest way to run a network on its CUDA device."""
    language_model: Any = model.backbone.language_model
    weight = model.backbone.get_input_embeddings().weight
    heads, kv_heads = (
        language_model.config.num_attention_heads,
        language_model.config.num_key_value_heads,
    )
    head_dim = language_model.layers[0].self_attn.head_dim
    attention, chosen = attention_for(heads, kv_heads, head_dim, weight.dtype, weight.device)
    fuse, compiled = fused(weight.dtype, weight.device)
    decoder = TextDecoder(language_model, fuse)
    runner = StaticRunner(model, decoder, attention, Graphs(cuda_recorder))
    runner.chosen = {"attention": chosen, "compiled": compiled}
    return decoder, runner


@cache
def attention_for(
    heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[type[FlashAttention] | type[PaddedAttention], str]:
    """Return the kind of attention to use, and which it is and why.

    The flash kernel is compared with the padded computation on rows that begin in the middle, stand
    in another order than their keys, or are empty.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return PaddedAttention, f"padded: flash attention has no {dtype}"
    spans = [Span(300, np.arange(200, 257)), Span(0, np.arange(1, 9)), Span(40, np.array([77]))]
    shape = {"rows": 4, "width": 64, "tokens": 66}
    generator = torch.Generator(device).manual_seed(0)

    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, device=device, dtype=dtype)

    tensors = random(66, heads, head_dim), *random(2, 600, kv_heads, head_dim)
    try:
        outputs = [
            kind(*upload(kind.numbers(spans, **shape), device), length=256, width=64)(*tensors)
            for kind in (FlashAttention, PaddedAttention)
        ]
        difference = (outputs[0] - outputs[1]).abs().max().item()
    except (RuntimeError, TypeError, AttributeError) as error:  # no such operator or arguments
        return PaddedAttention, f"padded: flash attention failed: {str(error).splitlines()[0]}"
    if not difference < _TOLERANCE:
        return PaddedAttention, f"padded: flash attention is off by {difference:.3g}"
    return FlashAttention, "flash"


@cache
def fused(
    dtype: torch.dtype, device: torch.device
) -> tuple[Callable[[Callable[..., Tensor]], Callable[..., Tensor]], str]:
    """Return what compiles the elementwise parts of a layer, and whether it does and why not.

    Only these: the matrix products are as fast without, and small functions of any number of tokens
    are compiled once, in seconds.
    """
    generator = torch.Generator(device).manual_seed(0)

    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, device=device, dtype=dtype)

    compiled: dict[Callable[..., Tensor], Callable[..., Tensor]] = {}
    angles = random(70, 1, 32), random(70, 1, 32)
    examples: dict[Callable[..., Tensor], tuple[Any, ...]] = {
        turned: (random(70, 6, 64), random(6, 64), *angles, 1e-6),
        gated: (random(70, 128),),
    }
    try:
        for function, inputs in examples.items():
            compiled[function] = torch.compile(function, dynamic=True, fullgraph=True)
            difference = (compiled[function](*inputs) - function(*inputs)).abs().max().item()
            if not difference < _TOLERANCE:
                return _as_it_is, f"nothing: {function.__name__} is off by {difference:.3g}"
    except Exception as error:  # a compiler that is missing or fails raises errors of many kinds
        return _as_it_is, f"nothing: {type(error).__name__}: {str(error).splitlines()[0]}"
    return compiled.__getitem__, "elementwise parts of the language model"


def _as_it_is(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return function
