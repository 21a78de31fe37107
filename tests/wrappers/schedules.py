"""Schedules of episodes that hypothesis draws, diaries of their runs, and an oracle.

The oracle has the documented rules, and nothing of the package: it checks a diary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from tests.environments import CAMERAS, Life


@dataclass
class Interruption:
    """Before a step, some environments are reset, whatever they were doing."""

    envs: list[bool]
    task: str | None
    seed: int | None


@dataclass
class Schedule:
    """All events of a run."""

    lives: list[Life]
    cameras: int
    rules: dict[str, Any]
    progress: list[float]
    success: list[float]
    seed: int
    steps: int
    interruptions: dict[int, Interruption]

    def action(self, env: int, episode: int, step: int) -> int:
        return (self.seed + env + 2 * episode + 3 * step) % 4

    def predict(self, camera: str, env: int, episode: int, step: int) -> tuple[float, float]:
        """Return the model's progress and success at one step."""
        place = 5 * env + 7 * episode + 3 * step
        progress = self.progress[(place + 11 * CAMERAS.index(camera)) % len(self.progress)]
        return progress, self.success[place % len(self.success)]


class Reset(NamedTuple):
    """An entry of a diary: an episode begins."""

    seed: int | None
    options: dict[str, Any] | None
    observation: Any
    info: Any


class Step(NamedTuple):
    """An entry of a diary: a step."""

    action: int
    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    info: Any


Entry = Reset | Step
Diaries = list[list[Entry]]


class Oracle:
    """The documented rules, written again, without windows, for one environment."""

    def __init__(self, schedule: Schedule, env: int) -> None:
        self.schedule, self.env, self.rules = schedule, env, schedule.rules
        self.episode = -1
        self.reports = False

    def check(self, diary: Sequence[Entry]) -> None:
        for entry in diary:
            info = entry.info
            if isinstance(entry, Reset):
                self._begin()
                predicted = self.progress is not None
            else:
                predicted = self._check_step(entry)
            assert info["robometer/predicted"] is predicted
            assert info["robometer/success"] is self.fired
            assert close(info["robometer/progress"], self.progress)
            assert close(info["robometer/success_prob"], self.likely)

    def _predict(self) -> tuple[float, float] | None:
        camera = self.rules["camera"]
        cameras = list(camera) if isinstance(camera, dict) else [camera]
        predictions = [
            self.schedule.predict(each, self.env, self.episode, self.steps) for each in cameras
        ]
        if any(math.isnan(progress) for progress, _ in predictions):
            return None  # then the model has failed
        return sum(progress for progress, _ in predictions) / len(predictions), predictions[0][1]

    def _begin(self) -> None:
        self.episode += 1
        self.steps = 0
        self.fired = False
        judged = self._predict()
        self.progress: float | None = None
        self.likely: float | None = None
        self.votes: list[bool] = []
        if judged is not None:
            self.progress, self.likely = judged
            self.votes.append(self._votes(judged[1]))

    def _votes(self, likely: float) -> bool:
        return bool(np.float32(likely) >= np.float32(self.rules["success_threshold"]))

    def _check_step(self, step: Step) -> bool:
        rules, meant = self.rules, step.info["meant"]
        reward = float.fromhex(meant["reward"])
        over = meant["terminated"] or meant["truncated"]
        self.steps += 1
        self.reports |= meant["reports"]
        due = over or self.steps % rules["predict_every"] == 0
        judged = self._predict() if due else None
        before, new = self.progress, False
        if judged is not None:
            self.progress, self.likely = judged
            self.votes = [*self.votes, self._votes(judged[1])][-rules["success_window"] :]
            enough = self.votes[-1] and sum(self.votes) >= rules["success_votes"]
            new = enough and not self.fired
            self.fired = self.fired or enough
        terminated = meant["terminated"] or (new and rules["terminate_on_success"])
        if before is None or self.progress is None or (due and judged is None):
            keeps = rules["on_error"] == "env" or rules["mode"] == "shape"
            expected = reward if keeps else 0.0
        else:
            after = self.progress
            part = {
                "delta": after - before,
                "potential": (0.0 if terminated else rules["gamma"] * after) - before,
                "progress": after,
            }[rules["signal"]]
            expected = (reward if rules["mode"] == "shape" else 0.0) + rules["scale"] * part
        assert close(step.reward, expected + (rules["success_bonus"] if new else 0.0))
        assert (step.terminated, step.truncated) == (terminated, meant["truncated"])
        assert step.info["env_reward"] == meant["reward"]
        if (terminated or meant["truncated"]) and not self.reports:
            assert step.info["is_success"] is self.fired
        else:
            assert ("is_success" in step.info) == (self._env_reports(step))
        return judged is not None

    def _env_reports(self, step: Step) -> bool:
        report = self.schedule.lives[self.env].report
        return bool(step.info["meant"]["reports"]) and report != "as success"


def close(actual: Any, expected: float | None) -> bool:
    value = float.fromhex(actual) if isinstance(actual, str) else actual
    if expected is None:
        return math.isnan(value)
    return math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-6)


# What is drawn.

some_float32 = st.floats(0, 1, width=32)
dyadic = st.integers(0, 64).map(lambda n: n / 64)


@st.composite
def rules(draw: Any, cameras: int) -> dict[str, Any]:
    """Settings of the wrappers."""
    window = draw(st.integers(1, 3))
    several = ["render", "wrist", {"render": "render", "wrist": "wrist"}]
    return {
        "predict_every": draw(st.integers(1, 4)),
        "max_frames": draw(st.integers(1, 4)),
        "sampling": draw(st.sampled_from(["linspace", "tail", "anchored"])),
        "mode": draw(st.sampled_from(["replace", "shape"])),
        "signal": draw(st.sampled_from(["delta", "potential", "progress"])),
        "gamma": draw(st.sampled_from([0.0, 0.9, 0.99, 1.0])),
        "scale": draw(st.sampled_from([1.0, 0.1, -3.0])),
        "success_threshold": draw(st.sampled_from([0.5, 0.65, 0.9])),
        "success_window": window,
        "success_votes": draw(st.integers(1, window)),
        "success_bonus": draw(st.sampled_from([0.0, 0.3, 10.0])),
        "terminate_on_success": draw(st.booleans()),
        "camera": draw(st.sampled_from(several)) if cameras > 1 else "render",
        "frame_size": draw(st.sampled_from([None, 2, 240])),
        "on_error": draw(st.sampled_from(["raise", "hold", "env"])),
    }


lives = st.builds(
    Life,
    st.lists(st.integers(1, 7), min_size=1, max_size=3),
    st.lists(st.sampled_from(["terminated", "truncated", "both"]), min_size=1, max_size=3),
    st.sampled_from(["never", "always", "at the end", "late", "as success"]),
)


@st.composite
def schedules(draw: Any, num_envs: int | None = None, cameras: int | None = None) -> Schedule:
    """A run of a few episodes in a few environments."""
    num_envs = num_envs or draw(st.integers(1, 4))
    cameras = cameras or draw(st.integers(1, 2))
    chosen = draw(rules(cameras))
    progress = draw(st.sampled_from([dyadic, some_float32]))
    if chosen["on_error"] != "raise":
        progress |= st.just(math.nan)
    one = st.builds(
        Interruption,
        st.lists(st.booleans(), min_size=num_envs, max_size=num_envs).filter(any),
        st.none() | st.just("close the door"),
        st.none() | st.integers(0, 99),
    )
    steps = draw(st.integers(1, 20))
    return Schedule(
        lives=draw(st.lists(lives, min_size=num_envs, max_size=num_envs)),
        cameras=cameras,
        rules=chosen,
        progress=draw(st.lists(progress, min_size=1, max_size=9)),
        success=draw(st.lists(st.sampled_from([0.0, 0.5, 0.65, 1.0]), min_size=1, max_size=9)),
        seed=draw(st.integers(0, 99)),
        steps=steps,
        interruptions=draw(
            st.just({}) | st.dictionaries(st.integers(0, steps - 1), one, max_size=2)
        ),
    )
