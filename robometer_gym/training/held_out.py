"""Held-out episodes: a split of the data, and three figures of a model on the part not trained on.

Knows nothing of how a model is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from robometer_gym.data.episodes import OUTCOMES, Episode
from robometer_gym.evaluation.metrics import policy_ranking, preference_accuracy
from robometer_gym.models.robometer.predictor import RobometerRewardModel
from robometer_gym.reward_model import Clip
from robometer_gym.training.augmentation import subsample
from robometer_gym.training.preferences import normalize_task
from robometer_gym.training.sampler import PreferencePair, Sampler, SamplingSettings

__all__ = ["HeldOutScores", "score_episodes", "split_episodes"]

_PAIRS_PER_EPISODE, _MAX_PAIRS = 4, 200


@dataclass(frozen=True)
class HeldOutScores:
    """Figures of one model on held-out episodes; None where the episodes do not determine one.

    Attributes:
        ranking: in [-1, 1], Kendall's tau-a between the final progress and the outcomes of one
            task, mean over the tasks with two outcomes or more. See `policy_ranking`.
        threshold: the highest success probability at the end of an unsuccessful episode. Above it
            there is no false success among these episodes.
        recall: the share of successful episodes that end with a success probability above
            `threshold`.
        preference_accuracy: the share of preference pairs with the better clip preferred, both
            orders averaged. The pairs are drawn as in training.
    """

    ranking: float | None
    threshold: float | None
    recall: float | None
    preference_accuracy: float | None


def split_episodes(
    episodes: Sequence[Episode], share: float, seed: int
) -> tuple[list[Episode], list[Episode]]:
    """Return the episodes to train on and the held-out ones, each in their order.

    The share is taken of every task and outcome by itself, so that rare outcomes are in both
    parts. A group too small for one held-out episode stays in training.

    Args:
        episodes: all of them.
        share: in [0, 1); 0 holds out none.
        seed: the same one chooses the same episodes.

    Raises:
        ValueError: a share outside [0, 1), or one above 0 that holds out no episode.
    """
    if not 0.0 <= share < 1.0:
        raise ValueError(f"eval_share must be in [0, 1), got {share!r}.")
    groups: dict[tuple[str, str], list[int]] = {}
    for index, episode in enumerate(episodes):
        groups.setdefault((normalize_task(episode.task), episode.outcome), []).append(index)
    rng = np.random.default_rng(seed)
    held_out: set[int] = set()
    for members in groups.values():
        held_out.update(rng.permutation(members)[: round(share * len(members))].tolist())
    if share > 0.0 and not held_out:
        raise ValueError(
            f"eval_share={share} of {len(episodes)} episodes holds out none: the share is taken of "
            "each task and outcome. Raise it, or add episodes."
        )
    return (
        [episode for index, episode in enumerate(episodes) if index not in held_out],
        [episodes[index] for index in sorted(held_out)],
    )


def score_episodes(
    model: RobometerRewardModel, episodes: Sequence[Episode], settings: SamplingSettings
) -> HeldOutScores:
    """Return the figures of a model on episodes that it was not trained on.

    Args:
        model: the model.
        episodes: at least one.
        settings: of the training: clips have `max_frames`, pairs follow `pair_ratios`.
    """
    clips = [_whole_clip(episode, settings.max_frames) for episode in episodes]
    predictions = model.predict(clips)
    progress = np.array([prediction.progress[-1] for prediction in predictions])
    success = np.array([prediction.success[-1] for prediction in predictions])
    successful = np.array([episode.outcome == "successful" for episode in episodes])
    threshold = float(success[~successful].max()) if not successful.all() else None
    recall = None
    if threshold is not None and successful.any():
        recall = float(np.mean(success[successful] > threshold))
    return HeldOutScores(
        _mean_ranking(episodes, progress), threshold, recall, _accuracy(model, episodes, settings)
    )


def _whole_clip(episode: Episode, max_frames: int) -> Clip:
    shown = subsample(range(len(episode)), min(len(episode), max_frames))
    return Clip(episode.frames[shown], episode.task)


def _mean_ranking(episodes: Sequence[Episode], progress: NDArray[np.float32]) -> float | None:
    tasks: dict[str, dict[str, list[float]]] = {}
    for episode, value in zip(episodes, progress.tolist(), strict=True):
        outcomes = tasks.setdefault(normalize_task(episode.task), {})
        outcomes.setdefault(episode.outcome, []).append(value)
    rankings = [
        policy_ranking([outcomes[o] for o in reversed(OUTCOMES) if o in outcomes])
        for outcomes in tasks.values()
        if len(outcomes) > 1
    ]
    return float(np.mean(rankings)) if rankings else None


def _accuracy(
    model: RobometerRewardModel, episodes: Sequence[Episode], settings: SamplingSettings
) -> float | None:
    """Return the accuracy on pairs drawn with a fixed seed; None if there are no pairs."""
    if settings.preference_share == 0.0:
        return None  # the preference head is not trained
    try:
        sampler = Sampler(episodes, replace(settings, preference_share=1.0))
    except ValueError:  # too few episodes for any pair
        return None
    rng = np.random.default_rng(0)
    drawn = [sampler.draw(rng) for _ in range(min(_PAIRS_PER_EPISODE * len(episodes), _MAX_PAIRS))]
    pairs = [pair for pair in drawn if isinstance(pair, PreferencePair)]
    probabilities = [model.prefer(pair.a.clip, pair.b.clip) for pair in pairs]
    return preference_accuracy(probabilities, [pair.a_is_better for pair in pairs])
