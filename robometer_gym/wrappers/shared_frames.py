"""Frames from a worker process to the main one, through memory that both see.

A frame of 320x240 takes half a millisecond of the main process through a pipe, and a fiftieth of
that through shared memory. Knows nothing of environments.
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
from robometer_gym.tracking.window import FrameCopier

__all__ = ["Inbox", "Note", "Outbox", "Parcel", "remove_leftovers"]

_SHARED = "/dev/shm"  # memory that looks like a folder; elsewhere a file is mapped


class Note(NamedTuple):
    """Where the frames of a parcel lie: in which file, from which byte, and of which shapes."""

    path: str
    offset: int
    shapes: tuple[tuple[str, tuple[int, ...]], ...]


class Parcel(dict[str, Frame]):
    """Frames by camera. Within a process they are what they are; pickled, they become a `Note`.

    Args:
        frames: name of the camera to (H, W, 3) uint8.
        outbox: where they are put when the parcel is pickled.
    """

    def __init__(self, frames: Mapping[str, Frame], outbox: Outbox) -> None:
        super().__init__(frames)
        self._outbox = outbox
        self._note: Note | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            # Once: SubprocVecEnv sends the infos of a reset again with each step.
            self._note = self._note or self._outbox.put(self)
        except OSError:  # no room: the frames go through the pipe, slowly
            return dict, (dict(self),)
        return Note, tuple(self._note)


class Outbox:
    """The sender's side: memory for the frames of two parcels.

    Two, because the last frame of an episode and the first of the next travel together. A parcel
    is overwritten by the one after the next, so the receiver has to open each before it asks for
    more.

    Example:
        >>> import pickle
        >>> parcel = Parcel({"render": np.full((4, 4, 3), 7, np.uint8)}, Outbox())
        >>> note = pickle.loads(pickle.dumps(parcel))
        >>> int(Inbox().open(note)["render"][0, 0, 0])
        7
    """

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._path = ""
        self._room = 0  # bytes for one parcel
        self._second = False

    def put(self, frames: Mapping[str, Frame]) -> Note:
        """Write frames where the receiver can read them.

        Raises:
            OSError: there is no memory for them.
        """
        needed = sum(frame.nbytes for frame in frames.values())
        if self._memory is None or needed > self._room:
            self._path, self._memory = _new_memory(2 * needed)
            self._room, self._second = needed, False
        offset = start = self._room if self._second else 0
        self._second = not self._second
        for frame in frames.values():
            np.frombuffer(self._memory, np.uint8, frame.nbytes, start)[:] = frame.reshape(-1)
            start += frame.nbytes
        shapes = tuple((camera, frame.shape) for camera, frame in frames.items())
        return Note(self._path, offset, shapes)


class Inbox:
    """The receiver's side: opens parcels from any number of senders."""

    def __init__(self) -> None:
        self._memories: dict[str, mmap.mmap] = {}
        self._copiers: dict[tuple[str, str], FrameCopier] = {}

    def open(self, sent: Mapping[str, Frame] | Note) -> Mapping[str, Frame]:
        """Return the frames, as they came or copied from where the sender will write again.

        Args:
            sent: a parcel that never left this process, or what it became on its way here.
        """
        if not isinstance(sent, Note):
            return sent
        memory = self._memories.get(sent.path)
        if memory is None:
            memory = self._memories[sent.path] = _claim_memory(sent.path)
        frames, start = {}, sent.offset
        for camera, shape in sent.shapes:
            size = shape[0] * shape[1] * shape[2]
            copier = self._copiers.setdefault((sent.path, camera), FrameCopier())
            seen = np.frombuffer(memory, np.uint8, size, start).reshape(shape)
            frames[camera] = copier.copy(seen)
            start += size
        return frames


def remove_leftovers(pid: int) -> None:
    """Remove the memory of a sender that has ended where no receiver has claimed it.

    Args:
        pid: of the process that sent.
    """
    for path in glob(os.path.join(_folder(), f"frames-{pid}-*")):
        os.unlink(path)


def _folder() -> str:
    return _SHARED if os.path.isdir(_SHARED) else tempfile.gettempdir()


def _new_memory(size: int) -> tuple[str, mmap.mmap]:
    """Make a file of zeros and map it. Written, not just stretched: a full disk is noticed now."""
    descriptor, path = tempfile.mkstemp("", f"frames-{os.getpid()}-", _folder())
    try:
        with os.fdopen(descriptor, "r+b") as file:
            file.write(bytes(size))
            file.flush()
            return path, mmap.mmap(descriptor, size)
    except OSError:
        os.unlink(path)  # or what there was of room would be gone as well
        raise


def _claim_memory(path: str) -> mmap.mmap:
    """Map a file and remove its name: the memory is freed when both processes are done with it."""
    with open(path, "r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    os.unlink(path)
    return memory
