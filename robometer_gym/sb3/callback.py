"""RobometerCallback: see in TensorBoard what the reward model says, costs, and gets wrong.

Listens to the EpisodeTracker of the training environment and to its infos. Knows nothing of how
rewards are made; needs Stable-Baselines3, so import it from `robometer_gym.sb3`.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from robometer_gym.evaluation.metrics import detection
from robometer_gym.evaluation.overlay import write_overlay
from robometer_gym.evaluation.plots import Run
from robometer_gym.evaluation.scoring import Scores
from robometer_gym.reward_model import Clip, Prediction
from robometer_gym.tracking.events import Settled, Stream
from robometer_gym.tracking.tracker import EpisodeTracker
from robometer_gym.validation import MissingDependencyError, check_count

__all__ = ["RobometerCallback"]

logger = logging.getLogger(__name__)

_RECENT = 100  # episodes, as SB3's own rollout/ep_rew_mean; and calls of the model
_FPS = 4.0  # of a clip: eight pictures that one wants to look at


class RobometerCallback(BaseCallback):
    """Logs what the reward model says and costs; keeps the clips that fooled it.

    Scalars, over the last 100 episodes (or calls of the model):

    - `robometer/progress`, `robometer/success_prob`: means of the predictions for now.
    - `robometer/final_progress`, `robometer/detected_rate`: of episodes, at their end.
    - `robometer/prediction_ms`: milliseconds per call of the model, and
      `robometer/model_time_share`: the share of the wall time since the training began, in [0, 1].
    - `robometer/precision`, `robometer/recall`, `robometer/f1`, `robometer/false_success_rate`:
      how detected success agrees with the environment's own `is_success` or `success`, which
      counts where it was true at any step; only where the environment tells it.

    A false success is an episode in which success was detected and was not true. What the model
    was shown last is kept as a video, with what it said of each picture beneath.

    Args:
        clips_dir: where videos of false successes go; None keeps none.
        max_clips: how many are kept at most, >= 1: the first ones.
        verbose: as in every callback of SB3.

    Raises:
        MissingDependencyError: videos are wanted and PyAV is missing.
        NotADirectoryError: `clips_dir` is a file.
        ValueError: `max_clips` below 1; at the start of the training, an environment that no
            VecRobometerReward pays.

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
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        if clips_dir is not None and find_spec("av") is None:
            raise MissingDependencyError(
                "Keeping clips as videos needs PyAV: pip install 'robometer-gym[video]'."
            )
        if clips_dir is not None and Path(clips_dir).is_file():
            raise NotADirectoryError(f"clips_dir must be a folder, got the file {clips_dir}.")
        self.clips: list[Path] = []
        """The videos of false successes that were written."""
        self._clips_dir = None if clips_dir is None else Path(clips_dir)
        self._max_clips = check_count("max_clips", max_clips)
        self._tracker: EpisodeTracker | None = None
        self._began, self._in_model = time.perf_counter(), 0.0

    @property
    def model_time_share(self) -> float:
        """The share of the wall time since the training began that the model took, in [0, 1]."""
        return self._in_model / (time.perf_counter() - self._began)

    def _on_training_start(self) -> None:
        tracker = getattr(self.training_env, "tracker", None)
        if not isinstance(tracker, EpisodeTracker):
            raise ValueError(
                "RobometerCallback needs an environment that VecRobometerReward pays: make it with "
                "robometer_gym.sb3.make_robometer_vec_env."
            )
        self._tracker = tracker
        self._began, self._in_model = time.perf_counter(), 0.0
        self._said: deque[tuple[float, float]] = deque(maxlen=_RECENT)  # progress, success
        self._calls: deque[float] = deque(maxlen=_RECENT)  # seconds
        self._ends: deque[tuple[float, bool]] = deque(maxlen=_RECENT)  # final progress, detected
        self._verdicts: deque[tuple[bool, bool]] = deque(maxlen=_RECENT)  # detected, true
        self._true = [False] * tracker.num_envs  # success so far, by the environment itself
        # Per environment, of its latest two episodes: what was shown last.
        self._shown: list[dict[int, tuple[Clip, Prediction]]] = [
            {} for _ in range(tracker.num_envs)
        ]
        if self._watch not in tracker.listeners:  # it may, after a training that was interrupted
            tracker.listeners.append(self._watch)

    def _on_training_end(self) -> None:
        if self._tracker is not None:
            self._tracker.listeners.remove(self._watch)
            self._tracker = None

    def _watch(self, settled: Sequence[Settled], seconds: float) -> None:
        pairs = [
            pair
            for each in settled
            for pair in zip(each.clips, each.predictions or (), strict=False)
        ]
        if not pairs:
            return
        self._calls.append(seconds)
        self._in_model += seconds
        for clip, prediction in pairs:
            self._said.append((float(prediction.progress[-1]), float(prediction.success[-1])))
            assert isinstance(clip.stream, Stream), "the tracker names its clips"
            shown = self._shown[clip.stream.env]
            if clip.stream.episode not in shown:
                # The episode before is kept: a VecEnv has reset it in the step that ended it.
                for old in list(shown)[:-1]:
                    del shown[old]
            shown[clip.stream.episode] = clip, prediction

    def _on_step(self) -> bool:
        for env, (info, done) in enumerate(
            zip(self.locals["infos"], self.locals["dones"], strict=True)
        ):
            self._true[env] |= bool(info.get("is_success", info.get("success", False)))
            if done:
                self._end(env, info)
                self._true[env] = False
        return True

    def _end(self, env: int, info: dict[str, Any]) -> None:
        assert self._tracker is not None, "set when the training started"
        detected = bool(info["robometer/success"])
        if not np.isnan(info["robometer/progress"]):  # every prediction of it failed
            self._ends.append((info["robometer/progress"], detected))
        if not self._tracker.reports_success(env):
            return
        self._verdicts.append((detected, self._true[env]))
        if detected and not self._true[env]:
            self._keep(env)

    def _on_rollout_end(self) -> None:
        progress, success = np.mean(self._said, axis=0) if self._said else (np.nan, np.nan)
        told = {
            "progress": progress,
            "success_prob": success,
            "prediction_ms": 1000 * np.mean(self._calls) if self._calls else np.nan,
            "model_time_share": self.model_time_share,
        }
        if self._ends:
            final, detected = zip(*self._ends, strict=True)
            told |= {"final_progress": np.mean(final), "detected_rate": np.mean(detected)}
        if self._verdicts:
            said, true = zip(*self._verdicts, strict=True)
            found = detection(said, true)
            for name in ("precision", "recall", "f1", "false_success_rate"):
                told[name] = getattr(found, name)
        for name, value in told.items():
            if not np.isnan(value):  # there was nothing to measure
                self.logger.record(f"robometer/{name}", float(value))

    def _keep(self, env: int) -> None:
        """Write what the model was shown last of the episode that has just ended."""
        if self._clips_dir is None or len(self.clips) >= self._max_clips:
            return
        clip, prediction = next(iter(self._shown[env].values()))  # the next has begun already
        steps = clip.steps or tuple(range(len(clip)))
        run = Run(
            "false success",
            clip.images,
            Scores(clip.task, np.array(steps), None, prediction.progress, prediction.success),
            detected=steps[-1],
            frame_steps=steps,
        )
        self._clips_dir.mkdir(parents=True, exist_ok=True)
        path = self._clips_dir / f"false_success_{self.num_timesteps:08d}_env{env}.mp4"
        write_overlay(run, path, fps=_FPS)
        self.clips.append(path)
        logger.info("A false success, at %d steps: %s", self.num_timesteps, path)
