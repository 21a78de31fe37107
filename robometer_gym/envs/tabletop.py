"""A table seen from above, a gripper and three coloured blocks: the built-in demo environment.

Drawn with numpy alone, so it needs no OpenGL, no display and no download.
Knows nothing of reward models or wrappers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import ArrayLike, NDArray

from robometer_gym.reward_model import Frame

__all__ = ["COLOURS", "TASK", "TASKS", "TabletopReachEnv"]

COLOURS = ("red", "green", "blue")
TASK = "move the gripper to the {} block"
TASKS = tuple(TASK.format(colour) for colour in COLOURS)
"""The three sentences, in the order of the blocks in the observation."""

LAYOUTS = ("fixed", "random")

# Lengths are in table units: both axes of the table run from -1 to 1.
SPEED = 0.0225  # how far an action of length 1 moves the gripper in one step
REACH = 0.1  # on the block: at most this far from its centre ...
STILL = 0.25 * SPEED  # ... and resting: moved at most this far in the step
START = 0.3  # the gripper starts within +-START on both axes
PLACES = np.array([[-0.65, -0.4], [0.65, -0.4], [0.0, 0.75]])
JITTER = 0.08  # the fixed layout moves each block by up to this, on both axes
SCATTER = 0.8  # the random layout puts blocks within +-SCATTER ...
APART = 0.5  # ... and everything at least this far apart, on the axis where it is farther
SLOWING = 0.2  # the share of the remaining way that the expert goes in one step at the end

# Pixels.
SIZE = 64
SCALE = 24  # pixels per table unit, so that the gripper is in the picture wherever it is
SPRITE = 16  # side of the square in which a block or the gripper is drawn
PHASES = 4  # sprites are drawn at quarters of a pixel, so that slow motion shows

PAINT = {
    "floor": (70, 74, 82),
    "rim": (150, 116, 80),
    "table": (224, 200, 166),
    "shadow": (60, 44, 30),
    "red": (212, 48, 48),
    "green": (44, 158, 76),
    "blue": (44, 96, 212),
    "dark": (34, 36, 44),
    "white": (250, 250, 250),
}


@dataclass
class _Episode:
    task: str
    gripper: NDArray[np.float64]  # (2,)
    blocks: NDArray[np.float64]  # (3, 2), in the order of COLOURS
    rng: np.random.Generator  # the expert's own
    scene: Frame | None = None  # table and blocks, drawn when first needed

    @property
    def offset(self) -> NDArray[np.float64]:
        """(2,) from the gripper to the named block."""
        return self.blocks[TASKS.index(self.task)] - self.gripper


class TabletopReachEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Move the gripper to the block that the task names, and rest on it.

    The table is seen from above: x runs to the right and y down the picture, both from -1 to 1.

    - Action: (2,) float32 in [-1, 1], the gripper's velocity (dx, dy); anything beyond is clipped.
    - Observation: (8,) float32 in [-1, 1]: x and y of the gripper, then of the red, green and blue
      block. It does not say which block is meant: only the task does.
    - Reward: 1.0 at success, else 0.0. Success ends the episode (terminated); under `gym.make` 100
      steps end it too (truncated).
    - Success (`info["is_success"]`, a bool at every step): the gripper is within 0.1 of the named
      block's centre and moved at most a quarter of its full speed. Passing over does not count.
    - `info["task"]` at reset: the episode's sentence, one of `TASKS`.
    - Frames: (64, 64, 3) uint8 RGB in [0, 255].

    Args:
        task: one of `TASKS` for every episode; None draws one at each reset, from the env's seed.
            `reset(options={"task": ...})` sets it for that episode.
        layout: "fixed" puts the blocks near three fixed places, "random" anywhere on the table.
            Neither depends on the task.
        render_mode: "rgb_array" or None.

    Raises:
        ValueError: an unknown task, layout or render mode.

    Example:
        >>> import gymnasium as gym
        >>> import robometer_gym.envs
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
        self, task: str | None = None, layout: str = "fixed", render_mode: str | None = None
    ) -> None:
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be 'fixed' or 'random', got {layout!r}.")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be 'rgb_array' or None, got {render_mode!r}.")
        self._task = _check_task(task)
        self.layout = layout
        self.render_mode = render_mode
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (8,), np.float32)
        self._episode: _Episode | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: starts the env's random numbers anew.
            options: "task" sets this episode's task (None draws one); other keys are ignored.

        Raises:
            ValueError: an unknown task. The running episode is then left as it was.
        """
        task = _check_task((options or {}).get("task", self._task))
        super().reset(seed=seed)
        # Everything is drawn whether it is used or not: what is on the table, in this episode and
        # in those that follow, must not depend on how the task was chosen.
        drawn = TASKS[self.np_random.integers(len(TASKS))]
        rng = np.random.default_rng(int(self.np_random.integers(2**63)))
        gripper, blocks = self._lay_table()
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
        success = bool(still and np.linalg.norm(now.offset) <= REACH)
        return self._observation(), float(success), success, False, {"is_success": success}

    def render(self) -> Frame | None:  # type: ignore[override]
        """Draw the table: (64, 64, 3) uint8 RGB, or None without a render mode.

        Raises:
            ResetNeeded: no episode has begun.
        """
        now = self._running("render")
        if self.render_mode is None:
            return None
        if now.scene is None:
            now.scene = _table().copy()
            for colour, block in zip(COLOURS, now.blocks, strict=True):
                _draw(now.scene, colour, block)
        frame = now.scene.copy()
        _draw(frame, "gripper", now.gripper)
        return frame

    def expert_action(self, noise: float = 0.0) -> NDArray[np.float32]:
        """What a scripted expert does now: go straight to the named block, slow down, rest on it.

        Measured over 3000 episodes: MEAN_FIXED steps on average in the fixed layout, MEAN_RANDOM in
        the random one, always with success.

        Args:
            noise: standard deviation of the Gaussian noise added to each number, >= 0. It is drawn
                from a generator of the episode's own: the env's random state is untouched.

        Returns:
            (2,) float32 in [-1, 1].

        Raises:
            ResetNeeded: no episode has begun.
            TypeError: noise is not a number.
            ValueError: noise is negative or not finite.
        """
        now = self._running("expert_action")
        _check_noise(noise)
        action = now.offset / max(float(np.linalg.norm(now.offset)), SPEED / SLOWING)
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

    def _lay_table(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where the gripper (2,) and the blocks (3, 2) begin."""
        gripper = self.np_random.uniform(-START, START, 2)
        if self.layout == "fixed":
            return gripper, PLACES + self.np_random.uniform(-JITTER, JITTER, PLACES.shape)
        while True:  # one try in four or so succeeds
            blocks = self.np_random.uniform(-SCATTER, SCATTER, PLACES.shape)
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


def _check_noise(noise: float) -> None:
    if not isinstance(noise, Real):
        raise TypeError(f"noise must be a number >= 0, got {noise!r}.")
    if not 0.0 <= noise < np.inf:
        raise ValueError(f"noise is a standard deviation: it must be finite and >= 0, got {noise}.")


@lru_cache(maxsize=1)
def _table() -> Frame:
    """The empty table, (64, 64, 3) uint8: not to be written to."""
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    edge = SIZE / 2 - np.maximum(np.abs(x), np.abs(y))  # 0.5 at the picture's border
    light = 1.0 - 0.04 * (x + y) / SIZE - 0.05 * np.clip((6.0 - edge) / 4.0, 0.0, 1.0)
    planks = 1.0 - 0.03 * (np.arange(SIZE) % 16 == 0)[:, None]
    frame = np.array(PAINT["table"]) * (light * planks)[..., None]
    frame[edge < 3] = PAINT["rim"]
    frame[edge < 2] = PAINT["floor"]
    frame = frame.round().astype(np.uint8)
    frame.flags.writeable = False
    return frame


def _draw(frame: Frame, name: str, place: NDArray[np.float64]) -> None:
    """Paint a block or the gripper onto `frame`, with its centre at `place` (2,)."""
    quarters = np.rint((place * SCALE + SIZE / 2) * PHASES).astype(int)
    (column, row), (dx, dy) = quarters // PHASES - SPRITE // 2, quarters % PHASES
    paint, through = _sprite(name, int(dx), int(dy))
    patch = frame[row : row + SPRITE, column : column + SPRITE]
    patch[:] = patch * through + paint


@lru_cache(maxsize=None)
def _sprite(name: str, dx: int, dy: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What to add to the picture (16, 16, 3), and the share of it that shows through (16, 16, 1).

    Painted in layers, with several samples to a pixel; `dx` and `dy` are quarters of a pixel.
    """
    samples = (np.arange(SPRITE * 4) + 0.5) / 4 - SPRITE / 2
    x, y = np.meshgrid(samples - dx / PHASES, samples - dy / PHASES)
    paint = np.full((SPRITE, SPRITE, 3), 0.5)  # so that cutting to uint8 rounds
    through = np.ones((SPRITE, SPRITE, 1))
    for colour, opacity, inside in _layers(name, x, y):
        share = opacity * inside.reshape(SPRITE, 4, SPRITE, 4).mean(axis=(1, 3))[..., None]
        paint = paint * (1 - share) + share * np.array(PAINT[colour])
        through = through * (1 - share)
    return paint.astype(np.float32), through.astype(np.float32)


def _layers(
    name: str, x: NDArray[np.float64], y: NDArray[np.float64]
) -> list[tuple[str, float, NDArray[np.bool_]]]:
    """Colour, opacity and shape of each layer of a sprite, from the bottom to the top."""
    if name == "gripper":
        away, shadow = np.hypot(x, y), np.hypot(x - 1, y - 1)
        return [
            ("shadow", 0.35, (shadow > 2.2) & (shadow < 4.9)),
            ("dark", 1.0, (away > 2.2) & (away < 4.9)),
            ("white", 1.0, (away > 2.9) & (away < 4.2)),
        ]
    out, shadow = np.maximum(np.abs(x), np.abs(y)), np.maximum(np.abs(x - 1), np.abs(y - 1))
    return [
        ("shadow", 0.35, shadow < 5.2),
        ("shadow", 0.6, out < 5.2),
        (name, 0.75, out < 5.2),
        (name, 1.0, out < 4.5),
    ]
