"""Attention of new tokens to all earlier ones, over cached keys and values.

The tokens of all rows are consecutive, without padding; the keys and values of a row are in
consecutive rows of the cache. Knows nothing of layers, words or images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

__all__ = ["Attention", "FlashAttention", "PaddedAttention", "RowAttention", "Span"]


_MAX_QUERIES = 512  # per call: the first tokens of a long video do not attend to the last


class Span(NamedTuple):
    """One row of a batch.

    Attributes:
        start: row of the cache that holds the first key.
        key_counts: (n,) int64, increasing: number of keys, from `start` on, that each of the n
            tokens attends to.
    """

    start: int
    key_counts: NDArray[np.int64]


class Attention(Protocol):
    """Computes attention over the batch that it was made for."""

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return the attention output.

        Args:
            queries: (N, heads, C), the tokens of all rows.
            keys: (cache rows, key heads, C), one layer's whole cache; heads // key heads queries
                share each of them.
            values: (cache rows, key heads, C).

        Returns:
            (N, heads * C).
        """
        ...


class RowAttention:
    """Attention row by row, each with exactly the keys that it attends to, without padding.

    Args:
        spans: the rows.
        like: a tensor of the queries' dtype, on their device.

    Example:
        >>> keys = torch.zeros(4, 1, 2)
        >>> values = torch.arange(4.0).repeat_interleave(2).reshape(4, 1, 2)
        >>> attention = RowAttention([Span(1, np.array([1, 2]))], keys)
        >>> attention(torch.zeros(2, 2, 2), keys, values)[:, 0].tolist()
        [1.0, 1.5]
    """

    def __init__(self, spans: Sequence[Span], like: Tensor) -> None:
        masks: dict[bytes, Tensor] = {}  # environments in step have rows of one shape
        self._counts, self._rows = [], []
        for span in spans:
            for first in range(0, len(span.key_counts), _MAX_QUERIES):
                key_counts = span.key_counts[first : first + _MAX_QUERIES]
                shape = key_counts.tobytes()
                if shape not in masks:
                    masks[shape] = _mask(key_counts, like)
                self._counts.append(len(key_counts))
                self._rows.append((span.start, masks[shape]))

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Attention`."""
        rows = [
            self._row(query, keys, values, *row)
            for query, row in zip(queries.split(self._counts), self._rows, strict=True)
        ]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def _row(self, query: Tensor, keys: Tensor, values: Tensor, start: int, mask: Tensor) -> Tensor:
        # Key heads take the batch axis, and the queries that share one the head axis: then keys
        # and values are only views, without a copy for each query head.
        query = query.unflatten(1, (keys.shape[1], -1)).permute(1, 2, 0, 3)
        shape = (-1, query.shape[1], -1, -1)
        key, value = (
            cached[start : start + mask.shape[1]].transpose(0, 1).unsqueeze(1).expand(shape)
            for cached in (keys, values)
        )
        out = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return out.permute(2, 0, 1, 3).flatten(1)


def _mask(key_counts: NDArray[np.int64], like: Tensor) -> Tensor:
    """Return (n, max keys): 0 for the keys that a token attends to, else -inf."""
    hidden = torch.from_numpy(np.arange(key_counts.max(initial=0)) >= key_counts[:, None])
    mask = torch.zeros_like(hidden, dtype=like.dtype).masked_fill_(hidden, float("-inf"))
    return mask.to(like.device)


class PaddedAttention:
    """Attention of all rows at once, padded to one width and length: fixed shapes on any device.

    Args:
        gather_index: (B, Q) int64, the token at each place of each row.
        scatter_index: (N,) int64, the place, of B * Q, of each token.
        cache_rows: (B,) int64, the row of the cache that holds each row's first key.
        key_counts: (B, Q) int64, number of keys that each place attends to, at least one.
        length: maximum number of keys of any place.
        width: Q.
    """

    def __init__(
        self,
        gather_index: Tensor,
        scatter_index: Tensor,
        cache_rows: Tensor,
        key_counts: Tensor,
        *,
        length: int,
        width: int,
    ) -> None:
        offsets = torch.arange(length, device=gather_index.device)
        self._gather_index, self._scatter_index = gather_index, scatter_index
        self._cache_rows = cache_rows[:, None] + offsets
        self._visible = offsets < key_counts[:, :, None]  # (B, Q, length)
        self._unused = offsets >= key_counts.amax(1)[:, None]  # (B, length)

    @staticmethod
    def indices(
        spans: Sequence[Span], rows: int, width: int, tokens: int
    ) -> list[NDArray[np.int64]]:
        """Return `gather_index`, `scatter_index`, `cache_rows` and `key_counts`.

        Args:
            spans: the rows without padding.
            rows: B, at least their number.
            width: Q, at least the maximum number of tokens of a row.
            tokens: N, at least the sum of their tokens.
        """
        gather_index = np.zeros((rows, width), np.int64)
        scatter_index, cache_rows = np.zeros(tokens, np.int64), np.zeros(rows, np.int64)
        key_counts = np.ones((rows, width), np.int64)
        first = 0
        for row, span in enumerate(spans):
            count = len(span.key_counts)
            gather_index[row, :count] = np.arange(first, first + count)
            scatter_index[first : first + count] = np.arange(count) + row * width
            cache_rows[row], key_counts[row, :count] = span.start, span.key_counts
            first += count
        return [gather_index, scatter_index, cache_rows, key_counts]

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Attention`."""
        heads, kv_heads = queries.shape[1], keys.shape[1]
        # The queries that share a key follow each other in one long row of its head: kernels that
        # take a mask need as many keys as queries, and this copies none.
        query = queries[self._gather_index].unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4)
        mask = self._visible[:, None].repeat(1, 1, heads // kv_heads, 1)
        # A row may reach into rows of another slot, or of none: 0 times NaN would be NaN.
        cache_rows = self._cache_rows.clamp(max=len(keys) - 1)
        key, value = (
            cached[cache_rows].masked_fill(self._unused[:, :, None, None], 0).transpose(1, 2)
            for cached in (keys, values)
        )
        out = functional.scaled_dot_product_attention(
            query.flatten(2, 3), key, value, attn_mask=mask
        )
        out = out.unflatten(2, (heads // kv_heads, -1)).permute(0, 3, 1, 2, 4)
        scattered: Tensor = out.flatten(0, 1)[self._scatter_index]
        return scattered.flatten(1)


class FlashAttention:
    """Attention of all rows at once by torch's flash kernel, without padding or copies.

    For CUDA in 16 bits. The operator is not part of torch's public interface, so it is tried and
    compared before it is used.

    Args:
        token_starts: (B + 1,) int64, each row's first token, and the number of tokens.
        cache_rows: (B + 1,) int64, the row of the cache that holds each row's first key; the last
            one is unused.
        key_counts: (B,) int64, number of keys of each row; its last token attends to all of them.
        length: maximum number of keys of a row.
        width: maximum number of tokens of a row.
    """

    def __init__(
        self,
        token_starts: Tensor,
        cache_rows: Tensor,
        key_counts: Tensor,
        *,
        length: int,
        width: int,
    ) -> None:
        self._rows = token_starts.int(), cache_rows.int(), width, length
        self._key_counts = key_counts.int()

    @staticmethod
    def indices(
        spans: Sequence[Span], rows: int, width: int, tokens: int
    ) -> list[NDArray[np.int64]]:
        """Return the three index arrays of the class; arguments as `PaddedAttention.indices`."""
        token_starts = np.zeros(rows + 1, np.int64)
        cache_rows, key_counts = np.zeros(rows + 1, np.int64), np.zeros(rows, np.int64)
        token_starts[1 : len(spans) + 1] = np.cumsum([len(span.key_counts) for span in spans])
        token_starts[len(spans) + 1 :] = token_starts[len(spans)]
        for row, span in enumerate(spans):
            cache_rows[row], key_counts[row] = span.start, span.key_counts[-1]
        return [token_starts, cache_rows, key_counts]

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Attention`."""
        # No dropout; causal, so that a row's last token attends to all its keys; no debug mask.
        out: Tensor = _flash(
            queries, keys, values, *self._rows, 0.0, True, False, seqused_k=self._key_counts
        )[0]
        return out.flatten(1)


def _flash(*arguments: Any, **keywords: Any) -> Any:
    return torch.ops.aten._flash_attention_forward(*arguments, **keywords)
