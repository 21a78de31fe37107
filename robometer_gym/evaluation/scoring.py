"""What a reward model says of every frame of a video.

Knows nothing of files or pictures: frames come in as arrays, scores go out as arrays.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

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
)
from robometer_gym.tracking.window import FrameHistory

__all__ = ["Scores", "score_frames", "score_video"]

_BATCH = 8  # windows in one call of the model


@dataclass(frozen=True, eq=False)
class Scores:
    """What was said of which frames of a video or an episode.

    Attributes:
        task: the instruction.
        frame_indices: (T,) int, which frames of the video were scored, increasing from 0.
        fps: frames per second of the video (not of the scores), or None where nobody knows.
        progress: (T,) float32 in [0, 1], how far the task has come at each of these frames.
        success: (T,) float32 in [0, 1], the probability that it is done by then.

    Raises:
        ValueError: the three arrays are not of one length.

    Example:
        >>> half = np.array([0.5, 0.5], np.float32)
        >>> Scores("open the drawer", np.array([0, 5]), 10.0, half, half).seconds.tolist()
        [0.0, 0.5]
    """

    task: str
    frame_indices: NDArray[np.int64]
    fps: float | None
    progress: NDArray[np.float32]
    success: NDArray[np.float32]

    def __post_init__(self) -> None:
        shapes = [np.shape(a) for a in (self.frame_indices, self.progress, self.success)]
        if len(shapes[0]) != 1 or shapes[0] == (0,) or len(set(shapes)) != 1:
            raise ValueError(
                "frame_indices, progress and success must be (T,), one value per frame, T >= 1; "
                f"got shapes {', '.join(map(str, shapes))}."
            )

    def __len__(self) -> int:
        return len(self.frame_indices)

    @property
    def seconds(self) -> NDArray[np.float64] | None:
        """(T,) when each frame was seen, from the video's first; None without `fps`."""
        return None if self.fps is None else self.frame_indices / self.fps

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain Python, for JSON; probabilities to six places."""
        return {
            "task": self.task,
            "fps": self.fps,
            "frame_indices": [int(index) for index in self.frame_indices],
            "progress": [round(float(value), 6) for value in self.progress],
            "success": [round(float(value), 6) for value in self.success],
        }

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict()` to a file, which is overwritten if it exists."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")


def score_frames(
    model: RewardModel,
    frames: NDArray[np.uint8] | Sequence[Frame],
    task: str,
    *,
    window: int | None = None,
    progress_bar: bool = False,
) -> Prediction:
    """Score every frame from what could be seen up to it.

    Args:
        model: any reward model.
        frames: (T, H, W, 3) uint8 RGB in [0, 255], oldest first.
        task: the instruction.
        window: None shows the model all frames at once, as the authors' script does: one call. A
            number shows it, for each frame, at most that many of the frames up to it, spread
            evenly: what a reward wrapper with `max_frames=window` would have said at that moment.
            That takes T times as many pictures, but never a long input.
        progress_bar: show one on a terminal, where there is a window.

    Returns:
        (T,) progress and success.

    Raises:
        ValueError: no frames, a wrong shape, an empty task, or a window below 1.
        TypeError: frames are not uint8.
        RewardModelError: an answer of the model that is no prediction.

    Example:
        >>> from robometer_gym.testing import ScriptedRewardModel
        >>> frames = np.zeros((4, 8, 8, 3), np.uint8)
        >>> model = ScriptedRewardModel(progress=lambda clip: len(clip) / 8)
        >>> score_frames(model, frames, "open the drawer", window=2).progress.tolist()
        [0.125, 0.25, 0.25, 0.25]
    """
    whole = Clip(frames, task)
    if window is None:
        return _ask(model, [whole])[0]
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ValueError(f"window must be an integer >= 1, or None, got {window!r}.")
    stream = object()  # equal to nothing but itself: names the frames of this video
    clips = _windows(whole, window, stream)
    bar = tqdm(total=len(whole), unit="frame", disable=None if progress_bar else True)
    answers: list[Prediction] = []
    try:
        with bar:
            while batch := list(islice(clips, _BATCH)):
                answers += _ask(model, batch)
                bar.update(len(batch))
    finally:
        if isinstance(model, ReleasesStreams):
            model.release(stream)
    return Prediction(
        np.array([answer.progress[-1] for answer in answers], np.float32),
        np.array([answer.success[-1] for answer in answers], np.float32),
    )


def score_video(
    model: RewardModel,
    video: Video,
    task: str,
    *,
    fps: float | None = None,
    window: int | None = None,
    progress_bar: bool = False,
) -> Scores:
    """Score a video, or `fps` frames of each of its seconds.

    Args:
        model: any reward model.
        video: what to score.
        task: the instruction.
        fps: how many frames per second to show; None shows all.
        window: see `score_frames`.
        progress_bar: see `score_frames`.

    Raises:
        ValueError: see `Video.sample` and `score_frames`.
        TypeError: see `score_frames`.
        RewardModelError: see `score_frames`.
    """
    indices = video.sample(fps)
    said = score_frames(
        model, video.frames[indices], task, window=window, progress_bar=progress_bar
    )
    return Scores(task, np.array(indices), video.fps, said.progress, said.success)


def _ask(model: RewardModel, clips: list[Clip]) -> list[Prediction]:
    return check_predictions(clips, model.predict(clips))


def _windows(whole: Clip, window: int, stream: object) -> Iterator[Clip]:
    """The clips that a reward wrapper would have shown, frame after frame."""
    history = FrameHistory(window, "linspace")
    for step, image in enumerate(whole.images):
        history.append(image, step)
        shown, steps = history.window()
        yield Clip(shown, whole.task, stream, steps)
