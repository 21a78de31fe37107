"""Loading and saving of checkpoint folders in both published formats.

Strict: a tensor that is missing, unknown or of another shape is an error, because a random head
still gives rewards. Knows nothing of tokenizers or of predictions.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from robometer_gym.models.robometer.network.config import Format, RobometerConfig
from robometer_gym.models.robometer.network.files import check_regular_file, read_mapping
from robometer_gym.models.robometer.network.modeling import RobometerModel, empty_model
from robometer_gym.reward_model import CheckpointError

__all__ = ["CHECKPOINT_FILES", "load_checkpoint", "save_checkpoint"]

CHECKPOINT_FILES = ("*.safetensors", "*.json", "*.yaml")
"""Files of a checkpoint to download from the hub."""

_CONFIG, _RUN, _INDEX = "config.json", "config.yaml", "model.safetensors.index.json"

# Our "backbone." in each format. LeRobot's wrapper holds the model with its
# language-modelling head, upstream's the one without.
_BACKBONE: dict[Format, str] = {"lerobot": "model.model.", "upstream": "model."}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_EMBEDDING = "backbone.language_model.embed_tokens.weight"

# safetensors keeps one name of two tied tensors, so the embedding may be found under this one.
_TIED_EMBEDDING = ("model.lm_head.weight", "lm_head.weight")

_POOLING = "frame_pool_attn.weight"

# Unused parts in published files.
_UNUSED = (_POOLING, "similarity_head.")


@torch.inference_mode(False)
def load_checkpoint(
    folder: Path, *, device: torch.device, dtype: torch.dtype
) -> tuple[RobometerModel, RobometerConfig]:
    """Read a checkpoint folder, LeRobot's or upstream's.

    Outside of inference mode, whose tensors could be used nowhere else.

    Args:
        folder: holds config.json, perhaps config.yaml, and one or more safetensors files.
        device: device of the weights.
        dtype: of the backbone. The heads keep theirs and compute in float32.

    Raises:
        CheckpointError: not a Robometer checkpoint, a kind that is not supported, damaged files,
            or tensors that do not fit the network.
    """
    config, format_ = _read_config(folder)
    files = _tensor_files(folder)
    names = _model_names(files, format_)
    found = _read_shapes(files, names)
    if len(found.get(_EMBEDDING, ())) != 2:
        raise CheckpointError(
            f"Checkpoint {folder} has no token embedding where one was expected; its tensors are "
            f"called {_few(sorted(files))}. "
            "Was it saved with another prefix, or from a PEFT model that was not merged?"
        )
    try:
        # The embedding was resized for the added tokens, which not every configuration states.
        config = config.with_vocabulary(found[_EMBEDDING][0])
        model = empty_model(config)
    except Exception as error:  # transformers checks values with errors of many kinds
        raise CheckpointError(
            f"The configuration of {folder} describes no model that can be built: {error}"
        ) from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    prefix = _BACKBONE[format_]
    _check_names(folder, prefix, set(names), set(expected), set(files))
    wrong = [f"{n} {found[n]}, not {shape}" for n, shape in expected.items() if found[n] != shape]
    if wrong:
        raise CheckpointError(
            f"Checkpoint {folder} has {len(wrong)} tensors of another shape than its configuration "
            f"requires: {'; '.join(wrong[:3])}. Do config.json and the weights belong together?"
        )
    state = {}
    for name, tensor in _read_tensors(files, names, device):
        described = f"{_in_file(name, prefix)} in {files[names[name]]}"
        if tensor.dtype not in _FLOATS:
            raise CheckpointError(
                f"{described} is {tensor.dtype}: quantized checkpoints are not supported."
            )
        state[name] = tensor.to(dtype) if name.startswith("backbone.") else tensor
        _check_finite(state[name], described)
    model.load_state_dict(state, assign=True)
    return model.to(device), config


def _check_finite(tensor: Tensor, name: str) -> None:
    """Raise unless all values are finite: a NaN would show at the first prediction only."""
    low, high = tensor.aminmax()  # a NaN is both; without a copy, unlike isfinite
    if not (low.isfinite() and high.isfinite()):
        raise CheckpointError(
            f"{name} has NaN or infinite values in {tensor.dtype}. Is the checkpoint damaged, or "
            "the dtype too narrow?"
        )


def save_checkpoint(
    model: RobometerModel, config: RobometerConfig, folder: Path, format_: Format
) -> None:
    """Write a checkpoint into a folder, which is created if necessary, in a published format.

    Raises:
        ValueError: a format that is neither.
    """
    if format_ not in _BACKBONE:
        raise ValueError(f"format must be one of {tuple(_BACKBONE)}, got {format_!r}.")
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        _in_file(name, _BACKBONE[format_]): _owned(tensor.detach())
        for name, tensor in model.state_dict().items()
    }
    # LeRobot and the authors always build this layer, unused in this kind, and load it strictly.
    state[_POOLING] = torch.zeros(
        1, state["progress_head.0.weight"].shape[1], dtype=model.backbone.dtype
    )
    dtype = str(model.backbone.dtype).removeprefix("torch.")
    if format_ == "lerobot":
        _write_json(folder / _CONFIG, config.to_lerobot(dtype))
        save_torch_state_dict(state, folder, max_shard_size="1TB")  # LeRobot reads one file
    else:
        backbone, run = config.to_upstream(dtype)
        _write_json(folder / _CONFIG, backbone)
        (folder / _RUN).write_text(yaml.safe_dump(run))
        save_torch_state_dict(state, folder, max_shard_size="5GB")


def _owned(tensor: Tensor) -> Tensor:
    """Return a tensor with memory of its own, as safetensors requires."""
    if tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor.contiguous()
    return tensor.to("cpu", copy=True)  # views of fused weights; copies may not fit on a GPU


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _read_config(folder: Path) -> tuple[RobometerConfig, Format]:
    config = read_mapping(folder / _CONFIG)
    try:
        if config.get("type") == "robometer":
            return RobometerConfig.from_lerobot(config), "lerobot"
        if config.get("model_type") and (folder / _RUN).exists():
            return RobometerConfig.from_upstream(config, read_mapping(folder / _RUN)), "upstream"
    except CheckpointError as error:
        raise CheckpointError(
            f"The configuration of {folder} describes no model that can be built: {error}"
        ) from error
    raise CheckpointError(
        f"{folder} is not a Robometer checkpoint: its config.json has no type 'robometer' "
        "(LeRobot's format), and there is no config.yaml beside it (the authors' format)."
    )


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor, by its name in the file."""
    if (folder / _INDEX).is_file():
        listed = read_mapping(folder / _INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(map(_is_file_name, listed.values())):
            raise CheckpointError(
                f"{folder / _INDEX} must hold a weight_map, tensor to file, got "
                f"{reprlib.repr(listed)}."
            )
        paths = sorted({folder / file for file in listed.values()})
    else:
        paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise CheckpointError(f"{folder} holds no *.safetensors file with the weights.")
    files: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise CheckpointError(
                f"{path} is missing, although {_INDEX} names it. Download the checkpoint again."
            )
        check_regular_file(path)
        try:
            with safe_open(path, framework="pt") as opened:
                names = opened.keys()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is damaged or was not downloaded whole ({error}). Download it again."
            ) from error
        if twice := files.keys() & names:
            raise CheckpointError(
                f"{files[min(twice)]} and {path} both hold {min(twice)}. Remove the old weights."
            )
        files.update(dict.fromkeys(names, path))
    return files


def _is_file_name(name: object) -> bool:
    return (
        isinstance(name, str)
        and 0 < len(name.encode(errors="replace")) <= 255
        and Path(name).name == name
    )


def _model_names(files: dict[str, Path], format_: Format) -> dict[str, str]:
    """Return the name in the file of each tensor to read, by its name in the network."""
    prefix = _BACKBONE[format_]
    names = {}
    for name in files:
        if name in _TIED_EMBEDDING or name.startswith(_UNUSED):
            continue
        ours = "backbone." + name[len(prefix) :] if name.startswith(prefix) else name
        names[ours] = name
    if _EMBEDDING not in names:
        names.update((_EMBEDDING, name) for name in _TIED_EMBEDDING if name in files)
    return names


def _read_shapes(files: dict[str, Path], names: dict[str, str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of the network, from the headers of the files alone."""
    shapes = {}
    for path in set(files.values()):
        with safe_open(path, framework="pt") as opened:
            for ours, name in names.items():
                if files[name] == path:
                    shapes[ours] = tuple(opened.get_slice(name).get_shape())
    return shapes


def _in_file(name: str, prefix: str) -> str:
    """Return the name in a file of a tensor of the network."""
    return name.replace("backbone.", prefix, 1)


def _check_names(
    folder: Path, prefix: str, has: set[str], needs: set[str], files: set[str]
) -> None:
    if missing := sorted(_in_file(name, prefix) for name in needs - has):
        raise CheckpointError(
            f"Checkpoint {folder} lacks {len(missing)} tensors the model needs: {_few(missing)}. "
            f"It has {_few(sorted(files))}. Is it a Robometer checkpoint?"
        )
    if unknown := sorted(_in_file(name, prefix) for name in has - needs):
        raise CheckpointError(
            f"Checkpoint {folder} has {len(unknown)} tensors the model has no place for: "
            f"{_few(unknown)}. Is it a Robometer checkpoint of this kind?"
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _read_tensors(
    files: dict[str, Path], names: dict[str, str], device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    for path in sorted(set(files.values())):
        with safe_open(path, framework="pt", device=str(device)) as opened:
            for ours, name in names.items():
                if files[name] == path:
                    yield ours, opened.get_tensor(name)
