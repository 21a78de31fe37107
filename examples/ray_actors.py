"""Ray actors that each run an environment, rewarded by replicas of one reward model.

You will see: the return and the last progress of each actor's episodes, and which actors there are.
Command: python examples/ray_actors.py [--actors 4] [--url http://HOST:PORT]
Hardware: a minute on two CPU cores with the "demo" checkpoint; the 4B model needs a GPU with 12 GB
for each replica. Needs the extra `ray`.
"""

import argparse
from typing import Any, cast

import gymnasium as gym
import ray

from robometer_gym import LazyRewardModel, RobometerRewardWrapper
from robometer_gym.envs import ENV_ID, TASKS, TabletopReachEnv


class Actor:
    """One environment. Its process needs no torch: the reward comes from the server."""

    def __init__(self, url: str, seed: int) -> None:
        env: gym.Env[Any, Any] = gym.make(ENV_ID, render_mode="rgb_array", task=TASKS[0])
        self.env = RobometerRewardWrapper(env, task=TASKS[0], reward_model=url)
        self.seed = seed

    def roll_out(self) -> tuple[float, float]:
        """Act for one episode as the scripted expert; return its return and last progress."""
        _, info = self.env.reset(seed=self.seed)
        expert = cast(TabletopReachEnv, self.env.unwrapped)
        episode_return, ended = 0.0, False
        while not ended:
            _, reward, terminated, truncated, info = self.env.step(expert.expert_action())
            episode_return += float(reward)
            ended = terminated or truncated
        return episode_return, info["robometer/progress"]


def main() -> None:
    """Deploy two replicas unless a URL is given, and roll out an episode in each actor."""
    parser = argparse.ArgumentParser(description="Reward Ray actors from a reward server.")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--port", type=int, default=8900)
    parser.add_argument("--url", help="of a running server; the default is to start one")
    arguments = parser.parse_args()
    ray.init(num_cpus=arguments.actors + arguments.replicas + 1, include_dashboard=False)
    url = arguments.url
    if url is None:
        from robometer_gym.serve.ray import make_application, serve_on_ray

        application = make_application(LazyRewardModel("demo"), replicas=arguments.replicas)
        url = serve_on_ray(application, port=arguments.port)
    actor_class: Any = ray.remote(Actor)
    actors = [actor_class.remote(url, seed) for seed in range(arguments.actors)]
    for number, result in enumerate(ray.get([actor.roll_out.remote() for actor in actors])):
        print(f"actor {number}: return {result[0]:+.3f}, last progress {result[1]:.3f}")
    ray.shutdown()


if __name__ == "__main__":
    main()
