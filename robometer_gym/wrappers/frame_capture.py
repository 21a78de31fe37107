"""FrameCapture: the inner wrapper that keeps the last frame, which a vector environment loses.

A vector environment resets a sub-environment as soon as its episode ends, so a later render shows
the next episode. FrameCapture reads each sub-environment's frames inside, in its own process; they
travel with its infos to the outer wrapper, which reads them with `CaptureReader`. Knows nothing of
models and imports no torch: the workers of a vector environment stay light.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, SupportsFloat

import cloudpickle
import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs

from robometer_gym.reward_model import Frame
from robometer_gym.tracking.events import Event, Start, Step, read_reward
from robometer_gym.tracking.settings import RewardSettings
from robometer_gym.wrappers.env_kinds import refuse_compute_reward
from robometer_gym.wrappers.read_frames import Cameras
from robometer_gym.wrappers.shared_frames import (
    FrameBundle,
    SharedFrameReader,
    SharedFramesRef,
    SharedFrameWriter,
)

__all__ = [
    "CAPTURE",
    "REWARD",
    "Capture",
    "CaptureReader",
    "FrameCapture",
    "SubEnvironmentError",
    "begin_captures",
]

CAPTURE = "robometer/capture"
"""The key of a `Capture` in a sub-environment's infos. The outer wrapper takes it out."""

REWARD = "robometer/reward"
"""The key of the environment's own reward, a float in full precision, if no frame is due."""


class SubEnvironmentError(RuntimeError):
    """One environment of several has failed; the message names it and the cause."""


class Capture(NamedTuple):
    """One sub-environment's part of a reset, or of a step at which a frame is due.

    `step` is counted from the reset, which is 0; `reward` is the environment's own; `frames` is
    None if there is an error; `error` is then the traceback.
    """

    step: int = 0
    reward: float = 0.0
    frames: Mapping[str, Frame] | SharedFramesRef | None = None
    error: str | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Capture:
        """Return itself: DummyVecEnv copies its infos deeply, and frames are never written to."""
        return self


class FrameCapture(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Captures the frames of one sub-environment for a reward wrapper around all of them.

    The outermost wrapper around each sub-environment (outside its `TimeLimit`, which `gym.make`
    applies). It renders only at steps whose frame is kept. In a worker process an exception of the
    environment becomes a message, so that the worker survives: the outer wrapper raises it, with
    the index of the environment. Until an outer wrapper begins the capture, it passes everything
    through.

    Args:
        env: the sub-environment.

    Example:
        >>> from robometer_gym.testing import CountingEnv
        >>> env = FrameCapture(CountingEnv(lengths=[3]))
        >>> env.begin_capture(cloudpickle.dumps(RewardSettings(predict_every=2)))
        >>> _, info = env.reset()
        >>> captures = [env.step(0)[4].get(CAPTURE) for _ in range(3)]
        >>> [CountingEnv.read(c.frames["render"])["step"] if c else None for c in captures]
        [None, 2, 3]
    """

    model_saw_success = False
    """Set by the outer wrapper if the environment itself would go on: the next step resets it."""

    env_index: int | None = None
    """Set by `begin_captures` in the outer wrapper's process: errors are raised here, with it."""

    compute_reward = refuse_compute_reward

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        if env.metadata is None:  # robosuite's; SyncVectorEnv adds to it
            self.metadata = {}
        self._settings: RewardSettings | None = None
        self._cameras: Cameras | None = None
        self._sends_rewards = False
        self._writer = SharedFrameWriter()
        self._steps = 0
        self._reset_info: dict[str, Any] = {}

    def begin_capture(self, settings: bytes, send_rewards: bool = False) -> str | None:
        """Capture from now on.

        Args:
            settings: `RewardSettings`, pickled by cloudpickle: a camera may be a lambda.
            send_rewards: put the rewards of steps without a frame into the infos as well, for a
                vector environment that rounds them. It takes time.

        Returns:
            None, or the reason why it cannot be done.
        """
        chosen = cloudpickle.loads(settings)
        try:
            self._cameras = Cameras(
                chosen.camera, chosen.frame_size, self.env, chosen.max_black_frames
            )
        except ValueError as error:
            return str(error)
        self._settings, self._sends_rewards = chosen, send_rewards
        self._writer = SharedFrameWriter()  # an earlier reader has claimed the other's memory
        return None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset, and capture the first frame."""
        self.model_saw_success = False
        if self._settings is None:
            return self.env.reset(seed=seed, options=options)
        self._steps = 0
        options = options or None  # Gymnasium takes "reset_mask" out and leaves {}; alone: None
        try:
            observation, info = self.env.reset(seed=seed, options=options)
            if "robometer/progress" in info:
                raise ValueError("The environment is in a RobometerRewardWrapper already.")
            capture = Capture(frames=self._capture_frames(observation))
        except Exception as error:
            capture = self._capture_error(error)
            observation, info = self.observation_space.sample(), {}
        self._reset_info = {**info, CAPTURE: capture}
        return observation, self._reset_info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Make a step, and capture a frame if one is due."""
        if self.model_saw_success:
            observation, info = self.reset()
            return observation, 0.0, False, False, info
        if self._settings is None:
            return self.env.step(action)
        self._steps += 1
        self._reset_info.pop(CAPTURE, None)  # SubprocVecEnv sends these infos with each step
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
            due = self._settings.due(self._steps, bool(terminated or truncated))
            reward = read_reward(reward)
            if due:
                frames = self._capture_frames(observation)
                info = {**info, CAPTURE: Capture(self._steps, reward, frames)}
            elif self._sends_rewards:
                info = {**info, REWARD: reward}
        except Exception as error:
            info = {CAPTURE: self._capture_error(error)}
            return self.observation_space.sample(), 0.0, False, False, info
        return observation, reward, terminated, truncated, info

    def _capture_frames(self, observation: Any) -> FrameBundle:
        assert self._cameras is not None, "set together with the settings"
        return FrameBundle(self._cameras.read(self.env, observation), self._writer)

    def _capture_error(self, error: Exception) -> Capture:
        """Return the error for the outer wrapper; within its process raise it at once.

        At once, because the next environment must not be touched: without MUJOCO_GL the first one
        raises and the second one aborts the process.
        """
        formatted = traceback.format_exc()
        if self.env_index is not None:
            raise _sub_env_error(self.env_index, formatted) from error
        return Capture(error=formatted)


def begin_captures(
    core: Any, call: Callable[..., Sequence[Any]], settings: RewardSettings, *, send_rewards: bool
) -> None:
    """Begin the capture in all sub-environments of a vector environment.

    Args:
        core: the vector environment itself, without wrappers.
        call: its method that calls a method of each sub-environment by name.
        settings: of the reward.
        send_rewards: see `FrameCapture.begin_capture`.

    Raises:
        ValueError: a sub-environment whose outermost wrapper is not FrameCapture, or without the
            camera.
    """
    if not all(call("has_wrapper_attr", "begin_capture")):
        raise ValueError(
            "Each sub-environment must be in a FrameCapture, or its last frame would be lost: "
            "lambda: FrameCapture(gym.make(...)) as function that makes it. make_robometer_vec "
            "and make_robometer_vec_env do it."
        )
    for outermost in call("class_name"):
        if outermost != FrameCapture.__name__:
            raise ValueError(
                f"FrameCapture must be the outermost wrapper of each sub-environment, but "
                f"{outermost} is outside it: that would change rewards, end episodes or keep state "
                "behind its back. Put it inside: FrameCapture(...(env))."
            )
    for problem in call("begin_capture", cloudpickle.dumps(settings), send_rewards):
        if problem is not None:
            raise ValueError(problem)
    for index, env in enumerate(getattr(core, "envs", ())):  # none where they are in processes
        env.set_wrapper_attr("env_index", index)


def _sub_env_error(env: int, formatted: str) -> SubEnvironmentError:
    cause = formatted.strip().splitlines()[-1]
    return SubEnvironmentError(
        f"Environment {env} failed: {cause}\n\nIn environment {env}:\n{formatted}"
    )


class CaptureReader:
    """Turns captures into the events of an EpisodeTracker.

    Example:
        >>> import numpy as np
        >>> frames = {"render": np.full((4, 4, 3), 9, np.uint8)}
        >>> CaptureReader().event(3, Capture(frames=frames), "open the drawer").env
        3
    """

    def __init__(self) -> None:
        self._frames = SharedFrameReader()

    def event(
        self,
        env: int,
        capture: Capture,
        task: str,
        terminated: bool = False,
        truncated: bool = False,
        true_success: bool | None = None,
    ) -> Event:
        """Return one environment's event for the EpisodeTracker.

        Args:
            env: its index.
            capture: from its infos.
            task: of the episode, if this is the start of one.
            terminated: from the vector environment.
            truncated: likewise.
            true_success: the environment's own, from its infos.

        Raises:
            SubEnvironmentError: the environment failed.
        """
        if capture.error is not None:
            raise _sub_env_error(env, capture.error)
        frames = None if capture.frames is None else self._frames.read(capture.frames)
        if capture.step == 0:
            assert frames is not None, "a reset is always captured"
            return Start(env, task, frames)
        return Step(env, capture.reward, terminated, truncated, frames, true_success)
