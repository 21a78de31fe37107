"""Pay an agent from the camera: any Gymnasium environment, one line.

You will see: one episode of a scripted expert on the built-in table, with what the environment
would have paid and what the agent is paid instead.
Command: python examples/wrap_an_environment.py [--reward-model lerobot/Robometer-4B]
Hardware: seconds on two CPU cores with the default "demo" checkpoint (random: its numbers mean
nothing yet); the 4B model wants a GPU with 12 GB.
"""

from __future__ import annotations

import argparse
from typing import Any, cast

import gymnasium as gym

from robometer_gym import RobometerRewardWrapper
from robometer_gym.envs import TabletopReachEnv

TASK = "move the gripper to the red block"


def main() -> None:
    """Roll out one episode and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--reward-model", default="demo", help="hub id, folder or 'demo'")
    arguments = parser.parse_args()

    env: gym.Env[Any, Any] = gym.make(
        "robometer_gym/TabletopReach-v0", render_mode="rgb_array", task=TASK
    )
    env = RobometerRewardWrapper(env, task=TASK, reward_model=arguments.reward_model)

    _, info = env.reset(seed=0)
    print(f"at reset: progress {info['robometer/progress']:.3f}")
    expert = cast(TabletopReachEnv, env.unwrapped)
    paid, step, ended = 0.0, 0, False
    while not ended:
        _, reward, terminated, truncated, info = env.step(expert.expert_action())
        paid, step, ended = paid + float(reward), step + 1, terminated or truncated
        if info["robometer/predicted"]:
            print(
                f"step {step:3d}: progress {info['robometer/progress']:.3f}, "
                f"success {info['robometer/success_prob']:.3f}, paid {reward:+.3f}, "
                f"the environment would have paid {info['env_reward']:.1f}"
            )
    print(f"paid in all: {paid:+.3f}; really done: {info['is_success']}")
    env.close()


if __name__ == "__main__":
    main()
