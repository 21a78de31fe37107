"""Wrappers in the wrong place, where the reward or the end of an episode has two sources."""

import logging
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.wrappers import Autoreset, TimeLimit, TransformReward
from gymnasium.wrappers import vector as vector_wrappers

from robometer_gym import FrameCapture, RobometerRewardWrapper, RobometerVectorRewardWrapper
from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from tests.wrappers.rollouts import TASK, play, rewards, windows, wrap

pytestmark = pytest.mark.usefixtures("no_hanging")


def captured() -> Any:
    return FrameCapture(CountingEnv([99]))


# Around a vector environment


@pytest.mark.parametrize(
    "between",
    [
        lambda envs: vector_wrappers.ClipReward(envs, max_reward=1.0),
        vector_wrappers.RecordEpisodeStatistics,
        vector_wrappers.NormalizeObservation,
    ],
)
def test_a_vector_wrapper_between_is_refused(between):
    """In "shape" mode the clipped and the raw reward would reach the agent by turns."""
    envs = between(SyncVectorEnv([captured]))
    with pytest.raises(ValueError, match=rf"goes directly .* got {type(envs).__name__}:.* outside"):
        RobometerVectorRewardWrapper(envs, TASK, ScriptedRewardModel())


def limited() -> Any:
    return TimeLimit(captured(), 5)


def transformed() -> Any:
    return TransformReward(captured(), lambda reward: float(reward) / 10)


def gymnasium(kind: Any, outside: Any) -> Any:
    more = {"context": "forkserver"} if kind is AsyncVectorEnv else {}
    core = kind([outside], **more)
    try:
        return RobometerVectorRewardWrapper(core, TASK, ScriptedRewardModel())
    finally:
        core.close()


def stable_baselines3(kind: str, outside: Any) -> Any:
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    from robometer_gym.sb3 import VecRobometerReward

    venv = getattr(vec_env, kind)([outside])
    try:
        return VecRobometerReward(venv, TASK, ScriptedRewardModel())
    finally:
        venv.close()


@pytest.mark.parametrize("outside", [limited, transformed])
@pytest.mark.parametrize(
    ("wrap_in", "kind"),
    [
        (gymnasium, SyncVectorEnv),
        (gymnasium, AsyncVectorEnv),
        (stable_baselines3, "DummyVecEnv"),
        (stable_baselines3, "SubprocVecEnv"),
    ],
)
def test_a_wrapper_outside_frame_capture_is_refused(wrap_in, kind, outside):
    """An end without a last frame: the environment's own reward would reach the agent."""
    name = type(outside()).__name__
    with pytest.raises(ValueError, match=rf"FrameCapture must be the outermost .* {name} is outs"):
        wrap_in(kind, outside)


# Stable-Baselines3's Monitor, which counts rewards and ends


def test_monitor_inside_the_scalar_wrapper_is_refused():
    """`evaluate_policy` would wait for ever for an episode that a detected success has ended."""
    monitor = pytest.importorskip("stable_baselines3.common.monitor").Monitor
    with pytest.raises(ValueError, match=r"Monitor is inside.*Put it outside"):
        wrap(TimeLimit(monitor(CountingEnv()), 5), ScriptedRewardModel())
    assert wrap(monitor(CountingEnv()), ScriptedRewardModel(), terminate_on_success=False)
    assert monitor(wrap(CountingEnv(), ScriptedRewardModel()))


@pytest.mark.parametrize("settings", [{}, {"terminate_on_success": False}])
def test_monitor_inside_a_vec_env_is_refused_or_evaluation_ends(settings):
    """SB3's `make_vec_env` puts a Monitor inside: `evaluate_policy` would never return."""
    pytest.importorskip("stable_baselines3")
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    from robometer_gym.sb3 import VecRobometerReward

    venv = make_vec_env(lambda: CountingEnv([9]), 2, wrapper_class=FrameCapture)
    model = ScriptedRewardModel(success=1.0)
    if not settings:
        with pytest.raises(ValueError, match=r"Monitor is inside.*VecMonitor"):
            VecRobometerReward(venv, TASK, model)
        return
    rewarded = VecRobometerReward(venv, TASK, model, **settings)
    agent = PPO("MlpPolicy", rewarded, n_steps=4, batch_size=8, device="cpu")
    _, lengths = evaluate_policy(agent, rewarded, 2, return_episode_rewards=True)
    assert lengths == [9, 9]


@pytest.mark.parametrize("kind", ["by hand", "scalar", "maker"])
def test_evaluate_policy_returns_with_the_monitor_outside(kind):
    """The advice of the message above would not help."""
    pytest.importorskip("stable_baselines3")
    from stable_baselines3 import PPO
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

    from robometer_gym.sb3 import VecRobometerReward, make_robometer_vec_env

    model = ScriptedRewardModel(success=1.0)  # two votes: at the steps 0 and 5
    env: Any = {
        "by hand": lambda: VecMonitor(VecRobometerReward(DummyVecEnv([captured]), TASK, model)),
        "scalar": lambda: Monitor(RobometerRewardWrapper(CountingEnv([99]), TASK, model)),
        "maker": lambda: make_robometer_vec_env(lambda: CountingEnv([99]), TASK, 1, model),
    }[kind]()
    agent = PPO("MlpPolicy", env, n_steps=4, batch_size=4, device="cpu")
    returns, lengths = evaluate_policy(agent, env, 3, return_episode_rewards=True)
    assert (returns, lengths) == ([0.0] * 3, [5] * 3)


# Around one environment


def test_autoreset_inside_is_named():
    """The user would read that reset() was forgotten, and not find where."""
    env = wrap(Autoreset(CountingEnv([1])), ScriptedRewardModel())
    env.reset()
    env.step(0)
    with pytest.raises(ResetNeeded, match=r"wrappers\.Autoreset goes outside"):
        env.step(0)
    outside: gym.Env[Any, Any] = Autoreset(wrap(CountingEnv([1]), ScriptedRewardModel()))
    outside.reset()
    assert rewards(outside, 4) == [0.0] * 4


def test_a_time_limit_outside_is_noticed(caplog):
    """The reward of the last steps would be missing in every episode, without a word."""
    env = TimeLimit(wrap(CountingEnv([99]), ScriptedRewardModel(), predict_every=5), 7)
    for _ in range(3):
        env.reset()
        play(env)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "2 steps after the last prediction" in caplog.text
    assert "RobometerRewardWrapper(TimeLimit(env, ...), ...)" in caplog.text


@pytest.mark.parametrize("inside", [True, False])
def test_a_time_limit_that_loses_nothing_is_no_reason_to_warn(inside, caplog):
    """A warning that is often wrong is not read."""
    model = ScriptedRewardModel()
    env: gym.Env[Any, Any] = (
        wrap(TimeLimit(CountingEnv([99]), 7), model)
        if inside
        else TimeLimit(wrap(CountingEnv([99]), model), 10)
    )
    for _ in range(3):
        env.reset()
        play(env)
    assert caplog.text == ""
    assert windows(model)[-1][-1] == (7 if inside else 10)


@pytest.mark.parametrize("reward", [np.array([1.0]), None, "1.0", [1.0]])
def test_a_reward_that_is_no_number_is_named(reward):
    """A TypeError from inside would name neither the environment's reward nor its shape."""
    bare = CountingEnv([9])
    env = wrap(TransformReward(bare, lambda _: reward), ScriptedRewardModel())
    env.reset()
    with pytest.raises(TypeError, match=r"The environment's reward must be a number, got .*1|None"):
        env.step(0)
    with pytest.raises(ResetNeeded):  # the step is lost: the episode cannot go on
        env.step(0)
