"""When to predict, what was predicted, and what to pay: for N environments.

The one place where the rules of an episode live; the wrappers only bring it what their kind of
environment says. Knows nothing of Gymnasium, of rendering, or of what is inside the model.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

from robometer_gym.models.loading import RewardModelLike, check_reward_model_like, load_reward_model
from robometer_gym.reward_model import (
    Clip,
    Frame,
    Prediction,
    ReleasesStreams,
    RewardModel,
    RewardModelError,
    check_answers,
    check_prediction,
)
from robometer_gym.tracking import shaping
from robometer_gym.tracking.settings import RewardSettings

__all__ = ["EpisodeTracker", "Event", "Outcome", "Start", "Step", "Stream", "Watcher"]

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

    `frames` holds the frame after it, by camera; None exactly where no prediction is due, see
    `RewardSettings.due`. `reports_success` says whether the environment itself tells success in
    its info.
    """

    env: int
    reward: float
    terminated: bool
    truncated: bool
    frames: Mapping[str, Frame] | None
    reports_success: bool = False


Event = Start | Step


class Outcome(NamedTuple):
    """What the agent gets for one event: its reward, whether the episode is over, and infos.

    The start of an episode is paid 0.0 and ends nothing.
    """

    reward: float
    terminated: bool
    info: dict[str, Any]


Watcher = Callable[[Sequence[Clip], Sequence[Prediction], float], None]
"""Is told of each call of the model: the clips, what was predicted, and the seconds it took."""


class _Judgement(NamedTuple):
    """What the model said of one moment: the means over all cameras."""

    progress: float
    success: float


class _Episode:
    """What is known of one episode of one environment."""

    def __init__(
        self,
        settings: RewardSettings,
        start: Start,
        number: int = -1,
        reports_success: bool = False,
    ) -> None:
        self.number = number
        self.task = start.task
        self.reports_success = reports_success  # for the env's whole life: some tell it only late
        self.running = False
        self.steps = 0
        self.judgement: _Judgement | None = None
        self.detector = settings.new_detector()
        self.histories = {camera: settings.new_history() for camera in start.frames}
        self.streams = {camera: Stream(start.env, number, camera) for camera in start.frames}
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

    Tell `advance` of everything that happens: episodes that start, and steps.

    Args:
        settings: what the user chose.
        reward_model: a model, or its name; a name is loaded at the first prediction.
        num_envs: how many environments, >= 1.

    Example:
        >>> import numpy as np
        >>> from robometer_gym.testing import ScriptedRewardModel
        >>> frames = {"render": np.full((8, 8, 3), 9, np.uint8)}
        >>> tracker = EpisodeTracker(RewardSettings(), ScriptedRewardModel([0.25, 0.75]))
        >>> tracker.advance([Start(0, "open the drawer", frames)])[0].info["robometer/progress"]
        0.25
        >>> tracker.advance([Step(0, 0.0, False, True, frames)])[0].reward
        0.5
    """

    def __init__(
        self, settings: RewardSettings, reward_model: RewardModelLike, num_envs: int = 1
    ) -> None:
        self.settings = settings
        self.num_envs = num_envs
        self.errors = 0
        """How often a prediction has failed since the tracker was made."""
        self._reward_model = check_reward_model_like(reward_model)
        self._model: RewardModel | None = None
        self._episodes = [_Episode(settings, Start(env, "", {})) for env in range(num_envs)]
        self.watchers: list[Watcher] = []
        """Whoever wants to know what the model is shown, what it says and how long it takes."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out a model that was loaded by name: the copy loads it again when it needs it.

        Nor is a copy watched: who watches the original would mistake its episodes for those.
        """
        return {**self.__dict__, "_model": None, "watchers": []}

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

    def load(self) -> None:
        """Load the model now if it was given by name; to be called before anything is drawn.

        It brings torch, and torch's triton crashes the process if it is imported after Mesa, which
        draws where there is no GPU, has begun: both hold an LLVM.
        """
        self.model  # noqa: B018

    def running(self, env: int) -> bool:
        """Return whether an episode of `env` has begun and not ended."""
        return self._episodes[env].running

    def idle(self) -> list[int]:
        """Return the environments of which no episode is running."""
        return [env for env, episode in enumerate(self._episodes) if not episode.running]

    def task(self, env: int) -> str:
        """Return the instruction of the current episode of `env`."""
        return self._episodes[env].task

    def tasks(self, otherwise: Sequence[str]) -> list[str]:
        """Return the instruction of each environment's episode, or another where none is running.

        Args:
            otherwise: those others, one for each environment.
        """
        return [
            episode.task if episode.running else task
            for episode, task in zip(self._episodes, otherwise, strict=True)
        ]

    def episode(self, env: int) -> int:
        """Return the number of the latest episode of `env`, from 0: `Stream.episode`."""
        return self._episodes[env].number

    def reports_success(self, env: int) -> bool:
        """Return whether `env` has ever told success in its infos: else `is_success` is ours."""
        return self._episodes[env].reports_success

    def due(self, env: int, ended: bool) -> bool:
        """Return whether the step that `env` has just made needs a prediction, and so a frame.

        Args:
            env: which environment.
            ended: whether the environment ended the episode with this step.
        """
        return self.settings.due(self._episodes[env].steps + 1, ended)

    def advance(self, events: Sequence[Event]) -> list[Outcome]:
        """Take what has happened, and predict in one batch wherever a frame came.

        Args:
            events: in the order in which they happened. An environment may end an episode and
                start the next in one go. An episode that starts ends the one that was running.

        Returns:
            The outcome of each event, in order.

        Raises:
            RewardModelError: the model answered with something that is no prediction.
            Exception: whatever the model raises, where `on_error` is "raise".
        """
        episodes, asked, replaced = [], [], []
        for event in events:
            episode = self._episodes[event.env]
            if isinstance(event, Start):
                replaced.append(episode)
                episode = _Episode(
                    self.settings, event, episode.number + 1, episode.reports_success
                )
                self._episodes[event.env] = episode
            else:
                episode.steps += 1
                episode.reports_success |= event.reports_success
                episode.running = not (event.terminated or event.truncated)  # also if that fails
                if event.frames is not None:
                    episode.see(event.frames)
            episodes.append(episode)
            if event.frames is not None:
                asked.append(episode.clips())
        try:
            judgements = iter(self._judge(asked) if asked else ())
        finally:
            for episode in replaced:
                self._release(episode)
        outcomes = []
        for event, episode in zip(events, episodes, strict=True):
            judgement = None if event.frames is None else next(judgements)
            if isinstance(event, Start):
                outcomes.append(Outcome(0.0, False, self._begin(episode, judgement)))
            else:
                outcomes.append(self._pay(event, episode, judgement))
        return outcomes

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

    def _judge(self, asked: Sequence[list[Clip]]) -> list[_Judgement | None]:
        """Ask the model about now; None where it failed and the user chose to go on.

        Args:
            asked: of each episode, the clips of its cameras.
        """
        model = self.model  # one that cannot be loaded is no failed prediction: it raises
        flat = [clip for clips in asked for clip in clips]
        began = time.perf_counter()
        try:
            answers = check_answers(flat, model.predict(flat))
        except Exception as error:
            self._failed(error, len(asked))
            return [None] * len(asked)
        seconds = time.perf_counter() - began
        for watcher in self.watchers:
            watcher(flat, answers, seconds)
        judgements: list[_Judgement | None] = []
        remaining = iter(answers)
        for clips in asked:
            predictions = [next(remaining) for _ in clips]
            try:
                for clip, prediction in zip(clips, predictions, strict=True):
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

    def _begin(self, episode: _Episode, judgement: _Judgement | None) -> dict[str, Any]:
        """Take the baseline; return the infos of the reset."""
        episode.judgement = judgement
        episode.detector.clear(first=judgement.success if judgement else None)
        episode.running = True
        return self._info(episode, predicted=judgement is not None)

    def _pay(self, step: Step, episode: _Episode, judgement: _Judgement | None) -> Outcome:
        settings = self.settings
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
