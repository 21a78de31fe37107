"""The report of an evaluation: totals, JSON, tables, pictures and videos."""

import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from robometer_gym.data import read_video
from robometer_gym.evaluation import EvaluatedEpisode, Report, Scores, Totals
from robometer_gym.evaluation.tables import figures, headline, plain_text
from robometer_gym.tracking.settings import RewardSettings
from robometer_gym.validation import MissingDependencyError

TASK = "open the drawer"
MAGENTA = (255, 0, 255)


def episode(steps=(0, 5, 10), progress=(0.0, 0.5, 1.0), **more) -> EvaluatedEpisode:
    """An episode with frames of one colour; a success, seen late, unless said otherwise."""
    values = np.array(progress, np.float32)
    scores = Scores(more.get("task", TASK), np.array(steps), 10.0, values, values**2)
    told = {
        "env": 0,
        "seed": 3,
        "task": TASK,
        "steps": 10,
        "paid": 1.0,
        "env_return": 4.0,
        "final_progress": 1.0,
        "detected": 10,
        "true_success": 7,
        "truth_known": True,
        "scores": scores,
        "frames": tuple(np.full((len(steps), 32, 48, 3), MAGENTA, np.uint8)),
    }
    return EvaluatedEpisode(**{**told, **more})


def report(*episodes: EvaluatedEpisode, **more) -> Report:
    told = {
        "env": "Drawer-v0",
        "policy": "expert",
        "reward_model": "demo",
        "seed": 3,
        "num_envs": 1,
        "settings": RewardSettings(),
        "versions": {"robometer_gym": "0.1.0"},
        "episodes": episodes or (episode(),),
        "env_steps": 10,
        "seconds": 2.0,
        "model_seconds": 1.5,
    }
    return Report(**{**told, **more})


def failure(**more) -> EvaluatedEpisode:
    return episode(**{"true_success": None, "detected": None, "env_return": 0.0, **more})


# --- totals ---


def test_what_cannot_be_measured_is_nan():
    """A number would be invented: a perfect precision of a detector that never fired."""
    totals = Totals.of([failure(truth_known=False), failure(truth_known=False)])
    measured = {"episodes", "truth_known", "detected_success_rate"} | {
        name for name in vars(totals) if name.startswith("mean_")
    }
    for name, value in vars(totals).items():
        assert math.isnan(value) != (name in measured), name
    assert (totals.episodes, totals.truth_known, totals.detected_success_rate) == (2, 0, 0)


def test_a_detection_before_the_success_counts_as_early():
    """A detector that fires at once would look fast instead of wrong."""
    totals = Totals.of([episode(detected=5), episode(), episode(detected=None)])
    assert (totals.delay_mean, totals.delay_median) == ((-2 + 3) / 2, 0.5)
    assert totals.recall == 2 / 3


def test_order_is_measured_up_to_the_success():
    """What happens after success would count as lost order; a failure's order means nothing."""
    jumbled = episode(steps=(0, 2, 4, 6, 8), progress=(0.1, 0.2, 0.9, 0.3, 0.1), true_success=4)
    assert jumbled.value_order == 1
    assert replace(jumbled, true_success=6).value_order == pytest.approx(0.8)
    assert replace(jumbled, true_success=7).value_order == pytest.approx(0.8)
    # Where no truth is known, up to what was detected; of a known failure, not at all.
    assert replace(jumbled, truth_known=False, true_success=None, detected=6).value_order < 1
    for unknown in (
        replace(jumbled, true_success=None),
        replace(jumbled, true_success=1),
        replace(jumbled, scores=None),
    ):
        assert math.isnan(unknown.value_order)
        assert math.isnan(unknown.clock_order)
    totals = Totals.of([jumbled, replace(jumbled, true_success=6), failure()])
    assert totals.value_order == pytest.approx(0.9)
    assert totals.clock_order == 1


def test_returns_are_compared_only_where_they_differ():
    """An environment that pays 0 always would say that the model ranks badly."""
    three = [episode(paid=p, env_return=e) for p, e in ((0.1, 1), (0.3, 2), (0.2, 3))]
    assert Totals.of(three).return_order == pytest.approx((2 - 1) / 3)
    assert math.isnan(Totals.of([episode(), episode(paid=0.5)]).return_order)
    assert math.isnan(Totals.of([episode(env_return=math.inf), episode()]).return_order)


def test_speed_without_the_model():
    """The cost of the model would not be seen."""
    assert report().steps_per_second == 5
    assert report().steps_per_second_without_model == 20


# --- JSON and tables ---


def test_json_holds_everything_and_no_nan():
    """Another program could not read the file, or would not know what was measured how."""
    blind = failure(scores=None, frames=(), final_progress=math.nan, seed=None)
    settings = RewardSettings(camera={"wrist": lambda env, observation: observation})
    told = json.loads(
        json.dumps(report(episode(), blind, settings=settings).to_dict(), allow_nan=False)
    )
    assert told["tasks"] == [TASK]
    assert (told["env"], told["policy"], told["seed"]) == ("Drawer-v0", "expert", 3)
    assert told["settings"]["success_threshold"] == 0.65
    assert "lambda" in told["settings"]["camera"]["wrist"]
    assert told["totals"]["recall"] == 1
    assert told["totals"]["false_success_rate"] == 0
    one, other = told["episodes"]
    assert one["scores"]["frame_indices"] == [0, 5, 10]
    assert (one["detected"], one["true_success"], one["value_order"]) == (10, 7, 1)
    assert "frames" not in one
    assert other["final_progress"] is other["scores"] is other["value_order"] is None
    assert json.dumps(report(failure(), failure()).to_dict(), allow_nan=False)


def test_tables_say_what_was_not_measured_and_why():
    """A dash would leave the reader guessing whether something is broken."""
    by_name = {f.name: f for f in figures(report(failure(truth_known=False)))}
    recall = by_name["recall of the detector"]
    assert recall[1:] == ("-", "not measurable: the environment tells no success")
    recall = next(f for f in figures(report(failure())) if f.name == "recall of the detector")
    assert recall[1:] == ("-", "not measurable: no true success")
    for every in (figures(report(failure())), figures(report(failure(truth_known=False)))):
        assert all((f.value == "-") == f.over.startswith("not measurable: ") for f in every)
        assert not any(f.over.endswith(": ") or "nan" in f.value for f in every)
    assert next(f for f in figures(report()) if "F1" in f.name)[1:] == (
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
    ("more", "says"),
    [
        ({}, "true success at 7, detected at 10"),
        ({"detected": None}, "true success at 7, none detected"),
        ({"true_success": None}, "no true success, detected at 10"),
        ({"true_success": None, "truth_known": False}, "true success not told, detected at 10"),
    ],
)
def test_a_headline_says_no_more_than_is_known(more, says):
    """An environment that tells nothing would be said to have failed."""
    assert headline(4, episode(**more)) == f"episode 4 (seed 3): 10 steps, paid +1.000; {says}"


def test_pictures_and_tables_do_not_call_the_unknown_a_failure(tmp_path):
    """Every episode of an environment that tells nothing would look failed."""
    known, unknown = (failure(truth_known=known) for known in (True, False))
    pictures = [report(e).save(tmp_path)[2].read_bytes() for e in (known, unknown)]
    assert pictures[0] != pictures[1]
    assert pictures[1] == report(unknown).save(tmp_path)[2].read_bytes()
    assert "not told" in plain_text(report(unknown)).splitlines()[-1]
    assert "not told" not in plain_text(report(known))


# --- files ---


def test_save_writes_tables_pictures_and_videos(tmp_path):
    """A user would find no files, or others than were named."""
    blind = failure(scores=None, frames=(), final_progress=math.nan)
    files = report(episode(), blind, failure()).save(tmp_path / "a" / "b")
    names = [
        "report.json",
        "report.md",
        *(f"episode-00{n}.{s}" for n in (0, 2) for s in ("png", "mp4")),
    ]
    assert [file.name for file in files] == names
    assert sorted(files) == sorted((tmp_path / "a" / "b").iterdir())
    assert json.loads(files[0].read_text())["totals"]["episodes"] == 3
    text = files[1].read_text()
    for told in ("Drawer-v0", TASK, "| episode | env |", "every prediction failed"):
        assert told in text
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


def test_the_picture_has_the_detectors_own_threshold(tmp_path):
    """Success would be seen to be detected below the line."""
    low = report(settings=RewardSettings(success_threshold=0.2)).save(tmp_path / "low")[2]
    high = report(settings=RewardSettings(success_threshold=0.9)).save(tmp_path / "high")[2]
    with Image.open(low) as one, Image.open(high) as other:
        assert one.size[0] == other.size[0] == 1200
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() > 50


@pytest.mark.parametrize("library", ["matplotlib.figure", "av"])
def test_without_the_extra_the_tables_are_there(tmp_path, monkeypatch, library):
    """An hour of evaluation would be lost for want of a drawing library."""
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'robometer-gym\[video\]'"):
        report().save(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["totals"]["f1"] == 1
    assert (tmp_path / "report.md").stat().st_size > 100
