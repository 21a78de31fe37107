"""What an evaluation came to: episodes, totals, and the files that show them.

What could not be measured is NaN, null in JSON, and said so in the tables; no number is invented.
Knows nothing of environments, policies or models.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from robometer_gym.evaluation.metrics import (
    Detection,
    detection,
    kendall_tau_a,
    value_order_correlation,
)
from robometer_gym.evaluation.overlay import write_overlay
from robometer_gym.evaluation.plots import Run, plot_episodes
from robometer_gym.evaluation.scoring import Scores
from robometer_gym.evaluation.tables import file_stem, headline, markdown
from robometer_gym.reward_model import Frame
from robometer_gym.tracking.settings import RewardSettings

__all__ = ["EvaluatedEpisode", "Report", "Totals"]


@dataclass(frozen=True, eq=False)
class EvaluatedEpisode:
    """One episode, as the agent, the model and the environment saw it.

    Attributes:
        env: which of several environments.
        seed: what the environment was reset with; None where it went on by itself.
        task: the instruction.
        steps: how many it had.
        paid: the sum of the rewards that the agent got.
        env_return: the sum of the environment's own rewards.
        final_progress: the latest progress at the end; NaN where none was known.
        detected: the step at which the detector fired, or None.
        true_success: the first step at which the environment itself told success, or None.
        truth_known: whether the environment told success or failure at all.
        scores: what was predicted, `frame_indices` being steps; None where every prediction failed.
        frames: what was seen then, (H, W, 3) uint8 each, as many as `scores` has.
    """

    env: int
    seed: int | None
    task: str
    steps: int
    paid: float
    env_return: float
    final_progress: float
    detected: int | None
    true_success: int | None
    truth_known: bool
    scores: Scores | None
    frames: tuple[Frame, ...] = ()

    @property
    def value_order(self) -> float:
        """The VOC of progress up to the success, in [-1, 1]; NaN where it cannot be measured.

        It needs a success, the true one where the truth is known, the detected one elsewhere, and
        two predictions up to it.
        """
        return self._order(lambda scores, end: scores.progress[:end])

    @property
    def clock_order(self) -> float:
        """The VOC of a clock that says the step for progress, where `value_order` is measured."""
        return self._order(lambda scores, end: scores.frame_indices[:end])

    def _order(self, values: Callable[[Scores, int], Any]) -> float:
        success = self.true_success if self.truth_known else self.detected
        if self.scores is None or success is None:
            return math.nan
        end = int(np.searchsorted(self.scores.frame_indices, success, side="right"))
        return value_order_correlation(values(self.scores, end)) if end >= 2 else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Everything but the frames in plain Python, for JSON."""
        row = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "frames"}
        row["scores"] = None if self.scores is None else self.scores.to_dict()
        return {**row, "value_order": self.value_order}


@dataclass(frozen=True)
class Totals:
    """What all episodes come to; a figure that could not be measured is NaN.

    Attributes:
        episodes: how many there are.
        truth_known: in how many of them the environment told success or failure. These alone count
            for what is compared with the truth.
        detected_success_rate: share of all episodes in which the detector fired.
        true_success_rate: share of those with known truth in which the environment told success.
        precision: of the detector, per episode: see `Detection`; it may be too early, see `delay`.
        recall: likewise.
        f1: likewise.
        false_success_rate: likewise.
        delay_mean: steps from true to detected success, where both are; below 0 if too early.
        delay_median: likewise.
        value_order: mean `EvaluatedEpisode.value_order` of the successful episodes.
        clock_order: the same of a clock, which knows nothing but the time.
        return_order: Kendall's tau-a between what was paid and the environment's own return.
        mean_paid: mean of what was paid.
        mean_env_return: mean of the environment's own return.
        mean_steps: mean length.
    """

    episodes: int
    truth_known: int
    detected_success_rate: float
    true_success_rate: float
    precision: float
    recall: float
    f1: float
    false_success_rate: float
    delay_mean: float
    delay_median: float
    value_order: float
    clock_order: float
    return_order: float
    mean_paid: float
    mean_env_return: float
    mean_steps: float

    @staticmethod
    def of(episodes: Sequence[EvaluatedEpisode]) -> Totals:
        """Count episodes, of which there is at least one."""
        known = [e for e in episodes if e.truth_known]
        told = _detection(known)
        delays = [
            e.detected - e.true_success
            for e in known
            if e.detected is not None and e.true_success is not None
        ]
        return Totals(
            episodes=len(episodes),
            truth_known=len(known),
            detected_success_rate=_mean([e.detected is not None for e in episodes]),
            true_success_rate=_mean([e.true_success is not None for e in known]),
            precision=told.precision,
            recall=told.recall,
            f1=told.f1,
            false_success_rate=told.false_success_rate,
            delay_mean=_mean(delays),
            delay_median=float(np.median(delays)) if delays else math.nan,
            value_order=_mean_of_known([e.value_order for e in episodes]),
            clock_order=_mean_of_known([e.clock_order for e in episodes]),
            return_order=_return_order(episodes),
            mean_paid=_mean([e.paid for e in episodes]),
            mean_env_return=_mean([e.env_return for e in episodes]),
            mean_steps=_mean([e.steps for e in episodes]),
        )


@dataclass(frozen=True, eq=False)
class Report:
    """What `evaluate` returns.

    Attributes:
        env: the environment's id, or its class where it has none.
        policy: who acted.
        reward_model: who paid.
        seed: of the whole evaluation.
        num_envs: how many environments there were.
        settings: of the reward.
        versions: of what took part.
        episodes: at least one, by environment and time.
        env_steps: how many steps all environments made, also in episodes that were not counted.
        seconds: that the loop took, with the policy and everything.
        model_seconds: of these, how many the reward model took.

    Example:
        >>> from robometer_gym import RobometerRewardWrapper
        >>> from robometer_gym.evaluation import evaluate
        >>> from robometer_gym.testing import CountingEnv, ScriptedRewardModel
        >>> env = RobometerRewardWrapper(
        ...     CountingEnv(success=[True]), "open the drawer", ScriptedRewardModel()
        ... )
        >>> report = evaluate(env, "random", episodes=2)
        >>> report.totals.true_success_rate, report.totals.recall
        (1.0, 0.0)
        >>> report.to_dict()["totals"]["precision"] is None  # nothing was detected
        True
    """

    env: str
    policy: str
    reward_model: str
    seed: int
    num_envs: int
    settings: RewardSettings
    versions: Mapping[str, str]
    episodes: tuple[EvaluatedEpisode, ...]
    env_steps: int
    seconds: float
    model_seconds: float

    @property
    def tasks(self) -> tuple[str, ...]:
        """The instructions, each once."""
        return tuple(dict.fromkeys(episode.task for episode in self.episodes))

    @cached_property
    def totals(self) -> Totals:
        """What all episodes come to."""
        return Totals.of(self.episodes)

    @property
    def steps_per_second(self) -> float:
        """Steps of all environments per second of wall time."""
        return self.env_steps / self.seconds

    @property
    def steps_per_second_without_model(self) -> float:
        """The same, had the reward model taken no time."""
        return self.env_steps / (self.seconds - self.model_seconds)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the frames in plain Python, for JSON; NaN becomes None."""
        told = {
            "env": self.env,
            "tasks": self.tasks,
            "policy": self.policy,
            "reward_model": self.reward_model,
            "seed": self.seed,
            "num_envs": self.num_envs,
            "settings": {f.name: getattr(self.settings, f.name) for f in fields(self.settings)},
            "versions": self.versions,
            "totals": asdict(self.totals),
            "env_steps": self.env_steps,
            "seconds": self.seconds,
            "model_seconds": self.model_seconds,
            "steps_per_second": self.steps_per_second,
            "steps_per_second_without_model": self.steps_per_second_without_model,
            "episodes": [episode.to_dict() for episode in self.episodes],
        }
        plain: dict[str, Any] = _plain(told)
        return plain

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write report.json, report.md, and a picture and a video of each episode.

        The tables come first, so that they are there whatever happens to the pictures. An episode
        whose predictions all failed has neither picture nor video.

        Args:
            folder: where to; made if it is missing, files of these names are overwritten.

        Returns:
            The files.

        Raises:
            MissingDependencyError: matplotlib or PyAV is missing.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / "report.json", folder / "report.md"]
        files[0].write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        files[1].write_text(markdown(self), encoding="utf-8")
        for number, episode in enumerate(self.episodes):
            if episode.scores is not None:
                run = self._run(number, episode, episode.scores)
                files += [folder / f"{file_stem(number)}{suffix}" for suffix in (".png", ".mp4")]
                plot_episodes([run], files[-2], title=episode.task, note=self._note())
                write_overlay(run, files[-1])
        return files

    def _run(self, number: int, episode: EvaluatedEpisode, scores: Scores) -> Run:
        return Run(
            f"episode {number}",
            episode.frames,
            scores,
            true_success=episode.true_success,
            detected=episode.detected,
            frame_steps=[int(step) for step in scores.frame_indices],
            headline=headline(number, episode),
            success_threshold=self.settings.success_threshold,
        )

    def _note(self) -> str:
        every = self.settings.predict_every
        return (
            f"{self.env}, {self.policy}; a prediction at reset, every {every} steps and at the end"
        )


def _detection(known: Sequence[EvaluatedEpisode]) -> Detection:
    if not known:
        return Detection(0, 0, 0, 0)
    return detection(
        [episode.detected is not None for episode in known],
        [episode.true_success is not None for episode in known],
    )


def _return_order(episodes: Sequence[EvaluatedEpisode]) -> float:
    """Kendall's tau-a; NaN where the environment's returns are no order."""
    paid, true = ([getattr(e, name) for e in episodes] for name in ("paid", "env_return"))
    if len(set(true)) < 2 or not np.isfinite([*paid, *true]).all():
        return math.nan
    return kendall_tau_a(paid, true)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _mean_of_known(values: Sequence[float]) -> float:
    return _mean([value for value in values if not math.isnan(value)])


def _plain(value: Any) -> Any:
    """The same for JSON: what it does not know as text, what is no number as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else repr(value)
