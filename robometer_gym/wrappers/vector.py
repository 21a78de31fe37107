"""RobometerVectorRewardWrapper: the reward of many Gymnasium environments from their cameras.

Brings the EpisodeTracker what `gymnasium.vector` says, in each of its autoreset modes, and takes
back what it decides. Knows nothing of when a prediction is due or of how progress becomes a reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import cloudpickle
import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import (
    AsyncVectorEnv,
    AutoresetMode,
    SyncVectorEnv,
    VectorEnv,
    VectorWrapper,
)
from gymnasium.vector.utils import iterate
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from numpy.typing import NDArray
from typing_extensions import Unpack

from robometer_gym.models.loading import DEFAULT_REWARD_MODEL, LazyRewardModel, RewardModelLike
from robometer_gym.tracking.events import Event, Step
from robometer_gym.tracking.settings import (
    RewardOptions,
    RewardSettings,
    expose_settings_in_signature,
    read_settings,
)
from robometer_gym.tracking.tracker import EpisodeTracker
from robometer_gym.validation import check_task, check_tasks
from robometer_gym.wrappers.env_kinds import check_kind, env_maker
from robometer_gym.wrappers.frame_capture import Capture, Captures, FrameCapture
from robometer_gym.wrappers.vector_infos import (
    Infos,
    merge_env_infos,
    read_true_successes,
    take_captures,
    take_one,
)
from robometer_gym.wrappers.worker_failures import close_workers, naming_dead_workers

__all__ = ["RobometerVectorRewardWrapper", "make_robometer_vec"]

if TYPE_CHECKING:
    _VectorWrapper = VectorWrapper[Any, Any, Any, Any, NDArray[Any]]
else:
    _VectorWrapper = VectorWrapper  # takes no types in Gymnasium 1.1


@expose_settings_in_signature
class RobometerVectorRewardWrapper(_VectorWrapper):
    """Pays the agents from their cameras, and ends each episode where it sees success.

    The same rewards, ends and infos as `RobometerRewardWrapper` gives for the same episodes, in
    every autoreset mode. Predictions that are due at one step are made in one batch, by one model
    in this process. (Where a verdict of the model resets an environment in the same step, its new
    baseline takes a second call.)

    Where an episode ends because the model saw success, that sub-environment is really reset, and
    no other: at the next step under NEXT_STEP, where its action is ignored and 0.0 is paid; in the
    same step under SAME_STEP, with `final_obs` and `final_info`; by you under DISABLED, with
    `reset(options={"reset_mask": ...})`. The reset transition is never scored.

    `make_robometer_vec` builds the whole stack. By hand: `FrameCapture` around each
    sub-environment, this outside, `gymnasium.wrappers.vector.RecordEpisodeStatistics` outside this.

    `infos` has what `RobometerRewardWrapper` describes, as arrays (N,) with a mask beside each, as
    Gymnasium does; under SAME_STEP the last step's are in `infos["final_info"]`. A
    `reset(options={"task": ...})` changes the task of the episodes that begin with it.

    Args:
        env: a `SyncVectorEnv` or `AsyncVectorEnv` whose sub-environments are in `FrameCapture`.
        task: what the robots should do, in words: one for all, or one for each environment.
        reward_model: see `RobometerRewardWrapper`. It lives in this process; workers have none.
        **settings: see `robometer_gym.tracking.settings.RewardSettings`, or the signature.

    Raises:
        ValueError: sub-environments without `FrameCapture`, one that is wrapped already, a setting
            out of range, a camera that the env does not have, an empty task.
        TypeError: an environment or a setting of the wrong kind, or a setting that is none.
        ResetNeeded: `step` before `reset`, or after an error, or where an episode has ended and
            nobody resets it.
        SubEnvironmentError: at reset and step, an environment raised, gave a bad frame, or its
            worker died. All episodes are over then.
        CheckpointError: at the first reset, a model that cannot be loaded.
        RewardModelError: an answer of the model that is no prediction; the episodes are over, too.

    Example:
        >>> from robometer_gym.testing import CountingEnv, ScriptedRewardModel
        >>> envs = RobometerVectorRewardWrapper(
        ...     gym.vector.SyncVectorEnv([lambda: FrameCapture(CountingEnv())] * 2),
        ...     task="push the block",
        ...     reward_model=ScriptedRewardModel(progress=[0.0, 0.0, 0.25, 0.5]),
        ...     predict_every=1,
        ... )
        >>> _ = envs.reset(seed=0)
        >>> envs.step(envs.action_space.sample())[1].tolist()
        [0.25, 0.5]
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, NDArray[Any]],
        task: str | Sequence[str],
        reward_model: RewardModelLike = DEFAULT_REWARD_MODEL,
        **settings: Unpack[RewardOptions],
    ) -> None:
        check_kind(env, "gymnasium.vector.VectorEnv")
        _check_unwrapped(env)
        chosen = read_settings(RobometerVectorRewardWrapper, settings)
        self._tasks = check_tasks(task, env.num_envs)
        self._reward_model = LazyRewardModel.of(reward_model)
        self.tracker = EpisodeTracker(chosen, self._reward_model, env.num_envs)
        """Follows the episodes; `RecordTraces` and other listeners attach to it."""
        super().__init__(env)
        self._core: Any = env.unwrapped
        self._captures = Captures()
        self._begin_capture(chosen)
        # Not from the metadata: in Gymnasium 1.1 all vector environments of a class share them.
        self._mode: AutoresetMode = self._core.autoreset_mode  # type: ignore[attr-defined]
        self._begins_next = [False] * self.num_envs  # under NEXT_STEP, where an episode has ended

    def _begin_capture(self, settings: RewardSettings) -> None:
        """Tell the inner wrappers which frames are wanted."""
        if not hasattr(self._core, "call"):
            raise ValueError(
                f"{self._core} has no sub-environments whose frames could be taken. Give a "
                "SyncVectorEnv or an AsyncVectorEnv, as make_robometer_vec does."
            )
        with naming_dead_workers(self._core):
            captured = self._core.call("has_wrapper_attr", "begin_capture")
            if not all(captured):
                raise ValueError(
                    "Each sub-environment must be in a FrameCapture, or its last frame would be "
                    "lost: gym.make_vec(..., wrappers=[FrameCapture]), or make_robometer_vec."
                )
            problems = self._core.call("begin_capture", cloudpickle.dumps(settings))
            if not hasattr(self._core, "processes"):
                self._core.set_attr("raises_as", list(range(self.num_envs)))
        for problem in problems:
            if problem is not None:
                raise ValueError(problem)

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
                now, and "reset_mask", (N,) bool, says which do; a wrong one changes nothing.
        """
        options = {} if options is None else dict(options)  # Gymnasium takes the mask out of it
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
        """Step all environments and pay for it; see the class for what `infos` holds."""
        self._check_running()
        try:
            return self._step(actions)
        except BaseException:
            self._end_all()  # what the others have done is lost: all begin anew
            raise

    def _check_running(self) -> None:
        """Refuse to step an environment that waits for its reset, before anything has moved."""
        for env in self.tracker.idle():
            if not self._begins_next[env]:
                raise ResetNeeded(
                    f"No episode is running in environment {env}: call reset() first. (An episode "
                    "also ends when success is detected, and all of them at an error; with "
                    'autoreset disabled, call reset(options={"reset_mask": ...}) for those.)'
                )

    def _end_all(self) -> None:
        self.tracker.close()
        self._begins_next = [False] * self.num_envs

    def _reset(
        self, tasks: Sequence[str], seed: int | list[int | None] | None, options: dict[str, Any]
    ) -> tuple[Any, Infos]:
        self._reward_model.load()  # before the first frame is drawn
        with naming_dead_workers(self._core):
            observations, infos = self.env.reset(
                seed=seed,  # type: ignore[arg-type] # a list will do, too
                options=options or None,
            )
        starts = [
            self._captures.event(env, said, tasks[env])
            for env, said in take_captures(infos).items()
        ]
        outcomes = self.tracker.advance(starts)
        told = [(start.env, o.info) for start, o in zip(starts, outcomes, strict=True)]
        merge_env_infos(infos, told, self.num_envs)
        return observations, infos

    def _step(
        self, actions: Any
    ) -> tuple[Any, NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], Infos]:
        with naming_dead_workers(self._core):
            observations, rewards, terminations, truncations, infos = self.env.step(actions)
        ended = list(zip(terminations.tolist(), truncations.tolist(), strict=True))
        # Under SAME_STEP what was said of the last step of an episode stands apart.
        final = infos.get("final_info", {})
        successes = read_true_successes(final, self.num_envs)
        events = [
            self._captures.event(env, said, "", *ended[env], successes[env])
            for env, said in take_captures(final).items()
        ]
        last = len(events)
        successes = read_true_successes(infos, self.num_envs)
        events += self._now(take_captures(infos), rewards.tolist(), ended, successes)
        outcomes = self.tracker.advance(events)
        saw_success = []  # where the sub-environment itself would go on
        for event, outcome in zip(events, outcomes, strict=True):
            if isinstance(event, Step):
                rewards[event.env] = outcome.reward
                if outcome.terminated and not event.terminated:
                    terminations[event.env] = True
                    if not event.truncated:
                        saw_success.append(event.env)
        if self._mode is AutoresetMode.NEXT_STEP:
            self._begins_next = (terminations | truncations).tolist()
        told = [(event.env, o.info) for event, o in zip(events, outcomes, strict=True)]
        if last:
            merge_env_infos(infos["final_info"], told[:last], self.num_envs)
        merge_env_infos(infos, told[last:], self.num_envs)
        if saw_success:
            observations, infos = self._end_episodes(saw_success, observations, infos)
        return observations, rewards, terminations, truncations, infos

    def _now(
        self,
        captures: dict[int, Capture],
        rewards: Sequence[float],
        ended: Sequence[tuple[bool, bool]],
        successes: Sequence[bool | None],
    ) -> list[Event]:
        """What has happened in each environment; nothing is said of a step without a frame."""
        return [
            self._captures.event(env, captures[env], self._tasks[env], *ended[env], successes[env])
            if env in captures
            else Step(env, reward, False, False, None, successes[env])
            for env, reward in enumerate(rewards)
        ]

    def _end_episodes(
        self, envs: Sequence[int], observations: Any, infos: Infos
    ) -> tuple[Any, Infos]:
        """Reset sub-environments that do not know that their episode is over."""
        mask = np.zeros(self.num_envs, np.bool_)
        mask[envs] = True
        if self._mode is AutoresetMode.NEXT_STEP:
            with naming_dead_workers(self._core):
                self._core.set_attr("model_saw_success", mask.tolist())
        if self._mode is not AutoresetMode.SAME_STEP:
            return observations, infos
        each = list(iterate(self.observation_space, observations))
        for env in envs:
            final = {"final_obs": deepcopy(each[env]), "final_info": take_one(infos, env)}
            infos = self._add_info(infos, final, env)
        observations, begun = self._reset(self._tasks, None, {"reset_mask": mask})
        for env in envs:
            infos = self._add_info(infos, take_one(begun, env), env)
        return observations, infos

    def close(self, **kwargs: Any) -> None:
        """End all episodes and close the environments; no worker stays behind."""
        self.tracker.close()
        close_workers(self._core, partial(super().close, **kwargs))


def _check_unwrapped(env: Any) -> None:
    """Refuse environments that are paid by a model already."""
    while isinstance(env, VectorWrapper):
        if isinstance(env, RobometerVectorRewardWrapper):
            raise ValueError("These environments are in a RobometerVectorRewardWrapper already.")
        env = env.env


def _check_mask(mask: Any, num_envs: int) -> None:
    """Refuse what Gymnasium would refuse, too, but while the running episodes can still go on."""
    bools = isinstance(mask, np.ndarray) and mask.dtype == np.bool_
    if not (bools and mask.shape == (num_envs,) and mask.any()):
        raise (ValueError if bools else TypeError)(
            f"options['reset_mask'] must be a NumPy array of {num_envs} bools, at least one "
            f"of them True, such as np.array([...], bool); got {mask!r}."
        )


@expose_settings_in_signature
def make_robometer_vec(
    env: str | gym.envs.registration.EnvSpec | Callable[..., gym.Env[Any, Any]],
    task: str | Sequence[str],
    num_envs: int = 1,
    reward_model: RewardModelLike = DEFAULT_REWARD_MODEL,
    *,
    vectorization_mode: Literal["sync", "async"] = "sync",
    env_kwargs: dict[str, Any] | None = None,
    vector_kwargs: dict[str, Any] | None = None,
    wrappers: Sequence[Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]] = (),
    **settings: Unpack[RewardOptions],
) -> RecordEpisodeStatistics[Any, Any]:
    """Make environments that are paid by a reward model, with everything in its right place.

    From the inside: the environment, `wrappers`, `FrameCapture`, the vector environment,
    `RobometerVectorRewardWrapper`, `RecordEpisodeStatistics` (so that it counts what is paid).

    Args:
        env: an id, a spec, or a function or class that makes an environment.
        task: see `RobometerVectorRewardWrapper`.
        num_envs: how many.
        reward_model: see `RobometerVectorRewardWrapper`.
        vectorization_mode: "sync" steps them one after the other, "async" in processes.
        env_kwargs: for `gym.make`, or for the function. An id is made with
            render_mode="rgb_array" unless they say otherwise.
        vector_kwargs: for `SyncVectorEnv` or `AsyncVectorEnv`: `autoreset_mode`, `context`, ...
        wrappers: applied to each environment, the first one innermost.
        **settings: see `robometer_gym.tracking.settings.RewardSettings`.

    Raises:
        ValueError: an unknown mode; see `RobometerVectorRewardWrapper` for the rest.
        TypeError: an environment that is made already; a setting that is none.

    Example:
        >>> from robometer_gym.testing import CountingEnv, ScriptedRewardModel
        >>> model = ScriptedRewardModel(progress=lambda clip: clip.steps[-1] / 8)
        >>> envs = make_robometer_vec(CountingEnv, "push it", 2, model, env_kwargs={"lengths": [4]})
        >>> _ = envs.reset(seed=0)
        >>> [envs.step([0, 0])[1].tolist() for _ in range(4)][-1]
        [0.5, 0.5]
    """
    if vectorization_mode not in ("sync", "async"):
        raise ValueError(
            f"vectorization_mode must be 'sync' or 'async', got {vectorization_mode!r}."
        )
    check_tasks(task, num_envs)
    read_settings(make_robometer_vec, settings)  # before an environment is made
    make = env_maker(env, env_kwargs)

    def captured() -> gym.Env[Any, Any]:
        single = make()
        for wrapper in wrappers:
            single = wrapper(single)
        return FrameCapture(single)

    kind = SyncVectorEnv if vectorization_mode == "sync" else AsyncVectorEnv
    envs = kind([captured] * num_envs, **(vector_kwargs or {}))
    try:
        paid = RobometerVectorRewardWrapper(envs, task, reward_model, **settings)
    except BaseException:
        envs.close()
        raise
    return RecordEpisodeStatistics(paid)
