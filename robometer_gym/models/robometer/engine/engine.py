"""The engine: answers clips, and keeps what it has computed for their streams.

Of a clip it asks the bookkeeping how much is there already (`slots`), fetches the features of the
other frames (`features`), puts their tokens together (`prompts`) and runs them, many clips at
once (`executor`). Knows nothing of checkpoints, files or environments.
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

from robometer_gym.models.robometer.engine.executor import Executor
from robometer_gym.models.robometer.engine.features import FrameFeatures, Wanted
from robometer_gym.models.robometer.engine.layout import Row
from robometer_gym.models.robometer.engine.prompts import Prompts
from robometer_gym.models.robometer.engine.slots import Answer, FrameKey, Slot, Slots
from robometer_gym.models.robometer.engine.text import why_not_decoded
from robometer_gym.models.robometer.engine.weights import Watch
from robometer_gym.models.robometer.network.modeling import RobometerModel
from robometer_gym.models.robometer.network.processor import RobometerProcessor
from robometer_gym.models.robometer.network.vision import Grid
from robometer_gym.reward_model import Clip, Prediction, RewardModelError

__all__ = ["Engine", "why_not"]

logger = logging.getLogger(__name__)

# New tokens in one pass. More gain no speed on a GPU and could exhaust its memory.
_MOST_TOKENS = 16384

# Clips at once for which nothing is kept: they need room for their keys and values as well.
_SPARE_SLOTS = 8

_LENGTH_STEP = 128  # tokens: slots grow in steps, because growing forgets what is in them
_CPU_BUDGET = 2 << 30
# Of the budget, at most, for keys and values, and for those of questions. Frames have the rest.
_KEYS_SHARE, _QUESTIONS_SHARE = 0.625, 0.125


@dataclass(frozen=True, eq=False)
class _Job:
    """A clip that has a slot and waits for its turn."""

    index: int  # of its answer
    clip: Clip
    slot: Slot
    keys: list[FrameKey]
    grid: Grid

    @property
    def new(self) -> range:
        """Which of its frames are to be run."""
        return range(len(self.slot.frames), len(self.keys))


class Engine:
    """Answers clips as `RobometerModel` does, computing only what is new.

    A stream names an episode and `(stream, step)` a frame of it, see `Clip`. A clip that ends
    before what is known of its stream begins a new episode.

    Args:
        model: the network, with weights, on its device.
        processor: made for it.
        max_frames: how long clips usually become: slots are made large enough for them.
        max_streams: for how many streams at most keys and values are kept. Of others only frame
            features are: they get the same numbers, more slowly.

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
        self._jobs: list[_Job]  # clips that wait to be run together
        self._waiting_streams: set[Hashable]
        self._waiting: int  # their tokens, of pictures
        # Threads may share a model. Re-entrant, because Ctrl-C may come just before it is released.
        self._lock = RLock()
        self._counts = {"frames_run": 0, "frames_kept": 0, "evictions": 0, "forgotten": 0}
        self._device: torch.device | None = None
        self._budget = 0
        self._interrupted = False
        self._prepare()

    @torch.inference_mode()
    def predict(self, clips: Sequence[Clip]) -> list[Prediction]:
        """Score clips; see `RobometerRewardModel.predict`.

        Raises:
            RewardModelError: no memory, even with half the budget and empty caches.
        """
        if not clips:
            return []
        with self._undisturbed():
            if self._weights_changed():
                self._counts["forgotten"] += 1
                self._prepare()
            try:
                return self._predict(clips)
            except torch.cuda.OutOfMemoryError:
                logger.warning("Out of memory on %s: caches are emptied.", self._executor.device)
                self._prepare(self._budget // 2)  # whoever else uses the card needs more of it now
            return self._predict_with_less(clips)

    def _predict_with_less(self, clips: Sequence[Clip]) -> list[Prediction]:
        try:
            return self._predict(clips)
        except torch.cuda.OutOfMemoryError as error:
            raise RewardModelError(
                f"{self._executor.device} has no memory for a prediction, even with empty caches: "
                f"{error} Give the model fewer clips at once or smaller frames, load it with "
                "quantization='nf4', or give the rest of the training less of the card."
            ) from error

    def _predict(self, clips: Sequence[Clip]) -> list[Prediction]:
        self._make_room(clips)
        self._slots.begin_call()
        answers: list[list[Answer]] = [[] for _ in clips]
        try:
            for index, clip in enumerate(clips):
                self._plan(index, clip, answers)
            self._run(answers)
        finally:
            self._give_back()  # if something was raised, what waited
        return [_prediction(answer) for answer in answers]

    def release(self, stream: Hashable) -> None:
        """Forget a stream: its episode has ended."""
        with self._undisturbed():
            self._release(stream)

    def _release(self, stream: Hashable) -> None:
        self._slots.release(stream)
        self._features.release(stream)

    def info(self) -> dict[str, Any]:
        """Return what is kept, in which room, and how often it was of use."""
        features = self._features
        return {
            "device": str(self._executor.device),
            "dtype": str(self._executor.dtype).removeprefix("torch."),
            "quantization": self.model.quantization,
            **self._executor.path,
            "streams": self._slots.streams,
            "max_streams": min(self._max_streams, self._most_slots - 1),
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
    def _undisturbed(self) -> Iterator[None]:
        """Let one thread in at a time, and begin anew after a Ctrl-C.

        That may strike between any two lines of the bookkeeping, and what is kept could then be
        another stream's. What is raised on purpose leaves the bookkeeping right.
        """
        with self._lock:
            if self._interrupted:
                self._prepare()
            self._interrupted = True
            try:
                yield
            except Exception:
                self._interrupted = False
                raise
            self._interrupted = False

    @torch.inference_mode()  # who asks for `info` first must not make other tensors
    def _prepare(self, budget: int | None = None) -> None:
        """Begin with the weights as they are, and nothing cached."""
        self._jobs, self._waiting_streams, self._waiting = [], set(), 0
        self._executor = Executor(self.model, self._processor.images)
        self._slots, self._most_slots = Slots(0, 0), self._max_streams + _SPARE_SLOTS
        if self._executor.device != self._device:
            self._device, budget = self._executor.device, _budget(self._executor.device)
        self._budget = self._budget if budget is None else budget
        self._executor.questions_budget = int(self._budget * _QUESTIONS_SHARE)
        self._features = FrameFeatures(self._executor.encode, self._budget)
        self._watch = Watch(self.model)
        self._trained = self.model.trainings

    def _weights_changed(self) -> bool:
        return self.model.trainings != self._trained or self._watch.changed()

    def _make_room(self, clips: Sequence[Clip]) -> None:
        """Make the slots as long and as many as these clips need, and the budget allows."""
        length = max((self._tokens_needed(clip) for clip in clips), default=0)
        streams = {clip.stream for clip in clips if _is_named(clip)}
        streams = {stream for stream in streams if stream not in self._slots}
        named = self._slots.streams + len(streams)
        kept = min(named, self._max_streams)
        unkept = named - kept + sum(not _is_named(clip) for clip in clips)
        count = kept + max(1, min(unkept, _SPARE_SLOTS))
        length = -(-length // _LENGTH_STEP) * _LENGTH_STEP
        # One long video makes few long slots; they are not to stay when many short ones are needed.
        shorten = count > len(self._slots) and 2 * length <= self._executor.length
        few = min(count, self._most_slots) > len(self._slots)
        if shorten or few or length > self._executor.length:
            longest = length if shorten else max(length, self._executor.length)
            self._allocate(max(count, len(self._slots)), longest)

    def _allocate(self, count: int, length: int) -> None:
        affordable = int(self._budget * _KEYS_SHARE) // self._executor.slot_bytes(length)
        self._most_slots = max(2, min(self._max_streams + _SPARE_SLOTS, affordable))
        count = min(_rounded_up(count), self._most_slots)
        self._counts["evictions"] += self._slots.evictions
        rest = self._budget - self._executor.questions_budget
        self._features.limit(rest - count * self._executor.slot_bytes(length))
        self._slots = Slots(0, 0)  # should there be no memory
        self._executor.allocate(count, length)
        if self._executor.slots < count:
            self._most_slots = self._executor.slots
        self._slots = Slots(self._executor.slots, self._max_streams)

    def _tokens_needed(self, clip: Clip) -> int:
        frames = max(len(clip), self._max_frames)
        return self._prompts.extent(clip.task, self._grid(clip), frames)[0]

    def _grid(self, clip: Clip) -> Grid:
        images = self._processor.images
        return images.grid(*images.seen_size(*clip.images[0].shape[:2]))

    def _plan(self, index: int, clip: Clip, answers: list[list[Answer]]) -> None:
        """Give a clip a slot, and let it wait for others unless it can be answered at once."""
        stream = clip.stream if _is_named(clip) else None
        if stream is not None and stream in self._waiting_streams:
            self._run(answers)  # one slot cannot hold two windows at a time
        height, width, _ = clip.images[0].shape
        keys = [FrameKey(step, height, width) for step in clip.steps or range(len(clip))]
        if stream is not None and self._ends_before(stream, keys[-1].step):
            self._release(stream)
        slot = self._slots.lease(stream, clip.task, keys)
        if slot is None:
            self._run(answers)
            slot = self._slots.lease(stream, clip.task, keys)
        assert slot is not None, "every slot is leased, though no clip waits"
        job = _Job(index, clip, slot, keys, self._grid(clip))
        self._counts["frames_kept"] += len(slot.frames)
        self._counts["frames_run"] += len(job.new)
        self._jobs.append(job)
        self._waiting_streams.add(stream)
        self._waiting += len(job.new) * self._processor.images.tokens(job.grid)
        if self._waiting > _MOST_TOKENS:
            self._run(answers)

    def _ends_before(self, stream: Hashable, step: int) -> bool:
        # They differ after a query that failed: what it cut from the slot has its features still.
        held = self._slots.newest(stream), self._features.newest(stream)
        return any(newest is not None and step < newest for newest in held)

    def _run(self, answers: list[list[Answer]]) -> None:
        """Answer all clips that wait."""
        due = [job for job in self._jobs if job.new]
        features = iter(self._features.fetch([one for job in due for one in _wanted(job)]))
        fresh = [job for job in due if job.slot.task is None]
        tasks = [(job.slot.number, job.clip.task) for job in fresh]
        self._executor.ask([(*each, self._prompts.question(each[1])) for each in tasks])
        for job in fresh:
            job.slot.task = job.clip.task
        rows = [self._row(job, [next(features) for _ in job.new]) for job in due]
        for job, said in zip(due, self._executor.run(rows) if rows else (), strict=True):
            job.slot.frames += [job.keys[number] for number in job.new]
            job.slot.answers += said
        for job in self._jobs:
            answers[job.index] = job.slot.answers.copy()
        self._give_back()

    def _give_back(self) -> None:
        for job in self._jobs:
            self._slots.give_back(job.slot)
        self._jobs.clear()
        self._waiting_streams.clear()
        self._waiting = 0

    def _row(self, job: _Job, features: list[torch.Tensor]) -> Row:
        segments = [self._prompts.block(number + 1, job.grid) for number in job.new]
        extent = self._prompts.extent(job.clip.task, job.grid, job.new.start)
        return Row(job.slot.number, segments, *extent, features)


def why_not(model: RobometerModel) -> str:
    """Return what keeps the engine from running a network, or nothing if it can."""
    return why_not_decoded(model.backbone.language_model)


def _is_named(clip: Clip) -> bool:
    return clip.stream is not None and clip.steps is not None


def _wanted(job: _Job) -> list[Wanted]:
    stream = job.clip.stream if _is_named(job.clip) else None
    return [Wanted(stream, job.keys[number], job.clip.images[number]) for number in job.new]


def _prediction(answers: Sequence[Answer]) -> Prediction:
    values = np.array(answers, np.float32)
    return Prediction(values[:, 0].copy(), values[:, 1].copy())


def _rounded_up(slots: int) -> int:
    """Return a number of slots that is not outgrown soon: 2, 4, 8, 16, 24, ..."""
    return -(-slots // 8) * 8 if slots > 8 else 1 << (slots - 1).bit_length()


def _budget(device: torch.device) -> int:
    """Return how many bytes of a device may be filled with what could be computed again."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return _CPU_BUDGET
