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
from robometer_gym.tracking.settings import RewardSettings
from robometer_gym.tracking.success import SuccessDetector
from robometer_gym.tracking.trace import EpisodeTrace

__all__ = ["Totals", "clock_order", "is_undecided", "last_frame_success", "value_order"]


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


def last_frame_success(trace: EpisodeTrace) -> bool:
    """Return whether the last prediction reaches the success threshold, without any vote.

    LeRobot's "success" of an episode; False where every prediction failed.
    """
    threshold = (trace.settings or RewardSettings()).success_threshold
    success = trace.success
    return len(success) > 0 and SuccessDetector(threshold, 1, 1).update(float(success[-1]))


def is_undecided(trace: EpisodeTrace) -> bool:
    """Return whether a true success came too late for the votes that the detector needs.

    Even a perfect model could not have detected it: fewer predictions than `success_votes` were
    made from the success to the end of the episode.
    """
    success = trace.true_success_step
    if success is None or trace.detected_step is not None or trace.settings is None:
        return False
    return int(np.sum(trace.prediction_steps >= success)) < trace.settings.success_votes


@dataclass(frozen=True)
class Totals:
    """Metrics of all episodes of an evaluation; one that cannot be measured is NaN.

    Attributes:
        episodes: how many there are.
        truth_known: in how many of them the environment reported success or failure. These alone
            count for the comparison with the truth.
        true_successes: in how many of these it reported success.
        undecided: in how many of those the episode ended before the detector could decide, see
            `is_undecided`; recall counts them as missed.
        detected_success_rate: share of all episodes in which the detector fired.
        true_success_rate: share of those with known truth in which the environment reported
            success.
        precision: of the detector, per episode: see `Detection`; it may be too early, see `delay`.
        recall: likewise.
        f1: likewise.
        false_success_rate: likewise.
        last_frame_success_rate: share of all episodes with `last_frame_success`.
        last_frame_precision: of that verdict in place of the detector's.
        last_frame_recall: likewise.
        last_frame_f1: likewise.
        last_frame_false_success_rate: likewise.
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
    true_successes: int
    undecided: int
    detected_success_rate: float
    true_success_rate: float
    precision: float
    recall: float
    f1: float
    false_success_rate: float
    last_frame_success_rate: float
    last_frame_precision: float
    last_frame_recall: float
    last_frame_f1: float
    last_frame_false_success_rate: float
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
        detected = _compare(known, [trace.detected_step is not None for trace in known])
        last_frame = _compare(known, [last_frame_success(trace) for trace in known])
        delays = [
            trace.detected_step - trace.true_success_step
            for trace in known
            if trace.detected_step is not None and trace.true_success_step is not None
        ]
        return Totals(
            episodes=len(traces),
            truth_known=len(known),
            true_successes=sum(trace.true_success_step is not None for trace in known),
            undecided=sum(map(is_undecided, known)),
            detected_success_rate=_mean([trace.detected_step is not None for trace in traces]),
            true_success_rate=_mean([trace.true_success_step is not None for trace in known]),
            precision=detected.precision,
            recall=detected.recall,
            f1=detected.f1,
            false_success_rate=detected.false_success_rate,
            last_frame_success_rate=_mean([last_frame_success(trace) for trace in traces]),
            last_frame_precision=last_frame.precision,
            last_frame_recall=last_frame.recall,
            last_frame_f1=last_frame.f1,
            last_frame_false_success_rate=last_frame.false_success_rate,
            delay_mean=_mean(delays),
            delay_median=float(np.median(delays)) if delays else math.nan,
            value_order=_mean_of_measured([value_order(trace) for trace in traces]),
            clock_order=_mean_of_measured([clock_order(trace) for trace in traces]),
            return_order=_return_order(traces),
            mean_return=_mean([trace.episode_return for trace in traces]),
            mean_env_return=_mean([trace.env_return for trace in traces]),
            mean_steps=_mean([trace.num_steps for trace in traces]),
        )


def _compare(known: Sequence[EpisodeTrace], verdicts: Sequence[bool]) -> Detection:
    if not known:
        return Detection(0, 0, 0, 0)
    return detection(verdicts, [trace.true_success_step is not None for trace in known])


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
