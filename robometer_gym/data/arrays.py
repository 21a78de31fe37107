"""Frames in .npy and .npz files.

Knows nothing of video codecs. Errors describe the fault; callers add the name of the file.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["read_arrays"]


def read_arrays(path: Path) -> tuple[NDArray[Any], float | None]:
    """Return the frames in a .npy or .npz, unchecked, and their frames per second, if stored.

    Raises:
        ValueError: a broken file, pickled objects, or no array that is clearly the frames.
    """
    with path.open("rb") as file:  # np.load would leave a broken file open
        try:
            loaded = np.load(file, allow_pickle=False)  # a pickle could run any program
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                "it holds no plain array (it is empty, cut off, or full of pickled Python "
                "objects). Write it with np.save(path, frames), frames being (T, H, W, 3) uint8."
            ) from error
        return _unpack(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else (loaded, None)


def _unpack(archive: np.lib.npyio.NpzFile) -> tuple[NDArray[Any], float | None]:
    names = [name for name in archive.files if name != "fps"]
    if "frames" in names:
        names = ["frames"]
    if len(names) != 1:
        raise ValueError(f"an .npz must hold an array 'frames' or only one array, got {names}.")
    try:
        frames = archive[names[0]]
        fps = archive["fps"] if "fps" in archive.files else None
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            "its arrays are broken or pickled Python objects. "
            "Write it with np.savez(path, frames=frames, fps=10)."
        ) from error
    if fps is not None and (fps.size != 1 or fps.dtype.kind not in "iuf"):
        raise ValueError(f"fps must be one number, got {fps.dtype} of shape {fps.shape}.")
    return frames, None if fps is None else float(fps.item())
