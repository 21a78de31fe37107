"""Frames of TabletopReach: they show every position, and belong to the caller."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from robometer_gym.envs import COLORS, TASK, TabletopReachEnv
from robometer_gym.reward_model import Frame
from tests.envs.tabletop import LIMIT, Floats, expert_episode, position, render


def center(mask: NDArray[np.bool_]) -> Floats:
    """Return the center of the marked pixels (64, 64), in table units: (2,)."""
    rows, columns = np.nonzero(mask)
    return (np.array([columns.mean(), rows.mean()]) + 0.5 - 32) / 24


def color_mask(frame: Frame, color: str) -> NDArray[np.bool_]:
    """Return the pixels (64, 64) of a block's color."""
    channel = COLORS.index(color)
    rest = np.delete(frame.astype(int), channel, axis=2).max(axis=2)
    return np.asarray(frame[..., channel] - rest > 50)


def test_frame() -> None:
    """Recorders and reward models would refuse the frames."""
    env = TabletopReachEnv(render_mode="rgb_array")
    env.reset(seed=0)
    frame = render(env)
    assert frame.shape == (64, 64, 3)
    assert frame.dtype == np.uint8
    assert frame.mean() > 100


def test_frame_is_the_callers_own() -> None:
    """Writing on a frame, or the next step, would change frames already kept."""
    env = TabletopReachEnv(render_mode="rgb_array")
    env.reset(seed=0)
    first = render(env)
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(render(env), kept)
    second = render(env)
    env.step([1.0, 1.0])
    render(env)
    np.testing.assert_array_equal(second, kept)


def test_every_full_step_changes_the_frame() -> None:
    """The reward model could not see slow progress."""
    env = TabletopReachEnv(render_mode="rgb_array")
    env.reset(seed=0)
    frames = [render(env)]
    for _ in range(10):
        env.step([0.7, 0.7])
        frames.append(render(env))
    for before, after in pairwise(frames):
        assert not np.array_equal(before, after)


def test_a_new_episode_has_a_new_frame() -> None:
    """The blocks of the last episode would stay in the frame."""
    env = TabletopReachEnv(layout="random", render_mode="rgb_array")
    frames = []
    for seed in (0, 1):
        env.reset(seed=seed)
        frames.append(render(env))
    fresh = TabletopReachEnv(layout="random", render_mode="rgb_array")
    fresh.reset(seed=1)
    assert not np.array_equal(frames[0], frames[1])
    np.testing.assert_array_equal(frames[1], render(fresh))


@pytest.mark.parametrize("seed", range(5))
def test_pixels_show_every_position(seed: int) -> None:
    """The frames would not contain the positions that the reward model has to learn."""
    env = TabletopReachEnv(layout="random", render_mode="rgb_array")
    obs, _ = env.reset(seed=seed)
    frame = render(env)
    for color in COLORS:
        found = center(color_mask(frame, color))
        np.testing.assert_allclose(found, position(obs, color), atol=0.03)
    np.testing.assert_allclose(center(frame.min(axis=2) > 200), obs[:2], atol=0.03)


@pytest.mark.parametrize("color", COLORS)
def test_block_shows_under_the_gripper(color: str) -> None:
    """At success, the reward model could not see which block was reached."""
    env = TabletopReachEnv(TASK.format(color), render_mode="rgb_array")
    expert_episode(env, seed=0)
    frame = render(env)
    assert color_mask(frame, color).sum() > 40
    assert (frame.min(axis=2) > 180).sum() > 15


def test_whole_gripper_is_shown_in_every_corner() -> None:
    """Drawing would fail at the edge of the table, or the gripper leave the frame."""
    env = TabletopReachEnv(render_mode="rgb_array")
    for corner in ([1, 1], [1, -1], [-1, 1], [-1, -1]):
        env.reset(seed=0)
        for _ in range(LIMIT):
            obs, *_ = env.step(np.array(corner, np.float32))
        assert obs[:2].tolist() == corner
        assert (render(env).min(axis=2) > 180).sum() > 15


def test_no_render_mode() -> None:
    """Training without frames would stop or flood the log with warnings."""
    env = TabletopReachEnv()
    env.reset(seed=0)
    assert env.render() is None
