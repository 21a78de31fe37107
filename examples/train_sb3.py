"""Train an agent that never sees the environment's reward: the reward model's alone.

You will see: the true success rate, over 100 fresh episodes, of a random policy, of agents trained
with the demo checkpoint, and with the same checkpoint with shuffled heads; a plot of their learning
curves; videos of false successes; the reward model's share of the time.
Command: python examples/train_sb3.py [--algorithm sac] [--seeds 0 1 2] [--late | --background]
    or --env FetchReach-v4 --task "move the gripper to the red sphere" --model lerobot/Robometer-4B
Hardware: two CPU cores, some minutes per seed. Needs the extras "sb3" and "video".
"""

import argparse
import math
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from robometer_gym import RobometerRewardModel, RobometerRewardWrapper, sb3
from robometer_gym.envs import ENV_ID, TASKS
from robometer_gym.evaluation import Report, evaluate, plot_learning_curves

FRESH = 500_000  # seeds that no training has seen
NUM_ENVS = 8
ALGORITHMS: dict[str, Any] = {"ppo": PPO, "sac": SAC}
LATE_BUFFERS: dict[str, Any] = {  # kind, for arrays, for dicts
    "ppo": ("rollout", sb3.LateRolloutBuffer, sb3.LateDictRolloutBuffer),
    "sac": ("replay", sb3.LateReplayBuffer, sb3.LateDictReplayBuffer),
}
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
    dicts = isinstance(venv.observation_space, gym.spaces.Dict)
    policy = "MultiInputPolicy" if dicts else "MlpPolicy"
    if chosen.late:
        kind, *buffers = LATE_BUFFERS[chosen.algorithm]
        options[f"{kind}_buffer_class"] = buffers[dicts]
        options[f"{kind}_buffer_kwargs"] = {"late": sb3.LateRewards(venv)}
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
    settings: dict[str, Any] = {"success_bonus": 1.0, "background": chosen.background}
    if chosen.algorithm == "sac":
        settings |= EVERY_STEP
    if chosen.late:  # success is detected after the rollout, too late to end an episode
        settings |= {"late": True, "terminate_on_success": False}
    envs = chosen.env, chosen.task, NUM_ENVS, model
    venv = sb3.make_robometer_vec_env(*envs, env_kwargs=env_kwargs, **settings)
    agent = make_agent(chosen, venv, seed)
    steps = rounded_steps(agent, chosen.steps)
    print(f"  {steps:,} steps: {chosen.steps:,} rounded up to whole rollouts", flush=True)
    test = VecMonitor(DummyVecEnv([lambda: make_test_env(chosen)]))
    test.seed(FRESH)
    every = max(1, steps // 10 // NUM_ENVS)
    curve = EvalCallback(test, n_eval_episodes=30, eval_freq=every, log_path=str(out), verbose=0)
    robometer = sb3.RobometerCallback(out / "false_successes")
    agent.learn(chosen.steps, callback=[curve, robometer])
    print(f"  the reward model took {robometer.model_time_share:.0%} of the time")
    agent.save(out / "agent")
    venv.close()
    return agent


def make_test_env(chosen: argparse.Namespace) -> gym.Env[Any, Any]:
    """Return the environment with its own ends, as a test of the agents."""
    kwargs = {"task": chosen.task} if chosen.env == ENV_ID else {}
    return gym.make(chosen.env, render_mode="rgb_array", **kwargs)


def evaluate_policy(chosen: argparse.Namespace, model: RobometerRewardModel, policy: Any) -> Report:
    """Evaluate a policy on fresh episodes, which no detected success ends."""
    env = make_test_env(chosen)
    env = RobometerRewardWrapper(env, chosen.task, model, terminate_on_success=False)
    with closing(env):
        return evaluate(env, policy, chosen.episodes, seed=FRESH)


def shuffle_heads(model: RobometerRewardModel, seed: int) -> RobometerRewardModel:
    """Shuffle the numbers within each tensor of the heads: the same sizes, and no meaning."""
    generator = torch.Generator().manual_seed(seed)
    for head in (model.model.progress_head, model.model.success_head):
        for tensor in head.state_dict().values():
            order = torch.randperm(tensor.numel(), generator=generator)
            tensor.copy_(tensor.flatten()[order].reshape(tensor.shape))
    return model


def read_curve(folder: Path) -> tuple[Any, Any]:
    """Return the steps and true success rates that EvalCallback has recorded."""
    with np.load(folder / "evaluations.npz") as file:
        steps = file["timesteps"]
        known = "successes" in file  # some environments report no success
        return steps, file["successes"].mean(axis=1) if known else np.full(len(steps), np.nan)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train all agents, print their success rates and plot their learning curves."""
    parser = argparse.ArgumentParser(description="Train an agent from the camera alone.")
    parser.add_argument("--algorithm", choices=ALGORITHMS, default="ppo")
    parser.add_argument("--env", default=ENV_ID, help="any id (default: %(default)s)")
    parser.add_argument("--task", default=TASKS[0], help="(default: %(default)s)")
    parser.add_argument("--model", default="demo", help="hub id, folder, or 'demo'")
    parser.add_argument("--steps", type=int, default=60_000, help="of each agent")
    parser.add_argument("--episodes", type=int, default=100, help="of each final evaluation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="two agents of each")
    parser.add_argument("--late", action="store_true", help="one prediction per rollout or episode")
    parser.add_argument("--background", action="store_true", help="predict in a thread")
    parser.add_argument("--engine", choices=("fast", "eager"), default="fast")
    parser.add_argument("--out", type=Path, default=Path("outputs/train_sb3"))
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)  # networks as small as the demo's are slower on two

    def load() -> RobometerRewardModel:
        return RobometerRewardModel.from_pretrained(chosen.model, engine=chosen.engine)

    random = evaluate_policy(chosen, load(), "random").totals.true_success_rate
    rates, curves = {"random policy": random}, dict[str, list[tuple[Any, Any]]]()
    for seed in chosen.seeds:
        for name in ("checkpoint", "shuffled heads"):
            print(f"{chosen.algorithm.upper()}, rewarded by the {name}, seed {seed}")
            started, out = time.time(), chosen.out / f"{chosen.algorithm}_{name.split()[0]}_{seed}"
            model = shuffle_heads(load(), seed) if name == "shuffled heads" else load()
            agent = train(chosen, model, out, seed)
            report = evaluate_policy(chosen, model, agent)
            rates[f"{name}, seed {seed}"] = report.totals.true_success_rate
            curves.setdefault(f"rewarded by the {name}", []).append(read_curve(out))
            print(f"  {time.time() - started:.0f} s")
    path, title = chosen.out / "learning_curves.png", "Trained without the environment's reward"
    plot_learning_curves(curves, path, baselines={"random policy": random}, title=title)
    print(f"\ntrue success over {chosen.episodes} fresh episodes of {chosen.task!r}")
    for name, rate in rates.items():
        print(f"  {name:28s} {rate:.2f}")


if __name__ == "__main__":
    main()
