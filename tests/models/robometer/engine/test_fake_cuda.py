"""Errors and waits on a GPU, tested without one.

The engine runs on torch's fake tensors, which have sizes, dtypes and devices but no numbers: they
may be on a GPU that does not exist, cannot be read, and raise when they meet a tensor of the CPU.
`FakeGpu` replaces all else: pinning, capture, the amount of free memory, and the trial of kernels.
`FakeGraphs` does the same for capture, with the rules of torch 2.11. The numbers are tested
elsewhere.
"""

from __future__ import annotations

import importlib
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from robometer_gym import RobometerRewardModel
from robometer_gym.models.robometer.engine import (
    bicubic_resize,
    cuda_fast_paths,
    cuda_graphs,
    fused_weights,
)
from robometer_gym.models.robometer.engine.attention import FlashAttention, PaddedAttention
from robometer_gym.models.robometer.engine.cuda_graphs import CudaGraphCache, cuda_graph_capture
from robometer_gym.models.robometer.engine.prompt_segments import Prompts
from robometer_gym.models.robometer.network import images
from robometer_gym.models.robometer.network.modeling import empty_model
from robometer_gym.reward_model import Clip
from tests.models.robometer.engine.recomputation import (
    PROCESSOR,
    SIZES,
    TASKS,
    clip,
    engine_of,
    graph_count,
    new_model,
)
from tests.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))  # for its shapes


class FakeGpu(TorchDispatchMode):
    """Runs operations on a GPU that does not exist, and counts them.

    Attributes:
        reads: shapes of the tensors that were read back.
        launches: number of operations, except those that only return views.
        waits: number of copies to the GPU for which the CPU waits.
        uploads: number of copies to the GPU without a wait.
    """

    def __init__(self, patch: pytest.MonkeyPatch, kind: Any) -> None:
        super().__init__()
        self._kind, self._capturing = kind, False
        self._pinned: list[Tensor] = []
        self.reads: list[Any] = []
        self.launches = self.waits = self.uploads = 0
        self._fake = FakeTensorMode()
        patch.setattr(cuda_fast_paths, "select_attention", lambda *_: (kind, "fixed"))
        patch.setattr(
            cuda_fast_paths, "select_fusion", lambda *_: (lambda function: function, "nothing")
        )
        patch.setattr(cuda_fast_paths, "cuda_graph_capture", lambda: self._capture)
        patch.setattr(torch.cuda, "mem_get_info", lambda _: (8 << 30, 8 << 30))
        patch.setattr(Tensor, "pin_memory", lambda tensor: self._pin(tensor))
        patch.setattr(
            FakeTensor, "tolist", lambda tensor: self._read(tensor)
        )  # everything else that reads raises
        # Fake tensors have no addresses.
        patch.setattr(fused_weights.WeightVersions, "_read", lambda *_: [])
        patch.setattr(fused_weights, "_are_adjacent", lambda *_: False)
        # Text and Pillow stay on the CPU, where tensors have numbers.
        patch.setattr(Prompts, "_segment", outside_fake_mode(Prompts._segment))
        for size in SIZES:
            bicubic_resize.pillow_pass_order(size, PROCESSOR.images.input_size(*size))

    @contextmanager
    def model(self, model: RobometerRewardModel | None = None) -> Iterator[Any]:
        """Yield `model`, or a small one, moved to the GPU."""
        dtype = torch.bfloat16 if self._kind is FlashAttention else torch.float32
        model = model or new_model(dtype=dtype, own=True)
        with self._fake, self:
            for module in model.model.modules():
                for table in (module._parameters, module._buffers):
                    for name, held in table.items():
                        if held is not None:
                            there: Any = torch.empty(held.shape, dtype=held.dtype, device="cuda")
                            table[name] = (
                                nn.Parameter(there) if name in module._parameters else there
                            )
            yield model

    def __torch_dispatch__(self, op: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        result = op(*given, **(named or {}))
        before, after = (
            [x for x in tree_leaves(tree) if isinstance(x, Tensor)]
            for tree in ([given, named], result)
        )
        devices = {x.device.type for x in before + after}
        if self._capturing:
            assert devices <= {"cuda"}, f"{op} of {devices} is captured"
        if devices == {"cpu", "cuda"}:
            freely = any(x is True for x in tree_leaves([given, named]))
            self._count_copy(op, before, {x.device.type for x in after}, freely)
        if "cuda" in devices:
            there = {x.untyped_storage()._cdata for x in before}
            new = any(x.untyped_storage()._cdata not in there for x in after)
            self.launches += new or op._schema.is_mutable
        return result

    def _count_copy(self, op: Any, given: list[Tensor], to: set[str], freely: bool) -> None:
        assert op._schema.name in ("aten::to", "aten::_to_copy", "aten::copy_"), f"{op} of both"
        assert to == {"cuda"}, f"{op} reads from the GPU"
        if freely and any(given[-1] is each for each in self._pinned):
            self.uploads += 1
        else:
            self.waits += 1

    def _pin(self, tensor: Tensor, *_: Any) -> Tensor:
        assert not self._capturing, "memory is pinned while a GPU is captured"
        self._pinned.append(tensor)
        return tensor

    def _read(self, tensor: Tensor) -> list[list[float]]:
        assert not self._capturing
        if tensor.numel():  # of nothing, torch reads nothing
            self.reads.append(tuple(tensor.shape))
        return [[0.5] * tensor.shape[1] for _ in tensor]

    def _capture(self, function: Any, inputs: Sequence[Tensor]) -> tuple[Any, Tensor]:
        self._capturing = True
        output = function(*inputs)
        self._capturing = False
        return lambda: None, output


def outside_fake_mode(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args)

    return run


def has_fake_gpu() -> bool:
    """Return whether this torch has fake tensors on a GPU that does not exist."""
    try:
        with torch.inference_mode(), FakeTensorMode():
            return torch.tensor([1.0, 2.0]).to("cuda").device.type == "cuda"
    except (RuntimeError, AssertionError):  # torch 2.4
        return False


KINDS = pytest.mark.parametrize("kind", [FlashAttention, PaddedAttention])


@pytest.fixture
def fake_gpu() -> Iterator[Callable[[Any], FakeGpu]]:
    if not has_fake_gpu():
        pytest.skip("this version of torch has no fake tensors on a GPU without one")
    cached = images._per_channel, bicubic_resize._weights
    for each in cached:
        each.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        yield lambda kind: FakeGpu(patch, kind)
    for each in cached:
        each.cache_clear()  # no other test must get a tensor without numbers


def make_clips(steps: Sequence[int], streams: int = 3) -> list[Any]:
    """Return clips of several tasks and sizes: one of them is resized."""
    return [clip(n, steps, TASKS[n % 3], SIZES[n % 3]) for n in range(streams)]


@KINDS
def test_a_prediction_waits_for_the_gpu_once(fake_gpu, kind):
    """Each further wait takes as long as a prediction, and the GPU idles meanwhile."""
    gpu = fake_gpu(kind)
    with gpu.model() as model:
        model.predict(make_clips([0]))
        gpu.waits = 0
        for step in range(1, 6):
            gpu.reads.clear()
            gpu.uploads = 0
            model.predict(make_clips([0, step]))
            assert gpu.reads == [(3, 2)]
            assert gpu.uploads == 3 + 1  # the frames of each size, and all index arrays
        assert gpu.waits == 0
        assert model.engine_info()["device"] == "cuda:0"
        assert graph_count(model) > 1


@KINDS
def test_every_kind_of_batch_stays_on_the_gpu(fake_gpu, kind, monkeypatch):
    """A training run would end in a rare case: memory runs short, or a video is long."""
    gpu = fake_gpu(kind)
    with gpu.model() as model:
        for streams, steps in ((1, [0]), (6, [0, 1]), (6, [3, 4, 5]), (2, range(12))):
            model.predict(make_clips(steps, streams))
        monkeypatch.setattr("robometer_gym.models.robometer.engine.runners._MAX_GRAPH_TOKENS", 60)
        monkeypatch.setattr("robometer_gym.models.robometer.engine.runners._MAX_GRAPH_PATCHES", 40)
        model.forget()
        model.predict(make_clips(range(4)))
        engine_of(model)._reset(1 << 20)
        model.predict([*make_clips(range(9), 5), clip(None, range(3))])
        model.release(0)


@KINDS
@pytest.mark.parametrize("captured", [False, True])
def test_more_environments_are_no_more_work_for_the_cpu(fake_gpu, kind, captured, monkeypatch):
    """A GPU with many small operations waits for the CPU, longer with each environment."""
    monkeypatch.setattr(cuda_graphs, "_CAPTURE_AFTER", 2 if captured else 1000)
    gpu = fake_gpu(kind)
    counts = {}
    with gpu.model() as model:
        for streams in (1, 8):
            model.forget()
            for step in range(5):
                gpu.launches = 0
                model.predict([clip(n, [0, 1, 2 + step]) for n in range(streams)])
            counts[streams] = gpu.launches
    assert counts[8] <= counts[1] + 11  # 7 more frames to cache, and one copy per layer
    assert counts[1] < (40 if captured else 300)  # 100 per layer


def released_shape() -> RobometerRewardModel:
    """The released model without its numbers: fake tensors take no memory."""
    models = importlib.import_module("parts.models")
    processor = models.make_processor(models.RELEASED_ROWS)
    config = models.make_config("4b", processor)
    return RobometerRewardModel(empty_model(config, torch.bfloat16), processor, config)


@pytest.mark.parametrize(("captured", "limit"), [(False, 1600), (True, 50)])
def test_the_released_model_is_few_launches(fake_gpu, captured, limit, monkeypatch):
    """LeRobot's path launches 3,400 kernels for one clip, and 25,000 for thirty-two."""
    monkeypatch.setattr(cuda_graphs, "_CAPTURE_AFTER", 1 + captured)
    monkeypatch.setattr(cuda_graphs, "_MAX_GRAPHS", 64 * captured)
    gpu = fake_gpu(FlashAttention)
    with gpu.model(released_shape()) as model:
        for streams in (1, 16):
            model.forget()
            for step in range(4):
                gpu.launches = 0
                frames = [np.zeros((224, 224, 3), np.uint8) for _ in range(3)]
                model.predict([Clip(frames, "push", n, [0, 1, 2 + step]) for n in range(streams)])
            assert 20 < gpu.launches < limit
            assert gpu.reads[-1] == (streams, 2)


class Stream(str):
    """A CUDA stream, by its name."""

    def wait_stream(self, other: str) -> None:
        pass


class FakeGraph:
    """A torch.cuda.CUDAGraph."""

    def replay(self) -> None:
        pass


class FakeGraphs:
    """The rules of CUDA graph capture in torch 2.11, on two GPUs, one of them named "cpu".

    Attributes:
        device: the current one.
        stream: the current one.
        random: whether random numbers can be drawn.
        graphs: number of live graphs in each memory pool.
        streams: number of streams made.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.device, self.stream, self.random = "another", "usual", True
        self.graphs: dict[int | None, int] = {}
        self.streams = 0
        handles = count()
        for name, fake in {
            "CUDAGraph": FakeGraph,
            "graph": self._graph,
            "graph_pool_handle": lambda: next(handles),
            "Stream": self._new_stream,
            "current_stream": lambda _: Stream(self.stream),
            "stream": lambda stream: self._within("stream", stream),
            "device": lambda device: self._within("device", str(device)),
        }.items():
            patch.setattr(torch.cuda, name, fake)

    def _new_stream(self, device: Any) -> Stream:
        self.streams += 1
        return Stream(f"{self.streams} of {device}")

    @contextmanager
    def _within(self, name: str, value: str) -> Iterator[None]:
        before = getattr(self, name)
        setattr(self, name, value)
        try:
            yield
        finally:
            setattr(self, name, before)

    @contextmanager
    def _graph(
        self, graph: FakeGraph, pool: int | None, stream: str, capture_error_mode: str
    ) -> Iterator[None]:
        assert self.device == "cpu", "nothing would be captured"
        assert capture_error_mode == "thread_local", "another thread's allocation would fail"
        assert not torch.is_inference_mode_enabled(), "later captures would fail"
        if self.graphs.get(pool) == 0:
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
        self.graphs[pool] = self.graphs.get(pool, 0) + 1
        weakref.finalize(graph, self._release, pool)
        before, self.stream, self.random = self.stream, stream, False
        try:
            yield
        except torch.cuda.OutOfMemoryError:
            self.stream, self.random = before, True  # leaves no broken state
            raise
        except RuntimeError as error:
            raise RuntimeError("operation failed due to a previous error") from error
        self.stream, self.random = before, True

    def _release(self, pool: int | None) -> None:
        self.graphs[pool] -= 1


@pytest.fixture
def card(monkeypatch) -> Iterator[FakeGraphs]:
    cuda_graphs._capture_stream.cache_clear()
    yield FakeGraphs(monkeypatch)
    cuda_graphs._capture_stream.cache_clear()


def run_often(graphs: CudaGraphCache, function: Any = torch.neg) -> Tensor:
    """Run a function often enough to be captured, in inference mode as the engine does."""
    with torch.inference_mode():
        return [graphs(function, function, [torch.ones(2)]) for _ in range(3)][-1]


def test_capture_works_after_all_graphs_were_dropped(card):
    """Once its cache had grown, the engine would be as slow as without graphs, for ever."""
    graphs = CudaGraphCache(cuda_graph_capture)
    for _ in range(3):
        for function in (torch.neg, torch.exp):
            assert torch.equal(run_often(graphs, function), function(torch.ones(2)))
        assert len(graphs) == 2
        graphs.clear()
        assert not any(card.graphs.values()), "memory is not freed"
    assert not graphs.disabled_reason
    assert card.streams == 1, "each stream takes some megabytes for ever"


def test_models_in_two_threads_do_not_share_a_memory_pool(card):
    """One would replay into outputs of the other that are not read yet."""
    held = CudaGraphCache(cuda_graph_capture), CudaGraphCache(cuda_graph_capture)
    for graphs in held:
        run_often(graphs)
    assert list(card.graphs.values()) == [1, 1]


def test_a_failed_capture_leaves_no_broken_state(card):
    """The policy's own sampling and its next update would fail, far from the cause."""
    runs: list[str] = []

    def fail(x: Tensor) -> Tensor:
        runs.append(card.stream)
        if card.stream != "usual" and len(runs) > 3:
            raise RuntimeError("operation not permitted when stream is capturing")
        return -x

    graphs = CudaGraphCache(cuda_graph_capture)
    assert torch.equal(run_often(graphs, fail), -torch.ones(2))
    assert runs == ["usual", *["1 of cpu"] * 3, "usual", "usual"]
    assert graphs.disabled_reason == "operation failed due to a previous error"
    assert (card.device, card.stream, card.random) == ("another", "usual", True)


def test_a_full_card_during_capture_is_reported_as_such(card):
    """The caches would not be emptied, and every further prediction be slow."""
    runs: list[str] = []

    def full(x: Tensor) -> Tensor:
        runs.append(card.stream)
        if len(runs) > 3:
            raise torch.cuda.OutOfMemoryError("Tried to allocate 9 GiB.")
        return -x

    graphs = CudaGraphCache(cuda_graph_capture)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        run_often(graphs, full)
    assert not graphs.disabled_reason
    assert (card.device, card.stream, card.random) == ("another", "usual", True)


def test_a_capture_that_misses_work_is_detected(card):
    """Replays would return old outputs of quantized layers, which run on a stream of their own."""
    runs: list[str] = []

    def runs_elsewhere(x: Tensor) -> Tensor:
        runs.append(card.stream)
        return -x if len(runs) != 4 else torch.zeros(2)

    graphs = CudaGraphCache(cuda_graph_capture)
    assert torch.equal(run_often(graphs, runs_elsewhere), -torch.ones(2))
    assert runs[3] != "usual"
    assert graphs.disabled_reason == "a replay gives other numbers than the captured function"
