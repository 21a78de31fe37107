"""Metrics of a reward model, against independent computations."""

import math
import statistics
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robometer_gym.evaluation.metrics import (
    Detection,
    confusion_margin,
    detection,
    kendall_tau_a,
    policy_ranking,
    preference_accuracy,
    progress_correlation,
    value_order_correlation,
)

tied = st.integers(-3, 3).map(float)  # few different values: many ties
numbers = st.one_of(tied, st.floats(-1e6, 1e6))
flags = st.booleans()


def pairs_of(values, least=2):
    """Two lists of one length."""
    return st.lists(st.tuples(values, values), min_size=least, max_size=12).map(
        lambda rows: tuple(list(column) for column in zip(*rows, strict=True))
    )


def ranks(values):
    """Average ranks by counting."""
    return [sum(v < x for v in values) + (values.count(x) + 1) / 2 for x in values]


def reference_tau(x, y):
    """Kendall's tau-a as the reference writes it down."""
    right = wrong = 0
    for i, j in combinations(range(len(x)), 2):
        signs = np.sign(x[i] - x[j]) * np.sign(y[i] - y[j])
        right, wrong = right + (signs > 0), wrong + (signs < 0)
    return (right - wrong) / (len(x) * (len(x) - 1) / 2)


# Correlations


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        ([0.1, 0.2], 1.0),
        ([0.0, 0.01, 0.02, 0.9], 1.0),
        ([0.9, 0.5, 0.1], -1.0),
        ([0.1, 0.3, 0.2, 0.9], 0.8),  # 1 - 6 * 2 / (4 * 15)
        ([0.0, 1.0, 0.0], 0.0),
        ([0.0, 1.0, 1.0], math.sqrt(3) / 2),  # ranks 1, 2.5, 2.5
    ],
)
def test_the_voc_of_an_episode(progress, expected):
    """A model would be published with another number than it earned."""
    assert value_order_correlation(progress) == pytest.approx(expected, abs=1e-12)


@given(st.lists(numbers, min_size=2, max_size=12))
def test_the_voc_is_the_correlation_of_ranks(progress):
    """Ties, frequent in a model that predicts bins, would be ranked by their place."""
    correlation = value_order_correlation(progress)
    assert -1.0 <= correlation <= 1.0
    if len(set(progress)) > 1:
        expected = statistics.correlation(ranks(progress), list(range(len(progress))))
        assert correlation == pytest.approx(expected, abs=1e-9)


@given(st.lists(tied, min_size=2, max_size=12))
def test_the_voc_sees_nothing_but_the_order(progress):
    """Models on other scales (percent, steps to go) could not be compared with ours."""
    order = value_order_correlation(progress)
    assert value_order_correlation(np.exp(progress)) == pytest.approx(order, abs=1e-12)
    assert value_order_correlation(progress[::-1]) == pytest.approx(-order, abs=1e-12)


@pytest.mark.parametrize(
    ("progress", "target", "expected"),
    [
        ([0.2, 0.4, 0.6], [1 / 3, 2 / 3, 1.0], 1.0),
        ([0.0, 0.0, 1.0], [0.0, 0.5, 1.0], math.sqrt(3) / 2),
        ([1.0, 0.0, 0.0], [0.0, 0.5, 1.0], -math.sqrt(3) / 2),
        ([0.0, 1.0, 0.0], [0.0, 0.5, 1.0], 0.0),
    ],
)
def test_the_correlation_with_true_progress(progress, target, expected):
    """The paper's first number would not be the paper's."""
    assert progress_correlation(progress, target) == pytest.approx(expected, abs=1e-12)


def test_the_paper_measures_a_line_and_voc_an_order():
    """One would be reported under the other's name, as in the reference."""
    progress = [0.0, 0.01, 0.02, 0.9]
    assert value_order_correlation(progress) == pytest.approx(1.0, abs=1e-12)
    assert progress_correlation(progress, [0.25, 0.5, 0.75, 1.0]) < 0.8


@given(pairs_of(tied))
def test_the_correlation_is_pearsons(pair):
    """A slip of algebra would stay unnoticed, as the number looks plausible."""
    a, b = pair
    correlation = progress_correlation(a, b)
    assert -1.0 <= correlation <= 1.0
    if len(set(a)) > 1 and len(set(b)) > 1:
        assert correlation == pytest.approx(statistics.correlation(a, b), abs=1e-9)


@given(st.lists(tied, min_size=2, max_size=9).filter(lambda v: len(set(v)) > 1), numbers)
def test_the_scale_of_progress_does_not_matter(values, shift):
    """A model that predicts percent, or hardly above zero, would get another number."""
    target = list(range(len(values)))
    correlation = progress_correlation(values, target)
    for scale in (1e-200, 1e-3, 100.0):
        assert progress_correlation(np.multiply(values, scale), target) == pytest.approx(
            correlation
        )
    assert progress_correlation(np.add(values, shift), target) == pytest.approx(
        correlation, abs=1e-6
    )


@given(st.lists(st.integers(-999, 999), min_size=3), st.sampled_from([-3.0, -1.0, 1.0, 0.1]))
def test_rounding_does_not_leave_the_range(values, factor):
    """A correlation of -1.0000000000000002 would break the arc cosine, or the axis of a plot."""
    correlation = progress_correlation(values, np.multiply(values, factor))
    assert -1.0 <= correlation <= 1.0
    if len(set(values)) > 1:
        assert correlation == pytest.approx(math.copysign(1.0, factor), abs=1e-12)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, np.float32(0.7), 1e300])
@pytest.mark.parametrize("length", [2, 3, 7])
def test_a_constant_progress_correlates_with_nothing(constant, length):
    """Rounding of the mean would make any number, or NaN would spoil the mean over episodes."""
    flat, rising = [constant] * length, list(range(length))
    assert value_order_correlation(flat) == 0.0
    assert progress_correlation(flat, rising) == 0.0
    assert progress_correlation(rising, flat) == 0.0


# Rankings


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1, 0.5, 0.9], 1.0),
        ([0.9, 0.5, 0.1], -1.0),
        ([0.5, 0.1, 0.9], 1 / 3),
        ([0.1, 0.5, 0.5], 2 / 3),
        ([0.5, 0.5, 0.5], 0.0),
    ],
)
def test_tau_counts_right_and_wrong_pairs(values, expected):
    """Policies would be ranked by another number than the reference's."""
    assert kendall_tau_a(values, [1, 2, 3]) == pytest.approx(expected)
    assert kendall_tau_a([1, 2, 3], values) == pytest.approx(expected)


def test_a_tie_is_neither_right_nor_left_out():
    """It would be tau-b (0.82 here), or the mean over the untied pairs (1.0)."""
    assert kendall_tau_a([0.1, 0.5, 0.5], [1, 2, 3]) == pytest.approx(2 / 3)


@given(pairs_of(numbers))
def test_tau_is_the_references(pair):
    """Our numbers could not be put beside the published ones."""
    assert kendall_tau_a(*pair) == pytest.approx(reference_tau(*pair), abs=1e-12)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([[0.1], [0.5], [0.9]], 1.0),
        ([[0.1, 0.2], [0.8, 0.9]], 1.0),
        ([[0.9], [0.1]], -1.0),
        ([[0.1, 0.9], [0.5]], 0.0),
        ([[0.5, 0.5], [0.5]], 0.0),
        ([[0.1, 0.5], [0.5]], 0.5),
        # the draws with 0.1 are in order; in those with 0.4 one pair of three is wrong
        ([[0.1, 0.4], [0.3], [0.8, 0.9]], (1 + 1 + 1 / 3 + 1 / 3) / 4),
    ],
)
def test_the_ranking_of_outcomes(groups, expected):
    """A model that values failures more than successes could look like a good one."""
    assert policy_ranking(groups) == pytest.approx(expected)


@given(st.lists(st.lists(numbers, min_size=1, max_size=4), min_size=2, max_size=4))
def test_the_ranking_is_the_mean_over_all_draws(groups):
    """The short way would be another metric: pairs of large groups must not count more."""
    taus = [reference_tau(draw, range(len(groups))) for draw in product(*groups)]
    assert policy_ranking(groups) == pytest.approx(np.mean(taus), abs=1e-12)


def test_the_ranking_of_thousands_of_episodes_is_not_enumerated():
    """A task with 1000 episodes per outcome would take hours: a billion draws."""
    worst, middle, best = np.random.default_rng(0).random((3, 1000))
    assert policy_ranking([worst, middle + 1, best + 2]) == 1.0


def test_a_dictionary_gives_its_values():
    """The usage in the docstring would fail."""
    assert policy_ranking({"failure": [0.1], "successful": [0.9]}.values()) == 1.0


# Detection


def test_detections_are_counted():
    """Precision and recall, or successes and failures, would be exchanged."""
    predicted = [True, True, True, True, False, False, False, False, False, False]
    true = [True, True, True, False, True, True, False, False, False, False]
    found = detection(predicted, true)
    assert found == Detection(3, 1, 2, 4)
    assert found.precision == 3 / 4
    assert found.recall == 3 / 5
    assert found.f1 == pytest.approx(2 / 3)  # 2 * (3/4 * 3/5) / (3/4 + 3/5)
    assert found.false_success_rate == 1 / 5
    assert found.inverted() == Detection(4, 2, 1, 3)
    assert found.inverted().f1 == pytest.approx(8 / 11)


@given(pairs_of(flags, least=1))
def test_failures_are_found_as_successes_are(pair):
    """The paper's failure detection would be that of something else."""
    predicted, true = pair
    found = detection(predicted, true)
    assert found.inverted() == detection(np.logical_not(predicted), np.logical_not(true))
    assert found.inverted().inverted() == found
    counts = (
        found.true_positives,
        found.false_positives,
        found.false_negatives,
        found.true_negatives,
    )
    assert sum(counts) == len(true)
    if found.true_positives:
        harmonic = statistics.harmonic_mean([found.precision, found.recall])
        assert found.f1 == pytest.approx(harmonic)


def test_what_was_not_there_to_be_measured_is_nan():
    """A model would be called perfect, or useless, by episodes without any information."""
    none = detection([False, False], [False, False])
    assert math.isnan(none.precision)
    assert math.isnan(none.recall)
    assert math.isnan(none.f1)
    assert none.false_success_rate == 0.0
    all_of_them = detection([True], [True])
    assert (all_of_them.precision, all_of_them.recall, all_of_them.f1) == (1.0, 1.0, 1.0)
    assert math.isnan(all_of_them.false_success_rate)


def test_finding_nothing_is_a_zero():
    """A model that never detects success would be left out of a table, not be the worst."""
    silent = detection([False, False], [True, False])
    assert (silent.recall, silent.f1) == (0.0, 0.0)
    assert math.isnan(silent.precision)
    wrong = detection([True, False], [False, True])
    assert (wrong.precision, wrong.recall, wrong.f1) == (0.0, 0.0, 0.0)


def test_counts_are_plain_numbers():
    """They could not be written to JSON."""
    assert {type(value) for value in vars(detection([True], [False])).values()} == {int}


# Margin and preference


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (np.eye(3), 1.0),
        (np.full((4, 4), 0.7), 0.0),
        ([[0.0, 1.0], [1.0, 0.0]], -1.0),
        ([[1.0, 0.25], [0.25, 0.5]], 0.5),
        ([[0.9, 0.1, 0.2], [0.3, 0.6, 0.0], [0.6, 0.0, 0.6]], 0.5),  # 2.1 / 3 - 1.2 / 6
    ],
)
def test_the_margin_between_own_and_other_tasks(matrix, expected):
    """A model that does not read the instruction would not be found out."""
    assert confusion_margin(matrix) == pytest.approx(expected)
    assert confusion_margin(np.transpose(matrix)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("probability", "a_is_better", "right"),
    [
        (0.6, True, True),
        (0.6, False, False),
        (0.4, True, False),
        (0.4, False, True),
        (0.5, True, False),
        (0.5, False, True),
        (0.0, False, True),
        (1.0, True, True),
    ],
)
def test_more_than_a_half_prefers_a(probability, a_is_better, right):
    """An undecided model would be right or wrong by another rule than the reference's."""
    assert preference_accuracy([probability], [a_is_better]) == float(right)


def test_preference_accuracy_is_a_share():
    """The count of right predictions would be reported, or that of the wrong ones."""
    assert preference_accuracy([0.9, 0.2, 0.5, 0.7], [True, False, False, False]) == 0.75


@given(st.lists(st.tuples(st.floats(0.0, 1.0), flags), min_size=1, max_size=12))
def test_preference_accuracy_is_that_of_the_decisions(pairs):
    """Some mixture of probabilities and labels would be counted wrongly."""
    probabilities, better = zip(*pairs, strict=True)
    right = sum((p > 0.5) is label for p, label in pairs)
    assert preference_accuracy(probabilities, better) == pytest.approx(right / len(pairs))


# What is refused

ONE = [0.5]
TWO = [0.2, 0.5]
YES = [True, False]
SHORT = r"must be \(N,\) with N >= {}, got shape \({}\)\."


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: value_order_correlation([]), "^progress " + SHORT.format(2, "0,")),
        (lambda: value_order_correlation(ONE), "^progress " + SHORT.format(2, "1,")),
        (lambda: value_order_correlation([TWO]), "^progress " + SHORT.format(2, "1, 2")),
        (lambda: value_order_correlation(0.5), "^progress " + SHORT.format(2, "")),
        (lambda: progress_correlation(ONE, TWO), "^progress " + SHORT.format(2, "1,")),
        (lambda: progress_correlation(TWO, ONE), "^target " + SHORT.format(2, "1,")),
        (lambda: kendall_tau_a(ONE, TWO), "^values " + SHORT.format(2, "1,")),
        (lambda: kendall_tau_a(TWO, ONE), "^ranks " + SHORT.format(2, "1,")),
        (lambda: policy_ranking([TWO, []]), "^group 1 " + SHORT.format(1, "0,")),
        (lambda: policy_ranking([0.2, 0.5]), "^group 0 " + SHORT.format(1, "")),
        (lambda: preference_accuracy([], []), "^probabilities " + SHORT.format(1, "0,")),
    ],
)
def test_too_few_numbers_or_axes(call, message):
    """One frame, or a batch instead of an episode, would get a number that means nothing."""
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: progress_correlation(TWO, [1, 2, 3]), "target must be as long as progress"),
        (lambda: kendall_tau_a(TWO, [1, 2, 3]), "ranks must be as long as values"),
        (lambda: detection(YES, [*YES, True]), "true must be as long as predicted"),
        (lambda: preference_accuracy(TWO, [*YES, True]), "a_is_better must be as long as probab"),
    ],
)
def test_what_belongs_together_has_one_length(call, message):
    """A row lost on the way would move all others by one; the reference would score 0, or not."""
    with pytest.raises(ValueError, match=rf"^{message}\w*, \(2,\), got \(3,\)\."):
        call()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda bad: value_order_correlation([0.1, bad]), "progress"),
        (lambda bad: progress_correlation([0.1, bad], TWO), "progress"),
        (lambda bad: progress_correlation(TWO, [0.1, bad]), "target"),
        (lambda bad: kendall_tau_a([0.1, bad], TWO), "values"),
        (lambda bad: kendall_tau_a(TWO, [0.1, bad]), "ranks"),
        (lambda bad: policy_ranking([TWO, [0.1, bad]]), "group 1"),
        (lambda bad: confusion_margin([[1.0, bad], [0.0, 1.0]]), "final_progress"),
        (lambda bad: preference_accuracy([0.1, bad], YES), "probabilities"),
    ],
)
def test_what_was_not_measured_is_not_scored(call, name, bad):
    """A prediction that failed would count as a low one, as in the reference."""
    message = rf"^{name} must be finite, got 1 NaN or infinite of [24] values\."
    with pytest.raises(ValueError, match=message):
        call(bad)


@pytest.mark.parametrize(
    "call",
    [
        lambda flags: detection(flags, YES),
        lambda flags: preference_accuracy(TWO, flags),
        lambda flags: detection(YES, flags),
    ],
)
@pytest.mark.parametrize(
    ("flags", "came"),
    [
        ([0.1, 0.9], r"\(2,\) float64"),
        ([0, 1], r"\(2,\) int\d+"),
        (np.empty(0, bool), r"\(0,\) bool"),
        ([[True, False]], r"\(1, 2\) bool"),
        (True, r"\(\) bool"),
    ],
)
def test_an_answer_is_yes_or_no(call, flags, came):
    """Probabilities without a threshold would all be a yes, since only 0 is a no."""
    message = rf"^\w+ must be \(N,\) bool with N >= 1, got shape {came}\."
    with pytest.raises(ValueError, match=message):
        call(flags)


@pytest.mark.parametrize("groups", [[], [TWO]])
def test_one_outcome_has_no_rank(groups):
    """A task in which everything failed would be a draw, and pull the mean to 0."""
    message = f"^A ranking needs at least 2 groups, worst to best, got {len(groups)}."
    with pytest.raises(ValueError, match=message):
        policy_ranking(groups)


@pytest.mark.parametrize("shape", [(), (4,), (1, 1), (0, 0), (2, 3), (2, 2, 2)])
def test_the_margin_needs_each_instruction_with_each_video(shape):
    """Something would be on the diagonal that is not a video with its own instruction."""
    message = r"^final_progress must be \(tasks, tasks\) with tasks >= 2, got shape "
    with pytest.raises(ValueError, match=message + rf"\({', '.join(map(str, shape))},?\)\."):
        confusion_margin(np.zeros(shape))


@pytest.mark.parametrize("values", [[-0.1, 0.5], [0.5, 1.1], [-3.0, 2.5]])
def test_a_preference_is_a_probability(values):
    """A logit of 0.3 means A and would be counted as B."""
    message = rf"^probabilities must be in \[0, 1\], got values from {values[0]:g} to {values[1]:g}"
    with pytest.raises(ValueError, match=message + r"\. Are they logits\?"):
        preference_accuracy(values, YES)
