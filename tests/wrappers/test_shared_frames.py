"""Shared frames: they arrive unchanged, and no memory stays behind."""

import errno
import mmap
import os
import pickle
import tempfile
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robometer_gym.wrappers import shared_frames as shared_frames
from robometer_gym.wrappers.shared_frames import (
    FrameBundle,
    SharedFrameReader,
    SharedFramesRef,
    SharedFrameWriter,
    remove_leftovers,
)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The folder of the shared memory, to count its files."""
    monkeypatch.setattr(shared_frames, "_SHARED_MEMORY", str(tmp_path))
    return Path(tmp_path)


def image(value: int, height: int = 4, width: int = 5) -> Any:
    rng = np.random.default_rng(value)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def send(writer: SharedFrameWriter, **frames: Any) -> Any:
    """Return the object on the other side of a pipe."""
    return pickle.loads(pickle.dumps(FrameBundle(frames, writer)))


def same(arrived: Any, **frames: Any) -> bool:
    return list(arrived) == list(frames) and all(
        np.array_equal(arrived[name], frame) for name, frame in frames.items()
    )


sizes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3)


@given(st.lists(sizes, min_size=1, max_size=9))
def test_frames_of_any_cameras_and_sizes_arrive_as_they_were(bundles):
    """Frames of a camera that changes its size would be cut, or mixed with another camera's."""
    writer, reader = SharedFrameWriter(), SharedFrameReader()
    for number, shapes in enumerate(bundles):
        frames = {
            f"camera {index}": image(100 * number + index, *shape)
            for index, shape in enumerate(shapes)
        }
        assert same(reader.read(send(writer, **frames)), **frames)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=9))
def test_two_bundles_travel_together(sizes):
    """The first frame of the next episode would be written over the last one of the old."""
    writer, reader = SharedFrameWriter(), SharedFrameReader()
    for number, (last, first) in enumerate(sizes):
        one, two = image(number, last), image(-number - 1 + 1000, first)
        refs = send(writer, render=one), send(writer, render=two)
        assert [same(reader.read(n), render=f) for n, f in zip(refs, (one, two), strict=True)] == [
            True,
            True,
        ]


def test_frames_that_were_read_stay_as_they_are():
    """A frame that is kept for the window would turn into a later one."""
    writer, reader = SharedFrameWriter(), SharedFrameReader()
    kept = []
    for number in range(9):
        kept.append(reader.read(send(writer, render=image(number))))
    assert all(same(arrived, render=image(number)) for number, arrived in enumerate(kept))


def test_a_bundle_is_written_once_however_often_it_is_sent(folder):
    """SubprocVecEnv sends the reset's infos with every step; each would overwrite a newer frame."""
    writer, reader = SharedFrameWriter(), SharedFrameReader()
    old = FrameBundle({"render": image(1)}, writer)
    first = pickle.loads(pickle.dumps(old))
    assert same(reader.read(first), render=image(1))
    last, new = send(writer, render=image(2)), send(writer, render=image(3))
    for _ in range(3):
        assert pickle.loads(pickle.dumps(old)) == first
    assert same(reader.read(last), render=image(2))
    assert same(reader.read(new), render=image(3))


def test_within_a_process_nothing_is_copied():
    """Every frame would be copied twice for no reason."""
    bundle = FrameBundle({"render": image(1)}, SharedFrameWriter())
    assert SharedFrameReader().read(bundle) is bundle


def test_a_read_bundle_leaves_no_file(folder):
    """Shared memory would fill up, run by run, until the machine restarts."""
    writer, reader = SharedFrameWriter(), SharedFrameReader()
    for number in range(3):
        reader.read(send(writer, render=image(number)))
    assert list(folder.iterdir()) == []


def test_an_unread_bundle_can_be_removed(folder):
    """As above, after a worker was killed."""
    (folder / "frames-of-another-program").touch()
    send(SharedFrameWriter(), render=image(1))
    assert len(list(folder.iterdir())) == 2
    remove_leftovers(os.getpid() + 1)
    assert len(list(folder.iterdir())) == 2
    remove_leftovers(os.getpid())
    assert [file.name for file in folder.iterdir()] == ["frames-of-another-program"]


@pytest.mark.parametrize("fails", ["making", "writing"])
def test_without_room_frames_go_through_the_pipe(fails, folder, monkeypatch):
    """A container with 64 MB of shared memory would end the training; or lose what room it has."""

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    if fails == "making":
        monkeypatch.setattr(tempfile, "mkstemp", full)
    else:
        monkeypatch.setattr(mmap, "mmap", full)
    arrived = send(SharedFrameWriter(), render=image(1))
    assert not isinstance(arrived, SharedFramesRef)
    assert same(SharedFrameReader().read(arrived), render=image(1))
    assert list(folder.iterdir()) == []


def test_where_there_is_no_shared_memory_a_file_is_mapped(monkeypatch, tmp_path):
    """Nothing would arrive on a system without /dev/shm."""
    monkeypatch.setattr(shared_frames, "_SHARED_MEMORY", str(tmp_path / "missing"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ref = send(SharedFrameWriter(), render=image(1))
    assert glob(f"{tmp_path}/frames-*") == [ref.path]
    assert same(SharedFrameReader().read(ref), render=image(1))
    assert list(tmp_path.iterdir()) == []
