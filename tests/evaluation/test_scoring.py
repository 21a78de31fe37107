"""score_frames and score_video: the frames that the model is shown, and its predictions."""

import json
from typing import Any

import numpy as np
import pytest

from robometer_gym import RobometerRewardWrapper
from robometer_gym.data.video import Video
from robometer_gym.evaluation.report import predictions_to_dict
from robometer_gym.evaluation.scoring import score_frames, score_video
from robometer_gym.reward_model import Prediction, RewardModelError
from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from robometer_gym.tracking.trace import EpisodeTrace


def numbered(length: int) -> np.ndarray:
    """Return frames (T, 4, 4, 3) uint8 that hold their own number."""
    return np.broadcast_to(
        np.arange(length, dtype=np.uint8)[:, None, None, None], (length, 4, 4, 3)
    )


def numbers(clip) -> list[int]:
    """Return which of the numbered frames a clip shows."""
    return [int(image[0, 0, 0]) for image in clip.images]


def test_all_frames_are_one_clip():
    """Scores would differ from the authors' script, which shows the model all frames at once."""
    model = ScriptedRewardModel(progress=0.25, success=0.75)
    trace = score_frames(model, numbered(20), "open the drawer")
    assert model.batches == [1]
    assert numbers(model.clips[0]) == list(range(20))
    assert trace.progress.tolist() == [0.25] * 20
    assert trace.success.tolist() == [0.75] * 20


def test_each_frame_keeps_its_own_value():
    """Every frame would get the last one's progress."""

    class Rising:
        def predict(self, clips):
            return [Prediction(r := np.linspace(0, 1, len(c), dtype=np.float32), r) for c in clips]

    assert score_frames(Rising(), numbered(3), "open").progress.tolist() == [0.0, 0.5, 1.0]


def test_a_window_never_sees_the_future():
    """Online scores would be too good: they would know how the episode ends."""
    model = ScriptedRewardModel(progress=lambda clip: len(clip) / 8)
    trace = score_frames(model, numbered(6), "open the drawer", window=3)
    assert [numbers(clip) for clip in model.clips] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 2, 3],
        [0, 2, 4],
        [0, 2, 5],
    ]
    assert trace.progress.tolist() == [0.125, 0.25, 0.375, 0.375, 0.375, 0.375]
    assert trace.progress.dtype == trace.success.dtype == np.float32


@pytest.mark.parametrize("length", [1, 9, 100])
@pytest.mark.parametrize("sampling", ["linspace", "tail", "anchored"])
def test_a_window_is_that_of_the_wrapper(length, sampling):
    """Scores offline would differ from the rewards online."""
    online, offline = ScriptedRewardModel(), ScriptedRewardModel()
    env = RobometerRewardWrapper(
        CountingEnv(lengths=[length]),
        task="open the drawer",
        reward_model=online,
        predict_every=1,
        max_frames=4,
        sampling=sampling,
        terminate_on_success=False,
    )
    env.reset(seed=0)
    frames: list[Any] = [env.render()]
    for _ in range(length):
        env.step(0)
        frames.append(env.render())
    score_frames(offline, frames, "open the drawer", window=4, sampling=sampling)
    assert [clip.steps for clip in offline.clips] == [clip.steps for clip in online.clips]
    for clip, expected in zip(offline.clips, online.clips, strict=True):
        assert np.array_equal(clip.frames, expected.frames)


def test_windows_come_in_batches_of_one_stream_which_is_released():
    """A model with a cache would compute every frame again, or keep it for ever."""
    model = ScriptedRewardModel()
    score_frames(model, numbered(20), "open the drawer", window=4)
    assert model.batches == [8, 8, 4]
    (stream,) = {clip.stream for clip in model.clips}
    assert model.released == [stream]
    score_frames(model, numbered(2), "open the drawer", window=4)
    assert model.clips[-1].stream != stream, "Two videos share a stream: frames get mixed up."


def test_a_stream_is_released_when_the_model_fails():
    """A long-lived service would fill up with the frames of failed videos."""
    model = ScriptedRewardModel([0.5, OSError("the server is gone")])
    with pytest.raises(OSError, match="the server is gone"):
        score_frames(model, numbered(5), "open the drawer", window=4)
    assert len(model.released) == 1


def test_a_model_without_release_is_scored():
    """A minimal model, with predict alone, could not be used with a window."""

    class Minimal:
        def predict(self, clips):
            return ScriptedRewardModel().predict(clips)

    assert len(score_frames(Minimal(), numbered(3), "open", window=2).progress) == 3


@pytest.mark.parametrize("window", [None, 4])
def test_a_response_that_is_no_prediction_is_refused(window):
    """A NaN would be drawn as a gap and written as broken JSON."""
    with pytest.raises(RewardModelError, match="finite values"):
        score_frames(ScriptedRewardModel(float("nan")), numbered(3), "open", window=window)


@pytest.mark.parametrize("window", [0, -1, 2.5, True])
def test_a_wrong_window_is_refused(window):
    """A window of no frames would fail deep inside."""
    with pytest.raises(ValueError, match="window must be an integer >= 1, got"):
        score_frames(ScriptedRewardModel(), numbered(3), "open", window=window)


@pytest.mark.parametrize("window", [None, 4])
def test_wrong_frames_and_tasks_are_refused(window):
    """An empty video would give empty scores, and a blank task scores of nothing."""
    with pytest.raises(ValueError, match="at least one frame"):
        score_frames(ScriptedRewardModel(), [], "open", window=window)
    with pytest.raises(ValueError, match="task must describe what the robot should do"):
        score_frames(ScriptedRewardModel(), numbered(3), " ", window=window)


def test_the_bar_is_for_terminals_only(capsys):
    """A log file would be full of half-drawn progress bars."""
    score_frames(ScriptedRewardModel(), numbered(20), "open", window=4, progress_bar=True)
    assert capsys.readouterr() == ("", "")


def test_the_bar_counts_frames(capsys, monkeypatch):
    """A user would watch minutes of nothing."""
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    score_frames(ScriptedRewardModel(), numbered(20), "open", window=4, progress_bar=True)
    assert "20/20" in capsys.readouterr().err
    score_frames(ScriptedRewardModel(), numbered(20), "open", window=4)
    assert capsys.readouterr().err == ""


def test_a_video_is_scored_at_the_wanted_rate():
    """Scores would be placed at wrong times."""
    model = ScriptedRewardModel()
    trace = score_video(model, Video(numbered(32), 10.0), "open the drawer", fps=3)
    expected = [0, 3, 6, 10, 13, 17, 20, 24, 27, 31]
    assert numbers(model.clips[0]) == trace.prediction_steps.tolist() == expected
    assert [int(frame[0, 0, 0]) for frame in trace.frames] == list(trace.frame_steps) == expected
    assert trace.seconds is not None
    assert trace.seconds[-1] == 3.1
    assert len(trace.progress) == 10
    assert trace.reward_model == "ScriptedRewardModel"


def test_a_video_without_a_rate_is_scored_whole():
    """An array without fps would be thinned by an invented rate."""
    trace = score_video(ScriptedRewardModel(), Video(numbered(5), None), "open", window=2)
    assert trace.prediction_steps.tolist() == [0, 1, 2, 3, 4]
    assert trace.seconds is None
    with pytest.raises(ValueError, match="needs the video's own rate"):
        score_video(ScriptedRewardModel(), Video(numbered(5), None), "open", fps=3)


def test_scores_of_an_uneven_video_have_true_times():
    """A frame at 4.5 s would be reported as of 1.3 s."""
    seconds = np.array([0.0, 0.5, 4.5, 5.0, 9.0])
    video = Video(numbered(5), 0.5, seconds, np.array([0, 3, 7, 8, 20]))
    trace = score_video(ScriptedRewardModel(), video, "open")
    assert trace.prediction_steps.tolist() == [0, 3, 7, 8, 20]
    assert trace.seconds is not None
    assert trace.seconds.tolist() == seconds.tolist()
    (copy,) = [EpisodeTrace.from_dict(json.loads(trace.to_json()))]
    assert copy.seconds is not None
    assert copy.seconds.tolist() == seconds.tolist()


def test_scores_go_into_json():
    """The written scores could not be read by another program."""
    third = np.array([1 / 3, 1], np.float32)
    trace = EpisodeTrace.from_values("put the café 'here'", [0, 5], third, third, 10.0)
    assert predictions_to_dict(trace) == {
        "task": "put the café 'here'",
        "fps": 10.0,
        "frame_indices": [0, 5],
        "seconds": [0.0, 0.5],
        "progress": [0.333333, 1.0],
        "success": [0.333333, 1.0],
    }
