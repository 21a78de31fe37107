"""robometer-gym score: what is printed and written, and how it fails."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import robometer_gym
from robometer_gym.cli.main import main
from robometer_gym.envs.scripted_episodes import make_scripted_episode
from robometer_gym.models import loading
from robometer_gym.reward_model import CheckpointError
from tests.paths import SHARED_DATA

VIDEOS = SHARED_DATA / "videos"


def score(film: Path, *more: str) -> int:
    out = str(film.parent / "out")
    return main(["score", str(film), "--task", "open the drawer", "--out", out, *more])


def test_a_table_is_printed_and_json_and_plot_are_written(film, model, capsys):
    """A user would get no numbers, or no hint where they are."""
    assert score(film) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[:2] == [
        "film.mp4: open the drawer",
        "6 of 20 frames, scored by lerobot/Robometer-4B",
    ]
    assert lines[3].split() == ["frame", "time", "progress", "success"]
    assert lines[5].split() == ["3", "0.30", "s", "0.500", "#" * 12, "0.250", "#" * 6]
    assert all(len(line) < 80 for line in lines[:10])
    assert printed.err == ""
    for name in ("film.json", "film.png"):
        written = film.parent / "out" / name
        assert written.stat().st_size > 100
        assert str(written) in printed.out
    scores = json.loads((film.parent / "out" / "film.json").read_text())
    assert scores["frame_indices"] == [0, 3, 7, 11, 15, 19]
    assert scores["progress"] == [0.5] * 6
    assert model.names == ["lerobot/Robometer-4B"]


def test_the_model_is_shown_the_chosen_frames(film, model):
    """--fps, --window, --sampling, --frame-size or --model would be ignored."""
    more = ("--fps", "10", "--window", "4", "--frame-size", "24", "--model", "a/b")
    assert score(film, *more) == 0
    assert model.names == ["a/b"]
    assert [len(clip) for clip in model.clips] == [1, 2, 3, *[4] * 17]
    assert model.clips[-1].images[-1].shape == (24, 32, 3)
    assert model.clips[-1].steps == (0, 6, 13, 19)
    assert score(film, *more, "--sampling", "tail") == 0
    assert model.clips[-1].steps == (16, 17, 18, 19)
    assert score(film, "--frame-size", "0") == 0
    assert model.clips[-1].images[-1].shape == (48, 64, 3)


def test_the_plot_has_the_chosen_threshold(film, model):
    """--success-threshold would be ignored."""
    plots = []
    for at in ("0.2", "0.9"):
        assert score(film, "--success-threshold", at) == 0
        plots.append((film.parent / "out" / "film.png").read_bytes())
    assert plots[0] != plots[1]


def test_all_frames_of_an_array_are_scored(tmp_path, model, capsys):
    """An array, which has no fps, could not be scored, or would be thinned by an invented one."""
    np.save(tmp_path / "film.npy", np.full((7, 16, 16, 3), 99, np.uint8))
    assert score(tmp_path / "film.npy") == 0
    assert len(model.clips[0]) == 7
    assert "    6          -  0.500" in capsys.readouterr().out
    assert score(tmp_path / "film.npy", "--fps", "3") == 2
    assert "fps=3 needs the video's own rate" in capsys.readouterr().err


def test_an_array_with_a_rate_is_sampled(tmp_path, model):
    """A recorded episode would be scored at another rate than its video."""
    np.savez(tmp_path / "film.npz", frames=np.full((20, 16, 16, 3), 99, np.uint8), fps=10)
    assert score(tmp_path / "film.npz") == 0
    assert len(model.clips[0]) == 6


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--task", " "), "task must describe what the robot should do"),
        (("--fps", "0"), "fps must be a number of frames per second > 0, got 0.0."),
        (("--success-threshold", "2"), "success_threshold must be a probability in [0, 1], got 2"),
    ],
)
def test_a_mistake_is_one_line_and_comes_before_the_model(film, model, capsys, more, message):
    """A typo would cost minutes of loading, and end in a page of traceback."""
    assert score(film, *more) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("robometer-gym: error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert model.names == []


def test_a_missing_video_is_named(tmp_path, model, capsys):
    """The user would not see which file is missing."""
    assert score(tmp_path / "nowhere.mp4") == 2
    assert "error: There is no file " in capsys.readouterr().err


def test_many_frames_at_once_are_warned_of(film, model, capsys):
    """A long video would silently be scored far from the lengths that the model was trained on."""
    np.save(film.with_suffix(".npy"), np.full((33, 16, 16, 3), 9, np.uint8))
    assert score(film.with_suffix(".npy")) == 0
    assert "33 frames go through the model at once" in capsys.readouterr().err
    assert score(film.with_suffix(".npy"), "--window", "8") == 0
    assert "at once" not in capsys.readouterr().err


def test_a_checkpoint_error_of_many_lines_is_one_line(film, monkeypatch, capsys):
    """Logs that are read line by line would lose half of it."""

    def fails(name, **options):
        raise CheckpointError("It is not there.\n  Is the id right?")

    monkeypatch.setattr(loading, "_load", fails)
    assert score(film) == 2
    assert capsys.readouterr().err == ("robometer-gym: error: It is not there. Is the id right?\n")
    with pytest.raises(CheckpointError, match="It is not there"):
        score(film, "--debug")


def test_a_missing_extra_is_named(film, model, monkeypatch, capsys):
    """A newcomer would see a traceback in place of the pip command."""
    monkeypatch.setitem(sys.modules, "av", None)
    assert score(film) == 2
    assert "pip install 'robometer-gym[video]'" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(film, monkeypatch):
    """A bug report would hold nothing to find it by."""
    monkeypatch.setattr(loading, "_load", lambda name, **options: dict[str, str]()["missing"])
    with pytest.raises(KeyError, match="missing"):
        score(film)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--device", "cuda:99"), "device 'cuda:99' cannot be used here"),
        (("--dtype", "int8"), "dtype must be a floating type such as 'bfloat16', got 'int8'"),
        (("--quantization", "int4"), "quantization must be 'int8', 'nf4', 'float8' or None, got"),
        (("--quantization", "nf4"), "nf4' needs bitsandbytes: pip install 'robometer-gym[quant"),
    ],
)
def test_a_model_that_cannot_be_loaded_so_is_one_line(film, more, message, monkeypatch, capsys):
    """A newcomer would see a traceback in place of the correct value or the pip command."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert score(film, "--model", "demo", *more) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("robometer-gym: error: ")
    assert message in err[-1]


def test_a_quantized_model_scores_from_end_to_end(tmp_path):
    """--quantization would be accepted, and the model loaded as before."""
    pytest.importorskip("bitsandbytes")
    episode, film, scores = make_scripted_episode("expert", 0), tmp_path / "film.npy", []
    np.save(film, episode.frames[range(0, len(episode), 8)])
    small = ["--task", episode.task, "--model", "demo", "--device", "cpu", "--dtype", "bfloat16"]
    for more in ([], ["--quantization", "int8"]):
        assert main(["score", str(film), *small, *more, "--out", str(tmp_path)]) == 0
        scores.append(json.loads((tmp_path / "film.json").read_text())["progress"])
    assert scores[0] != scores[1]
    assert scores[0] == pytest.approx(scores[1], abs=0.2)


@pytest.mark.parametrize("video", ["berkeley_rpt_stack_cup", "soar_put_green_stick_in_brown_bowl"])
@pytest.mark.parametrize("more", [(), ("--window", "4", "--device", "cpu")])
def test_a_real_video_is_scored_from_end_to_end(tmp_path, capsys, video, more):
    """A robot's real video could not be scored."""
    if not VIDEOS.is_dir():
        pytest.skip("The two real videos are not here: they lie outside the repository.")
    reference = json.loads((VIDEOS / "reference_outputs.json").read_text())
    (clip,) = [clip for clip in reference["clips"] if clip["video"].startswith(video)]
    arguments = ["score", str(VIDEOS / clip["video"]), "--task", clip["task"], "--model", "demo"]
    assert main([*arguments, "--out", str(tmp_path), *more]) == 0
    scores = json.loads((tmp_path / f"{video}.json").read_text())
    assert scores["frame_indices"] == clip["frame_indices"]
    assert len(scores["progress"]) == len(clip["progress"])
    assert (tmp_path / f"{video}.png").stat().st_size > 10_000
    assert "10 of 32 frames, scored by demo" in capsys.readouterr().out


def test_the_demo_checkpoint_is_warned_of(film, tmp_path):
    """A newcomer would take its guesses about a real video for Robometer's opinion."""
    program = [sys.executable, "-m", "robometer_gym", "score", str(film), "--task", "open"]
    run = subprocess.run(
        [*program, "--model", "demo", "--out", str(tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 0
    assert run.stderr.count("knows nothing but the built-in environment") == 1


# --- long videos, and mistakes in words ---


def save_frames(path: Path, length: int) -> Path:
    np.save(path, np.full((length, 16, 16, 3), 9, np.uint8))
    return path


def test_a_long_video_is_scored_by_windows(tmp_path, model, capsys):
    """Half an hour of video would end in an allocator error, after minutes."""
    film = save_frames(tmp_path / "film.npy", 129)
    assert score(film) == 0
    assert max(map(len, model.clips)) == 8
    printed = capsys.readouterr()
    assert "129 frames are too many to go through the model at once" in printed.err
    rows = [line for line in printed.out.splitlines() if "0.500 #" in line]
    assert [rows[0].split()[0], rows[-1].split()[0], len(rows)] == ["0", "128", 40]
    assert "40 of 129 rows; all of them are in " in printed.out
    written = json.loads((tmp_path / "out" / "film.json").read_text())
    assert (len(written["progress"]), written["window"]) == (129, 8)
    model.clips.clear()
    assert score(save_frames(film, 128)) == 0
    assert [len(clip) for clip in model.clips] == [128]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 17.2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 17 GB"),
    ],
)
def test_too_little_memory_is_explained(film, model, capsys, error):
    """A user would see an allocator's traceback, and not learn which option helps."""
    model._scripts["progress"] = [error]
    assert score(film) == 2
    message = capsys.readouterr().err
    assert "not enough memory for 6 frames of 48x64 at once: give --window 8 or less" in message
    assert message.count("\n") == 1


def test_the_file_names_video_model_and_versions(film, model):
    """A number found a month later could not be traced to a checkpoint."""
    assert score(film, "--model", "a/b", "--window", "4") == 0
    written = json.loads((film.parent / "out" / "film.json").read_text())
    assert (written["video"], written["reward_model"]) == (str(film), "a/b")
    assert written["checkpoint"]["name"] == "a/b"
    assert written["versions"]["robometer_gym"] == robometer_gym.__version__
    assert (written["window"], written["sampling"]) == (4, "linspace")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["https://example.org/film.mp4"], "must be a file: download https://example.org/film.mp4"),
        (["."], "must be a file, and . is a folder"),
        (["film.mp4", "--model", "Demo"], "got 'Demo'. Did you mean 'demo'?"),
        (["film.mp4", "--model", "dmeo"], "got 'dmeo'. Did you mean 'demo'?"),
    ],
)
def test_wrong_names_are_explained(wrong, message, model, capsys):
    """The hub would be searched, or a folder be called a missing file."""
    with pytest.raises(SystemExit, match="2"):
        main(["score", *wrong, "--task", "open"])
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_file_in_place_of_the_output_folder_is_named(film, model, capsys):
    """'[Errno 17] File exists' would not name the option."""
    assert main(["score", str(film), "--task", "open", "--out", str(film)]) == 2
    assert f"--out must be a folder, got the file {film}." in capsys.readouterr().err
    assert model.names == []
