"""Drawing of the tabletop: table, blocks and gripper as pixels, with NumPy alone.

Knows nothing of episodes, tasks or success.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from robometer_gym.reward_model import Frame

__all__ = ["draw_gripper", "draw_table"]

# All in pixels.
SIZE = 64
SCALE = 24  # pixels per table unit: the gripper is inside the frame at every position
SPRITE = 16  # side of the square in which a block or the gripper is drawn
FINE = 4  # sprites are drawn in quarters of a pixel, so that slow motion shows

PAINT = {
    "floor": (70, 74, 82),
    "rim": (150, 116, 80),
    "table": (224, 200, 166),
    "shadow": (60, 44, 30),
    "red": (212, 48, 48),
    "green": (44, 158, 76),
    "blue": (44, 96, 212),
    "dark": (34, 36, 44),
    "white": (250, 250, 250),
}


def draw_table(blocks: Mapping[str, NDArray[np.float64]]) -> Frame:
    """Draw the table with its blocks.

    Args:
        blocks: position by color, (2,) in table units: x to the right and y down, from -1 to 1.

    Returns:
        (64, 64, 3) uint8 RGB.
    """
    frame = _table().copy()
    for color, position in blocks.items():
        _draw(frame, color, position)
    return frame


def draw_gripper(scene: Frame, position: NDArray[np.float64]) -> Frame:
    """Return a copy of `scene` with the gripper at `position`, (2,) in table units."""
    frame = scene.copy()
    _draw(frame, "gripper", position)
    return frame


@cache
def _table() -> Frame:
    """Return the empty table, (64, 64, 3) uint8, read-only."""
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    edge = SIZE / 2 - np.maximum(np.abs(x), np.abs(y))  # 0.5 at the frame's border
    light = 1.0 - 0.04 * (x + y) / SIZE - 0.05 * np.clip((6.0 - edge) / 4.0, 0.0, 1.0)
    planks = 1.0 - 0.03 * (np.arange(SIZE) % 16 == 0)[:, None]
    table = np.array(PAINT["table"]) * (light * planks)[..., None]
    table[edge < 3] = PAINT["rim"]
    table[edge < 2] = PAINT["floor"]
    frame: Frame = table.round().astype(np.uint8)
    frame.flags.writeable = False
    return frame


def _draw(frame: Frame, name: str, position: NDArray[np.float64]) -> None:
    """Draw a block or the gripper onto `frame`, with its center at `position` (2,)."""
    quarters = np.rint((position * SCALE + SIZE / 2) * FINE).astype(int)
    (column, row), (dx, dy) = quarters // FINE - SPRITE // 2, quarters % FINE
    paint, transparency = _sprite(name, int(dx), int(dy))
    patch = frame[row : row + SPRITE, column : column + SPRITE]
    patch[:] = patch * transparency + paint


@cache
def _sprite(name: str, dx: int, dy: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the color to add (16, 16, 3) and the transparency (16, 16, 1) of a sprite.

    Drawn in layers, 4 x 4 samples per pixel. `dx` and `dy`: the center's quarters of a pixel.
    """
    samples = (np.arange(SPRITE * FINE) + 0.5) / FINE - SPRITE / 2
    x, y = np.meshgrid(samples - dx / FINE, samples - dy / FINE)
    paint = np.full((SPRITE, SPRITE, 3), 0.5)  # so that the conversion to uint8 rounds
    transparency = np.ones((SPRITE, SPRITE, 1))
    for color, opacity, inside in _layers(name, x, y):
        share = opacity * inside.reshape(SPRITE, FINE, SPRITE, FINE).mean(axis=(1, 3))[..., None]
        paint = paint * (1 - share) + share * np.array(PAINT[color])
        transparency = transparency * (1 - share)
    return paint.astype(np.float32), transparency.astype(np.float32)


def _layers(
    name: str, x: NDArray[np.float64], y: NDArray[np.float64]
) -> list[tuple[str, float, NDArray[np.bool_]]]:
    """Return color, opacity and shape of each layer of a sprite, from the bottom to the top."""
    if name == "gripper":
        radius, shadow = np.hypot(x, y), np.hypot(x - 1, y - 1)
        return [
            ("shadow", 0.35, (shadow > 2.1) & (shadow < 5.2)),
            ("dark", 1.0, (radius > 2.1) & (radius < 5.2)),
            ("white", 1.0, (radius > 2.9) & (radius < 4.2)),
        ]
    extent, shadow = np.maximum(np.abs(x), np.abs(y)), np.maximum(np.abs(x - 1), np.abs(y - 1))
    return [
        ("shadow", 0.35, shadow < 5.75),
        (name, 1.0, extent < 5.75),
    ]
