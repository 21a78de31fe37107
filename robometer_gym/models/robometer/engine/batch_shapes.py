"""Padding of a batch to one of few fixed shapes, so that a CUDA graph can be replayed for it.

Knows nothing of networks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from robometer_gym.models.robometer.engine.batch_layout import BatchLayout

__all__ = ["BatchShape", "pad_layout"]

_KEYS_STEP = 128  # the number of keys in attention is rounded up to a multiple of this


class BatchShape(NamedTuple):
    """Size of a batch.

    Attributes:
        tokens: N.
        rows: number of rows.
        width: maximum number of tokens in a row.
        readouts: R, number of readout tokens.
        length: maximum number of keys that a token attends to.
    """

    tokens: int
    rows: int
    width: int
    readouts: int
    length: int

    @classmethod
    def of(cls, layout: BatchLayout, *, rounded: bool) -> BatchShape:
        """Return the shape of a batch, or the next of few shapes that can hold it.

        Example:
            >>> from robometer_gym.models.robometer.engine.attention import Span
            >>> none, spans = np.zeros(0, np.int64), [Span(0, np.arange(58, 115))]
            >>> layout = BatchLayout(np.zeros(57, np.int64), none, none, none, none, spans, spans)
            >>> BatchShape.of(layout, rounded=True)
            BatchShape(tokens=64, rows=1, width=64, readouts=1, length=128)
        """
        width = max(len(span.key_counts) for span in layout.spans)
        length = max(int(span.key_counts[-1]) for span in layout.spans)
        readouts = max(1, len(layout.readout))
        exact = cls(len(layout.ids), len(layout.spans), width, readouts, length)
        if not rounded:
            return exact
        return cls(
            _round_up(exact.tokens),
            1 << (exact.rows - 1).bit_length(),
            _round_up(exact.width),
            1 << (exact.readouts - 1).bit_length(),
            -(-exact.length // _KEYS_STEP) * _KEYS_STEP,
        )


def pad_layout(layout: BatchLayout, shape: BatchShape, scratch_row: int) -> BatchLayout:
    """Return the layout with the number of tokens and of readout tokens of the shape.

    Args:
        layout: no larger than the shape.
        shape: size of the result.
        scratch_row: row of the cache that takes the keys and values of padding.
    """
    tokens = shape.tokens - len(layout.ids)
    return layout._replace(
        ids=np.pad(layout.ids, (0, tokens)),
        positions=np.pad(layout.positions, ((0, 0), (0, tokens))),
        cache_rows=np.pad(layout.cache_rows, (0, tokens), constant_values=scratch_row),
        readout=np.pad(layout.readout, (0, shape.readouts - len(layout.readout))),
    )


def _round_up(count: int) -> int:
    """Return the next of 32, 64, ..., 512, 576, ..., 1024, 1152, ...: at most a sixteenth more."""
    step = max(32, (1 << (count - 1).bit_length()) // 16)
    return -(-count // step) * step
