"""BackgroundPredictions: predictions in a thread, while the environments go on.

Rewards arrive some steps late, complete and in order. The tracker is used by the caller's thread
alone; the other thread only predicts. Knows nothing of environments.
"""

from __future__ import annotations

import atexit
import logging
import os
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread, current_thread
from typing import Any, NamedTuple

from robometer_gym.reward_model import (
    Clip,
    Prediction,
    ReleasesStreams,
    RewardModel,
    RewardModelError,
    check_prediction_list,
)
from robometer_gym.tracking.episode import Episode
from robometer_gym.tracking.events import Event, Outcome, Response, Start, Step, Stream
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
_EXIT_SECONDS = 10.0  # for the call that is running when the process ends


_Work = tuple[list[Clip], Future[Response]]
_Queue = SimpleQueue[_Work | Stream | None]  # Stream: to be released; None: the end

_running: dict[Thread, _Queue] = {}


@atexit.register
def _end_threads() -> None:
    """End all threads: one inside torch aborts the process when the interpreter goes down."""
    for queue in _running.values():
        queue.put(None)
    for thread in list(_running):
        thread.join(_EXIT_SECONDS)


class PredictionThread:
    """Predicts in a daemon thread, everything that is waiting in one batch.

    The thread starts at the first call, and again in a process that was forked or unpickled. It
    ends with `close`, or when this object is deleted.

    Args:
        model: predicts, in the other thread only.
    """

    def __init__(self, model: RewardModel) -> None:
        self._model = model
        self._queue: _Queue | None = None
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
            thread = Thread(
                name="robometer predictions",
                target=_predict_all,
                args=(self._model, self._queue),
                daemon=True,
            )
            _running[thread] = self._queue
            weakref.finalize(self, self._queue.put, None)
            thread.start()
        self._queue.put((clips, future))
        return future

    def release(self, stream: Stream) -> None:
        """Release a stream after everything that was submitted, without waiting for it."""
        if self._queue is not None and self._process == os.getpid():
            self._queue.put(stream)
        elif isinstance(self._model, ReleasesStreams):
            self._model.release(stream)

    def close(self) -> None:
        """End the thread once the call that is running returns."""
        if self._queue is not None:
            self._queue.put(None)
            self._queue = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the thread."""
        return {**self.__dict__, "_queue": None}


def _predict_all(model: RewardModel, queue: _Queue) -> None:
    """Serve `queue` until None comes."""
    ended = False
    while not ended:
        batch = [queue.get()]
        try:
            while batch[-1] is not None:
                batch.append(queue.get_nowait())
        except Empty:
            pass
        ended = batch[-1] is None
        _predict_batch(model, [each for each in batch if isinstance(each, tuple)])
        for stream in batch:
            if isinstance(stream, Stream) and isinstance(model, ReleasesStreams):
                try:
                    model.release(stream)
                except Exception as error:  # no reward depends on it
                    logger.warning("The reward model could not release %s: %s", stream, error)
    _running.pop(current_thread(), None)


def _predict_batch(model: RewardModel, work: Sequence[_Work]) -> None:
    """Predict for everything in one call, and set the futures."""
    clips = [clip for each, _ in work for clip in each]
    started = time.perf_counter()
    answer: Sequence[Prediction] | Exception
    try:
        answer = check_prediction_list(clips, model.predict(clips)) if clips else []
    except Exception as error:
        answer = error
    except BaseException as error:  # the thread goes on: later steps are owed, too
        answer = RewardModelError(f"The reward model raised {type(error).__name__}: {error}")
    seconds = time.perf_counter() - started
    for index, (each, future) in enumerate(work):
        part = answer
        if not isinstance(answer, Exception):
            part, answer = answer[: len(each)], answer[len(each) :]
        future.set_result(Response(part, 0.0 if index else seconds))


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


@dataclass
class _Arrived:
    """What has arrived of an episode and was not returned yet."""

    reward: float = 0.0
    predicted: bool = False
    step: int = -1  # the latest whose outcome has arrived


class BackgroundPredictions:
    """Advances a tracker without waiting for its predictions.

    `advance` returns at once, or after `max_wait`, with what has arrived: the reward of a step is
    the environment's part of that step, plus the model's part of all steps whose predictions have
    arrived since the step before. The end of an episode waits for everything that is owed, at most
    `timeout`, and then `on_error` decides; a reset in mid-episode drops what is owed to the episode
    that it gives up. An exception ends all episodes. A detected success ends the
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
        tracker.releaser = self._thread
        self._owed: list[_Owed] = []
        self._steps = [0] * tracker.num_envs
        self._arrived: dict[Episode, _Arrived] = {}

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
        try:
            own = self._advance(events)
        except BaseException:
            self._clear()  # the order of what is owed is lost
            raise
        return own

    def _advance(self, events: Sequence[Event]) -> list[Outcome]:
        settings = self.tracker.settings
        if len(self._owed) >= _MAX_OWED:
            self.full += 1
            self._settle(1, settings.timeout, wait=True)
        steps = []
        for event in events:
            step = 0 if isinstance(event, Start) else self._steps[event.env] + 1
            self._steps[event.env] = step
            steps.append(step)
        pending = self.tracker.observe(events)
        for event, episode in zip(events, pending.episodes, strict=True):
            if isinstance(event, Start):
                self._arrived[episode] = _Arrived()
        self._owed.append(_Owed(pending, steps, self._thread.submit(pending.clips)))
        steps_only = [event for event in events if isinstance(event, Step)]
        wait = not steps_only or any(step.terminated or step.truncated for step in steps_only)
        own: list[Outcome] | None = None
        if not wait:
            own = self._settle(len(self._owed), settings.max_wait, wait=False)
            # A verdict ends the episode now, and an end waits for everything.
            wait = settings.terminate_on_success and any(
                self.tracker.detected(event.env) for event in events
            )
        if wait:
            own = self._settle(len(self._owed), settings.timeout, wait=True) or own
        outcomes = self._outcomes(events, steps, pending, own)
        for episode in pending.replaced:
            self._arrived.pop(episode, None)  # its rewards can reach no step any more
        return outcomes

    def _settle(self, count: int, timeout: float, *, wait: bool) -> list[Outcome] | None:
        """Settle up to `count` of the oldest calls, see `take_responses`.

        Returns:
            The outcomes of the newest call, if it was settled.
        """
        futures = [owed.response for owed in self._owed[:count]]
        for response in take_responses(futures, timeout, wait):
            owed = self._owed.pop(0)
            newest = not self._owed
            outcomes = self.tracker.settle(owed.pending, *response, newest=newest)
            for event, episode, step, outcome in zip(
                owed.pending.events, owed.pending.episodes, owed.steps, outcomes, strict=True
            ):
                arrived = self._arrived.get(episode)
                if arrived is None:
                    continue  # of an episode that was given up
                arrived.step = step
                arrived.predicted |= outcome.info["robometer/predicted"]
                if isinstance(event, Step) and not newest:
                    arrived.reward += outcome.reward - self._env_part(event)
            if newest:
                return outcomes
        return None

    def _outcomes(
        self,
        events: Sequence[Event],
        steps: Sequence[int],
        pending: Pending,
        own: list[Outcome] | None,
    ) -> list[Outcome]:
        """Return the outcome of each event now: its own, if it has arrived, and late parts."""
        results = []
        for index, (event, episode) in enumerate(zip(events, pending.episodes, strict=True)):
            outcome = self._awaited(event) if own is None else own[index]
            arrived = self._arrived[episode]
            outcome.info["robometer/predicted"] |= arrived.predicted
            if isinstance(event, Step):
                if arrived.reward:
                    outcome = outcome._replace(reward=outcome.reward + arrived.reward)
                arrived.reward = 0.0
            arrived.predicted = False
            outcome.info["robometer/for_step"] = arrived.step
            late = -1 if arrived.step < 0 else steps[index] - arrived.step
            outcome.info["robometer/delay"] = late
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

    def _clear(self) -> None:
        """End all episodes; nothing is owed any more."""
        for owed in self._owed:
            self.tracker.discard(owed.pending)
        self._owed.clear()
        self._arrived.clear()
        self.tracker.close()

    def close(self) -> None:
        """End all episodes and the thread; nothing is owed any more."""
        self._clear()
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
