"""RewardSettings: names, defaults and ranges of all wrappers' arguments."""

import inspect
import json
from dataclasses import FrozenInstanceError, asdict, fields
from typing import Any, get_type_hints

import numpy as np
import pytest

from robometer_gym.tracking.settings import (
    RewardOptions,
    RewardSettings,
    expose_settings_in_signature,
    read_settings,
)
from robometer_gym.wrappers.single import RobometerRewardWrapper

DEFAULTS = {
    "predict_every": 5,
    "max_frames": 8,
    "sampling": "linspace",
    "pad": "none",
    "mode": "replace",
    "signal": "delta",
    "gamma": 0.99,
    "scale": 1.0,
    "success_threshold": 0.65,
    "success_votes": 2,
    "success_window": 2,
    "success_bonus": 0.0,
    "terminate_on_success": True,
    "camera": "render",
    "frame_size": 240,
    "background": False,
    "max_wait": 0.0,
    "timeout": 60.0,
    "max_black_frames": 10,
    "on_error": "raise",
}


def test_the_defaults_are_those_of_the_manual():
    """Curves made with the defaults could not be compared between versions."""
    assert asdict(RewardSettings()) == DEFAULTS


def test_the_defaults_go_into_json():
    """`env.spec` of a wrapped env could not be stored."""
    assert json.loads(json.dumps(asdict(RewardSettings()))) == DEFAULTS


def test_options_and_settings_are_the_same_names_and_types():
    """A type checker would refuse what works, or accept what fails."""
    assert get_type_hints(RewardOptions) == get_type_hints(RewardSettings)
    assert not RewardOptions.__required_keys__


def test_settings_cannot_be_changed():
    """A change in mid-training would not reach the objects built from them."""
    with pytest.raises(FrozenInstanceError):
        RewardSettings().scale = 2.0  # type: ignore[misc]


def test_settings_are_given_by_name():
    """`RewardSettings(10, 0.5)` would be read as something by chance."""
    with pytest.raises(TypeError, match="positional"):
        RewardSettings(10)  # type: ignore


def test_a_misspelt_setting_is_refused():
    """The default would be used without a word."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'predict_evry'"):
        RewardSettings(predict_evry=10)  # type: ignore[call-arg]


OPTIONAL = ["frame_size", "max_black_frames"]
COUNTS = ["predict_every", "max_frames", "success_votes", "success_window", *OPTIONAL]
NUMBERS = ["gamma", "scale", "success_threshold", "success_bonus"]


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1, 2.0, "3", True, float("nan"), [5], np.float32(2)])
def test_counts_are_integers_from_one(name, value):
    """`predict_every=2.5` or `True` would predict at unexpected steps."""
    with pytest.raises(ValueError, match=f"{name} must be an integer >= 1, got "):
        RewardSettings(**{name: value})


@pytest.mark.parametrize("name", [n for n in COUNTS if n not in OPTIONAL])
def test_only_some_counts_may_be_none(name):
    """None would fail at the first step, far from the mistake."""
    with pytest.raises(ValueError, match=f"{name} must be an integer >= 1, got None"):
        RewardSettings(**dict[str, Any]({name: None}))
    assert RewardSettings(frame_size=None).frame_size is None
    assert RewardSettings(max_black_frames=None).max_black_frames is None


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["1", None, True, [1.0], 1j])
def test_numbers_are_numbers(name, value):
    """A string from a config file would fail at the first reward."""
    with pytest.raises(TypeError, match=f"{name} must be a number, got "):
        RewardSettings(**{name: value})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float32("nan")])
def test_numbers_are_finite(name, value):
    """One NaN would turn every reward, and then the agent, into NaN."""
    with pytest.raises(ValueError, match=f"{name} must be finite, got "):
        RewardSettings(**{name: value})


@pytest.mark.parametrize("gamma", [-0.01, 1.01, 99])
def test_gamma_is_a_discount(gamma):
    """`gamma=99` (in percent) would make potentials grow without bound."""
    with pytest.raises(ValueError, match=rf"gamma must be in \[0, 1\], got {gamma}."):
        RewardSettings(gamma=gamma)


@pytest.mark.parametrize("name", ["pad", "mode", "signal", "on_error"])
@pytest.mark.parametrize("value", ["Replace", "", None, 1])
def test_choices_are_one_of_the_choices(name, value):
    """A misspelt choice would fall back to another one, with other rewards."""
    with pytest.raises(ValueError, match=rf"{name} must be one of \('\w+', '\w+'.*\), got "):
        RewardSettings(**{name: value})


@pytest.mark.parametrize("value", ["linspce", None, 8])
def test_sampling_is_one_of_the_rules(value):
    """The mistake would show only at the first reset."""
    with pytest.raises(ValueError, match="sampling must be one of"):
        RewardSettings(sampling=value)


@pytest.mark.parametrize("value", [0, 1, "no", None])
def test_terminate_on_success_is_yes_or_no(value):
    """The string "no" is true: episodes would end that should go on."""
    with pytest.raises(TypeError, match="terminate_on_success must be True or False, got "):
        RewardSettings(terminate_on_success=value)


@pytest.mark.parametrize("value", [-0.01, 1.01, 65])
def test_the_threshold_is_checked_at_once(value):
    """A threshold in percent would never be reached."""
    with pytest.raises(ValueError, match="success_threshold must be a probability"):
        RewardSettings(success_threshold=value)


def test_votes_and_window_are_checked_together():
    """Three votes of two can never be reached."""
    with pytest.raises(ValueError, match="success_votes must be between 1 and success_window"):
        RewardSettings(success_votes=3)
    assert RewardSettings(success_votes=3, success_window=3).success_votes == 3


@pytest.mark.parametrize("value", [None, 3, ["render"], {"front": 3}, {"front": None}])
def test_a_camera_is_a_name_or_a_function(value):
    """The mistake would show at the first frame, as a KeyError."""
    with pytest.raises(TypeError, match=r"camera must be 'render', an observation key.*; got "):
        RewardSettings(camera=value)


def test_several_cameras_are_at_least_one():
    """The mean over no camera is a division by zero at the first reset."""
    with pytest.raises(TypeError, match=r"a dict of these with at least one entry; got \{\}"):
        RewardSettings(camera={})


def test_what_may_be_chosen():
    """Something that the manual offers would be refused."""
    cameras: list[Any] = ["render", "wrist", len, {"a": "render", "b": "wrist", "c": len}]
    for camera in cameras:
        assert RewardSettings(camera=camera).camera == camera
    for gamma in (0, 0.0, 1, 1.0):
        assert RewardSettings(gamma=gamma).gamma == gamma
    assert RewardSettings(scale=-2, success_bonus=-1).scale == -2
    for sampling in ("linspace", "tail", "anchored"):
        assert RewardSettings(sampling=sampling).sampling == sampling


def test_numbers_from_numpy_are_taken_as_plain_numbers():
    """A sweep with np.arange would fail with "an integer is required", or not go into JSON."""
    counts: dict[str, Any] = {name: np.int64(3) for name in COUNTS}
    numbers: dict[str, Any] = {name: np.float32(0.5) for name in NUMBERS}
    settings = RewardSettings(**counts, **numbers)
    for name in COUNTS:
        assert getattr(settings, name) == 3
        assert type(getattr(settings, name)) is int
    for name in NUMBERS:
        assert getattr(settings, name) == 0.5
        assert type(getattr(settings, name)) is float
    json.dumps(asdict(settings))


def test_the_settings_reach_history_and_detector():
    """A chosen window or threshold would be shown in the settings and not be used."""
    settings = RewardSettings(
        max_frames=2, sampling="tail", success_threshold=0.5, success_votes=1, success_window=1
    )
    history = settings.new_history()
    for step in range(5):
        history.append(np.ones((1, 1, 3), np.uint8), step)
    assert history.window()[1] == (3, 4)
    assert settings.new_detector().update(0.5)
    assert not settings.new_detector().update(0.49)
    assert settings.new_history() is not settings.new_history()


def test_the_wrapper_shows_every_setting_with_its_default():
    """help() and editors would show `**settings` and nothing else."""
    parameters = inspect.signature(RobometerRewardWrapper).parameters
    assert list(parameters) == ["env", "task", "reward_model", *DEFAULTS]
    assert parameters["task"].default is inspect.Parameter.empty
    assert parameters["reward_model"].default == "lerobot/Robometer-4B"
    for name, default in DEFAULTS.items():
        assert parameters[name].default == default
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[name].annotation is not inspect.Parameter.empty


def test_any_class_can_show_the_settings():
    """The vector and Stable-Baselines3 wrappers would each need a list of their own."""

    @expose_settings_in_signature
    class Other:
        def __init__(self, venv, **settings):
            self.settings = settings

    assert list(inspect.signature(Other).parameters) == ["venv", *DEFAULTS]
    assert Other(1, scale=2.0).settings == {"scale": 2.0}


def test_every_setting_is_described():
    """A user would have to read the code to know what a setting does."""
    described = inspect.getdoc(RewardSettings) or ""
    for field in fields(RewardSettings):
        assert f"    {field.name}: " in described


def test_an_argument_of_the_environment_is_pointed_to_env_kwargs():
    """`render_mode=` was taken for a misspelled `reward_model`, which is another thing."""

    def make(env_kwargs: Any = None, **settings: Any) -> Any:
        return read_settings(make, settings)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match=r"goes into env_kwargs=\{'render_mode': \.\.\.\}"):
        make(render_mode="rgb_array")
    with pytest.raises(TypeError, match=r"Did you mean predict_every\?"):
        read_settings(RobometerRewardWrapper, {"predict_evry": 3})  # type: ignore[typeddict-unknown-key]
