"""The benchmarks run as they stand, and say what they promise. No figure is judged here."""

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


def benchmark(name: str) -> ModuleType:
    """A benchmark as a module: the folder is not a package."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_wrapper_overhead_prints_a_table_and_one_line_of_json(capsys):
    """`make bench` would end in a traceback, or a script that reads its last line would."""
    benchmark("wrapper_overhead").main(["--steps", "200", "--memory-steps", "400"])
    *_, last = capsys.readouterr().out.splitlines()
    told = json.loads(last)
    assert told["benchmark"] == "wrapper_overhead"
    assert told["steps"] == 200
    assert told["bars_us"] == {"plain_step_us": 5.0, "prediction_us": 50.0}
    figures = {
        name: value for name, value in told.items() if name.endswith("_us") and name != "bars_us"
    }
    assert set(figures) == {
        "bare_step_us",
        "plain_step_us",
        "prediction_us",
        "prediction_each_step_us",
        "prediction_tail_us",
        "prediction_64x64_us",
        "copy_cached_us",
        "copy_uncached_us",
        "shrink_us",
        "reset_us",
    }
    assert all(math.isfinite(value) for value in figures.values())
    assert [at["steps"] for at in told["memory"]] == [4, 40, 400]
    # Four frames are in it after 4 steps; after 400 no more than the 65 that a history holds.
    frame = 480 * 640 * 3
    assert 4 * frame < told["memory"][0]["allocated"] < told["memory"][2]["allocated"] < 70 * frame


@pytest.mark.parametrize("arguments", [["--steps", "199"], ["--memory-steps", "99"]])
def test_wrapper_overhead_refuses_what_it_cannot_measure(arguments, capsys):
    """Medians over nothing would be a traceback."""
    with pytest.raises(SystemExit, match="2"):
        benchmark("wrapper_overhead").main(arguments)
    assert "must be >=" in capsys.readouterr().err


def test_every_benchmark_says_what_it_measures():
    """A figure without quantity, method and hardware is worth nothing to others."""
    for path in sorted(FOLDER.glob("*.py")):
        docstring = path.read_text().split('"""')[1]
        assert "Quantity:" in docstring, path.name
        assert "Hardware:" in docstring, path.name


def test_reward_quality_prints_a_table_and_one_line_of_json(capsys):
    """The table of the demo checkpoint could not be made again."""
    benchmark("reward_quality").main(["--attempts", "6"])
    *table, last = capsys.readouterr().out.splitlines()
    told = json.loads(last)
    assert told["benchmark"] == "reward_quality"
    assert set(told["bars"]) < set(told["model"]) == set(told["clock"])
    assert len(table) == 2 + len(told["model"])
    missed = {
        name
        for name, (sign, bar) in told["bars"].items()
        if not (told["model"][name] >= bar if sign == ">=" else told["model"][name] <= bar)
    }
    assert {line.split("|")[1].strip() for line in table if "**missed**" in line} == missed
    # What a clock gets for knowing nothing is known: all is in order, and nothing else is right.
    assert told["clock"]["order"] > 0.98
    assert told["clock"]["wrong instruction"] > 0.8
    assert 0.3 < told["clock"]["preference"] < 0.7


def test_reward_quality_refuses_too_few_attempts(capsys):
    """A task without attempts would be a NaN in the table."""
    with pytest.raises(SystemExit, match="2"):
        benchmark("reward_quality").main(["--attempts", "3"])
    assert "--attempts must be >= 6" in capsys.readouterr().err
