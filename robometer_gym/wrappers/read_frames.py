"""Cameras: the sources of an environment's frames, and the check of each frame.

Knows nothing of episodes or models: it reads the current frames and returns arrays that no
renderer writes to again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from robometer_gym.reward_model import Frame
from robometer_gym.tracking.settings import Camera, RewardSettings
from robometer_gym.tracking.window import shrink
from robometer_gym.wrappers.frame_copier import FrameCopier

__all__ = ["Cameras"]

logger = logging.getLogger(__name__)


class Cameras:
    """Reads one frame per camera from an environment.

    Args:
        camera: see `robometer_gym.tracking.settings.RewardSettings`.
        frame_size: shortest edge of the frames in pixels, or None.
        env: the environment to read, checked at once for cameras that cannot work.
        max_black_frames: see `robometer_gym.tracking.settings.RewardSettings`.

    Raises:
        ValueError: the env was made without render_mode="rgb_array", or its observation has no
            such key.

    Example:
        >>> from robometer_gym.testing import CountingEnv
        >>> env = CountingEnv(size=(480, 640))
        >>> observation, _ = env.reset()
        >>> Cameras("render", 240, env).read(env, observation)["render"].shape
        (240, 320, 3)
    """

    def __init__(
        self,
        camera: Camera | Mapping[str, Camera],
        frame_size: int | None,
        env: gym.Env[Any, Any],
        max_black_frames: int | None = RewardSettings.max_black_frames,
    ) -> None:
        if isinstance(camera, Mapping):
            self._sources = dict(camera)
        else:
            self._sources = {camera if isinstance(camera, str) else "camera": camera}
        self._frame_size = frame_size
        self._copiers = {name: FrameCopier() for name in self._sources}
        self._max_black_frames = max_black_frames
        self._black_frames = dict.fromkeys(self._sources, 0)  # until another frame has been seen
        self._warned_of_black = False
        for source in self._sources.values():
            _check_source(source, env)

    def read(self, env: gym.Env[Any, Any], observation: Any) -> dict[str, Frame]:
        """Read one frame from each camera.

        Args:
            env: the environment, for "render" and functions.
            observation: its latest observation, for keys and functions.

        Returns:
            Name of the camera to (H, W, 3) uint8 RGB in [0, 255], shrunk to `frame_size`, copied
            out of any buffer that the source may write to again.

        Raises:
            ValueError: a frame of another shape or dtype, or a camera that has shown nothing but
                black.
        """
        frames = {}
        for name, source in self._sources.items():
            frame = _read_source(source, env, observation)
            # The middle row clears nearly every frame; only a suspect is checked in full.
            if frame[len(frame) // 2].any() or frame.any():
                self._black_frames.pop(name, None)
            else:
                self._handle_black_frame(name)
            small = shrink(frame, self._frame_size)
            frames[name] = self._copiers[name].copy(frame) if small is frame else small
        return frames

    def _handle_black_frame(self, name: str) -> None:
        """Raise if the camera has shown nothing else for too long; else warn once and go on."""
        if name in self._black_frames and self._max_black_frames is not None:
            self._black_frames[name] += 1
            if self._black_frames[name] >= self._max_black_frames:
                raise ValueError(
                    f"The first {self._max_black_frames} frames of camera {name!r} are entirely "
                    "black, so the model would judge nothing. Is the renderer working (headless "
                    "machines: MUJOCO_GL=egl; no SDL_VIDEODRIVER=dummy), and the camera right? "
                    "If black is what it shows, set max_black_frames to a larger number or None."
                )
        if not self._warned_of_black:
            self._warned_of_black = True
            logger.warning(
                "A frame of camera %r is entirely black. Black frames go to the model like any "
                "other; max_black_frames is the limit from the first frame on.",
                name,
            )


def _check_source(source: Camera, env: gym.Env[Any, Any]) -> None:
    if source == "render":
        if env.render_mode != "rgb_array":
            raise ValueError(
                "camera='render' needs an env made with render_mode='rgb_array', "
                f"got render_mode={env.render_mode!r}: "
                "gym.make(..., render_mode='rgb_array'), or give an observation key as camera. If "
                "its render() returns RGB frames nevertheless: "
                "camera=lambda env, observation: env.render()."
            )
    elif isinstance(source, str):
        space = env.observation_space
        keys = sorted(space.spaces) if isinstance(space, gym.spaces.Dict) else []
        if source not in keys:
            have = f"its keys are {keys}" if keys else f"it is a {type(space).__name__}"
            raise ValueError(
                f"camera {source!r} is not a key of the observation: {have}. "
                "Use 'render', a key, or a function of (env, observation)."
            )


def _read_source(source: Camera, env: gym.Env[Any, Any], observation: Any) -> Frame:
    if source == "render":
        frame: Any = env.render()
        if frame is None:
            raise ValueError(
                "env.render() returned None: make the env with render_mode='rgb_array', "
                "or give an observation key as camera."
            )
        return _check_frame(frame, "env.render()")
    if isinstance(source, str):
        if source not in observation:
            raise ValueError(
                f"The observation has no {source!r}, although its space has: "
                f"its keys are {sorted(observation)}."
            )
        return _check_frame(observation[source], f"observation[{source!r}]")
    return _check_frame(source(env, observation), "the camera function")


def _check_frame(frame: Any, source: str) -> Frame:
    shape: Any = getattr(frame, "shape", ())
    dtype = getattr(frame, "dtype", type(frame).__name__)
    if len(shape) != 3 or shape[2] != 3 or dtype != np.uint8 or 0 in shape:
        raise ValueError(
            f"Frame from {source} must be (H, W, 3) uint8 RGB; got {tuple(shape)} {dtype}. "
            "Give camera=lambda env, observation: ... that converts it."
        )
    return np.asarray(frame)
