"""What a GPU would refuse, or be kept waiting by, found without one.

Of the whole engine's tensors only sizes, dtypes and devices are computed, with torch's fake
tensors: they may say that they are on a GPU where there is none, refuse to be read, and refuse to
meet a tensor of the CPU. What torch cannot pretend is replaced, each in `Pretence`: pinning,
recording, how much memory is free, and the trial of kernels. `Card` does the same for recording:
it has the rules of torch 2.11, which it breaks with an error where torch would. The numbers are
tested elsewhere.
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
from robometer_gym.models.robometer.engine import bicubic, cuda, graphs, weights
from robometer_gym.models.robometer.engine.attention import FlashAttention, PaddedAttention
from robometer_gym.models.robometer.engine.graphs import Graphs, cuda_recorder
from robometer_gym.models.robometer.engine.prompts import Prompts
from robometer_gym.models.robometer.network import images
from robometer_gym.models.robometer.network.modeling import empty_model
from robometer_gym.reward_model import Clip
from tests.models.robometer.engine.test_engine import (
    PROCESSOR,
    SIZES,
    TASKS,
    clip,
    engine_of,
    new_model,
)
from tests.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))  # for its shapes


class Pretence(TorchDispatchMode):
    """Pretends that there is a GPU, and watches what it is told.

    Attributes:
        reads: shapes of the tensors that were read back.
        launches: how many operations it was told, not those that only look at memory.
        waits: copies to the GPU for which the CPU waits.
        uploads: copies to the GPU for which nobody waits.
    """

    def __init__(self, patch: pytest.MonkeyPatch, kind: Any) -> None:
        super().__init__()
        self._kind, self._recording = kind, False
        self._pinned: list[Tensor] = []
        self.reads: list[Any] = []
        self.launches = self.waits = self.uploads = 0
        self._fake = FakeTensorMode()
        patch.setattr(cuda, "attention_for", lambda *_: (kind, "as told"))
        patch.setattr(cuda, "fused", lambda *_: (lambda function: function, "nothing"))
        patch.setattr(cuda, "cuda_recorder", lambda: self._record)
        patch.setattr(torch.cuda, "mem_get_info", lambda _: (8 << 30, 8 << 30))
        patch.setattr(Tensor, "pin_memory", lambda tensor: self._pin(tensor))
        patch.setattr(
            FakeTensor, "tolist", lambda tensor: self._read(tensor)
        )  # everything else that reads raises
        # Fake tensors have no addresses.
        patch.setattr(weights.Watch, "_read", lambda _: ([], []))
        patch.setattr(weights, "_adjoin", lambda *_: False)
        # Words and Pillow stay on the CPU, where they are real.
        patch.setattr(Prompts, "_segment", real(Prompts._segment))
        for size in SIZES:
            bicubic.pillows_order(size, PROCESSOR.images.seen_size(*size))

    @contextmanager
    def model(self, model: RobometerRewardModel | None = None) -> Iterator[Any]:
        """Yield a model, or a small one, that is on the GPU."""
        dtype = torch.bfloat16 if self._kind is FlashAttention else torch.float32
        model = model or new_model(dtype)
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
        if self._recording:
            assert devices <= {"cuda"}, f"{op} of {devices} is recorded"
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
        assert not self._recording, "memory is pinned while a GPU is recorded"
        self._pinned.append(tensor)
        return tensor

    def _read(self, tensor: Tensor) -> list[list[float]]:
        assert not self._recording
        if tensor.numel():  # of nothing, torch reads nothing
            self.reads.append(tuple(tensor.shape))
        return [[0.5] * tensor.shape[1] for _ in tensor]

    def _record(self, function: Any, inputs: Sequence[Tensor]) -> tuple[Any, Tensor]:
        self._recording = True
        output = function(*inputs)
        self._recording = False
        return lambda: None, output


def real(function: Callable[..., Any]) -> Callable[..., Any]:
    def unpretended(*args: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args)

    return unpretended


def can_pretend() -> bool:
    """Return whether this torch has fake tensors of a GPU where there is none."""
    try:
        with torch.inference_mode(), FakeTensorMode():
            return torch.tensor([1.0, 2.0]).to("cuda").device.type == "cuda"
    except (RuntimeError, AssertionError):  # torch 2.4
        return False


KINDS = pytest.mark.parametrize("kind", [FlashAttention, PaddedAttention])


@pytest.fixture
def pretend() -> Iterator[Callable[[Any], Pretence]]:
    if not can_pretend():
        pytest.skip("this version of torch cannot pretend that there is a GPU")
    kept = images._per_channel, bicubic._weights
    for each in kept:
        each.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        yield lambda kind: Pretence(patch, kind)
    for each in kept:
        each.cache_clear()  # no other test is to be given a tensor without numbers


def shown(steps: Sequence[int], streams: int = 3) -> list[Any]:
    """Return clips of several tasks and sizes: one of them is resized."""
    return [clip(n, steps, TASKS[n % 3], SIZES[n % 3]) for n in range(streams)]


@KINDS
def test_a_gpu_is_waited_for_once_in_a_query(pretend, kind):
    """Each further wait costs as much as a query: the GPU would stand still meanwhile."""
    gpu = pretend(kind)
    with gpu.model() as model:
        model.predict(shown([0]))
        gpu.waits = 0
        for step in range(1, 6):
            gpu.reads.clear()
            gpu.uploads = 0
            model.predict(shown([0, step]))
            assert gpu.reads == [(3, 2)]
            assert gpu.uploads == 3 + 1  # the pictures of each size, and all numbers
        assert gpu.waits == 0
        assert model.engine_info()["device"] == "cuda:0"
        assert int(model.engine_info()["graphs"].split()[0]) > 1


@KINDS
def test_whatever_is_asked_stays_on_the_gpu(pretend, kind, monkeypatch):
    """In a rare case only, a training run would end: memory runs short, or a video is long."""
    gpu = pretend(kind)
    with gpu.model() as model:
        for streams, steps in ((1, [0]), (6, [0, 1]), (6, [3, 4, 5]), (2, range(12))):
            model.predict(shown(steps, streams))
        monkeypatch.setattr(
            "robometer_gym.models.robometer.engine.runner._MOST_RECORDED_TOKENS", 60
        )
        monkeypatch.setattr(
            "robometer_gym.models.robometer.engine.runner._MOST_RECORDED_PATCHES", 40
        )
        model.forget()
        model.predict(shown(range(4)))
        engine_of(model)._prepare(1 << 20)
        model.predict([*shown(range(9), 5), clip(None, range(3))])
        model.release(0)


@KINDS
@pytest.mark.parametrize("recorded", [False, True])
def test_more_environments_are_no_more_work_for_the_cpu(pretend, kind, recorded, monkeypatch):
    """A GPU that is told to do little at a time waits for the CPU, longer with each environment."""
    monkeypatch.setattr(graphs, "_WORTH", 2 if recorded else 1000)
    gpu = pretend(kind)
    counts = {}
    with gpu.model() as model:
        for streams in (1, 8):
            model.forget()
            for step in range(5):
                gpu.launches = 0
                model.predict([clip(n, [0, 1, 2 + step]) for n in range(streams)])
            counts[streams] = gpu.launches
    assert counts[8] <= counts[1] + 10  # one for each new picture, whose features are kept apart
    assert counts[1] < (40 if recorded else 200)


def released_shape() -> RobometerRewardModel:
    """The released model without its numbers: what is only pretended takes no memory."""
    models = importlib.import_module("parts.models")
    processor = models.make_processor(models.RELEASED_ROWS)
    config = models.make_config("4b", processor)
    return RobometerRewardModel(empty_model(config, torch.bfloat16), processor, config)


@pytest.mark.parametrize(("recorded", "most"), [(False, 1600), (True, 50)])
def test_the_released_model_is_few_launches(pretend, recorded, most, monkeypatch):
    """LeRobot's path launches 3,400 kernels for one clip, and 25,000 for thirty-two."""
    monkeypatch.setattr(graphs, "_WORTH", 1 + recorded)
    monkeypatch.setattr(graphs, "_MOST", 64 * recorded)
    gpu = pretend(FlashAttention)
    with gpu.model(released_shape()) as model:
        for streams in (1, 16):
            model.forget()
            for step in range(4):
                gpu.launches = 0
                frames = [np.zeros((224, 224, 3), np.uint8) for _ in range(3)]
                model.predict([Clip(frames, "push", n, [0, 1, 2 + step]) for n in range(streams)])
            assert 20 < gpu.launches < most
            assert gpu.reads[-1] == (streams, 2)


class Stream(str):
    """A queue of a GPU, by its name."""

    def wait_stream(self, other: str) -> None:
        pass


class Recording:
    """A torch.cuda.CUDAGraph."""

    def replay(self) -> None:
        pass


class Card:
    """The rules of recording, as torch 2.11 keeps them, on two GPUs: one is named "cpu".

    Attributes:
        device: the current one.
        stream: the current one.
        random: whether random numbers can be drawn.
        shared: how many recordings there are in each piece of memory.
        streams: how many were made.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.device, self.stream, self.random = "another", "usual", True
        self.shared: dict[int | None, int] = {}
        self.streams = 0
        handles = count()
        for name, fake in {
            "CUDAGraph": Recording,
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
        self, graph: Recording, pool: int | None, stream: str, capture_error_mode: str
    ) -> Iterator[None]:
        assert self.device == "cpu", "nothing would be recorded"
        assert capture_error_mode == "thread_local", "another thread's allocation would fail"
        assert not torch.is_inference_mode_enabled(), "nobody else could record any more"
        if self.shared.get(pool) == 0:
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
        self.shared[pool] = self.shared.get(pool, 0) + 1
        weakref.finalize(graph, self._release, pool)
        before, self.stream, self.random = self.stream, stream, False
        try:
            yield
        except torch.cuda.OutOfMemoryError:
            self.stream, self.random = before, True  # spoils nothing
            raise
        except RuntimeError as error:
            raise RuntimeError("operation failed due to a previous error") from error
        self.stream, self.random = before, True

    def _release(self, pool: int | None) -> None:
        self.shared[pool] -= 1


@pytest.fixture
def card(monkeypatch) -> Iterator[Card]:
    graphs._aside.cache_clear()
    yield Card(monkeypatch)
    graphs._aside.cache_clear()


def record(recorded: Graphs, function: Any = torch.neg) -> Tensor:
    """Run something often enough to be recorded, as it is run."""
    with torch.inference_mode():
        return [recorded(function, function, [torch.ones(2)]) for _ in range(3)][-1]


def test_recording_goes_on_after_all_was_forgotten(card):
    """Once its cache had grown, the engine would be as slow as without recordings, for ever."""
    recorded = Graphs(cuda_recorder)
    for _ in range(3):
        for function in (torch.neg, torch.exp):
            assert torch.equal(record(recorded, function), function(torch.ones(2)))
        assert len(recorded) == 2
        recorded.forget()
        assert not any(card.shared.values()), "memory is kept"
    assert not recorded.why_off
    assert card.streams == 1, "each stream takes some megabytes for ever"


def test_models_in_two_threads_do_not_share_the_memory_of_recordings(card):
    """One would replay into what the other has computed and not yet read."""
    held = Graphs(cuda_recorder), Graphs(cuda_recorder)
    for recorded in held:
        record(recorded)
    assert list(card.shared.values()) == [1, 1]


def test_what_fails_while_it_is_recorded_leaves_no_trace(card):
    """The policy's own sampling and its next update would fail, far from the cause."""
    runs: list[str] = []

    def fail(x: Tensor) -> Tensor:
        runs.append(card.stream)
        if card.stream != "usual" and len(runs) > 3:
            raise RuntimeError("operation not permitted when stream is capturing")
        return -x

    recorded = Graphs(cuda_recorder)
    assert torch.equal(record(recorded, fail), -torch.ones(2))
    assert runs == ["usual", *["1 of cpu"] * 3, "usual", "usual"]
    assert recorded.why_off == "operation failed due to a previous error"
    assert (card.device, card.stream, card.random) == ("another", "usual", True)


def test_a_full_card_is_told_as_such_while_recording(card):
    """The caches would be kept, and every further prediction be slow."""
    runs: list[str] = []

    def full(x: Tensor) -> Tensor:
        runs.append(card.stream)
        if len(runs) > 3:
            raise torch.cuda.OutOfMemoryError("Tried to allocate 9 GiB.")
        return -x

    recorded = Graphs(cuda_recorder)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        record(recorded, full)
    assert not recorded.why_off
    assert (card.device, card.stream, card.random) == ("another", "usual", True)


def test_what_cannot_be_recorded_without_an_error_is_noticed(card):
    """An agent would be paid by what quantised layers, on a stream of their own, once computed."""
    runs: list[str] = []

    def strays(x: Tensor) -> Tensor:
        runs.append(card.stream)
        return -x if len(runs) != 4 else torch.zeros(2)

    recorded = Graphs(cuda_recorder)
    assert torch.equal(record(recorded, strays), -torch.ones(2))
    assert runs[3] != "usual"
    assert recorded.why_off == "a replay gives other numbers than what was recorded"
