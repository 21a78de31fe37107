"""Argument checks that both halves share.

Every error states the expected value, the given one and the way out. Knows nothing of environments,
rewards or networks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

__all__ = ["MissingDependencyError", "check_count", "check_task", "check_tasks", "frame_hint"]

# Chat models write their control tokens <|name|>. In a task they would be read as such, and
# "<|prog_token|>" would even change how many predictions come back.
_CONTROL_TOKEN = re.compile(r"<\|\w+\|>")


class MissingDependencyError(ImportError):
    """An optional library is not installed; the message gives the command that installs it."""


def check_count(name: str, value: object, minimum: int = 1) -> int:
    """Return `value` as an int if it is an integer of at least `minimum`.

    Args:
        name: what the number is for; errors begin with it.
        value: a Python or NumPy integer; a bool is refused.
        minimum: smallest value allowed.

    Raises:
        ValueError: no integer, or one below `minimum`.

    Example:
        >>> check_count("predict_every", 5)
        5
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value!r}.")
    return int(value)


def check_task(task: object) -> str:
    """Return `task` if it can be an instruction.

    Raises:
        TypeError: not a string.
        ValueError: empty or blank, not encodable as UTF-8, or with the text of a control token.
    """
    if not isinstance(task, str):
        raise TypeError(f"task must be a string such as 'open the drawer', got {task!r}.")
    if not task.strip():
        raise ValueError(
            f"task must describe what the robot should do, got {task!r}. "
            "Phrase it as an instruction: 'open the drawer'."
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
    check_count("the number of environments", num_envs)
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


def frame_hint(frame: object) -> str:
    """Return how to convert something that should have been frames, (T, H, W, 3) uint8."""
    shape = tuple(getattr(frame, "shape", ()))
    if not isinstance(frame, np.ndarray):
        return "Convert it with np.asarray(frames), a torch tensor with frames.numpy()."
    if len(shape) == 2 and shape[1] == 3:
        return "This is one frame: frames[None] makes a clip of one frame of it."
    if len(shape) == 2 or shape[2:] == (1,):
        return "Repeat gray frames: np.repeat(frames.reshape(T, H, W, 1), 3, axis=-1)."
    if shape[2:] == (4,):
        return "Drop the alpha channel: frames[..., :3]."
    if len(shape) == 3 and shape[0] == 3 != shape[2]:
        return "Transpose channel-first video with np.moveaxis(frames, 1, -1)."
    if frame.dtype.kind == "f" and frame.size and frame.max() > 1:
        return "Convert floats in [0, 255] with frames.round().astype(np.uint8)."
    if frame.dtype.kind in "iu" and frame.dtype != np.uint8:
        return "Convert integers in [0, 255] with frames.astype(np.uint8)."
    if frame.dtype.kind == "f":
        return "Convert floats in [0, 1] with (frames * 255).round().astype(np.uint8)."
    return "Pass RGB frames of one size, oldest first."
