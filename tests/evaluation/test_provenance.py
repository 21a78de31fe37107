"""Provenance: reports name checkpoint, revision and versions."""

import sys

import robometer_gym
from robometer_gym import LazyRewardModel, RobometerRewardWrapper
from robometer_gym.evaluation import evaluate
from robometer_gym.evaluation.provenance import describe_model, library_versions
from robometer_gym.testing import CountingEnv, ScriptedRewardModel


class Described(ScriptedRewardModel):
    def describe(self) -> dict[str, str]:
        return {"name": "org/name", "revision": "abc123", "sha256": "0ff1ce"}


def test_a_model_describes_itself_as_far_as_it_can():
    """A number found a month later could not be traced to a checkpoint."""
    assert describe_model(ScriptedRewardModel()) == {"name": "ScriptedRewardModel"}
    assert describe_model(Described())["sha256"] == "0ff1ce"
    by_name = LazyRewardModel("a/b", revision="v2", dtype="float16")
    assert describe_model(by_name) == {"name": "a/b", "revision": "v2", "dtype": "float16"}
    remote = LazyRewardModel("http://127.0.0.1:1", token="secret", timeout=3.0)
    assert describe_model(remote) == {"name": "http://127.0.0.1:1", "timeout": "3.0"}
    assert describe_model(LazyRewardModel(Described()))["revision"] == "abc123"


def test_a_report_carries_the_description(tmp_path):
    """As above, in the files that people keep."""
    env = RobometerRewardWrapper(CountingEnv(), "push", Described())
    report = evaluate(env, "random", 1)
    assert report.to_dict()["checkpoint"]["sha256"] == "0ff1ce"
    assert "sha256 0ff1ce" in report.save(tmp_path)[1].read_text()


def test_versions_are_those_of_imported_libraries(monkeypatch):
    """A version would be claimed of a library that took no part."""
    versions = library_versions()
    assert versions["robometer_gym"] == robometer_gym.__version__
    assert versions["gymnasium"] == sys.modules["gymnasium"].__version__
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "torch" not in library_versions()
