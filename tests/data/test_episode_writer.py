"""EpisodeWriter: numbering, several writers, interruptions and killed programs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from robometer_gym.data import Episode, EpisodeWriter, VideoFrames, read_episodes, write_video
from tests.data.episodes import GOOD, TASK, gray_frames, levels, rows, videos, write_list


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with one video of six frames and no list yet."""
    write_video(tmp_path / "video.mp4", gray_frames(), 10)
    return tmp_path


def test_numbers_continue_after_all_used_ones(tmp_path):
    """An episode would be written over, or an old line name a new video."""
    episode = Episode(gray_frames(), TASK)
    assert EpisodeWriter(tmp_path).write(episode, 10).name == "episode-000000.mp4"
    assert EpisodeWriter(tmp_path).write(episode, 10).name == "episode-000001.mp4"
    write_video(tmp_path / "episode-000004.mp4", gray_frames(2), 10)  # in no list
    assert EpisodeWriter(tmp_path).write(episode, 10).name == "episode-000005.mp4"
    (tmp_path / "episode-000005.mp4").unlink()  # in the list alone
    assert EpisodeWriter(tmp_path).write(episode, 10).name == "episode-000006.mp4"
    (tmp_path / ".episode-000007.mp4").touch()  # left by a killed program
    writer = EpisodeWriter(tmp_path)
    write_video(
        tmp_path / "episode-000008.mp4", gray_frames(2), 10
    )  # by another program, in the meantime
    (tmp_path / ".episode-000009.mp4").touch()
    assert writer.write(episode, 10).name == "episode-000010.mp4"
    assert len(VideoFrames(tmp_path / "episode-000004.mp4")) == 2
    assert len(VideoFrames(tmp_path / "episode-000008.mp4")) == 2


def test_several_writers_share_a_folder(tmp_path):
    """The environments of a vector would write over each other's episodes."""
    writers = [EpisodeWriter(tmp_path) for _ in range(3)]
    for first in (40, 60):
        for number, writer in enumerate(writers):
            writer.write(Episode(gray_frames(3, first), f"task {number}"), 10)
    read = [(e.task, levels(e.frames[[0]])) for e in read_episodes(tmp_path)]
    assert read == [(f"task {n}", [first]) for first in (40, 60) for n in range(3)]
    assert videos(tmp_path) == [f"episode-00000{n}.mp4" for n in range(6)]


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_a_list_edited_by_hand_is_continued(folder, end):
    """Two episodes would share one line, and both be lost."""
    write_list(folder, GOOD)
    (folder / "episodes.jsonl").write_text(json.dumps(GOOD) + end)
    EpisodeWriter(folder).write(Episode(gray_frames(3), TASK), 10)
    EpisodeWriter(folder).write(Episode(gray_frames(4), TASK), 10)
    assert [len(episode) for episode in read_episodes(folder)] == [6, 3, 4]


class Interrupted:
    """Frames whose reading is stopped with Ctrl-C."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, indices: Any) -> Any:
        raise KeyboardInterrupt


def test_an_interrupted_writer_leaves_nothing_behind(tmp_path):
    """Half an episode would be trained on, or the folder become unreadable."""
    writer = EpisodeWriter(tmp_path)
    writer.write(Episode(gray_frames(), TASK), 10)
    with pytest.raises(KeyboardInterrupt):
        writer.write(Episode(Interrupted(), TASK), 10)
    with pytest.raises(ValueError, match="fps must be a number of frames per second > 0, got 0"):
        writer.write(Episode(gray_frames(), TASK), 0)
    assert videos(tmp_path) == ["episode-000000.mp4"]
    assert len(read_episodes(tmp_path)) == 1
    writer.write(Episode(gray_frames(), TASK), 10)
    assert len(read_episodes(tmp_path)) == 2


WRITE_FOREVER = """
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

    def count() -> tuple[int, int]:
        """Return the number of episodes, all complete, and of videos being written."""
        episodes = read_episodes(tmp_path) if list_.exists() else []
        assert {len(episode) for episode in episodes} <= {120}
        named = [name for name in videos(tmp_path) if not name.startswith(".")]
        assert {len(VideoFrames(tmp_path / name)) for name in named} <= {120}
        return len(episodes), len(list(tmp_path.glob(".*")))

    for runs in (1, 2, 3):
        left_over = len(list(tmp_path.glob(".*")))
        process = subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, str(tmp_path)])
        try:
            episodes = partial = 0
            while episodes < 3 * runs or partial == left_over:
                assert process.poll() is None, "The writer failed."
                episodes, partial = count()
                time.sleep(0.002)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        assert count()[0] >= episodes
    assert len({row["video"] for row in rows(tmp_path)}) == len(rows(tmp_path))
