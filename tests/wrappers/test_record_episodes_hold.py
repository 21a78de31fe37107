"""RecordEpisodes and success: unknown outcomes, the cutoff, and steps after a success."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit
from hypothesis import given
from hypothesis import strategies as st

from robometer_gym import RecordEpisodes
from robometer_gym.data import read_episodes
from robometer_gym.testing import CountingEnv
from robometer_gym.training.labels import progress_targets
from tests.wrappers.recording import TABLETOP, TASK, play, record, steps, summaries


class SuccessEnv(CountingEnv):
    """Reports the given success at each step, and terminates at the steps of `ends`."""

    def __init__(self, successes: list[Any], ends: list[int], key: str = "is_success") -> None:
        super().__init__(lengths=[1000])
        self.successes, self.end_steps, self.key = successes, ends, key

    def step(self, action: Any) -> Any:
        observation, reward, _, _, info = super().step(action)
        success = self.successes[min(self.steps, len(self.successes)) - 1]
        return observation, reward, self.steps in self.end_steps, False, {**info, self.key: success}


def cutoff_index(folder: Any) -> int:
    """Return the first frame of the only episode that is labeled as done, or 0."""
    (episode,) = read_episodes(folder)
    targets = progress_targets(range(len(episode)), len(episode), episode.cutoff)
    return int(np.argmax(targets >= 1.0))


# --- unknown success ---


@pytest.mark.parametrize("key", ["is_success", "success"])
@pytest.mark.parametrize("unknown", [None, float("nan"), np.float32("nan")])
def test_an_unknown_success_is_neither_success_nor_failure(tmp_path, key, unknown):
    """None would be recorded as a failure and NaN as a success, and trained on as such."""
    env = record(SuccessEnv([unknown], [3], key), tmp_path)
    message = rf"outcome is unknown: the last step's info has {{'{key}': .*}}, its keys .*outcome="
    with pytest.raises(ValueError, match=message):
        play(env)
    assert list(tmp_path.iterdir()) == []
    env = record(SuccessEnv([unknown], [3], key), tmp_path, outcome=lambda info: "suboptimal")
    play(env)
    assert summaries(tmp_path) == [(TASK, "suboptimal", 4)]


def test_a_success_that_was_unknown_before_the_end_is_recorded(tmp_path):
    """An environment that knows its outcome only at the end could not be recorded."""
    play(record(SuccessEnv([None, None, True], [3]), tmp_path))
    assert summaries(tmp_path) == [(TASK, "successful", 4)]
    assert cutoff_index(tmp_path) == 3


# --- the cutoff ---


@pytest.mark.parametrize(
    ("successes", "done"),
    [
        ([False, False, False, False, True], 5),
        ([False, False, True, True, True], 3),
        ([True, True, True, True, True], 1),
        ([True, True, False, False, True], 5),  # lost in between
        ([False, True, None, True, True], 4),
        ([False, True, float("nan"), True, True], 4),
    ],
)
def test_an_episode_is_done_at_the_start_of_its_last_success(tmp_path, successes, done):
    """Frames on the goal would be labeled as on the way to it."""
    play(record(SuccessEnv(successes, [5]), tmp_path))
    assert cutoff_index(tmp_path) == done


@pytest.mark.parametrize(("successes", "outcome"), [([True, False], None), ([True], "failure")])
def test_an_episode_that_failed_has_no_cutoff(tmp_path, successes, outcome):
    """A success that was lost, or that the user denies, would cut an episode."""
    settings = {"outcome": lambda info: outcome} if outcome else {}
    play(record(SuccessEnv(successes, [5]), tmp_path, **settings))
    (episode,) = read_episodes(tmp_path)
    assert (episode.outcome, episode.cutoff) == ("failure", 1.0)


# --- hold ---


@pytest.mark.parametrize("hold", [0, 1, 4])
def test_an_episode_is_held_after_its_success(tmp_path, hold):
    """A model would be trained on one successful frame per episode, and not learn success."""
    env = record(SuccessEnv([False, False, True], [3]), tmp_path, hold=hold)
    env.reset()
    ends = [env.step(0)[2] for _ in range(3 + hold)]
    assert ends == [False] * (2 + hold) + [True]
    assert summaries(tmp_path) == [(TASK, "successful", 4 + hold)]
    assert steps(read_episodes(tmp_path)[0]) == list(range(4 + hold))
    assert cutoff_index(tmp_path) == 3


def test_an_environment_that_keeps_terminating_is_held_as_long(tmp_path):
    """TabletopReach terminates at every step on the block: the hold would end at the first."""
    env = RecordEpisodes(gym.make(TABLETOP, render_mode="rgb_array"), tmp_path, hold=10)
    env.reset(seed=0)
    done, taken = False, 0
    while not done:
        *_, terminated, truncated, info = env.step(env.unwrapped.expert_action())  # type: ignore[attr-defined]
        done, taken = terminated or truncated, taken + 1
    assert (terminated, truncated, info["is_success"]) == (True, False, True)
    (episode,) = read_episodes(tmp_path)
    assert (len(episode), episode.outcome) == (taken + 1, "successful")
    assert len(episode) - cutoff_index(tmp_path) == 11


def test_a_success_that_is_lost_ends_the_hold(tmp_path):
    """Frames off the goal would be labeled as done, or the episode as a failure."""
    env = record(SuccessEnv([False, True, True, False], [2, 3, 4]), tmp_path, hold=5)
    env.reset()
    assert [env.step(0)[2] for _ in range(4)] == [False, False, False, True]
    assert summaries(tmp_path) == [(TASK, "successful", 4)]
    assert steps(read_episodes(tmp_path)[0]) == [0, 1, 2, 3]


def test_a_truncation_ends_the_hold(tmp_path):
    """An episode would go beyond its time limit, and its end be lost with the reset."""
    env = record(TimeLimit(SuccessEnv([False, True], [2]), 4), tmp_path, hold=9)
    env.reset()
    ends = [tuple(map(bool, env.step(0)[2:4])) for _ in range(4)]
    assert ends == [(False, False)] * 3 + [(False, True)]
    assert summaries(tmp_path) == [(TASK, "successful", 5)]


def test_a_failure_is_not_held(tmp_path):
    """A fallen robot would be stepped on."""
    env = record(SuccessEnv([False], [3]), tmp_path, hold=5)
    env.reset()
    assert [env.step(0)[2] for _ in range(3)] == [False, False, True]
    assert summaries(tmp_path) == [(TASK, "failure", 4)]


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(1, 12), st.integers(0, 6))
def test_an_episode_is_written_once_whatever_comes(tmp_path_factory, successes, end, hold):
    """Some order of successes and ends would lose an episode, or write it twice."""
    folder = tmp_path_factory.mktemp("hold")
    env = record(SuccessEnv(successes, [end]), folder, hold=hold, camera="render")
    for _ in range(2):
        env.reset()
        ended = [env.step(0)[2] for _ in range(20)].index(True) + 1
        lost = [n for n in range(end, 21) if not successes[min(n, len(successes)) - 1]]
        held = min([end + hold, *lost]) if end not in lost else end
        assert ended == held
    episodes = read_episodes(folder)
    assert len(episodes) == 2
    kept = ended if successes[min(ended, len(successes)) - 1] or ended == end else ended - 1
    assert [len(episode) for episode in episodes] == [kept + 1] * 2
    good = successes[min(end, len(successes)) - 1]
    assert {episode.outcome for episode in episodes} == {"successful" if good else "failure"}
