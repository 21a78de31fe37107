"""Attention of new tokens to everything before them, over keys and values that are cached.

The tokens of all rows stand one after the other, without padding; the keys and values of a row
stand in consecutive lines of the cache. Knows nothing of layers, of words or of pictures.
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


_AT_ONCE = 512  # tokens of a row: the first of a long video do not see the last


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
        self._counts, self._rows = [], []
        for span in spans:
            for first in range(0, len(span.seen), _AT_ONCE):
                seen = span.seen[first : first + _AT_ONCE]
                shape = seen.tobytes()
                if shape not in masks:
                    masks[shape] = _mask(seen, like)
                self._counts.append(len(seen))
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
    mask = torch.zeros_like(past, dtype=like.dtype).masked_fill_(past, float("-inf"))
    return mask.to(like.device)


class PaddedAttention:
    """All rows at once, padded to one width and length: on any device, in fixed shapes.

    Args:
        take: (B, Q) int64, which token stands in each place of each row.
        back: (N,) int64, in which of the B * Q places each token stands.
        lines: (B,) int64, where each row's first key is.
        seen: (B, Q) int64, how many keys each place sees, at least one.
        length: the most keys that any place sees.
        width: Q.
    """

    def __init__(
        self, take: Tensor, back: Tensor, lines: Tensor, seen: Tensor, *, length: int, width: int
    ) -> None:
        places = torch.arange(length, device=take.device)
        self._take, self._back = take, back
        self._lines = lines[:, None] + places
        self._visible = places < seen[:, :, None]  # (B, Q, length)
        self._unseen = places >= seen.amax(1)[:, None]  # (B, length)

    @staticmethod
    def numbers(
        spans: Sequence[Span], rows: int, width: int, tokens: int
    ) -> list[NDArray[np.int64]]:
        """Return `take`, `back`, `lines` and `seen`.

        Args:
            spans: the rows that there are.
            rows: B, at least as many.
            width: Q, at least the most tokens of a row.
            tokens: N, at least the sum of their tokens.
        """
        take, seen = np.zeros((rows, width), np.int64), np.ones((rows, width), np.int64)
        back, lines = np.zeros(tokens, np.int64), np.zeros(rows, np.int64)
        first = 0
        for row, span in enumerate(spans):
            count = len(span.seen)
            take[row, :count] = np.arange(first, first + count)
            back[first : first + count] = np.arange(count) + row * width
            lines[row], seen[row, :count] = span.line, span.seen
            first += count
        return [take, back, lines, seen]

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Attention`."""
        heads, kv_heads = queries.shape[1], keys.shape[1]
        # The queries that share a key stand one after the other in one long row of its head:
        # kernels that take a mask want as many keys as queries, and this copies none.
        query = queries[self._take].unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4)
        mask = self._visible[:, None].repeat(1, 1, heads // kv_heads, 1)
        # A row may reach into lines that are another's, or nobody's: 0 times NaN would be NaN.
        lines = self._lines.clamp(max=len(keys) - 1)
        key, value = (
            cached[lines].masked_fill(self._unseen[:, :, None, None], 0).transpose(1, 2)
            for cached in (keys, values)
        )
        out = functional.scaled_dot_product_attention(
            query.flatten(2, 3), key, value, attn_mask=mask
        )
        out = out.unflatten(2, (heads // kv_heads, -1)).permute(0, 3, 1, 2, 4)
        gathered: Tensor = out.flatten(0, 1)[self._back]
        return gathered.flatten(1)


class FlashAttention:
    """All rows at once by the flash kernel that comes with torch: nothing is padded or copied.

    For CUDA in 16 bits. The operator is not part of torch's public interface, so it has to be
    tried and compared before it is used.

    Args:
        starts: (B + 1,) int64, which token is each row's first, and how many tokens there are.
        lines: (B + 1,) int64, where each row's first key is; the last one is not read.
        used: (B,) int64, how many keys each row has; its last token sees all of them.
        length: the most keys of a row.
        width: the most tokens of a row.
    """

    def __init__(
        self, starts: Tensor, lines: Tensor, used: Tensor, *, length: int, width: int
    ) -> None:
        self._rows = starts.int(), lines.int(), width, length
        self._used = used.int()

    @staticmethod
    def numbers(
        spans: Sequence[Span], rows: int, width: int, tokens: int
    ) -> list[NDArray[np.int64]]:
        """Return `starts`, `lines` and `used`; see `PaddedAttention.numbers`."""
        starts = np.zeros(rows + 1, np.int64)
        lines, used = np.zeros(rows + 1, np.int64), np.zeros(rows, np.int64)
        starts[1 : len(spans) + 1] = np.cumsum([len(span.seen) for span in spans])
        starts[len(spans) + 1 :] = starts[len(spans)]
        for row, span in enumerate(spans):
            lines[row], used[row] = span.line, span.seen[-1]
        return [starts, lines, used]

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Attention`."""
        # No dropout; causal, so that a row's last token sees all its keys; no debug mask.
        out: Tensor = _flash(
            queries, keys, values, *self._rows, 0.0, True, False, seqused_k=self._used
        )[0]
        return out.flatten(1)


def _flash(*arguments: Any, **keywords: Any) -> Any:
    return torch.ops.aten._flash_attention_forward(*arguments, **keywords)
