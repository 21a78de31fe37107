"""RobometerVectorRewardWrapper: wrong arguments, and calls at the wrong time, change nothing."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import SyncVectorEnv, VectorEnv

from robometer_gym import (
    FrameCapture,
    RobometerRewardWrapper,
    RobometerVectorRewardWrapper,
    SubEnvironmentError,
    make_robometer_vec,
)
from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from tests.wrappers.rollouts import (
    DISABLED,
    NEXT,
    TASK,
    every_mode,
    mask,
    progress_by_step,
    step_all,
    vector,
)


class ActsInTuples(CountingEnv):
    """Takes two actions at once."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = TUPLE


def counting() -> Any:
    return FrameCapture(CountingEnv())


def around(core: Any, task: Any = TASK, **settings: Any) -> Any:
    return RobometerVectorRewardWrapper(core, task, ScriptedRewardModel(), **settings)


class Alone(VectorEnv[Any, Any, Any]):
    """A vector environment of another library, without sub-environments."""

    num_envs = 2


class Own(Alone):
    metadata = {"autoreset_mode": NEXT}  # noqa: RUF012 - as in VectorEnv


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: around(SyncVectorEnv([CountingEnv])), "must be in a FrameCapture"),
        (lambda: around(around(SyncVectorEnv([counting]))), "already"),
        (lambda: around(Own()), "has no sub-environments"),
        (lambda: around(Alone()), "has no sub-environments"),
        (lambda: around(SyncVectorEnv([counting]), [TASK] * 2), "each of the 1 environments"),
        (lambda: around(SyncVectorEnv([counting]), " "), "task must describe"),
        (lambda: around(SyncVectorEnv([counting]), camera="wrist"), "'wrist' is not a key"),
        (
            lambda: around(SyncVectorEnv([lambda: FrameCapture(CountingEnv(render_mode=None))])),
            "render_mode='rgb_array'",
        ),
        (lambda: around(SyncVectorEnv([counting]), predict_every=0), "predict_every must be"),
        (
            lambda: make_robometer_vec(CountingEnv, TASK, vectorization_mode="threads"),  # type: ignore[arg-type]
            "'sync' or 'async', got 'threads'",
        ),
    ],
)
def test_a_wrong_argument_is_refused_at_once(make, message):
    """The user would find out after hours, or from a message about something else."""
    with pytest.raises(ValueError, match=message):
        make()


def test_an_environment_with_model_rewards_is_refused():
    """The model's rewards would pass for the environment's own."""

    def rewarded() -> Any:
        return FrameCapture(RobometerRewardWrapper(CountingEnv(), TASK, ScriptedRewardModel()))

    with pytest.raises(SubEnvironmentError, match=r"Environment 0 .* RobometerRewardWrapper alr"):
        around(SyncVectorEnv([rewarded])).reset()


TUPLE = gym.spaces.Tuple([gym.spaces.Discrete(2), gym.spaces.Box(-1, 1, (2,))])


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("kind", ["array", "list", "tuple", "space"])
@pytest.mark.parametrize("vectorization_mode", ["sync", "async"])
@pytest.mark.usefixtures("no_hanging")
def test_a_wrong_number_of_actions_changes_nothing(vectorization_mode, kind, count):
    """Some environments would be stepped and all episodes lost, or the worker be waited for."""
    model = ScriptedRewardModel(progress_by_step)
    envs = make_robometer_vec(
        ActsInTuples if kind == "space" else CountingEnv,
        TASK,
        2,
        model,
        vectorization_mode=vectorization_mode,
        predict_every=1,
    )
    envs.reset()
    zeros = np.zeros(count, np.int64)
    actions = {
        "array": zeros,
        "list": zeros.tolist(),
        "tuple": tuple(zeros),
        "space": (zeros, np.zeros((count, 2), np.float32)),
    }[kind]
    with pytest.raises(ValueError, match=f"one action for each of the 2 environments; got {count}"):
        envs.step(actions)
    assert envs.step(envs.action_space.sample())[1].tolist() == [1 / 16, 1 / 16]
    envs.close()


@every_mode
def test_a_step_before_the_first_reset_is_refused_and_changes_nothing(mode):
    """The environments' dice would have been rolled, and the next episode be another."""
    envs = vector(ScriptedRewardModel(), [[3], [3]], mode)
    with pytest.raises(ResetNeeded, match="call reset"):
        step_all(envs)
    assert [env.unwrapped.steps for env in envs.unwrapped.envs] == [0, 0]


@pytest.mark.parametrize("end", ["its own", "by success"])
def test_a_step_on_an_ended_environment_is_refused_without_autoreset(end):
    """The agent would go on in an episode that is over."""
    model = ScriptedRewardModel(success=float(end == "by success"))
    length = 9 if end == "by success" else 2
    envs = vector(model, [[9], [length]], DISABLED, success_votes=1, success_window=2)
    envs.reset()
    if end == "its own":
        step_all(envs)
    step_all(envs)
    envs.reset(options=mask(envs, 0))
    with pytest.raises(ResetNeeded, match=r"environment 1.*reset_mask"):
        step_all(envs)
    assert envs.unwrapped.envs[0].unwrapped.steps == 0


@pytest.mark.parametrize("wrong", [np.array([True] * 3), np.array([False] * 2), [True, False]])
def test_a_wrong_reset_mask_is_gymnasiums_to_refuse(wrong):
    """A message about something else would hide what is wrong."""
    envs = vector(ScriptedRewardModel(), [[3], [3]])
    envs.reset()
    with pytest.raises((ValueError, TypeError, AssertionError), match="reset_mask"):
        envs.reset(options={"reset_mask": wrong})


@pytest.mark.parametrize("wrong", [[True, False], np.array([1, 0]), np.array([False] * 2), None])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_wrong_reset_mask_leaves_the_episodes_as_they_are(kind, wrong):
    """A list instead of an array would cost the episodes of all environments."""
    model = ScriptedRewardModel(progress_by_step)
    modes = {"vectorization_mode": kind, "vector_kwargs": {"autoreset_mode": DISABLED}}
    envs = make_robometer_vec(CountingEnv, TASK, 2, model, predict_every=1, **modes)
    envs.reset()
    with pytest.raises((ValueError, TypeError), match=r"reset_mask.*array of 2 bools"):
        envs.reset(options={"reset_mask": wrong})
    assert step_all(envs)[1].tolist() == [1 / 16, 1 / 16]
    envs.close()


def test_a_bad_task_at_reset_leaves_the_episodes_as_they_are():
    """A typing error would cost all running episodes."""
    envs = vector(ScriptedRewardModel(progress_by_step), [[3], [3]])
    envs.reset()
    with pytest.raises(ValueError, match="task must describe"):
        envs.reset(options={"task": ""})
    assert step_all(envs)[1].tolist() == [1 / 16, 1 / 16]
