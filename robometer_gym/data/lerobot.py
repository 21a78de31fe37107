"""LeRobot datasets of version 3.0 as episodes, read without LeRobot.

Knows nothing of the hub (download a dataset first), or of actions and states. PyArrow is imported
only when a dataset is read.

Source: src/lerobot/datasets of huggingface/lerobot at 7427f31, for the layout of the files.
"""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from robometer_gym.data.episodes import Episode, Frames, Outcome
from robometer_gym.data.video import VideoFrames
from robometer_gym.validation import MissingDependencyError

__all__ = ["read_lerobot"]

logger = logging.getLogger(__name__)

_INFO = Path("meta", "info.json")
_SUCCESS = "next.success"


def read_lerobot(
    path: str | os.PathLike[str],
    *,
    camera: str | None = None,
    outcome: Callable[[dict[str, Any]], Outcome] | None = None,
    bad: Literal["raise", "skip"] = "raise",
) -> list[Episode]:
    """Read a LeRobot dataset of version 3.0 from a folder.

    Frames are read on demand. An episode with several tasks, one after the other, gets the first
    one, and the log counts such episodes.

    Args:
        path: the folder, with `meta`, `data` and `videos` in it.
        camera: feature with the frames, such as "observation.images.top". None takes the only one.
        outcome: function of an episode's row in `meta/episodes`, a dict, that returns
            "successful", "suboptimal" or "failure". By default an episode is successful if its
            `next.success` is true at any step, and otherwise a failure; in a dataset without
            `next.success`, every episode is a demonstration, and so successful.
        bad: "raise" for an episode that cannot be read, or "skip" it with a warning in the log.

    Returns:
        The episodes by their index, at least one.

    Raises:
        FileNotFoundError: there is no such folder, or a file of `meta` is missing.
        ValueError: another version, no such camera, an episode that cannot be read, or none that
            can.
        MissingDependencyError: PyArrow or PyAV is missing.

    Example:
        >>> read_lerobot("datasets/lamp", camera="observation.images.top")  # doctest: +SKIP
        [Episode(302 frames, 'switch the lamp on', successful), ...]
    """
    if bad not in ("raise", "skip"):
        raise ValueError(f"bad must be 'raise' or 'skip', got {bad!r}.")
    folder = Path(path)
    info = _read_info(folder)
    dataset = _Dataset(folder, info, _choose_camera(folder, info, camera))
    rows = _read_rows(folder, dataset.row_keys())
    episodes = []
    for row in tqdm(rows, desc=folder.name, unit="episode", disable=None):
        try:
            result = dataset.outcome(row) if outcome is None else outcome(row)
            episodes.append(Episode(dataset.frames(row), _first_task(row), result))
        except (ValueError, FileNotFoundError) as error:
            fault = f"Episode {row['episode_index']} of {folder} cannot be read: {error}"
            if bad == "raise":
                raise ValueError(f"{fault} Skip such episodes with bad='skip'.") from error
            logger.warning("Skipped. %s", fault)
    _report(folder, rows, len(rows) - len(episodes))
    return episodes


def _report(folder: Path, rows: list[dict[str, Any]], skipped: int) -> None:
    if skipped == len(rows):
        raise ValueError(f"{folder} has no episode that can be read: {skipped} were skipped.")
    if skipped:
        logger.warning("Skipped %d of the %d episodes in %s.", skipped, len(rows), folder)
    several = sum(len(row["tasks"] or ()) > 1 for row in rows)
    if several:
        logger.warning("Took the first task of %d episodes in %s with several.", several, folder)


def _first_task(row: dict[str, Any]) -> str:
    if not row["tasks"]:
        raise ValueError("it has no task.")
    return str(row["tasks"][0])


@dataclass
class _Dataset:
    """The files of a dataset.

    Attributes:
        folder: the folder of the dataset.
        info: the content of `meta/info.json`.
        camera: the feature with the frames.
        successes: the successful episodes of each data file read so far.
    """

    folder: Path
    info: dict[str, Any]
    camera: str
    successes: dict[Path, set[int]] = field(default_factory=dict)

    def row_keys(self) -> list[str]:
        """Return the columns of `meta/episodes` that are needed."""
        keys = ["episode_index", "length", "tasks", "data/chunk_index", "data/file_index"]
        if self.info["features"][self.camera]["dtype"] == "video":
            video = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
            keys += [f"videos/{self.camera}/{key}" for key in video]
        return keys

    def outcome(self, row: dict[str, Any]) -> Outcome:
        if _SUCCESS not in self.info["features"]:
            return "successful"
        path = self._data_file(row)
        if path not in self.successes:
            steps = _read_table(path, ["episode_index", _SUCCESS]).to_pylist()
            self.successes[path] = {
                step["episode_index"] for step in steps if np.any(step[_SUCCESS])
            }
        return "successful" if row["episode_index"] in self.successes[path] else "failure"

    def frames(self, row: dict[str, Any]) -> Frames:
        feature = self.info["features"][self.camera]
        if feature["dtype"] == "image":
            path = self._data_file(row)
            return _ImageFrames(path, self.camera, row["episode_index"], row["length"])
        video, fps = f"videos/{self.camera}", self.info["fps"]
        start, end = row[f"{video}/from_timestamp"], row[f"{video}/to_timestamp"]
        if round((end - start) * fps) != row["length"]:
            raise ValueError(
                f"its length is {row['length']} frames, but its video lasts from {start:.2f} to "
                f"{end:.2f} seconds, at the {fps:g} frames per second of {self.folder / _INFO}."
            )
        path = self._file(self.info["video_path"], row, video, video_key=self.camera)
        return VideoFrames(path, round(start * fps), row["length"])

    def _data_file(self, row: dict[str, Any]) -> Path:
        return self._file(self.info["data_path"], row, "data")

    def _file(self, template: str, row: dict[str, Any], prefix: str, **names: str) -> Path:
        chunk, file = row[f"{prefix}/chunk_index"], row[f"{prefix}/file_index"]
        return self.folder / template.format(chunk_index=chunk, file_index=file, **names)


class _ImageFrames:
    """Frames of an episode that a data file holds as PNG, one per row.

    Each request reads the episode's row groups of the file.
    """

    def __init__(self, path: Path, column: str, episode: int, count: int) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}.")
        self.path, self.column, self.episode, self.count = path, column, episode, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, indices: Sequence[int], /) -> NDArray[np.uint8]:
        wanted = [int(index) for index in indices]
        if not wanted or min(wanted) < 0 or max(wanted) >= self.count:
            raise IndexError(f"indices must be in [0, {self.count}), at least one; got {wanted}.")
        column = _read_table(self.path, [self.column], self.episode).column(self.column)
        if len(column) != self.count:
            raise ValueError(
                f"{self.path} has {len(column)} rows of episode {self.episode}; expected "
                f"{self.count}. Is it the whole file?"
            )
        try:
            images = [Image.open(io.BytesIO(column[index].as_py()["bytes"])) for index in wanted]
            return np.stack([np.asarray(image.convert("RGB")) for image in images])
        except (OSError, TypeError) as error:  # TypeError: a row without an image
            raise ValueError(
                f"{self.path} holds an image of {self.column!r} that cannot be read: {error}"
            ) from error


def _read_info(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    path = folder / _INFO
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {_INFO}: it is no LeRobot dataset, or not downloaded. Get one with: "
            "hf download --repo-type dataset --local-dir FOLDER OWNER/NAME"
        )
    try:
        info: dict[str, Any] = json.loads(path.read_bytes())
        version = info["codebase_version"]
        if version.startswith("v3."):
            info["fps"], info["features"], info["data_path"], info["video_path"]
            return info
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} is not what LeRobot writes: {error!r}.") from error
    hint = "Update robometer-gym."
    if version.startswith(("v1.", "v2.")):
        hint = (
            "Convert it with LeRobot's own script: python -m "
            "lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=OWNER/NAME "
            f"--root={folder} --push-to-hub=false"
        )
    raise ValueError(f"{path} has version {version}; expected v3.0. {hint}")


def _choose_camera(folder: Path, info: dict[str, Any], camera: str | None) -> str:
    features = info["features"]
    cameras = [key for key, feature in features.items() if _has_colors(feature)]
    names = ", ".join(map(repr, cameras)) or "none"
    if camera is None and len(cameras) == 1:
        (camera,) = cameras
    if camera is None:
        raise ValueError(f"camera must name one of the cameras of {folder}; it has {names}.")
    if camera not in cameras:
        raise ValueError(f"{folder} has no camera {camera!r}; it has {names}.")
    rate = _video_info(features[camera]).get("video.fps", info["fps"])
    if rate != info["fps"]:
        raise ValueError(
            f"{folder / _INFO} has {rate:g} frames per second for {camera!r}, and {info['fps']:g} "
            "for the dataset. Videos at another rate than the data cannot be read."
        )
    return camera


def _has_colors(feature: dict[str, Any]) -> bool:
    depth = _video_info(feature).get("is_depth_map") or _video_info(feature).get(
        "video.is_depth_map"
    )
    return feature["dtype"] in ("video", "image") and not depth


def _video_info(feature: dict[str, Any]) -> dict[str, Any]:
    return {**(feature.get("video_info") or {}), **(feature.get("info") or {})}


def _read_rows(folder: Path, keys: list[str]) -> list[dict[str, Any]]:
    """Return the rows of `meta/episodes`, by episode, without statistics of the data."""
    paths = sorted(folder.glob("meta/episodes/*/*.parquet"))
    if not paths:
        raise FileNotFoundError(
            f"There is no meta/episodes/chunk-000/file-000.parquet in {folder}. Was all of it "
            "downloaded, or recording it ended with finalize()?"
        )
    rows = []
    for path in paths:
        names = _column_names(path)
        columns = [name for name in names if not name.startswith("stats/")]
        rows += _read_table(
            path, [*columns, *(key for key in keys if key not in names)]
        ).to_pylist()
    return sorted(rows, key=lambda row: row["episode_index"])


def _read_table(path: Path, columns: list[str], episode: int | None = None) -> Any:
    """Read columns of a parquet file: all rows, or those of one episode."""
    missing = [name for name in columns if name not in _column_names(path)]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}, which LeRobot writes.")
    rows = None if episode is None else [("episode_index", "==", episode)]
    with _open_parquet(path) as parquet:
        return parquet.read_table(path, columns=columns, filters=rows, partitioning=None)


def _column_names(path: Path) -> list[str]:
    with _open_parquet(path) as parquet:
        names: list[str] = parquet.read_schema(path).names
    return names


@contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    """Yield PyArrow's parquet module; its errors become one that names the file."""
    pyarrow = _import_pyarrow()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Download all of the dataset.")
    try:
        yield pyarrow.parquet
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is broken or cut off ({error}). Download it again.") from error


def _import_pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(
            "Reading LeRobot datasets needs pyarrow: pip install 'robometer-gym[train]'."
        ) from error
    return pyarrow
