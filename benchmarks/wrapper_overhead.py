"""Overhead of the reward wrappers: microseconds per step, and memory.

Quantity: microseconds per environment step, beyond the environment's own `step` and `render`. The
model costs nothing: it returns prepared predictions and reads no frame, so the rest is ours.
    - "plain step": no prediction is due. Bar: 5 us.
    - "prediction": a frame is taken, checked and copied (with worker processes: brought to the main
      process), a window is chosen, the model is called, the reward is computed. Bar: 50 us.
    - "shrink": added to a prediction by frame_size=240.
    - "reset": the same as a prediction, but for `reset`.
Kinds: "single" is `RobometerRewardWrapper` with frames of 480x640, kept as they are; "sync" and
"async" are `RobometerVectorRewardWrapper`, "DummyVecEnv" and "SubprocVecEnv" `VecRobometerReward`,
with frames of 240x320; their bars hold at 8 and 32 environments.
Method: episodes of 200 steps, bare and wrapped by turns; every step is timed by itself (the clock's
own cost is in both and cancels). A repeat gives the median of each kind of step; the figure is the
median over the repeats of wrapped minus bare, per environment. The first repeat is the warm-up and
does not count. Bare includes one `render` for steps with a prediction, and times are wall time,
where environments live in this process. In worker processes rendering is theirs, and the figure is
the CPU time of the main process alone: its wall time is that of the workers, who share the cores.
Predictions are made every 5 steps; "single" also at every step, with few frames kept and with
small ones. The frames of an episode do not fit into most caches, so a prediction costs at least a
copy into memory that is not cached; it is printed beside.
Memory ("single"): one episode without end, a prediction at each step; Python's allocations
(tracemalloc) and resident memory (RSS) after 1 %, 10 % and all of it.
Hardware: as many CPU cores as there are, no GPU. Other work on the machine shows as noise.

    python benchmarks/wrapper_overhead.py
    python benchmarks/wrapper_overhead.py --kinds sync DummyVecEnv --steps 600 --envs 8 32
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from harness.bare_env import BareEnv, FreeModel, captured_env
from harness.report import markdown_table, print_json, resident_bytes

from robometer_gym import RobometerRewardWrapper, RobometerVectorRewardWrapper

EPISODE, EVERY, REPEATS = 200, 5, 5
BARS = {"plain": 5.0, "prediction": 50.0}
VECTOR_KINDS = ("sync", "async", "DummyVecEnv", "SubprocVecEnv")
IN_PROCESS = ("sync", "DummyVecEnv")
STEPS = {"single": 20_000, **dict.fromkeys(VECTOR_KINDS, 600)}
Times = dict[str, list[int]]


def make_single(size: tuple[int, int] = (480, 640), **settings: Any) -> RobometerRewardWrapper:
    """Return a wrapped environment whose frames are kept as they are, unless stated otherwise."""
    settings = {"frame_size": None, "predict_every": EVERY, **settings}
    return RobometerRewardWrapper(BareEnv(*size), "measure", FreeModel(), **settings)


def make_vector(kind: str, num_envs: int, *, wrapped: bool) -> Any:
    """Return a vector environment, bare or wrapped."""
    wrapper: Any = RobometerVectorRewardWrapper
    classes: dict[str, Any] = {"sync": SyncVectorEnv, "async": AsyncVectorEnv}
    if kind not in classes:
        # Imported here because it brings torch, which would double the resident memory.
        from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

        from robometer_gym.sb3 import VecRobometerReward

        wrapper = VecRobometerReward
        classes = {"DummyVecEnv": DummyVecEnv, "SubprocVecEnv": SubprocVecEnv}
    envs = classes[kind]([captured_env if wrapped else BareEnv] * num_envs)
    if not wrapped:
        return envs
    return wrapper(envs, task="measure", reward_model=FreeModel(), predict_every=EVERY)


def time_steps(
    env: Any,
    action: Any,
    steps: int,
    *,
    every: int = EVERY,
    renders: Sequence[BareEnv] = (),
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Times:
    """Return nanoseconds of each "reset", "plain" step and step with a "prediction".

    Args:
        env: bare or wrapped.
        action: of every step.
        steps: in episodes of `EPISODE`.
        every: steps between predictions.
        renders: bare environments to render when a prediction is due, as the wrapper would.
        clock: to read before and after.
    """
    times: Times = {"reset": [], "plain": [], "prediction": []}
    for _ in range(max(1, steps // EPISODE)):
        start = clock()
        env.reset()
        for one in renders:
            one.render()
        times["reset"].append(clock() - start)
        for step in range(1, min(steps, EPISODE) + 1):
            due = step % every == 0
            start = clock()
            env.step(action)
            for one in renders if due else ():
                one.render()
            times["prediction" if due else "plain"].append(clock() - start)
    return times


def added_us(wrapped: Times, bare: Times, step: str) -> float:
    """Return the difference of the medians, in microseconds."""
    return (statistics.median(wrapped[step]) - statistics.median(bare[step])) / 1000


def median_of_repeats(measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure over the repeats; the first one is the warm-up."""
    repeats = [measure() for _ in range(REPEATS + 1)][1:]
    return {name: statistics.median(each[name] for each in repeats) for name in repeats[0]}


def measure_single(steps: int) -> dict[str, float]:
    """Return the figures of the scalar wrapper, by name."""
    bare, normal = BareEnv(480, 640), make_single()
    every_step, tail = make_single(predict_every=1), make_single(sampling="tail")
    small = make_single((64, 64))
    shrinking = make_single(predict_every=1, frame_size=240)

    def repeat() -> dict[str, float]:
        without = time_steps(bare, 0, steps, renders=[bare])
        ours, each = time_steps(normal, 0, steps), time_steps(every_step, 0, steps, every=1)
        shrunk = time_steps(shrinking, 0, max(20, steps // 100), every=1)
        return {
            "bare": statistics.median(without["plain"]) / 1000,
            "plain": added_us(ours, without, "plain"),
            "prediction": added_us(ours, without, "prediction"),
            "prediction_every_step": added_us(each, without, "prediction"),
            "prediction_tail": added_us(time_steps(tail, 0, steps), without, "prediction"),
            "prediction_64x64": added_us(time_steps(small, 0, steps), without, "prediction"),
            "shrink": added_us(shrunk, each, "prediction"),
            "reset": added_us(ours, without, "reset"),
        }

    copies = {"copy_cached": copy_us(1), "copy_uncached": copy_us(EPISODE // EVERY)}
    return median_of_repeats(repeat) | copies


def measure_vector(kind: str, num_envs: int, steps: int) -> dict[str, float]:
    """Return the figures of a vector wrapper per environment."""
    bare, ours = (make_vector(kind, num_envs, wrapped=wrapped) for wrapped in (False, True))
    in_process = kind in IN_PROCESS
    clock = time.perf_counter_ns if in_process else time.process_time_ns
    actions = np.zeros(num_envs, np.int64)

    def repeat() -> dict[str, float]:
        renders = bare.envs if in_process else ()
        without = time_steps(bare, actions, steps, renders=renders, clock=clock)
        wrapped = time_steps(ours, actions, steps, clock=clock)
        return {step: added_us(wrapped, without, step) / num_envs for step in BARS}

    figures = median_of_repeats(repeat)
    bare.close()
    ours.close()
    return figures


def copy_us(targets: int) -> float:
    """Return microseconds to copy one 480x640 frame into one of several buffers, by turns."""
    source = BareEnv(480, 640).render()
    buffers = [source.copy() for _ in range(targets)]
    times = []
    for turn in range(1_000):
        start = time.perf_counter_ns()
        np.copyto(buffers[turn % targets], source)
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1000


def measure_memory(steps: int) -> list[dict[str, int]]:
    """Return allocated and resident bytes along one long episode with a prediction at each step."""
    env = make_single(predict_every=1)
    tracemalloc.start()
    try:
        env.reset()
        rows, done = [], 0
        for goal in (steps // 100, steps // 10, steps):
            for _ in range(goal - done):
                env.step(0)
            done = goal
            allocated = tracemalloc.get_traced_memory()[0]
            rows.append({"steps": goal, "allocated": allocated, "resident": resident_bytes()})
    finally:
        tracemalloc.stop()
    return rows


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    kinds = ("single", *VECTOR_KINDS)
    parser = argparse.ArgumentParser(description="Overhead of the reward wrappers.")
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=["single"])
    parser.add_argument("--steps", type=int, help="per repeat (20000; of vector envs 600)")
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 8, 32], help="of vector envs")
    parser.add_argument("--memory-steps", type=int, default=100_000, help="of the long episode")
    chosen = parser.parse_args(arguments)
    if chosen.memory_steps < 100 or (chosen.steps is not None and chosen.steps < EPISODE):
        parser.error(f"--steps must be >= {EPISODE} and --memory-steps >= 100")
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and the same as one line of JSON."""
    chosen = parse(arguments)
    figures: dict[str, dict[str, float]] = {}
    for kind in chosen.kinds:
        steps = chosen.steps or STEPS[kind]
        if kind == "single":
            figures["single"] = measure_single(steps)
        else:
            for num_envs in chosen.envs:
                figures[f"{kind} {num_envs}"] = measure_vector(kind, num_envs, steps)
    memory = measure_memory(chosen.memory_steps) if "single" in chosen.kinds else []

    print(f"Added per environment and step, microseconds (median of {REPEATS} repeats)\n")
    rows = [[k, f"{f['plain']:.2f}", f"{f['prediction']:.2f}"] for k, f in figures.items()]
    rows.append(["bar", f"<= {BARS['plain']:g}", f"<= {BARS['prediction']:g}"])
    print("\n".join(markdown_table(["environments", "plain step", "prediction"], rows)))
    others = [
        [name.replace("_", " "), f"{value:.2f}"]
        for name, value in figures.get("single", {}).items()
        if name not in BARS
    ]
    if others:
        print("\n" + "\n".join(markdown_table(["single", "microseconds"], others)))
    if memory:
        titles = ["one episode, MB", "allocated", "resident"]
        rows = [
            [f"{m['steps']} steps", f"{m['allocated'] / 1e6:.1f}", f"{m['resident'] / 1e6:.1f}"]
            for m in memory
        ]
        print("\n" + "\n".join(markdown_table(titles, rows)))
    print_json(
        "wrapper_overhead",
        cores=os.cpu_count(),
        numpy=np.__version__,
        gymnasium=gym.__version__,
        stable_baselines3=version("stable_baselines3"),
        bars_us=BARS,
        added_us=figures,
        memory=memory,
    )


if __name__ == "__main__":
    main()
