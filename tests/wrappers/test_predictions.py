"""RobometerRewardWrapper: the steps at which it predicts, and the window of each prediction."""

from typing import Any

import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from tests.wrappers.rollouts import play, rewards, shown, windows, wrap


def test_predictions_come_at_reset_at_every_nth_step_and_at_the_last():
    """Rewards would come at the wrong steps, or the end of the episode without a prediction."""
    model = ScriptedRewardModel(progress=[0.125, 0.25, 0.5, 0.75])
    env = wrap(CountingEnv(lengths=[7]), model, predict_every=3)
    _, info = env.reset()
    assert info["robometer/progress"] == 0.125
    assert info["robometer/predicted"] is True
    results = play(env)
    assert [step[0] for step in results] == [0.0, 0.0, 0.125, 0.0, 0.0, 0.25, 0.25]
    predicted = [step[3]["robometer/predicted"] for step in results]
    assert predicted == [False, False, True, False, False, True, True]
    assert windows(model) == [[0], [0, 3], [0, 3, 6], [0, 3, 6, 7]]
    assert model.batches == [1, 1, 1, 1]


def test_a_last_step_that_is_due_anyway_is_predicted_once():
    """The model would predict one step twice; the second delta would be noise."""
    model = ScriptedRewardModel(progress=[0.125, 0.25, 0.5])
    env = wrap(CountingEnv(lengths=[6]), model, predict_every=3)
    env.reset()
    assert rewards(env) == [0.0, 0.0, 0.125, 0.0, 0.0, 0.25]
    assert windows(model) == [[0], [0, 3], [0, 3, 6]]


@pytest.mark.parametrize("ends", ["terminated", "truncated"])
def test_an_episode_of_one_step(ends):
    """The shortest episode would have no reward, or one counted from 0."""
    model = ScriptedRewardModel(progress=[0.25, 0.75] * 2)
    env = wrap(CountingEnv(lengths=[1], ends=[ends]), model)
    for _ in range(2):
        env.reset()
        ((reward, terminated, truncated, _),) = play(env)
        assert (reward, terminated, truncated) == (0.5, ends == "terminated", ends == "truncated")
    assert windows(model) == [[0], [0, 1]] * 2


def test_steps_are_counted_from_the_reset_of_each_episode():
    """Predictions would drift from episode to episode."""
    model = ScriptedRewardModel()
    env = wrap(CountingEnv(lengths=[4, 3, 5]), model, predict_every=3)
    for _ in range(3):
        env.reset()
        play(env)
    assert windows(model) == [[0], [0, 3], [0, 3, 4], [0], [0, 3], [0], [0, 3], [0, 3, 5]]


def test_frames_are_rendered_only_when_they_are_kept():
    """Rendering is the slowest part of a simulator; twice as many frames, half the speed."""
    bare = CountingEnv(lengths=[23])
    env = wrap(bare, ScriptedRewardModel(), predict_every=5)
    env.reset()
    assert bare.renders == 1
    play(env, 4)
    assert bare.renders == 1
    play(env)
    assert bare.renders == 1 + 4 + 1


def test_the_default_is_every_fifth_step_and_a_window_of_eight():
    """The README's numbers would not be those of the code."""
    model = ScriptedRewardModel()
    env = wrap(CountingEnv(lengths=[60], ends=["truncated"]), model)
    env.reset()
    play(env)
    kept = np.arange(0, 61, 5)
    for i, window in enumerate(windows(model)):
        wanted = np.arange(i + 1) if i < 8 else np.rint(np.linspace(0, i, 8)).astype(int)
        assert window == kept[wanted].tolist()


@pytest.mark.parametrize(
    ("sampling", "window"),
    [("linspace", [0, 2, 3, 5]), ("tail", [2, 3, 4, 5]), ("anchored", [0, 2, 4, 5])],
)
def test_the_sampling_rule_is_the_chosen_one(sampling, window):
    """Another rule than the one in the settings would be scored."""
    model = ScriptedRewardModel()
    env = wrap(CountingEnv(), model, predict_every=1, max_frames=4, sampling=sampling)
    env.reset()
    play(env, 5)
    assert windows(model)[-1] == window


def test_the_true_last_frame_is_scored():
    """The last actions, those that succeed, would not count."""
    model = ScriptedRewardModel()
    env = wrap(CountingEnv(lengths=[7, 4]), model, predict_every=5)
    for episode, length in enumerate((7, 4)):
        env.reset()
        play(env)
        assert shown(model.clips[-1])[-1] == (episode, length)


@pytest.mark.parametrize("how", ["ends", "mid-episode"])
def test_each_episode_is_a_stream_of_its_own_and_is_released(how):
    """A caching engine would mix up two episodes, or never forget one."""
    model = ScriptedRewardModel()
    env = wrap(CountingEnv(lengths=[4]), model, predict_every=2)
    for _ in range(3):
        env.reset()
        play(env, None if how == "ends" else 2)
    env.close()
    episodes: dict[int, Any] = {}
    for clip in model.clips:
        assert episodes.setdefault(shown(clip)[0][0], clip.stream) is clip.stream
    assert len(set(episodes.values())) == 3
    assert model.released == list(episodes.values())


def test_a_time_limit_inside_is_a_truncation_that_is_scored():
    """The last frame before the time limit would not be scored."""
    model = ScriptedRewardModel(progress=[0.25, 0.75, 0.5, 1.0])
    env = wrap(TimeLimit(CountingEnv(), 3), model)
    for expected in (0.5, 0.5):
        env.reset()
        assert [step[:3] for step in play(env)] == [(0.0, False, False)] * 2 + [
            (expected, False, True)
        ]
    assert windows(model) == [[0], [0, 3]] * 2
