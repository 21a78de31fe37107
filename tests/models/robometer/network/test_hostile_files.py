"""Damaged and hostile checkpoint files: refused by an error that names the file, or harmless.

Tables of generated cases; each test prints the number of its cases and of its refusals.
"""

from __future__ import annotations

import copy
import json
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from robometer_gym import CheckpointError, RobometerRewardModel
from robometer_gym.models.robometer.demo import make_random_checkpoint
from robometer_gym.models.robometer.network.config import Format
from robometer_gym.reward_model import Clip
from tests.paths import ROOT

FORMATS: tuple[Format, ...] = ("lerobot", "upstream")
CLIP = Clip(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8), "open it")
DELETED = object()
VALUES: tuple[Any, ...] = (
    *(DELETED, None, True, False, -1, 0, 1, 7, 1.5, 1e300, 10**12, 10**400),
    *(float("nan"), float("inf"), "", "x", "default", "x" * 5000),
    *([], {}, [1, "a"], [[[]]], [1e9] * 3, {"rope_type": "yarn"}),
)

pytestmark = pytest.mark.usefixtures("no_hanging", "limited_memory")


@pytest.fixture
def limited_memory() -> Iterator[None]:
    """Fail if the process needs more than 2 GB above its present maximum."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 << 20  # in KiB


@pytest.fixture(scope="module", params=FORMATS)
def original(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / request.param
    return make_random_checkpoint(path, seed=5, format=request.param)


@pytest.fixture
def folder(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / original.name))


def outcome(folder: Path) -> str:
    """Load and predict: "refused" by an error that names the folder, or "loaded" and finite."""
    try:
        model = RobometerRewardModel.from_pretrained(folder, device="cpu", local_files_only=True)
    except CheckpointError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert str(folder) in message
        assert len(message) < 3000
        return "refused"
    (prediction,) = model.predict([CLIP])
    assert np.isfinite(prediction.progress).all()
    assert np.isfinite(prediction.success).all()
    model.compute_reward([CLIP])
    return "loaded"


def refuse(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        RobometerRewardModel.from_pretrained(folder, device="cpu", local_files_only=True)
    assert str(folder) in str(caught.value)


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every field and list item below `value`."""
    items: Any = value.items() if isinstance(value, dict) else ()
    for key, child in enumerate(value) if isinstance(value, list) else items:
        yield (*path, key)
        yield from paths(child, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    changed = copy.deepcopy(value)
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    if new is DELETED:
        del parent[path[-1]]
    else:
        parent[path[-1]] = new
    return changed


def try_all(file: Path, folder: Path, content: Any, *, tokens: int | None = None) -> dict[str, int]:
    """Replace every field by every value, one at a time, and count the outcomes."""
    counts = {"refused": 0, "loaded": 0}
    dump = yaml.safe_dump if file.suffix == ".yaml" else json.dumps
    fields = list(paths(content))
    for path in fields if tokens is None else [p for p in fields if len(p) <= tokens]:
        for value in VALUES:
            try:
                file.write_text(dump(replaced(content, path, value)))
                counts[outcome(folder)] += 1
            except Exception as error:
                raise AssertionError(f"{path} = {value!r:.60}: {error!r:.300}") from error
    print(f"{file.name}: {sum(counts.values())} cases, {counts}")
    return counts


def test_changed_configurations(folder, capsys):
    """A wrong value would hang, fail at the first prediction, or give NaN and other rewards."""
    file = folder / "config.json"
    counts = try_all(file, folder, json.loads(file.read_text()))
    assert counts["refused"] > 300


def test_changed_training_runs(folder):
    """config.yaml of the authors' format: the same harm."""
    file = folder / "config.yaml"
    if not file.exists():
        pytest.skip("LeRobot's format has no config.yaml")
    assert try_all(file, folder, yaml.safe_load(file.read_text()))["refused"] > 50


def test_changed_image_settings(folder):
    """Frames would be cut or normalized in another way, or a prediction would fail."""
    if folder.name != "lerobot":
        pytest.skip("the same file in both formats")
    file = folder / "preprocessor_config.json"
    assert try_all(file, folder, json.loads(file.read_text()))["refused"] > 50


def test_changed_tokenizers(tmp_path):
    """The tokenizers library hangs on some files and aborts the process on others."""
    folder = Path(shutil.copytree(ROOT / "robometer_gym/assets/demo", tmp_path / "demo"))
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    bombs: list[Any] = [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "aa" * 10_000},
        {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 1000},
        {"type": "Split", "pattern": {"Regex": "(a*)*b"}, "behavior": "Isolated", "invert": False},
        {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "missing"},
    ]
    fields = [path for path in paths(content) if path[:2] not in (VOCABULARY, MERGES)]
    fields = [path for path in fields if path[0] != "added_tokens" or path[1:2] < (2,)]
    fields += [
        VOCABULARY,
        (*VOCABULARY, "a"),
        (*VOCABULARY, list(vocabulary)[-1]),
        MERGES,
        (*MERGES, 0),
    ]
    fields += [(*MERGES, 0, 1), (*MERGES, 340)]
    cases = [(path, value) for path in fields for value in (*VALUES, *bombs)]
    cases += [(VOCABULARY, {**vocabulary, "a": number}) for number in (2**40, 2**32, -1, 1, 600)]
    cases += [(MERGES, [*merges, pair]) for pair in (["a", "\0"], ["a"], "a b c", "ab", [1, 2])]
    counts = {"refused": 0, "loaded": 0}
    for path, value in cases:
        try:
            file.write_text(json.dumps(replaced(content, path, value)))
            counts[outcome(folder)] += 1
        except Exception as error:
            raise AssertionError(f"{path} = {value!r:.60}: {error!r:.300}") from error
    print(f"tokenizer.json: {len(cases)} cases, {counts}")
    assert counts["refused"] > 1000


VOCABULARY, MERGES = ("model", "vocab"), ("model", "merges")


def deep(opening: str, closing: str) -> str:
    return opening * 100_000 + closing * 100_000


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n"
    for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [*{a}, *{a}, *{a}, *{a}]}}\n"
    for a, b in zip("abcdefghijklmnop", "bcdefghijklmnopq", strict=True)
)
TEXTS = {
    "empty": "",
    "deep list": deep("[", "]"),
    "deep table": deep('{"a":', "}"),
    "forty levels": '{"type": "robometer", "vlm_config": ' + "[" * 40 + "]" * 40 + "}",
    "huge number": '{"max_frames": ' + "9" * 100_000 + "}",
    "lone surrogate": '{"type": "\\ud800", "base_model_id": "\\ud800"}',
    "a list": "[1, 2]",
    "shared lists": LAUGHS,
    "merged tables": MERGED,
    "contains itself": "a: &a [*a]\n",
    "a date": "model: 2020-99-99\n",
    "an unknown tag": "model: !unknown {}\n",
    "an object": "model: !!python/object/apply:os.getcwd []\n",
    "unhashable key": "? [a, b]\n: 1\n",
}


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "config.yaml",
        "preprocessor_config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
    ],
)
def test_text_files_of_every_kind(folder, name):
    """One file of a checkpoint would hang a training run, or end it far from the cause."""
    file = folder / name
    if name == "config.yaml" and not file.exists():
        pytest.skip("LeRobot's format has no config.yaml")
    for text in TEXTS.values():
        file.write_text(text)
        outcome(folder)
    file.write_bytes(b"\xff\xfe\x00")
    assert outcome(folder) == "refused"
    print(f"{name}: {len(TEXTS) + 1} cases")


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def make_directory(path: Path) -> None:
    path.mkdir()


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [make_fifo, make_endless, make_sparse, make_directory, make_loop])
def test_files_that_are_no_files(folder, make):
    """A FIFO blocks for ever, a device has no end: a worker would hang, or fill the memory."""
    names = [path.name for path in folder.iterdir()]
    names += ["model.safetensors.index.json", "extra.safetensors"]
    refused = 0
    for name in names:
        path, kept = folder / name, folder.parent / "kept"
        if path.exists():
            path.rename(kept)
        make(path)
        refused += outcome(folder) == "refused"
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        if kept.exists():
            kept.rename(path)
    print(f"{make.__name__}: {len(names)} cases, {refused} refused")
    assert refused >= 4


@pytest.mark.parametrize(
    "name",
    [
        "x" * 300,
        "x" * 5000,
        "x/" * 3000,
        "a/" + "x" * 5000,
        "~no-such-user/x",
        "\0",
        "a\0/b",
        "",
        "-" * 97 + "/x",
    ],
)
def test_names_that_cannot_be_paths(name):
    """The user would get an OSError of the file system, without the checkpoint's name."""
    with pytest.raises(CheckpointError):
        RobometerRewardModel.from_pretrained(name, device="cpu", local_files_only=True)


# Weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(folder, value):
    """Every reward would be NaN, found out at the first prediction, without the tensor's name."""
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    names = [name for name in tensors if not name.startswith("frame_pool_attn")]
    for name in names:
        changed = tensors[name].clone()
        changed.view(-1)[-1] = value
        save_file(tensors | {name: changed}, file, {"format": "pt"})
        refuse(folder, rf"{name} in .*safetensors has NaN or infinite values in torch\.float32")
    print(f"{value}: {len(names)} cases, all refused")


def test_weights_that_overflow_the_dtype(folder):
    """Loaded in float16, a large but sound weight would become infinite."""
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("layers.0.mlp.up_proj.weight"))
    tensors[name][0, 0] = 1e6
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{name} .*infinite values in torch\.float16"):
        RobometerRewardModel.from_pretrained(folder, device="cpu", dtype="float16")


def test_tensors_of_every_other_kind(folder):
    """Integers would be taken for weights; other shapes would fail far from the cause."""
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    names = [name for name in tensors if "embed_tokens" in name or "lm_head" in name]
    names += ["progress_head.0.weight", "success_head.4.bias"]
    kinds: list[Any] = [torch.int8, torch.int64, torch.bool, torch.complex64]
    kinds += [getattr(torch, kind) for kind in ("float8_e4m3fn", "float8_e5m2")]
    for name in names:
        changes = [tensors[name].to(kind) for kind in kinds]
        changes += [
            torch.zeros(()),
            torch.zeros(0),
            torch.zeros(1 << 21, 1),
            tensors[name].flatten(),
        ]
        if tensors[name].ndim == 1:
            changes.pop()
        for changed in changes:
            save_file(tensors | {name: changed}, file, {"format": "pt"})
            refuse(folder, "(quantized|shape|embedding|vocab_size)")
    print(f"{len(names)} tensors, {len(names) * (len(kinds) + 4)} cases, all refused")


def test_a_tensor_in_two_files(folder):
    """Old weights beside new ones: one of them would be used by chance."""
    (file,) = folder.glob("*.safetensors")
    shutil.copy(file, folder / "old.safetensors")
    refuse(folder, "both hold")


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/dev/zero", "x" * 300, "", "a/b", ".", "\ud800", 3, None, []]
)
def test_an_index_that_points_elsewhere(folder, name):
    """A stranger's index could name any file of this machine."""
    index = {"weight_map": {"progress_head.0.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refuse(folder, r"model\.safetensors\.index\.json|cannot be read")
