"""Eager prediction: every clip from its beginning, in batches that fit into memory.

Knows nothing of streams or caches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from robometer_gym.models.robometer.network.heads import decode_progress
from robometer_gym.models.robometer.network.modeling import RobometerModel
from robometer_gym.models.robometer.network.processor import Encoded, RobometerProcessor
from robometer_gym.reward_model import Clip, Prediction

__all__ = ["predict_eagerly"]

# Tokens in one forward pass. Larger batches gain no speed on a GPU and could exhaust its memory.
_MAX_TOKENS = 16384


def predict_eagerly(
    model: RobometerModel, processor: RobometerProcessor, clips: Sequence[Clip]
) -> list[Prediction]:
    """Score clips; see `RobometerRewardModel.predict`."""
    predictions = []
    for batch in _batches(processor, clips):
        logits = model(batch)
        lengths = [len(each) for each in batch.progress_at]
        values = torch.stack([decode_progress(logits.progress), logits.success.sigmoid()])
        predictions += [Prediction(*each.numpy()) for each in values.cpu().split(lengths, dim=1)]
    return predictions


def _batches(processor: RobometerProcessor, clips: Sequence[Clip]) -> Iterator[Encoded]:
    batch: list[Clip] = []
    tokens = 0
    for clip in clips:
        # An estimate: nearly all tokens are those of images.
        more = len(clip) * processor.images.tokens_for_size(*clip.images[0].shape[:2])
        if batch and tokens + more > _MAX_TOKENS:
            yield processor.encode(batch)
            batch, tokens = [], 0
        batch.append(clip)
        tokens += more
    if batch:
        yield processor.encode(batch)
