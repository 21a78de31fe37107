"""score_frames and score_video: predict progress and success of every frame of a video.

Knows nothing of files: frames come in as arrays, an EpisodeTrace without steps goes out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from robometer_gym.data.video import Video
from robometer_gym.reward_model import (
    Clip,
    Frame,
    Prediction,
    ReleasesStreams,
    RewardModel,
    check_predictions,
    model_name,
)
from robometer_gym.tracking.trace import EpisodeTrace
from robometer_gym.tracking.window import FrameHistory, Sampling
from robometer_gym.validation import check_count

__all__ = ["score_frames", "score_video"]

_BATCH = 8  # windows in one call of the model


def score_frames(
    model: RewardModel,
    frames: NDArray[np.uint8] | Sequence[Frame],
    task: str,
    *,
    window: int | None = None,
    sampling: Sampling = "linspace",
    progress_bar: bool = False,
) -> EpisodeTrace:
    """Score every frame from the frames up to it.

    Args:
        model: any reward model.
        frames: (T, H, W, 3) uint8 RGB in [0, 255], oldest first.
        task: the instruction.
        window: None shows the model all frames at once, as the authors' script does: one call. A
            number shows it, for each frame, at most that many of the frames up to it: the
            predictions of a reward wrapper with `max_frames=window` and `predict_every=1`. That
            takes up to `window` times as many frames, but never a long input.
        sampling: which of the frames up to it are in a window, see `RewardSettings`.
        progress_bar: show one on a terminal, where there is a window.

    Returns:
        A trace with one prediction per frame and no steps; `frames` are in it.

    Raises:
        ValueError: no frames, a wrong shape, an empty task, a window below 1, another sampling.
        TypeError: frames are not uint8.
        RewardModelError: a response of the model that is not a prediction.

    Example:
        >>> from robometer_gym.testing import ScriptedRewardModel
        >>> frames = np.zeros((4, 8, 8, 3), np.uint8)
        >>> model = ScriptedRewardModel(progress=lambda clip: len(clip) / 8)
        >>> score_frames(model, frames, "open the drawer", window=2).progress.tolist()
        [0.125, 0.25, 0.25, 0.25]
    """
    clip = Clip(frames, task)
    return _score(model, clip, range(len(clip)), None, window, sampling, progress_bar)


def score_video(
    model: RewardModel,
    video: Video,
    task: str,
    *,
    fps: float | None = None,
    window: int | None = None,
    sampling: Sampling = "linspace",
    progress_bar: bool = False,
) -> EpisodeTrace:
    """Score a video, or `fps` frames of each of its seconds.

    Args:
        model: any reward model.
        video: what to score.
        task: the instruction.
        fps: how many frames per second to show; None shows all.
        window: see `score_frames`.
        sampling: likewise.
        progress_bar: likewise.

    Returns:
        A trace as of `score_frames`; its steps are frame numbers of the video, with their times.

    Raises:
        ValueError: see `Video.sample` and `score_frames`.
        TypeError: see `score_frames`.
        RewardModelError: see `score_frames`.
    """
    positions = video.sample(fps)
    clip, steps = Clip(video.frames[positions], task), video.indices[positions].tolist()
    trace = _score(model, clip, steps, video.fps, window, sampling, progress_bar)
    if video.seconds is None:
        return trace
    return replace(trace, prediction_seconds=tuple(video.seconds[positions].tolist()))


def _score(
    model: RewardModel,
    clip: Clip,
    steps: Sequence[int],
    fps: float | None,
    window: int | None,
    sampling: Sampling,
    progress_bar: bool,
) -> EpisodeTrace:
    if window is None:
        (prediction,) = check_predictions([clip], model.predict([clip]))
    else:
        window = check_count("window", window)
        prediction = _score_windows(model, clip, window, sampling, progress_bar)
    trace = EpisodeTrace.from_values(clip.task, steps, prediction.progress, prediction.success, fps)
    return replace(
        trace, reward_model=model_name(model), frames=clip.images, frame_steps=tuple(steps)
    )


def _score_windows(
    model: RewardModel, whole: Clip, window: int, sampling: Sampling, progress_bar: bool
) -> Prediction:
    stream = object()  # equal to nothing but itself: names the frames of this video
    clips = _windows(whole, window, sampling, stream)
    bar = tqdm(total=len(whole), unit="frame", disable=None if progress_bar else True)
    predictions: list[Prediction] = []
    try:
        with bar:
            while batch := list(islice(clips, _BATCH)):
                predictions += check_predictions(batch, model.predict(batch))
                bar.update(len(batch))
    finally:
        if isinstance(model, ReleasesStreams):
            model.release(stream)
    return Prediction(
        np.array([prediction.progress[-1] for prediction in predictions], np.float32),
        np.array([prediction.success[-1] for prediction in predictions], np.float32),
    )


def _windows(whole: Clip, window: int, sampling: Sampling, stream: object) -> Iterator[Clip]:
    """Yield the clips of a reward wrapper that predicts at every frame."""
    history = FrameHistory(window, sampling)
    for step, image in enumerate(whole.images):
        history.append(image, step)
        shown, steps = history.window()
        yield Clip(shown, whole.task, stream, steps)
