"""RobometerVectorRewardWrapper: the reward of many Gymnasium environments from their cameras.

Passes the steps of a `gymnasium.vector` environment, in each of its autoreset modes, to the
EpisodeTracker as events and returns its outcomes. Knows nothing of when a prediction is due or of
how progress becomes a reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import (
    AutoresetMode,
    VectorEnv,
    VectorWrapper,
)
from gymnasium.vector.utils import iterate
from numpy.typing import NDArray
from typing_extensions import Unpack

from robometer_gym.models.loading import DEFAULT_REWARD_MODEL, LazyRewardModel, RewardModelLike
from robometer_gym.tracking.background import make_driver
from robometer_gym.tracking.events import Event, Step
from robometer_gym.tracking.find_tracker import find_tracker
from robometer_gym.tracking.settings import (
    RewardOptions,
    expose_settings_in_signature,
    read_settings,
)
from robometer_gym.tracking.tracker import EpisodeTracker
from robometer_gym.validation import check_task, check_tasks
from robometer_gym.wrappers.env_kinds import check_kind, refuse_compute_reward
from robometer_gym.wrappers.frame_capture import (
    CaptureReader,
    begin_captures,
)
from robometer_gym.wrappers.vector_infos import (
    Infos,
    merge_env_infos,
    read_true_successes,
    take_captures,
    take_env_infos,
)
from robometer_gym.wrappers.worker_failures import close_workers, report_dead_workers

__all__ = ["RobometerVectorRewardWrapper"]

if TYPE_CHECKING:
    _VectorWrapper = VectorWrapper[Any, Any, Any, Any, NDArray[Any]]
else:
    _VectorWrapper = VectorWrapper  # takes no types in Gymnasium 1.1


@expose_settings_in_signature
class RobometerVectorRewardWrapper(_VectorWrapper):
    """Replaces or shapes the rewards from the cameras, and ends episodes at detected success.

    The same rewards, ends and infos as `RobometerRewardWrapper` gives for the same episodes, in
    every autoreset mode. Predictions that are due at one step are made in one batch, by one model
    in this process. (If a detected success resets an environment in the same step, its new
    baseline takes a second call.)

    A detected success really resets its sub-environment, and no other: at the next step under
    NEXT_STEP, which ignores its action and has the reward 0.0; in the same step under SAME_STEP,
    with `final_obs` and `final_info`; under DISABLED when you call
    `reset(options={"reset_mask": ...})`. The reset transition is never scored.

    `make_robometer_vec` builds the whole stack. By hand: `FrameCapture` around each
    sub-environment, this outside, `gymnasium.wrappers.vector.RecordEpisodeStatistics` outside this.

    `infos` has the entries that `RobometerRewardWrapper` describes, as arrays (N,) with a mask
    beside each, like Gymnasium's; under SAME_STEP the last step's are in `infos["final_info"]`.
    `reset(options={"task": ...})` changes the task of the episodes that begin with it.

    Args:
        env: a `SyncVectorEnv` or `AsyncVectorEnv` whose sub-environments are in `FrameCapture`.
        task: the robots' instruction, in words: one for all, or one for each environment.
        reward_model: see `RobometerRewardWrapper`. It lives in this process; workers have none.
        **settings: see `robometer_gym.tracking.settings.RewardSettings`, or the signature.

    Raises:
        ValueError: sub-environments whose outermost wrapper is not `FrameCapture`, a vector
            wrapper between them and this, a setting out of range, a camera that the env does not
            have, an empty task; at step, a wrong number of actions.
        TypeError: an environment or a setting of the wrong kind, or an unknown setting.
        ResetNeeded: `step` before `reset`, after an error, or while an ended episode waits for
            its reset.
        SubEnvironmentError: at reset and step, an environment raised, gave a bad frame, or its
            worker died. All episodes are over then.
        CheckpointError: at the first reset, a model that cannot be loaded.
        RewardModelError: predictions of the model that are invalid; the episodes are over, too.
        NotImplementedError: `compute_reward`, for HER's relabeled goals.

    Example:
        >>> from robometer_gym.testing import CountingEnv, ScriptedRewardModel
        >>> from gymnasium.vector import SyncVectorEnv
        >>> from robometer_gym import FrameCapture
        >>> envs = RobometerVectorRewardWrapper(
        ...     SyncVectorEnv([lambda: FrameCapture(CountingEnv())] * 2),
        ...     task="push the block",
        ...     reward_model=ScriptedRewardModel(progress=[0.0, 0.0, 0.25, 0.5]),
        ...     predict_every=1,
        ... )
        >>> _ = envs.reset(seed=0)
        >>> envs.step(envs.action_space.sample())[1].tolist()
        [0.25, 0.5]
    """

    compute_reward = refuse_compute_reward

    def __init__(
        self,
        env: VectorEnv[Any, Any, NDArray[Any]],
        task: str | Sequence[str],
        reward_model: RewardModelLike = DEFAULT_REWARD_MODEL,
        **settings: Unpack[RewardOptions],
    ) -> None:
        check_kind(env, "gymnasium.vector.VectorEnv")
        if find_tracker(env) is not None:
            raise ValueError("These environments are in a RobometerVectorRewardWrapper already.")
        if isinstance(env, VectorWrapper):
            raise ValueError(
                "RobometerVectorRewardWrapper goes directly around SyncVectorEnv or "
                f"AsyncVectorEnv, got {type(env).__name__}: rewards and resets would go past it. "
                "Put it outside."
            )
        chosen = read_settings(RobometerVectorRewardWrapper, settings)
        self._tasks = check_tasks(task, env.num_envs)
        self._reward_model = LazyRewardModel.of(reward_model)
        self.tracker = EpisodeTracker(chosen, self._reward_model, env.num_envs)
        """Follows the episodes; `RecordTraces` and other listeners attach to it."""
        self._driver = make_driver(self.tracker)
        super().__init__(env)
        self._core: Any = env.unwrapped
        self._captures = CaptureReader()
        if not hasattr(self._core, "call"):
            raise ValueError(
                f"{self._core} has no sub-environments to capture frames in. Give a "
                "SyncVectorEnv or an AsyncVectorEnv, as make_robometer_vec does."
            )
        with report_dead_workers(self._core):
            begin_captures(self._core, self._core.call, chosen, send_rewards=False)
        self._resets_next_step = [False] * self.num_envs  # under NEXT_STEP, after an end

    @property
    def autoreset_mode(self) -> AutoresetMode:
        """The autoreset mode of the vector environment."""
        # Not from the metadata: in Gymnasium 1.1 all vector environments of a class share them.
        mode: AutoresetMode = self._core.autoreset_mode
        return mode

    @property
    def tasks(self) -> list[str]:
        """The instruction of each environment's current episode, or of its next."""
        return self.tracker.tasks(self._tasks)

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, Infos]:
        """Begin episodes and predict their baselines, in one batch.

        Args:
            seed: goes to the environments.
            options: goes to the environments; "task" is the instruction of the episodes that begin
                now, "reset_mask", (N,) bool, selects them; a wrong mask changes nothing.
        """
        options = dict(options or {})  # Gymnasium takes the mask out of it
        task = options.get("task")
        tasks = self._tasks if task is None else [check_task(task)] * self.num_envs
        if "reset_mask" in options:
            _check_mask(options["reset_mask"], self.num_envs)
        try:
            return self._reset(tasks, seed, options)
        except BaseException:
            self._end_all()
            raise

    def step(
        self, actions: Any
    ) -> tuple[Any, NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], Infos]:
        """Step all environments and compute their rewards; see the class for the infos.

        A wrong number of actions, or an environment that waits for its reset, raises before any
        environment has moved.
        """
        self._check_running()
        self._check_actions(actions)
        try:
            return self._step(actions)
        except BaseException:
            self._end_all()  # the other environments' steps are lost: all need a reset
            raise

    def _check_actions(self, actions: Any) -> None:
        batch = isinstance(actions, (np.ndarray, list))
        count = len(actions) if batch else len(list(iterate(self.action_space, actions)))
        if count != self.num_envs:
            raise ValueError(
                f"actions must hold one action for each of the {self.num_envs} environments; "
                f"got {count}."
            )

    def _check_running(self) -> None:
        for env in self.tracker.idle():
            if not self._resets_next_step[env]:
                raise ResetNeeded(
                    f"No episode is running in environment {env}: call reset() first. (An episode "
                    "also ends when success is detected, and all of them at an error; with "
                    'autoreset disabled, call reset(options={"reset_mask": ...}) for those.)'
                )

    def _end_all(self) -> None:
        self.tracker.close()
        self._resets_next_step = [False] * self.num_envs

    def _reset(self, tasks: Sequence[str], seed: Any, options: dict[str, Any]) -> tuple[Any, Infos]:
        self._reward_model.load()  # before the first frame is drawn
        with report_dead_workers(self._core):
            observations, infos = self.env.reset(seed=seed, options=options or None)
        starts = [
            self._captures.event(env, capture, tasks[env])
            for env, capture in take_captures(infos).items()
        ]
        outcomes = self._driver.advance(starts)
        updates = [(start.env, o.info) for start, o in zip(starts, outcomes, strict=True)]
        merge_env_infos(infos, updates, self.num_envs)
        return observations, infos

    def _step(
        self, actions: Any
    ) -> tuple[Any, NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], Infos]:
        with report_dead_workers(self._core):
            observations, rewards, terminations, truncations, infos = self.env.step(actions)
        ends = list(zip(terminations.tolist(), truncations.tolist(), strict=True))
        final_info = infos.get("final_info", {})  # under SAME_STEP, of the last steps
        events = self._final_events(final_info, ends)
        num_final = len(events)
        events += self._current_events(infos, rewards.tolist(), ends)
        outcomes = self._driver.advance(events)
        ended_by_model = []  # these sub-environments themselves would go on
        for event, outcome in zip(events, outcomes, strict=True):
            if isinstance(event, Step):
                rewards[event.env] = outcome.reward
                if outcome.terminated and not event.terminated:
                    terminations[event.env] = True
                    if not event.truncated:
                        ended_by_model.append(event.env)
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            self._resets_next_step = (terminations | truncations).tolist()
        updates = [(event.env, o.info) for event, o in zip(events, outcomes, strict=True)]
        if num_final:
            merge_env_infos(final_info, updates[:num_final], self.num_envs)
        merge_env_infos(infos, updates[num_final:], self.num_envs)
        if ended_by_model:
            observations, infos = self._end_episodes(ended_by_model, observations, infos)
        return observations, rewards, terminations, truncations, infos

    def _final_events(self, final_info: Infos, ends: Sequence[tuple[bool, bool]]) -> list[Event]:
        """Return the last steps of episodes whose environments have been reset already."""
        successes = read_true_successes(final_info, self.num_envs)
        return [
            self._captures.event(env, capture, "", *ends[env], successes[env])
            for env, capture in take_captures(final_info).items()
        ]

    def _current_events(
        self, infos: Infos, rewards: Sequence[float], ends: Sequence[tuple[bool, bool]]
    ) -> list[Event]:
        """Return one event per environment; a step without a frame needs no capture."""
        captures = take_captures(infos)
        successes = read_true_successes(infos, self.num_envs)
        return [
            self._captures.event(env, captures[env], self._tasks[env], *ends[env], successes[env])
            if env in captures
            else Step(env, reward, False, False, None, successes[env])
            for env, reward in enumerate(rewards)
        ]

    def _end_episodes(
        self, envs: Sequence[int], observations: Any, infos: Infos
    ) -> tuple[Any, Infos]:
        """Reset sub-environments whose episodes the model has ended, as the mode demands."""
        mask = np.zeros(self.num_envs, np.bool_)
        mask[envs] = True
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            with report_dead_workers(self._core):
                self._core.set_attr("model_saw_success", mask.tolist())
        if self.autoreset_mode is not AutoresetMode.SAME_STEP:
            return observations, infos
        each = list(iterate(self.observation_space, observations))
        for env in envs:
            final = {"final_obs": deepcopy(each[env]), "final_info": take_env_infos(infos, env)}
            infos = self._add_info(infos, final, env)
        observations, reset_infos = self._reset(self._tasks, None, {"reset_mask": mask})
        for env in envs:
            infos = self._add_info(infos, take_env_infos(reset_infos, env), env)
        return observations, infos

    def close(self, **kwargs: Any) -> None:
        """End all episodes and close the environments; no worker stays behind."""
        self._driver.close()
        close_workers(self._core, partial(super().close, **kwargs))


def _check_mask(mask: Any, num_envs: int) -> None:
    """Raise for a mask that Gymnasium would refuse later, when running episodes are lost."""
    bools = isinstance(mask, np.ndarray) and mask.dtype == np.bool_
    if not (bools and mask.shape == (num_envs,) and mask.any()):
        raise (ValueError if bools else TypeError)(
            f"options['reset_mask'] must be a NumPy array of {num_envs} bools, at least one "
            f"of them True, such as np.array([...], bool); got {mask!r}."
        )
