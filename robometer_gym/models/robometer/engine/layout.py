"""From rows of token pieces to the numbers of one batch, and these to a device in one piece.

Knows nothing of tensors that a network computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robometer_gym.models.robometer.engine.attention import Span
from robometer_gym.models.robometer.engine.prompts import Segment

__all__ = ["Layout", "Numbers", "Row", "lay_out", "to_device", "upload"]

Numbers = NDArray[np.int64]


class Row(NamedTuple):
    """What is to be run in one slot.

    Attributes:
        slot: its number.
        segments: the new tokens.
        tokens: how many stand before them in the slot.
        position: at which the first of them is.
        features: of the picture in each segment that has one, (1 + levels, tokens, D).
    """

    slot: int
    segments: Sequence[Segment]
    tokens: int = 0
    position: int = 0
    features: Sequence[Tensor] = ()


class Layout(NamedTuple):
    """The numbers of a batch of N tokens, those of one row after those of another.

    Attributes:
        ids: (N,) token ids.
        positions: (3, N), time, height and width.
        lines: (N,), where each token's key and value go in the cache.
        pictures: (M,), which tokens stand for pictures.
        wanted: (R,), which tokens' hidden states are wanted: one per picture.
        spans: per row, what its tokens see.
        wanted_spans: per row, what its wanted tokens see.
    """

    ids: Numbers
    positions: Numbers
    lines: Numbers
    pictures: Numbers
    wanted: Numbers
    spans: list[Span]
    wanted_spans: list[Span]


def lay_out(rows: Sequence[Row], length: int) -> Layout:
    """Number the tokens of all rows.

    Args:
        rows: at least one.
        length: of a slot, in lines of the cache.
    """
    ids, positions, lines, pictures, wanted = [], [], [], [], []
    spans, wanted_spans, first = [], [], 0
    for row in rows:
        count, position, asked = 0, row.position, []
        for piece in row.segments:
            ids.append(piece.ids)
            positions.append(piece.positions + position)
            if piece.picture[1]:
                pictures.append(np.arange(*piece.picture) + first + count)
                asked.append(count + len(piece.ids) - 1)
            count, position = count + len(piece.ids), position + piece.advance
        line, seen = row.slot * length, np.arange(row.tokens + 1, row.tokens + count + 1)
        lines.append(line + seen - 1)
        wanted.append(np.array(asked, np.int64) + first)
        spans.append(Span(line, seen))
        wanted_spans.append(Span(line, seen[asked]))
        first += count
    return Layout(
        np.concatenate(ids),
        np.concatenate(positions, axis=1),
        np.concatenate(lines),
        np.concatenate([np.zeros(0, np.int64), *pictures]),
        np.concatenate(wanted),
        spans,
        wanted_spans,
    )


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Bring an array to a device, without waiting until it is there."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # what is not pinned is waited for
    return tensor.to(device, non_blocking=True)


def upload(arrays: Sequence[Numbers], device: torch.device) -> list[Tensor]:
    """Bring arrays to a device, in one transfer that nobody waits for."""
    numbers = to_device(np.concatenate([array.ravel() for array in arrays]), device)
    parts = numbers.split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
