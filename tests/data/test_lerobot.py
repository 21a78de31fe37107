"""LeRobot datasets: frames, tasks and outcomes, and refused content."""

import json
import logging
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from robometer_gym.data import read_lerobot, write_video
from robometer_gym.validation import MissingDependencyError
from tests.data.lerobot_dataset import (
    FPS,
    LENGTHS,
    TASKS,
    TOP,
    WRIST,
    change_info,
    change_rows,
    shown,
    table,
    video,
    write_dataset,
)
from tests.data.videos import numbered_frames, read_numbers

pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Return five episodes in two videos, of one camera."""
    return write_dataset(tmp_path / "lamps")


# --- frames, tasks, outcomes ---


@pytest.mark.parametrize("dtype", ["video", "image"])
@pytest.mark.parametrize("camera", [TOP, WRIST])
def test_each_episode_shows_its_own_frames(tmp_path, dtype, camera):
    """The end of one episode would be taken for the beginning of the next, or another camera."""
    episodes = read_lerobot(write_dataset(tmp_path / "set", (TOP, WRIST), dtype), camera=camera)
    assert [len(episode) for episode in episodes] == LENGTHS
    for episode, expected in zip(episodes, shown(camera), strict=True):
        assert read_numbers(episode.frames[range(len(episode))]) == expected
        assert read_numbers(episode.frames[[len(episode) - 1, 0, 0]]) == [
            expected[index] for index in (-1, 0, 0)
        ]


def test_each_episode_has_its_own_task_and_succeeded(dataset):
    """A model would learn that an opened drawer is a picked cube, or that all demos failed."""
    episodes = read_lerobot(str(dataset))
    assert [episode.task for episode in episodes] == TASKS
    assert {episode.outcome for episode in episodes} == {"successful"}


@pytest.mark.parametrize("boxed", [False, True])
def test_next_success_decides_the_outcome(tmp_path, boxed):
    """Failures from an evaluation would be trained on as demonstrations."""

    def succeeds(episode: int, step: int) -> Any:
        success = (episode, step) in [(0, 6), (1, 3), (4, 5)]
        return [success] if boxed else success

    episodes = read_lerobot(write_dataset(tmp_path / "set", succeeds=succeeds))
    outcomes = [episode.outcome for episode in episodes]
    assert outcomes == ["successful", "successful", "failure", "failure", "successful"]


def test_an_outcome_function_decides(tmp_path):
    """Suboptimal episodes could not be marked; or the data would overrule the user."""
    rows = []

    def outcome(row: dict[str, Any]) -> Any:
        rows.append(row)
        return "suboptimal" if row["length"] > 8 else "failure"

    folder = write_dataset(tmp_path / "set", succeeds=lambda episode, step: True)
    outcomes = [episode.outcome for episode in read_lerobot(folder, outcome=outcome)]
    assert outcomes == ["failure", "suboptimal", "failure", "suboptimal", "failure"]
    assert [row["episode_index"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[1]["tasks"] == ["open the drawer"]
    assert "stats/action/mean" not in rows[0]


def test_the_first_of_several_tasks_is_taken_with_a_warning(dataset, caplog):
    """A user would not know that an episode's second task is not trained on."""
    change_rows(dataset, 1, tasks=["pick the cube", "put it down"])
    assert read_lerobot(dataset)[0].task == "pick the cube"
    assert "Took the first task of 1 episodes in" in caplog.text


@pytest.mark.parametrize("dtype", ["video", "image"])
def test_episodes_can_be_sent_to_a_worker(tmp_path, dtype):
    """A DataLoader with workers could not start."""
    episodes = read_lerobot(write_dataset(tmp_path / "set", dtype=dtype))
    copy = pickle.loads(pickle.dumps(episodes))[4]
    assert read_numbers(copy.frames[[5]]) == [shown(TOP)[4][5]]


@pytest.mark.parametrize("about", ["info", "video_info"])
@pytest.mark.parametrize("flag", ["is_depth_map", "video.is_depth_map"])
def test_depth_is_no_camera(tmp_path, about, flag):
    """Depth, stored as gray, would be trained on, or make the choice of a camera ambiguous."""
    folder = write_dataset(tmp_path / "set")
    features = json.loads((folder / "meta" / "info.json").read_text())["features"]
    features["observation.depth"] = {"dtype": "video", about: {flag: True}}
    assert len(read_lerobot(change_info(folder, features=features))) == 5
    with pytest.raises(ValueError, match=rf"has no camera 'observation\.depth'; it has '{TOP}'\."):
        read_lerobot(folder, camera="observation.depth")


# --- episodes that cannot be read ---


def test_a_broken_video_is_refused_or_skipped(dataset, caplog):
    """One bad download would cost a night's training, or go unnoticed."""
    video(dataset, 0).write_bytes(video(dataset, 0).read_bytes()[:500])
    with pytest.raises(
        ValueError, match=r"^Episode 0 of .*lamps .*file-000\.mp4: .*cut off.* with bad='skip'\.$"
    ):
        read_lerobot(dataset)
    caplog.set_level(logging.WARNING)
    episodes = read_lerobot(dataset, bad="skip")
    assert [read_numbers(episode.frames[[0]]) for episode in episodes] == [[20], [29]]
    skipped = [message for message in caplog.messages if "file-000.mp4" in message]
    assert [message[:19] for message in skipped] == [f"Skipped. Episode {n} " for n in range(3)]
    assert caplog.messages[-1] == f"Skipped 3 of the 5 episodes in {dataset}."


def test_a_dataset_without_a_good_episode_is_refused(dataset):
    """Training on nothing would start, and end in a division by zero."""
    for file in (0, 1):
        video(dataset, file).unlink()
    with pytest.raises(ValueError, match=r"lamps has no episode that can be read: 5 were skipped"):
        read_lerobot(dataset, bad="skip")
    with pytest.raises(ValueError, match=r"Episode 0 of .*There is no file .*file-000\.mp4\."):
        read_lerobot(dataset)


def test_a_video_that_is_too_short_is_refused(dataset):
    """The last episode would be blamed, and the others show frames of the next one."""
    write_video(video(dataset, 1), numbered_frames(14), FPS)
    message = r"of 14 frames in .*file-001\.mp4 is at 1\.300 seconds, but its 2 episodes last until"
    with pytest.raises(ValueError, match=rf"Episode 3 of .*{message} 1\.400: frames are missing"):
        read_lerobot(dataset)
    assert len(read_lerobot(dataset, bad="skip")) == 3  # not one of that file


def test_a_length_that_is_not_the_videos_is_refused(dataset):
    """An episode would end with the start of the next one."""
    change_rows(dataset, 1, length=9)
    with pytest.raises(
        ValueError,
        match=r"Episode 0 .*length is 9 frames, but its video lasts from -?0\.00 to 0\.70 s",
    ):
        read_lerobot(dataset)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": []}, "Episode 0 of .* it has no task"),
        ({"tasks": [""]}, "Episode 0 of .* task must"),
    ],
)
def test_an_episode_without_a_task_is_refused(dataset, changes, message):
    """A model would predict the progress of an empty instruction."""
    with pytest.raises(ValueError, match=message):
        read_lerobot(change_rows(dataset, 1, **changes))


def test_an_unknown_outcome_is_refused(dataset):
    """A typo would give every episode an outcome that no sampler knows."""
    with pytest.raises(ValueError, match=r"Episode 0 of .* outcome must be one of .*'success'"):
        read_lerobot(dataset, outcome=lambda row: "success")  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("indices", [[-1], [7], []])
def test_indices_outside_an_image_episode_are_refused(tmp_path, indices):
    """-1 would be another episode's frame."""
    (first, *_) = read_lerobot(write_dataset(tmp_path / "set", dtype="image"))
    with pytest.raises(IndexError, match=r"indices must be in \[0, 7\), at least one; got \["):
        first.frames[indices]


def test_images_that_cannot_be_read_are_refused(tmp_path):
    """Frames would be of other steps, or the error an obscure one of PIL or NumPy."""
    folder = write_dataset(tmp_path / "set", dtype="image")
    first, second, *_, last = read_lerobot(folder)
    path = folder / "data" / "chunk-000" / "file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0][TOP]["bytes"] = b"no image"
    rows[1][TOP] = None
    table([*rows[:9], *rows[10:]], path)
    for index in (0, 1):
        with pytest.raises(ValueError, match=rf"file-000\.parquet holds an image of '{TOP}' that"):
            first.frames[[index]]
    with pytest.raises(
        ValueError, match=r"has 11 rows of episode 1; expected 12\. Is the file com"
    ):
        second.frames[[0]]
    with pytest.raises(ValueError, match=r"Episode 1 of .*has 11 rows of episode 1; expected 12\."):
        read_lerobot(folder)
    table(rows, path)
    (folder / "data" / "chunk-000" / "file-001.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no file .*file-001\.parquet\."):
        last.frames[[0]]
    with pytest.raises(ValueError, match=r"Episode 4 of .*There is no file .*file-001\.parquet\."):
        read_lerobot(folder)


# --- datasets that cannot be read ---


def test_a_camera_must_be_chosen_among_several(tmp_path):
    """A model would be trained on a camera that the user did not choose."""
    folder = write_dataset(tmp_path / "set", (TOP, WRIST))
    with pytest.raises(
        ValueError, match=rf"^camera must name one of .*set; it has '{TOP}', '{WRIST}'\.$"
    ):
        read_lerobot(folder)
    with pytest.raises(ValueError, match=rf"set has no camera 'top'; it has '{TOP}', '{WRIST}'\."):
        read_lerobot(folder, camera="top")
    change_info(folder, features={"action": {"dtype": "float32"}})
    with pytest.raises(ValueError, match=r"it has none\."):
        read_lerobot(folder)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("v2.1", r"v2\.1; expected v3\.0\..*convert_dataset_v21_to_v30 .*--root=.*lamps"),
        ("v4.0", r"v4\.0; expected v3\.0\. Update robometer-gym\."),
    ],
)
def test_other_versions_are_refused_with_a_hint(dataset, version, message):
    """Older datasets have other files: the error would be of a missing one."""
    with pytest.raises(ValueError, match=rf"info\.json has version {message}"):
        read_lerobot(change_info(dataset, codebase_version=version))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"codebase_version": "v3.0"}'])
def test_a_malformed_info_is_refused(dataset, text):
    """A KeyError would not name the file."""
    (dataset / "meta" / "info.json").write_text(text)
    with pytest.raises(ValueError, match=r"info\.json is malformed: "):
        read_lerobot(dataset)


def test_videos_at_another_rate_than_the_data_are_refused(dataset):
    """Frames would be counted wrongly, and belong to other episodes."""
    with pytest.raises(
        ValueError, match=rf"has 10.0 frames per second for '{TOP}', and 30 for the"
    ):
        read_lerobot(change_info(dataset, fps=30))


def test_missing_files_of_a_dataset_are_named(tmp_path, dataset):
    """A typo in the path would look like an empty dataset."""
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nowhere\."):
        read_lerobot(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no meta.info\.json: .*hf download"):
        read_lerobot(tmp_path)
    for path in dataset.glob("meta/episodes/*/*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no meta/episodes/chunk-000/.*finalize\(\)"):
        read_lerobot(dataset)


def test_broken_tables_are_named(dataset):
    """The error, "Parquet magic bytes not found in footer", would not name the file."""
    path = dataset / "meta" / "episodes" / "chunk-000" / "file-001.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"file-001\.parquet is broken or cut off .* it again\."):
        read_lerobot(dataset, bad="skip")


def test_missing_columns_are_named(dataset):
    """A KeyError would not name the file."""
    change_rows(dataset, 0, **{f"videos/{TOP}/from_timestamp": None, "tasks": None})
    with pytest.raises(
        ValueError, match=rf"file-000\.parquet lacks tasks, videos/{TOP}/from_timestamp, which"
    ):
        read_lerobot(dataset)


def test_a_declared_but_missing_success_is_refused(dataset):
    """Every episode would count as a failure, or as a success."""
    features = json.loads((dataset / "meta" / "info.json").read_text())["features"]
    change_info(dataset, features=features | {"next.success": {"dtype": "bool"}})
    with pytest.raises(ValueError, match=r"Episode 0 .*file-000\.parquet lacks next\.success"):
        read_lerobot(dataset)
    assert len(read_lerobot(dataset, outcome=lambda row: "failure")) == 5


def test_bad_must_be_known(dataset):
    """bad="ignore" would raise in the middle of the night."""
    with pytest.raises(ValueError, match="bad must be 'raise' or 'skip', got 'ignore'"):
        read_lerobot(dataset, bad="ignore")  # type: ignore[arg-type]


def test_without_pyarrow_the_error_names_the_extra(monkeypatch, dataset):
    """A user without the extra would see a ModuleNotFoundError and not know what to install."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        MissingDependencyError,
        match=r"^Reading LeRobot datasets needs pyarrow: pip install 'robometer-gym\[train\]'\.$",
    ):
        read_lerobot(dataset)
