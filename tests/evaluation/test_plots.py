"""Plots: their size, their frames and their curves."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robometer_gym.evaluation.plots import plot_episodes, plot_losses, plot_scores
from robometer_gym.tracking.trace import EpisodeTrace
from robometer_gym.validation import MissingDependencyError
from tests.evaluation.traces import MAGENTA, make_trace, paint

PROGRESS, SUCCESS, TRUE = (29, 95, 209), (217, 102, 10), (63, 155, 96)


def scored(
    length: int = 10, fps: float | None = 10.0, task: str = "open", frames=None
) -> EpisodeTrace:
    """Return a video of which every third frame was scored, with scores from 0 to 1."""
    rising = np.linspace(0, 1, length, dtype=np.float32)
    steps = range(0, 3 * length, 3)
    return replace(
        EpisodeTrace.from_values(task, steps, rising, rising**4, fps),
        frames=tuple(paint(length) if frames is None else frames),
        frame_steps=tuple(steps),
    )


def read_plot(path: Path) -> np.ndarray:
    """Read a PNG as (H, W, 3) int."""
    with Image.open(path) as image:
        shown: np.ndarray = np.asarray(image.convert("RGB")).astype(int)
    return shown


def pixels(shown: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Return (H, W) bool: where the plot has nearly this color."""
    near: np.ndarray = np.abs(shown - color).max(axis=-1) < 12
    return near


@pytest.mark.parametrize("length", [1, 2, 10, 200])
@pytest.mark.parametrize("fps", [10.0, None])
def test_a_plot_of_scores_shows_frames_and_curves(tmp_path, length, fps):
    """The plot would be blank, of another size, or lack the film strip or a curve."""
    plot_scores(scored(length, fps), tmp_path / "scores.png")
    shown = read_plot(tmp_path / "scores.png")
    height, width, _ = shown.shape
    assert width == 1200
    assert 400 < height < 900
    strip = pixels(shown, MAGENTA)
    assert strip.sum() > 10_000
    assert not strip[height // 2 :].any(), "The film strip covers the curves."
    for color in (PROGRESS, SUCCESS):
        curve = pixels(shown, color)
        assert curve[height // 3 :].sum() > (5 if length == 1 else 100)
        assert not curve[:20].any()


@pytest.mark.parametrize(("height", "width"), [(480, 640), (64, 64), (320, 180), (20, 400)])
def test_the_film_strip_keeps_the_frames_shape(tmp_path, height, width):
    """A portrait video would be squeezed, or push the curves off the plot."""
    plot_scores(scored(4, frames=paint(4, height, width)), tmp_path / "scores.png")
    strip = pixels(read_plot(tmp_path / "scores.png"), MAGENTA)
    rows, columns = strip.any(axis=1).sum(), strip.any(axis=0).sum()
    assert columns / rows == pytest.approx(4 * width / height, rel=0.05)


def test_at_most_eight_frames_the_first_and_the_last_among_them(tmp_path):
    """A strip of thirty frames would be too small to see, or would hide how it ended."""
    frames = np.zeros((30, 48, 64, 3), np.uint8)
    frames[0], frames[-1] = MAGENTA, (0, 255, 255)
    plot_scores(scored(30, frames=frames), tmp_path / "scores.png")
    shown = read_plot(tmp_path / "scores.png")
    first, last = pixels(shown, MAGENTA), pixels(shown, (0, 255, 255))
    assert np.nonzero(first)[1].max() < 1200 / 6
    assert np.nonzero(last)[1].min() > 1200 * 5 / 6
    assert first.sum() == pytest.approx(last.sum(), rel=0.1)


def test_a_task_is_written_as_it_is(tmp_path):
    """Two dollar signs would be read as a formula and crash, or a long task be cut at the edge."""
    task = "buy the $5 cup_{ not the $7 one, " + "then put it on the shelf and " * 9
    plot_scores(scored(task=task), tmp_path / "scores.png")
    shown = read_plot(tmp_path / "scores.png")
    assert (shown[:, :3] > 250).all()
    assert (shown[:, -3:] > 250).all()


def test_more_frames_than_predictions_can_be_shown(tmp_path):
    """A trace with every frame of an episode would end in an IndexError."""
    plot_scores(episodes(None)[0], tmp_path / "scores.png")
    assert pixels(read_plot(tmp_path / "scores.png"), MAGENTA).sum() > 10_000


def test_a_trace_without_frames_is_refused(tmp_path):
    """A trace from a file would end in an IndexError deep inside."""
    with pytest.raises(ValueError, match=r"has 0 frames and 10 predictions\. A trace"):
        plot_scores(replace(scored(), frames=(), frame_steps=()), tmp_path / "scores.png")
    with pytest.raises(ValueError, match="has 28 frames and 0 predictions"):
        plot_episodes([replace(episodes(None)[0], predictions=())], tmp_path / "scores.png")


def episodes(*true: int | None, **more) -> list[EpisodeTrace]:
    """Return one episode of 27 steps per given step of true success, with all its frames."""
    rising = np.linspace(0, 1, 10, dtype=np.float32)
    all_frames = {"frames": paint(28), "frame_steps": tuple(range(28))}
    return [
        make_trace(
            range(0, 30, 3), rising, rising**4, true_success_step=at, **{**all_frames, **more}
        )
        for at in true
    ]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_episodes_stand_side_by_side(tmp_path, count):
    """The README's plot would lack a policy."""
    plot_episodes(episodes(*[27] * count), tmp_path / "runs.png", title="open", note="a note")
    shown = read_plot(tmp_path / "runs.png")
    assert shown.shape[1] == 1200
    for column in np.array_split(shown, count, axis=1):
        for color in (MAGENTA, PROGRESS, SUCCESS, TRUE):
            assert pixels(column, color).sum() > 100


def test_a_true_success_is_marked_where_there_was_one(tmp_path):
    """A false success would look like a true one."""
    plot_episodes(episodes(None), tmp_path / "none.png")
    plot_episodes(episodes(9), tmp_path / "some.png")
    assert not pixels(read_plot(tmp_path / "none.png"), TRUE).any()
    mark = pixels(read_plot(tmp_path / "some.png"), TRUE)
    assert mark.sum(axis=0).max() > 200, "The mark is not a vertical line."


def test_a_detected_success_is_marked(tmp_path):
    """A false alarm could not be seen."""
    plot_episodes(episodes(None), tmp_path / "none.png")
    plot_episodes(episodes(None, detected_step=9), tmp_path / "some.png")
    orange = [
        pixels(read_plot(tmp_path / name), SUCCESS).sum() for name in ("none.png", "some.png")
    ]
    assert orange[1] > orange[0] + 150


def test_frames_of_some_steps_are_where_they_belong(tmp_path):
    """Frames of every fifth step would be numbered as if they were of the first few."""
    (whole,) = episodes(None)
    some = replace(whole, frames=paint(4), frame_steps=(0, 9, 18, 27))
    plot_episodes([some], tmp_path / "some.png")
    plot_episodes([whole], tmp_path / "all.png")
    spread = [
        int(pixels(read_plot(tmp_path / name), PROGRESS).any(axis=0).sum())
        for name in ("some.png", "all.png")
    ]
    assert spread[0] == pytest.approx(spread[1], abs=9), "The axes end where the episode does."
    plot_episodes([replace(some, frame_steps=(0, 1, 2, 27))], tmp_path / "other.png")
    changed = np.abs(read_plot(tmp_path / "some.png") - read_plot(tmp_path / "other.png")).any(
        axis=-1
    )
    assert changed.any(), "Each frame is named by its step."


def test_the_axes_go_to_the_end_of_the_longest_episode(tmp_path):
    """A fast expert would seem as slow as the others, or the last mark be cut off."""

    def columns(name: str) -> list[int]:
        halves = np.array_split(pixels(read_plot(tmp_path / name), PROGRESS), 2, axis=1)
        return [int(half.any(axis=0).sum()) for half in halves]

    long, short = episodes(None, None)
    short = make_trace(range(0, 15, 3), [0.5] * 5, [0.5] * 5, frames=paint(1), frame_steps=(0,))
    plot_episodes([long, short], tmp_path / "two.png")
    left, right = columns("two.png")
    assert right == pytest.approx(left * 12 / 27, abs=12)
    # The last prediction may have failed: the axes go to the end of the episode all the same.
    cut = replace(short, predictions=long.predictions[:5], steps=long.steps)
    plot_episodes([long, cut], tmp_path / "cut.png")
    assert columns("cut.png")[1] == pytest.approx(left * 12 / 27, abs=12)


def test_a_curve_at_zero_is_seen_above_the_axis(tmp_path):
    """A model that never sees progress would look as if it had predicted nothing."""
    zero = make_trace(range(0, 30, 3), [0] * 10, [1] * 10, frames=paint(1), frame_steps=(0,))
    plot_episodes([zero], tmp_path / "zero.png")
    shown = read_plot(tmp_path / "zero.png")
    rows = np.nonzero(pixels(shown, PROGRESS).sum(axis=1) > 300)[0]  # not the legend's
    axis = np.nonzero((np.abs(shown - (102, 115, 128)).max(axis=-1) < 60).sum(axis=1) > 600)[0]
    assert len(axis)
    assert rows.max() < axis.max() - 5


def test_a_label_is_shown(tmp_path):
    """The reader would not know whose episode it is."""
    some = episodes(None, frames=paint(4), frame_steps=(0, 9, 18, 27))
    plot_episodes(some, tmp_path / "default.png")
    plot_episodes(some, tmp_path / "own.png", labels=["W" * 60])
    dark = [
        int((read_plot(tmp_path / name)[:60].max(axis=-1) < 128).sum())
        for name in ("default.png", "own.png")
    ]
    assert dark[1] > 1.5 * dark[0]


@pytest.mark.parametrize("count", [0, 5])
def test_too_many_or_no_episodes_are_refused(tmp_path, count):
    """Ten columns would be too narrow to see anything."""
    with pytest.raises(ValueError, match=f"traces must be one to four episodes, got {count}"):
        plot_episodes(episodes(*[None] * count), tmp_path / "runs.png")
    with pytest.raises(ValueError, match="labels must be one for each of 1 traces, got 2"):
        plot_episodes(episodes(None), tmp_path / "runs.png", labels=["a", "b"])


def test_matplotlib_is_left_as_it_was(tmp_path):
    """A notebook's own plots would change their look or backend, or pile up in memory."""
    import matplotlib

    before = dict(matplotlib.rcParams)
    plot_scores(scored(), tmp_path / "scores.png")
    assert dict(matplotlib.rcParams) == before
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        assert pyplot.get_fignums() == []


def test_without_matplotlib_the_error_names_the_extra(monkeypatch, tmp_path):
    """A user without the extra would see a ModuleNotFoundError and not know what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        MissingDependencyError,
        match=r"^Drawing plots needs matplotlib: pip install 'robometer-gym\[video\]'\.$",
    ):
        plot_scores(scored(), tmp_path / "scores.png")


def test_losses_are_drawn_with_their_parts(tmp_path):
    """Which head does not learn could not be seen."""
    logged = [
        {
            "step": step,
            "loss": 3.0 / step,
            "progress_loss": 2.0 / step,
            "success_loss": 0.6 / step,
            "preference_loss": 0.4 / step,
        }
        for step in range(1, 30)
    ]
    plot_losses([*logged, {"step": 29, "train_runtime": 1.0}], tmp_path / "losses.png")
    shown = read_plot(tmp_path / "losses.png")
    assert shown.shape[1] == 1200
    for color in (PROGRESS, SUCCESS, TRUE):
        assert pixels(shown, color).sum() > 300
    plot_losses([{"step": 1, "loss": 1.0}], tmp_path / "one.png")


def test_no_losses_are_refused(tmp_path):
    """A plot without curves would pass for a training that went to 0."""
    with pytest.raises(ValueError, match="No losses were logged"):
        plot_losses([{"step": 1, "train_runtime": 1.0}], tmp_path / "losses.png")
