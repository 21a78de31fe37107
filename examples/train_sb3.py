"""Train an agent that never sees the environment's reward: it is paid by the reward model alone.

You will see: the environment's own success rate, over 100 fresh episodes, of a random policy, of an
agent paid by the demo checkpoint, and of one paid by the same checkpoint with shuffled heads; a
picture of both learning curves; videos of what fooled the model; how much of the time it took.
Command: python examples/train_sb3.py [--algorithm sac] [--engine eager]
    or --env FetchReach-v4 --task "move the gripper to the red sphere" --model lerobot/Robometer-4B
Hardware: two CPU cores, about six minutes. Needs the extras "sb3" and "video".
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from matplotlib.figure import Figure
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback

from robometer_gym import RobometerRewardModel
from robometer_gym.envs import ENV_ID, TASKS
from robometer_gym.sb3 import RobometerCallback, make_robometer_vec_env

FRESH = 500_000  # seeds that no training has seen
ALGORITHMS = {"ppo": PPO, "sac": SAC}
# Good for the built-in environment; others get the algorithm's defaults.
DECAYING: dict[str, Any] = {"learning_rate": lambda left: 1e-3 * left, "gamma": 0.95}
SMALL = {"net_arch": [64, 64], "log_std_init": -0.5}
TUNED: dict[str, dict[str, Any]] = {
    "ppo": {"n_steps": 64, "batch_size": 128, "policy_kwargs": SMALL, **DECAYING},
    "sac": {"gradient_steps": 2, "ent_coef": "auto_0.05", **DECAYING},
}
# SAC learns from single steps: pay that comes now and then is in nothing that it observes.
PAID: dict[str, Any] = {"predict_every": 1, "success_votes": 6, "success_window": 6}
Policy = Callable[[Any], Any]


def success_rate(env: Any, policy: Policy, episodes: int) -> float:
    """Return the share of fresh episodes that the environment itself calls a success at the end."""
    successes = 0
    for seed in range(FRESH, FRESH + episodes):
        (observation, _), over = env.reset(seed=seed), False
        while not over:
            observation, _, terminated, truncated, info = env.step(policy(observation))
            over = terminated or truncated
        successes += bool(info.get("is_success", info.get("success", False)))
    return successes / episodes


class Curve(BaseCallback):
    """Notes the true success rate of the policy without its noise, now and then."""

    def __init__(self, env: Any, every: int) -> None:
        super().__init__()
        self.env, self.every, self.points = env, every, list[tuple[int, float]]()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= len(self.points) * self.every:
            self._note()

    def _on_training_end(self) -> None:
        self._note()

    def _note(self) -> None:
        rate = success_rate(self.env, deterministic(self.model), 30)
        self.points.append((self.num_timesteps, rate))
        print(f"  {self.num_timesteps:7d} steps: true success {rate:.2f}", flush=True)


def deterministic(agent: Any) -> Policy:
    """The agent's policy without its noise."""
    return lambda observation: agent.predict(observation, deterministic=True)[0]


def train_agent(chosen: Any, model: RobometerRewardModel, env: Any) -> tuple[Any, Curve]:
    """Train on eight environments, paid by the reward model and by nothing else."""
    built_in = chosen.env == ENV_ID
    # What the environment itself knows of success would be a hint: the model ends episodes.
    hints = {"task": chosen.task, "terminate_on_success": False} if built_in else {}
    paid = {
        "env_kwargs": hints,
        "success_bonus": 1.0,
        **(PAID if chosen.algorithm == "sac" else {}),
    }
    venv = make_robometer_vec_env(chosen.env, chosen.task, 8, model, **paid)
    agent = ALGORITHMS[chosen.algorithm](
        "MultiInputPolicy" if isinstance(env.observation_space, gym.spaces.Dict) else "MlpPolicy",
        venv,
        seed=chosen.seed,
        device="cpu" if built_in else "auto",
        **(TUNED[chosen.algorithm] if built_in else {}),
    )
    curve = Curve(env, every=chosen.steps // 10)
    seen = RobometerCallback(chosen.out / "false_successes")
    agent.learn(chosen.steps, callback=[curve, seen])
    print(f"  the reward model took {seen.model_time_share:.0%} of the time")
    venv.close()
    return agent, curve


def shuffle_heads(model: RobometerRewardModel, seed: int) -> RobometerRewardModel:
    """Shuffle the numbers within each tensor of the heads: the same sizes, and no meaning."""
    generator = torch.Generator().manual_seed(seed)
    for head in (model.model.progress_head, model.model.success_head):
        for tensor in head.state_dict().values():
            order = torch.randperm(tensor.numel(), generator=generator)
            tensor.copy_(tensor.flatten()[order].reshape(tensor.shape))
    return model


def draw(curves: dict[str, Curve], random: float, path: Path) -> None:
    """Draw the learning curves."""
    figure = Figure(figsize=(8, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    for (name, curve), colour in zip(curves.items(), ("#1d5fd1", "#d9660a"), strict=True):
        axes.plot(*zip(*curve.points, strict=True), "o-", color=colour, label=f"paid by {name}")
    axes.axhline(random, color="#667380", linestyle="--", label="random policy")
    title = "Trained without ever seeing the environment's reward"
    axes.set(
        xlabel="environment steps", ylabel="true success rate", ylim=(-0.03, 1.03), title=title
    )
    axes.legend(frameon=False)
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train both agents, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description="Train an agent, paid by the camera alone.")
    parser.add_argument("--algorithm", choices=ALGORITHMS, default="ppo")
    parser.add_argument("--env", default=ENV_ID, help="any id (default: %(default)s)")
    parser.add_argument("--task", default=TASKS[0], help="(default: %(default)s)")
    parser.add_argument("--model", default="demo", help="hub id, folder, or 'demo'")
    parser.add_argument("--steps", type=int, default=60_000, help="of each agent")
    parser.add_argument("--episodes", type=int, default=100, help="of the final evaluation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("fast", "eager"), default="fast")
    parser.add_argument("--out", type=Path, default=Path("outputs/train_sb3"))
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # networks as small as the demo's are slower on two

    env = gym.make(chosen.env, **({"task": chosen.task} if chosen.env == ENV_ID else {}))
    env.action_space.seed(chosen.seed)
    random = success_rate(env, lambda _: env.action_space.sample(), chosen.episodes)
    rates, curves = {"random policy": random}, {}
    for name in ("the checkpoint", "its shuffled heads"):
        began = time.time()
        model = RobometerRewardModel.from_pretrained(chosen.model, engine=chosen.engine)
        model = shuffle_heads(model, chosen.seed) if "shuffled" in name else model
        print(f"{chosen.algorithm.upper()} paid by {name}")
        agent, curves[name] = train_agent(chosen, model, env)
        agent.save(chosen.out / f"{chosen.algorithm}_{name.split()[-1]}")
        rates[f"paid by {name}"] = success_rate(env, deterministic(agent), chosen.episodes)
        print(f"  {time.time() - began:.0f} s")
    draw(curves, random, chosen.out / "learning_curves.png")
    print(f"\ntrue success over {chosen.episodes} fresh episodes of {chosen.task!r}")
    for name, rate in rates.items():
        print(f"  {name:28s} {rate:.2f}")


if __name__ == "__main__":
    main()
