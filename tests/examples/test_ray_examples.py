"""The examples for Ray run as they are, in processes of their own."""

import importlib.util
import os
import re
import socket
import subprocess
import sys

import pytest

from tests.paths import ROOT
from tests.serve.servers import ServerProcess


def run(name: str, *arguments: str) -> str:
    """Run an example; return what it printed."""
    done = subprocess.run(
        [sys.executable, f"examples/{name}.py", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_ray_actors_are_rewarded_by_replicas():
    """The documented way from one machine to a cluster would end in a traceback."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs Ray: pip install -e '.[ray]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    printed = run("ray_actors", "--port", str(port))
    values = re.findall(r"actor \d: return \+(\S+), last progress (\S+)", printed)
    assert len(values) == 2
    assert all(float(total) > 0.5 and float(progress) > 0.9 for total, progress in values)


def test_rllib_trains_on_rewards_from_a_server():
    """RLlib's env runners are processes: a reward model that cannot follow them is of no use."""
    importing = [sys.executable, "-c", "import ray.rllib.algorithms.ppo"]
    if subprocess.run(importing, capture_output=True).returncode:
        pytest.skip("needs RLlib, which requires one version of Gymnasium: pip install ray[rllib]")
    with ServerProcess("demo") as server:
        server.wait_until_ready()
        arguments = ("--iterations", "2", "--batch-size", "400", "--env-runners", "1")
        printed = run("rllib_ppo", "--reward-model", server.url, *arguments)
    returns = re.findall(r"iteration \d: mean return (\S+)", printed)
    assert len(returns) == 2
    assert all(-1.0 <= float(each) <= 1.0 for each in returns)
