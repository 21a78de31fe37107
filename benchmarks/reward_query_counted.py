"""What one query costs, counted instead of timed: our engine beside LeRobot's path.

Quantity: of one query, as a mean over those of an episode,
    - "GFLOP": multiplications and additions of matrix products and attention, in billions
      (torch.utils.flop_counter). The ratio is what `reward_query.py` would find if nothing but
      arithmetic took time, and it were equally fast in both.
    - "calls": operations that torch is told to carry out, views left out. Without graphs each is
      a launch, or some, on a GPU.
Method: arms, windows and weights of `reward_query.py`, see there. A count is the same each time, so
LeRobot's path is asked once per length of the window; ours at every query of an episode, after
another one in which the task was seen for the first time.
Shapes: "8+8" is what is timed on CPUs. "deep" has the layers of the released 4B and next to no
width: its calls are the 4B's, its GFLOP mean nothing.
Hardware: any. What is counted is how a CPU is used, where attention goes row by row.

    python benchmarks/reward_query_counted.py
    python benchmarks/reward_query_counted.py --shape deep --vocabulary small --batches 1 8 32
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from parts.subject import Subject, make_subject, quiet
from parts.windows import FULL, Cell, Window, episode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

SAMPLINGS = ("anchored", "linspace", "tail", FULL)
SIZE = (224, 224)


class Count(NamedTuple):
    """What one query took."""

    flops: int
    calls: int


class Calls(TorchDispatchMode):
    """Counts what torch is told to compute."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.number = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count one operation, unless it is a view, or made of others: then those."""
        with self:
            made_of_others = func.decompose(*args, **(kwargs or {}))
        if made_of_others is not NotImplemented:
            return made_of_others
        self.number += not func.is_view
        return func(*args, **(kwargs or {}))


def ask(subject: Subject, name: str, windows: list[Window]) -> Count:
    """Ask one arm, and count."""
    arm: Any = subject.arms[name]
    prepared = arm.prepare(windows)
    with FlopCounterMode(display=False) as flops, Calls() as calls:
        arm.ask(prepared)
    return Count(flops.get_total_flops(), calls.number)


def count(subject: Subject, cell: Cell, queries: int) -> dict[str, Any]:
    """Ask about one episode, and return the means."""
    ours: Any = subject.arms["fast"]
    theirs: dict[int, Count] = {}
    found: dict[str, list[Count]] = {"lerobot": [], "fast": []}
    for windows in episode(cell, 1, "warm-up"):
        ours.ask(windows)
        ours.release(windows)
    for windows in episode(cell, 1 if cell.sampling == FULL else queries, "counted"):
        length = len(windows[0].frames)
        if length not in theirs:
            theirs[length] = ask(subject, "lerobot", windows)
        found["lerobot"].append(theirs[length])
        found["fast"].append(ask(subject, "fast", windows))
    ours.release(windows)
    told: dict[str, Any] = {"sampling": cell.sampling, "batch": cell.batch}
    for name, each in found.items():
        flops, calls = (statistics.fmean(values) for values in zip(*each, strict=True))
        told[name] = {"gflop": flops / 1e9, "calls": calls}
    return told


def table(cells: Sequence[dict[str, Any]]) -> list[str]:
    """The cells as markdown."""
    titles = ["query", "batch", "lerobot GFLOP", "fast", "ratio", "lerobot calls", "fast", "ratio"]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for cell in cells:
        row = [cell["sampling"], str(cell["batch"])]
        for what, digits in (("gflop", 1), ("calls", 0)):
            theirs, ours = cell["lerobot"][what], cell["fast"][what]
            row += [f"{theirs:.{digits}f}", f"{ours:.{digits}f}", f"{theirs / ours:.2f}"]
        lines.append(f"| {' | '.join(row)} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, print a table, and the same as one line of JSON."""
    parser = argparse.ArgumentParser(description="What one query costs, counted.")
    parser.add_argument("--shape", choices=("tiny", "8+8", "deep"), default="8+8")
    parser.add_argument("--vocabulary", choices=("released", "small"), default="released")
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--samplings", choices=SAMPLINGS, nargs="+", default=list(SAMPLINGS))
    parser.add_argument("--queries", type=int, default=24, help="per episode")
    chosen = parser.parse_args(arguments)
    if min(chosen.queries, *chosen.batches) < 1:
        parser.error("--queries and --batches must be >= 1")
    cpu = torch.device("cpu")
    subject = make_subject(chosen.shape, chosen.vocabulary, cpu, torch.float32)
    for name in ("lerobot", "fast"):
        subject.add(name, max_streams=64)
    with quiet():
        cells = [
            count(subject, Cell(sampling, batch, SIZE), chosen.queries)
            for batch in chosen.batches
            for sampling in chosen.samplings
        ]
    print("\n".join(table(cells)))
    told = {
        "benchmark": "reward_query_counted",
        "arguments": list(sys.argv[1:] if arguments is None else arguments),
        "torch": torch.__version__,
        "cells": cells,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
