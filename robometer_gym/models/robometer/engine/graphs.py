"""Records what a GPU is told to do, once per shape, and replays it with other inputs.

Recorded work costs the CPU one launch instead of thousands. Knows nothing of what is recorded.
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

__all__ = ["Function", "Graphs", "Record", "cuda_recorder", "in_one_line"]

logger = logging.getLogger(__name__)

Function = Callable[..., Tensor]

Record = Callable[[Function, Sequence[Tensor]], tuple[Callable[[], object], Tensor]]
"""From a function and its inputs to what repeats it, and the output that this fills."""

_recording = Lock()  # torch can record for one thread at a time

_MOST = 64  # recordings: each holds some memory, and takes its time to make
_ROUNDING = 0.05  # of right results in 16 bits; wrong ones are something else altogether
_WORTH = 2  # the same shape is recorded when it comes for the second time


class Graphs:
    """Runs functions of tensors by replaying them.

    A function may read and write other tensors, always the same ones, and must do the same however
    often it is run: it is run some times before it is recorded.

    Args:
        recorder: makes what records; called again when all recordings are forgotten.

    Attributes:
        why_off: why nothing is recorded any more, or nothing if it is.

    Example:
        >>> def record(function, inputs):
        ...     output = function(*inputs)
        ...     return lambda: output.copy_(function(*inputs)), output
        >>> graphs = Graphs(lambda: record)
        >>> [graphs("double", lambda x: 2 * x, [torch.ones(1) * n]).item() for n in (1, 2, 3)]
        [2.0, 4.0, 6.0]
        >>> len(graphs)
        1
    """

    def __init__(self, recorder: Callable[[], Record]) -> None:
        self._recorder, self._record = recorder, recorder()
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
                self.why_off = in_one_line(error)
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
        self._record = self._recorder()


def in_one_line(error: Exception) -> str:
    """Return what an error says, or at least what it is."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def cuda_recorder() -> Record:
    """Return what records with `torch.cuda.CUDAGraph`.

    All that it records shares its memory: recordings are replayed one after the other, and nothing
    but the output, which `Graphs` copies at once, outlives a replay. Once all of them are gone,
    torch refuses to record into that memory again: then another recorder is needed.

    Other threads may use the GPU meanwhile; up to torch 2.11 not for random numbers.
    """
    pool = torch.cuda.graph_pool_handle()

    def record(function: Function, inputs: Sequence[Tensor]) -> tuple[Callable[[], object], Tensor]:
        device = inputs[0].device
        now, aside = torch.cuda.current_stream(device), _aside(device)
        # Of this device, which need not be the current one; and if something fails, torch may
        # leave its own stream behind: the outer two give the caller back what he had.
        with _recording, torch.cuda.device(device), torch.cuda.stream(now):
            aside.wait_stream(now)
            with torch.cuda.stream(aside):
                for _ in range(2):  # libraries choose kernels, take workspaces the first time
                    function(*inputs)
            now.wait_stream(aside)
            try:
                replay, output = _captured(function, inputs, pool, aside)
            except RuntimeError:
                with suppress(RuntimeError):
                    _captured(Tensor.clone, [inputs[0][:1]], None, aside)  # see there
                raise
            replay()
            # A library that has streams of its own is not recorded, and nothing else would tell.
            again = function(*inputs)
            if not torch.allclose(output, again, _ROUNDING, _ROUNDING, equal_nan=True):
                raise RuntimeError("a replay gives other numbers than what was recorded")
            return replay, output

    return record


def _captured(
    function: Function, inputs: Sequence[Tensor], pool: Any, stream: torch.cuda.Stream
) -> tuple[Callable[[], object], Tensor]:
    """Return what repeats a function that has run before, and its output.

    Up to torch 2.11, one that fails leaves the generator of random numbers as if it were still
    being recorded, and every `torch.randn` of the process fails; one that succeeds sets it right.
    """
    graph = torch.cuda.CUDAGraph()
    # What other threads do in the meantime is none of its business: "global" makes them fail.
    capture: Any = torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local")
    # Outside of inference mode, because of what torch makes for the first recording of a process:
    # https://github.com/pytorch/pytorch/issues/166792. Whoever records later has to write to it.
    inside = torch.inference_mode(torch.is_inference_mode_enabled())
    with torch.inference_mode(False), capture, inside:
        output = function(*inputs)
    return graph.replay, output


@cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    """Return the stream for recordings: always the same, since each takes its own workspace."""
    return torch.cuda.Stream(device)
