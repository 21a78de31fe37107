"""Timed queries: all arms predict the same windows by turns, and their values are compared."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.arms import (
    Arms,
    Values,
    allocated_bytes,
    max_allocated_bytes,
    reset_max_allocated,
    timed,
)
from harness.floors import floor_ms
from harness.windows import FULL, Cell, Window, blocks_to_read, episode
from robometer_gym.models.robometer.network.images import smart_size

__all__ = ["Measured", "Plan", "filled_ms", "measure_cell"]

_MAX_KEPT = 64


class Plan(NamedTuple):
    """Amount of work per cell.

    Attributes:
        queries: per episode.
        episodes: that count.
        warm_up: queries of the episode that does not count.
        per_length: queries of an arm that keeps nothing, per window length; 0: all.
        floors: whether floors are known: those of the 4B are.
    """

    queries: int
    episodes: int
    warm_up: int
    per_length: int
    floors: bool


@dataclass
class Measured:
    """Measurements of one cell.

    Attributes:
        cell: sampling, batch and size.
        lengths: per query, the number of frames in a window.
        seconds: per arm and query; None where the arm was left out.
        floors: per query, milliseconds; empty where no floor is known.
        peak: per arm, bytes on the GPU: its own weights and caches, and a query's on top.
        differences: per arm, the largest differences of progress and success from LeRobot's.
        kept: some windows, and each arm's values for them.
    """

    cell: Cell
    lengths: list[int] = field(default_factory=list)
    seconds: dict[str, list[float | None]] = field(default_factory=lambda: defaultdict(list))
    floors: list[float] = field(default_factory=list)
    peak: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    differences: dict[str, NDArray[np.float64]] = field(
        default_factory=lambda: defaultdict(lambda: np.zeros(2))
    )
    kept: list[tuple[Window, dict[str, NDArray[np.float64]]]] = field(default_factory=list)

    def compare(self, windows: list[Window], values: dict[str, Values]) -> None:
        """Update the differences from LeRobot's values, where those were computed."""
        if "lerobot" not in values:
            return
        for name, ours in values.items():
            for one, other in zip(ours, values["lerobot"], strict=True):
                largest = np.abs(one - other).max(axis=1)
                self.differences[name] = np.maximum(self.differences[name], largest)  # keeps a NaN
        for row, window in enumerate(windows):
            if len(self.kept) < _MAX_KEPT:
                self.kept.append((window, {name: each[row] for name, each in values.items()}))


def measure_cell(arms: Arms, cell: Cell, plan: Plan) -> Measured:
    """Run all arms over the episodes of one cell."""
    _run_episode(arms, Measured(cell), plan, "warm-up", plan.warm_up, limit=1)
    measured = Measured(cell)
    for number in range(plan.episodes):
        share = (number + 1) / plan.episodes
        limit = share * plan.per_length if plan.per_length else float("inf")
        _run_episode(arms, measured, plan, number, plan.queries, limit)
    return measured


def _run_episode(
    arms: Arms, measured: Measured, plan: Plan, name: str | int, queries: int, limit: float
) -> None:
    """Run one episode, arm by arm at each query."""
    cell = measured.cell
    before: tuple[int, ...] = ()
    windows: list[Window] = []
    order = list(arms.by_name)
    for windows in episode(cell, queries, name):
        steps = windows[0].steps
        due = [arm for arm in order if _is_due(measured, arm, len(steps), limit)]
        values = {arm: _query(arms, arm, windows, measured) for arm in due}
        for arm in set(order) - set(due):
            measured.seconds[arm].append(None)
        measured.lengths.append(len(steps))
        if plan.floors:
            measured.floors.append(_floor_ms(cell, before, steps))
        measured.compare(windows, values)
        before = steps
        order.reverse()
        if cell.sampling == FULL:
            _release(arms, windows)
    _release(arms, windows)


def _is_due(measured: Measured, name: str, length: int, limit: float) -> bool:
    """Return whether an arm is to be timed once more for this window length."""
    if name == "fast":
        return True
    done = sum(
        seconds is not None and frames == length
        for seconds, frames in zip(measured.seconds[name], measured.lengths, strict=False)
    )
    return done < limit


def _query(arms: Arms, name: str, windows: list[Window], measured: Measured) -> Values:
    """Query one arm, and record its time and memory."""
    device, arm = arms.device, arms.by_name[name]
    prepared: Any = arm.prepare(windows)
    held = allocated_bytes(device)
    reset_max_allocated(device)
    predictions, seconds = timed(device, lambda: arm.predict(prepared))
    # Memory of other arms is not this one's; our cache belongs to ours.
    own = arms.resident[name]
    others = sum(arms.resident.values()) - own if name == "fast" else held - own
    measured.peak[name] = max(measured.peak[name], max_allocated_bytes(device) - others)
    arms.cold[name].setdefault("first_query_s", seconds)
    measured.seconds[name].append(seconds)
    return arm.values(predictions)


def _release(arms: Arms, windows: list[Window]) -> None:
    for arm in arms.by_name.values():
        arm.release(windows)


def _floor_ms(cell: Cell, before: tuple[int, ...], now: tuple[int, ...]) -> float:
    """Return the floor of a query, when everything that can be kept was kept."""
    seen = smart_size(*cell.size, 32)
    if cell.sampling == FULL:
        return floor_ms(seen, cell.batch, images=len(now), blocks=len(now))
    blocks = blocks_to_read(before, now)
    return floor_ms(seen, cell.batch, images=1, blocks=blocks, reused=len(now) - blocks)


def filled_ms(measured: Measured, name: str) -> list[float]:
    """Return milliseconds of every query; the median for its length stands in for a missing one."""
    times = measured.seconds[name]
    by_length: dict[int, list[float]] = defaultdict(list)
    for length, seconds in zip(measured.lengths, times, strict=True):
        if seconds is not None:
            by_length[length].append(1000 * seconds)
    return [
        statistics.median(by_length[length]) if seconds is None else 1000 * seconds
        for length, seconds in zip(measured.lengths, times, strict=True)
    ]
