"""Arrays as videos: .npy and .npz files, and arrays of a wrong shape or type."""

from pathlib import Path

import numpy as np
import pytest

from robometer_gym.data.video import Video, read_video, write_video
from tests.data.videos import moving_square


def save_npz(path: Path, **arrays) -> Path:
    """Write an .npz and return its path."""
    np.savez(path, **arrays)
    return path


def test_arrays_are_read_as_they_are(tmp_path):
    """Frames that come from a simulator would be changed on the way."""
    np.save(tmp_path / "video.npy", moving_square())
    video = read_video(tmp_path / "video.npy")
    assert np.array_equal(video.frames, moving_square())
    assert video.fps is None


def test_an_npz_may_hold_its_rate(tmp_path):
    """--fps could never be used with arrays."""
    video = read_video(
        save_npz(tmp_path / "a.npz", frames=moving_square(), other=np.zeros(3), fps=20)
    )
    assert video.fps == 20.0
    video = read_video(save_npz(tmp_path / "b.npz", images=moving_square()))
    assert video.fps is None
    assert np.array_equal(video.frames, moving_square())


def test_an_npz_must_hold_one_array_and_one_rate(tmp_path):
    """The depth images would be scored in place of the colors."""
    with pytest.raises(ValueError, match=r"array 'frames' or only one array, got \['a', 'b'\]"):
        read_video(save_npz(tmp_path / "a.npz", a=moving_square(), b=moving_square()))
    with pytest.raises(ValueError, match="fps must be one number, got float64 of shape \\(2,\\)"):
        read_video(save_npz(tmp_path / "b.npz", frames=moving_square(), fps=np.ones(2)))
    with pytest.raises(ValueError, match="fps must be a number of frames per second > 0"):
        read_video(save_npz(tmp_path / "c.npz", frames=moving_square(), fps=0))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (moving_square()[0], r"got \(48, 64, 3\) uint8. This is one frame: frames\[None\]"),
        (np.moveaxis(moving_square(), -1, 1), r"got \(12, 3, 48, 64\) uint8. Transpose.*moveaxis"),
        (moving_square() / 255, r"got \(12, 48, 64, 3\) float64. Convert floats.*\* 255"),
        (moving_square()[..., :1], r"got \(12, 48, 64, 1\) uint8. Repeat gray frames"),
        (moving_square()[:0], r"got \(0, 48, 64, 3\) uint8. Pass RGB frames"),
        (np.float64(3), r"got \(\) float64. "),
    ],
)
def test_a_wrong_array_is_refused_with_a_hint(tmp_path, frames, message):
    """The model would get stripes, or the user NumPy's error about axes."""
    np.save(tmp_path / "video.npy", frames)
    with pytest.raises(
        ValueError, match=rf"Cannot read .*frames must be \(T, H, W, 3\).*{message}"
    ):
        read_video(tmp_path / "video.npy")
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "video.mp4", frames, 10)


def test_frames_that_are_no_array_are_refused():
    """A list of frames would fail later, at the first index."""
    with pytest.raises(ValueError, match=r"got \(\) list"):
        Video([1, 2], 10.0)  # type: ignore[arg-type]


def test_pickles_are_refused(tmp_path):
    """A downloaded .npy could run any program."""
    objects = np.array([{"a": 1}], dtype=object)
    np.save(tmp_path / "video.npy", objects, allow_pickle=True)
    with pytest.raises(ValueError, match=r"holds no plain array .*pickled"):
        read_video(tmp_path / "video.npy")
    with pytest.raises(ValueError, match=r"holds no plain array .*pickled"):
        read_video(save_npz(tmp_path / "video.npz", frames=objects))


@pytest.mark.parametrize("name", ["video.npy", "video.npz"])
@pytest.mark.parametrize("keep", [0, 10, 500])
def test_broken_arrays_are_refused(tmp_path, name, keep):
    """A truncated file would end in an error of zipfile or pickle, without the file's name."""
    path = tmp_path / name
    np.save(path, moving_square()) if name.endswith("y") else np.savez(path, frames=moving_square())
    path.write_bytes(path.read_bytes()[:keep])
    short = (name, keep) == ("video.npy", 500)  # its header is complete
    with pytest.raises(
        ValueError, match="its header has an array" if short else "it holds no plain array"
    ):
        read_video(path)


def test_the_repr_of_a_video_is_short():
    """A notebook would print a million numbers."""
    assert repr(Video(moving_square(), None)) == "Video(12 frames of 48x64, unknown fps)"
