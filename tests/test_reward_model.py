"""The seam: checks of clips, tasks and predictions."""

import re
from typing import Any

import numpy as np
import pytest

from robometer_gym.reward_model import (
    CheckpointError,
    Clip,
    Prediction,
    ReleasesStreams,
    RewardModelError,
    check_prediction,
    check_prediction_list,
    check_predictions,
)
from robometer_gym.testing import ScriptedRewardModel
from robometer_gym.validation import check_task, check_tasks

TASK = "open the drawer"


def video(length: int = 3, height: int = 4, width: int = 6) -> Any:
    """Return frames whose pixels all differ: (T, H, W, 3) uint8."""
    rng = np.random.default_rng(length)
    return rng.integers(0, 256, (length, height, width, 3), dtype=np.uint8)


def prediction(progress: Any = (0.25, 0.5, 0.75), success: Any = (0.0, 0.5, 1.0)) -> Prediction:
    """Return a prediction for a clip of three frames."""
    return Prediction(np.asarray(progress, np.float32), np.asarray(success, np.float32))


def test_a_clip_from_an_array_shows_every_frame_in_order():
    """A model would read other pixels than the camera's, or in another order."""
    frames = video()
    clip = Clip(frames, TASK)
    assert len(clip) == 3
    assert (clip.task, clip.stream, clip.steps) == (TASK, None, None)
    np.testing.assert_array_equal(clip.frames, frames)
    for image, frame in zip(clip.images, frames, strict=True):
        np.testing.assert_array_equal(image, frame)


def test_a_clip_from_a_sequence_equals_the_clip_from_the_array():
    """The environment half's clips would be read differently from a user's."""
    frames = video()
    clip = Clip(list(frames), TASK, stream="episode 1", steps=[0, 5, 7])
    np.testing.assert_array_equal(clip.frames, frames)
    assert clip.frames.dtype == np.uint8
    assert (clip.stream, clip.steps) == ("episode 1", (0, 5, 7))


def test_a_clip_copies_no_frame_until_all_are_read():
    """Each prediction would copy megabytes that an engine with a cache never reads."""
    images = list(video())
    clip = Clip(images, TASK)
    assert all(mine is image for mine, image in zip(clip.images, images, strict=True))
    assert clip.frames is clip.frames  # stacked once


def test_a_single_frame_is_a_clip():
    """The baseline at reset could not be predicted."""
    assert Clip(video(1), TASK, steps=(0,)).frames.shape == (1, 4, 6, 3)


def test_the_repr_describes_the_clip():
    """Error messages show clips; printing all pixels would hide the mistake."""
    assert repr(Clip(video(), TASK)) == "Clip(3 frames of 4x6, task='open the drawer')"
    assert repr(Clip(video(), TASK, "e1")) == (
        "Clip(3 frames of 4x6, task='open the drawer', stream=e1)"
    )


@pytest.mark.parametrize(
    ("frames", "error", "message"),
    [
        ([], ValueError, "A clip needs at least one frame, got none."),
        (np.zeros((0, 4, 6, 3), np.uint8), ValueError, "A clip needs at least one frame"),
        (
            np.zeros((4, 6, 3), np.uint8),
            ValueError,
            "ndarray (6, 3). This is one frame: frames[None]",
        ),
        (
            np.zeros((2, 3, 4, 6), np.uint8),
            ValueError,
            "got 2 frames of ndarray (3, 4, 6). Transpose",
        ),
        (np.zeros((2, 4, 6, 4), np.uint8), ValueError, "(4, 6, 4). Drop the alpha channel"),
        (np.zeros((2, 4, 6), np.uint8), ValueError, "ndarray (4, 6). Repeat gray frames"),
        (np.zeros((2, 4, 6, 1), np.uint8), ValueError, "(4, 6, 1). Repeat gray frames"),
        (np.zeros((1, 2, 4, 6, 3), np.uint8), ValueError, "(2, 4, 6, 3). Pass RGB frames"),
        (["a.png"], ValueError, "got 1 frames of str (). Convert it with np.asarray(frames)"),
        (np.zeros((2, 4, 6, 3), np.float32), TypeError, "must be uint8 in [0, 255], got float32"),
        (np.zeros((2, 4, 6, 3), np.int64), TypeError, "must be uint8 in [0, 255], got int64"),
        ([*video(1, 4, 6), *video(1, 6, 4)], ValueError, "one size, got (4, 6, 3) and (6, 4, 3)"),
        (np.zeros((2, 0, 6, 3), np.uint8), ValueError, "height and width >= 1, got (0, 6, 3)"),
    ],
)
def test_a_clip_refuses_arrays_that_are_no_video(frames, error, message):
    """Channel-first, float or empty video would be scored as noise, without an error."""
    with pytest.raises(error, match=re.escape(message)):
        Clip(frames, TASK)


@pytest.mark.parametrize("steps", [(0, 1), (0, 1, 2, 3), (), (0, 2, 1), (0, 1, 1)])
def test_a_clip_refuses_steps_that_do_not_name_its_frames(steps):
    """Two frames under one name: an engine with a cache would predict for the wrong one."""
    with pytest.raises(ValueError, match="steps must be one increasing number per frame; got"):
        Clip(video(), TASK, steps=steps)


@pytest.mark.parametrize(
    "steps",
    [7, "abc", (0, None, 2), (0.0, 1.0, 2.0), (0, float("nan"), 2), np.arange(3.0), (0, "1", 2)],
)
def test_a_clip_refuses_steps_that_are_no_integers(steps):
    """An engine with a cache would fail on them later, far from the mistake."""
    with pytest.raises(TypeError, match="steps must be a sequence of integers, one for each fram"):
        Clip(video(), TASK, "e1", steps)


def test_steps_may_be_integers_of_numpy():
    """Steps counted with NumPy would be refused."""
    clip = Clip(video(), TASK, "e1", list(np.arange(3)))
    assert clip.steps == (0, 1, 2)
    assert all(type(step) is int for step in clip.steps)


@pytest.mark.parametrize("stream", [["e1"], {"episode": 1}, ("e", [1]), np.zeros(1)])
def test_a_clip_refuses_a_stream_that_cannot_be_looked_up(stream):
    """An engine with a cache would raise a bare "unhashable type"."""
    with pytest.raises(TypeError, match=r"stream must be hashable, .* got .*Give a string"):
        Clip(video(), TASK, stream, [0, 1, 2])


@pytest.mark.parametrize("task", [None, 3, b"open the drawer", ["open the drawer"]])
def test_a_task_must_be_a_string(task):
    """The tokenizer would fail far from the mistake, or read the repr of a list."""
    with pytest.raises(TypeError, match="task must be a string such as 'open the drawer', got"):
        check_task(task)
    with pytest.raises(TypeError, match="task must be a string"):
        Clip(video(), task)


@pytest.mark.parametrize("task", ["", " ", "\n\t"])
def test_a_task_must_not_be_empty(task):
    """The model would score progress towards nothing."""
    with pytest.raises(ValueError, match="task must describe what the robot should do, got"):
        check_task(task)


@pytest.mark.parametrize(
    "token", ["<|prog_token|>", "<|im_end|>", "<|vision_start|>", "<|endoftext|>", "<|rew_9|>"]
)
def test_a_task_must_not_hold_control_tokens(token):
    """`<|prog_token|>` in a task shifts every prediction by one frame: wrong rewards, no error."""
    with pytest.raises(ValueError, match=re.escape(f"control tokens, got '{token}' in")):
        check_task(f"open {token} the drawer")


@pytest.mark.parametrize("task", ["open \ud800 the drawer", "\udce4"])
def test_a_task_must_be_whole_characters(task):
    """The tokenizer would fail with a riddle: badly decoded text has no bytes."""
    with pytest.raises(ValueError, match=r"task must be text .* got '.*\\ud.*half of a pair"):
        check_task(task)


@pytest.mark.parametrize("task", [TASK, "a < b | c > d", "<|not a token|>", "öffne 抽屉 ✓", "<||>"])
def test_ordinary_words_are_a_task(task):
    """A harmless sentence would be refused."""
    assert check_task(task) == task


def test_sound_predictions_pass_unchanged():
    """Every prediction would be refused, or replaced by a copy."""
    clips = [Clip(video(3), TASK), Clip(video(1), TASK)]
    predictions = [prediction(), prediction([1.0], [0.0])]
    assert check_predictions(clips, predictions) is predictions
    assert check_predictions([], []) == []


@pytest.mark.parametrize(
    ("predictions", "came"),
    [
        ([], "0"),
        ([prediction(), prediction()], "2"),
        ((prediction(),), "tuple"),
        (None, "NoneType"),
        (np.zeros(3), "ndarray"),
    ],
)
def test_there_must_be_one_prediction_per_clip(predictions, came):
    """With one prediction too few, environments would be rewarded for each other's progress."""
    message = f"must return a list of 1 predictions, one per clip; got {came}."
    with pytest.raises(RewardModelError, match=re.escape(message)):
        check_prediction_list([Clip(video(), TASK)], predictions)
    with pytest.raises(RewardModelError, match=re.escape(message)):
        check_predictions([Clip(video(), TASK)], predictions)


@pytest.mark.parametrize("name", ["progress", "success"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.1, 0.2, 0.3], "must be a float32 array, got list"),
        (np.array([0.1, 0.2, 0.3]), "must be a float32 array, got float64"),
        (np.zeros((1, 3), np.float32), "of shape (1, 3); expected (3,) for Clip(3 frames"),
        (np.zeros(2, np.float32), "of shape (2,); expected (3,) for Clip(3 frames"),
        (np.array([0.1, np.nan, 0.3], "f4"), "expected finite values in [0, 1]"),
        (np.array([0.1, np.inf, 0.3], "f4"), "expected finite values in [0, 1]"),
        (np.array([0.1, -0.001, 0.3], "f4"), "expected finite values in [0, 1]"),
        (np.array([0.1, 1.001, 0.3], "f4"), "expected finite values in [0, 1]"),
    ],
)
def test_values_that_are_no_prediction_are_refused(name, values, message):
    """A NaN, or raw logits, would become the agent's reward and ruin it quietly."""
    good = np.zeros(3, np.float32)
    wrong = Prediction(**{"progress": good, "success": good, name: values})
    with pytest.raises(RewardModelError, match=f"{name} .*{re.escape(message)}|{name} must be"):
        check_prediction(Clip(video(), TASK), wrong)
    with pytest.raises(RewardModelError, match=re.escape(message)):
        check_predictions([Clip(video(), TASK)], [wrong])


def test_a_prediction_must_be_a_prediction_object():
    """A bare array would fail later, with an AttributeError that names no model."""
    with pytest.raises(RewardModelError, match=r"must return Prediction objects, got 0\.5"):
        check_predictions([Clip(video(), TASK)], [0.5])


def test_the_bounds_themselves_are_predictions():
    """A model that is certain would be refused."""
    check_prediction(Clip(video(2), TASK), prediction([0.0, 1.0], [1.0, 0.0]))


def test_a_checkpoint_error_is_a_reward_model_error():
    """`except RewardModelError` would miss a checkpoint that cannot be read."""
    assert issubclass(CheckpointError, RewardModelError)


def test_a_model_with_a_release_method_is_a_releases_streams():
    """A caching engine would never release its streams, and fill the GPU."""

    class Forgetful:
        def predict(self, clips: Any) -> list[Prediction]:
            return []

    assert isinstance(ScriptedRewardModel(), ReleasesStreams)
    assert not isinstance(Forgetful(), ReleasesStreams)


@pytest.mark.parametrize("several", [["lift it", "fold it"], ("lift it", "fold it")])
def test_tasks_may_be_in_any_sequence_or_array(several):
    """Tasks from a data frame or an array would be taken for one that is no string."""
    assert check_tasks(several, 2) == check_tasks(np.array(several), 2) == ["lift it", "fold it"]
    assert check_tasks(np.array(several, object), 2) == ["lift it", "fold it"]
    assert check_tasks(np.array("lift it"), 2) == check_tasks("lift it", 2) == ["lift it"] * 2


@pytest.mark.parametrize(
    ("tasks", "error", "message"),
    [
        (np.array(["lift it"]), ValueError, "one for each of the 2 environments; got 1"),
        (np.array([["lift it", "fold it"]] * 2), TypeError, r"task must be a string .*\['lift it'"),
        (np.array([1, 2]), TypeError, "task must be a string .* got 1"),
        ({"lift it": 1}, TypeError, "task must be a string .*, or a sequence of them"),
    ],
)
def test_arguments_that_are_no_tasks_are_refused(tasks, error, message):
    """The user would look for the mistake in the environments."""
    with pytest.raises(error, match=message):
        check_tasks(tasks, 2)


@pytest.mark.parametrize(
    ("frames", "hint"),
    [
        (np.zeros((2, 8, 8, 3), np.int64), r"int64.*integers in \[0, 255\] with frames.astype"),
        (np.full((2, 8, 8, 3), 200.0), r"floats in \[0, 255\] with frames.round\(\).astype"),
        (np.full((2, 8, 8, 3), 0.5), r"floats in \[0, 1\] with \(frames \* 255\)"),
        ("a.mp4", r"got the path 'a.mp4'. Read the file first"),
    ],
    ids=["int64", "float 0..255", "float 0..1", "a path"],
)
def test_frames_of_another_kind_get_the_right_hint(frames, hint):
    """The user would follow the hint and show the model noise."""
    with pytest.raises(TypeError, match=hint):
        Clip(frames, "open it")


@pytest.mark.parametrize("steps", [None, (3, 5, 8)])
def test_the_last_frames_of_a_clip(steps):
    """A cropped clip with the steps of other frames would be read from another's cache."""
    clip = Clip(
        np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(3, 3), "open it", "a", steps
    )
    last = clip.last(2)
    assert [int(image.max()) for image in last.images] == [1, 2]
    assert (last.task, last.stream, last.steps) == ("open it", "a", steps and (5, 8))
    assert clip.last(3) is clip
