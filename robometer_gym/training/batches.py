"""Batches of training examples: numbered examples of a whole run, and their collation.

Knows nothing of weights, of losses or of the Trainer's loop.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info
from transformers import TrainingArguments

from robometer_gym.models.robometer.network.processor import Encoded, RobometerProcessor
from robometer_gym.training.losses import Targets
from robometer_gym.training.sampler import LabeledClip, PreferencePair, Sampler

__all__ = ["Batch", "Collator", "NumberedExamples"]


class Batch(TypedDict):
    """Input of the network and targets of its heads."""

    batch: Encoded
    targets: Targets


class NumberedExamples(Dataset[PreferencePair | LabeledClip]):
    """Every example of a whole run, drawn when its number is read.

    An example depends on its number and the seed alone, so that workers do not repeat one another
    and a resumed run continues with the examples it had not reached. All examples of a batch are
    of one kind, so that the shorter ones need no padding.
    """

    def __init__(self, sampler: Sampler, arguments: TrainingArguments) -> None:
        self._sampler, self._seed = sampler, arguments.seed
        self._batch_size: int = arguments.train_batch_size
        batches = arguments.max_steps * arguments.gradient_accumulation_steps
        self._length: int = batches * arguments.world_size * self._batch_size

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> PreferencePair | LabeledClip:
        if get_worker_info():  # Ctrl-C reaches workers too; the main process ends them
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        batch_rng = np.random.default_rng([self._seed, number // self._batch_size])
        compare = self._sampler.draw_kind(batch_rng)
        return self._sampler.draw(np.random.default_rng([self._seed, number, 1]), compare=compare)


class Collator:
    """Collate examples into one batch; of a pair, progress and success of clip A are trained."""

    def __init__(self, processor: RobometerProcessor) -> None:
        self._processor = processor

    def __call__(self, examples: Sequence[PreferencePair | LabeledClip]) -> Batch:
        """Return the batch of examples."""
        samples, labels, preferences = [], [], []
        for example in examples:
            if isinstance(example, PreferencePair):
                a, b = example.a, example.b
                samples.append(self._processor.preference_sample(a.clip, b.clip))
                labels += [a.labels, b.labels.masked_out()]
                preferences.append(float(example.a_is_better))
            else:
                samples.append(self._processor.progress_sample(example.clip))
                labels.append(example.labels)
        progress, progress_mask, success, success_mask = (
            torch.from_numpy(np.concatenate(column)) for column in zip(*labels, strict=True)
        )
        targets = Targets(progress, progress_mask, success, success_mask, torch.tensor(preferences))
        return {"batch": self._processor.collate(samples), "targets": targets}
