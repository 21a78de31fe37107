"""Helpers of the tests of RecordEpisodes: a camera that shows its step, envs and episodes."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from robometer_gym import RecordEpisodes
from robometer_gym.data import read_episodes
from robometer_gym.testing import CountingEnv

TASK = "open the drawer"

TABLETOP = "robometer_gym/TabletopReach-v0"


def gray_camera(env: Any, observation: Any) -> np.ndarray:
    """Return a frame that shows its step k, also after a codec, as the gray 40 + 20 k."""
    return np.full((32, 48, 3), 40 + 20 * env.unwrapped.steps, np.uint8)


def steps(episode: Any) -> list[int]:
    """Return the steps that the frames of `gray_camera` show."""
    frames = episode.frames[range(len(episode))]
    return [round((float(frame.mean()) - 40) / 20) for frame in frames]


def record(env: Any, folder: Path, **settings: Any) -> RecordEpisodes:
    """Wrap an environment in the wrapper under test."""
    return RecordEpisodes(env, folder, **{"task": TASK, "camera": gray_camera, **settings})


def counting(*lengths: int, **settings: Any) -> CountingEnv:
    """Return an environment that fails in its even episodes by default."""
    return CountingEnv(lengths=lengths or [3], **{"success": [False, True], **settings})


def play(env: Any, number: int | None = None, **reset: Any) -> dict[str, Any]:
    """Take `number` steps of a new episode, or all; return the last info."""
    info: dict[str, Any]
    _, info = env.reset(**reset)
    done, taken = False, 0
    while taken != number and not done:
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        done, taken = bool(terminated or truncated), taken + 1
    return info


def summaries(folder: Path) -> list[tuple[str, str, int]]:
    """Return task, outcome and number of frames of each episode in the folder."""
    return [(e.task, e.outcome, len(e)) for e in read_episodes(folder)]


def fps_of(folder: Path) -> list[float]:
    """Return the rates in the list."""
    lines = (folder / "episodes.jsonl").read_text().splitlines()
    return [json.loads(line)["fps"] for line in lines]
