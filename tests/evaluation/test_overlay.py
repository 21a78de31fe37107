"""The overlay video: each prediction is shown from its step on."""

from dataclasses import replace

import numpy as np
import pytest

from robometer_gym.data import read_video
from robometer_gym.evaluation import write_overlay
from robometer_gym.evaluation.overlay import overlay_frames
from robometer_gym.tracking.settings import RewardSettings
from robometer_gym.tracking.trace import EpisodeTrace
from tests.evaluation.traces import MAGENTA, make_trace, paint

PROGRESS, SUCCESS, TRUE = (29, 95, 209), (217, 102, 10), (63, 155, 96)
PANEL = 112


def episode(height: int = 64, width: int = 64, **more) -> EpisodeTrace:
    """Twelve steps, a prediction every four: progress 0, 1/4, 1/2 and 1, and success its square."""
    progress = np.array([0.0, 0.25, 0.5, 1.0], np.float32)
    all_frames = {"frames": paint(13, height, width), "frame_steps": tuple(range(13))}
    return make_trace([0, 4, 8, 12], progress, progress**2, **{**all_frames, **more})


def length_of(frame: np.ndarray, color: tuple[int, int, int], rows: slice) -> int:
    """Return how many columns of the panel have a color."""
    panel = frame[-PANEL:].astype(int)[rows]
    return int((np.abs(panel - color).max(axis=-1) == 0).any(axis=0).sum())


def test_bars_show_the_latest_prediction():
    """The video would show progress that the agent was not rewarded for."""
    frames = list(overlay_frames(episode()))
    assert len(frames) == 13
    progress = [length_of(frame, PROGRESS, slice(30, 54)) for frame in frames]
    success = [length_of(frame, SUCCESS, slice(54, 78)) for frame in frames]
    whole = progress[12]
    assert whole > 200
    held = np.repeat([0.0, 0.25, 0.5], 4).tolist()
    np.testing.assert_allclose(np.array(progress[:12]) / whole, held, atol=0.02)
    np.testing.assert_allclose(np.array(success[:12]) / whole, np.square(held), atol=0.02)


@pytest.mark.parametrize(
    ("marks", "color", "first"),
    [({"detected_step": 8}, SUCCESS, 8), ({"true_success_step": 9}, TRUE, 9), ({}, TRUE, None)],
)
def test_a_success_is_marked_from_its_step_on(marks, color, first):
    """A false or late detection could not be seen."""
    frames = list(overlay_frames(episode(**marks)))
    marked = [length_of(frame, color, slice(82, None)) > 40 for frame in frames]
    assert marked == [first is not None and step >= first for step in range(13)]


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(64, 64, (384, 384)), (480, 640, (480, 640)), (100, 30, (1300, 390)), (20, 700, (20, 700))],
)
def test_frames_are_large_enough_and_whole(height, width, size):
    """A 64-pixel frame would be a stamp, a large one would be cut off."""
    frame = next(iter(overlay_frames(episode(height, width))))
    assert frame.shape == (size[0] + PANEL, size[1], 3)
    assert frame.dtype == np.uint8
    assert (frame[:-PANEL] == MAGENTA).all()


def test_a_long_task_stays_within_the_frame():
    """Text over the edge is an error of the drawing library, or unreadable."""
    frame = next(iter(overlay_frames(episode(task="tidy up " * 60), "expert")))
    assert (frame[-PANEL:][:, -2:] == 250).all()


def test_the_video_plays_at_its_own_speed_and_stays_at_the_end(tmp_path):
    """The last frame, the success, would be gone at once."""
    write_overlay(episode(), tmp_path / "run.mp4")
    film = read_video(tmp_path / "run.mp4")
    assert film.fps == 10.0
    assert len(film.frames) == 13 + 10
    write_overlay(episode(), tmp_path / "fast.mp4", fps=20)
    assert read_video(tmp_path / "fast.mp4").fps == 20.0


def test_frames_at_predictions_only_last_as_long_as_the_episode(tmp_path):
    """The video of an evaluation would run too fast, and count its frames as steps."""
    whole = episode(detected_step=8)
    some = replace(whole, frames=whole.frames[:4], frame_steps=(0, 4, 8, 12))
    held = [frame for step, frame in enumerate(overlay_frames(whole)) if step % 4 == 0]
    for one, other in zip(overlay_frames(some), held, strict=True):
        assert np.array_equal(one, other)
    write_overlay(some, tmp_path / "some.mp4")
    film = read_video(tmp_path / "some.mp4")
    assert film.fps == 4.0, "10 fps through 4 would be 2.5: too slow to look at."
    write_overlay(replace(some, fps=40.0), tmp_path / "fast.mp4")
    assert read_video(tmp_path / "fast.mp4").fps == 10.0


def test_the_threshold_is_that_of_the_episode():
    """A bar would stay below the line, and success be detected."""
    low, high = (
        next(iter(overlay_frames(episode(settings=settings))))[-PANEL + 65, :320]
        for settings in (RewardSettings(success_threshold=at) for at in (0.2, 0.8))
    )
    dark = [int(np.nonzero((row == (31, 41, 51)).all(axis=-1))[0].max()) for row in (low, high)]
    assert dark[1] - dark[0] > 100


def test_a_trace_without_frames_is_refused(tmp_path):
    """A trace from a file would end in an IndexError deep inside."""
    with pytest.raises(ValueError, match="no frames to show"):
        write_overlay(episode(frames=(), frame_steps=()), tmp_path / "none.mp4")
