"""Lookup of checkpoint files: from a hub id, a path or "demo" to a local folder.

Knows nothing of the content of the files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from robometer_gym.reward_model import CheckpointError

__all__ = ["find_files"]


def find_files(
    id_or_path: str | os.PathLike[str],
    patterns: Sequence[str],
    *,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return a folder with the requested files, downloaded or from the cache of the hub.

    Args:
        id_or_path: a folder, a hub id "name/model", or "demo", the checkpoint of the package.
        patterns: shell patterns of the files; only for the hub.
        revision: branch, tag or commit; only for the hub.
        local_files_only: make no connection, use only the cache of the hub.

    Raises:
        CheckpointError: there is no such folder, or the hub does not have it or cannot be reached.
    """
    if id_or_path == "demo":
        return Path(str(files("robometer_gym") / "assets" / "demo"))
    path = Path(id_or_path).expanduser()
    if path.is_dir():
        return path
    if _is_path(id_or_path):
        problem = "is a file; give the folder that holds it" if path.is_file() else "does not exist"
        raise CheckpointError(f"The checkpoint folder {os.fspath(id_or_path)!r} {problem}.")
    try:
        return Path(
            snapshot_download(
                os.fspath(id_or_path),
                revision=revision,
                allow_patterns=list(patterns),
                local_files_only=local_files_only,
            )
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise CheckpointError(
            f"{os.fspath(id_or_path)!r}{at} is neither a folder here nor in the cache, and could "
            "not be downloaded from the Hugging Face Hub. Is the id right, and the network up? To "
            "do without a network, download weights and tokenizer elsewhere and give the folders: "
            "see 'Where the real weights come from' in the README. "
            f"({type(error).__name__}: {error})"
        ) from None  # its text is the only helpful part


def _is_path(id_or_path: str | os.PathLike[str]) -> bool:
    """Return whether this can only be a path: an id is "name/model"."""
    if not isinstance(id_or_path, str):
        return True
    return (
        id_or_path.startswith((".", "/", "~"))
        or id_or_path.count("/") != 1
        or Path(id_or_path).exists()
    )
