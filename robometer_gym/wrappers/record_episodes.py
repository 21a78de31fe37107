"""RecordEpisodes: a wrapper that writes every episode into a folder, as a video with its task.

Knows nothing of the format of the folder, or of reward models; from their wrapper it reads only
the task.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat, cast

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from robometer_gym.data.episodes import Episode, EpisodeWriter, Outcome
from robometer_gym.data.video import check_rate
from robometer_gym.reward_model import Frame
from robometer_gym.tracking.events import read_true_success
from robometer_gym.tracking.settings import Camera, RewardSettings
from robometer_gym.validation import check_count, check_task
from robometer_gym.wrappers.read_frames import Cameras
from robometer_gym.wrappers.single import RobometerRewardWrapper

__all__ = ["RecordEpisodes"]

logger = logging.getLogger(__name__)

_DEFAULT_FPS = 20.0  # for an environment without "render_fps"


class RecordEpisodes(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """A wrapper that writes each completed episode into a folder, for `read_episodes`.

    All frames are written: the one at reset and the one after each step, the last included.
    Observations, rewards, infos, seeds and the environment's random state stay unchanged. An
    episode that `reset`, `close` or an error cuts short is not written, with a warning in the log:
    its outcome is unknown. Steps after the end are not recorded either.

    The task is the one of `reset(options={"task": ...})`; else `task`; else `info["task"]` at
    reset; else the task of a RobometerRewardWrapper inside. Around such a wrapper the episodes are
    those that the agent sees, and `info["is_success"]` is the success detector's if the environment
    reports none; inside it an episode continues after a detected success until the reset, which
    cuts it short.

    An episode is done at the first of the successes without interruption at its end: that gives the
    `cutoff` with which it is written. An environment that terminates at its success leaves one
    frame of it, too few to learn success from. With `hold`, the wrapper withholds that `terminated`
    for up to `hold` more steps, which are recorded. It ends the episode at once when it is
    truncated, or when the success is lost; the step that loses it is not recorded. The environment
    must allow steps after its termination.

    Copies of an environment may write into one folder, also from several processes.

    Args:
        env: any environment; made with render_mode="rgb_array" if `camera` is "render".
        folder: folder of the episodes; new ones are added to those that it has.
        task: the instruction.
        camera: source of the frames: "render"; a key of the observation, whose value is
            (H, W, 3) uint8; or a function of (env, observation) that returns such a frame.
        frame_size: frames are shrunk so that their shortest edge is this many pixels; never
            enlarged. None keeps the source's size.
        outcome: function of the last step's info that returns "successful", "suboptimal" or
            "failure". By default the outcome is "successful" or "failure", by `info["is_success"]`
            or, if there is none, `info["success"]`. None or NaN there is unknown, and refused.
        hold: number of steps, >= 0, that an episode continues after its success has terminated it.
        fps: frames per second of the videos; by default `env.metadata["render_fps"]`, or 20.

    Raises:
        ValueError: a setting out of range, a camera that the env does not have, an empty task; at
            reset, no task; at reset and step, a frame that is black or not (H, W, 3) uint8; at the
            last step, an unknown outcome.
        TypeError: a setting of the wrong type.
        MissingDependencyError: at the end of the first episode, PyAV is missing.

    Example:
        >>> import tempfile
        >>> from robometer_gym.data import read_episodes
        >>> env = gym.make("robometer_gym/TabletopReach-v0", render_mode="rgb_array")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     env = RecordEpisodes(env, folder)
        ...     _, info = env.reset(seed=0)
        ...     over = False
        ...     while not over:
        ...         _, _, terminated, truncated, _ = env.step(env.unwrapped.expert_action())
        ...         over = terminated or truncated
        ...     read_episodes(folder)
        [Episode(51 frames, 'move the gripper to the blue block', successful)]
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        folder: str | os.PathLike[str],
        *,
        task: str | None = None,
        camera: Camera = "render",
        frame_size: int | None = 240,
        outcome: Callable[[dict[str, Any]], str] | None = None,
        hold: int = 0,
        fps: float | None = None,
    ) -> None:
        if isinstance(camera, Mapping):
            raise TypeError(
                "RecordEpisodes records one camera: 'render', an observation key or a function of "
                f"(env, observation); got {camera!r}. Wrap it again, with another folder, for each "
                "further camera."
            )
        settings = RewardSettings(camera=camera, frame_size=frame_size)
        RecordConstructorArgs.__init__(
            self,
            _disable_deepcopy=True,
            folder=os.fspath(folder),
            task=task,
            camera=camera,
            frame_size=settings.frame_size,
            outcome=outcome,
            hold=check_count("hold", hold, minimum=0),
            fps=fps,
        )
        gym.Wrapper.__init__(self, env)
        self._given_task = None if task is None else check_task(task)
        self._cameras = Cameras(camera, settings.frame_size, env)
        self._outcome = outcome or _reported_outcome
        self._fps = float(env.metadata.get("render_fps") or _DEFAULT_FPS if fps is None else fps)
        check_rate("fps", self._fps)
        self._hold = hold
        self._held = 0  # steps from the success that terminated the running episode, with its own
        self._success_info: dict[str, Any] = {}  # of the last of them
        self._successes: list[bool] = []  # of the running episode, one per frame
        self._frames: list[Frame] = []  # of the running episode; empty if none is recorded
        self._task = ""
        self._writer = EpisodeWriter(folder)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode and record its first frame.

        Args:
            seed: passed to the environment.
            options: passed to the environment; "task" is this episode's instruction.
        """
        task = (options or {}).get("task")
        task = self._given_task if task is None else check_task(task)
        self._drop("reset()")
        observation, info = self.env.reset(seed=seed, options=options)
        self._task = self._find_task(info) if task is None else task
        self._frames, self._successes, self._held = [self._read_frame(observation)], [False], 0
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take one step and record its frame; write the episode if it ends."""
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
            if self._frames:
                terminated = self._record(observation, terminated, truncated, info)
        except BaseException as error:
            self._drop(type(error).__name__)
            raise
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        """Drop the running episode and close the environment."""
        self._drop("close()")
        super().close()

    def _read_frame(self, observation: Any) -> Frame:
        (frame,) = self._cameras.read(self.env, observation).values()
        if self._frames and frame.shape != self._frames[0].shape:
            raise ValueError(
                f"An episode's frames must be of one size, got {frame.shape} after "
                f"{self._frames[0].shape}. Pass camera=lambda env, observation: ... that resizes."
            )
        return frame

    def _find_task(self, info: dict[str, Any]) -> str:
        if isinstance(info.get("task"), str):
            return check_task(info["task"])
        env = self.env
        while isinstance(env, gym.Wrapper):
            if isinstance(env, RobometerRewardWrapper):
                return env.task
            env = env.env
        raise ValueError(
            "This episode has no task: its info at reset has no text as 'task', its keys are "
            f"{list(info)}. Pass RecordEpisodes(..., task='open the drawer') or "
            "reset(options={'task': 'open the drawer'})."
        )

    def _record(
        self, observation: Any, terminated: bool, truncated: bool, info: dict[str, Any]
    ) -> bool:
        """Record one step, write the episode if it ends, and return whether it has terminated."""
        success = read_true_success(info) is True
        if self._held and not success:
            self._write(self._success_info)
            return True
        self._frames.append(self._read_frame(observation))
        self._successes.append(success)
        if self._held or (terminated and success and self._hold):
            self._held, self._success_info = self._held + 1, info
            terminated = self._held > self._hold
        if terminated or truncated:
            self._write(info)
        return terminated

    def _write(self, info: dict[str, Any]) -> None:
        outcome = cast(Outcome, self._outcome(info))  # Episode checks it
        cutoff = 1.0
        if outcome == "successful" and self._successes[-1]:
            run = self._successes[::-1].index(False)  # the frame at reset is none
            cutoff = (len(self._frames) - run + 1) / len(self._frames)
        episode = Episode(np.stack(self._frames), self._task, outcome, cutoff=cutoff)
        self._writer.write(episode, self._fps)
        self._frames = []

    def _drop(self, cause: str) -> None:
        if len(self._frames) > 1:
            logger.warning(
                "Not written to %s: an episode of %d frames, cut short by %s.",
                self._writer.folder,
                len(self._frames),
                cause,
            )
        self._frames = []


def _reported_outcome(info: dict[str, Any]) -> Outcome:
    success = read_true_success(info)
    if success is not None:
        return "successful" if success else "failure"
    reported = {key: info[key] for key in ("is_success", "success") if key in info}
    found = str(reported) if reported else "neither 'is_success' nor 'success'"
    raise ValueError(
        f"The outcome is unknown: the last step's info has {found}, its keys are {list(info)}. "
        "Pass RecordEpisodes(..., outcome=lambda info: 'successful'), or "
        "'suboptimal', or 'failure'."
    )
