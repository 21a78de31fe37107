"""Arguments of the three wrappers and their factories: the kind of env, and misspelt settings."""

import inspect
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest

from robometer_gym import (
    FrameCapture,
    RobometerRewardWrapper,
    RobometerVectorRewardWrapper,
    make_robometer_vec,
)
from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from robometer_gym.tracking.settings import RewardOptions
from robometer_gym.wrappers.env_kinds import check_kind, env_factory, kind_of
from tests.wrappers.rollouts import TASK


def captured() -> Any:
    return FrameCapture(CountingEnv())


def scalar() -> Any:
    return CountingEnv()


def vector() -> Any:
    return gym.vector.SyncVectorEnv([captured])


def vec_env() -> Any:
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.vec_env import DummyVecEnv

    return DummyVecEnv([captured])


def from_sb3(name: str) -> Any:
    pytest.importorskip("stable_baselines3")
    import robometer_gym.sb3

    return getattr(robometer_gym.sb3.vec_env, name)


# The public callables, each with a valid first argument.
WRAPPERS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "RobometerRewardWrapper": (lambda: RobometerRewardWrapper, scalar),
    "RobometerVectorRewardWrapper": (lambda: RobometerVectorRewardWrapper, vector),
    "VecRobometerReward": (lambda: from_sb3("VecRobometerReward"), vec_env),
}
FACTORIES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "make_robometer_vec": (lambda: make_robometer_vec, lambda: CountingEnv),
    "make_robometer_vec_env": (lambda: from_sb3("make_robometer_vec_env"), lambda: CountingEnv),
}
every_callable = pytest.mark.parametrize("name", [*WRAPPERS, *FACTORIES])


def call(name: str, *first: Any, **settings: Any) -> Any:
    called, right = {**WRAPPERS, **FACTORIES}[name]
    env = first[0] if first else right()
    return called()(env, task=TASK, reward_model=ScriptedRewardModel(), **settings)


@every_callable
def test_a_misspelt_setting_gets_a_suggestion(name):
    """The message would be about a class inside, and the user not see the missing letter."""
    with pytest.raises(
        TypeError, match=rf"^{name}\(\) .*'predict_evry'. Did you mean predict_every\?"
    ):
        call(name, predict_evry=5)


@every_callable
def test_an_unknown_setting_lists_the_known_ones(name):
    """The user would have to read the source for the names."""
    with pytest.raises(
        TypeError, match=rf"^{name}\(\) .*'zzz'. It takes .*predict_every, .*on_error"
    ):
        call(name, zzz=5)


def test_an_argument_of_a_factory_may_be_the_suggestion():
    """Stable-Baselines3 has n_envs, Gymnasium num_envs: a list of settings names neither."""
    with pytest.raises(TypeError, match=r"'n_envs'. Did you mean num_envs\?"):
        call("make_robometer_vec", n_envs=4)


@every_callable
def test_every_setting_is_shown_in_the_signature(name):
    """help() and editors would show **settings and nothing more."""
    called, _ = {**WRAPPERS, **FACTORIES}[name]
    assert set(RewardOptions.__annotations__) <= set(inspect.signature(called()).parameters)


@pytest.mark.parametrize("name", FACTORIES)
def test_no_environment_is_made_for_a_misspelt_setting(name):
    """A minute of starting simulators would go by before the message comes."""
    made = []
    with pytest.raises(TypeError, match="predict_evry"):
        call(name, lambda: made.append(1), predict_evry=5)
    assert made == []


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("given", WRAPPERS)
def test_an_environment_of_another_kind_is_sent_to_its_wrapper(name, given):
    """A missing attribute of something inside would not name the right wrapper."""
    if name == given:
        assert call(name)
        return
    env = WRAPPERS[given][1]()
    with pytest.raises(TypeError, match=rf"{name} takes .* got .*: use .*{given}\.$"):
        call(name, env)


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("given", [CountingEnv, "FetchPush-v4", None])
def test_other_objects_are_refused(name, given):
    """As above."""
    with pytest.raises(TypeError, match=rf"{name} takes a .*, got {type(given).__name__}\.$"):
        call(name, given)


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("given", [scalar, vector, vec_env, lambda: 3, lambda: None])
def test_a_finished_environment_is_refused(name, given):
    """Gymnasium would speak of ids; or one environment would be stepped as if it were several."""
    env = given()
    with pytest.raises(TypeError, match=r"a function or class that makes one .*, not an env"):
        call(name, env)


def test_env_factory():
    """An id would be made without frames, or the user's own arguments be lost."""
    spec = gym.spec("robometer_gym/TabletopReach-v0")
    for env in (spec.id, spec):
        assert env_factory(env, None)().render_mode == "rgb_array"
        assert env_factory(env, {"render_mode": None})().render_mode is None
    assert env_factory(CountingEnv, {"lengths": [7]})().lengths == (7,)  # type: ignore[attr-defined]


def test_kinds():
    """An environment would be sent to the wrong wrapper."""
    assert kind_of(scalar()) == kind_of(captured()) == "gymnasium.Env"
    assert kind_of(vector()) == "gymnasium.vector.VectorEnv"
    assert kind_of(vec_env()) == "VecEnv of Stable-Baselines3"
    assert kind_of(CountingEnv) is None
    check_kind(scalar(), "gymnasium.Env")
