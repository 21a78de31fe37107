"""Video files: what is read, what is refused, and which frames are shown."""

import json
import os
import pickle
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robometer_gym.data.video import Video, VideoFrames, read_video, sample_at_fps, write_video
from robometer_gym.validation import MissingDependencyError
from tests.paths import SHARED_DATA

VIDEOS = SHARED_DATA / "videos"


def a_film(length: int = 12, height: int = 48, width: int = 64) -> np.ndarray:
    """A white square that wanders over grey: (T, H, W, 3) uint8, gentle to a codec."""
    frames = np.full((length, height, width, 3), 60, np.uint8)
    for step, frame in enumerate(frames):
        frame[16:32, 3 * step : 3 * step + 16] = 230
    return frames


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """The film as an mp4 of 10 frames per second."""
    path = tmp_path / "film.mp4"
    write_video(path, a_film(), 10)
    return path


def saved(path: Path, **arrays) -> Path:
    """Write an .npz."""
    np.savez(path, **arrays)
    return path


# --- sampling ---


@pytest.mark.parametrize(
    ("total", "native_fps", "fps", "expected"),
    [
        (32, 10, 3, [0, 3, 6, 10, 13, 17, 20, 24, 27, 31]),
        (64, 10, 2, [0, 5, 10, 15, 21, 26, 31, 36, 42, 47, 52, 57, 63]),
        (5, 10, 10, [0, 1, 2, 3, 4]),
        (5, 10, 1000, [0, 1, 2, 3, 4]),
        (5, 30, 1, [0]),
        (1, 10, 3, [0]),
    ],
)
def test_sampling_is_the_authors_rule(total, native_fps, fps, expected):
    """Scores could not be compared with the published ones: they speak of other frames."""
    assert sample_at_fps(total, native_fps, fps) == expected


@pytest.mark.parametrize("video", ["berkeley_rpt_stack_cup", "soar_put_green_stick_in_brown_bowl"])
def test_real_videos_give_the_published_frames(video):
    """A real mp4 would be read with another length or rate than the authors' script reads."""
    if not VIDEOS.is_dir():
        pytest.skip("The two real videos are not here: they lie outside the repository.")
    reference = json.loads((VIDEOS / "reference_outputs.json").read_text())
    (clip,) = [clip for clip in reference["clips"] if clip["video"].startswith(video)]
    film = read_video(VIDEOS / clip["video"])
    assert film.fps == 10
    assert film.sample(clip["sampled_fps"]) == clip["frame_indices"]
    assert film.frames.std() > 20, "The pictures are blank."


@pytest.mark.parametrize("rate", [0, -3, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(rate):
    """--fps 0 would end in a division by zero, or in a single frame without a word."""
    with pytest.raises(ValueError, match=r"^fps must be a number of frames per second > 0, got"):
        sample_at_fps(10, 10, rate)
    with pytest.raises(ValueError, match="native_fps must be a number of frames per second"):
        sample_at_fps(10, rate, 10)
    with pytest.raises(ValueError, match="fps must be a number of frames per second > 0"):
        Video(a_film(), rate)


def test_no_frames_cannot_be_sampled():
    """An empty list of indices would reach the model as an empty clip."""
    with pytest.raises(ValueError, match="total must be >= 1 frame, got 0"):
        sample_at_fps(0, 10, 3)


def test_a_video_without_a_rate_gives_all_frames_or_says_why_not():
    """An explicit --fps would be ignored silently for a .npy."""
    film = Video(a_film(4), None)
    assert film.sample(None) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"fps=3 needs the video's own rate.*np\.savez"):
        film.sample(3)
    with pytest.raises(ValueError, match="fps must be a number"):
        film.sample(0)


# --- video files ---


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".MP4"])
def test_what_is_written_is_read(tmp_path, suffix):
    """The demo's videos could not be scored again, or would have other colours or frames."""
    path = tmp_path / f"film{suffix}"
    write_video(path, a_film(), 12.5)
    film = read_video(path)
    assert film.fps == pytest.approx(12.5, rel=1e-3)
    assert film.frames.shape == (12, 48, 64, 3)
    assert np.abs(film.frames.astype(int) - a_film()).mean() < 3


def test_red_stays_red(tmp_path):
    """Swapped channels: the model would look for a blue block."""
    red = np.zeros((5, 32, 32, 3), np.uint8)
    red[..., 0] = 220
    write_video(tmp_path / "red.mp4", red, 10)
    seen = read_video(tmp_path / "red.mp4").frames.reshape(-1, 3).mean(axis=0)
    assert seen[0] > 200
    assert max(seen[1:]) < 30


def test_odd_sizes_are_padded(tmp_path):
    """A 65-pixel render would end in an encoder's riddle."""
    write_video(tmp_path / "odd.mp4", list(a_film(3, 47, 63)), 10)
    assert read_video(tmp_path / "odd.mp4").frames.shape == (3, 48, 64, 3)


def test_a_gif_is_read(tmp_path):
    """A GIF from a paper's page could not be scored."""
    from PIL import Image

    first, *rest = [Image.fromarray(frame) for frame in a_film(5)]
    path = tmp_path / "film.gif"
    first.save(path, save_all=True, append_images=rest, duration=100)
    film = read_video(path)
    assert film.frames.shape == (5, 48, 64, 3)
    assert film.fps == 10


def test_large_frames_are_shrunk_while_reading(film, tmp_path):
    """A minute of a phone's video would need ten gigabytes."""
    assert read_video(film, frame_size=24).frames.shape == (12, 24, 32, 3)
    assert read_video(film, frame_size=100).frames.shape == (12, 48, 64, 3)
    np.save(tmp_path / "film.npy", a_film())
    assert read_video(tmp_path / "film.npy", frame_size=24).frames.shape == (12, 24, 32, 3)


@pytest.mark.parametrize("keep", [0, 300, 0.6])
def test_a_broken_video_is_refused(film, keep):
    """Half a download would be scored as if the robot had stopped there."""
    data = film.read_bytes()
    film.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"Cannot read .*film\.mp4: .*cut off"):
        read_video(film)


def test_a_cut_off_stream_is_refused(tmp_path):
    """A file whose index comes first opens well when cut off, and would be scored half."""
    av = pytest.importorskip("av")
    path = tmp_path / "film.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for frame in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="it is empty, broken or cut off"):
        read_video(path)


def test_corrupt_pictures_are_refused():
    """Green smears from a damaged file would be judged as what the robot did."""
    from robometer_gym.data import video

    class Smear:
        is_corrupt = True

    with pytest.raises(ValueError, match="parts of it are lost"):
        list(video._sound(iter([Smear()])))


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
    with pytest.raises(ValueError, match="no pictures: it is cut off, or holds only sound"):
        read_video(path)


class _Container:
    """A file as PyAV opens it, with pictures that no encoder would write."""

    def __init__(
        self, pictures: list[np.ndarray], rotation: int = 0, corrupt: bool = False, late: int = 0
    ) -> None:
        class Picture:
            is_corrupt = corrupt
            is_discard = False
            size = 1
            pts: int | None = 0

            def __init__(self, image: np.ndarray) -> None:
                self.image = image
                self.rotation = rotation

            def to_ndarray(self, format: str) -> np.ndarray:
                assert format == "rgb24"
                return self.image

        self.pictures = [Picture(image) for image in pictures]
        self.streams = self
        self.video = [self]
        self.average_rate = None
        self.frames = self.duration = len(pictures)
        self.base_rate = self.time_base = Fraction(1)
        self.start_time = 0
        for number, picture in enumerate(self.pictures):
            picture.pts = number + late * (number > 0)

    def decode(self, stream: object):
        return iter(self.pictures)

    def seek(self, offset: int, stream: object) -> None:
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error: object) -> None:
        pass


def opened(monkeypatch, tmp_path, pictures: list[np.ndarray], rotation: int = 0) -> Video:
    """Read a film that decodes to these pictures."""
    av = pytest.importorskip("av")
    monkeypatch.setattr(av, "open", lambda path: _Container(pictures, rotation))
    path = tmp_path / "film.webm"
    path.touch()
    return read_video(path)


def test_frames_that_change_size_are_refused(monkeypatch, tmp_path):
    """A recorded video call would end in numpy's "all input arrays must have the same shape"."""
    with pytest.raises(ValueError, match="its frames change size"):
        opened(monkeypatch, tmp_path, [a_film(1)[0], a_film(1, 24, 32)[0]])


@pytest.mark.parametrize(("rotation", "turns"), [(0, 0), (90, 1), (180, 2), (-90, -1)])
def test_a_phone_held_upright_is_not_scored_sideways(monkeypatch, tmp_path, rotation, turns):
    """Phones film lying and note a quarter turn (counter-clockwise); players heed it."""
    (picture,) = a_film(1)
    read = opened(monkeypatch, tmp_path, [picture], rotation)
    np.testing.assert_array_equal(read.frames[0], np.rot90(picture, turns))


def test_a_video_without_frames_is_refused(monkeypatch, tmp_path):
    """np.stack would complain about "at least one array"."""
    with pytest.raises(ValueError, match="it is empty: it has no frame"):
        opened(monkeypatch, tmp_path, [])


def test_an_unknown_rate_stays_unknown(monkeypatch, tmp_path):
    """An invented rate would place frames at wrong times."""
    assert opened(monkeypatch, tmp_path, [a_film(1)[0]]).fps is None


def test_missing_and_foreign_files_are_refused(tmp_path):
    """A typo in the name would be reported as a broken video."""
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nowhere\.mp4\."):
        read_video(tmp_path / "nowhere.mp4")
    with pytest.raises(ValueError, match=r"must be one of \.mp4, .* got \.txt"):
        read_video(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="got no suffix"):
        read_video(tmp_path / "film")
    with pytest.raises(ValueError, match=r"its suffix must be one of \.mp4, \.mov, \.mkv"):
        write_video(tmp_path / "film.avi", a_film(), 10)


def test_without_pyav_the_way_to_get_it_is_told(monkeypatch, film, tmp_path):
    """A user without the extra would see a ModuleNotFoundError and not know what to install."""
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        MissingDependencyError,
        match=r"^Reading mp4 needs PyAV: pip install 'robometer-gym\[video\]'\.$",
    ):
        read_video(film)
    with pytest.raises(MissingDependencyError, match="Reading mp4 needs PyAV"):
        VideoFrames(film)
    with pytest.raises(MissingDependencyError, match="Writing mp4 needs PyAV"):
        write_video(tmp_path / "new.mp4", a_film(), 10)
    np.save(tmp_path / "film.npy", a_film())
    assert len(read_video(tmp_path / "film.npy").frames) == 12, "Arrays need no PyAV."


# --- single frames ---


def numbered(length: int) -> np.ndarray:
    """Frames that show their number as bright squares, one for each bit: (T, 48, 64, 3) uint8."""
    bits = np.arange(length)[:, None] >> np.arange(12) & 1
    squares = np.where(bits, 220, 40).astype(np.uint8).reshape(length, 3, 4, 1)
    return squares.repeat(16, axis=1).repeat(16, axis=2).repeat(3, axis=3)


def numbers(frames: np.ndarray) -> list[int]:
    """What numbers the frames show."""
    squares = frames.reshape(len(frames), 3, 16, 4, 16, 3).mean(axis=(2, 4, 5))
    return [int(row @ (1 << np.arange(12))) for row in squares.reshape(-1, 12) > 130]


def write_numbers(
    path: Path, length: int = 300, *, times: list[int] | None = None, how: str = "", **options: str
) -> Path:
    """Write frames that show their number, with libx264 at 10 frames per second.

    Args:
        path: where.
        length: how many.
        times: when each is shown, in tenths of a second. None is one after the other.
        how: the file's movflags.
        options: those of libx264, which makes groups of 250 frames with B-frames of itself.
    """
    av = pytest.importorskip("av")
    with av.open(str(path), "w", options={"movflags": how} if how else {}) as container:
        stream = container.add_stream("libx264", rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10)
        for image, time in zip(numbered(length), times or range(length), strict=True):
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts, picture.time_base = time, Fraction(1, 10)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


UNSTEADY = np.cumsum(1 + np.arange(300) % 4).tolist()
FILES: dict[str, dict[str, Any]] = {
    "long.mp4": {},
    "long.mkv": {},
    "short.mov": {"g": "10", "bf": "3"},
    "pyramid.mp4": {"g": "40", "bf": "8", "refs": "6"},
    "open.mp4": {"x264-params": "open-gop=1:keyint=30:bframes=4:scenecut=0"},
    "open.mkv": {"x264-params": "open-gop=1:keyint=30:bframes=4:scenecut=0"},
    "late.mp4": {"times": list(range(500, 800))},
    "late.mkv": {"times": list(range(500, 800))},
    "gap.mp4": {"times": [time + 7 * (time >= 200) for time in range(300)], "g": "50"},
    "unsteady.mp4": {"times": UNSTEADY, "g": "50"},
    "parts.mp4": {"how": "frag_keyframe", "g": "30"},
}


@pytest.mark.parametrize("name", FILES)
def test_single_frames_are_those_asked_for(tmp_path, name):
    """A model would be trained on its neighbour's frames, or on frames in a wrong order."""
    frames = VideoFrames(write_numbers(tmp_path / name, **FILES[name]))
    assert len(frames) == 300
    assert numbers(frames[range(300)]) == list(range(300))
    order = np.random.default_rng(0).permutation(300)
    for wanted in [*order[:16, None], *order.reshape(60, 5)[:8]]:
        assert numbers(frames[wanted]) == wanted.tolist()


def test_frames_come_in_the_order_asked_for_and_again(film):
    """A clip padded with its last frame, or played backwards, would come out sorted."""
    frames = VideoFrames(film)
    whole = read_video(film).frames
    read = frames[(7, 0, np.int64(11), 7, 7)]  # type: ignore[index]
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, whole[[7, 0, 11, 7, 7]])


@pytest.mark.parametrize("name", ["long.mp4", "unsteady.mp4", "open.mkv"])
@pytest.mark.parametrize(("start", "count"), [(0, 1), (37, 90), (249, 2), (299, 1), (120, None)])
def test_a_span_is_its_own_frames(tmp_path, name, start, count):
    """Episodes that share a file, as LeRobot's do, would show the end of the one before."""
    frames = VideoFrames(write_numbers(tmp_path / name, **FILES[name]), start, count)
    stop = 300 if count is None else start + count
    assert len(frames) == stop - start
    assert numbers(frames[range(len(frames))]) == list(range(start, stop))
    assert numbers(frames[[len(frames) - 1]]) == [stop - 1]


def test_a_file_of_one_frame_is_read(tmp_path):
    """An episode that ended at once would end in numpy's "zero-size array"."""
    frames = VideoFrames(write_numbers(tmp_path / "one.mp4", 1))
    assert numbers(frames[[0, 0]]) == [0, 0]


def test_frames_can_be_sent_to_a_worker(film):
    """A DataLoader with workers could not start, or would run out of open files."""
    frames = VideoFrames(film, 2, 5)
    before = frames[[1, 4]]
    copy = pickle.loads(pickle.dumps(frames))
    np.testing.assert_array_equal(copy[[1, 4]], before)
    assert repr(copy) == f"VideoFrames({str(film)!r}, start=2, count=5)"


def test_a_file_that_was_replaced_is_opened_again(tmp_path):
    """After recording again, the old number of frames would be believed."""
    path = write_numbers(tmp_path / "film.mp4", 20)
    assert len(VideoFrames(path)) == 20
    write_numbers(path, 30)
    assert len(VideoFrames(path)) == 30


@pytest.mark.parametrize("indices", [[-1], [0, 12], []])
def test_frames_that_are_not_there_are_refused(film, indices):
    """-1 would be the last frame of the file, not of the episode."""
    with pytest.raises(IndexError, match=r"indices must be in \[0, 12\), at least one; got \["):
        VideoFrames(film)[indices]


def test_a_span_that_is_not_in_the_file_is_refused(film):
    """A dataset half downloaded would be found out hours into training."""
    with pytest.raises(ValueError, match=r"film\.mp4 has 12 frames; frames 10 to 12 were asked"):
        VideoFrames(film, 10, 3)
    with pytest.raises(ValueError, match="has 12 frames; frames 12 to 12 were asked for"):
        VideoFrames(film, 12)
    with pytest.raises(ValueError, match="start must be >= 0 and count >= 1, got -1 and None"):
        VideoFrames(film, -1)
    with pytest.raises(ValueError, match="start must be >= 0 and count >= 1, got 0 and 0"):
        VideoFrames(film, 0, 0)


def test_what_is_no_video_is_refused_at_once(film, tmp_path):
    """A typo in a list of videos would be found out hours into training."""
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nowhere\.mp4\."):
        VideoFrames(tmp_path / "nowhere.mp4")
    os.truncate(film, 300)
    with pytest.raises(
        ValueError, match=r"Cannot read .*film\.mp4: it is empty, broken or cut off"
    ):
        VideoFrames(film)
    (tmp_path / "film.avi").touch()
    with pytest.raises(ValueError, match=r"film\.avi: its suffix must be one of \.mp4, .*\.gif\."):
        VideoFrames(tmp_path / "film.avi")


def test_only_the_header_is_read_at_first_and_a_cut_is_found_later(tmp_path):
    """Opening a large dataset would read all of it; or frames lost would be made up."""
    path = write_numbers(tmp_path / "film.mp4", how="faststart")
    os.truncate(path, int(0.7 * path.stat().st_size))
    frames = VideoFrames(path)
    assert len(frames) == 300
    assert numbers(frames[[3, 50]]) == [3, 50]
    with pytest.raises(ValueError, match=r"Cannot read .*film\.mp4: it is .*cut off"):
        frames[[3, 299]]


def mocked(monkeypatch, tmp_path, container: _Container) -> VideoFrames:
    """The frames of a file that PyAV opens as `container`."""
    av = pytest.importorskip("av")
    monkeypatch.setattr(av, "open", lambda path: container)
    path = tmp_path / "film.mp4"
    path.touch()
    return VideoFrames(path)


def test_single_frames_are_turned_upright(monkeypatch, tmp_path):
    """Episodes filmed with a phone would be trained on sideways, and scored upright."""
    (picture,) = a_film(1)
    frames = mocked(monkeypatch, tmp_path, _Container([picture], rotation=90))
    np.testing.assert_array_equal(frames[[0]][0], np.rot90(picture))


def test_single_frames_that_are_broken_are_refused(monkeypatch, tmp_path):
    """A model would be trained on green smears."""
    frames = mocked(monkeypatch, tmp_path, _Container(list(a_film(2)), corrupt=True))
    with pytest.raises(ValueError, match=r"Cannot read .*film\.mp4: it is broken: parts of it"):
        frames[[0]]


@pytest.mark.parametrize(
    ("late", "message"), [(1, "a frame is missing in it"), (-5, "it is cut off: it ends before")]
)
def test_a_frame_that_is_not_where_the_header_says_is_not_replaced(
    monkeypatch, tmp_path, late, message
):
    """Another frame would be taken in its place without a word."""
    frames = mocked(monkeypatch, tmp_path, _Container(list(a_film(3)), late=late))
    with pytest.raises(ValueError, match=rf"Cannot read .*film\.mp4: {message}"):
        frames[[1]]


def test_frames_without_times_are_refused(monkeypatch, tmp_path):
    """NumPy would complain about NoneType."""
    container = _Container(list(a_film(3)))
    container.frames = 0
    container.pictures[1].pts = None
    container.demux = container.decode  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="its frames do not say when they are shown"):
        mocked(monkeypatch, tmp_path, container)


# --- arrays ---


def test_arrays_are_read_as_they_are(tmp_path):
    """Frames that come from a simulator would be changed on the way."""
    np.save(tmp_path / "film.npy", a_film())
    film = read_video(tmp_path / "film.npy")
    assert np.array_equal(film.frames, a_film())
    assert film.fps is None


def test_an_npz_may_tell_its_rate(tmp_path):
    """--fps could never be used with arrays."""
    film = read_video(saved(tmp_path / "a.npz", frames=a_film(), other=np.zeros(3), fps=20))
    assert film.fps == 20.0
    film = read_video(saved(tmp_path / "b.npz", images=a_film()))
    assert film.fps is None
    assert np.array_equal(film.frames, a_film())


def test_an_npz_must_say_which_array_and_rate(tmp_path):
    """The depth pictures would be scored in place of the colours."""
    with pytest.raises(ValueError, match=r"array 'frames' or only one array, got \['a', 'b'\]"):
        read_video(saved(tmp_path / "a.npz", a=a_film(), b=a_film()))
    with pytest.raises(ValueError, match="fps must be one number, got float64 of shape \\(2,\\)"):
        read_video(saved(tmp_path / "b.npz", frames=a_film(), fps=np.ones(2)))
    with pytest.raises(ValueError, match="fps must be a number of frames per second > 0"):
        read_video(saved(tmp_path / "c.npz", frames=a_film(), fps=0))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (a_film()[0], r"got \(48, 64, 3\) uint8. This is one picture: frames\[None\]"),
        (np.moveaxis(a_film(), -1, 1), r"got \(12, 3, 48, 64\) uint8. Transpose.*moveaxis"),
        (a_film() / 255, r"got \(12, 48, 64, 3\) float64. Convert floats.*\* 255"),
        (a_film()[..., :1], r"got \(12, 48, 64, 1\) uint8. Repeat grey pictures"),
        (a_film()[:0], r"got \(0, 48, 64, 3\) uint8. Give RGB pictures"),
        (np.float64(3), r"got \(\) float64. "),
    ],
)
def test_a_wrong_array_is_refused_with_a_cure(tmp_path, frames, message):
    """The model would be shown stripes, or the user numpy's complaint about axes."""
    np.save(tmp_path / "film.npy", frames)
    with pytest.raises(
        ValueError, match=rf"Cannot read .*frames must be \(T, H, W, 3\).*{message}"
    ):
        read_video(tmp_path / "film.npy")
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "film.mp4", frames, 10)


def test_frames_that_are_no_array_are_refused():
    """A list of pictures would fail later, at the first index."""
    with pytest.raises(ValueError, match=r"got \(\) list"):
        Video([1, 2], 10.0)  # type: ignore[arg-type]


def test_pickles_are_refused(tmp_path):
    """A downloaded .npy could run any program."""
    objects = np.array([{"a": 1}], dtype=object)
    np.save(tmp_path / "film.npy", objects, allow_pickle=True)
    with pytest.raises(ValueError, match=r"holds no plain array .*pickled"):
        read_video(tmp_path / "film.npy")
    with pytest.raises(ValueError, match="its arrays are broken or pickled"):
        read_video(saved(tmp_path / "film.npz", frames=objects))


@pytest.mark.parametrize("name", ["film.npy", "film.npz"])
@pytest.mark.parametrize("keep", [0, 10, 500])
def test_broken_arrays_are_refused(tmp_path, name, keep):
    """A full disk's half file would end in zipfile's or pickle's own words."""
    path = tmp_path / name
    np.save(path, a_film()) if name.endswith("y") else np.savez(path, frames=a_film())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="it holds no plain array"):
        read_video(path)


def test_a_video_shows_what_it_is():
    """A notebook would print a million numbers."""
    assert repr(Video(a_film(), None)) == "Video(12 frames of 48x64, unknown fps)"
