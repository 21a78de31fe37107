"""Scripted episodes of TabletopReach: labels, frames and instructions match the script.

Positions are read from observations, never from the env's own `offset`.
"""

from typing import Any

import numpy as np
import pytest

from robometer_gym.data import Episode
from robometer_gym.envs import TASKS, TabletopReachEnv, scripted_episodes
from robometer_gym.envs.scripted_episodes import SCRIPTS, make_scripted_episode
from robometer_gym.training.labels import progress_targets

SEEDS = range(40)
REACH = 0.1  # of the block's center


class RecordingEnv(TabletopReachEnv):
    """Records observations and successes; its frame is the step number."""

    last: "RecordingEnv"

    def reset(self, **kwargs: Any) -> Any:
        """Start a new recording."""
        obs, info = super().reset(**kwargs)
        self.earlier = [*getattr(self, "earlier", []), *getattr(self, "successes", [])]
        self.observations, self.successes, self.task = [obs], [False], info["task"]
        RecordingEnv.last = self
        return obs, info

    def step(self, action: Any) -> Any:
        """Record one step."""
        result = super().step(action)
        self.observations.append(result[0])
        self.successes.append(result[4]["is_success"])
        return result

    def render(self) -> Any:
        """Paint the step number."""
        return np.full((1, 1, 3), len(self.observations) - 1, np.uint8)

    def distances(self, task: str) -> list[float]:
        """Return the distance from the gripper to a task's block, at every step."""
        block = 2 + 2 * TASKS.index(task)
        return [float(np.hypot(*(obs[:2] - obs[block : block + 2]))) for obs in self.observations]


@pytest.fixture
def run_script(monkeypatch):
    """Run a script in an env that records it."""
    monkeypatch.setattr(scripted_episodes, "TabletopReachEnv", RecordingEnv)

    def run(script: Any, seed: int, **kwargs: Any) -> tuple[Episode, RecordingEnv]:
        return make_scripted_episode(script, seed, **kwargs), RecordingEnv.last

    return run


def drawn_task(seed: int) -> str:
    """Return the task that an env with this seed names."""
    return str(TabletopReachEnv().reset(seed=seed)[1]["task"])


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_frame_is_kept_once_and_in_order(run_script, script):
    """Progress, which is counted in frames, would be wrong, or the end of an episode missing."""
    for seed in SEEDS:
        episode, env = run_script(script, seed)
        frames = episode.frames[range(len(episode))]
        assert frames[:, 0, 0, 0].tolist() == list(range(len(env.observations)))


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_instruction_is_the_envs(run_script, script):
    """A wrong-block episode would carry the task of that block, and be no failure."""
    assert {run_script(script, seed)[0].task for seed in SEEDS} == set(TASKS)
    for seed in SEEDS:
        assert run_script(script, seed)[0].task == drawn_task(seed)


@pytest.mark.parametrize("rest", [0, 1, 13])
def test_the_expert_succeeds_at_its_cutoff(run_script, rest):
    """Frames before success would be labeled successes, or those at rest failures."""
    for seed in SEEDS:
        episode, env = run_script("expert", seed, rest=rest)
        assert (episode.outcome, episode.partial_success) == ("successful", None)
        first = env.successes.index(True)
        assert len(episode) == first + 1 + rest
        progress = progress_targets(range(len(episode)), len(episode), episode.cutoff)
        assert progress.tolist().index(1.0) == first
        assert all(env.successes[first:])  # it rests on the block
        assert max(env.distances(episode.task)[first:]) <= REACH
        assert (episode.cutoff == 1.0) == (rest == 0)


def test_experts_differ_in_skill(run_script):
    """All would move in a straight line, and a model would learn the line, not the task."""
    detours = []
    for seed in SEEDS:
        _, env = run_script("expert", seed)
        positions = np.array([obs[:2] for obs in env.observations])
        traveled = np.linalg.norm(np.diff(positions, axis=0), axis=1).sum()
        detours.append(traveled / np.linalg.norm(positions[-1] - positions[0]))
    assert min(detours) < 1.02
    assert max(detours) > 1.1


def test_the_partial_success_of_stops_is_the_distance_covered(run_script):
    """A label would not match the frames, or a success be labeled suboptimal."""
    shares = []
    for seed in SEEDS:
        episode, env = run_script("stops", seed)
        distances = env.distances(episode.task)
        assert episode.outcome == "suboptimal"
        assert episode.partial_success == pytest.approx(1 - distances[-1] / distances[0], abs=1e-5)
        assert distances[-1] > 0.08  # beside the block, if not on the way
        assert not any(env.successes)
        assert distances[-6] == pytest.approx(distances[-1], abs=0.06)  # it has stopped
        shares.append(episode.partial_success)
    assert min(shares) < 0.3
    assert max(shares) > 0.8


def test_misses_rests_beside_the_block(run_script):
    """A model would take every rest near the block for success, and an agent would settle there."""
    directions = []
    for seed in SEEDS:
        episode, env = run_script("misses", seed)
        distances = env.distances(episode.task)
        assert episode.outcome == "suboptimal"
        assert episode.partial_success == pytest.approx(1 - distances[-1] / distances[0], abs=1e-5)
        assert not any(env.successes)
        assert distances[-6] == pytest.approx(distances[-1], abs=1e-6)  # it rests
        assert REACH < distances[-1] < 4 * REACH
        block = env.observations[-1][2 + 2 * TASKS.index(episode.task) :][:2]
        directions.append(np.arctan2(*(env.observations[-1][:2] - block)))
    assert np.ptp(directions) > 5  # on every side of it


def test_wanders_fails(run_script):
    """Failures would all be alike, or their partial success outside [0, 1]."""
    shares = []
    for seed in SEEDS:
        episode, env = run_script("wanders", seed)
        distances = env.distances(episode.task)
        covered = max(0.0, 1 - distances[-1] / distances[0])
        assert episode.outcome == "failure"
        assert episode.partial_success == pytest.approx(covered, abs=1e-5)
        assert not any(env.successes)
        assert 11 <= len(episode) <= 80
        shares.append(episode.partial_success)
    assert 0.0 in shares  # some moved away from it
    assert max(shares) > 0.1


@pytest.mark.parametrize(
    ("script", "seed", "outcome"),
    [("stops", 65, "suboptimal"), ("stops", 84, "suboptimal"), ("wanders", 533, "failure")],
)
def test_an_accidental_success_runs_again(run_script, script, seed, outcome):
    """Frames on the named block would be labeled as no success."""
    episode, env = run_script(script, seed)
    assert any(env.earlier)  # otherwise the seed shows nothing
    assert not any(env.successes)
    distances = env.distances(episode.task)
    covered = max(0.0, 1 - distances[-1] / distances[0])
    assert (episode.task, episode.outcome) == (drawn_task(seed), outcome)
    assert episode.partial_success == pytest.approx(covered, abs=1e-5)
    frames = episode.frames[range(len(episode))]  # of the last run alone
    assert frames[:, 0, 0, 0].tolist() == list(range(len(env.observations)))
    table = TabletopReachEnv().reset(seed=seed)[0]
    np.testing.assert_array_equal(env.observations[0], table)


def test_the_wrong_block_is_another_block(run_script):
    """A success would be labeled a failure: a model would learn to ignore the instruction."""
    reached = set()
    for seed in SEEDS:
        episode, env = run_script("wrong_block", seed)
        assert (episode.outcome, episode.partial_success) == ("failure", 0.0)
        (on,) = (task for task in TASKS if env.distances(task)[-1] <= REACH)
        assert on == env.task != episode.task
        reached.add((TASKS.index(episode.task), TASKS.index(on)))
        named = env.distances(episode.task)
        assert named[-1] >= named[0]  # none of the distance was covered
    assert len(reached) == 6


def test_all_scripts_start_at_one_table():
    """Good and bad episodes could be distinguished before anything has happened."""
    for seed in range(3):
        first, *others = (make_scripted_episode(script, seed) for script in SCRIPTS)
        for other in others:
            assert other.task == first.task
            np.testing.assert_array_equal(other.frames[[0]], first.frames[[0]])


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_seed_decides_everything(script):
    """The training set of a published model could not be made again."""
    one, same, another = (make_scripted_episode(script, seed) for seed in (5, 5, 6))
    frames = one.frames[range(len(one))]
    assert frames.shape == (len(one), 64, 64, 3)
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, same.frames[range(len(same))])
    assert (one.task, one.outcome, one.partial_success, one.cutoff) == (
        same.task,
        same.outcome,
        same.partial_success,
        same.cutoff,
    )
    assert not np.array_equal(one.frames[[0]], another.frames[[0]])


def test_an_unknown_script_raises():
    """A typo would quietly run another script."""
    with pytest.raises(ValueError, match=r"script must be one of \('expert', .*got 'expret'"):
        make_scripted_episode("expret", 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("script", "rest", "message"),
    [
        ("stops", 1, "rest must be 0 for every script but 'expert', got 1 for 'stops'"),
        ("wanders", 20, "rest must be 0 for every script but 'expert', got 20 for 'wanders'"),
        ("wrong_block", 1, "rest must be 0 for every script but 'expert', got 1 for 'wrong_block'"),
        ("stops", -1, "rest must be an integer >= 0, got -1"),
        ("expert", -1, "rest must be an integer >= 0, got -1"),
        ("expert", True, "rest must be an integer >= 0, got True"),
    ],
)
def test_only_the_expert_can_rest(script, rest, message):
    """A script that has not arrived would move on to the block, and the failure be a success."""
    with pytest.raises(ValueError, match=message):
        make_scripted_episode(script, 0, rest=rest)
