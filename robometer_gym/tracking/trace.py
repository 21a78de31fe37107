"""EpisodeTrace: the predictions, rewards and ends of one episode, and its file format.

Everything that is decided from predictions afterwards is computed from traces: figures, pictures,
thresholds, other rewards (`replay`). Knows nothing of environments or of how a model predicts.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robometer_gym.reward_model import Frame, Prediction
from robometer_gym.tracking.settings import RewardSettings

__all__ = ["EpisodeTrace", "TracePrediction", "TraceStep", "read_traces", "write_traces"]

FORMAT = "robometer_gym.trace/1"


class TracePrediction(NamedTuple):
    """The predictions at one step: of each camera, for every frame of its window.

    Attributes:
        step: of the episode; 0 is the reset.
        frame_steps: (T,) the step of each frame in the window, the newest last.
        cameras: name to (T,) progress and success; None where the reward model failed.
    """

    step: int
    frame_steps: tuple[int, ...]
    cameras: Mapping[str, Prediction] | None


class TraceStep(NamedTuple):
    """One step of the episode.

    Attributes:
        env_reward: the environment's own reward.
        reward: the reward wrapper's.
        env_terminated: whether the environment ended the episode.
        terminated: whether the environment or a detected success ended it.
        truncated: whether it was cut off.
        true_success: the environment's own verdict; None where it reports none.
    """

    env_reward: float
    reward: float
    env_terminated: bool
    terminated: bool
    truncated: bool
    true_success: bool | None


@dataclass(frozen=True, eq=False)
class EpisodeTrace:
    """One episode: predictions, rewards and ends, step by step.

    Attributes:
        task: the instruction.
        predictions: at reset, at every step where one was due, and at the end.
        steps: the episode's steps; empty for a video, which has frames and no rewards.
        settings: of the reward; None for a video.
        detected_step: the first step at which the success detector had fired, or None.
        env: which of several environments.
        episode: its number in that environment, from 0.
        seed: of the environment's reset, or None where it continued by itself.
        fps: steps per second of the episode's own time, or None where unknown.
        reward_model: name of the model that predicted.
        video: file that shows the episode, or None.
        frames: frames to look at, (H, W, 3) uint8 each; kept in memory only, never written.
        frame_steps: the step that each of `frames` shows.
        prediction_seconds: time of each of `predictions` from the start, as of a video at an uneven
            rate; None if steps are evenly spaced at `fps`.

    Example:
        >>> trace = EpisodeTrace.from_values("open the drawer", [0, 5], [0.0, 0.5], [0.0, 0.125])
        >>> trace.progress.tolist(), trace.prediction_steps.tolist()
        ([0.0, 0.5], [0, 5])
    """

    task: str
    predictions: tuple[TracePrediction, ...]
    steps: tuple[TraceStep, ...] = ()
    settings: RewardSettings | None = None
    detected_step: int | None = None
    env: int = 0
    episode: int = 0
    seed: int | None = None
    fps: float | None = None
    reward_model: str | None = None
    video: str | None = None
    frames: tuple[Frame, ...] = ()
    frame_steps: tuple[int, ...] = ()
    prediction_seconds: tuple[float, ...] | None = None

    @classmethod
    def from_values(
        cls,
        task: str,
        steps: Sequence[int] | NDArray[np.int64],
        progress: Sequence[float] | NDArray[np.float32],
        success: Sequence[float] | NDArray[np.float32],
        fps: float | None = None,
    ) -> EpisodeTrace:
        """Return the trace of frames that were scored one by one, as of a video.

        Args:
            task: the instruction.
            steps: (T,) number of each frame, increasing; T >= 1.
            progress: (T,) in [0, 1].
            success: (T,) in [0, 1].
            fps: frames per second, by which `steps` count.

        Raises:
            ValueError: the three are not of one length, or empty.
        """
        lengths = [len(steps), len(progress), len(success)]
        if len(set(lengths)) != 1 or not lengths[0]:
            raise ValueError(
                "steps, progress and success must have one value per frame, at least one; "
                f"got lengths {', '.join(map(str, lengths))}."
            )
        return cls(
            task,
            tuple(
                TracePrediction(
                    int(step),
                    (int(step),),
                    {"video": Prediction(np.array([p], np.float32), np.array([s], np.float32))},
                )
                for step, p, s in zip(steps, progress, success, strict=True)
            ),
            fps=fps,
        )

    @property
    def num_steps(self) -> int:
        """How many steps the episode has."""
        return len(self.steps)

    @property
    def ended(self) -> bool:
        """Whether the episode came to its end; False where it was cut by a reset."""
        return bool(self.steps) and (self.steps[-1].terminated or self.steps[-1].truncated)

    @property
    def episode_return(self) -> float:
        """Sum of the reward wrapper's rewards."""
        return math.fsum(step.reward for step in self.steps)

    @property
    def env_return(self) -> float:
        """Sum of the environment's own rewards."""
        return math.fsum(step.env_reward for step in self.steps)

    @property
    def truth_known(self) -> bool:
        """Whether the environment reported success or failure at all."""
        return any(step.true_success is not None for step in self.steps)

    @property
    def true_success_step(self) -> int | None:
        """The first step at which the environment itself reported success, or None."""
        return next((n for n, step in enumerate(self.steps, 1) if step.true_success), None)

    @cached_property
    def _known(self) -> list[tuple[int, float, float]]:
        """Step, progress and success of each prediction that did not fail; cameras averaged."""
        known = []
        for step, _, cameras in self.predictions:
            if cameras is not None:
                values = [(float(p.progress[-1]), float(p.success[-1])) for p in cameras.values()]
                progress, success = (
                    sum(column) / len(values) for column in zip(*values, strict=True)
                )
                known.append((step, progress, success))
        return known

    @property
    def prediction_steps(self) -> NDArray[np.int64]:
        """(P,) the step of each prediction that did not fail."""
        return np.array([step for step, _, _ in self._known], np.int64)

    @property
    def progress(self) -> NDArray[np.float32]:
        """(P,) progress in [0, 1] at each of `prediction_steps`; the mean over cameras."""
        return np.array([progress for _, progress, _ in self._known], np.float32)

    @property
    def success(self) -> NDArray[np.float32]:
        """(P,) success probability in [0, 1] at each of `prediction_steps`; likewise."""
        return np.array([success for _, _, success in self._known], np.float32)

    @property
    def final_progress(self) -> float:
        """The latest known progress; NaN where every prediction failed."""
        return self._known[-1][1] if self._known else math.nan

    @property
    def seconds(self) -> NDArray[np.float64] | None:
        """(P,) time of each prediction from the start of the episode; None if unknown."""
        if self.prediction_seconds is not None:
            pairs = zip(self.predictions, self.prediction_seconds, strict=True)
            return np.array([time for each, time in pairs if each.cameras is not None])
        return None if self.fps is None else self.prediction_steps / self.fps

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the frames in plain Python, for JSON; no value is rounded."""
        columns = list(zip(*self.steps, strict=True)) or [()] * len(TraceStep._fields)
        return {
            "format": FORMAT,
            "task": self.task,
            "env": self.env,
            "episode": self.episode,
            "seed": self.seed,
            "fps": self.fps,
            "reward_model": self.reward_model,
            "video": self.video,
            "settings": None if self.settings is None else _settings_to_dict(self.settings),
            "detected_step": self.detected_step,
            "prediction_seconds": self.prediction_seconds,
            "predictions": [_prediction_to_dict(each) for each in self.predictions],
            "steps": {
                name: [_to_json(value) for value in column]
                for name, column in zip(TraceStep._fields, columns, strict=True)
            },
        }

    def to_json(self) -> str:
        """Return `to_dict` as one line of JSON, without a line break."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EpisodeTrace:
        """Return the trace that `to_dict` has described.

        Raises:
            ValueError: another format, a missing entry, or a value of the wrong kind.
        """
        found = data.get("format") if isinstance(data, Mapping) else None
        if found != FORMAT:
            raise ValueError(f"format must be {FORMAT!r}, got {found!r}")
        try:
            columns = [[_from_json(value) for value in data["steps"][n]] for n in TraceStep._fields]
            return cls(
                task=data["task"],
                predictions=tuple(map(_prediction_from_dict, data["predictions"])),
                steps=tuple(map(TraceStep._make, zip(*columns, strict=True))),
                settings=None if data["settings"] is None else RewardSettings(**data["settings"]),
                prediction_seconds=None
                if data["prediction_seconds"] is None
                else tuple(map(float, data["prediction_seconds"])),
                **{
                    name: data[name]
                    for name in (
                        "detected_step",
                        "env",
                        "episode",
                        "seed",
                        "fps",
                        "reward_model",
                        "video",
                    )
                },
            )
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(f"not an episode trace: {type(error).__name__} {error}") from error


def write_traces(path: str | os.PathLike[str], traces: Sequence[EpisodeTrace]) -> None:
    """Write traces to a file, one JSON line each; an existing file is replaced."""
    lines = [trace.to_json() + "\n" for trace in traces]
    Path(path).write_text("".join(lines), encoding="utf-8")


def read_traces(
    path: str | os.PathLike[str], *, last_line: Literal["raise", "skip"] = "raise"
) -> list[EpisodeTrace]:
    """Read the traces that `RecordTraces` or `write_traces` has written.

    Args:
        path: a file with one JSON line per episode.
        last_line: "skip" leaves out a last line that was cut off, as when the process was killed
            while it wrote; "raise" refuses the file.

    Raises:
        ValueError: a line that is no trace; the message names it.
        FileNotFoundError: no such file.
    """
    return list(_read(Path(path), skip_cut=last_line == "skip"))


def _read(path: Path, skip_cut: bool) -> Iterator[EpisodeTrace]:
    text = path.read_bytes()
    lines = text.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield EpisodeTrace.from_dict(json.loads(line))
        except (ValueError, RecursionError) as error:
            if skip_cut and number == len(lines):  # every complete line ends with a line break
                return
            cut = number == len(lines)
            hint = " It was cut off: last_line='skip' leaves it out." if cut else ""
            raise ValueError(f"{path}, line {number}: {error}.{hint}") from error


def _prediction_to_dict(prediction: TracePrediction) -> dict[str, Any]:
    cameras = prediction.cameras
    return {
        "step": prediction.step,
        "frame_steps": prediction.frame_steps,
        "cameras": None
        if cameras is None
        else {
            name: {"progress": each.progress.tolist(), "success": each.success.tolist()}
            for name, each in cameras.items()
        },
    }


def _prediction_from_dict(data: Mapping[str, Any]) -> TracePrediction:
    cameras = data["cameras"]
    return TracePrediction(
        data["step"],
        tuple(data["frame_steps"]),
        None
        if cameras is None
        else {
            name: Prediction(
                np.array(each["progress"], np.float32), np.array(each["success"], np.float32)
            )
            for name, each in cameras.items()
        },
    )


def _settings_to_dict(settings: RewardSettings) -> dict[str, Any]:
    """Return the settings for JSON; a camera that is a function is replaced by its name."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    camera = values["camera"]
    if isinstance(camera, Mapping):
        values["camera"] = {
            name: each if isinstance(each, str) else name for name, each in camera.items()
        }
    elif not isinstance(camera, str):
        values["camera"] = "camera"
    return values


def _to_json(value: Any) -> Any:
    """Return a float that JSON lacks (NaN, infinities) as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value
