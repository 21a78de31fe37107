"""The benchmark of the reward server runs as it is; its counted figures are exact."""

import json
import os
import subprocess
import sys
from typing import Any

from tests.paths import ROOT


def run(*arguments: str) -> dict[str, Any]:
    """Run the benchmark in a process of its own, and return its JSON."""
    done = subprocess.run(
        [sys.executable, "benchmarks/reward_server.py", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_it_counts_bytes_and_batches():
    """A reader would decide from figures that the benchmark no longer measures."""
    result = run(
        *("--models", "free", "timed", "--queries", "60", "--clients", "6", "--seconds", "1")
    )
    free, timed = result["results"]["free"], result["results"]["timed"]
    # 60 queries with windows of 1 to 8 frames; each frame travels once, beside a short header.
    frames = sum(range(1, 8)) + 8 * 53
    assert 0.98 * frames / 60 < free["fewer_bytes"] < frames / 60
    assert 1 <= timed["occupancy"] <= 6
    assert timed["throughput"] > 0


def test_the_soak_samples_memory_threads_and_files():
    """A leak would be seen only by the user whose training runs for a week."""
    samples = run("--soak", "2000")["soak"]
    assert len(samples) == 10
    assert samples[-1]["server_threads"] <= samples[0]["server_threads"] + 1
    assert samples[-1]["server_fds"] <= samples[0]["server_fds"] + 8  # one for each client
