"""Pillow's bicubic resize on any device: the same bytes, or other rewards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from robometer_gym.models.robometer.engine import bicubic_resize
from robometer_gym.models.robometer.engine.bicubic_resize import pillow_pass_order, resize
from robometer_gym.models.robometer.network.images import ImageSettings

SIDES = st.integers(1, 160)
KINDS = ("noise", "black and white", "smooth")


def draw_frames(kind: str, height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    if kind == "black and white":  # overshoots at every edge: this is where clipping shows
        return (noise > 127) * np.uint8(255)
    if kind == "smooth":
        rows, columns = np.linspace(0, 200, height), np.linspace(0, 55, width)
        return np.broadcast_to((rows[:, None] + columns)[None, ..., None], noise.shape).astype("u1")
    return noise


def assert_as_pillow(frames: np.ndarray, size: tuple[int, int]) -> None:
    order = pillow_pass_order((frames.shape[1], frames.shape[2]), size)
    assert order is not None
    ours = resize(torch.from_numpy(frames), size, order).numpy()
    for frame, our in zip(frames, ours, strict=True):
        theirs = Image.fromarray(frame).resize(size[::-1], Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(our, np.asarray(theirs))


@settings(max_examples=150)
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(KINDS))
def test_any_size_to_any_other_is_pillows_bit_for_bit(height, width, high, wide, kind):
    """On a GPU the model would see other pixels than it was trained on."""
    assert_as_pillow(draw_frames(kind, height, width), (high, wide))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "source",
    [(240, 320), (240, 240), (180, 320), (100, 150), (84, 84), (240, 427), (360, 640), (400, 300)],
    ids=str,
)
def test_cameras_sizes_are_pillows_bit_for_bit(source, kind):
    """On a GPU the frames of common cameras and simulators would have other pixels."""
    assert_as_pillow(draw_frames(kind, *source), ImageSettings().input_size(*source))


def test_both_orders_of_the_passes_occur():
    """Pillow 13 changed the order for some sizes: one that is always the same would be wrong."""
    noise = torch.from_numpy(draw_frames("black and white", 150, 40))
    one, other = (
        resize(noise, (64, 64), order) for order in ("horizontal first", "vertical first")
    )
    assert not torch.equal(one, other)


def test_a_pillow_with_another_resize_is_detected(monkeypatch):
    """A later Pillow may round differently: then Pillow itself has to resize."""
    monkeypatch.setattr(bicubic_resize, "_SHARPNESS", -0.75)
    bicubic_resize._weights.cache_clear()
    pillow_pass_order.cache_clear()
    try:
        assert pillow_pass_order((240, 320), (256, 320)) is None
    finally:
        bicubic_resize._weights.cache_clear()
        pillow_pass_order.cache_clear()
