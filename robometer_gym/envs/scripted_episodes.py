"""Attempts at TabletopReach, good and bad ones, as episodes to train on and to test with.

Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from robometer_gym.data.episodes import Episode, Outcome
from robometer_gym.envs.tabletop import REACH, SPEED, TASKS, TabletopReachEnv

__all__ = ["KINDS", "Kind", "make_attempt"]

Kind = Literal["expert", "stops", "wanders", "wrong_block", "misses"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Actions = Iterator[NDArray[np.floating[Any]]]

_NEAR = 0.2  # table units: closer than this the expert's hand is steady


def make_attempt(kind: Kind, seed: int, *, rest: int = 0) -> Episode:
    """Let somebody try, and keep every frame.

    - "expert" goes to the named block with a hand that shakes more or less, and succeeds.
    - "stops" sets out like an expert and stops on the way, or close by but beside the block:
      suboptimal.
    - "wanders" drifts about at random: a failure.
    - "wrong_block" goes to another block than the one that is named: a failure.
    - "misses" goes past the named block or beside it, and rests there, nearly on it: suboptimal.

    Args:
        kind: of attempt.
        seed: of the table, the task and the attempt.
        rest: how many steps the expert stays on the block after it has succeeded.

    Returns:
        An episode. Unless it is the expert's, its partial success is the share of the first
        distance to the named block that was covered at the end.

    Raises:
        ValueError: an unknown kind, or a rest for anybody but the expert.

    Example:
        >>> make_attempt("stops", seed=3)
        Episode(33 frames, 'move the gripper to the blue block', suboptimal)
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}.")
    if rest < 0 or (rest and kind != "expert"):
        raise ValueError(
            f"rest must be >= 0, and is the expert's alone; got {rest!r} for {kind!r}."
        )
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    env = TabletopReachEnv(render_mode="rgb_array")
    task = str(env.reset(seed=seed)[1]["task"])
    first = float(np.linalg.norm(env.offset))
    if kind == "expert":
        frames, done = _roll_out(env, _reach(env, rng), rest)
        assert done is not None, "an expert goes on until it succeeds"
        return Episode(frames, task, "successful", cutoff=(done + 1) / len(frames))
    if kind == "wrong_block":
        others = [other for other in TASKS if other != task]
        env.reset(seed=seed, options={"task": others[rng.integers(len(others))]})
        frames, _ = _roll_out(env, _reach(env, rng))
        return Episode(frames, task, "failure", partial_success=0.0)
    while True:
        env.reset(seed=seed)
        does = {"stops": _stop, "misses": _miss, "wanders": _wander}[kind]
        frames, done = _roll_out(env, does(env, rng))
        if done is None:
            break  # or it has succeeded by accident, and tries again
    covered = max(0.0, 1.0 - float(np.linalg.norm(env.offset)) / first)
    outcome: Outcome = "failure" if kind == "wanders" else "suboptimal"
    return Episode(frames, task, outcome, partial_success=covered)


def _roll_out(
    env: TabletopReachEnv, actions: Actions, rest: int = 0
) -> tuple[NDArray[np.uint8], int | None]:
    """Return all frames, and which of them was the first success, or None."""
    frames: list[Any] = [env.render()]
    done = None
    for action in actions:
        success = env.step(action)[4]["is_success"]
        frames.append(env.render())
        if success:
            done = len(frames) - 1
            break
    for _ in range(rest):
        env.step(env.expert_action())
        frames.append(env.render())
    return np.stack(frames), done


def _reach(env: TabletopReachEnv, rng: np.random.Generator) -> Actions:
    shake = rng.uniform(0.0, 0.6)
    while True:
        yield env.expert_action(noise=shake if np.linalg.norm(env.offset) > _NEAR else 0.0)


def _stop(env: TabletopReachEnv, rng: np.random.Generator) -> Actions:
    shake, way = rng.uniform(0.0, 0.6), env.offset
    if rng.random() < 0.5:
        way *= rng.uniform(0.2, 0.8)
    else:
        way += _aside(rng, 1.2, 3.5)
    yield from _go(env, env.offset - way, shake, rng)
    for _ in range(rng.integers(5, 25)):
        yield rng.normal(0.0, 0.5 * shake, 2)


def _miss(env: TabletopReachEnv, rng: np.random.Generator) -> Actions:
    yield from _go(env, _aside(rng, 1.1, 3.0), rng.uniform(0.0, 0.6), rng)
    for _ in range(rng.integers(5, 40)):
        yield np.zeros(2)


def _aside(rng: np.random.Generator, least: float, most: float) -> NDArray[np.float64]:
    """A way in any direction, `least` to `most` times as long as what is still on the block."""
    angle = rng.uniform(0.0, 2 * np.pi)
    return rng.uniform(least, most) * REACH * np.array([np.cos(angle), np.sin(angle)])


def _go(
    env: TabletopReachEnv, goal: NDArray[np.float64], shake: float, rng: np.random.Generator
) -> Actions:
    """Go where the named block is seen at the offset `goal`."""
    for _ in range(100):  # that may be beyond the table's edge
        ahead = env.offset - goal
        if np.linalg.norm(ahead) < SPEED:
            break
        yield ahead / max(float(np.linalg.norm(ahead)), 5 * SPEED) + rng.normal(0.0, shake, 2)


def _wander(env: TabletopReachEnv, rng: np.random.Generator) -> Actions:
    del env  # it does not look
    velocity = rng.normal(0.0, 1.0, 2)
    keeps, size = rng.uniform(0.5, 0.98), rng.uniform(0.5, 1.5)
    for _ in range(rng.integers(10, 80)):
        velocity = keeps * velocity + np.sqrt(1 - keeps**2) * rng.normal(0.0, size, 2)
        yield velocity
