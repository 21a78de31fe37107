"""RobometerRewardWrapper: votes, termination and bonus of a detected success."""

import numpy as np

from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from tests.wrappers.rollouts import play, rewards, wrap


def test_success_needs_two_votes_and_ends_the_episode():
    """One false alarm would end the episode, or a success not end it."""
    model = ScriptedRewardModel(progress=0.5, success=[0.0, 0.9, 0.1, 0.66, 0.66])
    env = wrap(CountingEnv(lengths=[50]), model, predict_every=2, success_bonus=10.0)
    env.reset()
    results = play(env)
    assert len(results) == 8
    assert [step[0] for step in results] == [0.0] * 7 + [10.0]
    assert [step[1] for step in results] == [False] * 7 + [True]
    assert not any(step[2] for step in results)
    assert [step[3]["robometer/success"] for step in results] == [False] * 7 + [True]
    probabilities = [step[3]["robometer/success_prob"] for step in results]
    assert probabilities == np.array([0, 0.9, 0.9, 0.1, 0.1, 0.66, 0.66, 0.66], "f4").tolist()


def test_votes_and_window_are_the_chosen_ones():
    """Success would be detected too early or never."""
    model = ScriptedRewardModel(progress=0.5, success=[0.0, 0.5, 0.0, 0.5, 0.0, 0.5])
    env = wrap(
        CountingEnv(lengths=[50]),
        model,
        predict_every=1,
        success_threshold=0.5,
        success_votes=3,
        success_window=5,
    )
    env.reset()
    assert [step[1] for step in play(env)] == [False] * 4 + [True]


def test_success_at_reset_ends_nothing_yet():
    """`reset` cannot end an episode: the agent would act in an episode that is over."""
    model = ScriptedRewardModel(progress=0.5, success=1.0)
    env = wrap(CountingEnv(), model, predict_every=2, success_bonus=1.0)
    _, info = env.reset()
    assert info["robometer/success"] is False
    assert [step[:2] for step in play(env)] == [(0.0, False), (1.0, True)]


def test_without_termination_the_bonus_comes_once_and_success_stays():
    """An agent that leaves and comes back would collect the bonus again and again."""
    model = ScriptedRewardModel(progress=0.5, success=[0, 1, 1, 0, 0, 1, 1])
    env = wrap(
        CountingEnv(lengths=[6], ends=["truncated"]),
        model,
        predict_every=1,
        terminate_on_success=False,
        success_bonus=8.0,
        scale=4.0,
    )
    env.reset()
    results = play(env)
    assert [step[0] for step in results] == [0.0, 8.0, 0.0, 0.0, 0.0, 0.0]
    assert [step[1:3] for step in results] == [(False, False)] * 5 + [(False, True)]
    assert [step[3]["robometer/success"] for step in results] == [False] + [True] * 5
    assert results[-1][3]["is_success"] is True


def test_bonus_and_votes_start_again_in_each_episode():
    """A vote of the last episode would count in the next, or its bonus never come again."""
    model = ScriptedRewardModel(progress=0.5, success=[0, 1, 1, 0, 1, 0, 1, 1, 0, 1])
    env = wrap(CountingEnv(lengths=[3]), model, predict_every=1, success_bonus=1.0)
    env.reset()
    assert rewards(env) == [0.0, 1.0]
    _, info = env.reset()
    assert info["robometer/success"] is False
    assert rewards(env) == [0.0, 0.0, 0.0]
    env.reset()
    assert rewards(env, 1) == [0.0]


def test_success_at_the_step_that_truncates_is_both():
    """The agent would bootstrap from a state after success."""
    model = ScriptedRewardModel(progress=[0.25, 0.5], success=[1.0, 1.0])
    env = wrap(CountingEnv(lengths=[3], ends=["truncated"]), model)
    env.reset()
    reward, terminated, truncated, info = play(env)[-1]
    assert (reward, terminated, truncated) == (0.25, True, True)
    assert info["is_success"] is True
