"""Traps for the fast engine: whatever was asked before, it answers as if nothing had been.

Every answer is compared with the eager path, and many with the independent reference of
`tests/reference.py` as well. Only the public surface of `RobometerRewardModel` is used; where a
test has to make room scarce or break something half-way, it says so.
"""

from __future__ import annotations

import copy
import gc
import io
import pickle
import sys
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from robometer_gym import RobometerRewardModel, RobometerRewardWrapper
from robometer_gym.engine import engine as engine_module
from robometer_gym.frames import FrameHistory, Sampling
from robometer_gym.model import RobometerConfig, RobometerModel, RobometerProcessor
from robometer_gym.model.demo import byte_tokenizer, demo_config, random_model
from robometer_gym.model.images import ImageSettings
from robometer_gym.model.processor import PHRASES
from robometer_gym.reward_model import Clip, Frame, Prediction
from tests.reference import Reference

SINGLE, DOUBLE = torch.float32, torch.float64
TOLERANCE = {SINGLE: 1e-5, DOUBLE: 1e-6}
TASKS = ("open it", "close the drawer, 'slowly'", "把红色的杯子放在桌子上")
SIZES = ((64, 64), (64, 96), (40, 100))  # the last one is resized
SAMPLINGS: tuple[Sampling, ...] = ("anchored", "linspace", "tail")
STREAMS = (0, "left", ("env", 1), 3.5, frozenset({2}))


def small_config(processor: RobometerProcessor) -> RobometerConfig:
    """The demo architecture, with a layer more on both sides: one that is neither first nor last.

    And with a second level of features that are added to the language model's layers.
    """
    demo = demo_config(processor).backbone
    text = {**demo["text_config"], "num_hidden_layers": 3}
    vision = {**demo["vision_config"], "depth": 3, "deepstack_visual_indexes": [0, 1]}
    return RobometerConfig({**demo, "text_config": text, "vision_config": vision})


@cache
def parts() -> tuple[RobometerProcessor, RobometerConfig]:
    processor = RobometerProcessor(byte_tokenizer(PHRASES), ImageSettings())
    return processor, small_config(processor)


@cache
def shared_network(dtype: torch.dtype, seed: int) -> RobometerModel:
    network = random_model(parts()[1], seed)
    network.backbone.to(dtype)
    return network


def new_model(
    engine: Any = "fast",
    dtype: torch.dtype = SINGLE,
    seed: int = 0,
    max_streams: int = 64,
    *,
    own: bool = False,
) -> RobometerRewardModel:
    """A model with nothing in its caches; with weights of its `own` if they are to be changed."""
    network = shared_network(dtype, seed)
    return RobometerRewardModel(
        copy.deepcopy(network) if own else network, *parts(), engine=engine, max_streams=max_streams
    )


@lru_cache(maxsize=10_000)
def picture(name: Hashable, step: int, size: tuple[int, int] = SIZES[0]) -> Frame:
    """Blocks of colour: two pictures differ much more than neighbouring pixels do."""
    rng = np.random.default_rng([*repr((name, step)).encode(), *size])
    small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    rows, columns = np.arange(size[0]) * 4 // size[0], np.arange(size[1]) * 4 // size[1]
    drawn: Frame = small[rows][:, columns]
    drawn.flags.writeable = False
    return drawn


def clip(
    stream: Hashable,
    steps: Sequence[int],
    task: str = TASKS[0],
    size: tuple[int, int] = SIZES[0],
    *,
    of: Hashable = None,
    named: bool = True,
) -> Clip:
    """A clip of these steps of a stream.

    The pictures are those of `of`, if it is not None. Stream and steps are told if it is `named`.
    """
    frames = [picture(stream if of is None else of, step, size) for step in steps]
    return Clip(frames, task, stream, tuple(steps)) if named else Clip(frames, task)


class Truth:
    """What full recomputation says; every window is computed once."""

    def __init__(self, dtype: torch.dtype = SINGLE, seed: int = 0) -> None:
        self.model = new_model("eager", dtype, seed)
        self._known: dict[tuple[Any, ...], Prediction] = {}

    def __call__(self, asked: Clip) -> Prediction:
        key = (asked.task, *(image.tobytes() for image in asked.images), asked.images[0].shape)
        if key not in self._known:
            (self._known[key],) = self.model.predict([Clip(asked.images, asked.task)])
        return self._known[key]


@cache
def truth(dtype: torch.dtype = SINGLE, seed: int = 0) -> Truth:
    return Truth(dtype, seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("engine") / "checkpoint"
    new_model("eager").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def references(folder) -> dict[torch.dtype, Reference]:
    single, double = Reference(folder), Reference(folder)
    double.backbone.double()
    double.tensors = {name: tensor.double() for name, tensor in double.tensors.items()}
    return {SINGLE: single, DOUBLE: double}


def assert_same(
    answer: Prediction, right: Prediction | tuple[Any, Any], tolerance: float = 1e-5
) -> None:
    progress, success = (right.progress, right.success) if isinstance(right, Prediction) else right
    for ours, its in ((answer.progress, progress), (answer.success, success)):
        assert ours.dtype == np.float32
        assert ours.flags.writeable
        np.testing.assert_allclose(ours, its, rtol=tolerance, atol=0)


def check(model: RobometerRewardModel, clips: Sequence[Clip], its: Truth | None = None) -> None:
    """Ask, and compare each answer with full recomputation."""
    answers = model.predict(clips)
    assert len(answers) == len(clips)
    its = its or truth()
    for answer, asked in zip(answers, clips, strict=True):
        assert_same(answer, its(asked))


# Schedules ---------------------------------------------------------------------------------------


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
        self.history = FrameHistory(self.most, SAMPLINGS[number % 3])
        self.step = 0
        self._see(0)

    def resize(self, size: tuple[int, int]) -> None:
        """From now on the camera has another size; a clip shows frames of one size."""
        self.size = size
        self.history.clear()
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


def scarce(budget: int | None) -> Any:
    """Leave the engine so many bytes for its caches; None: as many as it takes."""
    usual = engine_module._CPU_BUDGET
    return mock.patch.object(engine_module, "_CPU_BUDGET", usual if budget is None else budget)


ROOM = st.tuples(st.sampled_from([1, 2, 3, 64]), st.sampled_from([None, None, 2_000_000, 1]))


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


# Streams and windows -----------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("most", [1, 2, 8, 12])
def test_a_long_episode_under_every_sampling(sampling, most):
    """From some step on (the tenth picture, the first thinning) all rewards would be wrong."""
    model, history = new_model(), FrameHistory(most, sampling)
    for step in range(0, 60, 2):
        history.append(picture("long", step), step)
        frames, steps = history.window()
        check(model, [Clip(frames, TASKS[0], "long", steps)])


def test_the_tenth_picture_has_a_longer_label():
    """The label of picture 10 is one token longer: what follows would be out of place."""
    model = new_model()
    for steps in (range(8), range(9), range(10), range(11), range(2, 13), range(101)):
        check(model, [clip("many", steps)])
    check(model, [clip("many", (*range(9), 200)), clip("other", range(10))])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_clip_of_one_frame(size):
    """The reset of every episode asks about one frame."""
    model = new_model()
    for stream in ("a", "b"):
        check(model, [clip(stream, (0,), size=size)])
    check(model, [clip("a", (7,), size=size), clip("c", (0,), size=size)])


def test_one_batch_of_everything():
    """In a vector env an agent would be paid by its neighbour's length, size or task."""
    model = new_model()
    for turn in range(1, 6):
        clips = [
            clip((task, size, start), range(start, start + turn + start), task, size)
            for task in TASKS
            for size in SIZES
            for start in (0, 3)
        ]
        check(model, clips)
        check(model, clips[::-1])


def test_a_batch_is_as_good_as_clips_one_by_one():
    """A reward would depend on how many environments run beside this one."""
    together, alone = new_model(), new_model()
    for step in range(1, 12):
        clips = [
            clip(name, range(max(0, step - k), step + 1), TASKS[k % 3], SIZES[k % 2])
            for k, name in enumerate("abcdef", start=1)
        ]
        answers = together.predict(clips)
        for answer, one in zip(answers, clips, strict=True):
            assert_same(answer, alone.predict([one])[0])
            assert_same(answer, truth()(one))


def test_one_stream_twice_in_a_batch():
    """Two windows, or two instructions, of one episode would overwrite each other's cache."""
    model = new_model()
    grown, shorter, task = clip("a", (0, 1, 2, 3)), clip("a", (0, 2, 3)), TASKS[1]
    check(model, [grown, grown])
    check(model, [shorter, grown, shorter, clip("a", (0, 1, 2, 3), task), grown])
    check(model, [clip("a", (5,)), clip("a", (0, 1, 2, 3, 5)), clip("a", (0, 1, 2, 3, 5), task)])
    check(model, [clip("a", (2, 3)), clip("a", (0, 1, 2, 3, 5, 6))])
    check(model, [clip("new", (0, 1)), clip("new", (0, 2)), clip("new", (0, 1, 2))])


def test_one_stream_at_two_sizes():
    """A camera whose pictures are shown large and small: one would be scored as the other."""
    model = new_model()
    for last in range(1, 6):
        for size in SIZES:
            check(model, [clip("a", range(last), size=size)])
        check(model, [clip("a", range(last + 1), size=size) for size in SIZES])


def test_two_instructions_for_one_episode_by_turns():
    """Comparing the right with a wrong instruction, as an evaluation does, would mix them up."""
    model = new_model()
    for last in range(1, 8):
        for task in TASKS:
            check(model, [clip("a", range(last), task)])


def test_clips_that_are_not_named():
    """Without both stream and steps nothing says that a frame was seen before."""
    model = new_model()
    for turn in range(4):
        frames = [picture(("turn", turn), step) for step in range(4)]
        check(model, [Clip(frames, TASKS[0])])
        check(model, [Clip(frames, TASKS[0], stream="a")])
        check(model, [Clip(frames, TASKS[0], steps=(0, 1, 2, 3))])
        check(model, [Clip(frames, TASKS[0], None, (0, 1, 2, 3)), clip("a", (0, 1))])
        check(model, [Clip(np.stack(frames), TASKS[0]), Clip(np.stack(frames)[::-1], TASKS[0])])


def test_the_same_window_again():
    """A user who asks twice would get another answer, or an error, the second time."""
    model = new_model()
    for steps in ((0,), (0, 1, 2), (0, 2), (0, 1, 2)):
        for _ in range(3):
            check(model, [clip("a", steps)])
    copies = [frame.copy() for frame in clip("a", (0, 1, 2)).images]
    check(model, [Clip(copies, TASKS[0], "a", (0, 1, 2))])


def test_an_array_that_is_used_again_for_another_frame():
    """Renderers write every frame into one buffer: it would be taken for the frame before."""
    model, buffer = new_model(), np.zeros((64, 64, 3), np.uint8)
    for step in range(5):
        np.copyto(buffer, picture("buffer", step))
        check(model, [Clip([buffer], TASKS[0])])
        check(model, [Clip([buffer], TASKS[0], "named", (step,))])
        check(model, [Clip([buffer, buffer], TASKS[0])])


def test_frames_that_lie_in_memory_in_other_ways():
    """Views, mirrored, strided or read-only pictures would be read wrongly, or warned of."""
    model, wide = new_model(), picture("wide", 0, (128, 128))
    alpha = np.dstack([picture("alpha", 0), np.zeros((64, 64), np.uint8)])
    views = [wide[::2, ::2], wide[::-2, ::2], wide[64:, 64:], alpha[..., :3], alpha[..., 2::-1]]
    views.append(np.asfortranarray(picture("fortran", 0)))
    views.append(np.swapaxes(picture("swapped", 0), 0, 1))
    for number, view in enumerate(views):
        check(model, [Clip([view], TASKS[0]), Clip([view], TASKS[0], "views", (number,))])
    check(model, [Clip(views, TASKS[0]), Clip(views, TASKS[0], "all", range(len(views)))])


def test_numbers_of_steps_of_any_kind():
    """Integers of numpy, negative or huge ones would break a table, or wrap around."""
    model = new_model()
    kinds: list[Any] = [np.arange(3), np.array([-5, -1, 2**40]), range(-3, 2), (2**62, 2**62 + 1)]
    for steps in kinds:
        frames = [picture("kinds", number) for number in range(len(steps))]
        check(model, [Clip(frames, TASKS[0], ("kinds", str(steps)), steps)])


# Room --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_streams", [1, 2, 5])
def test_more_streams_than_there_is_room_for(max_streams):
    """With more environments than the cache was made for, some would get each other's rewards."""
    model = new_model(max_streams=max_streams)
    for step in range(1, 9):
        clips = [clip(env, range(step), TASKS[env % 2], SIZES[env % 2]) for env in range(6)]
        check(model, clips)
        check(model, clips[step % 3 :: 2])


def test_streams_that_come_back_after_a_long_time():
    """An environment that pauses while others go on would be scored on a stranger's cache."""
    model = new_model(max_streams=2)
    for step in range(1, 4):
        check(model, [clip("early", range(step)), clip("other", range(step))])
    for turn in range(40):  # long enough for an idle one to lose its place
        check(model, [clip(("later", turn // 10), range(turn % 10 + 1))])
    check(model, [clip("early", range(5)), clip("other", (0, 4)), clip(("later", 0), range(12))])


def test_streams_that_are_never_released():
    """A script that forgets `release` would fill the cache, and then get wrong numbers."""
    with scarce(2_000_000):
        model = new_model(max_streams=3)
        for episode in range(60):
            check(model, [clip(("episode", episode), (0, 3))])
            check(model, [clip(("episode", episode), (0, 3, 4)), clip(("episode", 0), (0, 9))])


def test_more_tasks_than_are_remembered():
    """Every episode may have its own instruction; an old one would come back as another."""
    model = new_model(max_streams=4)
    tasks = [f"put cup {number} on plate {'x' * (number % 7)}" for number in range(45)]
    for number, task in enumerate([*tasks, *tasks[:5], *tasks[-5:]]):
        check(model, [clip(("task", number), (0, 1), task)])
    check(model, [clip(("all", number), (0,), task) for number, task in enumerate(tasks)])


def test_windows_that_outgrow_the_room_for_one():
    """A longer clip, instruction or larger picture than those before would overrun its place."""
    model = new_model(max_streams=3)
    check(model, [clip("a", range(3)), clip("b", range(2))])
    check(model, [clip("a", range(4)), clip("b", range(3), TASKS[0] * 200)])
    check(model, [clip("a", range(5)), clip("big", range(2), size=(320, 256))])
    check(
        model, [clip("a", range(40)), clip("b", range(5)), clip("big", range(3), size=(320, 256))]
    )
    check(model, [clip("a", range(41)), clip("b", range(6))])


# Releasing ---------------------------------------------------------------------------------------


def test_a_name_may_be_used_again_once_it_was_released():
    """The next episode of an environment would be paid for the pictures of the last one."""
    model = new_model()
    for episode in range(4):
        for last in range(1, 6):
            check(model, [clip("env", range(last), of=("episode", episode)), clip("b", (0, last))])
        model.release("env")


def test_releasing_what_is_not_there():
    """The end of an episode that was never asked about must not end the training."""
    model = new_model()
    model.release("unknown")
    check(model, [clip("a", (0, 1))])
    for name in ("unknown", "a", "a", None, ("x", 1)):
        model.release(name)
    check(model, [clip("a", (0, 1), of="other pictures"), clip("b", (0,))])


def test_a_released_stream_leaves_the_others_alone():
    """One environment's reset would change what its neighbours are paid."""
    model = new_model(max_streams=3)
    for step in range(1, 10):
        clips = [clip((env, step // 3), range(step % 3, step + 1)) for env in "abcd"]
        check(model, clips)
        if step % 3 == 2:
            model.release(("abcd"[step % 4], step // 3))


def test_frames_are_not_held_after_the_release():
    """Episode after episode, memory would fill with pictures that nobody will ask about."""
    model = new_model()
    frames = [picture("held", step).copy() for step in range(3)]
    held = [weakref.ref(frame) for frame in frames]
    model.predict([Clip(frames, TASKS[0], "held", (0, 1, 2)), Clip(frames, TASKS[0])])
    model.release("held")
    del frames
    gc.collect()
    assert [one() for one in held] == [None] * 3


# Weights and copies ------------------------------------------------------------------------------


def _scale(model: RobometerRewardModel) -> None:
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.mul_(1.02)


def _scale_one(name: str) -> Callable[[RobometerRewardModel], None]:
    def change(model: RobometerRewardModel) -> None:
        with torch.no_grad():
            model.model.get_parameter(name).mul_(1.5)

    return change


def _optimize(model: RobometerRewardModel) -> None:
    batch = model.processor.encode([clip("training", (0, 1), named=False)])
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=1e-3)
    loss = model.model(batch).progress.logsumexp(-1).sum() + model.model(batch).success.sum()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def _load(*, assign: bool) -> Callable[[RobometerRewardModel], None]:
    def change(model: RobometerRewardModel) -> None:
        state = random_model(parts()[1], seed=5).state_dict()
        model.model.load_state_dict(state, assign=assign)

    return change


def _replace_head(model: RobometerRewardModel) -> None:
    model.model.progress_head = random_model(parts()[1], seed=6).progress_head.eval()


def _replace_parameter(model: RobometerRewardModel) -> None:
    value = model.model.backbone.language_model.layers[1].self_attn.v_proj
    value.weight = torch.nn.Parameter(value.weight.detach() * 1.5)


CHANGES = {
    "all in place": _scale,
    "one of the text's": _scale_one("backbone.language_model.layers.1.self_attn.v_proj.weight"),
    "a norm of the text's": _scale_one("backbone.language_model.layers.1.self_attn.k_norm.weight"),
    "the embedding": _scale_one("backbone.language_model.embed_tokens.weight"),
    "one of the vision's": _scale_one("backbone.visual.blocks.1.mlp.linear_fc1.bias"),
    "a merger's": _scale_one("backbone.visual.deepstack_merger_list.1.linear_fc2.weight"),
    "the patches'": _scale_one("backbone.visual.patch_embed.proj.bias"),
    "the positions'": _scale_one("backbone.visual.pos_embed.weight"),
    "a head's": _scale_one("success_head.4.weight"),
    "a step of training": _optimize,
    "a state loaded": _load(assign=False),
    "a state put in its place": _load(assign=True),
    "another head": _replace_head,
    "another parameter": _replace_parameter,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_weights_are_noticed(change):
    """Fine-tuning while an agent is paid: rewards would mix the old network with the new one."""
    model, eager = new_model(own=True), new_model("eager", own=True)
    clips = [clip("a", range(4)), clip("b", (0, 2), TASKS[1])]
    before = model.predict(clips)
    for each in (model, eager):
        change(each)
        change(each)
    answers, right = model.predict(clips), eager.predict(clips)
    for answer, its, old in zip(answers, right, before, strict=True):
        assert_same(answer, its)
        moved = np.abs(np.stack([its.progress - old.progress, its.success - old.success]))
        assert moved.max() > 1e-3, "the change must show to tell"
    longer = [clip("a", range(5)), clip("c", (1, 2))]
    for answer, its in zip(model.predict(longer), eager.predict(longer), strict=True):
        assert_same(answer, its)


def test_a_network_that_was_cast():
    """Half the caches would be in the old dtype."""
    model = new_model(own=True)
    check(model, [clip("a", range(4))])
    model.model.backbone.to(DOUBLE)
    check(model, [clip("a", range(5)), clip("b", range(2))], truth(DOUBLE))


def test_a_network_that_was_loaded_in_inference_mode(folder):
    """Scripts that never train are often wrapped in it as a whole."""
    with torch.inference_mode():
        model = RobometerRewardModel.from_pretrained(folder, device="cpu", dtype=SINGLE)
    for last in range(1, 4):
        check(model, [clip("a", range(last))])
    with torch.inference_mode():
        check(model, [clip("a", range(4)), clip("b", range(2))])


def test_training_works_after_predicting():
    """`train` on a model that has predicted would end in an error about inference tensors."""
    model = new_model(own=True)
    check(model, [clip("a", range(3))])
    batch = model.processor.encode([clip("training", (0, 1), named=False)])
    model.model(batch).success.sum().backward()
    gradients = [parameter.grad for parameter in model.model.backbone.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    check(model, [clip("a", range(4))])
    assert all(parameter.is_leaf for parameter in model.model.parameters())


def test_a_model_is_saved_as_it_was_loaded(folder, tmp_path):
    """A checkpoint that is saved after predicting would be larger, damaged or refused."""
    model = RobometerRewardModel.from_pretrained(folder, device="cpu", dtype=SINGLE)
    check(model, [clip("a", range(3))])
    model.save_pretrained(tmp_path / "saved")
    (before,), (after,) = folder.glob("*.safetensors"), (tmp_path / "saved").glob("*.safetensors")
    assert abs(before.stat().st_size - after.stat().st_size) < 1000
    again = RobometerRewardModel.from_pretrained(tmp_path / "saved", device="cpu", dtype=SINGLE)
    check(again, [clip("a", range(3))])


def test_pickled_while_in_use():
    """A worker process would start with the caches of another, and gigabytes of them."""
    fresh = len(pickle.dumps(new_model(own=True)))
    model = new_model(own=True)
    for last in range(1, 9):
        check(model, [clip(env, range(last), size=SIZES[1]) for env in range(8)])
    written = pickle.dumps(model)
    assert len(written) < 1.01 * fresh + 10_000
    copied = pickle.loads(written)
    check(copied, [clip(env, range(3), of=("other", env)) for env in range(8)])
    check(model, [clip(env, range(9), size=SIZES[1]) for env in range(8)])


def test_copied_while_in_use():
    """Gymnasium copies the arguments of wrappers; a copied network must be one of its own."""
    model = new_model(own=True)
    check(model, [clip("a", range(3))])
    assert copy.deepcopy(model) is model
    network = copy.deepcopy(model.model)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    check(model, [clip("a", range(4))])


def test_the_state_of_a_network_that_has_predicted():
    """A state that is kept, to come back to it, would change with the network or be incomplete."""
    model = new_model(own=True)
    check(model, [clip("a", range(3))])
    written = io.BytesIO()
    torch.save(model.model.state_dict(), written)
    written.seek(0)
    kept = torch.load(written, weights_only=True)
    for name, tensor in random_model(parts()[1], 0).state_dict().items():
        assert torch.equal(kept[name], tensor), name
    _scale(model)
    model.predict([clip("a", range(3))])
    model.model.load_state_dict(kept)
    check(model, [clip("a", range(3)), clip("a", range(4))])


def test_two_models_in_one_process():
    """Two checkpoints that are compared would answer with each other's caches."""
    one, other = new_model(seed=0), new_model(seed=1)
    for last in range(1, 10):
        clips = [clip("a", range(last)), clip("b", (0, last), TASKS[1])]
        check(one, clips, truth())
        check(other, clips, truth(seed=1))
        if last == 5:
            one.release("a")


def test_two_models_around_one_network():
    """They share the weights; what one does with them must not harm the other."""
    first = new_model()
    second = RobometerRewardModel(first.model, first.processor, first.config, max_streams=1)
    eager = RobometerRewardModel(first.model, first.processor, first.config, engine="eager")
    for last in range(1, 5):
        check(first, [clip("a", range(last)), clip("b", range(last))])
        check(second, [clip("a", range(last), of="other"), clip("b", range(last))])
        check(eager, [clip("a", range(last))])


# Poison ------------------------------------------------------------------------------------------


@pytest.fixture
def poisoned() -> RobometerRewardModel:
    """A model whose caches are full of NaN, and hold nothing that is of use.

    Its weights were NaN for a while, behind the engine's back: writing through `.data` is the one
    change that it does not notice, so that it goes on with the same caches.
    """
    model = new_model(max_streams=3, own=True)
    parameters = list(model.model.parameters())
    sound = [parameter.detach().clone() for parameter in parameters]
    clips = [clip(("poison", env), range(30), "poison", SIZES[1]) for env in range(5)]
    clips += [clip("x", range(30), "poison", SIZES[1], named=False) for _ in range(5)]
    model.predict(clips)
    for asked in clips:
        model.release(asked.stream)
    for parameter in parameters:
        parameter.data.fill_(float("nan"))
    answers = model.predict(clips)
    assert np.isnan([answer.progress for answer in answers]).all()
    for asked in clips:
        model.release(asked.stream)
    for parameter, right in zip(parameters, sound, strict=True):
        parameter.data.copy_(right)
    return model


def test_what_is_left_in_the_caches_is_never_read(poisoned):
    """0 times NaN is NaN: a masked but unused place of the cache would poison a reward."""
    for last in range(1, 10):
        clips = [clip(env, range(env, env + last), TASKS[env % 3]) for env in range(5)]
        check(poisoned, clips)
        poisoned.release(last % 5)
    check(poisoned, [clip("long", range(20), TASKS[2], SIZES[1]), clip("x", (0,), named=False)])


def test_fresh_memory_is_never_read():
    """What torch.empty returns is whatever was there: rewards would differ from run to run."""
    empty = torch.empty

    def nan(*args: Any, **keywords: Any) -> torch.Tensor:
        made: torch.Tensor = empty(*args, **keywords)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    with mock.patch.object(torch, "empty", nan):
        model = new_model(max_streams=2)
        for last in range(1, 10):
            check(model, [clip(env, range(last), TASKS[env % 2]) for env in range(4)])


def test_answers_belong_to_the_one_who_asked():
    """Whoever scales or clips an answer in place would change what is answered next."""
    model = new_model()
    asked = [clip("a", range(3)), clip("b", range(4))]
    for _ in range(3):
        for answer in model.predict(asked):
            answer.progress[:], answer.success[:] = 7.0, -7.0
        check(model, asked)
        check(model, [clip("a", range(4))])
        check(model, [clip("a", range(3)), clip("b", range(4))])


# Failures ----------------------------------------------------------------------------------------


class BrokenError(Exception):
    """Raised half-way."""


def test_a_failure_anywhere_leaves_no_trace():
    """After an interrupt, or out of memory, in the middle of a call, rewards would be wrong.

    Attention is made to fail at its first, second, third, ... call of a prediction.
    """
    attend = torch.nn.functional.scaled_dot_product_attention
    failed = 0
    for calls in range(1, 60, 2):
        error = KeyboardInterrupt if calls % 3 else BrokenError
        model = new_model(max_streams=2)
        check(model, [clip("a", range(3)), clip("b", range(2), TASKS[1])])
        asked = [
            clip("b", (0, 1, 5), TASKS[1]),
            clip("a", (0, 3, 4)),
            clip("a", (0, 1, 4), TASKS[2]),
            clip("c", range(9), TASKS[2], SIZES[1]),
            clip("x", range(2), named=False),
        ]
        left = iter(range(calls))

        def fail_later(
            *args: Any, left: Iterator[int] = left, error: Any = error, **keywords: Any
        ) -> Any:
            if next(left, None) is None:
                raise error
            return attend(*args, **keywords)

        with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", fail_later):
            try:
                model.predict(asked)
            except error:
                failed += 1
        check(model, [clip("a", (0, 1, 2, 3)), clip("c", range(3), TASKS[2], SIZES[1])])
        check(model, asked)
    assert failed > 5


class Tracer:
    """Follows which lines of the engine's bookkeeping run, and interrupts before one of them.

    Args:
        stop: how many lines may run.
    """

    FILES = ("engine.py", "slots.py", "features.py")

    def __init__(self, stop: int) -> None:
        self.stop = stop
        self.lines: list[tuple[str, int]] = []

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        file = Path(frame.f_code.co_filename)
        if file.parent.name != "engine" or file.name not in self.FILES:
            return None
        if event == "line":
            if len(self.lines) == self.stop:
                raise KeyboardInterrupt
            self.lines.append((file.name, frame.f_lineno))
        return self

    def run(self, call: Callable[[], object]) -> None:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            call()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)


def test_an_interrupt_at_any_line_leaves_no_trace():
    """Ctrl-C in a notebook, and on with the next cell: rewards would be wrong, or misaligned.

    The call that is interrupted, before each line of the bookkeeping, cuts what is kept of one
    stream, goes on with another and begins a third with another task.
    """
    model = new_model(max_streams=4)

    def ask_again(turn: int, stop: int) -> list[tuple[str, int]]:
        a, b, c = ((turn, each) for each in "abc")
        check(model, [clip(a, range(3), of="a"), clip(b, range(2), TASKS[1], of="b")])
        clips = [clip(a, (0, 1, 3), of="a"), clip(b, (0, 1, 2), TASKS[1], of="b")]
        clips.append(clip(c, (0,), TASKS[2], of="c"))
        tracer = Tracer(stop)
        tracer.run(lambda: model.predict(clips))
        if turn % 2:
            check(model, clips)
        else:
            check(model, [clip(a, range(4), of="a"), clip(b, range(4), TASKS[1], of="b")])
        check(model, [clip(a, range(5), of="a"), clip(c, (0, 1), TASKS[2], of="c")])
        for each in (a, b, c):
            model.release(each)
        return tracer.lines

    ask_again(-1, 10**6)
    lines = ask_again(0, 10**6)
    last = {line: number for number, line in enumerate(lines)}
    assert len(last) > 100
    for turn, stop in enumerate(sorted(last.values()), start=1):
        assert len(ask_again(turn, stop)) == stop


def test_a_clip_that_cannot_be_shown_leaves_the_caches_right():
    """With on_error="hold" the training goes on: the next rewards would be wrong."""
    model = new_model(max_streams=2)
    narrow = Clip([np.zeros((1, 201, 3), np.uint8)], TASKS[0], "a", (9,))
    for last in range(1, 6):
        clips = [clip("a", range(last)), clip("b", range(last), TASKS[1])]
        for place in range(3):
            with pytest.raises(ValueError, match="too long and narrow"):
                model.predict([*clips[:place], narrow, *clips[place:]])
        check(model, clips)
    model.release("a")
    check(model, [clip("a", range(3), of="other pictures")])


def test_no_clips():
    """A vector env in which nothing is due must not disturb the others."""
    model = new_model()
    assert model.predict([]) == []
    check(model, [clip("a", range(2))])
    assert model.predict([]) == []
    check(model, [clip("a", range(3))])


def test_threads_that_ask_at_once():
    """Environments in threads share the one model of the process: they would be paid each other's.

    Each thread has streams of its own.
    """
    model, wrong = new_model(max_streams=4), []
    plans = [
        [[clip((thread, env), range(last)) for env in "ab"] for last in range(1, 9)] * 3
        for thread in range(4)
    ]
    for plan in plans:  # the truth is looked up, not computed, later
        for clips in plan:
            for one in clips:
                truth()(one)
    start = threading.Barrier(len(plans))

    def ask(plan: list[list[Clip]]) -> None:
        start.wait()
        try:
            for clips in plan:
                check(model, clips)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=ask, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong, wrong[0]


# Beside predict ----------------------------------------------------------------------------------


def test_preferences_between_predictions():
    """Ranking attempts between two steps of an episode would disturb it, or be disturbed."""
    model, eager = new_model(), truth().model
    a, b = clip("a", range(3)), clip("b", (0, 4))
    for last in range(1, 5):
        check(model, [clip("a", range(last))])
        assert model.prefer(a, b) == pytest.approx(eager.prefer(a, b), rel=1e-5)
        check(model, [clip("a", range(last + 1)), a, b])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_an_environment_pays_the_same(sampling):
    """Whoever switches the engine on would train on other rewards."""
    paid: dict[str, list[float]] = {"fast": [], "eager": []}
    for engine, rewards in paid.items():
        task = "move the gripper to the red block"
        bare = gym.make(
            "robometer_gym/TabletopReach-v0",
            render_mode="rgb_array",
            task=task,
            max_episode_steps=30,
        )
        env = RobometerRewardWrapper(
            bare,
            task=task,
            reward_model=new_model(engine, max_streams=1),
            predict_every=2,
            max_frames=4,
            sampling=sampling,
            terminate_on_success=False,
        )
        env.action_space.seed(0)
        for episode in range(2):
            env.reset(seed=episode)
            ended = False
            while not ended:
                _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
                rewards.append(float(reward))
                ended = terminated or truncated
        env.close()
    np.testing.assert_allclose(paid["fast"], paid["eager"], rtol=0, atol=1e-5)
    assert len(paid["fast"]) > 20


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
