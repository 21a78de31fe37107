"""Training: moved weights, convergence, precision, merging, and refused input."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from peft import PeftModel

import robometer_gym.training
from robometer_gym import RobometerRewardModel
from robometer_gym.data import Episode
from robometer_gym.training import (
    LORA,
    LossWeights,
    RobometerTrainer,
    SamplingSettings,
    train,
    training_arguments,
)
from robometer_gym.training.sampler import Sampler
from robometer_gym.training.trainer import prepare_model
from robometer_gym.validation import MissingDependencyError
from tests.training.quick_runs import (
    TASKS,
    copy_parameters,
    noise_episodes,
    quick_arguments,
    small_model,
    whole_clip,
)

# transformers 4.57 takes checkpoints written within one second for a disk fault.
pytestmark = pytest.mark.filterwarnings("ignore:mtime may not be reliable:UserWarning")


@pytest.mark.parametrize(
    ("lora", "train_vision", "moves", "stays"),
    [
        (None, False, ("backbone.language_model", "_head"), ("backbone.visual",)),
        (None, True, ("backbone", "_head"), ()),
        (LORA, False, ("lora_", "modules_to_save"), ("base_layer", "visual", "norm", "original")),
        (
            LORA,
            True,
            ("lora_", "modules_to_save", "visual"),
            ("base_layer", "embed_tokens", "original"),
        ),
    ],
    ids=["full", "full with vision", "LoRA", "LoRA with vision"],
)
def test_a_step_moves_exactly_the_trained_weights(tmp_path, lora, train_vision, moves, stays):
    """A head would stay random through a whole fine-tuning, or a frozen tower would drift."""
    model = small_model()
    network = prepare_model(model.model, lora=lora, train_vision=train_vision)
    before = copy_parameters(network)
    settings = SamplingSettings(max_frames=3)
    # LoRA's second factor starts at 0, and the first has no gradient until it moves.
    arguments = training_arguments(
        tmp_path,
        **quick_arguments(max_steps=3, learning_rate=1e-3, warmup_steps=0, save_strategy="no"),
    )
    RobometerTrainer(
        network, model.processor, Sampler(noise_episodes(), settings), arguments
    ).train()
    for name, parameter in network.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == parameter.requires_grad, name
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    frozen = [name for name in before if name not in trained]
    for part in moves:
        assert any(part in name for name in trained), part
    for part in stays:
        assert any(part in name for name in frozen), part
        assert not any(part in name for name in trained), part
    for head in ("progress_head", "success_head", "preference_head"):
        assert any(head in name for name in trained), head


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["progress", "preference"])
def test_eight_episodes_are_memorized(tmp_path, share):
    """Wrong targets, or outputs at the wrong tokens, would keep the loss above its minimum."""
    sampling = SamplingSettings(
        max_frames=3,
        preference_share=share,
        clip_ratios={"forward": 1.0},
        pair_ratios={"rewind": 1.0},
    )
    out = tmp_path / "out"
    train(
        small_model(),
        noise_episodes(),
        out,
        lora=None,
        train_vision=True,
        sampling=sampling,
        **quick_arguments(
            max_steps=120, per_device_train_batch_size=8, learning_rate=3e-3, weight_decay=0.0
        ),
        max_grad_norm=1.0,
        logging_nan_inf_filter=False,
        save_strategy="no",
    )
    logged = [entry for entry in json.loads((out / "losses.json").read_text()) if "loss" in entry]
    # Played forward or rewound, three frames have progress 0, 1/2 and 1: a half lies between two
    # bins, entropy ln 2, and the others on one, entropy 0.
    entropy = math.log(2) / 3
    last = logged[-5:]
    assert np.mean([entry["progress_loss"] for entry in last]) == pytest.approx(entropy, abs=0.03)
    assert np.mean([entry["loss"] for entry in last]) == pytest.approx(entropy, abs=0.05)
    assert min(entry["progress_loss"] for entry in logged) > entropy - 1e-4
    assert logged[0]["loss"] > 2.0


@pytest.mark.parametrize("format", ["lerobot", "upstream"])
def test_merged_adapters_predict_like_unmerged_ones(tmp_path, format):
    """The deployed checkpoint would predict something else than the trained model."""
    small_model().save_pretrained(tmp_path / "published", format=format)
    model = RobometerRewardModel.from_pretrained(tmp_path / "published", device="cpu")
    clips = [whole_clip(episode) for episode in noise_episodes(3, length=5)]
    before = model.predict(clips)
    network = prepare_model(model.model, lora=LORA, train_vision=False)
    arguments = training_arguments(
        tmp_path / "run", **quick_arguments(max_steps=4, learning_rate=5e-3, save_strategy="no")
    )
    RobometerTrainer(network, model.processor, Sampler(noise_episodes()), arguments).train()
    assert isinstance(network, PeftModel)
    unmerged = RobometerRewardModel(network, model.processor, model.config)
    expected = unmerged.predict(clips)
    preference = unmerged.prefer(clips[0], clips[2])
    merged = RobometerRewardModel(network.merge_and_unload(), model.processor, model.config)
    merged.save_pretrained(tmp_path / "merged", format=format)
    loaded = RobometerRewardModel.from_pretrained(tmp_path / "merged", device="cpu")
    for old, unmerged_, merged_ in zip(before, expected, loaded.predict(clips), strict=True):
        np.testing.assert_allclose(merged_.progress, unmerged_.progress, atol=1e-5)
        np.testing.assert_allclose(merged_.success, unmerged_.success, atol=1e-5)
        assert np.abs(old.progress - unmerged_.progress).max() > 1e-3
    assert loaded.prefer(clips[0], clips[2]) == pytest.approx(preference, abs=1e-5)


def test_train_fine_tunes_a_folder_with_lora_and_writes_a_checkpoint(tmp_path):
    """The command line would write nothing that `reward_model=` accepts."""
    small_model().save_pretrained(tmp_path / "base")
    out = tmp_path / "out"
    trained = train(
        tmp_path / "base", noise_episodes(), out, **quick_arguments(max_steps=2, learning_rate=1e-2)
    )
    loaded = RobometerRewardModel.from_pretrained(out, device="cpu")
    clip = whole_clip(noise_episodes()[0])
    progress = loaded.predict([clip])[0].progress
    np.testing.assert_allclose(progress, trained.predict([clip])[0].progress, atol=1e-6)
    base = RobometerRewardModel.from_pretrained(tmp_path / "base", device="cpu")
    assert np.abs(progress - base.predict([clip])[0].progress).max() > 1e-4
    assert not any("lora" in name for name in trained.model.state_dict())


def test_the_parts_of_the_loss_are_logged_and_weighted(tmp_path):
    """A head that does not learn would go unnoticed, or a weight would do nothing."""
    weights = LossWeights(preference=3.0, progress=0.125, success=0.5)
    train(
        small_model(),
        noise_episodes(),
        tmp_path,
        weights=weights,
        sampling=SamplingSettings(max_frames=3),
        **quick_arguments(max_steps=1, save_strategy="no"),
    )
    (first,) = (e for e in json.loads((tmp_path / "losses.json").read_text()) if "loss" in e)
    total = 3 * first["preference_loss"] + first["progress_loss"] / 8 + first["success_loss"] / 2
    assert first["loss"] == pytest.approx(total, abs=1e-3)


@pytest.mark.parametrize("missing", ["peft", "accelerate"])
def test_a_missing_extra_is_named(monkeypatch, missing):
    """The error would name a module, and not what to install."""
    for module in [name for name in sys.modules if name.split(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, "robometer_gym.training.trainer")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        MissingDependencyError, match=r"needs accelerate and peft: pip install .*\[train\]"
    ):
        _ = robometer_gym.training.train
    assert robometer_gym.training.SamplingSettings().max_frames == 8


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path):
    """Hours later the result would be a checkpoint of NaN, under a curve that falls to 0."""
    with pytest.raises(FloatingPointError, match=r"loss has become (nan|inf) at step \d+. Lower"):
        train(
            small_model(),
            noise_episodes(),
            tmp_path,
            **quick_arguments(max_steps=8, learning_rate=1e37),
        )
    assert not (tmp_path / "model.safetensors").exists()


def test_unusable_episodes_are_refused_before_the_model_is_loaded(tmp_path):
    """Gigabytes would be downloaded before a folder of failures is refused."""
    failures = [Episode(np.zeros((9, 8, 8, 3), np.uint8), TASKS[0], "failure")]
    with pytest.raises(ValueError, match=r"No preference pair.* 1 failure\. Add a successful ep"):
        train("no/such-model", failures, tmp_path)
