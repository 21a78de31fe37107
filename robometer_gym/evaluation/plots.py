"""Plots of episode traces (film strip, progress and success), of losses and of learning curves.

Knows nothing of models or environments, and touches no global state of matplotlib: every plot is a
`matplotlib.figure.Figure` of its own, drawn without a display.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robometer_gym.evaluation.fonts import prepare_text
from robometer_gym.evaluation.palette import DETECTED, GRID, INK, MUTED, PROGRESS, SUCCESS, TRUE
from robometer_gym.reward_model import Frame
from robometer_gym.tracking.settings import RewardSettings
from robometer_gym.tracking.trace import EpisodeTrace
from robometer_gym.tracking.window import linspace_indices
from robometer_gym.validation import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_episodes", "plot_learning_curves", "plot_losses", "plot_scores"]

_WIDTH, _DPI = 10.0, 120  # inches; 1200 pixels
_MARGIN = 0.7  # inches beside a film strip: the width of the curves' labels
_MAX_STRIP = 1.9  # inches, the height of a film strip
_CURVES = 2.4  # inches, the height of the curves
_MAX_POINTS = 60  # predictions that are still visible as single points
_MAX_FRAMES = 8  # in the film strip of a video


def plot_scores(
    trace: EpisodeTrace,
    path: str | os.PathLike[str],
    *,
    success_threshold: float = RewardSettings.success_threshold,
) -> None:
    """Draw the scores of one video as a PNG, 1200 pixels wide.

    Args:
        trace: from `score_video` or `score_frames`; up to 8 of its frames are shown.
        path: overwritten if it exists.
        success_threshold: drawn as a line.

    Raises:
        ValueError: a trace without frames or predictions.
        MissingDependencyError: matplotlib is missing.
    """
    _check_drawable(trace)
    seconds = trace.seconds
    shown = linspace_indices(len(trace.frames), _MAX_FRAMES)
    frames, steps = [trace.frames[i] for i in shown], [trace.frame_steps[i] for i in shown]
    if seconds is None:
        labels = [f"frame {step}" for step in steps]
    else:
        labels = [f"{t:.1f} s" for t in np.interp(steps, trace.prediction_steps, seconds)]

    figure, [(strip, curves)] = _layout([frames])
    figure.suptitle(**_text(trace.task, 80, 14), weight="bold", color=INK)
    _draw_strip(strip, frames, labels)
    if seconds is None:
        _draw_curves(curves, trace.prediction_steps, trace, "frame", success_threshold)
    else:
        _draw_curves(curves, seconds, trace, "time (s)", success_threshold)
    _draw_foot(figure, [curves])
    figure.savefig(path, format="png")


def plot_episodes(
    traces: Sequence[EpisodeTrace],
    path: str | os.PathLike[str],
    *,
    labels: Sequence[str] = (),
    title: str = "",
    note: str = "",
) -> None:
    """Draw episodes side by side as a PNG, 1200 pixels wide, for comparison.

    Points are predictions. A vertical line marks where the environment itself reported success,
    another where success was detected. All panels share one x axis.

    Args:
        traces: one to four episodes, so that the frames stay visible.
        path: overwritten if it exists.
        labels: one for each episode, above its frames.
        title: stands on top.
        note: stands at the bottom, small.

    Raises:
        ValueError: no episodes, or more than four; one without frames or predictions; labels for
            another number of episodes.
        MissingDependencyError: matplotlib is missing.
    """
    if not 1 <= len(traces) <= 4:
        raise ValueError(f"traces must be one to four episodes, got {len(traces)}.")
    if labels and len(labels) != len(traces):
        raise ValueError(f"labels must be one for each of {len(traces)} traces, got {len(labels)}.")
    for trace in traces:
        _check_drawable(trace)
    shown = [linspace_indices(len(trace.frames), 10 // len(traces)) for trace in traces]
    strips = [[t.frames[i] for i in which] for t, which in zip(traces, shown, strict=True)]
    last_step = max(1, *(_last_step(trace) for trace in traces))

    figure, axes = _layout(strips)
    if title:
        figure.suptitle(**_text(title, 80, 14), weight="bold", color=INK)
    for trace, label, which, frames, (strip, curves) in zip(
        traces, labels or [""] * len(traces), shown, strips, axes, strict=True
    ):
        text = _text(label, 130 // len(traces), 11)
        strip.set_title(text.pop("t"), **text, color=INK)
        _draw_strip(strip, frames, [f"step {trace.frame_steps[i]}" for i in which])
        threshold = (trace.settings or RewardSettings()).success_threshold
        _draw_curves(curves, trace.prediction_steps, trace, "environment step", threshold)
        curves.set_xlim(0, last_step)
        _draw_marks(curves, trace)
    _draw_foot(figure, [curves for _, curves in axes], note)
    figure.savefig(path, format="png")


def _check_drawable(trace: EpisodeTrace) -> None:
    if not trace.frames or not len(trace.progress):
        raise ValueError(
            f"A plot needs frames and predictions; this trace has {len(trace.frames)} frames and "
            f"{len(trace.progress)} predictions. A trace that was read from a file has no frames."
        )


def _last_step(trace: EpisodeTrace) -> int:
    """Return the last step; a prediction may have failed there, and a video has no steps."""
    return max(trace.num_steps, int(trace.prediction_steps[-1]))


def plot_losses(logged: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw the losses of a training as a PNG, 1200 pixels wide: the whole and its three parts.

    Args:
        logged: entries as in `losses.json`, with "step" and whichever of "loss",
            "progress_loss", "success_loss" and "preference_loss" were logged then.
        path: overwritten if it exists.

    Raises:
        ValueError: nothing was logged.
        MissingDependencyError: matplotlib is missing.
    """
    names = ("loss", "progress_loss", "success_loss", "preference_loss")
    if not any(name in entry for entry in logged for name in names):
        raise ValueError("No losses were logged: the training was shorter than logging_steps.")
    figure = _new_figure(figsize=(_WIDTH, 4.0))
    axes = figure.subplots()
    for name, color in zip(names, (INK, PROGRESS, SUCCESS, TRUE), strict=True):
        points = [(entry["step"], entry[name]) for entry in logged if name in entry]
        if points:
            label = name.replace("_loss", "")
            axes.plot(*zip(*points, strict=True), color=color, linewidth=2, label=label)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel("loss", color=INK)
    _style(axes)
    axes.legend(frameon=False, labelcolor=INK)
    figure.set_layout_engine("constrained")
    figure.savefig(path, format="png")


def plot_learning_curves(
    curves: Mapping[str, Sequence[tuple[ArrayLike, ArrayLike]]],
    path: str | os.PathLike[str],
    *,
    baselines: Mapping[str, float] | None = None,
    title: str = "",
) -> None:
    """Draw success rates over training steps as a PNG, 1200 pixels wide.

    Each curve is the mean over its runs, with a band from the lowest to the highest run.

    Args:
        curves: at most four labels, each with its runs: (P,) steps, the same for every run of a
            label, and (P,) rates in [0, 1].
        path: overwritten if it exists.
        baselines: labels of dashed horizontal lines, and their rates.
        title: above the curves.

    Raises:
        ValueError: more than four labels, a label without runs, or runs with other steps.
        MissingDependencyError: matplotlib is missing.
    """
    colors = (PROGRESS, SUCCESS, TRUE, INK)
    if len(curves) > len(colors):
        raise ValueError(f"curves must be at most {len(colors)} labels, got {len(curves)}.")
    figure = _new_figure(figsize=(_WIDTH, 4.0))
    axes = figure.subplots()
    for color, (label, runs) in zip(colors, curves.items(), strict=False):
        if not runs or len({tuple(np.asarray(steps)) for steps, _ in runs}) != 1:
            raise ValueError(
                f"The runs of {label!r} must have the same steps, and be at least one."
            )
        steps, rates = runs[0][0], np.array([rates for _, rates in runs])
        name = f"{label}: mean and range of {len(runs)} runs" if len(runs) > 1 else label
        axes.fill_between(steps, rates.min(0), rates.max(0), color=color, alpha=0.2, linewidth=0)
        axes.plot(steps, rates.mean(0), "o-", color=color, linewidth=2, markersize=5, label=name)
    for label, rate in (baselines or {}).items():
        dashes: Any = (0, (4, 3))
        axes.axhline(rate, color=MUTED, linewidth=1, linestyle=dashes, label=label)
    axes.set_ylim(-0.04, 1.04)
    axes.set_xlabel("environment steps", color=INK)
    axes.set_ylabel("true success rate", color=INK)
    axes.set_title(title, color=INK, parse_math=False)
    _style(axes)
    axes.legend(frameon=False, labelcolor=INK)
    figure.set_layout_engine("constrained")
    figure.savefig(path, format="png")


def _layout(strips: Sequence[Sequence[Frame]]) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    """Return a figure with a film strip above curves, once per column."""
    room = _WIDTH / len(strips) - _MARGIN
    tallest = max(room / len(strip) * strip[0].shape[0] / strip[0].shape[1] for strip in strips)
    heights = [min(_MAX_STRIP, tallest), _CURVES]
    figure = _new_figure(figsize=(_WIDTH, sum(heights) + 1.7))
    axes = figure.subplots(2, len(strips), height_ratios=heights, squeeze=False)
    return figure, list(zip(axes[0], axes[1], strict=True))


def _new_figure(figsize: tuple[float, float]) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "Drawing plots needs matplotlib: pip install 'robometer-gym[video]'."
        ) from error
    return Figure(figsize=figsize, dpi=_DPI)


def _draw_strip(axes: Axes, frames: Sequence[Frame], labels: Sequence[str]) -> None:
    """Draw frames of one size side by side, a label under each."""
    height, width, _ = frames[0].shape
    pitch = width + max(1, width // 24)
    strip = np.full((height, pitch * len(frames), 3), 255, np.uint8)
    for place, frame in enumerate(frames):
        strip[:, place * pitch : place * pitch + width] = frame
    axes.imshow(strip[:, : pitch * len(frames) - (pitch - width)])
    centers = [place * pitch + (width - 1) / 2 for place in range(len(frames))]
    axes.set_xticks(centers, labels, fontsize=9, color=MUTED)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_curves(
    axes: Axes, times: NDArray[Any], trace: EpisodeTrace, unit: str, threshold: float
) -> None:
    dashes: dict[str, Any] = {"linewidth": 1, "linestyle": (0, (4, 3)), "alpha": 0.7}
    size = 5 if len(times) <= _MAX_POINTS else 0  # many marks would only thicken the line
    points: dict[str, Any] = {"linewidth": 2, "markersize": size, "clip_on": False}
    # Progress comes first in the legend and lies on top.
    axes.plot(times, trace.progress, "o-", color=PROGRESS, label="progress", zorder=4, **points)
    axes.plot(
        times, trace.success, "s-", color=SUCCESS, label="success probability", zorder=3, **points
    )
    axes.axhline(threshold, color=SUCCESS, label=f"success threshold {threshold:g}", **dashes)
    axes.set_ylim(-0.04, 1.04)  # a curve at 0 would lie on the axis
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.set_xlabel(unit, color=INK)
    if len(times) == 1:
        axes.set_xticks(times)  # or the axis would show thousandths of a frame
    _style(axes)


def _style(axes: Axes) -> None:
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)


def _draw_marks(axes: Axes, trace: EpisodeTrace) -> None:
    """Draw vertical lines where success was true, and where it was detected."""
    line: dict[str, Any] = {"clip_on": False, "solid_capstyle": "butt"}  # whole at the very end
    if trace.true_success_step is not None:
        axes.axvline(trace.true_success_step, color=TRUE, linewidth=3, label="true success", **line)
    if trace.detected_step is not None:  # on top, so that both are seen where they agree
        line |= {"linewidth": 2, "linestyle": ":"}
        axes.axvline(trace.detected_step, color=DETECTED, label="detected", **line)


def _draw_foot(figure: Figure, axes: Sequence[Axes], note: str = "") -> None:
    """Draw one legend for all curves, each name once, and the note; keep the room for them."""
    lines: dict[Any, Artist] = {}
    for one in axes:
        handles, names = one.get_legend_handles_labels()
        lines |= dict(zip(names, handles, strict=True))
    inch = 1 / figure.get_figheight()
    foot = (0.55 if note else 0.3) * inch
    figure.legend(
        list(lines.values()),
        list(lines),
        loc="upper center",
        bbox_to_anchor=(0.5, foot),
        borderaxespad=0.0,
        ncols=len(lines),
        frameon=False,
        labelcolor=INK,
    )
    text = _text(note, 160, 9)
    figure.text(0.5, 0.08 * inch, text.pop("t"), **text, ha="center", color=MUTED)
    room = (0, foot + 0.05 * inch, 1, 1 - foot - 0.1 * inch)
    figure.set_layout_engine("constrained", rect=room)


def _text(text: str, width: int, size: float) -> dict[str, Any]:
    """Return the arguments of a text in at most two lines, in a font that has its characters."""
    text, font = prepare_text(text)
    wrapped = "\n".join(textwrap.wrap(text, width, max_lines=2, placeholder=" ..."))
    drawn: dict[str, Any] = {"t": wrapped, "parse_math": False}
    return drawn | ({"font": font} if font else {}) | {"fontsize": size}
