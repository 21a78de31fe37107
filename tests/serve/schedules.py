"""Drawn schedules of episodes, as a vector environment would send them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from robometer_gym.reward_model import Clip, Frame

TASKS = ("open the drawer", "push the block", "öffne die Schublade", "fold the towel {twice}")


@dataclass(eq=False)
class _Episode:
    task: str
    size: tuple[int, int]
    stream: object
    frames: list[Frame] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)


class Schedule:
    """One client's episodes: random tasks, sizes, steps, windows, resets and batches.

    Args:
        seed: of all that is drawn.
        envs: how many environments the client has.
        sizes: (height, width) of frames to draw from.

    Attributes:
        ended: streams that ended and that the client is to release; some are left out.
    """

    def __init__(
        self, seed: int, envs: int = 3, sizes: tuple[tuple[int, int], ...] = ((24, 32), (16, 16))
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._sizes = sizes
        self._episodes = [self._start() for _ in range(envs)]
        self.ended: list[object] = []

    def __iter__(self) -> Iterator[list[Clip]]:
        """Draw batches of clips, without an end."""
        while True:
            due = self._rng.permutation(len(self._episodes))
            yield [self._advance(env) for env in due[: self._rng.integers(1, len(due) + 1)]]

    def _start(self) -> _Episode:
        rng = self._rng
        size = self._sizes[rng.integers(len(self._sizes))]
        stream = None if rng.random() < 0.1 else object()
        return _Episode(TASKS[rng.integers(len(TASKS))], size, stream)

    def _advance(self, env: int) -> Clip:
        rng = self._rng
        episode = self._episodes[env]
        if episode.frames and rng.random() < 0.08:
            if rng.random() < 0.8:  # else the client forgets to release it
                self.ended.append(episode.stream)
            episode = self._episodes[env] = self._start()
        episode.frames.append(rng.integers(0, 256, (*episode.size, 3), dtype=np.uint8))
        episode.steps.append((episode.steps[-1] if episode.steps else 0) + int(rng.integers(1, 6)))
        count = min(int(rng.integers(1, 9)), len(episode.frames))
        older = rng.choice(len(episode.frames) - 1, count - 1, replace=False)
        window = [*sorted(older.tolist()), len(episode.frames) - 1]
        return Clip(
            [episode.frames[index] for index in window],
            episode.task,
            episode.stream,
            None if episode.stream is None else [episode.steps[index] for index in window],
        )
