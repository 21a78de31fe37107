"""Scripted episodes of TabletopReach: successes, near misses and failures, to train and test on.

Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from robometer_gym.data.episodes import Episode, Outcome
from robometer_gym.envs.tabletop import REACH, SPEED, TASKS, TabletopReachEnv
from robometer_gym.validation import check_count

__all__ = ["SCRIPTS", "Script", "make_scripted_episode"]

Script = Literal["expert", "stops", "wanders", "wrong_block", "misses"]
SCRIPTS: tuple[Script, ...] = get_args(Script)

Actions = Iterator[NDArray[np.floating[Any]]]

_NEAR = 0.2  # table units: closer than this the expert adds no noise


def make_scripted_episode(script: Script, seed: int, *, rest: int = 0) -> Episode:
    """Run one script in TabletopReach and keep every frame.

    - "expert" moves to the named block, with more or less noise, and succeeds.
    - "stops" starts like the expert and stops on the way, or close by but beside the block:
      suboptimal.
    - "wanders" moves at random: a failure.
    - "wrong_block" moves to a block other than the named one: a failure.
    - "misses" moves past the named block or beside it and rests there, just off it: suboptimal.

    Args:
        script: the behavior to run, one of `SCRIPTS`.
        seed: seed of the table, the task and the script.
        rest: number of steps, >= 0, for which the expert stays on the block after its success.

    Returns:
        An episode. For every script but "expert", its partial success is the share of the initial
        distance to the named block that was covered at the end.

    Raises:
        ValueError: an unknown script, a rest below 0, or a rest for a script other than "expert".

    Example:
        >>> make_scripted_episode("stops", seed=3)
        Episode(33 frames, 'move the gripper to the blue block', suboptimal)
    """
    if script not in SCRIPTS:
        raise ValueError(f"script must be one of {SCRIPTS}, got {script!r}.")
    if check_count("rest", rest, minimum=0) and script != "expert":
        raise ValueError(
            f"rest must be 0 for every script but 'expert', got {rest} for {script!r}."
        )
    rng = np.random.default_rng([seed, SCRIPTS.index(script)])
    env = TabletopReachEnv(render_mode="rgb_array")
    task = str(env.reset(seed=seed)[1]["task"])
    first_distance = float(np.linalg.norm(env.offset))
    if script == "expert":
        frames, success_index = _roll_out(env, _reach(env, rng), rest)
        assert success_index is not None, "the expert continues until it succeeds"
        return Episode(frames, task, "successful", cutoff=(success_index + 1) / len(frames))
    if script == "wrong_block":
        others = [other for other in TASKS if other != task]
        env.reset(seed=seed, options={"task": others[rng.integers(len(others))]})
        frames, _ = _roll_out(env, _reach(env, rng))
        return Episode(frames, task, "failure", partial_success=0.0)
    while True:
        env.reset(seed=seed)
        actions = {"stops": _stop, "misses": _miss, "wanders": _wander}[script]
        frames, success_index = _roll_out(env, actions(env, rng))
        if success_index is None:
            break  # otherwise it succeeded by accident: run it again
    covered = max(0.0, 1.0 - float(np.linalg.norm(env.offset)) / first_distance)
    outcome: Outcome = "failure" if script == "wanders" else "suboptimal"
    return Episode(frames, task, outcome, partial_success=covered)


def _roll_out(
    env: TabletopReachEnv, actions: Actions, rest: int = 0
) -> tuple[NDArray[np.uint8], int | None]:
    """Return all frames, and the index of the first successful one, or None."""
    frames: list[Any] = [env.render()]
    success_index = None
    for action in actions:
        success = env.step(action)[4]["is_success"]
        frames.append(env.render())
        if success:
            success_index = len(frames) - 1
            break
    for _ in range(rest):
        env.step(env.expert_action())
        frames.append(env.render())
    return np.stack(frames), success_index


def _reach(env: TabletopReachEnv, rng: np.random.Generator) -> Actions:
    noise = rng.uniform(0.0, 0.6)
    while True:
        yield env.expert_action(noise=noise if np.linalg.norm(env.offset) > _NEAR else 0.0)


def _stop(env: TabletopReachEnv, rng: np.random.Generator) -> Actions:
    noise, path = rng.uniform(0.0, 0.6), env.offset
    if rng.random() < 0.5:
        path *= rng.uniform(0.2, 0.8)
    else:
        path += _draw_offset(rng, 1.2, 3.5)
    yield from _move_to(env, env.offset - path, noise, rng)
    for _ in range(rng.integers(5, 25)):
        yield rng.normal(0.0, 0.5 * noise, 2)


def _miss(env: TabletopReachEnv, rng: np.random.Generator) -> Actions:
    yield from _move_to(env, _draw_offset(rng, 1.1, 3.0), rng.uniform(0.0, 0.6), rng)
    for _ in range(rng.integers(5, 40)):
        yield np.zeros(2)


def _draw_offset(rng: np.random.Generator, low: float, high: float) -> NDArray[np.float64]:
    """Draw an offset in any direction, `low` to `high` times the reach within which success is."""
    angle = rng.uniform(0.0, 2 * np.pi)
    return rng.uniform(low, high) * REACH * np.array([np.cos(angle), np.sin(angle)])


def _move_to(
    env: TabletopReachEnv, goal: NDArray[np.float64], noise: float, rng: np.random.Generator
) -> Actions:
    """Move until the offset to the named block is `goal`."""
    for _ in range(100):  # the goal may lie beyond the table's edge
        ahead = env.offset - goal
        if np.linalg.norm(ahead) < SPEED:
            break
        yield ahead / max(float(np.linalg.norm(ahead)), 5 * SPEED) + rng.normal(0.0, noise, 2)


def _wander(env: TabletopReachEnv, rng: np.random.Generator) -> Actions:
    del env  # the other scripts look at it
    velocity = rng.normal(0.0, 1.0, 2)
    inertia, size = rng.uniform(0.5, 0.98), rng.uniform(0.5, 1.5)
    for _ in range(rng.integers(10, 80)):
        velocity = inertia * velocity + np.sqrt(1 - inertia**2) * rng.normal(0.0, size, 2)
        yield velocity
