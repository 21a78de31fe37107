"""Settings of all tests: reproducible Hypothesis examples, a preloaded fork server, `no_hanging`.

Hypothesis draws the same examples on every machine, and leaves no files behind. Worker processes
are forked from a server that has imported the slow libraries; each would import them for seconds.
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
    """Fail a test that waits for ever on a worker process, after ten minutes.

    Not sooner: on a loaded machine a test may take a hundred times as long.
    """

    def stop(*_: Any) -> None:
        raise TimeoutError("This test hangs.")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(600)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
