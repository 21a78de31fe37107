"""Synthetic videos, and the windows that a sampling shows of them in one episode.

Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from robometer_gym.reward_model import Frame
from robometer_gym.tracking.window import FrameHistory, Sampling

__all__ = ["FULL", "MAX_FRAMES", "Cell", "Window", "blocks_to_read", "draw_frame", "episode"]

FULL = "full window"
"""Not a sampling: every query shows eight frames of a new stream."""

MAX_FRAMES = 8


class Window(NamedTuple):
    """The frames of one stream in one query."""

    frames: list[Frame]
    stream: Hashable
    steps: tuple[int, ...]


class Cell(NamedTuple):
    """One row of the table: a sampling (or `FULL`), the number of streams, and (H, W)."""

    sampling: str
    batch: int
    size: tuple[int, int]


def draw_frame(seed: int, step: int, size: tuple[int, int]) -> Frame:
    """Draw one frame of a smooth video: three discs that move over a gradient, (H, W, 3) uint8."""
    height, width = size
    rows = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(0, 1, width, dtype=np.float32)
    shades = [rows + 0 * columns, columns + 0 * rows, 0.5 * (rows + columns)]
    image = np.stack(shades, axis=-1) * 160
    for disc, phase in enumerate(np.random.default_rng(seed).uniform(0, 6, 3)):
        row = 0.5 + 0.35 * np.sin(phase + 0.11 * (disc + 1) * step)
        column = 0.5 + 0.35 * np.cos(1.3 * phase + 0.07 * (disc + 1) * step)
        near = (rows - row) ** 2 + (columns - column) ** 2 < 0.012
        image[near] = np.roll([230.0, 60.0, 20.0], disc)
    drawn: NDArray[np.uint8] = image.astype(np.uint8)
    return drawn


def episode(cell: Cell, queries: int, name: Hashable) -> Iterator[list[Window]]:
    """Yield, query after query, the windows of all streams of an episode.

    Args:
        cell: sampling, batch and size.
        queries: number of queries.
        name: of the episode; streams of different episodes are different streams.
    """
    if cell.sampling == FULL:
        for query in range(queries):
            yield [_first_seen(cell, (name, query, env)) for env in range(cell.batch)]
        return
    histories = [FrameHistory(MAX_FRAMES, cast(Sampling, cell.sampling)) for _ in range(cell.batch)]
    for step in range(queries):
        windows = []
        for env, history in enumerate(histories):
            history.append(draw_frame(env, step, cell.size), step)
            frames, steps = history.window()
            windows.append(Window(frames, (cell.sampling, name, env), steps))
        yield windows


def _first_seen(cell: Cell, stream: tuple[Any, ...]) -> Window:
    frames = [draw_frame(stream[-1], step, cell.size) for step in range(MAX_FRAMES)]
    return Window(frames, (FULL, *stream), tuple(range(MAX_FRAMES)))


def blocks_to_read(before: tuple[int, ...], now: tuple[int, ...]) -> int:
    """Return the number of frames that the language model has to read: all after the common start.

    Example:
        >>> blocks_to_read((0, 2, 4, 6, 7), (0, 2, 4, 6, 8))
        1
    """
    common = 0
    for one, other in zip(before, now, strict=False):
        if one != other:
            break
        common += 1
    return len(now) - common
