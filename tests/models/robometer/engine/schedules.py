"""Random schedules of clips, episodes and failures, played on a model and checked."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import strategies as st

from robometer_gym import RobometerRewardModel
from robometer_gym.reward_model import Clip, Prediction
from robometer_gym.tracking.window import FrameHistory
from tests.models.robometer.engine.recomputation import (
    SAMPLINGS,
    SIZES,
    TASKS,
    Truth,
    assert_same,
    draw_frame,
)

STREAMS = (0, "left", ("env", 1), 3.5, frozenset({2}))


class Op(NamedTuple):
    """One event of one stream.

    Attributes:
        kind: "grow", "again", "other window", "other task", "nameless" put a clip into the batch;
            "go" predicts it; the others happen between two calls.
        stream: index of the stream.
        number: an amount or an index, depending on the kind.
    """

    kind: str
    stream: int
    number: int


KINDS = (
    *["grow"] * 6,
    *["go"] * 4,
    "again",
    "other window",
    "other task",
    "nameless",
    "new episode",
    "new episode, not released",
    "task",
    "size",
    "release",
    "failure",
)
OPS = st.lists(
    st.builds(Op, st.sampled_from(KINDS), st.integers(0, 4), st.integers(0, 11)),
    min_size=4,
    max_size=24,
)


class Player:
    """Plays a schedule on a model, and compares every prediction with full recomputation."""

    def __init__(
        self, model: RobometerRewardModel, recompute: Truth, tolerance: float = 1e-5
    ) -> None:
        self.model, self.recompute, self.tolerance = model, recompute, tolerance
        self.lives = [_Life(index) for index in range(len(STREAMS))]
        self.batch: list[Clip] = []
        self.last: list[tuple[Clip, Prediction]] = []
        self.names = iter(range(1000))
        self.played: set[Hashable] = set(STREAMS)

    def play(self, ops: Sequence[Op]) -> None:
        for op in ops:
            life = self.lives[op.stream]
            if op.kind == "go":
                self.go()
            elif op.kind == "release":
                self.model.release(life.name if op.number % 2 else ("unknown", op.number))
                if op.number % 2:
                    # The name may be used again for other frames.
                    life.begin(life.name, op.number, content=next(self.names))
            elif op.kind == "new episode":
                self.go()
                self.model.release(life.name)
                life.begin((STREAMS[op.stream], next(self.names)), op.number)
            elif op.kind == "new episode, not released":
                life.begin((STREAMS[op.stream], next(self.names)), op.number)
            elif op.kind == "task":
                life.task = TASKS[op.number % len(TASKS)]
            elif op.kind == "size":
                life.resize(SIZES[op.number % len(SIZES)])
            elif op.kind == "failure":
                self.fail(life)
            else:
                self.batch.append(life.clip(op.kind, op.number))
            self.played.add(life.name)
        self.go()
        for name in self.played:  # another schedule may give their names to other frames
            self.model.release(name)

    def go(self) -> None:
        predictions = self.model.predict(self.batch)
        assert len(predictions) == len(self.batch)
        for prediction, clip in zip(predictions, self.batch, strict=True):
            assert_same(prediction, self.recompute(clip), self.tolerance)
        self.last = list(zip(self.batch, predictions, strict=True)) or self.last
        self.batch = []

    def fail(self, life: _Life) -> None:
        """Predict the batch and one more clip, which no model accepts."""
        narrow = Clip([np.zeros((1, 201, 3), np.uint8)], life.task, life.name, [life.step + 100])
        with pytest.raises(ValueError, match="too long and narrow"):
            self.model.predict([*self.batch, narrow, life.clip("again", 0)])


class _Life:
    """A stream, as the wrapper produces it."""

    def __init__(self, index: int) -> None:
        self.task, self.size, self.step = TASKS[0], SIZES[0], 0
        self.begin(STREAMS[index], 3 * index)

    def begin(self, name: Hashable, number: int, content: Hashable = None) -> None:
        self.name: Hashable = name
        self.content: Hashable = name if content is None else content
        self.max_frames = (8, 3, 12, 1)[number // 3 % 4]
        self.sampling = SAMPLINGS[number % 3]
        self.history = FrameHistory(self.max_frames, self.sampling)
        self.step = 0
        self._advance(0)

    def resize(self, size: tuple[int, int]) -> None:
        """Change the camera's size from now on; a clip has frames of one size."""
        self.size = size
        self.history = FrameHistory(self.max_frames, self.sampling)
        self._advance(1)

    def _advance(self, steps: int) -> None:
        self.step += steps
        frame = draw_frame((self.content, "content"), self.step, self.size)
        self.history.append(frame, self.step)

    def clip(self, kind: str, number: int) -> Clip:
        task = self.task
        if kind == "grow":
            for _ in range(1 + number // 3):
                self._advance(1 + number % 3)
        frames, steps = self.history.window()
        if kind == "other window":  # some of the frames, perhaps not the newest
            chosen = [i for i in range(len(frames)) if (number + 1) >> (i % 4) & 1] or [0]
            frames, steps = [frames[i] for i in chosen], tuple(steps[i] for i in chosen)
        elif kind == "other task":
            task = TASKS[number % len(TASKS)]
        elif kind == "nameless":  # a clip needs both a stream and steps to be cached
            named = ((None, None), (self.name, None), (None, steps))[number % 3]
            return Clip([frame.copy() for frame in frames], task, *named)
        return Clip([frame.copy() for frame in frames], task, self.name, steps)
