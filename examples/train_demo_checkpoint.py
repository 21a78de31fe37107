"""Train the demo checkpoint from random weights: a small Robometer for TabletopReach.

You will see: the loss and its parts fall. The result is a folder that every reward_model= accepts;
robometer_gym/assets/demo was made by these four lessons, from seed 0.
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
from robometer_gym.models.robometer.network.prompt_text import PHRASES
from robometer_gym.training import SamplingSettings, train

SHARES = (0.7, 0.18, 0.1, 0.02, 0.0)  # of SCRIPTS, experts first
NEAR_SHARES = (0.5, 0.0, 0.0, 0.0, 0.5)  # for the last lesson: on the block, or beside it
MAX_REST = 12  # steps that an expert stays on the block after its success

# Pixels are normalized around the color of the table, so that objects on it stand out.
IMAGES = ImageSettings(image_mean=(0.8, 0.72, 0.6), image_std=(0.2, 0.2, 0.2))

# One block after the other. Whether an attempt fits its instruction depends on frames and words
# together, which a network with random weights does not learn; while all episodes go to one block,
# the words alone decide. Rewinds make it use the frames: progress no longer follows from their
# number.
EARLY = SamplingSettings(
    preference_share=0.0,
    clip_ratios={"forward": 0.1, "rewind": 0.5, "different_task": 0.4},
)
LATE = SamplingSettings(
    preference_share=0.15,
    clip_ratios={"forward": 0.4, "rewind": 0.3, "different_task": 0.3},
    min_success=1.0,  # the environment knows the exact frame of success
)


@dataclass(frozen=True)
class Lesson:
    """One stage of training.

    Attributes:
        blocks: the number of blocks that its episodes go to.
        share: of all training steps.
        sampling: which examples are drawn.
        schedule: of the learning rate.
        learning_rate: its peak.
        near: whether half of the episodes end on the block or close beside it.
    """

    blocks: int
    share: float
    sampling: SamplingSettings
    schedule: str
    learning_rate: float = 1.5e-3
    near: bool = False


LESSONS = (
    Lesson(1, 0.08, EARLY, "constant_with_warmup"),
    Lesson(2, 0.16, EARLY, "constant_with_warmup"),
    Lesson(3, 0.56, LATE, "cosine"),
    Lesson(3, 0.2, LATE, "cosine", learning_rate=7.5e-4, near=True),
)

# Each text is one token, so that the task is one of few and not one word among a hundred.
TEXTS = [*PHRASES, *TASKS, *(f"Picture {number}: " for number in range(1, 17))]


def record_episodes(count: int, shares: Sequence[float], seed: int) -> list[Episode]:
    """Record scripted policies; the seeds of the tables are below 1,000,000."""
    rng = np.random.default_rng(seed)
    episodes = []
    for _ in trange(count, desc="episodes", disable=None):
        script = SCRIPTS[rng.choice(len(SCRIPTS), p=shares)]
        rest = int(rng.integers(MAX_REST)) if script == "expert" else 0
        episodes.append(make_scripted_episode(script, int(rng.integers(1_000_000)), rest=rest))
    return episodes


def select_tasks(tasks: Sequence[str], episodes: Sequence[Episode]) -> list[Episode]:
    """Return the episodes of some tasks, and one of each other task for its instruction."""
    others = {e.task: e for e in episodes if e.task not in tasks and e.outcome == "successful"}
    return [e for e in episodes if e.task in tasks] + list(others.values())


def untrained_model(seed: int) -> RobometerRewardModel:
    """Return the small network with random weights."""
    processor = RobometerProcessor(byte_tokenizer(TEXTS), IMAGES)
    config = demo_config(processor)
    return RobometerRewardModel(random_model(config, seed), processor, config)


def train_lesson(
    model: RobometerRewardModel,
    lesson: Lesson,
    episodes: Sequence[Episode],
    options: argparse.Namespace,
) -> RobometerRewardModel:
    """Train for one lesson, and save."""
    return train(
        model,
        select_tasks(TASKS[: lesson.blocks], episodes),
        options.out,
        lora=None,
        train_vision=True,
        sampling=lesson.sampling,
        max_steps=max(1, round(lesson.share * options.steps)),
        lr_scheduler_type=lesson.schedule,
        per_device_train_batch_size=32,
        learning_rate=lesson.learning_rate,
        max_grad_norm=1.0,
        save_strategy="no",
        seed=options.seed,
        bf16=False,  # a network this small is as fast in float32
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description="Train the demo checkpoint from random weights.")
    parser.add_argument("--out", type=Path, default=Path("outputs/demo_checkpoint"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--attempts", type=int, default=2000, help="episodes to record")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    model = untrained_model(options.seed)
    episodes = record_episodes(options.attempts, SHARES, options.seed)
    for lesson in LESSONS:
        if lesson.near:
            half = options.attempts // 2
            episodes = episodes[:half] + record_episodes(half, NEAR_SHARES, options.seed + 1)
        model = train_lesson(model, lesson, episodes, options)
    print(f"\nUse it: reward_model={str(options.out)!r}")


if __name__ == "__main__":
    main()
