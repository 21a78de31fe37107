"""Feature cache: each frame encoded once, and never more bytes than the budget."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from robometer_gym.models.robometer.engine.frame_features import FrameFeatures, FrameRequest
from robometer_gym.models.robometer.engine.kv_slots import FrameKey


class Tower:
    """Encodes a frame to its first pixel, as (n, 2, 3, 4) of that number."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, frames) -> Tensor:
        assert len({frame.shape for frame in frames}) == 1
        self.batches.append(len(frames))
        numbers = torch.tensor([float(frame[0, 0, 0]) for frame in frames])
        return numbers.reshape(-1, 1, 1, 1).expand(-1, 2, 3, 4).contiguous()


BYTES = 2 * 3 * 4 * 4


def wanted(stream, number: int, side: int = 4) -> FrameRequest:
    image = np.full((side, side, 3), number, np.uint8)
    return FrameRequest(stream, FrameKey(number, side, side), image)


def numbers(features: list[Tensor]) -> list[float]:
    return [each.unique().item() for each in features]


def test_each_frame_is_encoded_once_and_sizes_go_together():
    """The vision tower is most of the work of a query."""
    tower = Tower()
    features = FrameFeatures(tower, budget=1000 * BYTES)
    ones = [wanted("a", 1), wanted("a", 2, side=8), wanted("b", 1), wanted("a", 1)]
    assert numbers(features.fetch(ones)) == [1, 2, 1, 1]
    assert tower.batches == [2, 1]
    assert numbers(features.fetch([wanted("a", 3), *ones])) == [3, 1, 2, 1, 1]
    assert tower.batches == [2, 1, 1]
    assert (features.encoded, features.reused) == (4, 5)


def test_a_frame_without_a_stream_is_encoded_once_and_not_cached():
    """Unrelated clips would get each other's frames, or the memory would fill up."""
    tower = Tower()
    features = FrameFeatures(tower, budget=1000 * BYTES)
    one = wanted(None, 7)
    other = FrameRequest(None, one.key, one.image.copy() + 1)
    assert numbers(features.fetch([one, other, one])) == [7, 8, 7]
    assert tower.batches == [2]
    assert len(features) == features.bytes == 0


def test_the_least_recently_requested_frame_goes_first():
    """A long episode would push out the frames that are still in its window."""
    features = FrameFeatures(Tower(), budget=3 * BYTES)
    for number in range(6):
        assert numbers(features.fetch([wanted("a", 0), wanted("a", number)])) == [0, number]
        assert features.bytes <= 3 * BYTES
    assert features.encoded == 6
    assert features.evictions == 3
    features.fetch([wanted("a", 4), wanted("a", 5)])
    assert features.encoded == 6
    features.fetch([wanted("a", 1)])
    assert features.encoded == 7


def test_more_frames_than_the_budget_holds_are_all_returned():
    """A window larger than the budget would lose its first frames."""
    features = FrameFeatures(Tower(), budget=2 * BYTES)
    assert numbers(features.fetch([wanted("a", n) for n in range(9)])) == list(range(9))
    assert len(features) == 2


def test_the_counted_bytes_are_the_held_bytes():
    """A frame that is a part of a batch would keep the whole batch in memory, uncounted."""
    features = FrameFeatures(Tower(), budget=8 * BYTES)
    for first in range(0, 20, 5):
        features.fetch([wanted("a", first + n) for n in range(5)])
    held = {f.untyped_storage().data_ptr(): f.untyped_storage() for f in features._cached.values()}
    assert sum(storage.nbytes() for storage in held.values()) == features.bytes == 8 * BYTES


def test_large_batches_are_encoded_in_parts():
    """A hundred videos at once would exhaust the memory."""
    tower = Tower()
    features = FrameFeatures(tower, budget=0, max_pixels=4 * 4 * 3)
    assert numbers(features.fetch([wanted("a", n) for n in range(8)])) == list(range(8))
    assert tower.batches == [3, 3, 2]


def test_a_released_stream_is_forgotten_and_no_other():
    """Its name may come back with other frames."""
    features = FrameFeatures(Tower(), budget=100 * BYTES)
    features.fetch([wanted("a", 1), wanted("a", 5), wanted("b", 1)])
    assert (features.latest_step("a"), features.latest_step("c")) == (5, None)
    features.release("a")
    features.release("a")
    assert features.bytes == BYTES
    assert (features.latest_step("a"), features.latest_step("b")) == (None, 1)
