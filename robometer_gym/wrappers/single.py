"""RobometerRewardWrapper: the reward of one Gymnasium environment from its camera.

Passes the environment's steps to the EpisodeTracker as events and returns its outcomes. Knows
nothing of when a prediction is due, of windows, or of how progress becomes a reward.
"""

from __future__ import annotations

import logging
import os
from dataclasses import fields
from typing import Any, SupportsFloat

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils import RecordConstructorArgs
from typing_extensions import Unpack

from robometer_gym.models.loading import (
    DEFAULT_REWARD_MODEL,
    LazyRewardModel,
    RewardModelLike,
    is_name,
)
from robometer_gym.tracking.background import make_driver
from robometer_gym.tracking.events import Start, Step, read_reward, read_true_success
from robometer_gym.tracking.find_tracker import find_tracker
from robometer_gym.tracking.settings import (
    RewardOptions,
    expose_settings_in_signature,
    read_settings,
)
from robometer_gym.tracking.tracker import EpisodeTracker
from robometer_gym.validation import check_task
from robometer_gym.wrappers.env_kinds import check_kind, refuse_compute_reward, refuse_monitor
from robometer_gym.wrappers.read_frames import Cameras

__all__ = ["RobometerRewardWrapper"]

logger = logging.getLogger(__name__)


@expose_settings_in_signature
class RobometerRewardWrapper(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Replaces or shapes the reward from the camera, and ends the episode at detected success.

    A prediction is made at reset (the baseline), every `predict_every` steps, and at the last
    step. Frames are taken only then. Observations, seeds and the environment's random state stay
    as they are. Wrap it outside `TimeLimit` (which `gym.make` applies) and inside
    `RecordEpisodeStatistics` or SB3's `Monitor`, so that they count the agent's reward.

    `step` returns the reward as a float; `terminated` is also True if the model detected success;
    and `info` gets:

    - `robometer/progress`: the latest progress, in [0, 1]; NaN while none is known.
    - `robometer/success_prob`: the latest success probability, in [0, 1]; NaN likewise.
    - `robometer/success`: bool, whether success was detected in this episode.
    - `robometer/predicted`: bool, whether there was a prediction at this very step.
    - `env_reward`: the environment's own reward, unchanged.
    - `is_success`: only at the end, and only if the environment reports neither `is_success` nor
      `success` itself: whether success was detected. Else it is the environment's, unchanged.
    - `robometer/errors`: unless `on_error` is "raise", the number of failed predictions.

    `reset` adds the `robometer/...` infos of the baseline. `reset(options={"task": ...})` changes
    the task for that episode; all options go on to the environment.

    Args:
        env: any environment; made with render_mode="rgb_array" unless `camera` needs no render.
        task: the robot's instruction, in words.
        reward_model: a hub id or a folder, loaded at the first reset and once per process; "demo";
            or any object with `predict`, which copies of this wrapper's spec then share.
        **settings: see `robometer_gym.tracking.settings.RewardSettings`, or the signature.

    Raises:
        ValueError: an environment that is wrapped already, or in SB3's `Monitor` although detected
            success ends episodes; a setting out of range, a camera that the env does not have, an
            empty task; at reset and step, a frame that is not (H, W, 3) uint8, or a camera that
            has shown nothing but black.
        TypeError: an environment or a setting of the wrong kind, or an unknown setting; at step,
            an environment's reward that is no number.
        NotImplementedError: `compute_reward`, for HER's relabeled goals.
        ResetNeeded: `step` before `reset`, or after the episode has ended; a refused frame ends
            it, a failed prediction does not.
        CheckpointError: at the first reset, a model that cannot be loaded.
        RewardModelError: predictions of the model that are invalid (a NaN, for example).

    Example:
        >>> from robometer_gym.testing import CountingEnv, ScriptedRewardModel
        >>> env = RobometerRewardWrapper(
        ...     CountingEnv(lengths=[4]),
        ...     task="push the block",
        ...     reward_model=ScriptedRewardModel(progress=[0.125, 0.5, 0.75]),
        ...     predict_every=2,
        ... )
        >>> _, info = env.reset(seed=0)
        >>> info["robometer/progress"]
        0.125
        >>> [env.step(0)[1] for _ in range(4)]
        [0.0, 0.375, 0.0, 0.25]
    """

    compute_reward = refuse_compute_reward

    def __init__(
        self,
        env: gym.Env[Any, Any],
        task: str,
        reward_model: RewardModelLike = DEFAULT_REWARD_MODEL,
        **settings: Unpack[RewardOptions],
    ) -> None:
        check_kind(env, "gymnasium.Env")
        if find_tracker(env) is not None:
            raise ValueError(
                "This environment is in a RobometerRewardWrapper already. For several cameras give "
                "camera a dict; for other settings make the environment again."
            )
        chosen = read_settings(RobometerRewardWrapper, settings)
        if chosen.terminate_on_success:
            refuse_monitor(env)
        model = LazyRewardModel.of(reward_model)
        self._task = check_task(task)
        RecordConstructorArgs.__init__(
            self,
            task=task,
            # A name goes into JSON; a model is shared by all that is made from the spec.
            reward_model=os.fspath(reward_model) if is_name(reward_model) else model,
            **{name: getattr(chosen, name) for name in settings},
        )
        gym.Wrapper.__init__(self, env)
        if env.metadata is None:  # robosuite's; other wrappers read it
            self.metadata = {}
        self._cameras = Cameras(chosen.camera, chosen.frame_size, env, chosen.max_black_frames)
        self._reward_model = model
        self.tracker = EpisodeTracker(chosen, model)
        """Follows the episode; `RecordTraces` and other listeners attach to it."""
        self._driver = make_driver(self.tracker)
        self._unscored_steps = 0  # since the latest prediction
        self._warned_of_cut = False

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override] # a property in Wrapper as well
        """The spec from which `gym.make` rebuilds this environment, wrapper and all."""
        spec = super().spec
        if spec is None or isinstance(spec, _RewardedSpec):
            return spec
        return _RewardedSpec(**{f.name: getattr(spec, f.name) for f in fields(spec) if f.init})

    @property
    def task(self) -> str:
        """The instruction of the current episode; before the first, the constructor's."""
        return self.tracker.tasks([self._task])[0]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode and predict its baseline.

        Args:
            seed: goes to the environment.
            options: goes to the environment; "task" is this episode's instruction.
        """
        task = (options or {}).get("task")
        task = self._task if task is None else check_task(task)
        self._check_cut()
        self.tracker.end(0)  # also if the environment fails now
        self._reward_model.load()  # before the first frame is drawn
        observation, info = self.env.reset(seed=seed, options=options)
        frames = self._cameras.read(self.env, observation)
        (outcome,) = self._driver.advance([Start(0, task, frames)])
        return observation, {**info, **outcome.info}

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Make one step and compute its reward; see the class for the infos."""
        if not self.tracker.running(0):
            raise ResetNeeded(
                "No episode is running: call reset() first. (An episode also ends when success is "
                "detected, see terminate_on_success; gymnasium.wrappers.Autoreset goes outside "
                "this wrapper.)"
            )
        observation, reward, terminated, truncated, info = self.env.step(action)
        due = self.tracker.due(0, ended=bool(terminated or truncated))
        try:
            step = Step(
                env=0,
                reward=read_reward(reward),
                terminated=bool(terminated),
                truncated=bool(truncated),
                frames=self._cameras.read(self.env, observation) if due else None,
                true_success=read_true_success(info),
            )
        except BaseException:
            self.tracker.end(0)  # this step is missing: the window no longer fits the episode
            raise
        (outcome,) = self._driver.advance([step])
        self._unscored_steps = 0 if due else self._unscored_steps + 1
        return (
            observation,
            outcome.reward,
            outcome.terminated,
            step.truncated,
            {**info, **outcome.info},
        )

    def _check_cut(self) -> None:
        """Warn once if a reset loses the reward of a running episode's last steps."""
        if self.tracker.running(0) and self._unscored_steps and not self._warned_of_cut:
            self._warned_of_cut = True
            logger.warning(
                "reset() came %d steps after the last prediction of a running episode: the reward "
                "of these steps is lost. If a wrapper outside ends episodes (TimeLimit), put it "
                "inside: RobometerRewardWrapper(TimeLimit(env, ...), ...).",
                self._unscored_steps,
            )
        self._unscored_steps = 0

    def close(self) -> None:
        """End the episode and close the environment."""
        self._driver.close()
        super().close()


class _RewardedSpec(EnvSpec):
    """An EnvSpec whose `to_json` names the arguments that do not go into JSON."""

    def to_json(self) -> str:
        """Return the spec as JSON.

        Raises:
            TypeError: a reward model or a camera in it is an object, not a name.
        """
        try:
            return super().to_json()
        except TypeError as error:
            raise TypeError(
                f"This spec does not go into JSON ({error}). Give RobometerRewardWrapper names: a "
                "hub id, a folder or 'demo' as reward_model, 'render' or an observation key as "
                "camera. gym.make(env.spec) works with objects as well."
            ) from error
