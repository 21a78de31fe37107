"""Files of a LeRobot dataset as a whole: true times, complete videos and data, no overlaps."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from robometer_gym.data import read_lerobot, write_video
from tests.data.lerobot_dataset import (
    FPS,
    LENGTHS,
    TOP,
    change_rows,
    shown,
    table,
    video,
    write_dataset,
)
from tests.data.test_video_times import write_at
from tests.data.videos import numbered_frames, read_numbers

pq = pytest.importorskip("pyarrow.parquet")
FIRST_FILE, SECOND_FILE = [0, 1, 2], [3, 4]
"""The episodes of each video."""


def change_spans(folder: Path, spans: dict[int, tuple[Any, Any]]) -> None:
    """Change start and end of episodes in their video."""
    for path in (folder / "meta" / "episodes" / "chunk-000").iterdir():
        rows = pq.read_table(path).to_pylist()
        for row in rows:
            if row["episode_index"] in spans:
                start, end = spans[row["episode_index"]]
                row[f"videos/{TOP}/from_timestamp"] = start
                row[f"videos/{TOP}/to_timestamp"] = end
        table(rows, path)


def change_steps(folder: Path, file: int, change: Any) -> None:
    """Replace the rows of a data file by `change` of them."""
    path = folder / "data" / "chunk-000" / f"file-{file:03d}.parquet"
    table(change(pq.read_table(path).to_pylist()), path)


def read_skipping(folder: Path, caplog: Any) -> tuple[list[list[int]], list[str]]:
    """Return the numbers that the episodes show that can be read, and the warnings of others."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        episodes = read_lerobot(folder, bad="skip")
    numbers = [read_numbers(episode.frames[range(len(episode))]) for episode in episodes]
    return numbers, [message for message in caplog.messages if message.startswith("Skipped. ")]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Return five episodes in two videos, of one camera."""
    return write_dataset(tmp_path / "lamps")


def test_frames_are_taken_by_their_time(dataset):
    """Three quarters of the episodes would show frames of the next one: round errors add up."""
    count, length = 80, 10  # at 30 fps, each takes 333 ms on a clock of milliseconds
    numbers = range(count * length)
    ticks = [333 * (n // length) + round(1000 * (n % length) / 30) for n in numbers]
    path = video(dataset, 0)
    path.unlink()
    write_at(path, ticks, 1000)
    keys = {f"videos/{TOP}/chunk_index": 0, f"videos/{TOP}/file_index": 0}
    keys |= {"data/chunk_index": 0, "data/file_index": 0}
    rows = [
        {"episode_index": e, "length": length, "tasks": ["go"], **keys}
        | {f"videos/{TOP}/from_timestamp": 0.333 * e, f"videos/{TOP}/to_timestamp": 0.333 * (e + 1)}
        for e in range(count)
    ]
    (old,) = (dataset / "meta" / "episodes" / "chunk-000").glob("file-001.parquet")
    old.unlink()
    table(rows, old.with_name("file-000.parquet"))
    info = dataset / "meta" / "info.json"
    text = info.read_text().replace('"fps": 10', '"fps": 30').replace("10.0", "30.0")
    info.write_text(text)
    episodes = read_lerobot(dataset)
    assert len(episodes) == count
    for number, episode in enumerate(episodes):
        expected = list(range(length * number, length * (number + 1)))
        assert read_numbers(episode.frames[range(length)]) == expected


@pytest.mark.parametrize("lost", [[4, 5], [0], [19]])
def test_a_video_that_lost_frames_is_not_read_at_all(dataset, caplog, lost):
    """With bad="skip", other episodes' frames would be read in place of the lost ones."""
    kept = [n for n in range(sum(LENGTHS[:3])) if n not in lost]
    write_video(video(dataset, 0), numbered_frames(20)[kept], FPS)
    numbers, warnings = read_skipping(dataset, caplog)
    assert numbers == [shown(TOP)[e] for e in SECOND_FILE]
    assert len(warnings) == len(FIRST_FILE)
    assert all("file-000.mp4" in warning for warning in warnings)
    assert all("frames are missing, maybe of any of them" in warning for warning in warnings)


def test_an_episode_in_which_a_frame_is_missing_is_skipped_alone(dataset, caplog):
    """A gap in the times of one episode would shift its frames, or cost the whole file."""
    kept = [n for n in range(20) if n != 10]  # of episode 1
    video(dataset, 0).unlink()
    path = write_at(dataset / "new.mp4", [60 * n for n in kept], 600)
    path.rename(video(dataset, 0))
    numbers, warnings = read_skipping(dataset, caplog)
    assert [len(each) for each in numbers] == [LENGTHS[e] for e in (0, 2, 3, 4)]
    (warning,) = warnings
    assert "Episode 1 of " in warning
    assert "file-000.mp4 has no frame at 1.000 seconds, or has others in between" in warning


def test_spans_that_overlap_are_refused(dataset, caplog):
    """An episode would end with frames of another one, labeled as its own."""
    change_spans(dataset, {1: (0.6, 1.8)})
    numbers, warnings = read_skipping(dataset, caplog)
    assert numbers == [shown(TOP)[e] for e in (2, 3, 4)]
    assert ["episodes 0 and 1 overlap in" in warning for warning in warnings] == [True, True]


def test_spans_that_are_no_frames_times_are_refused(dataset, caplog):
    """Frames would be taken from between the episode's own."""
    write_video(video(dataset, 1), numbered_frames(41)[20:], FPS)  # longer than its episodes
    change_spans(dataset, {4: (0.95, 1.55)})
    numbers, warnings = read_skipping(dataset, caplog)
    assert numbers == [shown(TOP)[e] for e in (0, 1, 2, 3)]
    (warning,) = warnings
    assert "file-001.mp4 has no frame at 0.950 seconds" in warning


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ((None, None), "must have a start and an end, got None and None"),
        ((0.0, None), "must have a start and an end, got 0.0 and None"),
        ((float("nan"), 0.7), "must have a start and an end, got nan and 0.7"),
        ((0.0, float("inf")), "must have a start and an end, got 0.0 and inf"),
    ],
)
def test_an_episode_without_a_video_is_skipped_alone(dataset, caplog, span, message):
    """One null, as after a merge of datasets, would make the whole dataset unreadable."""
    change_spans(dataset, {3: span})
    numbers, warnings = read_skipping(dataset, caplog)
    assert numbers == [shown(TOP)[e] for e in (0, 1, 2, 4)]
    (warning,) = warnings
    assert message in warning


@pytest.mark.parametrize("key", ["length", "tasks", f"videos/{TOP}/file_index"])
def test_one_null_costs_one_episode(dataset, caplog, key):
    """One null in the metadata would stop everything."""
    path = dataset / "meta" / "episodes" / "chunk-000" / "file-001.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[1][key] = None
    table(rows, path)
    numbers, warnings = read_skipping(dataset, caplog)
    assert numbers == [shown(TOP)[e] for e in (0, 2, 3, 4)]
    assert len(warnings) == 1


def test_an_episode_that_is_listed_twice_is_refused(dataset, caplog):
    """An episode would be trained on twice, or under another one's task."""
    change_rows(dataset, 1, episode_index=1)
    numbers, warnings = read_skipping(dataset, caplog)
    assert numbers == [shown(TOP)[e] for e in (2, 3, 4)]
    assert ["must be >= 0 and unique, got 1" in warning for warning in warnings] == [True, True]


@pytest.mark.parametrize("start", [0.5, 0.9])
def test_a_video_that_is_broken_inside_is_skipped(dataset, caplog, start):
    """The header is complete, so a training would stop at the first frame, hours later."""
    path = video(dataset, 0)
    data = bytearray(path.read_bytes())
    end = data.index(b"moov") - 4
    begin = data.index(b"mdat") + 4
    at = begin + int(start * (end - begin))
    data[at:end] = bytes(end - at)
    path.write_bytes(data)
    numbers, warnings = read_skipping(dataset, caplog)
    assert numbers == [shown(TOP)[e] for e in SECOND_FILE]
    assert len(warnings) == len(FIRST_FILE)


# --- success ---


def last_step(episode: int, step: int) -> bool:
    """Succeed at the last step of every episode."""
    return step == LENGTHS[episode] - 1


@pytest.fixture
def reporting(tmp_path: Path) -> Path:
    """Return a dataset with `next.success`, in which every episode succeeds."""
    return write_dataset(tmp_path / "set", succeeds=last_step)


def test_an_episode_that_is_missing_from_its_data_file_is_no_failure(reporting, caplog):
    """A success would be trained on as a failure."""
    change_steps(reporting, 0, lambda steps: [s for s in steps if s["episode_index"] != 1])
    with pytest.raises(ValueError, match=r"Episode 1 .*has 0 rows of episode 1; expected 12\."):
        read_lerobot(reporting)
    episodes = read_lerobot(reporting, bad="skip")
    assert [episode.outcome for episode in episodes] == ["successful"] * 4


def test_an_episode_whose_last_steps_are_missing_is_no_failure(reporting):
    """The success is at the last step, and would be lost with it."""
    change_steps(reporting, 1, lambda steps: steps[:-1])
    with pytest.raises(ValueError, match=r"Episode 4 .*has 5 rows of episode 4; expected 6\."):
        read_lerobot(reporting)


def test_an_unknown_success_is_no_failure(reporting):
    """Steps that nothing is known of would make an episode a failure."""

    def forget(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [s | {"next.success": None} if s["episode_index"] == 2 else s for s in steps]

    change_steps(reporting, 0, forget)
    with pytest.raises(ValueError, match=r"Episode 2 .*file-000\.parquet has no next\.success for"):
        read_lerobot(reporting)
    assert len(read_lerobot(reporting, bad="skip")) == 4


def test_a_missing_data_file_costs_its_episodes(reporting, caplog):
    """`--skip-bad` would stop at a file that was not downloaded."""
    (reporting / "data" / "chunk-000" / "file-001.parquet").unlink()
    assert len(read_lerobot(reporting, bad="skip")) == 4


@pytest.mark.parametrize("template", ["../../{video_key}.mp4", "/etc/{video_key}", "{video_key}"])
def test_a_path_that_leads_out_of_the_dataset_is_refused(tmp_path, template):
    """A downloaded dataset could read any file of the user's."""
    camera = "../outside" if template == "{video_key}" else TOP
    folder = write_dataset(tmp_path / "set", succeeds=last_step)
    path = folder / "meta" / "info.json"
    text = path.read_text().replace(TOP, camera)
    path.write_text(json.dumps(json.loads(text) | {"video_path": template}))
    for path in (folder / "meta" / "episodes" / "chunk-000").iterdir():
        rows = pq.read_table(path).to_pylist()
        table([{k.replace(TOP, camera): v for k, v in row.items()} for row in rows], path)
    with pytest.raises(ValueError, match="must be inside the folder of the dataset"):
        read_lerobot(folder)
