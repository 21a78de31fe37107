"""Episode: frames, a task and how it went; and folders of them, mp4 files beside a list.

A folder holds videos and `episodes.jsonl`, one line per episode:

    {"video": "episode-000000.mp4", "task": "open the drawer", "outcome": "failure",
     "partial_success": null, "cutoff": 1.0, "frames": 40, "fps": 20.0}

"video" (a path in the folder), "task" and "outcome" must be there; the rest may be left out, and
keys of one's own may be added. Knows nothing of environments, of models or of how episodes are
sampled.
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

from robometer_gym.data.video import VideoFrames, write_video
from robometer_gym.tracking.window import shrink
from robometer_gym.validation import check_task

__all__ = ["OUTCOMES", "Episode", "EpisodeWriter", "Frames", "Outcome", "read_episodes"]

logger = logging.getLogger(__name__)

Outcome = Literal["successful", "suboptimal", "failure"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
"""From the best to the worst."""

_LIST = "episodes.jsonl"
_REQUIRED = ("video", "task", "outcome")
_KINDS: dict[str, tuple[type, ...]] = {
    "video": (str,),
    "task": (str,),
    "outcome": (str,),
    "partial_success": (int, float),
    "cutoff": (int, float),
    "frames": (int,),
}


class Frames(Protocol):
    """The frames of an episode, of which only those asked for need be in memory.

    An array (T, H, W, 3) uint8 RGB is one; `VideoFrames` reads them from a file.
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
    """One attempt at a task.

    Attributes:
        frames: T >= 1 frames, oldest first: an array (T, H, W, 3) uint8 RGB in [0, 255], or
            anything that gives such an array for a list of indices.
        task: the instruction, in words.
        outcome: "successful"; "suboptimal", on the way but not done; or "failure".
        partial_success: how much of the task was done at the end, in [0, 1]; None where nobody
            judged it.
        cutoff: the share of the frames, in (0, 1], after which a successful episode is done: of
            100 frames and 0.9 the first 90 lead there. 1.0 is done with the last frame.

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
        """Return the same with frames shrunk, when they are read, to this shortest edge."""
        return replace(self, frames=_Shrunk(self.frames, frame_size))

    def __len__(self) -> int:
        return len(self.frames)

    def __repr__(self) -> str:
        return f"Episode({len(self)} frames, {self.task!r}, {self.outcome})"


def read_episodes(
    folder: str | os.PathLike[str], *, bad: Literal["raise", "skip"] = "raise"
) -> list[Episode]:
    """Read a folder of episodes, as `EpisodeWriter` writes them or made by hand.

    Every video is opened and checked at once; its frames are read only when asked for. They are
    nearly those that were written: h264 loses a little, and an odd height or width comes back
    even, with its last row or column twice.

    Args:
        folder: holds `episodes.jsonl` and the videos that it names; see the head of this module.
        bad: what to do with a line or video that cannot be read: "raise", or "skip" it with a
            warning in the log.

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
        except (ValueError, FileNotFoundError) as error:
            what = f"Line {number} of {folder / _LIST} is no episode: {error}"
            if bad == "raise":
                raise ValueError(
                    f"{what} Mend or remove the line, or leave such episodes out with bad='skip'."
                ) from error
            logger.warning("Skipped. %s", what)
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
    """The lines that are not blank, each with its number from 1."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    if not (folder / _LIST).is_file():
        raise FileNotFoundError(
            f"{folder} has no {_LIST}. A folder of episodes holds it and the videos that it names; "
            "RecordEpisodes and EpisodeWriter write one. A LeRobot dataset is read with "
            "read_lerobot."
        )
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
            f"frames says {row['frames']}, but {folder / video} has {len(frames)}. "
            "Was it replaced, or cut off?"
        )
    return Episode(
        frames, row["task"], row["outcome"], row.get("partial_success"), row.get("cutoff", 1.0)
    )


def _parse(line: bytes) -> dict[str, Any]:
    """The keys of a line that are not null, those that we know being of the right kind."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"it must be JSON, got {_cut(line)} ({error}).") from error
    if not isinstance(row, dict):
        raise ValueError(f"it must be a JSON object {{...}}, got {_cut(line)}.")
    row = {key: value for key, value in row.items() if value is not None}
    if missing := [key for key in _REQUIRED if key not in row]:
        raise ValueError(f"it lacks {', '.join(missing)}; it has {', '.join(row) or 'nothing'}.")
    for key, kinds in _KINDS.items():
        value = row.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{key} must be {expected}, got {value!r}.")
    return row


def _cut(line: bytes) -> str:
    text = line.decode(errors="replace")
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


class EpisodeWriter:
    """Writes episodes into a folder, which `read_episodes` reads.

    The folder is made if need be; one that has episodes already gets more of them, also from
    several writers at once. It can be read at any moment, even after the program was killed: a
    video takes its name when it is whole, and only then does the list name it. What a killed
    program was writing stays behind as a hidden file, in nobody's way.

    Args:
        folder: where the episodes go.

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
        self._number = self._number_after_all()

    def write(self, episode: Episode, fps: float) -> Path:
        """Add an episode, all of whose frames are then in memory.

        Args:
            episode: what to write.
            fps: frames per second, > 0.

        Returns:
            Its video, of h264 like all that `write_video` writes.

        Raises:
            ValueError: frames that are not (T, H, W, 3) uint8, or an fps that is no rate.
            MissingDependencyError: PyAV is missing.
        """
        video, aside = self._claim()
        try:
            write_video(aside, episode.frames[list(range(len(episode)))], fps)
            aside.rename(video)
        except BaseException:
            aside.unlink(missing_ok=True)
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
        """A video that is not there yet, and the hidden file that keeps its name for us."""
        while True:
            video = self.folder / f"episode-{self._number:06d}.mp4"
            self._number += 1
            aside = video.with_name(f".{video.name}")
            try:
                aside.touch(exist_ok=False)
            except FileExistsError:
                continue  # another writer is at it, or was killed
            if not video.exists():
                return video, aside
            aside.unlink()  # another writer was faster

    def _number_after_all(self) -> int:
        """One more than in the name of any video, here or only in the list."""
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
