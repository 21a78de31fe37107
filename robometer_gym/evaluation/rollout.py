"""evaluate: roll out a policy and compare the reward model with the environment's own success.

Everything is read from the traces of the episodes, so wrappers outside the reward wrapper change
no number. Knows nothing of plots, and only `env_adapters` knows the kinds of environment.
"""

from __future__ import annotations

import logging
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import robometer_gym
from robometer_gym.evaluation.env_adapters import EvalEnv, adapt_env
from robometer_gym.evaluation.report import Report
from robometer_gym.models.loading import LazyRewardModel
from robometer_gym.reward_model import Frame, model_name
from robometer_gym.tracking.recorder import TraceRecorder
from robometer_gym.tracking.trace import EpisodeTrace
from robometer_gym.validation import check_count

__all__ = ["evaluate"]

logger = logging.getLogger(__name__)

_LONG = 1000  # steps of an episode; few environments take more

Act = Callable[[Any, NDArray[np.bool_]], Any]
"""From an observation, and (N,) bool where it is the first of an episode, to an action."""


def evaluate(
    env: Any,
    policy: Any,
    episodes: int = 10,
    seed: int = 0,
    *,
    every_frame: bool = False,
    on_episode: Callable[[EpisodeTrace], None] | None = None,
    progress_bar: bool = False,
) -> Report:
    """Roll out a policy, and compare the reward model's success with the environment's own.

    Rewards are those of the reward wrapper, whatever wrapper outside changes them. Of N
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
        every_frame: render and keep the frame of every step, for a smoother video; scalar
            environments only.
        on_episode: called with each episode as it ends.
        progress_bar: show one on a terminal.

    Raises:
        TypeError: `env` or `policy` is of another kind.
        ValueError: no reward wrapper in the stack, no episodes, a negative seed, an action of the
            wrong shape, `every_frame` with a vector environment.
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
    adapter = adapt_env(env)
    if every_frame and not isinstance(env, gym.Env):
        raise ValueError(
            "every_frame renders a scalar environment: a vector environment has already begun the "
            "next episode when it could be rendered. Leave it out, or evaluate one environment."
        )
    act = _make_actor(policy, adapter, seed)
    if isinstance(adapter.tracker.reward_model, LazyRewardModel):
        adapter.tracker.reward_model.load()  # or it would count as time of the loop
    innermost = _innermost(env)
    collector = _Collector(adapter, episodes, innermost.metadata.get("render_fps"), on_episode)
    recorder = TraceRecorder(
        adapter.tracker, collector.ended.append, frames=None if every_frame else "predictions"
    )
    started = time.perf_counter()
    bar = tqdm(total=episodes, unit="episode", disable=None if progress_bar else True)
    with recorder, bar:
        for _ in _roll_out(adapter, act, seed, env.render if every_frame else None, collector):
            bar.update(len(collector.done) - bar.n)
    return Report(
        env=_env_name(innermost),
        policy=_policy_name(policy),
        reward_model=model_name(adapter.tracker.reward_model),
        seed=seed,
        num_envs=adapter.num_envs,
        settings=adapter.tracker.settings,
        versions=_versions(),
        episodes=tuple(sorted(collector.done, key=lambda trace: trace.env)),
        env_steps=recorder.steps,
        seconds=time.perf_counter() - started,
        model_seconds=recorder.seconds,
    )


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
        _check_action(action, env)
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


def _make_actor(policy: Any, env: EvalEnv, seed: int) -> Act:
    """Return the policy as a function that keeps its own state."""
    if isinstance(policy, str):
        if policy != "random":
            raise ValueError(f"policy must be 'random', a model or a function, got {policy!r}.")
        sample = env.action_sampler(seed)
        return lambda observation, first: sample()
    if callable(getattr(policy, "predict", None)) and not isinstance(policy, type):
        state: Any = None

        def act(observation: Any, first: NDArray[np.bool_]) -> Any:
            nonlocal state
            action, state = policy.predict(
                observation, state=state, episode_start=first, deterministic=True
            )
            return action

        return act
    if not callable(policy) or isinstance(policy, type):
        raise TypeError(
            "policy must be a model of Stable-Baselines3, a function from an observation to an "
            f"action, or 'random'; got {policy!r}."
        )
    return lambda observation, first: policy(observation)


def _check_action(action: Any, env: EvalEnv) -> None:
    """Refuse an action of another shape: environments may take any part of it."""
    if env.action_shape is not None and np.shape(action) != env.action_shape:
        each = f", one action for each of {env.num_envs} environments" * (env.num_envs > 1)
        raise ValueError(
            f"The policy's action must be of shape {env.action_shape}{each}; "
            f"got {np.shape(action)}."
        )


def _innermost(env: Any) -> Any:
    """Return the environment that knows its id; of several, the first of this process."""
    several = vars(env.unwrapped).get("envs")
    return several[0].unwrapped if several else env.unwrapped


def _env_name(env: Any) -> str:
    spec = getattr(env, "spec", None)  # a VecEnv has none
    return spec.id if spec else type(env).__name__


def _policy_name(policy: Any) -> str:
    if isinstance(policy, str):
        return policy
    name = str(getattr(policy, "__name__", type(policy).__name__))
    return "function" if name == "<lambda>" else name


def _versions() -> dict[str, str]:
    """Return the versions of the libraries that take part: those that are imported."""
    versions = {
        "python": platform.python_version(),
        "robometer_gym": robometer_gym.__version__,
        "gymnasium": gym.__version__,
        "numpy": np.__version__,
    }
    for name in ("torch", "transformers", "stable_baselines3"):
        module = sys.modules.get(name)
        if module is not None:
            versions[name] = str(module.__version__)
    return versions
