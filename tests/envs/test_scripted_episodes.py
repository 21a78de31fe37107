"""Attempts at the built-in environment: what they are called is what they are.

Positions are read from observations, never from the env's own `offset`.
"""

from typing import Any

import numpy as np
import pytest

from robometer_gym.data import Episode
from robometer_gym.envs import TASKS, TabletopReachEnv
from robometer_gym.envs import scripted_episodes as attempts
from robometer_gym.envs.scripted_episodes import KINDS, make_attempt
from robometer_gym.training.labels import progress_targets

SEEDS = range(40)
REACH = 0.1  # of the block's centre


class Watched(TabletopReachEnv):
    """Remembers what happened; its picture is the number of the step."""

    last: "Watched"

    def reset(self, **kwargs: Any) -> Any:
        """Begin to watch."""
        obs, info = super().reset(**kwargs)
        self.earlier = [*getattr(self, "earlier", []), *getattr(self, "successes", [])]
        self.seen, self.successes, self.told = [obs], [False], info["task"]
        Watched.last = self
        return obs, info

    def step(self, action: Any) -> Any:
        """Watch."""
        result = super().step(action)
        self.seen.append(result[0])
        self.successes.append(result[4]["is_success"])
        return result

    def render(self) -> Any:
        """Paint the number of the step."""
        return np.full((1, 1, 3), len(self.seen) - 1, np.uint8)

    def distances(self, task: str) -> list[float]:
        """How far the gripper was from a task's block, at every step."""
        block = 2 + 2 * TASKS.index(task)
        return [float(np.hypot(*(obs[:2] - obs[block : block + 2]))) for obs in self.seen]


@pytest.fixture
def watch(monkeypatch):
    """Make an attempt and watch it."""
    monkeypatch.setattr(attempts, "TabletopReachEnv", Watched)

    def make(kind: Any, seed: int, **kwargs: Any) -> tuple[Episode, Watched]:
        return make_attempt(kind, seed, **kwargs), Watched.last

    return make


def drawn_task(seed: int) -> str:
    """The task that an env with this seed names."""
    return str(TabletopReachEnv().reset(seed=seed)[1]["task"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_kept_once_and_in_order(watch, kind):
    """Progress, which is counted in frames, would be wrong; or the end of an attempt missing."""
    for seed in SEEDS:
        episode, env = watch(kind, seed)
        frames = episode.frames[range(len(episode))]
        assert frames[:, 0, 0, 0].tolist() == list(range(len(env.seen)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_instruction_is_the_envs(watch, kind):
    """An attempt at another block would be labelled with its own task, and be no failure."""
    assert {watch(kind, seed)[0].task for seed in SEEDS} == set(TASKS)
    for seed in SEEDS:
        assert watch(kind, seed)[0].task == drawn_task(seed)


@pytest.mark.parametrize("rest", [0, 1, 13])
def test_the_expert_succeeds_at_its_cutoff(watch, rest):
    """Frames before success would be called successes, or those of rest failures."""
    for seed in SEEDS:
        episode, env = watch("expert", seed, rest=rest)
        assert (episode.outcome, episode.partial_success) == ("successful", None)
        first = env.successes.index(True)
        assert len(episode) == first + 1 + rest
        progress = progress_targets(range(len(episode)), len(episode), episode.cutoff)
        assert progress.tolist().index(1.0) == first
        assert all(env.successes[first:])  # it rests on the block
        assert max(env.distances(episode.task)[first:]) <= REACH
        assert (episode.cutoff == 1.0) == (rest == 0)


def test_experts_differ_in_skill(watch):
    """All would go one straight way, and a model would learn to know the way, not the task."""
    detours = []
    for seed in SEEDS:
        _, env = watch("expert", seed)
        places = np.array([obs[:2] for obs in env.seen])
        walked = np.linalg.norm(np.diff(places, axis=0), axis=1).sum()
        detours.append(walked / np.linalg.norm(places[-1] - places[0]))
    assert min(detours) < 1.02
    assert max(detours) > 1.1


def test_who_stops_has_come_some_of_the_way(watch):
    """A judgement would not be that of the pictures; or a success be called none."""
    shares = []
    for seed in SEEDS:
        episode, env = watch("stops", seed)
        distances = env.distances(episode.task)
        assert episode.outcome == "suboptimal"
        assert episode.partial_success == pytest.approx(1 - distances[-1] / distances[0], abs=1e-5)
        assert distances[-1] > 0.08  # beside the block, if not on the way
        assert not any(env.successes)
        assert distances[-6] == pytest.approx(distances[-1], abs=0.06)  # it has stopped
        shares.append(episode.partial_success)
    assert min(shares) < 0.3
    assert max(shares) > 0.8


def test_who_misses_rests_beside_the_block(watch):
    """A model would take every rest near the block for success, and an agent would settle there."""
    directions = []
    for seed in SEEDS:
        episode, env = watch("misses", seed)
        distances = env.distances(episode.task)
        assert episode.outcome == "suboptimal"
        assert episode.partial_success == pytest.approx(1 - distances[-1] / distances[0], abs=1e-5)
        assert not any(env.successes)
        assert distances[-6] == pytest.approx(distances[-1], abs=1e-6)  # it rests
        assert REACH < distances[-1] < 4 * REACH
        block = env.seen[-1][2 + 2 * TASKS.index(episode.task) :][:2]
        directions.append(np.arctan2(*(env.seen[-1][:2] - block)))
    assert np.ptp(directions) > 5  # on every side of it


def test_who_wanders_fails(watch):
    """Failures would be of one kind, or their judgement outside [0, 1]."""
    shares = []
    for seed in SEEDS:
        episode, env = watch("wanders", seed)
        distances = env.distances(episode.task)
        covered = max(0.0, 1 - distances[-1] / distances[0])
        assert episode.outcome == "failure"
        assert episode.partial_success == pytest.approx(covered, abs=1e-5)
        assert not any(env.successes)
        assert 11 <= len(episode) <= 80
        shares.append(episode.partial_success)
    assert 0.0 in shares  # some went away from it
    assert max(shares) > 0.1


@pytest.mark.parametrize(
    ("kind", "seed", "outcome"),
    [("stops", 65, "suboptimal"), ("stops", 84, "suboptimal"), ("wanders", 533, "failure")],
)
def test_who_succeeds_by_accident_tries_again(watch, kind, seed, outcome):
    """Frames on the named block would be taught as no success."""
    episode, env = watch(kind, seed)
    assert any(env.earlier)  # else the seed shows nothing
    assert not any(env.successes)
    distances = env.distances(episode.task)
    covered = max(0.0, 1 - distances[-1] / distances[0])
    assert (episode.task, episode.outcome) == (drawn_task(seed), outcome)
    assert episode.partial_success == pytest.approx(covered, abs=1e-5)
    frames = episode.frames[range(len(episode))]  # of the last try alone
    assert frames[:, 0, 0, 0].tolist() == list(range(len(env.seen)))
    table = TabletopReachEnv().reset(seed=seed)[0]
    np.testing.assert_array_equal(env.seen[0], table)


def test_the_wrong_block_is_another_block(watch):
    """A success would be called a failure: the instruction would be taught not to matter."""
    reached = set()
    for seed in SEEDS:
        episode, env = watch("wrong_block", seed)
        assert (episode.outcome, episode.partial_success) == ("failure", 0.0)
        (on,) = (task for task in TASKS if env.distances(task)[-1] <= REACH)
        assert on == env.told != episode.task
        reached.add((TASKS.index(episode.task), TASKS.index(on)))
        named = env.distances(episode.task)
        assert named[-1] >= named[0]  # nothing of the way was covered
    assert len(reached) == 6


def test_all_kinds_begin_at_one_table():
    """Good and bad attempts could be told apart before anything has happened."""
    for seed in range(3):
        first, *others = (make_attempt(kind, seed) for kind in KINDS)
        for other in others:
            assert other.task == first.task
            np.testing.assert_array_equal(other.frames[[0]], first.frames[[0]])


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_everything(kind):
    """Nobody could make the training set of a published model again."""
    one, same, another = (make_attempt(kind, seed) for seed in (5, 5, 6))
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


def test_an_unknown_kind_raises():
    """A slip would quietly make attempts of some other kind."""
    with pytest.raises(ValueError, match=r"kind must be one of \('expert', .*got 'expret'"):
        make_attempt("expret", 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "rest"),
    [("stops", 1), ("wanders", 20), ("wrong_block", 1), ("stops", -1), ("expert", -1)],
)
def test_a_rest_that_nobody_can_take_raises(kind, rest):
    """Who has not arrived would walk on to the block, and the failure end as a success."""
    message = f"rest must be >= 0, and is the expert's alone; got {rest} for '{kind}'"
    with pytest.raises(ValueError, match=message):
        make_attempt(kind, 0, rest=rest)
