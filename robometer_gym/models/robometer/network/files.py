"""Reading of small text files that may be damaged or hostile.

Only regular files up to a size are read: a FIFO would block for ever, a device has no end. Knows
nothing of the fields in the files.
"""

from __future__ import annotations

import json
import os
import reprlib
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from robometer_gym.reward_model import CheckpointError

__all__ = ["check_regular_file", "read_mapping"]

_MAX_BYTES = 64 << 20  # the tokenizer of Qwen3-VL, the largest file in use, has 11 MB
_MAX_DEPTH = 32


class _PlainLoader(yaml.SafeLoader):
    """Reads objects of the authors' code, by their tags, as plain dicts and lists."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse merge keys: nested ones take exponential time, and the authors use none."""
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.constructor.ConstructorError(None, None, "merge keys are not supported")


def _plain(loader: yaml.SafeLoader, _suffix: str, node: yaml.Node) -> object:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return node.value


_PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/", _plain)


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the table in a JSON or YAML file.

    Raises:
        CheckpointError: not a regular file, too large, unreadable, malformed, or no table.
    """
    check_regular_file(path, _MAX_BYTES)
    try:
        # JSON is YAML as well, but its own parser is stricter.
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else yaml.load(text, _PlainLoader)
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}: {error}). Is this the folder of a "
            "checkpoint, and was it downloaded whole?"
        ) from error
    _check_depth(value, path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a table of settings, got {reprlib.repr(value)}.")
    return value


def _check_depth(value: object, path: Path) -> None:
    """Raise for a value that is nested too deeply to be copied or printed."""
    level: list[Any] = [value] if isinstance(value, dict | list) else []
    for _ in range(_MAX_DEPTH):
        children = (child for each in level for child in _children(each))
        # Each container once: YAML's aliases may repeat one, or contain it in itself.
        level = list(
            {id(child): child for child in children if type(child) in (dict, list)}.values()
        )
        if not level:
            return
    raise CheckpointError(f"{path} is nested more than {_MAX_DEPTH} levels deep.")


def _children(container: Any) -> Iterable[object]:
    return container.values() if type(container) is dict else container


def check_regular_file(path: Path, max_bytes: int | None = None) -> None:
    """Raise unless `path` is a regular file that may be read.

    Raises:
        CheckpointError: missing, no regular file, unreadable, or larger than `max_bytes`.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is no regular file. Is this the folder of a checkpoint?")
    if not os.access(path, os.R_OK):
        raise CheckpointError(f"{path} may not be read. Check its permissions.")
    if max_bytes is not None and status.st_size > max_bytes:
        raise CheckpointError(
            f"{path} has {status.st_size} bytes, and at most {max_bytes} are read. "
            "Is this the right file?"
        )
