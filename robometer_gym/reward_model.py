"""The seam between the two halves: Clip, Prediction and the RewardModel protocol.

The environment half makes clips, the model half predicts. Both import this module and neither
imports the other. Knows nothing of environments, rewards or networks.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import index
from typing import NoReturn, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from robometer_gym.validation import check_task, frame_hint

__all__ = [
    "CheckpointError",
    "Clip",
    "DescribedRewardModel",
    "Frame",
    "NamedRewardModel",
    "Prediction",
    "ReleasesStreams",
    "RewardModel",
    "RewardModelError",
    "check_clips",
    "check_prediction",
    "check_prediction_list",
    "check_predictions",
    "model_name",
]

Frame = NDArray[np.uint8]
"""One picture: (H, W, 3) uint8 RGB in [0, 255]."""

_UINT8 = np.dtype(np.uint8)  # a type that is not looked up each time it is compared


class RewardModelError(RuntimeError):
    """A reward model failed to answer, or its answer cannot be a prediction."""


class CheckpointError(RewardModelError):
    """A checkpoint cannot be found, read or trusted; the message gives the way out."""


class Clip:
    """The frames of one attempt at one task, oldest first.

    Args:
        frames: (T, H, W, 3) uint8 RGB in [0, 255], oldest first, T >= 1: an array, or a sequence
            of T arrays (H, W, 3) of one size. Kept as given, not copied.
        task: the instruction, in words.
        stream: which episode (and camera) the frames come from, or None.
        steps: each frame's step in that episode, increasing, or None. `(stream, step)` names a
            frame, so that a model can cache results for it.

    Raises:
        TypeError: frames are not uint8, the task is not a string, the stream cannot be hashed, or
            steps are not integers.
        ValueError: a wrong shape, an empty task, or steps that do not fit the frames.

    Example:
        >>> import numpy as np
        >>> clip = Clip(np.zeros((8, 64, 64, 3), np.uint8), task="open the drawer")
        >>> len(clip), clip.frames.shape
        (8, (8, 64, 64, 3))
    """

    def __init__(
        self,
        frames: NDArray[np.uint8] | Sequence[Frame],
        task: str,
        stream: Hashable | None = None,
        steps: Sequence[int] | None = None,
    ) -> None:
        if isinstance(frames, str | os.PathLike):
            raise TypeError(
                f"frames must be arrays, got the path {os.fspath(frames)!r}. "
                "Read the file first: robometer_gym.data.read_video(path)."
            )
        self.images: tuple[Frame, ...] = tuple(frames)
        """The T frames one by one, (H, W, 3) uint8 each: read these to touch only the new ones."""
        self.task = check_task(task)
        self.stream = stream
        self.steps = None if steps is None else _integers(steps)
        self._check()

    def _check(self) -> None:
        try:
            hash(self.stream)
        except TypeError:
            raise TypeError(
                "stream must be hashable, because a model caches by stream; got "
                f"{self.stream!r}. Give a string, a number or a tuple of these, or None."
            ) from None
        if not self.images:
            raise ValueError("A clip needs at least one frame, got none.")
        first = self.images[0]
        for image in self.images:
            if type(image) is np.ndarray and image.dtype == _UINT8 and image.shape == first.shape:
                continue  # nearly always; the first one's shape is looked at below
            if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3:
                self._refuse(image)
            if image.dtype != _UINT8:
                raise TypeError(
                    f"frames must be uint8 in [0, 255], got {image.dtype}. {frame_hint(image)}"
                )
            if image.shape != first.shape:
                raise ValueError(
                    f"A clip's frames must be of one size, got {first.shape} and {image.shape}."
                )
        if first.ndim != 3 or first.shape[2] != 3:
            self._refuse(first)
        if first.size == 0:
            raise ValueError(f"frames must have height and width >= 1, got {first.shape}.")
        if self.steps is not None and (
            len(self.steps) != len(self.images)
            or any(a >= b for a, b in zip(self.steps, self.steps[1:], strict=False))
        ):
            raise ValueError(
                f"steps must be one increasing number per frame; got {self.steps} "
                f"for {len(self.images)} frames."
            )

    def _refuse(self, image: object) -> NoReturn:
        came = f"{type(image).__name__} {tuple(getattr(image, 'shape', ()))}"
        raise ValueError(
            f"frames must be (T, H, W, 3) uint8 arrays; got {len(self.images)} frames of {came}. "
            f"{frame_hint(image)}"
        )

    @cached_property
    def frames(self) -> NDArray[np.uint8]:
        """All frames as one array: (T, H, W, 3) uint8. Stacked on first access."""
        return np.stack(self.images)

    def last(self, count: int) -> Clip:
        """Return the clip of the last `count` frames, or this one if it has no more."""
        if len(self) <= count:
            return self
        steps = None if self.steps is None else self.steps[-count:]
        return Clip(self.images[-count:], self.task, self.stream, steps)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        height, width, _ = self.images[0].shape
        where = "" if self.stream is None else f", stream={self.stream}"
        return f"Clip({len(self)} frames of {height}x{width}, task={self.task!r}{where})"


def _integers(steps: Sequence[int]) -> tuple[int, ...]:
    """Return steps, NumPy's integers too, as plain ones."""
    try:
        return tuple(map(index, steps))
    except TypeError:
        raise TypeError(
            f"steps must be a sequence of integers, one for each frame; got {steps!r}. "
            "Give each frame's number in its episode, such as [0, 5, 10], or None."
        ) from None


@dataclass(frozen=True, eq=False)
class Prediction:
    """Progress and success of one clip, frame by frame.

    Each value speaks of the clip up to and including its frame, so the last one is "now".

    Attributes:
        progress: (T,) float32 in [0, 1], how far the task has come.
        success: (T,) float32 in [0, 1], the probability that it is done.

    Example:
        >>> import numpy as np
        >>> prediction = Prediction(np.float32([0.25, 0.5]), np.float32([0.0, 0.125]))
        >>> float(prediction.progress[-1])
        0.5
    """

    progress: NDArray[np.float32]
    success: NDArray[np.float32]


class RewardModel(Protocol):
    """Anything that scores clips. `robometer_gym.testing.check_reward_model` tests the contract."""

    def predict(self, clips: Sequence[Clip]) -> list[Prediction]:
        """Score a batch; lengths, tasks and sizes may differ from clip to clip.

        Args:
            clips: any number of clips, none of which is changed.

        Returns:
            One Prediction per clip, in order, with one value per frame.
        """
        ...


@runtime_checkable
class ReleasesStreams(Protocol):
    """A reward model that caches per stream and releases a stream when its episode has ended."""

    def release(self, stream: Hashable) -> None:
        """Forget `stream`: its episode is over and will not be predicted again."""
        ...


@runtime_checkable
class NamedRewardModel(Protocol):
    """A reward model with a name of its own, which reports and traces carry."""

    @property
    def name(self) -> str:
        """Where the model comes from, such as "lerobot/Robometer-4B"."""
        ...


@runtime_checkable
class DescribedRewardModel(Protocol):
    """A reward model that describes itself for reports, beyond its name."""

    def describe(self) -> dict[str, str]:
        """Return the facts that identify the model: "name", and such as "revision", "weights"."""
        ...


def model_name(model: object) -> str:
    """Return the name of a reward model: its own, or that of its class."""
    return model.name if isinstance(model, NamedRewardModel) else type(model).__name__


def check_clips(clips: object) -> list[Clip]:
    """Return `clips` as a list.

    Raises:
        TypeError: one clip, frames, or anything else that is no sequence of clips.
    """
    if isinstance(clips, Clip):
        raise TypeError("predict takes a sequence of clips, got one: call predict([clip]).")
    if isinstance(clips, np.ndarray):
        raise TypeError(
            f"predict takes a sequence of clips, got an array {clips.shape}: call "
            "predict([Clip(frames, task)])."
        )
    if not isinstance(clips, Iterable):
        raise TypeError(f"predict takes a sequence of clips, got {type(clips).__name__}.")
    listed = list(clips)
    for clip in listed:
        if not isinstance(clip, Clip):
            raise TypeError(
                f"predict takes clips, got {type(clip).__name__}: make each by Clip(frames, task)."
            )
    return listed


def check_predictions(clips: Sequence[Clip], predictions: object) -> list[Prediction]:
    """Return `predictions` if they are valid predictions of `clips`.

    Raises:
        RewardModelError: wrong number, type, shape or dtype, a NaN, or a value outside [0, 1].
    """
    checked = check_prediction_list(clips, predictions)
    for clip, prediction in zip(clips, checked, strict=True):
        check_prediction(clip, prediction)
    return checked


def check_prediction_list(clips: Sequence[Clip], predictions: object) -> list[Prediction]:
    """Return `predictions` if there is one for each clip; each is still to be checked.

    Raises:
        RewardModelError: not a list, or not as long as `clips`.
    """
    if not isinstance(predictions, list) or len(predictions) != len(clips):
        came = len(predictions) if isinstance(predictions, list) else type(predictions).__name__
        raise RewardModelError(
            f"reward_model.predict must return a list of {len(clips)} predictions, one per clip; "
            f"got {came}."
        )
    return predictions


def check_prediction(clip: Clip, prediction: Prediction) -> None:
    """Raise unless `prediction` is a valid prediction of `clip`.

    Raises:
        RewardModelError: wrong type, shape or dtype, a NaN, or a value outside [0, 1].
    """
    if not isinstance(prediction, Prediction):
        raise RewardModelError(
            f"reward_model.predict must return Prediction objects, got {prediction!r}."
        )
    _check_values("progress", prediction.progress, clip)
    _check_values("success", prediction.success, clip)


def _check_values(name: str, values: object, clip: Clip) -> None:
    if not isinstance(values, np.ndarray) or values.dtype != np.float32:
        came = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
        raise RewardModelError(f"reward_model's {name} must be a float32 array, got {came}.")
    if values.shape != (len(clip),):
        raise RewardModelError(
            f"reward_model returned {name} of shape {values.shape}; "
            f"expected ({len(clip)},) for {clip}."
        )
    # A NaN fails the comparison as well. For a few numbers plain Python is faster than numpy.
    if not all(0.0 <= value <= 1.0 for value in values.tolist()):
        raise RewardModelError(
            f"reward_model returned {name} {values.tolist()} for {clip}; expected finite values "
            "in [0, 1]. Is the checkpoint sound, and its dtype wide enough?"
        )
