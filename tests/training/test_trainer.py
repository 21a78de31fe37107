"""Training: moved weights, convergence, interruption, and refused input."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import TrainerCallback

import robometer_gym.training
from robometer_gym import Clip, RobometerRewardModel
from robometer_gym.data import Episode
from robometer_gym.models.robometer.demo import byte_tokenizer, demo_config, random_model
from robometer_gym.models.robometer.network.images import ImageSettings
from robometer_gym.models.robometer.network.processor import PHRASES, RobometerProcessor
from robometer_gym.training import (
    LORA,
    LossWeights,
    RobometerTrainer,
    SamplingSettings,
    train,
    training_arguments,
)
from robometer_gym.training.batches import Collator, NumberedExamples
from robometer_gym.training.sampler import PreferencePair, Sampler
from robometer_gym.training.trainer import prepare_model
from robometer_gym.validation import MissingDependencyError

# transformers 4.57 takes checkpoints written within one second for a disk fault.
pytestmark = pytest.mark.filterwarnings("ignore:mtime may not be reliable:UserWarning")

TASKS = ("open the drawer", "close the door")


def small_model(seed: int = 0) -> RobometerRewardModel:
    """Return a random model with short prompts."""
    processor = RobometerProcessor(byte_tokenizer([*PHRASES, *TASKS]), ImageSettings())
    config = demo_config(processor)
    return RobometerRewardModel(random_model(config, seed), processor, config)


def episodes(count: int = 8, length: int = 3) -> list[Episode]:
    """Return episodes of noise, in which every frame is different."""
    rng = np.random.default_rng(0)
    return [
        Episode(rng.integers(0, 256, (length, 64, 64, 3), np.uint8), TASKS[number % 2])
        for number in range(count)
    ]


def whole_clip(episode: Episode) -> Clip:
    return Clip(episode.frames[range(len(episode))], episode.task)


def fast(**changes):
    """Return arguments for a few quick steps."""
    return {
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "disable_tqdm": True,
        "report_to": [],
        "use_cpu": True,
        **changes,
    }


def copy_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


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
    before = copy_of(network)
    settings = SamplingSettings(max_frames=3)
    # LoRA's second factor starts at 0, and the first has no gradient until it moves.
    arguments = training_arguments(
        tmp_path, **fast(max_steps=3, learning_rate=1e-3, warmup_steps=0, save_strategy="no")
    )
    RobometerTrainer(network, model.processor, Sampler(episodes(), settings), arguments).train()
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
        episodes(),
        out,
        lora=None,
        train_vision=True,
        sampling=sampling,
        **fast(max_steps=120, per_device_train_batch_size=8, learning_rate=3e-3, weight_decay=0.0),
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


class Interrupt(TrainerCallback):  # type: ignore[misc]
    """Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "LoRA"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, lora):
    """After a power cut a run would continue with other examples, or without its optimizer."""

    def run(out, **more):
        settings = SamplingSettings(preference_share=0.5, max_frames=3)
        arguments = fast(max_steps=6, save_steps=2, learning_rate=1e-3)
        return train(
            small_model(), episodes(), out, lora=lora, sampling=settings, **arguments, **more
        )

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", callbacks=[Interrupt(3)])
    resumed = run(tmp_path / "cut", resume=True)

    def losses(out):
        logged = json.loads((tmp_path / out / "losses.json").read_text())
        return {e["step"]: (e["loss"], e["grad_norm"]) for e in logged if "loss" in e}

    # Equal but for rounding, which may depend on the alignment of memory.
    assert list(losses("cut")) == list(losses("whole")) == [1, 2, 3, 4, 5, 6]
    for step, values in losses("whole").items():
        assert losses("cut")[step] == pytest.approx(values, rel=1e-3)
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], tensor, rtol=0, atol=2e-5)


@pytest.mark.parametrize("format", ["lerobot", "upstream"])
def test_merged_adapters_predict_like_unmerged_ones(tmp_path, format):
    """The deployed checkpoint would predict something else than the trained model."""
    small_model().save_pretrained(tmp_path / "published", format=format)
    model = RobometerRewardModel.from_pretrained(tmp_path / "published", device="cpu")
    clips = [whole_clip(episode) for episode in episodes(3, length=5)]
    before = model.predict(clips)
    network = prepare_model(model.model, lora=LORA, train_vision=False)
    arguments = training_arguments(
        tmp_path / "run", **fast(max_steps=4, learning_rate=5e-3, save_strategy="no")
    )
    RobometerTrainer(network, model.processor, Sampler(episodes()), arguments).train()
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
    trained = train(tmp_path / "base", episodes(), out, **fast(max_steps=2, learning_rate=1e-2))
    loaded = RobometerRewardModel.from_pretrained(out, device="cpu")
    clip = whole_clip(episodes()[0])
    progress = loaded.predict([clip])[0].progress
    np.testing.assert_allclose(progress, trained.predict([clip])[0].progress, atol=1e-6)
    base = RobometerRewardModel.from_pretrained(tmp_path / "base", device="cpu")
    assert np.abs(progress - base.predict([clip])[0].progress).max() > 1e-4
    assert not any("lora" in name for name in trained.model.state_dict())


def test_a_folder_with_another_run_is_not_overwritten(tmp_path):
    """Two days of training would be lost to a forgotten --resume."""
    train(small_model(), episodes(), tmp_path, **fast(max_steps=1, save_steps=1))
    with pytest.raises(ValueError, match=r"holds the checkpoints of another run.*--resume"):
        train(small_model(), episodes(), tmp_path, **fast(max_steps=1, save_steps=1))


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path, caplog):
    """A job script that always passes --resume could not start."""
    train(small_model(), episodes(), tmp_path, resume=True, **fast(max_steps=1, save_strategy="no"))
    assert "There is no checkpoint in" in caplog.text


def test_the_defaults_are_the_authors(tmp_path):
    """Fine-tuning without options would differ from the published recipe."""
    plain = training_arguments(tmp_path, use_cpu=True)
    assert (plain.learning_rate, plain.weight_decay, plain.max_grad_norm) == (2e-5, 0.01, 10.0)
    assert (plain.max_steps, plain.warmup_steps, plain.seed) == (1000, 100, 42)
    assert plain.lr_scheduler_type == "cosine"
    assert (LORA.r, LORA.lora_alpha, LORA.lora_dropout) == (32, 64, 0.05)
    changed = training_arguments(tmp_path, use_cpu=True, max_steps=50, learning_rate=1e-3)
    assert (changed.max_steps, changed.warmup_steps, changed.learning_rate) == (50, 5, 1e-3)


def test_the_parts_of_the_loss_are_logged_and_weighted(tmp_path):
    """A head that does not learn would go unnoticed, or a weight would do nothing."""
    weights = LossWeights(preference=3.0, progress=0.125, success=0.5)
    train(
        small_model(),
        episodes(),
        tmp_path,
        weights=weights,
        sampling=SamplingSettings(max_frames=3),
        **fast(max_steps=1, save_strategy="no"),
    )
    (first,) = (e for e in json.loads((tmp_path / "losses.json").read_text()) if "loss" in e)
    total = 3 * first["preference_loss"] + first["progress_loss"] / 8 + first["success_loss"] / 2
    assert first["loss"] == pytest.approx(total, abs=1e-3)


def test_a_batch_has_one_kind_and_each_number_its_own_example(tmp_path):
    """Labeled clips would be padded to twice their length; or workers repeat one another."""
    arguments = training_arguments(tmp_path, **fast(max_steps=40), gradient_accumulation_steps=2)
    sampler = Sampler(episodes(), SamplingSettings(preference_share=0.5, max_frames=3))
    examples = NumberedExamples(sampler, arguments)
    assert len(examples) == 40 * 4 * 2
    kinds = [isinstance(examples[number], PreferencePair) for number in range(len(examples))]
    batches = np.reshape(kinds, (-1, 4))
    assert (batches.all(axis=1) | ~batches.any(axis=1)).all()
    assert 20 < batches[:, 0].sum() < 60
    images = [example_bytes(examples[number]) for number in range(80)]
    assert images == [example_bytes(examples[number]) for number in range(80)]
    assert len(set(images)) > 40


def example_bytes(example) -> bytes:
    pair = isinstance(example, PreferencePair)
    clips = [example.a.clip, example.b.clip] if pair else [example.clip]
    return b"".join(clip.task.encode() + clip.frames.tobytes() for clip in clips)


def test_a_pair_trains_progress_and_success_of_its_first_clip_alone():
    """The prompt is about the first trajectory's progress; targets of B would be noise."""
    processor = small_model().processor
    sampler = Sampler(episodes(), SamplingSettings(max_frames=3))
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
        train(small_model(), episodes(), tmp_path, **fast(max_steps=8, learning_rate=1e37))
    assert not (tmp_path / "model.safetensors").exists()


def test_an_incomplete_checkpoint_is_skipped(tmp_path):
    """A run that was killed while saving could not be resumed at all."""
    arguments = fast(max_steps=4, save_steps=2)
    train(small_model(), episodes(), tmp_path, **arguments)
    (tmp_path / "checkpoints" / "checkpoint-4" / "trainer_state.json").unlink()
    train(small_model(), episodes(), tmp_path, resume=True, **arguments)
    logged = json.loads((tmp_path / "losses.json").read_text())
    assert [entry["step"] for entry in logged if "loss" in entry] == [1, 2, 3, 4]


def test_epochs_are_refused(tmp_path):
    """The user would see a complaint about __len__."""
    with pytest.raises(ValueError, match="max_steps must be >= 1, got -1"):
        training_arguments(tmp_path, max_steps=-1, num_train_epochs=1)


def test_unusable_episodes_are_refused_before_the_model_is_loaded(tmp_path):
    """Gigabytes would be downloaded before a folder of failures is refused."""
    failures = [Episode(np.zeros((9, 8, 8, 3), np.uint8), TASKS[0], "failure")]
    with pytest.raises(ValueError, match=r"No preference pair.* 1 failure\. Add a successful ep"):
        train("no/such-model", failures, tmp_path)
