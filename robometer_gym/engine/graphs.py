"""Records what a GPU is told to do, once per shape, and replays it with other inputs.

Recorded work costs the CPU one launch instead of thousands. Knows nothing of what is recorded.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["Function", "Graphs", "Record", "record_cuda"]

logger = logging.getLogger(__name__)

Function = Callable[..., Tensor]

Record = Callable[[Function, Sequence[Tensor]], tuple[Callable[[], object], Tensor]]
"""From a function and its inputs to what repeats it, and the output that this fills."""

_MOST = 64  # recordings: each holds some memory, and takes about a second to make
_WORTH = 2  # the same shape is recorded when it comes for the second time


class Graphs:
    """Runs functions of tensors by replaying them.

    A function may read and write other tensors, always the same ones, and must do the same however
    often it is run: it is run some times before it is recorded.

    Args:
        record: what records.

    Attributes:
        why_off: why nothing is recorded any more, or nothing if it is.

    Example:
        >>> def record(function, inputs):
        ...     output = function(*inputs)
        ...     return lambda: output.copy_(function(*inputs)), output
        >>> graphs = Graphs(record)
        >>> [graphs("double", lambda x: 2 * x, [torch.ones(1) * n]).item() for n in (1, 2, 3)]
        [2.0, 4.0, 6.0]
        >>> len(graphs)
        1
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._recorded: dict[Hashable, tuple[list[Tensor], Callable[[], object], Tensor]] = {}
        self._times: Counter[Hashable] = Counter()
        self.why_off = ""

    def __len__(self) -> int:
        return len(self._recorded)

    def __call__(self, name: Hashable, function: Function, inputs: Sequence[Tensor]) -> Tensor:
        """Return `function(*inputs)`; the same name must mean the same function."""
        key = name, tuple((x.shape, x.dtype) for x in inputs)
        if key not in self._recorded:
            self._times[key] += 1
            full = len(self._recorded) >= _MOST
            if self.why_off or full or self._times[key] < _WORTH:
                return function(*inputs)
            fixed = [x.clone() for x in inputs]
            try:
                self._recorded[key] = (fixed, *self._record(function, fixed))
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError as error:  # whatever a library does that cannot be recorded
                self.why_off = str(error).splitlines()[0]
                logger.warning("CUDA graphs are off: %s", self.why_off)
                return function(*inputs)
        fixed, replay, output = self._recorded[key]
        for place, x in zip(fixed, inputs, strict=True):
            place.copy_(x)
        replay()
        return output.clone()  # the next replay writes over it

    def forget(self) -> None:
        """Forget all recordings: what they read or wrote is no longer there."""
        self._recorded.clear()
        self._times.clear()


def record_cuda(function: Function, inputs: Sequence[Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Record with `torch.cuda.CUDAGraph`.

    All recordings share their memory: they are replayed one after the other, and nothing but the
    output, which `Graphs` copies at once, outlives a replay.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):  # libraries choose kernels and take their workspaces the first time
            function(*inputs)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_pool()):
        output = function(*inputs)
    return graph.replay, output


@cache
def _pool() -> Any:
    return torch.cuda.graph_pool_handle()
