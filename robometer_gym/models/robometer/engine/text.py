"""The language model, run on new tokens only.

Computes what transformers' Qwen3VLTextModel does, from its weights, over cached keys and values:
projections of one input joined, positions always given, and of the last layer only what is read.
Knows nothing of which tokens belong to which stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from robometer_gym.models.robometer.engine.attention import Attention
from robometer_gym.models.robometer.engine.weights import Joined

__all__ = ["TextDecoder", "Tokens", "gated", "turned", "why_not_decoded"]

Function = Callable[..., Tensor]
Fuse = Callable[[Function], Function]


class Tokens(NamedTuple):
    """N new tokens, those of one row after those of another.

    Attributes:
        embeddings: (N, D), of words, and of pictures in their places.
        deepstack: (levels, N, D), what is added after each early layer: 0 where no picture is.
        positions: (3, N) int64: time, height and width.
        lines: (N,) int64, where each token's key and value go in the cache.
        wanted: (R,) int64, which tokens' hidden states are wanted.
        attention: of all N tokens.
        attention_of_wanted: of those R alone.
    """

    embeddings: Tensor
    deepstack: Tensor
    positions: Tensor
    lines: Tensor
    wanted: Tensor
    attention: Attention
    attention_of_wanted: Attention


def why_not_decoded(language_model: Any) -> str:
    """Return what of a language model `TextDecoder` does not compute, or nothing."""
    rotary, config = language_model.rotary_emb, language_model.config
    if rotary.rope_type != "default":
        return f"the fast engine has no rotary embeddings of type {rotary.rope_type!r}"
    if config.hidden_act != "silu":
        return f"the fast engine has no activation {config.hidden_act!r}"
    return ""


class TextDecoder:
    """Qwen3-VL's language model over a cache of keys and values.

    Args:
        language_model: transformers' Qwen3VLTextModel; its matrices are laid out anew, not copied.
        fuse: makes a faster function of `turned` and of `gated`.

    Attributes:
        layers: how many there are.
        kv_heads: how many keys, and values, a token has in each.
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
        self._axes = _axes(rotary.mrope_section, self.head_dim // 2).to(self._frequencies.device)
        self._turned, fast_gated = fuse(turned), fuse(gated)
        self._layers = [
            _Layer(layer, self._heads, self.kv_heads, fast_gated) for layer in language_model.layers
        ]
        self._norm = language_model.norm

    def __call__(self, tokens: Tokens, cache: Tensor) -> Tensor:
        """Run the tokens, and write their keys and values into the cache.

        Args:
            tokens: all of a row's tokens before its new ones are in the cache.
            cache: (2, layers, lines, kv_heads, head_dim), keys and values.

        Returns:
            (R, D): the hidden states that are wanted, after the final norm.
        """
        x = tokens.embeddings
        angles = self._angles(tokens.positions, x.dtype)
        for number, layer in enumerate(self._layers[:-1]):
            x = self._run(layer, x, angles, tokens, cache[:, number])
            if number < len(tokens.deepstack):
                x = x + tokens.deepstack[number]
        return _rms_norm(self._run_last(x, angles, tokens, cache[:, -1]), self._norm)

    def _run(
        self, layer: _Layer, x: Tensor, angles: tuple[Tensor, Tensor], tokens: Tokens, cache: Tensor
    ) -> Tensor:
        heads, kv_heads = self._heads, self.kv_heads
        projected = layer.qkv(_rms_norm(x, layer.norm)).unflatten(-1, (-1, self.head_dim))
        both, value = projected.split([heads + kv_heads, kv_heads], dim=1)
        both = self._turned(both, layer.of_heads, *angles, layer.eps)
        query, key = both.split([heads, kv_heads], dim=1)
        _write(cache, tokens.lines, key, value)
        x = x + layer.output(tokens.attention(query, *cache))
        return layer.feed_forward(x)

    def _run_last(
        self, x: Tensor, angles: tuple[Tensor, Tensor], tokens: Tokens, cache: Tensor
    ) -> Tensor:
        """Keys and values of all tokens, and the rest of the layer for the wanted ones alone."""
        layer, heads = self._layers[-1], self._heads
        normal = _rms_norm(x, layer.norm)
        projected = layer.qkv(normal, slice(1, 3)).unflatten(-1, (-1, self.head_dim))
        key, value = projected.split(self.kv_heads, dim=1)
        key = self._turned(key, layer.of_heads[heads:], *angles, layer.eps)
        _write(cache, tokens.lines, key, value)
        x = x[tokens.wanted]
        if not len(x):
            return x
        query = layer.qkv(normal[tokens.wanted], slice(0, 1)).unflatten(-1, (-1, self.head_dim))
        cos, sin = (angle[tokens.wanted] for angle in angles)
        query = self._turned(query, layer.of_heads[:heads], cos, sin, layer.eps)
        x = x + layer.output(tokens.attention_of_wanted(query, *cache))
        return layer.feed_forward(x)

    def _angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the rotary angles, (N, 1, C / 2) each."""
        angles = positions.T.index_select(1, self._axes).float() * self._frequencies
        cos, sin = angles.cos() * self._scaling, angles.sin() * self._scaling
        return cos.to(dtype)[:, None], sin.to(dtype)[:, None]


class _Layer:
    """One layer's weights, as they are used here."""

    def __init__(self, layer: Any, heads: int, kv_heads: int, gated: Function) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = Joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self.output, self.down = attention.o_proj, mlp.down_proj
        self.gate_up = Joined(mlp.gate_proj, mlp.up_proj)
        self.norm, self.norm_after = layer.input_layernorm, layer.post_attention_layernorm
        self._gated = gated
        self.eps: float = attention.q_norm.variance_epsilon
        of_query, of_key = attention.q_norm.weight.detach(), attention.k_norm.weight.detach()
        # Of queries and keys, (heads + kv_heads, C), so that both are normed in one go.
        self.of_heads = torch.cat([of_query.expand(heads, -1), of_key.expand(kv_heads, -1)])

    def feed_forward(self, x: Tensor) -> Tensor:
        fed: Tensor = x + self.down(self._gated(self.gate_up(_rms_norm(x, self.norm_after))))
        return fed


def _axes(sections: list[int], frequencies: int) -> Tensor:
    """Return (frequencies,): 0 for those that turn with time, 1 with height, 2 with width.

    Source: Qwen3VLTextRotaryEmbedding.recomposition_frequencies of transformers 5.23.
    """
    axes = torch.zeros(frequencies, dtype=torch.int64)
    for axis in (1, 2):
        axes[axis : 3 * sections[axis] : 3] = axis
    return axes


def _rms_norm(x: Tensor, norm: Any) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def turned(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """Norm queries or keys, each by itself, and turn them by their tokens' angles.

    Args:
        x: (N, heads, C).
        weight: (heads, C), of the norm.
        cos: (N, 1, C / 2).
        sin: (N, 1, C / 2).
        eps: of the norm.
    """
    low, high = (functional.rms_norm(x, x.shape[-1:], eps=eps) * weight).chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def gated(x: Tensor) -> Tensor:
    """Return (N, F) of (N, 2 F): the second half, each let through by its partner in the first."""
    gate, up = x.chunk(2, dim=-1)
    return functional.silu(gate) * up


def _write(cache: Tensor, lines: Tensor, key: Tensor, value: Tensor) -> None:
    cache[0].index_copy_(0, lines, key)
    cache[1].index_copy_(0, lines, value)
