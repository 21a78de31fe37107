"""RobometerRewardWrapper: episodes start from nothing, and a step needs a running one."""

import re

import pytest
from gymnasium.error import ResetNeeded

from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from tests.wrappers.rollouts import play, rewards, shown, windows, wrap


def test_the_next_episode_begins_from_its_own_baseline():
    """A success would be taken back at the next episode's first step."""
    model = ScriptedRewardModel(progress=[0.0, 1.0, 0.25, 0.5])
    env = wrap(CountingEnv(lengths=[2]), model)
    env.reset()
    assert rewards(env) == [0.0, 1.0]
    env.reset()
    assert rewards(env) == [0.0, 0.25]
    assert [shown(clip)[0] for clip in model.clips] == [(0, 0), (0, 0), (1, 0), (1, 0)]


def test_a_reset_in_mid_episode_starts_a_new_episode():
    """Frames of an abandoned attempt would be shown as part of the next."""
    model = ScriptedRewardModel(progress=[0.0, 0.5, 0.25, 0.75])
    env = wrap(CountingEnv(), model, predict_every=2)
    env.reset()
    assert rewards(env, 3) == [0.0, 0.5, 0.0]
    _, info = env.reset()
    assert info["robometer/progress"] == 0.25
    assert rewards(env, 2) == [0.0, 0.5]
    assert [shown(clip) for clip in model.clips] == [
        [(0, 0)],
        [(0, 0), (0, 2)],
        [(1, 0)],
        [(1, 0), (1, 2)],
    ]


def test_a_failed_reset_ends_the_episode():
    """Going on would show the model frames of two episodes as one."""

    class Fails(CountingEnv):
        broken = False

        def render(self):
            frame = super().render()
            assert frame is not None
            return frame / 255 if self.broken else frame

    model = ScriptedRewardModel()
    bare = Fails()
    env = wrap(bare, model, predict_every=1)
    env.reset()
    play(env, 2)
    bare.broken = True
    with pytest.raises(ValueError, match="uint8 RGB; got"):
        env.reset()
    bare.broken = False
    with pytest.raises(ResetNeeded, match=re.escape("call reset() first")):
        env.step(0)
    env.reset()
    play(env, 1)
    assert windows(model)[-1] == [0, 1]


def test_a_refused_frame_at_the_last_step_ends_the_episode():
    """Going on would step an environment that is over, and score frames of nothing."""

    class Breaks(CountingEnv):
        def render(self):
            frame = super().render()
            assert frame is not None
            return frame if self.steps < 2 else frame / 255

    env = wrap(Breaks(lengths=[2]), ScriptedRewardModel())
    env.reset()
    play(env, 1)
    with pytest.raises(ValueError, match="uint8 RGB; got"):
        env.step(0)
    with pytest.raises(ResetNeeded, match=re.escape("call reset() first")):
        env.step(0)


def test_step_before_reset_is_refused():
    """There is no baseline: the first reward would be a gift or a crash."""
    env = wrap(CountingEnv(), ScriptedRewardModel())
    with pytest.raises(ResetNeeded, match=r"No episode is running: call reset\(\) first"):
        env.step(0)


@pytest.mark.parametrize("how", ["terminated", "truncated", "success", "closed"])
def test_step_after_the_end_is_refused(how):
    """After a model's success the environment itself would happily go on."""
    bare = CountingEnv(lengths=[4], ends=["truncated" if how == "truncated" else "terminated"])
    env = wrap(bare, ScriptedRewardModel(success=float(how == "success")), predict_every=2)
    env.reset()
    if how == "closed":
        env.close()
    else:
        play(env)
    steps = bare.steps
    with pytest.raises(ResetNeeded, match="An episode also ends when success is detected"):
        env.step(0)
    assert bare.steps == steps
    env.reset()
    env.step(0)
