"""Caches of the engine: reuse, eviction, budgets, counts, refusals. Numbers: `test_engine_*.py`."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from robometer_gym import RobometerRewardModel
from robometer_gym.models.robometer.engine import engine as engine_module
from robometer_gym.models.robometer.engine.executor import Executor
from robometer_gym.reward_model import Clip, RewardModelError
from robometer_gym.testing import check_reward_model
from robometer_gym.tracking.window import FrameHistory
from tests.models.robometer.engine.recomputation import (
    TASKS,
    assert_close,
    check,
    clip,
    draw_frame,
    eager_twin,
    engine_of,
    new_model,
    truth,
)


def test_growing_windows_reuse_all_earlier_frames():
    """Caches that are never used would make every test of the numbers pass, and save nothing."""
    model = new_model()
    for last in range(1, 7):
        check(model, [clip(name, range(last + 1)) for name in "abcd"])
    info = model.engine_info()
    assert info["frames_encoded"] == 4 * 7
    assert info["frames_run"] == 4 * 7
    assert info["frames_kept"] == 4 * (2 + 3 + 4 + 5 + 6)


@pytest.mark.parametrize("sampling", ["linspace", "tail", "anchored"])
def test_every_sampling_rule_gets_the_same_numbers(sampling):
    """Under one of the sampling rules rewards would be wrong, or frames computed twice."""
    model = new_model()
    histories = {name: FrameHistory(6, sampling) for name in "ab"}
    for step in range(0, 80, 4):
        clips = []
        for name, history in histories.items():
            if name == "a" or step > 20:
                history.append(draw_frame(name, step), step)
                frames, steps = history.window()
                clips.append(Clip(frames, TASKS[0], name, steps))
        check(model, clips)
    info = model.engine_info()
    assert info["frames_encoded"] == 20 + 14, "a frame was encoded twice"
    runs_per_frame = {"anchored": 1.6, "linspace": 4, "tail": 6}[sampling]
    assert info["frames_run"] <= runs_per_frame * (20 + 14)


def test_many_clips_at_once_are_run_in_batches(monkeypatch):
    """A hundred environments would exhaust the memory in one pass."""
    clips = [clip(None if n % 3 else n, range(1 + n % 7), TASKS[n % 3]) for n in range(30)]
    passes: list[int] = []
    model = new_model()
    run = Executor.run
    monkeypatch.setattr(engine_module, "_MAX_TOKENS", 40)

    def counted(self: Executor, rows: Any) -> Any:
        passes.append(len(rows))
        return run(self, rows)

    monkeypatch.setattr(Executor, "run", counted)
    check(model, clips)
    assert len(passes) >= 8


def test_a_stream_that_goes_back_in_time_is_a_new_episode():
    """With every episode named "robot" and none released, the first would be scored for ever."""
    model = new_model()
    model.predict([clip("robot", [0, 5, 10])])
    check(model, [clip("robot", [0, 5], of="other")])


def test_a_released_stream_leaves_nothing_behind():
    """Memory would grow with every episode of a long run."""
    model = new_model()
    model.release("never seen")
    for episode in range(50):
        stream = object()
        model.predict([clip("a", [0, 3]), Clip(clip("b", [0]).images, TASKS[0], stream, [episode])])
        model.release(stream)
    info = model.engine_info()
    assert info["streams"] == 1
    assert info["frames_held"] == 2
    model.release("a")
    assert model.engine_info()["frames_held"] == engine_of(model)._features.bytes == 0


def test_unreleased_streams_do_not_fill_the_memory():
    """A service whose clients come and go would slow down, or run out of memory."""
    model = new_model(max_streams=2)
    for client in range(100):
        for steps in ([0], [0, 1], [0, 1, 2]):
            model.predict([clip(client, steps)])
    info = model.engine_info()
    assert info["streams"] == 2
    assert info["evictions"] > 0
    engine_of(model)._features.budget = 20_000
    model.predict([clip("new", [0, 1])])
    assert engine_of(model)._features.bytes <= 20_000
    assert len(engine_of(model)._features._of_stream) < 10


def train_through_data(model: RobometerRewardModel) -> None:
    model.model.train()
    for parameter in model.model.parameters():
        parameter.data.mul_(1.05)  # torch does not count this
    model.model.eval()


def add_adapters(model: RobometerRewardModel) -> None:
    lora = LoraConfig(target_modules=["q_proj", "gate_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    get_peft_model(model.model, lora)
    model.model.eval()


@pytest.mark.parametrize("change", [train_through_data, add_adapters])
def test_caches_are_dropped_when_the_weights_change(change):
    """After fine-tuning, rewards would mix the old model with the new."""
    model = new_model(own=True)
    clips = [clip("a", [0, 5]), clip("b", [1, 2, 3])]
    before = model.predict(clips)
    change(model)
    after = model.predict(clips)
    assert_close(after, eager_twin(model).predict(clips))
    assert max(
        np.abs(a.progress - b.progress).max() for a, b in zip(after, before, strict=True)
    ) or (max(np.abs(a.success - b.success).max() for a, b in zip(after, before, strict=True)))
    assert model.engine_info()["forgotten"] == 1
    model.predict(clips)
    assert model.engine_info()["forgotten"] == 1, "it forgets at every call"


def test_fused_weights_take_no_memory_and_stay_parameters(tmp_path):
    """A 4B model would need twice its memory, or training would leave the engine behind."""
    model = new_model(own=True)
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    parameters = dict(model.model.named_parameters())
    size = len(pickle.dumps(model.model))
    model.predict([clip("a", [0])])
    assert all(parameters[name] is held for name, held in model.model.named_parameters())
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage() for p in parameters.values()}
    held = sum(storage.nbytes() for storage in storages.values())
    assert held == sum(parameter.nbytes for parameter in parameters.values())
    attention = model.model.backbone.language_model.layers[0].self_attn
    assert attention.q_proj.weight.untyped_storage().nbytes() > attention.q_proj.weight.nbytes
    model.save_pretrained(tmp_path)
    again = RobometerRewardModel.from_pretrained(tmp_path, device="cpu")
    for other in (again.model, model.model, copy.deepcopy(model.model)):
        for name, tensor in other.state_dict().items():
            assert torch.equal(tensor, before[name]), name
    assert len(pickle.dumps(model)) < 1.1 * size
    assert_close(
        pickle.loads(pickle.dumps(model)).predict([clip("a", [0])]), model.predict([clip("a", [0])])
    )


@pytest.mark.parametrize("engine", ["fast", "eager"])
def test_autocast_has_no_effect(engine):
    """A policy that acts in mixed precision would end its training with an error about dtypes."""
    model = new_model(engine)
    clips = [clip("a", [0, 5]), clip("b", [1])]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model.predict(clips)
        preferred = model.prefer(*clips)
    model.forget()
    assert_close(mixed, model.predict(clips))
    assert preferred == pytest.approx(model.prefer(*clips), rel=1e-5)


def test_one_long_video_takes_no_slots_for_long(monkeypatch):
    """After a video was scored, a vector environment would be slow for the rest of its training."""
    monkeypatch.setattr(engine_module, "_CPU_BUDGET", 12_000_000)
    model = new_model()
    video, clips = clip(None, range(120)), [clip(n, [0, 2, 4]) for n in range(12)]
    model.predict(clips)
    before = model.engine_info()
    assert before["streams"] == 12
    check(model, [video])
    assert model.engine_info()["slots"] < 12
    check(model, clips)
    after = model.engine_info()
    assert (after["streams"], after["slot_tokens"]) == (12, before["slot_tokens"])
    assert after["cache_bytes"] <= 12_000_000


def test_prompts_of_many_tasks_stay_within_the_budget(monkeypatch):
    """A service with a new task in every episode would fill the card."""
    monkeypatch.setattr(engine_module, "_CPU_BUDGET", 2_000_000)
    model = new_model()
    clips = [clip(None, [0], f"open door {number}") for number in range(40)]
    check(model, clips)
    assert 0 < engine_of(model)._executor._prompt_bytes <= 250_000
    assert model.engine_info()["cache_bytes"] <= 2_000_000


def test_a_budget_that_holds_few_slots_is_kept_to(monkeypatch):
    """The policy that trains on the same card would run out of memory."""
    monkeypatch.setattr(engine_module, "_CPU_BUDGET", 2_000_000)
    model = new_model()
    clips = [clip(n, [0, 2, 4]) for n in range(12)]
    for _ in range(2):
        check(model, clips)
    info = model.engine_info()
    assert info["slots"] * engine_of(model)._executor.slot_bytes(info["slot_tokens"]) <= 1_250_000
    assert info["cache_bytes"] <= info["cache_budget_bytes"] == 2_000_000
    assert 0 < info["max_streams"] < 12
    assert info["streams"] == info["max_streams"]


def test_a_failed_allocation_gives_fewer_slots(monkeypatch):
    """A training run would end at the first prediction, or in its middle."""
    new_cache = Executor._new_cache

    def little(self: Executor, slots: int, length: int) -> torch.Tensor:
        if slots > 5:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return new_cache(self, slots, length)

    monkeypatch.setattr(Executor, "_new_cache", little)
    model = new_model()
    clips = [clip(n, [0, 2, 4]) for n in range(12)]
    check(model, clips)
    assert model.engine_info()["slots"] == 4
    monkeypatch.setattr(
        Executor, "_new_cache", lambda self, slots, length: little(self, 9 * slots, length)
    )
    with pytest.raises(RewardModelError, match=r"No memory on cpu .*256 tokens.*engine='eager'"):
        new_model().predict(clips)


@pytest.mark.parametrize("failures", [1, 2])
def test_a_full_card_empties_the_caches_and_raises_if_that_does_not_help(monkeypatch, failures):
    """Hours of training would end in an error of torch's, though the caches can be emptied."""
    model = new_model()
    clips = [clip("a", [0, 2]), clip(None, [1])]
    model.predict([clip("a", [0])])
    budget, run, left = engine_of(model)._budget, Executor.run, [None] * failures

    def full(self: Executor, rows: Any) -> Any:
        if left:
            left.pop()
            raise torch.cuda.OutOfMemoryError("Tried to allocate 9 GiB.")
        return run(self, rows)

    monkeypatch.setattr(Executor, "run", full)
    if failures == 2:
        with pytest.raises(
            RewardModelError, match=r"no memory .* even with empty caches: Tried to"
        ):
            model.predict(clips)
    check(model, clips)
    assert model.engine_info()["cache_budget_bytes"] == budget // 2


def test_engine_info_reports_the_caches():
    """A user could not find out whether the fast path runs, or why it is slow."""
    model = new_model(max_streams=3)
    model.predict([clip("a", [0, 1]), clip("b", [0]), clip(None, [0])])
    info = model.engine_info()
    assert (info["engine"], info["device"], info["dtype"]) == ("fast", "cpu", "float32")
    assert info["streams"] == 2
    assert info["max_streams"] == 3
    assert info["cache_bytes"] <= info["cache_budget_bytes"]
    assert truth().model.engine_info()["reason"] == "engine='eager' was requested"


def test_an_unsupported_network_is_run_by_transformers(monkeypatch):
    """Another kind of rotary embedding would silently be computed as the usual one."""
    model = new_model(own=True)
    monkeypatch.setattr(model.model.backbone.language_model.rotary_emb, "rope_type", "yarn")
    assert model.engine_info() == {
        "engine": "eager",
        "reason": "the fast engine has no rotary embeddings of type 'yarn'",
        "quantization": None,
    }


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"engine": "quick"}, r"engine must be one of .*'quick'"),
        ({"max_streams": 0}, "max_streams must be"),
        ({"max_streams": 1.5}, "max_streams must be"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(keywords, message):
    """A misspelt engine would silently run the slow path."""
    with pytest.raises(ValueError, match=message):
        new_model(**keywords)


def test_it_fulfills_the_reward_model_contract():
    """The wrappers rely on it."""
    model = new_model(max_streams=1)
    check_reward_model(model, tolerance=1e-5)
    check_reward_model(model, tolerance=1e-5)
