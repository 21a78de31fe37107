"""The overlay video: what was predicted is seen at the step at which it was predicted."""

from dataclasses import replace

import numpy as np
import pytest

from robometer_gym.data import read_video
from robometer_gym.evaluation import Run, Scores, write_overlay
from robometer_gym.evaluation.overlay import overlay_frames

PROGRESS, SUCCESS, TRUE = (29, 95, 209), (217, 102, 10), (63, 155, 96)
PANEL = 112


def run(height: int = 64, width: int = 64, **marks) -> Run:
    """Twelve steps, a prediction every four: progress 0, 1/4, 1/2 and 1, and success its square."""
    progress = np.array([0.0, 0.25, 0.5, 1.0], np.float32)
    scores = Scores("open the drawer", np.array([0, 4, 8, 12]), 10.0, progress, progress**2)
    frames = np.full((13, height, width, 3), (255, 0, 255), np.uint8)
    return Run("expert", frames, scores, **marks)


def length_of(frame: np.ndarray, colour: tuple[int, int, int], rows: slice) -> int:
    """How many columns of the panel have a colour."""
    panel = frame[-PANEL:].astype(int)[rows]
    return int((np.abs(panel - colour).max(axis=-1) == 0).any(axis=0).sum())


def test_bars_are_as_long_as_what_was_predicted_last():
    """A person would see progress that the agent was not paid for."""
    frames = list(overlay_frames(run()))
    assert len(frames) == 13
    progress = [length_of(frame, PROGRESS, slice(30, 54)) for frame in frames]
    success = [length_of(frame, SUCCESS, slice(54, 78)) for frame in frames]
    whole = progress[12]
    assert whole > 200
    held = np.repeat([0.0, 0.25, 0.5], 4).tolist()
    np.testing.assert_allclose(np.array(progress[:12]) / whole, held, atol=0.02)
    np.testing.assert_allclose(np.array(success[:12]) / whole, np.square(held), atol=0.02)


@pytest.mark.parametrize(
    ("marks", "colour", "first"),
    [({"detected": 8}, SUCCESS, 8), ({"true_success": 9}, TRUE, 9), ({}, TRUE, None)],
)
def test_a_success_is_marked_from_its_step_on(marks, colour, first):
    """A false or late detection could not be seen."""
    frames = list(overlay_frames(run(**marks)))
    seen = [length_of(frame, colour, slice(82, None)) > 40 for frame in frames]
    assert seen == [first is not None and step >= first for step in range(13)]


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(64, 64, (384, 384)), (480, 640, (480, 640)), (100, 30, (1300, 390)), (20, 700, (20, 700))],
)
def test_pictures_are_large_enough_and_whole(height, width, size):
    """A 64-pixel frame would be a stamp, a large one would be cut off."""
    frame = next(iter(overlay_frames(run(height, width))))
    assert frame.shape == (size[0] + PANEL, size[1], 3)
    assert frame.dtype == np.uint8
    assert (frame[:-PANEL] == (255, 0, 255)).all()


def test_a_long_task_does_not_run_out_of_the_picture():
    """Text over the edge is an error of the drawing library, or unreadable."""
    long = run()
    scores = Scores(
        "tidy up " * 60, long.scores.frame_indices, 10.0, long.scores.progress, long.scores.success
    )
    frame = next(iter(overlay_frames(Run("expert", long.frames, scores))))
    assert (frame[-PANEL:][:, -2:] == 250).all()


def test_the_video_plays_at_its_own_speed_and_stays_at_the_end(tmp_path):
    """The last moment, the success, would be gone before one could look."""
    write_overlay(run(), tmp_path / "run.mp4")
    film = read_video(tmp_path / "run.mp4")
    assert film.fps == 10.0
    assert len(film.frames) == 13 + 10
    write_overlay(run(), tmp_path / "fast.mp4", fps=20)
    assert read_video(tmp_path / "fast.mp4").fps == 20.0


def test_a_run_with_frames_at_predictions_only_lasts_as_long_as_the_episode(tmp_path):
    """The video of an evaluation would run too fast, and count its frames as steps."""
    whole = run(detected=8)
    some = Run("expert", whole.frames[:4], whole.scores, detected=8, frame_steps=[0, 4, 8, 12])
    assert some.steps == 12
    held = [frame for step, frame in enumerate(overlay_frames(whole)) if step % 4 == 0]
    for one, other in zip(overlay_frames(some), held, strict=True):
        assert np.array_equal(one, other)
    write_overlay(some, tmp_path / "some.mp4")
    film = read_video(tmp_path / "some.mp4")
    assert film.fps == 4.0, "10 fps through 4 would be 2.5: too slow to look at."
    fast = Scores("open", whole.scores.frame_indices, 40.0, *[whole.scores.progress] * 2)
    write_overlay(
        Run("expert", whole.frames[:4], fast, frame_steps=[0, 4, 8, 12]), tmp_path / "fast.mp4"
    )
    assert read_video(tmp_path / "fast.mp4").fps == 10.0


def test_the_threshold_is_that_of_the_run():
    """A bar would be seen to stay below the line, and success be detected."""
    low, high = (
        next(iter(overlay_frames(replace(run(), success_threshold=at))))[-PANEL + 65, :320]
        for at in (0.2, 0.8)
    )
    dark = [int(np.nonzero((row == (31, 41, 51)).all(axis=-1))[0].max()) for row in (low, high)]
    assert dark[1] - dark[0] > 100
