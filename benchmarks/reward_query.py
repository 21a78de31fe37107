"""Cost of one query, from numpy frames to floats: our engine beside LeRobot's path.

Quantity: milliseconds per query, or with --count operations and calls. A query shows one window of
at most 8 frames of each of B streams; a stream grows by one frame per query, and a prediction is
made at every query of an episode.
    - "anchored", "linspace", "tail": the rules by which `FrameHistory` picks the window.
    - "full window": every query shows 8 frames of new streams; the task is known.
The arms:
    - "lerobot": LeRobot 0.6.1 step by step, on transformers' public API
      (`harness/lerobot_path.py`): PIL, chat template, processor, all hidden states, logits over the
      vocabulary at every token, heads and softmax sample by sample.
    - "lerobot-linear": the same with the patch embedding as a matrix product, because some versions
      of torch and cuDNN are slow at its convolution.
    - "eager": `RobometerRewardModel(..., engine="eager")`.
    - "fast": the same with engine="fast". This one is judged.
Method: random weights, the same in every arm, each with its own copy. The arms predict the same
windows by turns, the first one changing from query to query; each call is timed by itself
(time.perf_counter, with torch.cuda.synchronize before and after on a GPU). For LeRobot's path the
frames are stacked before the clock starts, for ours the making of the clips counts. The first
episode is the warm-up and does not count. Every arm but "fast" keeps nothing between queries, so
its time depends on the length of the window alone: with --per-length N it runs N times per length,
spread over the episodes, and its median for that length stands in at the other queries.
    - p50, p95: over all queries. "ratio": of the medians.
    - "per episode": ratio of the times of whole episodes, which counts the queries at which a
      window is rebuilt. A bar is met when both ratios reach it.
Agreement: the largest difference between the arms' predictions is printed, and the script fails
when it exceeds 1e-4 in float32 (0.05 below float32). Below float32, the mean error of each arm
against LeRobot's path in float32 is measured as well, over up to 64 windows of each cell; ours may
be at most 1.2 times that of the best other arm.
Vocabulary: the released checkpoint has 151,674 rows, and LeRobot's path computes a logit for each
at every token. "--vocabulary small" leaves out the unused ones: a lower bound for every ratio.
Floor (4B shape on a GPU): `harness/floors.py`, for an H200, as a mean over the queries of an
episode.
Counted (--count, on a CPU): "GFLOP", multiplications and additions of matrix products and attention
in billions (torch.utils.flop_counter), and "calls", operations of torch, views left out; without
CUDA graphs each is a launch, or some, on a GPU. The shape "deep" has the layers of the released 4B
and next to no width: its calls are the 4B's, its GFLOP mean nothing.
Hardware: any, see the printed header. On two CPU cores one cell at batch 8 takes about five minutes
with --per-length 2; the 4B shape needs a GPU with 40 GB (its peak memory is printed).

    python benchmarks/reward_query.py --per-length 4 --batches 1
    python benchmarks/reward_query.py --per-length 2 --batches 8 --samplings anchored --out FILE
    python benchmarks/reward_query.py --shape 4b --batches 1 8 32 64 --sizes 224x224 240x320
    python benchmarks/reward_query.py --count --shape deep --vocabulary small --batches 1 8 32
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from harness.arms import ARMS, Arms, describe, make_arms, quiet_transformers
from harness.counting import count_cell, count_table
from harness.networks import SHAPES
from harness.query_report import cell_figures, disagreement, judge_precision, report
from harness.report import parse_size, print_json
from harness.timing import Plan, measure_cell
from harness.windows import FULL, Cell

SAMPLINGS = ("anchored", "linspace", "tail", FULL)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, and refuse arguments that cannot be measured."""
    parser = argparse.ArgumentParser(description="Cost of one query.")
    parser.add_argument("--count", action="store_true", help="count operations instead of time")
    parser.add_argument("--shape", choices=SHAPES, default="8+8")
    parser.add_argument("--vocabulary", choices=("released", "small"), default="released")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--sizes", type=parse_size, nargs="+", default=[(224, 224)], help="HxW")
    parser.add_argument("--samplings", choices=SAMPLINGS, nargs="+", default=list(SAMPLINGS))
    parser.add_argument("--arms", choices=ARMS, nargs="+", default=["lerobot", "fast"])
    parser.add_argument("--queries", type=int, default=24, help="per episode")
    parser.add_argument("--episodes", type=int, default=2, help="that count")
    parser.add_argument("--warm-up", type=int, help="queries; 2, on a GPU an episode")
    parser.add_argument("--per-length", type=int, default=0, help="queries of other arms; 0: all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float64"))
    parser.add_argument("--threads", type=int, help="of torch; by default all cores")
    parser.add_argument("--max-streams", type=int, default=64, help="that our engine keeps")
    parser.add_argument("--out", type=Path, help="file to which the table is added, markdown")
    chosen = parser.parse_args(arguments)
    if chosen.count:
        chosen.device, chosen.dtype, chosen.arms = "cpu", "float32", ["lerobot", "fast"]
    on_gpu = torch.device(chosen.device).type == "cuda"
    chosen.dtype = chosen.dtype or ("bfloat16" if on_gpu else "float32")
    if chosen.warm_up is None:
        chosen.warm_up = chosen.queries if on_gpu else 2
    least = {"queries": 1, "episodes": 1, "warm_up": 1, "per_length": 0}
    if any(getattr(chosen, name) < value for name, value in least.items()):
        parser.error("--queries, --episodes and --warm-up must be >= 1, --per-length >= 0")
    if min(chosen.batches) < 1:
        parser.error("--batches must be >= 1")
    if "fast" not in chosen.arms:
        parser.error("--arms must include 'fast', with which the others are compared")
    return chosen


def time_cells(arms: Arms, cells: Sequence[Cell], chosen: argparse.Namespace) -> dict[str, Any]:
    """Time all cells."""
    plan = Plan(
        chosen.queries, chosen.episodes, chosen.warm_up, chosen.per_length, chosen.shape == "4b"
    )
    measured = [measure_cell(arms, cell, plan) for cell in cells]
    on_gpu = arms.device.type == "cuda"
    fast: Any = arms.by_name["fast"]
    return {
        "on_gpu": on_gpu,
        "engine": fast.model.engine_info(),
        "cold": arms.cold,
        "cells": [cell_figures(arms, each, on_gpu, chosen.shape) for each in measured],
        **judge_precision(arms, measured),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and the same as one line of JSON."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    chosen = parse(given)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    device, dtype = torch.device(chosen.device), getattr(torch, chosen.dtype)
    arms = make_arms(chosen.shape, chosen.vocabulary, device, dtype)
    for name in chosen.arms:
        arms.add(name, chosen.max_streams)
    grid = itertools.product(chosen.sizes, chosen.batches, chosen.samplings)
    cells = [Cell(sampling, batch, size) for size, batch, sampling in grid]
    result = {"arguments": shlex.join(given), "shape": chosen.shape, **describe(arms)}
    with quiet_transformers():
        if chosen.count:
            result["cells"] = [count_cell(arms, cell, chosen.queries) for cell in cells]
            lines = count_table(result["cells"])
        else:
            result |= time_cells(arms, cells, chosen)
            lines = report(result)
    print("\n".join(lines))
    if chosen.out:
        with chosen.out.open("a") as file:
            file.write("\n".join(lines) + "\n\n")
    print_json("reward_query_counted" if chosen.count else "reward_query", **result)
    if not chosen.count and (wrong := disagreement(result)):
        raise SystemExit(f"The arms do not agree, so their times mean nothing: {wrong}.")


if __name__ == "__main__":
    main()
