"""Whether the engine grows: thousands of queries with resets, one after the other.

Quantity: what is held after 10, 25, 50, 75 and 100 % of the queries, when all episodes have ended:
    - "python MB": what Python has allocated (tracemalloc, started after the warm-up);
    - "tensor MB": the storage of all tensors that are alive, each counted once;
    - "device MB": what torch has allocated on a GPU (0 on a CPU);
    - "resident MB": what the process holds (RSS);
    - "graphs": what torch.compile has compiled since the process began;
    - the engine's own account (`engine_info()`), in the JSON.
Method: B streams are asked about in every query. Each has episodes of its own length (1 to 40
queries, drawn), a rule of sampling and a task that change with the episode; frames of two sizes.
At an episode's end the stream is released, as the wrapper does it. The first 10 % of the queries
are the warm-up: buffers are made, shapes are seen for the first time. "Growth" is from there on.
Its bar is 1 MB for tensors, device and Python, no new graphs, and 32 MB for RSS, which depends on
how the allocator parts memory (and holds what tracemalloc itself needs). Every 50th query is asked
of the eager path as well, and the script fails if an answer differs by more than 1e-4 in float32
(0.05 below).
Hardware: any; the tiny shape with 2,000 queries takes about two minutes on one CPU core.

    python benchmarks/engine_soak.py --queries 2000
    python benchmarks/engine_soak.py --shape 4b --queries 2000 --batch 32
"""

from __future__ import annotations

import argparse
import gc
import json
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parts.models import SHAPES
from parts.subject import OurArm, Subject, allocated, describe, make_subject
from parts.windows import picture
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
    """One environment: its current episode, and the next when that is over."""

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
        self._history.append(picture(seed, self._step, self._size), self._step)
        self._step += 1
        self._left -= 1
        frames, steps = self._history.window()
        return Clip(frames, TASKS[self._episode % 3], self.name, steps)

    def ended(self, *, now: bool = False) -> bool:
        """Whether the episode is over, or has to be now; if so, the next one begins."""
        if self._left and not now:
            return False
        self._episode += 1
        self._begin()
        return True


def tensor_bytes() -> int:
    """Bytes of all tensors that are alive; what several share is counted once."""
    gc.collect()
    storages = {}
    for one in gc.get_objects():
        if issubclass(type(one), torch.Tensor):
            storage = one.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def resident_bytes() -> int:
    """What the process holds (RSS), or 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0


def held(subject: Subject, query: int) -> dict[str, float]:
    """What is held now."""
    tensors = tensor_bytes()
    return {
        "queries": query,
        "python_mb": tracemalloc.get_traced_memory()[0] / 1e6,
        "tensor_mb": tensors / 1e6,
        "device_mb": allocated(subject.device) / 1e6,
        "resident_mb": resident_bytes() / 1e6,
        "graphs": counters["stats"]["unique_graphs"],
    }


def apart(ours: Sequence[Prediction], others: Sequence[Prediction]) -> float:
    """The largest difference between two lists of predictions."""
    differences = [
        np.abs(getattr(one, name) - getattr(other, name)).max()
        for one, other in zip(ours, others, strict=True)
        for name in ("progress", "success")
    ]
    return float(np.max(differences))


def soak(subject: Subject, chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Ask and ask; yield what is held at each of the `SHARES`."""
    fast, eager = (subject.arms[name] for name in ("fast", "eager"))
    assert isinstance(fast, OurArm)
    assert isinstance(eager, OurArm)
    streams = [Stream(env, chosen.sizes) for env in range(chosen.batch)]
    stops = [round(share * chosen.queries) for share in SHARES]
    worst = 0.0
    for query in range(1, chosen.queries + 1):
        clips = [stream.clip() for stream in streams]
        names = [stream.name for stream in streams]
        told = fast.model.predict(clips)
        if query % EAGER_EVERY == 0:
            worst = float(np.maximum(worst, apart(told, eager.model.predict(clips))))  # keeps a NaN
        for name, stream in zip(names, streams, strict=True):
            if stream.ended(now=query in stops):
                fast.model.release(name)
        del clips, told
        if query in stops:
            if query == stops[0]:
                tracemalloc.start()
            yield {**held(subject, query), "apart": worst, "engine": fast.model.engine_info()}


def size(text: str) -> tuple[int, int]:
    """Read "240x320" as height and width."""
    height, width = text.split("x")
    return int(height), int(width)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Whether the engine grows.")
    parser.add_argument("--queries", type=int, default=2000, help=">= 100")
    parser.add_argument("--batch", type=int, default=4, help="streams per query")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--sizes", type=size, nargs="+", default=[(64, 64), (96, 64)], help="HxW")
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
    """Ask, print a table, and the same as one line of JSON."""
    chosen = parse(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    device, dtype = torch.device(chosen.device), getattr(torch, chosen.dtype)
    subject = make_subject(chosen.shape, "small", device, dtype)
    for name in ("eager", "fast"):
        subject.add(name, chosen.max_streams)
    names = list(BARS)
    print(f"| queries | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    rows = []
    try:
        for row in soak(subject, chosen):
            rows.append(row)
            print(f"| {row['queries']} | {' | '.join(f'{row[name]:.2f}' for name in names)} |")
    finally:
        tracemalloc.stop()
    growth = {name: rows[-1][name] - rows[0][name] for name in names}
    missed = [name for name, most in BARS.items() if growth[name] > most]
    print(f"| growth | {' | '.join(f'{growth[name]:.2f}' for name in names)} |")
    print(f"Bars missed: {', '.join(missed) or 'none'}.")
    worst = rows[-1]["apart"]
    told = {"benchmark": "engine_soak", "shape": chosen.shape, "batch": chosen.batch}
    told |= {**describe(subject), "rows": rows, "growth": growth, "bars": BARS, "missed": missed}
    print(json.dumps(told, default=str))
    if not worst <= (AGREEMENT if dtype.itemsize >= 4 else AGREEMENT_BELOW):
        raise SystemExit(f"The engine's answers differ from the eager path's by {worst:.2g}.")


if __name__ == "__main__":
    main()
