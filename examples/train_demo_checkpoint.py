"""Train the demo checkpoint from nothing: a small Robometer that knows TabletopReach.

You will see: the loss and its parts fall. You get a folder that every reward_model= takes; the one
in robometer_gym/assets/demo was made by these four lessons, from seed 0.
Command: python examples/train_demo_checkpoint.py --out outputs/demo_checkpoint
Then: python benchmarks/reward_quality.py --model outputs/demo_checkpoint
Hardware: about 12 minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import trange

from robometer_gym import RobometerRewardModel
from robometer_gym.data import Episode
from robometer_gym.envs import TASKS
from robometer_gym.envs.scripted_episodes import SCRIPTS, make_scripted_episode
from robometer_gym.models.robometer.demo import byte_tokenizer, demo_config, random_model
from robometer_gym.models.robometer.network import RobometerProcessor
from robometer_gym.models.robometer.network.images import ImageSettings
from robometer_gym.models.robometer.network.processor import PHRASES
from robometer_gym.training import SamplingSettings, train

SHARES = (0.7, 0.18, 0.1, 0.02, 0.0)  # of experts and the other SCRIPTS
NEAR = (0.5, 0.0, 0.0, 0.0, 0.5)  # for the last lesson: to be on the block or beside it
MOST_REST = 12  # steps that an expert stays on the block after its success

# Pixels are measured from about the colour of the table, so that what lies on it stands out.
IMAGES = ImageSettings(image_mean=(0.8, 0.72, 0.6), image_std=(0.2, 0.2, 0.2))

# One block after the other. Whether an attempt fits its instruction can be told neither from the
# pictures nor from the words alone, and a network that starts from nothing finds no way in; while
# all go to one block, the words alone tell. Rewinds make it look at the pictures: how far one has
# come cannot be told from the number of frames.
FIRST = SamplingSettings(
    preference_share=0.0,
    clip_ratios={"forward": 0.1, "rewind": 0.5, "different_task": 0.4},
)
THEN = SamplingSettings(
    preference_share=0.15,
    clip_ratios={"forward": 0.4, "rewind": 0.3, "different_task": 0.3},
    min_success=1.0,  # the environment says to the frame when a task was done
)


@dataclass(frozen=True)
class Lesson:
    """What is taught: attempts at how many blocks, for which share of all steps, and how."""

    blocks: int
    share: float
    sampling: SamplingSettings
    schedule: str
    learning_rate: float = 1.5e-3
    near: bool = False  # whether the last inches are taught: on the block, or beside it


LESSONS = (
    Lesson(1, 0.08, FIRST, "constant_with_warmup"),
    Lesson(2, 0.16, FIRST, "constant_with_warmup"),
    Lesson(3, 0.56, THEN, "cosine"),
    Lesson(3, 0.2, THEN, "cosine", learning_rate=7.5e-4, near=True),
)


# Each is one token, so that the task is one of few and not one word among a hundred.
TEXTS = [*PHRASES, *TASKS, *(f"Picture {number}: " for number in range(1, 17))]


def attempts(count: int, shares: Sequence[float], seed: int) -> list[Episode]:
    """Let experts and others try; the seeds of the tables are below 1,000,000."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in trange(count, desc="attempts", disable=None):
        kind = SCRIPTS[rng.choice(len(SCRIPTS), p=shares)]
        rest = int(rng.integers(MOST_REST)) if kind == "expert" else 0
        made.append(make_scripted_episode(kind, int(rng.integers(1_000_000)), rest=rest))
    return made


def only(tasks: Sequence[str], episodes: Sequence[Episode]) -> list[Episode]:
    """Take the attempts at some tasks; of each other task only one, so that its name is heard."""
    others = {e.task: e for e in episodes if e.task not in tasks and e.outcome == "successful"}
    return [e for e in episodes if e.task in tasks] + list(others.values())


def untrained(seed: int) -> RobometerRewardModel:
    """Make the small network, with random weights."""
    processor = RobometerProcessor(byte_tokenizer(TEXTS), IMAGES)
    config = demo_config(processor)
    return RobometerRewardModel(random_model(config, seed), processor, config)


def teach(
    model: RobometerRewardModel, lesson: Lesson, seen: Sequence[Episode], chosen: argparse.Namespace
) -> RobometerRewardModel:
    """Train for one lesson, and save."""
    return train(
        model,
        only(TASKS[: lesson.blocks], seen),
        chosen.out,
        lora=None,
        train_vision=True,
        sampling=lesson.sampling,
        max_steps=max(1, round(lesson.share * chosen.steps)),
        lr_scheduler_type=lesson.schedule,
        per_device_train_batch_size=32,
        learning_rate=lesson.learning_rate,
        max_grad_norm=1.0,
        save_strategy="no",
        seed=chosen.seed,
        bf16=False,  # a network this small is as fast in float32
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description="Train the demo checkpoint from nothing.")
    parser.add_argument("--out", type=Path, default=Path("outputs/demo_checkpoint"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--attempts", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    torch.manual_seed(chosen.seed)
    model, seen = untrained(chosen.seed), attempts(chosen.attempts, SHARES, chosen.seed)
    for lesson in LESSONS:
        if lesson.near:
            half = chosen.attempts // 2
            seen = seen[:half] + attempts(half, NEAR, chosen.seed + 1)
        model = teach(model, lesson, seen, chosen)
    print(f"\nUse it: reward_model={str(chosen.out)!r}")


if __name__ == "__main__":
    main()
