"""Report: totals, JSON, tables, plots and videos."""

import json
import math
import sys

import numpy as np
import pytest
from PIL import Image

from robometer_gym.data import read_video
from robometer_gym.evaluation import Report, Totals, clock_order, value_order
from robometer_gym.evaluation.tables import headline, list_metrics, plain_text
from robometer_gym.tracking.settings import RewardSettings
from robometer_gym.tracking.trace import EpisodeTrace
from robometer_gym.validation import MissingDependencyError
from tests.evaluation.traces import MAGENTA, make_trace

TASK = "open the drawer"


def episode(steps=(0, 5, 10), progress=(0.0, 0.5, 1.0), **more) -> EpisodeTrace:
    """Return an episode with frames of one color: a success, detected late, by default."""
    frames = tuple(np.full((len(steps), 32, 48, 3), MAGENTA, np.uint8))
    defaults = {
        "task": TASK,
        "num_steps": 10,
        "episode_return": 1.0,
        "env_return": 4.0,
        "detected_step": 10,
        "true_success_step": 7,
        "seed": 3,
        "frames": frames,
        "frame_steps": steps,
    }
    values = np.array(progress, np.float32)
    return make_trace(steps, values, values**2, **{**defaults, **more})


def report(*episodes: EpisodeTrace, **more) -> Report:
    defaults = {
        "env": "Drawer-v0",
        "policy": "expert",
        "reward_model": "demo",
        "checkpoint": {"name": "demo", "revision": "abc123"},
        "seed": 3,
        "num_envs": 1,
        "settings": RewardSettings(),
        "versions": {"robometer_gym": "0.1.0"},
        "episodes": episodes or (episode(),),
        "env_steps": 10,
        "seconds": 2.0,
        "model_seconds": 1.5,
    }
    return Report(**{**defaults, **more})


def failure(**more) -> EpisodeTrace:
    return episode(**{"true_success_step": None, "detected_step": None, "env_return": 0.0, **more})


def blind(**more) -> EpisodeTrace:
    """Return a failure of which every prediction failed."""
    return failure(**{"steps": (), "progress": (), "frames": (), "frame_steps": (), **more})


# --- totals ---


def test_a_metric_that_cannot_be_measured_is_nan():
    """A number would be invented: a perfect precision of a detector that never fired."""
    totals = Totals.of([failure(truth_known=False), failure(truth_known=False)])
    measured = {"episodes", "truth_known", "true_successes", "undecided"}
    measured |= {"detected_success_rate", "last_frame_success_rate"}
    measured |= {name for name in vars(totals) if name.startswith("mean_")}
    for name, value in vars(totals).items():
        assert math.isnan(value) != (name in measured), name
    assert (totals.episodes, totals.truth_known, totals.detected_success_rate) == (2, 0, 0)


def test_a_detection_before_the_success_counts_as_early():
    """A detector that fires at once would look fast instead of wrong."""
    totals = Totals.of([episode(detected_step=5), episode(), episode(detected_step=None)])
    assert (totals.delay_mean, totals.delay_median) == ((-2 + 3) / 2, 0.5)
    assert totals.recall == 2 / 3


def test_order_is_measured_up_to_the_success():
    """Frames after success would count as lost order; a failure's order means nothing."""

    def jumbled(**more) -> EpisodeTrace:
        return episode(steps=(0, 2, 4, 6, 8), progress=(0.1, 0.2, 0.9, 0.3, 0.1), **more)

    assert value_order(jumbled(true_success_step=4)) == 1
    assert value_order(jumbled(true_success_step=6)) == pytest.approx(0.8)
    assert value_order(jumbled(true_success_step=7)) == pytest.approx(0.8)
    # Where no truth is known, up to the detected success; of a known failure, not at all.
    assert value_order(jumbled(truth_known=False, true_success_step=None, detected_step=6)) < 1
    for unknown in (
        jumbled(true_success_step=None),
        jumbled(true_success_step=1),
        blind(true_success_step=4),
    ):
        assert math.isnan(value_order(unknown))
        assert math.isnan(clock_order(unknown))
    totals = Totals.of([jumbled(true_success_step=4), jumbled(true_success_step=6), failure()])
    assert totals.value_order == pytest.approx(0.9)
    assert totals.clock_order == 1


def test_returns_are_compared_only_where_they_differ():
    """An environment whose reward is always 0 would make the model look like a bad ranker."""
    three = [episode(episode_return=r, env_return=e) for r, e in ((0.1, 1), (0.3, 2), (0.2, 3))]
    assert Totals.of(three).return_order == pytest.approx((2 - 1) / 3)
    assert math.isnan(Totals.of([episode(), episode(episode_return=0.5)]).return_order)
    assert math.isnan(Totals.of([episode(env_return=math.inf), episode()]).return_order)


def test_speed_without_the_model():
    """The cost of the model would be hidden."""
    assert report().steps_per_second == 5
    assert report().steps_per_second_without_model == 20


# --- JSON and tables ---


def test_json_holds_everything_and_no_nan():
    """Another program could not read the file, or would lack the settings."""
    settings = RewardSettings(camera={"wrist": lambda env, observation: observation})
    written = json.loads(
        json.dumps(
            report(episode(), blind(seed=None), settings=settings).to_dict(), allow_nan=False
        )
    )
    assert written["tasks"] == [TASK]
    assert (written["env"], written["policy"], written["seed"]) == ("Drawer-v0", "expert", 3)
    assert written["settings"]["success_threshold"] == 0.65
    assert "lambda" in written["settings"]["camera"]["wrist"]
    assert written["totals"]["recall"] == 1
    assert written["totals"]["false_success_rate"] == 0
    one, other = written["episodes"]
    assert one["predictions"]["frame_indices"] == [0, 5, 10]
    assert (one["detected_success_step"], one["true_success_step"]) == (10, 7)
    assert one["value_order"] == 1
    assert "frames" not in one
    assert other["final_progress"] is other["predictions"] is other["value_order"] is None
    assert json.dumps(report(failure(), failure()).to_dict(), allow_nan=False)


def test_tables_name_metrics_that_cannot_be_measured_and_why():
    """A dash would leave the reader guessing whether something is broken."""
    by_name = {m.name: m for m in list_metrics(report(failure(truth_known=False)))}
    recall = by_name["recall of the detector"]
    assert recall[1:] == ("-", "not measurable: the environment reports no success")
    recall = next(m for m in list_metrics(report(failure())) if m.name == recall.name)
    assert recall[1:] == ("-", "not measurable: no true success")
    for known in (True, False):
        metrics = list_metrics(report(failure(truth_known=known)))
        assert all((m.value == "-") == m.basis.startswith("not measurable: ") for m in metrics)
        assert not any(m.basis.endswith(": ") or "nan" in m.value for m in metrics)
    assert next(m for m in list_metrics(report()) if "F1" in m.name)[1:] == (
        "1.000",
        "1 of 1 episodes with known truth",
    )


def test_the_text_for_a_terminal_is_short():
    """A thousand episodes would scroll the totals away."""
    text = plain_text(report(*[episode()] * 30))
    assert "... and 20 more" in text
    assert len(text.splitlines()) < 35
    assert max(map(len, text.splitlines())) <= 110
    assert "more" not in plain_text(report())


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, "true success at 7, detected at 10"),
        ({"detected_step": None}, "true success at 7, none detected"),
        ({"true_success_step": None}, "no true success, detected at 10"),
        ({"true_success_step": None, "truth_known": False}, "true success unknown, detected at 10"),
    ],
)
def test_a_headline_claims_no_more_than_is_known(more, expected):
    """An environment that reports nothing would seem to have failed."""
    title = headline(4, episode(**more))
    assert title == f"episode 4 (seed 3): 10 steps, return +1.000; {expected}"


def test_plots_and_tables_do_not_call_the_unknown_a_failure(tmp_path):
    """Every episode of an environment that reports nothing would look failed."""
    known, unknown = (failure(truth_known=known) for known in (True, False))
    plots = [report(e).save(tmp_path)[2].read_bytes() for e in (known, unknown)]
    assert plots[0] != plots[1]
    assert plots[1] == report(unknown).save(tmp_path)[2].read_bytes()
    assert "unknown" in plain_text(report(unknown)).splitlines()[-1]
    assert "unknown" not in plain_text(report(known))


# --- files ---


def test_save_writes_tables_plots_and_videos(tmp_path):
    """A user would find no files, or others than those named."""
    files = report(episode(), blind(), failure()).save(tmp_path / "a" / "b")
    names = [
        "report.json",
        "report.md",
        *(f"episode-00{n}.{s}" for n in (0, 2) for s in ("png", "mp4")),
    ]
    assert [file.name for file in files] == names
    assert sorted(files) == sorted((tmp_path / "a" / "b").iterdir())
    assert json.loads(files[0].read_text())["totals"]["episodes"] == 3
    text = files[1].read_text()
    for part in ("Drawer-v0", TASK, "| episode | env |", "every prediction failed"):
        assert part in text
    assert all(name in text for name in names[2:])
    assert "episode-001" not in text
    film = read_video(files[3])
    assert film.fps == 4
    assert len(film.frames) == 3 + 4, "Three predictions, and a second at the end."


def test_a_bar_in_a_task_is_no_column(tmp_path):
    """A task with a | or a line break would tear the table apart."""
    odd = "open | the\ndrawer"
    text = report(episode(task=odd)).save(tmp_path)[1].read_text()
    assert "open \\| the drawer" in text
    bars = {line.replace("\\|", "").count("|") for line in text.splitlines() if line[:1] == "|"}
    assert len(bars) == 2, "Two tables, each with its own number of columns."


def test_the_plot_has_the_detectors_own_threshold(tmp_path):
    """Success would seem to be detected below the line."""
    low, high = (
        report(episode(settings=RewardSettings(success_threshold=at))).save(tmp_path / str(at))[2]
        for at in (0.2, 0.9)
    )
    with Image.open(low) as one, Image.open(high) as other:
        assert one.size[0] == other.size[0] == 1200
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() > 50


@pytest.mark.parametrize("library", ["matplotlib.figure", "av"])
def test_without_the_extra_the_tables_are_there(tmp_path, monkeypatch, library):
    """An hour of evaluation would be lost because a drawing library is missing."""
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'robometer-gym\[video\]'"):
        report().save(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["totals"]["f1"] == 1
    assert (tmp_path / "report.md").stat().st_size > 100
