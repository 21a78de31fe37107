"""Attention of new tokens to everything before them, over keys and values that are cached.

The tokens of all rows stand one after the other, without padding; the keys and values of a row
stand in consecutive lines of the cache. Knows nothing of layers, of words or of pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

__all__ = ["Attention", "RowAttention", "Span"]


class Span(NamedTuple):
    """One row of a batch.

    Attributes:
        line: of the cache, at which the row's first key is.
        seen: (n,) int64, increasing: how many keys, from `line` on, each of its n tokens sees.
    """

    line: int
    seen: NDArray[np.int64]


class Attention(Protocol):
    """Computes attention over a batch that it has prepared for."""

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return what the tokens gather.

        Args:
            queries: (N, heads, C), the tokens of all rows.
            keys: (lines, key heads, C), one layer's whole cache; heads // key heads queries
                share each of them.
            values: (lines, key heads, C).

        Returns:
            (N, heads * C).
        """
        ...


class RowAttention:
    """One row after the other, each with exactly the keys that it sees: nothing is padded.

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
        self._counts = [len(span.seen) for span in spans]
        self._rows = []
        for span in spans:
            shape = span.seen.tobytes()
            if shape not in masks:
                masks[shape] = _mask(span.seen, like)
            self._rows.append((span.line, masks[shape]))

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Attention`."""
        rows = [
            self._row(query, keys, values, *row)
            for query, row in zip(queries.split(self._counts), self._rows, strict=True)
        ]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def _row(self, query: Tensor, keys: Tensor, values: Tensor, line: int, mask: Tensor) -> Tensor:
        # Key heads stand where a batch would, and the queries that share one where heads would:
        # then keys and values are only views, without a copy for each query head.
        query = query.unflatten(1, (keys.shape[1], -1)).permute(1, 2, 0, 3)
        shape = (-1, query.shape[1], -1, -1)
        key, value = (
            cached[line : line + mask.shape[1]].transpose(0, 1).unsqueeze(1).expand(shape)
            for cached in (keys, values)
        )
        out = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return out.permute(2, 0, 1, 3).flatten(1)


def _mask(seen: NDArray[np.int64], like: Tensor) -> Tensor:
    """Return (n, most seen), 0 where a token sees a key and -inf where it does not."""
    past = torch.from_numpy(np.arange(seen.max(initial=0)) >= seen[:, None])
    mask = torch.zeros(past.shape, dtype=like.dtype).masked_fill_(past, float("-inf"))
    return mask.to(like.device)
