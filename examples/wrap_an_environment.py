"""Reward an agent from the camera: any Gymnasium environment, one line.

You will see: one episode of a scripted expert on the built-in table, with the environment's own
reward beside the reward model's.
Command: python examples/wrap_an_environment.py [--reward-model lerobot/Robometer-4B]
Hardware: seconds on two CPU cores with the default "demo" checkpoint, which is small and trained
on this table alone; the 4B model needs a GPU with 12 GB.
"""

import argparse
from typing import Any, cast

import gymnasium as gym

from robometer_gym import RobometerRewardWrapper
from robometer_gym.envs import ENV_ID, TASKS, TabletopReachEnv


def main() -> None:
    """Roll out one episode and print it."""
    parser = argparse.ArgumentParser(description="Reward an agent from the camera.")
    parser.add_argument("--reward-model", default="demo", help="hub id, folder or 'demo'")
    arguments = parser.parse_args()

    env: gym.Env[Any, Any] = gym.make(ENV_ID, render_mode="rgb_array", task=TASKS[0])
    env = RobometerRewardWrapper(env, task=TASKS[0], reward_model=arguments.reward_model)

    _, info = env.reset(seed=0)
    print(f"at reset: progress {info['robometer/progress']:.3f}")
    expert = cast(TabletopReachEnv, env.unwrapped)
    episode_return, step, ended = 0.0, 0, False
    while not ended:
        _, reward, terminated, truncated, info = env.step(expert.expert_action())
        episode_return += float(reward)
        step, ended = step + 1, terminated or truncated
        if info["robometer/predicted"]:
            print(
                f"step {step:3d}: progress {info['robometer/progress']:.3f}, "
                f"success {info['robometer/success_prob']:.3f}, reward {reward:+.3f}, "
                f"environment's own reward {info['env_reward']:.1f}"
            )
    print(f"return: {episode_return:+.3f}; true success: {info['is_success']}")
    env.close()


if __name__ == "__main__":
    main()
