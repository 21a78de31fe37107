"""The language model over a KV cache, run on new tokens only.

Computes the function of transformers' Qwen3VLTextModel from its weights: with fused projections,
explicit positions, and, in the last layer, only the readout tokens. Knows nothing of streams.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from robometer_gym.models.robometer.engine.attention import Attention
from robometer_gym.models.robometer.engine.fused_weights import FusedLinear

__all__ = ["TextDecoder", "TokenBatch", "rms_norm_rope", "swiglu", "unsupported_reason"]

Function = Callable[..., Tensor]
Fuse = Callable[[Function], Function]


class TokenBatch(NamedTuple):
    """N new tokens, row after row.

    Attributes:
        embeddings: (N, D), of words and of images.
        deepstack: (levels, N, D), added after each early layer: 0 except at images.
        positions: (3, N) int64: time, height and width.
        cache_rows: (N,) int64, the row of the cache that takes each token's key and value.
        readout: (R,) int64, the readout tokens, whose hidden states are returned.
        attention: of all N tokens.
        readout_attention: of those R alone.
    """

    embeddings: Tensor
    deepstack: Tensor
    positions: Tensor
    cache_rows: Tensor
    readout: Tensor
    attention: Attention
    readout_attention: Attention


def unsupported_reason(language_model: Any) -> str:
    """Return the feature of a language model that `TextDecoder` does not implement, or ""."""
    rotary, config = language_model.rotary_emb, language_model.config
    if rotary.rope_type != "default":
        return f"the fast engine has no rotary embeddings of type {rotary.rope_type!r}"
    if config.hidden_act != "silu":
        return f"the fast engine has no activation {config.hidden_act!r}"
    return ""


class TextDecoder:
    """Qwen3-VL's language model over a cache of keys and values.

    Args:
        language_model: transformers' Qwen3VLTextModel; its matrices are fused, not copied.
        fuse: returns a faster function of `rms_norm_rope` and of `swiglu`.

    Attributes:
        layers: number of layers.
        kv_heads: number of keys, and of values, per token and layer.
        head_dim: C, the size of each.
    """

    def __init__(self, language_model: Any, fuse: Fuse = lambda function: function) -> None:
        config, rotary = language_model.config, language_model.rotary_emb
        self.embed = language_model.embed_tokens
        self.layers: int = config.num_hidden_layers
        self.kv_heads: int = config.num_key_value_heads
        self.head_dim: int = language_model.layers[0].self_attn.head_dim
        self._heads: int = config.num_attention_heads
        self._frequencies = rotary.inv_freq.float()
        self._scaling = float(rotary.attention_scaling)
        axes = _rope_axes(rotary.mrope_section, self.head_dim // 2)
        self._axes = axes.to(self._frequencies.device)
        self._rms_norm_rope, fast_swiglu = fuse(rms_norm_rope), fuse(swiglu)
        self._layers = [
            _Layer(layer, self._heads, self.kv_heads, fast_swiglu)
            for layer in language_model.layers
        ]
        self._norm = language_model.norm

    def __call__(self, tokens: TokenBatch, cache: Tensor) -> Tensor:
        """Run the tokens, and write their keys and values into the cache.

        Args:
            tokens: all tokens of a row that precede its new ones are in the cache.
            cache: (2, layers, cache rows, kv_heads, head_dim), keys and values.

        Returns:
            (R, D): the hidden states of the readout tokens, after the final norm.
        """
        x = tokens.embeddings
        angles = self._angles(tokens.positions, x.dtype)
        for number, layer in enumerate(self._layers[:-1]):
            x = self._run_layer(layer, x, angles, tokens, cache[:, number])
            if number < len(tokens.deepstack):
                x = x + tokens.deepstack[number]
        return _rms_norm(self._run_last_layer(x, angles, tokens, cache[:, -1]), self._norm)

    def _run_layer(
        self,
        layer: _Layer,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        tokens: TokenBatch,
        cache: Tensor,
    ) -> Tensor:
        heads, kv_heads = self._heads, self.kv_heads
        projected = layer.qkv(_rms_norm(x, layer.norm)).unflatten(-1, (-1, self.head_dim))
        query_key, value = projected.split([heads + kv_heads, kv_heads], dim=1)
        query_key = self._rms_norm_rope(query_key, layer.head_norms, *angles, layer.eps)
        query, key = query_key.split([heads, kv_heads], dim=1)
        _write_cache(cache, tokens.cache_rows, key, value)
        x = x + layer.output(tokens.attention(query, *cache))
        return layer.feed_forward(x)

    def _run_last_layer(
        self, x: Tensor, angles: tuple[Tensor, Tensor], tokens: TokenBatch, cache: Tensor
    ) -> Tensor:
        """Compute keys and values of all tokens, and the rest for the readout tokens alone."""
        layer, heads = self._layers[-1], self._heads
        normal = _rms_norm(x, layer.norm)
        projected = layer.qkv(normal, slice(1, 3)).unflatten(-1, (-1, self.head_dim))
        key, value = projected.split(self.kv_heads, dim=1)
        key = self._rms_norm_rope(key, layer.head_norms[heads:], *angles, layer.eps)
        _write_cache(cache, tokens.cache_rows, key, value)
        x = x[tokens.readout]
        if not len(x):
            return x
        query = layer.qkv(normal[tokens.readout], slice(0, 1)).unflatten(-1, (-1, self.head_dim))
        cos, sin = (angle[tokens.readout] for angle in angles)
        query = self._rms_norm_rope(query, layer.head_norms[:heads], cos, sin, layer.eps)
        x = x + layer.output(tokens.readout_attention(query, *cache))
        return layer.feed_forward(x)

    def _angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosine and sine of the rotary angles, (N, 1, C / 2) each."""
        angles = positions.T.index_select(1, self._axes).float() * self._frequencies
        cos, sin = angles.cos() * self._scaling, angles.sin() * self._scaling
        return cos.to(dtype)[:, None], sin.to(dtype)[:, None]


class _Layer:
    """The weights of one layer, fused."""

    def __init__(self, layer: Any, heads: int, kv_heads: int, swiglu: Function) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = FusedLinear(attention.q_proj, attention.k_proj, attention.v_proj)
        self.output, self.down = attention.o_proj, mlp.down_proj
        self.gate_up = FusedLinear(mlp.gate_proj, mlp.up_proj)
        self.norm, self.norm_after = layer.input_layernorm, layer.post_attention_layernorm
        self._swiglu = swiglu
        self.eps: float = attention.q_norm.variance_epsilon
        query_norm, key_norm = attention.q_norm.weight.detach(), attention.k_norm.weight.detach()
        # (heads + kv_heads, C), so that one operation norms queries and keys.
        self.head_norms = torch.cat([query_norm.expand(heads, -1), key_norm.expand(kv_heads, -1)])

    def feed_forward(self, x: Tensor) -> Tensor:
        fed: Tensor = x + self.down(self._swiglu(self.gate_up(_rms_norm(x, self.norm_after))))
        return fed


def _rope_axes(sections: list[int], frequencies: int) -> Tensor:
    """Return (frequencies,): the axis of each, 0 for time, 1 for height, 2 for width.

    Source: Qwen3VLTextRotaryEmbedding.recomposition_frequencies of transformers 5.23.
    """
    axes = torch.zeros(frequencies, dtype=torch.int64)
    for axis in (1, 2):
        axes[axis : 3 * sections[axis] : 3] = axis
    return axes


def _rms_norm(x: Tensor, norm: Any) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def rms_norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """Norm queries or keys, each by itself, and rotate them by their tokens' angles.

    Args:
        x: (N, heads, C).
        weight: (heads, C), of the norm.
        cos: (N, 1, C / 2).
        sin: (N, 1, C / 2).
        eps: of the norm.
    """
    low, high = (functional.rms_norm(x, x.shape[-1:], eps=eps) * weight).chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def swiglu(x: Tensor) -> Tensor:
    """Return (N, F) of (N, 2 F): SiLU of the first half times the second."""
    gate, up = x.chunk(2, dim=-1)
    return functional.silu(gate) * up


def _write_cache(cache: Tensor, rows: Tensor, key: Tensor, value: Tensor) -> None:
    cache[0].index_copy_(0, rows, key)
    cache[1].index_copy_(0, rows, value)
