"""Results of the timed queries: figures per cell, bars, agreement of the arms, markdown."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from harness.arms import ARMS, Arms, LeRobotArm
from harness.lerobot_path import LeRobotPath
from harness.report import markdown_table
from harness.timing import Measured, filled_ms
from harness.windows import FULL

__all__ = ["cell_figures", "disagreement", "judge", "judge_precision", "report", "table"]

CPU_BARS = {"anchored": 8.0, "linspace": 2.5, FULL: 1.3}
GPU_BARS = {
    **{("anchored", 1): 12.0, ("anchored", 8): 20.0, ("anchored", 32): 25.0},
    **{("linspace", batch): 8.0 for batch in (1, 8, 32, 64)},
}
FLOOR_BARS = {("anchored", 8): 2.0, ("anchored", 32): 2.0, (FULL, 32): 1.4}
AGREEMENT = {"float32": 1e-4, "float64": 1e-4}
AGREEMENT_BELOW = 0.05
PRECISION_BAR = 1.2


def cell_figures(arms: Arms, measured: Measured, on_gpu: bool, shape: str) -> dict[str, Any]:
    """Return the figures of one cell, for the JSON."""
    cell = measured.cell
    figures: dict[str, Any] = {
        "sampling": cell.sampling,
        "batch": cell.batch,
        "size": "{}x{}".format(*cell.size),
        "queries": len(measured.lengths),
    }
    for name in arms.by_name:
        values = filled_ms(measured, name)
        figures[name] = {
            "p50_ms": statistics.median(values),
            "p95_ms": float(np.percentile(values, 95)),
            "mean_ms": statistics.fmean(values),
            "queries": sum(seconds is not None for seconds in measured.seconds[name]),
        }
        if on_gpu:
            figures[name]["peak_gb"] = measured.peak[name] / 1e9
    ours = figures.get("fast")
    for name in arms.by_name:
        if name != "fast" and ours:
            figures[name]["ratio"] = figures[name]["p50_ms"] / ours["p50_ms"]
            figures[name]["per_episode"] = figures[name]["mean_ms"] / ours["mean_ms"]
    figures["differences"] = {
        name: each.tolist() for name, each in measured.differences.items() if name != "lerobot"
    }
    if measured.floors:
        figures["floor_ms"] = statistics.fmean(measured.floors)
    return {**figures, **judge(figures, on_gpu, shape)}


def judge(figures: dict[str, Any], on_gpu: bool, shape: str) -> dict[str, Any]:
    """Return the bars of a cell, and whether they are met; nothing where none was set."""
    if "ratio" not in figures.get("lerobot", {}):
        return {}
    key, size = (figures["sampling"], figures["batch"]), figures["size"]
    theirs, bars = figures["lerobot"], {}
    if shape == "8+8" and not on_gpu and size == "224x224" and key[1] in (1, 8):
        bars["bar"] = CPU_BARS.get(key[0])
    elif shape == "4b" and on_gpu and size == "224x224":
        bars["bar"], bars["floor_bar"] = GPU_BARS.get(key), FLOOR_BARS.get(key)
    bars = {name: bar for name, bar in bars.items() if bar is not None}
    if not bars:
        return {}
    met = min(theirs["ratio"], theirs["per_episode"]) >= bars.get("bar", 0.0)
    if "floor_bar" in bars:
        met &= figures["fast"]["mean_ms"] <= bars["floor_bar"] * figures["floor_ms"]
    return {**bars, "met": met}


def judge_precision(arms: Arms, cells: Sequence[Measured]) -> dict[str, Any]:
    """Return the mean error of each arm's progress against LeRobot's path in float32.

    Nothing is computed where the arms are in float32 themselves.
    """
    errors: dict[str, list[float]] = defaultdict(list)
    if arms.dtype.itemsize < 4:
        model = arms.network(cast=torch.float32)
        exact = LeRobotArm(LeRobotPath(model, arms.processor.tokenizer))
        for measured in cells:
            for window, values in measured.kept:
                (truth,) = exact.values(exact.predict(exact.prepare([window])))
                for name, value in values.items():
                    errors[name].append(float(np.abs(value[0] - truth[0]).mean()))
    means = {name: statistics.fmean(each) for name, each in errors.items()}
    judged: dict[str, Any] = {"precision": means}
    others = {name: error for name, error in means.items() if name != "fast"}
    if others and "fast" in means:
        best = min(others, key=lambda name: others[name])
        share = means["fast"] / others[best]
        met = "" if share <= PRECISION_BAR else " **missed**"
        judged["precision_verdict"] = f"fast / {best} {share:.2f}, bar <= {PRECISION_BAR}{met}"
    return judged


def disagreement(result: dict[str, Any]) -> str:
    """Return the arms that predict something else than LeRobot's path; nothing if none does."""
    limit = AGREEMENT.get(result["dtype"], AGREEMENT_BELOW)
    wrong = [
        f"{name} differs by {np.max(largest):.2g} at {cell['sampling']!r}, batch {cell['batch']}"
        for cell in result["cells"]
        for name, largest in cell["differences"].items()
        if not np.max(largest) <= limit  # a NaN is no agreement
    ]
    return "; ".join(wrong)


def table(result: dict[str, Any]) -> list[str]:
    """Return the cells as markdown, an arm's times beside its ratio to ours."""
    others = [name for name in ARMS if name != "fast" and name in result["cells"][0]]
    titles = ["query", "size", "batch"]
    for name in others:
        titles += [f"{name} queries", "p50", "p95", "ratio", "per episode"]
    titles += ["fast queries", "p50", "p95", "mean", "bar"]
    if result["on_gpu"]:
        titles += ["floor", "mean / floor", "peak GB, lerobot", "fast"]
    return markdown_table(titles, [_row(cell, others) for cell in result["cells"]])


def _row(cell: dict[str, Any], others: list[str]) -> list[str]:
    row = [cell["sampling"], cell["size"], str(cell["batch"])]
    for name in others:
        other = cell[name]
        row += [str(other["queries"]), f"{other['p50_ms']:.1f}", f"{other['p95_ms']:.1f}"]
        row += [f"{other['ratio']:.2f}", f"{other['per_episode']:.2f}"]
    ours = cell["fast"]
    row.append(str(ours["queries"]))
    row += [f"{ours[each]:.1f}" for each in ("p50_ms", "p95_ms", "mean_ms")]
    bars = [f">= {cell['bar']:g}"] if "bar" in cell else []
    bars += [f"<= {cell['floor_bar']:g} floors"] if "floor_bar" in cell else []
    row.append(", ".join(bars) + ("" if cell.get("met", True) else " **missed**"))
    if "peak_gb" in ours:
        floor = cell.get("floor_ms")
        row += [f"{floor:.2f}", f"{ours['mean_ms'] / floor:.2f}"] if floor else ["", ""]
        row += [f"{cell.get(name, ours)['peak_gb']:.1f}" for name in ("lerobot", "fast")]
    return row


def report(result: dict[str, Any]) -> list[str]:
    """Return the whole run as markdown."""
    machine = ", ".join(
        f"{name} {result[name]}"
        for name in ("device", "threads", "dtype", "python", "torch", "transformers")
    )
    largest = {
        name: np.max([cell["differences"].get(name, [0.0, 0.0]) for cell in result["cells"]])
        for name in result["cells"][0]["differences"]
    }
    lines = [
        f"`python benchmarks/reward_query.py {result['arguments']}`",
        "",
        f"Milliseconds per query. {machine}; shape {result['shape']}, {result['vocabulary']} rows, "
        f"{result['prompt_tokens']} tokens before the first image.",
        "",
        *table(result),
        "",
        *(f"Largest difference of {k} from lerobot: {v:.1e}." for k, v in largest.items()),
    ]
    if result["precision"]:
        errors = ", ".join(f"{name} {error:.1e}" for name, error in result["precision"].items())
        verdict = result.get("precision_verdict", "not judged")
        lines.append(f"Mean error of progress against float32: {errors}; {verdict}.")
    cold = ", ".join(
        f"{name} {each['build_s']:.1f} + {each['first_query_s']:.1f}"
        for name, each in result["cold"].items()
    )
    return [*lines, f"Cold start, seconds to make it + its first query: {cold}."]
