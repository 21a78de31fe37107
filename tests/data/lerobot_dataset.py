"""A LeRobot dataset of version 3.0 for tests: five episodes whose frames show their number."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from robometer_gym.data import write_video
from tests.data.videos import numbered_frames

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("av")

TOP, WRIST = "observation.images.top", "observation.images.wrist"
FPS = 10
LENGTHS = [7, 12, 1, 9, 6]
TASKS = ["pick the cube", "open the drawer", "pick the cube", "pick the cube", "open the drawer"]
FILES = {"data": [0, 0, 0, 0, 1], TOP: [0, 0, 0, 1, 1], WRIST: [0, 1, 1, 1, 1]}
"""The file of each episode: several share one, and the cameras do not agree."""
DRIFT = 1e-6
"""LeRobot sums durations in seconds, which floats do not represent exactly."""
FIRST = {TOP: 0, WRIST: 1000}
"""The number that the first frame of the first episode shows."""


def table(rows: list[dict[str, Any]], path: Path) -> None:
    """Write a parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def file_path(folder: Path, template: str, file: int, key: str = "") -> Path:
    """Return the path of a file of LeRobot."""
    return folder / template.format(video_key=key, chunk_index=0, file_index=file)


def shown(camera: str) -> list[list[int]]:
    """Return the numbers that the frames of each episode show."""
    starts = FIRST[camera] + np.cumsum([0, *LENGTHS])
    return [
        list(range(start, start + length)) for start, length in zip(starts, LENGTHS, strict=False)
    ]


def png(number: int) -> dict[str, Any]:
    """Return a frame as LeRobot stores it in a data file."""
    file = io.BytesIO()
    Image.fromarray(numbered_frames(number + 1)[-1]).save(file, "png")
    return {"bytes": file.getvalue(), "path": f"frame-{number:06d}.png"}


def write_dataset(
    folder: Path, cameras: tuple[str, ...] = (TOP,), dtype: str = "video", succeeds: Any = None
) -> Path:
    """Write five episodes as LeRobot does.

    Args:
        folder: the folder of the dataset.
        cameras: features with frames.
        dtype: "video" or "image".
        succeeds: function of episode and step; None writes no `next.success`.
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
    videos: dict[tuple[str, int], list[int]] = {}
    for episode, length in enumerate(LENGTHS):
        row = {"episode_index": episode, "length": length, "tasks": [TASKS[episode]]}
        row |= {"data/chunk_index": 0, "data/file_index": FILES["data"][episode]}
        row |= {"stats/action/mean": [0.5, 0.5]}
        for camera in cameras if dtype == "video" else ():
            numbers = videos.setdefault((camera, FILES[camera][episode]), [])
            row[f"videos/{camera}/chunk_index"] = 0
            row[f"videos/{camera}/file_index"] = FILES[camera][episode]
            row[f"videos/{camera}/from_timestamp"] = len(numbers) / FPS - DRIFT
            numbers += shown(camera)[episode]
            row[f"videos/{camera}/to_timestamp"] = len(numbers) / FPS - DRIFT
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
    table(rows[3:], file_path(folder, episodes, 0))  # LeRobot's merging may write them in any order
    table(rows[:3], file_path(folder, episodes, 1))
    for file, lines in steps.items():
        table(lines, file_path(folder, info["data_path"], file))
    for (camera, file), numbers in videos.items():
        path = file_path(folder, info["video_path"], file, camera)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, numbered_frames(max(numbers) + 1)[numbers], FPS)
    return folder


def change_info(folder: Path, **changes: Any) -> Path:
    """Change values of info.json; None removes one."""
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in info.items() if value is not None}))
    return folder


def change_rows(folder: Path, file: int, **changes: Any) -> Path:
    """Change values in the first row of a file in meta/episodes; None removes a column."""
    path = folder / "meta" / "episodes" / "chunk-000" / f"file-{file:03d}.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0] |= changes
    gone = [key for key, value in changes.items() if value is None]
    table([{key: row[key] for key in row if key not in gone} for row in rows], path)
    return folder


def video(folder: Path, file: int) -> Path:
    """Return the path of a video of the top camera."""
    return folder / "videos" / TOP / "chunk-000" / f"file-{file:03d}.mp4"
