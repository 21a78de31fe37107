"""A short hash of a network's weights, the same on every device.

Knows nothing of files.
"""

from __future__ import annotations

from hashlib import sha256

import torch
from torch import nn

__all__ = ["weights_hash"]

_CHUNK = 1 << 24  # values at a time, so that the float32 copy stays small


@torch.inference_mode()
def weights_hash(network: nn.Module) -> str:
    """Return 12 hex digits that identify the parameters of a network.

    Exact sums of the values' bits as float32, so that neither the device nor loading a bfloat16
    checkpoint in float32 changes it. Finds accidental differences; it is no protection against
    deliberate ones. Takes seconds for 4 billion weights on a CPU.

    Example:
        >>> one, other = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> _ = other.load_state_dict(one.state_dict())
        >>> weights_hash(one) == weights_hash(other)
        True
    """
    digest = sha256()
    for name, parameter in network.named_parameters():
        total, weighted = 0, 0
        for number, chunk in enumerate(parameter.flatten().split(_CHUNK), start=1):
            bits = chunk.float().contiguous().view(torch.int32)
            index = torch.arange(bits.numel(), device=bits.device) % 8191 + 1  # of the order too
            total += number * int(bits.sum(dtype=torch.int64))
            weighted += number * int((bits.long() * index).sum())
        digest.update(f"{name} {tuple(parameter.shape)} {total} {weighted}\n".encode())
    return digest.hexdigest()[:12]
