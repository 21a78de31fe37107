"""OwedSteps: steps of a VecEnv whose rewards are computed later.

Knows nothing of buffers or of how a reward is computed: the EpisodeTracker settles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robometer_gym.reward_model import check_predictions
from robometer_gym.tracking.background import PredictionThread, take_responses
from robometer_gym.tracking.events import Event, Response
from robometer_gym.tracking.tracker import EpisodeTracker, Pending

__all__ = ["OwedStep", "OwedSteps"]


@dataclass
class OwedStep:
    """A call of `step` or `reset` whose outcomes are not settled yet.

    Attributes:
        pending: what the tracker has observed.
        is_step: whether rewards are owed, or only the baselines of a reset.
        response: the prediction, where it is made in the background.
        row: of the buffer that the rewards belong to; None until the buffer names it.
        rewards: (N,), once settled.
    """

    pending: Pending
    is_step: bool
    response: Future[Response] | None = None
    row: int | None = None
    rewards: NDArray[np.float64] | None = None


class OwedSteps:
    """The steps of N environments that await their rewards, oldest first.

    Args:
        tracker: of the reward wrapper; with `background` in its settings, predictions are made in
            a thread as steps come in, and else when they are settled, in one batch.
    """

    def __init__(self, tracker: EpisodeTracker) -> None:
        self.tracker = tracker
        self.entries: list[OwedStep] = []
        self.steps = 0
        """How many of `entries` are steps."""
        self.connected = False
        """Whether a `LateRewards` settles them."""
        self._thread: PredictionThread | None = None
        if tracker.settings.background:
            self._thread = PredictionThread(tracker.reward_model)
            tracker.releaser = self._thread  # a release does not wait for a running prediction

    def append(self, events: list[Event], *, is_step: bool) -> None:
        """Observe the events of a `step`, or of a `reset`; their outcomes come later."""
        pending = self.tracker.observe(events)
        response = None if self._thread is None else self._thread.submit(pending.clips)
        self.entries.append(OwedStep(pending, is_step, response))
        self.steps += is_step

    def settle(self, *, wait: bool = True) -> Iterator[OwedStep]:
        """Settle the steps that are owed, oldest first; see `LateRewards.settle`.

        A step is owed until the caller takes the next one: where the model fails or the loop is
        interrupted, a later call goes on.

        Args:
            wait: for all of them; else only those whose predictions have arrived.
        """
        for response in self._responses(wait):
            owed = self.entries[0]
            if owed.rewards is None:
                outcomes = self.tracker.settle(owed.pending, *response)
                rewards = [outcome.reward for outcome in outcomes[: self.tracker.num_envs]]
                owed.rewards = np.array(rewards)
            if owed.is_step:
                yield owed
            del self.entries[0]
            self.steps -= owed.is_step

    def _responses(self, wait: bool) -> list[Response]:
        """Return the responses for the oldest steps that are owed."""
        pendings = [owed.pending for owed in self.entries]
        if self._thread is not None:
            futures = [owed.response for owed in self.entries]
            timeout = self.tracker.settings.timeout if wait else 0.0
            responses = take_responses(futures, timeout, wait)
            if self.tracker.settings.on_error == "raise":
                self._check_responses(responses)
            return responses
        if not wait or not pendings:
            return []
        clips = [clip for pending in pendings for clip in pending.clips]
        answer, seconds = self.tracker.predict(clips) if clips else ([], 0.0)
        if self.tracker.settings.on_error == "raise":
            check_predictions(clips, answer)  # before any of these steps is settled
        responses = []
        for pending in pendings:
            count = len(pending.clips)
            part = answer
            if not isinstance(answer, Exception):
                part, answer = answer[:count], answer[count:]
            responses.append(Response(part, seconds if count else 0.0))
            seconds = 0.0 if count else seconds  # listeners count each call once
        return responses

    def _check_responses(self, responses: Sequence[Response]) -> None:
        """Raise the first failure, and predict for that step again: it is still owed."""
        for owed, response in zip(self.entries, responses, strict=False):
            try:
                if isinstance(response.answer, Exception):
                    raise response.answer
                check_predictions(owed.pending.clips, response.answer)
            except Exception:
                assert self._thread is not None, "it has predicted"
                owed.response = self._thread.submit(owed.pending.clips)
                raise

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.close()
