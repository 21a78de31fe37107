"""Bookkeeping of the KV cache: which slot holds which frames, and how many of a clip are cached.

A slot holds the prompt of one task and, after it, the tokens of some frames of one stream. A clip
reuses the frames that it shares with its slot, from the first on; the rest is overwritten. Knows
nothing of tensors.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["FrameKey", "FramePrediction", "KVSlot", "KVSlots"]

# A stream that was in none of so many calls loses its slot to a waiting one. Fewer calls could let
# environments whose predictions alternate evict each other, so that nothing is ever reused.
_IDLE_CALLS = 32


class FrameKey(NamedTuple):
    """A frame within its stream. One step at two sizes is two frames."""

    step: int
    height: int
    width: int


class FramePrediction(NamedTuple):
    """Progress and success at one frame."""

    progress: float
    success: float


@dataclass(eq=False)
class KVSlot:
    """One part of the KV cache.

    Attributes:
        number: index of the slot in the cache, from 0.
        stream: stream of the cached frames; None if the slot is free.
        task: task of the cached prompt; None if there is none.
        frames: cached frames, in order.
        predictions: one per cached frame.
        leased: whether the slot is in use now.
        last_call: number of the last call that used it, see `KVSlots.begin_call`.
    """

    number: int
    stream: Hashable = None
    task: str | None = None
    frames: list[FrameKey] = field(default_factory=list)
    predictions: list[FramePrediction] = field(default_factory=list)
    leased: bool = False
    last_call: int = 0

    def truncate(self, frames: int) -> None:
        """Forget all but the first frames."""
        del self.frames[frames:], self.predictions[frames:]


class KVSlots:
    """The slots of a KV cache.

    At least one stays free for clips that are not cached: clips without a stream, and clips of
    streams that get no slot.

    Args:
        count: number of slots.
        max_streams: number of streams that may hold a slot at a time.

    Example:
        >>> slots = KVSlots(2, max_streams=1)
        >>> first = [FrameKey(0, 64, 64), FrameKey(5, 64, 64)]
        >>> slot = slots.lease("episode", "open it", first)
        >>> slot.frames
        []
        >>> slot.task, slot.frames = "open it", first  # once they are computed
        >>> slot.predictions = [FramePrediction(0.0, 0.0), FramePrediction(0.5, 0.0)]
        >>> slots.return_slot(slot)
        >>> slots.lease("episode", "open it", [first[0], FrameKey(9, 64, 64)]).frames
        [FrameKey(step=0, height=64, width=64)]
    """

    def __init__(self, count: int, max_streams: int) -> None:
        self._slots = [KVSlot(number) for number in range(count)]
        self.max_streams = max(0, min(max_streams, count - 1))
        self._of_stream: dict[Hashable, KVSlot] = {}
        self._calls = 0
        self.evictions = 0
        """Number of slots that an idle stream lost to another."""

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, stream: Hashable) -> bool:
        return stream in self._of_stream

    @property
    def streams(self) -> int:
        """Number of streams that hold a slot."""
        return len(self._of_stream)

    def begin_call(self) -> None:
        """Count a call: a stream that is in none of many calls may lose its slot."""
        self._calls += 1

    def lease(self, stream: Hashable, task: str, frames: Sequence[FrameKey]) -> KVSlot | None:
        """Return a slot for a clip, or None if all are leased.

        The slot lists the content that can be reused (perhaps the prompt of the task, perhaps some
        of `frames`, from the first on). The caller adds the frames that it computes, and returns
        the slot.

        Args:
            stream: stream of the clip, or None if nothing is to be cached.
            task: task of the clip.
            frames: frames of the clip, in order.
        """
        slot = self._of_stream.get(stream) if stream is not None else None
        if slot is None:
            keeps = stream is not None and self._has_room_for_stream()
            free = (each for each in self._slots if each.stream is None and not each.leased)
            slot = min(free, key=lambda each: each.task != task, default=None)
            if slot is None:
                return None
            if keeps:
                slot.stream, self._of_stream[stream] = stream, slot
        if slot.task != task:
            slot.truncate(0)
            slot.task = None
        slot.truncate(_shared_prefix(slot.frames, frames))
        slot.leased, slot.last_call = True, self._calls
        return slot

    def return_slot(self, slot: KVSlot) -> None:
        """End a lease. Frames without a stream are forgotten."""
        slot.leased = False
        if slot.stream is None:
            slot.truncate(0)

    def release(self, stream: Hashable) -> None:
        """Free the slot of a stream, if it has one; its prompt may serve another stream."""
        if (slot := self._of_stream.pop(stream, None)) is not None:
            slot.stream = None
            slot.truncate(0)

    def latest_step(self, stream: Hashable) -> int | None:
        """Return the step of the last cached frame of a stream, or None."""
        slot = self._of_stream.get(stream)
        return slot.frames[-1].step if slot and slot.frames else None

    def _has_room_for_stream(self) -> bool:
        """Return whether one more stream may hold a slot; evict an idle one if that helps."""
        if self.streams < self.max_streams:
            return True
        held = self._of_stream.values()
        oldest = min(held, key=lambda slot: (slot.leased, slot.last_call), default=None)
        if oldest is None or oldest.leased or self._calls - oldest.last_call <= _IDLE_CALLS:
            return False
        self.release(oldest.stream)
        self.evictions += 1
        return True


def _shared_prefix(cached: Sequence[FrameKey], requested: Sequence[FrameKey]) -> int:
    """Return the number of frames at the beginning that two sequences share."""
    pairs = enumerate(zip(cached, requested, strict=False))
    shorter = min(len(cached), len(requested))
    return next((i for i, (one, other) in pairs if one != other), shorter)
