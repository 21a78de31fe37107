"""What each frame of an episode should be answered with."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robometer_gym.data import Episode
from robometer_gym.training.labels import Labels, label_frames, progress_targets

TASK = "open the drawer"


def an_episode(length: int, outcome="successful", partial_success=None, cutoff=1.0) -> Episode:
    """One whose frames nobody looks at."""
    frames = np.zeros((length, 2, 2, 3), np.uint8)
    return Episode(frames, TASK, outcome, partial_success, cutoff)


def listed(labels: Labels) -> tuple[list[float], list[bool], list[float], list[bool]]:
    """All four columns."""
    progress, progress_counts, success, success_counts = labels
    assert progress.dtype == success.dtype == np.float32
    assert progress_counts.dtype == success_counts.dtype == bool
    return (
        [round(x, 6) for x in progress.tolist()],
        progress_counts.tolist(),
        success.tolist(),
        success_counts.tolist(),
    )


# Progress


@pytest.mark.parametrize(
    ("indices", "length", "cutoff", "expected"),
    [
        ([0, 1, 2, 3, 4], 5, 1.0, [0, 0.25, 0.5, 0.75, 1]),
        ([0, 2, 4], 5, 1.0, [0, 0.5, 1]),
        ([2, 3], 5, 1.0, [0, 0.5]),  # a stretch: 2 frames are left after frame 2
        ([4, 4], 5, 1.0, [0, 0]),  # the earliest of these frames has come nowhere
        ([3, 5, 7], 11, 1.0, [0, 2 / 7, 4 / 7]),
        ([0], 1, 1.0, [0]),
        ([0, 1], 2, 1.0, [0, 1]),
        ([0, 4, 8, 9], 10, 0.9, [0, 0.5, 1, 1]),  # 9 frames lead there: frame 8 is there
        ([3, 4, 5, 9], 10, 0.6, [0, 0.5, 1, 1]),  # C = 6: (i - 3) / 2
        ([5, 6, 9], 10, 0.6, [0, 1, 1]),  # C - s - 1 = 0
        ([7, 8, 9], 10, 0.5, [0, 1, 1]),  # all of them after the cutoff
        ([0, 1, 2], 10, 0.05, [0, 1, 1]),  # no frame leads there
        ([0, 1, 3, 4], 9, 0.55, [0, 1 / 3, 1, 1]),  # C = 4.95: four frames, not five
        ([0, 5, 9, 5, 3], 10, 1.0, [0, 5 / 9, 1, 5 / 9, 3 / 9]),
        ([2, 6, 4], 10, 1.0, [0, 4 / 7, 2 / 7]),  # rewound
        ([9, 6, 3], 10, 1.0, [1, 0.5, 0]),  # reversed
        ([3, 9, 6], 10, 1.0, [0, 1, 0.5]),
    ],
)
def test_progress_by_hand(indices, length, cutoff, expected):
    """The model would be taught to count frames in another way than the released one."""
    said = progress_targets(indices, length, cutoff)
    assert said.dtype == np.float32
    assert said.tolist() == pytest.approx(expected, abs=1e-6)


def test_every_cutoff_that_names_a_frame_finds_it():
    """int(0.29 * 100) is 28: the frame before success would be called one."""
    traps = 0
    for length in range(1, 201):
        for k in range(1, length + 1):
            said = progress_targets(range(length), length, k / length)
            expected = [min(1.0, i / max(1, k - 1)) for i in range(length)]
            np.testing.assert_array_equal(said, np.array(expected, np.float32))
            traps += int(k / length * length) != k
    assert traps > 0  # else the test shows nothing


@given(st.data(), st.integers(1, 200), st.floats(0.01, 1.0))
def test_the_earliest_frame_has_come_nowhere(data, length, cutoff):
    """A rewind would begin with progress, which no clip that a robot shows ever does."""
    indices = data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=9))
    said = progress_targets(indices, length, cutoff)
    assert said.min() == 0.0
    assert said.max() <= 1.0
    assert {i for i, p in zip(indices, said, strict=True) if p == 0.0} == {min(indices)}
    by_index = [p for _, p in sorted(zip(indices, said.tolist(), strict=True))]
    assert all(a <= b for a, b in pairwise(by_index))  # later is never less


# Success, and what counts


def test_a_success_by_hand():
    """Nearly done would be taught as done, or as not done at all."""
    labels = label_frames(an_episode(11), [0, 4, 5, 9, 10])
    assert listed(labels) == (
        [0, 0.4, 0.5, 0.9, 1],
        [True] * 5,
        [0, 0, 0, 0, 1],
        [True, True, False, False, True],  # exactly one half does not count
    )


def test_where_the_end_is_known_to_the_frame_every_frame_counts():
    """A simulator's exact word would be thrown away, and "nearly" be taken for "done"."""
    labels = label_frames(an_episode(11), [0, 4, 5, 9, 10], min_success=1.0)
    assert listed(labels)[2:] == ([0, 0, 0, 0, 1], [True] * 5)
    strict = label_frames(an_episode(11), [0, 4, 5, 9, 10], min_success=0.25)
    assert listed(strict)[2:] == ([0, 0, 0, 0, 1], [True, False, False, False, True])


def test_frames_after_the_cutoff_are_successes():
    """A robot that rests after its work would be said to have undone it."""
    labels = label_frames(an_episode(10, cutoff=0.5), [0, 1, 2, 3, 4, 5, 9])
    assert listed(labels) == (
        [0, 0.25, 0.5, 0.75, 1, 1, 1],
        [True] * 7,
        [0, 0, 0, 0, 1, 1, 1],
        [True, True, False, False, True, True, True],
    )


def test_a_rewind_loses_its_success():
    """Having once been done would count as being done."""
    labels = label_frames(an_episode(11), [0, 10, 7, 2])
    assert listed(labels) == (
        [0, 1, 0.7, 0.2],
        [True] * 4,
        [0, 1, 0, 0],
        [True, True, False, True],
    )


@pytest.mark.parametrize(
    ("cutoff", "rule", "expected"),
    [
        (0.8, "done", [0, 0, 0, 0, 0, 0, 0, 1, 1, 1]),  # C = 8: frame 7 is there
        (0.8, "released", [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]),  # 6 / 7 = 0.857 is above 0.8
        (0.6, "released", [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]),  # 3 / 5 = 0.6 is just enough
        (0.3, "released", [0, 1, 1, 1, 1, 1, 1, 1, 1, 1]),  # 1 / 2 is above 0.3
        (1.0, "released", [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
    ],
)
def test_the_cutoff_is_applied_twice_only_on_demand(cutoff, rule, expected):
    """Success would be taught before it is there; or the released labels could not be had."""
    labels = label_frames(an_episode(10, cutoff=cutoff), range(10), success_rule=rule)
    assert labels.success.tolist() == expected
    progress = progress_targets(range(10), 10, cutoff)
    assert (labels.success_counts == ((progress < 0.5) | (labels.success == 1))).all()
    assert labels.progress.tolist() == progress.tolist()


def test_a_cutoff_from_numpy_is_the_same_cutoff():
    """0.7 is less in float32: a data set's own numbers would call other frames successes."""
    traps = 0
    for length in range(1, 81):
        for k in range(1, 20):
            plain, numpys = (an_episode(length, cutoff=c) for c in (k / 20, np.float64(k / 20)))
            said = label_frames(plain, range(length), success_rule="released")
            same = label_frames(numpys, range(length), success_rule="released")
            assert listed(said) == listed(same)
            rounded = np.float32(k / 20)
            traps += int(float(rounded) < k / 20 and rounded in said.progress)
    assert traps > 0  # else the test shows nothing


@pytest.mark.parametrize("partial_success", [None, 0.3, 0.999, 1.0])
@pytest.mark.parametrize("outcome", ["successful", "suboptimal", "failure"])
@pytest.mark.parametrize("rule", ["done", "released"])
def test_another_instruction_is_no_progress_and_no_success(outcome, partial_success, rule):
    """The model would learn to reward whatever looks like work, whatever it was told."""
    episode = an_episode(10, outcome, partial_success, cutoff=0.5)
    labels = label_frames(episode, [0, 4, 9], right_task=False, success_rule=rule)
    assert listed(labels) == ([0] * 3, [True] * 3, [0] * 3, [True] * 3)


@pytest.mark.parametrize("partial_success", [None, 1.0])
@pytest.mark.parametrize("outcome", ["suboptimal", "failure"])
def test_a_failure_is_no_success_and_of_unknown_progress(outcome, partial_success):
    """Failures would be taught to progress like successes, or not to be failures."""
    labels = label_frames(an_episode(10, outcome, partial_success), [0, 4, 9])
    assert not labels.progress_counts.any()
    assert not labels.success.any()
    assert labels.success_counts.all()


@pytest.mark.parametrize("outcome", ["suboptimal", "failure"])
def test_a_judged_failure_has_progress_at_its_end(outcome):
    """The only progress that is known of it would be lost, or that of other frames made up."""
    episode = an_episode(10, outcome, 0.6)
    assert listed(label_frames(episode, [0, 4, 9])) == (
        [0, 0, 0.6],
        [False, False, True],
        [0] * 3,
        [True] * 3,
    )
    padded = label_frames(episode, [8, 9, 9])  # the last frame again is the same moment
    assert listed(padded)[:2] == ([0, 0.6, 0.6], [False, True, True])


@pytest.mark.parametrize("indices", [[0, 4, 8], [0], [8, 4, 0]])
def test_a_judged_failure_whose_end_is_not_shown_says_nothing_of_progress(indices):
    """A judgement of the end would be taught for the middle."""
    labels = label_frames(an_episode(10, "failure", 0.6), indices)
    assert not labels.progress_counts.any()
    assert not labels.success.any()
    assert labels.success_counts.all()


def test_a_partial_success_of_nothing_is_known_to_be_nothing():
    """0.0 is a judgement too; it would be taken for "nobody judged"."""
    labels = label_frames(an_episode(10, "failure", 0.0), [0, 9])
    assert labels.progress_counts.tolist() == [False, True]
    assert labels.progress.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("partial_success", [None, 1.0])
def test_a_whole_partial_success_is_a_success(partial_success):
    """A data set that judges all its episodes would have no progress on its successes."""
    said = label_frames(an_episode(5, "successful", partial_success), range(5))
    assert listed(said)[:2] == ([0, 0.25, 0.5, 0.75, 1], [True] * 5)
    assert said.success.tolist() == [0, 0, 0, 0, 1]


def test_labels_that_do_not_count_keep_their_values():
    """B's frames would be trained after all, or the columns be of two lengths."""
    labels = label_frames(an_episode(5), range(5))
    silent = labels.not_counted()
    assert not silent.progress_counts.any()
    assert not silent.success_counts.any()
    assert silent.progress.tolist() == labels.progress.tolist()
    assert silent.success.tolist() == labels.success.tolist()
    assert labels.progress_counts.all()  # of the first nothing has changed
