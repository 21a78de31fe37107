"""Pictures of scores: a film strip, and progress and success beneath it; and of losses.

Knows nothing of models or environments, and touches no global state of matplotlib: every picture
is a `matplotlib.figure.Figure` of its own, drawn without a display.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from robometer_gym.evaluation.scoring import Scores
from robometer_gym.reward_model import Frame
from robometer_gym.tracking.settings import RewardSettings
from robometer_gym.tracking.window import linspace_indices
from robometer_gym.validation import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Run", "plot_episodes", "plot_losses", "plot_scores"]

_WIDTH, _DPI = 10.0, 120  # inches; 1200 pixels
_MARGIN = 0.7  # inches beside a film strip: the width of the curves' labels
_TALLEST = 1.9  # inches, a frame in a film strip
_CURVES = 2.4  # inches, the height of the curves
_FEW = 60  # scores that can be told apart as points

_PROGRESS, _SUCCESS, _TRUE = "#1d5fd1", "#d9660a", "#3f9b60"
_INK, _PALE, _GRID = "#1f2933", "#667380", "#e4e8ec"


@dataclass(frozen=True, eq=False)
class Run:
    """One episode, as `plot_episodes` draws it.

    Attributes:
        name: who acted.
        frames: (T + 1, H, W, 3) uint8, the frame at reset and after each of T steps; or those of
            `frame_steps`.
        scores: what was predicted; `scores.frame_indices` are steps.
        true_success: the step at which the environment itself said that it was done, or None.
        detected: the step at which the success detector fired, or None.
        frame_steps: the step of each frame, increasing; None where every step has one.
        headline: stands above the frames; by default the name, and when it was done.
        success_threshold: of the detector.
    """

    name: str
    frames: NDArray[np.uint8] | Sequence[Frame]
    scores: Scores
    true_success: int | None = None
    detected: int | None = None
    frame_steps: Sequence[int] | None = None
    headline: str = ""
    success_threshold: float = RewardSettings.success_threshold

    @property
    def steps(self) -> int:
        """How many steps the episode had, as far as is known from its frames and marks."""
        last = len(self.frames) - 1 if self.frame_steps is None else self.frame_steps[-1]
        return max(last, self.true_success or 0, self.detected or 0)

    def step(self, frame: int) -> int:
        """Which step a frame shows, by its place among the frames."""
        return frame if self.frame_steps is None else self.frame_steps[frame]


def plot_scores(
    scores: Scores, frames: NDArray[np.uint8] | Sequence[Frame], path: str | os.PathLike[str]
) -> None:
    """Draw the scores of one video as a PNG, 1200 pixels wide.

    Args:
        scores: what was said.
        frames: (T, H, W, 3) uint8, the frames that were scored; up to 8 of them are shown.
        path: where to; overwritten if it exists.

    Raises:
        ValueError: not one frame per score.
        MissingDependencyError: matplotlib is missing.
    """
    if len(frames) != len(scores):
        raise ValueError(
            f"frames must be the {len(scores)} that were scored, got {len(frames)}: "
            "give video.frames[scores.frame_indices]."
        )
    timed = scores.seconds is not None
    times = scores.frame_indices if scores.seconds is None else scores.seconds
    shown = linspace_indices(len(frames), 8)
    labels = [f"{times[i]:.1f} s" if timed else f"frame {times[i]}" for i in shown]
    pictures = [frames[i] for i in shown]

    figure, [(strip, curves)] = _layout([pictures])
    figure.suptitle(
        _wrap(scores.task, 80), fontsize=14, weight="bold", color=_INK, parse_math=False
    )
    _draw_strip(strip, pictures, labels)
    _draw_scores(curves, times, scores, "time (s)" if timed else "frame")
    _draw_foot(figure, [curves])
    figure.savefig(path, format="png")


def plot_episodes(
    runs: Sequence[Run], path: str | os.PathLike[str], *, title: str = "", note: str = ""
) -> None:
    """Draw episodes side by side as a PNG, 1200 pixels wide: who does better, and is it seen?

    Points are predictions. A vertical line marks where the environment itself said that the task
    was done, another where the model's success was detected.

    Args:
        runs: one to four of them, so that the frames stay visible.
        path: where to; overwritten if it exists.
        title: stands on top.
        note: stands at the bottom, small.

    Raises:
        ValueError: no runs, or more than four.
        MissingDependencyError: matplotlib is missing.
    """
    if not 1 <= len(runs) <= 4:
        raise ValueError(f"runs must be one to four episodes, got {len(runs)}.")
    shown = [linspace_indices(len(run.frames), 10 // len(runs)) for run in runs]
    pictures = [[run.frames[i] for i in which] for run, which in zip(runs, shown, strict=True)]

    figure, axes = _layout(pictures)
    if title:
        figure.suptitle(_wrap(title, 80), fontsize=14, weight="bold", color=_INK, parse_math=False)
    for run, which, images, (strip, curves) in zip(runs, shown, pictures, axes, strict=True):
        strip.set_title(_headline(run), fontsize=11, color=_INK, parse_math=False)
        _draw_strip(strip, images, [f"step {run.step(i)}" for i in which])
        _draw_scores(
            curves,
            run.scores.frame_indices,
            run.scores,
            "environment step",
            run.success_threshold,
        )
        _draw_marks(curves, run)
    _draw_foot(figure, [curves for _, curves in axes], note)
    figure.savefig(path, format="png")


def plot_losses(logged: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw what a training logged as a PNG, 1200 pixels wide: the loss and its three parts.

    Args:
        logged: entries as in `losses.json`, with "step" and whichever of "loss",
            "progress_loss", "success_loss" and "preference_loss" were logged then.
        path: where to; overwritten if it exists.

    Raises:
        ValueError: nothing was logged.
        MissingDependencyError: matplotlib is missing.
    """
    names = ("loss", "progress_loss", "success_loss", "preference_loss")
    if not any(name in entry for entry in logged for name in names):
        raise ValueError("No losses were logged: the training was shorter than logging_steps.")
    figure = _new_figure(figsize=(_WIDTH, 4.0))
    axes = figure.subplots()
    for name, colour in zip(names, (_INK, _PROGRESS, _SUCCESS, _TRUE), strict=True):
        points = [(entry["step"], entry[name]) for entry in logged if name in entry]
        if points:
            label = name.replace("_loss", "")
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=2, label=label)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step", color=_INK)
    axes.set_ylabel("loss", color=_INK)
    _style(axes)
    axes.legend(frameon=False, labelcolor=_INK)
    figure.set_layout_engine("constrained")
    figure.savefig(path, format="png")


def _layout(strips: Sequence[Sequence[Frame]]) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    """A figure with a film strip above curves, once per column."""
    room = _WIDTH / len(strips) - _MARGIN
    tallest = max(room / len(strip) * strip[0].shape[0] / strip[0].shape[1] for strip in strips)
    heights = [min(_TALLEST, tallest), _CURVES]
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
    centres = [place * pitch + (width - 1) / 2 for place in range(len(frames))]
    axes.set_xticks(centres, labels, fontsize=9, color=_PALE)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_scores(
    axes: Axes,
    times: NDArray[Any],
    scores: Scores,
    unit: str,
    threshold: float = RewardSettings.success_threshold,
) -> None:
    dashes: dict[str, Any] = {"linewidth": 1, "linestyle": (0, (4, 3)), "alpha": 0.7}
    size = 5 if len(scores) <= _FEW else 0  # many marks would only thicken the line
    points: dict[str, Any] = {"linewidth": 2, "markersize": size, "clip_on": False}
    # Progress comes first in the legend and lies on top.
    axes.plot(times, scores.progress, "o-", color=_PROGRESS, label="progress", zorder=4, **points)
    axes.plot(
        times, scores.success, "s-", color=_SUCCESS, label="success probability", zorder=3, **points
    )
    axes.axhline(threshold, color=_SUCCESS, label=f"success threshold {threshold:g}", **dashes)
    axes.set_ylim(0, 1)
    axes.set_xlabel(unit, color=_INK)
    if len(scores) == 1:
        axes.set_xticks(times)  # or the axis would show thousandths of a frame
    _style(axes)


def _style(axes: Axes) -> None:
    axes.grid(color=_GRID)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_PALE, labelcolor=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_PALE)


def _draw_marks(axes: Axes, run: Run) -> None:
    """Draw vertical lines where success was true, and where it was detected."""
    axes.set_xlim(0, max(1, run.steps))
    line: dict[str, Any] = {"clip_on": False, "solid_capstyle": "butt"}  # whole at the very end
    if run.true_success is not None:
        axes.axvline(run.true_success, color=_TRUE, linewidth=3, label="true success", **line)
    if run.detected is not None:  # on top, so that both are seen where they agree
        line |= {"linewidth": 2, "linestyle": ":"}
        axes.axvline(run.detected, color=_SUCCESS, label="detected", **line)


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
        labelcolor=_INK,
    )
    figure.text(0.5, 0.08 * inch, note, ha="center", fontsize=9, color=_PALE, parse_math=False)
    room = (0, foot + 0.05 * inch, 1, 1 - foot - 0.1 * inch)
    figure.set_layout_engine("constrained", rect=room)


def _headline(run: Run) -> str:
    if run.headline:
        return run.headline
    if run.true_success is None:
        return f"{run.name}: {run.steps} steps, never done"
    return f"{run.name}: done at step {run.true_success}"


def _wrap(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width, max_lines=2, placeholder=" ..."))
