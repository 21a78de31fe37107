"""How long one query takes, from numpy frames to floats: our engine beside LeRobot's path.

Quantity: milliseconds per query. A query shows one window of at most 8 frames of each of B streams;
a stream grows by one frame per query, and a prediction is made at every query of an episode.
    - "anchored", "linspace", "tail": the rules by which `FrameHistory` picks the window.
    - "full window": every query shows 8 frames of streams never seen before; the task was seen.
The arms:
    - "lerobot": what LeRobot 0.6.1 does, step by step, on transformers' public API
      (`parts/lerobot_path.py`): PIL, chat template, processor, all hidden states, logits over the
      vocabulary at every token, heads and softmax sample by sample.
    - "lerobot-linear": the same with the patch embedding as a matrix product, because some versions
      of torch and cuDNN are slow at the convolution that is there.
    - "eager": `RobometerRewardModel(..., engine="eager")`.
    - "fast": the same with engine="fast". This is the one that is judged.
Method: random weights, the same in every arm, each with its own copy. The arms are asked the same
windows by turns, the one that begins changing from query to query; each call is timed by itself
(time.perf_counter, with torch.cuda.synchronize before and after on a GPU). For LeRobot's path the
frames are stacked before the clock starts, for ours the making of the clips counts. The first
episode is the warm-up and does not count. Everything but "fast" keeps nothing between queries, and
its time depends on the length of the window alone: with --asks N it is asked N times per length,
spread over the episodes, and at the other queries its median for that length stands in.
    - p50, p95: over all queries. "ratio": of the medians.
    - "per episode": ratio of the times of whole episodes, which counts the queries at which a
      window is built anew. A bar is met when both ratios reach it.
Agreement: the largest difference between the arms' answers is printed, and the script fails when it
exceeds 1e-4 in float32 (0.05 below float32). Below float32, the mean error of either against
LeRobot's path in float32 is measured as well, over up to 64 windows of each cell; ours may be at
most 1.2 times that of the best other arm.
Vocabulary: the released checkpoint has 151,674 rows, and LeRobot's path computes a logit for each
at every token. "--vocabulary small" leaves out the unused ones: a lower bound for every ratio.
Floor (4B shape on a GPU): `parts/floors.py`, for an H200, as a mean over the queries of an episode.
Hardware: any, see the header that is printed. On two CPU cores one cell at batch 8 takes about five
minutes with --asks 2; the 4B shape needs a GPU with 40 GB (its peak memory is printed).

    python benchmarks/reward_query.py --asks 4 --batches 1
    python benchmarks/reward_query.py --asks 2 --batches 8 --samplings anchored --out FILE
    python benchmarks/reward_query.py --shape 4b --batches 1 8 32 64 --sizes 224x224 240x320
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parts.lerobot_path import LeRobotPath
from parts.measuring import Measured, Plan, filled, measure
from parts.models import SHAPES
from parts.subject import ARMS, LeRobotArm, Subject, describe, make_subject, quiet
from parts.windows import FULL, Cell

SAMPLINGS = ("anchored", "linspace", "tail", FULL)
CPU_BARS = {"anchored": 8.0, "linspace": 2.5, FULL: 1.3}
GPU_BARS = {
    **{("anchored", 1): 12.0, ("anchored", 8): 20.0, ("anchored", 32): 25.0},
    **{("linspace", batch): 8.0 for batch in (1, 8, 32, 64)},
}
FLOOR_BARS = {("anchored", 8): 2.0, ("anchored", 32): 2.0, (FULL, 32): 1.4}
AGREEMENT = {"float32": 1e-4, "float64": 1e-4}
AGREEMENT_BELOW = 0.05
PRECISION_BAR = 1.2


def summary(subject: Subject, found: Measured, on_gpu: bool, shape: str) -> dict[str, Any]:
    """One cell as it goes into the JSON."""
    cell = found.cell
    told: dict[str, Any] = {
        "sampling": cell.sampling,
        "batch": cell.batch,
        "size": "{}x{}".format(*cell.size),
        "queries": len(found.lengths),
    }
    times = {name: filled(found, name) for name in subject.arms}
    for name, values in times.items():
        told[name] = {
            "p50_ms": statistics.median(values),
            "p95_ms": float(np.percentile(values, 95)),
            "mean_ms": statistics.fmean(values),
            "asked": sum(seconds is not None for seconds in found.seconds[name]),
        }
        if on_gpu:
            told[name]["peak_gb"] = found.peak[name] / 1e9
    for name in times:
        if name != "fast" and "fast" in times:
            ours = told["fast"]
            told[name]["ratio"] = told[name]["p50_ms"] / ours["p50_ms"]
            told[name]["per_episode"] = told[name]["mean_ms"] / ours["mean_ms"]
    told["apart"] = {name: each.tolist() for name, each in found.apart.items() if name != "lerobot"}
    if found.floors:
        told["floor_ms"] = statistics.fmean(found.floors)
    return {**told, **verdict(told, on_gpu, shape)}


def verdict(told: dict[str, Any], on_gpu: bool, shape: str) -> dict[str, Any]:
    """The bars of a cell, and whether they are met; nothing where none was set."""
    if "ratio" not in told.get("lerobot", {}):
        return {}
    key, size = (told["sampling"], told["batch"]), told["size"]
    theirs, bars = told["lerobot"], {}
    if shape == "8+8" and not on_gpu and size == "224x224" and key[1] in (1, 8):
        bars["bar"] = CPU_BARS.get(key[0])
    elif shape == "4b" and on_gpu and size == "224x224":
        bars["bar"], bars["floor_bar"] = GPU_BARS.get(key), FLOOR_BARS.get(key)
    bars = {name: bar for name, bar in bars.items() if bar is not None}
    if not bars:
        return {}
    met = min(theirs["ratio"], theirs["per_episode"]) >= bars.get("bar", 0.0)
    if "floor_bar" in bars:
        met &= told["fast"]["mean_ms"] <= bars["floor_bar"] * told["floor_ms"]
    return {**bars, "met": met}


def precision(subject: Subject, cells: Sequence[Measured]) -> dict[str, float]:
    """Mean error of each arm's progress against LeRobot's path in float32; empty in float32."""
    if subject.dtype.itemsize >= 4:
        return {}
    model = subject.network(cast=torch.float32)
    exact = LeRobotArm(LeRobotPath(model, subject.processor.tokenizer))
    errors: dict[str, list[float]] = defaultdict(list)
    for found in cells:
        for window, answers in found.kept:
            (truth,) = exact.read(exact.ask(exact.prepare([window])))
            for name, answer in answers.items():
                errors[name].append(float(np.abs(answer[0] - truth[0]).mean()))
    return {name: statistics.fmean(each) for name, each in errors.items()}


def judged_precision(errors: dict[str, float]) -> dict[str, Any]:
    """The errors, and what is to be said of ours."""
    told: dict[str, Any] = {"precision": errors}
    others = {name: error for name, error in errors.items() if name != "fast"}
    if others and "fast" in errors:
        best = min(others, key=lambda name: others[name])
        share = errors["fast"] / others[best]
        met = "" if share <= PRECISION_BAR else " **missed**"
        told["precision_verdict"] = f"fast / {best} {share:.2f}, bar <= {PRECISION_BAR}{met}"
    return told


def disagreement(told: dict[str, Any]) -> str:
    """Say which arms answer something else than LeRobot's path; nothing if none does."""
    most = AGREEMENT.get(told["dtype"], AGREEMENT_BELOW)
    wrong = [
        f"{name} differs by {np.max(apart):.2g} at {cell['sampling']!r}, batch {cell['batch']}"
        for cell in told["cells"]
        for name, apart in cell["apart"].items()
        if not np.max(apart) <= most  # a NaN is no agreement
    ]
    return "; ".join(wrong)


def table(told: dict[str, Any]) -> list[str]:
    """The cells as markdown, an arm's times beside its ratio to ours."""
    others = [name for name in ARMS if name != "fast" and name in told["cells"][0]]
    titles = ["query", "size", "batch"]
    for name in others:
        titles += [f"{name} asked", "p50", "p95", "ratio", "per episode"]
    titles += ["fast asked", "p50", "p95", "mean", "bar"]
    if told["on_gpu"]:
        titles += ["floor", "mean / floor", "peak GB, lerobot", "fast"]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    return lines + [f"| {' | '.join(_row(cell, others))} |" for cell in told["cells"]]


def _row(cell: dict[str, Any], others: list[str]) -> list[str]:
    row = [cell["sampling"], cell["size"], str(cell["batch"])]
    for name in others:
        other = cell[name]
        row += [str(other["asked"]), f"{other['p50_ms']:.1f}", f"{other['p95_ms']:.1f}"]
        row += [f"{other['ratio']:.2f}", f"{other['per_episode']:.2f}"]
    ours = cell["fast"]
    row.append(str(ours["asked"]))
    row += [f"{ours[each]:.1f}" for each in ("p50_ms", "p95_ms", "mean_ms")]
    bars = [f">= {cell['bar']:g}"] if "bar" in cell else []
    bars += [f"<= {cell['floor_bar']:g} floors"] if "floor_bar" in cell else []
    row.append(", ".join(bars) + ("" if cell.get("met", True) else " **missed**"))
    if "peak_gb" in ours:
        floor = cell.get("floor_ms")
        row += [f"{floor:.2f}", f"{ours['mean_ms'] / floor:.2f}"] if floor else ["", ""]
        row += [f"{cell.get(name, ours)['peak_gb']:.1f}" for name in ("lerobot", "fast")]
    return row


def report(told: dict[str, Any]) -> list[str]:
    """The whole run as markdown."""
    about = ", ".join(
        f"{name} {told[name]}"
        for name in ("device", "threads", "dtype", "python", "torch", "transformers")
    )
    apart = {
        name: np.max([cell["apart"].get(name, [0.0, 0.0]) for cell in told["cells"]])
        for name in told["cells"][0]["apart"]
    }
    lines = [
        f"`python benchmarks/reward_query.py {told['arguments']}`",
        "",
        f"Milliseconds per query. {about}; shape {told['shape']}, {told['vocabulary']} rows, "
        f"{told['question_tokens']} tokens before the first picture.",
        "",
        *table(told),
        "",
        *(f"Largest difference of {k} from lerobot's answers: {v:.1e}." for k, v in apart.items()),
    ]
    if told["precision"]:
        errors = ", ".join(f"{name} {error:.1e}" for name, error in told["precision"].items())
        verdict_of = told.get("precision_verdict", "not judged")
        lines.append(f"Mean error of progress against float32: {errors}; {verdict_of}.")
    cold = ", ".join(
        f"{name} {each['build_s']:.1f} + {each['first_query_s']:.1f}"
        for name, each in told["cold"].items()
    )
    return [*lines, f"Cold start, seconds to make it + its first query: {cold}."]


def rounded(value: Any) -> Any:
    """The same with five significant digits everywhere."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def size(text: str) -> tuple[int, int]:
    """Read "240x320" as height and width."""
    height, width = text.split("x")
    return int(height), int(width)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, and refuse what cannot be measured."""
    parser = argparse.ArgumentParser(description="How long one query takes.")
    parser.add_argument("--shape", choices=SHAPES, default="8+8")
    parser.add_argument("--vocabulary", choices=("released", "small"), default="released")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--sizes", type=size, nargs="+", default=[(224, 224)], help="HxW")
    parser.add_argument("--samplings", choices=SAMPLINGS, nargs="+", default=list(SAMPLINGS))
    parser.add_argument("--arms", choices=ARMS, nargs="+", default=["lerobot", "fast"])
    parser.add_argument("--queries", type=int, default=24, help="per episode")
    parser.add_argument("--episodes", type=int, default=2, help="that count")
    parser.add_argument("--warm-up", type=int, help="queries; 2, on a GPU an episode")
    parser.add_argument("--asks", type=int, default=0, help="of other arms, per length; 0: always")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float64"))
    parser.add_argument("--threads", type=int, help="of torch; by default all cores")
    parser.add_argument("--max-streams", type=int, default=64, help="that our engine keeps")
    parser.add_argument("--out", type=Path, help="file to which the table is added, markdown")
    chosen = parser.parse_args(arguments)
    on_gpu = torch.device(chosen.device).type == "cuda"
    chosen.dtype = chosen.dtype or ("bfloat16" if on_gpu else "float32")
    if chosen.warm_up is None:
        chosen.warm_up = chosen.queries if on_gpu else 2
    least = {"queries": 1, "episodes": 1, "warm_up": 1, "asks": 0}
    if any(getattr(chosen, name) < value for name, value in least.items()):
        parser.error("--queries, --episodes and --warm-up must be >= 1, --asks >= 0")
    if "fast" not in chosen.arms:
        parser.error("--arms must include 'fast', which the others are compared with")
    return chosen


def run(chosen: argparse.Namespace, arguments: str) -> dict[str, Any]:
    """Measure all cells."""
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    on_gpu = device.type == "cuda"
    subject = make_subject(chosen.shape, chosen.vocabulary, device, getattr(torch, chosen.dtype))
    for name in chosen.arms:
        subject.add(name, chosen.max_streams)
    plan = Plan(chosen.queries, chosen.episodes, chosen.warm_up, chosen.asks, chosen.shape == "4b")
    cells = []
    for each in chosen.sizes:
        for batch in chosen.batches:
            for sampling in chosen.samplings:
                cells.append(measure(subject, Cell(sampling, batch, each), plan))
    fast: Any = subject.arms["fast"]
    return {
        "benchmark": "reward_query",
        "arguments": arguments,
        "shape": chosen.shape,
        **describe(subject),
        "on_gpu": on_gpu,
        "engine": fast.model.engine_info(),
        "cold": subject.cold,
        "cells": [summary(subject, cell, on_gpu, chosen.shape) for cell in cells],
        **judged_precision(precision(subject, cells)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and the same as one line of JSON."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    chosen = parse(given)
    with quiet():
        told = run(chosen, shlex.join(given))
    lines = report(told)
    print("\n".join(lines))
    if chosen.out:
        with chosen.out.open("a") as file:
            file.write("\n".join(lines) + "\n\n")
    print(json.dumps(rounded(told), default=str))
    if wrong := disagreement(told):
        raise SystemExit(f"The arms do not agree, so their times mean nothing: {wrong}.")


if __name__ == "__main__":
    main()
