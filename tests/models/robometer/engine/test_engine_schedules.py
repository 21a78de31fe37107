"""Random schedules: cached and full recomputation give the same numbers.

Every prediction is compared with the eager path, and some with the independent reference of
`tests/models/robometer/reference.py` as well.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from robometer_gym.reward_model import Clip
from tests.models.robometer.engine.recomputation import (
    DOUBLE,
    SINGLE,
    SIZES,
    TASKS,
    TOLERANCE,
    assert_same,
    clip,
    eager_twin,
    limit_budget,
    new_model,
    truth,
)
from tests.models.robometer.engine.schedules import OPS, Player
from tests.models.robometer.reference import Reference

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
    """Rewards would depend on cached frames of another episode, task or camera."""
    with limit_budget(room[1]):
        model = new_model(max_streams=room[0])
        Player(model, truth(), TOLERANCE[SINGLE]).play(ops)


@given(ops=OPS, room=ROOM)
@settings(max_examples=50)
def test_any_schedule_gets_them_in_double_precision(ops, room):
    """A small mistake, a position off by one, would hide behind the rounding of float32."""
    with limit_budget(room[1]):
        model = new_model(dtype=DOUBLE, max_streams=room[0])
        Player(model, truth(DOUBLE), TOLERANCE[DOUBLE]).play(ops)


@given(ops=OPS)
@settings(max_examples=25)
def test_any_schedule_ends_with_the_published_numbers(references, ops):
    """The eager path of this package could be wrong in the same way as the engine."""
    player = Player(new_model(), truth(), TOLERANCE[SINGLE])
    player.play(ops)
    for last, prediction in player.last[-2:]:
        assert_same(prediction, references[SINGLE].predict(last))


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
def test_a_growing_stream_gets_the_published_numbers(references, dtype):
    """The most common case would differ from the published code; compared with no own code."""
    model = new_model(dtype=dtype)
    for steps in ((0,), (0, 2), (0, 2, 5, 6), (0, 2, 5, 9), tuple(range(0, 24, 2))):
        grown = clip("episode", steps, TASKS[1], SIZES[2])
        (prediction,) = model.predict([grown])
        assert_same(prediction, references[dtype].predict(grown), TOLERANCE[dtype])


def test_these_comparisons_find_mistakes():
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
            prediction.progress.astype(np.float64) - truth()(one).progress
            for batch in clips
            for one, prediction in zip(batch, model.predict(batch), strict=True)
        ]
    )


def test_in_bfloat16_the_error_is_no_larger_than_without_the_engine():
    """Differences of rewards are small: the engine must not add to the rounding of bfloat16."""
    clips = [[clip(env, range(last), TASKS[env % 3]) for env in range(6)] for last in range(1, 9)]
    fast, eager = (np.abs(errors(torch.bfloat16, name, clips)).mean() for name in ("fast", "eager"))
    assert 0 < fast <= 1.2 * eager


def test_hidden_states_whose_squares_float16_cannot_hold():
    """Qwen's reach thousands: taken for 0, every frame of every episode would score the same."""
    model = new_model(dtype=torch.float16, own=True)
    with torch.no_grad():
        model.model.backbone.get_input_embeddings().weight.mul_(3000)
    clips = [clip("a", range(4))]
    (fast,), (right,) = model.predict(clips), eager_twin(model).predict(clips)
    np.testing.assert_allclose(fast.progress, right.progress, rtol=0, atol=1e-3)
    np.testing.assert_allclose(fast.success, right.success, rtol=0, atol=1e-3)
