"""What the vision tower says of each frame, kept for as long as there is room.

Frames are encoded together where they are of one size, and each only once per stream. Knows
nothing of text, or of which frames stand in which clip.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from torch import Tensor

from robometer_gym.models.robometer.engine.slots import FrameKey
from robometer_gym.reward_model import Frame

__all__ = ["FrameFeatures", "Wanted"]

Encode = Callable[[Sequence[Frame]], Tensor]
"""From n pictures of one size to their features, (n, 1 + levels, tokens, D)."""


class Wanted(NamedTuple):
    """A frame whose features are wanted.

    Attributes:
        stream: which it is from; None where nothing is to be kept.
        key: which frame of the stream it is.
        image: (H, W, 3) uint8.
    """

    stream: Hashable
    key: FrameKey
    image: Frame


class FrameFeatures:
    """Features of frames, encoded when they are wanted for the first time.

    Args:
        encode: the vision tower.
        budget: most bytes to be kept; the frames that were not wanted for longest go first.
        together: most pixels to be encoded at once.

    Attributes:
        encoded: how many frames have been encoded.
        reused: how many were wanted and there already.
        evictions: how many were dropped for want of room.
        bytes: how many are kept.
    """

    def __init__(self, encode: Encode, budget: int, together: int = 1 << 22) -> None:
        self._encode, self.budget, self._together = encode, budget, together
        self._kept: OrderedDict[tuple[Hashable, FrameKey], Tensor] = OrderedDict()
        self._of_stream: dict[Hashable, set[FrameKey]] = {}
        self.encoded = self.reused = self.evictions = self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def fetch(self, wanted: Sequence[Wanted]) -> list[Tensor]:
        """Return the features of each frame, (1 + levels, tokens, D)."""
        found: dict[object, Tensor] = {}
        missing: dict[object, Wanted] = {}
        for one in wanted:
            name = _name(one)
            if name in found or name in missing:
                continue
            if (kept := self._kept.get((one.stream, one.key))) is not None:
                self._kept.move_to_end((one.stream, one.key))
                found[name] = kept
            else:
                missing[name] = one
        self.encoded += len(missing)
        self.reused += len(wanted) - len(missing)
        for group in self._groups(missing):
            features = self._encode([missing[name].image for name in group])
            found.update(zip(group, features, strict=True))
        for name, one in missing.items():
            if one.stream is not None:
                self._keep((one.stream, one.key), found[name])
        return [found[_name(one)] for one in wanted]

    def release(self, stream: Hashable) -> None:
        """Forget the frames of a stream."""
        for key in tuple(self._of_stream.get(stream, ())):
            self._drop((stream, key))

    def limit(self, budget: int) -> None:
        """Keep to another budget, from now on."""
        self.budget = budget
        while self.bytes > budget and self._kept:
            self._drop(next(iter(self._kept)))
            self.evictions += 1

    def newest(self, stream: Hashable) -> int | None:
        """Return the latest step that is kept of a stream, or None."""
        return max((key.step for key in self._of_stream.get(stream, ())), default=None)

    def _groups(self, missing: dict[object, Wanted]) -> list[list[object]]:
        """Part what is missing into groups of one size that are not too large."""
        sizes: dict[tuple[int, ...], list[object]] = {}
        for name, one in missing.items():
            sizes.setdefault(one.image.shape, []).append(name)
        groups = []
        for (height, width, _), names in sizes.items():
            most = max(1, self._together // (height * width))
            groups += [names[i : i + most] for i in range(0, len(names), most)]
        return groups

    def _keep(self, name: tuple[Hashable, FrameKey], features: Tensor) -> None:
        # A frame of several that were encoded together is a view, which would keep them all.
        whole = features.untyped_storage().nbytes() == features.nbytes
        self._kept[name] = features if whole else features.clone()
        self._of_stream.setdefault(name[0], set()).add(name[1])
        self.bytes += features.nbytes
        self.limit(self.budget)

    def _drop(self, name: tuple[Hashable, FrameKey]) -> None:
        self.bytes -= self._kept.pop(name).nbytes
        keys = self._of_stream[name[0]]
        keys.discard(name[1])
        if not keys:
            del self._of_stream[name[0]]


def _name(one: Wanted) -> object:
    """Return what a frame is called within one call: without a stream, the array that it is."""
    return id(one.image) if one.stream is None else (one.stream, one.key)
