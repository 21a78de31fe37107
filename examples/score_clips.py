"""Score clips with the model alone: progress and success per frame, and which of two is better.

You will see: a ragged batch scored in one call, and the preference head asked in both orders.
Command: python examples/score_clips.py [--model robometer/Robometer-4B]
Hardware: seconds on two CPU cores with the default "demo" checkpoint (random: its numbers mean
nothing yet); the 4B model wants a GPU with 12 GB.
"""

from __future__ import annotations

import argparse

import numpy as np

from robometer_gym import Clip, RobometerRewardModel


def main() -> None:
    """Score two clips of noise: put your own videos, (T, H, W, 3) uint8, in their place."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="demo", help="hub id, folder or 'demo'")
    model = RobometerRewardModel.from_pretrained(parser.parse_args().model)

    rng = np.random.default_rng(0)
    short = Clip(rng.integers(0, 256, (3, 96, 96, 3), np.uint8), task="open the drawer")
    long = Clip(rng.integers(0, 256, (8, 64, 96, 3), np.uint8), task="open the drawer")

    for clip, prediction in zip((short, long), model.predict([short, long]), strict=True):
        print(clip)
        print("  progress", prediction.progress.round(3))
        print("  success ", prediction.success.round(3))
    print(f"the short one is better with probability {model.prefer(short, long):.3f}")


if __name__ == "__main__":
    main()
