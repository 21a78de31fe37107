"""The examples run as they stand: they are the first thing that a user copies."""

import runpy
import sys

import pytest

from tests.paths import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

# What takes minutes is made short.
SHORT = {
    "train_demo_checkpoint": ["--steps", "6", "--attempts", "20"],
    "train_sb3": ["--steps", "512", "--episodes", "2"],
}
# Has a test of its own, because it needs a robot and OpenGL.
ELSEWHERE = "fetch_push"


@pytest.mark.parametrize(
    "example", [e for e in EXAMPLES if e.stem != ELSEWHERE], ids=lambda path: path.stem
)
def test_example_runs(example, monkeypatch, capsys, tmp_path):
    """If this fails, what the README tells a newcomer to run ends in a traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(example), *SHORT.get(example.stem, [])])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_says_what_it_shows(example):
    """If this fails, a reader has to run an example to learn what it needs and shows."""
    text = example.read_text()
    assert all(word in text for word in ("You will see:", "Command:", "Hardware:"))
    assert len(text.splitlines()) <= (170 if example.stem in (*SHORT, ELSEWHERE) else 80)
