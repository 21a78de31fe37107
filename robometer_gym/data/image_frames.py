"""ImageFrames: frames that a parquet file of a LeRobot dataset holds as images, read on demand.

Knows nothing of videos or metadata.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robometer_gym.data.decoding import MAX_PIXELS
from robometer_gym.data.lerobot_files import read_table

__all__ = ["ImageFrames"]


class ImageFrames:
    """Frames of an episode that a data file holds as PNG, one per row.

    Each request reads the episode's row groups of the file.
    """

    def __init__(self, path: Path, column: str, episode: int, count: int) -> None:
        self.path, self.column, self.episode, self.count = path, column, episode, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, indices: Sequence[int], /) -> NDArray[np.uint8]:
        """Return the frames at `indices`, in that order: (n, H, W, 3) uint8 RGB, n >= 1.

        Raises:
            IndexError: no index, or one outside [0, len).
            FileNotFoundError: the file is missing.
            ValueError: the file or an image is broken, or the episode has another length.
        """
        wanted = [int(index) for index in indices]
        if not wanted or min(wanted) < 0 or max(wanted) >= self.count:
            raise IndexError(f"indices must be in [0, {self.count}), at least one; got {wanted}.")
        columns = {self.column: "images", "episode_index": "integer"}
        column = read_table(self.path, columns, episode=self.episode).column(self.column)
        if len(column) != self.count:
            raise ValueError(
                f"{self.path} has {len(column)} rows of episode {self.episode}; expected "
                f"{self.count}. Is the file complete?"
            )
        try:
            return np.stack([_decode_image(column[index].as_py()["bytes"]) for index in wanted])
        except Exception as error:  # Pillow raises OSError, SyntaxError, zlib.error and many more
            raise ValueError(
                f"{self.path} holds an image of {self.column!r} that cannot be read: {error}"
            ) from error


def _decode_image(data: bytes) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(data))
    if math.prod(image.size) > MAX_PIXELS:
        raise ValueError(f"it is larger than {MAX_PIXELS} pixels: {image.size}.")
    return np.asarray(image.convert("RGB"))
