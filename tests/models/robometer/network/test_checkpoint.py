"""Checkpoints: both published formats, and damaged or unsuitable folders."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, load_model, save_file
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig

from robometer_gym import CheckpointError, RobometerRewardModel
from robometer_gym.models.robometer.demo import make_random_checkpoint
from robometer_gym.models.robometer.network import hub
from robometer_gym.models.robometer.network.config import Format
from robometer_gym.reward_model import Clip, RewardModelError
from tests.models.robometer.reference import (
    REAL_PROCESSOR,
    Reference,
    encode,
    load_processor,
    preference_message,
    progress_message,
)

FORMATS: tuple[Format, ...] = ("lerobot", "upstream")
EMBEDDING = "model.model.language_model.embed_tokens.weight"  # in LeRobot's format
TIED = "model.lm_head.weight"
HEADS = ("progress_head", "success_head", "preference_head")

# The fields of RobometerConfig and its base class in LeRobot at 7427f31, and the class tag.
LEROBOT_FIELDS = {
    *("type", "input_features", "output_features", "device", "pretrained_path"),
    *("pretrained_revision", "push_to_hub", "repo_id", "license", "tags", "private", "image_key"),
    *("task_key", "default_task", "max_frames", "reward_output", "success_threshold"),
    *("base_model_id", "torch_dtype", "use_multi_image", "use_per_frame_progress_token"),
    *("average_temporal_patches", "frame_pooling", "frame_pooling_attn_temperature"),
    *("progress_loss_type", "progress_discrete_bins", "vlm_config", "normalization_mapping"),
}

Tensors = dict[str, torch.Tensor]
Config = dict[str, Any]


def clips() -> list[Clip]:
    rng = np.random.default_rng(0)
    shapes = (1, 64, 64), (3, 96, 64)
    return [Clip(rng.integers(0, 256, (*shape, 3), dtype=np.uint8), "open it") for shape in shapes]


def load(folder: Path | str, **options: Any) -> RobometerRewardModel:
    return RobometerRewardModel.from_pretrained(folder, device="cpu", **options)


def weights(model: RobometerRewardModel) -> Tensors:
    return model.model.state_dict()


def assert_same_weights(one: RobometerRewardModel, other: RobometerRewardModel) -> None:
    mine, its = weights(one), weights(other)
    assert mine.keys() == its.keys()
    for name in mine:
        assert mine[name].dtype == its[name].dtype, name
        assert torch.equal(mine[name], its[name]), name


def read(folder: Path) -> Tensors:
    """Every tensor of a checkpoint folder, under its name in the file."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def write(folder: Path, tensors: Tensors) -> None:
    """Replace the weights of a checkpoint folder by one file."""
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def write_sharded(folder: Path, tensors: Tensors, shards: int = 3) -> list[Path]:
    """Replace the weights of a checkpoint folder by several files and their index."""
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    names = sorted(tensors)
    files: list[Path] = []
    where: dict[str, str] = {}
    for shard in range(shards):
        file = folder / f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, file, {"format": "pt"})
        where |= dict.fromkeys(part, file.name)
        files.append(file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return files


def edit_config(folder: Path, change: Callable[[Config], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_recipe(folder: Path, **changes: object) -> None:
    """Change upstream's config.yaml in each section that has the fields."""
    recipe = yaml.safe_load((folder / "config.yaml").read_text())
    found = 0
    for section in recipe.values():
        for name in changes.keys() & (section.keys() if isinstance(section, dict) else ()):
            section[name] = changes[name]
            found += 1
    assert found >= len(changes), f"the recipe has no {sorted(changes)}"
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe))


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("originals")
    return {name: make_random_checkpoint(root / name, seed=5, format=name) for name in FORMATS}


@pytest.fixture(params=FORMATS)
def folder(request, originals, tmp_path) -> Path:
    """A copy of a small random checkpoint, in each format, to be damaged."""
    return Path(shutil.copytree(originals[request.param], tmp_path / request.param))


@pytest.fixture
def lerobot(originals, tmp_path) -> Path:
    return Path(shutil.copytree(originals["lerobot"], tmp_path / "copy"))


@pytest.fixture
def upstream(originals, tmp_path) -> Path:
    return Path(shutil.copytree(originals["upstream"], tmp_path / "copy"))


@pytest.fixture(scope="module")
def model(originals) -> RobometerRewardModel:
    return load(originals["lerobot"])


# ---- what must load


def test_the_two_formats_hold_the_same_model(originals):
    """Reading one of the formats wrongly would give random or mixed-up weights."""
    assert_same_weights(load(originals["lerobot"]), load(originals["upstream"]))


def test_the_folders_are_laid_out_as_published(originals):
    """Tests on an unpublished layout would prove nothing."""
    names = {layout: set(read(originals[layout])) for layout in FORMATS}
    heads = {
        f"{head}.{layer}.{kind}"
        for head in HEADS
        for layer in (0, 1, 4)
        for kind in ("weight", "bias")
    }
    for names_there, prefix in (
        (names["lerobot"], "model.model."),
        (names["upstream"], "model."),
    ):
        assert heads <= names_there
        backbone = names_there - heads - {"frame_pool_attn.weight", TIED}
        assert all(
            name.startswith((f"{prefix}visual.", f"{prefix}language_model.")) for name in backbone
        )
    assert TIED not in names["upstream"]
    assert len(names["lerobot"] & {TIED, EMBEDDING}) == 1
    config = json.loads((originals["lerobot"] / "config.json").read_text())
    assert config["type"] == "robometer"
    assert config["vlm_config"]["model_type"] == "qwen3_vl"
    config = json.loads((originals["upstream"] / "config.json").read_text())
    assert config["model_type"] == "qwen3_vl"
    assert config["architectures"] == ["RFM"]
    assert (originals["upstream"] / "config.yaml").is_file()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", FORMATS)
def test_saving_and_loading_changes_no_bit(folder, tmp_path, layout, dtype):
    """A fine-tuned or converted model would come back as another one."""
    before = load(folder, dtype=dtype)
    before.save_pretrained(tmp_path / "saved", format=layout)
    after = load(tmp_path / "saved", dtype=dtype, local_files_only=True)
    assert_same_weights(before, after)
    assert {tensor.dtype for tensor in after.model.backbone.state_dict().values()} == {dtype}
    (embedding,) = (t for name, t in read(tmp_path / "saved").items() if "embed_tokens" in name)
    assert embedding.dtype == dtype
    # The weights are equal bit for bit; a kernel's last bit depends on where they lie in memory.
    atol = 1e-6 if dtype == torch.float32 else 1e-2
    for one, other in zip(before.predict(clips()), after.predict(clips()), strict=True):
        np.testing.assert_allclose(one.progress, other.progress, rtol=0, atol=atol)
        np.testing.assert_allclose(one.success, other.success, rtol=0, atol=atol)


@pytest.mark.parametrize("layout", FORMATS)
def test_saved_checkpoints_are_readable_by_others(model, tmp_path, layout):
    """A checkpoint saved here must be usable with the published code, not with ours alone."""
    model.save_pretrained(tmp_path / "saved", format=layout)
    reference = Reference(tmp_path / "saved")
    for prediction, one in zip(model.predict(clips()), clips(), strict=True):
        progress, success = reference.predict(one)
        np.testing.assert_allclose(prediction.progress, progress, rtol=0, atol=1e-5)
        np.testing.assert_allclose(prediction.success, success, rtol=0, atol=1e-5)


def test_saved_config_is_parsed_by_lerobot(model, tmp_path):
    """LeRobot refuses a config.json with a field it does not know, or without its type."""
    model.save_pretrained(tmp_path / "saved", format="lerobot")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config.keys() <= LEROBOT_FIELDS
    assert config["type"] == "robometer"
    assert [file.name for file in (tmp_path / "saved").glob("*.safetensors*")] == [
        "model.safetensors"
    ]


def test_saved_weights_load_strictly_in_lerobot(model, tmp_path):
    """LeRobot builds a pooling layer in every kind, and refuses a file without its weight."""
    model.save_pretrained(tmp_path / "saved", format="lerobot")
    hidden_size = model.model.backbone.config.text_config.hidden_size
    wrapper: Any = torch.nn.Module()  # with LeRobot's names, and its tied embedding
    wrapper.model = torch.nn.Module()
    wrapper.model.model = copy.deepcopy(model.model.backbone)
    embedding = wrapper.model.model.get_input_embeddings()
    wrapper.model.lm_head = torch.nn.Linear(hidden_size, embedding.num_embeddings, bias=False)
    wrapper.model.lm_head.weight = embedding.weight
    for head in HEADS:
        setattr(wrapper, head, copy.deepcopy(getattr(model.model, head)))
    wrapper.frame_pool_attn = torch.nn.Linear(hidden_size, 1, bias=False)
    for parameter in wrapper.parameters():
        parameter.data.fill_(7)
    load_model(wrapper, tmp_path / "saved" / "model.safetensors", strict=True)
    assert not wrapper.frame_pool_attn.weight.any()
    for name, tensor in model.model.backbone.state_dict().items():
        assert torch.equal(wrapper.model.model.state_dict()[name], tensor), name


def test_the_authors_inference_code_finds_the_kind_of_progress(model, tmp_path):
    """It reads the `loss` section, with "l2" as default: raw logits would pass for progress."""
    model.save_pretrained(tmp_path / "saved", format="upstream")
    run = yaml.safe_load((tmp_path / "saved" / "config.yaml").read_text())
    assert run["loss"] == {"progress_loss_type": "discrete", "progress_discrete_bins": 10}


def test_saving_keeps_the_users_fields(lerobot, tmp_path):
    """A license, a camera key or a success threshold would silently be lost."""
    own: Config = {
        "license": "mit",
        "tags": ["robot"],
        "image_key": "front",
        "task_key": "instruction",
    }
    own |= {"default_task": "open it", "reward_output": "success", "success_threshold": 0.9}
    own["input_features"] = {"front": {"type": "VISUAL", "shape": [3, 64, 64]}}
    edit_config(lerobot, lambda config: config.update(own))
    load(lerobot).save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert {name: saved[name] for name in own} == own
    load(tmp_path / "saved")


def test_transformers_writes_the_same_prompt_from_a_saved_folder(model, tmp_path):
    """LeRobot's encoder takes its chat template from the folder: without one it fails."""
    model.save_pretrained(tmp_path / "saved")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "saved")
    (one,) = clips()[1:]
    text = tokenizer.apply_chat_template(
        progress_message(one), tokenize=False, add_generation_prompt=False, add_vision_id=True
    )
    ours = model.processor.encode([one]).input_ids[0].tolist()
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    single = [token for n, token in enumerate(ours) if token != pad or ours[n - 1] != pad]
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == single


def test_loading_and_saving_leaves_the_backbones_settings_alone(folder, tmp_path):
    """Settings that the installed transformers adds would confuse another version of it."""

    def settings(of: Path) -> Config:
        config = json.loads((of / "config.json").read_text())
        text: Config = config.get("vlm_config", config)["text_config"]
        return text

    def spell(config: Config) -> None:
        text = config.get("vlm_config", config)["text_config"]
        text["rope_scaling"].pop("rope_theta", None)

    edit_config(folder, spell)
    loaded = load(folder)
    loaded.save_pretrained(tmp_path / "saved", format=folder.name)
    assert settings(tmp_path / "saved") == settings(folder)


@pytest.mark.parametrize("layout", FORMATS)
def test_saving_over_a_checkpoint_replaces_it(folder, layout):
    """Files of the old checkpoint would be read in place of the new ones."""
    loaded = load(folder)
    write_sharded(folder, {name: torch.zeros_like(t) for name, t in read(folder).items()})
    loaded.save_pretrained(folder, format=layout)
    assert_same_weights(load(folder), loaded)
    loaded.save_pretrained(folder, format=layout)  # and over its own files
    assert_same_weights(load(folder), loaded)


def test_saving_in_an_unknown_format_is_refused(model, tmp_path):
    """A misspelt format would end in a folder of the wrong layout, found out much later."""
    with pytest.raises(ValueError, match=r"format must be .*'lerobot'.*'upstream'.*got 'lerobt'"):
        model.save_pretrained(tmp_path / "saved", format="lerobt")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("name", [TIED, EMBEDDING])
def test_the_tied_embedding_is_found_under_either_name(lerobot, model, name):
    """Of two tied tensors a file keeps one; the published one keeps the less obvious name."""
    tensors = read(lerobot)
    (kept,) = tensors.keys() & {TIED, EMBEDDING}
    tensors[name] = tensors.pop(kept)
    write(lerobot, tensors)
    assert_same_weights(load(lerobot), model)


def test_a_checkpoint_in_shards_loads(folder, model):
    """The published weights are too large for one file."""
    write_sharded(folder, read(folder))
    assert_same_weights(load(folder), model)


def test_leftovers_of_training_are_tolerated(folder, model):
    """The published checkpoint may contain an unused head and pooling layer."""
    tensors = read(folder)
    for layer in (0, 1, 4):
        for kind in ("weight", "bias"):
            of = f"preference_head.{layer}.{kind}"
            tensors[f"similarity_head.{layer}.{kind}"] = torch.zeros_like(tensors[of])
    tensors["frame_pool_attn.weight"] = torch.zeros(1, tensors["progress_head.0.weight"].shape[1])
    write(folder, tensors)
    assert_same_weights(load(folder), model)
    tensors.pop("frame_pool_attn.weight")
    write(folder, tensors)
    assert_same_weights(load(folder), model)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_files_are_computed_in_float32_on_request(folder, stored):
    """The published files are bfloat16; on a CPU they must still give accurate differences."""
    write(folder, {name: tensor.to(stored) for name, tensor in read(folder).items()})
    loaded = load(folder, dtype=torch.float32)
    backbone = loaded.model.backbone.state_dict()
    assert {tensor.dtype for tensor in backbone.values()} == {torch.float32}
    reference = Reference(folder)
    for prediction, one in zip(loaded.predict(clips()), clips(), strict=True):
        progress, success = reference.predict(one)
        np.testing.assert_allclose(prediction.progress, progress, rtol=0, atol=1e-5)
        np.testing.assert_allclose(prediction.success, success, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spelling", ["transformers 4", "transformers 5"])
def test_the_rotary_settings_are_read_in_both_spellings(folder, spelling):
    """Written by one version of transformers and read by another, they would be silently lost."""

    def respell(config: Config) -> None:
        text = config.get("vlm_config", config)["text_config"]
        rope = dict(text.pop("rope_parameters", None) or text.get("rope_scaling") or {})
        rope |= {"rope_type": "default", "mrope_interleaved": True}
        for name in ("rope_scaling", "rope_theta", "rope_parameters"):
            text.pop(name, None)
        if spelling == "transformers 4":
            rope.pop("rope_theta", None)
            text |= {"rope_scaling": rope, "rope_theta": 1234.0}
        else:
            text["rope_parameters"] = {**rope, "rope_theta": 1234.0}

    edit_config(folder, respell)
    reference = Reference(folder)
    for prediction, one in zip(load(folder).predict(clips()), clips(), strict=True):
        np.testing.assert_allclose(
            prediction.progress, reference.predict(one)[0], rtol=0, atol=1e-5
        )


def test_a_config_as_transformers_writes_it_is_read(folder, model):
    """The published ones hold every setting of the library, ours only those that matter."""

    def write_out(config: Config) -> None:
        backbone = config.get("vlm_config", config)
        complete = Qwen3VLConfig(**{k: v for k, v in backbone.items() if k != "model_type"})
        backbone.update(complete.to_dict(), architectures=backbone.get("architectures"))

    edit_config(folder, write_out)
    loaded = load(folder)
    assert_same_weights(loaded, model)
    for one, other in zip(loaded.predict(clips()), model.predict(clips()), strict=True):
        np.testing.assert_allclose(one.progress, other.progress, rtol=0, atol=1e-6)


def only_weights(folder: Path) -> None:
    """Leave the files that upstream publishes: neither tokenizer nor image settings."""
    for file in folder.iterdir():
        if file.name not in ("config.json", "config.yaml") and ".safetensors" not in file.name:
            file.unlink()


def test_the_tokenizer_may_come_from_elsewhere(folder, originals, model):
    """Upstream publishes no tokenizer: without this argument its weights need the network."""
    only_weights(folder)
    loaded = load(folder, processor=originals["lerobot"])
    for one, other in zip(loaded.predict(clips()), model.predict(clips()), strict=True):
        np.testing.assert_allclose(one.progress, other.progress, rtol=0, atol=1e-6)


# ---- what must not


def raises_checkpoint_error(match: str):
    return pytest.raises(CheckpointError, match=f"(?s){match}")


def test_a_checkpoint_error_is_a_reward_model_error():
    """Code that catches every failure of a reward model would miss this one."""
    assert issubclass(CheckpointError, RewardModelError)


@pytest.mark.parametrize("prefix", ["module.", "rbm.", "model."])
def test_a_wrong_prefix_is_refused(folder, prefix):
    """Read leniently, such a file leaves the model random, and so are the rewards."""
    write(folder, {f"{prefix}{name}": tensor for name, tensor in read(folder).items()})
    with raises_checkpoint_error(
        r"(lacks \d+ tensors|no token embedding).*(prefix|Robometer checkpoint)"
    ):
        load(folder)


def test_one_format_under_the_others_config_is_refused(folder, originals):
    """A config copied from the other repository must not give random weights."""
    other = "upstream" if folder.name == "lerobot" else "lerobot"
    write(folder, read(originals[other]))
    with raises_checkpoint_error(
        r"(lacks \d+ tensors|no token embedding).*(prefix|Robometer checkpoint)"
    ):
        load(folder)


@pytest.mark.parametrize("head", HEADS)
def test_a_missing_head_is_refused(folder, head):
    """A random head gives confident nonsense between 0 and 1."""
    tensors = read(folder)
    write(folder, {name: t for name, t in tensors.items() if not name.startswith(head)})
    with raises_checkpoint_error(rf"lacks 6 tensors.*{head}\.0\..*Robometer checkpoint"):
        load(folder)


def test_a_single_missing_tensor_is_named(folder):
    """One missing bias is as wrong as a missing head, and harder to find."""
    tensors = read(folder)
    name = next(name for name in tensors if name.endswith("layers.0.mlp.up_proj.weight"))
    del tensors[name]
    write(folder, tensors)
    with raises_checkpoint_error(r"lacks 1 tensor.*layers\.0\.mlp\.up_proj\.weight"):
        load(folder)


def test_a_missing_embedding_is_refused(folder):
    """Without it every word is random."""
    tensors = read(folder)
    for name in [name for name in tensors if "embed_tokens" in name or "lm_head" in name]:
        del tensors[name]
    write(folder, tensors)
    with raises_checkpoint_error(r"no token embedding|lacks 1 tensor.*embed_tokens"):
        load(folder)


@pytest.mark.parametrize("name", ["value_head.0.weight", "model.visual.extra.weight"])
def test_an_unknown_tensor_is_refused(folder, name):
    """It belongs to a model that computes something else than ours."""
    write(folder, read(folder) | {name: torch.zeros(2)})
    own = name.removeprefix("model.")  # the part that both formats share
    with raises_checkpoint_error(rf"1 tensors? the model has no place for: \S*{own}\."):
        load(folder)


def test_a_tensor_of_another_shape_is_refused(folder):
    """A head with other bins would be decoded into wrong progress."""
    tensors = read(folder)
    for kind in ("weight", "bias"):
        tensors[f"progress_head.4.{kind}"] = tensors[f"progress_head.4.{kind}"][:5].clone()
    write(folder, tensors)
    with raises_checkpoint_error(r"progress_head\.4\.(weight|bias).*(shape|\(5)"):
        load(folder)


@pytest.mark.parametrize("rows", [-1, 64], ids=["one row short", "padded"])
def test_another_vocabulary_is_refused(folder, rows):
    """The rows of the added tokens would be others than those that were trained."""
    tensors = read(folder)
    (name,) = [name for name in tensors if "embed_tokens" in name or "lm_head" in name]
    old = tensors[name]
    tensors[name] = old[:rows].clone() if rows < 0 else torch.cat([old, old[:rows]])
    write(folder, tensors)
    size = len(tensors[name])

    def resize(config: Config) -> None:
        config.get("vlm_config", config)["text_config"]["vocab_size"] = size

    with raises_checkpoint_error(rf"{len(old)}.*{size}|{size}.*{len(old)}"):
        load(folder)  # config and file disagree
    edit_config(folder, resize)
    with raises_checkpoint_error(rf"{len(old)}.*{size}|{size}.*{len(old)}"):
        load(folder)  # config and file agree, the tokenizer does not


@pytest.mark.skipif(
    not REAL_PROCESSOR.is_dir(),
    reason="shared/data/qwen3-vl-processor is not beside this checkout: no real tokenizer",
)
def test_the_tokenizer_of_another_model_is_refused(folder):
    """Its words would be looked up in rows that mean something else."""
    with raises_checkpoint_error(r"151674.*(processor|tokenizer)|(processor|tokenizer).*151674"):
        load(folder, processor=REAL_PROCESSOR)


def test_a_truncated_file_is_refused(folder):
    """A download that broke off."""
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with raises_checkpoint_error(rf"{file.name}.*([Dd]ownload|again|incomplete)"):
        load(folder)


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0"]
)
def test_a_file_without_tensors_is_refused(folder, content):
    """An empty file, or git's pointer to the real one."""
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(content)
    with raises_checkpoint_error(rf"{file.name}.*([Dd]ownload|again|incomplete)"):
        load(folder)


def test_a_missing_shard_is_refused(folder):
    """Half of the model would stay random."""
    files = write_sharded(folder, read(folder))
    files[1].unlink()
    with raises_checkpoint_error(rf"{files[1].name}"):
        load(folder)


@pytest.mark.parametrize(
    "content", ["<html>sign in</html>", "[]", '{"weight_map": []}', '{"weight_map": {"a": 3}}']
)
def test_a_malformed_index_is_refused(folder, content):
    """A page that a proxy sent in place of the file, or a file of another program."""
    write_sharded(folder, read(folder))
    (folder / "model.safetensors.index.json").write_text(content)
    with raises_checkpoint_error(r"model\.safetensors\.index\.json"):
        load(folder)


def test_a_folder_without_weights_is_refused(folder):
    """The config alone was copied."""
    (file,) = folder.glob("*.safetensors")
    file.unlink()
    with raises_checkpoint_error(r"safetensors"):
        load(folder)


@pytest.mark.parametrize("kind", ["absolute", "relative", "home", "with dots"])
def test_a_path_that_does_not_exist_is_refused(tmp_path, kind):
    """A typing error must be named as such, not be sought on the network."""
    path = {
        "absolute": str(tmp_path / "no" / "such" / "folder"),
        "relative": "./no-such-folder",
        "home": "~/no-such-folder/of/mine",
        "with dots": "../no-such-folder/x",
    }[kind]
    with raises_checkpoint_error(r"no-such-folder|no/such/folder"):
        load(path)


def test_an_empty_folder_is_refused(tmp_path):
    """The parent of the checkpoint was named."""
    with raises_checkpoint_error(r"config\.json"):
        load(tmp_path)


def test_a_file_in_place_of_a_folder_is_refused(folder):
    """The weights were named instead of the folder they lie in."""
    (file,) = folder.glob("*.safetensors")
    with raises_checkpoint_error(r"folder"):
        load(file)


def test_an_unreachable_hub_is_reported(no_hanging, monkeypatch, tmp_path):
    """On a cluster node without network, a run must stop with advice, not hang."""
    nowhere = "http://127.0.0.1:9"  # the discard port, closed nearly everywhere
    template = nowhere + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    waits: list[float] = []  # between attempts: the only time that the machine's load leaves alone
    monkeypatch.setattr(time, "sleep", waits.append)
    with raises_checkpoint_error(
        r"robometer-gym-test/missing.*(network|connect|offline|reach|cache|download)"
    ):
        load("robometer-gym-test/missing")
    assert sum(waits) < 30


@pytest.mark.parametrize("how", ["local_files_only", "HF_HUB_OFFLINE"])
def test_offline_nothing_is_downloaded(monkeypatch, tmp_path, how):
    """Without network the error must name the cache as the place that lacks the model."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with raises_checkpoint_error(r"robometer-gym-test/missing.*(cache|local_files_only|download)"):
        load("robometer-gym-test/missing", local_files_only=how == "local_files_only")


def test_without_a_tokenizer_and_offline_the_error_names_processor(monkeypatch, folder, tmp_path):
    """Upstream's weights alone, without network: the user has to pass `processor=`."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    only_weights(folder)
    with raises_checkpoint_error(r"processor"):
        load(folder, local_files_only=True)


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("use_per_frame_progress_token", False, "use_per_frame_progress_token"),
        ("progress_loss_type", "l2", "progress_loss_type"),
        ("use_multi_image", False, "use_multi_image"),
    ],
)
def test_another_kind_of_prompt_is_refused(folder, option, value, named):
    """Such a checkpoint is read at other tokens: here its rewards would be nonsense."""
    if (folder / "config.yaml").exists():
        edit_recipe(folder, **{option: value})
    else:
        edit_config(folder, lambda config: config.update({option: value}))
    with raises_checkpoint_error(named):
        load(folder)


def test_plain_qwen_is_not_a_robometer(tmp_path, originals, upstream):
    """The base model has no progress head, and its id is easily given by mistake."""
    tensors = {name: t for name, t in read(upstream).items() if not name.startswith(HEADS)}
    write(upstream, tensors)
    (upstream / "config.yaml").unlink()
    architecture = {"architectures": ["Qwen3VLForConditionalGeneration"]}
    edit_config(upstream, lambda config: config.update(architecture))
    with raises_checkpoint_error(r"Robometer checkpoint"):
        load(upstream)


def test_another_reward_model_of_lerobot_is_refused(lerobot):
    """LeRobot publishes several reward models in the same layout."""
    edit_config(lerobot, lambda config: config.update(type="sarm"))
    with raises_checkpoint_error(r"Robometer checkpoint|robometer.*sarm|sarm.*robometer"):
        load(lerobot)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"type": "robometer"}', "\x00\x01"])
def test_a_corrupted_config_is_refused(folder, content):
    """A download that broke off, or a merge gone wrong."""
    (folder / "config.json").write_text(content)
    with raises_checkpoint_error(r"config\.json"):
        load(folder)


def test_a_corrupted_recipe_is_refused(upstream):
    """Without config.yaml the kind of the checkpoint is unknown."""
    (upstream / "config.yaml").write_text("model: [unclosed")
    with raises_checkpoint_error(r"config\.yaml"):
        load(upstream)


def test_the_recipe_cannot_run_code(upstream, tmp_path):
    """A config.yaml from the hub is untrusted: reading it must execute nothing."""
    witness = tmp_path / "witness"
    recipe = (upstream / "config.yaml").read_text()
    code = f"!!python/object/apply:os.mkdir ['{witness}']"
    (upstream / "config.yaml").write_text(f"{recipe}\nlogging:\n  log_to: {code}\n")
    with suppress(CheckpointError):
        load(upstream)
    assert not witness.exists()


def test_the_recipe_may_hold_the_authors_own_objects(upstream, model):
    """The authors' training script writes such a tag when a second model was configured."""
    recipe = (upstream / "config.yaml").read_text()
    tag = "!!python/object:robometer.models.rewind_transformer.ReWINDTransformerConfig"
    entry = f"model:\n  rewind: {tag}\n    hidden_dim: 512\n    layers: !!python/tuple [1, 2]\n"
    assert "\nmodel:\n" in recipe
    (upstream / "config.yaml").write_text(recipe.replace("model:\n", entry, 1))
    assert_same_weights(load(upstream), model)


@pytest.mark.parametrize(
    "option", ["use_per_frame_progress_token", "progress_loss_type", "use_multi_image"]
)
def test_a_recipe_without_a_field_means_the_authors_default(upstream, option):
    """In the authors' code each of these is off by default: such a run is of another kind."""
    recipe = yaml.safe_load((upstream / "config.yaml").read_text())
    for section in recipe.values():
        section.pop(option, None)
    (upstream / "config.yaml").write_text(yaml.safe_dump(recipe))
    with raises_checkpoint_error(option):
        load(upstream)


@pytest.mark.parametrize("with_progress", [True, False])
def test_the_preference_prompt_is_that_of_the_recipe(upstream, with_progress):
    """With another prompt than in training, preferences are random."""
    edit_recipe(upstream, predict_pref_progress=with_progress)
    a, b = clips()
    processor = load(upstream).processor
    ours = processor.encode_preference([(a, b)]).input_ids
    message = preference_message(a, b, with_progress=with_progress)
    assert torch.equal(ours, encode(load_processor(upstream), [message])["input_ids"])


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_a_config_without_the_backbone_is_refused(folder, part):
    """The defaults of transformers describe a model of another size."""

    def remove(config: Config) -> None:
        del config.get("vlm_config", config)[part]

    edit_config(folder, remove)
    with raises_checkpoint_error(rf"{part}|lacks \d+ tensors"):
        load(folder)


def test_a_configuration_without_the_rotary_base_is_refused(lerobot):
    """A default would be taken, and every reward would be a little wrong."""
    edit_config(lerobot, lambda config: config["vlm_config"]["text_config"].pop("rope_theta"))
    with pytest.raises(CheckpointError, match="no rope_theta"):
        RobometerRewardModel.from_pretrained(lerobot, device="cpu")


@pytest.mark.parametrize("value", ["big", None, -4])
def test_a_configuration_that_describes_no_model_is_refused(lerobot, value):
    """The user would see an error of another library, without the name of the checkpoint."""
    edit_config(lerobot, lambda c: c["vlm_config"]["text_config"].update(hidden_size=value))
    with pytest.raises(CheckpointError, match=r"configuration of .* describes no model"):
        RobometerRewardModel.from_pretrained(lerobot, device="cpu")


def test_a_quantized_checkpoint_is_refused(lerobot):
    """Whole numbers would be taken for weights."""
    tensors = load_file(lerobot / "model.safetensors")
    name = "success_head.0.weight"
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, lerobot / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{name} .* is torch.int8: quantized"):
        RobometerRewardModel.from_pretrained(lerobot, device="cpu")


def test_unreadable_weights_are_not_reported_as_damaged(lerobot, monkeypatch):
    """A user whose group lacks a permission would download nine gigabytes again."""
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may read everything
    with pytest.raises(CheckpointError, match="may not be read"):
        RobometerRewardModel.from_pretrained(lerobot, device="cpu")


def test_a_misspelt_demo_is_recognized():
    """The error would name the network, or a missing folder."""
    with pytest.raises(CheckpointError, match=r"'dmeo' does not exist\. Did you mean 'demo'\?"):
        load("dmeo")


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("torch_dtype", r"called dtype here"),
        ("device_map", r"called device here"),
        ("load_in_4bit", r"quantization='nf4'"),
        ("dtipe", r"See its docstring"),
    ],
)
def test_arguments_of_other_libraries_are_named(argument, hint):
    """The user would not find out which argument takes its place."""
    with pytest.raises(TypeError, match=rf"no argument '{argument}'\. .*{hint}"):
        load("demo", **{argument: "auto"})


def test_a_model_reports_its_checkpoint(originals):
    """A report could not be traced to the weights that made it."""
    name = str(originals["lerobot"])
    one = load(name)
    assert repr(one).startswith(f"RobometerRewardModel({name!r}, engine='fast', device='cpu'")
    total = hashlib.sha256()
    for name_there, tensor in one.model.named_parameters():
        bits = tensor.detach().numpy().astype(np.float32).ravel().view(np.int32).astype(int)
        order = np.arange(len(bits)) % 8191 + 1
        total.update(f"{name_there} {tuple(tensor.shape)} ".encode())
        total.update(f"{bits.sum()} {(bits * order).sum()}\n".encode())
    weights = total.hexdigest()[:12]
    assert one.describe() == {"name": name, "dtype": "float32", "weights": weights}
    assert load(originals["upstream"]).describe()["weights"] == weights
    one.predict(clips())  # fuses weights
    assert one.describe()["weights"] == weights
    with torch.no_grad():
        one.model.get_parameter("success_head.4.bias").add_(1e-6)
    assert one.describe()["weights"] != weights


def test_a_download_reports_its_revision(originals, tmp_path, monkeypatch):
    """A branch moves: the commit is needed to load the same weights again."""
    snapshot = tmp_path / "snapshots" / "beef63bc914c5c189329"
    shutil.copytree(originals["lerobot"], snapshot)
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(snapshot))
    model = load("lerobot/Robometer-4B")
    assert model.describe()["name"] == "lerobot/Robometer-4B"
    assert model.describe()["revision"] == "beef63bc914c5c189329"
    assert "('lerobot/Robometer-4B', revision='beef63bc914c5c189329', " in repr(model)
