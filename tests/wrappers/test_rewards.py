"""RobometerRewardWrapper: the reward of each signal and mode, also against formulas."""

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robometer_gym.reward_model import Prediction
from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from robometer_gym.tracking.settings import RewardSettings
from tests.wrappers.rollouts import exact, play, rewards, wrap


@given(
    every=st.integers(1, 7),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    ends=st.sampled_from(["terminated", "truncated"]),
    data=st.data(),
)
def test_deltas_telescope(every, lengths, ends, data):
    """The number of predictions would change the return of an episode."""
    due = [1 + sum(s % every == 0 or s == n for s in range(1, n + 1)) for n in lengths]
    scripts = [data.draw(st.lists(exact, min_size=n, max_size=n)) for n in due]
    model = ScriptedRewardModel(progress=[p for episode in scripts for p in episode])
    env = wrap(CountingEnv(lengths=lengths, ends=[ends]), model, predict_every=every)
    for length, episode in zip(lengths, scripts, strict=True):
        env.reset()
        earned = rewards(env)
        assert len(earned) == length
        assert sum(earned) == episode[-1] - episode[0]
    assert len(model.clips) == sum(due)


def test_the_reward_is_that_of_the_newest_frame():
    """A model predicts progress per frame; an old frame's would reward the past."""

    class Rising:
        def predict(self, clips):
            ramps = [np.arange(1, len(clip) + 1) / 8 for clip in clips]
            return [Prediction(r.astype(np.float32), (r / 2).astype(np.float32)) for r in ramps]

    env = wrap(CountingEnv(lengths=[3]), Rising(), predict_every=1)
    _, info = env.reset()
    infos = [info]
    for reward, _, _, info in play(env):
        assert reward == 0.125
        infos.append(info)
    assert [i["robometer/progress"] for i in infos] == [0.125, 0.25, 0.375, 0.5]
    assert [i["robometer/success_prob"] for i in infos] == [0.0625, 0.125, 0.1875, 0.25]


def test_lost_progress_is_a_negative_reward():
    """With a clamp at 0 an agent earns by undoing and redoing."""
    model = ScriptedRewardModel(progress=[0.5, 0.25, 0.75, 0.0, 1.0])
    env = wrap(CountingEnv(lengths=[4]), model, predict_every=1)
    env.reset()
    assert rewards(env) == [-0.25, 0.5, -0.75, 1.0]


def test_a_high_baseline_is_no_gift():
    """The first step's reward would be the progress that was there before it."""
    model = ScriptedRewardModel(progress=[0.75, 0.75, 0.75])
    env = wrap(CountingEnv(lengths=[2]), model, predict_every=1)
    env.reset()
    assert rewards(env) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("signal", "ends", "expected"),
    [
        ("delta", "terminated", [0.0, 0.25, 0.0, 0.25, -0.5]),
        ("delta", "truncated", [0.0, 0.25, 0.0, 0.25, -0.5]),
        # gamma = 0.5: before 0.25 .25 .5 .5 .75, after .25 .5 .5 .75 .25
        ("potential", "terminated", [-0.125, 0.0, -0.25, -0.125, -0.75]),
        ("potential", "truncated", [-0.125, 0.0, -0.25, -0.125, -0.625]),
        ("progress", "terminated", [0.25, 0.5, 0.5, 0.75, 0.25]),
        ("progress", "truncated", [0.25, 0.5, 0.5, 0.75, 0.25]),
    ],
)
def test_rewards_of_each_signal(signal, ends, expected):
    """The agent would learn another reward than the chosen one."""
    model = ScriptedRewardModel(progress=[0.25, 0.5, 0.75, 0.25] * 3)
    bare = CountingEnv(lengths=[5], ends=[ends])
    env = wrap(bare, model, predict_every=2, signal=signal, gamma=0.5)
    env.reset()
    assert rewards(env) == expected

    env = wrap(bare, model, predict_every=2, signal=signal, gamma=0.5, mode="shape")
    env.reset()
    results = play(env)
    assert [step[0] for step in results] == (np.arange(1, 6) + expected).tolist()
    assert [step[3]["env_reward"] for step in results] == [1, 2, 3, 4, 5]

    env = wrap(bare, model, predict_every=2, signal=signal, gamma=0.5, scale=-4)
    env.reset()
    assert rewards(env) == [-4 * e for e in expected]


def test_the_default_gamma_is_099():
    """Shaping with another discount than the agent's own moves its optimum."""
    model = ScriptedRewardModel(progress=[0.5, 0.75])
    env = wrap(CountingEnv(lengths=[5], ends=["truncated"]), model, signal="potential")
    env.reset()
    expected = [0.99 * 0.5 - 0.5] * 4 + [0.99 * 0.75 - 0.5]
    assert rewards(env) == pytest.approx(expected, abs=1e-12)


class EndsBothWays(CountingEnv):
    """Terminates and truncates at the same step, with NumPy's bools."""

    def step(self, action):
        observation, reward, terminated, _, info = super().step(action)
        return observation, np.float32(reward), np.bool_(terminated), np.bool_(terminated), info


def test_terminated_and_truncated_at_once_is_a_true_end():
    """The potential would be kept though there is no next state."""
    model = ScriptedRewardModel(progress=[0.25, 0.5])
    env = wrap(EndsBothWays(lengths=[3]), model, signal="potential", gamma=0.5)
    env.reset()
    results = play(env)
    assert results[-1][:3] == (-0.25, True, True)
    assert len(model.clips) == 2


def test_success_is_a_true_end_for_the_potential():
    """The potential would be kept at an end that the wrapper itself makes."""
    model = ScriptedRewardModel(progress=[0.25, 0.5, 0.75], success=[0.0, 1.0, 1.0])
    env = wrap(CountingEnv(), model, predict_every=1, signal="potential", gamma=0.5)
    env.reset()
    assert [step[:3] for step in play(env)] == [(0.0, False, False), (-0.5, True, False)]


@pytest.mark.parametrize("mode", ["replace", "shape"])
def test_reward_and_ends_are_of_plain_types(mode):
    """SB3's and Gymnasium's checks refuse NumPy scalars, and JSON logs fail on them."""
    env = wrap(EndsBothWays(lengths=[3]), ScriptedRewardModel(), predict_every=2, mode=mode)
    env.reset()
    for reward, terminated, truncated, info in play(env):
        assert type(reward) is float
        assert type(terminated) is type(truncated) is bool
        assert type(info["env_reward"]) is float
        for key in ("robometer/success", "robometer/predicted"):
            assert type(info[key]) is bool
        for key in ("robometer/progress", "robometer/success_prob"):
            assert type(info[key]) is float
    assert type(info["is_success"]) is bool


def test_types_are_plain_also_where_settings_came_from_numpy():
    """A sweep over np.float32 scales would give float32 rewards and other sums than floats."""
    model = ScriptedRewardModel(progress=[0.25, 0.5, 0.75], success=[0.0, 1.0, 1.0])
    env = wrap(
        CountingEnv(),
        model,
        predict_every=np.int64(1),
        scale=np.float32(2.0),
        success_bonus=np.float32(4.0),
        success_votes=np.int64(2),
    )
    env.reset()
    results = play(env)
    assert [step[:2] for step in results] == [(0.5, False), (4.5, True)]
    assert all(type(step[0]) is float and type(step[1]) is bool for step in results)
    assert type(results[-1][3]["is_success"]) is bool


def expected_episode(
    settings: RewardSettings, length: int, truncated: bool, progress: Any, success: Any
) -> tuple[list[float], int, bool]:
    """Return an episode's rewards, its length, and whether it is a success, by formulas.

    `progress` and `success` hold the model's prediction at each step 0, ..., length.
    """
    every, window = settings.predict_every, settings.success_window
    due = [s for s in range(length + 1) if s % every == 0 or s == length]
    votes = [success[s] >= settings.success_threshold for s in due]
    counts = [sum(votes[max(0, i + 1 - window) : i + 1]) for i in range(len(due))]
    fired = [s for s, n in zip(due, counts, strict=True) if s and n >= settings.success_votes]
    by_model = bool(fired) and settings.terminate_on_success
    ends_at = fired[0] if by_model else length
    terminated = by_model or not truncated
    latest = np.array([progress[max(a for a in due if a <= s)] for s in range(ends_at + 1)])
    before, after = latest[:-1], latest[1:]
    if settings.signal == "delta":
        model_reward = after - before
    elif settings.signal == "progress":
        model_reward = after
    else:
        after = after.copy()
        after[-1] *= not terminated
        model_reward = settings.gamma * after - before
    earned = settings.scale * model_reward
    if settings.mode == "shape":
        earned = earned + np.arange(1, ends_at + 1)
    if fired:
        earned[fired[0] - 1] += settings.success_bonus
    return earned.tolist(), ends_at, bool(fired)


@given(
    settings=st.builds(
        RewardSettings,
        predict_every=st.integers(1, 5),
        mode=st.sampled_from(["replace", "shape"]),
        signal=st.sampled_from(["delta", "potential", "progress"]),
        gamma=st.sampled_from([0.0, 0.5, 1.0]),
        scale=st.sampled_from([1.0, 2.0, -0.5]),
        success_votes=st.integers(1, 2),
        success_window=st.integers(2, 3),
        success_bonus=st.sampled_from([0.0, 8.0]),
        terminate_on_success=st.booleans(),
    ),
    lengths=st.lists(st.integers(1, 14), min_size=1, max_size=3),
    truncated=st.booleans(),
    progress=st.lists(exact, min_size=15, max_size=15),
    success=st.lists(st.sampled_from([0.0, 0.5, 0.75, 1.0]), min_size=14, max_size=14),
)
def test_every_episode_follows_the_formulas(settings, lengths, truncated, progress, success):
    """Two settings that work alone would not work together."""
    success = [0.0, *success]
    model = ScriptedRewardModel(
        progress=lambda clip: progress[clip.steps[-1]],
        success=lambda clip: success[clip.steps[-1]],
    )
    ends: Literal["truncated", "terminated"] = "truncated" if truncated else "terminated"
    chosen = {name: getattr(settings, name) for name in settings.__dataclass_fields__}
    env = wrap(CountingEnv(lengths=lengths, ends=[ends]), model, **chosen)
    for length in lengths:
        env.reset()
        results = play(env)
        earned, ends_at, done = expected_episode(settings, length, truncated, progress, success)
        assert [step[0] for step in results] == earned
        assert len(results) == ends_at
        assert results[-1][3]["is_success"] is done
