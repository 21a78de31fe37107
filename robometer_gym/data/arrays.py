"""Frames in .npy and .npz files: sizes are checked before memory is taken.

Knows nothing of video codecs. Errors describe the fault; callers add the name of the file.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any

from numpy.lib import format as npy
from numpy.typing import NDArray

__all__ = ["read_arrays"]


def read_arrays(path: Path, max_bytes: int) -> tuple[NDArray[Any], float | None]:
    """Return the frames in a .npy or .npz, unchecked, and their frames per second, if stored.

    Raises:
        ValueError: a broken file, pickled objects, an array of more than `max_bytes`, or no array
            that is clearly the frames.
    """
    if not zipfile.is_zipfile(path):
        with _report_broken(), path.open("rb") as file:
            return _read_array(file, path.stat().st_size, max_bytes), None
    with _report_broken(), zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        names = [name for name in members if name != "fps"]
        if "frames" in names:
            names = ["frames"]
        if len(names) != 1:
            raise _KnownFaultError(
                f"an .npz must hold an array 'frames' or only one array, got {names}."
            )
        arrays = {}
        for name in (*names, *members.keys() & {"fps"}):
            with archive.open(members[name]) as file:
                arrays[name] = _read_array(file, members[name].file_size, max_bytes)
    fps = arrays.get("fps")
    if fps is not None and (fps.size != 1 or fps.dtype.kind not in "iuf"):
        raise ValueError(f"fps must be one number, got {fps.dtype} of shape {fps.shape}.")
    return arrays[names[0]], None if fps is None else float(fps.item())


class _KnownFaultError(ValueError):
    """A fault that is known exactly, so that no general message replaces it."""


@contextmanager
def _report_broken() -> Iterator[None]:
    try:
        yield
    except _KnownFaultError:
        raise
    # NumPy and zipfile raise ValueError, EOFError, TokenError, SyntaxError, BadZipFile, zlib.error,
    # LZMAError, RuntimeError, NotImplementedError and more on such files.
    except Exception as error:
        raise ValueError(
            "it holds no plain array (it is empty, cut off, broken, or full of pickled Python "
            f"objects: {type(error).__name__} {error}). Write it with np.save(path, frames) or "
            "np.savez(path, frames=frames, fps=10), frames being (T, H, W, 3) uint8."
        ) from error


def _read_array(file: IO[bytes], size: int, max_bytes: int) -> NDArray[Any]:
    """Read an array in NumPy's format from a file of `size` bytes."""
    version = npy.read_magic(file)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(file)
    count = prod(shape)
    if count * dtype.itemsize > min(size, max_bytes):
        raise _KnownFaultError(
            f"its header has an array {shape} of {dtype}, {count * dtype.itemsize / 2**30:.3g} "
            f"GiB, and the file has {size / 2**30:.3g} GiB; at most {max_bytes / 2**30:g} are read."
        )
    file.seek(0)
    array: NDArray[Any] = npy.read_array(file, allow_pickle=False)  # a pickle could run any program
    return array
