"""Files of a LeRobot dataset of version 3.0: meta/info.json and parquet tables, checked once.

Knows nothing of videos, frames or outcomes. PyArrow is imported only when a table is read.

Source: src/lerobot/datasets of huggingface/lerobot at 7427f31, for the layout of the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from robometer_gym.validation import MissingDependencyError

__all__ = ["INFO", "SUCCESS", "Info", "choose_camera", "read_info", "read_rows", "read_table"]

INFO = Path("meta", "info.json")
SUCCESS = "next.success"

_MAX_INFO_BYTES = 2**24
_MAX_ROWS = 10**7  # of one table: 90 hours at 30 steps per second
_MAX_FPS = 10_000

_PATH_FIELD = re.compile(r"\{(?:(video_key)|(chunk_index|file_index)(?::0([1-9])d)?)\}")


@dataclass(frozen=True)
class Info:
    """The parts of `meta/info.json` that are needed, checked.

    Attributes:
        folder: the folder of the dataset.
        fps: steps per second, which are frames per second as well.
        features: the description of each column of the data.
        data_path: path of a data file, with fields for its numbers.
        video_path: likewise of a video; None in a dataset without videos.
    """

    folder: Path
    fps: float
    features: Mapping[str, Mapping[str, Any]]
    data_path: str
    video_path: str | None

    def data_file(self, chunk_index: int, file_index: int) -> Path:
        """Return the path of a data file."""
        return self._file(self.data_path, chunk_index, file_index, "")

    def video_file(self, camera: str, chunk_index: int, file_index: int) -> Path:
        """Return the path of a video.

        Raises:
            ValueError: the dataset has no videos, or the path leads out of its folder.
        """
        if self.video_path is None:
            raise ValueError(f"{self.folder / INFO} has no video_path.")
        return self._file(self.video_path, chunk_index, file_index, camera)

    def _file(self, template: str, chunk_index: int, file_index: int, camera: str) -> Path:
        numbers = {"chunk_index": chunk_index, "file_index": file_index}

        def expand(field: re.Match[str]) -> str:
            return camera if field[1] else str(numbers[field[2]]).zfill(int(field[3] or 1))

        path = PurePosixPath(_PATH_FIELD.sub(expand, template))
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"a file must be inside the folder of the dataset, got {str(path)!r}.")
        return self.folder / path


def read_info(folder: Path) -> Info:
    """Read and check `meta/info.json`.

    Raises:
        FileNotFoundError: there is no such folder, or no such file in it.
        ValueError: another version, or a value that is missing or of a wrong type or range.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    path = folder / INFO
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {INFO}: it is no LeRobot dataset, or not downloaded. Get one with: "
            "hf download --repo-type dataset --local-dir FOLDER OWNER/NAME"
        )
    try:
        if path.stat().st_size > _MAX_INFO_BYTES:
            raise ValueError(f"it must be at most {_MAX_INFO_BYTES} bytes.")
        info = json.loads(path.read_bytes())
        if not isinstance(info, dict) or not isinstance(info.get("codebase_version"), str):
            raise ValueError("it must be a JSON object with a string 'codebase_version'.")
        if info["codebase_version"].startswith("v3."):
            return _check_info(folder, info)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is malformed: {error}") from error
    version, hint = info["codebase_version"], "Update robometer-gym."
    if version.startswith(("v1.", "v2.")):
        hint = (
            "Convert it with LeRobot's own script: python -m "
            "lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=OWNER/NAME "
            f"--root={folder} --push-to-hub=false"
        )
    raise ValueError(f"{path} has version {version[:40]}; expected v3.0. {hint}")


def _check_info(folder: Path, info: dict[str, Any]) -> Info:
    if not _is_rate(info.get("fps")):
        raise ValueError(f"fps must be a number in (0, {_MAX_FPS}], got {info.get('fps')!r:.60}.")
    features = info.get("features")
    if not isinstance(features, dict):
        raise ValueError(f"features must be an object, got {features!r:.60}.")
    for key, feature in features.items():
        if not isinstance(feature, dict) or not isinstance(feature.get("dtype"), str):
            raise ValueError(f"feature {key!r:.60} must be an object with a string 'dtype'.")
        for name in ("info", "video_info"):
            if not isinstance(feature.get(name), dict | None):
                raise ValueError(f"{name} of feature {key!r:.60} must be an object.")
    for name in ("data_path", "video_path"):
        template = info.get(name)
        if template is None and name == "video_path" and name in info:
            continue
        if not isinstance(template, str) or set("{}") & set(_PATH_FIELD.sub("", template)):
            raise ValueError(
                f"{name} must be a path with no fields but {{video_key}}, {{chunk_index:03d}} and "
                f"{{file_index:03d}}, got {template!r:.60}."
            )
    return Info(folder, info["fps"], features, info["data_path"], info["video_path"])


def choose_camera(info: Info, camera: str | None) -> str:
    """Return the feature that holds the frames.

    Raises:
        ValueError: no such camera, several without a choice, or a rate other than the dataset's.
    """
    cameras = [key for key, feature in info.features.items() if _has_colors(feature)]
    names = ", ".join(map(repr, cameras)) or "none"
    if camera is None and len(cameras) == 1:
        (camera,) = cameras
    if camera is None:
        raise ValueError(f"camera must name one of the cameras of {info.folder}; it has {names}.")
    if camera not in cameras:
        raise ValueError(f"{info.folder} has no camera {camera!r}; it has {names}.")
    rate = _video_info(info.features[camera]).get("video.fps", info.fps)
    if not _is_rate(rate) or rate != info.fps:
        raise ValueError(
            f"{info.folder / INFO} has {rate!r:.60} frames per second for {camera!r}, and "
            f"{info.fps:g} for the dataset. Videos at another rate than the data cannot be read."
        )
    return camera


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _MAX_FPS


def _has_colors(feature: Mapping[str, Any]) -> bool:
    about = _video_info(feature)
    depth = about.get("is_depth_map") or about.get("video.is_depth_map")
    return feature["dtype"] in ("video", "image") and not depth


def _video_info(feature: Mapping[str, Any]) -> dict[str, Any]:
    return {**(feature.get("video_info") or {}), **(feature.get("info") or {})}


def read_rows(folder: Path, columns: Mapping[str, str], every: bool) -> list[dict[str, Any]]:
    """Return the rows of `meta/episodes`, by episode.

    Args:
        folder: the folder of the dataset.
        columns: the type of each column that is needed, see `read_table`.
        every: also return all other columns, but for statistics of the data.

    Raises:
        FileNotFoundError: the dataset has no such file.
        ValueError: a file that is broken, or a column that is missing or of a wrong type.
    """
    paths = sorted(folder.glob("meta/episodes/*/*.parquet"))
    if not paths:
        raise FileNotFoundError(
            f"There is no meta/episodes/chunk-000/file-000.parquet in {folder}. Was all of it "
            "downloaded, or recording it ended with finalize()?"
        )
    rows = [row for path in paths for row in read_table(path, columns, every=every).to_pylist()]
    if not rows:
        raise ValueError(f"{folder / 'meta' / 'episodes'} has no episode.")
    return sorted(rows, key=lambda row: (row["episode_index"] is None, row["episode_index"] or 0))


def read_table(
    path: Path, columns: Mapping[str, str], *, episode: int | None = None, every: bool = False
) -> Any:
    """Read columns of a parquet file into a PyArrow table.

    Args:
        path: the file.
        columns: the type of each column: "integer", "number", "strings", "booleans" or "images".
        episode: read the rows of this episode only.
        every: also read all other columns, but for statistics.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file that is broken or too large, or a column that is missing or of a wrong
            type.
        MissingDependencyError: PyArrow is missing.
    """
    parquet, types = _import_pyarrow()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Download all of the dataset.")
    try:
        schema, count = parquet.read_schema(path), parquet.read_metadata(path).num_rows
    except Exception as error:  # PyArrow's own, OSError, and others for a malformed schema
        raise _broken(path, error) from error
    if missing := [name for name in columns if name not in schema.names]:
        raise ValueError(f"{path} lacks {', '.join(missing)}, which LeRobot writes.")
    for name, kind in columns.items():
        if not _fits(types, schema.field(name).type, kind):
            raise ValueError(f"{path} has {name} of type {schema.field(name).type}, not {kind}.")
    if count > _MAX_ROWS:
        raise ValueError(f"{path} has {count} rows; at most {_MAX_ROWS} are read.")
    others = [name for name in schema.names if every and not name.startswith("stats/")]
    filters = None if episode is None else [("episode_index", "==", episode)]
    try:
        return parquet.read_table(
            path, columns=list({*columns, *others}), filters=filters, partitioning=None
        )
    except Exception as error:  # as above
        raise _broken(path, error) from error


def _fits(types: Any, column: Any, kind: str) -> bool:
    if kind == "integer":
        return bool(types.is_integer(column))
    if kind == "number":
        return bool(types.is_floating(column) or types.is_integer(column))
    if kind == "images":
        return bool(types.is_struct(column)) and column.get_field_index("bytes") >= 0
    is_list = types.is_list(column) or types.is_large_list(column)
    if kind == "strings":
        of = column.value_type if is_list else None
        return bool(is_list and (types.is_string(of) or types.is_large_string(of)))
    is_array = is_list or types.is_fixed_size_list(column)
    return bool(types.is_boolean(column.value_type if is_array else column))


def _broken(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is broken or cut off ({error}). Download it again.")


def _import_pyarrow() -> tuple[Any, Any]:
    """Return PyArrow's modules of parquet files and of types."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(
            "Reading LeRobot datasets needs pyarrow: pip install 'robometer-gym[train]'."
        ) from error
    return pyarrow.parquet, pyarrow.types
