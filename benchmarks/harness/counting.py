"""Counted queries: operations and calls of torch instead of time.

Counts are the same each time, so LeRobot's path is run once per window length; our engine at every
query of an episode, after an episode in which the task was new.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from harness.arms import Arms
from harness.report import markdown_table
from harness.windows import FULL, Cell, Window, episode

__all__ = ["CallCounter", "count_cell", "count_table"]


class Count(NamedTuple):
    """Cost of one query."""

    flops: int
    calls: int


class CallCounter(TorchDispatchMode):
    """Counts the operations that torch carries out, views left out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count one operation, or its parts if it is made of others."""
        with self:
            decomposed = func.decompose(*args, **(kwargs or {}))
        if decomposed is not NotImplemented:
            return decomposed
        self.calls += not func.is_view
        return func(*args, **(kwargs or {}))


def count_cell(arms: Arms, cell: Cell, queries: int) -> dict[str, Any]:
    """Run one episode, and return the means over its queries."""
    ours: Any = arms.by_name["fast"]
    theirs: dict[int, Count] = {}
    counts: dict[str, list[Count]] = {"lerobot": [], "fast": []}
    windows: list[Window] = []
    for windows in episode(cell, 1, "warm-up"):
        ours.predict(windows)
        ours.release(windows)
    for windows in episode(cell, 1 if cell.sampling == FULL else queries, "counted"):
        length = len(windows[0].frames)
        if length not in theirs:
            theirs[length] = _count_query(arms, "lerobot", windows)
        counts["lerobot"].append(theirs[length])
        counts["fast"].append(_count_query(arms, "fast", windows))
    ours.release(windows)
    result: dict[str, Any] = {"sampling": cell.sampling, "batch": cell.batch}
    for name, each in counts.items():
        flops, calls = (statistics.fmean(values) for values in zip(*each, strict=True))
        result[name] = {"gflop": flops / 1e9, "calls": calls}
    return result


def _count_query(arms: Arms, name: str, windows: list[Window]) -> Count:
    arm = arms.by_name[name]
    prepared: Any = arm.prepare(windows)
    with FlopCounterMode(display=False) as flops, CallCounter() as counter:
        arm.predict(prepared)
    return Count(flops.get_total_flops(), counter.calls)


def count_table(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Return the cells as a markdown table."""
    titles = ["query", "batch", "lerobot GFLOP", "fast", "ratio", "lerobot calls", "fast", "ratio"]
    rows = []
    for cell in cells:
        row = [cell["sampling"], str(cell["batch"])]
        for unit, digits in (("gflop", 1), ("calls", 0)):
            theirs, ours = cell["lerobot"][unit], cell["fast"][unit]
            row += [f"{theirs:.{digits}f}", f"{ours:.{digits}f}", f"{theirs / ours:.2f}"]
        rows.append(row)
    return markdown_table(titles, rows)
