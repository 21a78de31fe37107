"""From `reward_model=` to a model, as far as no network is needed."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from robometer_gym.loading import (
    DEFAULT_REWARD_MODEL,
    check_reward_model_like,
    load_reward_model,
)
from robometer_gym.reward_model import CheckpointError
from robometer_gym.testing import ScriptedRewardModel


@pytest.fixture
def loads(monkeypatch):
    """The model half replaced by one that only writes down what it is asked to load."""
    from robometer_gym import loading

    loaded: list[str] = []

    class Predictor:
        @classmethod
        def from_pretrained(cls, name: str, **options: Any) -> Any:
            loaded.append(name)
            if any(options.values()):
                loaded.append(f"{options['device']}, {options['processor']}")
            if name == "no/such":
                raise CheckpointError("no/such cannot be found.")
            return ScriptedRewardModel()

    demo = ModuleType("robometer_gym.model.demo")
    demo.demo_checkpoint = lambda: "the demo's folder"  # type: ignore[attr-defined]
    predictor = ModuleType("robometer_gym.model.predictor")
    predictor.RobometerRewardModel = Predictor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "robometer_gym.model", ModuleType("robometer_gym.model"))
    monkeypatch.setitem(sys.modules, "robometer_gym.model.demo", demo)
    monkeypatch.setitem(sys.modules, "robometer_gym.model.predictor", predictor)
    loading._load.cache_clear()
    yield loaded
    loading._load.cache_clear()


def test_the_default_is_the_published_checkpoint():
    """A user who names nothing would get another model's rewards."""
    assert DEFAULT_REWARD_MODEL == "lerobot/Robometer-4B"


def test_a_model_is_used_as_it_is(loads):
    """A live model would be copied or loaded again."""
    model = ScriptedRewardModel()
    check_reward_model_like(model)
    assert load_reward_model(model) is model
    assert not loads


def test_a_name_is_loaded_once_per_process(loads):
    """Ten wrappers would hold ten times nine gigabytes."""
    first = load_reward_model("org/name")
    assert load_reward_model("org/name") is first
    assert load_reward_model("org/other") is not first
    assert loads == ["org/name", "org/other"]


def test_a_path_is_the_same_as_its_text(loads):
    """A checkpoint would be loaded twice."""
    assert load_reward_model(Path("runs/best")) is load_reward_model("runs/best")
    assert loads == ["runs/best"]


def test_demo_is_the_bundled_checkpoint(loads):
    """The demo would ask the hub for a repository called "demo"."""
    load_reward_model("demo")
    assert loads == ["the demo's folder"]


def test_device_and_processor_are_passed_on(loads):
    """The model would run on another device than the one that was asked for."""
    model = load_reward_model("org/name", device="cpu", processor="org/base")
    assert load_reward_model("org/name", device="cpu", processor="org/base") is model
    assert load_reward_model("org/name") is not model
    assert loads == ["org/name", "cpu, org/base", "org/name"]


def test_a_failure_is_not_remembered(loads):
    """After a broken download one would have to restart the process."""
    for _ in range(2):
        with pytest.raises(CheckpointError, match="no/such cannot be found"):
            load_reward_model("no/such")
    assert loads == ["no/such", "no/such"]


@pytest.mark.parametrize("name", ["demo", "org/name", "/tmp/checkpoint", Path("checkpoint")])
def test_a_name_is_accepted_without_loading(name, loads):
    """Each worker process of a vector env would load the model."""
    check_reward_model_like(name)
    assert not loads


def test_an_empty_name_is_refused():
    """The hub's own message says nothing about `reward_model`."""
    with pytest.raises(ValueError, match="reward_model must not be empty: give a hub id"):
        check_reward_model_like("")


class Callable:
    predict = "not a method"


@pytest.mark.parametrize(
    "reward_model", [None, 3, b"org/name", lambda clips: [], ScriptedRewardModel, Callable()]
)
def test_what_cannot_predict_is_refused(reward_model):
    """A class, or a plain function, would fail at the first reset."""
    with pytest.raises(TypeError, match=r"an object with predict\(clips\) -> list of Prediction"):
        check_reward_model_like(reward_model)
