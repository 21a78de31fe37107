"""Helpers of the tests of TabletopReach: its frame, block positions and expert episodes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from robometer_gym.envs import COLORS, TabletopReachEnv
from robometer_gym.reward_model import Frame

LIMIT = 100
Floats = NDArray[np.floating[Any]]


def render(env: TabletopReachEnv) -> Frame:
    """Return the current frame of `env`."""
    frame = env.render()
    assert frame is not None
    return frame


def position(obs: Floats, color: str) -> Floats:
    """Return the position (2,) of a block in an observation."""
    index = 2 + 2 * COLORS.index(color)
    return obs[index : index + 2]


def expert_episode(
    env: TabletopReachEnv, noise: float = 0.0, **reset: Any
) -> tuple[Floats, list[dict[str, Any]], bool]:
    """Run one episode with the expert; return its observations, infos and success."""
    obs, info = env.reset(**reset)
    seen, infos, terminated = [obs], [info], False
    while not terminated and len(seen) <= LIMIT:
        obs, reward, terminated, _, info = env.step(env.expert_action(noise))
        assert reward == float(terminated)
        seen.append(obs)
        infos.append(info)
    return np.array(seen), infos, terminated
