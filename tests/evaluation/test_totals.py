"""Metrics of one trace: its last frame, and whether the detector had a chance."""

import pytest

from robometer_gym.evaluation import Totals, is_undecided, last_frame_success
from robometer_gym.tracking.settings import RewardSettings
from robometer_gym.tracking.trace import EpisodeTrace
from tests.evaluation.traces import make_trace


def episode(success=(0, 0, 0, 0.9), steps=(0, 5, 10, 12), **more) -> EpisodeTrace:
    return make_trace(steps, success, success, **more)


@pytest.mark.parametrize(
    ("success", "threshold", "expected"),
    [
        ((0, 0, 0, 0.9), 0.65, True),
        ((0, 0.9, 0.9, 0.6), 0.65, False),
        ((0, 0, 0, 0.65), 0.65, True),  # a prediction is a float32, a little below 0.65
        ((0, 0, 0, 0.9), 0.95, False),
    ],
)
def test_the_verdict_of_the_last_frame(success, threshold, expected):
    """A success at the very end, which LeRobot counts, would count as missed."""
    trace = episode(success, settings=RewardSettings(success_threshold=threshold))
    assert last_frame_success(trace) == expected


def test_without_predictions_there_is_no_success():
    """An episode whose predictions all failed would end in an IndexError."""
    assert not last_frame_success(episode((), (), num_steps=3))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"true_success_step": 12}, True),  # one prediction, and two votes are needed
        ({"true_success_step": 11}, True),
        ({"true_success_step": 10}, False),
        ({"true_success_step": 3}, False),
        ({"true_success_step": None}, False),
        ({"true_success_step": 12, "detected_step": 12}, False),
        ({"true_success_step": 12, "settings": RewardSettings(success_votes=1)}, False),
        (
            {
                "true_success_step": 10,
                "settings": RewardSettings(success_votes=3, success_window=3),
            },
            True,
        ),
    ],
)
def test_a_success_too_late_for_the_votes_is_undecided(more, expected):
    """A perfect detector would be blamed for episodes in which it could not vote."""
    assert is_undecided(episode(**more)) == expected


def test_both_verdicts_are_compared_with_the_truth():
    """The last frame's precision would be the detector's."""
    late = episode(true_success_step=12)  # seen by the last frame only
    false_alarm = episode((0, 0.9, 0.9, 0), detected_step=10)  # seen by the detector only
    totals = Totals.of([late, false_alarm])
    assert (totals.precision, totals.recall, totals.false_success_rate) == (0, 0, 1)
    assert (totals.last_frame_precision, totals.last_frame_recall) == (1, 1)
    assert (totals.last_frame_false_success_rate, totals.last_frame_f1) == (0, 1)
    assert (totals.undecided, totals.true_successes) == (1, 1)
