"""Pillow's bicubic resize as two matrix products, bit for bit, on any device.

Pillow weighs 8-bit pixels with fixed-point numbers and rounds to 8 bits after each of its two
passes. Sums of such integers are exact in float64 in any order of addition. The order of the
passes differs between versions of Pillow: `pillow_pass_order` tests the installed one. Knows
nothing of models.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["Order", "pillow_pass_order", "resize"]

Order = Literal["horizontal first", "vertical first"]
Size = tuple[int, int]

_SUPPORT = 2.0  # of the bicubic kernel, in pixels
_SHARPNESS = -0.5
_ONE = 1 << 22  # Pillow's fixed-point 1.0: PRECISION_BITS of src/libImaging/Resample.c


def resize(frames: Tensor, size: Size, order: Order = "horizontal first") -> Tensor:
    """Return frames of another size, as Pillow's `Image.resize` with BICUBIC gives them.

    Args:
        frames: (N, H, W, C) uint8.
        size: height and width of the result, in pixels.
        order: of the two passes.

    Returns:
        (N, *size, C) uint8, on the same device.

    Source: ImagingResample, src/libImaging/Resample.c of Pillow 12 and 13.

    Example:
        >>> resize(torch.full((1, 4, 6, 3), 200, dtype=torch.uint8), (8, 3)).unique().tolist()
        [200]
    """
    for axis in (2, 1) if order == "horizontal first" else (1, 2):
        frames = _resize_axis(frames, axis, size[axis - 1])
    return frames


@lru_cache(maxsize=64)
def pillow_pass_order(source: Size, target: Size) -> Order | None:
    """Return the order of the installed Pillow's two passes between these sizes.

    None means that its resize is of another kind: then Pillow itself has to be used.
    """
    noise = np.random.default_rng(0).integers(0, 2, (*source, 3), dtype=np.uint8) * np.uint8(255)
    expected = np.asarray(Image.fromarray(noise).resize(target[::-1], Image.Resampling.BICUBIC))
    orders: tuple[Order, ...] = ("horizontal first", "vertical first")
    for order in orders:
        if np.array_equal(resize(torch.from_numpy(noise)[None], target, order)[0], expected):
            return order
    return None


def _resize_axis(frames: Tensor, axis: int, length: int) -> Tensor:
    if frames.shape[axis] == length:
        return frames
    weights = _weights(frames.shape[axis], length, frames.device)
    columns = frames.double().flatten(axis + 1)  # everything after the axis: one matrix product
    resized: Tensor = _round(weights @ columns).unflatten(-1, frames.shape[axis + 1 :])
    return resized


def _round(sums: Tensor) -> Tensor:
    """Round fixed-point sums to pixels; Pillow shifts, which rounds towards minus infinity."""
    return ((sums + _ONE // 2) / _ONE).floor().clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=64)
def _weights(source: int, target: int, device: torch.device) -> Tensor:
    """Return (target, source) float64 of integers: the weight of each source pixel."""
    weights = torch.zeros(target, source, dtype=torch.float64)
    scale = source / target
    stretch = max(scale, 1.0)
    for pixel in range(target):
        center = (pixel + 0.5) * scale
        first = max(int(center - _SUPPORT * stretch + 0.5), 0)
        last = min(int(center + _SUPPORT * stretch + 0.5), source)
        taps = [_kernel((at - center + 0.5) / stretch) for at in range(first, last)]
        total = sum(taps)
        fixed = [_fixed(tap / total) for tap in taps]
        weights[pixel, first:last] = torch.tensor(fixed, dtype=torch.float64)
    return weights.to(device)


def _fixed(weight: float) -> int:
    return int(weight * _ONE + math.copysign(0.5, weight))  # towards zero, as a C cast


def _kernel(x: float) -> float:
    x, a = abs(x), _SHARPNESS
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * a
    return 0.0
