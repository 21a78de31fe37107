"""The examples run as they are: a user copies them first."""

import runpy
import sys

import pytest

from tests.paths import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

# Arguments that turn minutes into seconds.
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
    """The README's first commands would end in a traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(example), *SHORT.get(example.stem, [])])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_states_command_and_hardware(example):
    """A reader would have to run an example to learn its needs and results."""
    text = example.read_text()
    assert all(word in text for word in ("You will see:", "Command:", "Hardware:"))
    assert len(text.splitlines()) <= (170 if example.stem in (*SHORT, ELSEWHERE) else 80)
