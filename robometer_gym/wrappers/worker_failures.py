"""Errors and clean-up for dead worker processes of vector environments.

Gymnasium and Stable-Baselines3 raise a bare EOFError then, and their `close` fails or waits for
ever. Knows only that a vector environment with workers has `processes`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any

from robometer_gym.wrappers.frame_capture import SubEnvironmentError
from robometer_gym.wrappers.shared_frames import remove_leftovers

__all__ = ["close_workers", "report_dead_workers"]

_BROKEN_PIPE = (EOFError, ConnectionError)
_JOIN_TIMEOUT_S = 5.0


class report_dead_workers:  # noqa: N801 - a context manager; as a generator it costs 1 us
    """Turn the broken pipe of a dead worker into an error that names the worker.

    All other workers are ended too: the vector environment cannot go on without one, nor after a
    Ctrl-C in the middle of a call.

    Args:
        env: the vector environment itself, without wrappers; it may have no workers.

    Raises:
        SubEnvironmentError: a worker has died.
    """

    def __init__(self, env: Any) -> None:
        self._env = env

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> None:
        if error is None or not getattr(self._env, "processes", None):
            return
        if isinstance(error, _BROKEN_PIPE):
            raise _dead_worker_error(self._env) from error
        if isinstance(error, KeyboardInterrupt):
            # Ctrl-C reaches the workers as well, and their replies may come at any time.
            _end_workers(self._env)


def _dead_worker_error(env: Any) -> SubEnvironmentError:
    wait([process.sentinel for process in env.processes], _JOIN_TIMEOUT_S)
    dead = [
        f"environment {index} (exit code {process.exitcode})"
        for index, process in enumerate(env.processes)
        if process.exitcode is not None
    ]
    _end_workers(env)
    return SubEnvironmentError(
        f"The worker process of {', '.join(dead) or 'an environment'} has died, and all others "
        "have been ended. Its last messages went to its standard error. A negative exit code "
        "is the signal that ended it: -9 is often the system, out of memory."
    )


def close_workers(env: Any, close: Callable[[], None]) -> None:
    """Close a vector environment; if a worker is dead, end the others.

    Args:
        env: the vector environment itself, without wrappers.
        close: closes it, wrappers and all.
    """
    try:
        with suppress(*_BROKEN_PIPE):
            close()
    finally:
        _end_workers(env)


def _end_workers(env: Any) -> None:
    for process in getattr(env, "processes", ()):
        process.terminate()
    for process in getattr(env, "processes", ()):
        process.join(_JOIN_TIMEOUT_S)
        process.kill()
        remove_leftovers(process.pid)
    env.closed = True  # or its `close` would wait for the workers' replies
