"""VecRobometerReward: the rewards of a Stable-Baselines3 VecEnv from its cameras.

Passes the steps of a `VecEnv` to the EpisodeTracker as events and returns its outcomes. Knows
nothing of when a prediction is due or of how progress becomes a reward. `make_robometer_vec_env`
builds the whole stack, and `RobometerCallback` logs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
)
from typing_extensions import Unpack

from robometer_gym.models.loading import DEFAULT_REWARD_MODEL, LazyRewardModel, RewardModelLike
from robometer_gym.sb3.owed_steps import OwedSteps
from robometer_gym.tracking.background import make_driver
from robometer_gym.tracking.events import Event, Step, read_true_success
from robometer_gym.tracking.settings import (
    RewardOptions,
    expose_settings_in_signature,
    read_settings,
)
from robometer_gym.tracking.tracker import EpisodeTracker
from robometer_gym.validation import check_task, check_tasks
from robometer_gym.wrappers.env_kinds import (
    MONITOR_INSIDE,
    check_kind,
    env_factory,
    refuse_compute_reward,
)
from robometer_gym.wrappers.frame_capture import (
    CAPTURE,
    REWARD,
    CaptureReader,
    FrameCapture,
    SubEnvironmentError,
    begin_captures,
)
from robometer_gym.wrappers.worker_failures import close_workers, report_dead_workers

__all__ = ["VecRobometerReward", "make_robometer_vec_env"]

Infos = list[dict[str, Any]]


@expose_settings_in_signature
class VecRobometerReward(VecEnvWrapper):
    """Replaces or shapes the rewards from the cameras, and ends episodes at detected success.

    The same rewards, ends and infos as `RobometerRewardWrapper` gives for the same episodes.
    Predictions that are due at one step are made in one batch, by one model in this process; the
    new baseline after a detected success takes a second call. A detected success really resets
    its environment, and no other: `terminal_observation` is set and `TimeLimit.truncated` False,
    as at any true end.

    `make_robometer_vec_env` builds the whole stack. By hand: `FrameCapture` around each
    environment, `DummyVecEnv` or `SubprocVecEnv`, this, and everything else (`VecMonitor`,
    `VecNormalize`, `VecFrameStack`, ...) outside.

    Each environment's info has the entries that `RobometerRewardWrapper` describes; the baseline
    of an episode is in `reset_infos`. `set_options({"task": ...})` changes the task of the
    episodes that begin with the next `reset`.

    Args:
        venv: a `DummyVecEnv` or `SubprocVecEnv` whose environments are in `FrameCapture`.
        task: the robots' instruction, in words: one for all, or one for each environment.
        reward_model: see `RobometerRewardWrapper`. It lives in this process; workers have none.
        late: compute rewards after the step, in large batches: see `robometer_gym.sb3.LateRewards`.
            `step` returns 0.0 as a placeholder, and infos have `env_reward` only. Needs
            terminate_on_success=False: a verdict comes too late to end the episode.
        **settings: see `robometer_gym.tracking.settings.RewardSettings`, or the signature.

    Raises:
        ValueError: environments without `FrameCapture`, in a `Monitor` although detected success
            ends episodes, a wrapper between them and this, a setting out of range, a camera that
            the env does not have, an empty task; at step, a wrong number of actions.
        TypeError: an environment or a setting of the wrong kind, or an unknown setting.
        ResetNeeded: `step` before `reset`, or after an error.
        SubEnvironmentError: at reset and step, an environment raised, gave a bad frame, or its
            worker died. All episodes are over then.
        CheckpointError: at the first reset, a model that cannot be loaded.
        RewardModelError: predictions of the model that are invalid; the episodes are over, too.
        NotImplementedError: `compute_reward`, which HerReplayBuffer calls for relabeled goals.

    Example:
        >>> from robometer_gym.testing import CountingEnv, ScriptedRewardModel
        >>> venv = VecRobometerReward(
        ...     DummyVecEnv([lambda: FrameCapture(CountingEnv())] * 2),
        ...     task="push the block",
        ...     reward_model=ScriptedRewardModel(progress=[0.0, 0.0, 0.25, 0.5]),
        ...     predict_every=1,
        ... )
        >>> _ = venv.reset()
        >>> venv.step(np.array([0, 0]))[1].tolist()
        [0.25, 0.5]
    """

    def __init__(
        self,
        venv: VecEnv,
        task: str | Sequence[str],
        reward_model: RewardModelLike = DEFAULT_REWARD_MODEL,
        *,
        late: bool = False,
        **settings: Unpack[RewardOptions],
    ) -> None:
        check_kind(venv, "VecEnv of Stable-Baselines3")
        _check_venv(venv)
        super().__init__(venv)
        chosen = read_settings(VecRobometerReward, settings)
        if late and chosen.terminate_on_success:
            raise ValueError(
                "late=True needs terminate_on_success=False: success is detected after the "
                "rollout, too late to end the episode."
            )
        if chosen.terminate_on_success and any(venv.env_is_wrapped(Monitor)):
            raise ValueError(MONITOR_INSIDE)
        self._tasks = check_tasks(task, self.num_envs)
        self._next_tasks = self._tasks
        self._reward_model = LazyRewardModel.of(reward_model)
        self.tracker = EpisodeTracker(chosen, self._reward_model, self.num_envs)
        """Follows the episodes; `RecordTraces` and other listeners attach to it."""
        self._driver = make_driver(self.tracker)
        self.owed = OwedSteps(self.tracker) if late else None
        """The steps that the agent's buffer settles; None where rewards are not late."""
        self._captures = CaptureReader()
        rounds_rewards = isinstance(venv, DummyVecEnv)  # to single precision
        with report_dead_workers(venv):
            begin_captures(venv, venv.env_method, chosen, send_rewards=rounds_rewards)

    @property
    def tasks(self) -> list[str]:
        """The instruction of each environment's current episode, or of its next."""
        return self.tracker.tasks(self._next_tasks)

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Set the options of the next `reset`; "task" changes the instruction.

        Args:
            options: one dict for all environments, or one for each.
        """
        each = options if isinstance(options, list) else [options or {}] * self.num_envs
        if len(each) != self.num_envs:
            raise ValueError(
                f"options must be one dict, or one for each of the {self.num_envs} environments; "
                f"got {len(each)}."
            )
        self._next_tasks = [
            task if one.get("task") is None else check_task(one["task"])
            for task, one in zip(self._tasks, each, strict=True)
        ]
        super().set_options(options)

    def reset(self) -> Any:
        """Begin episodes in all environments and predict their baselines, in one batch."""
        self.tracker.close()  # also if an environment fails now
        self._reward_model.load()  # before the first frame is drawn
        with report_dead_workers(self.venv):
            observations = self.venv.reset()
        tasks, self._next_tasks = self._next_tasks, self._tasks
        self._begin(range(self.num_envs), self.venv.reset_infos, tasks)
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        """Start a step of all environments."""
        if idle := self.tracker.idle():
            raise ResetNeeded(
                f"No episode is running in environment {idle[0]}: call reset() first."
            )
        if len(actions) != self.num_envs:
            raise ValueError(
                f"actions must hold one action for each of the {self.num_envs} environments; "
                f"got {len(actions)}."
            )
        if self.owed is not None and not self.owed.connected:
            raise ValueError(
                "With late=True a buffer must settle the rewards, or the agent would train on "
                "placeholders: PPO(..., rollout_buffer_class=LateRolloutBuffer, "
                'rollout_buffer_kwargs={"late": LateRewards(venv)}), or SAC(..., '
                "replay_buffer_class=LateReplayBuffer, replay_buffer_kwargs=...). Algorithms "
                "that choose their buffer themselves (RecurrentPPO) need late=False."
            )
        with report_dead_workers(self.venv):
            self.venv.step_async(actions)

    def step_wait(self) -> tuple[Any, NDArray[np.float64], NDArray[np.bool_], Infos]:
        """Wait for the step and compute its rewards.

        Returns:
            observations, (N,) float64 rewards, (N,) dones, and infos.
        """
        try:
            return self._step()
        except BaseException:
            self.tracker.close()  # the other environments' steps are lost: all need a reset
            raise

    def _step(self) -> tuple[Any, NDArray[np.float64], NDArray[np.bool_], Infos]:
        with report_dead_workers(self.venv):
            observations, env_rewards, dones, env_infos = self.venv.step_wait()
        infos, ended = list(env_infos), dones.tolist()
        steps = [
            self._step_event(env, info, reward, done)
            for env, (info, reward, done) in enumerate(
                zip(infos, env_rewards.tolist(), ended, strict=True)
            )
        ]
        reset = [env for env, done in enumerate(ended) if done]
        starts = self._starts(reset, [self.venv.reset_infos[env] for env in reset], self._tasks)
        if self.owed is not None:
            self.owed.append([*steps, *starts], is_step=True)
            for step in steps:
                assert isinstance(step, Step)
                infos[step.env]["env_reward"] = step.reward
            return observations, np.zeros(self.num_envs), dones, infos
        outcomes = self._driver.advance([*steps, *starts])
        ended_by_model = []  # these environments themselves would go on
        for env, outcome in enumerate(outcomes[: self.num_envs]):
            infos[env].update(outcome.info)
            if outcome.terminated:
                infos[env]["TimeLimit.truncated"] = False  # also if success came with the limit
                if not ended[env]:
                    ended_by_model.append(env)
        for env, outcome in zip(reset, outcomes[self.num_envs :], strict=True):
            self.reset_infos[env].update(outcome.info)
        if ended_by_model:
            self._end_episodes(ended_by_model, observations, infos)
            dones[ended_by_model] = True
        rewards = np.array([outcome.reward for outcome in outcomes[: self.num_envs]])
        return observations, rewards, dones, infos

    def _step_event(self, env: int, info: dict[str, Any], reward: float, done: bool) -> Event:
        """Return one environment's event; a step without a frame needs no capture."""
        capture, success = info.pop(CAPTURE, None), read_true_success(info)
        if capture is None:
            return Step(env, float(info.pop(REWARD, reward)), False, False, None, success)
        truncated = info["TimeLimit.truncated"]
        terminated = done and not truncated
        return self._captures.event(env, capture, "", terminated, truncated, success)

    def _starts(
        self, envs: Sequence[int], infos: Sequence[dict[str, Any]], tasks: Sequence[str]
    ) -> list[Event]:
        """Keep the infos of resets, and return the starts of the episodes."""
        starts = []
        for env, info in zip(envs, infos, strict=True):
            self.reset_infos[env] = dict(info)
            capture = self.reset_infos[env].pop(CAPTURE)
            starts.append(self._captures.event(env, capture, tasks[env]))
        return starts

    def _begin(
        self, envs: Sequence[int], infos: Sequence[dict[str, Any]], tasks: Sequence[str]
    ) -> None:
        starts = self._starts(envs, infos, tasks)
        if self.owed is not None:
            self.owed.append(starts, is_step=False)
            return
        outcomes = self._driver.advance(starts)
        for env, outcome in zip(envs, outcomes, strict=True):
            self.reset_infos[env].update(outcome.info)

    def _end_episodes(self, envs: Sequence[int], observations: Any, infos: Infos) -> None:
        """Reset environments whose episodes the model has ended, as a VecEnv does."""
        with report_dead_workers(self.venv):
            resets = self.venv.env_method("reset", indices=envs)
        for env, (observation, _) in zip(envs, resets, strict=True):
            infos[env]["terminal_observation"] = _replace_observation(
                observations, env, observation
            )
        self._begin(envs, [info for _, info in resets], self._tasks)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of environments; see `VecEnv.env_method`. HER's is refused."""
        if method_name == "compute_reward":  # before a worker process dies of it
            refuse_compute_reward()
        return super().env_method(method_name, *method_args, indices=indices, **method_kwargs)

    def close(self) -> None:
        """End all episodes and close the environments; no worker stays behind."""
        self._driver.close()
        if self.owed is not None:
            self.owed.close()
        close_workers(self.venv, super().close)


def _check_venv(venv: VecEnv) -> None:
    """Raise for a VecEnv whose resets, workers or last frames would go wrong."""
    if isinstance(venv, VecEnvWrapper):
        raise ValueError(
            f"VecRobometerReward goes directly around DummyVecEnv or SubprocVecEnv, got "
            f"{type(venv).__name__}: an episode that ends because the model saw success would be "
            "reset past it. Put it outside."
        )
    if any(type(process).__name__ == "ForkProcess" for process in getattr(venv, "processes", ())):
        raise ValueError(
            "SubprocVecEnv(..., start_method='fork') would wait for ever if a worker died: each "
            "worker holds the pipes of others open. Use 'forkserver', SB3's default, or 'spawn'."
        )


def _replace_observation(observations: Any, env: int, new: Any) -> Any:
    """Put one environment's observation into those of all; return the old one."""
    if isinstance(observations, dict):
        return {
            key: _replace_observation(of_all, env, new[key]) for key, of_all in observations.items()
        }
    if isinstance(observations, tuple):
        return tuple(
            _replace_observation(of_all, env, part)
            for of_all, part in zip(observations, new, strict=True)
        )
    old = observations[env].copy()
    observations[env] = new
    return old


@expose_settings_in_signature
def make_robometer_vec_env(
    env_id: str | Callable[..., gym.Env[Any, Any]],
    task: str | Sequence[str],
    n_envs: int = 1,
    reward_model: RewardModelLike = DEFAULT_REWARD_MODEL,
    *,
    seed: int | None = None,
    env_kwargs: dict[str, Any] | None = None,
    vec_env_cls: type[DummyVecEnv] | type[SubprocVecEnv] = DummyVecEnv,
    vec_env_kwargs: dict[str, Any] | None = None,
    wrapper_class: Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]] | None = None,
    monitor_file: str | None = None,
    late: bool = False,
    **settings: Unpack[RewardOptions],
) -> VecMonitor:
    """Make a VecEnv for Stable-Baselines3 with model rewards, every wrapper in its place.

    As SB3's `make_vec_env`. From the inside: the environment, `wrapper_class`, `FrameCapture`, the
    VecEnv, `VecRobometerReward`, `VecMonitor` (so that `rollout/ep_rew_mean`, `evaluate_policy` and
    `EvalCallback` see our rewards and ends).

    Args:
        env_id: an id, or a function or class that makes an environment.
        task: see `VecRobometerReward`.
        n_envs: number of environments.
        reward_model: see `VecRobometerReward`.
        seed: of the first environment and its action space; the next has the next one.
        env_kwargs: for `gym.make`, or for the function. An id is made with
            render_mode="rgb_array" unless they set another one.
        vec_env_cls: DummyVecEnv steps them one after the other, SubprocVecEnv in processes.
        vec_env_kwargs: for `vec_env_cls`: `start_method`.
        wrapper_class: applied to each environment.
        monitor_file: file in which `VecMonitor` logs episodes, or None.
        late: see `VecRobometerReward`.
        **settings: see `robometer_gym.tracking.settings.RewardSettings`.

    Raises:
        ValueError: see `VecRobometerReward`.
        TypeError: a finished environment; an unknown setting.
        SubEnvironmentError: a worker process could not make its environment.

    Example:
        >>> from robometer_gym.testing import CountingEnv, ScriptedRewardModel
        >>> model = ScriptedRewardModel(progress=lambda clip: clip.steps[-1] / 8)
        >>> kwargs = {"lengths": [4]}
        >>> venv = make_robometer_vec_env(CountingEnv, "push it", 2, model, env_kwargs=kwargs)
        >>> _ = venv.reset()
        >>> infos = [venv.step(np.array([0, 0]))[3] for _ in range(4)][-1]
        >>> float(infos[0]["episode"]["r"])
        0.5
    """
    check_tasks(task, n_envs)
    read_settings(make_robometer_vec_env, settings)  # before an environment is made
    make = env_factory(env_id, env_kwargs)

    def captured(rank: int) -> gym.Env[Any, Any]:
        env = make()
        if seed is not None:
            env.action_space.seed(seed + rank)
        return FrameCapture(env if wrapper_class is None else wrapper_class(env))

    makers: list[Callable[[], gym.Env[Any, Any]]] = [
        partial(captured, rank) for rank in range(n_envs)
    ]
    try:
        venv = vec_env_cls(makers, **(vec_env_kwargs or {}))
    except (EOFError, ConnectionError) as error:  # SubprocVecEnv reports no more
        raise SubEnvironmentError(
            "An environment could not be made in its worker process; its exception went to its "
            "standard error. vec_env_cls=DummyVecEnv would raise it here."
        ) from error
    try:
        venv.seed(seed)
        rewarded = VecRobometerReward(venv, task, reward_model, late=late, **settings)
    except BaseException:
        venv.close()
        raise
    return VecMonitor(rewarded, monitor_file)
