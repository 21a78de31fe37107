"""Report: the episodes and metrics of an evaluation, and the files that show them.

A metric that cannot be measured is NaN, null in JSON, and the tables give the reason. Knows
nothing of environments, policies or models.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from robometer_gym.evaluation.overlay import write_overlay
from robometer_gym.evaluation.plots import plot_episodes
from robometer_gym.evaluation.tables import file_stem, headline, markdown
from robometer_gym.evaluation.totals import Totals, value_order
from robometer_gym.tracking.settings import RewardSettings
from robometer_gym.tracking.trace import EpisodeTrace

__all__ = ["Report", "predictions_to_dict", "trace_to_dict"]


@dataclass(frozen=True, eq=False)
class Report:
    """The result of `evaluate`.

    Attributes:
        env: the environment's id, or its class where it has none.
        policy: name of the policy.
        reward_model: name of the reward model.
        checkpoint: facts that identify it, such as revision and hash, where the model gives them.
        seed: of the whole evaluation.
        num_envs: how many environments there were.
        settings: of the reward.
        versions: of the libraries that took part.
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
    checkpoint: Mapping[str, str]
    seed: int
    num_envs: int
    settings: RewardSettings
    versions: Mapping[str, str]
    episodes: tuple[EpisodeTrace, ...]
    env_steps: int
    seconds: float
    model_seconds: float

    @property
    def tasks(self) -> tuple[str, ...]:
        """The instructions, each once."""
        return tuple(dict.fromkeys(episode.task for episode in self.episodes))

    @cached_property
    def totals(self) -> Totals:
        """The metrics of all episodes."""
        return Totals.of(self.episodes)

    @property
    def steps_per_second(self) -> float:
        """Steps of all environments per second of wall time."""
        return self.env_steps / self.seconds

    @property
    def steps_per_second_without_model(self) -> float:
        """The same, if the reward model took no time."""
        return self.env_steps / (self.seconds - self.model_seconds)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the frames in plain Python, for JSON; NaN becomes None."""
        plain: dict[str, Any] = _plain(
            {
                "env": self.env,
                "tasks": self.tasks,
                "policy": self.policy,
                "reward_model": self.reward_model,
                "checkpoint": self.checkpoint,
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
                "episodes": [trace_to_dict(episode) for episode in self.episodes],
            }
        )
        return plain

    def save(self, folder: str | os.PathLike[str], *, progress_bar: bool = False) -> list[Path]:
        """Write report.json, report.md, and a plot and a video of each episode.

        The tables come first, so that they are there if a plot fails. An episode whose predictions
        all failed has neither plot nor video.

        Args:
            folder: made if it is missing; files of these names are overwritten.
            progress_bar: show one on a terminal.

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
        every = self.settings.predict_every
        note = (
            f"{self.env}, {self.policy}; a prediction at reset, every {every} steps and at the end"
        )
        shown = None if progress_bar else True
        for number, trace in enumerate(tqdm(self.episodes, unit="video", disable=shown)):
            if len(trace.progress):
                files += [folder / f"{file_stem(number)}{suffix}" for suffix in (".png", ".mp4")]
                label = headline(number, trace)
                plot_episodes([trace], files[-2], labels=[label], title=trace.task, note=note)
                write_overlay(trace, files[-1], label=f"episode {number}")
        return files


def trace_to_dict(trace: EpisodeTrace) -> dict[str, Any]:
    """Return the metrics and predictions of an episode in plain Python, for JSON."""
    row: dict[str, Any] = _plain(
        {
            "env": trace.env,
            "seed": trace.seed,
            "task": trace.task,
            "steps": trace.num_steps,
            "return": trace.episode_return,
            "env_return": trace.env_return,
            "final_progress": trace.final_progress,
            "detected_success_step": trace.detected_step,
            "true_success_step": trace.true_success_step,
            "truth_known": trace.truth_known,
            "value_order": value_order(trace),
            "predictions": predictions_to_dict(trace) if len(trace.progress) else None,
        }
    )
    return row


def predictions_to_dict(trace: EpisodeTrace) -> dict[str, Any]:
    """Return the predictions in plain Python, for JSON; probabilities to six places."""
    return {
        "task": trace.task,
        "fps": trace.fps,
        "frame_indices": trace.prediction_steps.tolist(),
        "seconds": None if trace.seconds is None else trace.seconds.round(6).tolist(),
        "progress": [round(float(value), 6) for value in trace.progress],
        "success": [round(float(value), 6) for value in trace.success],
    }


def _plain(value: Any) -> Any:
    """Return the same for JSON: unknown types as text, a number that is not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else repr(value)
