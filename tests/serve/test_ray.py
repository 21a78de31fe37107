"""A real deployment of two replicas on Ray Serve."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.paths import ROOT

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install -e '.[ray]'"
)


@needs_ray
def test_a_replica_may_die_and_streams_stay_where_they_are():
    """A dead GPU would end every training run, or each step be computed from its beginning."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.serve.ray_program"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["errors"] == []
    assert results["predictions"] > 100
    assert results["difference"] < 1e-5
    assert results["replicas"] == results["actors"] == 2
    assert results["streams"] > 20
    assert results["replicas_of_a_stream"] == 1
