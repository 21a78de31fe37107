"""Runs the network for the engine: pictures to features, and new tokens to answers.

Owns the tensors: the cache of keys and values, and those of each task's question. Metadata is
computed from numbers on the host and uploaded in one piece; nothing is read back before the
answers. Knows nothing of clips or streams.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robometer_gym.models.robometer.engine.bicubic import pillows_order, resize
from robometer_gym.models.robometer.engine.layout import Row, lay_out, to_device
from robometer_gym.models.robometer.engine.prompts import Segment
from robometer_gym.models.robometer.engine.runner import new_runner
from robometer_gym.models.robometer.engine.slots import Answer
from robometer_gym.models.robometer.network.images import ImageSettings
from robometer_gym.models.robometer.network.modeling import RobometerModel
from robometer_gym.models.robometer.network.vision import Grid, places
from robometer_gym.reward_model import Frame, RewardModelError

__all__ = ["Executor"]

_MOST_SIZES = 64  # of pictures, for which what depends on the size alone is kept


class Executor:
    """The network, run piece by piece.

    Args:
        model: the network; how its weights lie in memory is changed, their values are not.
        images: how pictures are cut.

    Attributes:
        slots: how many slots the cache has.
        length: how many tokens a slot has room for.
        questions_budget: most bytes for the keys and values of questions, 12 MB each for the
            released model.
    """

    def __init__(self, model: RobometerModel, images: ImageSettings) -> None:
        self._model, self._images = model, images
        self._visual: Any = model.backbone.visual  # transformers' types differ between versions
        weight = model.backbone.get_input_embeddings().weight
        self.device: torch.device = weight.device
        self.dtype: torch.dtype = weight.dtype
        self._decoder, self._runner = new_runner(model)
        self.slots = self.length = self.questions_budget = 0
        self._cache = self._new_cache(0, 0)
        self._questions: OrderedDict[str, Tensor] = OrderedDict()
        self._places = lru_cache(_MOST_SIZES)(partial(places, self._visual))

    @property
    def path(self) -> dict[str, str]:
        """How the network is run, and why not in a faster way."""
        return self._runner.path

    @property
    def bytes(self) -> int:
        """How many bytes the keys and values of all slots and questions take."""
        return self._cache.nbytes + self._questions_bytes

    @property
    def _questions_bytes(self) -> int:
        return sum(question.nbytes for question in self._questions.values())

    def slot_bytes(self, length: int) -> int:
        """Return how many bytes a slot of so many tokens takes."""
        decoder = self._decoder
        per_token = 2 * decoder.layers * decoder.kv_heads * decoder.head_dim
        return per_token * length * self.dtype.itemsize

    def allocate(self, slots: int, length: int) -> None:
        """Make the cache anew; what was in it is lost. If memory is short it has fewer slots.

        Raises:
            RewardModelError: there is no memory even for two.
        """
        self._cache = self._new_cache(0, 0)  # before, so that both are never there at once
        self._runner.forget()  # what was recorded is of that cache, and has memory of its own
        self.slots = 0
        while True:
            try:
                self._cache = self._new_cache(slots, length)
                break
            except (RuntimeError, MemoryError) as error:  # torch's OutOfMemoryError is the former
                if slots <= 2:
                    raise RewardModelError(
                        f"No memory on {self.device} for the cache of two windows of {length} "
                        f"tokens: {2 * self.slot_bytes(length) / 2**20:.0f} MiB were asked for. "
                        "Show the model fewer or smaller frames, or use engine='eager'."
                    ) from error
                slots = max(2, slots // 2)
        self.slots, self.length = slots, length

    def encode(self, frames: Sequence[Frame]) -> Tensor:
        """Return the features of pictures of one size, (n, 1 + levels, tokens, D)."""
        patches, grid = self._patches(frames)
        return self._runner.encode(patches, self._places(grid))

    def ask(self, questions: Sequence[tuple[int, str, Segment]]) -> None:
        """Put questions at the beginnings of slots: those of new tasks are computed.

        Args:
            questions: per slot its number, the task, and the tokens of the question.
        """
        new = {
            task: (slot, piece) for slot, task, piece in questions if task not in self._questions
        }
        if new:
            self.run([Row(slot, [piece]) for slot, piece in new.values()])
        for task, (slot, piece) in new.items():
            self._questions[task] = self._part(slot, len(piece.ids)).clone()
        for slot, task, piece in questions:
            self._part(slot, len(piece.ids)).copy_(self._questions[task])
            self._questions.move_to_end(task)
        while self._questions_bytes > self.questions_budget:
            self._questions.popitem(last=False)

    def run(self, rows: Sequence[Row]) -> list[list[Answer]]:
        """Run new tokens; return what is said at each picture of each row."""
        layout = lay_out(rows, self.length)
        features = [each for row in rows for each in row.features]
        said = iter(self._runner(layout, features, self._cache).tolist())  # the only read
        return [[Answer(*next(said)) for _ in row.features] for row in rows]

    def _new_cache(self, slots: int, length: int) -> Tensor:
        decoder = self._decoder
        lines = slots * length + 1  # in the last one lies what fills up a batch
        shape = (2, decoder.layers, lines, decoder.kv_heads, decoder.head_dim)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def _part(self, slot: int, tokens: int) -> Tensor:
        start = slot * self.length
        return self._cache[:, :, start : start + tokens]

    def _patches(self, frames: Sequence[Frame]) -> tuple[Tensor, Grid]:
        source = frames[0].shape[0], frames[0].shape[1]
        size = self._images.seen_size(*source)
        order = pillows_order(source, size) if self.device.type != "cpu" else None
        if size != source and order is None:  # for a CPU, Pillow's own loop is the fastest
            cut = torch.stack([self._images.patches(frame)[0] for frame in frames])
            return cut.to(self.device), self._images.grid(*size)
        pixels = to_device(np.stack(frames), self.device)
        if size != source and order is not None:
            pixels = resize(pixels, size, order)
        return self._images.cut(pixels), self._images.grid(*size)
