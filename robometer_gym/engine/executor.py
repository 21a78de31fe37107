"""Runs the network for the engine: pictures to features, and new tokens to answers.

Owns the tensors: the cache of keys and values, and those of each task's question. Metadata is
computed from numbers on the host and uploaded in one piece; nothing is read back before the
answers. Knows nothing of clips or streams.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robometer_gym.engine.attention import RowAttention, Span
from robometer_gym.engine.bicubic import pillows_order, resize
from robometer_gym.engine.prompts import Segment
from robometer_gym.engine.slots import Answer
from robometer_gym.engine.text import TextDecoder, Tokens
from robometer_gym.model.heads import decode_progress
from robometer_gym.model.images import ImageSettings
from robometer_gym.model.modeling import RobometerModel
from robometer_gym.model.vision import Grid, Places, encode_equal, places
from robometer_gym.reward_model import Frame, RewardModelError

__all__ = ["Executor", "Row"]

_MOST_QUESTIONS = 32  # whose keys and values are kept: 12 MB each for the released model


class Row(NamedTuple):
    """What is to be run in one slot.

    Attributes:
        slot: its number.
        segments: the new tokens.
        tokens: how many stand before them in the slot.
        position: at which the first of them is.
        features: of the picture in each segment that has one, (1 + levels, tokens, D).
    """

    slot: int
    segments: list[Segment]
    tokens: int = 0
    position: int = 0
    features: Sequence[Tensor] = ()


class _Layout(NamedTuple):
    """Numbers of a batch of N tokens, all int64."""

    ids: NDArray[np.int64]  # (N,)
    positions: NDArray[np.int64]  # (3, N)
    lines: NDArray[np.int64]  # (N,)
    pictures: NDArray[np.int64]  # (M,), the tokens that stand for pictures
    wanted: NDArray[np.int64]  # (R,)
    spans: list[Span]
    wanted_spans: list[Span]


class Executor:
    """The network, run piece by piece.

    Args:
        model: the network; how its weights lie in memory is changed, their values are not.
        images: how pictures are cut.

    Attributes:
        slots: how many slots the cache has.
        length: how many tokens a slot has room for.
    """

    def __init__(self, model: RobometerModel, images: ImageSettings) -> None:
        self._model, self._images = model, images
        self._visual: Any = model.backbone.visual
        self._decoder = TextDecoder(model.backbone.language_model)
        weight = self._decoder.embed.weight
        self.device: torch.device = weight.device
        self.dtype: torch.dtype = weight.dtype
        self.slots = self.length = 0
        self._cache = self._new_cache(0, 0)
        self._questions: OrderedDict[str, Tensor] = OrderedDict()
        self._places: dict[Grid, Places] = {}

    @property
    def cache_bytes(self) -> int:
        """How many bytes the keys and values of all slots take."""
        return self._cache.nbytes

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
        self.slots = 0
        while True:
            try:
                self._cache = self._new_cache(slots, length)
                break
            except (RuntimeError, MemoryError) as error:  # torch's OutOfMemoryError is the former
                if slots <= 2:
                    raise RewardModelError(
                        f"No memory on {self.device} for the cache of one window of {length} "
                        f"tokens: {2 * self.slot_bytes(length) / 2**20:.0f} MiB were asked for. "
                        "Show the model fewer or smaller frames, or use engine='eager'."
                    ) from error
                slots = max(2, slots // 2)
        self.slots, self.length = slots, length

    def encode(self, frames: Sequence[Frame]) -> Tensor:
        """Return the features of pictures of one size, (n, 1 + levels, tokens, D)."""
        patches, grid = self._patches(frames)
        if grid not in self._places:
            self._places[grid] = places(self._visual, grid)
        features = encode_equal(self._visual, patches, self._places[grid])
        levels = torch.stack([features.embeddings, *features.deepstack])
        each: Tensor = levels.unflatten(1, (len(frames), -1)).transpose(0, 1)
        return each.contiguous()

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
        while len(self._questions) > _MOST_QUESTIONS:
            self._questions.popitem(last=False)

    def run(self, rows: Sequence[Row]) -> list[list[Answer]]:
        """Run new tokens; return what is said at each picture of each row."""
        layout = _layout(rows, self.length)
        hidden = self._decoder(self._tokens(layout, rows), self._cache)
        if not len(layout.wanted):
            return [[] for _ in rows]
        progress = decode_progress(self._model.progress_head(hidden))
        success = self._model.success_head(hidden)[:, 0].sigmoid()
        values = iter(torch.stack([progress, success], dim=1).tolist())  # the only read
        return [[Answer(*next(values)) for _ in row.features] for row in rows]

    def _new_cache(self, slots: int, length: int) -> Tensor:
        decoder = self._decoder
        shape = (2, decoder.layers, slots * length, decoder.kv_heads, decoder.head_dim)
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
        pixels = torch.from_numpy(np.stack(frames)).to(self.device)
        if size != source and order is not None:
            pixels = resize(pixels, size, order)
        return self._images.cut(pixels), self._images.grid(*size)

    def _tokens(self, layout: _Layout, rows: Sequence[Row]) -> Tokens:
        ids, positions, lines, pictures, wanted = _upload(layout, self.device)
        embeddings = self._decoder.embed(ids)
        deepstack = embeddings.new_zeros(0, *embeddings.shape)
        if features := [each for row in rows for each in row.features]:
            levels = torch.cat(features, dim=1)
            embeddings.index_copy_(0, pictures, levels[0])
            deepstack = embeddings.new_zeros(len(levels) - 1, *embeddings.shape)
            deepstack.index_copy_(1, pictures, levels[1:])
        return Tokens(
            embeddings,
            deepstack,
            positions,
            lines,
            wanted,
            RowAttention(layout.spans, embeddings),
            RowAttention(layout.wanted_spans, embeddings),
        )


def _layout(rows: Sequence[Row], length: int) -> _Layout:
    """Number the tokens of all rows, one row after the other."""
    ids, positions, lines, pictures, wanted = [], [], [], [], []
    spans, wanted_spans, first = [], [], 0
    for row in rows:
        count, position, asked = 0, row.position, []
        for piece in row.segments:
            ids.append(piece.ids)
            positions.append(piece.positions + position)
            if piece.picture[1]:
                pictures.append(np.arange(*piece.picture) + first + count)
                asked.append(count + len(piece.ids) - 1)
            count, position = count + len(piece.ids), position + piece.advance
        line, seen = row.slot * length, np.arange(row.tokens + 1, row.tokens + count + 1)
        lines.append(line + seen - 1)
        wanted.append(np.array(asked, np.int64) + first)
        spans.append(Span(line, seen))
        wanted_spans.append(Span(line, seen[asked]))
        first += count
    none = np.zeros(0, np.int64)
    return _Layout(
        np.concatenate(ids),
        np.concatenate(positions, axis=1),
        np.concatenate(lines),
        np.concatenate([none, *pictures]),
        np.concatenate(wanted),
        spans,
        wanted_spans,
    )


def _upload(layout: _Layout, device: torch.device) -> list[Tensor]:
    """Bring the numbers to the device, in one piece."""
    arrays = layout[:5]
    numbers = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
    if device.type == "cuda":
        numbers = numbers.pin_memory()
    parts = numbers.to(device, non_blocking=True).split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
