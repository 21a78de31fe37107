"""Folders of episodes: writing, reading and refused content."""

import json
import logging
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from robometer_gym.data import Episode, EpisodeWriter, VideoFrames, read_episodes, write_video
from robometer_gym.tracking.window import shrink
from robometer_gym.validation import MissingDependencyError
from tests.data.episodes import GOOD, TASK, gray_frames, levels, rows, write_list


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with one video of six frames and no list yet."""
    write_video(tmp_path / "video.mp4", gray_frames(), 10)
    return tmp_path


# --- writing and reading ---


def test_written_episodes_are_read(tmp_path):
    """A reward model would be trained on other tasks, outcomes or frames than were recorded."""
    written = [
        Episode(gray_frames(6), "öffne die Schublade", "successful", None, 0.5),
        Episode(gray_frames(1), TASK, "suboptimal", np.float32(0.25)),  # type: ignore[arg-type]
        Episode(gray_frames(9), 'call "left"\nand \u2028 go', "failure", 0.0, 1.0),
    ]
    writer = EpisodeWriter(tmp_path / "new" / "folder")
    paths = [writer.write(episode, fps=10) for episode in written]
    assert paths == [writer.folder / f"episode-00000{n}.mp4" for n in range(3)]
    read = read_episodes(writer.folder)
    for there, here in zip(read, written, strict=True):
        assert (there.task, there.outcome) == (here.task, here.outcome)
        assert (there.partial_success, there.cutoff) == (here.partial_success, here.cutoff)
        frames = there.frames[range(len(here))]
        assert frames.shape == (len(here), 48, 64, 3)
        assert frames.dtype == np.uint8
        assert np.abs(frames.astype(int) - np.asarray(here.frames)).max() <= 4


def test_the_list_is_as_documented(tmp_path):
    """Other programs read these lines; a changed key or a lost rate would break them."""
    EpisodeWriter(tmp_path).write(Episode(gray_frames(), TASK, "failure", 0.5, 0.75), fps=12.5)
    (row,) = rows(tmp_path)
    assert row == {
        "video": "episode-000000.mp4",
        "task": TASK,
        "outcome": "failure",
        "partial_success": 0.5,
        "cutoff": 0.75,
        "frames": 6,
        "fps": 12.5,
    }


def test_frames_are_read_on_demand(tmp_path):
    """Ten thousand videos would have to fit into memory, or frames come in another order."""
    EpisodeWriter(tmp_path).write(Episode(gray_frames(), TASK), fps=10)
    (episode,) = read_episodes(tmp_path)
    assert isinstance(episode.frames, VideoFrames)
    assert levels(episode.frames[[4, 0, 4]]) == [120, 40, 120]


def test_frames_that_are_no_array_can_be_written(folder):
    """A LeRobot dataset, or a part of a folder, could not be written into a new folder."""
    frames = VideoFrames(folder / "video.mp4", start=2)
    EpisodeWriter(folder).write(Episode(frames, TASK), fps=10)
    (episode,) = read_episodes(folder)
    assert levels(episode.frames[range(4)]) == [80, 100, 120, 140]


def test_an_odd_size_comes_back_even(tmp_path):
    """A 65-pixel camera could not be recorded, or its frames would be stretched."""
    frames = gray_frames()[:, :47, :63].copy()
    frames[:, :, -1] = 250
    EpisodeWriter(tmp_path).write(Episode(frames, TASK), fps=10)
    frames = read_episodes(tmp_path)[0].frames[[0]]
    assert frames.shape == (1, 48, 64, 3)
    assert (frames[0, :, -2:] > 235).all()
    assert (frames[0, :, :-4] < 60).all()


def test_a_folder_made_by_hand_needs_three_keys(folder):
    """Users would have to invent rates and cutoffs, or could not add keys of their own."""
    (folder / "more").mkdir()
    write_video(folder / "more" / "video.mkv", gray_frames(3), 10)
    write_list(
        folder,
        GOOD,
        "",
        {**GOOD, "video": "more/video.mkv", "outcome": "failure", "operator": "Ada", "notes": [1]},
        {**GOOD, "frames": None, "cutoff": None, "fps": None, "partial_success": None},
        {**GOOD, "partial_success": 1, "cutoff": 1, "frames": 6},
    )
    assert [(len(e), e.outcome, e.partial_success, e.cutoff) for e in read_episodes(folder)] == [
        (6, "successful", None, 1.0),
        (3, "failure", None, 1.0),
        (6, "successful", None, 1.0),
        (6, "successful", 1, 1),
    ]


def test_a_linked_video_is_inside(folder):
    """The Hugging Face cache, where every file is a link, could not be read."""
    (folder / "store").mkdir()
    (folder / "video.mp4").rename(folder / "store" / "blob")
    (folder / "data").mkdir()
    (folder / "data" / "video.mp4").symlink_to(Path("..") / "store" / "blob")
    (episode,) = read_episodes(write_list(folder / "data", GOOD))
    assert len(episode) == 6


def test_nothing_is_printed_without_a_terminal(folder, capfd):
    """The logs of a cluster would fill with progress bars."""
    read_episodes(write_list(folder, GOOD))
    assert capfd.readouterr() == ("", "")


# --- refused content ---


BAD = {
    "no JSON": ("{'video':", r"it must be JSON, got \"\{'video':\" \(Expecting property name"),
    "cut off": (json.dumps(GOOD)[:-20], r"it must be JSON, got '\{.*\(Unterminated string"),
    "a list": ("[1, 2]", r"it must be a JSON object \{\.\.\.\}, got '\[1, 2\]'"),
    "no bytes of text": ("\udcff\udcfe", r"it must be JSON, got"),
    "no task": (
        {"video": "video.mp4", "outcome": "failure", "mine": 1},
        "it lacks task; it has video, outcome, mine",
    ),
    "nothing": ({}, "it lacks video, task, outcome; it has nothing"),
    "null": ({**GOOD, "outcome": None}, "it lacks outcome; it has video, task"),
    "outcome": ({**GOOD, "outcome": "success"}, r"outcome must be one of \('successful', .*'succe"),
    "blank task": ({**GOOD, "task": " "}, "task must describe what the robot should do, got ' '"),
    "task": ({**GOOD, "task": 3}, "task must be str, got 3"),
    "video": ({**GOOD, "video": ["video.mp4"]}, r"video must be str, got \['video.mp4'\]"),
    "partial": (
        {**GOOD, "partial_success": "half"},
        "partial_success must be int or float, got 'h",
    ),
    "more": (
        {**GOOD, "partial_success": 50},
        r"partial_success must be in \[0, 1\] or None, got 50",
    ),
    "cutoff": ({**GOOD, "cutoff": True}, "cutoff must be int or float, got True"),
    "no cutoff": ({**GOOD, "cutoff": 0}, r"cutoff must be in \(0, 1\], got 0"),
    "NaN": ({**GOOD, "partial_success": float("nan")}, r"partial_success must be in .*got nan"),
    "frames": ({**GOOD, "frames": 7}, r"frames is 7, but .*video\.mp4 has 6. Was it replaced"),
    "no file": ({**GOOD, "video": "gone.mp4"}, r"There is no file .*gone\.mp4"),
    "a folder": ({**GOOD, "video": ""}, "There is no file "),
    "broken": ({**GOOD, "video": "broken.mp4"}, r"Cannot read .*broken\.mp4: it is empty, broken"),
}


@pytest.fixture
def with_bad_video(folder: Path) -> Path:
    """Return the folder with one more video, which is cut off."""
    (folder / "broken.mp4").write_bytes((folder / "video.mp4").read_bytes()[:-200])
    return folder


@pytest.mark.parametrize("why", BAD)
def test_a_bad_line_is_named(with_bad_video, why):
    """One bad line of ten thousand could not be found, or would be trained on."""
    line, message = BAD[why]
    folder = write_list(with_bad_video, GOOD, "", line, GOOD)
    where = re.escape(f"Line 3 of {folder / 'episodes.jsonl'} is no episode: ")
    with pytest.raises(ValueError, match=f"^{where}{message}.*Fix or remove .*bad='skip'"):
        read_episodes(folder)


@pytest.mark.parametrize("inside", ["../video.mp4", "more/../../video.mp4", "absolute"])
def test_a_video_outside_the_folder_is_refused(folder, inside):
    """A downloaded dataset could read any file, and would break when it is moved."""
    data = folder / "data"
    (data / "more").mkdir(parents=True)
    video = str(folder / "video.mp4") if inside == "absolute" else inside
    assert len(VideoFrames(data / video)) == 6
    message = f"Line 1 of .*video must be a path inside the folder, got {re.escape(repr(video))}"
    with pytest.raises(ValueError, match=message):
        read_episodes(write_list(data, {**GOOD, "video": video}))


def test_bad_episodes_can_be_skipped_and_are_named(with_bad_video, caplog):
    """A night's download would be lost for one broken video, or lose half of it silently."""
    bad = [line for line, _ in BAD.values()]
    folder = write_list(with_bad_video, GOOD, *bad, {**GOOD, "outcome": "failure"})
    with caplog.at_level(logging.WARNING):
        episodes = read_episodes(folder, bad="skip")
    assert [episode.outcome for episode in episodes] == ["successful", "failure"]
    *each, last = caplog.messages
    assert len(each) == len(bad) == 20
    for number, message in enumerate(each, 2):
        assert message.startswith(f"Skipped. Line {number} of {folder / 'episodes.jsonl'} is no")
    assert "gone.mp4" in "".join(each)
    assert last == f"Skipped 20 of the 22 episodes in {folder}."


def test_nothing_is_logged_when_nothing_is_skipped(folder, caplog):
    """A warning that always comes would be ignored."""
    with caplog.at_level(logging.WARNING):
        read_episodes(write_list(folder, GOOD), bad="skip")
    assert caplog.messages == []


@pytest.mark.parametrize("bad", ["ignore", None, True])
def test_an_unknown_choice_for_bad_episodes_is_refused(folder, bad):
    """A misspelled "skip" would raise at the first bad line, hours later."""
    with pytest.raises(ValueError, match=f"bad must be 'raise' or 'skip', got {bad!r}"):
        read_episodes(write_list(folder, GOOD), bad=bad)


def test_no_episodes_are_refused(folder):
    """Training would begin with nothing and end in a division by zero."""
    with pytest.raises(ValueError, match=r"episodes\.jsonl has no episode: it is empty"):
        read_episodes(write_list(folder, "", " "))
    with pytest.raises(ValueError, match=r"no episode that can be read: all 2 were skipped"):
        read_episodes(write_list(folder, "{", "[]"), bad="skip")


@pytest.mark.parametrize("bad", ["raise", "skip"])
def test_a_folder_without_a_list_is_refused(folder, bad):
    """The error for a LeRobot dataset, or a wrong path, would not name the expected content."""
    message = r"has no episodes\.jsonl. .*the videos that it names; .*with read_lerobot"
    with pytest.raises(FileNotFoundError, match=re.escape(str(folder)) + " " + message):
        read_episodes(folder, bad=bad)
    with pytest.raises(FileNotFoundError, match=re.escape(f"There is no folder {folder / 'x'}.")):
        read_episodes(folder / "x", bad=bad)


def test_a_missing_pyav_is_not_a_bad_episode(folder, monkeypatch):
    """Every episode would be skipped, and the videos blamed."""
    write_list(folder, GOOD)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'robometer-gym\[video\]'"):
        read_episodes(folder, bad="skip")


def test_shrunk_frames_are_those_of_the_wrapper():
    """A model would be trained on larger frames than it scores, and be slow at both."""
    frames = np.random.default_rng(0).integers(0, 256, (4, 60, 80, 3), np.uint8)
    small = Episode(frames, "open the drawer", "failure", 0.5, 0.75).shrink(30)
    assert (len(small), small.outcome, small.partial_success, small.cutoff) == (
        4,
        "failure",
        0.5,
        0.75,
    )
    np.testing.assert_array_equal(small.frames[[2, 0]], [shrink(frames[i], 30) for i in (2, 0)])
    np.testing.assert_array_equal(small.shrink(500).frames[[1]], small.frames[[1]])
