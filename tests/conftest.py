"""Hypothesis draws the same examples on every machine, and leaves no files behind.

Worker processes are forked from a server that has imported what takes seconds, or each would.

`no_hanging` is for tests with worker processes: one that waits for ever fails instead.
"""

import multiprocessing
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("reproducible", derandomize=True, deadline=None, database=None)
settings.load_profile("reproducible")

multiprocessing.set_forkserver_preload(["robometer_gym", "stable_baselines3.common.env_util"])


@pytest.fixture
def no_hanging() -> Iterator[None]:
    """Fail after two minutes instead of waiting for ever."""

    def stop(*_: Any) -> None:
        raise TimeoutError("This test hangs.")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
