"""Bookkeeping of the KV cache: frames that can be reused, and eviction."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robometer_gym.models.robometer.engine.kv_slots import (
    FrameKey,
    FramePrediction,
    KVSlot,
    KVSlots,
)


def frames(*steps: int, size: int = 64) -> list[FrameKey]:
    return [FrameKey(step, size, size) for step in steps]


def fill(slots: KVSlots, stream: object, wanted: list[FrameKey], task: str = "open it") -> int:
    """Lease and fill as the engine does; return the number of frames that were cached."""
    slots.begin_call()
    slot = slots.lease(stream, task, wanted)
    assert slot is not None
    kept = len(slot.frames)
    assert slot.frames == wanted[:kept]
    slot.task = task
    slot.predictions += [FramePrediction(frame.step / 100, 0.5) for frame in wanted[kept:]]
    slot.frames += wanted[kept:]
    assert [prediction.progress * 100 for prediction in slot.predictions] == pytest.approx(
        [frame.step for frame in wanted]
    )
    slots.return_slot(slot)
    return kept


@given(st.lists(st.lists(st.integers(0, 5), max_size=6, unique=True).map(sorted), max_size=8))
def test_the_longest_common_beginning_is_reused(windows):
    """One frame too many would be another episode's; one too few costs time."""
    slots = KVSlots(2, max_streams=1)
    before: list[int] = []
    for window in windows:
        common = 0
        while common < min(len(before), len(window)) and before[common] == window[common]:
            common += 1
        assert fill(slots, "a", frames(*window)) == common
        before = window


def test_a_frame_of_another_size_is_another_frame():
    """Keys of 64 tokens would be read as those of 80."""
    slots = KVSlots(2, max_streams=1)
    fill(slots, "a", frames(0, 5))
    assert fill(slots, "a", frames(0, 5, size=96)) == 0


def test_another_task_reuses_nothing():
    """The prompt of one task would be followed by the frames of another."""
    slots = KVSlots(2, max_streams=1)
    fill(slots, "a", frames(0, 5))
    slot = slots.lease("a", "close it", frames(0, 5))
    assert slot is not None
    assert slot.task is None
    assert not slot.frames
    assert not slot.predictions


def test_a_released_slot_keeps_only_the_prompt():
    """The next episode would begin with the frames of the last."""
    slots = KVSlots(3, max_streams=2)
    fill(slots, "a", frames(0, 5), task="close it")
    fill(slots, "b", frames(0, 5))
    slots.release("a")
    slots.release("a")
    slot = slots.lease("c", "close it", frames(0, 5))
    assert slot is not None
    assert (slot.number, slot.task, slot.frames, slot.predictions) == (0, "close it", [], [])


def test_a_clip_without_a_stream_leaves_nothing():
    """Frames 0, 1, 2 of two unrelated clips would be taken for the same."""
    slots = KVSlots(2, max_streams=1)
    assert fill(slots, None, frames(0, 1)) == 0
    assert fill(slots, None, frames(0, 1)) == 0
    assert slots.streams == 0


def test_streams_do_not_evict_each_other():
    """With one environment more than slots, none would ever find its frames again."""
    slots = KVSlots(3, max_streams=2)
    kept = []
    for step in range(1, 12):
        kept.append([fill(slots, name, frames(*range(step))) for name in "abc"])
    assert kept[-1] == [10, 10, 0]
    assert slots.evictions == 0


def test_an_idle_stream_loses_its_slot():
    """Streams that are never released would keep all others out."""
    slots = KVSlots(2, max_streams=1)
    fill(slots, "a", frames(0))
    for _ in range(40):
        fill(slots, "b", frames(0, 1))
    assert fill(slots, "b", frames(0, 1)) == 2
    assert "a" not in slots
    assert slots.evictions == 1


def test_one_slot_stays_free_for_clips_without_a_stream():
    """They would wait for ever."""
    slots = KVSlots(2, max_streams=5)
    for name in "ab":
        assert slots.lease(name, "open it", frames(0)) is not None
    assert slots.lease(None, "open it", frames(0)) is None
    assert slots.streams == 1


def test_the_newest_step_is_that_of_the_window():
    """An episode that begins under an old name would go unnoticed."""
    slots = KVSlots(2, max_streams=1)
    assert slots.latest_step("a") is None
    fill(slots, "a", frames(0, 7))
    assert slots.latest_step("a") == 7
    assert KVSlot(0).leased is False
