"""Checks of the device and dtype arguments, and their defaults."""

from __future__ import annotations

import torch

__all__ = ["resolve_device", "resolve_dtype"]


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
