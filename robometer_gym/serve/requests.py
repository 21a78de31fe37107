"""Reading a request: its JSON header, checked against the limits, and then its frames.

Knows nothing of HTTP or of the model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np

from robometer_gym.models.wire import FrameKey
from robometer_gym.reward_model import Frame
from robometer_gym.serve.limits import Limits
from robometer_gym.validation import check_task

__all__ = [
    "ClipHeader",
    "RequestError",
    "RequestHeader",
    "read_frames",
    "read_header",
    "read_names",
]

_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_LARGEST_STEP = 2**53  # JSON numbers are exact up to here in every language


class RequestError(ValueError):
    """A request that does not follow the wire format, or exceeds a limit."""


@dataclass(frozen=True)
class ClipHeader:
    """One clip of a request, without its frames; see docs/server.md."""

    task: str
    frames: int
    height: int
    width: int
    stream: str | None
    steps: tuple[int, ...] | None
    sent: tuple[int, ...]

    @property
    def frame_bytes(self) -> int:
        """Bytes of one raw frame."""
        return self.height * self.width * 3

    @property
    def keys(self) -> list[FrameKey] | None:
        """The identity of each frame; None for a clip of which nothing is kept."""
        if self.stream is None or self.steps is None:
            return None
        return [FrameKey(step, self.height, self.width) for step in self.steps]


@dataclass(frozen=True)
class RequestHeader:
    """The JSON header of a request.

    Attributes:
        clips: the clips, in order.
        timeout: seconds until the client gives up, or None.
        jpeg: bytes of each frame in the body; None for raw frames.
    """

    clips: list[ClipHeader]
    timeout: float | None
    jpeg: list[int] | None

    @property
    def raw_bytes(self) -> int:
        """Bytes of the frames in the body, once they are decoded."""
        return sum(clip.frame_bytes * len(clip.sent) for clip in self.clips)

    @property
    def body_bytes(self) -> int:
        """Bytes of the frames in the body."""
        return self.raw_bytes if self.jpeg is None else sum(self.jpeg)


def read_header(data: bytes | bytearray, limits: Limits) -> RequestHeader:
    """Read and check a JSON header.

    Raises:
        RequestError: not as the wire format describes, or beyond a limit.
    """
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The header must be JSON in UTF-8: {str(error)[:200]}.") from None
    if not isinstance(values, dict):
        raise RequestError("The header must be a JSON object.")
    clips = values.get("clips")
    if not isinstance(clips, list) or len(clips) > limits.clips:
        raise RequestError(f"clips must be a list of at most {limits.clips} clips.")
    timeout = values.get("timeout")
    if timeout is not None and not (_is_number(timeout) and 0 < timeout < math.inf):
        raise RequestError("timeout must be a positive number of seconds, or null.")
    header = RequestHeader(
        [_read_clip(clip, limits) for clip in clips],
        timeout,
        values.get("jpeg"),
    )
    if header.jpeg is not None:
        _integers("jpeg", header.jpeg, 1, limits.body)
        if len(header.jpeg) != sum(len(clip.sent) for clip in header.clips):
            raise RequestError("jpeg must be one size in bytes for each frame that is sent.")
    if max(header.raw_bytes, header.body_bytes) > limits.body:
        raise RequestError(f"The frames of a request must have at most {limits.body} bytes.")
    return header


def read_names(values: object, limits: Limits) -> list[str]:
    """Return the names of streams to release.

    Raises:
        RequestError: no list, too long, or not names.
    """
    if not isinstance(values, list) or len(values) > limits.streams:
        raise RequestError(f"A release must be a list of at most {limits.streams} streams.")
    return [_name(value) for value in values]


def read_frames(header: RequestHeader, data: bytearray, start: int) -> list[list[Frame]]:
    """Return the frames in a body, (H, W, 3) uint8 each: for each clip those that it sends.

    Args:
        header: the body's header.
        data: the whole body.
        start: where in it the frames begin.

    Raises:
        RequestError: a JPEG that cannot be read, or of another size than its clip's.
    """
    view = memoryview(data)
    sizes = iter(header.jpeg or ())
    frames: list[list[Frame]] = []
    for clip in header.clips:
        frames.append([])
        for _ in clip.sent:
            size = clip.frame_bytes if header.jpeg is None else next(sizes)
            part = view[start : start + size]
            frame = np.array(part) if header.jpeg is None else _read_jpeg(part, clip)
            frames[-1].append(frame.reshape(clip.height, clip.width, 3))
            start += size
    return frames


def _read_jpeg(data: memoryview, clip: ClipHeader) -> Frame:
    from PIL import Image

    try:
        with Image.open(BytesIO(data), formats=["JPEG"]) as image:
            if image.size != (clip.width, clip.height):  # checked before pixels are decoded
                raise RequestError(
                    f"A JPEG has {image.height}x{image.width} pixels, its clip "
                    f"{clip.height}x{clip.width}."
                )
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise RequestError(f"A frame cannot be read as JPEG: {error}.") from None


def _read_clip(values: object, limits: Limits) -> ClipHeader:
    if not isinstance(values, dict):
        raise RequestError("A clip must be a JSON object.")
    height = _integer("height", values.get("height"), 1, limits.pixels)
    width = _integer("width", values.get("width"), 1, limits.pixels)
    if height * width > limits.pixels:
        raise RequestError(f"A frame must have at most {limits.pixels} pixels.")
    length = _integer("frames", values.get("frames"), 1, limits.frames)
    stream, steps = values.get("stream"), values.get("steps")
    sent = _integers("sent", values.get("sent"), 0, length - 1)
    if steps is not None:
        steps = _integers("steps", steps, -_LARGEST_STEP, _LARGEST_STEP)
        if len(steps) != length or any(a >= b for a, b in pairwise(steps)):
            raise RequestError("steps must be one increasing integer for each frame.")
    if any(a >= b for a, b in pairwise(sent)):
        raise RequestError("sent must be increasing indices of frames.")
    if (stream is None or steps is None) and len(sent) != length:
        raise RequestError("A clip without stream and steps must send all of its frames.")
    return ClipHeader(
        _task(values.get("task"), limits),
        length,
        height,
        width,
        None if stream is None else _name(stream),
        steps,
        sent,
    )


def _task(value: object, limits: Limits) -> str:
    if isinstance(value, str) and len(value) > limits.task:
        raise RequestError(f"task must have at most {limits.task} characters.")
    try:
        return check_task(value)
    except (TypeError, ValueError) as error:
        raise RequestError(str(error)) from None


def _name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise RequestError("A stream must be 1 to 128 characters of A-Z a-z 0-9 _ . : / -.")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _integer(name: str, value: object, minimum: int, maximum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        raise RequestError(f"{name} must be an integer from {minimum} to {maximum}.")
    return value


def _integers(name: str, values: object, minimum: int, maximum: int) -> tuple[int, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise RequestError(f"{name} must be a list of integers.")
    return tuple(_integer(name, value, minimum, maximum) for value in values)
