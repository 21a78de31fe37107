"""RobometerRewardWrapper: specs, env checkers, pickles, and wrappers around and inside it."""

import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics

from robometer_gym import RobometerRewardWrapper
from robometer_gym.reward_model import Clip
from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from robometer_gym.tracking.settings import RewardSettings
from tests.wrappers.rollouts import TASK, play, rewards, wrap

TABLETOP = "robometer_gym/TabletopReach-v0"


def tabletop(model: Any = None, **settings: Any) -> Any:
    """The built-in environment, wrapped."""
    env = gym.make(TABLETOP, render_mode="rgb_array")
    return wrap(env, ScriptedRewardModel() if model is None else model, **settings)


def brightness(clip: Clip) -> float:
    """A model that depends on every pixel it is shown."""
    return float(np.mean([image.mean() for image in clip.images])) / 255


def test_seeds_and_random_state_of_the_environment_are_untouched():
    """Runs with and without the reward model could not be compared."""
    bare, env = gym.make(TABLETOP, render_mode="rgb_array"), tabletop()
    for seed in (3, None, 7):
        for e in (bare, env):
            e.action_space.seed(5)
        (there, _), (here, info) = bare.reset(seed=seed), env.reset(seed=seed)
        np.testing.assert_array_equal(here, there)
        for _ in range(30):
            there, reward, *_, its_info = bare.step(bare.action_space.sample())
            here, _, *_, info = env.step(env.action_space.sample())
            np.testing.assert_array_equal(here, there)
            assert info["env_reward"] == reward
            assert info["is_success"] == its_info["is_success"]
        assert (
            env.unwrapped.np_random.bit_generator.state
            == bare.unwrapped.np_random.bit_generator.state
        )


SETTINGS: dict[str, Any] = {
    "predict_every": 3,
    "max_frames": 4,
    "sampling": "tail",
    "pad": "repeat",
    "mode": "shape",
    "signal": "potential",
    "gamma": 0.9,
    "scale": 2.0,
    "success_threshold": 0.5,
    "success_votes": 2,
    "success_window": 3,
    "success_bonus": 1.0,
    "terminate_on_success": False,
    "camera": {"above": "render"},
    "frame_size": 32,
    "max_black_frames": 3,
    "on_error": "hold",
    "background": False,
    "max_wait": 0.5,
    "timeout": 9.0,
}


@pytest.fixture
def named_model(monkeypatch):
    """The reward model that every name stands for."""
    model = ScriptedRewardModel(progress=brightness)
    monkeypatch.setattr("robometer_gym.models.loading._load", lambda name: model)
    return model


@pytest.mark.parametrize("through_json", [False, True])
def test_the_spec_rebuilds_the_wrapped_environment(named_model, through_json):
    """A run could not be repeated from its stored spec, or with other settings unnoticed."""
    assert set(SETTINGS) == set(RewardSettings.__dataclass_fields__)
    env = tabletop("org/name", **SETTINGS)
    spec = EnvSpec.from_json(env.spec.to_json()) if through_json else env.spec
    again = gym.make(spec)
    assert str(again) == str(env)
    assert isinstance(again, RobometerRewardWrapper)
    assert again.spec is not None
    assert again.spec.additional_wrappers[-1].kwargs == {
        "task": TASK,
        "reward_model": "org/name",
        **SETTINGS,
    }
    runs = []
    for e in (env, again):
        named_model.clips.clear()
        e.reset(seed=3)
        e.action_space.seed(3)
        earned = rewards(e, 10)
        runs.append((earned, [(c.steps, c.task, c.frames.tolist()) for c in named_model.clips]))
    assert runs[0] == runs[1]
    assert len({*runs[0][0]}) > 1
    assert named_model.clips[-1].frames.shape == (4, 32, 32, 3)


def test_the_spec_of_a_path_goes_into_json(named_model):
    """A run on a checkpoint of one's own could not be stored."""
    env = tabletop(Path("runs") / "best")
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.spec is not None
    kwargs = again.spec.additional_wrappers[-1].kwargs
    assert kwargs == {"task": TASK, "reward_model": str(Path("runs") / "best")}


@pytest.mark.parametrize("outside", [lambda env: env, RecordEpisodeStatistics])
def test_a_live_model_does_not_go_into_json(outside):
    """The message would name a class of ours, and not the argument."""
    with pytest.raises(TypeError, match=r"does not go into JSON.* 'demo' as reward_model"):
        outside(tabletop()).spec.to_json()
    with pytest.raises(TypeError, match=r"'render' or an observation key as camera"):
        outside(tabletop("org/name", camera=lambda env, _: env.render())).spec.to_json()


class Huge(ScriptedRewardModel):
    """A model that refuses to be copied."""

    def __deepcopy__(self, memo):
        raise AssertionError("nine gigabytes were copied")


def test_a_live_model_is_shared_and_not_copied():
    """Reading an environment's spec would copy a model of nine gigabytes."""
    model = Huge()
    env = tabletop(model)
    assert env.spec.additional_wrappers[-1].kwargs["reward_model"].load() is model
    again = gym.make(env.spec)
    again.reset(seed=0)
    assert len(model.clips) == 1


def test_a_live_model_is_not_copied_by_the_spec_of_an_outer_wrapper():
    """RecordEpisodeStatistics around the wrapper would double the memory, or lose the spec."""
    model = Huge()
    env = RecordEpisodeStatistics(tabletop(model))
    assert env.spec is not None
    kwargs = env.spec.additional_wrappers[-2].kwargs
    assert kwargs is not None
    assert kwargs["reward_model"].load() is model
    again = gym.make(env.spec)
    again.reset(seed=0)
    assert len(model.clips) == 1


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version:UserWarning")
@pytest.mark.parametrize("signal", ["delta", "progress"])
def test_gymnasium_finds_nothing_wrong(signal):
    """Other libraries rely on what this checks."""
    check_env(tabletop(ScriptedRewardModel(progress=brightness), signal=signal))


def test_stable_baselines3_finds_nothing_wrong():
    """SB3 would refuse the environment, or misread it."""
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    sb3.check_env(tabletop(ScriptedRewardModel(progress=brightness)), skip_render_check=False)


@pytest.mark.parametrize("make", [lambda m: wrap(CountingEnv(), m, predict_every=2), tabletop])
def test_a_pickled_environment_goes_on_in_mid_episode(make: Callable[[Any], Any]):
    """A run that is stored and resumed would lose an episode or get a jump of reward."""
    env = make(ScriptedRewardModel(progress=[i / 32 for i in range(30)]))
    env.reset(seed=1)
    play(env, 3)
    twin = pickle.loads(pickle.dumps(env))
    action = env.action_space.sample()
    for _ in range(7):
        (here, *mine), (there, *its) = env.step(action), twin.step(action)
        np.testing.assert_array_equal(here, there)
        assert mine == its


def test_statistics_outside_count_our_rewards_and_end_at_success():
    """Learning curves would show the environment's reward instead of the agent's."""
    model = ScriptedRewardModel(progress=[0.25, 0.5, 1.0], success=[0.0, 0.75, 0.75])
    env = RecordEpisodeStatistics(wrap(CountingEnv(), model, predict_every=3, success_bonus=4.0))
    env.reset()
    results = play(env)
    assert len(results) == 6
    episode = results[-1][3]["episode"]
    assert (episode["r"], episode["l"]) == (4.75, 6)


def test_help_shows_the_settings():
    """Editors would show `**settings`."""
    assert "predict_every: int = 5" in str(inspect.signature(RobometerRewardWrapper)).replace(
        "'", ""
    )


def test_a_second_wrapper_is_refused():
    """The first one's reward would pass for the environment's own, and its success too."""
    env = gym.wrappers.TimeLimit(wrap(CountingEnv(), ScriptedRewardModel()), 5)
    with pytest.raises(ValueError, match="in a RobometerRewardWrapper already"):
        wrap(env, ScriptedRewardModel())
