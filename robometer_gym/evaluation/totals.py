"""Metrics of evaluated episodes: of one trace, and of all of them (`Totals`).

A metric that cannot be measured is NaN; no number is invented. Knows nothing of files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from robometer_gym.evaluation.metrics import (
    Detection,
    detection,
    kendall_tau_a,
    value_order_correlation,
)
from robometer_gym.tracking.trace import EpisodeTrace

__all__ = ["Totals", "clock_order", "value_order"]


def value_order(trace: EpisodeTrace) -> float:
    """Return the VOC of progress up to the success, in [-1, 1]; NaN where it cannot be measured.

    It needs a success, the true one where the truth is known, the detected one elsewhere, and
    two predictions up to it.
    """
    return _order_until_success(trace, trace.progress)


def clock_order(trace: EpisodeTrace) -> float:
    """Return the VOC of a model that predicts the time, where `value_order` can be measured."""
    return _order_until_success(trace, trace.prediction_steps)


def _order_until_success(trace: EpisodeTrace, values: ArrayLike) -> float:
    success = trace.true_success_step if trace.truth_known else trace.detected_step
    if success is None:
        return math.nan
    end = int(np.searchsorted(trace.prediction_steps, success, side="right"))
    return value_order_correlation(np.asarray(values)[:end]) if end >= 2 else math.nan


@dataclass(frozen=True)
class Totals:
    """Metrics of all episodes of an evaluation; one that cannot be measured is NaN.

    Attributes:
        episodes: how many there are.
        truth_known: in how many of them the environment reported success or failure. These alone
            count for the comparison with the truth.
        detected_success_rate: share of all episodes in which the detector fired.
        true_success_rate: share of those with known truth in which the environment reported
            success.
        precision: of the detector, per episode: see `Detection`; it may be too early, see `delay`.
        recall: likewise.
        f1: likewise.
        false_success_rate: likewise.
        delay_mean: steps from true to detected success, where both are; below 0 if too early.
        delay_median: likewise.
        value_order: mean `value_order` of the successful episodes.
        clock_order: the same of a model that predicts the time, for comparison.
        return_order: Kendall's tau-a between the return and the environment's own return.
        mean_return: mean sum of the reward wrapper's rewards.
        mean_env_return: mean sum of the environment's own rewards.
        mean_steps: mean length.
    """

    episodes: int
    truth_known: int
    detected_success_rate: float
    true_success_rate: float
    precision: float
    recall: float
    f1: float
    false_success_rate: float
    delay_mean: float
    delay_median: float
    value_order: float
    clock_order: float
    return_order: float
    mean_return: float
    mean_env_return: float
    mean_steps: float

    @staticmethod
    def of(traces: Sequence[EpisodeTrace]) -> Totals:
        """Compute the metrics of traces, of which there is at least one."""
        known = [trace for trace in traces if trace.truth_known]
        detected = _compare_detections(known)
        delays = [
            trace.detected_step - trace.true_success_step
            for trace in known
            if trace.detected_step is not None and trace.true_success_step is not None
        ]
        return Totals(
            episodes=len(traces),
            truth_known=len(known),
            detected_success_rate=_mean([trace.detected_step is not None for trace in traces]),
            true_success_rate=_mean([trace.true_success_step is not None for trace in known]),
            precision=detected.precision,
            recall=detected.recall,
            f1=detected.f1,
            false_success_rate=detected.false_success_rate,
            delay_mean=_mean(delays),
            delay_median=float(np.median(delays)) if delays else math.nan,
            value_order=_mean_of_measured([value_order(trace) for trace in traces]),
            clock_order=_mean_of_measured([clock_order(trace) for trace in traces]),
            return_order=_return_order(traces),
            mean_return=_mean([trace.episode_return for trace in traces]),
            mean_env_return=_mean([trace.env_return for trace in traces]),
            mean_steps=_mean([trace.num_steps for trace in traces]),
        )


def _compare_detections(known: Sequence[EpisodeTrace]) -> Detection:
    if not known:
        return Detection(0, 0, 0, 0)
    return detection(
        [trace.detected_step is not None for trace in known],
        [trace.true_success_step is not None for trace in known],
    )


def _return_order(traces: Sequence[EpisodeTrace]) -> float:
    """Return Kendall's tau-a; NaN where the environment's returns are no order."""
    ours = [trace.episode_return for trace in traces]
    true = [trace.env_return for trace in traces]
    if len(set(true)) < 2 or not np.isfinite([*ours, *true]).all():
        return math.nan
    return kendall_tau_a(ours, true)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _mean_of_measured(values: Sequence[float]) -> float:
    return _mean([value for value in values if not math.isnan(value)])
