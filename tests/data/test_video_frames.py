"""VideoFrames: single frames of a file, in any order, and spans of it."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robometer_gym.data import VideoFrames, read_video, write_video
from tests.data.videos import FakeContainer, moving_square, read_numbers, write_numbered_video

UNEVEN = np.cumsum(1 + np.arange(300) % 4).tolist()
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
    "uneven.mp4": {"times": UNEVEN, "g": "50"},
    "parts.mp4": {"flags": "frag_keyframe", "g": "30"},
}


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Write the moving square as an mp4 of 10 frames per second."""
    path = tmp_path / "video.mp4"
    write_video(path, moving_square(), 10)
    return path


@pytest.mark.parametrize("name", FILES)
def test_single_frames_are_the_requested_ones(tmp_path, name):
    """A model would be trained on the next frame, or on frames in a wrong order."""
    frames = VideoFrames(write_numbered_video(tmp_path / name, **FILES[name]))
    assert len(frames) == 300
    assert read_numbers(frames[range(300)]) == list(range(300))
    order = np.random.default_rng(0).permutation(300)
    for wanted in [*order[:16, None], *order.reshape(60, 5)[:8]]:
        assert read_numbers(frames[wanted]) == wanted.tolist()


def test_frames_come_in_the_requested_order_and_repeat(video):
    """A clip padded with its last frame, or played backwards, would come out sorted."""
    frames = VideoFrames(video)
    whole = read_video(video).frames
    read = frames[(7, 0, np.int64(11), 7, 7)]  # type: ignore[index]
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, whole[[7, 0, 11, 7, 7]])


@pytest.mark.parametrize("name", ["long.mp4", "uneven.mp4", "open.mkv"])
@pytest.mark.parametrize(("start", "count"), [(0, 1), (37, 90), (249, 2), (299, 1), (120, None)])
def test_a_span_is_its_own_frames(tmp_path, name, start, count):
    """Episodes that share a file, as LeRobot's do, would show the end of the one before."""
    frames = VideoFrames(write_numbered_video(tmp_path / name, **FILES[name]), start, count)
    stop = 300 if count is None else start + count
    assert len(frames) == stop - start
    assert read_numbers(frames[range(len(frames))]) == list(range(start, stop))
    assert read_numbers(frames[[len(frames) - 1]]) == [stop - 1]


def test_a_file_of_one_frame_is_read(tmp_path):
    """An episode of one frame would end in NumPy's "zero-size array"."""
    frames = VideoFrames(write_numbered_video(tmp_path / "one.mp4", 1))
    assert read_numbers(frames[[0, 0]]) == [0, 0]


def test_frames_can_be_sent_to_a_worker(video):
    """A DataLoader with workers could not start, or would run out of open files."""
    frames = VideoFrames(video, 2, 5)
    before = frames[[1, 4]]
    copy = pickle.loads(pickle.dumps(frames))
    np.testing.assert_array_equal(copy[[1, 4]], before)
    assert repr(copy) == f"VideoFrames({str(video)!r}, start=2, count=5)"


def test_a_file_that_was_replaced_is_opened_again(tmp_path):
    """After a new recording, the old number of frames would be used."""
    path = write_numbered_video(tmp_path / "video.mp4", 20)
    assert len(VideoFrames(path)) == 20
    write_numbered_video(path, 30)
    assert len(VideoFrames(path)) == 30


@pytest.mark.parametrize("indices", [[-1], [0, 12], []])
def test_indices_outside_the_frames_are_refused(video, indices):
    """-1 would be the last frame of the file, not of the episode."""
    with pytest.raises(IndexError, match=r"indices must be in \[0, 12\), at least one; got \["):
        VideoFrames(video)[indices]


def test_a_span_that_is_not_in_the_file_is_refused(video):
    """A half-downloaded dataset would be noticed hours into training."""
    with pytest.raises(
        ValueError, match=r"video\.mp4 has 12 frames; frames 10 to 12 were requested"
    ):
        VideoFrames(video, 10, 3)
    with pytest.raises(ValueError, match="has 12 frames; frames 12 to 12 were requested"):
        VideoFrames(video, 12)
    with pytest.raises(ValueError, match="start must be an integer >= 0, got -1"):
        VideoFrames(video, -1)
    with pytest.raises(ValueError, match="count must be an integer >= 1, got 0"):
        VideoFrames(video, 0, 0)


def test_a_file_that_is_no_video_is_refused_at_once(video, tmp_path):
    """A typo in a list of videos would be noticed hours into training."""
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nowhere\.mp4\."):
        VideoFrames(tmp_path / "nowhere.mp4")
    os.truncate(video, 300)
    with pytest.raises(
        ValueError, match=r"Cannot read .*video\.mp4: it is empty, broken or cut off"
    ):
        VideoFrames(video)
    (tmp_path / "video.avi").touch()
    with pytest.raises(ValueError, match=r"video\.avi: its suffix must be one of \.mp4, .*\.gif\."):
        VideoFrames(tmp_path / "video.avi")


def test_opening_reads_only_the_header(tmp_path):
    """Opening a large dataset would read all of it."""
    path = write_numbered_video(tmp_path / "video.mp4", flags="faststart")
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start:] = bytes(len(data) - start)  # everything but the header is lost
    path.write_bytes(data)
    frames = VideoFrames(path)
    assert len(frames) == 300
    with pytest.raises(ValueError, match=r"Cannot read .*video\.mp4: it is "):
        frames[[3]]


@pytest.mark.parametrize("name", ["video.mp4", "video.mkv", "video.webm"])
@pytest.mark.parametrize("keep", [0.4, 0.7, 0.9])
def test_a_file_that_is_cut_off_is_refused_when_opened(tmp_path, name, keep):
    """An interrupted download would be read as a shorter video, or be noticed in training."""
    path = write_numbered_video(tmp_path / name.replace("webm", "mkv"), flags="faststart", g="10")
    path = path.rename(tmp_path / name)
    os.truncate(path, int(keep * path.stat().st_size))
    for read in (VideoFrames, read_video):
        with pytest.raises(ValueError, match=rf"Cannot read .*{name}: it is .*cut off"):
            read(path)


def test_a_broken_file_is_read_once(tmp_path, monkeypatch):
    """A list of 3,000 lines with one broken video would take minutes."""
    av = pytest.importorskip("av")
    path = write_numbered_video(tmp_path / "video.mkv")
    os.truncate(path, path.stat().st_size // 2)
    opened, open_file = [], av.open

    def count(name: str) -> Any:
        opened.append(name)
        return open_file(name)

    monkeypatch.setattr(av, "open", count)
    for _ in range(5):
        with pytest.raises(ValueError, match="it is cut off"):
            VideoFrames(path)
    assert len(opened) == 1


def fake_frames(monkeypatch, tmp_path, container: FakeContainer) -> VideoFrames:
    """Open a file that PyAV opens as `container`."""
    av = pytest.importorskip("av")
    monkeypatch.setattr(av, "open", lambda path: container)
    path = tmp_path / "video.mp4"
    path.touch()
    return VideoFrames(path)


def test_single_frames_that_are_broken_are_refused(monkeypatch, tmp_path):
    """A model would be trained on green smears."""
    frames = fake_frames(monkeypatch, tmp_path, FakeContainer(list(moving_square(2)), corrupt=True))
    with pytest.raises(ValueError, match=r"Cannot read .*video\.mp4: it is broken: parts of it"):
        frames[[0]]


@pytest.mark.parametrize(
    ("late", "message"), [(1, "a frame is missing in it"), (-5, "it is cut off: it ends before")]
)
def test_a_frame_that_is_missing_is_not_replaced(monkeypatch, tmp_path, late, message):
    """Another frame would silently take its place."""
    frames = fake_frames(monkeypatch, tmp_path, FakeContainer(list(moving_square(3)), late=late))
    with pytest.raises(ValueError, match=rf"Cannot read .*video\.mp4: {message}"):
        frames[[1]]


def test_frames_without_times_are_refused(monkeypatch, tmp_path):
    """NumPy would complain about NoneType."""
    container = FakeContainer(list(moving_square(3)), timed=False)
    with pytest.raises(ValueError, match="its frames have no times"):
        fake_frames(monkeypatch, tmp_path, container)
