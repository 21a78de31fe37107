"""How good a reward model is on TabletopReach: order, ranking, success, instruction, preference.

Quantity: figures without a unit, on held-out attempts (seeds from 1,000,000; the demo checkpoint
was trained on seeds below 1,000,000). N tables, on each of which five attempts are made: an expert,
one who stops on the way, one who wanders, one who goes to another block, and one who rests beside
the named block.
Method: every frame is scored from a window of at most 8 frames spread over the attempt so far, as
the reward wrapper does it.
    - "order": Spearman correlation of progress with time, over an expert's frames up to its
      success ("VOC"); mean over attempts.
    - "ranking": Kendall's tau-a of final progress over {failure, suboptimal, successful}: who
      wanders or goes to another block fails, who stops or misses is suboptimal; over every triple
      of one task, mean over the tasks.
    - "success, frames": F1 of success probability >= 0.65 against the environment's own is_success,
      every frame of every attempt. Experts stay on the block for 10 steps after their success.
    - "success, episodes": F1 of the wrapper's detector (a prediction each 5 steps and at the end,
      2 votes of 2) having fired, against the environment's success.
    - "right", "wrong instruction": mean final progress of experts with the instruction that they
      followed, and with each of the other two.
    - "preference": share of pairs for which the model prefers the better one, asked in both orders:
      an expert against the same attempt rewound or reversed, another task, a worse attempt.
Beside the model: a clock that knows nothing but the time (progress = frame / 40, 40 steps being an
expert's mean; success at 1; no preference), which shows what a figure is worth: "order" is fooled.
Hardware: any; two minutes on two CPU cores with N = 60.

    python benchmarks/reward_quality.py --model demo --attempts 60
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from robometer_gym import Clip, EpisodeTrace, Prediction, RewardModel
from robometer_gym.data import Episode
from robometer_gym.envs.scripted_episodes import SCRIPTS, make_scripted_episode
from robometer_gym.envs.tabletop import TASKS
from robometer_gym.evaluation import (
    detection,
    policy_ranking,
    preference_accuracy,
    score_frames,
    value_order_correlation,
)
from robometer_gym.models.loading import LazyRewardModel
from robometer_gym.tracking.settings import RewardSettings
from robometer_gym.training import Sampler, SamplingSettings
from robometer_gym.training.sampler import PreferencePair

FIRST_SEED = 1_000_000
REST = 10
BARS = {
    "order": (">=", 0.9),
    "ranking": (">=", 0.8),
    "success, frames": (">=", 0.9),
    "success, episodes": (">=", 0.9),
    "right instruction": (">=", 0.8),
    "wrong instruction": ("<=", 0.2),
    "preference": (">=", 0.95),
}
SETTINGS = RewardSettings()


class Clock:
    """A reward model that knows nothing but the time."""

    def predict(self, clips: Sequence[Clip]) -> list[Prediction]:
        """Count to 40."""
        told = []
        for clip in clips:
            steps = np.array(clip.steps if clip.steps else range(len(clip)), np.float32)
            progress = np.minimum(1.0, steps / 40.0).astype(np.float32)
            told.append(Prediction(progress, (progress >= 1.0).astype(np.float32)))
        return told

    def prefer(self, a: Clip, b: Clip) -> float:
        """See no difference."""
        return 0.5


def score(model: RewardModel, episode: Episode, task: str | None = None) -> EpisodeTrace:
    """Score every frame from the window that the wrapper would have shown."""
    frames = episode.frames[range(len(episode))]
    return score_frames(model, frames, task or episode.task, window=SETTINGS.max_frames)


def fires(success: np.ndarray[Any, Any]) -> bool:
    """Whether the wrapper's detector would have fired during an attempt."""
    detector, last = SETTINGS.new_detector(), len(success) - 1
    detector.clear(float(success[0]))
    due = [*range(SETTINGS.predict_every, last, SETTINGS.predict_every), last]
    return [detector.update(float(success[step])) for step in due][-1]


def measure(model: Any, attempts: int) -> dict[str, float]:
    """Return every figure of one model."""
    seeds = range(FIRST_SEED, FIRST_SEED + attempts)
    made = {
        kind: [
            make_scripted_episode(kind, seed, rest=REST if kind == "expert" else 0)
            for seed in seeds
        ]
        for kind in SCRIPTS
    }
    scored = {kind: [score(model, episode) for episode in made[kind]] for kind in SCRIPTS}
    done = [round(episode.cutoff * len(episode)) for episode in made["expert"]]
    order = [
        value_order_correlation(said.progress[:end])
        for said, end in zip(scored["expert"], done, strict=True)
    ]
    final = {kind: [float(said.progress[-1]) for said in scored[kind]] for kind in SCRIPTS}
    wrong = [
        float(score(model, episode, task).progress[end - 1])
        for episode, end in zip(made["expert"], done, strict=True)
        for task in TASKS
        if task != episode.task
    ]
    ranking = []
    for task in TASKS:
        of = {
            kind: [f for f, e in zip(final[kind], made[kind], strict=True) if e.task == task]
            for kind in SCRIPTS
        }
        failed = of["wanders"] + of["wrong_block"]
        ranking.append(policy_ranking([failed, of["stops"] + of["misses"], of["expert"]]))
    pairs, better = draw_pairs([e for kind in SCRIPTS for e in made[kind]], 4 * attempts)
    return {
        "order": float(np.mean(order)),
        "ranking": float(np.mean(ranking)),
        **success_figures(made, scored),
        "right instruction": float(
            np.mean([s.progress[e - 1] for s, e in zip(scored["expert"], done, strict=True)])
        ),
        "wrong instruction": float(np.mean(wrong)),
        "preference": preference_accuracy(
            np.array([model.prefer(a, b) for a, b in pairs]), np.array(better)
        ),
    }


def success_figures(
    made: dict[Any, list[Episode]], scored: dict[Any, list[EpisodeTrace]]
) -> dict[str, float]:
    """Return the F1s of success, and what they are made of."""
    said_frames, true_frames, said_episodes, true_episodes = [], [], [], []
    for kind in SCRIPTS:
        for episode, said in zip(made[kind], scored[kind], strict=True):
            true = np.zeros(len(episode), bool)
            if kind == "expert":
                true[round(episode.cutoff * len(episode)) - 1 :] = True
            said_frames.append(said.success >= SETTINGS.success_threshold)
            true_frames.append(true)
            said_episodes.append(fires(said.success))
            true_episodes.append(kind == "expert")
    frames = detection(np.concatenate(said_frames), np.concatenate(true_frames))
    episodes = detection(np.array(said_episodes), np.array(true_episodes))
    return {
        "success, frames": frames.f1,
        "  precision": frames.precision,
        "  recall": frames.recall,
        "success, episodes": episodes.f1,
        "  false-success rate": episodes.false_success_rate,
    }


def draw_pairs(
    episodes: Sequence[Episode], count: int
) -> tuple[list[tuple[Clip, Clip]], list[bool]]:
    """Draw comparisons of every kind that the model is trained on."""
    sampler, rng = Sampler(episodes, SamplingSettings()), np.random.default_rng(FIRST_SEED)
    drawn = [sampler.draw(rng) for _ in range(count)]
    pairs = [pair for pair in drawn if isinstance(pair, PreferencePair)]
    return [(p.a.clip, p.b.clip) for p in pairs], [p.a_is_better for p in pairs]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and the same as one line of JSON."""
    parser = argparse.ArgumentParser(description="How good a reward model is on TabletopReach.")
    parser.add_argument("--model", default="demo", help="hub id, folder, or 'demo'")
    parser.add_argument("--attempts", type=int, default=60, help="of each kind (>= 6)")
    chosen = parser.parse_args(arguments)
    if chosen.attempts < 6:
        parser.error("--attempts must be >= 6: each task needs some of its own")
    model = measure(LazyRewardModel(chosen.model).load(), chosen.attempts)
    clock = measure(Clock(), chosen.attempts)
    print(f"| held-out, {chosen.attempts} attempts of each kind | {chosen.model} | clock | bar |")
    print("|---|---|---|---|")
    for name, value in model.items():
        sign, bar = BARS.get(name, ("", None))
        met = "" if bar is None else f"{sign} {bar}"
        if bar is not None and not (value >= bar if sign == ">=" else value <= bar):
            met += ", **missed**"
        print(f"| {name} | {value:.3f} | {clock[name]:.3f} | {met} |")
    result = {"benchmark": "reward_quality", "attempts": chosen.attempts, "model": model}
    print(json.dumps({**result, "clock": clock, "bars": BARS}))


if __name__ == "__main__":
    main()
