"""Broken and hostile files by the hundred: each is read, or refused by an error that names it."""

import json
import subprocess
import sys

import pytest

from tests.paths import ROOT

CASES = {"lerobot": 1000, "episodes": 600, "arrays": 1500, "videos": 1000}
"""At least so many cases; `tests/data/hostile.py` generates them."""


@pytest.mark.parametrize("group", CASES)
def test_no_file_hangs_kills_or_hides(tmp_path, group):
    """A download could stop a training, fill the memory, or end in an error without a file name."""
    pytest.importorskip("av")
    if group == "lerobot":
        pytest.importorskip("pyarrow")
    done = subprocess.run(
        [sys.executable, "-m", "tests.data.hostile", group, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=1800,  # a hanging one, not a slow one
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    print(f"{group}: {result['cases']} cases, {len(result['failures'])} failures")
    assert result["failures"] == []
    assert result["cases"] >= CASES[group]
    assert result["peak"] < 2e9
