"""The seam between the two halves: Clip, Prediction and the RewardModel protocol.

The environment half makes clips and asks for predictions; the model half answers. Both import
this module and neither imports the other. Knows nothing of environments, rewards or networks.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import index
from typing import NoReturn, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CheckpointError",
    "Clip",
    "Frame",
    "Prediction",
    "ReleasesStreams",
    "RewardModel",
    "RewardModelError",
    "check_answers",
    "check_prediction",
    "check_predictions",
    "check_task",
    "check_tasks",
    "frame_cure",
]

Frame = NDArray[np.uint8]
"""One picture: (H, W, 3) uint8 RGB in [0, 255]."""

_UINT8 = np.dtype(np.uint8)  # a type that is not looked up each time it is compared

# Chat models write their control tokens <|name|>. In a task they would be read as such, and
# "<|prog_token|>" would even change how many predictions come back.
_CONTROL_TOKEN = re.compile(r"<\|\w+\|>")


class RewardModelError(RuntimeError):
    """A reward model failed to answer, or its answer cannot be a prediction."""


class CheckpointError(RewardModelError):
    """A checkpoint cannot be found, read or trusted; the message says what to do about it."""


def check_task(task: object) -> str:
    """Return `task` if it can be an instruction.

    Raises:
        TypeError: it is not a string.
        ValueError: it is empty or blank, holds half a character, or the text of a control token.
    """
    if not isinstance(task, str):
        raise TypeError(f"task must be a string such as 'open the drawer', got {task!r}.")
    if not task.strip():
        raise ValueError(
            f"task must say what the robot should do, got {task!r}. "
            "Write it as one would tell a person: 'open the drawer'."
        )
    if found := _CONTROL_TOKEN.search(task):
        raise ValueError(
            f"task must not contain the model's control tokens, got {found.group()!r} in {task!r}. "
            "Remove it."
        )
    try:
        task.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"task must be text that has an encoding in UTF-8, got {task!r}: character "
            f"{error.start} is half of a pair (a surrogate). Remove it, or read the text as UTF-8."
        ) from None
    return task


def check_tasks(task: object, num_envs: int) -> list[str]:
    """Return one instruction per environment: `task` for all, or those of a sequence or array.

    Raises:
        TypeError: no string, and no sequence of strings.
        ValueError: not one per environment, one of them is no instruction, or no environments.
    """
    if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
        raise ValueError(f"the number of environments must be an integer >= 1, got {num_envs!r}.")
    if isinstance(task, np.ndarray):
        task = task.tolist()
    if isinstance(task, str):
        return [check_task(task)] * num_envs
    if not isinstance(task, Sequence):
        raise TypeError(
            "task must be a string such as 'open the drawer', or a sequence of them, one for each "
            f"environment; got {task!r}."
        )
    if len(task) != num_envs:
        raise ValueError(
            f"task must be one instruction, or one for each of the {num_envs} environments; "
            f"got {len(task)}."
        )
    return [check_task(each) for each in task]


def frame_cure(frame: object) -> str:
    """Return what to do about something that should have been a frame, (H, W, 3) uint8."""
    shape = tuple(getattr(frame, "shape", ()))
    if not isinstance(frame, np.ndarray):
        return "Convert it with np.asarray(frames), a torch tensor with frames.numpy()."
    if len(shape) == 2 and shape[1] == 3:
        return "This is one picture: frames[None] makes a clip of one frame of it."
    if len(shape) == 2 or shape[2:] == (1,):
        return "Repeat grey pictures: np.repeat(frames.reshape(T, H, W, 1), 3, axis=-1)."
    if shape[2:] == (4,):
        return "Drop the alpha channel: frames[..., :3]."
    if len(shape) == 3 and shape[0] == 3 != shape[2]:
        return "Transpose channel-first video with np.moveaxis(frames, 1, -1)."
    if frame.dtype.kind == "f":
        return "Convert floats in [0, 1] with (frames * 255).round().astype(np.uint8)."
    return "Give RGB pictures of one size, oldest first."


class Clip:
    """The frames of one attempt at one task, oldest first.

    Args:
        frames: (T, H, W, 3) uint8 RGB in [0, 255], oldest first, T >= 1: an array, or a sequence
            of T arrays (H, W, 3) of one size. Kept as given, not copied.
        task: the instruction, in words.
        stream: which episode (and camera) the frames come from, or None.
        steps: each frame's step in that episode, increasing, or None. `(stream, step)` names a
            frame, so that a model can keep what it has computed for it.

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
                "stream must be hashable, for a model looks up by it what it keeps; got "
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
                    f"frames must be uint8 in [0, 255], got {image.dtype}. {frame_cure(image)}"
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
            f"{frame_cure(image)}"
        )

    @cached_property
    def frames(self) -> NDArray[np.uint8]:
        """All frames as one array: (T, H, W, 3) uint8. Stacked when first asked for."""
        return np.stack(self.images)

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
    """What a model says of one clip, frame by frame.

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
    """A reward model that keeps something per stream, and wants to know when one has ended."""

    def release(self, stream: Hashable) -> None:
        """Forget `stream`: its episode is over and will not be asked about again."""
        ...


def check_predictions(clips: Sequence[Clip], predictions: object) -> list[Prediction]:
    """Return `predictions` if they can be the answer to `clips`.

    Raises:
        RewardModelError: wrong number, type, shape or dtype, a NaN, or a value outside [0, 1].
    """
    answers = check_answers(clips, predictions)
    for clip, answer in zip(clips, answers, strict=True):
        check_prediction(clip, answer)
    return answers


def check_answers(clips: Sequence[Clip], predictions: object) -> list[Prediction]:
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
    """Raise unless `prediction` can be the answer to `clip`.

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
