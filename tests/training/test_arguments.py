"""Training arguments: the authors' values, and refused arguments."""

import numpy as np
import pytest
import torch

from robometer_gym.training import LORA, SamplingSettings, arguments, train, training_arguments
from tests.training.quick_runs import (
    logged,
    noise_episodes,
    quick_arguments,
    small_model,
)

# transformers 4.57 takes checkpoints written within one second for a disk fault.
pytestmark = pytest.mark.filterwarnings("ignore:mtime may not be reliable:UserWarning")


def test_the_defaults_are_the_authors(tmp_path):
    """Fine-tuning without options would differ from the published recipe."""
    plain = training_arguments(tmp_path, use_cpu=True)
    assert (plain.learning_rate, plain.weight_decay, plain.max_grad_norm) == (2e-5, 0.01, 10.0)
    assert (plain.max_steps, plain.warmup_steps, plain.seed) == (1000, 100, 42)
    assert plain.lr_scheduler_type == "cosine"
    assert (LORA.r, LORA.lora_alpha, LORA.lora_dropout) == (32, 64, 0.05)
    changed = training_arguments(tmp_path, use_cpu=True, max_steps=50, learning_rate=1e-3)
    assert (changed.max_steps, changed.warmup_steps, changed.learning_rate) == (50, 5, 1e-3)


def test_epochs_are_refused(tmp_path):
    """The user would see a complaint about __len__."""
    with pytest.raises(ValueError, match="max_steps must be >= 1, got -1"):
        training_arguments(tmp_path, max_steps=-1, num_train_epochs=1)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("label_smoothing_factor", 0.1, "distributions over bins"),
        ("neftune_noise_alpha", 5.0, "those of images"),
        ("num_train_epochs", 3, "Pass max_steps"),
        ("resume_from_checkpoint", "x", "pass resume=True"),
        ("data_seed", 3, "drawn with `seed`"),
        ("group_by_length", True, "batched by kind"),
        ("train_sampling_strategy", "group_by_length", "batched by kind"),
        ("remove_unused_columns", True, "no columns"),
        ("eval_strategy", "steps", "Pass eval_share"),
        ("load_best_model_at_end", True, "Pass eval_share"),
    ],
)
def test_an_argument_without_a_meaning_is_refused(tmp_path, name, value, message):
    """The argument would be ignored, or end in an AttributeError from another library."""
    with pytest.raises(ValueError, match=rf"{name} cannot be used here: .*{message}"):
        training_arguments(tmp_path, **{name: value})


def test_the_output_directory_is_refused(tmp_path):
    """The user would see a TypeError about multiple values."""
    with pytest.raises(ValueError, match="output_dir cannot be used here: checkpoints go to out"):
        train("no/such-model", [], tmp_path, output_dir=tmp_path)


def test_a_warm_up_ratio_sets_the_steps(tmp_path):
    """The default number of steps would silently win."""
    halved = training_arguments(tmp_path, use_cpu=True, max_steps=50, warmup_ratio=0.5)
    assert halved.warmup_steps == 25


def test_fp16_replaces_bf16_on_a_gpu(tmp_path, monkeypatch):
    """fp16=True alone would be refused on every machine with a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(arguments, "TrainingArguments", lambda **given: given)
    assert training_arguments(tmp_path)["bf16"] is True
    given = training_arguments(tmp_path, fp16=True)
    assert (given["fp16"], given["bf16"]) == (True, False)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "LoRA"])
@pytest.mark.parametrize("bf16", [False, True])
def test_gradient_checkpointing_recomputes_layers_and_keeps_the_numbers(tmp_path, lora, bf16):
    """A 4B model would not fit on 24 GB, or be trained on other gradients."""

    def run(name, **more):
        model, calls = small_model(), []
        layer = model.model.backbone.language_model.layers[0].mlp
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
        given = quick_arguments(max_steps=2, bf16=bf16, learning_rate=1e-3, **more)
        train(model, noise_episodes(), tmp_path / name, lora=lora, **given)
        return len(calls), [(e["loss"], e["grad_norm"]) for e in logged(tmp_path / name)]

    plain_calls, plain = run("plain", gradient_checkpointing=False)
    calls, checkpointed = run("checkpointed", gradient_checkpointing=True)
    assert (plain_calls, calls) == (2, 4)
    np.testing.assert_allclose(checkpointed, plain, rtol=1e-3)
    assert run("default")[0] == (4 if bf16 else 2)


def test_accumulated_gradients_are_those_of_one_batch(tmp_path):
    """Accumulation, for a small GPU, would scale the learning rate."""
    clips = SamplingSettings(max_frames=3, preference_share=0.0, clip_ratios={"forward": 1.0})

    def run(name, **more):
        given = quick_arguments(max_steps=2, learning_rate=1e-3, warmup_steps=0, **more)
        model = small_model()
        for module in model.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        train(model, noise_episodes(), tmp_path / name, lora=None, sampling=clips, **given)
        return [(entry["loss"], entry["grad_norm"]) for entry in logged(tmp_path / name)]

    whole = run("whole", per_device_train_batch_size=4)
    parts = run("parts", per_device_train_batch_size=2, gradient_accumulation_steps=2)
    np.testing.assert_allclose(parts, whole, rtol=1e-3)
