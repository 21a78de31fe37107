"""Let a policy act, and see what the reward model makes of it: `evaluate`.

The environment's own success is the truth, where it tells one; what was paid and detected is
compared with it. Nothing is rendered for this: the frames are those that the model was shown.
Knows nothing of pictures, and of the kinds of environment only what `stages` says.
"""

from __future__ import annotations

import logging
import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, cast

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import robometer_gym
from robometer_gym.evaluation.env_adapters import Moment, Stage, layers, stage_of
from robometer_gym.evaluation.report import EvaluatedEpisode, Report
from robometer_gym.evaluation.scoring import Scores
from robometer_gym.reward_model import Clip, Frame, Prediction, RewardModelError, check_prediction
from robometer_gym.tracking.tracker import Stream
from robometer_gym.validation import check_count

__all__ = ["evaluate"]

logger = logging.getLogger(__name__)

_LONG = 1000  # steps of an episode; few environments take more

Act = Callable[[Any, NDArray[np.bool_]], Any]
"""From an observation, and (N,) bool where it is the first of an episode, to an action."""


def evaluate(
    env: Any, policy: Any, episodes: int = 10, seed: int = 0, *, progress_bar: bool = False
) -> Report:
    """Roll out a policy, and compare what the reward model says with what is true.

    Of N environments each gives its share of the episodes, as in SB3's `evaluate_policy`: were the
    first to end counted, short episodes would be overrepresented. The frames of the episodes stay
    in memory, at predictions only: at reset, every `predict_every` steps and at the end. A hundred
    episodes of 20 predictions at 320x240 are half a gigabyte. A warning tells of an
    episode that goes on after 1000 steps: one without an end is waited for.

    Args:
        env: anything with one of the three reward wrappers in its stack: a `gymnasium.Env`, a
            `gymnasium.vector.VectorEnv` or a VecEnv of Stable-Baselines3. It is not closed; reset
            it before you go on with it.
        policy: a model of Stable-Baselines3, which acts without its noise; or a function from an
            observation to an action, for vector environments from a batch to a batch; or
            "random", which samples the action space.
        episodes: how many in all, >= 1.
        seed: >= 0. Episode k of a scalar environment is reset with seed + k. Environment i of
            several begins with seed + i, and what follows is drawn from that. "random" has it too.
        progress_bar: show one on a terminal.

    Raises:
        TypeError: `env` or `policy` is nothing of the kind.
        ValueError: no reward wrapper in the stack, no episodes, a negative seed, an action of the
            wrong shape.
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
        >>> [(episode.steps, episode.detected) for episode in report.episodes]
        [(5, 5), (5, 5), (5, 5), (5, 5)]
        >>> report.totals.false_success_rate
        1.0
    """
    episodes = check_count("episodes", episodes)
    seed = check_count("seed", seed, minimum=0)
    stage = stage_of(env)
    act = _actor(policy, stage, seed)
    stage.tracker.load()  # or it would count as time of the loop
    witness = _Witness()
    stage.tracker.watchers.append(witness)
    began = time.perf_counter()
    try:
        done, steps = _roll_out(stage, act, episodes, seed, witness, progress_bar)
    finally:
        stage.tracker.watchers.remove(witness)
    seconds = time.perf_counter() - began
    innermost = _innermost(env)
    fps = innermost.metadata.get("render_fps")
    return Report(
        env=_name_of_env(innermost),
        policy=_name_of_policy(policy),
        reward_model=type(stage.tracker.model).__name__,
        seed=seed,
        num_envs=stage.num_envs,
        settings=stage.tracker.settings,
        versions=_versions(),
        episodes=tuple(tally.finished(fps) for tally in sorted(done, key=lambda t: t.env)),
        env_steps=steps,
        seconds=seconds,
        model_seconds=witness.seconds,
    )


def _roll_out(
    stage: Stage, act: Act, episodes: int, seed: int, witness: _Witness, progress_bar: bool
) -> tuple[list[_Tally], int]:
    """Return the finished episodes, and how many steps all environments made for them."""
    n = stage.num_envs
    missing = [(episodes + env) // n for env in range(n)]
    done: list[_Tally] = []
    steps, longest = 0, 0
    with tqdm(total=episodes, unit="episode", disable=None if progress_bar else True) as bar:
        observation, first = stage.reset(seed), np.ones(n, bool)
        tallies = [_Tally(stage, env) for env in range(n)]
        while True:
            action = act(observation, first)
            _check_action(action, stage)
            observation, moments = stage.step(action)
            for env, moment in enumerate(moments):
                if moment is None:
                    continue
                steps += 1
                tally = tallies[env]
                tally.add(moment, own=not moment.over or stage.tracker.reports_success(env))
                if moment.over:
                    tally.sight = witness.take(env, tally.number)
                    if missing[env]:
                        missing[env] -= 1
                        done.append(tally)
                        bar.update()
                elif longest < tally.steps:
                    longest = tally.steps
                    _warn_of_no_end(env, longest)
            if not any(missing):
                return done, steps
            observation, first = stage.begin(observation)
            for env in np.flatnonzero(first).tolist():
                tallies[env] = _Tally(stage, env)


def _warn_of_no_end(env: int, steps: int) -> None:
    """Say once why nothing comes: each episode is waited for."""
    if steps == _LONG:
        logger.warning(
            "An episode of environment %d goes on after %d steps, and is waited for. If it has no "
            "end, give it one: gym.make(..., max_episode_steps=...), or TimeLimit inside the "
            "reward wrapper.",
            env,
            steps,
        )


@dataclass
class _Sight:
    """What the model was shown of one episode, by its first camera, and what it said of it."""

    steps: list[int] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    progress: list[float] = field(default_factory=list)
    success: list[float] = field(default_factory=list)

    def scores(self, task: str, fps: float | None) -> Scores | None:
        """Return it as scores; None where nothing was seen."""
        if not self.steps:
            return None
        progress, success = (np.array(said, np.float32) for said in (self.progress, self.success))
        return Scores(task, np.array(self.steps), fps, progress, success)


class _Witness:
    """Is told of every call of the model, and keeps what belongs to the episodes that run."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._sights: dict[tuple[int, int], _Sight] = {}

    def __call__(
        self, clips: Sequence[Clip], predictions: Sequence[Prediction], seconds: float
    ) -> None:
        self.seconds += seconds
        asked = zip(clips, predictions, strict=True)
        for (env, episode), of_one in groupby(asked, lambda pair: _episode_of(pair[0])):
            # In one call an episode has one moment, so these are its cameras.
            pairs = list(of_one)
            try:
                for clip, prediction in pairs:
                    check_prediction(clip, prediction)
            except RewardModelError:
                continue  # raised elsewhere, or held where on_error says so: it counts for nothing
            sight = self._sights.setdefault((env, episode), _Sight())
            sight.steps.append((pairs[0][0].steps or (0,))[-1])
            sight.frames.append(pairs[0][0].images[-1])
            sight.progress.append(float(np.mean([said.progress[-1] for _, said in pairs])))
            sight.success.append(float(np.mean([said.success[-1] for _, said in pairs])))

    def take(self, env: int, episode: int) -> _Sight:
        """Give away what was seen of an episode that is over; nothing if every call failed."""
        return self._sights.pop((env, episode), _Sight())


class _Tally:
    """What one episode has come to so far."""

    def __init__(self, stage: Stage, env: int) -> None:
        self.env, self.seed = env, stage.seeds[env]
        self.number = stage.tracker.episode(env)
        self.task = stage.tracker.task(env)
        self.steps, self.paid, self.env_return = 0, 0.0, 0.0
        self.progress = math.nan
        self.detected: int | None = None
        self.true_success: int | None = None
        self.truth_known = False
        self.sight = _Sight()

    def add(self, moment: Moment, *, own: bool) -> None:
        """Count a step.

        Args:
            moment: what it came to.
            own: whether a success in its info is the environment's; at the end it may be the
                wrapper's.
        """
        info = moment.info
        self.steps += 1
        self.paid += moment.reward
        self.env_return += float(info["env_reward"])
        self.progress = float(info["robometer/progress"])
        if self.detected is None and info["robometer/success"]:
            self.detected = self.steps
        truth = info.get("is_success", info.get("success")) if own else None
        if truth is not None:
            self.truth_known = True
            if self.true_success is None and bool(truth):
                self.true_success = self.steps

    def finished(self, fps: float | None) -> EvaluatedEpisode:
        """Return the episode as the report has it."""
        return EvaluatedEpisode(
            env=self.env,
            seed=self.seed,
            task=self.task,
            steps=self.steps,
            paid=self.paid,
            env_return=self.env_return,
            final_progress=self.progress,
            detected=self.detected,
            true_success=self.true_success,
            truth_known=self.truth_known,
            scores=self.sight.scores(self.task, fps),
            frames=tuple(self.sight.frames),
        )


def _episode_of(clip: Clip) -> tuple[int, int]:
    stream = cast(Stream, clip.stream)
    return stream.env, stream.episode


def _actor(policy: Any, stage: Stage, seed: int) -> Act:
    """Return the policy as a function that remembers its own state."""
    if isinstance(policy, str):
        if policy != "random":
            raise ValueError(f"policy must be 'random', a model or a function, got {policy!r}.")
        sample = stage.sampler(seed)
        return lambda observation, _: sample(observation)
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
    return lambda observation, _: policy(observation)


def _check_action(action: Any, stage: Stage) -> None:
    """An environment might take the numbers that it finds, and no one would know."""
    if stage.shape is not None and np.shape(action) != stage.shape:
        each = f", one action for each of {stage.num_envs} environments" * (stage.num_envs > 1)
        raise ValueError(
            f"The policy's action must be of shape {stage.shape}{each}; got {np.shape(action)}."
        )


def _innermost(env: Any) -> Any:
    """The environment that knows its id; of several, the first, where it is in this process."""
    bottom = layers(env)[-1]
    several = vars(bottom).get("envs")
    return layers(several[0])[-1] if several else bottom


def _name_of_env(env: Any) -> str:
    spec = getattr(env, "spec", None)  # a VecEnv has none
    return spec.id if spec else type(getattr(env, "unwrapped", env)).__name__


def _name_of_policy(policy: Any) -> str:
    if isinstance(policy, str):
        return policy
    return str(getattr(policy, "__name__", type(policy).__name__))


def _versions() -> dict[str, str]:
    """Versions of what took part."""
    versions = {
        "python": platform.python_version(),
        "robometer_gym": robometer_gym.__version__,
        "gymnasium": gym.__version__,
        "numpy": np.__version__,
    }
    for name in ("torch", "transformers", "stable_baselines3"):
        module = sys.modules.get(name)  # what was not imported took no part
        if module is not None:
            versions[name] = str(module.__version__)
    return versions
