"""robometer-gym demo: the table, the files, and the same numbers every time."""

import json

import pytest

from robometer_gym.cli.main import main
from robometer_gym.data import read_video


def test_the_table_separates_good_from_bad(tmp_path, model, capsys):
    """The first command of a newcomer would not separate an expert from chance."""
    model._scripts = {"progress": lambda clip: len(clip) / 8, "success": 0.9}
    assert main(["demo", "--out", str(tmp_path), "--episodes", "2", "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    names = ("expert", "random", "wrong instruction")
    lines = [line for line in printed.splitlines() if line.startswith(names)]
    assert [line[:17].strip() for line in lines] == [name for name in names for _ in range(2)]
    assert [line[17:].split()[0] for line in lines] == ["3", "4"] * 3
    for line in lines:
        # The model detects success everywhere, at its second prediction; the environment nowhere.
        assert line[17:].split()[1:] == ["5", "+0.125", "0.250", "step", "5", "no"]
    assert all(len(line) <= 80 for line in printed.splitlines()[:9])
    assert model.names == ["demo"]


def test_the_files_hold_every_prediction_and_frame(tmp_path, model, capsys):
    """The README's plot could not be made, or the videos would lack frames."""
    assert main(["demo", "--out", str(tmp_path / "a" / "b")]) == 0
    folder = tmp_path / "a" / "b"
    names = ["demo.json", "demo.png", "expert.mp4", "random.mp4", "wrong_instruction.mp4"]
    assert sorted(path.name for path in folder.iterdir()) == names
    printed = capsys.readouterr().out
    assert all(str(folder / name) in printed for name in names)
    expert, chance, wrong = json.loads((folder / "demo.json").read_text())["episodes"]
    assert expert["true_success_step"] < 100
    assert chance["true_success_step"] is wrong["true_success_step"] is None
    for episode in (expert, chance, wrong):
        assert (episode["steps"], episode["detected_success_step"]) == (100, None)
        assert episode["return"] == 0.0, "A constant progress earns nothing."
        assert episode["predictions"]["frame_indices"] == list(range(0, 101, 5))
    film = read_video(folder / "expert.mp4")
    assert len(film.frames) == expert["steps"] + 1 + 20, "The last frame stays for a second."
    assert film.frames.shape[1] > film.frames.shape[2] == 384, "No room beneath the frame."
    assert film.fps == 20


def test_the_demo_is_the_same_every_time(tmp_path, model):
    """Two people could not compare their results."""
    written = []
    for folder in ("first", "second"):
        assert main(["demo", "--out", str(tmp_path / folder), "--seed", "7"]) == 0
        written.append((tmp_path / folder / "demo.json").read_text())
    assert written[0] == written[1]


def test_an_episode_depends_on_its_seed_alone(tmp_path, model):
    """The random policy of seed 8 would act otherwise as a second episode than as a first."""
    model._scripts = {"progress": lambda clip: int(clip.images[-1].sum()) % 997 / 997, "success": 0}
    rows = []
    for arguments in (["--seed", "7", "--episodes", "2"], ["--seed", "8"]):
        assert main(["demo", "--out", str(tmp_path), *arguments]) == 0
        rows.append(json.loads((tmp_path / "demo.json").read_text())["episodes"])
    assert rows[0][1::2] == rows[1]


def test_demo_from_end_to_end(tmp_path):
    """`make demo`, the first command of the README, would fail."""
    assert main(["demo", "--out", str(tmp_path)]) == 0
    episodes = json.loads((tmp_path / "demo.json").read_text())["episodes"]
    for episode in episodes:
        progress = episode["predictions"]["progress"]
        assert episode["return"] == pytest.approx(progress[-1] - progress[0], abs=1e-5)
        assert len(set(progress)) > 3, "The model does not look at the frames."
    expert, chance, wrong = (episode["predictions"]["progress"][-1] for episode in episodes)
    assert expert > 0.8
    assert wrong < 0.2
    assert chance < 0.6
    assert episodes[0]["true_success_step"] <= episodes[0]["detected_success_step"] < 60
    assert episodes[1]["detected_success_step"] is episodes[2]["detected_success_step"] is None
