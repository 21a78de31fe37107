"""The demo: three policies in the built-in environment, paid by a reward model.

Knows nothing of the command line: it returns the episodes and the files that it wrote. Not
imported with the rest of the package, because only this module needs an environment.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from robometer_gym.envs import ENV_ID, TASKS
from robometer_gym.evaluation.overlay import write_overlay
from robometer_gym.evaluation.plots import Run, plot_episodes
from robometer_gym.evaluation.scoring import Scores
from robometer_gym.reward_model import Frame, RewardModel
from robometer_gym.wrappers.single import RobometerRewardWrapper

__all__ = ["DemoEpisode", "roll_out", "run_demo", "save_demo"]

_TASK, _OTHER_TASK = TASKS[0], TASKS[2]

Policy = Callable[[gym.Env[Any, Any]], Any]

POLICIES: dict[str, Policy] = {
    "expert": lambda env: env.unwrapped.expert_action(),  # type: ignore[attr-defined]
    "random": lambda env: env.action_space.sample(),
    # Another block is named than the one that the expert goes to.
    "wrong instruction": lambda env: env.unwrapped.expert_action(task=_OTHER_TASK),  # type: ignore[attr-defined]
}


@dataclass(frozen=True, eq=False)
class DemoEpisode:
    """One episode of one policy.

    Attributes:
        run: what was seen and predicted.
        seed: of the environment, and of what the policy draws.
        paid: the sum of the rewards that the agent got.
    """

    run: Run
    seed: int
    paid: float

    def to_dict(self) -> dict[str, Any]:
        """Everything but the frames in plain Python, for JSON."""
        return {
            "policy": self.run.name,
            "seed": self.seed,
            "steps": self.run.steps,
            "return": round(self.paid, 6),
            "detected_success_step": self.run.detected,
            "true_success_step": self.run.true_success,
            "predictions": self.run.scores.to_dict(),
        }


def run_demo(model: RewardModel, *, seed: int = 0, episodes: int = 1) -> list[DemoEpisode]:
    """Roll out each policy, `episodes` times, with the same seeds for all.

    Args:
        model: pays the agent; the policies do not learn.
        seed: of the first episode; the next has the next seed.
        episodes: of each policy, >= 1.

    Returns:
        All episodes of the first policy, then those of the second and the third.
    """
    env = RobometerRewardWrapper(
        # Episodes end where the model sees success: the true one is shown beside it.
        gym.make(ENV_ID, task=_TASK, render_mode="rgb_array", terminate_on_success=False),
        task=_TASK,
        reward_model=model,
    )
    done = [
        roll_out(env, name, policy, seed + number)
        for name, policy in POLICIES.items()
        for number in range(episodes)
    ]
    env.close()
    return done


def roll_out(env: RobometerRewardWrapper, name: str, policy: Policy, seed: int) -> DemoEpisode:
    """Let a policy act for one episode, and keep every frame.

    Args:
        env: any environment in the wrapper, made with render_mode="rgb_array".
        name: of the policy.
        policy: takes the environment and returns an action.
        seed: of the environment and of its action space.
    """
    env.action_space.seed(seed)
    _, info = env.reset(seed=seed)
    frames, infos, paid, over = [_frame(env)], [info], 0.0, False
    while not over:
        _, reward, terminated, truncated, info = env.step(policy(env))
        frames.append(_frame(env))
        infos.append(info)
        paid += float(reward)
        over = terminated or truncated
    run = Run(
        name,
        frames,
        _scores(env, infos),
        true_success=_first(infos, "is_success"),
        detected=_first(infos, "robometer/success"),
    )
    return DemoEpisode(run, seed, paid)


def save_demo(out: Path, episodes: Sequence[DemoEpisode]) -> list[Path]:
    """Write demo.png, a video of each policy with its scores, and demo.json.

    Args:
        out: the folder, which exists; files of these names are overwritten.
        episodes: picture and videos show the first of each policy, the JSON holds all.

    Returns:
        The files.
    """
    files = [out / "demo.json", out / "demo.png"]
    table = {
        "env": ENV_ID,
        "episodes": [episode.to_dict() for episode in episodes],
    }
    files[0].write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    first: dict[str, Run] = {}
    for episode in episodes:
        first.setdefault(episode.run.name, episode.run)
    plot_episodes(list(first.values()), files[1], title=_TASK)
    for name, run in first.items():
        files.append(out / f"{name.replace(' ', '_')}.mp4")
        write_overlay(run, files[-1])
    return files


def _frame(env: gym.Env[Any, Any]) -> Frame:
    frame: Any = env.render()
    return np.array(frame, np.uint8)


def _scores(env: RobometerRewardWrapper, infos: Sequence[dict[str, Any]]) -> Scores:
    """What was predicted, at the steps at which it was."""
    steps = [step for step, info in enumerate(infos) if info["robometer/predicted"]]
    progress = [infos[step]["robometer/progress"] for step in steps]
    success = [infos[step]["robometer/success_prob"] for step in steps]
    return Scores(
        env.task,
        np.array(steps),
        env.metadata.get("render_fps"),
        np.array(progress, np.float32),
        np.array(success, np.float32),
    )


def _first(infos: Sequence[dict[str, Any]], name: str) -> int | None:
    """The first step whose info says so."""
    return next((step for step, info in enumerate(infos) if info.get(name)), None)
