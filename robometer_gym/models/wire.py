"""The wire format between a reward server and its clients: constants, bodies and responses.

A request body is a 4-byte little-endian length, a JSON header of that length, and the raw frames
that the header announces; docs/server.md describes it for other languages. Nothing is pickled.
Knows nothing of sockets, servers or networks.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from robometer_gym.reward_model import Clip, Frame, Prediction, RewardModelError, check_predictions

__all__ = [
    "CONTENT_TYPE",
    "LENGTH",
    "PROTOCOL",
    "PROTOCOL_HEADER",
    "SESSION_HEADER",
    "STREAM_FRAMES",
    "FrameKey",
    "RequestBuilder",
    "decode_predictions",
    "encode_predictions",
    "touch",
]

PROTOCOL = 1
"""The version of this format. Client and server must have the same one."""

PROTOCOL_HEADER = "Robometer-Protocol"
SESSION_HEADER = "X-Session-Id"
"""Requests with the same session id reach the same replica of a server that has several."""

CONTENT_TYPE = "application/x-robometer"
LENGTH = struct.Struct("<I")

STREAM_FRAMES = 128
"""Frames that a server keeps of one stream: those used last."""


class FrameKey(NamedTuple):
    """The identity of a frame in its stream. One step at two sizes is two frames."""

    step: int
    height: int
    width: int


def touch(kept: dict[FrameKey, Any], key: FrameKey, value: Any) -> None:
    """Set `key` as the frame used last, and drop the oldest frames beyond `STREAM_FRAMES`.

    Server and client both apply this rule, so the client predicts which frames the server keeps.
    """
    kept.pop(key, None)
    kept[key] = value
    while len(kept) > STREAM_FRAMES:
        del kept[next(iter(kept))]


@dataclass
class RequestBuilder:
    """Builds the body of one request, clip by clip.

    Args:
        timeout: seconds until the client gives up; the server then drops the request.
        jpeg_quality: 1 to 95, or None for raw frames.

    Example:
        >>> builder = RequestBuilder(timeout=10.0)
        >>> builder.add(Clip(np.zeros((2, 8, 8, 3), np.uint8), "open the drawer"), None, [0, 1])
        >>> [len(part) for part in builder.body()][1:]
        [192, 192]
    """

    timeout: float
    jpeg_quality: int | None = None
    frame_bytes: int = 0
    _clips: list[dict[str, Any]] = field(default_factory=list)
    _frames: list[bytes | memoryview] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._clips)

    def add(self, clip: Clip, stream: str | None, sent: Sequence[int]) -> None:
        """Add a clip.

        Args:
            clip: the clip; its own `stream` is not sent.
            stream: its stream's name on the wire.
            sent: indices of the frames that the body carries; the server has the others.
        """
        height, width, _ = clip.images[0].shape
        self._clips.append(
            {
                "task": clip.task,
                "frames": len(clip),
                "height": height,
                "width": width,
                "stream": stream,
                "steps": clip.steps,
                "sent": list(sent),
            }
        )
        for index in sent:
            frame = self._encode(clip.images[index])
            self._frames.append(frame)
            self.frame_bytes += clip.images[index].nbytes  # the server's limit is on these

    def body(self) -> list[bytes | memoryview]:
        """Return the request body in parts: the frames are not copied."""
        header: dict[str, Any] = {"timeout": self.timeout, "clips": self._clips}
        if self.jpeg_quality is not None:
            header["jpeg"] = [len(frame) for frame in self._frames]
        text = json.dumps(header, separators=(",", ":")).encode()
        return [LENGTH.pack(len(text)) + text, *self._frames]

    def _encode(self, frame: Frame) -> bytes | memoryview:
        if self.jpeg_quality is None:
            return np.ascontiguousarray(frame).data.cast("B")
        from io import BytesIO

        from PIL import Image

        data = BytesIO()
        Image.fromarray(frame).save(data, "JPEG", quality=self.jpeg_quality)
        return data.getvalue()


def encode_predictions(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Return predictions as JSON values. Every float32 survives JSON bit for bit."""
    return {
        "predictions": [
            {"progress": each.progress.tolist(), "success": each.success.tolist()}
            for each in predictions
        ]
    }


def decode_predictions(clips: Sequence[Clip], response: object) -> list[Prediction]:
    """Return the predictions of a response to a request for `clips`.

    Raises:
        RewardModelError: the response does not hold valid predictions of `clips`.
    """
    try:
        predictions = [
            Prediction(
                np.array(each["progress"], np.float32), np.array(each["success"], np.float32)
            )
            for each in response["predictions"]  # type: ignore[index]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise RewardModelError(
            f"The reward server's response holds no predictions: {error!r}. Is it a robometer-gym "
            "server of this version?"
        ) from error
    return check_predictions(clips, predictions)
