"""EpisodeTracker: when to predict and what reward follows, for N environments.

The one place where the rules of an episode live; wrappers pass it events and return its
outcomes. Knows nothing of Gymnasium, of rendering, or of networks.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from robometer_gym.reward_model import (
    CheckpointError,
    Clip,
    Prediction,
    ReleasesStreams,
    RewardModel,
    RewardModelError,
    check_prediction,
    check_prediction_list,
)
from robometer_gym.tracking import shaping
from robometer_gym.tracking.episode import Episode, MeanPrediction, mean_prediction
from robometer_gym.tracking.events import (
    Event,
    Listener,
    Outcome,
    Response,
    Settled,
    Start,
    Step,
)
from robometer_gym.tracking.settings import RewardSettings

__all__ = ["EpisodeTracker", "Pending"]

logger = logging.getLogger(__name__)


class Pending(NamedTuple):
    """Events that were observed and await their predictions.

    Attributes:
        clips: those to predict, of all events in order. Empty where nothing is due.
        events: as `observe` received them.
    """

    clips: list[Clip]
    events: Sequence[Event]
    clips_by_event: Sequence[Sequence[Clip]]
    frame_steps: Sequence[tuple[int, ...]]
    episodes: Sequence[Episode]
    replaced: Sequence[Episode]


class EpisodeTracker:
    """Follows the episodes of N environments and computes the reward of each step.

    `advance` takes events and returns their outcomes. It is two steps, which may also be called
    one by one, with time and other events between them: `observe` takes what has happened and
    returns the clips to predict, `settle` takes the predictions and returns the outcomes.

    Args:
        settings: of the reward.
        reward_model: predicts; wrappers pass a `LazyRewardModel`.
        num_envs: N >= 1.

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
        self, settings: RewardSettings, reward_model: RewardModel, num_envs: int = 1
    ) -> None:
        self.settings = settings
        self.reward_model = reward_model
        self.num_envs = num_envs
        self.releaser: object = reward_model
        """Its `release`, if it has one, is called with the streams of episodes that have ended."""
        self.errors = 0
        """How many predictions have failed since the tracker was made."""
        self.listeners: list[Listener] = []
        """Called with every settled batch of events, in order."""
        self._episodes = [Episode(settings, Start(env, "", {})) for env in range(num_envs)]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out listeners: they would take a copy's episodes for those of the original."""
        return {**self.__dict__, "listeners": []}

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

    def steps(self, env: int) -> int:
        """Return how many steps the latest episode of `env` has made so far."""
        return self._episodes[env].steps

    def new_starts(self) -> list[Settled]:
        """Return the settled starts of episodes that have made no step yet.

        A listener that is added after a reset takes these up, and so misses nothing.
        """
        starts = (episode.start for episode in self._episodes if episode.running)
        return [start for start in starts if start is not None]

    def reports_success(self, env: int) -> bool:
        """Return whether `env` has ever reported success itself; else `is_success` is ours."""
        return self._episodes[env].reports_success

    def due(self, env: int, ended: bool) -> bool:
        """Return whether the step that `env` has just made needs a prediction, and so a frame.

        Args:
            env: which environment.
            ended: whether the environment ended the episode with this step.
        """
        return self.settings.due(self._episodes[env].steps + 1, ended)

    def advance(self, events: Sequence[Event]) -> list[Outcome]:
        """Observe events, predict in one batch wherever a frame came, and settle.

        Args:
            events: see `observe`.

        Returns:
            The outcome of each event, in order.

        Raises:
            RewardModelError: an answer of the model that is no prediction.
            Exception: whatever the model raises, where `on_error` is "raise".
        """
        if not self.listeners and all(event.frames is None for event in events):
            # Most steps: nothing is due, so nothing can fail or wait.
            steps = cast("Sequence[Step]", events)  # a Start always has frames
            return [
                self._compute_outcome(step, self._count_step(step), None, newest=True)
                for step in steps
            ]
        pending = self.observe(events)
        if not pending.clips:
            return self.settle(pending, [])
        try:
            response = self.predict(pending.clips)
        except BaseException:
            self.discard(pending)
            raise
        return self.settle(pending, *response)

    def predict(self, clips: Sequence[Clip]) -> Response:
        """Predict for observed clips, in one batch.

        Returns:
            The predictions, or, unless `on_error` is "raise", the exception that `settle` counts;
            and the seconds that it took.

        Raises:
            RewardModelError: a response of the model that is no list of predictions, where
                `on_error` is "raise".
            Exception: whatever the model raises, likewise; a checkpoint that cannot be loaded is
                no failed prediction, and raises in any case.
        """
        started = time.perf_counter()
        strict = self.settings.on_error == "raise"
        answer: Sequence[Prediction] | Exception
        try:
            answer = self.reward_model.predict(clips)
            check_prediction_list(clips, answer)  # `settle` checks each of them
        except Exception as error:
            if strict or isinstance(error, CheckpointError):
                raise
            answer = error
        return Response(answer, time.perf_counter() - started)

    def observe(self, events: Sequence[Event]) -> Pending:
        """Take events, and return the clips to predict for them.

        Every Pending must go to `settle`, in the order of the calls, or to `discard`.

        Args:
            events: in the order in which they happened. An environment may end an episode and
                start the next in one go. An episode that starts ends the one that was running.
        """
        flat: list[Clip] = []
        clips_by_event: list[Sequence[Clip]] = []
        frame_steps: list[tuple[int, ...]] = []
        episodes, replaced = [], []
        for event in events:
            clips: Sequence[Clip] = ()
            if isinstance(event, Start):
                before = self._episodes[event.env]
                replaced.append(before)
                episode = Episode(self.settings, event, before.number + 1, before.reports_success)
                self._episodes[event.env] = episode
                episode.running = True
            else:
                episode = self._count_step(event)
                if event.frames is not None:
                    episode.append(event.frames)
            if event.frames is not None:
                clips = episode.clips()
                flat += clips
            episodes.append(episode)
            clips_by_event.append(clips)
            frame_steps.append(episode.frame_steps)
        return Pending(flat, events, clips_by_event, frame_steps, episodes, replaced)

    def _count_step(self, step: Step) -> Episode:
        episode = self._episodes[step.env]
        episode.steps += 1
        episode.start = None
        episode.reports_success |= step.true_success is not None
        episode.running = not (step.terminated or step.truncated)
        return episode

    def settle(
        self,
        pending: Pending,
        answer: Sequence[Prediction] | Exception,
        seconds: float = 0.0,
        *,
        newest: bool = True,
    ) -> list[Outcome]:
        """Compute the outcome of observed events from their predictions.

        Args:
            pending: from `observe`.
            answer: one prediction for each of `pending.clips`, or the exception that the model
                raised.
            seconds: how long the model took, for listeners.
            newest: whether these are the latest events that were observed. A success that is
                detected in older ones ends the episode when the newest are settled, because the
                environment has moved on.

        Returns:
            The outcome of each event, in order.

        Raises:
            RewardModelError: an answer that is no prediction, where `on_error` is "raise".
            Exception: `answer`, if it is one, likewise.
        """
        predictions: Sequence[Sequence[Prediction] | None]
        if pending.clips:
            try:
                predictions = self._check(pending, answer)
            except BaseException:
                self.discard(pending)
                raise
        else:
            predictions = [()] * len(pending.events)
        for episode in pending.replaced:
            self._release(episode)
        outcomes = []
        for event, episode, checked in zip(
            pending.events, pending.episodes, predictions, strict=True
        ):
            mean = mean_prediction(checked) if checked else None
            if isinstance(event, Start):
                outcomes.append(Outcome(0.0, False, self._begin(episode, mean)))
            else:
                outcomes.append(self._compute_outcome(event, episode, mean, newest))
        if self.listeners or pending.replaced:
            self._notify(pending, outcomes, predictions, seconds)
        return outcomes

    def _notify(
        self,
        pending: Pending,
        outcomes: Sequence[Outcome],
        predictions: Sequence[Sequence[Prediction] | None],
        seconds: float,
    ) -> None:
        settled = []
        for event, outcome, episode, clips, checked, steps in zip(
            pending.events,
            outcomes,
            pending.episodes,
            pending.clips_by_event,
            predictions,
            pending.frame_steps,
            strict=True,
        ):
            settled.append(Settled(event, outcome, episode.number, clips, checked, steps))
            if isinstance(event, Start) and episode.running and not episode.steps:
                episode.start = settled[-1]
        for listener in list(self.listeners):
            listener(settled, seconds)

    def discard(self, pending: Pending) -> None:
        """Give up observed events: episodes that began with them have not begun."""
        for episode in pending.replaced:
            self._release(episode)
        for event, episode in zip(pending.events, pending.episodes, strict=True):
            if isinstance(event, Start):
                episode.running = False

    def end(self, env: int) -> None:
        """End the episode of `env`, if one is running: the model may forget its streams.

        Also to be called when a frame that was due could not be taken: the frames seen so far no
        longer match the environment.
        """
        self._release(self._episodes[env])

    def close(self) -> None:
        """End all episodes."""
        for env in range(len(self._episodes)):
            self.end(env)

    def _check(
        self, pending: Pending, answer: Sequence[Prediction] | Exception
    ) -> list[Sequence[Prediction] | None]:
        """Return the predictions of each event: none where none was due, None where it failed."""
        try:
            if isinstance(answer, Exception):
                raise answer
            remaining = iter(check_prediction_list(pending.clips, answer))
        except CheckpointError:
            raise
        except Exception as error:
            self._count_failure(error, sum(bool(clips) for clips in pending.clips_by_event))
            return [None if clips else () for clips in pending.clips_by_event]
        checked: list[Sequence[Prediction] | None] = []
        for clips in pending.clips_by_event:
            predictions = [next(remaining) for _ in clips]
            try:
                for clip, prediction in zip(clips, predictions, strict=True):
                    check_prediction(clip, prediction)
            except RewardModelError as error:
                self._count_failure(error, 1)
                checked.append(None)
            else:
                checked.append(predictions)
        return checked

    def _count_failure(self, error: Exception, predictions: int) -> None:
        """Count failed predictions where `on_error` goes on; else raise the error."""
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

    def _begin(self, episode: Episode, baseline: MeanPrediction | None) -> dict[str, Any]:
        """Take the baseline; return the infos of the reset."""
        episode.latest = baseline
        episode.detector.clear(first=baseline.success if baseline else None)
        return self._info(episode, predicted=baseline is not None)

    def _compute_outcome(
        self, step: Step, episode: Episode, prediction: MeanPrediction | None, newest: bool
    ) -> Outcome:
        settings = self.settings
        before, newly_detected = episode.latest, False
        if prediction is not None:
            newly_detected = not episode.detector.fired and episode.detector.update(
                prediction.success
            )
            episode.latest = prediction
        terminated = step.terminated or (
            episode.detector.fired and settings.terminate_on_success and newest
        )
        bonus = settings.success_bonus if newly_detected else 0.0
        after = episode.latest
        failed = step.frames is not None and prediction is None
        if before is None or after is None or failed:
            # The model's part is unknown, and on_error decides what replaces it.
            keeps_env_reward = settings.on_error == "env" or settings.mode == "shape"
            reward = (step.reward if keeps_env_reward else 0.0) + bonus
        else:
            signal = shaping.SIGNALS[settings.signal](
                before.progress, after.progress, gamma=settings.gamma, terminated=terminated
            )
            reward = shaping.reward(
                settings.mode, step.reward, signal, scale=settings.scale, bonus=bonus
            )
        info = self._info(episode, predicted=prediction is not None)
        info["env_reward"] = step.reward
        if terminated or step.truncated:
            if not episode.reports_success:
                info["is_success"] = episode.detector.fired
            self._release(episode)
        return Outcome(reward, terminated, info)

    def detected(self, env: int) -> bool:
        """Return whether success was detected in the running episode of `env`."""
        return self._episodes[env].running and self._episodes[env].detector.fired

    def info(self, env: int) -> dict[str, Any]:
        """Return the infos of a step of `env` at which no prediction has arrived."""
        return self._info(self._episodes[env], predicted=False)

    def _info(self, episode: Episode, *, predicted: bool) -> dict[str, Any]:
        known = episode.latest
        info = {
            "robometer/progress": known.progress if known else math.nan,
            "robometer/success_prob": known.success if known else math.nan,
            "robometer/success": episode.detector.fired,
            "robometer/predicted": predicted,
        }
        if self.settings.on_error != "raise":
            info["robometer/errors"] = self.errors
        return info

    def _release(self, episode: Episode) -> None:
        """End an episode, and let a model that keeps its streams release them."""
        episode.running = False
        episode.start = None
        streams, episode.streams, episode.histories = episode.streams, {}, {}
        if isinstance(self.releaser, ReleasesStreams):
            for stream in streams.values():
                try:
                    self.releaser.release(stream)
                except Exception as error:  # nothing depends on it, least of all the last reward
                    logger.warning("The reward model could not release %s: %s", stream, error)
