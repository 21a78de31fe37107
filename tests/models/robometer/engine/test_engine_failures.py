"""Stale memory, failures, interrupts and threads: the next predictions are right all the same."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from robometer_gym import RobometerRewardModel
from robometer_gym.models.robometer.engine.executor import Executor
from robometer_gym.models.robometer.engine.kv_slots import KVSlot
from robometer_gym.reward_model import Clip
from tests.models.robometer.engine.recomputation import (
    SIZES,
    TASKS,
    assert_same,
    check,
    clip,
    new_model,
    truth,
)


@pytest.fixture
def poisoned() -> RobometerRewardModel:
    """A model whose caches are full of NaN, and hold nothing that can be reused.

    Its weights were NaN for a while, without the engine finding out: it does not see a write
    through `.data`, so that it goes on with the same caches.
    """
    model = new_model(max_streams=3, own=True)
    parameters = list(model.model.parameters())
    sound = [parameter.detach().clone() for parameter in parameters]
    clips = [clip(("poison", env), range(30), "poison", SIZES[1]) for env in range(5)]
    clips += [clip("x", range(30), "poison", SIZES[1], named=False) for _ in range(5)]
    model.predict(clips)
    for each in clips:
        model.release(each.stream)
    for parameter in parameters:
        parameter.data.fill_(float("nan"))
    predictions = model.predict(clips)
    assert np.isnan([prediction.progress for prediction in predictions]).all()
    for each in clips:
        model.release(each.stream)
    for parameter, right in zip(parameters, sound, strict=True):
        parameter.data.copy_(right)
    return model


def test_stale_cache_rows_are_never_read(poisoned):
    """0 times NaN is NaN: a masked but unused row of the cache would spoil a reward."""
    for last in range(1, 10):
        clips = [clip(env, range(env, env + last), TASKS[env % 3]) for env in range(5)]
        check(poisoned, clips)
        poisoned.release(last % 5)
    check(poisoned, [clip("long", range(20), TASKS[2], SIZES[1]), clip("x", (0,), named=False)])


def test_fresh_memory_is_never_read():
    """torch.empty returns old memory: rewards would differ from run to run."""
    empty = torch.empty

    def nan(*args: Any, **keywords: Any) -> torch.Tensor:
        made: torch.Tensor = empty(*args, **keywords)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    with mock.patch.object(torch, "empty", nan):
        model = new_model(max_streams=2)
        for last in range(1, 10):
            check(model, [clip(env, range(last), TASKS[env % 2]) for env in range(4)])


def test_predictions_are_the_callers_own():
    """Scaling or clipping a prediction in place would change the next ones."""
    model = new_model()
    clips = [clip("a", range(3)), clip("b", range(4))]
    for _ in range(3):
        for prediction in model.predict(clips):
            prediction.progress[:], prediction.success[:] = 7.0, -7.0
        check(model, clips)
        check(model, [clip("a", range(4))])
        check(model, [clip("a", range(3)), clip("b", range(4))])


# Failures ----------------------------------------------------------------------------------------


class BrokenError(Exception):
    """Raised half-way."""


def test_a_failure_anywhere_has_no_later_effect():
    """After an interrupt, or out of memory, in the middle of a call, rewards would be wrong.

    Attention is made to fail at its first, second, third, ... call of a prediction.
    """
    attend = torch.nn.functional.scaled_dot_product_attention
    failed = 0
    for calls in range(1, 60, 2):
        error = KeyboardInterrupt if calls % 3 else BrokenError
        model = new_model(max_streams=2)
        check(model, [clip("a", range(3)), clip("b", range(2), TASKS[1])])
        clips = [
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
                model.predict(clips)
            except error:
                failed += 1
        check(model, [clip("a", (0, 1, 2, 3)), clip("c", range(3), TASKS[2], SIZES[1])])
        check(model, clips)
    assert failed > 5


class Tracer:
    """Records the lines of the engine's bookkeeping that run, and interrupts before one of them.

    Args:
        stop: number of lines that run.
    """

    FILES = ("engine.py", "kv_slots.py", "frame_features.py")

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


def test_an_interrupt_at_any_line_has_no_later_effect():
    """Ctrl-C in a notebook, and on with the next cell: rewards would be wrong, or misaligned.

    The call that is interrupted, before each line of the bookkeeping, truncates one stream,
    continues another and begins a third with another task.
    """
    model = new_model(max_streams=4)

    def interrupt(turn: int, stop: int) -> list[tuple[str, int]]:
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

    interrupt(-1, 10**6)
    lines = interrupt(0, 10**6)
    last = {line: number for number, line in enumerate(lines)}
    assert len(last) > 100
    for turn, stop in enumerate(sorted(last.values()), start=1):
        assert len(interrupt(turn, stop)) == stop


def test_interrupts_cost_no_slots():
    """After enough of them in a notebook, every further prediction would fail."""
    model, clips = new_model(max_streams=1), [clip("x", range(2), named=False)]
    check(model, clips)
    tracer = Tracer(10**6)
    tracer.run(lambda: model.predict(clips))
    for stop in range(len(tracer.lines)):
        Tracer(stop).run(lambda: model.predict(clips))
    check(model, clips)


def test_an_interrupted_release_mixes_no_frames():
    """The next episode would be scored on the frames of the last one."""
    model = new_model(max_streams=2)
    for name in "abcd":
        check(model, [clip(name, range(3))])
        interrupt = mock.patch.object(KVSlot, "truncate", side_effect=KeyboardInterrupt)
        with interrupt, pytest.raises(KeyboardInterrupt):
            model.release(name)


def test_an_episode_that_begins_after_a_failed_prediction():
    """With one name for every episode, the next would be scored on the frames of the last."""
    model = new_model()
    check(model, [clip("robot", (0, 5, 10))])
    with (
        mock.patch.object(Executor, "run", side_effect=RuntimeError("out of memory")),
        pytest.raises(RuntimeError, match="out of memory"),
    ):
        model.predict([clip("robot", (0, 6, 11))])
    check(model, [clip("robot", (0, 5), of="other frames")])


def test_a_forked_process_does_not_wait_for_its_parents_threads(no_hanging):
    """Its environments would never close, and the program would not end."""
    model = new_model()
    check(model, [clip("a", range(2))])
    engine = model._engine
    assert engine is not None
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with engine._lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with mock.patch.object(model, "_process", -1):  # as in another process
        model.release("a")
    done.set()
    thread.join()


def test_a_refused_clip_leaves_the_caches_right():
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
    check(model, [clip("a", range(3), of="other frames")])


def test_clips_of_any_iterable():
    """A generator would be used up before the prediction: no rewards, and no error."""
    model, clips = new_model(), [clip("a", range(2)), clip("b", range(3))]
    check(model, clips)
    for one, other in zip(model.predict(iter(clips)), model.predict(clips), strict=True):  # type: ignore[arg-type]
        np.testing.assert_array_equal(one.progress, other.progress)


@pytest.mark.parametrize("engine", ["fast", "eager"])
def test_a_network_in_training_predicts_without_dropout(engine):
    """A callback that predicts during fine-tuning would get noise."""
    model = new_model(engine)
    model.model.train()
    check(model, [clip("a", range(2))])
    assert all(module.training for module in model.model.modules())
    model.model.eval()


@pytest.mark.parametrize("engine", ["fast", "eager"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_users_default_dtype_changes_nothing(engine, dtype):
    """A simulation in double precision would have its rewards refused, or rounded."""
    model = new_model(engine)
    torch.set_default_dtype(dtype)
    try:
        predictions = model.predict([clip("a", range(3), size=SIZES[2])])
    finally:
        torch.set_default_dtype(torch.float32)
    (right,) = new_model("eager").predict([clip("a", range(3), size=SIZES[2])])
    assert_same(predictions[0], right)


def test_no_clips():
    """A vector env with no prediction due would disturb the others."""
    model = new_model()
    assert model.predict([]) == []
    check(model, [clip("a", range(2))])
    assert model.predict([]) == []
    check(model, [clip("a", range(3))])


def test_threads_that_predict_at_once():
    """Environments in threads share the model of the process: they would swap their rewards.

    Each thread has streams of its own.
    """
    model, wrong = new_model(max_streams=4), []
    plans = [
        [[clip((thread, env), range(last)) for env in "ab"] for last in range(1, 9)] * 3
        for thread in range(4)
    ]
    for plan in plans:  # compute the truth now, so that the threads only look it up
        for clips in plan:
            for one in clips:
                truth()(one)
    start = threading.Barrier(len(plans))

    def predict(plan: list[list[Clip]]) -> None:
        start.wait()
        try:
            for clips in plan:
                check(model, clips)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=predict, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong, wrong[0]
