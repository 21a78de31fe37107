"""FrameCopier: memory is used again, and never while anything refers to it."""

import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robometer_gym.wrappers.frame_copier import FrameCopier


def frame(value: int, height: int = 2) -> Any:
    """Return a frame of one value: (H, 2, 3) uint8."""
    return np.full((height, 2, 3), value, np.uint8)


@given(
    st.lists(st.tuples(st.sampled_from(["frame", "view", "drop"]), st.integers(0, 50)), max_size=60)
)
def test_a_copy_in_use_is_never_overwritten(schedule):
    """The frames of an episode's history would change: the past would show the present."""
    copier = FrameCopier()
    source = np.zeros((3, 4, 3), np.uint8)
    held: list[tuple[Any, int]] = []
    for number, (kind, which) in enumerate(schedule):
        if kind == "drop":
            if held:
                held.pop(which % len(held))
            continue
        source[:] = number
        copy = copier.copy(source)
        np.testing.assert_array_equal(copy, source)
        held.append((copy if kind == "frame" else copy[1:, ::2], number))
        del copy
        for held_frame, its_number in held:
            assert (held_frame == its_number).all()


@pytest.mark.parametrize(
    "holder",
    [
        lambda copy: [copy],
        lambda copy: {"frame": copy},
        lambda copy: copy[0],
        lambda copy: copy.reshape(-1),
        lambda copy: memoryview(copy).cast("B"),
        lambda copy: iter(copy),
        lambda copy: np.broadcast_to(copy, (2, *copy.shape)),
    ],
)
def test_every_reference_to_a_copy_counts(holder):
    """A model that keeps only a crop would see it change."""
    copier = FrameCopier()
    held = holder(copier.copy(frame(7)))
    for number in range(3):
        copier.copy(frame(number))
    (first, *_) = held.values() if isinstance(held, dict) else held
    assert (np.asarray(first) == 7).all()


def test_free_memory_is_used_again():
    """Each kept frame would cost several times its copy."""
    copier = FrameCopier()
    addresses = set()
    for number in range(20):
        copy = copier.copy(frame(number))
        addresses.add(copy.ctypes.data)
        del copy
    assert len(addresses) == 1


def test_frames_may_change_their_size():
    """A camera that changes its size would receive a frame of the old one."""
    copier = FrameCopier()
    for height in (2, 3, 2, 5):
        np.testing.assert_array_equal(copier.copy(frame(height, height)), frame(height, height))


def test_copies_that_were_in_use_for_a_while_are_freed():
    """A model that once kept a long video would hold its memory for ever."""
    copier = FrameCopier()
    alive: set[int] = set()
    video: list[Any] = []
    for number in range(2_000):
        copy = copier.copy(frame(0))
        alive.add(number)
        weakref.finalize(copy, alive.discard, number)
        video.append(copy)
    del copy
    assert len(alive) == 2_000
    video.clear()
    for _ in range(10):
        copier.copy(frame(0))
    assert len(alive) < 1_000
