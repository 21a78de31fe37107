"""RecordEpisodes: the frames, task and outcome of a written episode, and unwritten episodes."""

import logging
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
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
    gray_camera,
    play,
    record,
    steps,
    summaries,
)

# --- frames ---


@pytest.mark.parametrize("ends", ["terminated", "truncated"])
def test_every_frame_is_written_and_the_last_is_the_true_one(tmp_path, ends):
    """Models would be trained on episodes that end before the goal is reached."""
    env = record(counting(3, 1, 6, ends=[ends]), tmp_path)
    for _ in range(3):
        play(env)
    assert [steps(e) for e in read_episodes(tmp_path)] == [[*range(4)], [0, 1], [*range(7)]]


def test_read_frames_are_those_of_the_camera(tmp_path):
    """The frames would be of another step, upside down or in other colors."""
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
    """MuJoCo renders into one buffer: a whole episode would show its last step."""
    buffer = np.zeros((32, 48, 3), np.uint8)

    def camera(env, observation):
        buffer[:] = gray_camera(env, observation)
        return buffer

    play(record(counting(3), tmp_path, camera=camera))
    assert steps(read_episodes(tmp_path)[0]) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("camera", "frame_size", "shape"),
    [
        ("render", 240, (24, 32, 3)),
        ("render", 12, (12, 16, 3)),
        ("front", 6, (6, 8, 3)),
        (gray_camera, None, (32, 48, 3)),
    ],
)
def test_camera_and_size_are_the_configured_ones(tmp_path, camera, frame_size, shape):
    """Another camera would be recorded, or disks fill with frames of full size."""
    env = counting(2, cameras=["front"])
    play(record(env, tmp_path, camera=camera, frame_size=frame_size))
    frames = read_episodes(tmp_path)[0].frames[[0]]
    assert frames[0].shape == shape
    assert env.renders == (3 if camera == "render" else 0)


def test_the_rate_is_the_environments_or_the_given_one(tmp_path):
    """Videos would run too fast, and frames be sampled at a wrong rate."""
    silent = counting(2)
    silent.metadata = {"render_modes": ["rgb_array"]}
    play(record(counting(2), tmp_path))
    play(record(silent, tmp_path))
    play(record(counting(2), tmp_path, fps=2.5))
    assert fps_of(tmp_path) == [10.0, 20.0, 2.5]


# --- task and outcome ---


def test_the_task_comes_from_the_most_specific_source(tmp_path):
    """Videos would carry the instruction of another task: worse than none."""
    red, green, blue = TASKS
    bare = gym.make(TABLETOP, render_mode="rgb_array", task=red, max_episode_steps=2)
    play(env := RecordEpisodes(bare, tmp_path))
    play(env, options={"task": green})
    play(env, options={"other": 1})
    play(env := RecordEpisodes(bare, tmp_path, task=TASK))
    play(env, options={"task": blue})
    play(env, options={"task": None})
    assert [task for task, *_ in summaries(tmp_path)] == [red, green, red, TASK, blue, TASK]


def test_the_task_of_a_reward_wrapper_inside_is_used(tmp_path):
    """The task would have to be given twice, and the two could differ."""
    inner = RobometerRewardWrapper(
        CountingEnv(lengths=[2]), task="push the block", reward_model=ScriptedRewardModel()
    )
    env = record(TimeLimit(inner, 9), tmp_path, task=None)
    play(env)
    play(env, options={"task": "fold the towel"})
    play(env)
    assert [task for task, *_ in summaries(tmp_path)] == [
        "push the block",
        "fold the towel",
        "push the block",
    ]


class NumberedTask(CountingEnv):
    """Reports its task as a number."""

    def reset(self, **kwargs: Any) -> Any:
        observation, info = super().reset(**kwargs)
        return observation, {**info, "task": 3}


@pytest.mark.parametrize("make", [CountingEnv, NumberedTask])
def test_an_episode_without_a_task_is_refused_at_reset(tmp_path, make):
    """An hour of videos would be recorded that are useless for training."""
    env = record(make(success=[True]), tmp_path, task=None)
    with pytest.raises(ValueError, match=r"no task: .*\['options'.*task='open the drawer'\) or"):
        env.reset()
    env.step(0)
    play(env, options={"task": TASK})
    assert summaries(tmp_path) == [(TASK, "successful", 11)]


def test_a_bad_task_at_reset_leaves_the_episode_as_it_is(tmp_path):
    """A typing error would cost the running episode, or be written into the list."""
    env = record(counting(3), tmp_path)
    env.reset()
    env.step(0)
    with pytest.raises(ValueError, match="task must describe what the robot should do, got ''"):
        env.reset(options={"task": ""})
    with pytest.raises(TypeError, match="task must be a string such as"):
        env.reset(options={"task": 3})
    env.step(0)
    env.step(0)
    assert summaries(tmp_path) == [(TASK, "failure", 4)]


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
def test_the_outcome_is_the_environments(tmp_path, infos, outcome):
    """Failures would be trained on as successes."""
    play(record(Reports(**infos), tmp_path))
    assert summaries(tmp_path) == [(TASK, outcome, 3)]


def test_the_outcome_is_that_of_the_last_step(tmp_path):
    """An episode would get the outcome of its start."""
    env = record(counting(2, 3, 4), tmp_path)
    for _ in range(3):
        play(env)
    assert [outcome for _, outcome, _ in summaries(tmp_path)] == [
        "failure",
        "successful",
        "failure",
    ]


def test_an_outcome_function_decides(tmp_path):
    """A half-done task could not be recorded as one."""

    def outcome(info: dict[str, Any]) -> str:
        return "suboptimal" if info["blocks"] == 2 else "failure"

    play(record(Reports(is_success=True, blocks=2), tmp_path, outcome=outcome))
    assert summaries(tmp_path) == [(TASK, "suboptimal", 3)]


def test_an_unknown_outcome_is_refused(tmp_path):
    """Every episode would count as a failure, or as a success."""
    env = record(Reports(score=0.5), tmp_path)
    with pytest.raises(ValueError, match=r"neither 'is_success' nor 'success', .*\['score'\].*out"):
        play(env)
    odd = record(Reports(), tmp_path, outcome=lambda info: True)
    with pytest.raises(ValueError, match=r"outcome must be one of \('successful'.*got True"):
        play(odd)
    assert list(tmp_path.iterdir()) == []


# --- incomplete episodes ---


@pytest.mark.parametrize(
    ("cause", "cut"), [("reset()", lambda env: env.reset()), ("close()", lambda env: env.close())]
)
def test_an_incomplete_episode_is_not_written(tmp_path, caplog, cause, cut):
    """A rollout that was merely stopped would be trained on as a failure."""
    env = record(counting(4), tmp_path)
    play(env)
    play(env, 2)
    with caplog.at_level(logging.WARNING):
        cut(env)
    message = f"Not written to {tmp_path}: an episode of 3 frames, cut short by {cause}."
    assert caplog.messages == [message]
    assert summaries(tmp_path) == [(TASK, "failure", 5)]


class RecordsClose(CountingEnv):
    """Records whether it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True


def test_closing_closes_the_environment(tmp_path):
    """A simulator's window, or the connection to a robot, would stay open."""
    env = RecordsClose()
    record(env, tmp_path).close()
    assert env.closed


def test_an_episode_without_a_step_gives_no_warning(tmp_path, caplog):
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
    """A loop that continues after a truncation would add frames of the next scene, or episodes."""
    env = record(counting(2), tmp_path)
    play(env)
    assert env.step(0)[1] == 3.0
    play(env)
    assert [steps(e) for e in read_episodes(tmp_path)] == [[0, 1, 2]] * 2


class FailsOnce(CountingEnv):
    """Fails once, at step 2 of the second episode."""

    broken = False

    def step(self, action: Any) -> Any:
        if (self.episode, self.steps) == (1, 1) and not self.broken:
            self.broken = True
            raise OSError("the robot does not respond")
        return super().step(action)


def test_a_failed_step_drops_only_its_episode(tmp_path, caplog):
    """A simulator's crash would make the whole folder useless, or leave a gap in a video."""
    env = record(FailsOnce(lengths=[3], success=[True]), tmp_path)
    play(env)
    with pytest.raises(OSError, match="the robot does not respond"):
        play(env)
    assert caplog.messages == [
        f"Not written to {tmp_path}: an episode of 2 frames, cut short by OSError."
    ]
    env.step(0)
    env.step(0)  # the environment continues to its end, but a frame is missing
    play(env)
    assert [steps(e) for e in read_episodes(tmp_path)] == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.ones((32, 48, 3)), r"must be \(H, W, 3\) uint8 RGB; got \(32, 48, 3\) float64"),
        (np.ones((48, 32, 3), np.uint8), r"one size, got \(48, 32, 3\) after \(32, 48, 3\)\. Pass"),
    ],
)
def test_a_bad_frame_is_refused_at_once(tmp_path, frame, message):
    """A night of frames of another kind would be recorded."""
    bad = frame

    def camera(env, observation):
        steps = (env.unwrapped.episode, env.unwrapped.steps)
        return bad if steps == (0, 1) else gray_camera(env, observation)

    env = record(counting(3), tmp_path, camera=camera)
    with pytest.raises(ValueError, match=message):
        play(env)
    env.step(0)
    env.step(0)
    assert list(tmp_path.iterdir()) == []
    play(env)
    assert summaries(tmp_path) == [(TASK, "successful", 4)]


def test_a_bad_frame_at_reset_starts_no_episode(tmp_path):
    """Frames of two episodes would be written as one."""

    def camera(env, observation):
        frame = gray_camera(env, observation)
        return frame / 255 if env.unwrapped.episode == 1 else frame

    env = record(counting(3), tmp_path, camera=camera)
    play(env, 1)
    with pytest.raises(ValueError, match="uint8 RGB; got"):
        env.reset()
    env.unwrapped.episode = 2  # type: ignore[attr-defined]
    for _ in range(3):
        env.step(0)
    assert list(tmp_path.iterdir()) == []
