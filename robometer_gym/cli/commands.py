"""The commands of robometer-gym: their parser, their log and their errors."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from gymnasium.error import DependencyNotInstalled

import robometer_gym
from robometer_gym.cli import demo, eval, score, serve, train
from robometer_gym.reward_model import RewardModelError
from robometer_gym.validation import MissingDependencyError

__all__ = ["run_command"]

# Errors that a user can most often correct; CheckpointError is a RewardModelError, and
# FileNotFoundError an OSError. Anything else is a bug and keeps its traceback.
_USER_ERRORS = (
    RewardModelError,
    ValueError,
    TypeError,
    OSError,
    FloatingPointError,
    DependencyNotInstalled,
    MissingDependencyError,
)


def run_command(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments and run the command; see `robometer_gym.cli.main.main`."""
    arguments = _make_parser().parse_args(argv)
    try:
        if "out" in arguments and arguments.out.exists() and not arguments.out.is_dir():
            raise ValueError(f"--out must be a folder, got the file {arguments.out}.")
        with _log_to_stderr():
            arguments.run(arguments)
    except _USER_ERRORS as error:
        if arguments.debug:
            raise
        print(f"robometer-gym: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="robometer-gym",
        description="Robometer, a video-language reward model, from the command line.",
        epilog="example: robometer-gym demo",
    )
    parser.add_argument("--version", action="version", version=robometer_gym.__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (score, eval, train, serve, demo):
        command.add_parser(commands)
    return parser


@contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Show the package's log on stderr, and leave its logger as it was."""
    logger = logging.getLogger("robometer_gym")
    handler, before = logging.StreamHandler(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
