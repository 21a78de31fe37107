"""Prompt segments: token ids and positions of a prompt's beginning and of each of its frames.

A progress prompt is its beginning, then one block per frame. Control tokens separate the text
before it is tokenized, so segments that are cut beside one have the same token ids alone as within
the whole prompt. Knows nothing of weights, of pixels or of caches.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from robometer_gym.models.robometer.network.processor import RobometerProcessor, token_positions
from robometer_gym.models.robometer.network.prompt_text import (
    image_label,
    image_text,
    progress_prompt,
)

__all__ = ["Prompts", "Segment"]

_MAX_TASKS = 1024  # tasks whose token ids are kept: some kilobytes each


class Segment(NamedTuple):
    """A piece of n tokens.

    Attributes:
        ids: (n,) int64 token ids.
        positions: (3, n) int64, time, height and width of each token, from the segment's beginning.
        advance: number of positions from this segment's beginning to that of the next.
        image: (first, past the last) of the columns that stand for the image; the last column of
            a block is its readout token.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    advance: int
    image: tuple[int, int]


class Prompts:
    """Makes the segments of progress prompts.

    Args:
        processor: provides the tokenizer.

    Example:
        >>> from robometer_gym.models.robometer.demo import byte_tokenizer
        >>> from robometer_gym.models.robometer.network.images import ImageSettings
        >>> prompts = Prompts(RobometerProcessor(byte_tokenizer(), ImageSettings()))
        >>> block = prompts.block(2, (4, 4))
        >>> len(block.ids), block.advance, block.image
        (18, 16, (12, 16))
    """

    def __init__(self, processor: RobometerProcessor) -> None:
        self._processor = processor
        self.beginning = lru_cache(_MAX_TASKS)(self._beginning)
        self.block = lru_cache(_MAX_TASKS)(self._block)
        self.extent = lru_cache(_MAX_TASKS)(self._extent)

    def _extent(self, task: str, grid: tuple[int, int], blocks: int) -> tuple[int, int]:
        """Return the number of tokens and of positions of a prompt with so many blocks."""
        segments = [self.beginning(task), *(self.block(k + 1, grid) for k in range(blocks))]
        tokens = sum(len(segment.ids) for segment in segments)
        return tokens, sum(segment.advance for segment in segments)

    def _beginning(self, task: str) -> Segment:
        """Return all that precedes the first image: the same for every clip of a task."""
        # With the first label: no control token separates "... progress." from "Picture 1: ".
        return self._segment(progress_prompt(task) + image_label(1), [])

    def _block(self, number: int, grid: tuple[int, int]) -> Segment:
        """Return the `number`-th image, from 1, of `grid` patches, and its label."""
        images = self._processor.images
        label = "" if number == 1 else image_label(number)
        merged = grid[0] // images.merge_size, grid[1] // images.merge_size
        return self._segment(label + image_text(images.tokens(grid)), [merged])

    def _segment(self, text: str, merged: list[tuple[int, int]]) -> Segment:
        ids = self._processor.token_ids(text)
        is_image = self._processor.is_image(ids)
        positions = token_positions(is_image, merged)
        columns = torch.nonzero(is_image)[:, 0].tolist()
        return Segment(
            ids=ids.numpy(),
            positions=positions.numpy(),
            advance=int(positions[0, -1]) + 1,
            image=(columns[0], columns[-1] + 1) if columns else (0, 0),
        )
