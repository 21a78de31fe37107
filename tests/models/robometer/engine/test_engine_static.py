"""What is meant for a GPU, run without one: fixed shapes, recordings, and every fallback.

The kernels themselves need a device. Everything around them does not: recordings are replaced by
repetitions, and the flash kernel by what its documentation says of it.
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
from robometer_gym.models.robometer.engine import cuda, executor
from robometer_gym.models.robometer.engine.attention import (
    FlashAttention,
    PaddedAttention,
    RowAttention,
    Span,
)
from robometer_gym.models.robometer.engine.graphs import Graphs
from robometer_gym.models.robometer.engine.layout import upload
from robometer_gym.models.robometer.engine.text import gated, turned
from robometer_gym.models.robometer.network.vision import rotated
from tests.models.robometer.engine.test_engine import (
    EAGER,
    SCHEDULES,
    SIZES,
    TASKS,
    assert_close,
    clip,
    engine_of,
    new_model,
    play,
)

CPU = torch.device("cpu")


def repeat(function: Any, inputs: Sequence[Tensor]) -> tuple[Callable[[], object], Tensor]:
    """Record as a GPU would: run now and then, and fill the same output again when replayed."""
    function(*inputs)
    output = function(*inputs)
    return lambda: output.copy_(function(*inputs)), output


@pytest.fixture
def as_on_cuda(monkeypatch):
    """Let the engine do on a CPU what it would do on a GPU."""
    monkeypatch.setattr(cuda, "cuda_recorder", lambda: repeat)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(executor, "new_runner", cuda.cuda_runner)
    cuda.fused.cache_clear()
    cuda.attention_for.cache_clear()
    yield
    cuda.fused.cache_clear()
    cuda.attention_for.cache_clear()


@pytest.fixture
def static(as_on_cuda):
    return new_model()


def test_schedules_in_fixed_shapes_get_the_same_numbers(static):
    """On a GPU an agent would be paid by what fills up a batch, or by another batch's inputs."""

    @settings(max_examples=40)
    @given(SCHEDULES)
    def check(schedule):
        play(schedule, static, EAGER)

    check()
    assert int(static.engine_info()["graphs"].split()[0]) > 5


def test_what_is_in_unused_memory_changes_nothing(static):
    """A padded row reads lines that are nobody's: one overflow would spoil every later reward."""
    for steps in ([0, 1, 2], [0, 2, 4, 5], [0, 5], [0, 5, 6], [3, 6, 7, 8]):
        runs = engine_of(static)._executor
        used = torch.zeros(runs._cache.shape[2], dtype=torch.bool)
        for slot in engine_of(static)._slots._slots:
            if slot.task is not None:
                tokens, _ = engine_of(static)._prompts.extent(slot.task, (4, 4), len(slot.frames))
                used[slot.number * runs.length :][:tokens] = True
        with torch.inference_mode():
            runs._cache[:, :, ~used] = torch.nan
        clips = [clip("a", steps), clip("b", [9]), clip(None, steps)]
        assert_close(static.predict(clips), EAGER.predict(clips))


def test_a_recording_ends_with_the_cache_that_it_writes_to(static):
    """When the cache grows, replays would go on writing into the memory of the old one."""
    one, more = [clip("a", [0])], [clip("a", [0, 1, 2, 3])]
    for _ in range(3):
        static.predict(one)
        static.release("a")
    many = [clip(n, range(3), size=SIZES[n % 2]) for n in range(12)]
    assert_close(static.predict(many), EAGER.predict(many))
    for clips in (one, more):
        assert_close(static.predict(clips), EAGER.predict(clips))


def test_batches_too_large_to_record_are_run_as_they_are(static, monkeypatch):
    """Recordings of whole videos would fill the card."""
    monkeypatch.setattr("robometer_gym.models.robometer.engine.runner._MOST_RECORDED_TOKENS", 60)
    monkeypatch.setattr("robometer_gym.models.robometer.engine.runner._MOST_RECORDED_PATCHES", 40)
    clips = [clip(n, range(1 + n), TASKS[n % 3], SIZES[n % 3]) for n in range(7)]
    assert_close(static.predict(clips), EAGER.predict(clips))
    small = [clip("a", [0])]
    assert_close(static.predict(small), EAGER.predict(small))


def test_a_recording_that_fails_is_done_without(as_on_cuda, monkeypatch):
    """One operation that cannot be recorded would end the training run."""

    def fail(function: Any, inputs: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(cuda, "cuda_recorder", lambda: fail)
    model = new_model()
    for steps in ([0, 1], [0, 1, 2], [0, 2]):
        clips = [clip("a", steps), clip(None, [3])]
        assert_close(model.predict(clips), EAGER.predict(clips))
    why = "off: operation not permitted when stream is capturing"
    assert model.engine_info()["graphs"] == why


def test_a_full_card_is_not_taken_for_a_recording_that_cannot_be():
    """The caches would not be emptied, and the next prediction would fail as well."""

    def full(function: Any, inputs: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("Tried to allocate 9 GiB.")

    graphs = Graphs(lambda: full)
    graphs("name", torch.neg, [torch.ones(2)])
    with pytest.raises(torch.cuda.OutOfMemoryError):
        graphs("name", torch.neg, [torch.ones(2)])
    assert not graphs.why_off


SPANS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 9)), min_size=1, max_size=5
)  # keys before, and new tokens


def problem(rows: list[tuple[int, int]]) -> tuple[list[Span], Tensor, Tensor]:
    """Return rows in slots of 40 lines, the last slot first, and queries, keys and values."""
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
        for token, seen in enumerate(span.seen, start=first):
            for head in range(queries.shape[1]):
                keys, values = cache[:, span.line : span.line + seen, head // share]
                weights = torch.softmax(keys @ queries[token, head] * scale, 0)
                out[token, head] = weights @ values
        first += len(span.seen)
    return out.flatten(1)


def documented_flash(q, k, v, cu_q, cu_k, most_q, most_k, dropout, causal, debug, *, seqused_k):
    """What flash attention over rows of several lengths is documented to compute."""
    assert (dropout, causal, debug) == (0.0, True, False)
    assert {x.dtype for x in (cu_q, cu_k, seqused_k)} == {torch.int32}
    out = torch.full_like(q, torch.nan)  # what belongs to no row is left as it was
    for row, used in enumerate(seqused_k.tolist()):
        first, past = cu_q[row], cu_q[row + 1]
        count, line = int(past - first), int(cu_k[row])
        assert count <= most_q
        assert used <= most_k
        if count:
            span = Span(line, np.arange(used - count + 1, used + 1))
            cached = torch.stack([k, v])
            out[first:past] = written_out([span], q[first:past], cached).unflatten(1, q.shape[1:])
    return (out,)


@settings(max_examples=40)
@given(SPANS, st.integers(0, 2), st.integers(0, 3), st.integers(0, 20))
def test_every_kind_of_attention_is_attention(rows, more_rows, wider, more_tokens):
    """A mask that is off by one shows a frame its future, or hides the frame itself."""
    spans, queries, cache = problem(rows)
    wanted = written_out(spans, queries, cache)
    torch.testing.assert_close(RowAttention(spans, queries)(queries, *cache), wanted)
    width = max(len(span.seen) for span in spans) + wider
    length = max(int(span.seen[-1]) for span in spans) + more_tokens
    filled = torch.cat([queries, torch.full((more_tokens, 6, 8), torch.nan)])
    shape = {"rows": len(rows) + more_rows, "width": width, "tokens": len(filled)}
    for kind in (PaddedAttention, FlashAttention):
        numbers = upload(kind.numbers(spans, **shape), CPU)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention_module, "_flash", documented_flash)
            out = kind(*numbers, length=length, width=width)(filled, *cache)
        torch.testing.assert_close(out[: len(queries)], wanted)


@pytest.mark.parametrize(
    ("flash", "dtype", "chosen"),
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
def test_attention_is_tried_before_it_is_used(monkeypatch, flash, dtype, chosen):
    """Another version of torch may compute something else under the same name."""
    if flash is not None:
        monkeypatch.setattr(attention_module, "_flash", flash)
    cuda.attention_for.cache_clear()
    kind, said = cuda.attention_for(6, 2, 8, dtype, CPU)
    cuda.attention_for.cache_clear()
    assert said.startswith(chosen)
    assert kind is (FlashAttention if chosen == "flash" else PaddedAttention)


def documented_flash_but_not_alone(q, k, v, cu_q, cu_k, most_q, *rest, seqused_k):
    """A kernel whose other way, for rows of one token, is broken."""
    (out,) = documented_flash(q, k, v, cu_q, cu_k, most_q, *rest, seqused_k=seqused_k)
    return (out if most_q > 1 else 2 * out,)


def broken(*_: Any, **__: Any) -> Any:
    raise OSError("no compiler: gcc\nand more")


def wordless(*_: Any, **__: Any) -> Any:
    raise AssertionError


@pytest.mark.parametrize(
    ("compile_", "said"),
    [
        (lambda function, **_: function, "elementwise parts"),
        (broken, "nothing: OSError: no compiler: gcc"),
        (lambda function, **_: broken, "nothing: OSError: no compiler: gcc"),
        (lambda function, **_: wordless, "nothing: AssertionError: AssertionError"),
        (lambda function, **_: lambda *x: 2 * function(*x), "nothing: turned is off by 1"),
    ],
    ids=["right", "not there", "fails when run", "fails without words", "wrong"],
)
def test_compiled_parts_are_tried_before_they_are_used(monkeypatch, compile_, said):
    """A machine without a C compiler could not predict at all."""
    monkeypatch.setattr(torch, "compile", compile_)
    cuda.fused.cache_clear()
    fuse, why = cuda.fused(torch.float32, CPU)
    cuda.fused.cache_clear()
    assert why == said
    for function in (turned, gated, rotated):
        assert fuse(function) is function


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_compiler_that_rounds_less_is_not_taken_for_a_wrong_one(monkeypatch, dtype):
    """What is compiled rounds once, at the end: it would never be used where it is needed most."""

    def compile_(function: Any, **_: Any) -> Any:
        def rounds_once(*inputs: Any) -> Tensor:
            exact = [x.double() if isinstance(x, Tensor) else x for x in inputs]
            rounded: Tensor = function(*exact).to(dtype)
            return rounded

        return rounds_once

    monkeypatch.setattr(torch, "compile", compile_)
    cuda.fused.cache_clear()
    assert cuda.fused(dtype, CPU)[1] == "elementwise parts"
    cuda.fused.cache_clear()


def test_a_card_that_is_full_for_a_moment_is_not_slow_for_ever(monkeypatch):
    """Kernels that were tried in a bad moment would never be tried again."""

    def full(*_: Any, **__: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("Tried to allocate 9 GiB.")

    for cached in (cuda.fused, cuda.attention_for):
        cached.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", lambda *_, **__: full)
        patch.setattr(attention_module, "_flash", full)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            cuda.fused(torch.bfloat16, CPU)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            cuda.attention_for(6, 2, 8, torch.bfloat16, CPU)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(attention_module, "_flash", documented_flash)
    assert cuda.fused(torch.bfloat16, CPU)[1] == "elementwise parts"
    assert cuda.attention_for(6, 2, 8, torch.bfloat16, CPU)[1] == "flash"
    for cached in (cuda.fused, cuda.attention_for):
        cached.cache_clear()


def test_what_is_compiled_is_compiled_before_it_is_recorded(monkeypatch):
    """A compiler at work while something is recorded ends all recordings."""
    counters: list[CompileCounter] = []
    compile_ = torch.compile

    def counted(function: Any, **settings: Any) -> Any:
        counters.append(CompileCounter())
        return compile_(function, backend=counters[-1], **settings)

    def watched(function: Any, inputs: Sequence[Tensor]) -> Any:
        before = [counter.frame_count for counter in counters]
        recorded = repeat(function, inputs)
        assert [counter.frame_count for counter in counters] == before
        return recorded

    monkeypatch.setattr(cuda, "cuda_recorder", lambda: watched)
    monkeypatch.setattr(executor, "new_runner", cuda.cuda_runner)
    monkeypatch.setattr(torch, "compile", counted)
    cuda.fused.cache_clear()
    model = new_model()
    model.engine_info()
    tried = [counter.frame_count for counter in counters]
    assert min(tried) > 0
    for streams in (1, 2, 5):
        for step in range(1, 4):
            clips = [clip(n, [0, step], TASKS[n % 3], SIZES[n % 3]) for n in range(streams)]
            assert_close(model.predict(clips), EAGER.predict(clips))
    assert int(model.engine_info()["graphs"].split()[0]) > 1
    if torch.__version__ >= torch.torch_version.TorchVersion("2.11"):  # others compile more often
        assert [counter.frame_count for counter in counters] == tried
    cuda.fused.cache_clear()


def test_it_says_how_it_runs(static):
    """Nobody could tell why a GPU is no faster than it is."""
    for name in "abc":
        static.predict([clip(name, [0, 1])])
    info = static.engine_info()
    assert info["attention"] == "padded: flash attention has no torch.float32"
    assert info["compiled"] == "elementwise parts"
    assert info["graphs"] == "2 recorded"  # pictures and their tokens; the question came once
