"""Layout of one batch: index arrays of the new tokens of all rows, and their upload to a device.

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
from robometer_gym.models.robometer.engine.prompt_segments import Segment

__all__ = ["BatchLayout", "Indices", "Row", "lay_out", "to_device", "upload"]

Indices = NDArray[np.int64]


class Row(NamedTuple):
    """New tokens of one slot.

    Attributes:
        slot: number of the slot.
        segments: the new tokens.
        tokens: number of tokens before them in the slot.
        position: rotary position of the first of them.
        features: (1 + levels, tokens, D), of the image in each segment that has one.
    """

    slot: int
    segments: Sequence[Segment]
    tokens: int = 0
    position: int = 0
    features: Sequence[Tensor] = ()


class BatchLayout(NamedTuple):
    """Index arrays of a batch of N tokens, row after row.

    Attributes:
        ids: (N,) token ids.
        positions: (3, N), time, height and width.
        cache_rows: (N,), the row of the cache that takes each token's key and value.
        image_tokens: (M,), the tokens that stand for images.
        readout: (R,), the readout tokens, whose hidden states the heads read: one per image.
        spans: per row, the keys that its tokens attend to.
        readout_spans: per row, the keys that its readout tokens attend to.
    """

    ids: Indices
    positions: Indices
    cache_rows: Indices
    image_tokens: Indices
    readout: Indices
    spans: list[Span]
    readout_spans: list[Span]


def lay_out(rows: Sequence[Row], length: int) -> BatchLayout:
    """Number the tokens of all rows.

    Args:
        rows: at least one.
        length: of a slot, in rows of the cache.
    """
    ids, positions, cache_rows, image_tokens, readout = [], [], [], [], []
    spans, readout_spans, first = [], [], 0
    for row in rows:
        count, position, read = 0, row.position, []
        for segment in row.segments:
            ids.append(segment.ids)
            positions.append(segment.positions + position)
            if segment.image[1]:
                image_tokens.append(np.arange(*segment.image) + first + count)
                read.append(count + len(segment.ids) - 1)
            count, position = count + len(segment.ids), position + segment.advance
        start = row.slot * length
        key_counts = np.arange(row.tokens + 1, row.tokens + count + 1)
        cache_rows.append(start + key_counts - 1)
        readout.append(np.array(read, np.int64) + first)
        spans.append(Span(start, key_counts))
        readout_spans.append(Span(start, key_counts[read]))
        first += count
    return BatchLayout(
        np.concatenate(ids),
        np.concatenate(positions, axis=1),
        np.concatenate(cache_rows),
        np.concatenate([np.zeros(0, np.int64), *image_tokens]),
        np.concatenate(readout),
        spans,
        readout_spans,
    )


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to a device without waiting for the copy."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # a copy from pageable memory would block
    return tensor.to(device, non_blocking=True)


def upload(arrays: Sequence[Indices], device: torch.device) -> list[Tensor]:
    """Copy arrays to a device in one transfer, without waiting for it."""
    joined = to_device(np.concatenate([array.ravel() for array in arrays]), device)
    pieces = joined.split([array.size for array in arrays])
    return [piece.view(array.shape) for piece, array in zip(pieces, arrays, strict=True)]
