"""What is faster on a CUDA device, tried before it is used: kernels, compilation, recording.

Each of these falls back by itself, and says why in `engine_info`. Imported only where there is
such a device. None of this was run on one yet: `tests/test_cuda_rules.py` pretends that there is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robometer_gym.models.robometer.engine.attention import FlashAttention, PaddedAttention, Span
from robometer_gym.models.robometer.engine.graphs import Graphs, cuda_recorder, in_one_line
from robometer_gym.models.robometer.engine.layout import upload
from robometer_gym.models.robometer.engine.runner import StaticRunner
from robometer_gym.models.robometer.engine.text import TextDecoder, gated, turned
from robometer_gym.models.robometer.network.modeling import RobometerModel
from robometer_gym.models.robometer.network.vision import rotated

__all__ = ["attention_for", "cuda_runner", "fused"]

# How far two right results in 16 bits are from each other, at most: some roundings.
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
    runner = StaticRunner(model, decoder, attention, Graphs(cuda_recorder), fuse(rotated))
    runner.chosen = {"attention": chosen, "compiled": compiled}
    return decoder, runner


@cache
@torch.inference_mode()
def attention_for(
    heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[type[FlashAttention] | type[PaddedAttention], str]:
    """Return the kind of attention to use, and which it is and why.

    The flash kernel is compared with the padded computation on rows that begin in the middle, stand
    in another order than their keys, or are empty; and on rows of one token, for which it has
    another way.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return PaddedAttention, f"padded: flash attention has no {dtype}"
    several = [Span(300, np.arange(200, 257)), Span(0, np.arange(1, 9)), Span(40, np.array([77]))]
    alone = [Span(line, np.array([seen])) for line, seen in ((300, 256), (0, 1), (40, 77))]
    generator = torch.Generator(device).manual_seed(0)

    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, device=device, dtype=dtype)

    cached = random(2, 600, kv_heads, head_dim)
    for spans, tokens, width in ((several, 66, 64), (alone, 3, 1)):
        shape = {"rows": 4, "width": width, "tokens": max(4, tokens)}
        queries = random(shape["tokens"], heads, head_dim)
        try:
            flash, padded = (
                kind(*upload(kind.numbers(spans, **shape), device), length=256, width=width)(
                    queries, *cached
                )[:tokens]
                for kind in (FlashAttention, PaddedAttention)
            )
            difference = _difference(flash, padded)
        except torch.cuda.OutOfMemoryError:
            raise  # there is nothing wrong with it
        except (RuntimeError, TypeError, AttributeError) as error:  # no such operator or arguments
            return PaddedAttention, f"padded: flash attention failed: {in_one_line(error)}"
        if not difference < _TOLERANCE:
            return PaddedAttention, f"padded: flash attention is off by {difference:.3g}"
    return FlashAttention, "flash"


@cache
@torch.inference_mode()
def fused(
    dtype: torch.dtype, device: torch.device
) -> tuple[Callable[[Callable[..., Tensor]], Callable[..., Tensor]], str]:
    """Return what compiles the elementwise parts of a layer, and whether it does and why not.

    Only these: the matrix products are as fast without. A function is compiled in seconds for any
    number of tokens, but anew for one token, and for tensors that lie in memory in another way: as
    they are in a layer they are tried here, because it must not happen while something is recorded.
    """
    generator = torch.Generator(device).manual_seed(0)

    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, device=device, dtype=dtype)

    weight, cos, sin = random(6, 64), random(70, 1, 32), random(70, 1, 32)
    angles = random(70, 32).float(), random(70, 32).float()
    examples: dict[Callable[..., Tensor], list[tuple[Any, ...]]] = {
        turned: [
            (random(70, 6, 64), weight, cos, sin, 1e-6),
            (random(70, 9, 64)[:, :6], weight, cos, sin, 1e-6),
            (random(1, 6, 64), weight, cos[:1], sin[:1], 1e-6),
        ],
        gated: [(random(70, 128),), (random(1, 128),)],
        rotated: [
            (random(pictures, 70, 3, 4, 64).permute(2, 0, 3, 1, 4)[:2], *angles)
            for pictures in (3, 1)
        ],
    }
    compiled: dict[Callable[..., Tensor], Callable[..., Tensor]] = {}
    try:
        for function, each in examples.items():
            compiled[function] = torch.compile(function, dynamic=True)
            difference = max(_difference(compiled[function](*x), function(*x)) for x in each)
            if not difference < _TOLERANCE:
                return _as_it_is, f"nothing: {function.__name__} is off by {difference:.3g}"
    except torch.cuda.OutOfMemoryError:
        raise  # there is nothing wrong with it
    except Exception as error:  # a compiler that is missing or fails raises errors of many kinds
        return _as_it_is, f"nothing: {type(error).__name__}: {in_one_line(error)}"
    return compiled.__getitem__, "elementwise parts"


def _difference(one: Tensor, other: Tensor) -> float:
    """Return how far they are from each other, in units of their largest number."""
    return float((one - other).abs().max() / other.abs().max())


def _as_it_is(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return function
