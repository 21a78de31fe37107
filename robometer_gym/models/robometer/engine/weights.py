"""The network's own weights, laid out for fewer matrix products, and watched for changes.

Layers that read the same input are joined into one matrix. The network's parameters become views
into it, so that nothing is there twice, and training or loading weights changes both. Knows
nothing of what the layers mean.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_post_hook

__all__ = ["Joined", "Watch", "part"]


class Joined:
    """Linear layers that read the same input, as one.

    Layers that are not plain matrices (adapters, quantised ones) are called one by one.

    Args:
        *layers: each from D to some outputs.

    Example:
        >>> one, two = nn.Linear(4, 2, bias=False), nn.Linear(4, 3, bias=False)
        >>> joined = Joined(one, two)
        >>> joined(torch.ones(1, 4)).shape, joined(torch.ones(1, 4), slice(1)).shape
        (torch.Size([1, 5]), torch.Size([1, 2]))
        >>> bool(two.weight.data_ptr() == joined.weight[2:].data_ptr())
        True
    """

    def __init__(self, *layers: nn.Module) -> None:
        self._layers = layers
        self.weight: Tensor | None = None
        """(sum of outputs, D), of which the layers' weights are views; None if not joined."""
        weights = [layer.weight for layer in layers if _is_plain(layer)]
        kinds = {(weight.dtype, weight.device) for weight in weights}
        if len(weights) == len(layers) and len(kinds) == 1:
            self.weight = _join(weights)
            ends = [0, *torch.tensor([len(weight) for weight in weights]).cumsum(0).tolist()]
            self._rows = [slice(*pair) for pair in pairwise(ends)]

    def __call__(self, x: Tensor, which: slice = slice(None)) -> Tensor:
        """Return (..., outputs) of (..., D): of all layers, or of some that stand together."""
        if self.weight is None:
            return torch.cat([layer(x) for layer in self._layers[which]], dim=-1)
        rows = self._rows[which]
        return functional.linear(x, self.weight[rows[0].start : rows[-1].stop])


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    # Of exactly this class: a subclass may do anything with its weight.
    return type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and layer.bias is None


@torch.inference_mode(False)
@torch.no_grad()
def _join(weights: Sequence[Tensor]) -> Tensor:
    """Return one tensor of which `weights` are views from now on."""
    first = weights[0]
    if all(_adjoin(*pair) for pair in pairwise(weights)):  # they are already
        rows = sum(len(weight) for weight in weights)
        return first.detach().as_strided((rows, first.shape[1]), first.stride())
    whole = torch.cat([weight.detach() for weight in weights])
    for weight, part in zip(weights, whole.split([len(w) for w in weights]), strict=True):
        weight.data = part  # the parameter stays the same object: optimisers hold it
    return whole


def _adjoin(one: Tensor, other: Tensor) -> bool:
    same = one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    follows = int(one.storage_offset()) + one.numel() == int(other.storage_offset())
    return same and follows and one.is_contiguous() and other.is_contiguous()


@torch.inference_mode(False)
@torch.no_grad()
def part(network: nn.Module) -> None:
    """Give each parameter of a network its own memory again."""
    for parameter in network.parameters():
        if (
            type(parameter) is nn.Parameter
            and parameter.untyped_storage().nbytes() > parameter.nbytes
        ):
            parameter.data = parameter.detach().clone()


class Watch:
    """Notices when a network is no longer what it was: what was computed with it is void then.

    Seen are parameters and buffers that were written to, moved, cast or replaced, modules that
    were put in the place of others, and the steps of optimisers, of which torch does not count
    those that are fused. Not seen is writing through `parameter.data`.

    Args:
        network: to be watched from now on.

    Example:
        >>> network = nn.Linear(2, 2)
        >>> watch = Watch(network)
        >>> with torch.no_grad():
        ...     _ = network.bias.add_(1)
        >>> watch.changed()
        True
    """

    def __init__(self, network: nn.Module) -> None:
        tables: list[dict[str, Any]] = [
            table for module in network.modules() for table in (module._modules, module._parameters)
        ]
        places = [(table, name, held) for table in tables for name, held in table.items()]
        self._tables = [table for table, _, _ in places]
        self._names = [name for _, name, _ in places]
        self._held = [held for _, _, held in places]
        self._tensors = [*network.parameters(), *network.buffers()]
        self._ids = frozenset(map(id, self._tensors))
        self._counted = [each for each in self._tensors if _is_counted(each)]
        self._state = self._read()
        self._optimised = False
        _watches.add(self)

    def changed(self) -> bool:
        """Return whether anything has changed since the watch was made."""
        now = map(dict.get, self._tables, self._names)  # a loop in Python takes three times as long
        same = not self._optimised and all(map(operator.is_, now, self._held))
        return not same or self._read() != self._state

    def note(self, optimised: frozenset[int]) -> None:
        """Take note of a step of an optimiser of these parameters, by their `id`."""
        self._optimised |= not self._ids.isdisjoint(optimised)

    def _read(self) -> tuple[list[int], list[int]]:
        versions = map(operator.attrgetter("_version"), self._counted)
        return list(versions), list(map(Tensor.data_ptr, self._tensors))


_watches: weakref.WeakSet[Watch] = weakref.WeakSet()


def _note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    if _watches:
        groups = optimizer.param_groups
        optimised = frozenset(id(each) for group in groups for each in group["params"])
        for watch in tuple(_watches):
            watch.note(optimised)


register_optimizer_step_post_hook(_note)


def _is_counted(parameter: Tensor) -> bool:
    """Return whether torch counts how often it was written to: not what inference mode made."""
    try:
        return parameter._version >= 0
    except RuntimeError:
        return False
