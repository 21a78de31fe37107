"""FrameStore: the frames that a server keeps of each stream, within a number of bytes.

Knows nothing of HTTP or of the model.
"""

from __future__ import annotations

from collections.abc import Sequence

from robometer_gym.models.wire import FrameKey, touch
from robometer_gym.reward_model import Clip, Frame
from robometer_gym.serve.limits import Limits
from robometer_gym.serve.requests import ClipHeader

__all__ = ["FrameStore"]


class FrameStore:
    """Keeps frames by (stream, step, size); evicts whole streams, the one used longest ago first.

    Args:
        limits: `streams` and `stored_bytes` bound the store.

    Attributes:
        evicted: streams that were evicted since the list was last emptied.

    Example:
        >>> import numpy as np
        >>> store = FrameStore(Limits())
        >>> frame = np.zeros((8, 8, 3), np.uint8)
        >>> header = ClipHeader("open it", 2, 8, 8, "a", (0, 5), (0, 1))
        >>> store.assemble([header], [[frame, frame]])[0][0].steps
        (0, 5)
        >>> header = ClipHeader("open it", 3, 8, 8, "a", (0, 5, 10), (2,))
        >>> len(store.assemble([header], [[frame]])[0][0])  # only the new frame came
        3
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._streams: dict[str, dict[FrameKey, Frame]] = {}
        self._bytes: dict[str, int] = {}
        self.total_bytes = 0
        self.evicted: list[str] = []

    def __len__(self) -> int:
        return len(self._streams)

    def assemble(
        self, headers: Sequence[ClipHeader], sent: Sequence[Sequence[Frame]]
    ) -> tuple[list[Clip], dict[int, list[int]]]:
        """Keep the frames that were sent, and complete each clip with frames kept before.

        Args:
            headers: the clips.
            sent: for each clip the frames at `ClipHeader.sent`.

        Returns:
            The clips, and, by index, the steps that are missing of clips that are incomplete;
            these are not among the clips.
        """
        clips, missing = [], {}
        for number, (header, frames) in enumerate(zip(headers, sent, strict=True)):
            came = dict(zip(header.sent, frames, strict=True))
            keys = header.keys
            if keys is None:
                clips.append(Clip(frames, header.task))  # a model keeps nothing of it either
                continue
            assert header.stream is not None
            kept = self._streams.pop(header.stream, {})
            self._streams[header.stream] = kept  # now the one used last
            images = [came.get(index, kept.get(key)) for index, key in enumerate(keys)]
            for key, image in zip(keys, images, strict=True):
                if image is not None:
                    touch(kept, key, image)
            self._account(header.stream)
            complete = [image for image in images if image is not None]
            if len(complete) == len(images):
                clips.append(Clip(complete, header.task, header.stream, header.steps))
            else:
                missing[number] = [
                    key.step for key, image in zip(keys, images, strict=True) if image is None
                ]
        return clips, missing

    def release(self, stream: str) -> None:
        """Drop the frames of a stream."""
        self._streams.pop(stream, None)
        self.total_bytes -= self._bytes.pop(stream, 0)

    def _account(self, stream: str) -> None:
        size = sum(frame.nbytes for frame in self._streams[stream].values())
        self.total_bytes += size - self._bytes.get(stream, 0)
        self._bytes[stream] = size
        while len(self) > self._limits.streams or self.total_bytes > self._limits.stored_bytes:
            oldest = next(iter(self._streams))
            self.release(oldest)
            self.evicted.append(oldest)
