"""RecordEpisodes among other wrappers: transparency, specs, vector envs, pickling, settings."""

import pickle
import re
import tracemalloc
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import TimeLimit

from robometer_gym import RecordEpisodes, RobometerRewardWrapper
from robometer_gym.data import read_episodes
from robometer_gym.envs import TASKS
from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from tests.wrappers.recording import (
    TABLETOP,
    TASK,
    counting,
    fps_of,
    play,
    record,
    steps,
    summaries,
)


def test_the_environment_is_untouched(tmp_path):
    """Runs with and without a recorder could not be compared."""
    bare = gym.make(TABLETOP, render_mode="rgb_array", max_episode_steps=15)
    env: Any = RecordEpisodes(
        gym.make(TABLETOP, render_mode="rgb_array", max_episode_steps=15), tmp_path
    )
    for seed in (3, None, 7):
        for e in (bare, env):
            e.action_space.seed(5)
        options = {"task": TASKS[0]}
        (there, info), (here, other_info) = (
            e.reset(seed=seed, options=options) for e in (bare, env)
        )
        np.testing.assert_array_equal(here, there)
        assert info == other_info
        truncated = False
        while not truncated:
            (there, *bare_rest), (here, *rest) = (
                e.step(e.action_space.sample()) for e in (bare, env)
            )
            np.testing.assert_array_equal(here, there)
            assert bare_rest == rest
            truncated = bare_rest[2]  # type: ignore[assignment]
        states = [e.unwrapped.np_random.bit_generator.state for e in (bare, env)]
        assert states[0] == states[1]
    assert len(read_episodes(tmp_path)) == 3


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version:UserWarning")
def test_gymnasiums_checker_passes(tmp_path):
    """Other libraries rely on the rules that it checks."""
    check_env(RecordEpisodes(gym.make(TABLETOP, render_mode="rgb_array"), tmp_path))


@pytest.mark.parametrize("through_json", [False, True])
def test_the_spec_rebuilds_the_recorder(tmp_path, through_json):
    """A run could not be repeated from its stored spec, or with other settings unnoticed."""
    bare = gym.make(TABLETOP, render_mode="rgb_array", max_episode_steps=3)
    env = RecordEpisodes(bare, tmp_path, task=TASK, frame_size=32, fps=5)
    assert env.spec is not None
    spec = EnvSpec.from_json(env.spec.to_json()) if through_json else env.spec
    again = gym.make(spec)
    assert isinstance(again, RecordEpisodes)
    assert str(again) == str(env)
    for e in (env, again):
        play(e)
    assert summaries(tmp_path) == [(TASK, "failure", 4)] * 2
    assert fps_of(tmp_path) == [5.0, 5.0]
    assert [e.frames[[0]].shape for e in read_episodes(tmp_path)] == [(1, 32, 32, 3)] * 2
    assert again.spec is not None
    assert again.spec.additional_wrappers[-1].kwargs == {
        "folder": str(tmp_path),
        "task": TASK,
        "camera": "render",
        "frame_size": 32,
        "outcome": None,
        "hold": 0,
        "fps": 5,
    }


def test_functions_survive_the_spec(tmp_path):
    """A rebuilt environment would use another camera or other outcomes."""
    bare = gym.make(TABLETOP, render_mode="rgb_array", max_episode_steps=2)

    def camera(env, observation):
        return env.render()[:40, :30]

    env = RecordEpisodes(bare, tmp_path, camera=camera, outcome=lambda info: "suboptimal")
    assert env.spec is not None
    play(gym.make(env.spec))
    (episode,) = read_episodes(tmp_path)
    assert (episode.outcome, episode.frames[[0]].shape) == ("suboptimal", (1, 40, 30, 3))


def test_around_a_reward_wrapper_the_agents_episodes_are_recorded(tmp_path):
    """An episode that ends with a detected success would never be written."""
    model = ScriptedRewardModel(success=[0.0, 0.9, 0.9])
    inner = RobometerRewardWrapper(
        CountingEnv(lengths=[9]), task=TASK, reward_model=model, predict_every=1
    )
    env = record(inner, tmp_path)
    info = play(env)
    assert (info["robometer/success"], info["env_reward"]) == (True, 2.0)
    assert summaries(tmp_path) == [(TASK, "successful", 3)]


def test_inside_a_reward_wrapper_the_environments_episodes_are_recorded(tmp_path):
    """The environment's own outcome would be hidden by the success detector's."""
    model = ScriptedRewardModel(progress=[0.25, 0.5, 0.75])
    env = RobometerRewardWrapper(
        record(counting(4, ends=["truncated"]), tmp_path, task=None),
        task=TASK,
        reward_model=model,
        predict_every=2,
    )
    env.reset(options={"task": "fold the towel"})
    assert [env.step(0)[1] for _ in range(4)] == [0.0, 0.25, 0.0, 0.25]
    assert summaries(tmp_path) == [("fold the towel", "failure", 5)]


@pytest.mark.parametrize("inside", [False, True])
def test_a_time_limit_inside_ends_the_recorded_episode(tmp_path, inside):
    """Episodes that ran out of time would be missing from the folder."""
    bare = CountingEnv(lengths=[9], success=[True])
    env: gym.Env[Any, Any] = (
        record(TimeLimit(bare, 3), tmp_path) if inside else TimeLimit(record(bare, tmp_path), 9)
    )
    play(env)
    assert summaries(tmp_path) == [
        (TASK, "failure" if inside else "successful", 4 if inside else 10)
    ]


def test_the_environments_of_a_vector_write_into_one_folder(tmp_path):
    """Eight environments would write over each other's videos."""
    lengths = (2, 3, 4)
    env = SyncVectorEnv([partial(record, counting(n), tmp_path) for n in lengths])
    env.reset(seed=0)
    for _ in range(10):
        env.step(env.action_space.sample())
    env.close()
    episodes = read_episodes(tmp_path)
    assert len(episodes) == 3 + 2 + 2  # each is reset in a step of its own
    for episode in episodes:
        assert steps(episode) == [*range(len(episode))]
        assert len(episode) - 1 in lengths


def test_a_pickled_recorder_continues_in_mid_episode(tmp_path):
    """An environment could not be sent to another process, or would lose its episode."""
    env = record(counting(3), tmp_path)
    play(env, 2)
    twin = pickle.loads(pickle.dumps(env))
    for e in (env, twin):
        e.step(0)
    assert [steps(e) for e in read_episodes(tmp_path)] == [[0, 1, 2, 3]] * 2


def test_memory_is_that_of_one_episode(tmp_path):
    """A night of recording would fill the machine with video."""

    def camera(env, observation):
        return np.full((240, 320, 3), 9, np.uint8)

    env = record(counting(5), tmp_path, camera=camera)
    play(env)
    tracemalloc.start()
    try:
        play(env)
        early, _ = tracemalloc.get_traced_memory()
        for _ in range(10):
            play(env)
        late, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert late < early + 240 * 320 * 3


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"camera": {"a": "render"}}, TypeError, "records one camera: .*got {'a': 'render'}"),
        ({"camera": 3}, TypeError, "camera must be 'render', an observation key, a function"),
        ({"camera": "wrist"}, ValueError, "camera 'wrist' is not a key of the observation"),
        ({"frame_size": 0}, ValueError, "frame_size must be an integer >= 1, got 0"),
        ({"task": " "}, ValueError, "task must describe what the robot should do"),
        ({"task": 3}, TypeError, "task must be a string"),
        ({"hold": -1}, ValueError, "hold must be an integer >= 0, got -1"),
        ({"hold": 1.5}, ValueError, "hold must be an integer >= 0, got 1.5"),
        ({"fps": 0}, ValueError, "fps must be a number of frames per second > 0, got 0"),
        ({"fps": float("nan")}, ValueError, "fps must be a number of frames per second > 0"),
    ],
)
def test_a_bad_setting_is_refused_at_once(tmp_path, settings, error, message):
    """The mistake would show at the end of the first episode of a real robot."""
    with pytest.raises(error, match=message):
        record(counting(), tmp_path / "new", **settings)
    assert not (tmp_path / "new").exists()


def test_an_environment_without_a_render_mode_is_refused_at_once(tmp_path):
    """The mistake would show at the first reset."""
    env = CountingEnv(render_mode=None)
    with pytest.raises(ValueError, match=re.escape("needs an env made with render_mode='rgb_arr")):
        RecordEpisodes(env, tmp_path)
