"""What many environments in a reward wrapper cost per environment and step, in the main process.

Quantity: microseconds per environment step that our part adds to the bare vector environment, for
1, 8 and 32 environments. The model costs nothing: it returns prepared predictions.
    - "plain step": no prediction is due. Bar: 5 us at 8 and 32 environments.
    - "prediction": every environment's 240x320 frame is taken, checked, copied, brought to the main
      process; windows are chosen, the model is asked once, rewards are computed. Bar: 50 us.
Method: environments whose step does nothing and whose `render` returns one buffer, as real
renderers do; predictions every 5 steps, a reset every 200. Bare and wrapped by turns, each step
timed by itself. A repeat gives the median of each kind of step; the figure is the median over the
repeats of wrapped minus bare, divided by the number of environments; the first repeat is the
warm-up and does not count. Where the environments live in this process (sync, DummyVecEnv), bare
includes one `render` for steps with a prediction, and the figure is wall time. Where they live in
worker processes (async, SubprocVecEnv) rendering is theirs, and the figure is the CPU time of the
main process alone (time.process_time): its wall time is that of the workers, who share the cores.
Hardware: as many CPU cores as there are, no GPU. Other work on the machine shows as noise.

    python benchmarks/vector_overhead.py --steps 600
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from robometer_gym import Clip, FrameCapture, Prediction, RobometerVectorRewardWrapper
from robometer_gym.sb3 import VecRobometerReward

HEIGHT, WIDTH = 240, 320
EPISODE, EVERY = 200, 5
REPEATS = 5
BARS = {"plain": 5.0, "prediction": 50.0}
KINDS: dict[str, Callable[..., Any]] = {
    "sync": SyncVectorEnv,
    "async": AsyncVectorEnv,
    "DummyVecEnv": DummyVecEnv,
    "SubprocVecEnv": SubprocVecEnv,
}
IN_PROCESS = ("sync", "DummyVecEnv")


class BareEnv(gym.Env[Any, Any]):
    """An environment that costs next to nothing."""

    def __init__(self) -> None:
        self.render_mode = "rgb_array"
        self.observation_space = gym.spaces.Box(0.0, 1.0, (1,))
        self.action_space = gym.spaces.Discrete(2)
        self._observation = np.zeros(1, np.float32)
        rng = np.random.default_rng(0)
        self._picture = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode; it has no end of its own."""
        return self._observation, {}

    def step(self, action: Any) -> Any:
        """Do nothing."""
        return self._observation, 0.0, False, False, {}

    def render(self) -> Any:
        """Return the one buffer."""
        return self._picture


def captured() -> gym.Env[Any, Any]:
    """The environment as our part needs it."""
    return FrameCapture(BareEnv())


class FreeModel:
    """Answers at once: one prepared prediction per length of the window."""

    def __init__(self) -> None:
        half = [np.full(length, 0.5, np.float32) for length in range(17)]
        none = [np.zeros(length, np.float32) for length in range(17)]
        self._answers = [Prediction(p, s) for p, s in zip(half, none, strict=True)]

    def predict(self, clips: Sequence[Clip]) -> list[Prediction]:
        """Answer from what was prepared."""
        return [self._answers[len(clip)] for clip in clips]


def make(kind: str, num_envs: int, *, paid: bool) -> Any:
    """A vector environment, bare or paid by a model that costs nothing."""
    envs = KINDS[kind]([captured if paid else BareEnv] * num_envs)
    if not paid:
        return envs
    wrapper: Any = VecRobometerReward if kind.endswith("VecEnv") else RobometerVectorRewardWrapper
    return wrapper(envs, task="measure", reward_model=FreeModel(), predict_every=EVERY)


def timed(kind: str, envs: Any, steps: int, *, renders: bool = False) -> dict[str, list[int]]:
    """Nanoseconds of each vector step: "plain", and "prediction" where one is due."""
    clock = time.perf_counter_ns if kind in IN_PROCESS else time.process_time_ns
    actions = np.zeros(envs.num_envs, np.int64)
    singles = envs.envs if renders else ()
    spent: dict[str, list[int]] = {"plain": [], "prediction": []}
    for _ in range(max(1, steps // EPISODE)):
        envs.reset()
        for step in range(1, min(steps, EPISODE) + 1):
            due = step % EVERY == 0
            begin = clock()
            envs.step(actions)
            for env in singles if due else ():
                env.render()
            spent["prediction" if due else "plain"].append(clock() - begin)
    return spent


def overhead(kind: str, num_envs: int, steps: int) -> dict[str, float]:
    """Microseconds per environment that our part adds to each kind of step."""
    bare, paid = make(kind, num_envs, paid=False), make(kind, num_envs, paid=True)
    found: dict[str, list[float]] = {"plain": [], "prediction": []}
    for _ in range(REPEATS + 1):
        without = timed(kind, bare, steps, renders=kind in IN_PROCESS)
        with_ours = timed(kind, paid, steps)
        for what, values in found.items():
            added = statistics.median(with_ours[what]) - statistics.median(without[what])
            values.append(added / num_envs / 1000)
    bare.close()
    paid.close()
    return {what: statistics.median(values[1:]) for what, values in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and the same as one line of JSON."""
    parser = argparse.ArgumentParser(description="What many environments in a wrapper cost.")
    parser.add_argument("--steps", type=int, default=600, help="vector steps per repeat")
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    chosen = parser.parse_args(arguments)
    if chosen.steps < 2 * EVERY:
        parser.error(f"--steps must be >= {2 * EVERY}")

    print(f"Added per environment and step, microseconds (median of {REPEATS} repeats)")
    print(f"  {'':14s}{'envs':>5s}{'plain step':>12s}{'prediction':>12s}")
    results = {}
    for kind in chosen.kinds:
        for num_envs in chosen.envs:
            added = overhead(kind, num_envs, chosen.steps)
            results[f"{kind} {num_envs}"] = {k: round(v, 2) for k, v in added.items()}
            print(
                f"  {kind:14s}{num_envs:5d}{added['plain']:12.2f}{added['prediction']:12.2f}",
                flush=True,
            )
    print(f"  {'bar at 8, 32':19s}{BARS['plain']:12.0f}{BARS['prediction']:12.0f}")
    told = {
        "benchmark": "vector_overhead",
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "gymnasium": gym.__version__,
        "stable_baselines3": stable_baselines3.__version__,
        "bars_us": BARS,
        "added_us": results,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
