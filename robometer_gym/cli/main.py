"""Entry point of the command robometer-gym, also `python -m robometer_gym`.

Everything else is imported inside `main`, so that Ctrl-C in the first second prints no traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; those of the process by default.

    Returns:
        0, or 2 after an error that the user can correct, or 130 after Ctrl-C.

    Raises:
        SystemExit: from argparse: 0 after --help and --version, 2 after wrong arguments.
    """
    try:
        from robometer_gym.cli.commands import run_command

        return run_command(argv)
    except KeyboardInterrupt as interrupt:
        print(f"robometer-gym: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 130
