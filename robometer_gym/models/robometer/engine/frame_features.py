"""Cache of the vision tower's features, one entry per frame of a stream.

Frames of one size are encoded together, and each frame once per stream. Knows nothing of text, or
of the clips that show a frame.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from torch import Tensor

from robometer_gym.models.robometer.engine.kv_slots import FrameKey
from robometer_gym.reward_model import Frame

__all__ = ["FrameFeatures", "FrameRequest"]

Encode = Callable[[Sequence[Frame]], Tensor]
"""From n frames of one size to their features, (n, 1 + levels, tokens, D)."""


class FrameRequest(NamedTuple):
    """A request for the features of one frame.

    Attributes:
        stream: stream of the frame; None if nothing is to be cached.
        key: key of the frame within the stream.
        image: (H, W, 3) uint8.
    """

    stream: Hashable
    key: FrameKey
    image: Frame

    @property
    def name(self) -> object:
        """Identity of the frame within one call: without a stream, that of its array."""
        return id(self.image) if self.stream is None else (self.stream, self.key)


class FrameFeatures:
    """Features of frames, encoded at their first request.

    Args:
        encode: the vision tower.
        budget: maximum number of cached bytes; the least recently requested frames go first.
        max_pixels: maximum number of pixels to encode together.

    Attributes:
        encoded: number of frames encoded.
        reused: number of requests served from the cache.
        evictions: number of frames dropped because of the budget.
        bytes: number of cached bytes.
    """

    def __init__(self, encode: Encode, budget: int, max_pixels: int = 1 << 22) -> None:
        self._encode, self.budget, self._max_pixels = encode, budget, max_pixels
        self._cached: OrderedDict[tuple[Hashable, FrameKey], Tensor] = OrderedDict()
        self._of_stream: dict[Hashable, set[FrameKey]] = {}
        self.encoded = self.reused = self.evictions = self.bytes = 0

    def __len__(self) -> int:
        return len(self._cached)

    def fetch(self, requests: Sequence[FrameRequest]) -> list[Tensor]:
        """Return the features of each frame, (1 + levels, tokens, D)."""
        found: dict[object, Tensor] = {}
        missing: dict[object, FrameRequest] = {}
        for request in requests:
            if request.name in found or request.name in missing:
                continue
            if (cached := self._cached.get((request.stream, request.key))) is not None:
                self._cached.move_to_end((request.stream, request.key))
                found[request.name] = cached
            else:
                missing[request.name] = request
        self.encoded += len(missing)
        self.reused += len(requests) - len(missing)
        for group in self._groups(missing):
            features = self._encode([missing[name].image for name in group])
            found.update(zip(group, features, strict=True))
        for name, request in missing.items():
            if request.stream is not None:
                self._keep((request.stream, request.key), found[name])
        return [found[request.name] for request in requests]

    def release(self, stream: Hashable) -> None:
        """Forget the frames of a stream."""
        for key in tuple(self._of_stream.get(stream, ())):
            self._drop((stream, key))

    def limit(self, budget: int) -> None:
        """Set another budget and drop what exceeds it."""
        self.budget = budget
        while self.bytes > budget and self._cached:
            self._drop(next(iter(self._cached)))
            self.evictions += 1

    def latest_step(self, stream: Hashable) -> int | None:
        """Return the latest cached step of a stream, or None."""
        return max((key.step for key in self._of_stream.get(stream, ())), default=None)

    def _groups(self, missing: dict[object, FrameRequest]) -> list[list[object]]:
        """Split the missing frames into groups of one size and at most `max_pixels`."""
        sizes: dict[tuple[int, ...], list[object]] = {}
        for name, request in missing.items():
            sizes.setdefault(request.image.shape, []).append(name)
        groups = []
        for (height, width, _), names in sizes.items():
            count = max(1, self._max_pixels // (height * width))
            groups += [names[i : i + count] for i in range(0, len(names), count)]
        return groups

    def _keep(self, name: tuple[Hashable, FrameKey], features: Tensor) -> None:
        # One of several frames that were encoded together is a view, which would keep them all.
        whole = features.untyped_storage().nbytes() == features.nbytes
        self._cached[name] = features if whole else features.clone()
        self._of_stream.setdefault(name[0], set()).add(name[1])
        self.bytes += features.nbytes
        self.limit(self.budget)

    def _drop(self, name: tuple[Hashable, FrameKey]) -> None:
        self.bytes -= self._cached.pop(name).nbytes
        keys = self._of_stream[name[0]]
        keys.discard(name[1])
        if not keys:
            del self._of_stream[name[0]]
