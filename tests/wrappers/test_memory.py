"""RobometerRewardWrapper: memory over long and many episodes."""

import gc
import sys

import numpy as np
import pytest

from robometer_gym.reward_model import Prediction
from robometer_gym.testing import CountingEnv
from tests.wrappers.rollouts import play, wrap


class Constant:
    """Predicts a constant and keeps nothing."""

    def predict(self, clips):
        half = [np.full(len(clip), 0.5, np.float32) for clip in clips]
        return [Prediction(values, values) for values in half]


def blocks() -> int:
    """How many objects are alive in this process; a frame is at least one."""
    gc.collect()
    return sys.getallocatedblocks()


@pytest.mark.parametrize("sampling", ["linspace", "tail", "anchored"])
def test_memory_does_not_grow_over_a_long_episode(sampling):
    """A robot that runs overnight would fill the machine with video."""
    env = wrap(CountingEnv(lengths=[10**9]), Constant(), predict_every=1, sampling=sampling)
    env.reset()
    for _ in range(1_000):
        env.step(0)
    early = blocks()
    for _ in range(19_000):
        env.step(0)
    assert blocks() < early + 1_000


def test_memory_does_not_grow_over_many_episodes():
    """Each episode would leave its frames behind."""
    env = wrap(CountingEnv(lengths=[3]), Constant(), predict_every=1)

    def episodes(number: int) -> int:
        for _ in range(number):
            env.reset()
            play(env)
        return blocks()

    early = episodes(50)
    assert episodes(1_000) < early + 500
