"""BackgroundPredictions: predictions in a thread, while the environments go on.

Rewards arrive some steps late, complete and in order. The tracker is used by the caller's thread
alone; the other thread only predicts. Knows nothing of environments.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

from robometer_gym.reward_model import Clip, Prediction, RewardModel, check_prediction_list
from robometer_gym.tracking.events import Event, Outcome, Response, Start, Step
from robometer_gym.tracking.tracker import EpisodeTracker, Pending

__all__ = [
    "BackgroundPredictions",
    "Driver",
    "PredictionThread",
    "make_driver",
    "take_responses",
]

logger = logging.getLogger(__name__)

_MAX_OWED = 64  # calls; at 10 Hz more than six seconds


class PredictionThread:
    """Predicts in a daemon thread, everything that is waiting in one batch.

    The thread starts at the first call, and again in a process that was forked or unpickled.

    Args:
        model: predicts, in the other thread only.
    """

    def __init__(self, model: RewardModel) -> None:
        self._model = model
        self._queue: SimpleQueue[tuple[list[Clip], Future[Response]] | None] | None = None
        self._process = 0

    def submit(self, clips: list[Clip]) -> Future[Response]:
        """Return the future response for `clips`; without clips it is there at once."""
        future: Future[Response] = Future()
        if not clips:
            future.set_result(Response([], 0.0))
            return future
        if self._queue is None or self._process != os.getpid():
            self._queue, self._process = SimpleQueue(), os.getpid()
            # A daemon, or a model that never returns would keep the process from ending.
            Thread(
                name="robometer predictions",
                target=_predict_all,
                args=(self._model, self._queue),
                daemon=True,
            ).start()
        self._queue.put((clips, future))
        return future

    def close(self) -> None:
        """End the thread once the call that is running returns."""
        if self._queue is not None:
            self._queue.put(None)
            self._queue = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the thread."""
        return {**self.__dict__, "_queue": None}


def _predict_all(
    model: RewardModel, queue: SimpleQueue[tuple[list[Clip], Future[Response]] | None]
) -> None:
    """Serve `queue` until None comes."""
    while True:
        batch = [queue.get()]
        try:
            while batch[-1] is not None:
                batch.append(queue.get_nowait())
        except Empty:
            pass
        work = [each for each in batch if each is not None]
        clips = [clip for each, _ in work for clip in each]
        started = time.perf_counter()
        answer: Sequence[Prediction] | Exception
        try:
            answer = check_prediction_list(clips, model.predict(clips)) if clips else []
        except Exception as error:
            answer = error
        seconds = time.perf_counter() - started
        for index, (each, future) in enumerate(work):
            part = answer
            if not isinstance(answer, Exception):
                part, answer = answer[: len(each)], answer[len(each) :]
            future.set_result(Response(part, 0.0 if index else seconds))
        if batch[-1] is None:
            return


def take_responses(
    futures: Sequence[Future[Response] | None], timeout: float, wait: bool
) -> list[Response]:
    """Return the leading responses that have arrived.

    Args:
        futures: oldest first.
        timeout: seconds to wait for all of them together.
        wait: whether to take a TimeoutError for each that has not arrived by then; else the first
            of these ends the list.
    """
    deadline = time.monotonic() + timeout
    responses = []
    for future in futures:
        assert future is not None, "submitted with the events"
        try:
            responses.append(future.result(max(0.0, deadline - time.monotonic())))
        except FutureTimeout:
            if not wait:
                break
            error = TimeoutError(f"The reward model did not respond within {timeout} s.")
            responses.append(Response(error, 0.0))
    return responses


class _Owed(NamedTuple):
    """Events whose outcomes are owed."""

    pending: Pending
    steps: list[int]  # of each event, which step of its episode it is
    response: Future[Response]


class BackgroundPredictions:
    """Advances a tracker without waiting for its predictions.

    `advance` returns at once, or after `max_wait`, with what has arrived: the reward of a step is
    the environment's part of that step, plus the model's part of all steps whose predictions have
    arrived since the step before. Nothing is dropped: the end of an episode waits for everything
    that is owed, at most `timeout`, and then `on_error` decides. A detected success ends the
    episode at the step at which the verdict arrives.

    Infos have, besides those of a synchronous step, `robometer/for_step`: the latest step (from 0,
    the reset) whose reward has arrived, and `robometer/delay`: how many steps ago that was.

    Args:
        tracker: of a reward wrapper; its settings hold `max_wait` and `timeout`.
    """

    def __init__(self, tracker: EpisodeTracker) -> None:
        self.tracker = tracker
        self.full = 0
        """How many steps had to wait because too much was owed."""
        self._thread = PredictionThread(tracker.reward_model)
        self._owed: list[_Owed] = []
        self._steps = [0] * tracker.num_envs
        self._arrived_steps = [-1] * tracker.num_envs

    def advance(self, events: Sequence[Event]) -> list[Outcome]:
        """Observe events, and return what is known of them by now.

        Waits where an episode ends, and for the baselines of a reset, which has no steps.

        Args:
            events: see `EpisodeTracker.observe`.

        Returns:
            The outcome of each event, as far as it has arrived.

        Raises:
            TimeoutError: something owed at an episode's end did not arrive within `timeout`, and
                `on_error` is "raise".
            Exception: see `EpisodeTracker.settle`.
        """
        settings = self.tracker.settings
        arrived: list[tuple[Pending, list[Outcome]]] = []
        if len(self._owed) >= _MAX_OWED:
            self.full += 1
            arrived += self._settle(1, settings.timeout, wait=True)
        for event in events:
            started = isinstance(event, Start)
            self._steps[event.env] = 0 if started else self._steps[event.env] + 1
            if started:
                self._arrived_steps[event.env] = -1
        pending = self.tracker.observe(events)
        steps = [self._steps[event.env] for event in events]
        self._owed.append(_Owed(pending, steps, self._thread.submit(pending.clips)))
        steps_only = [event for event in events if isinstance(event, Step)]
        wait = not steps_only or any(step.terminated or step.truncated for step in steps_only)
        if not wait:
            arrived += self._settle(len(self._owed), settings.max_wait, wait=False)
            # A verdict ends the episode now, and an end waits for everything.
            wait = settings.terminate_on_success and any(
                self.tracker.detected(event.env) for event in events
            )
        if wait:
            arrived += self._settle(len(self._owed), settings.timeout, wait=True)
        return self._outcomes(events, pending, arrived)

    def _settle(
        self, count: int, timeout: float, *, wait: bool
    ) -> list[tuple[Pending, list[Outcome]]]:
        """Settle up to `count` of the oldest calls, see `take_responses`."""
        futures = [owed.response for owed in self._owed[:count]]
        arrived = []
        for response in take_responses(futures, timeout, wait):
            owed = self._owed.pop(0)
            outcomes = self.tracker.settle(owed.pending, *response, newest=not self._owed)
            arrived.append((owed.pending, outcomes))
            for event, step in zip(owed.pending.events, owed.steps, strict=True):
                self._arrived_steps[event.env] = step
        return arrived

    def _outcomes(
        self,
        events: Sequence[Event],
        pending: Pending,
        arrived: Sequence[tuple[Pending, list[Outcome]]],
    ) -> list[Outcome]:
        """Return the outcome of each event now: its own, if it has arrived, and late parts."""
        own: list[Outcome] | None = None
        late: dict[int, float] = {}  # of an episode, by identity: another one may run by now
        predicted: set[int] = set()
        for settled, outcomes in arrived:
            if settled is pending:
                own = outcomes
                continue
            for event, episode, outcome in zip(
                settled.events, settled.episodes, outcomes, strict=True
            ):
                if outcome.info["robometer/predicted"]:
                    predicted.add(id(episode))
                if isinstance(event, Step):
                    part = outcome.reward - self._env_part(event)
                    late[id(episode)] = late.get(id(episode), 0.0) + part
        results = []
        for index, (event, episode) in enumerate(zip(events, pending.episodes, strict=True)):
            outcome = self._awaited(event) if own is None else own[index]
            outcome.info["robometer/predicted"] |= id(episode) in predicted
            if isinstance(event, Step) and id(episode) in late:
                outcome = outcome._replace(reward=outcome.reward + late[id(episode)])
            step = self._arrived_steps[event.env]
            outcome.info["robometer/for_step"] = step
            outcome.info["robometer/delay"] = -1 if step < 0 else self._steps[event.env] - step
            results.append(outcome)
        return results

    def _awaited(self, event: Event) -> Outcome:
        """Return the outcome of an event whose prediction has not arrived."""
        info = self.tracker.info(event.env)
        if isinstance(event, Start):
            return Outcome(0.0, False, info)
        info["env_reward"] = event.reward
        return Outcome(self._env_part(event), False, info)

    def _env_part(self, step: Step) -> float:
        return step.reward if self.tracker.settings.mode == "shape" else 0.0

    def close(self) -> None:
        """End all episodes and the thread; nothing is owed any more."""
        for owed in self._owed:
            self.tracker.discard(owed.pending)
        self._owed.clear()
        self.tracker.close()
        self._thread.close()

    def __getstate__(self) -> dict[str, Any]:
        """Wait for what is owed: a copy has another thread."""
        futures = [owed.response for owed in self._owed]
        responses = take_responses(futures, self.tracker.settings.timeout, wait=True)
        owed = [(*each[:2], response) for each, response in zip(self._owed, responses, strict=True)]
        return {**self.__dict__, "_owed": owed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the responses as if they had just arrived."""
        self.__dict__.update(state)
        self._owed = []
        for pending, steps, response in state["_owed"]:
            future: Future[Response] = Future()
            future.set_result(response)
            self._owed.append(_Owed(pending, steps, future))


Driver = EpisodeTracker | BackgroundPredictions
"""Whatever takes the events of a wrapper: `advance` and `close`."""


def make_driver(tracker: EpisodeTracker) -> Driver:
    """Return the tracker itself, or its background predictions where its settings want them."""
    return BackgroundPredictions(tracker) if tracker.settings.background else tracker
