"""Score clips with the model alone: progress and success per frame, and which of two is better.

You will see: the frames of a scripted expert, scored in one batch with the same frames in reverse;
progress that rises and falls; the preference head, which prefers the clip that reaches the block.
Command: python examples/score_clips.py [--model robometer/Robometer-4B]
Hardware: seconds on two CPU cores with the default "demo" checkpoint, which is small and trained
on this table alone; the 4B model needs a GPU with 12 GB.
"""

import argparse
from typing import Any, cast

import gymnasium as gym
import numpy as np

from robometer_gym import Clip, RobometerRewardModel
from robometer_gym.envs import ENV_ID, TASKS, TabletopReachEnv


def record_expert() -> Any:
    """Return eight frames of an expert's episode, first and last included, (8, 64, 64, 3) uint8."""
    env = gym.make(ENV_ID, render_mode="rgb_array", task=TASKS[0])
    env.reset(seed=0)
    frames, terminated = [env.render()], False
    while not terminated:
        _, _, terminated, _, _ = env.step(cast(TabletopReachEnv, env.unwrapped).expert_action())
        frames.append(env.render())
    env.close()
    return np.array(frames)[np.linspace(0, len(frames) - 1, 8).round().astype(int)]


def main() -> None:
    """Score two clips; use your own videos, (T, H, W, 3) uint8, in their place."""
    parser = argparse.ArgumentParser(description="Score clips with the model alone.")
    parser.add_argument("--model", default="demo", help="hub id, folder or 'demo'")
    model = RobometerRewardModel.from_pretrained(parser.parse_args().model)

    frames = record_expert()
    clips = [Clip(frames, TASKS[0]), Clip(frames[::-1], TASKS[0])]
    for clip, prediction in zip(clips, model.predict(clips), strict=True):
        print(clip)
        print("  progress", prediction.progress.round(3))
        print("  success ", prediction.success.round(3))
    print(f"the first one is better with probability {model.prefer(*clips):.3f}")


if __name__ == "__main__":
    main()
