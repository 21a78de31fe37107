"""Two ways to run one batch: row by row on a CPU, in fixed shapes and CUDA graphs on a GPU.

Knows nothing of slots or of the content of the cache.
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
from robometer_gym.models.robometer.engine.batch_layout import BatchLayout, Indices, upload
from robometer_gym.models.robometer.engine.batch_shapes import BatchShape, pad_layout
from robometer_gym.models.robometer.engine.cuda_graphs import CudaGraphCache
from robometer_gym.models.robometer.engine.text_decoder import TextDecoder, TokenBatch
from robometer_gym.models.robometer.network.heads import decode_progress
from robometer_gym.models.robometer.network.modeling import RobometerModel
from robometer_gym.models.robometer.network.vision import (
    ApplyRope,
    PositionTables,
    apply_rope,
    encode_same_size,
)

__all__ = ["EagerRunner", "GraphRunner"]

# Larger batches keep a GPU busy by themselves: launches are not their bottleneck.
_MAX_GRAPH_TOKENS = 2048
_MAX_GRAPH_PATCHES = 16384


class EagerRunner:
    """Runs a batch as it is: without padding, attention row by row.

    Args:
        model: the network.
        decoder: its language model.
        rope: computes `apply_rope`, perhaps faster.
    """

    def __init__(
        self, model: RobometerModel, decoder: TextDecoder, rope: ApplyRope = apply_rope
    ) -> None:
        self._model, self._decoder, self._rope = model, decoder, rope
        self._visual: Any = model.backbone.visual

    @property
    def info(self) -> dict[str, str]:
        """The kinds of attention, compilation and graphs in use, for `engine_info`."""
        return {"attention": "row by row", "compiled": "nothing", "graphs": "off: not on CUDA"}

    def encode(self, patches: Tensor, tables: PositionTables) -> Tensor:
        """Return the features of images of one size.

        Args:
            patches: (n, P, 1536) float32.
            tables: `position_tables` of their size.

        Returns:
            (n, 1 + levels, tokens, D).
        """
        features = encode_same_size(self._visual, patches, tables, self._rope)
        levels = torch.stack([features.embeddings, *features.deepstack])
        per_image: Tensor = levels.unflatten(1, (len(patches), -1))
        return per_image.transpose(0, 1).contiguous()

    def __call__(self, layout: BatchLayout, features: Sequence[Tensor], cache: Tensor) -> Tensor:
        """Run new tokens, and write their keys and values into the cache.

        Args:
            layout: the tokens.
            features: of each image among them, (1 + levels, tokens, D).
            cache: see `TextDecoder`.

        Returns:
            (R, 2) float32: progress and success at each readout token.
        """
        ids, positions, cache_rows, image_tokens, readout = upload(layout[:5], cache.device)
        embeddings, deepstack = self._embed(ids, image_tokens, features)
        attention = RowAttention(layout.spans, embeddings)
        readout_attention = RowAttention(layout.readout_spans, embeddings)
        tokens = TokenBatch(
            embeddings, deepstack, positions, cache_rows, readout, attention, readout_attention
        )
        return self._predict(tokens, cache)

    def forget(self) -> None:
        """Drop everything that refers to the cache."""

    def _embed(
        self, ids: Tensor, image_tokens: Tensor, features: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the first layer's input, (N, D), and the deepstack features, (levels, N, D)."""
        embeddings: Tensor = self._decoder.embed(ids)
        levels = len(self._visual.deepstack_visual_indexes)
        deepstack = embeddings.new_zeros(levels, *embeddings.shape)
        if features:
            image_features = torch.cat(list(features), dim=1)
            embeddings.index_copy_(0, image_tokens, image_features[0])
            deepstack.index_copy_(1, image_tokens, image_features[1:])
        return embeddings, deepstack

    def _predict(self, tokens: TokenBatch, cache: Tensor) -> Tensor:
        hidden = self._decoder(tokens, cache)
        progress = decode_progress(self._model.progress_head(hidden))
        success = self._model.success_head(hidden)[:, 0].sigmoid()
        return torch.stack([progress, success], dim=1)


class GraphRunner(EagerRunner):
    """Runs small batches padded to one of few shapes, and captures a CUDA graph of each shape.

    Args:
        model: the network.
        decoder: its language model.
        attention: kind of attention.
        graphs: captures and replays.
        rope: see `EagerRunner`.
    """

    def __init__(
        self,
        model: RobometerModel,
        decoder: TextDecoder,
        attention: type[PaddedAttention] | type[FlashAttention],
        graphs: CudaGraphCache,
        rope: ApplyRope = apply_rope,
    ) -> None:
        super().__init__(model, decoder, rope)
        self._attention, self._graphs = attention, graphs
        self.choices = {"attention": attention.__name__, "compiled": "nothing"}
        """The choices of `cuda_fast_paths` with their reasons, for `engine_info`."""

    @property
    def info(self) -> dict[str, str]:
        """See `EagerRunner`."""
        reason = self._graphs.disabled_reason
        graphs = f"off: {reason}" if reason else f"{len(self._graphs)} captured"
        return {**self.choices, "graphs": graphs}

    def encode(self, patches: Tensor, tables: PositionTables) -> Tensor:
        """See `EagerRunner`."""
        run = super().encode
        count, patches_per_image = patches.shape[:2]
        padded = count if count <= 4 else -(-count // 4) * 4
        if padded * patches_per_image > _MAX_GRAPH_PATCHES:
            return run(patches, tables)
        filled = torch.cat([patches, patches.new_zeros(padded - count, *patches.shape[1:])])
        return self._graphs(
            ("encode", patches_per_image),
            lambda *inputs: run(inputs[0], PositionTables(*inputs[1:])),
            [filled, *tables],
        )[:count]

    def __call__(self, layout: BatchLayout, features: Sequence[Tensor], cache: Tensor) -> Tensor:
        """See `EagerRunner`."""
        readouts = len(layout.readout)
        use_graph = len(layout.ids) <= _MAX_GRAPH_TOKENS
        shape = BatchShape.of(layout, rounded=use_graph)
        layout = pad_layout(layout, shape, scratch_row=cache.shape[2] - 1)
        # In the last layer each readout token is a row of its own: they are not consecutive.
        alone = [
            Span(span.start, span.key_counts[i : i + 1])
            for span in layout.readout_spans
            for i in range(len(span.key_counts))
        ]
        arrays: list[Indices] = [
            *layout[:5],
            *self._attention.indices(layout.spans, shape.rows, shape.width, shape.tokens),
            *self._attention.indices(alone, shape.readouts, 1, shape.readouts),
        ]
        ids, positions, cache_rows, image_tokens, readout, *indices = upload(arrays, cache.device)
        half = len(indices) // 2

        def run(*inputs: Tensor) -> Tensor:
            embeddings, deepstack, positions, cache_rows, readout, *indices = inputs
            attention: Attention = self._attention(
                *indices[:half], length=shape.length, width=shape.width
            )
            readout_attention: Attention = self._attention(
                *indices[half:], length=shape.length, width=1
            )
            tokens = TokenBatch(
                embeddings, deepstack, positions, cache_rows, readout, attention, readout_attention
            )
            return self._predict(tokens, cache)

        embedded = self._embed(ids, image_tokens, features)
        inputs = [*embedded, positions, cache_rows, readout, *indices]
        if not use_graph:
            return run(*inputs)[:readouts]
        return self._graphs(("decode", shape), run, inputs)[:readouts]

    def forget(self) -> None:
        """See `EagerRunner`."""
        self._graphs.clear()
