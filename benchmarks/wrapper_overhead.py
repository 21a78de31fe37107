"""What RobometerRewardWrapper adds to a step of an environment, and what it keeps in memory.

Quantity: microseconds per step, beyond the environment's own `step` and `render`. The model costs
nothing: it returns one prepared prediction and looks at no frame, so what is left is the wrapper.
    - "plain step": no prediction is due. Bar: 5 us.
    - "prediction": a 640x480 frame is taken, checked, copied and kept as it is (frame_size=None),
      a window is chosen, the model is asked, the reward is computed. Bar: 50 us.
    - "shrink": what frame_size=240 adds to a prediction.
    - "reset": the same as a prediction, but for `reset`.
Method: a bare environment whose step does nothing and whose `render` returns one buffer, as real
renderers do. Episodes of 200 steps, bare and wrapped by turns; every step is timed by itself
(time.perf_counter_ns, whose own cost is in both and cancels). A repeat gives the median of each
kind of step; the figure is the median over the repeats of wrapped minus bare, where bare includes
one `render` for steps with a prediction. The first repeat is the warm-up and does not count.
Predictions are made every 5 steps, as by default, and, for comparison, at every step, with few
frames kept and with small ones.
The frames of an episode do not fit into most caches, so the least that a prediction can cost is a
copy into memory that is not in the cache; it is printed beside.
Memory: one episode without end, a prediction at each step; what Python has allocated
(tracemalloc) and what the process holds (RSS) after 1 %, 10 % and all of it.
Hardware: one CPU core, no GPU. Other work on the machine shows as noise.

    python benchmarks/wrapper_overhead.py --steps 20000
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from typing_extensions import Unpack

from robometer_gym import Clip, Prediction, RobometerRewardWrapper
from robometer_gym.tracking.settings import RewardOptions

HEIGHT, WIDTH = 480, 640
EPISODE = 200
REPEATS = 5
BARS = {"plain_step_us": 5.0, "prediction_us": 50.0}


class BareEnv(gym.Env[Any, Any]):
    """An environment that costs next to nothing."""

    def __init__(self, height: int = HEIGHT, width: int = WIDTH) -> None:
        self.render_mode = "rgb_array"
        self.observation_space = gym.spaces.Box(0.0, 1.0, (1,))
        self.action_space = gym.spaces.Discrete(2)
        self._observation = np.zeros(1, np.float32)
        self._info: dict[str, Any] = {}
        rng = np.random.default_rng(0)
        self._picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode; it has no end of its own."""
        return self._observation, self._info

    def step(self, action: Any) -> Any:
        """Do nothing."""
        return self._observation, 0.0, False, False, self._info

    def render(self) -> Any:
        """Return the one buffer."""
        return self._picture


class FreeModel:
    """Answers at once: one prepared prediction per length of the window."""

    def __init__(self) -> None:
        half = [np.full(length, 0.5, np.float32) for length in range(17)]
        none = [np.zeros(length, np.float32) for length in range(17)]
        self._answers = [Prediction(p, s) for p, s in zip(half, none, strict=True)]

    def predict(self, clips: Sequence[Clip]) -> list[Prediction]:
        """Answer from what was prepared."""
        return [self._answers[len(clip)] for clip in clips]


def wrapped(env: BareEnv, **settings: Unpack[RewardOptions]) -> RobometerRewardWrapper:
    """The wrapper around a bare environment; frames are kept as they are unless told otherwise."""
    chosen: RewardOptions = {"frame_size": None, **settings}
    return RobometerRewardWrapper(env, task="measure", reward_model=FreeModel(), **chosen)


def timed(env: gym.Env[Any, Any], steps: int, *, renders: bool = False) -> dict[str, list[int]]:
    """Nanoseconds of each reset and each step, by what was done: "reset", "plain", "predicted".

    Args:
        env: bare or wrapped.
        steps: how many steps, in episodes of `EPISODE`.
        renders: whether a frame is taken after each call, as the wrapper does where it predicts.
    """
    spent: dict[str, list[int]] = {"reset": [], "plain": [], "predicted": []}
    clock = time.perf_counter_ns
    for _ in range(max(1, steps // EPISODE)):
        start = clock()
        env.reset()
        if renders:
            env.render()
        spent["reset"].append(clock() - start)
        for _ in range(min(steps, EPISODE)):
            if renders:
                start = clock()
                env.step(0)
                env.render()
                took = clock() - start
                kind = "predicted"
            else:
                start = clock()
                info = env.step(0)[4]
                took = clock() - start
                kind = "predicted" if info.get("robometer/predicted") else "plain"
            spent[kind].append(took)
    return spent


def typical(nanoseconds: list[int]) -> float:
    """Median in microseconds."""
    return statistics.median(nanoseconds) / 1000


def overheads(steps: int) -> dict[str, float]:
    """What the wrapper adds, in microseconds: medians over the repeats."""
    bare, tiny = BareEnv(), BareEnv(64, 64)
    mixed, each = wrapped(bare, predict_every=5), wrapped(bare, predict_every=1)
    few = wrapped(bare, predict_every=5, sampling="tail")
    light = wrapped(tiny, predict_every=5)
    shrinking = wrapped(bare, predict_every=1, frame_size=240)
    repeats: dict[str, list[float]] = {}
    for _ in range(REPEATS + 1):
        step = timed(bare, steps)
        render = timed(bare, steps, renders=True)
        by_five, by_one = timed(mixed, steps), timed(each, steps)
        few_kept, small_frames = timed(few, steps), timed(light, steps)
        small = timed(shrinking, max(20, steps // 100))
        found = {
            "bare_step_us": typical(step["plain"]),
            "plain_step_us": typical(by_five["plain"]) - typical(step["plain"]),
            "prediction_us": typical(by_five["predicted"]) - typical(render["predicted"]),
            "prediction_tail_us": typical(few_kept["predicted"]) - typical(render["predicted"]),
            "prediction_64x64_us": typical(small_frames["predicted"])
            - typical(render["predicted"]),
            "prediction_each_step_us": typical(by_one["predicted"]) - typical(render["predicted"]),
            "shrink_us": typical(small["predicted"]) - typical(by_one["predicted"]),
            "reset_us": typical(by_five["reset"]) - typical(render["reset"]),
        }
        for name, value in found.items():
            repeats.setdefault(name, []).append(value)
    return {name: statistics.median(values[1:]) for name, values in repeats.items()}


def copy_us(targets: int) -> float:
    """Copying one frame into memory that is there already, `targets` places by turns."""
    source = BareEnv().render()
    places = [source.copy() for _ in range(targets)]
    spent = []
    for turn in range(1_000):
        start = time.perf_counter_ns()
        np.copyto(places[turn % targets], source)
        spent.append(time.perf_counter_ns() - start)
    return typical(spent)


def resident_bytes() -> int:
    """What the process holds (RSS), or 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0


def memory(steps: int) -> list[dict[str, int]]:
    """Allocated and resident bytes along one long episode with a prediction at each step."""
    env = wrapped(BareEnv(), predict_every=1)
    tracemalloc.start()
    try:
        env.reset()
        told, done = [], 0
        for goal in (steps // 100, steps // 10, steps):
            for _ in range(goal - done):
                env.step(0)
            done = goal
            allocated = tracemalloc.get_traced_memory()[0]
            told.append({"steps": goal, "allocated": allocated, "resident": resident_bytes()})
    finally:
        tracemalloc.stop()
    return told


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and the same as one line of JSON."""
    parser = argparse.ArgumentParser(description="What the wrapper adds to a step.")
    parser.add_argument("--steps", type=int, default=20_000, help="steps per repeat (>= 200)")
    parser.add_argument("--memory-steps", type=int, default=100_000, help="length of the episode")
    chosen = parser.parse_args(arguments)
    if chosen.steps < EPISODE or chosen.memory_steps < 100:
        parser.error(f"--steps must be >= {EPISODE} and --memory-steps >= 100")

    copies = {"copy_cached_us": copy_us(1), "copy_uncached_us": copy_us(EPISODE // 5)}
    added = {**overheads(chosen.steps), **copies}
    held = memory(chosen.memory_steps)
    frames = 8 * 8 * HEIGHT * WIDTH * 3

    rows = [
        ("bare step, for comparison", "bare_step_us"),
        ("plain step", "plain_step_us"),
        ("prediction (every 5 steps)", "prediction_us"),
        ("  at every step", "prediction_each_step_us"),
        ("  sampling='tail': 8 frames are kept", "prediction_tail_us"),
        ("  frames of 64x64", "prediction_64x64_us"),
        ("  of which: copying 640x480, cached", "copy_cached_us"),
        ("            the same, not cached", "copy_uncached_us"),
        ("shrinking 640x480 to 240, on top", "shrink_us"),
        ("reset", "reset_us"),
    ]
    print(f"Added per step, microseconds (median of {REPEATS} repeats of {chosen.steps} steps)")
    for text, name in rows:
        bar = f"   bar {BARS[name]:.0f}" if name in BARS else ""
        print(f"  {text:38s}{added[name]:9.2f}{bar}")
    print(f"One long episode, MB (the {8 * 8} frames that may be kept: {frames / 1e6:.1f})")
    for at in held:
        print(
            f"  after {at['steps']:7d} steps: allocated {at['allocated'] / 1e6:6.1f},"
            f" resident {at['resident'] / 1e6:6.1f}"
        )
    result = {
        "benchmark": "wrapper_overhead",
        "steps": chosen.steps,
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "gymnasium": gym.__version__,
        **{name: round(value, 3) for name, value in added.items()},
        "bars_us": BARS,
        "memory": held,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
