"""RecordEpisodes: which frames, task and outcome are written, and what is left alone."""

import json
import logging
import pickle
import re
import tracemalloc
from functools import partial
from pathlib import Path
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

TASK = "open the drawer"
TABLETOP = "robometer_gym/TabletopReach-v0"


def grey(env: Any, observation: Any) -> np.ndarray:
    """A camera that shows the step, also after a codec: step k is of the grey 40 + 20 k."""
    return np.full((32, 48, 3), 40 + 20 * env.unwrapped.steps, np.uint8)


def steps(episode: Any) -> list[int]:
    """The steps that the frames of an episode show, if `grey` took them."""
    frames = episode.frames[range(len(episode))]
    return [round((float(frame.mean()) - 40) / 20) for frame in frames]


def record(env: Any, folder: Path, **settings: Any) -> RecordEpisodes:
    """The wrapper under test."""
    return RecordEpisodes(env, folder, **{"task": TASK, "camera": grey, **settings})


def counting(*lengths: int, **settings: Any) -> CountingEnv:
    """An environment that fails in its even episodes, unless told otherwise."""
    return CountingEnv(lengths=lengths or [3], **{"success": [False, True], **settings})


def play(env: Any, number: int | None = None, **reset: Any) -> dict[str, Any]:
    """Make `number` steps of a new episode, or go on to the end; return the last info."""
    info: dict[str, Any]
    _, info = env.reset(**reset)
    over, made = False, 0
    while made != number and not over:
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        over, made = bool(terminated or truncated), made + 1
    return info


def told(folder: Path) -> list[tuple[str, str, int]]:
    """Task, outcome and number of frames of each episode in the folder."""
    return [(e.task, e.outcome, len(e)) for e in read_episodes(folder)]


# --- frames ---


@pytest.mark.parametrize("ends", ["terminated", "truncated"])
def test_every_frame_is_written_and_the_last_is_the_true_one(tmp_path, ends):
    """Models would be trained on episodes that end before the goal is reached."""
    env = record(counting(3, 1, 6, ends=[ends]), tmp_path)
    for _ in range(3):
        play(env)
    assert [steps(e) for e in read_episodes(tmp_path)] == [[*range(4)], [0, 1], [*range(7)]]


def test_what_the_camera_saw_is_what_is_read(tmp_path):
    """The pictures would be of another moment, upside down or in other colours."""
    bare = gym.make(TABLETOP, render_mode="rgb_array", max_episode_steps=20)
    env = RecordEpisodes(bare, tmp_path)
    seen = []
    env.reset(seed=1)
    seen.append(bare.render())
    for _ in range(20):
        env.step(env.unwrapped.expert_action())  # type: ignore[attr-defined]
        seen.append(bare.render())
    (episode,) = read_episodes(tmp_path)
    frames = episode.frames[range(21)].astype(int)
    apart = np.abs(frames[:, None] - np.asarray(seen, int)[None]).mean(axis=(2, 3, 4))
    assert apart.diagonal().max() < 4
    assert (apart.argmin(axis=1)[::4] == np.arange(21)[::4]).all()


def test_a_renderers_buffer_is_copied(tmp_path):
    """MuJoCo paints into one buffer: a whole episode would show its last moment."""
    buffer = np.zeros((32, 48, 3), np.uint8)

    def camera(env, observation):
        buffer[:] = grey(env, observation)
        return buffer

    play(record(counting(3), tmp_path, camera=camera))
    assert steps(read_episodes(tmp_path)[0]) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("camera", "frame_size", "shape"),
    [
        ("render", 240, (24, 32, 3)),
        ("render", 12, (12, 16, 3)),
        ("front", 6, (6, 8, 3)),
        (grey, None, (32, 48, 3)),
    ],
)
def test_camera_and_size_are_the_chosen_ones(tmp_path, camera, frame_size, shape):
    """Another camera would be recorded, or disks fill with frames of full size."""
    env = counting(2, cameras=["front"])
    play(record(env, tmp_path, camera=camera, frame_size=frame_size))
    frames = read_episodes(tmp_path)[0].frames[[0]]
    assert frames[0].shape == shape
    assert env.renders == (3 if camera == "render" else 0)


def fps_of(folder: Path) -> list[float]:
    """The rates in the list."""
    lines = (folder / "episodes.jsonl").read_text().splitlines()
    return [json.loads(line)["fps"] for line in lines]


def test_the_rate_is_the_environments_or_the_given_one(tmp_path):
    """Videos would play too fast, and frames be sampled at a wrong rate."""
    silent = counting(2)
    silent.metadata = {"render_modes": ["rgb_array"]}
    play(record(counting(2), tmp_path))
    play(record(silent, tmp_path))
    play(record(counting(2), tmp_path, fps=2.5))
    assert fps_of(tmp_path) == [10.0, 20.0, 2.5]


# --- task and outcome ---


def test_the_task_is_the_nearest_that_is_told(tmp_path):
    """Videos would carry the sentence of another task: worse than none."""
    red, green, blue = TASKS
    bare = gym.make(TABLETOP, render_mode="rgb_array", task=red, max_episode_steps=2)
    play(env := RecordEpisodes(bare, tmp_path))
    play(env, options={"task": green})
    play(env, options={"other": 1})
    play(env := RecordEpisodes(bare, tmp_path, task=TASK))
    play(env, options={"task": blue})
    play(env, options={"task": None})
    assert [task for task, *_ in told(tmp_path)] == [red, green, red, TASK, blue, TASK]


def test_the_task_of_a_reward_wrapper_inside_is_taken(tmp_path):
    """The task would have to be given twice, and the two could differ."""
    inner = RobometerRewardWrapper(
        CountingEnv(lengths=[2]), task="push the block", reward_model=ScriptedRewardModel()
    )
    env = record(TimeLimit(inner, 9), tmp_path, task=None)
    play(env)
    play(env, options={"task": "fold the towel"})
    play(env)
    assert [task for task, *_ in told(tmp_path)] == [
        "push the block",
        "fold the towel",
        "push the block",
    ]


class Asks(CountingEnv):
    """Tells its task as a number."""

    def reset(self, **kwargs: Any) -> Any:
        observation, info = super().reset(**kwargs)
        return observation, {**info, "task": 3}


@pytest.mark.parametrize("make", [CountingEnv, Asks])
def test_an_episode_without_a_task_is_refused_at_reset(tmp_path, make):
    """An hour of videos would be recorded that nobody can train on."""
    env = record(make(success=[True]), tmp_path, task=None)
    with pytest.raises(ValueError, match=r"no task: .*\['options'.*task='open the drawer'\) or"):
        env.reset()
    env.step(0)
    play(env, options={"task": TASK})
    assert told(tmp_path) == [(TASK, "successful", 11)]


def test_a_bad_task_at_reset_leaves_the_episode_as_it_is(tmp_path):
    """A typing error would cost the running episode, or be written into the list."""
    env = record(counting(3), tmp_path)
    env.reset()
    env.step(0)
    with pytest.raises(ValueError, match="task must say what the robot should do, got ''"):
        env.reset(options={"task": ""})
    with pytest.raises(TypeError, match="task must be a string such as"):
        env.reset(options={"task": 3})
    env.step(0)
    env.step(0)
    assert told(tmp_path) == [(TASK, "failure", 4)]


class Reports(CountingEnv):
    """Reports the given infos at every step."""

    def __init__(self, **infos: Any) -> None:
        super().__init__(lengths=[2])
        self.infos = infos

    def step(self, action: Any) -> Any:
        *rest, info = super().step(action)
        return (*rest, {**info, **self.infos})


@pytest.mark.parametrize(
    ("infos", "outcome"),
    [
        ({"is_success": True}, "successful"),
        ({"is_success": np.False_}, "failure"),
        ({"success": 1.0}, "successful"),
        ({"success": 0.0}, "failure"),
        ({"is_success": False, "success": True}, "failure"),
    ],
)
def test_the_outcome_is_what_the_environment_says(tmp_path, infos, outcome):
    """Failures would be trained on as successes."""
    play(record(Reports(**infos), tmp_path))
    assert told(tmp_path) == [(TASK, outcome, 3)]


def test_the_outcome_is_that_of_the_last_step(tmp_path):
    """An episode would be judged by its beginning."""
    env = record(counting(2, 3, 4), tmp_path)
    for _ in range(3):
        play(env)
    assert [outcome for _, outcome, _ in told(tmp_path)] == ["failure", "successful", "failure"]


def test_an_outcome_function_decides(tmp_path):
    """A half-done task could not be recorded as one."""

    def judge(info: dict[str, Any]) -> str:
        return "suboptimal" if info["blocks"] == 2 else "failure"

    play(record(Reports(is_success=True, blocks=2), tmp_path, outcome=judge))
    assert told(tmp_path) == [(TASK, "suboptimal", 3)]


def test_an_outcome_that_nobody_tells_is_refused(tmp_path):
    """Every episode would count as a failure, or as a success."""
    env = record(Reports(score=0.5), tmp_path)
    with pytest.raises(ValueError, match=r"neither 'is_success' nor 'success', .*\['score'\].*out"):
        play(env)
    odd = record(Reports(), tmp_path, outcome=lambda info: True)
    with pytest.raises(ValueError, match=r"outcome must be one of \('successful'.*got True"):
        play(odd)
    assert list(tmp_path.iterdir()) == []


# --- episodes that do not come to their end ---


@pytest.mark.parametrize(
    ("cause", "cut"), [("reset()", lambda env: env.reset()), ("close()", lambda env: env.close())]
)
def test_an_episode_that_is_cut_short_is_not_written(tmp_path, caplog, cause, cut):
    """A rollout that was merely stopped would be trained on as a failure."""
    env = record(counting(4), tmp_path)
    play(env)
    play(env, 2)
    with caplog.at_level(logging.WARNING):
        cut(env)
    message = f"Not written to {tmp_path}: an episode of 3 frames, cut short by {cause}."
    assert caplog.messages == [message]
    assert told(tmp_path) == [(TASK, "failure", 5)]


class Closes(CountingEnv):
    """Knows whether it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True


def test_closing_closes_the_environment(tmp_path):
    """A simulator's window, or the connection to a robot, would stay open."""
    env = Closes()
    record(env, tmp_path).close()
    assert env.closed


def test_an_episode_of_no_step_is_nothing_to_warn_of(tmp_path, caplog):
    """Stable-Baselines3 resets after each episode: every close would warn."""
    env = record(counting(1), tmp_path)
    with caplog.at_level(logging.WARNING):
        play(env)
        env.reset()
        env.reset()
        env.close()
        env.close()
    assert caplog.messages == []
    assert len(read_episodes(tmp_path)) == 1


def test_steps_after_the_end_are_not_recorded(tmp_path):
    """A loop that goes on after a truncation would add frames of the next scene, or episodes."""
    env = record(counting(2), tmp_path)
    play(env)
    assert env.step(0)[1] == 3.0
    play(env)
    assert [steps(e) for e in read_episodes(tmp_path)] == [[0, 1, 2]] * 2


class Breaks(CountingEnv):
    """Fails once, at step 2 of the second episode."""

    broken = False

    def step(self, action: Any) -> Any:
        if (self.episode, self.steps) == (1, 1) and not self.broken:
            self.broken = True
            raise OSError("the robot does not answer")
        return super().step(action)


def test_a_failed_step_costs_its_episode_alone(tmp_path, caplog):
    """A simulator's crash would make the whole folder useless, or leave a gap in a video."""
    env = record(Breaks(lengths=[3], success=[True]), tmp_path)
    play(env)
    with pytest.raises(OSError, match="the robot does not answer"):
        play(env)
    assert caplog.messages == [
        f"Not written to {tmp_path}: an episode of 2 frames, cut short by OSError."
    ]
    env.step(0)
    env.step(0)  # the environment goes on to its end, but a frame is missing
    play(env)
    assert [steps(e) for e in read_episodes(tmp_path)] == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((32, 48, 3), np.uint8), "Frame from the camera function is entirely black"),
        (np.ones((32, 48, 3)), r"must be \(H, W, 3\) uint8 RGB; got \(32, 48, 3\) float64"),
        (np.ones((48, 32, 3), np.uint8), r"one size, got \(48, 32, 3\) after \(32, 48, 3\)\. Give"),
    ],
)
def test_a_bad_frame_is_refused_when_it_comes(tmp_path, frame, message):
    """A night of black pictures would be recorded."""
    bad = frame

    def camera(env, observation):
        steps = (env.unwrapped.episode, env.unwrapped.steps)
        return bad if steps == (0, 1) else grey(env, observation)

    env = record(counting(3), tmp_path, camera=camera)
    with pytest.raises(ValueError, match=message):
        play(env)
    env.step(0)
    env.step(0)
    assert list(tmp_path.iterdir()) == []
    play(env)
    assert told(tmp_path) == [(TASK, "successful", 4)]


def test_a_bad_frame_at_reset_begins_no_episode(tmp_path):
    """Frames of two episodes would be written as one."""

    def camera(env, observation):
        return grey(env, observation) * (env.unwrapped.episode != 1)

    env = record(counting(3), tmp_path, camera=camera)
    play(env, 1)
    with pytest.raises(ValueError, match="entirely black"):
        env.reset()
    env.unwrapped.episode = 2  # type: ignore[attr-defined]
    for _ in range(3):
        env.step(0)
    assert list(tmp_path.iterdir()) == []


# --- what is left alone, and where it stands among other wrappers ---


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
        (there, info), (here, its) = (e.reset(seed=seed, options=options) for e in (bare, env))
        np.testing.assert_array_equal(here, there)
        assert info == its
        truncated = False
        while not truncated:
            (there, *mine), (here, *theirs) = (e.step(e.action_space.sample()) for e in (bare, env))
            np.testing.assert_array_equal(here, there)
            assert mine == theirs
            truncated = mine[2]  # type: ignore[assignment]
        states = [e.unwrapped.np_random.bit_generator.state for e in (bare, env)]
        assert states[0] == states[1]
    assert len(read_episodes(tmp_path)) == 3


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version:UserWarning")
def test_gymnasium_finds_nothing_wrong(tmp_path):
    """Other libraries rely on what this checks."""
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
    assert told(tmp_path) == [(TASK, "failure", 4)] * 2
    assert fps_of(tmp_path) == [5.0, 5.0]
    assert [e.frames[[0]].shape for e in read_episodes(tmp_path)] == [(1, 32, 32, 3)] * 2
    assert again.spec is not None
    assert again.spec.additional_wrappers[-1].kwargs == {
        "folder": str(tmp_path),
        "task": TASK,
        "camera": "render",
        "frame_size": 32,
        "outcome": None,
        "fps": 5,
    }


def test_functions_survive_the_spec(tmp_path):
    """A rebuilt environment would use another camera, or judge its episodes differently."""
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
    assert told(tmp_path) == [(TASK, "successful", 3)]


def test_inside_a_reward_wrapper_the_environments_episodes_are_recorded(tmp_path):
    """The environment's own outcome would be lost behind the model's opinion."""
    model = ScriptedRewardModel(progress=[0.25, 0.5, 0.75])
    env = RobometerRewardWrapper(
        record(counting(4, ends=["truncated"]), tmp_path, task=None),
        task=TASK,
        reward_model=model,
        predict_every=2,
    )
    env.reset(options={"task": "fold the towel"})
    assert [env.step(0)[1] for _ in range(4)] == [0.0, 0.25, 0.0, 0.25]
    assert told(tmp_path) == [("fold the towel", "failure", 5)]


@pytest.mark.parametrize("inside", [False, True])
def test_a_time_limit_ends_the_episode_where_the_recorder_sees_it(tmp_path, inside):
    """Episodes that ran out of time would be missing from the folder."""
    bare = CountingEnv(lengths=[9], success=[True])
    env: gym.Env[Any, Any] = (
        record(TimeLimit(bare, 3), tmp_path) if inside else TimeLimit(record(bare, tmp_path), 9)
    )
    play(env)
    assert told(tmp_path) == [(TASK, "failure" if inside else "successful", 4 if inside else 10)]


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


def test_a_pickled_recorder_goes_on_in_mid_episode(tmp_path):
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


# --- settings ---


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"camera": {"a": "render"}}, TypeError, "records one camera: .*got {'a': 'render'}"),
        ({"camera": 3}, TypeError, "camera must be 'render', an observation key, a function"),
        ({"camera": "wrist"}, ValueError, "camera 'wrist' is not a key of the observation"),
        ({"frame_size": 0}, ValueError, "frame_size must be an integer >= 1, got 0"),
        ({"task": " "}, ValueError, "task must say what the robot should do"),
        ({"task": 3}, TypeError, "task must be a string"),
        ({"fps": 0}, ValueError, "fps must be a number of frames per second > 0, got 0"),
        ({"fps": float("nan")}, ValueError, "fps must be a number of frames per second > 0"),
    ],
)
def test_a_bad_setting_is_refused_at_once(tmp_path, settings, error, message):
    """The mistake would show at the end of the first episode of a real robot."""
    with pytest.raises(error, match=message):
        record(counting(), tmp_path / "new", **settings)
    assert not (tmp_path / "new").exists()


def test_an_environment_that_shows_nothing_is_refused_at_once(tmp_path):
    """The mistake would show at the first reset."""
    env = CountingEnv(render_mode=None)
    with pytest.raises(ValueError, match=re.escape("needs an env made with render_mode='rgb_arr")):
        RecordEpisodes(env, tmp_path)
