"""Metrics of a reward model: pure functions from predictions and truth to a number.

- `value_order_correlation` and `progress_correlation`: does progress rise as an episode succeeds?
- `policy_ranking` and `kendall_tau_a`: are better episodes of a task valued higher?
- `detection`: does detected success agree with true success?
- `confusion_margin`: does the progress of a video depend on the instruction?
- `preference_accuracy`: is the better of two clips found?

Knows nothing of models, videos or data sets. Each function scores one episode, one task or one set
of pairs; means over episodes or tasks are the caller's. Numbers are computed in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Detection",
    "confusion_margin",
    "detection",
    "kendall_tau_a",
    "policy_ranking",
    "preference_accuracy",
    "progress_correlation",
    "value_order_correlation",
]


def value_order_correlation(progress: ArrayLike) -> float:
    """Return the VOC of a successful episode: does the model see its frames in their order?

    Spearman's rank correlation of progress with time; equal values share their average rank. It
    does not see by how much progress rises, and a model that merely counts frames gets 1: always
    report such a one for comparison. Robometer's "VOC r" is `progress_correlation`.

    Args:
        progress: (T,) numbers on any scale, oldest frame first, T >= 2; progress[t] is the
            prediction for the newest frame when the episode was seen up to t.

    Returns:
        In [-1, 1]: 1 where progress always rises, 0 where it is constant (undefined; the
        reference's NaN becomes 0, too).

    Raises:
        ValueError: not of shape (T,) with T >= 2, or not finite.

    Source: Ma et al., "Vision Language Models are In-Context Value Learners", 2024;
    robometer/evals/eval_metrics_utils.py:25-35 at c7f38e2, where a clip of one frame and a NaN are
    a correlation of NaN, which its callers leave out or count as 0; here both are errors.

    Example:
        >>> round(value_order_correlation([0.1, 0.3, 0.2, 0.9]), 3)
        0.8
    """
    values = _vector("progress", progress, least=2)
    return _pearson(_average_ranks(values), np.arange(len(values), dtype=np.float64))


def progress_correlation(progress: ArrayLike, target: ArrayLike) -> float:
    """Return how close to a straight line progress is as a function of the true progress.

    Pearson's correlation, published by Robometer as "VOC r": per successful episode, then averaged.

    Args:
        progress: (T,) numbers on any scale, T >= 2; progress[t] is the prediction for the
            newest frame when the episode was seen up to t.
        target: (T,) numbers, the true progress at the same frames. Robometer's are (t + 1) / T.

    Returns:
        In [-1, 1]; 0 where either is constant (undefined; the reference's NaN becomes 0, too).

    Raises:
        ValueError: not two arrays of one shape (T,) with T >= 2, or not finite.

    Source: robometer/evals/compile_results.py:443-466 and eval_metrics_utils.py:10-22 at c7f38e2.
    Left out is a bug of compile_results.py:363-373, which takes of the k-th prefix the k-th
    frame's prediction rather than the last frame's; numbers that were computed with it differ.

    Example:
        >>> round(progress_correlation([0.0, 0.0, 1.0], [0.0, 0.5, 1.0]), 3)
        0.866
    """
    values = _vector("progress", progress, least=2)
    truth = _vector("target", target, least=2)
    _check_same_length("target", truth, "progress", values)
    return _pearson(values, truth)


def kendall_tau_a(values: ArrayLike, ranks: ArrayLike) -> float:
    """Return how many more pairs are in the right order than in the wrong, as a share of all.

    tau-a = (C - D) / (n (n - 1) / 2). A pair that is tied in either counts for neither C nor D but
    stays in the denominator: the one value for everything gets 0. scipy's kendalltau is tau-b.

    Args:
        values: (n,) numbers on any scale, n >= 2: the value that the model gives each episode.
        ranks: (n,) numbers, how good each is; larger is better.

    Returns:
        In [-1, 1].

    Raises:
        ValueError: not two arrays of one shape (n,) with n >= 2, or not finite.

    Source: robometer/evals/eval_metrics_utils.py:38-50 at c7f38e2; for fewer than two values the
    reference divides by zero.

    Example:
        >>> kendall_tau_a([0.1, 0.5, 0.5, 0.9], [1, 2, 3, 4])  # 5 right, 0 wrong, 1 tied
        0.8333333333333334
    """
    valued = _vector("values", values, least=2)
    true = _vector("ranks", ranks, least=2)
    _check_same_length("ranks", true, "values", valued)
    agreement = np.sign(np.subtract.outer(valued, valued)) * np.sign(np.subtract.outer(true, true))
    n = len(valued)
    return float(agreement.sum() / (n * (n - 1)))  # each pair is in `agreement` twice


def policy_ranking(groups: Iterable[ArrayLike]) -> float:
    """Return how well a model ranks the outcomes of one task, by the values of their episodes.

    Draw one episode of each outcome: this is the mean `kendall_tau_a` over all such draws. It is
    computed from pairs of outcomes alone, since the mean of a sum is the sum of the means: three
    outcomes of 1000 episodes are 3 million comparisons instead of a billion draws.

    Args:
        groups: for each outcome, from worst to best, (n,) numbers on any scale, n >= 1: the
            values of its episodes. At least two outcomes; n may differ. Of a dictionary, pass
            its `values()`; leave out an outcome without episodes.

    Returns:
        In [-1, 1]: 1 where each better outcome's episodes are all valued higher; ties count 0.

    Raises:
        ValueError: fewer than two groups, one that is not of shape (n,) with n >= 1 or not finite.

    Source: robometer/evals/compile_results.py:757-783 at c7f38e2, which enumerates the draws and
    skips a task with one outcome. Its accuracy over pairs (811-815), which counts a tie as right
    or wrong by which episode is listed first, is left out.

    Example:
        >>> failures, suboptimal, successes = [0.1, 0.4], [0.3], [0.8, 0.9]
        >>> policy_ranking([failures, suboptimal, successes])
        0.6666666666666666
    """
    values = [_vector(f"group {i}", group, least=1) for i, group in enumerate(groups)]
    if len(values) < 2:
        raise ValueError(f"A ranking needs at least 2 groups, worst to best, got {len(values)}.")
    wins = [
        np.sign(np.subtract.outer(better, worse)).mean()
        for worse, better in combinations(values, 2)
    ]
    return float(np.mean(wins))


@dataclass(frozen=True)
class Detection:
    """Counts of predicted against true events, and their ratios.

    A ratio whose denominator is 0 is NaN: nothing could be measured.

    Attributes:
        true_positives: predicted and true.
        false_positives: predicted and not true.
        false_negatives: not predicted and true.
        true_negatives: neither predicted nor true.

    Source: the paper's failure detection; the reference has no code for it. Its success accuracy
    (robometer/evals/compile_results.py:203-230 at c7f38e2) crashes where all labels are the same,
    and its average precision is 0 there; neither is taken over.

    Example:
        >>> success = Detection(2, 1, 0, 1)
        >>> success.f1, success.false_success_rate
        (0.8, 0.5)
        >>> success.inverted().f1  # how well failures are found
        0.6666666666666666
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def precision(self) -> float:
        """Share of predicted events that are true, in [0, 1]; NaN if nothing was predicted."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Share of true events that were predicted, in [0, 1]; NaN if nothing was true."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, in [0, 1].

        0 where nothing was found, NaN if nothing was true or predicted.
        """
        found_twice = 2 * self.true_positives
        return _ratio(found_twice, found_twice + self.false_positives + self.false_negatives)

    @property
    def false_success_rate(self) -> float:
        """Share of the failures that were taken for a success, in [0, 1]; NaN without failures.

        Such episodes reward an agent for nothing. Defined for success as the event, so not for
        `inverted`.
        """
        return _ratio(self.false_positives, self.false_positives + self.true_negatives)

    def inverted(self) -> Detection:
        """Return the counts of the opposite event.

        Of a detection of success this is the detection of failure: its `f1` is the paper's.
        """
        return Detection(
            true_positives=self.true_negatives,
            false_positives=self.false_negatives,
            false_negatives=self.false_positives,
            true_negatives=self.true_positives,
        )


def detection(predicted: ArrayLike, true: ArrayLike) -> Detection:
    """Count how often success (or anything else) was detected rightly and wrongly.

    Args:
        predicted: (N,) bool, N >= 1. The threshold is the caller's; the reference's is
            `probability > 0.5`.
        true: (N,) bool.

    Raises:
        ValueError: not two arrays of one shape (N,) with N >= 1, or not bool.

    Example:
        >>> detection([True, True, False], [True, False, False]).precision
        0.5
    """
    positive = _booleans("predicted", predicted)
    truth = _booleans("true", true)
    _check_same_length("true", truth, "predicted", positive)
    return Detection(
        true_positives=int(np.sum(positive & truth)),
        false_positives=int(np.sum(positive & ~truth)),
        false_negatives=int(np.sum(~positive & truth)),
        true_negatives=int(np.sum(~positive & ~truth)),
    )


def confusion_margin(final_progress: ArrayLike) -> float:
    """Return how much higher the progress of a video is in its own task than in another.

    Mean of the diagonal minus mean of the rest. A model that does not read the instruction gets 0.

    Args:
        final_progress: (tasks, tasks) numbers, [instruction, video], tasks >= 2: the progress at
            the end of a successful video of one task, under the instruction of the other.

    Returns:
        In [-1, 1] for progress in [0, 1]; 1 is best.

    Raises:
        ValueError: not of shape (tasks, tasks) with tasks >= 2, or not finite.

    Source: robometer/evals/compile_results.py:1032-1042 at c7f38e2. There a pair that was not
    measured counts as progress 0 (1003-1006); here it is NaN, and an error.

    Example:
        >>> confusion_margin([[1.0, 0.25], [0.25, 0.5]])
        0.5
    """
    matrix = np.asarray(final_progress, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise ValueError(
            f"final_progress must be (tasks, tasks) with tasks >= 2, got shape {matrix.shape}."
        )
    _check_finite("final_progress", matrix)
    own = np.eye(len(matrix), dtype=bool)
    return float(matrix[own].mean() - matrix[~own].mean())


def preference_accuracy(probabilities: ArrayLike, a_is_better: ArrayLike) -> float:
    """Return the share of pairs of clips of which the better one was found.

    A probability above 0.5 means A, any other means B, an undecided 0.5 as well. So show a model
    each pair in both orders, or half of the pairs with A better.

    Args:
        probabilities: (N,) numbers in [0, 1], N >= 1: the predicted probability that
            clip A is better.
        a_is_better: (N,) bool, whether it is.

    Returns:
        In [0, 1].

    Raises:
        ValueError: not two arrays of one shape (N,) with N >= 1, probabilities outside [0, 1] (a
            logit, a NaN), a_is_better not bool.

    Source: robometer/trainers/rbm_heads_trainer.py:876 and evals/compile_results.py:105-107, 139
    at c7f38e2. There a NaN means B and no pairs at all are an accuracy of 0; here both are errors.

    Example:
        >>> preference_accuracy([0.9, 0.2, 0.5, 0.7], [True, False, False, False])
        0.75
    """
    values = _vector("probabilities", probabilities, least=1)
    if values.min() < 0.0 or values.max() > 1.0:
        raise ValueError(
            "probabilities must be in [0, 1], "
            f"got values from {values.min():g} to {values.max():g}. Are they logits?"
        )
    better = _booleans("a_is_better", a_is_better)
    _check_same_length("a_is_better", better, "probabilities", values)
    return float(np.mean((values > 0.5) == better))


def _average_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ranks from 1 up, where equal values share the mean of their places."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[places], dtype=np.float64)


def _pearson(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return Pearson's correlation, 0 where either is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    # Stretched to [0, 1] first: the squares of tiny differences would be 0.
    a, b = ((x - x.min()) / np.ptp(x) for x in (a, b))
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip(a @ b / math.sqrt((a @ a) * (b @ b)), -1.0, 1.0))


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _vector(name: str, values: ArrayLike, *, least: int) -> NDArray[np.float64]:
    """Return finite numbers of shape (N,) in double precision, or raise."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < least:
        raise ValueError(f"{name} must be (N,) with N >= {least}, got shape {array.shape}.")
    _check_finite(name, array)
    return array


def _booleans(name: str, values: ArrayLike) -> NDArray[np.bool_]:
    """Return an array of shape (N,), or raise. A number is refused: 0.1 would be True."""
    array = np.asarray(values)
    if array.ndim != 1 or len(array) < 1 or array.dtype != np.bool_:
        raise ValueError(
            f"{name} must be (N,) bool with N >= 1, got shape {array.shape} {array.dtype}."
        )
    return array


def _check_finite(name: str, array: NDArray[np.float64]) -> None:
    wrong = int(np.sum(~np.isfinite(array)))
    if wrong:
        raise ValueError(
            f"{name} must be finite, got {wrong} NaN or infinite of {array.size} values. "
            "Leave out what was not measured."
        )


def _check_same_length(
    name: str, array: NDArray[Any], other_name: str, other: NDArray[Any]
) -> None:
    if len(array) != len(other):
        raise ValueError(
            f"{name} must be as long as {other_name}, ({len(other)},), got ({len(array)},)."
        )
