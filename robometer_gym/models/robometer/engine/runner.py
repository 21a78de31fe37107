"""How one batch is run: row by row on a CPU, in fixed shapes that can be recorded on a GPU.

Knows nothing of slots or of what their lines hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robometer_gym.models.robometer.engine.attention import (
    Attention,
    FlashAttention,
    PaddedAttention,
    RowAttention,
    Span,
)
from robometer_gym.models.robometer.engine.graphs import Graphs
from robometer_gym.models.robometer.engine.layout import Layout, Numbers, upload
from robometer_gym.models.robometer.engine.static import Shape, fill_up
from robometer_gym.models.robometer.engine.text import TextDecoder, Tokens
from robometer_gym.models.robometer.network.heads import decode_progress
from robometer_gym.models.robometer.network.modeling import RobometerModel
from robometer_gym.models.robometer.network.vision import Places, Rotate, encode_equal, rotated

__all__ = ["RowRunner", "StaticRunner", "new_runner"]

# Above these a GPU has so much to compute that it is never waiting for the next instruction.
_MOST_RECORDED_TOKENS = 2048
_MOST_RECORDED_PATCHES = 16384


class RowRunner:
    """Runs a batch as it is: nothing is padded, attention goes row by row.

    Args:
        model: the network.
        decoder: of its language model.
        rotate: computes what `rotated` does, perhaps faster.
    """

    def __init__(
        self, model: RobometerModel, decoder: TextDecoder, rotate: Rotate = rotated
    ) -> None:
        self._model, self._decoder, self._rotate = model, decoder, rotate
        self._visual: Any = model.backbone.visual

    @property
    def path(self) -> dict[str, str]:
        """How the network is run, for `engine_info`."""
        return {"attention": "row by row", "compiled": "nothing", "graphs": "off: not on CUDA"}

    def encode(self, patches: Tensor, where: Places) -> Tensor:
        """Return the features of pictures of one size.

        Args:
            patches: (n, P, 1536) float32.
            where: `places` of their size.

        Returns:
            (n, 1 + levels, tokens, D).
        """
        features = encode_equal(self._visual, patches, where, self._rotate)
        levels = torch.stack([features.embeddings, *features.deepstack])
        each: Tensor = levels.unflatten(1, (len(patches), -1))
        return each.transpose(0, 1).contiguous()

    def __call__(self, layout: Layout, features: Sequence[Tensor], cache: Tensor) -> Tensor:
        """Run new tokens, and write their keys and values into the cache.

        Args:
            layout: the tokens.
            features: of each picture among them, (1 + levels, tokens, D).
            cache: see `TextDecoder`.

        Returns:
            (R, 2) float32: progress and success at each wanted token.
        """
        numbers = upload(layout[:5], cache.device)
        embeddings, deepstack = self._embed(numbers[0], numbers[3], features)
        attention = RowAttention(layout.spans, embeddings)
        of_wanted = RowAttention(layout.wanted_spans, embeddings)
        _, positions, lines, _, wanted = numbers
        tokens = Tokens(embeddings, deepstack, positions, lines, wanted, attention, of_wanted)
        return self._answers(tokens, cache)

    def forget(self) -> None:
        """Forget what was recorded; the cache is another one now."""

    def _embed(
        self, ids: Tensor, pictures: Tensor, features: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return what the first layer is given, (N, D), and what is added later, (levels, N, D)."""
        embeddings: Tensor = self._decoder.embed(ids)
        levels = len(self._visual.deepstack_visual_indexes)
        deepstack = embeddings.new_zeros(levels, *embeddings.shape)
        if features:
            of_pictures = torch.cat(list(features), dim=1)
            embeddings.index_copy_(0, pictures, of_pictures[0])
            deepstack.index_copy_(1, pictures, of_pictures[1:])
        return embeddings, deepstack

    def _answers(self, tokens: Tokens, cache: Tensor) -> Tensor:
        hidden = self._decoder(tokens, cache)
        progress = decode_progress(self._model.progress_head(hidden))
        success = self._model.success_head(hidden)[:, 0].sigmoid()
        return torch.stack([progress, success], dim=1)


class StaticRunner(RowRunner):
    """Runs small batches in one of few shapes, filled up, and records each shape once.

    Args:
        model: the network.
        decoder: of its language model.
        attention: which kind.
        graphs: what records.
        rotate: see `RowRunner`.
    """

    def __init__(
        self,
        model: RobometerModel,
        decoder: TextDecoder,
        attention: type[PaddedAttention] | type[FlashAttention],
        graphs: Graphs,
        rotate: Rotate = rotated,
    ) -> None:
        super().__init__(model, decoder, rotate)
        self._attention, self._graphs = attention, graphs
        self.chosen = {"attention": attention.__name__, "compiled": "nothing"}
        """What was chosen and why, for `engine_info`."""

    @property
    def path(self) -> dict[str, str]:
        """See `RowRunner`."""
        graphs = self._graphs
        recorded = f"off: {graphs.why_off}" if graphs.why_off else f"{len(graphs)} recorded"
        return {**self.chosen, "graphs": recorded}

    def encode(self, patches: Tensor, where: Places) -> Tensor:
        """See `RowRunner`."""
        run = super().encode
        count, each = patches.shape[:2]
        room = count if count <= 4 else -(-count // 4) * 4
        if room * each > _MOST_RECORDED_PATCHES:
            return run(patches, where)
        filled = torch.cat([patches, patches.new_zeros(room - count, *patches.shape[1:])])
        return self._graphs(
            ("encode", each), lambda *inputs: run(inputs[0], Places(*inputs[1:])), [filled, *where]
        )[:count]

    def __call__(self, layout: Layout, features: Sequence[Tensor], cache: Tensor) -> Tensor:
        """See `RowRunner`."""
        wanted = len(layout.wanted)
        record = len(layout.ids) <= _MOST_RECORDED_TOKENS
        shape = Shape.of(layout, rounded=record)
        layout = fill_up(layout, shape, scratch=cache.shape[2] - 1)
        # In the last layer each wanted token is a row of its own: they stand far from one another.
        alone = [
            Span(s.line, s.seen[i : i + 1]) for s in layout.wanted_spans for i in range(len(s.seen))
        ]
        arrays: list[Numbers] = [
            *layout[:5],
            *self._attention.numbers(layout.spans, shape.rows, shape.width, shape.tokens),
            *self._attention.numbers(alone, shape.wanted, 1, shape.wanted),
        ]
        ids, positions, lines, pictures, places, *rest = upload(arrays, cache.device)
        half = len(rest) // 2

        def run(*inputs: Tensor) -> Tensor:
            embeddings, deepstack, positions, lines, places, *numbers = inputs
            of_all: Attention = self._attention(
                *numbers[:half], length=shape.length, width=shape.width
            )
            of_wanted: Attention = self._attention(*numbers[half:], length=shape.length, width=1)
            tokens = Tokens(embeddings, deepstack, positions, lines, places, of_all, of_wanted)
            return self._answers(tokens, cache)

        inputs = [*self._embed(ids, pictures, features), positions, lines, places, *rest]
        if not record:
            return run(*inputs)[:wanted]
        return self._graphs(("decode", shape), run, inputs)[:wanted]

    def forget(self) -> None:
        """See `RowRunner`."""
        self._graphs.forget()


def new_runner(model: RobometerModel) -> tuple[TextDecoder, RowRunner]:
    """Return the fastest way to run a network where it is."""
    if model.backbone.device.type == "cuda":
        from robometer_gym.models.robometer.engine.cuda import (
            cuda_runner,  # nothing in it is needed elsewhere
        )

        return cuda_runner(model)
    decoder = TextDecoder(model.backbone.language_model)
    return decoder, RowRunner(model, decoder)
