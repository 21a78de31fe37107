"""Which part of the cache holds what, and how much of it a clip can use again: bookkeeping alone.

A slot holds the question of one task and, after it, the blocks of some frames of one stream. What
a clip has in common with that, from the beginning on, is used again; the rest is overwritten.
Knows nothing of tensors.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Answer", "FrameKey", "Slot", "Slots"]

# A slot is taken from a stream that was not asked about in so many calls. Taking it sooner could
# make environments that are due in turn rob one another, so that nothing is ever used again.
_IDLE_CALLS = 32


class FrameKey(NamedTuple):
    """Which frame of its stream it is. A step at two sizes is two frames."""

    step: int
    height: int
    width: int


class Answer(NamedTuple):
    """What was predicted at one frame."""

    progress: float
    success: float


@dataclass(eq=False)
class Slot:
    """One part of the cache.

    Attributes:
        number: from 0, where in the cache it is.
        stream: whose frames it holds; None where it is free.
        task: whose question stands at its beginning; None where nothing does.
        frames: whose blocks stand after it, in order.
        answers: what was predicted at each of them.
        leased: whether it is in use now.
        used: in which call it was last, see `Slots.begin_call`.
    """

    number: int
    stream: Hashable = None
    task: str | None = None
    frames: list[FrameKey] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    leased: bool = False
    used: int = 0

    def truncate(self, frames: int) -> None:
        """Forget all but the first frames."""
        del self.frames[frames:], self.answers[frames:]


class Slots:
    """The slots of a cache.

    At least one is left to clips that keep nothing: clips without a stream, and those of streams
    that find no slot.

    Args:
        count: how many there are.
        most_streams: how many streams may have one at a time.

    Example:
        >>> slots = Slots(2, most_streams=1)
        >>> first = [FrameKey(0, 64, 64), FrameKey(5, 64, 64)]
        >>> slot = slots.lease("episode", "open it", first)
        >>> slot.frames
        []
        >>> slot.task, slot.frames = "open it", first  # once they are computed
        >>> slot.answers = [Answer(0.0, 0.0), Answer(0.5, 0.0)]
        >>> slots.give_back(slot)
        >>> slots.lease("episode", "open it", [first[0], FrameKey(9, 64, 64)]).frames
        [FrameKey(step=0, height=64, width=64)]
    """

    def __init__(self, count: int, most_streams: int) -> None:
        self._slots = [Slot(number) for number in range(count)]
        self.most_streams = max(0, min(most_streams, count - 1))
        self._of_stream: dict[Hashable, Slot] = {}
        self._calls = 0
        self.evictions = 0
        """How often a slot was taken from a stream for another."""

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, stream: Hashable) -> bool:
        return stream in self._of_stream

    @property
    def streams(self) -> int:
        """How many streams have a slot."""
        return len(self._of_stream)

    def begin_call(self) -> None:
        """Count a call: a slot that is not used for many calls may be taken."""
        self._calls += 1

    def lease(self, stream: Hashable, task: str, frames: Sequence[FrameKey]) -> Slot | None:
        """Return a slot for a clip, or None if there is none at the moment.

        What it says that it holds (perhaps a task, perhaps some of `frames`, from the first on) is
        in the cache and stays there; the caller adds what it computes, and gives it back.

        Args:
            stream: which the clip is from, or None if nothing is to be kept.
            task: of the clip.
            frames: of the clip, in order.
        """
        slot = self._of_stream.get(stream) if stream is not None else None
        if slot is None:
            keeps = stream is not None and self._room_for_stream()
            slot = self._free(task)
            if slot is None:
                return None
            if keeps:
                slot.stream, self._of_stream[stream] = stream, slot
        if slot.task != task:
            slot.truncate(0)
            slot.task = None
        slot.truncate(_common(slot.frames, frames))
        slot.leased, slot.used = True, self._calls
        return slot

    def give_back(self, slot: Slot) -> None:
        """End a lease. What was computed for no stream is forgotten."""
        slot.leased = False
        if slot.stream is None:
            slot.truncate(0)

    def release(self, stream: Hashable) -> None:
        """Free the slot of a stream, if it has one; the question may stay for another."""
        if (slot := self._of_stream.pop(stream, None)) is not None:
            slot.stream = None
            slot.truncate(0)

    def newest(self, stream: Hashable) -> int | None:
        """Return the latest step that is held of a stream, or None."""
        slot = self._of_stream.get(stream)
        return slot.frames[-1].step if slot and slot.frames else None

    def _free(self, task: str) -> Slot | None:
        """Return a slot that is nobody's, if possible one where the question stands already."""
        free = (slot for slot in self._slots if slot.stream is None and not slot.leased)
        return min(free, key=lambda slot: slot.task != task, default=None)

    def _room_for_stream(self) -> bool:
        """Return whether one more stream may have a slot; one that was idle for long loses its."""
        if self.streams < self.most_streams:
            return True
        held = self._of_stream.values()
        oldest = min(held, key=lambda slot: (slot.leased, slot.used), default=None)
        if oldest is None or oldest.leased or self._calls - oldest.used <= _IDLE_CALLS:
            return False
        self.release(oldest.stream)
        self.evictions += 1
        return True


def _common(held: Sequence[FrameKey], wanted: Sequence[FrameKey]) -> int:
    """Return how many frames two sequences have in common at their beginnings."""
    pairs = enumerate(zip(held, wanted, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(held), len(wanted)))
