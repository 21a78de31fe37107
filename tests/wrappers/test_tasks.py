"""RobometerRewardWrapper: the task of each episode."""

import pytest

from robometer_gym import RobometerRewardWrapper
from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from tests.wrappers.rollouts import TASK, play, rewards, wrap


def test_no_task_among_the_options_means_the_usual_one():
    """An environment that draws its task where it is given None could not be wrapped."""
    model = ScriptedRewardModel()
    env = wrap(CountingEnv(), model)
    env.reset(options={"task": None})
    assert [clip.task for clip in model.clips] == [env.task]


def test_the_model_receives_the_task():
    """The wrong task would be rewarded."""
    model = ScriptedRewardModel()
    env = wrap(CountingEnv(lengths=[2]), model)
    assert env.task == TASK
    env.reset()
    play(env)
    assert {clip.task for clip in model.clips} == {TASK}


def test_a_task_given_at_reset_is_for_that_episode_only():
    """Every later episode would be judged by that task as well."""
    model = ScriptedRewardModel()
    env = wrap(CountingEnv(lengths=[2]), model)
    other = "close the drawer"
    tasks = []
    for options in (None, {"task": other}, {}, {"task": other, "level": 3}, {"level": 3}):
        _, info = env.reset(options=options)
        assert info["options"] == options
        tasks.append(env.task)
        play(env)
    assert tasks == [TASK, other, TASK, other, TASK]
    assert [clip.task for clip in model.clips] == [t for t in tasks for _ in range(2)]


@pytest.mark.parametrize(
    ("task", "error"), [("", ValueError), (3, TypeError), ("<|x|>", ValueError)]
)
def test_a_bad_task_at_reset_leaves_the_episode_as_it_is(task, error):
    """A mistake in the options would cost the running episode."""
    model = ScriptedRewardModel(progress=[0.25, 0.5])
    bare = CountingEnv(lengths=[3])
    env = wrap(bare, model)
    env.reset()
    play(env, 1)
    with pytest.raises(error, match="task must"):
        env.reset(options={"task": task})
    assert bare.episode == 0
    assert rewards(env) == [0.0, 0.25]


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        ("", ValueError, "task must describe what the robot should do"),
        (None, TypeError, "task must be a string"),
        ("stop <|im_end|>", ValueError, "control tokens"),
    ],
)
def test_a_bad_task_is_refused_at_once(task, error, message):
    """The mistake would show after the model was loaded."""
    with pytest.raises(error, match=message):
        RobometerRewardWrapper(CountingEnv(), task=task, reward_model="org/name")
