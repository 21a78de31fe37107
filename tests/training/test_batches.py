"""Batches: one kind of example each, and targets of clip A alone."""

import multiprocessing
import os
import signal

import numpy as np
import pytest
from torch.utils.data import DataLoader

from robometer_gym.training import (
    SamplingSettings,
    training_arguments,
)
from robometer_gym.training.batches import Collator, NumberedExamples
from robometer_gym.training.sampler import PreferencePair, Sampler
from tests.training.quick_runs import (
    example_bytes,
    noise_episodes,
    quick_arguments,
    small_model,
)

# transformers 4.57 takes checkpoints written within one second for a disk fault.
pytestmark = pytest.mark.filterwarnings("ignore:mtime may not be reliable:UserWarning")


def test_a_batch_has_one_kind_and_each_number_its_own_example(tmp_path):
    """Labeled clips would be padded to twice their length; or workers repeat one another."""
    arguments = training_arguments(
        tmp_path, **quick_arguments(max_steps=40), gradient_accumulation_steps=2
    )
    sampler = Sampler(noise_episodes(), SamplingSettings(preference_share=0.5, max_frames=3))
    examples = NumberedExamples(sampler, arguments)
    assert len(examples) == 40 * 4 * 2
    kinds = [isinstance(examples[number], PreferencePair) for number in range(len(examples))]
    batches = np.reshape(kinds, (-1, 4))
    assert (batches.all(axis=1) | ~batches.any(axis=1)).all()
    assert 20 < batches[:, 0].sum() < 60
    images = [example_bytes(examples[number]) for number in range(80)]
    assert images == [example_bytes(examples[number]) for number in range(80)]
    assert len(set(images)) > 40


def test_a_pair_trains_progress_and_success_of_its_first_clip_alone():
    """The prompt is about the first trajectory's progress; targets of B would be noise."""
    processor = small_model().processor
    sampler = Sampler(noise_episodes(), SamplingSettings(max_frames=3))
    rng = np.random.default_rng(0)
    pairs = [
        pair for pair in (sampler.draw(rng) for _ in range(5)) if isinstance(pair, PreferencePair)
    ]
    batch = Collator(processor)(pairs)
    targets = batch["targets"]
    assert targets.preference.tolist() == [float(pair.a_is_better) for pair in pairs]
    mask = targets.progress_mask.reshape(5, 2, 3)
    assert mask[:, 0].all()
    assert not mask[:, 1].any()
    assert not targets.success_mask.reshape(5, 2, 3)[:, 1].any()
    progress = np.stack([pair.a.labels.progress for pair in pairs])
    np.testing.assert_array_equal(targets.progress.reshape(5, 2, 3)[:, 0], progress)
    assert [len(at) for at in batch["batch"].progress_at] == [6] * 5
    assert [len(at) for at in batch["batch"].preference_at] == [1] * 5


def test_ctrl_c_does_not_end_a_spawned_worker(tmp_path):
    """The run could not finish its step and save: a worker that is gone has no next batch."""
    arguments = training_arguments(tmp_path, **quick_arguments(max_steps=2))
    examples = NumberedExamples(Sampler(noise_episodes()), arguments)
    loader = DataLoader(
        examples,
        num_workers=1,
        prefetch_factor=1,
        collate_fn=example_list,
        multiprocessing_context="spawn",
    )
    others = set(multiprocessing.active_children())
    batches = iter(loader)
    received = [next(batches)]
    (worker,) = set(multiprocessing.active_children()) - others
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGINT)
    received += batches
    assert len(received) == len(examples) == 8


def example_list(examples):
    """Collate nothing."""
    return examples
