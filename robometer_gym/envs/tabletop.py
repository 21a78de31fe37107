"""TabletopReach, the built-in demo environment: a table from above, a gripper and three blocks.

Needs no OpenGL, no display and no download. Knows nothing of wrappers or of drawing.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import ArrayLike, NDArray

from robometer_gym.envs.drawing import draw_gripper, draw_table
from robometer_gym.reward_model import Frame

__all__ = ["COLORS", "ENV_ID", "TASK", "TASKS", "TabletopReachEnv"]

ENV_ID = "robometer_gym/TabletopReach-v0"
"""Registered by `import robometer_gym`."""

COLORS = ("red", "green", "blue")
TASK = "move the gripper to the {} block"
TASKS = tuple(TASK.format(color) for color in COLORS)
"""The three instructions, in the order of the blocks in the observation."""

LAYOUTS = ("fixed", "random")

# Lengths are in table units: both axes of the table run from -1 to 1.
SPEED = 0.0235  # distance that the gripper moves in one step for an action of length 1
REACH = 0.1  # on the block: at most this far from its center ...
STILL = 0.25 * SPEED  # ... and resting: moved at most this far in the step
START = 0.25  # the gripper starts within +-START on both axes
BLOCK_POSITIONS = np.array([[-0.78, -0.45], [0.78, -0.45], [0.0, 0.78]])
JITTER = 0.08  # the fixed layout moves each block by up to this, on both axes
SCATTER = 0.85  # the random layout puts blocks within +-SCATTER ...
APART = 0.55  # ... and everything at least this far apart, on the axis where it is farther
SLOWING = 0.2  # share of the remaining distance that the expert covers in each of the last steps


@dataclass
class _Episode:
    task: str
    gripper: NDArray[np.float64]  # (2,)
    blocks: NDArray[np.float64]  # (3, 2), in the order of COLORS
    rng: np.random.Generator  # for the expert's noise alone
    scene: Frame | None = None  # table and blocks, drawn when first needed

    def offset_to(self, task: str) -> NDArray[np.float64]:
        """Return the offset (2,) from the gripper to the block that a task names."""
        offset: NDArray[np.float64] = self.blocks[TASKS.index(task)] - self.gripper
        return offset


class TabletopReachEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Move the gripper to the block that the task names, and rest on it.

    The table is seen from above: x runs to the right and y down the frame, both from -1 to 1.

    - Action: (2,) float32 in [-1, 1], the gripper's velocity (dx, dy); anything beyond is clipped.
    - Observation: (8,) float32 in [-1, 1]: x and y of the gripper, then of the red, green and blue
      block. Only the task names the target block.
    - Reward: 1.0 at success, else 0.0. Success ends the episode (terminated) unless it is made with
      `terminate_on_success=False`; under `gym.make` 100 steps end it too (truncated).
    - Success (`info["is_success"]`, a bool at every step): the gripper is within 0.1 of the named
      block's center and moved at most a quarter of its full speed. Passing over does not count.
    - `info["task"]` at reset: the episode's instruction, one of `TASKS`.
    - Frames: (64, 64, 3) uint8 RGB in [0, 255].

    Args:
        task: one of `TASKS` for every episode; None draws one at each reset, from the env's seed.
            `reset(options={"task": ...})` sets it for that episode.
        layout: "fixed" puts the blocks near three fixed places, "random" anywhere on the table.
            Neither depends on the task.
        render_mode: "rgb_array" or None.
        terminate_on_success: False lets an episode continue after success, as with a real robot,
            where only a reward model detects it.

    Raises:
        ValueError: an unknown task, layout or render mode.

    Example:
        >>> import gymnasium as gym
        >>> import robometer_gym
        >>> env = gym.make("robometer_gym/TabletopReach-v0", render_mode="rgb_array")
        >>> obs, info = env.reset(seed=0, options={"task": "move the gripper to the blue block"})
        >>> info["task"], env.render().shape
        ('move the gripper to the blue block', (64, 64, 3))
        >>> terminated = False
        >>> while not terminated:
        ...     action = env.unwrapped.expert_action()
        ...     obs, reward, terminated, truncated, info = env.step(action)
        >>> reward, info["is_success"]
        (1.0, True)
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 - as in gym.Env

    def __init__(
        self,
        task: str | None = None,
        layout: str = "fixed",
        render_mode: str | None = None,
        terminate_on_success: bool = True,
    ) -> None:
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be 'fixed' or 'random', got {layout!r}.")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be 'rgb_array' or None, got {render_mode!r}.")
        self._task = _check_task(task)
        self.layout = layout
        self.render_mode = render_mode
        self.terminate_on_success = terminate_on_success
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (8,), np.float32)
        self._episode: _Episode | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: seeds the env's random numbers.
            options: "task" sets this episode's task (None draws one); other keys are ignored.

        Raises:
            ValueError: an unknown task. The running episode then stays unchanged.
        """
        task = _check_task((options or {}).get("task", self._task))
        super().reset(seed=seed)
        # Everything is drawn, used or not: the tables of this and later episodes must not depend
        # on how the task was chosen.
        drawn = TASKS[self.np_random.integers(len(TASKS))]
        rng = np.random.default_rng(int(self.np_random.integers(2**63)))
        gripper, blocks = self._draw_table_layout()
        self._episode = _Episode(task or drawn, gripper, blocks, rng)
        return self._observation(), {"task": self._episode.task}

    def step(
        self, action: ArrayLike
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Move the gripper, which stops at the table's edge.

        Raises:
            ResetNeeded: no episode has begun.
            ValueError: the action is not two finite numbers.
        """
        now = self._running("step")
        velocity = _check_action(action)
        before = now.gripper
        now.gripper = np.clip(before + SPEED * velocity, -1.0, 1.0)
        still = np.linalg.norm(now.gripper - before) <= STILL
        success = bool(still and np.linalg.norm(self.offset) <= REACH)
        over = success and self.terminate_on_success
        return self._observation(), float(success), over, False, {"is_success": success}

    def render(self) -> Frame | None:
        """Draw the table: (64, 64, 3) uint8 RGB, or None without a render mode.

        Raises:
            ResetNeeded: no episode has begun.
        """
        now = self._running("render")
        if self.render_mode is None:
            return None
        if now.scene is None:
            now.scene = draw_table(dict(zip(COLORS, now.blocks, strict=True)))
        return draw_gripper(now.scene, now.gripper)

    @property
    def offset(self) -> NDArray[np.float64]:
        """The offset (2,) from the gripper to the named block, in table units.

        Raises:
            ResetNeeded: no episode has begun.
        """
        now = self._running("offset")
        return now.offset_to(now.task)

    def expert_action(self, noise: float = 0.0, task: str | None = None) -> NDArray[np.float32]:
        """Return the expert's action: move straight to the named block, slow down, rest on it.

        Measured over 3000 episodes of each layout, it always succeeds: after 39.9 steps on average
        (23 to 58) in the fixed layout, 39.0 (26 to 67) in the random one.

        Args:
            noise: standard deviation of the Gaussian noise added to each number, >= 0. It is drawn
                from a separate generator: the env's random state stays unchanged.
            task: the task to follow instead of the episode's.

        Returns:
            (2,) float32 in [-1, 1].

        Raises:
            ResetNeeded: no episode has begun.
            TypeError: noise is not a number.
            ValueError: noise is negative or not finite, or the task is unknown.
        """
        now = self._running("expert_action")
        if not isinstance(noise, Real):
            raise TypeError(f"noise must be a number >= 0, got {noise!r}.")
        if not 0.0 <= noise < np.inf:
            raise ValueError(
                f"noise is a standard deviation: it must be finite and >= 0, got {noise}."
            )
        offset = now.offset_to(_check_task(task) or now.task)
        action = offset / max(float(np.linalg.norm(offset)), SPEED / SLOWING)
        if noise:
            action = action + now.rng.normal(0.0, noise, 2)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def _running(self, method: str) -> _Episode:
        if self._episode is None:
            raise ResetNeeded(f"Call reset() before {method}(): no episode has begun.")
        return self._episode

    def _observation(self) -> NDArray[np.float32]:
        now = self._running("reset")
        return np.concatenate([now.gripper, now.blocks.ravel()]).astype(np.float32)

    def _draw_table_layout(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Draw the first positions of the gripper (2,) and the blocks (3, 2)."""
        gripper = self.np_random.uniform(-START, START, 2)
        if self.layout == "fixed":
            return gripper, BLOCK_POSITIONS + self.np_random.uniform(
                -JITTER, JITTER, BLOCK_POSITIONS.shape
            )
        while True:  # about one draw in thirteen is accepted
            blocks = self.np_random.uniform(-SCATTER, SCATTER, BLOCK_POSITIONS.shape)
            things = np.vstack([gripper, blocks])
            gaps = np.abs(things[:, None] - things[None]).max(axis=-1)
            if gaps[np.triu_indices(len(things), k=1)].min() >= APART:
                return gripper, blocks


def _check_task(task: str | None) -> str | None:
    if task is not None and task not in TASKS:
        known = ", ".join(repr(known) for known in TASKS)
        raise ValueError(f"task must be one of {known}, or None to draw one; got {task!r}.")
    return task


def _check_action(action: ArrayLike) -> NDArray[np.float64]:
    velocity = np.asarray(action, np.float64)
    if velocity.shape != (2,):
        raise ValueError(
            f"action must be (2,), the velocity (dx, dy) in [-1, 1]; got shape {velocity.shape}."
        )
    if not np.isfinite(velocity).all():
        raise ValueError(
            f"action must be finite, got {velocity.tolist()}. Has the policy diverged?"
        )
    return np.clip(velocity, -1.0, 1.0)
