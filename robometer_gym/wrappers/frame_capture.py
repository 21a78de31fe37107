"""FrameCapture: the inner wrapper that keeps the frame which a vector environment would lose.

A vector environment resets a sub-environment as soon as its episode ends, and renders it, if asked,
as it is afterwards. So each sub-environment's frames are taken inside, in its own process, and
travel with its infos to the outer wrapper, which reads them with `Captures`. Knows nothing of
models and imports no torch: the workers of a vector environment stay light.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any, NamedTuple, SupportsFloat

import cloudpickle
import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs

from robometer_gym.reward_model import Frame
from robometer_gym.tracking.events import Event, Start, Step
from robometer_gym.tracking.settings import RewardSettings
from robometer_gym.wrappers.cameras import Cameras
from robometer_gym.wrappers.shared_frames import Inbox, Note, Outbox, Parcel

__all__ = ["CAPTURE", "REWARD", "Capture", "Captures", "FrameCapture", "SubEnvironmentError"]

CAPTURE = "robometer/capture"
"""The key of a `Capture` in a sub-environment's infos. The outer wrapper takes it out."""

REWARD = "robometer/reward"
"""Likewise of the environment's own reward, a float in full precision, where no frame is due."""


class SubEnvironmentError(RuntimeError):
    """One environment of several has failed; the message says which one and why."""


class Capture(NamedTuple):
    """What one sub-environment says of a reset, or of a step at which a frame is due.

    `step` is counted from the reset, which is 0; `reward` is the environment's own; `frames` is
    None where there is an error; `error` is the traceback of what went wrong instead.
    """

    step: int = 0
    reward: float = 0.0
    frames: Mapping[str, Frame] | Note | None = None
    error: str | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Capture:
        """Return itself: DummyVecEnv copies its infos deeply, and frames are never written to."""
        return self


class FrameCapture(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Takes the frames of one sub-environment for a reward wrapper around all of them.

    The first wrapper around each sub-environment (and outside its `TimeLimit`, which `gym.make`
    applies). It renders only at steps whose frame is kept. In a worker process an exception of the
    environment becomes a message, so that no worker dies of it: the outer wrapper raises it, with
    the number of the environment. Until an outer wrapper has said what to capture it does nothing.

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
    """Set by the outer wrapper where the environment goes on: the next step is a reset."""

    raises_as: int | None = None
    """Set by an outer wrapper in this process, to which an error may go as it is, and at once."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self._settings: RewardSettings | None = None
        self._cameras: Cameras | None = None
        self._tells_rewards = False
        self._outbox = Outbox()
        self._steps = 0
        self._told_at_reset: dict[str, Any] = {}

    def begin_capture(self, settings: bytes, rewards: bool = False) -> str | None:
        """Capture from now on.

        Args:
            settings: `RewardSettings`, pickled by cloudpickle: a camera may be a lambda.
            rewards: say the reward of steps without a frame, too, because the vector environment
                keeps less of it. It takes time.

        Returns:
            None, or why it cannot be done.
        """
        chosen = cloudpickle.loads(settings)
        try:
            self._cameras = Cameras(chosen.camera, chosen.frame_size, self.env)
        except ValueError as error:
            return str(error)
        self._settings, self._tells_rewards = chosen, rewards
        # Anew, too: whoever captured before has taken the outbox's memory.
        self._outbox = Outbox()
        return None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset, and take the first frame."""
        self.model_saw_success = False
        if self._settings is None:
            return self.env.reset(seed=seed, options=options)
        self._steps = 0
        options = options or None  # Gymnasium takes "reset_mask" out and leaves {}; alone: None
        try:
            observation, info = self.env.reset(seed=seed, options=options)
            if "robometer/progress" in info:
                raise ValueError("The environment is in a RobometerRewardWrapper already.")
            capture = Capture(frames=self._look(observation))
        except Exception as error:
            capture = self._failed(error)
            observation, info = self.observation_space.sample(), {}
        self._told_at_reset = {**info, CAPTURE: capture}
        return observation, self._told_at_reset

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Make a step, and take a frame if one is due."""
        if self.model_saw_success:
            observation, info = self.reset()
            return observation, 0.0, False, False, info
        if self._settings is None:
            return self.env.step(action)
        self._steps += 1
        self._told_at_reset.pop(CAPTURE, None)  # SubprocVecEnv would send it again with each step
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
            due = self._settings.due(self._steps, bool(terminated or truncated))
            reward = float(reward)
            if due:
                frames = self._look(observation)
                info = {**info, CAPTURE: Capture(self._steps, reward, frames)}
            elif self._tells_rewards:
                info = {**info, REWARD: reward}
        except Exception as error:
            told = {CAPTURE: self._failed(error)}
            return self.observation_space.sample(), 0.0, False, False, told
        return observation, reward, terminated, truncated, info

    def _look(self, observation: Any) -> Parcel:
        assert self._cameras is not None, "set together with the settings"
        return Parcel(self._cameras.read(self.env, observation), self._outbox)

    def _failed(self, error: Exception) -> Capture:
        """Say what went wrong; in one process before the next environment is touched."""
        told = traceback.format_exc()
        if self.raises_as is not None:
            raise _failure(self.raises_as, told) from error
        return Capture(error=told)


def _failure(env: int, told: str) -> SubEnvironmentError:
    cause = told.strip().splitlines()[-1]
    return SubEnvironmentError(
        f"Environment {env} failed: {cause}\n\nIn environment {env}:\n{told}"
    )


class Captures:
    """Reads what the sub-environments sent.

    Example:
        >>> import numpy as np
        >>> frames = {"render": np.full((4, 4, 3), 9, np.uint8)}
        >>> Captures().event(3, Capture(frames=frames), "open the drawer").env
        3
    """

    def __init__(self) -> None:
        self._inbox = Inbox()

    def event(
        self,
        env: int,
        capture: Capture,
        task: str,
        terminated: bool = False,
        truncated: bool = False,
        true_success: bool | None = None,
    ) -> Event:
        """Return what has happened in one environment, for the EpisodeTracker.

        Args:
            env: its number.
            capture: what it sent.
            task: of the episode, if this is the start of one.
            terminated: what the vector environment said of it.
            truncated: likewise.
            true_success: the environment's own, from its infos.

        Raises:
            SubEnvironmentError: the environment failed.
        """
        if capture.error is not None:
            raise _failure(env, capture.error)
        frames = None if capture.frames is None else self._inbox.open(capture.frames)
        if capture.step == 0:
            assert frames is not None, "a reset is always captured"
            return Start(env, task, frames)
        return Step(env, capture.reward, terminated, truncated, frames, true_success)
