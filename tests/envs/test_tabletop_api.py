"""TabletopReach: argument errors, and Gymnasium's and Stable-Baselines3's own checks."""

import importlib
import pickle
import re
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

import robometer_gym.envs
from robometer_gym.envs import ENV_ID, TASKS, TabletopReachEnv
from tests.envs.tabletop import LIMIT, render

RED, _, BLUE = TASKS


class TestErrors:
    def test_unknown_task(self) -> None:
        """A misspelled task would silently train the wrong behavior."""
        message = "task must be one of " + ", ".join(map(repr, TASKS)) + ".*; got 'reach red'"
        with pytest.raises(ValueError, match=message):
            TabletopReachEnv(task="reach red")
        env = TabletopReachEnv(task=RED)
        before, _ = env.reset(seed=0)
        with pytest.raises(ValueError, match=message):
            env.reset(seed=1, options={"task": "reach red"})
        np.testing.assert_array_equal(env.step(np.zeros(2))[0], before)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"layout": "grid"}, "layout must be 'fixed' or 'random', got 'grid'."),
            ({"render_mode": "human"}, "render_mode must be 'rgb_array' or None, got 'human'."),
        ],
    )
    def test_wrong_arguments(self, arguments: Any, message: str) -> None:
        """A typo would silently become a default."""
        with pytest.raises(ValueError, match=re.escape(message)):
            TabletopReachEnv(**arguments)

    @pytest.mark.parametrize(
        ("action", "message"),
        [
            (np.zeros(3), r"action must be \(2,\).* got shape \(3,\)"),
            (np.zeros((1, 2)), r"action must be \(2,\).* got shape \(1, 2\)"),
            (0.5, r"action must be \(2,\).* got shape \(\)"),
            ([0.0, np.nan], r"action must be finite, got \[0.0, nan\]. Has the policy diverged"),
            ([np.inf, 0.0], r"action must be finite, got \[inf, 0.0\]"),
        ],
    )
    def test_wrong_actions(self, action: Any, message: str) -> None:
        """A diverged policy would fill the replay buffer with NaN."""
        env = TabletopReachEnv()
        obs, _ = env.reset(seed=0)
        with pytest.raises(ValueError, match=message):
            env.step(action)
        np.testing.assert_array_equal(env.step(np.zeros(2))[0], obs)

    @pytest.mark.parametrize(
        ("method", "arguments"), [("step", [np.zeros(2)]), ("render", []), ("expert_action", [])]
    )
    def test_before_reset(self, method: str, arguments: Any) -> None:
        """The user would see an AttributeError on None."""
        env = TabletopReachEnv(render_mode="rgb_array")
        with pytest.raises(ResetNeeded, match=rf"Call reset\(\) before {method}\(\)"):
            getattr(env, method)(*arguments)

    @pytest.mark.parametrize("noise", [-0.1, np.nan, np.inf])
    def test_noise_must_be_a_standard_deviation(self, noise: float) -> None:
        """Demonstrations would be NaN."""
        env = TabletopReachEnv()
        env.reset(seed=0)
        with pytest.raises(ValueError, match=f"must be finite and >= 0, got {noise}"):
            env.expert_action(noise)

    def test_noise_must_be_a_number(self) -> None:
        """The user would see numpy's error instead of ours."""
        env = TabletopReachEnv()
        env.reset(seed=0)
        with pytest.raises(TypeError, match="noise must be a number >= 0, got 'high'"):
            env.expert_action("high")  # type: ignore[arg-type]


class TestGymnasium:
    @pytest.mark.parametrize("layout", ["fixed", "random"])
    @pytest.mark.parametrize("render_mode", ["rgb_array", None])
    def test_gymnasium_check_env(self, layout: str, render_mode: str | None) -> None:
        """Gymnasium's tools would not work with the env."""
        env = gym.make(ENV_ID, layout=layout, render_mode=render_mode)
        check_env(env.unwrapped)

    def test_sb3_check_env(self) -> None:
        """Stable-Baselines3 would not train on the env."""
        checker = pytest.importorskip("stable_baselines3.common.env_checker")
        checker.check_env(TabletopReachEnv(render_mode="rgb_array"), warn=True)
        checker.check_env(gym.make(ENV_ID), warn=True)

    def test_truncated_after_a_hundred_steps(self) -> None:
        """An agent that stands still would never see a new episode."""
        env = gym.make(ENV_ID)
        env.reset(seed=0)
        ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(LIMIT)]
        assert ends == [(False, False)] * (LIMIT - 1) + [(False, True)]

    def test_spec_rebuilds_the_env(self) -> None:
        """A saved experiment could not rebuild its environment."""
        made = gym.make(ENV_ID, task=BLUE, layout="random", render_mode="rgb_array")
        made.reset(seed=5)
        assert made.spec is not None
        for spec in (made.spec, EnvSpec.from_json(made.spec.to_json())):
            again = gym.make(spec)
            _, info = again.reset(seed=5)
            assert info["task"] == BLUE
            np.testing.assert_array_equal(np.asarray(again.render()), np.asarray(made.render()))

    def test_importing_twice_does_not_warn(self) -> None:
        """Reloading in a notebook would warn of an overridden environment."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            importlib.reload(robometer_gym.envs)
        assert gym.spec(ENV_ID).max_episode_steps == LIMIT

    def test_pickling_in_the_middle_of_an_episode(self) -> None:
        """Subprocess workers and checkpoints could not hold the env."""
        env = TabletopReachEnv(layout="random", render_mode="rgb_array")
        env.reset(seed=0)
        env.step([1.0, 0.0])
        copy = pickle.loads(pickle.dumps(env))
        for one in (env, copy):
            one.step([0.0, 1.0])
        np.testing.assert_array_equal(render(env), render(copy))
        np.testing.assert_array_equal(env.expert_action(0.3), copy.expert_action(0.3))
        np.testing.assert_array_equal(env.reset()[0], copy.reset()[0])

    def test_vector_env(self) -> None:
        """The env could not be run many at a time."""
        envs = gym.make_vec(ENV_ID, num_envs=2, vectorization_mode="sync")
        obs, info = envs.reset(seed=0)
        assert obs.shape == (2, 8)
        assert set(info["task"]) <= set(TASKS)
        assert envs.step(np.zeros((2, 2), np.float32))[-1]["is_success"].tolist() == [False] * 2
