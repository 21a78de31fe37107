"""The network's own weights: laid out for fewer matrix products, and checked for changes.

Layers that read the same input are fused into one matrix. The network's parameters become views of
it, so that no weight is in memory twice, and training or loading weights changes both. Knows
nothing of the layers' meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["FusedLinear", "WeightVersions", "unfuse_parameters"]


class FusedLinear:
    """Linear layers that read the same input, as one.

    Layers that are not plain matrices (adapters, quantized ones) are called one by one.

    Args:
        *layers: each from D to some outputs.

    Example:
        >>> one, two = nn.Linear(4, 2, bias=False), nn.Linear(4, 3, bias=False)
        >>> fused = FusedLinear(one, two)
        >>> fused(torch.ones(1, 4)).shape, fused(torch.ones(1, 4), slice(1)).shape
        (torch.Size([1, 5]), torch.Size([1, 2]))
        >>> bool(two.weight.data_ptr() == fused.weight[2:].data_ptr())
        True
    """

    def __init__(self, *layers: nn.Module) -> None:
        self._layers = layers
        self.weight: Tensor | None = None
        """(sum of outputs, D), of which the layers' weights are views; None if not fused."""
        weights = [layer.weight for layer in layers if _is_plain(layer)]
        kinds = {(weight.dtype, weight.device) for weight in weights}
        if len(weights) == len(layers) and len(kinds) == 1:
            self.weight = _fuse(weights)
            ends = [0, *torch.tensor([len(weight) for weight in weights]).cumsum(0).tolist()]
            self._rows = [slice(*pair) for pair in pairwise(ends)]

    def __call__(self, x: Tensor, which: slice = slice(None)) -> Tensor:
        """Return (..., outputs) of (..., D), of all layers or of consecutive ones."""
        if self.weight is None:
            return torch.cat([layer(x) for layer in self._layers[which]], dim=-1)
        rows = self._rows[which]
        return functional.linear(x, self.weight[rows[0].start : rows[-1].stop])


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    # Of exactly this class: a subclass may do anything with its weight.
    return type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and layer.bias is None


@torch.inference_mode(False)
@torch.no_grad()
def _fuse(weights: Sequence[Tensor]) -> Tensor:
    """Make `weights` views of one tensor, and return it."""
    first = weights[0]
    if all(_are_adjacent(*pair) for pair in pairwise(weights)):  # fused before
        rows = sum(len(weight) for weight in weights)
        return first.detach().as_strided((rows, first.shape[1]), first.stride())
    whole = torch.cat([weight.detach() for weight in weights])
    for weight, view in zip(weights, whole.split([len(w) for w in weights]), strict=True):
        weight.data = view  # the parameter stays the same object: optimizers hold it
    return whole


def _are_adjacent(one: Tensor, other: Tensor) -> bool:
    same = one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    follows = int(one.storage_offset()) + one.numel() == int(other.storage_offset())
    return same and follows and one.is_contiguous() and other.is_contiguous()


@torch.inference_mode(False)
@torch.no_grad()
def unfuse_parameters(network: nn.Module) -> None:
    """Give each parameter of a network its own memory again."""
    for parameter in network.parameters():
        if (
            type(parameter) is nn.Parameter
            and parameter.untyped_storage().nbytes() > parameter.nbytes
        ):
            parameter.data = parameter.detach().clone()


class WeightVersions:
    """The tensors of a network and their version counters, to find out whether they changed.

    Found are parameters and buffers that were written to in place, moved, cast or replaced, and
    modules that were replaced. Not found is a write that torch does not count: through
    `parameter.data`, or by a fused optimizer. After these call `RobometerRewardModel.forget`.

    Args:
        network: the network in its present state.

    Example:
        >>> network = nn.Linear(2, 2)
        >>> versions = WeightVersions(network)
        >>> with torch.no_grad():
        ...     _ = network.bias.add_(1)
        >>> versions.changed()
        True
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._tensors = self._find_tensors()  # kept alive: the id of a freed one may be reused
        self._state = self._read(self._tensors)

    def changed(self) -> bool:
        """Return whether anything has changed since this object was made."""
        return self._read(self._find_tensors()) != self._state

    def _find_tensors(self) -> list[Tensor]:
        # By hand: `network.parameters()` takes five times as long on the 832 modules of the 4B.
        modules: list[nn.Module | None] = [self._network]
        tensors: list[Tensor | None] = []
        while modules:
            if (module := modules.pop()) is not None:
                modules += module._modules.values()
                tensors += module._parameters.values()
                tensors += module._buffers.values()
        return [tensor for tensor in tensors if tensor is not None]

    def _read(self, tensors: Sequence[Tensor]) -> list[tuple[int, int, int]]:
        # torch counts no writes to a tensor that was made in inference mode.
        return [(id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
