"""The benchmarks run as they stand, and say what they promise. No figure is judged here."""

import importlib
import importlib.util
import json
import math
import sys
from types import ModuleType

import pytest

from tests.paths import ROOT

FOLDER = ROOT / "benchmarks"
sys.path.append(str(FOLDER))  # as Python does for a script, whose parts lie beside it


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


TINY = ["--shape", "tiny", "--sizes", "64x64", "--threads", "1"]


def test_reward_query_prints_a_table_and_one_line_of_json(capsys, tmp_path):
    """The figures that the engine is judged by could not be made, on any machine."""
    arms, out = ["lerobot", "lerobot-linear", "eager", "fast"], tmp_path / "table.md"
    size = ["--vocabulary", "small", "--batches", "1", "2", "--queries", "4", "--episodes", "1"]
    benchmark("reward_query").main([*TINY, *size, "--arms", *arms, "--out", str(out)])
    *table, last = capsys.readouterr().out.splitlines()
    told = json.loads(last)
    assert out.read_text().splitlines()[: len(table)] == table
    assert told["benchmark"] == "reward_query"
    assert told["threads"] == 1
    assert [(cell["batch"], cell["sampling"]) for cell in told["cells"]] == [
        (batch, each)
        for batch in (1, 2)
        for each in ("anchored", "linspace", "tail", "full window")
    ]
    for cell in told["cells"]:
        assert cell["queries"] == 4
        assert set(cell["apart"]) == {"lerobot-linear", "eager", "fast"}
        assert all(0 < each < 1e-4 for apart in cell["apart"].values() for each in apart)
        for name in arms:
            assert cell[name]["asked"] == 4
            assert 0 < cell[name]["p50_ms"] <= cell[name]["p95_ms"]
        ratio = cell["lerobot"]["p50_ms"] / cell["fast"]["p50_ms"]
        assert cell["lerobot"]["ratio"] == pytest.approx(ratio, rel=1e-3)
        assert "bar" not in cell, "bars are for the sizes that they were set for"
    assert told["engine"]["engine"] == "fast"
    assert sum(line.startswith("| ") for line in table) == 1 + 8


def test_reward_query_asks_the_slow_path_less_often_where_told_to(capsys):
    """Batch 8 takes an hour if LeRobot's path is asked at every query."""
    few = ["--asks", "1", "--queries", "12", "--samplings", "linspace", "--batches", "1"]
    benchmark("reward_query").main([*TINY, "--vocabulary", "small", *few])
    (cell,) = json.loads(capsys.readouterr().out.splitlines()[-1])["cells"]
    assert cell["queries"] == 24
    assert cell["fast"]["asked"] == 24
    assert cell["lerobot"]["asked"] == 8  # once for each length of the window


def test_reward_query_has_the_released_vocabulary(capsys):
    """LeRobot's path computes a logit per row: with fewer rows it would be flattered."""
    only = ["--queries", "1", "--episodes", "1", "--samplings", "tail", "--batches", "1"]
    benchmark("reward_query").main([*TINY, *only])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["vocabulary"] == 151_674
    assert 80 <= told["question_tokens"] <= 90  # the real tokenizer has 88


def test_reward_query_measures_what_bfloat16_costs(capsys):
    """On a GPU nobody would see that the engine rounds worse than what it is compared with."""
    only = ["--queries", "8", "--episodes", "1", "--batches", "2", "--dtype", "bfloat16"]
    benchmark("reward_query").main([*TINY, "--vocabulary", "small", *only])
    *table, last = capsys.readouterr().out.splitlines()
    told = json.loads(last)
    assert set(told["precision"]) == {"lerobot", "fast"}
    assert all(1e-5 < error < 0.01 for error in told["precision"].values())
    assert any("fast / lerobot" in line for line in table)


@pytest.mark.parametrize("wrong", [2e-4, float("nan")])
def test_reward_query_fails_where_the_answers_differ(monkeypatch, capsys, wrong):
    """A fast engine that answers something else would look like a success."""
    module = benchmark("reward_query")
    arm = sys.modules["parts.subject"].OurArm
    right = arm.read
    monkeypatch.setattr(arm, "read", lambda self, told: [x + wrong for x in right(self, told)])
    only = ["--queries", "1", "--episodes", "1", "--samplings", "tail", "--batches", "1"]
    with pytest.raises(SystemExit, match=f"do not agree.*fast differs by {wrong:.2g} at 'tail'"):
        module.main([*TINY, "--vocabulary", "small", *only])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["cells"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--queries", "0"], "must be >= 1"),
        (["--asks", "-1"], "--asks >= 0"),
        (["--arms", "lerobot"], "--arms must include 'fast'"),
        (["--sizes", "224"], "invalid size value"),
    ],
)
def test_reward_query_refuses_what_it_cannot_measure(arguments, message, capsys):
    """Medians over nothing, or ratios to nothing, would be a traceback after an hour."""
    with pytest.raises(SystemExit, match="2"):
        benchmark("reward_query").main(arguments)
    assert message in capsys.readouterr().err


def test_reward_query_has_its_gpu_columns(monkeypatch, capsys):
    """On a rented GPU the table would turn out to lack the floor, or to crash at its end."""
    module = benchmark("reward_query")
    measuring, windows = sys.modules["parts.measuring"], sys.modules["parts.windows"]
    monkeypatch.setattr(measuring, "allocated", lambda device: 5_000_000_000)
    monkeypatch.setattr(measuring, "peak", lambda device: 7_000_000_000)
    chosen = module.parse([*TINY, "--vocabulary", "small"])
    subject = sys.modules["parts.subject"].make_subject(
        "tiny", "small", module.torch.device("cpu"), module.torch.float32
    )
    for name in chosen.arms:
        subject.add(name, 64)
        subject.resident[name] = 2_000_000_000
    cells = []
    with module.quiet():
        for sampling in module.SAMPLINGS:
            cell = windows.Cell(sampling, 1, (224, 224))
            found = measuring.measure(subject, cell, measuring.Plan(9, 1, 1, 1, floors=True))
            cells.append(module.summary(subject, found, on_gpu=True, shape="4b"))
    anchored, linspace, tail, full = cells
    # Of 7 GB at the peak 2 are the other arm's; 1 GB more than both arms is our cache.
    assert [cell["lerobot"]["peak_gb"] for cell in cells] == [4.0] * 4
    assert [cell["fast"]["peak_gb"] for cell in cells] == [5.0] * 4
    assert anchored["floor_ms"] < linspace["floor_ms"] < tail["floor_ms"] < full["floor_ms"]
    assert full["floor_ms"] == pytest.approx(6.42, abs=0.01)
    assert (anchored["bar"], linspace["bar"]) == (12.0, 8.0)
    assert "bar" not in tail
    told = {"cells": cells, "on_gpu": True}
    header, _, *rows = module.table(told)
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
def test_reward_query_judges_by_what_was_promised(key, times, ratio, met):
    """A missed goal would be printed as met."""
    floors = {("anchored", 8): 5.72, ("full window", 32): 205.4, ("linspace", 64): 200.0}
    told = {"sampling": key[0], "batch": key[1], "size": "224x224", "floor_ms": floors[key]}
    told |= {"fast": {"mean_ms": times}, "lerobot": {"ratio": ratio + 1, "per_episode": ratio}}
    module = benchmark("reward_query")
    assert module.verdict(told, on_gpu=True, shape="4b")["met"] is met
    assert module.verdict({**told, "size": "240x320"}, on_gpu=True, shape="4b") == {}
    assert "met" not in module.verdict(told, on_gpu=False, shape="4b")


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(
    ("sampling", "bar"), [("anchored", 8.0), ("linspace", 2.5), ("full window", 1.3)]
)
def test_reward_query_judges_on_a_cpu_by_what_was_promised(sampling, bar, batch):
    """A missed goal would be printed as met."""
    module = benchmark("reward_query")
    told = {"sampling": sampling, "batch": batch, "size": "224x224", "fast": {}}
    for ratio, episode, met in ((bar, bar, True), (bar - 0.1, 9, False), (9, bar - 0.1, False)):
        judged = {**told, "lerobot": {"ratio": ratio, "per_episode": episode}}
        assert module.verdict(judged, on_gpu=False, shape="8+8") == {"bar": bar, "met": met}
        assert module.verdict(judged, on_gpu=False, shape="tiny") == {}


def test_reward_query_counted_prints_a_table_and_one_line_of_json(capsys):
    """Nobody could tell what of a ratio is arithmetic, and what a processor's mood."""
    only = ["--shape", "tiny", "--vocabulary", "small", "--batches", "1", "2", "--queries", "4"]
    benchmark("reward_query_counted").main([*only, "--samplings", "anchored", "full window"])
    *table, last = capsys.readouterr().out.splitlines()
    one, full, two, _ = json.loads(last)["cells"]
    assert len(table) == 2 + 4
    for arm in ("lerobot", "fast"):
        assert two[arm]["gflop"] == pytest.approx(2 * one[arm]["gflop"], rel=1e-6)
        assert full[arm]["gflop"] > one[arm]["gflop"]
    assert one["fast"]["calls"] < one["lerobot"]["calls"] < 0.8 * two["lerobot"]["calls"]


def test_reward_query_counted_counts_what_is_computed():
    """Views would be taken for work, and a linear layer for whatever torch makes of it."""
    module = benchmark("reward_query_counted")
    x, layer = module.torch.ones(3, 4), module.torch.nn.Linear(4, 2)
    with module.FlopCounterMode(display=False) as flops, module.Calls() as calls:
        layer(x.T.T.reshape(3, 4)[:2]) + 1
    assert calls.number == 2  # the product with its bias, and the sum
    assert flops.get_total_flops() == 2 * 2 * 4 * 2
    with pytest.raises(SystemExit, match="2"):
        module.main(["--queries", "0"])


def test_the_4b_shape_is_that_of_the_released_model():
    """Figures of another model would be published as those of the 4B."""
    models = importlib.import_module("parts.models")
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


# Milliseconds, as counted before by other hands: all eight frames with logits, without them, with
# seven frames' features kept, with the question kept as well, and one new frame after seven.
FLOORS = {
    ((224, 224), 1): (6.97, 6.42, 5.26, 4.50, 1.90),
    ((224, 224), 8): (55.8, 51.3, 41.9, 35.8, 5.72),
    ((224, 224), 64): (446, 411, 335, 287, 45.8),
    ((256, 320), 1): (10.5, 9.7, 7.75, 6.99, 2.00),
    ((256, 320), 32): (336, 311, 248, 224, 36.5),
    ((480, 640), 8): (303, 283, 216, 210, 36.5),
}


@pytest.mark.parametrize(("size", "batch"), FLOORS)
def test_the_floors_are_those_that_were_counted(size, batch):
    """The engine would be praised, or blamed, for a distance from the wrong number."""
    floor_ms = importlib.import_module("parts.floors").floor_ms
    counted = (
        floor_ms(size, batch, pictures=8, blocks=8, head=True),
        floor_ms(size, batch, pictures=8, blocks=8),
        floor_ms(size, batch, pictures=1, blocks=8),
        floor_ms(size, batch, pictures=1, blocks=8, reused=0),
        floor_ms(size, batch, pictures=1, blocks=1, reused=7),
    )
    assert counted == pytest.approx(FLOORS[size, batch], rel=0.006)


def test_engine_soak_prints_a_table_and_one_line_of_json(capsys):
    """A leak of some kilobytes per query would be found by users, after a night of training."""
    benchmark("engine_soak").main(["--queries", "100", "--batch", "2", "--threads", "1"])
    *table, last = capsys.readouterr().out.splitlines()
    told = json.loads(last)
    assert told["benchmark"] == "engine_soak"
    assert [row["queries"] for row in told["rows"]] == [10, 25, 50, 75, 100]
    assert len(table) == 2 + 5 + 2
    assert set(told["growth"]) == set(told["bars"])
    assert told["rows"][-1]["apart"] < 1e-4
    assert told["growth"]["graphs"] == 0
    missed = {name for name, most in told["bars"].items() if told["growth"][name] > most}
    assert set(told["missed"]) == missed


@pytest.mark.parametrize("worst", [2e-4, float("nan")])
def test_engine_soak_fails_where_the_answers_differ(monkeypatch, worst):
    """Figures of an engine that answers something else are worth nothing."""
    module = benchmark("engine_soak")
    monkeypatch.setattr(module, "apart", lambda ours, others: worst)
    with pytest.raises(SystemExit, match=f"differ from the eager path's by {worst:.2g}"):
        module.main(["--queries", "100", "--batch", "1", "--threads", "1"])


def test_engine_soak_refuses_what_it_cannot_measure(capsys):
    """Growth over a handful of queries is noise."""
    with pytest.raises(SystemExit, match="2"):
        benchmark("engine_soak").main(["--queries", "99"])
    assert "--queries must be >= 100" in capsys.readouterr().err
