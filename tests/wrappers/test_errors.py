"""RobometerRewardWrapper: a reward model that fails, under each on_error."""

import logging
import math
from typing import Any

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from hypothesis import given
from hypothesis import strategies as st

from robometer_gym import RobometerRewardWrapper
from robometer_gym.reward_model import Prediction, RewardModelError
from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from tests.wrappers.rollouts import exact, play, rewards, wrap

BROKEN: dict[str, Any] = {
    "exception": TimeoutError("no response"),
    "nan": math.nan,
    "outside": 1.5,
}


class Breaks(ScriptedRewardModel):
    """Predicts as scripted, but returns one value too many if the script has 2.0."""

    def predict(self, clips):
        return [
            Prediction(np.zeros(len(clip) + 1, np.float32), scripted.success)
            if scripted.progress[0] == 2.0
            else scripted
            for clip, scripted in zip(clips, super().predict(clips), strict=True)
        ]


BROKEN["shape"] = 2.0


bad = pytest.mark.parametrize("broken", BROKEN)


def breaking(broken: str, values: list[float | None], **settings: Any) -> RobometerRewardWrapper:
    """An env of 5 steps, predicted at 0, 2, 4 and 5; the model fails at None in `values`."""
    script = [BROKEN[broken] if a is None else a for a in values]
    return wrap(CountingEnv(lengths=[5]), Breaks(script), predict_every=2, **settings)


def error_of(broken: str) -> Any:
    """The error that a broken prediction must raise."""
    if broken == "exception":
        return pytest.raises(TimeoutError, match=r"^no response$")
    message = "shape" if broken == "shape" else "expected finite values"
    return pytest.raises(RewardModelError, match=f"reward_model returned progress .*{message}")


@bad
def test_raise_at_reset(broken):
    """Training would go on without a baseline."""
    env = breaking(broken, [None, 0.25, 0.5, 0.75, 0.5])
    with error_of(broken):
        env.reset()
    with pytest.raises(ResetNeeded, match="No episode is running"):
        env.step(0)
    env.reset()
    assert rewards(env) == [0.0, 0.25, 0.0, 0.25, -0.25]


@bad
def test_raise_at_a_due_step_and_go_on(broken):
    """A user who catches the error would get a jump of reward, or none any more."""
    env = breaking(broken, [0.25, None, 0.5, 0.75])
    env.reset()
    env.step(0)
    with error_of(broken):
        env.step(0)
    assert rewards(env) == [0.0, 0.25, 0.25]


@bad
def test_raise_at_the_last_step(broken):
    """The environment has ended: stepping it again is undefined, a reset is needed."""
    env = breaking(broken, [0.25, 0.5, 0.75, None, 0.125, 0.25, 0.5, 0.25])
    env.reset()
    play(env, 4)
    with error_of(broken):
        env.step(0)
    with pytest.raises(ResetNeeded, match="No episode is running"):
        env.step(0)
    env.reset()
    assert rewards(env) == [0.0, 0.125, 0.0, 0.25, -0.25]


def test_raise_counts_nothing():
    """An info that is always 0 would promise a count that does not exist."""
    env = breaking("nan", [0.25, 0.5])
    _, info = env.reset()
    assert "robometer/errors" not in info


# Script, rewards of steps 1, ..., 5 under `hold`, and progress infos of reset, 1, ..., 5.
NAN = math.nan


HOLDS = [
    ([None, 0.25, 0.5, 0.75], [0, 0, 0, 0.25, 0.25], [NAN, NAN, 0.25, 0.25, 0.5, 0.75]),
    ([0.25, None, 0.5, 0.75], [0, 0, 0, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25, 0.5, 0.75]),
    ([0.25, 0.5, 0.75, None], [0, 0.25, 0, 0.25, 0], [0.25, 0.25, 0.5, 0.5, 0.75, 0.75]),
    ([None, None, 0.5, 0.75], [0, 0, 0, 0, 0.25], [NAN, NAN, NAN, NAN, 0.5, 0.75]),
    ([None, None, None, None], [0, 0, 0, 0, 0], [NAN] * 6),
]


PREDICTED = [0, 2, 4, 5]


def unknown(values: list[float | None]) -> list[bool]:
    """For steps 1 to 5: whether the model's part is not known.

    So it is where the model fails, and until two predictions have been made: there is no change
    without something to compare with.
    """
    failed = [step for step, a in zip(PREDICTED, values, strict=True) if a is None]
    first = min((s for s, a in zip(PREDICTED, values, strict=True) if a is not None), default=9)
    return [step in failed or step <= first for step in range(1, 6)]


@bad
@pytest.mark.parametrize(("values", "earned", "progress"), HOLDS)
def test_hold_gives_no_reward_and_keeps_the_last_progress(broken, values, earned, progress, caplog):
    """A failure would count as lost progress, or stay silent."""
    env = breaking(broken, values, on_error="hold")
    with caplog.at_level(logging.WARNING, "robometer_gym"):
        _, info = env.reset()
        results = play(env)
    assert [step[0] for step in results] == earned
    infos = [info, *(step[3] for step in results)]
    np.testing.assert_array_equal([i["robometer/progress"] for i in infos], progress)
    known = dict(zip(PREDICTED, values, strict=True))
    assert [i["robometer/predicted"] for i in infos] == [
        known.get(step) is not None for step in range(6)
    ]
    errors = [sum(a is None for s, a in known.items() if s <= step) for step in range(6)]
    assert [i["robometer/errors"] for i in infos] == errors
    warned = [record for record in caplog.records if "on_error='hold'" in record.message]
    assert len(warned) == errors[-1]
    assert [step[1:3] for step in results] == [(False, False)] * 4 + [(True, False)]


@pytest.mark.parametrize(("values", "earned", "progress"), HOLDS)
def test_env_gives_the_environments_reward_if_the_models_is_unknown(values, earned, progress):
    """The user's own fallback would not be used."""
    env = breaking("exception", values, on_error="env")
    _, info = env.reset()
    results = play(env)
    expected = [
        float(step) if missing else reward
        for step, missing, reward in zip(range(1, 6), unknown(values), earned, strict=True)
    ]
    assert [step[0] for step in results] == expected
    np.testing.assert_array_equal(
        [i["robometer/progress"] for i in (info, *(step[3] for step in results))], progress
    )
    assert results[-1][3]["robometer/errors"] == values.count(None)


@pytest.mark.parametrize("on_error", ["hold", "env"])
@pytest.mark.parametrize(("values", "earned", "progress"), HOLDS)
def test_shape_always_adds_the_environments_reward_once(on_error, values, earned, progress):
    """A failure of the model would cost the reward that the environment itself gives."""
    env = breaking("exception", values, on_error=on_error, mode="shape")
    env.reset()
    assert rewards(env) == [k + p for k, p in zip(range(1, 6), earned, strict=True)]


@pytest.mark.parametrize("signal", ["delta", "potential", "progress"])
def test_hold_gives_no_reward_at_a_failed_step_whatever_the_signal(signal):
    """A "hold" would give a reward that no prediction stands behind."""
    env = breaking("exception", [0.25, None, 0.5, 0.75], on_error="hold", signal=signal)
    env.reset()
    assert rewards(env, 2)[-1] == 0.0


def test_errors_are_counted_over_all_episodes():
    """A model that fails now and then would look healthy in each episode."""
    env = breaking("nan", [None, 0.5, 0.5, 0.5, 0.25, None, None, 0.5], on_error="hold")
    env.reset()
    play(env)
    _, info = env.reset()
    assert info["robometer/errors"] == 1
    assert [step[3]["robometer/errors"] for step in play(env)] == [1, 2, 2, 3, 3]


def test_a_failed_prediction_does_not_vote():
    """A failure between two votes would count as a third, or wipe them out."""
    model = ScriptedRewardModel(
        progress=[0.5, 0.5, TimeoutError("no response"), 0.5], success=[0.0, 0.9, 0.9, 0.9]
    )
    env = wrap(CountingEnv(lengths=[9]), model, predict_every=1, on_error="hold")
    env.reset()
    assert [step[1] for step in play(env)] == [False, False, True]


@given(
    every=st.integers(1, 4),
    length=st.integers(1, 20),
    data=st.data(),
)
def test_deltas_telescope_around_failures(every, length, data):
    """A failure would lose progress for good, or count it twice."""
    num_predictions = 1 + sum(s % every == 0 or s == length for s in range(1, length + 1))
    values = data.draw(
        st.lists(st.one_of(st.none(), exact), min_size=num_predictions, max_size=num_predictions)
    )
    script = [TimeoutError() if a is None else a for a in values]
    logging.disable()
    try:
        env = wrap(
            CountingEnv(lengths=[length]),
            ScriptedRewardModel(script),
            predict_every=every,
            on_error="hold",
        )
        env.reset()
        earned = rewards(env)
    finally:
        logging.disable(logging.NOTSET)
    known = [a for a in values if a is not None] or [0.0]
    assert sum(earned) == known[-1] - known[0]


def test_a_model_that_cannot_be_loaded_is_an_error_whatever_on_error_is(monkeypatch):
    """A misspelt name would be "held": hours of training on rewards of 0."""

    def load(name):
        raise FileNotFoundError(f"{name} is not there")

    monkeypatch.setattr("robometer_gym.models.loading._load", load)
    for on_error in ("raise", "hold", "env"):
        env = wrap(CountingEnv(), "org/nmae", on_error=on_error)
        with pytest.raises(FileNotFoundError, match="org/nmae is not there"):
            env.reset()


def test_a_model_that_cannot_release_costs_no_reward(caplog):
    """The last reward of an episode would be lost, and the environment not be closed."""

    class Stuck(ScriptedRewardModel):
        def release(self, stream):
            raise OSError("the server is gone")

    closed = []

    class Closes(CountingEnv):
        def close(self):
            closed.append(True)

    env = wrap(Closes(lengths=[1]), Stuck([0.25, 0.5]))
    env.reset()
    assert rewards(env) == [0.25]
    env.close()
    assert closed
    assert "could not release" in caplog.text
