"""Train an agent that never sees the environment's reward: the reward model's alone.

You will see: the true success rate, over 100 fresh episodes, of a random policy, of agents trained
with the demo checkpoint, and with the same checkpoint with shuffled heads; a plot of their learning
curves; videos of false successes; the reward model's share of the time.
Command: python examples/train_sb3.py [--algorithm sac] [--seeds 0 1 2] [--engine eager]
    or --env FetchReach-v4 --task "move the gripper to the red sphere" --model lerobot/Robometer-4B
Hardware: two CPU cores, about four minutes per seed. Needs the extras "sb3" and "video".
"""

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from robometer_gym import RobometerRewardModel, RobometerRewardWrapper
from robometer_gym.envs import ENV_ID, TASKS
from robometer_gym.evaluation import Report, evaluate, plot_learning_curves
from robometer_gym.sb3 import RobometerCallback, make_robometer_vec_env

FRESH = 500_000  # seeds that no training has seen
NUM_ENVS = 8
ALGORITHMS: dict[str, Any] = {"ppo": PPO, "sac": SAC}
# Tuned for the built-in environment; others get the algorithm's defaults.
DECAYING: dict[str, Any] = {"learning_rate": lambda left: 1e-3 * left, "gamma": 0.95}
SMALL = {"net_arch": [64, 64], "log_std_init": -0.5}
TUNED: dict[str, dict[str, Any]] = {
    "ppo": {"n_steps": 64, "batch_size": 128, "policy_kwargs": SMALL, **DECAYING},
    "sac": {"gradient_steps": 2, "ent_coef": "auto_0.05", **DECAYING},
}
# SAC learns from single steps, and its observations do not hold the steps since a prediction.
EVERY_STEP: dict[str, Any] = {"predict_every": 1, "success_votes": 6, "success_window": 6}


def make_agent(chosen: argparse.Namespace, venv: Any, seed: int) -> Any:
    """Return an untrained agent whose rollouts add up to about the wanted number of steps."""
    built_in = chosen.env == ENV_ID
    options = dict(TUNED[chosen.algorithm]) if built_in else {}
    if chosen.algorithm == "ppo" and not built_in:
        rollouts = math.ceil(chosen.steps / (NUM_ENVS * 2048))  # 2048: SB3's default
        options["n_steps"] = 8 * math.ceil(chosen.steps / rollouts / NUM_ENVS / 8)
    observations = venv.observation_space
    policy = "MultiInputPolicy" if isinstance(observations, gym.spaces.Dict) else "MlpPolicy"
    device = "cpu" if built_in else "auto"
    return ALGORITHMS[chosen.algorithm](policy, venv, seed=seed, device=device, **options)


def rounded_steps(agent: Any, steps: int) -> int:
    """Return the number of steps that `learn` makes: whole rollouts of all environments."""
    rollout = NUM_ENVS * getattr(agent, "n_steps", 1)
    return math.ceil(steps / rollout) * rollout


def train(chosen: argparse.Namespace, model: RobometerRewardModel, out: Path, seed: int) -> Any:
    """Train on eight environments with the reward model's reward; return the agent."""
    built_in = chosen.env == ENV_ID
    # The environment's own end at success would be a hint: the model ends episodes.
    env_kwargs = {"task": chosen.task, "terminate_on_success": False} if built_in else {}
    settings = EVERY_STEP if chosen.algorithm == "sac" else {}
    venv = make_robometer_vec_env(
        chosen.env,
        chosen.task,
        NUM_ENVS,
        model,
        env_kwargs=env_kwargs,
        success_bonus=1.0,
        **settings,
    )
    agent = make_agent(chosen, venv, seed)
    steps = rounded_steps(agent, chosen.steps)
    print(f"  {steps:,} steps in whole rollouts, for {chosen.steps:,} on request", flush=True)
    test = VecMonitor(DummyVecEnv([lambda: make_test_env(chosen)]))
    test.seed(FRESH)
    every = max(1, steps // 10 // NUM_ENVS)
    curve = EvalCallback(test, n_eval_episodes=30, eval_freq=every, log_path=str(out), verbose=0)
    robometer = RobometerCallback(out / "false_successes")
    agent.learn(chosen.steps, callback=[curve, robometer])
    print(f"  the reward model took {robometer.model_time_share:.0%} of the time")
    agent.save(out / "agent")
    venv.close()
    return agent


def make_test_env(chosen: argparse.Namespace) -> gym.Env[Any, Any]:
    """Return the environment with its own ends, as a test of the agents."""
    kwargs = {"task": chosen.task} if chosen.env == ENV_ID else {}
    return gym.make(chosen.env, render_mode="rgb_array", **kwargs)


def test_policy(chosen: argparse.Namespace, model: RobometerRewardModel, policy: Any) -> Report:
    """Evaluate a policy on fresh episodes, which no detected success ends."""
    env = RobometerRewardWrapper(
        make_test_env(chosen), chosen.task, model, terminate_on_success=False
    )
    try:
        return evaluate(env, policy, chosen.episodes, seed=FRESH)
    finally:
        env.close()
