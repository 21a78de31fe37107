"""From patches to the features that the language model reads in a picture's place.

Runs the layers of transformers' Qwen3-VL vision tower, with two differences that change speed and
not numbers: the patch embedding is a matrix product instead of a convolution, and pictures of one
size go through attention together instead of one by one. Knows nothing of text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Qwen3VLModel

__all__ = [
    "Grid",
    "ImageFeatures",
    "Places",
    "Rotate",
    "encode_equal",
    "encode_images",
    "places",
    "rotated",
]

Grid = tuple[int, int]
Rotate = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From queries and keys, and the cosine and sine of their angles, to both turned: `rotated`."""


class Places(NamedTuple):
    """Where the P patches of a picture stand, for any picture of one size.

    Attributes:
        embedding: (P, C), what is added to each patch, of the tower's dtype.
        cos: (P, C / heads / 2) float32, of the rotary angles.
        sin: (P, C / heads / 2) float32, likewise.
    """

    embedding: Tensor
    cos: Tensor
    sin: Tensor


class ImageFeatures(NamedTuple):
    """What the language model is given of N pictures, in their order.

    Attributes:
        embeddings: (M, D), M being the tokens of all pictures.
        deepstack: per early layer of the language model, (M, D) to be added after it.
    """

    embeddings: Tensor
    deepstack: tuple[Tensor, ...]


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn queries and keys by the angles of their patches' places.

    Args:
        x: (..., P, C).
        cos: (P, C / 2) float32.
        sin: (P, C / 2) float32.
    """
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1).to(x.dtype)


def encode_images(backbone: Qwen3VLModel, patches: Tensor, grids: Sequence[Grid]) -> ImageFeatures:
    """Encode pictures of any sizes.

    Args:
        backbone: whose vision tower to run.
        patches: (P, 1536), the patches of all pictures, on the tower's device.
        grids: per picture, (h, w) in patches.

    Source: Qwen3VLVisionModel.forward of transformers 5.23.
    """
    visual: Any = backbone.visual
    counts = [high * wide for high, wide in grids]
    each = patches.split(counts)
    same: dict[Grid, list[int]] = {}
    for picture, grid in enumerate(grids):
        same.setdefault(grid, []).append(picture)
    if len(same) == 1:
        equal = patches.unflatten(0, (len(grids), -1))
        return encode_equal(visual, equal, places(visual, grids[0]))
    encoded: list[Any] = [None] * len(grids)
    for grid, pictures in same.items():
        equal = torch.stack([each[i] for i in pictures])
        levels = encode_equal(visual, equal, places(visual, grid))
        together = torch.stack([levels.embeddings, *levels.deepstack])
        for picture, features in zip(pictures, together.chunk(len(pictures), dim=1), strict=True):
            encoded[picture] = features
    embeddings, *deepstack = torch.cat(encoded, dim=1)
    return ImageFeatures(embeddings, tuple(deepstack))


def places(visual: Any, grid: Grid) -> Places:
    """Return what depends on a picture's size alone: of (h, w) patches."""
    embedding = _position_embedding(visual, grid).to(visual.pos_embed.weight.dtype)
    return Places(embedding, *_angles(visual, grid))


def encode_equal(
    visual: Any, patches: Tensor, where: Places, rotate: Rotate = rotated
) -> ImageFeatures:
    """Encode pictures of one size.

    Args:
        visual: the vision tower.
        patches: (N, P, 1536), on its device.
        where: `places` of that size.
        rotate: computes what `rotated` does, perhaps faster.
    """
    projection = visual.patch_embed.proj
    x = functional.linear(
        patches.to(projection.weight.dtype), projection.weight.flatten(1), projection.bias
    )
    x = x + where.embedding.to(x.dtype)
    deepstack: list[Tensor] = []
    for number, block in enumerate(visual.blocks):
        x = x + _attend(block.attn, block.norm1(x), where, rotate)
        x = x + block.mlp(block.norm2(x))
        if number in visual.deepstack_visual_indexes:
            merger = visual.deepstack_merger_list[len(deepstack)]
            deepstack.append(merger(x.flatten(0, 1)))
    return ImageFeatures(visual.merger(x.flatten(0, 1)), tuple(deepstack))


def _attend(layer: Any, x: Tensor, where: Places, rotate: Rotate) -> Tensor:
    """Let the patches of each picture, (N, P, C), attend to one another."""
    qkv = layer.qkv(x).unflatten(-1, (3, layer.num_heads, -1))
    qkv = qkv.permute(2, 0, 3, 1, 4)  # (3, N, heads, P, C / heads)
    query, key = rotate(qkv[:2], where.cos, where.sin)
    mixed = functional.scaled_dot_product_attention(query, key, qkv[2])
    out: Tensor = layer.proj(mixed.transpose(1, 2).flatten(2))
    return out


def _rows_and_columns(visual: Any, grid: Grid) -> tuple[Tensor, Tensor]:
    """Row and column of each patch, (P,) each: the patches that are merged stand together."""
    device, merge = visual.pos_embed.weight.device, visual.spatial_merge_size
    places = torch.arange(grid[0] * grid[1], device=device).reshape(
        grid[0] // merge, merge, grid[1] // merge, merge
    )
    places = places.transpose(1, 2).flatten()
    return places // grid[1], places % grid[1]


def _angles(visual: Any, grid: Grid) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles, (P, C / heads / 2) float32 each."""
    frequencies = visual.rotary_pos_emb.inv_freq.float()
    turned = [place[:, None] * frequencies for place in _rows_and_columns(visual, grid)]
    angles = torch.cat(turned, dim=-1)
    return angles.cos(), angles.sin()


def _position_embedding(visual: Any, grid: Grid) -> Tensor:
    """The learned grid of embeddings, interpolated to this picture's: (P, C)."""
    side = visual.num_grid_per_side
    axes = []
    for place, length in zip(_rows_and_columns(visual, grid), grid, strict=True):
        # From edge to edge, as linspace(0, side - 1, length) does.
        at = torch.linspace(0, side - 1, length, dtype=torch.float32, device=place.device)[place]
        low = at.long().clamp(max=side - 1)
        axes.append(((low, 1 - (at - low)), ((low + 1).clamp(max=side - 1), at - low)))
    rows, columns = axes
    weight = visual.pos_embed.weight
    parts = [
        weight[row * side + column] * (of_row * of_column)[:, None]
        for row, of_row in rows
        for column, of_column in columns
    ]
    return torch.stack(parts).sum(0)
