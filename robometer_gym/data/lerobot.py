"""LeRobot datasets of version 3.0 as episodes, read without LeRobot.

Knows nothing of the hub (download a dataset first), of actions or states, or of the format of
info.json and of tables.

Source: src/lerobot/datasets of huggingface/lerobot at 7427f31, for the layout of the files.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from robometer_gym.data.decoding import read_frame_times
from robometer_gym.data.episodes import Episode, Frames, Outcome
from robometer_gym.data.image_frames import ImageFrames
from robometer_gym.data.lerobot_files import (
    INFO,
    SUCCESS,
    Info,
    choose_camera,
    read_info,
    read_rows,
    read_table,
)
from robometer_gym.data.video_frames import VideoFrames

__all__ = ["read_lerobot"]

logger = logging.getLogger(__name__)

_TOLERANCE = 0.25  # of a frame, by which a frame's time may differ from the metadata
_MAX_SECONDS = 1e7  # of a video


def read_lerobot(
    path: str | os.PathLike[str],
    *,
    camera: str | None = None,
    outcome: Callable[[dict[str, Any]], Outcome] | None = None,
    bad: Literal["raise", "skip"] = "raise",
) -> list[Episode]:
    """Read a LeRobot dataset of version 3.0 from a folder.

    Frames are read on demand: each is the one at its time in the video, not at its number. Each
    file is checked once: a video must cover the episodes in it, which must not overlap, and its
    first and last frame are decoded; a data file must have as many rows as its episodes are long.
    An episode with several tasks, one after the other, gets the first one, and the log counts such
    episodes.

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
        ValueError: another version, no such camera, metadata that are broken, an episode that
            cannot be read, or none that can.
        MissingDependencyError: PyArrow or PyAV is missing.

    Example:
        >>> read_lerobot("datasets/lamp", camera="observation.images.top")  # doctest: +SKIP
        [Episode(302 frames, 'switch the lamp on', successful), ...]
    """
    if bad not in ("raise", "skip"):
        raise ValueError(f"bad must be 'raise' or 'skip', got {bad!r}.")
    folder = Path(path)
    info = read_info(folder)
    camera = choose_camera(info, camera)
    columns = _row_columns(info, camera)
    rows = read_rows(folder, columns, every=outcome is not None)
    dataset = _Dataset(info, camera, rows)
    episodes, several = [], 0
    for row in tqdm(rows, desc=folder.name, unit="episode", disable=None):
        try:
            span = dataset.span(row)
            result = dataset.outcome(span) if outcome is None else outcome(row)
            episodes.append(Episode(dataset.frames(span), span.tasks[0], result))
            several += len(span.tasks) > 1
        except (ValueError, OSError) as error:
            fault = f"Episode {row['episode_index']} of {folder} cannot be read: {error}"
            if bad == "raise":
                raise ValueError(f"{fault} Skip such episodes with bad='skip'.") from error
            logger.warning("Skipped. %s", fault)
    skipped = len(rows) - len(episodes)
    if not episodes:
        raise ValueError(f"{folder} has no episode that can be read: {skipped} were skipped.")
    if skipped:
        logger.warning("Skipped %d of the %d episodes in %s.", skipped, len(rows), folder)
    if several:
        logger.warning("Took the first task of %d episodes in %s with several.", several, folder)
    return episodes


def _row_columns(info: Info, camera: str) -> dict[str, str]:
    """Return the type of each column of `meta/episodes` that is needed."""
    columns = {
        **dict.fromkeys(("episode_index", "length"), "integer"),
        **dict.fromkeys(("data/chunk_index", "data/file_index"), "integer"),
        "tasks": "strings",
    }
    if info.features[camera]["dtype"] == "video":
        video = f"videos/{camera}"
        columns |= dict.fromkeys((f"{video}/chunk_index", f"{video}/file_index"), "integer")
        columns |= dict.fromkeys((f"{video}/from_timestamp", f"{video}/to_timestamp"), "number")
    return columns


@dataclass(frozen=True)
class _Span:
    """One episode in its files.

    Attributes:
        episode: its index.
        length: number of steps, which are frames as well.
        tasks: instructions, at least one.
        data: file with its steps.
        video: file with its frames; None if the data file has them.
        start: seconds into the video at which it starts.
    """

    episode: int
    length: int
    tasks: list[str]
    data: Path
    video: Path | None
    start: float


@dataclass
class _Dataset:
    """The files of a dataset, each checked once, when the first episode in it is read."""

    info: Info
    camera: str
    rows: list[dict[str, Any]]
    _spans: dict[Path, list[_Span]] = field(default_factory=dict)
    _video_faults: dict[Path, dict[int, str]] = field(default_factory=dict)
    _steps: dict[Path, dict[int, list[Any]] | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._counts = Counter(row["episode_index"] for row in self.rows)
        for row in self.rows:
            try:
                span = self.span(row)
            except ValueError:
                continue  # raised again when its episode is read
            if span.video is not None:
                self._spans.setdefault(span.video, []).append(span)

    def span(self, row: dict[str, Any]) -> _Span:
        """Return an episode's place in its files.

        Raises:
            ValueError: values that are missing or make no sense.
        """
        episode, length, tasks = row["episode_index"], row["length"], row["tasks"]
        if episode is None or episode < 0 or self._counts[episode] > 1:
            raise ValueError(f"episode_index must be >= 0 and unique, got {episode!r}.")
        if length is None or length < 1:
            raise ValueError(f"its length must be >= 1, got {length!r}.")
        if not tasks or None in tasks:
            raise ValueError("it has no task.")
        data = self.info.data_file(*self._file_numbers(row, "data"))
        if self.info.features[self.camera]["dtype"] == "image":
            return _Span(episode, length, tasks, data, None, 0.0)
        key = f"videos/{self.camera}"
        video = self.info.video_file(self.camera, *self._file_numbers(row, key))
        start, end = row[f"{key}/from_timestamp"], row[f"{key}/to_timestamp"]
        times = [time for time in (start, end) if time is not None and abs(time) <= _MAX_SECONDS]
        if len(times) < 2:
            raise ValueError(f"its video must have a start and an end, got {start!r} and {end!r}.")
        if round((end - start) * self.info.fps) != length:
            raise ValueError(
                f"its length is {length} frames, but its video lasts from {start:.2f} to "
                f"{end:.2f} seconds, at the {self.info.fps:g} frames per second of "
                f"{self.info.folder / INFO}."
            )
        return _Span(episode, length, tasks, data, video, float(start))

    def _file_numbers(self, row: dict[str, Any], prefix: str) -> tuple[int, int]:
        chunk, file = row[f"{prefix}/chunk_index"], row[f"{prefix}/file_index"]
        if chunk is None or file is None or min(chunk, file) < 0:
            raise ValueError(
                f"{prefix}/chunk_index and file_index must be >= 0, got {chunk!r} and {file!r}."
            )
        return chunk, file

    def outcome(self, span: _Span) -> Outcome:
        """Return an episode's outcome, by its `next.success`.

        Raises:
            ValueError: a data file that cannot be read, or does not have the episode's steps.
        """
        if SUCCESS not in self.info.features:
            return "successful"
        steps = self._read_steps(span)
        if all(success is None for success in steps):
            raise ValueError(f"{span.data} has no {SUCCESS} for it.")
        return "successful" if any(steps) else "failure"

    def _read_steps(self, span: _Span) -> list[Any]:
        """Return the success of each step of an episode; None if it is unknown."""
        if span.data not in self._steps:
            try:
                self._steps[span.data] = self._read_data_file(span.data)
            except (ValueError, OSError) as error:
                self._steps[span.data] = str(error)
        file = self._steps[span.data]
        if isinstance(file, str):
            raise ValueError(file)
        steps = file.get(span.episode, [])
        if len(steps) != span.length:
            raise ValueError(
                f"{span.data} has {len(steps)} rows of episode {span.episode}; expected "
                f"{span.length}. Is the file complete?"
            )
        return steps

    def _read_data_file(self, path: Path) -> dict[int, list[Any]]:
        """Return the success of each step, by episode."""
        reports = SUCCESS in self.info.features
        table = read_table(
            path, {"episode_index": "integer", **({SUCCESS: "booleans"} if reports else {})}
        )
        episodes = table.column("episode_index").to_pylist()
        values = table.column(SUCCESS).to_pylist() if reports else [None] * len(episodes)
        steps: dict[int, list[Any]] = {}
        for episode, value in zip(episodes, values, strict=True):
            boxed = value if isinstance(value, list) else [value]  # some write it as [true]
            known = [each for each in boxed if each is not None]
            steps.setdefault(episode, []).append(any(known) if known else None)
        return steps

    def frames(self, span: _Span) -> Frames:
        """Return an episode's frames, to be read on demand.

        Raises:
            FileNotFoundError: its file is missing.
            ValueError: its file is broken, or does not fit the metadata.
        """
        if span.video is None:
            self._read_steps(span)
            return ImageFrames(span.data, self.camera, span.episode, span.length)
        if span.video not in self._video_faults:
            self._video_faults[span.video] = self._check_video(span.video)
        if fault := self._video_faults[span.video].get(span.episode):
            raise ValueError(fault)
        seconds = read_frame_times(span.video).seconds
        first = int(np.abs(seconds - span.start).argmin())
        found = seconds[first : first + span.length]
        expected = span.start + np.arange(len(found)) / self.info.fps
        off = np.abs(found - expected) * self.info.fps > _TOLERANCE
        if len(found) < span.length or off.any():
            raise ValueError(
                f"{span.video} has no frame at {expected[off.argmax()]:.3f} seconds, or has others "
                "in between. Was it re-encoded, or cut?"
            )
        return VideoFrames(span.video, first, span.length)

    def _check_video(self, path: Path) -> dict[int, str]:
        """Return faults by episode; a fault of the file itself is one of each episode in it."""
        spans, step = sorted(self._spans[path], key=lambda span: span.start), 1 / self.info.fps
        try:
            frames = VideoFrames(path)
            for index in {0, len(frames) - 1}:
                frames[[index]]
        except (ValueError, OSError) as error:
            return dict.fromkeys((span.episode for span in spans), str(error))
        end = float(read_frame_times(path).seconds[-1])
        needed = max(span.start + (span.length - 1) * step for span in spans)
        if end < needed - _TOLERANCE * step:
            fault = (
                f"the last of {len(frames)} frames in {path} is at {end:.3f} seconds, but its "
                f"{len(spans)} episodes last until {needed:.3f}: frames are missing, maybe of any "
                "of them. Download it again."
            )
            return dict.fromkeys((span.episode for span in spans), fault)
        faults: dict[int, str] = {}
        for before, after in pairwise(spans):
            if after.start < before.start + (before.length - _TOLERANCE) * step:
                fault = f"episodes {before.episode} and {after.episode} overlap in {path}."
                faults |= {before.episode: fault, after.episode: fault}
        return faults
