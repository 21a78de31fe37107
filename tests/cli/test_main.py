"""The command robometer-gym: arguments, help, errors and the log, of all commands."""

import argparse
import logging
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import get_type_hints

import pytest

import robometer_gym
from robometer_gym.cli import options
from robometer_gym.cli.main import main
from robometer_gym.envs import ENV_ID
from robometer_gym.models.loading import LoadingOptions
from robometer_gym.tracking.settings import RewardSettings


@pytest.mark.parametrize(
    "wrong",
    [
        ["score", "film.mp4", "--task", "open", "--window", "0"],
        ["score", "film.mp4", "--task", "open", "--window", "two"],
        ["score", "film.mp4", "--task", "open", "--frame-size", "-1"],
        ["demo", "--episodes", "0"],
        ["demo", "--seed", "-1"],
        ["eval", "Id-v0", "--task", "open", "--episodes", "0"],
        ["eval", "Id-v0", "--task", "open", "--predict-every", "0"],
    ],
)
def test_wrong_numbers_are_refused(wrong, capsys):
    """The demo would show no episodes, or numpy complain about a negative seed."""
    with pytest.raises(SystemExit, match="2"):
        main(wrong)
    assert "must be an integer >= " in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [[], ["fly"], ["score", "film.mp4"], ["score", "--task", "x"], ["eval", "Id-v0"]]
)
def test_missing_arguments_are_named(wrong, capsys):
    """The program would do nothing, and print nothing."""
    with pytest.raises(SystemExit, match="2"):
        main(wrong)
    assert "usage: robometer-gym" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["score"], ["eval"], ["train"], ["serve"], ["demo"]])
def test_help_has_an_example(command, capsys):
    """A newcomer would have to guess the order of the arguments."""
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--help"])
    printed = capsys.readouterr().out
    assert " ".join(["example: robometer-gym", *command]) in printed
    assert all(len(line) <= 80 for line in printed.splitlines())


def test_the_version_is_printed_without_torch():
    """A bug report would lack the version, and --help would take seconds."""
    program = (
        "import sys; from robometer_gym.cli.main import main\n"
        "try: main(['--version'])\n"
        "finally: print('torch' in sys.modules, 'matplotlib' in sys.modules, 'av' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.split() == [robometer_gym.__version__, "False", "False", "False"]


def test_python_m_works():
    """Where the script is not on the PATH there would be no way in."""
    program = [sys.executable, "-m", "robometer_gym", "score", "no.mp4", "--task", "open"]
    run = subprocess.run(program, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "robometer-gym: error: There is no file no.mp4.\n"


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_ends_quietly(monkeypatch, tmp_path, capsys):
    """Stopping a long run would print a page of traceback."""
    monkeypatch.setattr("robometer_gym.models.loading._load", interrupt)
    assert main(["demo", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "robometer-gym: interrupted\n"


INTERRUPT = """
import sys
from importlib.abc import MetaPathFinder

class Interrupt(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
sys.argv = [{name!r}, "demo"]
from robometer_gym.cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize("name", ["-m", "/usr/bin/robometer-gym"])
@pytest.mark.parametrize(
    "module", ["gymnasium.core", "robometer_gym.cli.commands", "robometer_gym.evaluation.plots"]
)
def test_ctrl_c_while_modules_are_imported_ends_quietly(module, name):
    """Ctrl-C in the first second would print an import traceback."""
    program = [sys.executable, "-c", INTERRUPT.format(module=module, name=name)]
    run = subprocess.run(program, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (130, "")
    assert run.stderr == "robometer-gym: interrupted\n"


def test_ctrl_c_in_another_program_is_its_own():
    """A program that imports the package could not handle Ctrl-C."""
    program = INTERRUPT.format(module="gymnasium.core", name="training.py")
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "KeyboardInterrupt" in run.stderr
    assert run.returncode != 130


def test_the_log_is_left_as_it_was(film, model, tmp_path):
    """A program that calls main() would lose its own warnings, or see each of them twice."""
    logger = logging.getLogger("robometer_gym")
    before = (logger.level, list(logger.handlers))
    score = ["score", "--task", "open", "--out", str(tmp_path)]
    assert main([*score, str(film)]) == 0
    assert main([*score, str(tmp_path / "nowhere.mp4")]) == 2
    assert main(["demo", "--out", str(tmp_path)]) == 0
    assert (logger.level, logger.handlers) == before


# --- options that are generated ---

LOADING = {
    "revision": "main",
    "device": "cpu",
    "dtype": "float32",
    "processor": "c/d",
    "quantization": "nf4",
    "engine": "eager",
    "max_streams": 3,
    "local_files_only": True,
}
REMOTE_LOADING = {"timeout": 2.5, "lossy_jpeg_quality": 95}
SETTINGS = {
    "predict_every": 3,
    "max_frames": 4,
    "sampling": "tail",
    "pad": "repeat",
    "mode": "shape",
    "signal": "progress",
    "gamma": 0.5,
    "scale": 2.0,
    "success_threshold": 0.25,
    "success_votes": 3,
    "success_window": 4,
    "success_bonus": 1.5,
    "terminate_on_success": False,
    "camera": "wrist",
    "frame_size": 32,
    "max_black_frames": 7,
    "on_error": "hold",
}


def words(values: Mapping[str, object]) -> list[str]:
    """Write options on a command line."""
    written = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            written.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            written += [f"--{flag}", str(value)]
    return written


def test_every_loading_option_and_setting_is_on_the_command_line():
    """A new setting would be out of reach of the command line."""
    every_loading = LOADING | REMOTE_LOADING
    # Every user of the machine can read a token in the list of processes.
    assert every_loading.keys() | {"token"} == get_type_hints(LoadingOptions).keys()
    background = {"background", "max_wait", "timeout"}  # an evaluation waits for predictions
    assert SETTINGS.keys() == {field.name for field in fields(RewardSettings)} - background
    parser = argparse.ArgumentParser()
    options.add_loading_options(parser)
    options.add_setting_options(parser)
    given = parser.parse_args(words(every_loading) + words(SETTINGS))
    assert options.read_loading_options(given) == every_loading
    assert options.read_setting_options(given) == SETTINGS
    assert options.read_loading_options(parser.parse_args([])) == {}
    assert options.read_setting_options(parser.parse_args([])) == {}
    given = parser.parse_args(["--frame-size", "0", "--camera", "wrist", "scene"])
    assert options.read_setting_options(given) == {
        "frame_size": None,
        "camera": {"wrist": "wrist", "scene": "scene"},
    }


@pytest.mark.parametrize("command", ["score", "eval"])
def test_the_model_is_loaded_with_every_option(command, film, model, tmp_path):
    """The owner of a small card could use the model from Python only, or the card be full."""
    subject = {"score": [str(film)], "eval": [ENV_ID, "--episodes", "1"]}[command]
    arguments = [command, *subject, "--task", "open", "--out", str(tmp_path)]
    assert main([*arguments, *words(LOADING)]) == 0
    assert main(arguments) == 0
    remote = [*words(REMOTE_LOADING), "--model", "http://127.0.0.1:8900"]
    assert main([*arguments, *remote]) == 0
    assert model.options == [LOADING, {}, REMOTE_LOADING]


def test_settings_are_described_from_their_docstring(capsys):
    """A setting would have no description, or another than in Python."""
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "environment steps between predictions, >= 1 (default: 5)" in printed
    assert 'a prediction votes "done" when its success probability reaches this' in printed
