"""TraceRecorder and RecordTraces: listen to an EpisodeTracker and build EpisodeTraces.

Knows nothing of environments: it reads a tracker's events and outcomes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from typing_extensions import Self

from robometer_gym.reward_model import Frame, model_name
from robometer_gym.tracking.events import Settled, Start, Stream
from robometer_gym.tracking.find_tracker import find_tracker
from robometer_gym.tracking.settings import RewardSettings
from robometer_gym.tracking.trace import EpisodeTrace, TracePrediction, TraceStep
from robometer_gym.tracking.tracker import EpisodeTracker

__all__ = ["RecordTraces", "TraceRecorder"]

logger = logging.getLogger(__name__)


class TraceRecorder:
    """Builds an EpisodeTrace of each episode of a tracker, while it is open.

    A context manager: it listens from `__enter__` to `__exit__`. An episode that had made steps
    before is left out; one that is still running at the end, or is cut by a reset, is passed on
    as it is (`EpisodeTrace.ended` is False), unless it has made no step.

    Args:
        tracker: of a reward wrapper.
        on_episode: called with the trace of each episode as it ends.
        frames: which frames to keep, of the first camera: "predictions", one of each prediction;
            "window", those that the model saw last; None, no frames.
    """

    def __init__(
        self,
        tracker: EpisodeTracker,
        on_episode: Callable[[EpisodeTrace], None],
        *,
        frames: Literal["predictions", "window"] | None = None,
    ) -> None:
        self.tracker = tracker
        self.seconds = 0.0
        """How long the reward model has taken so far."""
        self.steps = 0
        """How many steps all environments have made so far."""
        self._on_episode = on_episode
        self._frames = frames
        self._running: dict[int, _Builder] = {}

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def open(self) -> None:
        """Begin to listen, as `__enter__` does."""
        self.tracker.listeners.append(self)
        for start in self.tracker.new_starts():
            self._running[start.event.env] = _Builder(start, self._frames)

    def close(self) -> None:
        """Stop listening, and pass on the episodes that are still running."""
        if self in self.tracker.listeners:
            self.tracker.listeners.remove(self)
        for env in list(self._running):
            self._finish(env)

    def __call__(self, settled: Sequence[Settled], seconds: float) -> None:
        """Take a batch of events from the tracker."""
        self.seconds += seconds
        for each in settled:
            env = each.event.env
            if isinstance(each.event, Start):
                self._finish(env)
                self._running[env] = _Builder(each, self._frames)
                continue
            self.steps += 1
            if env in self._running and self._running[env].add(each):
                self._finish(env)

    def _finish(self, env: int) -> None:
        builder = self._running.pop(env, None)
        if builder is not None and builder.steps:
            settings, name = self.tracker.settings, model_name(self.tracker.reward_model)
            self._on_episode(builder.build(settings, name))


class _Builder:
    """The trace of one episode, as far as it has come."""

    def __init__(self, start: Settled, keep: Literal["predictions", "window"] | None) -> None:
        assert isinstance(start.event, Start)
        self._env, self._episode, self._task = start.event.env, start.episode, start.event.task
        self._keep = keep
        self._predictions: list[TracePrediction] = []
        self.steps: list[TraceStep] = []
        self._frames: list[Frame] = []
        self._frame_steps: list[int] = []
        self._detected: int | None = None
        self._add_prediction(start)

    def add(self, settled: Settled) -> bool:
        """Add a step; return whether it was the last."""
        event, outcome = settled.event, settled.outcome
        assert not isinstance(event, Start)
        self.steps.append(
            TraceStep(
                event.reward,
                outcome.reward,
                event.terminated,
                outcome.terminated,
                event.truncated,
                event.true_success,
            )
        )
        if self._detected is None and outcome.info["robometer/success"]:
            self._detected = len(self.steps)
        self._add_prediction(settled)
        return outcome.terminated or event.truncated

    def _add_prediction(self, settled: Settled) -> None:
        clips, predictions = settled.clips, settled.predictions
        if not clips:
            return
        step = len(self.steps)
        by_camera = None
        if predictions is not None:
            names = [_camera_of(clip.stream) for clip in clips]
            by_camera = dict(zip(names, predictions, strict=True))
            if self._keep == "predictions":
                self._frames.append(clips[0].images[-1])
                self._frame_steps.append(step)
            elif self._keep == "window":
                self._frames, self._frame_steps = list(clips[0].images), list(settled.frame_steps)
        self._predictions.append(TracePrediction(step, settled.frame_steps, by_camera))

    def build(self, settings: RewardSettings, reward_model: str) -> EpisodeTrace:
        return EpisodeTrace(
            task=self._task,
            predictions=tuple(self._predictions),
            steps=tuple(self.steps),
            settings=settings,
            detected_step=self._detected,
            env=self._env,
            episode=self._episode,
            reward_model=reward_model,
            frames=tuple(self._frames),
            frame_steps=tuple(self._frame_steps),
        )


def _camera_of(stream: Any) -> str:
    assert isinstance(stream, Stream), "the tracker names its clips"
    return stream.camera


class RecordTraces(TraceRecorder):
    """Writes the trace of each episode to a file as it ends: one JSON line, flushed.

    Args:
        env: an environment with a reward wrapper in its stack: scalar, vector, or a VecEnv of
            Stable-Baselines3. `RobometerCallback(traces=...)` does the same during a training.
        path: of the file; its folder is made if it is missing, and lines are appended.

    Raises:
        ValueError: no reward wrapper in the stack.

    Example:
        >>> import tempfile
        >>> from robometer_gym import RobometerRewardWrapper, read_traces
        >>> from robometer_gym.testing import CountingEnv, ScriptedRewardModel
        >>> model = ScriptedRewardModel(progress=[0.0, 0.5])
        >>> env = RobometerRewardWrapper(CountingEnv(lengths=[3]), "push the block", model)
        >>> path = tempfile.mkdtemp() + "/traces.jsonl"
        >>> with RecordTraces(env, path):
        ...     _ = env.reset()
        ...     rewards = [env.step(0)[1] for _ in range(3)]
        >>> (trace,) = read_traces(path)
        >>> trace.progress.tolist(), trace.episode_return
        ([0.0, 0.5], 0.5)
    """

    def __init__(self, env: object, path: str | os.PathLike[str]) -> None:
        tracker = find_tracker(env)
        if tracker is None:
            raise ValueError(
                f"No reward wrapper is around this {type(env).__name__}, so nothing is predicted: "
                "wrap it first, as in RobometerRewardWrapper(env, task=...)."
            )
        super().__init__(tracker, self._write)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_cut_line(path)
        self._file = path.open("a", encoding="utf-8")

    def _write(self, trace: EpisodeTrace) -> None:
        self._file.write(trace.to_json() + "\n")
        self._file.flush()

    def close(self) -> None:
        """Stop listening, write the episodes that are still running, and close the file."""
        if not self._file.closed:
            super().close()
            self._file.close()


def _drop_cut_line(path: Path) -> None:
    """Cut off a last line without a line break, as a killed process leaves it."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            logger.warning("%s: dropped a last line that was cut off.", path)
            file.truncate(whole)
