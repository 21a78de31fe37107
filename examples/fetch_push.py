"""Simulated robot rewarded from its camera: FetchPush or FetchReach of gymnasium-robotics, and SAC.

You will see: progress, detected and true success of each episode of a scripted and a random policy,
and with --train of SAC, which learns from the camera's reward alone; plots and videos.
Command: python examples/fetch_push.py [--env FetchReach-v4] [--train] [--model ID]
Hardware: half a minute on two CPU cores with the "demo" checkpoint, which has never seen a robot,
with --train a quarter of an hour; for --model lerobot/Robometer-4B a GPU with 12 GB. Needs the
extras "robots" and "video", for --train "sb3"; without a display apt-get install libegl1 libgl1.
"""

import argparse
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.linalg import norm

# The model's libraries first: triton crashes if Mesa, which renders without a GPU, came before it.
from robometer_gym import RobometerRewardModel, RobometerRewardWrapper
from robometer_gym.evaluation import evaluate

TASKS = {
    "FetchPush-v4": "push the black block to the red target",
    "FetchReach-v4": "move the gripper to the red sphere",
}
# In the view of the environment's own camera the block is eight pixels wide.
CAMERA = {"distance": 1.5, "azimuth": 132, "elevation": -30, "lookat": np.array([1.3, 0.75, 0.5])}
HELP = """no robot, or no frame of it: {!r}
The robot: pip install 'robometer-gym[robots]' (gymnasium-robotics and mujoco before 3.12).
The frame, without a display: apt-get install libegl1 libgl1 for MUJOCO_GL=egl, the default set
here; or apt-get install libosmesa6 for MUJOCO_GL=osmesa."""


def make_robot(env_id: str) -> gym.Env[Any, Any]:
    """Make the environment and render it once; if that fails, name the packages to install.

    Close it before the next: several MuJoCo environments in one process spoil each other's frames
    if they differ in size, or when one is closed.
    """
    if not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # read when mujoco is imported
    try:
        if tuple(map(int, version("mujoco").split(".")[:2])) >= (3, 12):
            raise ImportError(f"mujoco {version('mujoco')} is too new for Fetch's joints")
        import gymnasium_robotics

        gym.register_envs(gymnasium_robotics)
        look: dict[str, Any] = {"width": 240, "height": 240, "default_camera_config": CAMERA}
        env = gym.make(env_id, render_mode="rgb_array", **look)
        env.reset()
        env.render()
    except Exception as error:  # PyOpenGL and MuJoCo raise several kinds
        raise SystemExit(HELP.format(error)) from error
    return env


def scripted(observation: dict[str, Any]) -> Any:
    """Reach: go to the goal. Push: go behind the block, then through it towards the goal."""
    hand = observation["observation"][:3]
    block, goal = observation["achieved_goal"], observation["desired_goal"]
    way = (goal - block) / norm(goal - block)
    behind = block - 0.1 * way
    if np.array_equal(hand, block):  # no block: the goal is for the hand itself
        aim = goal
    elif norm(goal - block) < 0.02:
        aim = hand
    elif (hand - block) @ way < -0.02 and norm(np.cross(hand - block, way)) < 0.04:
        aim = (block + goal) / 2
    else:
        aim = behind + np.array([0, 0, 0.1 if norm((behind - hand)[:2]) > 0.03 else 0])
    return np.append(10 * (aim - hand), -1).clip(-1, 1).astype(np.float32)


def show(env: Any, policies: Sequence[Any], chosen: argparse.Namespace) -> None:
    """Run policies, print their episodes and write plots and videos; close the environment."""
    row = "{:9} {:>5} {:>9} {:>9} {:>13}"
    print("\n" + row.format("policy", "steps", "progress", "detected", "true success"))
    for policy in policies:
        report = evaluate(env, policy, chosen.episodes)
        for e in report.episodes:
            at = [
                "no" if step is None else f"step {step}"
                for step in (e.detected_step, e.true_success_step)
            ]
            print(row.format(report.policy, e.num_steps, f"{e.final_progress:.3f}", *at))
        report.save(chosen.out / report.policy)
    env.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run two policies, and train a third one."""
    parser = argparse.ArgumentParser(description="A simulated robot rewarded from its camera.")
    parser.add_argument("--env", choices=TASKS, default="FetchPush-v4")
    parser.add_argument("--task", help="instruction (default: that of the environment)")
    parser.add_argument("--model", default="demo", help="hub id, folder, or 'demo'")
    parser.add_argument("--episodes", type=int, default=3, help="of each policy")
    parser.add_argument("--train", action="store_true", help="train SAC")
    parser.add_argument("--steps", type=int, default=20_000, help="of SAC")
    parser.add_argument("--out", type=Path, default=Path("outputs/fetch_push"))
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    task = chosen.task or TASKS[chosen.env]
    robot = make_robot(chosen.env)
    model = RobometerRewardModel.from_pretrained(chosen.model)
    print(f"{chosen.env}: {task}")
    if chosen.model == "demo":
        print("The demo checkpoint has never seen a robot: its numbers mean nothing here.")
    show(RobometerRewardWrapper(robot, task, model), [scripted, "random"], chosen)
    if chosen.train:
        from stable_baselines3 import SAC

        from robometer_gym.sb3 import make_robometer_vec_env

        envs = make_robometer_vec_env(
            make_robot, task, 1, model, seed=0, env_kwargs={"env_id": chosen.env}
        )
        agent = SAC("MultiInputPolicy", envs, gamma=0.95, seed=0, verbose=1)
        agent.learn(chosen.steps, log_interval=20)
        agent.save(chosen.out / "sac")
        show(envs, [agent], chosen)
    print(f"\nTables, plots and videos are in {chosen.out}")


if __name__ == "__main__":
    main()
