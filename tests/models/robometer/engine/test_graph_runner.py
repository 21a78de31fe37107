"""The GPU path run on a CPU: fixed shapes, CUDA graphs, and every fallback.

Only the kernels need a device. Here a repetition replaces a graph's replay, and a computation by
its documentation replaces the flash kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from robometer_gym.models.robometer.engine import attention as attention_module
from robometer_gym.models.robometer.engine import cuda_fast_paths, executor
from robometer_gym.models.robometer.engine.attention import (
    FlashAttention,
    PaddedAttention,
    RowAttention,
    Span,
)
from robometer_gym.models.robometer.engine.batch_layout import upload
from robometer_gym.models.robometer.engine.cuda_graphs import CudaGraphCache
from robometer_gym.models.robometer.engine.text_decoder import rms_norm_rope, swiglu
from robometer_gym.models.robometer.network.vision import apply_rope
from tests.models.robometer.engine.recomputation import (
    SIZES,
    TASKS,
    check,
    clip,
    engine_of,
    graph_count,
    new_model,
    truth,
)
from tests.models.robometer.engine.schedules import OPS, Player

CPU = torch.device("cpu")


def repeat(function: Any, inputs: Sequence[Tensor]) -> tuple[Callable[[], object], Tensor]:
    """Stand in for a capture: a replay runs the function again and fills the same output."""
    function(*inputs)
    output = function(*inputs)
    return lambda: output.copy_(function(*inputs)), output


@pytest.fixture
def as_on_cuda(monkeypatch):
    """Run the engine on a CPU as on a GPU."""
    monkeypatch.setattr(cuda_fast_paths, "cuda_graph_capture", lambda: repeat)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(executor, "new_runner", cuda_fast_paths.cuda_runner)
    cuda_fast_paths.select_fusion.cache_clear()
    cuda_fast_paths.select_attention.cache_clear()
    yield
    cuda_fast_paths.select_fusion.cache_clear()
    cuda_fast_paths.select_attention.cache_clear()


@pytest.fixture
def graph_model(as_on_cuda):
    return new_model()


def test_schedules_in_fixed_shapes_get_the_same_numbers(graph_model):
    """On a GPU rewards would depend on padding, or on the inputs of another batch."""

    @settings(max_examples=40)
    @given(OPS)
    def run(ops):
        Player(graph_model, truth()).play(ops)

    run()
    assert graph_count(graph_model) > 5


def test_unused_memory_has_no_effect(graph_model):
    """A padded row reads unused cache rows: one overflow there would spoil every later reward."""
    for steps in ([0, 1, 2], [0, 2, 4, 5], [0, 5], [0, 5, 6], [3, 6, 7, 8]):
        runs = engine_of(graph_model)._executor
        used = torch.zeros(runs._cache.shape[2], dtype=torch.bool)
        for slot in engine_of(graph_model)._slots._slots:
            if slot.task is not None:
                tokens, _ = engine_of(graph_model)._prompts.extent(
                    slot.task, (4, 4), len(slot.frames)
                )
                used[slot.number * runs.length :][:tokens] = True
        with torch.inference_mode():
            runs._cache[:, :, ~used] = torch.nan
        clips = [clip("a", steps), clip("b", [9]), clip(None, steps)]
        check(graph_model, clips)


def test_graphs_are_dropped_with_their_cache(graph_model):
    """When the cache grows, replays would go on writing into the memory of the old one."""
    one, more = [clip("a", [0])], [clip("a", [0, 1, 2, 3])]
    for _ in range(3):
        graph_model.predict(one)
        graph_model.release("a")
    many = [clip(n, range(3), size=SIZES[n % 2]) for n in range(12)]
    check(graph_model, many)
    for clips in (one, more):
        check(graph_model, clips)


def test_large_batches_run_without_graphs(graph_model, monkeypatch):
    """Graphs of whole videos would fill the card."""
    monkeypatch.setattr("robometer_gym.models.robometer.engine.runners._MAX_GRAPH_TOKENS", 60)
    monkeypatch.setattr("robometer_gym.models.robometer.engine.runners._MAX_GRAPH_PATCHES", 40)
    clips = [clip(n, range(1 + n), TASKS[n % 3], SIZES[n % 3]) for n in range(7)]
    check(graph_model, clips)
    small = [clip("a", [0])]
    check(graph_model, small)


def test_a_failed_capture_is_run_without_graphs(as_on_cuda, monkeypatch):
    """One operation that cannot be captured would end the training run."""

    def fail(function: Any, inputs: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(cuda_fast_paths, "cuda_graph_capture", lambda: fail)
    model = new_model()
    for steps in ([0, 1], [0, 1, 2], [0, 2]):
        clips = [clip("a", steps), clip(None, [3])]
        check(model, clips)
    reason = "off: operation not permitted when stream is capturing"
    assert model.engine_info()["graphs"] == reason


def test_a_full_card_is_not_taken_for_a_failed_capture():
    """The caches would not be emptied, and the next prediction would fail as well."""

    def full(function: Any, inputs: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("Tried to allocate 9 GiB.")

    graphs = CudaGraphCache(lambda: full)
    graphs("name", torch.neg, [torch.ones(2)])
    with pytest.raises(torch.cuda.OutOfMemoryError):
        graphs("name", torch.neg, [torch.ones(2)])
    assert not graphs.disabled_reason


SPANS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 9)), min_size=1, max_size=5
)  # keys before, and new tokens


def problem(rows: list[tuple[int, int]]) -> tuple[list[Span], Tensor, Tensor]:
    """Return rows in slots of 40 cache rows, the last slot first, and queries, keys and values."""
    spans = [
        Span(40 * (len(rows) - 1 - n), np.arange(before + 1, before + new + 1))
        for n, (before, new) in enumerate(rows)
    ]
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(sum(new for _, new in rows), 6, 8, generator=generator)
    return spans, queries, torch.randn(2, 40 * len(rows) + 1, 2, 8, generator=generator)


def written_out(spans: list[Span], queries: Tensor, cache: Tensor) -> Tensor:
    """Attention, one query of one head at a time."""
    out, first = torch.zeros_like(queries), 0
    share, scale = queries.shape[1] // cache.shape[2], queries.shape[2] ** -0.5
    for span in spans:
        for token, count in enumerate(span.key_counts, start=first):
            for head in range(queries.shape[1]):
                keys, values = cache[:, span.start : span.start + count, head // share]
                weights = torch.softmax(keys @ queries[token, head] * scale, 0)
                out[token, head] = weights @ values
        first += len(span.key_counts)
    return out.flatten(1)


def documented_flash(q, k, v, cu_q, cu_k, max_q, max_k, dropout, causal, debug, *, seqused_k):
    """Flash attention over rows of several lengths, by its documentation."""
    assert (dropout, causal, debug) == (0.0, True, False)
    assert {x.dtype for x in (cu_q, cu_k, seqused_k)} == {torch.int32}
    out = torch.full_like(q, torch.nan)  # tokens of no row stay as they were
    for row, used in enumerate(seqused_k.tolist()):
        first, past = cu_q[row], cu_q[row + 1]
        count, start = int(past - first), int(cu_k[row])
        assert count <= max_q
        assert used <= max_k
        if count:
            span = Span(start, np.arange(used - count + 1, used + 1))
            cached = torch.stack([k, v])
            out[first:past] = written_out([span], q[first:past], cached).unflatten(1, q.shape[1:])
    return (out,)


@settings(max_examples=40)
@given(SPANS, st.integers(0, 2), st.integers(0, 3), st.integers(0, 20))
def test_every_kind_of_attention_is_attention(rows, more_rows, wider, more_tokens):
    """A mask that is off by one shows a frame its future, or hides the frame itself."""
    spans, queries, cache = problem(rows)
    expected = written_out(spans, queries, cache)
    torch.testing.assert_close(RowAttention(spans, queries)(queries, *cache), expected)
    width = max(len(span.key_counts) for span in spans) + wider
    length = max(int(span.key_counts[-1]) for span in spans) + more_tokens
    filled = torch.cat([queries, torch.full((more_tokens, 6, 8), torch.nan)])
    shape = {"rows": len(rows) + more_rows, "width": width, "tokens": len(filled)}
    for kind in (PaddedAttention, FlashAttention):
        indices = upload(kind.indices(spans, **shape), CPU)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention_module, "_flash", documented_flash)
            out = kind(*indices, length=length, width=width)(filled, *cache)
        torch.testing.assert_close(out[: len(queries)], expected)


@pytest.mark.parametrize(
    ("flash", "dtype", "choice"),
    [
        (documented_flash, torch.bfloat16, "flash"),
        (documented_flash, torch.float32, "padded: flash attention has no torch.float32"),
        (None, torch.bfloat16, "padded: flash attention failed: "),
        (
            lambda q, *_, **__: (torch.zeros_like(q),),
            torch.bfloat16,
            "padded: flash attention is off",
        ),
        (
            lambda *x, **y: documented_flash_but_not_alone(*x, **y),
            torch.bfloat16,
            "padded: flash attention is off by 1",
        ),
        (
            lambda q, *_, **__: (q * torch.nan,),
            torch.bfloat16,
            "padded: flash attention is off by nan",
        ),
    ],
    ids=["right", "float32", "not there", "wrong", "wrong for one token", "nan"],
)
def test_the_flash_kernel_is_tried_before_it_is_used(monkeypatch, flash, dtype, choice):
    """Another version of torch may have another kernel of the same name."""
    if flash is not None:
        monkeypatch.setattr(attention_module, "_flash", flash)
    cuda_fast_paths.select_attention.cache_clear()
    kind, reason = cuda_fast_paths.select_attention(6, 2, 8, dtype, CPU)
    cuda_fast_paths.select_attention.cache_clear()
    assert reason.startswith(choice)
    assert kind is (FlashAttention if choice == "flash" else PaddedAttention)


def documented_flash_but_not_alone(q, k, v, cu_q, cu_k, max_q, *rest, seqused_k):
    """A kernel whose other code path, for rows of one token, is broken."""
    (out,) = documented_flash(q, k, v, cu_q, cu_k, max_q, *rest, seqused_k=seqused_k)
    return (out if max_q > 1 else 2 * out,)


def broken(*_: Any, **__: Any) -> Any:
    raise OSError("no compiler: gcc\nand more")


def silent(*_: Any, **__: Any) -> Any:
    raise AssertionError


@pytest.mark.parametrize(
    ("compile_", "expected"),
    [
        (lambda function, **_: function, "elementwise functions"),
        (broken, "nothing: OSError: no compiler: gcc"),
        (lambda function, **_: broken, "nothing: OSError: no compiler: gcc"),
        (lambda function, **_: silent, "nothing: AssertionError: AssertionError"),
        (lambda function, **_: lambda *x: 2 * function(*x), "nothing: rms_norm_rope is off by 1"),
    ],
    ids=["right", "not there", "fails when run", "fails without a message", "wrong"],
)
def test_compiled_functions_are_tried_before_they_are_used(monkeypatch, compile_, expected):
    """A machine without a C compiler could not predict at all."""
    monkeypatch.setattr(torch, "compile", compile_)
    cuda_fast_paths.select_fusion.cache_clear()
    fuse, reason = cuda_fast_paths.select_fusion(torch.float32, CPU)
    cuda_fast_paths.select_fusion.cache_clear()
    assert reason == expected
    for function in (rms_norm_rope, swiglu, apply_rope):
        assert fuse(function) is function


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_compiler_that_rounds_less_is_not_taken_for_a_wrong_one(monkeypatch, dtype):
    """Compiled code rounds once, at the end: it would never be used where it helps most."""

    def compile_(function: Any, **_: Any) -> Any:
        def rounds_once(*inputs: Any) -> Tensor:
            exact = [x.double() if isinstance(x, Tensor) else x for x in inputs]
            rounded: Tensor = function(*exact).to(dtype)
            return rounded

        return rounds_once

    monkeypatch.setattr(torch, "compile", compile_)
    cuda_fast_paths.select_fusion.cache_clear()
    assert cuda_fast_paths.select_fusion(dtype, CPU)[1] == "elementwise functions"
    cuda_fast_paths.select_fusion.cache_clear()


def test_a_card_that_is_full_for_a_moment_does_not_stay_slow(monkeypatch):
    """Kernels that were tried without free memory would never be tried again."""

    def full(*_: Any, **__: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("Tried to allocate 9 GiB.")

    for cached in (cuda_fast_paths.select_fusion, cuda_fast_paths.select_attention):
        cached.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", lambda *_, **__: full)
        patch.setattr(attention_module, "_flash", full)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            cuda_fast_paths.select_fusion(torch.bfloat16, CPU)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            cuda_fast_paths.select_attention(6, 2, 8, torch.bfloat16, CPU)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(attention_module, "_flash", documented_flash)
    assert cuda_fast_paths.select_fusion(torch.bfloat16, CPU)[1] == "elementwise functions"
    assert cuda_fast_paths.select_attention(6, 2, 8, torch.bfloat16, CPU)[1] == "flash"
    for cached in (cuda_fast_paths.select_fusion, cuda_fast_paths.select_attention):
        cached.cache_clear()


def test_functions_are_compiled_before_they_are_captured(monkeypatch):
    """A compilation during a capture disables all graphs."""
    counters: list[CompileCounter] = []
    compile_ = torch.compile

    def counted(function: Any, **settings: Any) -> Any:
        counters.append(CompileCounter())
        return compile_(function, backend=counters[-1], **settings)

    def checked(function: Any, inputs: Sequence[Tensor]) -> Any:
        before = [counter.frame_count for counter in counters]
        captured = repeat(function, inputs)
        assert [counter.frame_count for counter in counters] == before
        return captured

    monkeypatch.setattr(cuda_fast_paths, "cuda_graph_capture", lambda: checked)
    monkeypatch.setattr(executor, "new_runner", cuda_fast_paths.cuda_runner)
    monkeypatch.setattr(torch, "compile", counted)
    cuda_fast_paths.select_fusion.cache_clear()
    model = new_model()
    model.engine_info()
    tried = [counter.frame_count for counter in counters]
    assert min(tried) > 0
    for streams in (1, 2, 5):
        for step in range(1, 4):
            clips = [clip(n, [0, step], TASKS[n % 3], SIZES[n % 3]) for n in range(streams)]
            check(model, clips)
    assert graph_count(model) > 1
    if torch.__version__ >= torch.torch_version.TorchVersion("2.11"):  # others compile more often
        assert [counter.frame_count for counter in counters] == tried
    cuda_fast_paths.select_fusion.cache_clear()


def test_engine_info_reports_the_choices(graph_model):
    """A user could not find out why a GPU is slow."""
    for name in "abc":
        graph_model.predict([clip(name, [0, 1])])
    info = graph_model.engine_info()
    assert info["attention"] == "padded: flash attention has no torch.float32"
    assert info["compiled"] == "elementwise functions"
    assert info["graphs"] == "2 captured"  # images and their tokens; the prompt ran once
