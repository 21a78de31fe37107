"""The reward of each signal, and which of them leaves the optimal policy unchanged."""

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robometer_gym.tracking import shaping

unit = st.floats(0.0, 1.0, allow_nan=False, width=32)


@given(st.lists(unit, min_size=2, max_size=50))
def test_deltas_telescope(progress):
    """An agent could earn more by going back and forth than by finishing."""
    rewards = [
        shaping.delta(a, b, gamma=0.9, terminated=b == progress[-1]) for a, b in pairwise(progress)
    ]
    assert sum(rewards) == pytest.approx(progress[-1] - progress[0], abs=1e-12)


@given(unit, unit)
def test_a_loss_of_progress_costs_as_much_as_its_gain(a, b):
    """With a clamp at 0, undoing and redoing the task would be the best policy."""
    for terminated in (False, True):
        there = shaping.delta(a, b, gamma=0.5, terminated=terminated)
        back = shaping.delta(b, a, gamma=0.5, terminated=terminated)
        assert there == b - a
        assert there + back == 0.0


@given(st.lists(unit, min_size=2, max_size=50), st.floats(0.0, 1.0))
def test_discounted_potentials_telescope(progress, gamma):
    """The path between two states would change the total of the shaping reward."""
    steps = list(pairwise(progress))
    for terminated in (False, True):
        total = sum(
            gamma**t
            * shaping.potential(a, b, gamma=gamma, terminated=terminated and t == len(steps) - 1)
            for t, (a, b) in enumerate(steps)
        )
        end = 0.0 if terminated else gamma ** len(steps) * progress[-1]
        assert total == pytest.approx(end - progress[0], abs=1e-9)


def test_the_potential_of_a_true_end_is_zero():
    """The agent would keep the reward for coming close, and end episodes early."""
    assert shaping.potential(0.25, 0.75, gamma=0.5, terminated=True) == -0.25
    assert shaping.potential(0.25, 0.75, gamma=0.5, terminated=False) == 0.125


@given(unit, unit, st.booleans())
def test_progress_is_the_signal_itself(before, after, terminated):
    """The simplest signal would not match its name."""
    assert shaping.progress(before, after, gamma=0.5, terminated=terminated) == after


def test_the_signals_have_the_names_that_settings_accept():
    """A signal that settings accept would fail at the first step."""
    assert set(shaping.SIGNALS) == set(get_args(shaping.Signal))
    for name, function in shaping.SIGNALS.items():
        assert function.__name__ == name
    assert set(get_args(shaping.Mode)) == {"replace", "shape"}


@pytest.mark.parametrize(
    ("mode", "scale", "bonus", "expected"),
    [
        ("replace", 1.0, 0.0, 0.5),
        ("replace", 4.0, 0.0, 2.0),
        ("replace", 4.0, 10.0, 12.0),
        ("replace", 0.0, 0.0, 0.0),
        ("shape", 1.0, 0.0, -2.5),
        ("shape", 4.0, 10.0, 9.0),
        ("shape", -1.0, 0.0, -3.5),
    ],
)
def test_only_the_models_part_is_scaled(mode, scale, bonus, expected):
    """A scale would also multiply the bonus, or the environment's reward, and so its optimum."""
    assert shaping.reward(mode, -3.0, 0.5, scale=scale, bonus=bonus) == expected


# A world small enough to be solved: a corridor of 7 places. Action 0 goes left, 1 goes right.
# Place 0 holds a small prize and place 6 a large one; either ends the episode.
GAMMA = 0.9
ENDS = {0: 0.75, 6: 1.0}
INNER = range(1, 6)
PROGRESS = np.array([1.0, 0.1, 0.8, 0.3, 0.7, 0.2, 0.1])  # a misleading model


def env_reward(place: int, after: int) -> float:
    """The environment's reward of a move."""
    return ENDS.get(after, 0.0)


def best_actions(reward_of) -> list[int]:
    """Value iteration: the best action in each inner place; a move earns `reward_of(a, b)`."""
    values = np.zeros(7)
    returns = np.zeros((len(INNER), 2))
    for _ in range(500):
        for row, place in enumerate(INNER):
            for action, after in enumerate((place - 1, place + 1)):
                future = 0.0 if after in ENDS else GAMMA * values[after]
                returns[row, action] = reward_of(place, after) + future
        values[1:-1] = returns.max(axis=1)
    assert (np.abs(np.diff(returns)) > 1e-6).all()  # no ties: one policy is the best
    return [int(action) for action in returns.argmax(axis=1)]


def shaped(signal, scale: float):
    """The environment's reward with `signal` added as the wrapper does."""

    def reward_of(place: int, after: int) -> float:
        extra = signal(PROGRESS[place], PROGRESS[after], gamma=GAMMA, terminated=after in ENDS)
        return shaping.reward("shape", env_reward(place, after), extra, scale=scale, bonus=0.0)

    return reward_of


@pytest.mark.parametrize("scale", [0.5, 1.0, 10.0])
def test_potential_shaping_keeps_the_best_policy(scale):
    """The promise of "potential": a bad model may slow the agent down but not lead it astray."""
    assert best_actions(env_reward) == [0, 1, 1, 1, 1]
    assert best_actions(shaped(shaping.potential, scale)) == best_actions(env_reward)


def test_other_bonuses_change_the_best_policy():
    """The test above would pass for any signal, and prove nothing."""
    assert best_actions(shaped(shaping.progress, 10.0)) != best_actions(env_reward)
    assert best_actions(shaped(shaping.delta, 10.0)) != best_actions(env_reward)


def test_a_potential_that_is_kept_at_a_true_end_changes_the_best_policy():
    """Forgetting the zero at a true end looks harmless; it is not."""

    def kept(before, after, *, gamma, terminated):
        return shaping.potential(before, after, gamma=gamma, terminated=False)

    assert best_actions(shaped(kept, 10.0)) != best_actions(env_reward)
