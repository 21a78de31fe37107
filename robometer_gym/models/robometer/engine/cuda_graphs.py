"""Cache of CUDA graphs: captures a function's GPU work once per input shape, then replays it.

A replay costs the CPU one launch instead of thousands. Knows nothing of the functions.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor

__all__ = ["Capture", "CudaGraphCache", "Function", "cuda_graph_capture", "first_line"]

logger = logging.getLogger(__name__)

Function = Callable[..., Tensor]

Replay = Callable[[], object]
Capture = Callable[[Function, Sequence[Tensor]], tuple[Replay, Tensor]]
"""From a function and its inputs to a replay of it, and to the output that a replay fills."""

_capturing = Lock()  # torch can capture for one thread at a time

_MAX_GRAPHS = 64  # each holds some memory, and takes its time to capture
_TOLERANCE = 0.05  # rounding differences of right results in 16 bits; wrong ones differ by far more
_CAPTURE_AFTER = 2  # a shape is captured at its second appearance


class CudaGraphCache:
    """Runs functions of tensors by replaying their captured graphs.

    A function may read and write other tensors, always the same ones, and must be repeatable: it
    runs several times before it is captured.

    Args:
        new_capture: returns a `Capture`; called again whenever all graphs are dropped.

    Attributes:
        disabled_reason: the failure that stopped all captures, or "".

    Example:
        >>> def capture(function, inputs):
        ...     output = function(*inputs)
        ...     return lambda: output.copy_(function(*inputs)), output
        >>> graphs = CudaGraphCache(lambda: capture)
        >>> [graphs("double", lambda x: 2 * x, [torch.ones(1) * n]).item() for n in (1, 2, 3)]
        [2.0, 4.0, 6.0]
        >>> len(graphs)
        1
    """

    def __init__(self, new_capture: Callable[[], Capture]) -> None:
        self._new_capture, self._capture = new_capture, new_capture()
        self._graphs: dict[Hashable, tuple[list[Tensor], Replay, Tensor]] = {}
        self._uses: Counter[Hashable] = Counter()
        self.disabled_reason = ""

    def __len__(self) -> int:
        return len(self._graphs)

    def __call__(self, name: Hashable, function: Function, inputs: Sequence[Tensor]) -> Tensor:
        """Return `function(*inputs)`; the same name must mean the same function."""
        key = name, tuple((x.shape, x.dtype) for x in inputs)
        if key not in self._graphs:
            self._uses[key] += 1
            full = len(self._graphs) >= _MAX_GRAPHS
            if self.disabled_reason or full or self._uses[key] < _CAPTURE_AFTER:
                return function(*inputs)
            static_inputs = [x.clone() for x in inputs]
            try:
                self._graphs[key] = (static_inputs, *self._capture(function, static_inputs))
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError as error:  # an operation of some library that cannot be captured
                self.disabled_reason = first_line(error)
                logger.warning("CUDA graphs are off: %s", self.disabled_reason)
                return function(*inputs)
        static_inputs, replay, output = self._graphs[key]
        for static, x in zip(static_inputs, inputs, strict=True):
            static.copy_(x)
        replay()
        return output.clone()  # the next replay overwrites it

    def clear(self) -> None:
        """Drop all graphs: the tensors that they read or write are gone."""
        self._graphs.clear()
        self._uses.clear()
        self._capture = self._new_capture()


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its class if it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def cuda_graph_capture() -> Capture:
    """Return a `Capture` by `torch.cuda.CUDAGraph`, with a memory pool of its own.

    Its graphs share the pool: they are replayed one after the other, and nothing but the output,
    which `CudaGraphCache` copies at once, outlives a replay. Once all of them are gone, torch
    refuses to capture into that pool again: then a new `Capture` is needed.

    Other threads may use the GPU meanwhile; up to torch 2.11 not for random numbers.
    """
    pool = torch.cuda.graph_pool_handle()

    def capture(function: Function, inputs: Sequence[Tensor]) -> tuple[Replay, Tensor]:
        device = inputs[0].device
        current, side = torch.cuda.current_stream(device), _capture_stream(device)
        # Of this device, which need not be the current one. If something fails, torch may leave
        # its own stream behind: the outer two restore the caller's.
        with _capturing, torch.cuda.device(device), torch.cuda.stream(current):
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(2):  # libraries choose kernels and allocate workspaces at first
                    function(*inputs)
            current.wait_stream(side)
            try:
                replay, output = _capture_graph(function, inputs, pool, side)
            except RuntimeError:
                with suppress(RuntimeError):
                    _capture_graph(Tensor.clone, [inputs[0][:1]], None, side)  # see there
                raise
            replay()
            # A library with streams of its own is not captured, and raises no error either.
            again = function(*inputs)
            if not torch.allclose(output, again, _TOLERANCE, _TOLERANCE, equal_nan=True):
                raise RuntimeError("a replay gives other numbers than the captured function")
            return replay, output

    return capture


def _capture_graph(
    function: Function, inputs: Sequence[Tensor], pool: Any, stream: torch.cuda.Stream
) -> tuple[Replay, Tensor]:
    """Capture a function that has run before; return the replay and its output.

    Up to torch 2.11, a capture that fails leaves the generator of random numbers in capture state,
    and every `torch.randn` of the process fails; a capture that succeeds restores it.
    """
    graph = torch.cuda.CUDAGraph()
    # Work of other threads meanwhile is no error: with "global" it would make them fail.
    capture: Any = torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local")
    # Outside of inference mode: torch makes a tensor for the first capture of a process, to which
    # all later captures write. https://github.com/pytorch/pytorch/issues/166792
    inside = torch.inference_mode(torch.is_inference_mode_enabled())
    with torch.inference_mode(False), capture, inside:
        output = function(*inputs)
    return graph.replay, output


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream for captures of a device: each stream has a workspace of its own."""
    return torch.cuda.Stream(device)
