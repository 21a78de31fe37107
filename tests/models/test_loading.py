"""From `reward_model=` to a model, as far as no network is needed."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import ModuleType
from typing import Any

import pytest

from robometer_gym.models.loading import (
    DEFAULT_REWARD_MODEL,
    check_reward_model_like,
    load_reward_model,
)
from robometer_gym.reward_model import CheckpointError
from robometer_gym.testing import ScriptedRewardModel


@pytest.fixture
def loads(monkeypatch):
    """The model half replaced by one that only writes down what it is asked to load."""
    from robometer_gym.models import loading

    loaded: list[str] = []

    class Predictor:
        @classmethod
        def from_pretrained(cls, name: str, **options: Any) -> Any:
            loaded.append(name)
            if name == "org/slow":
                time.sleep(0.05)
            if any(options.values()):
                loaded.append(", ".join(str(options[name]) for name in sorted(options)))
            if name == "no/such":
                raise CheckpointError("no/such cannot be found.")
            return ScriptedRewardModel()

    predictor = ModuleType("robometer_gym.models.robometer.predictor")
    predictor.RobometerRewardModel = Predictor  # type: ignore[attr-defined]
    monkeypatch.setitem(
        sys.modules,
        "robometer_gym.models.robometer.network",
        ModuleType("robometer_gym.models.robometer.network"),
    )
    monkeypatch.setitem(sys.modules, "robometer_gym.models.robometer.predictor", predictor)
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


def test_two_threads_share_one_model(loads):
    """An evaluation beside the training would hold the weights twice."""
    together = Barrier(4)

    def load() -> Any:
        together.wait()
        return load_reward_model("org/slow")

    with ThreadPoolExecutor(4) as threads:
        models = [future.result() for future in [threads.submit(load) for _ in range(4)]]
    assert loads == ["org/slow"]
    assert len({id(model) for model in models}) == 1


def test_options_are_passed_on(loads):
    """The model would run on another device than the one that was asked for, or not fit there."""
    told = {"device": "cpu", "dtype": "bfloat16", "processor": "org/base", "quantization": "nf4"}
    model = load_reward_model("org/name", **told)
    assert load_reward_model("org/name", **told) is model
    assert load_reward_model("org/name") is not model
    assert loads == ["org/name", "cpu, bfloat16, org/base, nf4", "org/name"]


def test_a_failure_is_not_remembered(loads):
    """After a broken download one would have to restart the process."""
    for _ in range(2):
        with pytest.raises(CheckpointError, match="no/such cannot be found"):
            load_reward_model("no/such")
    assert loads == ["no/such", "no/such"]


@pytest.mark.parametrize("name", ["demo", "org/name", "./checkpoint", Path("checkpoint")])
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
