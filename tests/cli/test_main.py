"""The command line: what is printed, what is written, and how it fails."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import robometer_gym
from robometer_gym import RobometerRewardModel
from robometer_gym.cli import main as cli
from robometer_gym.data import EpisodeWriter, read_video, write_video
from robometer_gym.envs import ENV_ID, TASKS
from robometer_gym.envs.scripted_episodes import Script, make_scripted_episode
from robometer_gym.models import loading
from robometer_gym.reward_model import CheckpointError
from robometer_gym.testing import ScriptedRewardModel
from tests.paths import SHARED_DATA

VIDEOS = SHARED_DATA / "videos"


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Twenty frames at 10 fps, (20, 48, 64, 3)."""
    frames = np.full((20, 48, 64, 3), 60, np.uint8)
    for step, frame in enumerate(frames):
        frame[16:32, 2 * step : 2 * step + 16] = 230
    write_video(tmp_path / "film.mp4", frames, 10)
    return tmp_path / "film.mp4"


@pytest.fixture
def model(monkeypatch) -> ScriptedRewardModel:
    """Stands in for every model; `asked` lists the names it was loaded by, `options` the rest."""
    scripted = ScriptedRewardModel(progress=0.5, success=0.25)
    scripted.asked = []  # type: ignore[attr-defined]
    scripted.options = []  # type: ignore[attr-defined]

    def load(name, **options):
        scripted.asked.append(name)  # type: ignore[attr-defined]
        scripted.options.append(options)  # type: ignore[attr-defined]
        return scripted

    monkeypatch.setattr(loading, "load_reward_model", load)
    return scripted


def _score(film: Path, *more: str) -> int:
    out = str(film.parent / "out")
    return cli.main(["score", str(film), "--task", "open the drawer", "--out", out, *more])


# --- score ---


def test_score_prints_a_table_and_writes_json_and_picture(film, model, capsys):
    """A user would get no numbers, or not learn where they are."""
    assert _score(film) == 0
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
    assert model.asked == ["lerobot/Robometer-4B"]


def test_score_shows_the_model_what_was_asked_for(film, model):
    """--fps, --window, --frame-size or --model would be ignored."""
    more = ("--fps", "10", "--window", "4", "--frame-size", "24", "--model", "a/b")
    assert _score(film, *more) == 0
    assert model.asked == ["a/b"]
    assert [len(clip) for clip in model.clips] == [1, 2, 3, *[4] * 17]
    assert model.clips[-1].images[-1].shape == (24, 32, 3)
    assert _score(film, "--frame-size", "0") == 0
    assert model.clips[-1].images[-1].shape == (48, 64, 3)


def test_score_takes_all_frames_of_an_array(tmp_path, model, capsys):
    """An array, which has no fps, could not be scored, or would be thinned by an invented one."""
    np.save(tmp_path / "film.npy", np.full((7, 16, 16, 3), 99, np.uint8))
    assert _score(tmp_path / "film.npy") == 0
    assert len(model.clips[0]) == 7
    assert "    6          -  0.500" in capsys.readouterr().out
    assert _score(tmp_path / "film.npy", "--fps", "3") == 2
    assert "fps=3 needs the video's own rate" in capsys.readouterr().err


def test_score_samples_an_array_that_knows_its_rate(tmp_path, model):
    """A recorded episode would be scored at another rate than its video."""
    np.savez(tmp_path / "film.npz", frames=np.full((20, 16, 16, 3), 99, np.uint8), fps=10)
    assert _score(tmp_path / "film.npz") == 0
    assert len(model.clips[0]) == 6


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--task", " "), "task must say what the robot should do"),
        (("--fps", "0"), "fps must be a number of frames per second > 0, got 0.0."),
    ],
)
def test_what_can_be_mended_is_one_line_and_comes_before_the_model(
    film, model, capsys, more, message
):
    """A typo would cost minutes of loading, and end in a page of traceback."""
    assert _score(film, *more) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("robometer-gym: error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert model.asked == []


def test_a_missing_video_is_told(tmp_path, model, capsys):
    """The user would not see which file was looked for."""
    assert _score(tmp_path / "nowhere.mp4") == 2
    assert "error: There is no file " in capsys.readouterr().err


def test_many_frames_at_once_are_remarked_upon(film, model, capsys):
    """A long video would be scored far from what the model was trained on, without a word."""
    np.save(film.with_suffix(".npy"), np.full((33, 16, 16, 3), 9, np.uint8))
    assert _score(film.with_suffix(".npy")) == 0
    assert "33 frames go through the model at once" in capsys.readouterr().err
    assert _score(film.with_suffix(".npy"), "--window", "8") == 0
    assert "at once" not in capsys.readouterr().err


def test_a_checkpoint_error_of_many_lines_is_one_line(film, monkeypatch, capsys):
    """Logs that are read line by line would lose the half of it."""

    def fails(name, **options):
        raise CheckpointError("It is not there.\n  Is the id right?")

    monkeypatch.setattr(loading, "load_reward_model", fails)
    assert _score(film) == 2
    assert capsys.readouterr().err == ("robometer-gym: error: It is not there. Is the id right?\n")
    with pytest.raises(CheckpointError, match="It is not there"):
        _score(film, "--debug")


def test_a_missing_extra_is_told(film, model, monkeypatch, capsys):
    """A newcomer would see a traceback in place of the pip command."""
    monkeypatch.setitem(sys.modules, "av", None)
    assert _score(film) == 2
    assert "pip install 'robometer-gym[video]'" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(film, monkeypatch):
    """A report of a bug would hold nothing to find it by."""
    monkeypatch.setattr(
        loading, "load_reward_model", lambda name, **options: dict[str, str]()["missing"]
    )
    with pytest.raises(KeyError, match="missing"):
        _score(film)


def test_ctrl_c_ends_quietly(film, monkeypatch, capsys):
    """Stopping a long run would print a page of traceback."""

    def interrupted(name, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "load_reward_model", interrupted)
    assert _score(film) == 130
    assert capsys.readouterr().err == "robometer-gym: interrupted\n"


def test_the_log_is_left_as_it_was(film, model, tmp_path):
    """A program that calls main() would lose its own warnings, or see each of them twice."""
    import logging

    logger = logging.getLogger("robometer_gym")
    before = (logger.level, list(logger.handlers))
    assert _score(film) == 0
    assert _score(tmp_path / "nowhere.mp4") == 2
    assert cli.main(["demo", "--out", str(tmp_path)]) == 0
    assert (logger.level, logger.handlers) == before


# --- which model ---


def test_both_commands_load_the_model_as_told(film, model, tmp_path):
    """The owner of a small card could use the model from Python only, or the card be full."""
    told = {"device": "cpu", "dtype": "float32", "processor": "c/d", "quantization": "nf4"}
    more = [word for name, value in told.items() for word in (f"--{name}", value)]
    assert _score(film, *more) == 0
    assert _eval(tmp_path, "--episodes", "1", *more) == 0
    assert _score(film) == 0
    assert model.options == [told, told, dict.fromkeys(told)]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--device", "cuda:99"), "device 'cuda:99' cannot be used here"),
        (("--dtype", "int8"), "dtype must be a floating type such as 'bfloat16', got 'int8'"),
        (("--quantization", "int4"), "quantization must be 'int8', 'nf4', 'float8' or None, got"),
        (("--quantization", "nf4"), "nf4' needs bitsandbytes: pip install 'robometer-gym[quant"),
    ],
)
def test_a_model_that_cannot_be_loaded_so_is_told_in_one_line(
    film, more, message, monkeypatch, capsys
):
    """A newcomer would see a traceback in place of what to write or to install."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert _score(film, "--model", "demo", *more) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("robometer-gym: error: ")
    assert message in err[-1]


def test_a_quantised_model_scores_from_end_to_end(tmp_path):
    """--quantization would be accepted, and the model loaded as ever."""
    pytest.importorskip("bitsandbytes")
    attempt, film, scores = make_scripted_episode("expert", 0), tmp_path / "film.npy", []
    np.save(film, attempt.frames[range(0, len(attempt), 8)])
    small = ["--task", attempt.task, "--model", "demo", "--device", "cpu", "--dtype", "bfloat16"]
    for more in ([], ["--quantization", "int8"]):
        assert cli.main(["score", str(film), *small, *more, "--out", str(tmp_path)]) == 0
        scores.append(json.loads((tmp_path / "film.json").read_text())["progress"])
    assert scores[0] != scores[1]
    assert scores[0] == pytest.approx(scores[1], abs=0.2)


# --- arguments ---


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
        cli.main(wrong)
    assert "must be an integer >= " in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [[], ["fly"], ["score", "film.mp4"], ["score", "--task", "x"], ["eval", "Id-v0"]]
)
def test_missing_arguments_are_told(wrong, capsys):
    """The program would do nothing, and say nothing."""
    with pytest.raises(SystemExit, match="2"):
        cli.main(wrong)
    assert "usage: robometer-gym" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["score"], ["eval"], ["demo"]])
def test_help_has_an_example(command, capsys):
    """A newcomer would have to guess the order of the arguments."""
    with pytest.raises(SystemExit, match="0"):
        cli.main([*command, "--help"])
    printed = capsys.readouterr().out
    assert " ".join(["example: robometer-gym", *command]) in printed
    assert all(len(line) <= 80 for line in printed.splitlines())


def test_the_version_is_told_without_loading_torch():
    """A bug report would lack the version, and --help would take seconds."""
    program = (
        "import sys; from robometer_gym.cli import main as cli\n"
        "try: cli.main(['--version'])\n"
        "finally: print('torch' in sys.modules, 'matplotlib' in sys.modules, 'av' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.split() == [robometer_gym.__version__, "False", "False", "False"]


def test_python_m_works(tmp_path):
    """Where the script is not on the PATH there would be no way in."""
    program = [sys.executable, "-m", "robometer_gym", "score", "no.mp4", "--task", "open"]
    run = subprocess.run(program, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "robometer-gym: error: There is no file no.mp4.\n"


# --- eval ---


def _eval(out: Path, *more: str) -> int:
    return cli.main(["eval", ENV_ID, "--task", TASKS[0], "--out", str(out / "out"), *more])


@pytest.fixture(scope="module")
def agents(tmp_path_factory) -> Path:
    """A folder with an untrained agent of each algorithm for TabletopReach, and one for another."""
    import stable_baselines3 as sb3

    folder: Path = tmp_path_factory.mktemp("agents")
    for name in ("PPO", "A2C", "SAC", "TD3", "DDPG", "DQN"):
        env = "CartPole-v1" if name == "DQN" else ENV_ID
        more = {} if name in ("PPO", "A2C") else {"buffer_size": 10}
        agent = getattr(sb3, name)(
            "MlpPolicy", env, policy_kwargs={"net_arch": [4]}, device="cpu", **more
        )
        agent.save(folder / name.lower())
    return folder


def test_eval_prints_totals_and_writes_files(tmp_path, model, capsys):
    """A user would get no figures, or not learn where they are."""
    model._scripts = {"progress": lambda clip: clip.steps[-1] / 100, "success": 0.9}
    more = ("--episodes", "2", "--seed", "5", "--predict-every", "10", "--model", "a/b")
    assert _eval(tmp_path, *more, "--env-kwargs", f"task={TASKS[0]}", "layout=random") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.splitlines()[:2] == [f"{ENV_ID}: {TASKS[0]}", "random, paid by a/b"]
    rows = [line.split() for line in printed.out.splitlines() if line.startswith("      ")]
    for number, row in enumerate(rows[:2]):
        # The model sees success everywhere, at its second prediction; the environment nowhere.
        expected = [number, 0, 5 + number, 10, "+0.100", "+0.000", "0.100", 10, "no", "-"]
        assert row == [str(cell) for cell in expected]
    out = tmp_path / "out"
    told = json.loads((out / "report.json").read_text())
    assert (told["env"], told["policy"], told["reward_model"]) == (ENV_ID, "random", "a/b")
    assert (told["totals"]["episodes"], told["settings"]["predict_every"]) == (2, 10)
    assert told["totals"]["false_success_rate"] == 1
    assert model.asked == ["a/b"]
    assert all(str(out / name) in printed.out for name in ("report.json", "report.md"))
    assert sorted(path.suffix for path in out.iterdir()) == sorted(
        [".json", ".md", ".png", ".png", ".mp4", ".mp4"]
    )


def test_eval_shrinks_frames_as_told(tmp_path, model):
    """--frame-size would be ignored, and a large frame cost as much as ever."""
    assert _eval(tmp_path, "--episodes", "1", "--frame-size", "32") == 0
    assert model.clips[-1].images[-1].shape == (32, 32, 3)


def test_eval_warns_of_another_task(tmp_path, model, capsys):
    """The detector would be compared with another success than the one it looks for."""
    model._scripts["success"] = 0.9
    assert _eval(tmp_path, "--episodes", "2", "--env-kwargs", json.dumps({"task": TASKS[1]})) == 0
    err = capsys.readouterr().err
    assert f"own task is '{TASKS[1]}', and the model is told '{TASKS[0]}'" in err
    assert err.count("own task") == 1
    assert _eval(tmp_path, "--episodes", "1", "--env-kwargs", f"task={TASKS[0]}") == 0
    assert "own task" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ppo", "a2c", "sac", "td3", "ddpg"])
def test_eval_takes_a_saved_agent_of_any_algorithm(tmp_path, model, agents, name):
    """Who trained with SAC could not evaluate, or would see another agent act."""
    import gymnasium as gym
    import stable_baselines3 as sb3

    from robometer_gym.cli.env_and_policy import load_policy

    env = gym.make(ENV_ID)
    observation, _ = env.reset(seed=0)
    agent = getattr(sb3, name.upper()).load(agents / name, device="cpu")
    acts = agent.predict(observation, deterministic=True)[0]
    for text in (f"sb3:{agents / name}", f"sb3:{name}:{agents / name}.zip"):
        taken = load_policy(text, env)
        assert np.array_equal(taken.predict(observation, deterministic=True)[0], acts)
        assert isinstance(taken, sb3.TD3 if name == "ddpg" else type(agent))
    model._scripts["success"] = 0.9
    assert _eval(tmp_path, "--episodes", "1", "--policy", f"sb3:{agents / name}.zip") == 0
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert told["policy"] == f"sb3:{agents / name}.zip"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--task", " "), "task must say what the robot should do"),
        (("--policy", "expert"), "policy must be 'random', 'sb3:PATH' or 'sb3:ppo:PATH', got"),
        (("--policy", "sb3:"), "policy must be 'random', 'sb3:PATH' or 'sb3:ppo:PATH', got"),
        (("--policy", "sb3:{}/none"), "There is no saved policy {}/none: give the .zip"),
        (("--policy", "sb3:sac:{}/none"), "There is no saved policy {}/none: give the .zip"),
        (("--policy", "sb3:{}/text.zip"), "is no model that Stable-Baselines3 has saved"),
        (("--policy", "sb3:{}/own.zip"), "Write it: sb3:ppo:{}/own.zip (ppo, dqn, sac,"),
        (("--policy", "sb3:{}/contrib.zip"), "load any other in Python"),
        (("--policy", "sb3:sac:{}/ppo"), "ppo.zip cannot be loaded as a SAC: "),
        (("--policy", "sb3:{}/dqn"), "dqn.zip was saved for another environment: "),
        (("--env-kwargs", "layout"), "--env-kwargs must be KEY=VALUE or a JSON object, got"),
        (("--env-kwargs", "[1]"), "--env-kwargs must be KEY=VALUE or a JSON object, got"),
        (("--env-kwargs", "speed=3"), "got an unexpected keyword argument 'speed'"),
        (("--env-kwargs", "layout=round"), "layout must be 'fixed' or 'random', got 'round'."),
        (("--env-kwargs", "render_mode=null"), "needs an env made with render_mode='rgb_array'"),
    ],
)
def test_what_is_wrong_with_an_evaluation_comes_before_the_model(
    tmp_path, model, agents, capsys, more, message
):
    """A typo would cost minutes of loading, and end in a page of traceback."""
    import zipfile

    (agents / "text.zip").write_text("no zip")
    for name, saved in (
        ("own", {}),
        ("contrib", {"policy_class": {"__module__": "sb3_contrib.tqc"}, "target_entropy": 1}),
    ):
        with zipfile.ZipFile(agents / f"{name}.zip", "w") as archive:
            archive.writestr("data", json.dumps(saved))
    assert _eval(tmp_path, *(text.replace("{}", str(agents)) for text in more)) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("robometer-gym: error: ")
    assert message.replace("{}", str(agents)) in printed.err
    assert printed.err.count("\n") == 1
    assert model.asked == []


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("Nowhere-v0", "Environment `Nowhere` doesn't exist"),
        ("no_such_package:Drawer-v0", "No module named 'no_such_package'"),
    ],
)
def test_an_unknown_environment_is_told(env, message, model, tmp_path, capsys):
    """The user would not learn how an environment of another package is written."""
    assert cli.main(["eval", env, "--task", "open", "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "is written module:Id" in err


def test_eval_imports_the_module_of_an_environment(tmp_path, model, monkeypatch):
    """An environment of one's own could be evaluated from Python only."""
    (tmp_path / "my_drawers.py").write_text(
        "import gymnasium as gym\ngym.register('Drawer-v0', 'robometer_gym.testing:CountingEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    drawer = "my_drawers:Drawer-v0"
    more = ("--env-kwargs", "lengths=[3]", "success=[true]", "--episodes", "2")
    assert cli.main(["eval", drawer, "--task", "open", "--out", str(tmp_path / "out"), *more]) == 0
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [episode["true_success"] for episode in told["episodes"]] == [3, 3]


def test_eval_without_sb3_says_what_to_install(tmp_path, model, agents, monkeypatch, capsys):
    """A newcomer would see a traceback in place of the pip command."""
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    assert _eval(tmp_path, "--policy", f"sb3:{agents / 'ppo'}") == 2
    assert "pip install 'robometer-gym[sb3]'" in capsys.readouterr().err


# --- demo ---


def test_demo_shows_who_does_well(tmp_path, model, capsys):
    """The first thing a newcomer runs would not tell an expert from chance."""
    model._scripts = {"progress": lambda clip: len(clip) / 8, "success": 0.9}
    assert cli.main(["demo", "--out", str(tmp_path), "--episodes", "2", "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    names = ("expert", "random", "wrong instruction")
    lines = [line for line in printed.splitlines() if line.startswith(names)]
    assert [line[:17].strip() for line in lines] == [name for name in names for _ in range(2)]
    assert [line[17:].split()[0] for line in lines] == ["3", "4"] * 3
    for line in lines:
        # The model sees success everywhere, at its second prediction; the environment nowhere yet.
        assert line[17:].split()[1:] == ["5", "+0.125", "0.250", "step", "5", "no"]
    assert all(len(line) <= 80 for line in printed.splitlines()[:9])
    assert model.asked == ["demo"]


def test_demo_writes_what_it_says(tmp_path, model, capsys):
    """The README's picture could not be made, or the videos would not show what was predicted."""
    assert cli.main(["demo", "--out", str(tmp_path / "a" / "b")]) == 0
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
        assert episode["return"] == 0.0, "A constant progress pays nothing."
        assert episode["predictions"]["frame_indices"] == list(range(0, 101, 5))
    film = read_video(folder / "expert.mp4")
    assert len(film.frames) == expert["steps"] + 1 + 20, "The last frame stays for a second."
    assert film.frames.shape[1] > film.frames.shape[2] == 384, "No room beneath the picture."
    assert film.fps == 20


def test_demo_is_the_same_every_time(tmp_path, model, capsys):
    """Two people could not compare what they see."""
    written = []
    for folder in ("first", "second"):
        assert cli.main(["demo", "--out", str(tmp_path / folder), "--seed", "7"]) == 0
        written.append((tmp_path / folder / "demo.json").read_text())
    assert written[0] == written[1]


# --- with the real thing ---


def test_demo_from_end_to_end(tmp_path):
    """`make demo`, the first command of the README, would fail."""
    assert cli.main(["demo", "--out", str(tmp_path)]) == 0
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


@pytest.mark.parametrize("video", ["berkeley_rpt_stack_cup", "soar_put_green_stick_in_brown_bowl"])
@pytest.mark.parametrize("more", [(), ("--window", "4", "--device", "cpu")])
def test_score_a_real_video_from_end_to_end(tmp_path, capsys, video, more):
    """A robot's real video could not be scored."""
    if not VIDEOS.is_dir():
        pytest.skip("The two real videos are not here: they lie outside the repository.")
    reference = json.loads((VIDEOS / "reference_outputs.json").read_text())
    (clip,) = [clip for clip in reference["clips"] if clip["video"].startswith(video)]
    arguments = ["score", str(VIDEOS / clip["video"]), "--task", clip["task"], "--model", "demo"]
    assert cli.main([*arguments, "--out", str(tmp_path), *more]) == 0
    scores = json.loads((tmp_path / f"{video}.json").read_text())
    assert scores["frame_indices"] == clip["frame_indices"]
    assert len(scores["progress"]) == len(clip["progress"])
    assert (tmp_path / f"{video}.png").stat().st_size > 10_000
    assert "10 of 32 frames, scored by demo" in capsys.readouterr().out


def test_the_demo_checkpoint_says_what_it_knows(film, tmp_path):
    """A newcomer would take its guesses about a real video for Robometer's opinion."""
    program = [sys.executable, "-m", "robometer_gym", "score", str(film), "--task", "open"]
    run = subprocess.run(
        [*program, "--model", "demo", "--out", str(tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 0
    assert run.stderr.count("knows nothing but the built-in environment") == 1


# --- train ---


def test_train_on_recorded_rollouts_from_end_to_end(tmp_path, capsys):
    """A user's own rollouts could not become a checkpoint of their own."""
    writer = EpisodeWriter(tmp_path / "rollouts")
    kinds: list[Script] = ["expert", "expert", "stops", "wanders"]
    for seed, kind in enumerate(kinds):
        writer.write(make_scripted_episode(kind, seed), fps=20)
    out = tmp_path / "out"
    arguments = ["train", "--data", str(tmp_path / "rollouts"), "--model", "demo"]
    few = ["--steps", "10", "--batch-size", "2", "--learning-rate", "1e-4", "--out", str(out)]
    assert cli.main([*arguments, *few]) == 0
    printed = capsys.readouterr().out
    assert "4 episodes of" in printed
    assert "2 successful, 1 suboptimal, 1 failure" in printed
    assert f"reward_model='{out}'" in printed
    assert (out / "losses.png").stat().st_size > 5_000
    assert RobometerRewardModel.from_pretrained(out).config.progress_bins == 10
    assert cli.main([*arguments, *few]) == 2
    assert "--resume" in capsys.readouterr().err


def test_train_says_what_a_folder_should_hold(tmp_path, capsys):
    """A wrong path would be found out after the model had been downloaded."""
    assert cli.main(["train", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "episodes.jsonl" in capsys.readouterr().err
