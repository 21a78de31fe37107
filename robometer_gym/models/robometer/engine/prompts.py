"""The conversation in pieces: token ids and positions, each made once and put together by number.

A conversation is a question, then one block per picture. Control tokens part the text before it
is tokenised, so pieces that are cut beside one are tokenised alone to what they are in the whole.
Knows nothing of weights, of pixels or of what is cached.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from robometer_gym.models.robometer.network.processor import (
    RobometerProcessor,
    picture_label,
    picture_text,
    progress_question,
    token_positions,
)

__all__ = ["Prompts", "Segment"]

_MOST_TASKS = 1024  # whose token ids are kept: some kilobytes each


class Segment(NamedTuple):
    """A piece of n tokens.

    Attributes:
        ids: (n,) int64 token ids.
        positions: (3, n) int64, time, height and width of each token, from the piece's beginning.
        advance: how many positions later the next piece begins.
        picture: (first, past the last) of the columns that stand for the picture; in a block, the
            last column is the token at which progress is read.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    advance: int
    picture: tuple[int, int]


class Prompts:
    """Makes the pieces of progress questions.

    Args:
        processor: whose tokenizer to use.

    Example:
        >>> from robometer_gym.models.robometer.demo import byte_tokenizer
        >>> from robometer_gym.models.robometer.network.images import ImageSettings
        >>> prompts = Prompts(RobometerProcessor(byte_tokenizer(), ImageSettings()))
        >>> block = prompts.block(2, (4, 4))
        >>> len(block.ids), block.advance, block.picture
        (18, 16, (12, 16))
    """

    def __init__(self, processor: RobometerProcessor) -> None:
        self._processor = processor
        self.question = lru_cache(_MOST_TASKS)(self._question)
        self.block = lru_cache(_MOST_TASKS)(self._block)
        self.extent = lru_cache(_MOST_TASKS)(self._extent)

    def _extent(self, task: str, grid: tuple[int, int], blocks: int) -> tuple[int, int]:
        """Return how many tokens and how many positions a question and its first blocks take."""
        pieces = [self.question(task), *(self.block(k + 1, grid) for k in range(blocks))]
        return sum(len(piece.ids) for piece in pieces), sum(piece.advance for piece in pieces)

    def _question(self, task: str) -> Segment:
        """All that stands before the first picture: the same for every clip of a task."""
        # The label belongs to it: no control token parts "... progress." and "Picture 1: ".
        return self._segment(progress_question(task) + picture_label(1), [])

    def _block(self, number: int, grid: tuple[int, int]) -> Segment:
        """One picture of `grid` patches, the `number`-th, from 1, and what announces it."""
        images = self._processor.images
        label = "" if number == 1 else picture_label(number)
        merged = grid[0] // images.merge_size, grid[1] // images.merge_size
        return self._segment(label + picture_text(images.tokens(grid)), [merged])

    def _segment(self, text: str, merged: list[tuple[int, int]]) -> Segment:
        ids = self._processor.token_ids(text)
        of_picture = self._processor.of_picture(ids)
        positions = token_positions(of_picture, merged)
        columns = torch.nonzero(of_picture)[:, 0].tolist()
        return Segment(
            ids=ids.numpy(),
            positions=positions.numpy(),
            advance=int(positions[0, -1]) + 1,
            picture=(columns[0], columns[-1] + 1) if columns else (0, 0),
        )
