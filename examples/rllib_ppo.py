"""Train RLlib's PPO on rewards from a reward server: env runners here, the model there.

You will see: after each iteration the mean return of the episodes, as the reward model sees them.
Command: robometer-gym serve --model demo, then python examples/rllib_ppo.py [--iterations 20]
Hardware: two CPU cores with the "demo" checkpoint. Needs ray[rllib], whose releases require one
version of Gymnasium: install it in the environment of the agent, not in that of the model.
"""

import argparse
from typing import Any

import gymnasium as gym
from ray.rllib.algorithms.ppo import PPOConfig
from ray.tune.registry import register_env

from robometer_gym import RobometerRewardWrapper
from robometer_gym.envs import ENV_ID, TASKS


def make_env(config: dict[str, Any]) -> gym.Env[Any, Any]:
    """Return the wrapped environment; each env runner calls this in its own process."""
    env: gym.Env[Any, Any] = gym.make(ENV_ID, render_mode="rgb_array", task=TASKS[0])
    return RobometerRewardWrapper(env, task=TASKS[0], reward_model=config["reward_model"])


def main() -> None:
    """Train for some iterations."""
    parser = argparse.ArgumentParser(description="Train RLlib's PPO with a reward server.")
    parser.add_argument("--reward-model", default="http://127.0.0.1:8900")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--env-runners", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=1000, help="steps per iteration")
    arguments = parser.parse_args()
    register_env("rewarded_tabletop", make_env)
    config = (
        PPOConfig()
        .environment("rewarded_tabletop", env_config={"reward_model": arguments.reward_model})
        .env_runners(num_env_runners=arguments.env_runners)
        .training(train_batch_size_per_learner=arguments.batch_size, minibatch_size=100)
    )
    algorithm = config.build_algo()
    for iteration in range(arguments.iterations):
        result = algorithm.train()["env_runners"]
        mean = result.get("episode_return_mean", float("nan"))
        print(f"iteration {iteration}: mean return {mean:+.3f}", flush=True)
    algorithm.stop()


if __name__ == "__main__":
    main()
