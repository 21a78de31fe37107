"""Roll-outs of wrapped CountingEnvs, readers of their clips, and scripts for models."""

from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import strategies as st

from robometer_gym import FrameCapture, RobometerRewardWrapper, RobometerVectorRewardWrapper
from robometer_gym.reward_model import Clip
from robometer_gym.testing import CountingEnv, ScriptedRewardModel

TASK = "open the drawer"
ONE_VOTE: dict[str, Any] = {"success_votes": 1, "success_window": 1}

# Sixty-fourths are exact in float32 and float64, so sums of them can be compared with ==.
exact = st.integers(0, 64).map(lambda n: n / 64)

NEXT, SAME, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED
every_mode = pytest.mark.parametrize("mode", [NEXT, SAME, DISABLED])


def wrap(env: Any, model: Any, **settings: Any) -> RobometerRewardWrapper:
    """Return the wrapper under test."""
    return RobometerRewardWrapper(env, task=TASK, reward_model=model, **settings)


def play(env: Any, steps: int | None = None) -> list[tuple[float, bool, bool, dict[str, Any]]]:
    """Return (reward, terminated, truncated, info) of `steps` steps, or of all to the end."""
    results: list[tuple[float, bool, bool, dict[str, Any]]] = []
    while steps is None or len(results) < steps:
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        results.append((reward, terminated, truncated, info))
        if steps is None and (terminated or truncated):
            break
    return results


def rewards(env: Any, steps: int | None = None) -> list[float]:
    """Return the reward of each step."""
    return [step[0] for step in play(env, steps)]


def shown(clip: Clip) -> list[tuple[int, int]]:
    """Return (episode, step) of each frame of a clip."""
    return [(t["episode"], t["step"]) for t in map(CountingEnv.read, clip.images)]


def windows(model: ScriptedRewardModel) -> list[list[int]]:
    """Return the steps in each clip; check that it shows one episode and lists its steps."""
    found = []
    for clip in model.clips:
        episodes, steps = zip(*shown(clip), strict=True)
        assert len(set(episodes)) == 1
        assert clip.steps == steps
        found.append(list(steps))
    return found


def step_all(envs: Any) -> Any:
    """Step a vector environment of either library with zeros as actions."""
    return envs.step(np.zeros(envs.num_envs, np.int64))


def progress_by_step(clip: Clip) -> float:
    """Return a sixteenth of progress per step: for the script of a model."""
    return shown(clip)[-1][1] / 16


def vector(
    model: Any, lengths: Any, mode: AutoresetMode = NEXT, counting: Any = None, **settings: Any
) -> Any:
    """Return the vector wrapper around one CountingEnv for each of `lengths`."""
    make = [
        lambda steps=steps: FrameCapture(CountingEnv(steps, **(counting or {})))
        for steps in lengths
    ]
    task = settings.pop("task", TASK)
    settings = {"predict_every": 1, **settings}
    core = SyncVectorEnv(make, autoreset_mode=mode)
    return RobometerVectorRewardWrapper(core, task, model, **settings)


def mask(envs: Any, *chosen: int) -> dict[str, Any]:
    return {"reset_mask": np.isin(np.arange(envs.num_envs), chosen)}
