"""Loading and saving of checkpoint folders in both published formats.

Strict: a tensor that is missing, unknown or of another shape is an error, because a random head
still gives rewards. Knows nothing of tokenizers or of predictions.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from robometer_gym.models.robometer.network.config import Format, RobometerConfig
from robometer_gym.models.robometer.network.modeling import RobometerModel, empty_model
from robometer_gym.reward_model import CheckpointError

__all__ = ["CHECKPOINT_FILES", "load_checkpoint", "save_checkpoint"]

CHECKPOINT_FILES = ("*.safetensors", "*.json", "*.yaml")
"""Files of a checkpoint to download from the hub."""

_CONFIG, _RUN, _INDEX = "config.json", "config.yaml", "model.safetensors.index.json"

# Our "backbone." in each format. LeRobot's wrapper holds the model with its
# language-modelling head, upstream's the one without.
_BACKBONE: dict[Format, str] = {"lerobot": "model.model.", "upstream": "model."}
_EMBEDDING = "backbone.language_model.embed_tokens.weight"

# safetensors keeps one name of two tied tensors, so the embedding may be found under this one.
_TIED_EMBEDDING = ("model.lm_head.weight", "lm_head.weight")

# Unused leftovers of earlier heads in published files.
_UNUSED = ("frame_pool_attn.", "similarity_head.")


class _PlainLoader(yaml.SafeLoader):
    """Reads objects of the authors' code, by their tags, as plain dicts and lists."""


def _plain(loader: yaml.SafeLoader, _suffix: str, node: yaml.Node) -> object:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return node.value


_PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/", _plain)


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
    rows = _shape(files, names, _EMBEDDING, folder)[0]
    # The embedding was resized for the added tokens, which not every configuration states.
    config = config.with_vocabulary(rows)
    try:
        model = empty_model(config)
    except Exception as error:  # transformers checks each value with errors of many kinds
        raise CheckpointError(
            f"The configuration of {folder} describes no model that can be built: {error}"
        ) from error
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    _check_names(folder, _BACKBONE[format_], set(names), set(shapes), set(files))
    state = _read_tensors(files, names, device)
    wrong = [
        f"{n} {tuple(t.shape)}, not {shapes[n]}" for n, t in state.items() if t.shape != shapes[n]
    ]
    if wrong:
        raise CheckpointError(
            f"Checkpoint {folder} has {len(wrong)} tensors of another shape than its "
            f"configured: {'; '.join(wrong[:3])}. Do config.json and the weights belong together?"
        )
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{_in_file(name, _BACKBONE[format_])} in {folder} is {tensor.dtype}: quantized "
                "checkpoints are not supported."
            )
        if name.startswith("backbone."):
            state[name] = tensor.to(dtype)
    model.load_state_dict(state, assign=True)
    return model.to(device), config


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
    config = _read_mapping(folder / _CONFIG)
    if config.get("type") == "robometer":
        return RobometerConfig.from_lerobot(config), "lerobot"
    if config.get("model_type") and (folder / _RUN).is_file():
        return RobometerConfig.from_upstream(config, _read_mapping(folder / _RUN)), "upstream"
    raise CheckpointError(
        f"{folder} is not a Robometer checkpoint: its config.json has no type 'robometer' "
        "(LeRobot's format), and there is no config.yaml beside it (the authors' format)."
    )


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        # JSON is YAML as well, but its own parser is stricter.
        text = path.read_text()
        value = json.loads(text) if path.suffix == ".json" else yaml.load(text, _PlainLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}). Is this the folder of a checkpoint, "
            "and was it downloaded whole?"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a table of settings, got {value!r:.80}.")
    return value


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor, by its name in the file."""
    if (folder / _INDEX).is_file():
        listed = _read_mapping(folder / _INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(f, str) for f in listed.values()):
            raise CheckpointError(
                f"{folder / _INDEX} must hold a weight_map, tensor to file, got {listed!r:.80}."
            )
        paths = sorted({folder / file for file in listed.values()})
    else:
        paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise CheckpointError(f"{folder} holds no *.safetensors file with the weights.")
    files = {}
    for path in paths:
        if not path.is_file():
            raise CheckpointError(
                f"{path} is missing, although {_INDEX} names it. Download the checkpoint again."
            )
        if not os.access(path, os.R_OK):
            raise CheckpointError(f"{path} may not be read. Look at its permissions.")
        try:
            with safe_open(path, framework="pt") as opened:
                files.update(dict.fromkeys(opened.keys(), path))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is damaged or was not downloaded whole ({error}). Download it again."
            ) from error
    return files


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


def _shape(
    files: dict[str, Path], names: dict[str, str], name: str, folder: Path
) -> tuple[int, ...]:
    if name not in names:
        raise CheckpointError(
            f"Checkpoint {folder} has no token embedding where one was expected; its tensors are "
            f"called {', '.join(sorted(files)[:3])}, ... "
            "Was it saved with another prefix, or from a PEFT model that was not merged?"
        )
    with safe_open(files[names[name]], framework="pt") as opened:
        return tuple(opened.get_slice(names[name]).get_shape())


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
) -> dict[str, Tensor]:
    state = {}
    for path in sorted(set(files.values())):
        with safe_open(path, framework="pt", device=str(device)) as opened:
            for ours, name in names.items():
                if files[name] == path:
                    state[ours] = opened.get_tensor(name)
    return state
