"""Shared-memory transport of frames from worker processes to the main one.

A 320x240 frame costs the main process half a millisecond through a pipe, and a fiftieth of that
through shared memory. Knows nothing of environments.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Mapping
from glob import glob
from typing import Any, NamedTuple

import numpy as np

from robometer_gym.reward_model import Frame
from robometer_gym.wrappers.frame_copier import FrameCopier

__all__ = [
    "FrameBundle",
    "SharedFrameReader",
    "SharedFrameWriter",
    "SharedFramesRef",
    "remove_leftovers",
]

_SHARED_MEMORY = "/dev/shm"  # on Linux; elsewhere a temporary file is mapped


class SharedFramesRef(NamedTuple):
    """The place of a bundle's frames: file, byte offset, and shape by camera."""

    path: str
    offset: int
    shapes: tuple[tuple[str, tuple[int, ...]], ...]


class FrameBundle(dict[str, Frame]):
    """Frames by camera; pickled, they become a `SharedFramesRef`.

    Args:
        frames: name of the camera to (H, W, 3) uint8.
        writer: writes them to shared memory when the bundle is pickled.
    """

    def __init__(self, frames: Mapping[str, Frame], writer: SharedFrameWriter) -> None:
        super().__init__(frames)
        self._writer = writer
        self._ref: SharedFramesRef | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            # Written once: SubprocVecEnv sends the infos of a reset again with each step.
            self._ref = self._ref or self._writer.write(self)
        except OSError:  # no memory left: the frames go through the pipe, slowly
            return dict, (dict(self),)
        return SharedFramesRef, tuple(self._ref)


class SharedFrameWriter:
    """The sender's side: shared memory for two bundles.

    Two, because the last frame of an episode and the first of the next travel together. The bundle
    after the next overwrites a bundle, so the receiver reads each before it requests more.

    Example:
        >>> import pickle
        >>> bundle = FrameBundle({"render": np.full((4, 4, 3), 7, np.uint8)}, SharedFrameWriter())
        >>> ref = pickle.loads(pickle.dumps(bundle))
        >>> int(SharedFrameReader().read(ref)["render"][0, 0, 0])
        7
    """

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._path = ""
        self._bundle_bytes = 0
        self._second = False

    def write(self, frames: Mapping[str, Frame]) -> SharedFramesRef:
        """Write frames where the receiver can read them.

        Raises:
            OSError: there is no memory for them.
        """
        needed = sum(frame.nbytes for frame in frames.values())
        if self._memory is None or needed > self._bundle_bytes:
            self._path, self._memory = _create_memory(2 * needed)
            self._bundle_bytes, self._second = needed, False
        offset = start = self._bundle_bytes if self._second else 0
        self._second = not self._second
        for frame in frames.values():
            np.frombuffer(self._memory, np.uint8, frame.nbytes, start)[:] = frame.reshape(-1)
            start += frame.nbytes
        shapes = tuple((camera, frame.shape) for camera, frame in frames.items())
        return SharedFramesRef(self._path, offset, shapes)


class SharedFrameReader:
    """The receiver's side: reads the bundles of any number of senders."""

    def __init__(self) -> None:
        self._memories: dict[str, mmap.mmap] = {}
        self._copiers: dict[tuple[str, str], FrameCopier] = {}

    def read(self, sent: Mapping[str, Frame] | SharedFramesRef) -> Mapping[str, Frame]:
        """Return the frames, copied out of shared memory if they are there.

        Args:
            sent: a bundle that never left this process, or what it was unpickled to.
        """
        if not isinstance(sent, SharedFramesRef):
            return sent
        memory = self._memories.get(sent.path)
        if memory is None:
            memory = self._memories[sent.path] = _claim_memory(sent.path)
        frames, start = {}, sent.offset
        for camera, shape in sent.shapes:
            size = shape[0] * shape[1] * shape[2]
            # For eight environments of SubprocVecEnv 43 and 49 us per prediction; with
            # frame.copy() 125 and 136 (benchmarks/wrapper_overhead.py).
            copier = self._copiers.setdefault((sent.path, camera), FrameCopier())
            shared = np.frombuffer(memory, np.uint8, size, start).reshape(shape)
            frames[camera] = copier.copy(shared)
            start += size
        return frames


def remove_leftovers(pid: int) -> None:
    """Remove the shared memory of an ended sender that no receiver has claimed.

    Args:
        pid: the sender's process id.
    """
    for path in glob(os.path.join(_folder(), f"frames-{pid}-*")):
        os.unlink(path)


def _folder() -> str:
    return _SHARED_MEMORY if os.path.isdir(_SHARED_MEMORY) else tempfile.gettempdir()


def _create_memory(size: int) -> tuple[str, mmap.mmap]:
    """Create a file and map it. Zeros are written: a full disk raises here, not at a frame."""
    descriptor, path = tempfile.mkstemp("", f"frames-{os.getpid()}-", _folder())
    try:
        with os.fdopen(descriptor, "r+b") as file:
            file.write(bytes(size))
            file.flush()
            return path, mmap.mmap(descriptor, size)
    except OSError:
        os.unlink(path)  # or the remaining memory would be taken as well
        raise


def _claim_memory(path: str) -> mmap.mmap:
    """Map a file and remove its name: the memory is freed once both processes drop it."""
    with open(path, "r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    os.unlink(path)
    return memory
