"""Image preprocessing: from frames to the patches that Qwen3-VL's vision tower reads.

Equal bit for bit to qwen-vl-utils followed by the Qwen2-VL image processor, and needs neither.
Knows nothing of text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robometer_gym.models.robometer.network.schema import (
    Schema,
    check_fields,
    constant,
    integer,
    numbers,
)
from robometer_gym.reward_model import Frame

__all__ = ["ImageSettings", "smart_size"]

_MAX_ASPECT = 200

_SCHEMA: Schema = {
    "patch_size": integer(1, 64, required=True),
    "merge_size": integer(1, 4, required=True),
    "temporal_patch_size": integer(1, 4, required=True),
    "image_mean": numbers(3, -10, 10, required=True),
    "image_std": numbers(3, 1e-3, 10, required=True),
    "do_rescale": constant(True),
    "do_normalize": constant(True),
    "rescale_factor": constant(1 / 255),
}


@dataclass(frozen=True)
class ImageSettings:
    """Patch sizes and normalization, from a processor's configuration file.

    Attributes:
        patch_size: pixels along one side of a patch.
        merge_size: patches along one side that become one token.
        temporal_patch_size: frames per patch; a still image is repeated.
        image_mean: per channel, of pixel values in [0, 1].
        image_std: per channel, likewise.

    Example:
        >>> settings = ImageSettings()
        >>> patches, grid = settings.patches(np.zeros((240, 320, 3), np.uint8))
        >>> tuple(patches.shape), grid, settings.tokens(grid)
        ((320, 1536), (16, 20), 80)
    """

    patch_size: int = 16
    merge_size: int = 2
    temporal_patch_size: int = 2
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ImageSettings:
        """Read preprocessor_config.json; keys that do not concern still images are ignored.

        Raises:
            CheckpointError: a value is missing (a default would be another model's), out of range,
                or requests another kind of preprocessing.
        """
        check_fields(config, _SCHEMA)
        sizes = {key: config[key] for key in ("patch_size", "merge_size", "temporal_patch_size")}
        mean, std = tuple(config["image_mean"]), tuple(config["image_std"])
        return cls(**sizes, image_mean=mean, image_std=std)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of preprocessor_config.json, readable by transformers as well."""
        return {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen3VLProcessor",
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "rescale_factor": 1 / 255,
            "resample": 3,
            "size": {"shortest_edge": 65536, "longest_edge": 16777216},
            **asdict(self),
        }

    def tokens(self, grid: tuple[int, int]) -> int:
        """Return the number of language-model tokens of an image of `grid` patches."""
        return grid[0] * grid[1] // self.merge_size**2

    def tokens_for_size(self, height: int, width: int) -> int:
        """Return the number of tokens of an image of this size in pixels."""
        side = self.patch_size * self.merge_size
        high, wide = smart_size(height, width, side)
        return high * wide // side**2

    def patches(self, image: Frame) -> tuple[Tensor, tuple[int, int]]:
        """Resize, normalize and cut one image.

        Args:
            image: (H, W, 3) uint8 RGB.

        Returns:
            (h * w, 3 * temporal_patch_size * patch_size**2) float32, in the order in which the
            vision tower merges them; and the grid (h, w) in patches.

        Raises:
            ValueError: one side is more than 200 times the other.
        """
        height, width = self.input_size(*image.shape[:2])
        if (height, width) != image.shape[:2]:
            resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
            image = np.asarray(resized)
        pixels = torch.from_numpy(image.copy())
        return self.to_patches(pixels[None])[0], self.grid(height, width)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size in pixels to which an image of this size is resized.

        Raises:
            ValueError: one side is more than 200 times the other.
        """
        return smart_size(height, width, self.patch_size * self.merge_size)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return (h, w) in patches of an image of `input_size`."""
        return height // self.patch_size, width // self.patch_size

    def to_patches(self, pixels: Tensor) -> Tensor:
        """Normalize and cut images of `input_size`.

        Args:
            pixels: (N, H, W, 3) uint8 RGB.

        Returns:
            (N, h * w, 3 * temporal_patch_size * patch_size**2) float32, on the same device, in
            the order in which the vision tower merges them.
        """
        # Rescaling by 1/255 is folded into mean and std, as in transformers: the same roundings.
        mean, std = (_per_channel(v, pixels.device) for v in (self.image_mean, self.image_std))
        normalized = (pixels.permute(0, 3, 1, 2).float() - mean) / std
        merge, side, times = self.merge_size, self.patch_size, self.temporal_patch_size
        high, wide = (length // (merge * side) for length in pixels.shape[1:3])
        patches = normalized.reshape(-1, 3, high, merge, side, wide, merge, side)
        # To (N, high, wide, merge, merge, 3, side, side).
        patches = patches.permute(0, 2, 5, 3, 6, 1, 4, 7)
        patches = patches.unsqueeze(6).expand(*patches.shape[:6], times, side, side)
        return patches.reshape(len(pixels), high * merge * wide * merge, -1)


@lru_cache
def _per_channel(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """Return values for pixels in [0, 255], (3, 1, 1): cached, because a GPU waits for the copy."""
    return (torch.tensor(values, dtype=torch.float32) * 255.0).to(device)[:, None, None]


def smart_size(height: int, width: int, factor: int) -> tuple[int, int]:
    """Return the size in pixels of the model's input: multiples of `factor`, within its bounds.

    Source: smart_resize of qwen-vl-utils 0.0.14, with its bounds of 4 and 16384 tokens.

    Raises:
        ValueError: one side is more than 200 times the other.

    Example:
        >>> smart_size(240, 320, 32)
        (256, 320)
    """
    if max(height, width) / min(height, width) > _MAX_ASPECT:
        raise ValueError(
            f"A frame of {height}x{width} is too long and narrow: "
            f"one side may be at most {_MAX_ASPECT} times the other."
        )
    min_pixels, max_pixels = 4 * factor**2, 16384 * factor**2
    high = max(factor, round(height / factor) * factor)
    wide = max(factor, round(width / factor) * factor)
    if high * wide > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        high = math.floor(height / shrink / factor) * factor
        wide = math.floor(width / shrink / factor) * factor
    elif high * wide < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        high = math.ceil(height * grow / factor) * factor
        wide = math.ceil(width * grow / factor) * factor
    return high, wide


def image_grids(grids: Sequence[tuple[int, int]]) -> Tensor:
    """Return the grids in transformers' form: (N, 3) int64 of (1, h, w)."""
    return torch.tensor([(1, *grid) for grid in grids], dtype=torch.int64)
