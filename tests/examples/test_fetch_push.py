"""A simulated robot under the wrapper: MuJoCo, rendered frames, a real checkpoint.

Tests that render need the extra "robots" and OpenGL, and skip with a reason if one is missing.
"""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from robometer_gym import RobometerRewardModel, RobometerRewardWrapper
from robometer_gym.models.robometer.demo import byte_tokenizer, demo_config, random_model
from robometer_gym.models.robometer.network import RobometerProcessor
from robometer_gym.models.robometer.network.images import ImageSettings
from tests.paths import ROOT

EXAMPLE = ROOT / "examples" / "fetch_push.py"
REACH, PUSH = "FetchReach-v4", "FetchPush-v4"
ONE_CONTEXT = "import mujoco; mujoco.GLContext(64, 64).free()"
OUTSIDE = dict(os.environ)  # a user's: the example adds to it


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh Python: OpenGL and MuJoCo read the environment once, and import order matters."""
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        env={**OUTSIDE, "OMP_NUM_THREADS": "1", **variables},
        timeout=900,
    )


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """Return the example as a module: the folder is not a package."""
    spec = importlib.util.spec_from_file_location("fetch_push", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def _robots() -> Iterator[None]:
    """Skip without a robot or OpenGL; the example itself is not run here."""
    for package in ("gymnasium_robotics", "mujoco"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: pip install 'robometer-gym[robots]'")
    headless = not (OUTSIDE.get("DISPLAY") or OUTSIDE.get("MUJOCO_GL"))
    chosen = {"MUJOCO_GL": "egl"} if headless else {}
    tried = run("-c", ONE_CONTEXT, **chosen)
    if tried.returncode:
        (reason, *_) = re.findall(r"^\S*Error: .*", tried.stderr, re.MULTILINE) or [tried.stderr]
        pytest.skip(f"needs OpenGL (apt-get install libegl1 libgl1): {reason}")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in chosen.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """Return the folder of a small Robometer whose predictions differ from frame to frame."""
    processor = RobometerProcessor(byte_tokenizer([]), ImageSettings())
    config = demo_config(processor)
    folder = tmp_path_factory.mktemp("checkpoint")
    RobometerRewardModel(random_model(config, 0), processor, config).save_pretrained(folder)
    return str(folder)


@pytest.mark.usefixtures("_robots")
def test_reach_is_rewarded_from_its_camera_for_200_steps(example, checkpoint):
    """An agent would be rewarded for black, stale or missing frames, or another world's."""
    robot = example.make_robot(REACH)
    bare = gym.make(f"gymnasium_robotics:{REACH}")  # the same world, never rendered
    env = RobometerRewardWrapper(
        robot,
        example.TASKS[REACH],
        checkpoint,
        predict_every=8,  # the last step is no multiple
        scale=2.0,
        terminate_on_success=False,
    )
    shown: list[Any] = []
    env.tracker.listeners.append(
        lambda settled, seconds: shown.extend(clip for each in settled for clip in each.clips)
    )
    rng = np.random.default_rng(0)
    for episode in range(4):
        observation, info = env.reset(seed=episode)
        baseline, total = info["robometer/progress"], 0.0
        expected, _ = bare.reset(seed=episode)
        for step in range(1, 51):
            near = {key: pytest.approx(value, abs=1e-6) for key, value in expected.items()}
            assert observation == near
            action = (
                example.scripted(observation)
                if episode == 3
                else rng.uniform(-1, 1, 4).astype(np.float32)
            )
            observation, reward, terminated, truncated, info = env.step(action)
            expected, own_reward, _, _, own_info = bare.step(action)
            total += float(reward)
            assert info["env_reward"] == own_reward
            assert info["is_success"] == own_info["is_success"]
            assert info["robometer/predicted"] == (step in (8, 16, 24, 32, 40, 48, 50))
            assert (terminated, truncated) == (False, step == 50)
        assert total == pytest.approx(2.0 * (info["robometer/progress"] - baseline), abs=1e-9)
        assert abs(total) > 1e-5  # else the line above means little
        assert shown[-1].steps[-1] == 50
        np.testing.assert_array_equal(shown[-1].frames[-1], env.render())
        assert info["is_success"] == (episode == 3)
    env.close()
    bare.close()
    assert len(shown) == 4 * 8  # at reset, and at seven steps
    frames = [clip.frames[-1] for clip in shown]
    assert {frame.shape for frame in frames} == {(240, 240, 3)}
    assert min(frame.std() for frame in frames) > 30
    assert len({frame.tobytes() for frame in frames[:24]}) == 24  # in the last episode, it rests


WRAPPED = {
    "one": "RobometerRewardWrapper(make(), 'reach', 'demo')",
    "vector": "make_robometer_vec(make, 'reach', 1, 'demo')",
    "sb3": "robometer_gym.sb3.make_robometer_vec_env(make, 'reach', 1, 'demo')",
}


@pytest.mark.usefixtures("_robots")
@pytest.mark.parametrize("kind", WRAPPED)
def test_a_model_given_by_name_is_loaded_before_rendering(kind):
    """Without a GPU the first reset would be a segmentation fault: triton after Mesa crashes."""
    if kind == "sb3":
        pytest.importorskip("stable_baselines3")
    program = f"""
import gymnasium as gym
from robometer_gym import RobometerRewardWrapper, make_robometer_vec
if {kind!r} == "sb3":
    import robometer_gym.sb3

def make():
    return gym.make("gymnasium_robotics:{REACH}", render_mode="rgb_array")

env = {WRAPPED[kind]}
env.reset()
env.close()
"""
    done = run("-c", program, MUJOCO_GL=os.environ.get("MUJOCO_GL", "glfw"))
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("_robots")
def test_the_example_runs_two_policies_and_trains_a_third(tmp_path):
    """The README's command for the owner of a robot would end in a traceback, or in a crash."""
    pytest.importorskip("stable_baselines3")
    short = ["--episodes", "1", "--train", "--steps", "110", "--out", str(tmp_path)]
    done = run(str(EXAMPLE), "--env", REACH, *short)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    (scripted,) = [row for row in rows if row[:1] == ["scripted"]]
    (random,) = [row for row in rows if row[:1] == ["random"]]
    (trained,) = [row for row in rows if row[:1] == ["SAC"]]
    assert scripted[-2:] == ["step", "4"]
    assert random[-1] == "no"
    assert trained[1] == "50"
    assert "its numbers mean nothing here" in done.stdout
    names = ["SAC/episode-000.mp4", "random/report.md", "scripted/episode-000.mp4", "sac.zip"]
    assert all((tmp_path / name).stat().st_size > 0 for name in names)


@pytest.mark.usefixtures("_robots")
def test_scripted_policy_pushes_the_block_to_the_target(example):
    """The example would compare a model with an expert that fails."""
    env = gym.make(f"gymnasium_robotics:{PUSH}")
    succeeded = 0
    for seed in range(10):
        observation, _ = env.reset(seed=seed)
        over = False
        while not over:
            observation, _, terminated, truncated, info = env.step(example.scripted(observation))
            over = terminated or truncated
        succeeded += info["is_success"]
    env.close()
    assert succeeded >= 9


def test_missing_gl_names_the_packages_to_install():
    """A user on a server would be left with an error from deep inside PyOpenGL."""
    if importlib.util.find_spec("gymnasium_robotics") is None:
        pytest.skip("needs gymnasium_robotics: pip install 'robometer-gym[robots]'")
    # No machine has so many devices; without EGL itself, that is the error.
    failed = run(str(EXAMPLE), MUJOCO_GL="egl", MUJOCO_EGL_DEVICE_ID="99")
    assert failed.returncode == 1
    assert "no frame of it" in failed.stderr
    assert "apt-get install libegl1 libgl1" in failed.stderr
    assert failed.stderr.rstrip().endswith("apt-get install libosmesa6 for MUJOCO_GL=osmesa.")


def test_a_missing_or_too_new_mujoco_names_the_packages_to_install(example, monkeypatch):
    """A user of the newest mujoco would get an AssertionError without a message."""
    monkeypatch.setenv("MUJOCO_GL", "egl")  # set by the example where it is not
    hint = r"(?s){}.*pip install 'robometer-gym\[robots\]'.*mujoco before 3\.12"
    for version in ("3.12.0", "4.0.0"):
        monkeypatch.setattr(example, "version", lambda package, version=version: version)
        with pytest.raises(SystemExit, match=hint.format(f"mujoco {version} is too new")):
            example.make_robot(PUSH)

    def nothing_installed(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(example, "version", nothing_installed)
    with pytest.raises(SystemExit, match=hint.format("PackageNotFoundError")):
        example.make_robot(PUSH)
