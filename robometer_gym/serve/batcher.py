"""Batcher: one worker thread drains the queue of requests into one call of the model.

Requests are predicted in the order in which they came, so the order within a stream is kept. All
methods are called in the event loop. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeVar

from robometer_gym.models.loading import LazyRewardModel
from robometer_gym.reward_model import (
    Clip,
    Prediction,
    ReleasesStreams,
    RewardModel,
    check_predictions,
)
from robometer_gym.serve.limits import Limits
from robometer_gym.serve.metrics import Metrics

__all__ = ["Batcher", "ExpiredError"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class ExpiredError(Exception):
    """The client gave up before its clips were predicted."""


@dataclass(eq=False)
class _Job:
    clips: list[Clip]
    expires: float
    result: asyncio.Future[list[Prediction]]


class Batcher:
    """Predicts for many requests at a time.

    Args:
        model: loaded by `start`, in the thread that predicts.
        limits: `batch` bounds the clips in one call of the model.
        metrics: counts batches.
    """

    def __init__(self, model: LazyRewardModel, limits: Limits, metrics: Metrics) -> None:
        self._model = model
        self._limits = limits
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reward-model")
        self._jobs: deque[_Job] = deque()
        self._releases: list[str] = []
        self._wake = asyncio.Event()
        self.queued_clips = 0
        """Clips that wait for their prediction or are being predicted."""
        self.loaded: RewardModel | None = None
        self.load_error: Exception | None = None

    async def run(self, on_load_error: Callable[[Exception], object]) -> None:
        """Load the model, then predict until cancelled."""
        try:
            self.loaded = await self.call(self._model.load)
        except Exception as error:
            self.load_error = error
            on_load_error(error)
            return
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._jobs or self._releases:
                await self._predict_next()

    def close(self) -> None:
        """Fail the requests that wait, and let the thread end after its current call."""
        for job in self._jobs:
            job.result.cancel()
        self._jobs.clear()
        self._thread.shutdown(wait=False)

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function in the thread of the model."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    async def predict(self, clips: list[Clip], timeout: float) -> list[Prediction]:
        """Predict clips together with those of other requests.

        Raises:
            ExpiredError: not predicted within `timeout` seconds.
            Exception: as raised by the model for these clips alone.
        """
        job = _Job(clips, monotonic() + timeout, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self.queued_clips += len(clips)
        self._wake.set()
        try:
            return await job.result
        finally:
            self.queued_clips -= len(clips)

    def release(self, streams: Sequence[str]) -> None:
        """Release streams after the requests that wait now."""
        self._releases.extend(streams)
        self._wake.set()

    async def _predict_next(self) -> None:
        batch: list[_Job] = []
        clips = 0
        while self._jobs and (not batch or clips + len(self._jobs[0].clips) <= self._limits.batch):
            job = self._jobs.popleft()
            if job.expires < monotonic():
                self._metrics.add("expired_clips", len(job.clips))
                job.result.set_exception(ExpiredError()) if not job.result.done() else None
            elif not job.result.done():  # else its request was cancelled
                batch.append(job)
                clips += len(job.clips)
        releases: list[str] = []
        if not self._jobs:
            releases, self._releases = self._releases, []
        if not batch and not releases:
            return
        started = monotonic()
        results = await self.call(self._work, [job.clips for job in batch], releases)
        if clips:
            self._metrics.add_batch(clips)
            self._metrics.add("clips", clips)
            self._metrics.add("predict_seconds", monotonic() - started)
        for job, result in zip(batch, results, strict=True):
            if job.result.done():
                continue
            if isinstance(result, Exception):
                job.result.set_exception(result)
            else:
                job.result.set_result(result)

    def _work(
        self, jobs: list[list[Clip]], releases: list[str]
    ) -> list[list[Prediction] | Exception]:
        """Predict and release, in the model's thread."""
        results: list[list[Prediction] | Exception] = []
        try:
            together = iter(self._predict([clip for clips in jobs for clip in clips]))
            results += [[next(together) for _ in clips] for clips in jobs]
        except BaseException as error:  # a panic of native code too: the server goes on
            if len(jobs) == 1:
                results.append(_storable(error))
            else:  # one request's clips must not fail the others
                self._metrics.add("failed_batches")
                results += [self._predict_alone(clips) for clips in jobs]
        if isinstance(self.loaded, ReleasesStreams):
            for stream in releases:
                try:
                    self.loaded.release(stream)
                except Exception:
                    logger.exception("The reward model could not release a stream.")
        return results

    def _predict_alone(self, clips: list[Clip]) -> list[Prediction] | Exception:
        try:
            return self._predict(clips)
        except BaseException as error:
            return _storable(error)

    def _predict(self, clips: list[Clip]) -> list[Prediction]:
        assert self.loaded is not None
        return check_predictions(clips, self.loaded.predict(clips)) if clips else []


def _storable(error: BaseException) -> Exception:
    """Return an exception that a Future takes: it refuses StopIteration, and asyncio the rest."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return RuntimeError(f"The reward model raised {error!r}.")
