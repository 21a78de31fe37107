"""Episodes (frames, a task and an outcome), and folders of them: mp4 files beside a list.

A folder holds videos and `episodes.jsonl`, one line per episode:

    {"video": "episode-000000.mp4", "task": "open the drawer", "outcome": "failure",
     "partial_success": null, "cutoff": 1.0, "frames": 40, "fps": 20.0}

"video" (a path in the folder), "task" and "outcome" are required; the rest is optional, and other
keys are ignored. Knows nothing of environments, models or sampling.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from robometer_gym.data.video import write_video
from robometer_gym.data.video_frames import VideoFrames
from robometer_gym.tracking.window import shrink
from robometer_gym.validation import check_task

__all__ = ["OUTCOMES", "Episode", "EpisodeWriter", "Frames", "Outcome", "read_episodes"]

logger = logging.getLogger(__name__)

Outcome = Literal["successful", "suboptimal", "failure"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
"""From the best to the worst."""

_LIST = "episodes.jsonl"
_MAX_LIST_BYTES = 2**28
_REQUIRED = ("video", "task", "outcome")
_TYPES: dict[str, tuple[type, ...]] = {
    "video": (str,),
    "task": (str,),
    "outcome": (str,),
    "partial_success": (int, float),
    "cutoff": (int, float),
    "frames": (int,),
}


class Frames(Protocol):
    """The frames of an episode, read on demand or held in memory.

    An array (T, H, W, 3) uint8 RGB fits; `VideoFrames` reads them from a file.
    """

    def __len__(self) -> int:
        """Return T."""
        ...

    def __getitem__(self, indices: Sequence[int], /) -> NDArray[np.uint8]:
        """Return the frames at `indices`, in that order: (n, H, W, 3) uint8 RGB."""
        ...


@dataclass(frozen=True)
class _Shrunk:
    frames: Frames
    frame_size: int

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, indices: Sequence[int], /) -> NDArray[np.uint8]:
        return np.stack([shrink(frame, self.frame_size) for frame in self.frames[indices]])


@dataclass(frozen=True, eq=False)
class Episode:
    """One episode of one task.

    Attributes:
        frames: T >= 1 frames, oldest first: an array (T, H, W, 3) uint8 RGB in [0, 255], or an
            object that returns such an array for a list of indices.
        task: the instruction.
        outcome: "successful"; "suboptimal", on the way but not done; or "failure".
        partial_success: the share of the task that was done at the end, in [0, 1]; None if
            unknown.
        cutoff: the share of the frames, in (0, 1], after which a successful episode is done: with
            0.9, the first 90 of 100 frames. With 1.0 it is done at the last frame.

    Raises:
        TypeError: the task is not a string.
        ValueError: no frames, an empty task, an unknown outcome, or a number outside its range.

    Example:
        >>> frames = np.zeros((20, 64, 64, 3), np.uint8)
        >>> Episode(frames, "open the drawer", "failure")
        Episode(20 frames, 'open the drawer', failure)
    """

    frames: Frames
    task: str
    outcome: Outcome = "successful"
    partial_success: float | None = None
    cutoff: float = 1.0

    def __post_init__(self) -> None:
        check_task(self.task)
        if len(self.frames) < 1:
            raise ValueError("An episode needs at least one frame, got none.")
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome must be one of {OUTCOMES}, got {self.outcome!r}.")
        if self.partial_success is not None and not 0.0 <= self.partial_success <= 1.0:
            raise ValueError(
                f"partial_success must be in [0, 1] or None, got {self.partial_success!r}."
            )
        if not 0.0 < self.cutoff <= 1.0:
            raise ValueError(f"cutoff must be in (0, 1], got {self.cutoff!r}.")

    def shrink(self, frame_size: int) -> Episode:
        """Return a copy whose frames are shrunk to this shortest edge when they are read."""
        return replace(self, frames=_Shrunk(self.frames, frame_size))

    def __len__(self) -> int:
        return len(self.frames)

    def __repr__(self) -> str:
        return f"Episode({len(self)} frames, {self.task!r}, {self.outcome})"


def read_episodes(
    folder: str | os.PathLike[str], *, bad: Literal["raise", "skip"] = "raise"
) -> list[Episode]:
    """Read a folder of episodes, as `EpisodeWriter` writes them or made by hand.

    Every video is opened and checked at once; its frames are read on demand. They differ slightly
    from those that were written: h264 is lossy, and an odd height or width comes back even, with
    its last row or column twice.

    Args:
        folder: holds `episodes.jsonl` and its videos; see the docstring of this module.
        bad: "raise" for a line or video that cannot be read, or "skip" it with a warning in the
            log.

    Returns:
        The episodes in the order of the list, at least one.

    Raises:
        FileNotFoundError: there is no such folder, or no `episodes.jsonl` in it.
        ValueError: a line or a video that cannot be read, or none that can.
        MissingDependencyError: PyAV is missing.
    """
    folder = Path(folder)
    if bad not in ("raise", "skip"):
        raise ValueError(f"bad must be 'raise' or 'skip', got {bad!r}.")
    lines = _read_lines(folder)
    episodes = []
    for number, line in tqdm(lines, desc=folder.name, unit="episode", disable=None):
        try:
            episodes.append(_read_episode(folder, line))
        except (ValueError, OSError) as error:
            fault = f"Line {number} of {folder / _LIST} is no episode: {error}"
            if bad == "raise":
                raise ValueError(
                    f"{fault} Fix or remove the line, or skip such episodes with bad='skip'."
                ) from error
            logger.warning("Skipped. %s", fault)
    skipped = len(lines) - len(episodes)
    if not episodes:
        raise ValueError(
            f"{folder / _LIST} has no episode"
            + (f" that can be read: all {skipped} were skipped." if skipped else ": it is empty.")
        )
    if skipped:
        logger.warning("Skipped %d of the %d episodes in %s.", skipped, len(lines), folder)
    return episodes


def _read_lines(folder: Path) -> list[tuple[int, bytes]]:
    """Return the lines that are not blank, each with its number from 1."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    if not (folder / _LIST).is_file():
        raise FileNotFoundError(
            f"{folder} has no {_LIST}. A folder of episodes holds it and the videos that it names; "
            "RecordEpisodes and EpisodeWriter write one. Read a LeRobot dataset with "
            "read_lerobot."
        )
    if (size := (folder / _LIST).stat().st_size) > _MAX_LIST_BYTES:
        raise ValueError(f"{folder / _LIST} has {size} bytes; at most {_MAX_LIST_BYTES} are read.")
    lines = (folder / _LIST).read_bytes().splitlines()
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _read_episode(folder: Path, line: bytes) -> Episode:
    row = _parse(line)
    video = PurePosixPath(row["video"])
    if video.is_absolute() or ".." in video.parts:
        raise ValueError(f"video must be a path inside the folder, got {row['video']!r}.")
    frames = VideoFrames(folder / video)
    if row.get("frames", len(frames)) != len(frames):
        raise ValueError(
            f"frames is {row['frames']}, but {folder / video} has {len(frames)}. "
            "Was it replaced, or cut off?"
        )
    return Episode(
        frames, row["task"], row["outcome"], row.get("partial_success"), row.get("cutoff", 1.0)
    )


def _parse(line: bytes) -> dict[str, Any]:
    """Return the keys of a line that are not null, after a check of the types of known keys."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it must be JSON, got {_abbreviate(line)} ({error}).") from error
    if not isinstance(row, dict):
        raise ValueError(f"it must be a JSON object {{...}}, got {_abbreviate(line)}.")
    row = {key: value for key, value in row.items() if value is not None}
    if missing := [key for key in _REQUIRED if key not in row]:
        raise ValueError(f"it lacks {', '.join(missing)}; it has {', '.join(row) or 'nothing'}.")
    for key, types in _TYPES.items():
        value = row.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, types)):
            expected = " or ".join(type_.__name__ for type_ in types)
            raise ValueError(f"{key} must be {expected}, got {value!r}.")
    return row


def _abbreviate(line: bytes) -> str:
    text = line.decode(errors="replace")
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


class EpisodeWriter:
    """Writer of episodes into a folder, for `read_episodes`.

    Makes the folder if it is missing and appends to one that has episodes, also from several
    writers at once. The folder can be read at any moment, even after the program was killed: a
    video gets its name when it is complete, and only then enters the list. A killed program leaves
    an incomplete hidden file, which is ignored.

    Args:
        folder: folder of the episodes.

    Example:
        >>> import tempfile
        >>> frames = np.zeros((20, 64, 64, 3), np.uint8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writer = EpisodeWriter(folder)
        ...     path = writer.write(Episode(frames, "open the drawer", "failure"), fps=10)
        ...     episodes = read_episodes(folder)
        >>> path.name, episodes
        ('episode-000000.mp4', [Episode(20 frames, 'open the drawer', failure)])
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._number = self._next_number()

    def write(self, episode: Episode, fps: float) -> Path:
        """Add an episode; all its frames are held in memory meanwhile.

        Args:
            episode: the episode to write.
            fps: frames per second, > 0.

        Returns:
            The path of its h264 video.

        Raises:
            ValueError: frames that are not (T, H, W, 3) uint8, or an fps <= 0 or not finite.
            MissingDependencyError: PyAV is missing.
        """
        video, partial = self._claim()
        try:
            write_video(partial, episode.frames[list(range(len(episode)))], fps)
            partial.rename(video)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        self._append(
            video=video.name,
            task=episode.task,
            outcome=episode.outcome,
            partial_success=(
                None if episode.partial_success is None else float(episode.partial_success)
            ),
            cutoff=float(episode.cutoff),
            frames=len(episode),
            fps=float(fps),
        )
        return video

    def _claim(self) -> tuple[Path, Path]:
        """Return the path of a new video, and that of the hidden file that reserves its name."""
        while True:
            video = self.folder / f"episode-{self._number:06d}.mp4"
            self._number += 1
            partial = video.with_name(f".{video.name}")
            try:
                partial.touch(exist_ok=False)
            except FileExistsError:
                continue  # another writer is writing it, or was killed
            if not video.exists():
                return video, partial
            partial.unlink()  # another writer was faster

    def _next_number(self) -> int:
        """Return one more than the number of any video in the folder or in the list."""
        names = [path.name for path in self.folder.iterdir()]
        if _LIST in names:
            names.append((self.folder / _LIST).read_text("utf-8", errors="replace"))
        numbers = [int(n) for name in names for n in re.findall(r"episode-(\d+)\.mp4", name)]
        return max(numbers, default=-1) + 1

    def _append(self, **row: Any) -> None:
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        with (self.folder / _LIST).open("a+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = b"\n" + line  # edited by hand, or cut off by a full disk
            file.write(line)
