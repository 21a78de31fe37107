"""evaluate: roll out a policy and compare the reward model with the environment's own success.

Everything is read from the traces of the episodes, so wrappers outside the reward wrapper change
no number. Knows nothing of plots, and only `env_adapters` knows the kinds of environment.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from robometer_gym.evaluation.env_adapters import EvalEnv, adapt_env
from robometer_gym.evaluation.env_changes import freeze_statistics, hold_successes
from robometer_gym.evaluation.policies import Act, check_action, make_actor, policy_name
from robometer_gym.evaluation.provenance import describe_model, library_versions
from robometer_gym.evaluation.report import Report
from robometer_gym.models.loading import LazyRewardModel
from robometer_gym.reward_model import Frame, model_name
from robometer_gym.tracking.recorder import TraceRecorder
from robometer_gym.tracking.trace import EpisodeTrace
from robometer_gym.validation import check_count

__all__ = ["EvaluationInterrupted", "evaluate"]

logger = logging.getLogger(__name__)

_LONG = 1000  # steps of an episode; few environments take more


class EvaluationInterrupted(KeyboardInterrupt):
    """Ctrl-C during an evaluation; `report` is of the episodes that had ended by then."""

    def __init__(self, report: Report) -> None:
        super().__init__(f"interrupted after {len(report.episodes)} episodes")
        self.report = report


def evaluate(
    env: Any,
    policy: Any,
    episodes: int = 10,
    seed: int = 0,
    *,
    hold: int = 0,
    every_frame: bool = False,
    on_episode: Callable[[EpisodeTrace], None] | None = None,
    progress_bar: bool = False,
) -> Report:
    """Roll out a policy, and compare the reward model's success with the environment's own.

    Rewards are those of the reward wrapper, whatever wrapper outside changes them, and the running
    means of `VecNormalize` and of Gymnasium's normalizing wrappers stay as they are. Of N
    environments each gives its share of the episodes, as in SB3's `evaluate_policy`: if the first
    to end counted, short episodes would be overrepresented. Frames stay in memory, at predictions
    only: at reset, every `predict_every` steps and at the end. A hundred episodes of 20 predictions
    at 320x240 are half a gigabyte. An episode of more than 1000 steps is warned of: one without an
    end is waited for.

    Args:
        env: anything with one of the three reward wrappers in its stack: a `gymnasium.Env`, a
            `gymnasium.vector.VectorEnv` or a VecEnv of Stable-Baselines3. It is not closed; reset
            it before you continue with it.
        policy: a model of Stable-Baselines3, which acts without its noise; or a function from an
            observation to an action, for vector environments from a batch to a batch; or
            "random", which samples the action space.
        episodes: how many in all, >= 1.
        seed: >= 0. Episode k of a scalar environment is reset with seed + k, and the actions of
            "random" are drawn from the same. Environment i of several begins with seed + i, and
            everything that follows is drawn from that.
        hold: >= 0. Where the environment ends an episode with success, let it run this many steps
            longer, so that the success detector has the predictions that it needs; scalar
            environments only, see `HoldSuccess`.
        every_frame: render and keep the frame of every step, for a smoother video; scalar
            environments only.
        on_episode: called with each episode as it ends.
        progress_bar: show one on a terminal.

    Raises:
        TypeError: `env` or `policy` is of another kind.
        ValueError: no reward wrapper in the stack, no episodes, a negative seed, an action of the
            wrong shape, `hold` or `every_frame` with a vector environment.
        EvaluationInterrupted: Ctrl-C after the first episode has ended; it holds their report.
        Exception: whatever environment, policy and model raise.

    Example:
        >>> from robometer_gym import RobometerRewardWrapper
        >>> from robometer_gym.testing import CountingEnv, ScriptedRewardModel
        >>> env = RobometerRewardWrapper(
        ...     CountingEnv(lengths=[10], success=[True, False]),
        ...     task="open the drawer",
        ...     reward_model=ScriptedRewardModel(progress=0.5, success=0.9),
        ... )
        >>> report = evaluate(env, "random", episodes=4)
        >>> [(episode.num_steps, episode.detected_step) for episode in report.episodes]
        [(5, 5), (5, 5), (5, 5), (5, 5)]
        >>> report.totals.false_success_rate
        1.0
    """
    episodes = check_count("episodes", episodes)
    seed = check_count("seed", seed, minimum=0)
    hold = check_count("hold", hold, minimum=0)
    adapter = adapt_env(env)
    if (hold or every_frame) and not isinstance(env, gym.Env):
        raise ValueError(
            "hold and every_frame need a scalar environment: the sub-environments of a vector "
            "environment cannot be reached. Wrap each of them in HoldSuccess when it is made."
        )
    act = make_actor(policy, adapter, seed)
    if isinstance(adapter.tracker.reward_model, LazyRewardModel):
        adapter.tracker.reward_model.load()  # or it would count as time of the loop
    innermost = _innermost(env)
    collector = _Collector(adapter, episodes, innermost.metadata.get("render_fps"), on_episode)
    recorder = TraceRecorder(
        adapter.tracker, collector.ended.append, frames=None if every_frame else "predictions"
    )
    started = time.perf_counter()
    bar = tqdm(total=episodes, unit="episode", leave=False, disable=None if progress_bar else True)
    interrupted = None
    try:
        with recorder, hold_successes(env, hold), freeze_statistics(env), bar:
            render = env.render if every_frame else None
            for _ in _roll_out(adapter, act, seed, render, collector):
                bar.set_postfix(steps=recorder.steps, refresh=False)
                bar.update(len(collector.done) - bar.n)
    except KeyboardInterrupt as error:
        if not collector.done:
            raise
        interrupted = error
    model = adapter.tracker.reward_model
    report = Report(
        env=_env_name(innermost),
        policy=policy_name(policy),
        reward_model=model_name(model),
        checkpoint=describe_model(model),
        seed=seed,
        num_envs=adapter.num_envs,
        settings=adapter.tracker.settings,
        versions=library_versions(),
        episodes=tuple(sorted(collector.done, key=lambda trace: trace.env)),
        env_steps=recorder.steps,
        seconds=time.perf_counter() - started,
        model_seconds=recorder.seconds,
    )
    _warn_of_undecided(report)
    if interrupted is not None:
        raise EvaluationInterrupted(report) from interrupted
    return report


class _Collector:
    """The finished episodes: of each environment its share, with seeds and frames."""

    def __init__(
        self,
        env: EvalEnv,
        episodes: int,
        fps: float | None,
        on_episode: Callable[[EpisodeTrace], None] | None,
    ) -> None:
        self.ended: list[EpisodeTrace] = []
        """Receives the trace of every episode as it ends; `collect` takes them out."""
        self.done: list[EpisodeTrace] = []
        self.frames: list[Frame] = []
        """Every frame of the episode that runs; empty where those at predictions are kept."""
        self._env, self._fps, self._on_episode = env, fps, on_episode
        self._missing = [(episodes + i) // env.num_envs for i in range(env.num_envs)]
        self._seeds: dict[tuple[int, int], int | None] = {}

    @property
    def complete(self) -> bool:
        return not any(self._missing)

    def begin(self, first: NDArray[np.bool_]) -> None:
        """Note the seeds of episodes that have just begun."""
        for env in np.flatnonzero(first).tolist():
            self._seeds[env, self._env.tracker.episode(env)] = self._env.seeds[env]

    def collect(self) -> None:
        """Take the episodes that have ended, as many as are missing."""
        while self.ended:
            trace = self.ended.pop(0)
            key = trace.env, trace.episode
            if key not in self._seeds or not self._missing[trace.env]:
                continue
            self._missing[trace.env] -= 1
            trace = replace(trace, seed=self._seeds.pop(key), fps=self._fps)
            if self.frames:
                steps = tuple(range(len(self.frames)))
                trace = replace(trace, frames=tuple(self.frames), frame_steps=steps)
            self.done.append(trace)
            if self._on_episode is not None:
                self._on_episode(trace)


def _roll_out(
    env: EvalEnv,
    act: Act,
    seed: int,
    render: Callable[[], Any] | None,
    collector: _Collector,
) -> Iterator[None]:
    """Step until every environment has given its share; yield after each step."""
    warned = False
    observation, first = env.reset(seed), np.ones(env.num_envs, bool)
    while True:
        collector.begin(first)
        if render and first.any():
            collector.frames = [np.array(render(), np.uint8)]
        action = act(observation, first)
        check_action(action, env)
        observation = env.step(action)
        if render:
            collector.frames.append(np.array(render(), np.uint8))
        collector.collect()
        yield
        if collector.complete:
            return
        observation, first = env.begin(observation)
        collector.collect()  # a wrapper outside may have ended one: its trace ends with the reset
        if collector.complete:
            return
        if not warned:
            warned = _warn_of_long_episode(env)


def _warn_of_long_episode(env: EvalEnv) -> bool:
    """Explain why nothing seems to happen: each episode is waited for."""
    for number in range(env.num_envs):
        if env.tracker.running(number) and env.tracker.steps(number) >= _LONG:
            logger.warning(
                "An episode of environment %d continues after %d steps, and is waited for. If it "
                "has no end, give it one: gym.make(..., max_episode_steps=...), or TimeLimit "
                "inside the reward wrapper.",
                number,
                _LONG,
            )
            return True
    return False


def _warn_of_undecided(report: Report) -> None:
    undecided, successes = report.totals.undecided, report.totals.true_successes
    if undecided:
        logger.warning(
            "%d of %d successful episodes ended before the detector could decide: it needs %d "
            "predictions of success, and recall counts these episodes as missed. Let them run on "
            "(hold=, or --hold N), predict more often, or look at the verdict of the last frame.",
            undecided,
            successes,
            report.settings.success_votes,
        )


def _innermost(env: Any) -> Any:
    """Return the environment that knows its id; of several, the first of this process."""
    sub_envs = getattr(env.unwrapped, "__dict__", {}).get("envs")
    if isinstance(sub_envs, list | tuple) and sub_envs:
        return sub_envs[0].unwrapped
    return env.unwrapped


def _env_name(env: Any) -> str:
    spec = getattr(env, "spec", None)  # a VecEnv has none
    return spec.id if spec else type(env).__name__
