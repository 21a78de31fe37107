"""The network as the engine runs it: frames to features, and new tokens to predictions.

Owns the tensors: the cache of keys and values, and those of each task's prompt. Index arrays are
computed on the host and uploaded in one piece; nothing is read back before the predictions. Knows
nothing of clips or streams.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robometer_gym.models.robometer.engine.batch_layout import Row, lay_out, to_device
from robometer_gym.models.robometer.engine.bicubic_resize import pillow_pass_order, resize
from robometer_gym.models.robometer.engine.cuda_fast_paths import cuda_runner
from robometer_gym.models.robometer.engine.kv_slots import FramePrediction
from robometer_gym.models.robometer.engine.prompt_segments import Segment
from robometer_gym.models.robometer.engine.runners import EagerRunner
from robometer_gym.models.robometer.engine.text_decoder import TextDecoder
from robometer_gym.models.robometer.network.images import ImageSettings
from robometer_gym.models.robometer.network.modeling import RobometerModel
from robometer_gym.models.robometer.network.vision import Grid, position_tables
from robometer_gym.reward_model import Frame, RewardModelError

__all__ = ["Executor"]

_MAX_SIZES = 64  # image sizes whose position tables are kept


class Executor:
    """Runs the vision tower and the language model, and holds the KV cache.

    Args:
        model: the network; the memory layout of its weights is changed, their values are not.
        images: how frames are cut into patches.

    Attributes:
        slots: number of slots in the cache.
        length: number of tokens that fit into a slot.
        prompt_budget: maximum number of bytes for the keys and values of prompts, 12 MB each for
            the released model.
    """

    def __init__(self, model: RobometerModel, images: ImageSettings) -> None:
        self._model, self._images = model, images
        self._visual: Any = model.backbone.visual  # transformers' types differ between versions
        weight = model.backbone.get_input_embeddings().weight
        self.device: torch.device = weight.device
        self.dtype: torch.dtype = weight.dtype
        self._decoder, self._runner = new_runner(model)
        self.slots = self.length = self.prompt_budget = 0
        self._cache = self._new_cache(0, 0)
        self._prompts: OrderedDict[str, Tensor] = OrderedDict()
        self._position_tables = lru_cache(_MAX_SIZES)(partial(position_tables, self._visual))

    @property
    def info(self) -> dict[str, str]:
        """The kinds of attention, compilation and graphs in use."""
        return self._runner.info

    @property
    def bytes(self) -> int:
        """Number of bytes of the keys and values of all slots and prompts."""
        return self._cache.nbytes + self._prompt_bytes

    @property
    def _prompt_bytes(self) -> int:
        return sum(prompt.nbytes for prompt in self._prompts.values())

    def slot_bytes(self, length: int) -> int:
        """Return the number of bytes of a slot of `length` tokens."""
        decoder = self._decoder
        per_token = 2 * decoder.layers * decoder.kv_heads * decoder.head_dim
        return per_token * length * self.dtype.itemsize

    def allocate(self, slots: int, length: int) -> None:
        """Replace the cache, and lose its content. If memory is short it gets fewer slots.

        Raises:
            RewardModelError: there is no memory even for two.
        """
        self._cache = self._new_cache(0, 0)  # first, so that the two never coexist
        self._runner.forget()  # graphs refer to the old cache, and have memory of their own
        self.slots = 0
        while True:
            try:
                self._cache = self._new_cache(slots, length)
                break
            except (RuntimeError, MemoryError) as error:  # torch's OutOfMemoryError is the former
                if slots <= 2:
                    raise RewardModelError(
                        f"No memory on {self.device} for the cache of two windows of {length} "
                        f"tokens, {2 * self.slot_bytes(length) / 2**20:.0f} MiB. "
                        "Show the model fewer or smaller frames, or use engine='eager'."
                    ) from error
                slots = max(2, slots // 2)
        self.slots, self.length = slots, length

    def encode(self, frames: Sequence[Frame]) -> Tensor:
        """Return the features of frames of one size, (n, 1 + levels, tokens, D)."""
        patches, grid = self._patches(frames)
        return self._runner.encode(patches, self._position_tables(grid))

    def prefill_prompts(self, prompts: Sequence[tuple[int, str, Segment]]) -> None:
        """Write prompts to the beginnings of slots: those of new tasks are computed.

        Args:
            prompts: per slot its number, the task, and the tokens of the prompt's beginning.
        """
        new = {
            task: (slot, segment) for slot, task, segment in prompts if task not in self._prompts
        }
        if new:
            self.run([Row(slot, [segment]) for slot, segment in new.values()])
        for task, (slot, segment) in new.items():
            self._prompts[task] = self._slot_view(slot, len(segment.ids)).clone()
        for slot, task, segment in prompts:
            self._slot_view(slot, len(segment.ids)).copy_(self._prompts[task])
            self._prompts.move_to_end(task)
        while self._prompt_bytes > self.prompt_budget:
            self._prompts.popitem(last=False)

    def run(self, rows: Sequence[Row]) -> list[list[FramePrediction]]:
        """Run new tokens; return the predictions at each image of each row."""
        layout = lay_out(rows, self.length)
        features = [each for row in rows for each in row.features]
        values = iter(self._runner(layout, features, self._cache).tolist())  # the only read
        return [[FramePrediction(*next(values)) for _ in row.features] for row in rows]

    def _new_cache(self, slots: int, length: int) -> Tensor:
        decoder = self._decoder
        rows = slots * length + 1  # the last one takes the keys and values of padding
        shape = (2, decoder.layers, rows, decoder.kv_heads, decoder.head_dim)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def _slot_view(self, slot: int, tokens: int) -> Tensor:
        start = slot * self.length
        return self._cache[:, :, start : start + tokens]

    def _patches(self, frames: Sequence[Frame]) -> tuple[Tensor, Grid]:
        source = frames[0].shape[0], frames[0].shape[1]
        size = self._images.input_size(*source)
        order = pillow_pass_order(source, size) if self.device.type != "cpu" else None
        if size != source and order is None:  # on a CPU, Pillow's own loop is the fastest
            patches = torch.stack([self._images.patches(frame)[0] for frame in frames])
            return patches.to(self.device), self._images.grid(*size)
        pixels = to_device(np.stack(frames), self.device)
        if size != source and order is not None:
            pixels = resize(pixels, size, order)
        return self._images.to_patches(pixels), self._images.grid(*size)


def new_runner(model: RobometerModel) -> tuple[TextDecoder, EagerRunner]:
    """Return the decoder and the fastest runner for the device of a network."""
    if model.backbone.device.type == "cuda":
        return cuda_runner(model)
    decoder = TextDecoder(model.backbone.language_model)
    return decoder, EagerRunner(model, decoder)
