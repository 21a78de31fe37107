"""LeRobot datasets: which frames, tasks and outcomes are read, and what is refused."""

import io
import json
import logging
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from robometer_gym.data import read_lerobot, write_video
from robometer_gym.validation import MissingDependencyError
from tests.data.test_video import numbered, numbers

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("av")

TOP, WRIST = "observation.images.top", "observation.images.wrist"
FPS = 10
LENGTHS = [7, 12, 1, 9, 6]
TASKS = ["pick the cube", "open the drawer", "pick the cube", "pick the cube", "open the drawer"]
FILES = {"data": [0, 0, 0, 0, 1], TOP: [0, 0, 0, 1, 1], WRIST: [0, 1, 1, 1, 1]}
"""In which file an episode lies: several share one, and the cameras do not agree."""
DRIFT = 1e-6
"""LeRobot adds up durations in seconds, which floats do not hold exactly."""
FIRST = {TOP: 0, WRIST: 1000}
"""The number that the first frame of all shows."""


def table(rows: list[dict[str, Any]], path: Path) -> None:
    """Write a parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def at(folder: Path, template: str, file: int, key: str = "") -> Path:
    """Where LeRobot puts a file."""
    return folder / template.format(video_key=key, chunk_index=0, file_index=file)


def shown(camera: str) -> list[list[int]]:
    """The numbers that the frames of each episode show."""
    starts = FIRST[camera] + np.cumsum([0, *LENGTHS])
    return [
        list(range(start, start + length)) for start, length in zip(starts, LENGTHS, strict=False)
    ]


def png(number: int) -> dict[str, Any]:
    """A frame as LeRobot puts it into a data file."""
    file = io.BytesIO()
    Image.fromarray(numbered(number + 1)[-1]).save(file, "png")
    return {"bytes": file.getvalue(), "path": f"frame-{number:06d}.png"}


def write_dataset(
    folder: Path, cameras: tuple[str, ...] = (TOP,), dtype: str = "video", succeeds: Any = None
) -> Path:
    """Write five episodes as LeRobot does.

    Args:
        folder: where.
        cameras: which cameras.
        dtype: "video" or "image".
        succeeds: whether an episode succeeds at a step; None writes no `next.success`.
    """
    info: dict[str, Any] = {
        "codebase_version": "v3.0",
        "fps": FPS,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {"action": {"dtype": "float32", "shape": [2]}},
    }
    for camera in cameras:
        about = {"video.fps": float(FPS), "is_depth_map": False} if dtype == "video" else None
        info["features"][camera] = {"dtype": dtype, "shape": [48, 64, 3], "info": about}
    if succeeds is not None:
        info["features"]["next.success"] = {"dtype": "bool", "shape": [1]}
    rows: list[dict[str, Any]] = []
    steps: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
    films: dict[tuple[str, int], list[int]] = {}
    for episode, length in enumerate(LENGTHS):
        row = {"episode_index": episode, "length": length, "tasks": [TASKS[episode]]}
        row |= {"data/chunk_index": 0, "data/file_index": FILES["data"][episode]}
        row |= {"stats/action/mean": [0.5, 0.5]}
        for camera in cameras if dtype == "video" else ():
            film = films.setdefault((camera, FILES[camera][episode]), [])
            row[f"videos/{camera}/chunk_index"] = 0
            row[f"videos/{camera}/file_index"] = FILES[camera][episode]
            row[f"videos/{camera}/from_timestamp"] = len(film) / FPS - DRIFT
            film += shown(camera)[episode]
            row[f"videos/{camera}/to_timestamp"] = len(film) / FPS - DRIFT
        rows.append(row)
        for step in range(length):
            line: dict[str, Any] = {"episode_index": episode, "action": [0.0, 0.0]}
            if dtype == "image":
                line |= {camera: png(shown(camera)[episode][step]) for camera in cameras}
            if succeeds is not None:
                line["next.success"] = succeeds(episode, step)
            steps[FILES["data"][episode]].append(line)
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    table([{"task_index": 0, "task": TASKS[0]}], folder / "meta" / "tasks.parquet")
    episodes = "meta/episodes/chunk-000/file-{file_index:03d}.parquet"
    table(rows[3:], at(folder, episodes, 0))  # LeRobot's merging may write them in any order
    table(rows[:3], at(folder, episodes, 1))
    for file, lines in steps.items():
        table(lines, at(folder, info["data_path"], file))
    for (camera, file), film in films.items():
        path = at(folder, info["video_path"], file, camera)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, numbered(max(film) + 1)[film], FPS)
    return folder


def change_info(folder: Path, **changes: Any) -> Path:
    """Write other values into info.json; None takes one away."""
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in info.items() if value is not None}))
    return folder


def change_rows(folder: Path, file: int, **changes: Any) -> Path:
    """Write other values into the first row of a file in meta/episodes; None: not in any row."""
    path = folder / "meta" / "episodes" / "chunk-000" / f"file-{file:03d}.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0] |= changes
    gone = [key for key, value in changes.items() if value is None]
    table([{key: row[key] for key in row if key not in gone} for row in rows], path)
    return folder


def video(folder: Path, file: int) -> Path:
    """A video file of the top camera."""
    return folder / "videos" / TOP / "chunk-000" / f"file-{file:03d}.mp4"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Five episodes in two videos, seen by one camera."""
    return write_dataset(tmp_path / "lamps")


# --- what is read ---


@pytest.mark.parametrize("dtype", ["video", "image"])
@pytest.mark.parametrize("camera", [TOP, WRIST])
def test_each_episode_shows_its_own_frames(tmp_path, dtype, camera):
    """The end of one episode would be taken for the beginning of the next, or another camera."""
    episodes = read_lerobot(write_dataset(tmp_path / "set", (TOP, WRIST), dtype), camera=camera)
    assert [len(episode) for episode in episodes] == LENGTHS
    for episode, expected in zip(episodes, shown(camera), strict=True):
        assert numbers(episode.frames[range(len(episode))]) == expected
        assert numbers(episode.frames[[len(episode) - 1, 0, 0]]) == [
            expected[index] for index in (-1, 0, 0)
        ]


def test_each_episode_has_its_own_task_and_succeeded(dataset):
    """A model would learn that an opened drawer is a picked cube, or that all demos failed."""
    episodes = read_lerobot(str(dataset))
    assert [episode.task for episode in episodes] == TASKS
    assert {episode.outcome for episode in episodes} == {"successful"}


@pytest.mark.parametrize("boxed", [False, True])
def test_episodes_that_say_whether_they_succeeded_are_believed(tmp_path, boxed):
    """Failures from an evaluation would be shown to a model as demonstrations."""

    def succeeds(episode: int, step: int) -> Any:
        success = (episode, step) in [(0, 6), (1, 3), (4, 5)]
        return [success] if boxed else success

    episodes = read_lerobot(write_dataset(tmp_path / "set", succeeds=succeeds))
    went = [episode.outcome for episode in episodes]
    assert went == ["successful", "successful", "failure", "failure", "successful"]


def test_the_user_may_say_how_episodes_went(tmp_path):
    """Suboptimal episodes could not be marked; or the data would overrule the user."""
    rows = []

    def outcome(row: dict[str, Any]) -> Any:
        rows.append(row)
        return "suboptimal" if row["length"] > 8 else "failure"

    folder = write_dataset(tmp_path / "set", succeeds=lambda episode, step: True)
    went = [episode.outcome for episode in read_lerobot(folder, outcome=outcome)]
    assert went == ["failure", "suboptimal", "failure", "suboptimal", "failure"]
    assert [row["episode_index"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[1]["tasks"] == ["open the drawer"]
    assert "stats/action/mean" not in rows[0]


def test_the_first_of_several_tasks_is_taken_and_that_is_said(dataset, caplog):
    """Nobody would know that an episode's second task is not trained on."""
    change_rows(dataset, 1, tasks=["pick the cube", "put it down"])
    assert read_lerobot(dataset)[0].task == "pick the cube"
    assert "Took the first task of 1 episodes in" in caplog.text


@pytest.mark.parametrize("dtype", ["video", "image"])
def test_episodes_can_be_sent_to_a_worker(tmp_path, dtype):
    """A DataLoader with workers could not start."""
    episodes = read_lerobot(write_dataset(tmp_path / "set", dtype=dtype))
    copy = pickle.loads(pickle.dumps(episodes))[4]
    assert numbers(copy.frames[[5]]) == [shown(TOP)[4][5]]


@pytest.mark.parametrize("about", ["info", "video_info"])
@pytest.mark.parametrize("flag", ["is_depth_map", "video.is_depth_map"])
def test_depth_is_no_camera(tmp_path, about, flag):
    """Depth, painted as grey, would be trained on, or asked about where there is no choice."""
    folder = write_dataset(tmp_path / "set")
    features = json.loads((folder / "meta" / "info.json").read_text())["features"]
    features["observation.depth"] = {"dtype": "video", about: {flag: True}}
    assert len(read_lerobot(change_info(folder, features=features))) == 5
    with pytest.raises(ValueError, match=rf"has no camera 'observation\.depth'; it has '{TOP}'\."):
        read_lerobot(folder, camera="observation.depth")


# --- episodes that cannot be read ---


def test_a_broken_video_is_refused_or_left_out(dataset, caplog):
    """One bad download would cost a night's training, or go unnoticed."""
    video(dataset, 0).write_bytes(video(dataset, 0).read_bytes()[:500])
    with pytest.raises(
        ValueError, match=r"^Episode 0 of .*lamps .*file-000\.mp4: .*cut off.* with bad='skip'\.$"
    ):
        read_lerobot(dataset)
    caplog.set_level(logging.WARNING)
    episodes = read_lerobot(dataset, bad="skip")
    assert [numbers(episode.frames[[0]]) for episode in episodes] == [[20], [29]]
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
    """The last episode of a file would lack its end."""
    write_video(video(dataset, 1), numbered(14), FPS)
    with pytest.raises(ValueError, match=r"Episode 4 of .* has 14 frames; frames 9 to 14 were"):
        read_lerobot(dataset)


def test_a_length_that_is_not_the_videos_is_refused(dataset):
    """An episode would end with the beginning of the next one."""
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
    """A model would be asked how far an empty instruction has come."""
    with pytest.raises(ValueError, match=message):
        read_lerobot(change_rows(dataset, 1, **changes))


def test_an_outcome_that_is_none_is_refused(dataset):
    """A typo would make every episode count as something that no sampler knows."""
    with pytest.raises(ValueError, match=r"Episode 0 of .* outcome must be one of .*'success'"):
        read_lerobot(dataset, outcome=lambda row: "success")  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("indices", [[-1], [7], []])
def test_pictures_that_are_not_there_are_refused(tmp_path, indices):
    """-1 would be another episode's frame."""
    (first, *_) = read_lerobot(write_dataset(tmp_path / "set", dtype="image"))
    with pytest.raises(IndexError, match=r"indices must be in \[0, 7\), at least one; got \["):
        first.frames[indices]


def test_pictures_that_cannot_be_read_are_refused(tmp_path):
    """Frames would be of other steps than thought, or the error PIL's or numpy's riddle."""
    folder = write_dataset(tmp_path / "set", dtype="image")
    first, second, *_, last = read_lerobot(folder)
    path = folder / "data" / "chunk-000" / "file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0][TOP]["bytes"] = b"no picture"
    rows[1][TOP] = None
    table([*rows[:9], *rows[10:]], path)
    for index in (0, 1):
        with pytest.raises(ValueError, match=rf"file-000\.parquet holds a picture of '{TOP}' that"):
            first.frames[[index]]
    with pytest.raises(ValueError, match=r"has 11 rows of episode 1; expected 12\. Is it the whol"):
        second.frames[[0]]
    (folder / "data" / "chunk-000" / "file-001.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no file .*file-001\.parquet\."):
        last.frames[[0]]
    with pytest.raises(ValueError, match=r"Episode 4 of .*There is no file .*file-001\.parquet\."):
        read_lerobot(folder)


# --- datasets that cannot be read ---


def test_a_camera_must_be_chosen_among_several(tmp_path):
    """A model would be trained on a camera that nobody chose."""
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
def test_other_versions_are_refused_with_a_cure(dataset, version, message):
    """Older datasets have other files: the user would be told that one is missing."""
    with pytest.raises(ValueError, match=rf"info\.json says version {message}"):
        read_lerobot(change_info(dataset, codebase_version=version))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"codebase_version": "v3.0"}'])
def test_an_info_that_is_none_is_refused(dataset, text):
    """A KeyError would say nothing of the file."""
    (dataset / "meta" / "info.json").write_text(text)
    with pytest.raises(ValueError, match=r"info\.json is not what LeRobot writes: "):
        read_lerobot(dataset)


def test_videos_at_another_rate_than_the_data_are_refused(dataset):
    """Frames would be counted wrongly, and belong to other episodes."""
    with pytest.raises(ValueError, match=rf"says 10 frames per second of '{TOP}', and 30 of the"):
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
    """The user would be told of a "Parquet magic bytes not found in footer", not in which file."""
    path = dataset / "meta" / "episodes" / "chunk-000" / "file-001.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"file-001\.parquet is broken or cut off .* it again\."):
        read_lerobot(dataset, bad="skip")


def test_missing_columns_are_named(dataset):
    """A KeyError would come without the file."""
    change_rows(dataset, 0, **{f"videos/{TOP}/from_timestamp": None, "tasks": None})
    with pytest.raises(
        ValueError, match=rf"file-000\.parquet lacks tasks, videos/{TOP}/from_timestamp, which"
    ):
        read_lerobot(dataset)


def test_a_success_that_is_promised_but_missing_is_refused(dataset):
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


def test_without_pyarrow_the_way_to_get_it_is_told(monkeypatch, dataset):
    """A user without the extra would see a ModuleNotFoundError and not know what to install."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        MissingDependencyError,
        match=r"^Reading LeRobot datasets needs pyarrow: pip install 'robometer-gym\[train\]'\.$",
    ):
        read_lerobot(dataset)
