"""The tables of an evaluation: every figure with what it is over, or why it is none.

Knows nothing of files: a `Report` goes in, text comes out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from robometer_gym.evaluation.report import EvaluatedEpisode, Report

__all__ = ["Figure", "figures", "file_stem", "headline", "markdown", "plain_text"]

_SHOWN = 10  # episodes in the plain text; the markdown has all

_COLUMNS = (
    "episode",
    "env",
    "seed",
    "steps",
    "paid",
    "env return",
    "progress",
    "detected",
    "true success",
    "VOC",
)


class Figure(NamedTuple):
    """One line of the totals: what, how much, and over what (or why it is not measurable)."""

    name: str
    value: str
    over: str


def figures(report: Report) -> list[Figure]:
    """Return the totals of a report, in the order in which they are read."""
    totals, episodes = report.totals, report.episodes
    told = f"{totals.truth_known} of {totals.episodes} episodes with known truth"
    both = [e for e in episodes if e.truth_known and None not in (e.detected, e.true_success)]
    detected = sum(episode.detected is not None for episode in episodes)
    ordered = sum(not math.isnan(episode.value_order) for episode in episodes)
    untold = "the environment tells no success"

    def needs(what: str) -> str:
        return what if totals.truth_known else untold

    return [
        Figure("episodes", str(totals.episodes), f"{totals.mean_steps:.1f} steps on average"),
        _figure(
            "success rate, by the model",
            totals.detected_success_rate,
            f"detected in {detected} of {totals.episodes} episodes",
        ),
        _figure("success rate, by the environment", totals.true_success_rate, told, untold),
        _figure("precision of the detector", totals.precision, told, needs("nothing detected")),
        _figure("recall of the detector", totals.recall, told, needs("no true success")),
        _figure("F1 of the detector", totals.f1, told, needs("no success, and none detected")),
        _figure("false-success rate", totals.false_success_rate, told, needs("no failure")),
        *(
            _figure(
                f"steps from true to detected success, {name}",
                value,
                f"episodes with both: {len(both)}",
                needs("no true success was detected"),
                "+.1f",
            )
            for name, value in (("mean", totals.delay_mean), ("median", totals.delay_median))
        ),
        *(
            _figure(
                name,
                value,
                f"successful episodes: {ordered}",
                "no success with two predictions before it",
                "+.3f",
            )
            for name, value in (
                ("value-order correlation", totals.value_order),
                ("value-order correlation of a clock", totals.clock_order),
            )
        ),
        _figure(
            "Kendall's tau-a, paid and env return",
            totals.return_order,
            f"{totals.episodes} episodes",
            "the env returns do not differ",
            "+.3f",
        ),
        _figure("paid, mean", totals.mean_paid, f"{totals.episodes} episodes", "", "+.3f"),
        _figure(
            "env return, mean",
            totals.mean_env_return,
            f"{totals.episodes} episodes",
            "the environment's rewards are not finite",
            "+.3f",
        ),
        _figure(
            "env steps per second",
            report.steps_per_second,
            f"{report.env_steps} steps in {report.seconds:.1f} s, the policy's among them",
            "",
            ".0f",
        ),
        _figure(
            "env steps per second without the model",
            report.steps_per_second_without_model,
            f"the model took {report.model_seconds:.1f} s",
            "",
            ".0f",
        ),
    ]


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
        "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
    }
    rows = [_episode(number, episode) for number, episode in enumerate(report.episodes)]
    for row, episode, number in zip(rows, report.episodes, range(len(rows)), strict=True):
        stem = file_stem(number)
        pictures = f"[picture]({stem}.png), [video]({stem}.mp4)"
        row.append(pictures if episode.scores is not None else "every prediction failed")
    parts = [
        "# Evaluation",
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        _markdown_table(("figure", "value", "over"), [list(f) for f in figures(report)]),
        "## Episodes",
        "`detected` is the detector's step, `true success` the first at which the environment "
        "told it; VOC is Spearman's correlation of progress with time up to the success.",
        _markdown_table((*_COLUMNS, "shown in"), rows),
    ]
    return "\n\n".join(parts) + "\n"


def plain_text(report: Report) -> str:
    """Return the totals and the first episodes as text for a terminal."""
    totals = figures(report)
    wide = max(len(figure.name) for figure in totals)
    lines = [f"{name:<{wide}} {value:>7}  {over}" for name, value, over in totals]
    rows = [_episode(number, e) for number, e in enumerate(report.episodes[:_SHOWN])]
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
    table = [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for row in (_COLUMNS, *rows)
    ]
    more = len(report.episodes) - len(rows)
    return "\n".join([*lines, "", *table, *[f"... and {more} more"] * (more > 0)])


def headline(number: int, episode: EvaluatedEpisode) -> str:
    """Return what stands above the picture of an episode."""
    where = "" if episode.seed is None else f" (seed {episode.seed})"
    truth = "true success not told"
    if episode.truth_known:
        at = episode.true_success
        truth = "no true success" if at is None else f"true success at {at}"
    detected = "none detected" if episode.detected is None else f"detected at {episode.detected}"
    return (
        f"episode {number}{where}: {episode.steps} steps, paid {episode.paid:+.3f}; "
        f"{truth}, {detected}"
    )


def file_stem(number: int) -> str:
    """Return what the files of an episode are called, without their suffix."""
    return f"episode-{number:03d}"


def _episode(number: int, episode: EvaluatedEpisode) -> list[str]:
    unknown = "no" if episode.truth_known else "not told"
    return [
        str(number),
        str(episode.env),
        "-" if episode.seed is None else str(episode.seed),
        str(episode.steps),
        f"{episode.paid:+.3f}",
        f"{episode.env_return:+.3f}",
        _number(episode.final_progress, ".3f"),
        "no" if episode.detected is None else str(episode.detected),
        unknown if episode.true_success is None else str(episode.true_success),
        _number(episode.value_order, "+.2f"),
    ]


def _figure(name: str, value: float, over: str, otherwise: str = "", form: str = ".3f") -> Figure:
    measured = math.isfinite(value)
    return Figure(name, _number(value, form), over if measured else f"not measurable: {otherwise}")


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "-"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """A bar in a task would begin a new column, a line break a new row."""
    return " ".join(text.split()).replace("|", "\\|")
