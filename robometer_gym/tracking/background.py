"""BackgroundPredictions: predictions in a thread, while the environments go on.

Rewards arrive some steps late, complete and in order. The tracker is used by the caller's thread
alone; the other thread only predicts. Knows nothing of environments.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

from robometer_gym.reward_model import Clip, Prediction, RewardModel, check_prediction_list
from robometer_gym.tracking.events import Event, Outcome, Start, Step
from robometer_gym.tracking.tracker import EpisodeTracker, Pending

__all__ = ["BackgroundPredictions", "PredictionThread"]

logger = logging.getLogger(__name__)

_MAX_OWED = 64  # calls; at 10 Hz more than six seconds

Answer = Sequence[Prediction] | Exception


class _Response(NamedTuple):
    answer: Answer
    seconds: float


class PredictionThread:
    """Predicts in a daemon thread, everything that is waiting in one batch.

    The thread starts at the first call, and again in a process that was forked or unpickled.

    Args:
        model: predicts, in the other thread only.
    """

    def __init__(self, model: RewardModel) -> None:
        self._model = model
        self._queue: SimpleQueue[tuple[list[Clip], Future[_Response]] | None] | None = None
        self._process = 0

    def submit(self, clips: list[Clip]) -> Future[_Response]:
        """Return the future response for `clips`; without clips it is there at once."""
        future: Future[_Response] = Future()
        if not clips:
            future.set_result(_Response([], 0.0))
            return future
        if self._queue is None or self._process != os.getpid():
            self._queue, self._process = SimpleQueue(), os.getpid()
            # A daemon, or a model that never returns would keep the process from ending.
            Thread(target=_predict_all, args=(self._model, self._queue), daemon=True).start()
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
    model: RewardModel, queue: SimpleQueue[tuple[list[Clip], Future[_Response]] | None]
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
        answer: Answer
        try:
            answer = check_prediction_list(clips, model.predict(clips)) if clips else []
        except Exception as error:
            answer = error
        seconds = time.perf_counter() - started
        for index, (each, future) in enumerate(work):
            part = answer
            if not isinstance(answer, Exception):
                part, answer = answer[: len(each)], answer[len(each) :]
            future.set_result(_Response(part, 0.0 if index else seconds))
        if batch[-1] is None:
            return


class _Owed(NamedTuple):
    """Events whose outcomes are owed."""

    pending: Pending
    steps: dict[int, int]  # of each environment, which step of its episode it was
    response: Future[_Response]


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
        self._owed: deque[_Owed] = deque()
        self._steps = [0] * tracker.num_envs
        self._settled_steps = [-1] * tracker.num_envs

    def advance(self, events: Sequence[Event], *, wait: bool = False) -> list[Outcome]:
        """Observe events, and return what is known of them by now.

        Args:
            events: see `EpisodeTracker.observe`.
            wait: for the predictions of these events, as at a reset.

        Returns:
            The outcome of each event, as far as it has arrived.

        Raises:
            TimeoutError: something owed at an episode's end did not arrive within `timeout`, and
                `on_error` is "raise".
            Exception: see `EpisodeTracker.settle`.
        """
        settings = self.tracker.settings
        if len(self._owed) >= _MAX_OWED:
            self.full += 1
            self._wait(self._owed[0], settings.timeout)
        for event in events:
            self._steps[event.env] = 0 if isinstance(event, Start) else self._steps[event.env] + 1
            if isinstance(event, Start):
                self._settled_steps[event.env] = -1
        steps = {event.env: self._steps[event.env] for event in events}
        pending = self.tracker.observe(events)
        self._owed.append(_Owed(pending, steps, self._thread.submit(pending.clips)))
        ends = any(isinstance(e, Step) and (e.terminated or e.truncated) for e in events)
        if wait or ends:
            arrived = self._settle(everything=True)
        else:
            self._wait(self._owed[-1], settings.max_wait)
            arrived = self._settle(everything=False)
            if any(self.tracker.detected(env) for env in steps) and settings.terminate_on_success:
                arrived += self._settle(everything=True)  # the verdict ends the episode now
        return self._outcomes(events, pending, arrived)

    def _wait(self, owed: _Owed, seconds: float) -> None:
        try:
            owed.response.result(seconds)
        except FutureTimeout:
            pass

    def _settle(self, *, everything: bool) -> list[tuple[Pending, list[Outcome]]]:
        """Settle what has arrived, in order; or everything, within `timeout`."""
        deadline = time.monotonic() + self.tracker.settings.timeout
        arrived = []
        while self._owed:
            owed = self._owed[0]
            if everything:
                self._wait(owed, max(0.0, deadline - time.monotonic()))
            if owed.response.done():
                answer, seconds = owed.response.result()
            elif everything:
                timeout = self.tracker.settings.timeout
                answer, seconds = TimeoutError(f"No prediction came within {timeout} s."), 0.0
            else:
                break
            self._owed.popleft()
            newest = not self._owed
            arrived.append(
                (
                    owed.pending,
                    self.tracker.settle(owed.pending, answer, seconds, newest=newest),
                )
            )
            for env, step in owed.steps.items():
                self._settled_steps[env] = step
        return arrived

    def _outcomes(
        self,
        events: Sequence[Event],
        pending: Pending,
        arrived: Sequence[tuple[Pending, list[Outcome]]],
    ) -> list[Outcome]:
        """Return the outcome of each event now: its own, if it has arrived, and late parts."""
        late: dict[int, float] = {}
        latest: dict[int, dict[str, Any]] = {}
        own: list[Outcome] | None = None
        for each, outcomes in arrived:
            if each is pending:
                own = outcomes
                continue
            for event, outcome in zip(each.events, outcomes, strict=True):
                latest[event.env] = outcome.info
                if isinstance(event, Step):
                    part = outcome.reward - self._env_part(event)
                    late[event.env] = late.get(event.env, 0.0) + part
        results = []
        for index, event in enumerate(events):
            if own is not None:
                reward, terminated, info = own[index]
            else:
                known = latest.get(event.env, {})
                reward, terminated, info = 0.0, False, self.tracker.info(event.env)
                info["robometer/predicted"] = known.get("robometer/predicted", False)
                if isinstance(event, Step):
                    reward, info["env_reward"] = self._env_part(event), event.reward
            if isinstance(event, Step):
                reward += late.pop(event.env, 0.0)
            settled = self._settled_steps[event.env]
            info["robometer/for_step"] = settled
            info["robometer/delay"] = self._steps[event.env] - settled if settled >= 0 else -1
            results.append(Outcome(reward, terminated, info))
        return results

    def _env_part(self, step: Step) -> float:
        return step.reward if self.tracker.settings.mode == "shape" else 0.0

    def clear(self) -> None:
        """Give up everything that is owed: its episodes were ended from outside."""
        while self._owed:
            self.tracker.discard(self._owed.popleft().pending)

    def close(self) -> None:
        """Give up everything that is owed, and end the thread."""
        self.clear()
        self._thread.close()

    def __getstate__(self) -> dict[str, Any]:
        """Wait for what is owed: the other process cannot."""
        for owed in self._owed:
            self._wait(owed, self.tracker.settings.timeout)
        done = [
            owed._replace(response=_done(owed.response)) for owed in self._owed
        ]
        return {**self.__dict__, "_owed": deque(done)}
