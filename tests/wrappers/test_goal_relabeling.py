"""HER's compute_reward: refused everywhere, or an agent would learn the environment's rewards."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics

from robometer_gym import FrameCapture, RobometerRewardWrapper, RobometerVectorRewardWrapper
from robometer_gym.testing import ScriptedRewardModel
from tests.wrappers.rollouts import TASK

pytestmark = pytest.mark.usefixtures("no_hanging")

refused = pytest.raises(NotImplementedError, match=r"compute_reward: .* relabeled goal \(HER\) has")


class GoalEnv(gym.Env[Any, Any]):
    """A goal environment whose own rewards are -1000."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as in gym.Env
    render_mode = "rgb_array"
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    observation_space = gym.spaces.Dict(
        {
            key: gym.spaces.Box(-99, 99, (1,), np.float32)
            for key in ("observation", "achieved_goal", "desired_goal")
        }
    )

    def _observe(self) -> Any:
        return {key: np.full(1, self.steps, np.float32) for key in self.observation_space}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self._observe(), -1000.0, False, self.steps == 10, {}

    def compute_reward(self, achieved: Any, desired: Any, info: Any) -> Any:
        return np.full(len(achieved), -1000.0)

    def render(self) -> Any:
        return np.full((32, 32, 3), 99, np.uint8)


def captured() -> FrameCapture:
    return FrameCapture(GoalEnv())


@pytest.mark.parametrize("outside", [lambda env: env, RecordEpisodeStatistics])
def test_one_environment_refuses(outside):
    """`env_method` and `get_wrapper_attr` reach through every wrapper, to the wrong rewards."""
    env = outside(RobometerRewardWrapper(GoalEnv(), TASK, ScriptedRewardModel()))
    with refused:
        env.get_wrapper_attr("compute_reward")(np.zeros(1), np.zeros(1), {})


def test_a_sub_environment_refuses():
    """As above, by the path of vector environments."""
    with refused:
        captured().compute_reward(np.zeros(1), np.zeros(1), {})


def test_a_vector_environment_refuses():
    """As above."""
    core = SyncVectorEnv([captured] * 2)
    envs = RobometerVectorRewardWrapper(core, TASK, ScriptedRewardModel())
    with refused:
        envs.compute_reward(np.zeros(1), np.zeros(1), {})
    with refused:
        core.call("compute_reward", np.zeros(1), np.zeros(1), {})


@pytest.mark.parametrize("kind", ["DummyVecEnv", "SubprocVecEnv"])
def test_stable_baselines3_refuses_and_no_worker_dies(kind):
    """An exception in a worker would end it, and with it all others."""
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    from robometer_gym.sb3 import VecRobometerReward

    venv = VecRobometerReward(getattr(vec_env, kind)([captured]), TASK, ScriptedRewardModel())
    outside = vec_env.VecMonitor(venv)
    with refused:
        outside.env_method("compute_reward", np.zeros(1), np.zeros(1), {}, indices=[0])
    outside.reset()
    assert outside.step(np.zeros((1, 1), np.float32))[1].tolist() == [0.0]
    outside.close()


@pytest.mark.parametrize("kind", ["vector", "scalar"])
def test_sac_with_hindsight_replay_does_not_learn(kind):
    """Four of five sampled rewards would be the environment's own, without a word."""
    sb3 = pytest.importorskip("stable_baselines3")
    from robometer_gym.sb3 import make_robometer_vec_env

    model = ScriptedRewardModel(progress=lambda clip: clip.steps[-1] / 10)
    env = (
        make_robometer_vec_env(GoalEnv, TASK, 1, model)
        if kind == "vector"
        else RobometerRewardWrapper(GoalEnv(), TASK, model)
    )
    agent = sb3.SAC(
        "MultiInputPolicy",
        env,
        replay_buffer_class=sb3.HerReplayBuffer,
        learning_starts=20,
        device="cpu",
    )
    with refused:
        agent.learn(30)
