"""Helpers of the tests of episode folders: gray frames and lists."""

import json
from pathlib import Path
from typing import Any

import numpy as np

TASK = "open the drawer"


def gray_frames(length: int = 6, first: int = 40) -> np.ndarray:
    """Return frames that show their index, also after a codec: frame t has gray first + 20 t."""
    levels = first + 20 * np.arange(length)
    return np.broadcast_to(levels[:, None, None, None], (length, 48, 64, 3)).astype(np.uint8)


def levels(frames: np.ndarray) -> list[int]:
    """Return the gray of each frame, to the nearest ten."""
    return [round(float(frame.mean()) / 10) * 10 for frame in frames]


def write_list(folder: Path, *lines: Any) -> Path:
    """Write an `episodes.jsonl`; lines that are not strings become JSON."""
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "episodes.jsonl").write_bytes("\n".join(text).encode(errors="surrogateescape"))
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of the list."""
    return [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]


def videos(folder: Path) -> list[str]:
    """Return the names of all files in the folder but the list, hidden files too."""
    return sorted(path.name for path in folder.iterdir() if path.name != "episodes.jsonl")


GOOD = {"video": "video.mp4", "task": TASK, "outcome": "successful"}
