"""Whatever was asked before, the engine answers as if nothing had been: random schedules.

Every answer is compared with the eager path, and some with the independent reference of
`tests/reference.py` as well.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from robometer_gym import RobometerRewardModel
from robometer_gym.reward_model import Clip, Prediction
from robometer_gym.tracking.window import FrameHistory
from tests.models.robometer.engine.recomputation import (
    DOUBLE,
    SAMPLINGS,
    SINGLE,
    SIZES,
    STREAMS,
    TASKS,
    TOLERANCE,
    Truth,
    assert_same,
    clip,
    new_model,
    parts,
    picture,
    scarce,
    truth,
)
from tests.models.robometer.reference import Reference


class Op(NamedTuple):
    """One thing that happens to one stream.

    Attributes:
        kind: "grow", "again", "other window", "other task", "nameless" put a clip into the batch;
            "go" asks about it; the others happen between two calls.
        stream: which, an index.
        number: how far, how many, which: read as the kind needs it.
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
    """Plays a schedule on a model, and compares every answer with full recomputation."""

    def __init__(self, model: RobometerRewardModel, its: Truth, tolerance: float) -> None:
        self.model, self.truth, self.tolerance = model, its, tolerance
        self.lives = [_Life(index) for index in range(len(STREAMS))]
        self.batch: list[Clip] = []
        self.last: list[tuple[Clip, Prediction]] = []
        self.names = iter(range(1000))

    def play(self, ops: Sequence[Op]) -> None:
        for op in ops:
            life = self.lives[op.stream]
            if op.kind == "go":
                self.go()
            elif op.kind == "release":
                self.model.release(life.name if op.number % 2 else ("unknown", op.number))
                if op.number % 2:
                    # The name may be used again for other pictures.
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
        self.go()

    def go(self) -> None:
        answers = self.model.predict(self.batch)
        assert len(answers) == len(self.batch)
        for answer, asked in zip(answers, self.batch, strict=True):
            assert_same(answer, self.truth(asked), self.tolerance)
        self.last = list(zip(self.batch, answers, strict=True)) or self.last
        self.batch = []

    def fail(self, life: _Life) -> None:
        """Ask about the batch and one clip more, which no model can be shown."""
        narrow = Clip([np.zeros((1, 201, 3), np.uint8)], life.task, life.name, [life.step + 100])
        with pytest.raises(ValueError, match="too long and narrow"):
            self.model.predict([*self.batch, narrow, life.clip("again", 0)])


class _Life:
    """A stream, as the wrapper would feed it."""

    def __init__(self, index: int) -> None:
        self.task, self.size, self.step = TASKS[0], SIZES[0], 0
        self.begin(STREAMS[index], 3 * index)

    def begin(self, name: Hashable, number: int, content: Hashable = None) -> None:
        self.name: Hashable = name
        self.content: Hashable = name if content is None else content
        self.most = (8, 3, 12, 1)[number // 3 % 4]
        self.sampling = SAMPLINGS[number % 3]
        self.history = FrameHistory(self.most, self.sampling)
        self.step = 0
        self._see(0)

    def resize(self, size: tuple[int, int]) -> None:
        """From now on the camera has another size; a clip shows frames of one size."""
        self.size = size
        self.history = FrameHistory(self.most, self.sampling)
        self._see(1)

    def _see(self, steps: int) -> None:
        self.step += steps
        frame = picture((self.content, "content"), self.step, self.size)
        self.history.append(frame, self.step)

    def clip(self, kind: str, number: int) -> Clip:
        task = self.task
        if kind == "grow":
            for _ in range(1 + number // 3):
                self._see(1 + number % 3)
        frames, steps = self.history.window()
        if kind == "other window":  # some of the frames that are there, perhaps not the newest
            chosen = [i for i in range(len(frames)) if (number + 1) >> (i % 4) & 1] or [0]
            frames, steps = [frames[i] for i in chosen], tuple(steps[i] for i in chosen)
        elif kind == "other task":
            task = TASKS[number % len(TASKS)]
        elif kind == "nameless":  # what is half named is not named
            named = ((None, None), (self.name, None), (None, steps))[number % 3]
            return Clip([frame.copy() for frame in frames], task, *named)
        return Clip([frame.copy() for frame in frames], task, self.name, steps)


ROOM = st.tuples(st.sampled_from([1, 2, 3, 64]), st.sampled_from([None, None, 2_000_000, 1]))


@pytest.fixture(scope="module")
def references(tmp_path_factory) -> dict[torch.dtype, Reference]:
    folder = tmp_path_factory.mktemp("engine") / "checkpoint"
    new_model("eager").save_pretrained(folder)
    single, double = Reference(folder), Reference(folder)
    double.backbone.double()
    double.tensors = {name: tensor.double() for name, tensor in double.tensors.items()}
    return {SINGLE: single, DOUBLE: double}


@given(ops=OPS, room=ROOM)
@settings(max_examples=200)
def test_any_schedule_gets_the_numbers_of_full_recomputation(ops, room):
    """An agent would be paid by what another episode, task or camera left in a cache."""
    with scarce(room[1]):
        model = new_model(max_streams=room[0])
        Player(model, truth(), TOLERANCE[SINGLE]).play(ops)


@given(ops=OPS, room=ROOM)
@settings(max_examples=50)
def test_any_schedule_gets_them_to_rounding_in_double_precision(ops, room):
    """A small mistake, a position off by one, would hide behind the rounding of float32."""
    with scarce(room[1]):
        model = new_model(dtype=DOUBLE, max_streams=room[0])
        Player(model, truth(DOUBLE), TOLERANCE[DOUBLE]).play(ops)


@given(ops=OPS)
@settings(max_examples=25)
def test_any_schedule_ends_with_the_published_numbers(references, ops):
    """The eager path of this package could be wrong in the same way as the engine."""
    player = Player(new_model(), truth(), TOLERANCE[SINGLE])
    player.play(ops)
    for asked, answer in player.last[-2:]:
        assert_same(answer, references[SINGLE].predict(asked))


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
def test_a_growing_stream_gets_the_published_numbers(references, dtype):
    """The everyday case, compared with nothing of this package, to the promised precision."""
    model = new_model(dtype=dtype)
    for steps in ((0,), (0, 2), (0, 2, 5, 6), (0, 2, 5, 9), tuple(range(0, 24, 2))):
        asked = clip("episode", steps, TASKS[1], SIZES[2])
        (answer,) = model.predict([asked])
        assert_same(answer, references[dtype].predict(asked), TOLERANCE[dtype])


def test_these_comparisons_would_notice():
    """A comparison that cannot fail proves nothing: any one wrong thing must show."""
    right = truth()(clip("a", (0, 1, 2, 3)))
    wrong = [
        clip("a", (0, 1, 2, 3), TASKS[1]),
        clip("b", (0, 1, 2, 3)),
        clip("a", (0, 1, 2, 4)),
        clip("a", (0, 2, 1, 3), named=False),
        clip("a", (4, 1, 2, 3), named=False),
        clip("a", (1, 2, 3, 4)),
    ]
    for each in wrong:
        other = truth()(each)
        assert np.abs(other.progress[-1] - right.progress[-1]) > 1e-4
        assert np.abs(other.success[-1] - right.success[-1]) > 1e-4


def errors(dtype: torch.dtype, engine: str, clips: list[list[Clip]]) -> NDArray[np.float64]:
    model = new_model(engine, dtype)
    return np.concatenate(
        [
            answer.progress.astype(np.float64) - truth()(asked).progress
            for batch in clips
            for asked, answer in zip(batch, model.predict(batch), strict=True)
        ]
    )


def test_in_bfloat16_the_error_is_no_larger_than_without_the_engine():
    """Differences of rewards are small: the engine must not add to what bfloat16 rounds away."""
    clips = [[clip(env, range(last), TASKS[env % 3]) for env in range(6)] for last in range(1, 9)]
    fast, eager = (np.abs(errors(torch.bfloat16, name, clips)).mean() for name in ("fast", "eager"))
    assert 0 < fast <= 1.2 * eager


def test_hidden_states_whose_squares_float16_cannot_hold():
    """Qwen's reach thousands: taken for 0, every frame of every episode would be paid the same."""
    model = new_model(dtype=torch.float16, own=True)
    with torch.no_grad():
        model.model.backbone.get_input_embeddings().weight.mul_(3000)
    eager = RobometerRewardModel(model.model, *parts(), engine="eager")
    asked = [clip("a", range(4))]
    (fast,), (right,) = model.predict(asked), eager.predict(asked)
    np.testing.assert_allclose(fast.progress, right.progress, rtol=0, atol=1e-3)
    np.testing.assert_allclose(fast.success, right.success, rtol=0, atol=1e-3)
