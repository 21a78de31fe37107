"""Quality of a reward model on TabletopReach: order, ranking, success, instruction, preference.

Quantity: figures without a unit, on held-out episodes (seeds from 1,000,000; the demo checkpoint
was trained on seeds below 1,000,000). N tables, with five scripted episodes on each: an expert, and
policies that stop on the way, wander, go to another block, and rest beside the named block.
Method: every frame is scored from a window of at most 8 frames spread over the episode so far, as
the reward wrapper does.
    - "order": Spearman correlation of progress with time, over an expert's frames up to its
      success ("VOC"); mean over episodes.
    - "ranking": Kendall's tau-a of final progress over {failure, suboptimal, successful}: wandering
      and another block are failures, stopping and missing are suboptimal; over every triple of one
      task, mean over the tasks.
    - "success, frames": F1 of success probability >= 0.65 against the environment's own is_success,
      every frame of every episode. Experts stay on the block for 10 steps after their success.
    - "success, episodes": F1 of the wrapper's detector (a prediction each 5 steps and at the end,
      2 votes of 2) against the environment's success.
    - "right", "wrong instruction": mean final progress of experts with the instruction that they
      followed, and with each of the other two.
    - "preference": share of pairs for which the model prefers the better clip, in both orders: an
      expert against the same episode rewound or reversed, another task, a worse episode.
Beside the model: a clock that knows nothing but the time (progress = frame / 40, 40 steps being an
expert's mean; success at 1; no preference), as a baseline for each figure: it reaches "order".
Hardware: any; two minutes on two CPU cores with N = 60.

    python benchmarks/reward_quality.py --model demo --attempts 60
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from harness.report import markdown_table, print_json

from robometer_gym import Clip, EpisodeTrace, LazyRewardModel, Prediction, RewardModel
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
Episodes = dict[Any, list[Episode]]
Scores = dict[Any, list[EpisodeTrace]]


class Clock:
    """A reward model that knows nothing but the time."""

    def predict(self, clips: Sequence[Clip]) -> list[Prediction]:
        """Count to 40."""
        predictions = []
        for clip in clips:
            steps = np.array(clip.steps if clip.steps else range(len(clip)), np.float32)
            progress = np.minimum(1.0, steps / 40.0).astype(np.float32)
            predictions.append(Prediction(progress, (progress >= 1.0).astype(np.float32)))
        return predictions

    def prefer(self, a: Clip, b: Clip) -> float:
        """Return no preference."""
        return 0.5


def score(model: RewardModel, episode: Episode, task: str | None = None) -> EpisodeTrace:
    """Score every frame from the window that the wrapper would pass."""
    frames = episode.frames[range(len(episode))]
    return score_frames(model, frames, task or episode.task, window=SETTINGS.max_frames)


def detector_fires(success: np.ndarray[Any, Any]) -> bool:
    """Return whether the wrapper's detector fires during an episode."""
    detector, last = SETTINGS.new_detector(), len(success) - 1
    detector.clear(float(success[0]))
    due = [*range(SETTINGS.predict_every, last, SETTINGS.predict_every), last]
    return [detector.update(float(success[step])) for step in due][-1]


def measure(model: Any, attempts: int) -> dict[str, float]:
    """Return every figure of one model."""
    seeds = range(FIRST_SEED, FIRST_SEED + attempts)
    episodes: Episodes = {
        kind: [
            make_scripted_episode(kind, seed, rest=REST if kind == "expert" else 0)
            for seed in seeds
        ]
        for kind in SCRIPTS
    }
    scores = {kind: [score(model, episode) for episode in episodes[kind]] for kind in SCRIPTS}
    return {
        **order_and_ranking(episodes, scores),
        **success_figures(episodes, scores),
        **instruction_figures(model, episodes["expert"], scores["expert"]),
        "preference": preference_figure(model, episodes, 4 * attempts),
    }


def success_length(episode: Episode) -> int:
    """Return the number of an expert's frames up to its success, that frame included."""
    return round(episode.cutoff * len(episode))


def order_and_ranking(episodes: Episodes, scores: Scores) -> dict[str, float]:
    """Return how well progress orders the frames of an episode, and the outcomes of a task."""
    order = [
        value_order_correlation(scored.progress[: success_length(episode)])
        for episode, scored in zip(episodes["expert"], scores["expert"], strict=True)
    ]
    ranking = []
    for task in TASKS:
        final = {
            kind: [
                float(scored.progress[-1])
                for episode, scored in zip(episodes[kind], scores[kind], strict=True)
                if episode.task == task
            ]
            for kind in SCRIPTS
        }
        failed = final["wanders"] + final["wrong_block"]
        suboptimal = final["stops"] + final["misses"]
        ranking.append(policy_ranking([failed, suboptimal, final["expert"]]))
    return {"order": float(np.mean(order)), "ranking": float(np.mean(ranking))}


def success_figures(episodes: Episodes, scores: Scores) -> dict[str, float]:
    """Return the F1s of success, and their parts."""
    by_frame, true_by_frame, by_episode, true_by_episode = [], [], [], []
    for kind in SCRIPTS:
        for episode, scored in zip(episodes[kind], scores[kind], strict=True):
            true = np.zeros(len(episode), bool)
            if kind == "expert":
                true[success_length(episode) - 1 :] = True
            by_frame.append(scored.success >= SETTINGS.success_threshold)
            true_by_frame.append(true)
            by_episode.append(detector_fires(scored.success))
            true_by_episode.append(kind == "expert")
    in_frames = detection(np.concatenate(by_frame), np.concatenate(true_by_frame))
    in_episodes = detection(np.array(by_episode), np.array(true_by_episode))
    return {
        "success, frames": in_frames.f1,
        "  precision": in_frames.precision,
        "  recall": in_frames.recall,
        "success, episodes": in_episodes.f1,
        "  false-success rate": in_episodes.false_success_rate,
    }


def instruction_figures(
    model: RewardModel, experts: Sequence[Episode], scores: Sequence[EpisodeTrace]
) -> dict[str, float]:
    """Return the mean progress of experts at their success, by instruction."""
    right, wrong = [], []
    for episode, scored in zip(experts, scores, strict=True):
        last = success_length(episode) - 1
        right.append(scored.progress[last])
        for task in TASKS:
            if task != episode.task:
                wrong.append(float(score(model, episode, task).progress[last]))
    return {"right instruction": float(np.mean(right)), "wrong instruction": float(np.mean(wrong))}


def preference_figure(model: Any, episodes: Episodes, count: int) -> float:
    """Return the preference accuracy on drawn pairs of every kind that the model is trained on."""
    flat = [episode for kind in SCRIPTS for episode in episodes[kind]]
    sampler, rng = Sampler(flat, SamplingSettings()), np.random.default_rng(FIRST_SEED)
    drawn = [sampler.draw(rng) for _ in range(count)]
    pairs = [pair for pair in drawn if isinstance(pair, PreferencePair)]
    probabilities = [model.prefer(pair.a.clip, pair.b.clip) for pair in pairs]
    return preference_accuracy(probabilities, [pair.a_is_better for pair in pairs])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and the same as one line of JSON."""
    parser = argparse.ArgumentParser(description="Quality of a reward model on TabletopReach.")
    parser.add_argument("--model", default="demo", help="hub id, folder, or 'demo'")
    parser.add_argument("--attempts", type=int, default=60, help="of each kind (>= 6)")
    chosen = parser.parse_args(arguments)
    if chosen.attempts < 6:
        parser.error("--attempts must be >= 6: each task needs some of its own")
    model = measure(LazyRewardModel(chosen.model).load(), chosen.attempts)
    clock = measure(Clock(), chosen.attempts)
    rows = []
    for name, value in model.items():
        sign, bar = BARS.get(name, ("", None))
        met = bar is None or (value >= bar if sign == ">=" else value <= bar)
        limit = f"{sign} {bar}" if bar is not None else ""
        rows.append(
            [name, f"{value:.3f}", f"{clock[name]:.3f}", limit + ", **missed**" * (not met)]
        )
    title = f"held-out, {chosen.attempts} attempts of each kind"
    print("\n".join(markdown_table([title, chosen.model, "clock", "bar"], rows)))
    print_json("reward_quality", attempts=chosen.attempts, model=model, clock=clock, bars=BARS)


if __name__ == "__main__":
    main()
