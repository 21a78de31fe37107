"""What to do when a worker process of a vector environment has died.

Gymnasium and Stable-Baselines3 raise a bare EOFError then, and their `close` fails or waits for
ever. Knows only that a vector environment with workers has `processes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from typing import Any

from robometer_gym.capture import SubEnvironmentError
from robometer_gym.transport import remove_leftovers

__all__ = ["close_workers", "naming_dead_workers"]

_BROKEN_PIPE = (EOFError, ConnectionError)
_PATIENCE = 5.0  # seconds for the system to tell which process has died


@contextmanager
def naming_dead_workers(env: Any) -> Iterator[None]:
    """Turn the broken pipe of a dead worker into an error that says which one it was.

    All other workers are ended too: the vector environment cannot go on without one.

    Args:
        env: the vector environment itself, without wrappers; it may have no workers.

    Raises:
        SubEnvironmentError: a worker has died.
    """
    try:
        yield
    except _BROKEN_PIPE as error:
        if not getattr(env, "processes", None):
            raise
        wait([process.sentinel for process in env.processes], _PATIENCE)
        dead = [
            f"environment {index} (exit code {process.exitcode})"
            for index, process in enumerate(env.processes)
            if process.exitcode is not None
        ]
        _end(env)
        raise SubEnvironmentError(
            f"The worker process of {', '.join(dead) or 'an environment'} has died, and all others "
            "have been ended. What it said last went to its standard error. A negative exit code "
            "is the signal that ended it: -9 is often the system, out of memory."
        ) from error


def close_workers(env: Any, close: Callable[[], None]) -> None:
    """Close a vector environment; where a worker is dead, end the others.

    Args:
        env: the vector environment itself, without wrappers.
        close: closes it, wrappers and all.
    """
    try:
        with suppress(*_BROKEN_PIPE):
            close()
    finally:
        _end(env)


def _end(env: Any) -> None:
    for process in getattr(env, "processes", ()):
        process.terminate()
    for process in getattr(env, "processes", ()):
        process.join(_PATIENCE)
        process.kill()
        remove_leftovers(process.pid)
    env.closed = True  # so that nobody waits for their answers
