"""The engine: predicts clips, and caches the work that it has done for their streams.

For each clip it looks up the cached frames (`kv_slots`), fetches the features of the others
(`frame_features`), assembles their tokens (`prompts`) and runs them, many clips at once
(`executor`). Knows nothing of checkpoints, files or environments.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any

import numpy as np
import torch

from robometer_gym.models.robometer.engine.batch_layout import Row
from robometer_gym.models.robometer.engine.executor import Executor
from robometer_gym.models.robometer.engine.frame_features import FrameFeatures, FrameRequest
from robometer_gym.models.robometer.engine.fused_weights import WeightVersions
from robometer_gym.models.robometer.engine.kv_slots import (
    FrameKey,
    FramePrediction,
    KVSlot,
    KVSlots,
)
from robometer_gym.models.robometer.engine.prompt_segments import Prompts
from robometer_gym.models.robometer.network.modeling import RobometerModel
from robometer_gym.models.robometer.network.processor import RobometerProcessor
from robometer_gym.models.robometer.network.vision import Grid
from robometer_gym.reward_model import Clip, Prediction, RewardModelError

__all__ = ["Engine"]

logger = logging.getLogger(__name__)

# New tokens in one pass. Larger batches gain no speed on a GPU and could exhaust its memory.
_MAX_TOKENS = 16384

# Slots for clips that are not cached: they need room for their keys and values as well.
_SPARE_SLOTS = 8

_LENGTH_STEP = 128  # tokens: slots grow in steps, because growing loses their content
_CPU_BUDGET = 2 << 30
# Maximum shares of the budget for keys and values, and for those of prompts. Frames get the rest.
_KV_SHARE, _PROMPT_SHARE = 0.625, 0.125


@dataclass(frozen=True, eq=False)
class _Job:
    """A clip that has a slot and is not computed yet."""

    index: int  # of its prediction
    clip: Clip
    slot: KVSlot
    keys: list[FrameKey]
    grid: Grid

    @property
    def new(self) -> range:
        """Indices of the frames that are not cached."""
        return range(len(self.slot.frames), len(self.keys))

    def requests(self) -> list[FrameRequest]:
        stream = self.clip.stream if _is_cacheable(self.clip) else None
        return [FrameRequest(stream, self.keys[i], self.clip.images[i]) for i in self.new]


class Engine:
    """Predicts clips as `RobometerModel` does, but computes only new frames.

    A stream names an episode and `(stream, step)` a frame of it, see `Clip`. A clip that ends
    before the last cached frame of its stream begins a new episode.

    Args:
        model: the network, with weights, on its device.
        processor: made for it.
        max_frames: usual maximum length of a clip: slots are large enough for it.
        max_streams: maximum number of streams whose keys and values are cached. Of others only
            frame features are: they get the same numbers, more slowly.

    Attributes:
        model: the network.

    Example:
        >>> from robometer_gym.models.robometer.demo import byte_tokenizer, demo_config
        >>> from robometer_gym.models.robometer.demo import random_model
        >>> from robometer_gym.models.robometer.network.images import ImageSettings
        >>> processor = RobometerProcessor(byte_tokenizer(), ImageSettings())
        >>> engine = Engine(random_model(demo_config(), seed=0), processor)
        >>> frames = [np.zeros((64, 64, 3), np.uint8)] * 2
        >>> first = engine.predict([Clip(frames[:1], "open it", stream="episode", steps=[0])])
        >>> both = engine.predict([Clip(frames, "open it", stream="episode", steps=[0, 5])])
        >>> bool(both[0].progress[0] == first[0].progress[0]), engine.info()["frames_run"]
        (True, 2)
    """

    def __init__(
        self,
        model: RobometerModel,
        processor: RobometerProcessor,
        *,
        max_frames: int = 8,
        max_streams: int = 64,
    ) -> None:
        self.model, self._processor = model, processor
        self._max_frames, self._max_streams = max_frames, max_streams
        self._prompts = Prompts(processor)
        self._jobs: list[_Job]  # clips to be run together
        self._pending_streams: set[Hashable]
        self._pending_tokens: int  # of images
        # Threads may share a model. Re-entrant, because Ctrl-C may come just before it is released.
        self._lock = RLock()
        self._counts = {"frames_run": 0, "frames_kept": 0, "evictions": 0, "forgotten": 0}
        self._device: torch.device | None = None
        self._budget = 0
        self._interrupted = False
        self._reset()

    @torch.inference_mode()
    def predict(self, clips: Sequence[Clip]) -> list[Prediction]:
        """Score clips; see `RobometerRewardModel.predict`.

        Raises:
            RewardModelError: no memory, even with half the budget and empty caches.
        """
        if not clips:
            return []
        with self._exclusive():
            if self.model.trainings != self._trainings or self._weight_versions.changed():
                self._counts["forgotten"] += 1
                self._reset()
            try:
                return self._predict(clips)
            except torch.cuda.OutOfMemoryError:
                logger.warning("Out of memory on %s: caches are emptied.", self._executor.device)
                self._reset(self._budget // 2)  # other users of the card need more of it now
            try:
                return self._predict(clips)
            except torch.cuda.OutOfMemoryError as error:
                raise RewardModelError(
                    f"{self._executor.device} has no memory for a prediction, even with empty "
                    f"caches: {error} Give the model fewer clips at once or smaller frames, load "
                    "it with quantization='nf4', or give the rest of the training less of the card."
                ) from error

    def _predict(self, clips: Sequence[Clip]) -> list[Prediction]:
        self._fit_slots(clips)
        self._slots.begin_call()
        predictions: list[list[FramePrediction]] = [[] for _ in clips]
        try:
            for index, clip in enumerate(clips):
                self._plan(index, clip, predictions)
            self._run(predictions)
        finally:
            self._return_slots()  # of pending jobs, after an error
        values = [np.array(each, np.float32) for each in predictions]
        return [Prediction(each[:, 0].copy(), each[:, 1].copy()) for each in values]

    def release(self, stream: Hashable) -> None:
        """Forget a stream: its episode has ended."""
        with self._exclusive():
            self._release(stream)

    def _release(self, stream: Hashable) -> None:
        self._slots.release(stream)
        self._features.release(stream)

    def info(self) -> dict[str, Any]:
        """Return the state of the caches, their sizes and how often they were used."""
        features = self._features
        return {
            "device": str(self._executor.device),
            "dtype": str(self._executor.dtype).removeprefix("torch."),
            "quantization": self.model.quantization,
            **self._executor.info,
            "streams": self._slots.streams,
            "max_streams": min(self._max_streams, self._max_slots - 1),
            "slots": len(self._slots),
            "slot_tokens": self._executor.length,
            "cache_budget_bytes": self._budget,
            "cache_bytes": self._executor.bytes + features.bytes,
            "frames_held": len(features),
            "frames_encoded": features.encoded,
            "frames_reused": features.reused,
            "frames_evicted": features.evictions,
            **self._counts,
            "evictions": self._counts["evictions"] + self._slots.evictions,
        }

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Serialize calls; rebuild the caches after an interrupted one.

        A Ctrl-C may come between any two lines of the bookkeeping and leave one stream's frames
        under another's name. An `Exception` leaves the bookkeeping right.
        """
        with self._lock:
            if self._interrupted:
                self._reset()
            self._interrupted = True
            try:
                yield
            except Exception:
                self._interrupted = False
                raise
            self._interrupted = False

    @torch.inference_mode()  # also if `info` comes first: the kind of tensors must not differ
    def _reset(self, budget: int | None = None) -> None:
        """Take the weights as they are, and empty all caches."""
        self._jobs, self._pending_streams, self._pending_tokens = [], set(), 0
        self._executor = Executor(self.model, self._processor.images)
        self._slots, self._max_slots = KVSlots(0, 0), self._max_streams + _SPARE_SLOTS
        if self._executor.device != self._device:
            self._device, budget = self._executor.device, _budget(self._executor.device)
        self._budget = self._budget if budget is None else budget
        self._executor.prompt_budget = int(self._budget * _PROMPT_SHARE)
        self._features = FrameFeatures(self._executor.encode, self._budget)
        self._weight_versions = WeightVersions(self.model)
        self._trainings = self.model.trainings

    def _fit_slots(self, clips: Sequence[Clip]) -> None:
        """Make the slots as long and as many as these clips need, within the budget."""
        length = max((self._tokens_needed(clip) for clip in clips), default=0)
        streams = {clip.stream for clip in clips if _is_cacheable(clip)}
        streams = {stream for stream in streams if stream not in self._slots}
        named = self._slots.streams + len(streams)
        kept = min(named, self._max_streams)
        unkept = named - kept + sum(not _is_cacheable(clip) for clip in clips)
        count = kept + max(1, min(unkept, _SPARE_SLOTS))
        length = -(-length // _LENGTH_STEP) * _LENGTH_STEP
        # A long video leaves few long slots: shorten them when many short ones are needed.
        shorten = count > len(self._slots) and 2 * length <= self._executor.length
        few = min(count, self._max_slots) > len(self._slots)
        if shorten or few or length > self._executor.length:
            longest = length if shorten else max(length, self._executor.length)
            self._allocate(max(count, len(self._slots)), longest)

    def _allocate(self, count: int, length: int) -> None:
        affordable = int(self._budget * _KV_SHARE) // self._executor.slot_bytes(length)
        self._max_slots = max(2, min(self._max_streams + _SPARE_SLOTS, affordable))
        count = min(_round_up(count), self._max_slots)
        self._counts["evictions"] += self._slots.evictions
        rest = self._budget - self._executor.prompt_budget
        self._features.limit(rest - count * self._executor.slot_bytes(length))
        self._slots = KVSlots(0, 0)  # in case the allocation fails
        self._executor.allocate(count, length)
        if self._executor.slots < count:
            self._max_slots = self._executor.slots
        self._slots = KVSlots(self._executor.slots, self._max_streams)

    def _tokens_needed(self, clip: Clip) -> int:
        frames = max(len(clip), self._max_frames)
        return self._prompts.extent(clip.task, self._grid(clip), frames)[0]

    def _grid(self, clip: Clip) -> Grid:
        images = self._processor.images
        return images.grid(*images.input_size(*clip.images[0].shape[:2]))

    def _plan(self, index: int, clip: Clip, predictions: list[list[FramePrediction]]) -> None:
        """Lease a slot for a clip, and queue it to be run with others."""
        stream = clip.stream if _is_cacheable(clip) else None
        if stream is not None and stream in self._pending_streams:
            self._run(predictions)  # one slot cannot hold two windows at a time
        height, width, _ = clip.images[0].shape
        keys = [FrameKey(step, height, width) for step in clip.steps or range(len(clip))]
        if stream is not None and self._ends_before_cached(stream, keys[-1].step):
            self._release(stream)
        slot = self._slots.lease(stream, clip.task, keys)
        if slot is None:
            self._run(predictions)
            slot = self._slots.lease(stream, clip.task, keys)
        assert slot is not None, "every slot is leased, though no job is pending"
        job = _Job(index, clip, slot, keys, self._grid(clip))
        self._counts["frames_kept"] += len(slot.frames)
        self._counts["frames_run"] += len(job.new)
        self._jobs.append(job)
        self._pending_streams.add(stream)
        self._pending_tokens += len(job.new) * self._processor.images.tokens(job.grid)
        if self._pending_tokens > _MAX_TOKENS:
            self._run(predictions)

    def _ends_before_cached(self, stream: Hashable, step: int) -> bool:
        # They differ after a failed prediction: frames cut from the slot still have features.
        latest = self._slots.latest_step(stream), self._features.latest_step(stream)
        return any(each is not None and step < each for each in latest)

    def _run(self, predictions: list[list[FramePrediction]]) -> None:
        """Run all pending jobs, and store their predictions."""
        due = [job for job in self._jobs if job.new]
        requests = [request for job in due for request in job.requests()]
        features = iter(self._features.fetch(requests))
        fresh = [job for job in due if job.slot.task is None]
        tasks = [(job.slot.number, job.clip.task) for job in fresh]
        self._executor.prefill_prompts(
            [(slot, task, self._prompts.beginning(task)) for slot, task in tasks]
        )
        for job in fresh:
            job.slot.task = job.clip.task
        rows = [self._row(job, [next(features) for _ in job.new]) for job in due]
        for job, computed in zip(due, self._executor.run(rows) if rows else (), strict=True):
            job.slot.frames += [job.keys[number] for number in job.new]
            job.slot.predictions += computed
        for job in self._jobs:
            predictions[job.index] = job.slot.predictions.copy()
        self._return_slots()

    def _return_slots(self) -> None:
        for job in self._jobs:
            self._slots.return_slot(job.slot)
        self._jobs.clear()
        self._pending_streams.clear()
        self._pending_tokens = 0

    def _row(self, job: _Job, features: list[torch.Tensor]) -> Row:
        segments = [self._prompts.block(number + 1, job.grid) for number in job.new]
        extent = self._prompts.extent(job.clip.task, job.grid, job.new.start)
        return Row(job.slot.number, segments, *extent, features)


def _is_cacheable(clip: Clip) -> bool:
    return clip.stream is not None and clip.steps is not None


def _round_up(slots: int) -> int:
    """Return a number of slots that lasts for a while: 2, 4, 8, 16, 24, ..."""
    return -(-slots // 8) * 8 if slots > 8 else 1 << (slots - 1).bit_length()


def _budget(device: torch.device) -> int:
    """Return the number of bytes of a device that caches may fill."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return _CPU_BUDGET
