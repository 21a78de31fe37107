"""The benchmarks run as they are and print what they promise. No figure is judged here."""

import importlib
import importlib.util
import json
import math
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.paths import ROOT

FOLDER = ROOT / "benchmarks"
sys.path.append(str(FOLDER))  # as Python does for a script, whose harness is beside it


def benchmark(name: str) -> ModuleType:
    """Return a benchmark as a module: the folder is not a package."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(capsys, name: str, *arguments: str) -> tuple[list[str], dict[str, Any]]:
    """Run a benchmark, and return the lines of its table and its JSON."""
    benchmark(name).main(arguments)
    *table, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert result["benchmark"] == name
    return table, result


def test_wrapper_overhead_prints_tables_and_one_line_of_json(capsys):
    """`make bench` would end in a traceback, or a script that reads its last line would."""
    table, result = run(capsys, "wrapper_overhead", "--steps", "200", "--memory-steps", "400")
    assert result["bars_us"] == {"plain": 5.0, "prediction": 50.0}
    (figures,) = result["added_us"].values()
    assert set(figures) == {
        "bare",
        "plain",
        "prediction",
        "prediction_every_step",
        "prediction_tail",
        "prediction_64x64",
        "copy_cached",
        "copy_uncached",
        "shrink",
        "reset",
    }
    assert all(math.isfinite(value) for value in figures.values())
    assert sum(line.startswith("| single ") for line in table) == 2
    assert [row["steps"] for row in result["memory"]] == [4, 40, 400]
    # Four frames are in it after 4 steps; after 400 no more than the 65 that a history holds.
    frame = 480 * 640 * 3
    first, last = (result["memory"][row]["allocated"] for row in (0, 2))
    assert 4 * frame < first < last < 70 * frame


def test_wrapper_overhead_measures_every_kind_of_vector_env(capsys):
    """One kind of vector environment would be slow, and its users alone would notice."""
    kinds = ["sync", "async", "DummyVecEnv", "SubprocVecEnv"]
    arguments = ["--kinds", *kinds, "--steps", "200", "--envs", "2"]
    table, result = run(capsys, "wrapper_overhead", *arguments)
    assert list(result["added_us"]) == [f"{kind} 2" for kind in kinds]
    assert all(set(figures) == set(result["bars_us"]) for figures in result["added_us"].values())
    assert len(table) == 2 + 2 + 4 + 1


def test_wrapper_overhead_measures_steps_with_and_without_predictions():
    """Plain steps would be timed as predictions, or the other way round."""
    module = benchmark("wrapper_overhead")
    times = module.time_steps(env := module.make_single((8, 8)), 0, 400)
    assert {name: len(each) for name, each in times.items()} == {
        "reset": 2,
        "plain": 2 * 160,
        "prediction": 2 * 40,
    }
    assert env.step(0)[4]["robometer/predicted"] is False, "step 201 of the episode"


@pytest.mark.parametrize("arguments", [["--steps", "199"], ["--memory-steps", "99"]])
def test_wrapper_overhead_refuses_what_it_cannot_measure(arguments, capsys):
    """Medians over nothing would be a traceback."""
    with pytest.raises(SystemExit, match="2"):
        benchmark("wrapper_overhead").main(arguments)
    assert "must be >=" in capsys.readouterr().err


def test_every_benchmark_states_what_it_measures():
    """A figure without quantity, method and hardware is worth nothing to others."""
    for path in sorted(FOLDER.glob("*.py")):
        docstring = path.read_text().split('"""')[1]
        assert "Quantity:" in docstring, path.name
        assert "Hardware:" in docstring, path.name


def test_reward_quality_prints_a_table_and_one_line_of_json(capsys):
    """The table of the demo checkpoint could not be made again."""
    table, result = run(capsys, "reward_quality", "--attempts", "6")
    assert set(result["bars"]) < set(result["model"]) == set(result["clock"])
    assert len(table) == 2 + len(result["model"])
    missed = {
        name
        for name, (sign, bar) in result["bars"].items()
        if not (result["model"][name] >= bar if sign == ">=" else result["model"][name] <= bar)
    }
    assert {line.split("|")[1].strip() for line in table if "**missed**" in line} == missed
    # The figures of a clock are known: all is in order, and nothing else is right.
    assert result["clock"]["order"] > 0.98
    assert result["clock"]["wrong instruction"] > 0.8
    assert 0.3 < result["clock"]["preference"] < 0.7


def test_reward_quality_refuses_too_few_attempts(capsys):
    """A task without attempts would be a NaN in the table."""
    with pytest.raises(SystemExit, match="2"):
        benchmark("reward_quality").main(["--attempts", "3"])
    assert "--attempts must be >= 6" in capsys.readouterr().err


TINY = ["--shape", "tiny", "--sizes", "64x64", "--threads", "1"]


def test_reward_query_prints_a_table_and_one_line_of_json(capsys, tmp_path):
    """The figures by which the engine is judged could not be measured, on any machine."""
    arms, out = ["lerobot", "lerobot-linear", "eager", "fast"], tmp_path / "table.md"
    size = ["--vocabulary", "small", "--batches", "1", "2", "--queries", "4", "--episodes", "1"]
    table, result = run(capsys, "reward_query", *TINY, *size, "--arms", *arms, "--out", str(out))
    assert out.read_text().splitlines()[: len(table)] == table
    assert result["threads"] == 1
    assert [(cell["batch"], cell["sampling"]) for cell in result["cells"]] == [
        (batch, each)
        for batch in (1, 2)
        for each in ("anchored", "linspace", "tail", "full window")
    ]
    for cell in result["cells"]:
        assert cell["queries"] == 4
        assert set(cell["differences"]) == {"lerobot-linear", "eager", "fast"}
        differences = [each for pair in cell["differences"].values() for each in pair]
        assert 0 < max(differences) < 1e-4  # single ones are 0 with some CPUs' kernels
        for name in arms:
            assert cell[name]["queries"] == 4
            assert 0 < cell[name]["p50_ms"] <= cell[name]["p95_ms"]
        ratio = cell["lerobot"]["p50_ms"] / cell["fast"]["p50_ms"]
        assert cell["lerobot"]["ratio"] == pytest.approx(ratio, rel=1e-3)
        assert "bar" not in cell, "bars are for the sizes that they were set for"
    assert result["engine"]["engine"] == "fast"
    assert sum(line.startswith("| ") for line in table) == 1 + 8


def test_reward_query_runs_the_slow_path_less_often_on_request(capsys):
    """Batch 8 takes an hour if LeRobot's path runs at every query."""
    few = ["--per-length", "1", "--queries", "12", "--samplings", "linspace", "--batches", "1"]
    (cell,) = run(capsys, "reward_query", *TINY, "--vocabulary", "small", *few)[1]["cells"]
    assert cell["queries"] == 24
    assert cell["fast"]["queries"] == 24
    assert cell["lerobot"]["queries"] == 8  # once for each length of the window


def test_reward_query_has_the_released_vocabulary(capsys):
    """LeRobot's path computes a logit per row: with fewer rows it would be flattered."""
    only = ["--queries", "1", "--episodes", "1", "--samplings", "tail", "--batches", "1"]
    _, result = run(capsys, "reward_query", *TINY, *only)
    assert result["vocabulary"] == 151_674
    assert 80 <= result["prompt_tokens"] <= 90  # the real tokenizer has 88


def test_reward_query_measures_the_error_of_bfloat16(capsys):
    """On a GPU the engine could round worse than LeRobot's path, unnoticed."""
    only = ["--queries", "8", "--episodes", "1", "--batches", "2", "--dtype", "bfloat16"]
    table, result = run(capsys, "reward_query", *TINY, "--vocabulary", "small", *only)
    assert set(result["precision"]) == {"lerobot", "fast"}
    assert all(1e-5 < error < 0.01 for error in result["precision"].values())
    assert any("fast / lerobot" in line for line in table)


@pytest.mark.parametrize("wrong", [2e-4, float("nan")])
def test_reward_query_fails_if_the_predictions_differ(monkeypatch, capsys, wrong):
    """A fast engine that predicts something else would look like a success."""
    module = benchmark("reward_query")
    arm = sys.modules["harness.arms"].OurArm
    right = arm.values
    monkeypatch.setattr(arm, "values", lambda self, made: [x + wrong for x in right(self, made)])
    only = ["--queries", "1", "--episodes", "1", "--samplings", "tail", "--batches", "1"]
    with pytest.raises(SystemExit, match=f"do not agree.*fast differs by {wrong:.2g} at 'tail'"):
        module.main([*TINY, "--vocabulary", "small", *only])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["cells"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--queries", "0"], "must be >= 1"),
        (["--per-length", "-1"], "--per-length >= 0"),
        (["--batches", "0"], "--batches must be >= 1"),
        (["--count", "--queries", "0"], "must be >= 1"),
        (["--arms", "lerobot"], "--arms must include 'fast'"),
        (["--sizes", "224"], "expected HxW, such as 240x320, got '224'"),
    ],
)
def test_reward_query_refuses_what_it_cannot_measure(arguments, message, capsys):
    """Medians over nothing, or ratios to nothing, would be a traceback after an hour."""
    with pytest.raises(SystemExit, match="2"):
        benchmark("reward_query").main(arguments)
    assert message in capsys.readouterr().err


def test_reward_query_has_its_gpu_columns(monkeypatch):
    """On a rented GPU the table would lack the floor, or the run would crash at its end."""
    module = benchmark("reward_query")
    harness = {name: sys.modules[f"harness.{name}"] for name in ("arms", "timing", "windows")}
    monkeypatch.setattr(harness["timing"], "allocated_bytes", lambda device: 5_000_000_000)
    monkeypatch.setattr(harness["timing"], "max_allocated_bytes", lambda device: 7_000_000_000)
    chosen = module.parse([*TINY, "--vocabulary", "small"])
    torch = module.torch
    arms = harness["arms"].make_arms("tiny", "small", torch.device("cpu"), torch.float32)
    for name in chosen.arms:
        arms.add(name, 64)
        arms.resident[name] = 2_000_000_000
    cells = []
    with module.quiet_transformers():
        for sampling in module.SAMPLINGS:
            cell = harness["windows"].Cell(sampling, 1, (224, 224))
            measured = module.measure_cell(arms, cell, module.Plan(9, 1, 1, 1, floors=True))
            cells.append(module.cell_figures(arms, measured, on_gpu=True, shape="4b"))
    anchored, linspace, tail, full = cells
    # Of 7 GB at the peak 2 are the other arm's; 1 GB more than both arms is our cache.
    assert [cell["lerobot"]["peak_gb"] for cell in cells] == [4.0] * 4
    assert [cell["fast"]["peak_gb"] for cell in cells] == [5.0] * 4
    assert anchored["floor_ms"] < linspace["floor_ms"] < tail["floor_ms"] < full["floor_ms"]
    assert full["floor_ms"] == pytest.approx(6.42, abs=0.01)
    assert (anchored["bar"], linspace["bar"]) == (12.0, 8.0)
    assert "bar" not in tail
    result = {"cells": cells, "on_gpu": True}
    header, _, *rows = sys.modules["harness.query_report"].table(result)
    assert "floor | mean / floor | peak GB, lerobot | fast" in header
    assert {row.count("|") for row in rows} == {header.count("|")}


@pytest.mark.parametrize(
    ("key", "times", "ratio", "met"),
    [
        (("anchored", 8), 11.0, 25.0, True),  # at most 2 floors of 5.72, and 20 times as fast
        (("anchored", 8), 12.0, 25.0, False),
        (("anchored", 8), 11.0, 19.0, False),
        (("full window", 32), 280.0, 1.0, True),  # at most 1.4 floors of 205.4
        (("full window", 32), 290.0, 9.0, False),
        (("linspace", 64), 400.0, 8.0, True),
        (("linspace", 64), 400.0, 7.9, False),
    ],
)
def test_reward_query_judges_a_gpu_by_its_bars(key, times, ratio, met):
    """A missed goal would be printed as met."""
    floors = {("anchored", 8): 5.72, ("full window", 32): 205.4, ("linspace", 64): 200.0}
    figures = {"sampling": key[0], "batch": key[1], "size": "224x224", "floor_ms": floors[key]}
    figures |= {"fast": {"mean_ms": times}, "lerobot": {"ratio": ratio + 1, "per_episode": ratio}}
    judge = importlib.import_module("harness.query_report").judge
    assert judge(figures, on_gpu=True, shape="4b")["met"] is met
    assert judge({**figures, "size": "240x320"}, on_gpu=True, shape="4b") == {}
    assert "met" not in judge(figures, on_gpu=False, shape="4b")


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(
    ("sampling", "bar"), [("anchored", 8.0), ("linspace", 2.5), ("full window", 1.3)]
)
def test_reward_query_judges_a_cpu_by_its_bars(sampling, bar, batch):
    """A missed goal would be printed as met."""
    judge = importlib.import_module("harness.query_report").judge
    figures = {"sampling": sampling, "batch": batch, "size": "224x224", "fast": {}}
    for ratio, episode, met in ((bar, bar, True), (bar - 0.1, 9, False), (9, bar - 0.1, False)):
        judged = {**figures, "lerobot": {"ratio": ratio, "per_episode": episode}}
        assert judge(judged, on_gpu=False, shape="8+8") == {"bar": bar, "met": met}
        assert judge(judged, on_gpu=False, shape="tiny") == {}


def test_reward_query_counts_operations(capsys):
    """A ratio could be arithmetic, or the mood of one processor."""
    only = ["--shape", "tiny", "--vocabulary", "small", "--batches", "1", "2", "--queries", "4"]
    benchmark("reward_query").main(["--count", *only, "--samplings", "anchored", "full window"])
    *table, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert result["benchmark"] == "reward_query_counted"
    one, full, two, _ = result["cells"]
    assert len(table) == 2 + 4
    for arm in ("lerobot", "fast"):
        assert two[arm]["gflop"] == pytest.approx(2 * one[arm]["gflop"], rel=1e-4)
        assert full[arm]["gflop"] > one[arm]["gflop"]
    assert one["fast"]["calls"] < one["lerobot"]["calls"] < 0.8 * two["lerobot"]["calls"]


def test_counted_operations_are_those_that_compute():
    """Views would count as work, and a linear layer as whatever torch makes of it."""
    counting = importlib.import_module("harness.counting")
    x, layer = torch.ones(3, 4), torch.nn.Linear(4, 2)
    with counting.FlopCounterMode(display=False) as flops, counting.CallCounter() as counter:
        layer(x.T.T.reshape(3, 4)[:2]) + 1
    assert counter.calls == 2  # the product with its bias, and the sum
    assert flops.get_total_flops() == 2 * 2 * 4 * 2


def test_the_4b_shape_is_that_of_the_released_model():
    """Figures of another model would be published as those of the 4B."""
    models = importlib.import_module("harness.networks")
    processor = models.make_processor(models.RELEASED_ROWS)
    model = models.empty_model(models.make_config("4b", processor))
    language, visual = model.backbone.language_model, model.backbone.visual
    counts = {
        "layers": sum(p.numel() for p in language.layers.parameters() if p.ndim == 2),
        "embedding": language.embed_tokens.weight.numel(),
        "visual": sum(p.numel() for p in visual.parameters()),
    }
    assert counts == {
        "layers": pytest.approx(3633.3e6, rel=1e-4),
        "embedding": 151_674 * 2560,
        "visual": pytest.approx(415.0e6, rel=1e-3),
    }
    assert visual.deepstack_visual_indexes == [5, 11, 17]
    assert list(language.rotary_emb.mrope_section) == [24, 20, 20]


# Milliseconds, from an independent count: all eight frames with logits, without them, with seven
# frames' features kept, with the prompt kept as well, and one new frame after seven.
FLOORS = {
    ((224, 224), 1): (6.97, 6.42, 5.26, 4.50, 1.90),
    ((224, 224), 8): (55.8, 51.3, 41.9, 35.8, 5.72),
    ((224, 224), 64): (446, 411, 335, 287, 45.8),
    ((256, 320), 1): (10.5, 9.7, 7.75, 6.99, 2.00),
    ((256, 320), 32): (336, 311, 248, 224, 36.5),
    ((480, 640), 8): (303, 283, 216, 210, 36.5),
}


@pytest.mark.parametrize(("size", "batch"), FLOORS)
def test_floors_match_an_independent_count(size, batch):
    """The engine would be praised, or blamed, for a distance from the wrong number."""
    floor_ms = importlib.import_module("harness.floors").floor_ms
    counted = (
        floor_ms(size, batch, images=8, blocks=8, head=True),
        floor_ms(size, batch, images=8, blocks=8),
        floor_ms(size, batch, images=1, blocks=8),
        floor_ms(size, batch, images=1, blocks=8, reused=0),
        floor_ms(size, batch, images=1, blocks=1, reused=7),
    )
    assert counted == pytest.approx(FLOORS[size, batch], rel=0.006)


def test_engine_soak_prints_a_table_and_one_line_of_json(capsys):
    """Users would find a leak of some kilobytes per query, after a night of training."""
    table, result = run(capsys, "engine_soak", "--queries", "100", "--batch", "2", "--threads", "1")
    assert [row["queries"] for row in result["rows"]] == [10, 25, 50, 75, 100]
    assert len(table) == 2 + 5 + 2
    assert set(result["growth"]) == set(result["bars"])
    assert result["rows"][-1]["difference"] < 1e-4
    assert result["growth"]["graphs"] == 0
    missed = {name for name, bar in result["bars"].items() if result["growth"][name] > bar}
    assert set(result["missed"]) == missed


@pytest.mark.parametrize("worst", [2e-4, float("nan")])
def test_engine_soak_fails_if_the_predictions_differ(monkeypatch, worst):
    """Figures of an engine that predicts something else are worth nothing."""
    module = benchmark("engine_soak")
    monkeypatch.setattr(module, "largest_difference", lambda ours, others: worst)
    with pytest.raises(SystemExit, match=f"differ from the eager path's by {worst:.2g}"):
        module.main(["--queries", "100", "--batch", "1", "--threads", "1"])


def test_engine_soak_refuses_what_it_cannot_measure(capsys):
    """Growth over a handful of queries is noise."""
    with pytest.raises(SystemExit, match="2"):
        benchmark("engine_soak").main(["--queries", "99"])
    assert "--queries must be >= 100" in capsys.readouterr().err


def test_late_rewards_cost_fewer_calls(capsys):
    """The table would compare trainings that predict the same way."""
    out, result = run(capsys, "late_rewards", "--steps", "1024", "--episodes", "1")
    assert out[0].startswith("| mode | seed | calls |")
    calls = {row["mode"]: row["calls"] for row in result["rows"]}
    assert calls["late"] == 2  # rollouts of 64 steps of 8 environments
    assert calls["synchronous"] > 20
