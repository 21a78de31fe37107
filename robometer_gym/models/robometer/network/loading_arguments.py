"""Arguments of `RobometerRewardModel.from_pretrained`: defaults, checks, and hints."""

from __future__ import annotations

from collections.abc import Iterable

import torch

__all__ = ["refuse_unknown_arguments", "resolve_device", "resolve_dtype"]

# Arguments of transformers' from_pretrained, and their names here.
_HINTS = {
    "torch_dtype": "It is called dtype here: dtype='bfloat16'.",
    "device_map": "It is called device here: device='cuda:0'. One model runs on one device.",
    "load_in_8bit": "Use quantization='int8'.",
    "load_in_4bit": "Use quantization='nf4'.",
    "quantization_config": "Use quantization='int8', 'nf4' or 'float8'.",
    "trust_remote_code": "No code is loaded from the hub: leave it out.",
    "cache_dir": "Set the environment variable HF_HUB_CACHE.",
    "token": "Set the environment variable HF_TOKEN, or run `hf auth login`.",
}


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Return the device, by default the GPU if there is one.

    Raises:
        ValueError: a device that cannot be used here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError) as error:  # the class depends on the build of torch
        raise ValueError(f"device {str(device)!r} cannot be used here: {error}") from error


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Return the dtype, by default bfloat16 on a GPU and float32 on a CPU.

    Raises:
        ValueError: no floating type.
    """
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype must be a floating type such as 'bfloat16', got {dtype!r}.")
    return found


def refuse_unknown_arguments(names: Iterable[str]) -> None:
    """Raise if there is a name, with a hint for the arguments of transformers.

    Raises:
        TypeError: names the first one.
    """
    for name in names:
        hint = _HINTS.get(name, "See its docstring for the arguments.")
        raise TypeError(f"from_pretrained() has no argument {name!r}. {hint}")
