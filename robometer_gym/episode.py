"""When to predict, what was predicted, and what to pay: for N environments.

The one place where the rules of an episode live; the wrappers only bring it what their kind of
environment says. Knows nothing of Gymnasium, of rendering, or of what is inside the model.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

from robometer_gym import shaping
from robometer_gym.frames import FrameHistory
from robometer_gym.loading import RewardModelLike, check_reward_model_like, load_reward_model
from robometer_gym.reward_model import (
    Clip,
    Frame,
    ReleasesStreams,
    RewardModel,
    RewardModelError,
    check_answers,
    check_prediction,
)
from robometer_gym.settings import RewardSettings

__all__ = ["EpisodeTracker", "Outcome", "Start", "Step", "Stream"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Stream:
    """Names the frames of one camera in one episode.

    Two streams are never equal, not even a copy and its original: after a copy of an environment
    the same step may show different frames.
    """

    env: int
    episode: int
    camera: str

    def __repr__(self) -> str:
        return f"<env {self.env}, episode {self.episode}, camera {self.camera!r}>"


class Start(NamedTuple):
    """An episode begins: in which environment, with which task, and its first frame by camera."""

    env: int
    task: str
    frames: Mapping[str, Frame]


class Step(NamedTuple):
    """One environment has made a step.

    `frames` holds the frame after it, by camera; None exactly where `EpisodeTracker.due` said
    False. `reports_success` says whether the environment itself tells success in its info.
    """

    env: int
    reward: float
    terminated: bool
    truncated: bool
    frames: Mapping[str, Frame] | None
    reports_success: bool = False


class Outcome(NamedTuple):
    """What the agent gets for one step: its reward, whether the episode is over, and infos."""

    reward: float
    terminated: bool
    info: dict[str, Any]


class _Judgement(NamedTuple):
    """What the model said of one moment: the means over all cameras."""

    progress: float
    success: float


class _Episode:
    """What is known of the current episode of one environment."""

    def __init__(self, settings: RewardSettings) -> None:
        self.number = -1
        self.running = False
        self.reports_success = False  # for the environment's whole life: some tell it only late
        self.detector = settings.new_detector()
        self.task = ""
        self.steps = 0
        self.judgement: _Judgement | None = None
        self.histories: dict[str, FrameHistory] = {}
        self.streams: dict[str, Stream] = {}

    def begin(self, start: Start, settings: RewardSettings) -> None:
        self.number += 1
        self.task = start.task
        self.steps = 0
        self.judgement = None
        self.histories = {camera: settings.new_history() for camera in start.frames}
        self.streams = {camera: Stream(start.env, self.number, camera) for camera in start.frames}
        self.see(start.frames)

    def see(self, frames: Mapping[str, Frame]) -> None:
        for camera, frame in frames.items():
            self.histories[camera].append(frame, self.steps)

    def clips(self) -> list[Clip]:
        clips = []
        for camera, history in self.histories.items():
            frames, steps = history.window()
            clips.append(Clip(frames, self.task, self.streams[camera], steps))
        return clips


class EpisodeTracker:
    """Follows the episodes of N environments and decides what each step is paid.

    Call `begin` when episodes begin, and for each step `due` and then `step`.

    Args:
        settings: what the user chose.
        reward_model: a model, or its name; a name is loaded at the first prediction.
        num_envs: how many environments, >= 1.

    Example:
        >>> import numpy as np
        >>> from robometer_gym.testing import ScriptedRewardModel
        >>> frames = {"render": np.full((8, 8, 3), 9, np.uint8)}
        >>> tracker = EpisodeTracker(RewardSettings(), ScriptedRewardModel([0.25, 0.75]))
        >>> _ = tracker.begin([Start(0, "open the drawer", frames)])
        >>> tracker.due(0, ended=True)
        True
        >>> tracker.step([Step(0, 0.0, False, True, frames)])[0].reward
        0.5
    """

    def __init__(
        self, settings: RewardSettings, reward_model: RewardModelLike, num_envs: int = 1
    ) -> None:
        self.settings = settings
        self.errors = 0
        """How often a prediction has failed since the tracker was made."""
        self._reward_model = check_reward_model_like(reward_model)
        self._model: RewardModel | None = None
        self._episodes = [_Episode(settings) for _ in range(num_envs)]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out a model that was loaded by name: the copy loads it again when it needs it."""
        return {**self.__dict__, "_model": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> EpisodeTracker:
        """Share the model with the copy: it may hold gigabytes, or a socket."""
        memo[id(self._reward_model)] = self._reward_model
        copy = object.__new__(type(self))
        copy.__dict__ = deepcopy(self.__getstate__(), memo)
        return copy

    @property
    def model(self) -> RewardModel:
        """The reward model; loaded now if it was given by name."""
        if self._model is None:
            self._model = load_reward_model(self._reward_model)
        return self._model

    def running(self, env: int) -> bool:
        """Return whether an episode of `env` has begun and not ended."""
        return self._episodes[env].running

    def task(self, env: int) -> str:
        """Return the instruction of the current episode of `env`."""
        return self._episodes[env].task

    def due(self, env: int, ended: bool) -> bool:
        """Return whether the step just made needs a prediction, and so a frame.

        Args:
            env: which environment.
            ended: whether the environment ended the episode with this step.
        """
        steps = self._episodes[env].steps + 1
        return ended or steps % self.settings.predict_every == 0

    def begin(self, starts: Sequence[Start]) -> list[dict[str, Any]]:
        """Begin episodes, also where one was still running, and predict their baselines at once.

        Returns:
            The infos of each reset, in order.

        Raises:
            RewardModelError: the model answered with something that is no prediction.
            Exception: whatever the model raises, where `on_error` is "raise".
        """
        for start in starts:
            self._release(self._episodes[start.env])
            self._episodes[start.env].begin(start, self.settings)
        episodes = [self._episodes[start.env] for start in starts]
        infos = []
        for episode, judgement in zip(episodes, self._judge(episodes), strict=True):
            episode.judgement = judgement
            episode.detector.clear(first=judgement.success if judgement else None)
            episode.running = True
            infos.append(self._info(episode, predicted=judgement is not None))
        return infos

    def step(self, steps: Sequence[Step]) -> list[Outcome]:
        """Take one step of each given environment, and predict in one batch where frames came.

        Returns:
            The outcome of each step, in order.

        Raises:
            RewardModelError: the model answered with something that is no prediction.
            Exception: whatever the model raises, where `on_error` is "raise".
        """
        seen = []
        for step in steps:
            episode = self._episodes[step.env]
            episode.steps += 1
            episode.reports_success |= step.reports_success
            episode.running = not (step.terminated or step.truncated)  # also if the model fails
            if step.frames is not None:
                episode.see(step.frames)
                seen.append(episode)
        judgements = iter(self._judge(seen) if seen else ())
        return [
            self._pay(step, None if step.frames is None else next(judgements)) for step in steps
        ]

    def end(self, env: int) -> None:
        """End the episode of `env`, if one is running: the model may forget its streams.

        Also to be called when a frame that was due could not be had: what was seen of the episode
        no longer fits what the environment has done.
        """
        self._release(self._episodes[env])

    def close(self) -> None:
        """End all episodes."""
        for env in range(len(self._episodes)):
            self.end(env)

    def _judge(self, episodes: Sequence[_Episode]) -> list[_Judgement | None]:
        """Ask the model about now; None where it failed and the user chose to go on."""
        model = self.model  # one that cannot be loaded is no failed prediction: it raises
        clips = [episode.clips() for episode in episodes]
        flat = [clip for each in clips for clip in each]
        try:
            answers = iter(check_answers(flat, model.predict(flat)))
        except Exception as error:
            self._failed(error, len(episodes))
            return [None] * len(episodes)
        judgements: list[_Judgement | None] = []
        for each in clips:
            predictions = [next(answers) for _ in each]
            try:
                for clip, prediction in zip(each, predictions, strict=True):
                    check_prediction(clip, prediction)
            except RewardModelError as error:
                self._failed(error, 1)
                judgements.append(None)
            else:
                judgements.append(
                    _Judgement(
                        sum(float(p.progress[-1]) for p in predictions) / len(predictions),
                        sum(float(p.success[-1]) for p in predictions) / len(predictions),
                    )
                )
        return judgements

    def _failed(self, error: Exception, predictions: int) -> None:
        """Count failures that the user chose to live with; raise any other."""
        if self.settings.on_error == "raise":
            raise error
        self.errors += predictions
        logger.warning(
            "The reward model failed (%d so far); on_error=%r goes on: %s: %s",
            self.errors,
            self.settings.on_error,
            type(error).__name__,
            error,
        )

    def _pay(self, step: Step, judgement: _Judgement | None) -> Outcome:
        settings, episode = self.settings, self._episodes[step.env]
        before, newly_done = episode.judgement, False
        if judgement is not None:
            newly_done = not episode.detector.fired and episode.detector.update(judgement.success)
            episode.judgement = judgement
        terminated = step.terminated or (newly_done and settings.terminate_on_success)
        bonus = settings.success_bonus if newly_done else 0.0
        after = episode.judgement
        failed = step.frames is not None and judgement is None
        if before is None or after is None or failed:
            # The model's part is not known. on_error says what stands in its place.
            keeps_env_reward = settings.on_error == "env" or settings.mode == "shape"
            reward = (step.reward if keeps_env_reward else 0.0) + bonus
        else:
            signal = shaping.SIGNALS[settings.signal](
                before.progress, after.progress, gamma=settings.gamma, terminated=terminated
            )
            reward = shaping.reward(
                settings.mode, step.reward, signal, scale=settings.scale, bonus=bonus
            )
        info = self._info(episode, predicted=judgement is not None)
        info["env_reward"] = step.reward
        if terminated or step.truncated:
            if not episode.reports_success:
                info["is_success"] = episode.detector.fired
            self._release(episode)
        return Outcome(reward, terminated, info)

    def _info(self, episode: _Episode, *, predicted: bool) -> dict[str, Any]:
        known = episode.judgement
        info = {
            "robometer/progress": known.progress if known else math.nan,
            "robometer/success_prob": known.success if known else math.nan,
            "robometer/success": episode.detector.fired,
            "robometer/predicted": predicted,
        }
        if self.settings.on_error != "raise":
            info["robometer/errors"] = self.errors
        return info

    def _release(self, episode: _Episode) -> None:
        """End an episode; a model that keeps something for its streams is told."""
        episode.running = False
        streams, episode.streams, episode.histories = episode.streams, {}, {}
        if isinstance(self._model, ReleasesStreams):
            for stream in streams.values():
                try:
                    self._model.release(stream)
                except Exception as error:  # nothing depends on it, least of all the last reward
                    logger.warning("The reward model could not release %s: %s", stream, error)
