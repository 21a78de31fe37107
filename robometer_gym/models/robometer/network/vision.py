"""The vision tower: from image patches to the features that the language model reads.

Runs the layers of transformers' Qwen3-VL vision tower, with two differences that change speed and
not numbers: the patch embedding is a matrix product instead of a convolution, and images of one
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
    "ApplyRope",
    "Grid",
    "ImageFeatures",
    "PositionTables",
    "apply_rope",
    "encode_images",
    "encode_same_size",
    "position_tables",
]

Grid = tuple[int, int]
ApplyRope = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Signature of `apply_rope`."""


class PositionTables(NamedTuple):
    """Position embedding and rotary angles of the P patches of an image, for images of one size.

    Attributes:
        embedding: (P, C), added to each patch, of the tower's dtype.
        cos: (P, C / heads / 2) float32, of the rotary angles.
        sin: (P, C / heads / 2) float32, likewise.
    """

    embedding: Tensor
    cos: Tensor
    sin: Tensor


class ImageFeatures(NamedTuple):
    """Features of N images, in their order.

    Attributes:
        embeddings: (M, D), M being the tokens of all images.
        deepstack: per early layer of the language model, (M, D) to be added after it.
    """

    embeddings: Tensor
    deepstack: tuple[Tensor, ...]


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries and keys by the angles of their patches.

    Args:
        x: (..., P, C).
        cos: (P, C / 2) float32.
        sin: (P, C / 2) float32.
    """
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1).to(x.dtype)


def encode_images(backbone: Qwen3VLModel, patches: Tensor, grids: Sequence[Grid]) -> ImageFeatures:
    """Encode images of any sizes.

    Args:
        backbone: contains the vision tower.
        patches: (P, 1536), the patches of all images, on the tower's device.
        grids: per image, (h, w) in patches.

    Source: Qwen3VLVisionModel.forward of transformers 5.23.
    """
    visual: Any = backbone.visual
    per_image = patches.split([high * wide for high, wide in grids])
    by_grid: dict[Grid, list[int]] = {}
    for image, grid in enumerate(grids):
        by_grid.setdefault(grid, []).append(image)
    if len(by_grid) == 1:
        stacked = patches.unflatten(0, (len(grids), -1))
        return encode_same_size(visual, stacked, position_tables(visual, grids[0]))
    encoded: list[Any] = [None] * len(grids)
    for grid, images in by_grid.items():
        stacked = torch.stack([per_image[i] for i in images])
        features = encode_same_size(visual, stacked, position_tables(visual, grid))
        levels = torch.stack([features.embeddings, *features.deepstack])
        for image, chunk in zip(images, levels.chunk(len(images), dim=1), strict=True):
            encoded[image] = chunk
    embeddings, *deepstack = torch.cat(encoded, dim=1)
    return ImageFeatures(embeddings, tuple(deepstack))


def position_tables(visual: Any, grid: Grid) -> PositionTables:
    """Return the tables of images of `grid` patches."""
    embedding = _position_embedding(visual, grid).to(visual.pos_embed.weight.dtype)
    return PositionTables(embedding, *_angles(visual, grid))


def encode_same_size(
    visual: Any, patches: Tensor, tables: PositionTables, rope: ApplyRope = apply_rope
) -> ImageFeatures:
    """Encode images of one size.

    Args:
        visual: the vision tower.
        patches: (N, P, 1536), on its device.
        tables: `position_tables` of that size.
        rope: computes `apply_rope`, perhaps faster.
    """
    projection = visual.patch_embed.proj
    x = functional.linear(
        patches.to(projection.weight.dtype), projection.weight.flatten(1), projection.bias
    )
    x = x + tables.embedding.to(x.dtype)
    deepstack: list[Tensor] = []
    for number, block in enumerate(visual.blocks):
        x = x + _attend(block.attn, block.norm1(x), tables, rope)
        x = x + block.mlp(block.norm2(x))
        if number in visual.deepstack_visual_indexes:
            merger = visual.deepstack_merger_list[len(deepstack)]
            deepstack.append(merger(x.flatten(0, 1)))
    return ImageFeatures(visual.merger(x.flatten(0, 1)), tuple(deepstack))


def _attend(layer: Any, x: Tensor, tables: PositionTables, rope: ApplyRope) -> Tensor:
    """Return attention among the patches of each image, of x (N, P, C)."""
    qkv = layer.qkv(x).unflatten(-1, (3, layer.num_heads, -1))
    qkv = qkv.permute(2, 0, 3, 1, 4)  # (3, N, heads, P, C / heads)
    query, key = rope(qkv[:2], tables.cos, tables.sin)
    mixed = functional.scaled_dot_product_attention(query, key, qkv[2])
    out: Tensor = layer.proj(mixed.transpose(1, 2).flatten(2))
    return out


def _rows_and_columns(visual: Any, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return row and column of each patch, (P,) each: patches to be merged are consecutive."""
    device, merge = visual.pos_embed.weight.device, visual.spatial_merge_size
    index = torch.arange(grid[0] * grid[1], device=device).reshape(
        grid[0] // merge, merge, grid[1] // merge, merge
    )
    index = index.transpose(1, 2).flatten()
    return index // grid[1], index % grid[1]


def _angles(visual: Any, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of the rotary angles, (P, C / heads / 2) float32 each."""
    frequencies = visual.rotary_pos_emb.inv_freq.float()
    per_axis = [index[:, None] * frequencies for index in _rows_and_columns(visual, grid)]
    angles = torch.cat(per_axis, dim=-1)
    return angles.cos(), angles.sin()


def _position_embedding(visual: Any, grid: Grid) -> Tensor:
    """Return the learned grid of embeddings, interpolated to `grid`: (P, C)."""
    side = visual.num_grid_per_side
    axes = []
    for index, length in zip(_rows_and_columns(visual, grid), grid, strict=True):
        # From edge to edge, as linspace(0, side - 1, length) does.
        at = torch.linspace(0, side - 1, length, dtype=torch.float32, device=index.device)[index]
        low = at.long().clamp(max=side - 1)
        axes.append(((low, 1 - (at - low)), ((low + 1).clamp(max=side - 1), at - low)))
    rows, columns = axes
    weight = visual.pos_embed.weight
    corners = [
        weight[row * side + column] * (row_share * column_share)[:, None]
        for row, row_share in rows
        for column, column_share in columns
    ]
    return torch.stack(corners).sum(0)
