"""Growth of the engine's memory over thousands of queries with resets.

Quantity: memory after 10, 25, 50, 75 and 100 % of the queries, when all episodes have ended:
    - "python MB": Python's allocations (tracemalloc, started after the warm-up);
    - "tensor MB": the storage of all live tensors, each counted once;
    - "device MB": torch's allocations on a GPU (0 on a CPU);
    - "resident MB": resident memory of the process (RSS);
    - "graphs": graphs that torch.compile has compiled since the process began;
    - the engine's own account (`engine_info()`), in the JSON.
Method: every query predicts for B streams. Each has episodes of its own length (1 to 40 queries,
drawn), a sampling and a task that change with the episode; frames of two sizes. At an episode's end
the stream is released, as the wrapper does. The first 10 % of the queries are the warm-up: buffers
are made, shapes are new. "Growth" is from there on. Its bar is 1 MB for tensors, device and Python,
no new graphs, and 32 MB for RSS, which depends on how the allocator parts memory (and holds the
memory of tracemalloc itself). Every 50th query goes through the eager path as well, and the script
fails if a prediction differs by more than 1e-4 in float32 (0.05 below).
Hardware: any; the tiny shape with 2,000 queries takes about two minutes on one CPU core.

    python benchmarks/engine_soak.py --queries 2000
    python benchmarks/engine_soak.py --shape 4b --queries 2000 --batch 32
"""

from __future__ import annotations

import argparse
import gc
import tracemalloc
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from harness.arms import Arms, OurArm, allocated_bytes, describe, make_arms
from harness.networks import SHAPES
from harness.report import markdown_table, parse_size, print_json, resident_bytes
from harness.windows import draw_frame
from torch._dynamo.utils import counters

from robometer_gym import Clip, Prediction
from robometer_gym.tracking.window import FrameHistory, Sampling

SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
BARS = {"python_mb": 1.0, "tensor_mb": 1.0, "device_mb": 1.0, "resident_mb": 32.0, "graphs": 0.0}
SAMPLINGS: tuple[Sampling, ...] = ("anchored", "linspace", "tail")
TASKS = ("push the red block to the left", "open the drawer", "close it")
AGREEMENT, AGREEMENT_BELOW = 1e-4, 0.05
EAGER_EVERY = 50


class Stream:
    """One environment: its current episode, and the next when that has ended."""

    def __init__(self, env: int, sizes: Sequence[tuple[int, int]]) -> None:
        self._env, self._sizes, self._episode = env, sizes, 0
        self._rng = np.random.default_rng(env)
        self._begin()

    def _begin(self) -> None:
        self._left = int(self._rng.integers(1, 41))
        self._history = FrameHistory(8, SAMPLINGS[self._episode % 3])
        self._size = self._sizes[self._env % len(self._sizes)]
        self._step = 0
        self.name = (self._env, self._episode)

    def clip(self) -> Clip:
        """Add a frame, and return the window."""
        seed = self._env + 100 * (self._episode % 7)
        self._history.append(draw_frame(seed, self._step, self._size), self._step)
        self._step += 1
        self._left -= 1
        frames, steps = self._history.window()
        return Clip(frames, TASKS[self._episode % 3], self.name, steps)

    def ended(self, *, now: bool = False) -> bool:
        """Return whether the episode has ended, or has to end now; if so, begin the next one."""
        if self._left and not now:
            return False
        self._episode += 1
        self._begin()
        return True


def tensor_bytes() -> int:
    """Return the bytes of all live tensors; storage that several share is counted once."""
    gc.collect()
    storages = {}
    for one in gc.get_objects():
        if issubclass(type(one), torch.Tensor):
            storage = one.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def memory(device: torch.device, query: int) -> dict[str, float]:
    """Return the memory in use now."""
    tensors = tensor_bytes()
    return {
        "queries": query,
        "python_mb": tracemalloc.get_traced_memory()[0] / 1e6,
        "tensor_mb": tensors / 1e6,
        "device_mb": allocated_bytes(device) / 1e6,
        "resident_mb": resident_bytes() / 1e6,
        "graphs": counters["stats"]["unique_graphs"],
    }


def largest_difference(ours: Sequence[Prediction], others: Sequence[Prediction]) -> float:
    """Return the largest difference between two lists of predictions."""
    differences = [
        np.abs(getattr(one, name) - getattr(other, name)).max()
        for one, other in zip(ours, others, strict=True)
        for name in ("progress", "success")
    ]
    return float(np.max(differences))


def soak(arms: Arms, chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Predict again and again; yield the memory at each of the `SHARES`."""
    fast, eager = (arms.by_name[name] for name in ("fast", "eager"))
    assert isinstance(fast, OurArm)
    assert isinstance(eager, OurArm)
    streams = [Stream(env, chosen.sizes) for env in range(chosen.batch)]
    stops = [round(share * chosen.queries) for share in SHARES]
    worst = 0.0
    for query in range(1, chosen.queries + 1):
        clips = [stream.clip() for stream in streams]
        names = [stream.name for stream in streams]
        ours = fast.model.predict(clips)
        if query % EAGER_EVERY == 0:
            difference = largest_difference(ours, eager.model.predict(clips))
            worst = float(np.maximum(worst, difference))  # keeps a NaN
        for name, stream in zip(names, streams, strict=True):
            if stream.ended(now=query in stops):
                fast.model.release(name)
        del clips, ours
        if query in stops:
            if query == stops[0]:
                tracemalloc.start()
            row = memory(arms.device, query)
            yield {**row, "difference": worst, "engine": fast.model.engine_info()}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Growth of the engine's memory.")
    parser.add_argument("--queries", type=int, default=2000, help=">= 100")
    parser.add_argument("--batch", type=int, default=4, help="streams per query")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    sizes = [(64, 64), (96, 64)]
    parser.add_argument("--sizes", type=parse_size, nargs="+", default=sizes, help="HxW")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float64"))
    parser.add_argument("--threads", type=int, help="of torch; by default all cores")
    parser.add_argument("--max-streams", type=int, default=64, help="that our engine keeps")
    chosen = parser.parse_args(arguments)
    if chosen.queries < 100 or chosen.batch < 1:
        parser.error("--queries must be >= 100 and --batch >= 1")
    on_gpu = torch.device(chosen.device).type == "cuda"
    chosen.dtype = chosen.dtype or ("bfloat16" if on_gpu else "float32")
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    """Soak, print a table, and the same as one line of JSON."""
    chosen = parse(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    device, dtype = torch.device(chosen.device), getattr(torch, chosen.dtype)
    arms = make_arms(chosen.shape, "small", device, dtype)
    for name in ("eager", "fast"):
        arms.add(name, chosen.max_streams)
    try:
        measured = list(soak(arms, chosen))
    finally:
        tracemalloc.stop()
    growth = {name: measured[-1][name] - measured[0][name] for name in BARS}
    missed = [name for name, bar in BARS.items() if growth[name] > bar]
    cells = [
        [str(row["queries"]), *(f"{row[name]:.2f}" for name in BARS)]
        for row in (*measured, {"queries": "growth", **growth})
    ]
    print("\n".join(markdown_table(["queries", *BARS], cells)))
    print(f"Bars missed: {', '.join(missed) or 'none'}.")
    print_json(
        "engine_soak",
        shape=chosen.shape,
        batch=chosen.batch,
        **describe(arms),
        rows=measured,
        growth=growth,
        bars=BARS,
        missed=missed,
    )
    worst = measured[-1]["difference"]
    if not worst <= (AGREEMENT if dtype.itemsize >= 4 else AGREEMENT_BELOW):
        raise SystemExit(f"The engine's predictions differ from the eager path's by {worst:.2g}.")


if __name__ == "__main__":
    main()
