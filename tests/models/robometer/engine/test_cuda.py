"""The engine on a real GPU; skipped without one.

With ROBOMETER_GYM_DRY_RUN=1 the same tests run on a CPU, with the stand-ins of test_graph_runner.py
for graphs and the flash kernel, to check the tests themselves.
"""

from __future__ import annotations

import gc
import os
import threading
import warnings
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from PIL import Image
from torch import Tensor

from robometer_gym import RobometerRewardModel
from robometer_gym.models.robometer.demo import random_model
from robometer_gym.models.robometer.engine import attention as attention_module
from robometer_gym.models.robometer.engine import cuda_fast_paths, cuda_graphs, executor
from robometer_gym.models.robometer.engine.attention import (
    FlashAttention,
    PaddedAttention,
    RowAttention,
)
from robometer_gym.models.robometer.engine.batch_layout import upload
from robometer_gym.models.robometer.engine.bicubic_resize import pillow_pass_order, resize
from robometer_gym.models.robometer.engine.cuda_graphs import CudaGraphCache, cuda_graph_capture
from robometer_gym.reward_model import Clip, Prediction, RewardModelError
from tests.models.robometer.engine.recomputation import (
    PROCESSOR,
    SINGLE,
    SIZES,
    TASKS,
    Truth,
    assert_close,
    clip,
    eager_twin,
    engine_of,
    graph_count,
    new_model,
    small_config,
)
from tests.models.robometer.engine.schedules import OPS, Player
from tests.models.robometer.engine.test_graph_runner import (
    SPANS,
    documented_flash,
    problem,
    repeat,
    written_out,
)

DRY = bool(os.environ.get("ROBOMETER_GYM_DRY_RUN"))
DEVICE = torch.device("cpu" if DRY else "cuda")
HALF = torch.bfloat16
EXAMPLES = 5 if DRY else 40

# Warnings of libraries about a GPU (TF32 is off) are no failures.
pytestmark = [
    pytest.mark.skipif(not DRY and not torch.cuda.is_available(), reason="there is no GPU here"),
    pytest.mark.filterwarnings("ignore"),
]
no_dry_run = pytest.mark.skipif(DRY, reason="needs a real GPU")


@pytest.fixture(autouse=True)
def dry_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, take the code path of a GPU."""
    if not DRY:
        return
    monkeypatch.setattr(cuda_fast_paths, "cuda_graph_capture", lambda: repeat)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(executor, "new_runner", cuda_fast_paths.cuda_runner)
    monkeypatch.setattr(attention_module, "_flash", documented_flash)


def on_gpu(dtype: torch.dtype = SINGLE, engine: Any = "fast") -> RobometerRewardModel:
    model = new_model(engine, dtype, own=True)
    model.model.to(DEVICE)
    return model


def batches(streams: int = 6) -> list[list[Clip]]:
    """Return the clips of a vector environment: growing streams, with and without a resize."""
    return [
        [clip(n, [0, 1, *range(2, 2 + step)], TASKS[n % 3], SIZES[n % 3]) for n in range(streams)]
        for step in range(1, 7)
    ]


def values(predictions: list[Prediction]) -> np.ndarray:
    return np.concatenate([np.stack([each.progress, each.success]) for each in predictions], axis=1)


def test_schedules_get_the_numbers_of_full_recomputation():
    """Rewards would depend on a padded row, a stale graph or another environment's frame."""
    fast, recompute = on_gpu(), Truth(on_gpu(engine="eager"))

    @settings(max_examples=EXAMPLES)
    @given(OPS)
    def run(ops):
        Player(fast, recompute).play(ops)

    run()
    assert graph_count(fast) > 2


def test_no_fallback_is_in_use():
    """A GPU would be slow because of a fallback."""
    model = on_gpu(HALF)
    for clips in batches():
        model.predict(clips)
    info = model.engine_info()
    assert info["attention"] == "flash"
    assert info["compiled"] == "elementwise functions"
    assert graph_count(model) >= 2
    assert info["device"] == ("cpu" if DRY else "cuda:0")


def test_in_bfloat16_the_error_is_no_larger_than_without_the_engine():
    """Differences of rewards are small: the engine must not add to the rounding of bfloat16."""
    single = on_gpu(engine="eager")
    expected = [values(single.predict(clips)) for clips in batches()]
    errors = {}
    for engine in ("fast", "eager"):
        model = on_gpu(HALF, engine)
        ours = [values(model.predict(clips)) for clips in batches()]
        pairs = zip(ours, expected, strict=True)
        errors[engine] = np.mean([np.abs(one - other).mean() for one, other in pairs])
    assert 0 < errors["fast"] <= 1.2 * errors["eager"], errors


@pytest.mark.parametrize("dtype", [SINGLE, HALF])
def test_replays_are_the_same_to_the_last_bit(dtype, monkeypatch):
    """The same window would get another reward the third time."""
    graphed, plain = on_gpu(dtype), on_gpu(dtype)
    for _ in range(3):
        for clips in batches():
            ours = values(graphed.predict(clips))
            with monkeypatch.context() as patch:
                patch.setattr(cuda_graphs, "_CAPTURE_AFTER", 1 << 30)
                assert np.array_equal(ours, values(plain.predict(clips)))
        for stream in range(6):
            graphed.release(stream)
            plain.release(stream)
    assert graph_count(graphed) >= 4
    assert graph_count(plain) == 0


@pytest.mark.parametrize("dtype", [SINGLE, HALF])
def test_unused_memory_has_no_effect(dtype):
    """One overflow in one episode would turn every later reward into NaN."""
    clean, poisoned = on_gpu(dtype), on_gpu(dtype)
    for steps in ([0, 1, 2], [0, 2, 4, 5], [0, 5], [0, 5, 6], [3, 6, 7, 8]):
        if poisoned._engine is not None:
            engine = engine_of(poisoned)
            runs, used = engine._executor, list[int]()
            for slot in engine._slots._slots:
                if slot.task is not None:
                    tokens, _ = engine._prompts.extent(slot.task, (4, 4), len(slot.frames))
                    used += range(slot.number * runs.length, slot.number * runs.length + tokens)
            unused = np.setdiff1d(np.arange(runs._cache.shape[2]), used)
            with torch.inference_mode():
                runs._cache[:, :, torch.from_numpy(unused).to(DEVICE)] = torch.nan
        clips = [clip("a", steps), clip("b", [9]), clip(None, steps)]
        assert np.array_equal(values(poisoned.predict(clips)), values(clean.predict(clips)))


@settings(max_examples=EXAMPLES)
@given(SPANS)
def test_every_kind_of_attention_is_attention(rows):
    """A kernel that reads cached keys in another order shows a frame its future."""
    spans, queries, cache = problem(rows)
    inside = torch.zeros(cache.shape[1], dtype=torch.bool)
    for span in spans:
        inside[span.start : span.start + int(span.key_counts[-1])] = True
    cache[:, ~inside] = torch.nan
    width, length = max(len(s.key_counts) for s in spans), max(int(s.key_counts[-1]) for s in spans)
    kinds_of: dict[torch.dtype, list[Any]] = {
        SINGLE: [PaddedAttention],
        HALF: [PaddedAttention, FlashAttention],
    }
    for dtype, kinds in kinds_of.items():
        rounded = queries.to(dtype), cache.to(dtype)
        expected = written_out(spans, *(each.double() for each in rounded)).float()
        given_ = rounded[0].to(DEVICE), *rounded[1].to(DEVICE)
        outputs = {"row by row": RowAttention(spans, given_[0])(*given_)}
        for kind in kinds:
            for more in (0, 3):
                shape = {"rows": len(rows) + more, "width": width + more, "tokens": len(queries)}
                indices = upload(kind.indices(spans, **shape), DEVICE)
                attention = kind(*indices, length=length + 50 * more, width=width + more)
                outputs[f"{kind.__name__} {more}"] = attention(*given_)
        near = 1e-5 if dtype is SINGLE else 0.03
        for name, out in outputs.items():
            torch.testing.assert_close(out.float().cpu(), expected, rtol=near, atol=near, msg=name)


@pytest.mark.parametrize("heads", [(32, 8, 128), (16, 8, 128), (4, 4, 32), (8, 1, 64)])
def test_the_flash_kernel_is_used_for_every_published_size(heads):
    """For one of the sizes of Qwen3-VL the engine would be slow."""
    cuda_fast_paths.select_attention.cache_clear()
    for dtype in (HALF, torch.float16):
        assert cuda_fast_paths.select_attention(*heads, dtype, DEVICE) == (FlashAttention, "flash")
    cuda_fast_paths.select_attention.cache_clear()


@pytest.mark.parametrize("source", [(240, 320), (480, 640), (40, 100), (64, 64), (500, 300)])
def test_frames_are_resized_to_the_same_bits(source):
    """A frame would have other pixels on a GPU than on the CPU of the parity tests."""
    size = PROCESSOR.images.input_size(*source)
    order = pillow_pass_order(source, size)
    assert order is not None
    frames = np.random.default_rng(0).integers(0, 256, (3, *source, 3), dtype=np.uint8)
    resized = resize(torch.from_numpy(frames).to(DEVICE), size, order).cpu().numpy()
    for frame, ours in zip(frames, resized, strict=True):
        pillow = Image.fromarray(frame).resize(size[::-1], Image.Resampling.BICUBIC)
        assert np.array_equal(ours, np.asarray(pillow))


def test_training_goes_on_after_predicting():
    """After a prediction the model could no longer be trained."""
    model = on_gpu()
    for clips in batches():
        before = model.predict(clips)
    model.model.train()
    optimizer = torch.optim.SGD(model.model.parameters(), lr=0.1)
    model.model(PROCESSOR.encode(clips)).progress[:, 9].sum().backward()
    optimizer.step()
    model.model.eval()
    after = model.predict(clips)
    assert not np.allclose(values(after), values(before))
    eager = eager_twin(model)
    assert_close(after, eager.predict(clips))
    assert_close(model.predict(clips), eager.predict(clips))


@pytest.mark.parametrize("kind", ["int8", "nf4", pytest.param("float8", marks=no_dry_run)])
def test_quantized_weights_give_the_numbers_of_the_eager_path(kind, tmp_path):
    """On a small card rewards would come from another model than the quantized one."""
    library = "torchao" if kind == "float8" else "bitsandbytes"
    pytest.importorskip(library, reason=f"{library} is not installed")
    config = small_config(hidden_size=128)  # 4-bit blocks hold 64 weights
    whole = RobometerRewardModel(random_model(config, seed=0), PROCESSOR, config)
    whole.save_pretrained(tmp_path)
    model = RobometerRewardModel.from_pretrained(
        tmp_path, device=DEVICE, dtype=HALF, quantization=kind
    )
    eager = eager_twin(model)
    for clips in batches():
        ours, right = values(model.predict(clips)), values(eager.predict(clips))
        np.testing.assert_allclose(ours, right, rtol=0, atol=0.1)  # roundings become steps
        np.testing.assert_allclose(ours, values(whole.predict(clips)), rtol=0, atol=0.15)
    print(kind, model.engine_info())


# Only on a GPU ------------------------------------------------------------------------------------


@no_dry_run
def test_a_prediction_waits_for_the_gpu_once():
    """Each further wait takes as long as a prediction, and the GPU idles meanwhile."""
    model = on_gpu(HALF)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(5):
            if step == 4:  # by now everything is captured
                torch.cuda.set_sync_debug_mode("warn")
            model.predict([clip(n, [0, 1 + step], TASKS[n % 3], SIZES[n % 3]) for n in range(6)])
        torch.cuda.set_sync_debug_mode("default")
    messages = [str(each.message) for each in caught]
    waits = [each for each in messages if "called a synchronizing" in each]
    assert len(waits) == 1, waits


@no_dry_run
def test_a_full_card_empties_the_caches_and_raises_if_that_does_not_help():
    """Hours of training would end in an error of torch's, though the caches can be emptied."""
    model, eager = on_gpu(), on_gpu(engine="eager")
    for clips in batches():
        model.predict(clips)
    large = [clip(n, range(8), size=(448, 448)) for n in range(16)]
    budget = model.engine_info()["cache_budget_bytes"]
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (32 << 20)) / total)
    try:
        with pytest.raises(RewardModelError, match=r"[Nn]o memory"):
            model.predict(large)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    for clips in batches():
        assert_close(model.predict(clips), eager.predict(clips))
    assert model.engine_info()["cache_budget_bytes"] <= budget
    assert graph_count(model) > 0
    assert torch.randn(3, device=DEVICE).isfinite().all()


@no_dry_run
def test_memory_is_freed():
    """A run that fine-tunes and predicts by turns would fill the card."""
    model, held = on_gpu(HALF), []
    for _ in range(4):
        for clips in batches():
            model.predict(clips)
        assert graph_count(model) > 0
        model.forget()
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        held.append(torch.cuda.memory_allocated())
    assert held[1] == held[2] == held[3], held
    assert torch.cuda.memory_reserved() < held[3] + (256 << 20)


@no_dry_run
def test_capture_works_after_the_cache_has_grown():
    """After the first episode with longer windows the engine would be slow for ever."""
    model, eager = on_gpu(), on_gpu(engine="eager")
    for streams in (1, 3, 9, 20):
        for clips in batches(streams):
            assert_close(model.predict(clips), eager.predict(clips))
        assert graph_count(model) > 0


@no_dry_run
def test_a_failed_capture_leaves_no_broken_state():
    """The policy's own sampling and its next update would fail, far from the cause."""
    graphs, x = CudaGraphCache(cuda_graph_capture), torch.ones(3, device=DEVICE)
    before = torch.cuda.current_stream()

    def reads(x: Tensor) -> Tensor:
        return x * x.sum().item()

    for _ in range(3):
        assert graphs("reads", reads, [x]).tolist() == [3.0] * 3
    assert graphs.disabled_reason
    assert torch.cuda.current_stream() == before
    assert torch.randn(3, device=DEVICE).isfinite().all()
    again = CudaGraphCache(cuda_graph_capture)
    for _ in range(3):
        assert again("neg", torch.neg, [x]).tolist() == [-1.0] * 3
    assert len(again) == 1


@no_dry_run
def test_other_threads_may_use_the_gpu_meanwhile():
    """The thread that trains the policy would fail while the reward model captures a graph."""
    model, eager = on_gpu(), on_gpu(engine="eager")
    over, failures = threading.Event(), []

    def train() -> None:
        sizes = cycle(range(1 << 20, 1 << 24, 1 << 20))
        while not over.is_set():
            try:
                grown = torch.ones(next(sizes), device=DEVICE, requires_grad=True)
                (grown * grown).sum().backward()
            except RuntimeError as error:
                failures.append(error)
                return

    thread = threading.Thread(target=train)
    thread.start()
    try:
        for streams in (1, 2, 5, 9):
            for clips in batches(streams):
                assert_close(model.predict(clips), eager.predict(clips))
    finally:
        over.set()
        thread.join()
    assert not failures
    assert graph_count(model) > 0


@no_dry_run
def test_it_runs_on_any_stream_and_beside_other_graphs():
    """A user with own graphs or streams would get other numbers or errors."""
    model, eager = on_gpu(), on_gpu(engine="eager")
    weight, out = torch.ones(4, device=DEVICE, requires_grad=True), []
    (weight * torch.rand(4, device=DEVICE)).sum()
    for turn, clips in enumerate(batches() * 2):
        with torch.cuda.stream(torch.cuda.Stream()) if turn % 2 else torch.no_grad():
            assert_close(model.predict(clips), eager.predict(clips))
        if turn == 6:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out.append((weight * torch.rand(4, device=DEVICE)).sum())
        if out:
            graph.replay()
            assert out[0].item() > 0
    assert graph_count(model) > 0


@no_dry_run
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second GPU here")
def test_it_runs_on_the_second_card():
    """No graph would be captured there, and replays would return old outputs."""
    model, eager = new_model(own=True), new_model("eager", own=True)
    for each in (model, eager):
        each.model.to("cuda:1")
    for clips in batches():
        assert_close(model.predict(clips), eager.predict(clips))
    assert graph_count(model) > 0
    assert model.engine_info()["device"] == "cuda:1"


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Multiply float32 matrices in float32, not in TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)
