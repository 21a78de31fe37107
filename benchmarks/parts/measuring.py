"""Asks the arms the same windows by turns, and takes down how long each took and what it said."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parts.floors import floor_ms
from parts.subject import Answers, Subject, allocated, forget_peak, peak, timed
from parts.windows import FULL, Cell, Window, blocks_to_read, episode
from robometer_gym.models.robometer.network.images import smart_size

__all__ = ["Measured", "Plan", "filled", "measure"]

_MOST_KEPT = 64


class Plan(NamedTuple):
    """How much is asked.

    Attributes:
        queries: per episode.
        episodes: that count.
        warm_up: queries of the episode that does not count.
        asks: how often an arm that keeps nothing is asked per length of the window; 0: always.
        floors: whether floors are known: those of the 4B are.
    """

    queries: int
    episodes: int
    warm_up: int
    asks: int
    floors: bool


@dataclass
class Measured:
    """What was found in one cell.

    Attributes:
        lengths: per query, how many frames a window had.
        seconds: per arm and query; None where the arm was not asked.
        floors: per query, milliseconds; empty where no floor is known.
        peak: per arm, bytes on the GPU: its own weights and caches, and what a query took on top.
        apart: per arm, the largest differences of progress and success from LeRobot's.
        kept: some windows, and each arm's answers to them.
    """

    cell: Cell
    lengths: list[int] = field(default_factory=list)
    seconds: dict[str, list[float | None]] = field(default_factory=lambda: defaultdict(list))
    floors: list[float] = field(default_factory=list)
    peak: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    apart: dict[str, NDArray[np.float64]] = field(default_factory=lambda: defaultdict(_nothing))
    kept: list[tuple[Window, dict[str, NDArray[np.float64]]]] = field(default_factory=list)

    def compare(self, windows: list[Window], told: dict[str, Answers]) -> None:
        """Take down how far the arms are apart."""
        if "lerobot" not in told:
            return
        for name, answers in told.items():
            for one, other in zip(answers, told["lerobot"], strict=True):
                self.apart[name] = np.maximum(self.apart[name], np.abs(one - other).max(axis=1))
        for row, window in enumerate(windows):
            if len(self.kept) < _MOST_KEPT:
                self.kept.append((window, {name: each[row] for name, each in told.items()}))


def _nothing() -> NDArray[np.float64]:
    return np.zeros(2)


def _ask(subject: Subject, name: str, windows: list[Window], found: Measured) -> Answers:
    """Ask one arm, and take down its time and memory."""
    device, arm = subject.device, subject.arms[name]
    prepared: Any = arm.prepare(windows)
    held = allocated(device)
    forget_peak(device)
    told, seconds = timed(device, lambda: arm.ask(prepared))
    # What others hold is not this arm's; what ours has cached belongs to it.
    own = subject.resident[name]
    others = sum(subject.resident.values()) - own if name == "fast" else held - own
    found.peak[name] = max(found.peak[name], peak(device) - others)
    subject.cold[name].setdefault("first_query_s", seconds)
    found.seconds[name].append(seconds)
    return arm.read(told)


def _is_due(found: Measured, name: str, length: int, most: float) -> bool:
    """Whether an arm is to be asked about a window of this length once more."""
    if name == "fast":
        return True
    times = found.seconds[name]
    asked = sum(
        seconds is not None and frames == length
        for seconds, frames in zip(times, found.lengths, strict=False)
    )
    return asked < most


def measure(subject: Subject, cell: Cell, plan: Plan) -> Measured:
    """Ask all arms about the episodes of one cell."""
    _run_episode(subject, Measured(cell), plan, "warm-up", plan.warm_up, most=1)
    found = Measured(cell)
    for number in range(plan.episodes):
        most = (number + 1) / plan.episodes * plan.asks if plan.asks else float("inf")
        _run_episode(subject, found, plan, number, plan.queries, most)
    return found


def _run_episode(
    subject: Subject,
    found: Measured,
    plan: Plan,
    name: str | int,
    queries: int,
    most: float,
) -> None:
    """Ask about one episode, arm by arm at each query."""
    cell = found.cell
    before: tuple[int, ...] = ()
    windows: list[Window] = []
    order = list(subject.arms)
    for windows in episode(cell, queries, name):
        steps = windows[0].steps
        due = [arm for arm in order if _is_due(found, arm, len(steps), most)]
        told = {arm: _ask(subject, arm, windows, found) for arm in due}
        for arm in set(order) - set(due):
            found.seconds[arm].append(None)
        found.lengths.append(len(steps))
        if plan.floors:
            found.floors.append(_floor(cell, before, steps))
        found.compare(windows, told)
        before = steps
        order.reverse()
        if cell.sampling == FULL:
            _release(subject, windows)
    _release(subject, windows)


def _release(subject: Subject, windows: list[Window]) -> None:
    for arm in subject.arms.values():
        arm.release(windows)


def _floor(cell: Cell, before: tuple[int, ...], now: tuple[int, ...]) -> float:
    """Milliseconds that a query takes at least, when all that can be kept was kept."""
    seen = smart_size(*cell.size, 32)
    if cell.sampling == FULL:
        return floor_ms(seen, cell.batch, pictures=len(now), blocks=len(now))
    blocks = blocks_to_read(before, now)
    return floor_ms(seen, cell.batch, pictures=1, blocks=blocks, reused=len(now) - blocks)


def filled(found: Measured, name: str) -> list[float]:
    """Milliseconds of every query; an arm that was not asked gets its median for that length."""
    times = found.seconds[name]
    by_length: dict[int, list[float]] = defaultdict(list)
    for length, seconds in zip(found.lengths, times, strict=True):
        if seconds is not None:
            by_length[length].append(1000 * seconds)
    return [
        statistics.median(by_length[length]) if seconds is None else 1000 * seconds
        for length, seconds in zip(found.lengths, times, strict=True)
    ]
