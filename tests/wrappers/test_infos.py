"""RobometerRewardWrapper: the infos of reset and step."""

from typing import Any

import numpy as np
import pytest

from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from tests.wrappers.rollouts import play, wrap


def test_the_infos_of_every_step():
    """Logs would be empty, or show a number for a prediction that was not made."""
    model = ScriptedRewardModel(progress=[0.25, 0.5, 0.75], success=[0.0, 0.125, 0.25])
    env = wrap(CountingEnv(lengths=[3]), model, predict_every=2)
    _, info = env.reset()
    assert info == {
        "options": None,
        "robometer/progress": 0.25,
        "robometer/success_prob": 0.0,
        "robometer/success": False,
        "robometer/predicted": True,
    }
    results = [step[3] for step in play(env)]
    assert results == [
        {
            "robometer/progress": progress,
            "robometer/success_prob": probability,
            "robometer/success": False,
            "robometer/predicted": predicted,
            "env_reward": reward,
            **end,
        }
        for progress, probability, predicted, reward, end in [
            (0.25, 0.0, False, 1.0, {}),
            (0.5, 0.125, True, 2.0, {}),
            (0.75, 0.25, True, 3.0, {"is_success": False}),
        ]
    ]


@pytest.mark.parametrize("key", ["is_success", "success"])
@pytest.mark.parametrize("truth", [True, False])
def test_the_environments_own_success_is_never_overwritten(key, truth):
    """A false success could not be seen any more: the only ground truth would be gone."""

    class Reports(CountingEnv):
        def step(self, action):
            *others, info = super().step(action)
            return (*others, {**info, key: truth})

    env = wrap(Reports(lengths=[5]), ScriptedRewardModel(success=float(not truth)), predict_every=1)
    env.reset()
    results = play(env)
    assert len(results) == (5 if truth else 1)
    for _, _, _, info in results:
        assert info[key] is truth
        assert ("is_success" in info) == (key == "is_success")
    assert results[-1][3]["robometer/success"] is not truth


@pytest.mark.parametrize("ends", ["terminated", "truncated"])
@pytest.mark.parametrize("success", [0.0, 1.0])
@pytest.mark.parametrize("terminate", [True, False])
def test_is_success_is_the_detectors_at_the_end_where_the_environment_has_none(
    ends, success, terminate
):
    """SB3's success rate would stay empty, or be counted at every step."""
    env = wrap(
        CountingEnv(lengths=[6], ends=[ends]),
        ScriptedRewardModel(success=success),
        predict_every=2,
        terminate_on_success=terminate,
    )
    for _ in range(2):
        env.reset()
        results = play(env)
        assert len(results) == (2 if success and terminate else 6)
        assert all("is_success" not in info for *_, info in results[:-1])
        assert results[-1][3]["is_success"] is bool(success)


def test_an_environment_that_reports_success_only_sometimes():
    """If the environment reports nothing at a detected success, a guess would pass for truth."""

    class ReportsAtTheEnd(CountingEnv):
        def step(self, action):
            observation, reward, terminated, truncated, info = super().step(action)
            if terminated or truncated:
                info = {**info, "is_success": False}
            return observation, reward, terminated, truncated, info

    model = ScriptedRewardModel(success=[0.0, 0.0, *[1.0] * 10])
    env = wrap(ReportsAtTheEnd(lengths=[2, 9]), model, predict_every=2)
    env.reset()
    assert play(env)[-1][3]["is_success"] is False
    env.reset()
    _, terminated, _, info = play(env)[-1]
    assert terminated
    assert info["robometer/success"] is True
    assert "is_success" not in info


@pytest.mark.parametrize("reward", [3, np.float32(0.1), np.float64(0.1), -1.5])
def test_the_environments_reward_is_unchanged(reward):
    """`env_reward` is what the agent is compared with."""

    class Constant(CountingEnv):
        def step(self, action):
            observation, _, *others = super().step(action)
            return observation, reward, *others

    model = ScriptedRewardModel(progress=[0.25, 0.5])
    env = wrap(Constant(lengths=[1]), model, scale=2.0, success_bonus=5.0)
    env.reset()
    ((earned, _, _, info),) = play(env)
    assert earned == 0.5
    assert info["env_reward"] == reward


def test_infos_and_observations_of_the_environment_pass():
    """Other wrappers and the agent would miss the environment's infos."""

    class Informs(CountingEnv):
        latest: Any = None

        def step(self, action):
            *others, _ = super().step(action)
            self.latest = {"distance": 3.0}
            return (*others, self.latest)

    bare = Informs(lengths=[3])
    env = wrap(bare, ScriptedRewardModel())
    observation, _ = env.reset()
    assert observation == 0
    observation, *_, info = env.step(0)
    assert observation == 1
    assert info["distance"] == 3.0
    assert bare.latest == {"distance": 3.0}  # the environment's own dict is left as it was
