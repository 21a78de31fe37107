"""Black frames: real ones go to the model, a camera that shows nothing else is refused."""

import logging
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from robometer_gym import (
    FrameCapture,
    RobometerRewardWrapper,
    RobometerVectorRewardWrapper,
    SubEnvironmentError,
)
from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from tests.wrappers.rollouts import TASK, play, rewards, step_all, wrap

BLACK = np.zeros((24, 32, 3), np.uint8)


class Darkness(CountingEnv):
    """Renders black at some steps of each episode; None: at all."""

    def __init__(self, *dark: int | None, **counting: Any) -> None:
        super().__init__(**counting)
        self.dark = dark

    def render(self) -> Any:
        frame = super().render()
        return BLACK if self.steps in self.dark or None in self.dark else frame


def shows(clip: Any) -> float:
    """A model that predicts 0.25 for a black newest frame, and 0.75 for any other."""
    return 0.75 if clip.images[-1].any() else 0.25


@pytest.mark.parametrize(
    ("dark", "expected"),
    [((0,), [0.5, 0.0, 0.0]), ((3,), [0.0, 0.0, -0.5]), ((0, 1), [0.0, 0.5, 0.0])],
    ids=["first", "last", "fade in"],
)
def test_a_black_frame_is_scored_like_any_other(dark, expected, caplog):
    """VizDoom's last frame, or a fade in an Atari game, would end a training."""
    env = wrap(Darkness(*dark, lengths=[3]), ScriptedRewardModel(shows), predict_every=1)
    for _ in range(30):
        env.reset()
        assert rewards(env) == expected
    warnings = [record for record in caplog.records if "entirely black" in record.message]
    assert [record.levelno for record in warnings] == [logging.WARNING]


@pytest.mark.parametrize("limit", [1, 2, 10])
def test_a_camera_that_shows_nothing_but_black_is_refused(limit):
    """A broken renderer would train an agent on predictions about nothing."""
    model = ScriptedRewardModel()
    env = wrap(Darkness(None), model, predict_every=1, max_black_frames=limit)
    message = rf"The first {limit} frames of camera 'render' are entirely black.*egl.*None"

    def run() -> None:
        env.reset()
        play(env, 9)

    with pytest.raises(ValueError, match=message):
        run()
    assert len(model.clips) == limit - 1
    with pytest.raises(ValueError, match=message):  # not only once
        env.reset()


def test_frames_of_all_episodes_count():
    """A broken renderer would go unnoticed in episodes that are shorter than the limit."""
    env = wrap(Darkness(None, lengths=[1]), ScriptedRewardModel())
    for _ in range(4):
        env.reset()
        play(env)
    env.reset()
    with pytest.raises(ValueError, match="The first 10 frames"):
        env.step(0)


def test_none_never_refuses(caplog):
    """A robot that works in the dark could not be used."""
    model = ScriptedRewardModel()
    env = wrap(
        Darkness(None, lengths=[99]),
        model,
        predict_every=1,
        max_black_frames=None,
        terminate_on_success=False,
    )
    env.reset()
    play(env)
    assert len(model.clips) == 100
    assert len(caplog.records) == 1


def test_each_camera_is_judged_by_itself():
    """A camera that works would hide one that does not."""
    env = wrap(
        CountingEnv(cameras=["front"]),
        ScriptedRewardModel(),
        predict_every=1,
        camera={"above": "front", "wrist": lambda env, observation: BLACK},
    )
    env.reset()
    with pytest.raises(ValueError, match=r"first 10 frames of camera 'wrist'"):
        play(env)


def gymnasium(makers: Any, model: Any) -> Any:
    return RobometerVectorRewardWrapper(SyncVectorEnv(makers), TASK, model, predict_every=1)


def stable_baselines3(makers: Any, model: Any) -> Any:
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    from robometer_gym.sb3 import VecRobometerReward

    return VecRobometerReward(vec_env.DummyVecEnv(makers), TASK, model, predict_every=1)


@pytest.mark.parametrize("vector", [gymnasium, stable_baselines3])
def test_in_a_vector_environment_the_broken_camera_is_named(vector: Callable[..., Any]):
    """One broken renderer of eight would poison its rewards unseen; a fade would end all."""
    makers: list[Any] = [lambda: FrameCapture(CountingEnv())] * 8
    makers[5] = lambda: FrameCapture(Darkness(None))
    makers[6] = lambda: FrameCapture(Darkness(0, 4))
    envs = vector(makers, ScriptedRewardModel())
    envs.reset()
    for _ in range(8):
        step_all(envs)
    with pytest.raises(SubEnvironmentError, match=r"Environment 5 .*first 10 frames of camera"):
        step_all(envs)


def test_the_hint_of_a_missing_render_mode_names_a_function():
    """OGBench renders although its render_mode is None: the advice to set it would not help."""
    env = CountingEnv(lengths=[2])
    env.render_mode = None
    message = re.escape("camera=lambda env, observation: env.render()")
    with pytest.raises(ValueError, match=message):
        wrap(env, ScriptedRewardModel())
    env = CountingEnv(lengths=[2])
    wrapped = RobometerRewardWrapper(
        env, TASK, ScriptedRewardModel(), camera=lambda env, observation: env.render()
    )
    wrapped.reset()
    assert rewards(wrapped) == [0.0, 0.0]
