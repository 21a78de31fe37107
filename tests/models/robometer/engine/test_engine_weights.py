"""Weights that are changed, saved, copied or shared between predictions of the fast engine."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_model

from robometer_gym import RobometerRewardModel
from robometer_gym.models.robometer.demo import random_model
from tests.models.robometer.engine.recomputation import (
    CONFIG,
    DOUBLE,
    SINGLE,
    SIZES,
    TASKS,
    assert_close,
    assert_same,
    check,
    clip,
    eager_twin,
    new_model,
    truth,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("engine") / "checkpoint"
    new_model("eager").save_pretrained(path)
    return path


def _scale(model: RobometerRewardModel) -> None:
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.mul_(1.02)


def _scale_one(name: str) -> Callable[[RobometerRewardModel], None]:
    def change(model: RobometerRewardModel) -> None:
        with torch.no_grad():
            model.model.get_parameter(name).mul_(1.5)

    return change


def _optimize(*, fused: bool) -> Callable[[RobometerRewardModel], None]:
    def change(model: RobometerRewardModel) -> None:
        torch.manual_seed(0)  # of dropout
        model.model.train(fused)  # as a training loop does: torch does not count fused steps
        batch = model.processor.encode([clip("training", (0, 1), named=False)])
        optimizer = torch.optim.AdamW(model.model.parameters(), lr=1e-3, fused=fused)
        loss = model.model(batch).progress.logsumexp(-1).sum() + model.model(batch).success.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.model.eval()

    return change


def _speed_up_rotation(model: RobometerRewardModel) -> None:
    model.model.backbone.language_model.rotary_emb.inv_freq.mul_(1.1)


def _load(*, assign: bool) -> Callable[[RobometerRewardModel], None]:
    def change(model: RobometerRewardModel) -> None:
        state = random_model(CONFIG, seed=5).state_dict()
        model.model.load_state_dict(state, assign=assign)

    return change


def _replace_head(model: RobometerRewardModel) -> None:
    model.model.progress_head = random_model(CONFIG, seed=6).progress_head.eval()


def _replace_parameter(model: RobometerRewardModel) -> None:
    value = model.model.backbone.language_model.layers[1].self_attn.v_proj
    value.weight = torch.nn.Parameter(value.weight.detach() * 1.5)


CHANGES = {
    "all in place": _scale,
    "one of the text's": _scale_one("backbone.language_model.layers.1.self_attn.v_proj.weight"),
    "a norm of the text's": _scale_one("backbone.language_model.layers.1.self_attn.k_norm.weight"),
    "the embedding": _scale_one("backbone.language_model.embed_tokens.weight"),
    "one of the vision's": _scale_one("backbone.visual.blocks.1.mlp.linear_fc1.bias"),
    "a merger's": _scale_one("backbone.visual.deepstack_merger_list.1.linear_fc2.weight"),
    "the patches'": _scale_one("backbone.visual.patch_embed.proj.bias"),
    "the positions'": _scale_one("backbone.visual.pos_embed.weight"),
    "a head's": _scale_one("success_head.4.weight"),
    "a step of training": _optimize(fused=False),
    "a fused step of training": _optimize(fused=True),
    "a buffer": _speed_up_rotation,
    "a state loaded": _load(assign=False),
    "a state put in its place": _load(assign=True),
    "another head": _replace_head,
    "another parameter": _replace_parameter,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_weights_are_found(change):
    """Fine-tuning between predictions: rewards would mix the old network with the new one."""
    model, eager = new_model(own=True), new_model("eager", own=True)
    clips = [clip("a", range(4)), clip("b", (0, 2), TASKS[1])]
    before = model.predict(clips)
    for each in (model, eager):
        change(each)
        change(each)
    ours, right = model.predict(clips), eager.predict(clips)
    for one, other, old in zip(ours, right, before, strict=True):
        assert_same(one, other)
        moved = np.abs(np.stack([other.progress - old.progress, other.success - old.success]))
        assert moved.max() > 1e-3, "the change must have an effect"
    longer = [clip("a", range(5)), clip("c", (1, 2))]
    assert_close(model.predict(longer), eager.predict(longer))


def test_another_network_in_its_place():
    """Rewards would still come from the old one."""
    model, other = new_model(own=True), new_model(seed=3, own=True)
    model.predict([clip("a", range(3))])
    model.model = other.model
    check(model, [clip("a", range(3)), clip("b", (0, 2))], truth(seed=3))


def test_training_another_network_keeps_the_caches():
    """Each step of the policy's training would empty the caches."""
    model, policy = new_model(), torch.nn.Linear(2, 2)
    check(model, [clip("a", range(3))])
    optimizer = torch.optim.Adam(policy.parameters(), fused=True)
    policy(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    check(model, [clip("a", range(4))])
    assert model.engine_info()["forgotten"] == 0


def test_another_library_saves_it_completely(tmp_path):
    """Some leave out views of a larger tensor without an error."""
    model = new_model(own=True)
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    check(model, [clip("a", range(3))])
    model.forget()
    save_model(model.model, str(tmp_path / "saved.safetensors"))
    saved = load_file(tmp_path / "saved.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in saved.items()} == {
        name: tuple(tensor.shape) for name, tensor in before.items()
    }
    assert all(torch.equal(saved[name], tensor) for name, tensor in before.items())
    check(model, [clip("a", range(4))])


def test_a_network_that_was_cast():
    """Half the caches would be in the old dtype."""
    model = new_model(own=True)
    check(model, [clip("a", range(4))])
    model.model.backbone.to(DOUBLE)
    check(model, [clip("a", range(5)), clip("b", range(2))], truth(DOUBLE))


def test_a_network_that_was_loaded_in_inference_mode(folder):
    """Scripts that never train are often wrapped in it as a whole."""
    with torch.inference_mode():
        model = RobometerRewardModel.from_pretrained(folder, device="cpu", dtype=SINGLE)
    for last in range(1, 4):
        check(model, [clip("a", range(last))])
    with torch.inference_mode():
        check(model, [clip("a", range(4)), clip("b", range(2))])
    assert model.prefer(clip("a", range(2)), clip("b", range(2))) == pytest.approx(
        truth().model.prefer(clip("a", range(2)), clip("b", range(2))), rel=1e-5
    )
    model.forget()
    check(model, [clip("a", range(5))])


def test_training_works_after_predicting():
    """`train` on a model that has predicted would end in an error about inference tensors."""
    model = new_model(own=True)
    check(model, [clip("a", range(3))])
    batch = model.processor.encode([clip("training", (0, 1), named=False)])
    model.model(batch).success.sum().backward()
    gradients = [parameter.grad for parameter in model.model.backbone.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    check(model, [clip("a", range(4))])
    assert all(parameter.is_leaf for parameter in model.model.parameters())


def test_a_model_is_saved_as_it_was_loaded(folder, tmp_path):
    """A checkpoint that is saved after predicting would be larger, damaged or refused."""
    model = RobometerRewardModel.from_pretrained(folder, device="cpu", dtype=SINGLE)
    check(model, [clip("a", range(3))])
    model.save_pretrained(tmp_path / "saved")
    (before,), (after,) = folder.glob("*.safetensors"), (tmp_path / "saved").glob("*.safetensors")
    assert abs(before.stat().st_size - after.stat().st_size) < 1000
    again = RobometerRewardModel.from_pretrained(tmp_path / "saved", device="cpu", dtype=SINGLE)
    check(again, [clip("a", range(3))])


def test_pickled_while_in_use():
    """A worker process would start with the caches of another, and gigabytes of them."""
    fresh = len(pickle.dumps(new_model(own=True)))
    model = new_model(own=True)
    for last in range(1, 9):
        check(model, [clip(env, range(last), size=SIZES[1]) for env in range(8)])
    written = pickle.dumps(model)
    assert len(written) < 1.01 * fresh + 10_000
    copied = pickle.loads(written)
    check(copied, [clip(env, range(3), of=("other", env)) for env in range(8)])
    check(model, [clip(env, range(9), size=SIZES[1]) for env in range(8)])


def test_copied_while_in_use():
    """A copied model whose weights are changed would change the original, or share its caches."""
    model = new_model(own=True)
    check(model, [clip("a", range(3))])
    copied = copy.deepcopy(model)
    check(copied, [clip("a", range(3), of="other"), clip("b", range(2))])
    for network in (copied.model, copy.deepcopy(model.model)):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
    check(model, [clip("a", range(4))])


def test_the_state_of_a_network_that_has_predicted():
    """A state that is kept for later would change with the network or be incomplete."""
    model = new_model(own=True)
    check(model, [clip("a", range(3))])
    written = io.BytesIO()
    torch.save(model.model.state_dict(), written)
    written.seek(0)
    kept = torch.load(written, weights_only=True)
    for name, tensor in random_model(CONFIG, 0).state_dict().items():
        assert torch.equal(kept[name], tensor), name
    _scale(model)
    model.predict([clip("a", range(3))])
    model.model.load_state_dict(kept)
    check(model, [clip("a", range(3)), clip("a", range(4))])


def test_two_models_in_one_process():
    """Two checkpoints that are compared would use each other's caches."""
    one, other = new_model(seed=0), new_model(seed=1)
    for last in range(1, 10):
        clips = [clip("a", range(last)), clip("b", (0, last), TASKS[1])]
        check(one, clips, truth())
        check(other, clips, truth(seed=1))
        if last == 5:
            one.release("a")


def test_two_models_around_one_network():
    """They share the weights: the memory layout of one must not harm the other."""
    first = new_model()
    second = RobometerRewardModel(first.model, first.processor, first.config, max_streams=1)
    eager = eager_twin(first)
    for last in range(1, 5):
        check(first, [clip("a", range(last)), clip("b", range(last))])
        check(second, [clip("a", range(last), of="other"), clip("b", range(last))])
        check(eager, [clip("a", range(last))])
