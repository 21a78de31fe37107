"""The examples run as they are: a user copies them first."""

import argparse
import importlib.util
import runpy
import sys

import pytest

from robometer_gym.envs import ENV_ID
from tests.paths import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

# Arguments that turn minutes into seconds.
SHORT = {
    "real_time_loop": ["--steps", "110"],
    "train_demo_checkpoint": ["--steps", "6", "--attempts", "20"],
    "train_sb3": ["--steps", "512", "--episodes", "2"],
}
# Have tests of their own, because they need a robot and OpenGL, or Ray.
ELSEWHERE = ("fetch_push", "ray_actors", "rllib_ppo")


@pytest.mark.parametrize(
    "example", [e for e in EXAMPLES if e.stem not in ELSEWHERE], ids=lambda path: path.stem
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
    assert len(text.splitlines()) <= (170 if example.stem in (*SHORT, *ELSEWHERE) else 80)


@pytest.mark.parametrize(
    ("algorithm", "env"), [("ppo", "CartPole-v1"), ("ppo", ENV_ID), ("sac", ENV_ID)]
)
@pytest.mark.parametrize("steps", [1_500, 20_000, 60_000])
def test_train_sb3_makes_about_the_requested_steps(algorithm, env, steps):
    """A request for 1,500 steps on a robot would make 16,384."""
    env_util = pytest.importorskip("stable_baselines3.common.env_util")
    spec = importlib.util.spec_from_file_location("train_sb3", ROOT / "examples" / "train_sb3.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    chosen = argparse.Namespace(algorithm=algorithm, env=env, steps=steps, late=False)
    agent = module.make_agent(chosen, env_util.make_vec_env(env, module.NUM_ENVS), seed=0)
    assert steps <= module.rounded_steps(agent, steps) <= steps + 512
