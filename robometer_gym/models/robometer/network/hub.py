"""Lookup of checkpoint files: from a hub id, a path or "demo" to a local folder.

Knows nothing of the content of the files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from difflib import get_close_matches
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
    name = os.fspath(id_or_path)
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            return path
        exists, is_path = path.exists(), isinstance(id_or_path, os.PathLike)
    except (OSError, RuntimeError, ValueError) as error:  # such as a name that is too long
        raise CheckpointError(
            f"The checkpoint {name!r:.200} cannot be looked up: {error}"
        ) from None
    if exists:
        raise CheckpointError(
            f"The checkpoint folder {name!r} is no folder; give the folder that holds the file."
        )
    if is_path or name.startswith((".", "/", "~")) or name.count("/") != 1:
        hint = (
            " Did you mean 'demo'?" if get_close_matches(name.lower(), ["demo"], cutoff=0.5) else ""
        )
        raise CheckpointError(
            f"The checkpoint folder {name!r} does not exist.{hint} A hub id has the form "
            "'name/model'; 'demo' is the small checkpoint of the package."
        )
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(patterns),
                local_files_only=local_files_only,
            )
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        at = f" at revision {revision!r}" if revision else ""
        if local_files_only:
            raise CheckpointError(
                f"{name!r}{at} is neither a folder here nor in the cache of the hub, and "
                "local_files_only=True allows no download. Load it once without, or give a folder. "
                f"({type(error).__name__})"
            ) from None
        raise CheckpointError(
            f"{name!r}{at} is neither a folder here nor in the cache, and could not be downloaded "
            "from the Hugging Face Hub. Is the id right, and the network up? To do without a "
            "network, download weights and tokenizer elsewhere and give the folders, as in "
            f"docs/checkpoints.md. ({type(error).__name__}: {error})"
        ) from None  # its text is the only helpful part
