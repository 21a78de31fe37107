"""Batches in fixed shapes: rounded up to one of few, and filled up with tokens that nobody reads.

Knows nothing of networks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from robometer_gym.models.robometer.engine.layout import Layout

__all__ = ["Shape", "fill_up"]

_KEYS_STEP = 128  # attention looks at a multiple of so many keys


class Shape(NamedTuple):
    """How large a batch is.

    Attributes:
        tokens: N.
        rows: how many.
        width: the most tokens of a row.
        wanted: R.
        length: the most keys that a token sees.
    """

    tokens: int
    rows: int
    width: int
    wanted: int
    length: int

    @classmethod
    def of(cls, layout: Layout, *, rounded: bool) -> Shape:
        """Return the shape of a batch, or the next of few that has room for it.

        Example:
            >>> from robometer_gym.models.robometer.engine.attention import Span
            >>> none, spans = np.zeros(0, np.int64), [Span(0, np.arange(58, 115))]
            >>> layout = Layout(np.zeros(57, np.int64), none, none, none, none, spans, spans)
            >>> Shape.of(layout, rounded=True)
            Shape(tokens=64, rows=1, width=64, wanted=1, length=128)
        """
        width = max(len(span.seen) for span in layout.spans)
        length = max(int(span.seen[-1]) for span in layout.spans)
        exact = cls(len(layout.ids), len(layout.spans), width, max(1, len(layout.wanted)), length)
        if not rounded:
            return exact
        tokens, rows, width, wanted, length = exact
        return cls(
            _rounded(tokens),
            1 << (rows - 1).bit_length(),
            _rounded(width),
            1 << (wanted - 1).bit_length(),
            -(-length // _KEYS_STEP) * _KEYS_STEP,
        )


def fill_up(layout: Layout, shape: Shape, scratch: int) -> Layout:
    """Return the layout with as many tokens, wanted ones too, as the shape has.

    Args:
        layout: no larger than the shape.
        shape: how large it is to be.
        scratch: the line of the cache to which the keys and values of what is added go.
    """
    tokens = shape.tokens - len(layout.ids)
    return layout._replace(
        ids=np.pad(layout.ids, (0, tokens)),
        positions=np.pad(layout.positions, ((0, 0), (0, tokens))),
        lines=np.pad(layout.lines, (0, tokens), constant_values=scratch),
        wanted=np.pad(layout.wanted, (0, shape.wanted - len(layout.wanted))),
    )


def _rounded(count: int) -> int:
    """Return the next of 32, 64, ..., 512, 576, ..., 1024, 1152, ...: little is added to many."""
    step = max(32, (1 << (count - 1).bit_length()) // 16)
    return -(-count // step) * step
