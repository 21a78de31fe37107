"""Video files: which are read and refused, and which frames a rate samples."""

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from robometer_gym.data import Video, VideoFrames, read_video, sample_at_fps, write_video
from robometer_gym.validation import MissingDependencyError
from tests.data.videos import FakeContainer, moving_square
from tests.paths import SHARED_DATA

VIDEOS = SHARED_DATA / "videos"


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Write the moving square as an mp4 of 10 frames per second."""
    path = tmp_path / "video.mp4"
    write_video(path, moving_square(), 10)
    return path


# --- sampling ---


@pytest.mark.parametrize(
    ("total", "native_fps", "fps", "expected"),
    [
        (32, 10, 3, [0, 3, 6, 10, 13, 17, 20, 24, 27, 31]),
        (64, 10, 2, [0, 5, 10, 15, 21, 26, 31, 36, 42, 47, 52, 57, 63]),
        (5, 10, 10, [0, 1, 2, 3, 4]),
        (5, 10, 1000, [0, 1, 2, 3, 4]),
        (5, 30, 1, [0, 4]),  # the authors take the first alone
        (27, 120, 3, [0, 26]),
        (1, 10, 3, [0]),
    ],
)
def test_sampling_is_the_authors_rule(total, native_fps, fps, expected):
    """Scores could not be compared with the published ones: they would be of other frames."""
    assert sample_at_fps(total, native_fps, fps) == expected


@pytest.mark.parametrize("name", ["berkeley_rpt_stack_cup", "soar_put_green_stick_in_brown_bowl"])
def test_real_videos_give_the_published_frames(name):
    """A real mp4 would be read with another length or rate than the authors' script reads."""
    if not VIDEOS.is_dir():
        pytest.skip("The two real videos are not here: they lie outside the repository.")
    reference = json.loads((VIDEOS / "reference_outputs.json").read_text())
    (clip,) = [clip for clip in reference["clips"] if clip["video"].startswith(name)]
    video = read_video(VIDEOS / clip["video"])
    assert video.fps == 10
    assert video.sample(clip["sampled_fps"]) == clip["frame_indices"]
    assert video.frames.std() > 20, "The frames are blank."


@pytest.mark.parametrize("rate", [0, -3, float("nan"), float("inf")])
def test_a_rate_that_is_not_positive_is_refused(rate):
    """--fps 0 would end in a division by zero, or silently in a single frame."""
    with pytest.raises(ValueError, match=r"^fps must be a number of frames per second > 0, got"):
        sample_at_fps(10, 10, rate)
    with pytest.raises(ValueError, match="native_fps must be a number of frames per second"):
        sample_at_fps(10, rate, 10)
    with pytest.raises(ValueError, match="fps must be a number of frames per second > 0"):
        Video(moving_square(), rate)


def test_no_frames_cannot_be_sampled():
    """An empty list of indices would reach the model as an empty clip."""
    with pytest.raises(ValueError, match="total must be >= 1 frame, got 0"):
        sample_at_fps(0, 10, 3)


def test_a_video_without_a_rate_gives_all_frames_or_an_error():
    """An explicit --fps would be ignored silently for a .npy."""
    video = Video(moving_square(4), None)
    assert video.sample(None) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"fps=3 needs the video's own rate.*np\.savez"):
        video.sample(3)
    with pytest.raises(ValueError, match="fps must be a number"):
        video.sample(0)


# --- video files ---


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".MP4"])
def test_written_frames_are_read(tmp_path, suffix):
    """The demo's videos could not be scored again, or would have other colors or frames."""
    path = tmp_path / f"video{suffix}"
    write_video(path, moving_square(), 12.5)
    video = read_video(path)
    assert video.fps == pytest.approx(12.5, rel=1e-3)
    assert video.frames.shape == (12, 48, 64, 3)
    assert np.abs(video.frames.astype(int) - moving_square()).mean() < 3


def test_red_stays_red(tmp_path):
    """Swapped channels: the model would look for a blue block."""
    red = np.zeros((5, 32, 32, 3), np.uint8)
    red[..., 0] = 220
    write_video(tmp_path / "red.mp4", red, 10)
    seen = read_video(tmp_path / "red.mp4").frames.reshape(-1, 3).mean(axis=0)
    assert seen[0] > 200
    assert max(seen[1:]) < 30


def test_odd_sizes_are_padded(tmp_path):
    """A 65-pixel render would end in an obscure error of the encoder."""
    write_video(tmp_path / "odd.mp4", list(moving_square(3, 47, 63)), 10)
    assert read_video(tmp_path / "odd.mp4").frames.shape == (3, 48, 64, 3)


def test_a_gif_is_read(tmp_path):
    """A GIF from a paper's page could not be scored."""
    from PIL import Image

    first, *rest = [Image.fromarray(frame) for frame in moving_square(5)]
    path = tmp_path / "video.gif"
    first.save(path, save_all=True, append_images=rest, duration=100)
    video = read_video(path)
    assert video.frames.shape == (5, 48, 64, 3)
    assert video.fps == 10


def test_large_frames_are_shrunk_while_reading(video, tmp_path):
    """A minute of a phone's video would need ten gigabytes."""
    assert read_video(video, frame_size=24).frames.shape == (12, 24, 32, 3)
    assert read_video(video, frame_size=100).frames.shape == (12, 48, 64, 3)
    np.save(tmp_path / "video.npy", moving_square())
    assert read_video(tmp_path / "video.npy", frame_size=24).frames.shape == (12, 24, 32, 3)


@pytest.mark.parametrize("keep", [0, 300, 0.6])
def test_a_broken_video_is_refused(video, keep):
    """Half a download would be scored as if the robot had stopped there."""
    data = video.read_bytes()
    video.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"Cannot read .*video\.mp4: .*cut off"):
        read_video(video)


def test_a_cut_off_stream_is_refused(tmp_path):
    """A file whose index comes first opens well when cut off, and would be scored half."""
    av = pytest.importorskip("av")
    path = tmp_path / "video.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for frame in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="it is cut off: frames lie beyond its end"):
        read_video(path)


def test_corrupt_frames_are_refused(monkeypatch, tmp_path):
    """Green smears from a damaged file would be scored as the robot's behavior."""
    with pytest.raises(ValueError, match="parts of it are lost"):
        read_fake(monkeypatch, tmp_path, FakeContainer([moving_square(1)[0]], corrupt=True))


def test_sound_alone_is_refused(tmp_path):
    """An IndexError would come from inside PyAV."""
    av = pytest.importorskip("av")
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="no frames: it is cut off, or holds only sound"):
        read_video(path)


def read_fake(monkeypatch, tmp_path, container: FakeContainer) -> Video:
    """Read a file that PyAV opens as `container`."""
    av = pytest.importorskip("av")
    monkeypatch.setattr(av, "open", lambda path: container)
    path = tmp_path / "video.webm"
    path.touch()
    return read_video(path)


def test_frames_that_change_size_are_refused(monkeypatch, tmp_path):
    """A recorded video call would end in numpy's "all input arrays must have the same shape"."""
    container = FakeContainer([moving_square(1)[0], moving_square(1, 24, 32)[0]])
    with pytest.raises(ValueError, match="its frames change size"):
        read_fake(monkeypatch, tmp_path, container)


# Each matrix maps the stored (x, y) to the shown position; the numbers are those of a 96x64 frame.
MATRICES: dict[str, tuple[tuple[int, ...], Callable[[np.ndarray], np.ndarray]]] = {
    "upright": ((1, 0, 0, 1, 0, 0), lambda image: image),
    "quarter turn": ((0, 1, -1, 0, 64, 0), lambda image: np.rot90(image, -1)),
    "half turn": ((-1, 0, 0, -1, 96, 64), lambda image: np.rot90(image, 2)),
    "three quarters": ((0, -1, 1, 0, 0, 96), lambda image: np.rot90(image, 1)),
    "left and right": ((-1, 0, 0, 1, 96, 0), lambda image: image[:, ::-1]),
    "top and bottom": ((1, 0, 0, -1, 0, 64), lambda image: image[::-1]),
    "diagonal": ((0, 1, 1, 0, 0, 0), lambda image: image.transpose(1, 0, 2)),
    "other diagonal": ((0, -1, -1, 0, 64, 96), lambda image: np.rot90(image, 2).transpose(1, 0, 2)),
    "zeros": ((0, 0, 0, 0, 0, 0), lambda image: image),
}


def matrix(a: int, b: int, c: int, d: int, x: int, y: int) -> bytes:
    """Return a display matrix as .mp4 stores it."""
    return struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, x << 16, y << 16, 1 << 30)


@pytest.mark.parametrize("how", MATRICES)
def test_a_turned_or_mirrored_video_is_read_as_players_show_it(tmp_path, how):
    """A phone held upright stores frames on their side, a front camera mirrored ones."""
    image = np.full((64, 96, 3), 30, np.uint8)
    image[:16, :16], image[:16, 80:], image[48:, :16] = 100, 170, 240  # three corners differ
    path = tmp_path / "video.mp4"
    write_video(path, np.stack([image] * 3), 10)
    data = path.read_bytes()
    at = data.index(matrix(1, 0, 0, 1, 0, 0), data.index(b"tkhd"))
    numbers, show = MATRICES[how]
    path.write_bytes(data[:at] + matrix(*numbers) + data[at + 36 :])
    for frame in (read_video(path).frames[0], VideoFrames(path)[[0]][0]):
        assert frame.shape == show(image).shape
        assert np.abs(frame.astype(int) - show(image)).mean() < 3


def test_bt709_is_read_with_its_own_matrix(tmp_path):
    """Red of every HD camera would come out as 232 in place of 254."""
    av = pytest.importorskip("av")
    path = tmp_path / "hd.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.colorspace = 1  # BT.709
        frame = av.VideoFrame(64, 48, "yuv420p")
        for plane, value in zip(frame.planes, (63, 102, 240), strict=True):  # red in BT.709
            plane.update(bytes([value]) * plane.buffer_size)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    red, green, blue = read_video(path).frames[0, 20, 20].tolist()
    assert red >= 252
    assert max(green, blue) <= 3


def test_a_video_without_frames_is_refused(monkeypatch, tmp_path):
    """np.stack would complain about "at least one array"."""
    with pytest.raises(ValueError, match="it is empty: it has no frame"):
        read_fake(monkeypatch, tmp_path, FakeContainer([]))


def test_an_unknown_rate_stays_unknown(monkeypatch, tmp_path):
    """An invented rate would give frames wrong times."""
    assert read_fake(monkeypatch, tmp_path, FakeContainer([moving_square(1)[0]])).fps is None


def test_missing_and_foreign_files_are_refused(tmp_path):
    """A typo in the name would be reported as a broken video."""
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nowhere\.mp4\."):
        read_video(tmp_path / "nowhere.mp4")
    with pytest.raises(ValueError, match=r"must be one of \.mp4, .* got \.txt"):
        read_video(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="got no suffix"):
        read_video(tmp_path / "video")
    with pytest.raises(ValueError, match=r"its suffix must be one of \.mp4, \.mov, \.mkv"):
        write_video(tmp_path / "video.avi", moving_square(), 10)


def test_without_pyav_the_error_names_the_extra(monkeypatch, video, tmp_path):
    """A user without the extra would see a ModuleNotFoundError and not know what to install."""
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        MissingDependencyError,
        match=r"^Reading mp4 needs PyAV: pip install 'robometer-gym\[video\]'\.$",
    ):
        read_video(video)
    with pytest.raises(MissingDependencyError, match="Reading mp4 needs PyAV"):
        VideoFrames(video)
    with pytest.raises(MissingDependencyError, match="Writing mp4 needs PyAV"):
        write_video(tmp_path / "new.mp4", moving_square(), 10)
    np.save(tmp_path / "video.npy", moving_square())
    assert len(read_video(tmp_path / "video.npy").frames) == 12, "Arrays need no PyAV."
