"""Environments for the tests of many: one rolls dice, others fail. Worker processes load only this.

Knows nothing of torch or Stable-Baselines3.
"""

import os
import signal
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np

from robometer_gym.testing import CountingEnv

CAMERAS = ("render", "wrist")

End = Literal["terminated", "truncated", "both"]
Report = Literal["never", "always", "at the end", "late", "as success"]


class Life(NamedTuple):
    """The course of one `DiceEnv`: length and end of each episode, and its reports of success."""

    lengths: Sequence[int] = (5,)
    ends: Sequence[End] = ("terminated",)
    report: Report = "never"


class DiceEnv(gym.Env[Any, Any]):
    """Every step and every reset rolls the environment's own dice, so a stray one shows for ever.

    Frames encode their environment, episode and step, and the camera. `info` has the
    environment's own outcome, for an oracle that does not trust the wrappers.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as in gym.Env
    render_mode = "rgb_array"

    def __init__(self, number: int = 0, cameras: int = 1) -> None:
        self.number = number
        self.action_space = gym.spaces.Discrete(4)
        numbers = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.observation_space: gym.Space[Any] = numbers
        if cameras > 1:
            image = gym.spaces.Box(0, 255, (4, 5, 3), np.uint8)
            self.observation_space = gym.spaces.Dict({"numbers": numbers, "wrist": image})
        self.live([Life()] * (number + 1))

    def live(self, lives: Sequence[Life]) -> None:
        """Start again, with that life of `lives` which has this environment's number."""
        self.life = lives[self.number]
        self.episode = -1
        self.steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode += 1
        self.steps = 0
        roll = self.np_random.random()
        return self._observation(roll), {"options": repr(options), "roll": roll, "born": [1]}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.steps += 1
        roll = self.np_random.normal()
        over = self.steps >= self.life.lengths[self.episode % len(self.life.lengths)]
        end = self.life.ends[self.episode % len(self.life.ends)]
        terminated, truncated = over and end != "truncated", over and end != "terminated"
        reward = roll + 0.1 * int(action)
        success = self._success(over)
        meant = {"reward": reward, "terminated": terminated, "truncated": truncated}
        info: dict[str, Any] = {
            "meant": {**meant, "reports": bool(success)},
            "roll": roll,
            "vector": np.array([roll, self.steps]),
            "word": f"step {self.steps}",
        }
        if self.steps % 2:
            info["odd"] = self.steps
        return self._observation(roll), reward, terminated, truncated, info | success

    def _success(self, over: bool) -> dict[str, bool]:
        """Return the environment's report of success at this step, if it makes one."""
        key = "success" if self.life.report == "as success" else "is_success"
        reports = {
            "never": False,
            "always": True,
            "as success": True,
            "at the end": over,
            "late": over and self.episode > 0,
        }
        return {key: over and self.episode % 2 == 0} if reports[self.life.report] else {}

    def render(self) -> Any:
        return self._paint(0)

    def _paint(self, camera: int) -> Any:
        color = (1 + self.number + 100 * camera, self.episode % 256, self.steps)
        return np.full((4, 5, 3), color, np.uint8)

    def _observation(self, roll: float) -> Any:
        numbers = np.array([self.episode, self.steps, roll])
        if isinstance(self.observation_space, gym.spaces.Dict):
            return {"numbers": numbers, "wrist": self._paint(1)}
        return numbers


def read(frame: Any) -> tuple[str, int, int, int]:
    """Return camera, environment, episode and step of a frame of `DiceEnv`."""
    pixels = frame.tobytes()
    assert pixels == pixels[:3] * (len(pixels) // 3), "mixed from several frames"
    red, episode, step = pixels[:3]
    return CAMERAS[red // 100], red % 100 - 1, episode, step


class Trouble(CountingEnv):
    """A CountingEnv to which something happens, once, when an episode has come to a step.

    Step 0 is the reset. `what`: "raise" an error, "die" by SIGKILL, "exit" the process; render
    "none"; give a reward of "nothing"; an observation that is "misshapen".
    """

    def __init__(self, what: str = "", episode: int = 0, step: int = 1, **counting: Any) -> None:
        super().__init__(**counting)
        self.what, self.when = what, (episode, step)

    def _now(self, *kinds: str) -> bool:
        now = self.what in kinds and (self.episode, self.steps) == self.when
        if now:
            self.what = ""
        return now

    def _happen(self) -> None:
        if self._now("raise"):
            raise RuntimeError("the gripper is stuck")
        if self._now("exit"):
            os._exit(3)
        if self._now("die"):
            os.kill(os.getpid(), signal.SIGKILL)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        result = super().reset(**kwargs)
        self._happen()
        return result

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        self._happen()
        if self._now("nothing"):
            reward = None  # type: ignore[assignment]
        if self._now("misshapen"):
            observation = np.zeros((7, 7), np.float32)
        return observation, reward, *rest

    def render(self) -> Any:
        if self._now("none"):
            return None
        return super().render()
