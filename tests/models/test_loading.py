"""LazyRewardModel: from `reward_model=` to a model, as far as no network is needed."""

import copy
import pickle
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from robometer_gym.models import loading
from robometer_gym.models.loading import DEFAULT_REWARD_MODEL, LazyRewardModel
from robometer_gym.reward_model import CheckpointError, Clip
from robometer_gym.testing import ScriptedRewardModel

CLIP = Clip(np.full((2, 8, 8, 3), 9, np.uint8), "open the drawer")


@pytest.fixture
def loads(monkeypatch):
    """Replace the predictor by one that only records the names and options it should load."""
    loaded: list[Any] = []

    class Predictor:
        @classmethod
        def from_pretrained(cls, name: str, **options: Any) -> Any:
            loaded.append((name, options))
            if name == "org/slow":
                time.sleep(0.05)
            if name == "no/such":
                raise CheckpointError("no/such cannot be found.")
            return ScriptedRewardModel()

    predictor = ModuleType("robometer_gym.models.robometer.predictor")
    predictor.RobometerRewardModel = Predictor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "robometer_gym.models.robometer.predictor", predictor)
    loading._load.cache_clear()
    yield loaded
    loading._load.cache_clear()


def names(loaded: list[Any]) -> list[str]:
    return [name for name, _ in loaded]


def test_the_default_is_the_published_checkpoint():
    """A user who names nothing would get another model's rewards."""
    assert DEFAULT_REWARD_MODEL == "lerobot/Robometer-4B"


def test_a_model_is_used_as_it_is(loads):
    """A live model would be copied or loaded again."""
    model = ScriptedRewardModel(progress=0.25)
    lazy = LazyRewardModel(model)
    assert lazy.load() is model
    assert lazy.predict([CLIP])[0].progress.tolist() == [0.25, 0.25]
    assert lazy.name == "ScriptedRewardModel"
    assert not loads


def test_a_name_is_loaded_on_first_use_and_once_per_process(loads):
    """Ten wrappers would hold ten times nine gigabytes."""
    first, second = LazyRewardModel("org/name"), LazyRewardModel("org/name")
    assert not loads
    first.predict([CLIP])
    first.predict([CLIP])
    assert second.load() is first.load()
    assert LazyRewardModel("org/other").load() is not first.load()
    assert names(loads) == ["org/name", "org/other"]


def test_a_path_is_the_same_as_its_text(loads):
    """A checkpoint would be loaded twice."""
    assert LazyRewardModel(Path("runs/best")).load() is LazyRewardModel("runs/best").load()
    assert names(loads) == ["runs/best"]


def test_two_threads_share_one_model(loads):
    """An evaluation beside the training would hold the weights twice."""
    together = Barrier(4)

    def load() -> Any:
        together.wait()
        return LazyRewardModel("org/slow").load()

    with ThreadPoolExecutor(4) as threads:
        models = [future.result() for future in [threads.submit(load) for _ in range(4)]]
    assert names(loads) == ["org/slow"]
    assert len({id(model) for model in models}) == 1


def test_options_reach_the_model(loads):
    """The model would run on another device than the one that was chosen, or not fit there."""
    options: Any = {
        "revision": "beef63b",
        "device": "cpu",
        "dtype": "bfloat16",
        "processor": "org/base",
        "quantization": "nf4",
        "engine": "eager",
        "max_streams": 3,
        "local_files_only": True,
    }
    model = LazyRewardModel("org/name", **options)
    assert LazyRewardModel("org/name", **options).load() is model.load()
    assert LazyRewardModel("org/name").load() is not model.load()
    assert loads == [("org/name", options), ("org/name", {})]


def test_the_options_are_those_of_the_models():
    """An option could be used where a model is loaded by hand, and not in a wrapper."""
    import inspect

    from robometer_gym import RobometerRewardModel
    from robometer_gym.models.remote import RemoteRewardModel

    checkpoint = set(inspect.signature(RobometerRewardModel.from_pretrained).parameters)
    checkpoint -= {"unknown"}
    remote = set(inspect.signature(RemoteRewardModel).parameters)
    options = set(loading.LoadingOptions.__annotations__)
    assert (checkpoint - {"id_or_path"}) | (remote - {"url"}) == options
    assert loading._kind("demo").options == checkpoint - {"id_or_path"}
    assert loading._kind("https://host").options == remote - {"url"}


def test_a_copy_shares_the_model(loads):
    """A copy of an environment would hold the weights twice, or fail at a lock or a socket."""
    for lazy in (LazyRewardModel(ScriptedRewardModel()), LazyRewardModel("org/name")):
        assert copy.deepcopy([lazy])[0].load() is lazy.load()
        assert copy.copy(lazy).load() is lazy.load()
    assert names(loads) == ["org/name"]


def test_a_pickle_holds_the_name_alone(loads):
    """Each process that receives an environment would receive nine gigabytes."""
    lazy = LazyRewardModel("org/name", device="cpu")
    model = lazy.load()
    model.clips = bytes(10**6)  # type: ignore[attr-defined]
    data = pickle.dumps(lazy)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert repr(again) == "LazyRewardModel('org/name', device='cpu')"
    assert again.load() is model  # this process has it already
    assert names(loads) == ["org/name"]


def test_a_stream_is_released_where_the_model_keeps_streams(loads):
    """A model would keep every episode's frames for good."""
    model = ScriptedRewardModel()
    LazyRewardModel(model).release("stream")
    assert model.released == ["stream"]
    LazyRewardModel("org/name").release("stream")
    assert not loads  # loading gigabytes to forget nothing


def test_a_failure_is_not_remembered(loads):
    """After a broken download one would have to restart the process."""
    for _ in range(2):
        with pytest.raises(CheckpointError, match="no/such cannot be found"):
            LazyRewardModel("no/such").load()
    assert names(loads) == ["no/such", "no/such"]


@pytest.mark.parametrize("name", ["demo", "org/name", "./checkpoint", Path("checkpoint")])
def test_a_name_is_accepted_without_loading(name, loads):
    """Each worker process of a vector env would load the model."""
    assert LazyRewardModel.of(name).name == str(name)
    assert not loads


def test_what_is_lazy_already_stays_as_it_is(loads):
    """Its options would be lost, and the model be loaded twice."""
    lazy = LazyRewardModel("org/name", device="cpu")
    assert LazyRewardModel.of(lazy) is lazy
    assert LazyRewardModel(lazy).load() is not None


def test_an_empty_name_is_refused():
    """The hub's own message does not name `reward_model`."""
    with pytest.raises(ValueError, match="reward_model must not be empty: give a hub id"):
        LazyRewardModel("")


def test_an_unknown_option_is_refused_at_once():
    """It would be noticed at the first reset, minutes later."""
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'devise'. It takes revision"):
        LazyRewardModel("demo", devise="cpu")  # type: ignore[call-arg]


def test_options_of_a_loaded_model_are_refused():
    """The device that was named would silently not be used."""
    with pytest.raises(TypeError, match="device cannot be set on a reward model that is loaded"):
        LazyRewardModel(ScriptedRewardModel(), device="cuda")


class Callable:
    predict = "not a method"


@pytest.mark.parametrize(
    "reward_model", [None, 3, b"org/name", lambda clips: [], ScriptedRewardModel, Callable()]
)
def test_an_object_that_cannot_predict_is_refused(reward_model):
    """A class, or a plain function, would fail at the first reset."""
    with pytest.raises(TypeError, match=r"an object with predict\(clips\) -> list of Prediction"):
        LazyRewardModel(reward_model)
