"""SuccessDetector: the votes that decide whether a task is done."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robometer_gym.tracking.success import SuccessDetector

probabilities = st.floats(0.0, 1.0, allow_nan=False)


def run(detector: SuccessDetector, values: list[float]) -> list[bool]:
    """Whether a detector has fired after each probability."""
    return [detector.update(value) for value in values]


@pytest.mark.parametrize(
    ("votes", "window", "values", "expected"),
    [
        (1, 1, [0.6, 0.7], [False, True]),
        (2, 2, [0.9, 0.1, 0.9, 0.9], [False, False, False, True]),
        (2, 3, [0.9, 0.1, 0.9], [False, False, True]),
        (2, 3, [0.9, 0.1, 0.1, 0.9], [False, False, False, False]),
        (3, 3, [0.9, 0.9, 0.6, 0.9, 0.9, 0.9], [False] * 5 + [True]),
        (2, 2, [0.65, 0.65], [False, True]),
        (2, 2, [0.65, 0.6499], [False, False]),
    ],
)
def test_enough_of_the_latest_predictions_must_vote(votes, window, values, expected):
    """One false alarm would end the episode, or a real success be missed."""
    assert run(SuccessDetector(0.65, votes, window), values) == expected


def test_the_defaults_are_two_of_two_at_065():
    """The authors' vote: anything else gives other success rates than published."""
    detector = SuccessDetector()
    assert run(detector, [0.65, 0.64, 0.65, 0.65]) == [False, False, False, True]


def test_a_detected_success_stays_detected():
    """A robot that moves on after success would lose it, and get the bonus twice."""
    detector = SuccessDetector(0.5, 1, 1)
    assert run(detector, [0.9, 0.0, 0.0]) == [True, True, True]
    assert detector.fired


def test_clear_forgets_votes_and_success():
    """A vote of the last episode would count in the next."""
    detector = SuccessDetector(0.5, 2, 2)
    run(detector, [0.9])
    detector.clear()
    assert run(detector, [0.9]) == [False]
    run(detector, [0.9])
    assert detector.fired
    detector.clear()
    assert not detector.fired
    assert run(detector, [0.0]) == [False]


def test_the_vote_at_reset_counts():
    """A task that is done from the start would need one prediction more to be noticed."""
    detector = SuccessDetector(0.5, 2, 2)
    detector.clear(first=0.9)
    assert not detector.fired
    assert detector.update(0.9)
    detector.clear(first=0.1)
    assert not detector.update(0.9)


@pytest.mark.parametrize(("votes", "window"), [(1, 1), (1, 2), (1, 5)])
def test_the_vote_at_reset_cannot_fire_by_itself(votes, window):
    """A false alarm before the first step would end an episode that nothing was done in."""
    detector = SuccessDetector(0.5, votes, window)
    detector.clear(first=0.9)
    assert not detector.fired
    assert not detector.update(0.0)
    assert detector.update(0.9)


@given(st.lists(probabilities, max_size=30), probabilities, st.integers(1, 6), st.data())
def test_the_vote_is_what_it_is_called(values, threshold, window, data):
    """Some combination of votes and window would fire too early or never."""
    votes = data.draw(st.integers(1, window))
    detector = SuccessDetector(threshold, votes, window)
    detector.clear()
    done = False
    for i, value in enumerate(values):
        latest = values[max(0, i + 1 - window) : i + 1]
        done = done or sum(v >= threshold for v in latest) >= votes
        assert detector.update(value) is done
        assert detector.fired is done


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), float("inf")])
def test_the_threshold_must_be_a_probability(threshold):
    """A threshold in percent would never fire, without a word."""
    message = "success_threshold must be a probability in"
    with pytest.raises(ValueError, match=rf"{message} \[0, 1\], got {threshold!r}."):
        SuccessDetector(threshold)


@pytest.mark.parametrize(("votes", "window"), [(0, 2), (3, 2), (-1, 1), (1, 0)])
def test_the_votes_must_fit_into_the_window(votes, window):
    """Three votes of the last two can never be reached: success would never be detected."""
    message = f"success_votes must be between 1 and success_window, got {votes} of {window}."
    with pytest.raises(ValueError, match=message):
        SuccessDetector(0.5, votes, window)


@pytest.mark.parametrize("threshold", [0.6, 0.65, 0.7])
def test_reaching_the_threshold_is_enough_in_single_precision(threshold):
    """A model that answers exactly 0.65 would never be believed: its float32 is less than 0.65."""
    for answer in (threshold, float(np.float32(threshold))):
        assert SuccessDetector(threshold, votes=1, window=1).update(answer)
