"""Pictures: they exist, have the promised size, and show frames and curves."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robometer_gym.evaluation.plots import Run, plot_episodes, plot_losses, plot_scores
from robometer_gym.evaluation.scoring import Scores
from robometer_gym.validation import MissingDependencyError

PROGRESS, SUCCESS, TRUE = (29, 95, 209), (217, 102, 10), (63, 155, 96)
MAGENTA = (255, 0, 255)


def some_scores(length: int = 10, fps: float | None = 10.0, task: str = "open") -> Scores:
    """Scores that rise from 0 to 1."""
    rising = np.linspace(0, 1, length, dtype=np.float32)
    return Scores(task, np.arange(length) * 3, fps, rising, rising**4)


def magenta(length: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames of a colour that nothing else in a picture has: (T, H, W, 3) uint8."""
    return np.broadcast_to(np.array(MAGENTA, np.uint8), (length, height, width, 3))


def picture(path: Path) -> np.ndarray:
    """A PNG as (H, W, 3) int."""
    with Image.open(path) as image:
        shown: np.ndarray = np.asarray(image.convert("RGB")).astype(int)
    return shown


def pixels(shown: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """(H, W) bool: where the picture has this colour, give or take."""
    near: np.ndarray = np.abs(shown - colour).max(axis=-1) < 12
    return near


@pytest.mark.parametrize("length", [1, 2, 10, 200])
@pytest.mark.parametrize("fps", [10.0, None])
def test_a_picture_of_scores_shows_frames_and_curves(tmp_path, length, fps):
    """The picture would be blank, of another size, or lack the film strip or a curve."""
    plot_scores(some_scores(length, fps), magenta(length), tmp_path / "scores.png")
    shown = picture(tmp_path / "scores.png")
    height, width, _ = shown.shape
    assert width == 1200
    assert 400 < height < 900
    strip = pixels(shown, MAGENTA)
    assert strip.sum() > 10_000
    assert not strip[height // 2 :].any(), "The film strip covers the curves."
    for colour in (PROGRESS, SUCCESS):
        curve = pixels(shown, colour)
        assert curve[height // 3 :].sum() > (5 if length == 1 else 100)
        assert not curve[:20].any()


@pytest.mark.parametrize(("height", "width"), [(480, 640), (64, 64), (320, 180), (20, 400)])
def test_the_film_strip_keeps_the_frames_shape(tmp_path, height, width):
    """A portrait video would be squeezed, or push the curves off the picture."""
    plot_scores(some_scores(4), magenta(4, height, width), tmp_path / "scores.png")
    strip = pixels(picture(tmp_path / "scores.png"), MAGENTA)
    rows, columns = strip.any(axis=1).sum(), strip.any(axis=0).sum()
    assert columns / rows == pytest.approx(4 * width / height, rel=0.05)


def test_at_most_eight_frames_the_first_and_the_last_among_them(tmp_path):
    """A strip of thirty frames would be too small to see, or would hide how it ended."""
    frames = np.zeros((30, 48, 64, 3), np.uint8)
    frames[0], frames[-1] = MAGENTA, (0, 255, 255)
    plot_scores(some_scores(30), frames, tmp_path / "scores.png")
    shown = picture(tmp_path / "scores.png")
    first, last = pixels(shown, MAGENTA), pixels(shown, (0, 255, 255))
    assert np.nonzero(first)[1].max() < 1200 / 6
    assert np.nonzero(last)[1].min() > 1200 * 5 / 6
    assert first.sum() == pytest.approx(last.sum(), rel=0.1)


def test_a_task_is_written_as_it_is(tmp_path):
    """Two dollar signs would be read as a formula and crash, or a long task be cut at the edge."""
    task = "buy the $5 cup_{ not the $7 one, " + "then put it on the shelf and " * 9
    plot_scores(some_scores(task=task), magenta(10), tmp_path / "scores.png")
    shown = picture(tmp_path / "scores.png")
    assert (shown[:, :3] > 250).all()
    assert (shown[:, -3:] > 250).all()


def test_each_score_needs_its_frame(tmp_path):
    """The whole video in place of the scored frames would put wrong times under the pictures."""
    with pytest.raises(ValueError, match=r"the 10 that were scored, got 32: give video.frames\["):
        plot_scores(some_scores(10), magenta(32), tmp_path / "scores.png")


def runs(*true: int | None) -> list[Run]:
    """One run per given step of true success."""
    return [
        Run(f"policy {n}", magenta(28), some_scores(), true_success=at, detected=None)
        for n, at in enumerate(true)
    ]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_episodes_stand_side_by_side(tmp_path, count):
    """The README's picture would lack a policy."""
    plot_episodes(runs(*[27] * count), tmp_path / "runs.png", title="open", note="a note")
    shown = picture(tmp_path / "runs.png")
    assert shown.shape[1] == 1200
    for column in np.array_split(shown, count, axis=1):
        for colour in (MAGENTA, PROGRESS, SUCCESS, TRUE):
            assert pixels(column, colour).sum() > 100


def test_a_true_success_is_marked_where_there_was_one(tmp_path):
    """A false success could not be told from a true one."""
    plot_episodes(runs(None), tmp_path / "none.png")
    plot_episodes(runs(9), tmp_path / "some.png")
    assert not pixels(picture(tmp_path / "none.png"), TRUE).any()
    mark = pixels(picture(tmp_path / "some.png"), TRUE)
    assert mark.sum(axis=0).max() > 200, "The mark is not a vertical line."


def test_a_detected_success_is_marked(tmp_path):
    """A false alarm could not be seen."""
    (run,) = runs(None)
    plot_episodes([run], tmp_path / "none.png")
    plot_episodes([Run(run.name, run.frames, run.scores, detected=9)], tmp_path / "some.png")
    orange = [pixels(picture(tmp_path / name), SUCCESS).sum() for name in ("none.png", "some.png")]
    assert orange[1] > orange[0] + 150


def test_frames_of_some_steps_are_where_they_belong(tmp_path):
    """Frames of every fifth step would be numbered as if they were of the first few."""
    scores = some_scores(4)
    run = Run("expert", magenta(4), scores, frame_steps=scores.frame_indices.tolist())
    assert [run.step(frame) for frame in range(4)] == [0, 3, 6, 9]
    assert run.steps == 9
    # A prediction may have failed at the end: what is marked must still be within the axes.
    assert replace(run, true_success=11).steps == 11
    assert replace(run, detected=12).steps == 12
    plain = Run("expert", magenta(10), scores)
    plot_episodes([run], tmp_path / "some.png")
    plot_episodes([plain], tmp_path / "all.png")
    spread = [
        int(pixels(picture(tmp_path / name), PROGRESS).any(axis=0).sum())
        for name in ("some.png", "all.png")
    ]
    assert spread[0] == pytest.approx(spread[1], abs=9), "The axes end where the episode does."
    plot_episodes([replace(run, frame_steps=[0, 1, 2, 9])], tmp_path / "other.png")
    changed = np.abs(picture(tmp_path / "some.png") - picture(tmp_path / "other.png")).any(axis=-1)
    assert changed.any(), "Each frame is named by its step."


def test_a_headline_of_ones_own_is_shown(tmp_path):
    """An environment that tells nothing would be said never to have been done."""
    run = Run("expert", magenta(4), some_scores(4), frame_steps=[0, 3, 6, 9])
    plot_episodes([run], tmp_path / "default.png")
    plot_episodes([replace(run, headline="W" * 60)], tmp_path / "own.png")
    dark = [
        int((picture(tmp_path / name)[:60].max(axis=-1) < 128).sum())
        for name in ("default.png", "own.png")
    ]
    assert dark[1] > 1.5 * dark[0]


@pytest.mark.parametrize("count", [0, 5])
def test_too_many_or_no_episodes_are_refused(tmp_path, count):
    """Ten columns would be too narrow to see anything."""
    with pytest.raises(ValueError, match=f"runs must be one to four episodes, got {count}"):
        plot_episodes(runs(*[None] * count), tmp_path / "runs.png")


def test_matplotlib_is_left_as_it_was(tmp_path):
    """A notebook's own plots would change their look or backend, or pile up in memory."""
    import matplotlib

    before = dict(matplotlib.rcParams)
    plot_scores(some_scores(), magenta(10), tmp_path / "scores.png")
    assert dict(matplotlib.rcParams) == before
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        assert pyplot.get_fignums() == []


def test_without_matplotlib_the_way_to_get_it_is_told(monkeypatch, tmp_path):
    """A user without the extra would see a ModuleNotFoundError and not know what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        MissingDependencyError,
        match=r"^Drawing plots needs matplotlib: pip install 'robometer-gym\[video\]'\.$",
    ):
        plot_scores(some_scores(), magenta(10), tmp_path / "scores.png")


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
    shown = picture(tmp_path / "losses.png")
    assert shown.shape[1] == 1200
    for colour in (PROGRESS, SUCCESS, TRUE):
        assert pixels(shown, colour).sum() > 300
    plot_losses([{"step": 1, "loss": 1.0}], tmp_path / "one.png")


def test_no_losses_is_said(tmp_path):
    """A picture without curves would pass for a training that went to 0."""
    with pytest.raises(ValueError, match="No losses were logged"):
        plot_losses([{"step": 1, "train_runtime": 1.0}], tmp_path / "losses.png")
