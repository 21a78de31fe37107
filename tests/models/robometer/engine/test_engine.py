"""What the engine keeps, forgets, counts and refuses; its numbers are in `test_engine_*.py`."""

from __future__ import annotations

import copy
import pickle
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from robometer_gym import RobometerRewardModel
from robometer_gym.models.robometer.demo import byte_tokenizer, demo_config, random_model
from robometer_gym.models.robometer.engine import engine as engine_module
from robometer_gym.models.robometer.engine.engine import Engine
from robometer_gym.models.robometer.engine.executor import Executor
from robometer_gym.models.robometer.network.images import ImageSettings
from robometer_gym.models.robometer.network.processor import PHRASES, RobometerProcessor
from robometer_gym.reward_model import Clip, Prediction, RewardModelError
from robometer_gym.testing import check_reward_model
from robometer_gym.tracking.window import FrameHistory

TASKS = ("open it", "close the drawer", "put the {cup} on the plate")
SIZES = ((64, 64), (64, 96), (40, 100))
PROCESSOR = RobometerProcessor(byte_tokenizer(PHRASES), ImageSettings())
CONFIG = demo_config(PROCESSOR)


def new_model(dtype: torch.dtype = torch.float32, **keywords: Any) -> RobometerRewardModel:
    network = random_model(CONFIG, seed=0)
    network.backbone.to(dtype)
    return RobometerRewardModel(network, PROCESSOR, CONFIG, **keywords)


def engine_of(model: RobometerRewardModel) -> Engine:
    engine = model._fast_engine()
    assert engine is not None
    return engine


@lru_cache(maxsize=4096)
def picture(name: Any, step: int, size: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng([*str((name, step)).encode(), *size])
    small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    rows, columns = np.arange(size[0]) * 4 // size[0], np.arange(size[1]) * 4 // size[1]
    return small[rows][:, columns]


def clip(stream: Any, steps: Any, task: str = TASKS[0], size: tuple[int, int] = SIZES[0]) -> Clip:
    images = [picture(stream, step, size) for step in steps]
    return Clip(images, task, stream, None if stream is None else tuple(steps))


def assert_close(mine: list[Prediction], its: list[Prediction], tolerance: float = 1e-5) -> None:
    assert len(mine) == len(its)
    for one, other in zip(mine, its, strict=True):
        for name in ("progress", "success"):
            values = getattr(one, name)
            assert values.dtype == np.float32
            np.testing.assert_allclose(values, getattr(other, name), rtol=tolerance, atol=0)


class Look(NamedTuple):
    """A clip is asked about: of a stream, some frames of its last window and some later ones."""

    name: str | None
    kept: int  # most of the last window's frames to be shown again, from the first on
    later: tuple[int, ...]  # how many steps lie before each further frame
    task: str = TASKS[0]
    size: tuple[int, int] = SIZES[0]


class End(NamedTuple):
    """An episode ends: its stream's name may be used for the next one."""

    name: str


LOOK = st.builds(
    Look,
    st.sampled_from(["a", "b", "c", "d", None]),
    st.sampled_from([9, 9, 9, 4, 1, 0]),
    st.lists(st.integers(1, 3), max_size=3).map(tuple),
    st.sampled_from([TASKS[0]] * 4 + list(TASKS)),
    st.sampled_from([SIZES[0]] * 4 + list(SIZES)),
)
CALL = st.lists(LOOK, min_size=1, max_size=5)
SCHEDULES = st.lists(CALL | CALL | CALL | st.builds(End, st.sampled_from("abcd")), max_size=12)


def play(
    schedule: list[list[Look] | End],
    model: RobometerRewardModel,
    eager: RobometerRewardModel,
    tolerance: float = 1e-5,
) -> None:
    episodes = dict.fromkeys("abcd", 0)
    windows: dict[str | None, list[int]] = {}
    for event in schedule:
        if isinstance(event, End):
            model.release(event.name)
            episodes[event.name] += 1
            windows.pop(event.name, None)
            continue
        clips = []
        for name, kept, later, task, size in event:
            before = windows.get(name, [0])
            steps = [*before[:kept], *(before[-1] + np.cumsum(later).astype(int)).tolist()]
            windows[name] = steps = (steps or [before[-1]])[-12:]
            shown = [picture((name, episodes.get(name or "")), step, size) for step in steps]
            clips.append(Clip(shown, task, name, steps if name else None))
        assert_close(model.predict(clips), eager.predict(clips), tolerance)
    for name in "abcd":
        model.release(name)


EAGER = new_model(engine="eager")


def test_the_schedules_above_used_what_was_kept():
    """The test before would pass because nothing was ever used again."""
    model = new_model()
    schedule: list[list[Look] | End] = [[Look(n, 9, (2,)) for n in "abcd"] for _ in range(6)]
    play(schedule, model, EAGER)
    info = model.engine_info()
    assert info["frames_encoded"] == 4 * 7
    assert info["frames_run"] == 4 * 7
    assert info["frames_kept"] == 4 * (2 + 3 + 4 + 5 + 6)


@pytest.mark.parametrize("sampling", ["linspace", "tail", "anchored"])
def test_every_sampling_rule_gets_the_same_numbers(sampling):
    """The wrappers' own windows, over a whole episode of two environments, one of them late."""
    model = new_model()
    histories = {name: FrameHistory(6, sampling) for name in "ab"}
    for step in range(0, 80, 4):
        clips = []
        for name, history in histories.items():
            if name == "a" or step > 20:
                history.append(picture(name, step, SIZES[0]), step)
                frames, steps = history.window()
                clips.append(Clip(frames, TASKS[0], name, steps))
        assert_close(model.predict(clips), EAGER.predict(clips))
    info = model.engine_info()
    assert info["frames_encoded"] == 20 + 14, "a frame was encoded twice"
    most = {"anchored": 1.6, "linspace": 4, "tail": 6}[sampling]
    assert info["frames_run"] <= most * (20 + 14)


def test_many_clips_at_once_are_run_in_parts(monkeypatch):
    """A hundred environments would exhaust the memory in one pass."""
    clips = [clip(None if n % 3 else n, range(1 + n % 7), TASKS[n % 3]) for n in range(30)]
    wanted = EAGER.predict(clips)
    passes: list[int] = []
    model = new_model()
    run = Executor.run
    monkeypatch.setattr(engine_module, "_MOST_TOKENS", 40)

    def counted(self: Executor, rows: Any) -> Any:
        passes.append(len(rows))
        return run(self, rows)

    monkeypatch.setattr(Executor, "run", counted)
    assert_close(model.predict(clips), wanted)
    assert len(passes) >= 8


def test_a_stream_that_goes_back_in_time_begins_anew():
    """Who names every episode "robot" and releases none would be paid for the first one's."""
    model = new_model()
    model.predict([clip("robot", [0, 5, 10])])
    other = [Clip([picture("other", step, SIZES[0]) for step in (0, 5)], TASKS[0], "robot", (0, 5))]
    assert_close(model.predict(other), EAGER.predict(other))


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


def test_streams_that_nobody_releases_do_not_fill_the_memory():
    """A service whose clients come and go would slow down for ever, or run out of memory."""
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


def put_in_adapters(model: RobometerRewardModel) -> None:
    lora = LoraConfig(target_modules=["q_proj", "gate_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    get_peft_model(model.model, lora)
    model.model.eval()


@pytest.mark.parametrize("change", [train_through_data, put_in_adapters])
def test_nothing_is_kept_when_the_weights_change(change):
    """After fine-tuning, an agent would be paid by a mixture of the old model and the new."""
    model = new_model()
    question = [clip("a", [0, 5]), clip("b", [1, 2, 3])]
    before = model.predict(question)
    change(model)
    eager = RobometerRewardModel(model.model, PROCESSOR, CONFIG, engine="eager")
    after = model.predict(question)
    assert_close(after, eager.predict(question))
    assert max(
        np.abs(a.progress - b.progress).max() for a, b in zip(after, before, strict=True)
    ) or (max(np.abs(a.success - b.success).max() for a, b in zip(after, before, strict=True)))
    assert model.engine_info()["forgotten"] == 1
    model.predict(question)
    assert model.engine_info()["forgotten"] == 1, "it forgets at every call"


def test_joined_weights_are_there_once_and_stay_the_networks(tmp_path):
    """A 4B model would need twice its memory, or training would leave the engine behind."""
    model = new_model()
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
def test_it_predicts_in_its_own_precision(engine):
    """A policy that acts in mixed precision would end its training with an error about dtypes."""
    model = new_model(engine=engine)
    question = [clip("a", [0, 5]), clip("b", [1])]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model.predict(question)
        preferred = model.prefer(*question)
    model.forget()
    assert_close(mixed, model.predict(question))
    assert preferred == model.prefer(*question)


def test_one_long_video_does_not_cost_the_others_their_slots(monkeypatch):
    """After a video was scored, a vector environment would be slow for the rest of its training."""
    monkeypatch.setattr(engine_module, "_CPU_BUDGET", 8_000_000)
    model = new_model()
    video, clips = clip(None, range(120)), [clip(n, [0, 2, 4]) for n in range(12)]
    model.predict(clips)
    before = model.engine_info()
    assert before["streams"] == 12
    assert_close(model.predict([video]), EAGER.predict([video]))
    assert model.engine_info()["slots"] < 12
    assert_close(model.predict(clips), EAGER.predict(clips))
    after = model.engine_info()
    assert (after["streams"], after["slot_tokens"]) == (12, before["slot_tokens"])
    assert after["cache_bytes"] <= 8_000_000


def test_questions_of_many_tasks_are_kept_within_the_budget(monkeypatch):
    """A service that is asked about a new task in every episode would fill the card."""
    monkeypatch.setattr(engine_module, "_CPU_BUDGET", 2_000_000)
    model = new_model()
    clips = [clip(None, [0], f"open door {number}") for number in range(40)]
    assert_close(model.predict(clips), EAGER.predict(clips))
    assert 0 < engine_of(model)._executor._questions_bytes <= 250_000
    assert model.engine_info()["cache_bytes"] <= 2_000_000


def test_a_budget_that_holds_few_slots_is_kept_to(monkeypatch):
    """The policy that trains on the same card would run out of memory."""
    monkeypatch.setattr(engine_module, "_CPU_BUDGET", 2_000_000)
    model = new_model()
    clips = [clip(n, [0, 2, 4]) for n in range(12)]
    for _ in range(2):
        assert_close(model.predict(clips), EAGER.predict(clips))
    info = model.engine_info()
    assert info["slots"] * engine_of(model)._executor.slot_bytes(info["slot_tokens"]) <= 1_250_000
    assert info["cache_bytes"] <= info["cache_budget_bytes"] == 2_000_000
    assert 0 < info["max_streams"] < 12
    assert info["streams"] == info["max_streams"]


def test_memory_that_cannot_be_had_costs_slots_and_not_the_run(monkeypatch):
    """A training run would end at the first prediction, or in its middle."""
    new_cache = Executor._new_cache

    def little(self: Executor, slots: int, length: int) -> torch.Tensor:
        if slots > 5:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return new_cache(self, slots, length)

    monkeypatch.setattr(Executor, "_new_cache", little)
    model = new_model()
    clips = [clip(n, [0, 2, 4]) for n in range(12)]
    assert_close(model.predict(clips), EAGER.predict(clips))
    assert model.engine_info()["slots"] == 4
    monkeypatch.setattr(
        Executor, "_new_cache", lambda self, slots, length: little(self, 9 * slots, length)
    )
    with pytest.raises(RewardModelError, match=r"No memory on cpu .*256 tokens.*engine='eager'"):
        new_model().predict(clips)


@pytest.mark.parametrize("failures", [1, 2])
def test_a_full_card_empties_the_caches_and_says_so_if_that_does_not_help(monkeypatch, failures):
    """Hours of training would end in an error of torch's, though the caches can be given up."""
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
    assert_close(model.predict(clips), EAGER.predict(clips))
    assert model.engine_info()["cache_budget_bytes"] == budget // 2


def test_it_says_what_it_does():
    """Nobody could tell whether the fast path runs, or why it is slow."""
    model = new_model(max_streams=3)
    model.predict([clip("a", [0, 1]), clip("b", [0]), clip(None, [0])])
    info = model.engine_info()
    assert (info["engine"], info["device"], info["dtype"]) == ("fast", "cpu", "float32")
    assert info["streams"] == 2
    assert info["max_streams"] == 3
    assert info["cache_bytes"] <= info["cache_budget_bytes"]
    assert EAGER.engine_info()["reason"] == "engine='eager' was asked for"


def test_what_the_engine_cannot_run_is_run_by_transformers(monkeypatch):
    """Another kind of rotary embedding would silently be computed as the usual one."""
    model = new_model()
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
    """A misspelt engine would run the slow path and say nothing."""
    with pytest.raises(ValueError, match=message):
        new_model(**keywords)


def test_it_keeps_the_contract_of_a_reward_model():
    """The wrappers rely on it."""
    model = new_model(max_streams=1)
    check_reward_model(model, tolerance=1e-5)
    check_reward_model(model, tolerance=1e-5)
