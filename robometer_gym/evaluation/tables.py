"""Tables of an evaluation: each metric with its number of episodes, or why it is not measurable.

Knows nothing of files: a `Report` goes in, text comes out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from robometer_gym.evaluation.totals import value_order
from robometer_gym.tracking.trace import EpisodeTrace

if TYPE_CHECKING:
    from robometer_gym.evaluation.report import Report

__all__ = [
    "Metric",
    "count_noun",
    "file_stem",
    "headline",
    "list_metrics",
    "markdown",
    "plain_text",
]

_MAX_ROWS = 10  # episodes in the plain text; the markdown has all

_COLUMNS = (
    "episode",
    "env",
    "seed",
    "steps",
    "return",
    "env return",
    "progress",
    "detected",
    "true success",
    "VOC",
)


class Metric(NamedTuple):
    """One line of the totals: its name, its value, and its basis or why it is not measurable."""

    name: str
    value: str
    basis: str


def list_metrics(report: Report) -> list[Metric]:
    """Return the totals of a report, in reading order."""
    totals = report.totals
    return [
        Metric("episodes", str(totals.episodes), f"{totals.mean_steps:.1f} steps on average"),
        *_detector_metrics(report),
        *_last_frame_metrics(report),
        *_delay_metrics(report),
        *_order_metrics(report),
        *_reward_metrics(report),
        _metric(
            "env steps per second",
            report.steps_per_second,
            f"{report.env_steps} steps in {report.seconds:.1f} s, with the policy's time",
            form=".0f",
        ),
        _metric(
            "env steps per second without the model",
            report.steps_per_second_without_model,
            f"the model took {report.model_seconds:.1f} s",
            form=".0f",
        ),
    ]


def _detector_metrics(report: Report) -> list[Metric]:
    totals = report.totals
    known = f"{totals.truth_known} of {totals.episodes} episodes with known truth"
    detected = sum(trace.detected_step is not None for trace in report.episodes)
    undecided = "the detector could not decide; recall counts them as missed"
    rows = [
        ("success rate, by the environment", totals.true_success_rate, ""),
        ("precision of the detector", totals.precision, "nothing detected"),
        ("recall of the detector", totals.recall, "no true success"),
        ("F1 of the detector", totals.f1, "no success, and none detected"),
        ("false-success rate", totals.false_success_rate, "no failure"),
    ]
    return [
        _metric(
            "success rate, by the model",
            totals.detected_success_rate,
            f"detected in {detected} of {totals.episodes} episodes",
        ),
        *(_metric(name, value, known, _reason(report, lacks)) for name, value, lacks in rows),
        *[Metric("successes that ended too early", str(totals.undecided), undecided)]
        * (totals.undecided > 0),
    ]


def _last_frame_metrics(report: Report) -> list[Metric]:
    totals = report.totals
    known = f"{totals.truth_known} of {totals.episodes} episodes with known truth"
    rows = [
        ("precision", totals.last_frame_precision, "no last frame is a success"),
        ("recall", totals.last_frame_recall, "no true success"),
        ("F1", totals.last_frame_f1, "no success, and no last frame is one"),
        ("false-success rate", totals.last_frame_false_success_rate, "no failure"),
    ]
    return [
        _metric(
            "success rate, by the last frame",
            totals.last_frame_success_rate,
            f"the last prediction reaches {report.settings.success_threshold:g}, without votes",
        ),
        *(
            _metric(f"{name} of the last frame", value, known, _reason(report, lacks))
            for name, value, lacks in rows
        ),
    ]


def _delay_metrics(report: Report) -> list[Metric]:
    both = [
        trace
        for trace in report.episodes
        if trace.truth_known and None not in (trace.detected_step, trace.true_success_step)
    ]
    return [
        _metric(
            f"steps from true to detected success, {name}",
            value,
            f"episodes with both: {len(both)}",
            _reason(report, "no true success was detected"),
            "+.1f",
        )
        for name, value in (
            ("mean", report.totals.delay_mean),
            ("median", report.totals.delay_median),
        )
    ]


def _order_metrics(report: Report) -> list[Metric]:
    totals = report.totals
    measured = sum(not math.isnan(value_order(trace)) for trace in report.episodes)
    basis, lacks = f"successful episodes: {measured}", "no success with two predictions before it"
    return [
        _metric("value-order correlation", totals.value_order, basis, lacks, "+.3f"),
        _metric("value-order correlation of a clock", totals.clock_order, basis, lacks, "+.3f"),
    ]


def _reward_metrics(report: Report) -> list[Metric]:
    totals = report.totals
    basis = count_noun(totals.episodes, "episode")
    rows = [
        (
            "Kendall's tau-a, return and env return",
            totals.return_order,
            "the env returns do not differ",
        ),
        ("return, mean", totals.mean_return, "the rewards are not finite"),
        ("env return, mean", totals.mean_env_return, "the environment's rewards are not finite"),
    ]
    return [_metric(name, value, basis, lacks, "+.3f") for name, value, lacks in rows]


def _reason(report: Report, lacks: str) -> str:
    """Return why a comparison with the truth cannot be made."""
    return lacks if report.totals.truth_known else "the environment reports no success"


def markdown(report: Report) -> str:
    """Return the whole report as Markdown."""
    settings = report.settings
    facts = {
        "environment": f"`{report.env}`" + f", {report.num_envs} at once" * (report.num_envs > 1),
        "task": "; ".join(map(_cell, report.tasks)),
        "policy": f"`{report.policy}`",
        "reward model": f"`{report.reward_model}`",
        "seed": str(report.seed),
        "settings": ", ".join(f"{k} {_cell(str(v))}" for k, v in vars(settings).items()),
        "checkpoint": ", ".join(f"{k} {_cell(v)}" for k, v in report.checkpoint.items()),
        "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
    }
    rows = []
    for number, trace in enumerate(report.episodes):
        stem = file_stem(number)
        shown = f"[plot]({stem}.png), [video]({stem}.mp4)"
        rows.append(
            [*_row(number, trace), shown if len(trace.progress) else "every prediction failed"]
        )
    parts = [
        "# Evaluation",
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        _markdown_table(("metric", "value", "over"), [list(m) for m in list_metrics(report)]),
        "## Episodes",
        "`detected` is the detector's step, `true success` the first at which the environment "
        "reported it; VOC is Spearman's correlation of progress with time up to the success.",
        _markdown_table((*_COLUMNS, "shown in"), rows),
    ]
    return "\n\n".join(parts) + "\n"


def plain_text(report: Report) -> str:
    """Return the totals and the first episodes as text for a terminal."""
    metrics = list_metrics(report)
    widest = max(len(metric.name) for metric in metrics)
    lines = [f"{name:<{widest}} {value:>7}  {basis}" for name, value, basis in metrics]
    rows = [_row(number, trace) for number, trace in enumerate(report.episodes[:_MAX_ROWS])]
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
    table = [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for row in (_COLUMNS, *rows)
    ]
    more = len(report.episodes) - len(rows)
    return "\n".join([*lines, "", *table, *[f"... and {more} more"] * (more > 0)])


def headline(number: int, trace: EpisodeTrace) -> str:
    """Return the title of an episode's plot."""
    seed = "" if trace.seed is None else f" (seed {trace.seed})"
    truth = "true success unknown"
    if trace.truth_known:
        at = trace.true_success_step
        truth = "no true success" if at is None else f"true success at {at}"
    at = trace.detected_step
    detected = "none detected" if at is None else f"detected at {at}"
    return (
        f"episode {number}{seed}: {trace.num_steps} steps, return {trace.episode_return:+.3f}; "
        f"{truth}, {detected}"
    )


def count_noun(count: int, noun: str) -> str:
    """Return a number with its noun: "1 task", "2 tasks"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def file_stem(number: int) -> str:
    """Return the name of an episode's files, without their suffix."""
    return f"episode-{number:03d}"


def _row(number: int, trace: EpisodeTrace) -> list[str]:
    no_truth = "no" if trace.truth_known else "unknown"
    return [
        str(number),
        str(trace.env),
        "-" if trace.seed is None else str(trace.seed),
        str(trace.num_steps),
        f"{trace.episode_return:+.3f}",
        f"{trace.env_return:+.3f}",
        _number(trace.final_progress, ".3f"),
        "no" if trace.detected_step is None else str(trace.detected_step),
        no_truth if trace.true_success_step is None else str(trace.true_success_step),
        _number(value_order(trace), "+.2f"),
    ]


def _metric(name: str, value: float, basis: str, reason: str = "", form: str = ".3f") -> Metric:
    """Return a line of the totals; `reason` is given where the value is not finite."""
    measured = math.isfinite(value)
    return Metric(name, _number(value, form), basis if measured else f"not measurable: {reason}")


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "-"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """Return text for one cell: a bar would begin a new column, a line break a new row."""
    return " ".join(text.split()).replace("|", "\\|")
