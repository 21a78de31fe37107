"""Precision: trained weights are float32, frozen ones may be bfloat16."""

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from robometer_gym import RobometerRewardModel
from robometer_gym.training import LORA, train
from robometer_gym.training.trainer import prepare_model
from tests.training.quick_runs import (
    copy_parameters,
    logged,
    noise_episodes,
    quick_arguments,
    small_model,
    whole_clip,
)


def bfloat16_model() -> RobometerRewardModel:
    """Return a model in the dtype of the published checkpoints."""
    model = small_model()
    for parameter in model.model.parameters():
        parameter.data = parameter.data.bfloat16()
    return model


class Dtypes(TrainerCallback):  # type: ignore[misc]
    """Record the dtypes of trained and frozen weights."""

    def on_train_begin(self, args, state, control, model, **kwargs):
        parameters = list(model.parameters())
        self.trained = {p.dtype for p in parameters if p.requires_grad}
        self.frozen = {p.dtype for p in parameters if not p.requires_grad}


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "LoRA"])
@pytest.mark.parametrize("train_vision", [False, True])
def test_a_bfloat16_model_moves_nearly_all_its_weights(tmp_path, bf16, lora, train_vision):
    """19 of 20 updates would vanish in rounding, and the model hardly learn."""
    model, dtypes = bfloat16_model(), Dtypes()
    before = copy_parameters(model.model)
    arguments = quick_arguments(max_steps=5, warmup_steps=0, bf16=bf16, learning_rate=2e-5)
    trained = train(
        model,
        noise_episodes(),
        tmp_path,
        lora=lora,
        train_vision=train_vision,
        callbacks=[dtypes],
        **arguments,
    )
    assert dtypes.trained == {torch.float32}
    frozen = lora is not None or not train_vision
    assert dtypes.frozen == ({torch.bfloat16} if frozen else set())
    parts = ["language_model.layers"] if lora is None else []
    parts += ["visual"] if train_vision else []
    for part in [*parts, "progress_head", "preference_head"]:
        shares = [
            (parameter.float() != before[name].float()).float().mean().item()
            for name, parameter in trained.model.named_parameters()
            if part in name and parameter.ndim == 2
        ]
        assert np.mean(shares) > 0.9, part


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "LoRA"])
@pytest.mark.parametrize("train_vision", [False, True])
def test_autocast_trains_on_nearly_the_same_loss(tmp_path, lora, train_vision):
    """On a GPU `train --full` would end at its first step, or train on noise."""
    losses = []
    for bf16 in (False, True):
        arguments = quick_arguments(max_steps=2, bf16=bf16, save_strategy="no")
        out = tmp_path / str(bf16)
        train(
            small_model(), noise_episodes(), out, lora=lora, train_vision=train_vision, **arguments
        )
        losses.append([entry["loss"] for entry in logged(out)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "LoRA"])
def test_the_result_has_one_dtype_and_is_saved_as_it_is(tmp_path, lora):
    """The saved checkpoint would predict something else, or its dtypes not fit together."""
    arguments = quick_arguments(max_steps=2, learning_rate=1e-2, bf16=True)
    trained = train(
        bfloat16_model(), noise_episodes(), tmp_path, lora=lora, train_vision=True, **arguments
    )
    assert {p.dtype for p in trained.model.backbone.parameters()} == {torch.float32}
    loaded = RobometerRewardModel.from_pretrained(tmp_path, device="cpu")
    clip = whole_clip(noise_episodes()[0])
    for one, other in zip(trained.predict([clip]), loaded.predict([clip]), strict=True):
        np.testing.assert_allclose(one.progress, other.progress, atol=1e-5)


def test_frozen_weights_keep_their_dtype():
    """A 4B model with LoRA would need twice its memory."""
    network = prepare_model(bfloat16_model().model, lora=LORA, train_vision=False)
    for name, parameter in network.named_parameters():
        expected = torch.float32 if parameter.requires_grad else torch.bfloat16
        assert parameter.dtype == expected, name
