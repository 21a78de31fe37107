"""RobometerCallback: log the reward model's predictions, cost and errors in TensorBoard.

Listens to the EpisodeTracker of the training environment. Knows nothing of how rewards are made;
needs Stable-Baselines3, so import it from `robometer_gym.sb3`.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from robometer_gym.evaluation.metrics import detection
from robometer_gym.evaluation.overlay import write_overlay
from robometer_gym.sb3.late_rewards import LateReplay
from robometer_gym.tracking.events import Settled
from robometer_gym.tracking.find_tracker import find_tracker
from robometer_gym.tracking.recorder import RecordTraces, TraceRecorder
from robometer_gym.tracking.trace import EpisodeTrace
from robometer_gym.tracking.tracker import EpisodeTracker
from robometer_gym.validation import MissingDependencyError, check_count

__all__ = ["RobometerCallback"]

logger = logging.getLogger(__name__)

_RECENT = 100  # episodes, as SB3's own rollout/ep_rew_mean; and predictions, and calls
_FPS = 4.0  # of a clip: a few frames, each to be looked at


class _TrainingRecorder(TraceRecorder):
    """Keeps the episodes that have ended since `take`, and recent predictions and call times."""

    def __init__(self, tracker: EpisodeTracker) -> None:
        self._ended: list[EpisodeTrace] = []
        super().__init__(tracker, self._ended.append, frames="window")
        self.predictions: deque[tuple[float, float]] = deque(maxlen=_RECENT)  # progress, success
        self.call_seconds: deque[float] = deque(maxlen=_RECENT)

    def __call__(self, settled: Sequence[Settled], seconds: float) -> None:
        super().__call__(settled, seconds)
        predictions = [p for each in settled for p in each.predictions or ()]
        if predictions:
            self.call_seconds.append(seconds)
        for prediction in predictions:
            self.predictions.append((float(prediction.progress[-1]), float(prediction.success[-1])))

    def take(self) -> list[EpisodeTrace]:
        """Return the episodes that have come to their end since the last call."""
        ended = [trace for trace in self._ended if trace.ended]
        self._ended.clear()
        return ended


class RobometerCallback(BaseCallback):
    """Logs predictions, cost and detected success; keeps clips of false successes and traces.

    Scalars, over the last 100 episodes (or predictions, or calls of the model):

    - `robometer/progress`, `robometer/success_prob`: means of the predictions of the newest frame.
    - `robometer/final_progress`, `robometer/detected_rate`: of episodes, at their end.
    - `robometer/prediction_ms`: milliseconds per call of the model, and
      `robometer/model_time_share`: the share of the wall time since the training began, in [0, 1].
    - `robometer/precision`, `robometer/recall`, `robometer/f1`, `robometer/false_success_rate`:
      how detected success agrees with the environment's own `is_success` or `success`, which
      counts where it was true at any step; only of episodes in which the environment reports it.

    A false success is an episode in which success was detected and was not true. The last window
    of frames that the model saw is written as a video, with the predictions beneath each frame.

    Args:
        clips_dir: folder for videos of false successes; None keeps none.
        max_clips: how many are kept at most, >= 1: the first ones.
        traces: file for the trace of every episode, as `RecordTraces` writes it; None writes none.
        verbose: as in every callback of SB3.

    Raises:
        MissingDependencyError: videos are wanted and PyAV is missing.
        NotADirectoryError: `clips_dir` is a file.
        IsADirectoryError: `traces` is a folder.
        ValueError: `max_clips` below 1; at the start of the training, an environment without
            VecRobometerReward.

    Example:
        >>> from robometer_gym.sb3 import make_robometer_vec_env
        >>> from robometer_gym.testing import CountingEnv, ScriptedRewardModel
        >>> from stable_baselines3 import PPO
        >>> venv = make_robometer_vec_env(CountingEnv, "push it", 2, ScriptedRewardModel())
        >>> agent = PPO("MlpPolicy", venv, n_steps=8, batch_size=16, device="cpu")
        >>> _ = agent.learn(16, callback=RobometerCallback())
    """

    def __init__(
        self,
        clips_dir: str | os.PathLike[str] | None = None,
        *,
        max_clips: int = 20,
        traces: str | os.PathLike[str] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        if clips_dir is not None and find_spec("av") is None:
            raise MissingDependencyError(
                "Keeping clips as videos needs PyAV: pip install 'robometer-gym[video]'."
            )
        if clips_dir is not None and Path(clips_dir).is_file():
            raise NotADirectoryError(f"clips_dir must be a folder, got the file {clips_dir}.")
        if traces is not None and Path(traces).is_dir():
            raise IsADirectoryError(
                f"traces must be a file such as {Path(traces) / 'traces.jsonl'}, got a folder."
            )
        self.clips: list[Path] = []
        """The videos of false successes that were written."""
        self._clips_dir = None if clips_dir is None else Path(clips_dir)
        self._max_clips = check_count("max_clips", max_clips)
        self._traces = traces
        self._started = time.perf_counter()
        self._recorder: _TrainingRecorder | None = None
        self._writer: RecordTraces | None = None

    @property
    def model_time_share(self) -> float:
        """The share of the wall time since the training began that the model took, in [0, 1]."""
        seconds = self._recorder.seconds if self._recorder else 0.0
        return seconds / (time.perf_counter() - self._started)

    def _on_training_start(self) -> None:
        tracker = find_tracker(self.training_env)
        if tracker is None:
            raise ValueError(
                "RobometerCallback needs an environment with VecRobometerReward: make it with "
                "robometer_gym.sb3.make_robometer_vec_env."
            )
        self._on_training_end()  # the last training may have been interrupted
        self._started = time.perf_counter()
        self._finals: deque[tuple[float, bool]] = deque(maxlen=_RECENT)  # progress, detected
        self._verdicts: deque[tuple[bool, bool]] = deque(maxlen=_RECENT)  # detected, true
        self._recorder = _TrainingRecorder(tracker)
        self._recorder.open()
        if self._traces is not None:
            self._writer = RecordTraces(self.training_env, self._traces)
            self._writer.open()

    def _on_training_end(self) -> None:
        if self._recorder is not None:
            buffer = vars(self.model).get("replay_buffer")
            if isinstance(buffer, LateReplay):
                buffer.settle()  # the steps of the episodes that are still running
            self._take_episodes()
        for recorder in (self._recorder, self._writer):
            if recorder is not None:
                recorder.close()

    def _on_step(self) -> bool:
        self._take_episodes()
        return True

    def _take_episodes(self) -> None:
        """Count the episodes that have ended, and keep the clips of false successes."""
        assert self._recorder is not None, "set when the training started"
        for trace in self._recorder.take():
            detected, true = trace.detected_step is not None, trace.true_success_step is not None
            if len(trace.progress):  # else every prediction failed
                self._finals.append((trace.final_progress, detected))
            if trace.truth_known:
                self._verdicts.append((detected, true))
                if detected and not true:
                    self._write_clip(trace)

    def _on_rollout_end(self) -> None:
        self._take_episodes()  # late rewards are settled after the last step of a rollout
        assert self._recorder is not None, "set when the training started"
        predictions, call_seconds = self._recorder.predictions, self._recorder.call_seconds
        progress, success = np.mean(predictions, axis=0) if predictions else (np.nan, np.nan)
        values = {
            "progress": progress,
            "success_prob": success,
            "prediction_ms": 1000 * np.mean(call_seconds) if call_seconds else np.nan,
            "model_time_share": self.model_time_share,
        }
        if self._finals:
            final, detected = zip(*self._finals, strict=True)
            values |= {"final_progress": np.mean(final), "detected_rate": np.mean(detected)}
        if self._verdicts:
            found = detection(*zip(*self._verdicts, strict=True))
            for name in ("precision", "recall", "f1", "false_success_rate"):
                values[name] = getattr(found, name)
        for name, value in values.items():
            if not np.isnan(value):  # there was nothing to measure
                self.logger.record(f"robometer/{name}", float(value))

    def _write_clip(self, trace: EpisodeTrace) -> None:
        if self._clips_dir is None or len(self.clips) >= self._max_clips:
            return
        self._clips_dir.mkdir(parents=True, exist_ok=True)
        path = self._clips_dir / f"false_success_{self.num_timesteps:08d}_env{trace.env}.mp4"
        write_overlay(trace, path, label="false success", fps=_FPS)
        self.clips.append(path)
        logger.info("A false success, at %d steps: %s", self.num_timesteps, path)
