"""FrameCapture: which frames it takes, and that it changes nothing else."""

import copy
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from robometer_gym import FrameCapture
from robometer_gym.testing import CountingEnv
from robometer_gym.tracking.events import Start, Step
from robometer_gym.tracking.settings import RewardSettings
from robometer_gym.wrappers.frame_capture import (
    CAPTURE,
    REWARD,
    Capture,
    CaptureReader,
    SubEnvironmentError,
)
from tests.environments import Trouble


def capturing(env: Any, send_rewards: bool = False, **settings: Any) -> FrameCapture:
    captured = FrameCapture(env)
    pickled = cloudpickle.dumps(RewardSettings(**settings))
    assert captured.begin_capture(pickled, send_rewards) is None
    return captured


def test_before_begin_capture_it_does_nothing():
    """Environments without a reward wrapper would be rendered, and their infos grow."""
    env = FrameCapture(CountingEnv([2], success=[True]))
    assert env.reset(options={"x": 1})[1] == {"options": {"x": 1}}
    assert env.step(0)[1:] == (1.0, False, False, {"is_success": False})
    assert env.unwrapped.renders == 0  # type: ignore[attr-defined]


def test_it_takes_the_frames_that_are_due_and_no_other():
    """Frames would be missing, or rendered for nothing."""
    env = capturing(CountingEnv([5]), predict_every=2)
    taken = [env.reset()[1].get(CAPTURE), *(env.step(0)[4].get(CAPTURE) for _ in range(5))]
    shown = [CountingEnv.read(c.frames["render"])["step"] if c else None for c in taken]
    assert shown == [0, None, 2, None, 4, 5]
    assert [c.step for c in taken if c] == [0, 2, 4, 5]
    assert env.unwrapped.renders == 4  # type: ignore[attr-defined]


def test_send_rewards_sends_every_reward():
    """DummyVecEnv keeps rewards in single precision: 0.1 would become 0.10000000149."""
    env = capturing(CountingEnv([3]), send_rewards=True, predict_every=2)
    env.reset()
    results = [env.step(0)[4] for _ in range(3)]
    assert [info.get(REWARD) for info in results] == [1.0, None, None]
    assert [info[CAPTURE].reward for info in results[1:]] == [2.0, 3.0]


def test_the_first_frame_is_sent_once():
    """SubprocVecEnv sends the reset's infos again with each step: all would be slower."""
    env = capturing(CountingEnv([5]), predict_every=2)
    _, info = env.reset()
    assert CAPTURE in info
    env.step(0)
    assert CAPTURE not in info


def test_success_makes_the_next_step_a_reset():
    """An episode that is over for the agent would run on."""
    env = capturing(CountingEnv([9]))
    env.reset()
    env.step(1)
    env.set_wrapper_attr("model_saw_success", True)
    observation, reward, terminated, truncated, info = env.step(1)
    assert (observation.tolist(), reward, terminated, truncated) == ([0], 0.0, False, False)
    assert info[CAPTURE].step == 0
    assert env.step(1)[4] == {}
    assert env.unwrapped.episode == 1  # type: ignore[attr-defined]


def test_a_reset_of_the_users_counts_as_the_one_that_was_due():
    """The environment would be reset twice."""
    env = capturing(CountingEnv([9]))
    env.reset()
    env.set_wrapper_attr("model_saw_success", True)
    env.reset()
    assert env.step(1)[0].tolist() == [1]


def test_a_masked_reset_looks_to_the_environment_like_any_other():
    """`if options is not None: goal = options["goal"]` would fail at an autoreset by success."""
    assert capturing(CountingEnv()).reset(options={})[1]["options"] is None


def test_another_wrapper_may_begin_the_capture_again():
    """In a notebook, running a cell again would fail."""
    env = capturing(CountingEnv([9]), predict_every=1)
    env.reset()
    env.begin_capture(cloudpickle.dumps(RewardSettings(predict_every=9)))
    env.reset()
    assert CAPTURE not in env.step(0)[4]


@pytest.mark.parametrize(
    ("env", "settings", "problem"),
    [
        (CountingEnv(render_mode=None), {}, "render_mode='rgb_array'"),
        (CountingEnv(cameras=["wrist"]), {"camera": "scene"}, "its keys are ['count', 'wrist']"),
    ],
)
def test_an_impossible_camera_is_returned_and_not_raised(env, settings, problem):
    """A worker process would die of a wrong argument."""
    problem_ = FrameCapture(env).begin_capture(cloudpickle.dumps(RewardSettings(**settings)))
    assert problem in str(problem_)


@pytest.mark.parametrize("at", [0, 1])
def test_an_exception_becomes_a_message(at):
    """A worker process would die of it, and take the others along."""
    env = capturing(Trouble("raise", step=at))
    info = env.reset()[1]
    if at:
        observation, reward, terminated, truncated, info = env.step(0)
        assert env.observation_space.contains(observation)
        assert (reward, terminated, truncated) == (0.0, False, False)
    with pytest.raises(SubEnvironmentError, match=r"Environment 7 failed: RuntimeError: the gri"):
        CaptureReader().event(7, info[CAPTURE], "open the drawer")


def test_captures_become_events():
    """The tracker would be results of another environment, or another end."""
    frames = {"render": np.ones((4, 4, 3), np.uint8)}
    assert CaptureReader().event(3, Capture(frames=frames), "open it") == Start(
        3, "open it", frames
    )
    step = CaptureReader().event(2, Capture(4, 0.1), "", True, False, True)
    assert step == Step(2, 0.1, True, False, None, True)


def test_a_deep_copy_of_infos_does_not_copy_frames():
    """DummyVecEnv copies its infos at every step: with them every frame."""
    capture = Capture(frames={"render": np.ones((4, 4, 3), np.uint8)})
    assert copy.deepcopy({"info": capture})["info"] is capture


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version:UserWarning")
def test_gymnasium_finds_nothing_wrong():
    """Env checkers would refuse it, and an env rebuilt from the spec would lack it."""
    env = capturing(gym.make("robometer_gym/TabletopReach-v0", render_mode="rgb_array"))
    check_env(env)
    assert env.spec is not None
    assert isinstance(gym.make(env.spec), FrameCapture)
