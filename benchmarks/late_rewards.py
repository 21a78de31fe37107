"""Late rewards beside synchronous ones: calls of the model, wall time, and the agent that results.

Quantity: of one training of PPO on TabletopReach with the demo checkpoint (8 environments, a
prediction every 5 steps and at the end): calls of `predict`, clips per call, seconds of wall time,
seconds in the model, and the true success rate over fresh episodes by the environment's own
verdict. "late" predicts once per rollout of 64 steps, "background" in a thread.
Method: detected success ends no episode in any of the three, because it cannot with "late". Same
seed and settings; one thread of torch. The trainings run one after the other.
Hardware: any; about five minutes on two CPU cores with 60,000 steps.

    python benchmarks/late_rewards.py --steps 60000 --episodes 100
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import torch
from harness.report import markdown_table, print_json
from stable_baselines3 import PPO

from robometer_gym import Clip, LazyRewardModel, Prediction, RobometerRewardWrapper
from robometer_gym.envs import ENV_ID, TASKS
from robometer_gym.evaluation import evaluate
from robometer_gym.sb3 import LateRewards, LateRolloutBuffer, make_robometer_vec_env

FRESH = 500_000  # seeds that no training has seen


class CountedModel:
    """The demo checkpoint, with its calls counted and timed."""

    def __init__(self) -> None:
        self.model = LazyRewardModel("demo").load()
        self.calls = self.clips = 0
        self.seconds = 0.0

    def predict(self, clips: Sequence[Clip]) -> list[Prediction]:
        """Predict and count."""
        started = time.perf_counter()
        predictions = self.model.predict(clips)
        self.seconds += time.perf_counter() - started
        self.calls += 1
        self.clips += len(clips)
        return predictions


def train(mode: str, steps: int, episodes: int, seed: int) -> dict[str, Any]:
    """Train one agent and return its row of the table."""
    model = CountedModel()
    venv = make_robometer_vec_env(
        ENV_ID,
        TASKS[0],
        8,
        model,
        env_kwargs={"task": TASKS[0], "terminate_on_success": False},
        late=mode == "late",
        background=mode == "background",
        terminate_on_success=False,
        success_bonus=1.0,
    )
    buffer: dict[str, Any] = {}
    if mode == "late":
        buffer = {
            "rollout_buffer_class": LateRolloutBuffer,
            "rollout_buffer_kwargs": {"late": LateRewards(venv)},
        }
    agent = PPO(
        "MlpPolicy",
        venv,
        n_steps=64,
        batch_size=128,
        gamma=0.95,
        learning_rate=lambda left: 1e-3 * left,
        policy_kwargs={"net_arch": [64, 64], "log_std_init": -0.5},
        seed=seed,
        device="cpu",
        **buffer,
    )
    started = time.perf_counter()
    agent.learn(steps)
    row = {
        "mode": mode,
        "seed": seed,
        "calls": model.calls,
        "clips_per_call": model.clips / model.calls,
        "seconds": time.perf_counter() - started,
        "model_seconds": model.seconds,
    }
    venv.close()
    env = gym.make(ENV_ID, task=TASKS[0], render_mode="rgb_array")
    rewarded = RobometerRewardWrapper(env, TASKS[0], model, terminate_on_success=False)
    row["true_success"] = evaluate(rewarded, agent, episodes, FRESH).totals.true_success_rate
    rewarded.close()
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Train in each mode and print the table."""
    parser = argparse.ArgumentParser(description="Late rewards beside synchronous ones.")
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    modes = ("synchronous", "late", "background")
    rows = [
        train(mode, chosen.steps, chosen.episodes, seed) for seed in chosen.seeds for mode in modes
    ]
    table = markdown_table(
        ["mode", "seed", "calls", "clips per call", "seconds", "in the model", "true success"],
        [
            [
                row["mode"],
                str(row["seed"]),
                str(row["calls"]),
                f"{row['clips_per_call']:.1f}",
                f"{row['seconds']:.0f}",
                f"{row['model_seconds']:.0f}",
                f"{row['true_success']:.2f}",
            ]
            for row in rows
        ],
    )
    print(*table, sep="\n")
    print_json("late_rewards", rows=rows)


if __name__ == "__main__":
    main()
