"""Options that several commands share, and the values they stand for.

The options of the reward and of loading a model are generated from `RewardSettings` and
`LoadingOptions`, so that a new setting needs no second place.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from robometer_gym.models.loading import DEFAULT_REWARD_MODEL, LazyRewardModel, LoadingOptions
from robometer_gym.tracking.settings import RewardOptions, RewardSettings
from robometer_gym.validation import MissingDependencyError

__all__ = [
    "SETTINGS",
    "add_common_options",
    "add_loading_options",
    "add_model_option",
    "add_setting_options",
    "at_least",
    "load_model",
    "print_files",
    "read_loading_options",
    "read_setting_options",
]

_LOADING_HELP = {
    "revision": "branch, tag or commit on the hub (default: the newest)",
    "device": "cpu, cuda, cuda:1, ... (default: a GPU if there is one)",
    "dtype": "(default: bfloat16 on a GPU, float32 on a CPU)",
    "processor": "hub id or folder of tokenizer and image settings (default: the checkpoint's own, "
    "or those of its base model)",
    "quantization": "int8 or nf4 for small cards, float8 for speed (default: none)",
    "engine": "fast computes only new frames, eager the whole clip (default: fast)",
    "max_streams": "episodes whose computation the fast engine keeps (default: 64)",
    "local_files_only": "never connect to the hub",
    "timeout": "of a server: seconds for one prediction, retries included (default: 60)",
    "lossy_jpeg_quality": "of a server: send frames as JPEG of this quality, which changes the "
    "predictions (default: send them as they are)",
}

# An evaluation waits for every prediction.
_BACKGROUND = ("background", "max_wait", "timeout")
SETTINGS = tuple(f.name for f in fields(RewardSettings) if f.name not in _BACKGROUND)
"""The reward settings that make sense on a command line."""


def add_common_options(
    parser: argparse.ArgumentParser, out: Path, run: Callable[[argparse.Namespace], None]
) -> None:
    """Add the options of every command, and the function that runs it."""
    parser.add_argument(
        "--out",
        type=Path,
        default=out,
        metavar="DIR",
        help="folder of the files that are written (default: %(default)s)",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """Add --model."""
    parser.add_argument(
        "--model",
        type=_model_name,
        default=DEFAULT_REWARD_MODEL,
        help="hub id, folder, 'demo', or a server's http://HOST:PORT (default: %(default)s)",
    )


def add_loading_options(parser: argparse.ArgumentParser) -> None:
    """Add --model and an option for each of `LoadingOptions`.

    Not for `token`, which every user of the machine could read in the list of processes: it comes
    from the environment.
    """
    add_model_option(parser)
    group = parser.add_argument_group("loading the model")
    for name, hint in get_type_hints(LoadingOptions).items():
        if name != "token":
            _add_option(group, name, hint, _LOADING_HELP[name])


def read_loading_options(arguments: argparse.Namespace) -> LoadingOptions:
    """Return the loading options that were given."""
    return _read_given(arguments, LoadingOptions.__annotations__)  # type: ignore[return-value]


def load_model(model: LazyRewardModel) -> None:
    """Load a model now, which imports torch; name a missing library in words.

    Raises:
        MissingDependencyError: a library that the model or its quantization needs is missing.
        Exception: see `LazyRewardModel.load`.
    """
    try:
        model.load()
    except ImportError as error:
        raise MissingDependencyError(str(error)) from error


def add_setting_options(parser: argparse.ArgumentParser, names: Collection[str] = SETTINGS) -> None:
    """Add an option for each of some fields of `RewardSettings`, with its description from there.

    Args:
        parser: of a command.
        names: of the fields.
    """
    group = parser.add_argument_group("reward settings")
    hints, described = get_type_hints(RewardSettings), _describe_fields(RewardSettings)
    for field in fields(RewardSettings):
        if field.name in names:
            shown = f"{described.get(field.name, '')} (default: {field.default})"
            _add_option(group, field.name, hints[field.name], shown.strip())


def read_setting_options(
    arguments: argparse.Namespace, names: Collection[str] = SETTINGS
) -> RewardOptions:
    """Return the settings that were given, of those that `add_setting_options` has added."""
    given = _read_given(arguments, names)
    if cameras := given.get("camera"):
        several = {name: name for name in cameras}
        given["camera"] = several if len(several) > 1 else cameras[0]
    return given  # type: ignore[return-value]


def _model_name(text: str) -> str:
    """Parse the name of a reward model; a misspelled 'demo' would be looked for on the hub."""
    if text != "demo" and not Path(text).exists() and get_close_matches(text.lower(), ["demo"]):
        raise argparse.ArgumentTypeError(
            f"must be a hub id such as {DEFAULT_REWARD_MODEL}, a folder, or 'demo', got {text!r}. "
            "Did you mean 'demo'?"
        )
    return text


def at_least(minimum: int) -> Callable[[str], int]:
    """Return a parser of integers >= `minimum`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"must be an integer >= {minimum}, got {text!r}")
        return int(text)

    return parse


def print_files(files: Sequence[Path]) -> None:
    """Print where files were written."""
    print("\nWrote " + "\n      ".join(map(str, files)))


def _add_option(group: Any, name: str, hint: Any, described: str) -> None:
    """Add one option; it is missing from the namespace unless it is given."""
    flag, described = f"--{name.replace('_', '-')}", described.replace("%", "%%")
    more: dict[str, Any] = {"default": argparse.SUPPRESS, "help": described}
    kinds = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
    optional, kinds = NoneType in kinds, kinds - {NoneType}
    if name == "camera":
        more |= {"nargs": "+", "metavar": "KEY"}
        more["help"] = "render, or an observation key; of several the mean counts (default: render)"
    elif hint is bool and name in LoadingOptions.__annotations__:
        more["action"] = "store_true"
    elif hint is bool:
        more["action"] = argparse.BooleanOptionalAction
    elif int in kinds and optional:
        more |= {"type": lambda text: at_least(0)(text) or None, "metavar": "N"}
        more["help"] += "; 0 means None"
    elif int in kinds:
        more |= {"type": at_least(1), "metavar": "N"}
    elif float in kinds:
        more |= {"type": float, "metavar": "X"}
    elif any(get_origin(kind) is Literal for kind in kinds) and not optional:
        more["choices"] = get_args(hint)
    else:
        more["metavar"] = name.upper()
    group.add_argument(flag, **more)


def _read_given(arguments: argparse.Namespace, names: Collection[str]) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}


def _describe_fields(kind: type) -> dict[str, str]:
    """Return the first sentence on each attribute, from the docstring of a class."""
    section = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:")[2]
    section = section.partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section, re.MULTILINE)
    return {name: re.split(r"\.(?: |$)", " ".join(text.split()))[0] for name, text in entries}
