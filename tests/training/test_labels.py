"""Frame labels: progress, success and masks of every kind of episode."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robometer_gym.data import Episode
from robometer_gym.training.labels import Labels, label_frames, progress_targets

TASK = "open the drawer"


def blank_episode(length: int, outcome="successful", partial_success=None, cutoff=1.0) -> Episode:
    """Return an episode with blank frames."""
    frames = np.zeros((length, 2, 2, 3), np.uint8)
    return Episode(frames, TASK, outcome, partial_success, cutoff)


def as_lists(labels: Labels) -> tuple[list[float], list[bool], list[float], list[bool]]:
    """Return all four columns."""
    progress, progress_mask, success, success_mask = labels
    assert progress.dtype == success.dtype == np.float32
    assert progress_mask.dtype == success_mask.dtype == bool
    return (
        [round(x, 6) for x in progress.tolist()],
        progress_mask.tolist(),
        success.tolist(),
        success_mask.tolist(),
    )


# Progress


@pytest.mark.parametrize(
    ("indices", "length", "cutoff", "expected"),
    [
        ([0, 1, 2, 3, 4], 5, 1.0, [0, 0.25, 0.5, 0.75, 1]),
        ([0, 2, 4], 5, 1.0, [0, 0.5, 1]),
        ([2, 3], 5, 1.0, [0, 0.5]),  # a stretch: 2 frames are left after frame 2
        ([4, 4], 5, 1.0, [0, 0]),  # the progress of the earliest frame is 0
        ([3, 5, 7], 11, 1.0, [0, 2 / 7, 4 / 7]),
        ([0], 1, 1.0, [0]),
        ([0, 1], 2, 1.0, [0, 1]),
        ([0, 4, 8, 9], 10, 0.9, [0, 0.5, 1, 1]),  # C = 9: frame 8 shows success
        ([3, 4, 5, 9], 10, 0.6, [0, 0.5, 1, 1]),  # C = 6: (i - 3) / 2
        ([5, 6, 9], 10, 0.6, [0, 1, 1]),  # C - s - 1 = 0
        ([7, 8, 9], 10, 0.5, [0, 1, 1]),  # all of them after the cutoff
        ([0, 1, 2], 10, 0.05, [0, 1, 1]),  # C = 0
        ([0, 1, 3, 4], 9, 0.55, [0, 1 / 3, 1, 1]),  # C = 4.95: four frames, not five
        ([0, 5, 9, 5, 3], 10, 1.0, [0, 5 / 9, 1, 5 / 9, 3 / 9]),
        ([2, 6, 4], 10, 1.0, [0, 4 / 7, 2 / 7]),  # rewound
        ([9, 6, 3], 10, 1.0, [1, 0.5, 0]),  # reversed
        ([3, 9, 6], 10, 1.0, [0, 1, 0.5]),
    ],
)
def test_progress_by_hand(indices, length, cutoff, expected):
    """The model would be trained on another progress than the released one."""
    targets = progress_targets(indices, length, cutoff)
    assert targets.dtype == np.float32
    assert targets.tolist() == pytest.approx(expected, abs=1e-6)


def test_every_exact_cutoff_finds_its_frame():
    """int(0.29 * 100) is 28: the frame before success would be labeled a success."""
    traps = 0
    for length in range(1, 201):
        for k in range(1, length + 1):
            targets = progress_targets(range(length), length, k / length)
            expected = [min(1.0, i / max(1, k - 1)) for i in range(length)]
            np.testing.assert_array_equal(targets, np.array(expected, np.float32))
            traps += int(k / length * length) != k
    assert traps > 0  # else the test shows nothing


@given(st.data(), st.integers(1, 200), st.floats(0.01, 1.0))
def test_the_earliest_frame_has_no_progress(data, length, cutoff):
    """A rewind would begin with progress, unlike every real clip."""
    indices = data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=9))
    targets = progress_targets(indices, length, cutoff)
    assert targets.min() == 0.0
    assert targets.max() <= 1.0
    assert {i for i, p in zip(indices, targets, strict=True) if p == 0.0} == {min(indices)}
    by_index = [p for _, p in sorted(zip(indices, targets.tolist(), strict=True))]
    assert all(a <= b for a, b in pairwise(by_index))  # later is never less


# Success and masks


def test_a_success_by_hand():
    """Nearly done would be trained as done, or as not done at all."""
    labels = label_frames(blank_episode(11), [0, 4, 5, 9, 10])
    assert as_lists(labels) == (
        [0, 0.4, 0.5, 0.9, 1],
        [True] * 5,
        [0, 0, 0, 0, 1],
        [True, True, False, False, True],  # exactly one half is masked
    )


def test_a_min_success_of_one_trains_every_frame():
    """A simulator's exact labels would be masked, and nearly done frames score as done."""
    labels = label_frames(blank_episode(11), [0, 4, 5, 9, 10], min_success=1.0)
    assert as_lists(labels)[2:] == ([0, 0, 0, 0, 1], [True] * 5)
    strict = label_frames(blank_episode(11), [0, 4, 5, 9, 10], min_success=0.25)
    assert as_lists(strict)[2:] == ([0, 0, 0, 0, 1], [True, False, False, False, True])


def test_frames_after_the_cutoff_are_successes():
    """A robot that rests after its work would be labeled as having undone it."""
    labels = label_frames(blank_episode(10, cutoff=0.5), [0, 1, 2, 3, 4, 5, 9])
    assert as_lists(labels) == (
        [0, 0.25, 0.5, 0.75, 1, 1, 1],
        [True] * 7,
        [0, 0, 0, 0, 1, 1, 1],
        [True, True, False, False, True, True, True],
    )


def test_a_rewind_loses_its_success():
    """A task that was undone would still be labeled done."""
    labels = label_frames(blank_episode(11), [0, 10, 7, 2])
    assert as_lists(labels) == (
        [0, 1, 0.7, 0.2],
        [True] * 4,
        [0, 1, 0, 0],
        [True, True, False, True],
    )


@pytest.mark.parametrize(
    ("cutoff", "rule", "expected"),
    [
        (0.8, "done", [0, 0, 0, 0, 0, 0, 0, 1, 1, 1]),  # C = 8: frame 7 shows success
        (0.8, "released", [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]),  # 6 / 7 = 0.857 is above 0.8
        (0.6, "released", [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]),  # 3 / 5 = 0.6 is just enough
        (0.3, "released", [0, 1, 1, 1, 1, 1, 1, 1, 1, 1]),  # 1 / 2 is above 0.3
        (1.0, "released", [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
    ],
)
def test_only_the_released_rule_applies_the_cutoff_twice(cutoff, rule, expected):
    """Success would be trained too early; or the released labels would be unavailable."""
    labels = label_frames(blank_episode(10, cutoff=cutoff), range(10), success_rule=rule)
    assert labels.success.tolist() == expected
    progress = progress_targets(range(10), 10, cutoff)
    assert (labels.success_mask == ((progress < 0.5) | (labels.success == 1))).all()
    assert labels.progress.tolist() == progress.tolist()


def test_a_cutoff_from_numpy_is_the_same_cutoff():
    """0.7 is less in float32: a data set's own numbers would label other frames as successes."""
    traps = 0
    for length in range(1, 81):
        for k in range(1, 20):
            plain, numpys = (blank_episode(length, cutoff=c) for c in (k / 20, np.float64(k / 20)))
            labels = label_frames(plain, range(length), success_rule="released")
            same = label_frames(numpys, range(length), success_rule="released")
            assert as_lists(labels) == as_lists(same)
            rounded = np.float32(k / 20)
            traps += int(float(rounded) < k / 20 and rounded in labels.progress)
    assert traps > 0  # else the test shows nothing


@pytest.mark.parametrize("partial_success", [None, 0.3, 0.999, 1.0])
@pytest.mark.parametrize("outcome", ["successful", "suboptimal", "failure"])
@pytest.mark.parametrize("rule", ["done", "released"])
def test_another_instruction_is_no_progress_and_no_success(outcome, partial_success, rule):
    """The model would learn to reward any motion, whatever the instruction."""
    episode = blank_episode(10, outcome, partial_success, cutoff=0.5)
    labels = label_frames(episode, [0, 4, 9], right_task=False, success_rule=rule)
    assert as_lists(labels) == ([0] * 3, [True] * 3, [0] * 3, [True] * 3)


@pytest.mark.parametrize("partial_success", [None, 1.0])
@pytest.mark.parametrize("outcome", ["suboptimal", "failure"])
def test_a_failure_has_no_success_and_unknown_progress(outcome, partial_success):
    """Failures would be trained to progress like successes, or not to be failures."""
    labels = label_frames(blank_episode(10, outcome, partial_success), [0, 4, 9])
    assert not labels.progress_mask.any()
    assert not labels.success.any()
    assert labels.success_mask.all()


@pytest.mark.parametrize("outcome", ["suboptimal", "failure"])
def test_a_partial_success_is_the_progress_of_the_last_frame(outcome):
    """Its only known progress would be lost, or that of other frames invented."""
    episode = blank_episode(10, outcome, 0.6)
    assert as_lists(label_frames(episode, [0, 4, 9])) == (
        [0, 0, 0.6],
        [False, False, True],
        [0] * 3,
        [True] * 3,
    )
    padded = label_frames(episode, [8, 9, 9])  # padding repeats the last frame
    assert as_lists(padded)[:2] == ([0, 0.6, 0.6], [False, True, True])


@pytest.mark.parametrize("indices", [[0, 4, 8], [0], [8, 4, 0]])
def test_a_partial_success_is_not_the_progress_of_other_frames(indices):
    """The progress of the end would be trained for the middle."""
    labels = label_frames(blank_episode(10, "failure", 0.6), indices)
    assert not labels.progress_mask.any()
    assert not labels.success.any()
    assert labels.success_mask.all()


def test_a_partial_success_of_zero_is_trained():
    """0.0 would be taken for a missing value."""
    labels = label_frames(blank_episode(10, "failure", 0.0), [0, 9])
    assert labels.progress_mask.tolist() == [False, True]
    assert labels.progress.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("partial_success", [None, 1.0])
def test_a_partial_success_of_one_is_a_success(partial_success):
    """A data set with a partial success for every episode would have no progress on successes."""
    labels = label_frames(blank_episode(5, "successful", partial_success), range(5))
    assert as_lists(labels)[:2] == ([0, 0.25, 0.5, 0.75, 1], [True] * 5)
    assert labels.success.tolist() == [0, 0, 0, 0, 1]


def test_masked_out_labels_keep_their_targets():
    """The frames of clip B would be trained after all, or the columns have two lengths."""
    labels = label_frames(blank_episode(5), range(5))
    masked = labels.masked_out()
    assert not masked.progress_mask.any()
    assert not masked.success_mask.any()
    assert masked.progress.tolist() == labels.progress.tolist()
    assert masked.success.tolist() == labels.success.tolist()
    assert labels.progress_mask.all()  # the original is unchanged
