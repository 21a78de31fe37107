"""Folders of episodes: what is written, what is read, and what is refused."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robometer_gym.data import Episode, EpisodeWriter, VideoFrames, read_episodes, write_video
from robometer_gym.tracking.window import shrink
from robometer_gym.validation import MissingDependencyError

TASK = "open the drawer"


def greys(length: int = 6, first: int = 40) -> np.ndarray:
    """Frames that tell their place, also after a codec: frame t is of the grey first + 20 t."""
    levels = first + 20 * np.arange(length)
    return np.broadcast_to(levels[:, None, None, None], (length, 48, 64, 3)).astype(np.uint8)


def levels(frames: np.ndarray) -> list[int]:
    """The grey of each frame, to the nearest ten."""
    return [round(float(frame.mean()) / 10) * 10 for frame in frames]


def a_list(folder: Path, *lines: Any) -> Path:
    """Write an `episodes.jsonl`; what is no string is turned into JSON."""
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "episodes.jsonl").write_bytes("\n".join(text).encode(errors="surrogateescape"))
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    """What stands in the list."""
    return [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]


def videos(folder: Path) -> list[str]:
    """The names of everything in the folder but the list, hidden files too."""
    return sorted(path.name for path in folder.iterdir() if path.name != "episodes.jsonl")


GOOD = {"video": "film.mp4", "task": TASK, "outcome": "successful"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one video of six frames and no list yet."""
    write_video(tmp_path / "film.mp4", greys(), 10)
    return tmp_path


# --- there and back ---


def test_what_is_written_is_read(tmp_path):
    """A reward model would be trained on other tasks, outcomes or frames than were recorded."""
    written = [
        Episode(greys(6), "öffne die Schublade", "successful", None, 0.5),
        Episode(greys(1), TASK, "suboptimal", np.float32(0.25)),  # type: ignore[arg-type]
        Episode(greys(9), 'say "left"\nand \u2028 go', "failure", 0.0, 1.0),
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
    EpisodeWriter(tmp_path).write(Episode(greys(), TASK, "failure", 0.5, 0.75), fps=12.5)
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


def test_frames_are_read_when_they_are_asked_for(tmp_path):
    """Ten thousand videos would have to fit into memory, or frames come in another order."""
    EpisodeWriter(tmp_path).write(Episode(greys(), TASK), fps=10)
    (episode,) = read_episodes(tmp_path)
    assert isinstance(episode.frames, VideoFrames)
    assert levels(episode.frames[[4, 0, 4]]) == [120, 40, 120]


def test_frames_that_are_no_array_can_be_written(folder):
    """A LeRobot dataset, or a part of a folder, could not be written into a new folder."""
    frames = VideoFrames(folder / "film.mp4", start=2)
    EpisodeWriter(folder).write(Episode(frames, TASK), fps=10)
    (episode,) = read_episodes(folder)
    assert levels(episode.frames[range(4)]) == [80, 100, 120, 140]


def test_an_odd_size_comes_back_even(tmp_path):
    """A 65-pixel camera could not be recorded, or its picture would be stretched."""
    film = greys()[:, :47, :63].copy()
    film[:, :, -1] = 250
    EpisodeWriter(tmp_path).write(Episode(film, TASK), fps=10)
    frames = read_episodes(tmp_path)[0].frames[[0]]
    assert frames.shape == (1, 48, 64, 3)
    assert (frames[0, :, -2:] > 235).all()
    assert (frames[0, :, :-4] < 60).all()


def test_a_folder_made_by_hand_needs_three_keys(folder):
    """Users would have to invent rates and cutoffs, or could not note what is theirs."""
    (folder / "more").mkdir()
    write_video(folder / "more" / "film.mkv", greys(3), 10)
    a_list(
        folder,
        GOOD,
        "",
        {**GOOD, "video": "more/film.mkv", "outcome": "failure", "operator": "Ada", "notes": [1]},
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
    (folder / "film.mp4").rename(folder / "store" / "blob")
    (folder / "data").mkdir()
    (folder / "data" / "film.mp4").symlink_to(Path("..") / "store" / "blob")
    (episode,) = read_episodes(a_list(folder / "data", GOOD))
    assert len(episode) == 6


def test_nothing_is_printed_where_there_is_no_terminal(folder, capfd):
    """The logs of a cluster would fill with progress bars."""
    read_episodes(a_list(folder, GOOD))
    assert capfd.readouterr() == ("", "")


# --- what is refused ---


BAD = {
    "no JSON": ("{'video':", r"it must be JSON, got \"\{'video':\" \(Expecting property name"),
    "cut off": (json.dumps(GOOD)[:-20], r"it must be JSON, got '\{.*\(Unterminated string"),
    "a list": ("[1, 2]", r"it must be a JSON object \{\.\.\.\}, got '\[1, 2\]'"),
    "no bytes of text": ("\udcff\udcfe", r"it must be JSON, got"),
    "no task": (
        {"video": "film.mp4", "outcome": "failure", "mine": 1},
        "it lacks task; it has video, outcome, mine",
    ),
    "nothing": ({}, "it lacks video, task, outcome; it has nothing"),
    "null": ({**GOOD, "outcome": None}, "it lacks outcome; it has video, task"),
    "outcome": ({**GOOD, "outcome": "success"}, r"outcome must be one of \('successful', .*'succe"),
    "blank task": ({**GOOD, "task": " "}, "task must say what the robot should do, got ' '"),
    "task": ({**GOOD, "task": 3}, "task must be str, got 3"),
    "video": ({**GOOD, "video": ["film.mp4"]}, r"video must be str, got \['film.mp4'\]"),
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
    "frames": ({**GOOD, "frames": 7}, r"frames says 7, but .*film\.mp4 has 6. Was it replaced"),
    "no file": ({**GOOD, "video": "gone.mp4"}, r"There is no file .*gone\.mp4"),
    "a folder": ({**GOOD, "video": ""}, "There is no file "),
    "broken": ({**GOOD, "video": "broken.mp4"}, r"Cannot read .*broken\.mp4: it is empty, broken"),
}


@pytest.fixture
def with_bad_ones(folder: Path) -> Path:
    """The folder with a video that was cut off, too."""
    (folder / "broken.mp4").write_bytes((folder / "film.mp4").read_bytes()[:-200])
    return folder


@pytest.mark.parametrize("why", BAD)
def test_a_bad_line_is_named(with_bad_ones, why):
    """One bad line of ten thousand could not be found, or would be trained on."""
    line, message = BAD[why]
    folder = a_list(with_bad_ones, GOOD, "", line, GOOD)
    where = re.escape(f"Line 3 of {folder / 'episodes.jsonl'} is no episode: ")
    with pytest.raises(ValueError, match=f"^{where}{message}.*Mend or remove .*bad='skip'"):
        read_episodes(folder)


@pytest.mark.parametrize("inside", ["../film.mp4", "more/../../film.mp4", "absolute"])
def test_a_video_outside_the_folder_is_refused(folder, inside):
    """A downloaded data set could look at any file, and would break when it is moved."""
    data = folder / "data"
    (data / "more").mkdir(parents=True)
    video = str(folder / "film.mp4") if inside == "absolute" else inside
    assert len(VideoFrames(data / video)) == 6
    message = f"Line 1 of .*video must be a path inside the folder, got {re.escape(repr(video))}"
    with pytest.raises(ValueError, match=message):
        read_episodes(a_list(data, {**GOOD, "video": video}))


def test_bad_ones_can_be_skipped_and_are_named(with_bad_ones, caplog):
    """A night's download would be lost for one broken video, or lose half of it silently."""
    bad = [line for line, _ in BAD.values()]
    folder = a_list(with_bad_ones, GOOD, *bad, {**GOOD, "outcome": "failure"})
    with caplog.at_level(logging.WARNING):
        episodes = read_episodes(folder, bad="skip")
    assert [episode.outcome for episode in episodes] == ["successful", "failure"]
    *each, last = caplog.messages
    assert len(each) == len(bad) == 20
    for number, message in enumerate(each, 2):
        assert message.startswith(f"Skipped. Line {number} of {folder / 'episodes.jsonl'} is no")
    assert "gone.mp4" in "".join(each)
    assert last == f"Skipped 20 of the 22 episodes in {folder}."


def test_nothing_is_said_when_nothing_is_skipped(folder, caplog):
    """A warning that always comes is read by nobody."""
    with caplog.at_level(logging.WARNING):
        read_episodes(a_list(folder, GOOD), bad="skip")
    assert caplog.messages == []


@pytest.mark.parametrize("bad", ["ignore", None, True])
def test_an_unknown_choice_for_bad_ones_is_refused(folder, bad):
    """A misspelt "skip" would raise at the first bad line, hours later."""
    with pytest.raises(ValueError, match=f"bad must be 'raise' or 'skip', got {bad!r}"):
        read_episodes(a_list(folder, GOOD), bad=bad)


def test_no_episodes_are_refused(folder):
    """Training would begin with nothing and end in a division by zero."""
    with pytest.raises(ValueError, match=r"episodes\.jsonl has no episode: it is empty"):
        read_episodes(a_list(folder, "", " "))
    with pytest.raises(ValueError, match=r"no episode that can be read: all 2 were skipped"):
        read_episodes(a_list(folder, "{", "[]"), bad="skip")


@pytest.mark.parametrize("bad", ["raise", "skip"])
def test_a_folder_of_another_kind_is_refused(folder, bad):
    """Who gives a LeRobot dataset, or a wrong path, would not learn what was expected."""
    message = r"has no episodes\.jsonl. .*the videos that it names; .*read with read_lerobot"
    with pytest.raises(FileNotFoundError, match=re.escape(str(folder)) + " " + message):
        read_episodes(folder, bad=bad)
    with pytest.raises(FileNotFoundError, match=re.escape(f"There is no folder {folder / 'x'}.")):
        read_episodes(folder / "x", bad=bad)


def test_a_missing_pyav_is_no_bad_episode(folder, monkeypatch):
    """Every episode would be skipped, and the videos blamed."""
    a_list(folder, GOOD)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'robometer-gym\[video\]'"):
        read_episodes(folder, bad="skip")


# --- writing into a folder that is not empty, or is left in the middle ---


def test_numbers_go_on_after_all_that_were_ever_given(tmp_path):
    """An episode would be written over, or an old line name a new video."""
    episode = Episode(greys(), TASK)
    assert EpisodeWriter(tmp_path).write(episode, 10).name == "episode-000000.mp4"
    assert EpisodeWriter(tmp_path).write(episode, 10).name == "episode-000001.mp4"
    write_video(tmp_path / "episode-000004.mp4", greys(2), 10)  # in no list
    assert EpisodeWriter(tmp_path).write(episode, 10).name == "episode-000005.mp4"
    (tmp_path / "episode-000005.mp4").unlink()  # in the list alone
    assert EpisodeWriter(tmp_path).write(episode, 10).name == "episode-000006.mp4"
    (tmp_path / ".episode-000007.mp4").touch()  # left by a killed program
    writer = EpisodeWriter(tmp_path)
    write_video(tmp_path / "episode-000008.mp4", greys(2), 10)  # by somebody, in the meantime
    (tmp_path / ".episode-000009.mp4").touch()
    assert writer.write(episode, 10).name == "episode-000010.mp4"
    assert len(VideoFrames(tmp_path / "episode-000004.mp4")) == 2
    assert len(VideoFrames(tmp_path / "episode-000008.mp4")) == 2


def test_several_writers_share_a_folder(tmp_path):
    """The environments of a vector would write over each other's episodes."""
    writers = [EpisodeWriter(tmp_path) for _ in range(3)]
    for first in (40, 60):
        for number, writer in enumerate(writers):
            writer.write(Episode(greys(3, first), f"task {number}"), 10)
    read = [(e.task, levels(e.frames[[0]])) for e in read_episodes(tmp_path)]
    assert read == [(f"task {n}", [first]) for first in (40, 60) for n in range(3)]
    assert videos(tmp_path) == [f"episode-00000{n}.mp4" for n in range(6)]


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_a_list_edited_by_hand_is_gone_on_with(folder, end):
    """Two episodes would stand in one line, and both be lost."""
    a_list(folder, GOOD)
    (folder / "episodes.jsonl").write_text(json.dumps(GOOD) + end)
    EpisodeWriter(folder).write(Episode(greys(3), TASK), 10)
    EpisodeWriter(folder).write(Episode(greys(4), TASK), 10)
    assert [len(episode) for episode in read_episodes(folder)] == [6, 3, 4]


class Interrupted:
    """Frames whose reading is stopped with Ctrl-C."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, indices: Any) -> Any:
        raise KeyboardInterrupt


def test_an_interrupted_writer_leaves_nothing_behind(tmp_path):
    """Half an episode would be trained on, or the folder not be readable any more."""
    writer = EpisodeWriter(tmp_path)
    writer.write(Episode(greys(), TASK), 10)
    with pytest.raises(KeyboardInterrupt):
        writer.write(Episode(Interrupted(), TASK), 10)
    with pytest.raises(ValueError, match="fps must be a number of frames per second > 0, got 0"):
        writer.write(Episode(greys(), TASK), 0)
    assert videos(tmp_path) == ["episode-000000.mp4"]
    assert len(read_episodes(tmp_path)) == 1
    writer.write(Episode(greys(), TASK), 10)
    assert len(read_episodes(tmp_path)) == 2


WRITE_FOR_EVER = """
import sys
import numpy as np
from robometer_gym.data import Episode, EpisodeWriter

frames = np.random.default_rng(0).integers(0, 256, (120, 64, 64, 3), dtype=np.uint8)
writer = EpisodeWriter(sys.argv[1])
while True:
    writer.write(Episode(frames, "open the drawer"), 10)
"""


def test_a_folder_can_be_read_while_it_is_written_and_after_a_kill(tmp_path):
    """A crash in the night would cost all the episodes of the evening."""
    list_ = tmp_path / "episodes.jsonl"

    def look() -> tuple[int, int]:
        """How many episodes there are, all of them whole, and how many videos are not yet named."""
        episodes = read_episodes(tmp_path) if list_.exists() else []
        assert {len(episode) for episode in episodes} <= {120}
        named = [name for name in videos(tmp_path) if not name.startswith(".")]
        assert {len(VideoFrames(tmp_path / name)) for name in named} <= {120}
        return len(episodes), len(list(tmp_path.glob(".*")))

    for runs in (1, 2, 3):
        process = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path)])
        try:
            deadline = time.monotonic() + 30
            episodes = aside = 0
            while episodes < 3 * runs or aside < runs:
                assert time.monotonic() < deadline, "No video was written aside."
                episodes, aside = look()
                time.sleep(0.002)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        assert look()[0] >= episodes
    assert len({row["video"] for row in rows(tmp_path)}) == len(rows(tmp_path))


def test_shrunk_frames_are_those_that_the_wrapper_shows():
    """A model would be trained on larger pictures than it is asked about, and be slow at both."""
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
