"""Output of the benchmarks: markdown tables, one line of JSON, the machine, memory."""

from __future__ import annotations

import json
import os
import platform
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["cpu_name", "markdown_table", "parse_size", "print_json", "resident_bytes"]


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a markdown table."""
    ruler = "|" + "---|" * len(titles)
    return [f"| {' | '.join(titles)} |", ruler, *(f"| {' | '.join(row)} |" for row in rows)]


def print_json(benchmark: str, **result: Any) -> None:
    """Print the result as one line, floats with five significant digits."""
    described = {"benchmark": benchmark, "python": platform.python_version(), **result}
    print(json.dumps(_rounded(described), default=str), flush=True)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def parse_size(text: str) -> tuple[int, int]:
    """Read "240x320" as height and width."""
    try:
        height, width = map(int, text.split("x"))
    except ValueError:
        raise ArgumentTypeError(f"expected HxW, such as 240x320, got {text!r}") from None
    return height, width


def cpu_name() -> str:
    """Return the model name of the CPU and its number of cores."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return f"CPU, {names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def resident_bytes() -> int:
    """Return the resident memory of this process (RSS), 0 where /proc is missing."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0
