"""robometer-gym train: from recorded episodes to a checkpoint."""

import json
from functools import partial

import pytest

import robometer_gym.training
from robometer_gym import RobometerRewardModel
from robometer_gym.cli.main import main
from robometer_gym.data import EpisodeWriter
from robometer_gym.envs.scripted_episodes import Script, make_scripted_episode
from tests.training.quick_runs import PressCtrlC, logged


@pytest.fixture
def rollouts(tmp_path):
    """Eight recorded episodes of three outcomes, one task."""
    writer = EpisodeWriter(tmp_path / "rollouts")
    scripts: list[Script] = ["expert", "stops", "wanders"]
    for seed in (0, 3, 6, 9):  # the task follows from the seed
        for script in scripts:
            writer.write(make_scripted_episode(script, seed), fps=20)
    return tmp_path / "rollouts"


def test_train_on_recorded_rollouts_from_end_to_end(tmp_path, capsys):
    """A user's own rollouts could not become a checkpoint of their own."""
    writer = EpisodeWriter(tmp_path / "rollouts")
    kinds: list[Script] = ["expert", "expert", "stops", "wanders"]
    for seed, kind in enumerate(kinds):
        writer.write(make_scripted_episode(kind, seed), fps=20)
    out = tmp_path / "out"
    arguments = ["train", "--data", str(tmp_path / "rollouts"), "--model", "demo"]
    few = ["--steps", "10", "--batch-size", "2", "--learning-rate", "1e-4", "--out", str(out)]
    assert main([*arguments, *few]) == 0
    printed = capsys.readouterr().out
    assert "4 episodes of" in printed
    assert "2 successful, 1 suboptimal, 1 failure" in printed
    assert f"reward_model='{out}'" in printed
    assert (out / "losses.png").stat().st_size > 5_000
    assert RobometerRewardModel.from_pretrained(out).config.progress_bins == 10
    assert main([*arguments, *few]) == 2
    assert "--resume" in capsys.readouterr().err


def test_a_folder_without_episodes_is_refused(tmp_path, capsys):
    """A wrong path would be found after the model had been downloaded."""
    assert main(["train", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "episodes.jsonl" in capsys.readouterr().err


def test_options_reach_the_training_and_scores_are_printed(rollouts, tmp_path, capsys):
    """A user would see whether the model got better only by another command, or not at all."""
    out = tmp_path / "out"
    data = ["train", "--data", str(rollouts), "--model", "demo", "--out", str(out)]
    size = ["--steps", "2", "--batch-size", "2", "--gradient-accumulation", "2"]
    more = ["--lora-rank", "4", "--warmup-steps", "1", "--report-to", "none", "--eval-share", "0.5"]
    assert main([*data, *size, *more]) == 0
    recorded = json.loads((out / "checkpoints" / "run.json").read_text())
    assert (recorded["lora"]["r"], recorded["lora"]["lora_alpha"]) == (4, 8)
    assert (recorded["gradient_accumulation_steps"], recorded["warmup_steps"]) == (2, 1)
    assert not (out / "checkpoints" / "runs").exists()  # TensorBoard's folder
    evaluation = json.loads((out / "evaluation.json").read_text())
    printed = capsys.readouterr().out
    assert f"{evaluation['episodes']} held-out episodes" in printed
    (row,) = (line for line in printed.splitlines() if line.startswith("preference accuracy"))
    expected = [evaluation[moment]["preference_accuracy"] for moment in ("before", "after")]
    assert row.split()[-2:] == [f"{value:.2f}" for value in expected]


def test_full_training_has_no_rank(rollouts, tmp_path, capsys):
    """A rank would be accepted and ignored."""
    with pytest.raises(SystemExit):
        main(["train", "--data", str(rollouts), "--full", "--lora-rank", "4"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_ctrl_c_plots_the_losses_and_mentions_resume(rollouts, tmp_path, capsys, monkeypatch):
    """A user who stops a run would not know that it can continue, nor see how far it came."""
    interrupted = partial(robometer_gym.training.train, callbacks=[PressCtrlC(2)])
    monkeypatch.setattr(robometer_gym.training, "train", interrupted)
    out = tmp_path / "out"
    command = ["train", "--data", str(rollouts), "--model", "demo", "--out", str(out)]
    command += ["--steps", "4", "--batch-size", "2"]
    assert main(command) == 130
    error = capsys.readouterr().err
    assert "robometer-gym: Interrupted after step 2 of 4" in error
    assert "--resume" in error
    assert (out / "losses.png").stat().st_size > 5_000
    monkeypatch.undo()
    assert main([*command, "--resume"]) == 0
    assert [entry["step"] for entry in logged(out)] == [1, 2, 3, 4]


def test_a_broken_episode_names_the_option_of_the_command_line(tmp_path, capsys):
    """The advice would be Python in place of an option."""
    writer = EpisodeWriter(tmp_path / "rollouts")
    writer.write(make_scripted_episode("expert", 0), fps=20)
    next((tmp_path / "rollouts").rglob("*.mp4")).write_bytes(b"broken")
    data = ["--data", str(tmp_path / "rollouts"), "--out", str(tmp_path / "out")]
    assert main(["train", *data]) == 2
    err = capsys.readouterr().err
    assert "with --skip-bad." in err
    assert "bad=" not in err


def test_one_task_is_singular(tmp_path, capsys):
    """'1 episodes of 1 tasks' would look careless."""
    writer = EpisodeWriter(tmp_path / "rollouts")
    writer.write(make_scripted_episode("expert", 0), fps=20)
    main(
        [
            "train",
            "--data",
            str(tmp_path / "rollouts"),
            "--model",
            "demo",
            "--out",
            str(tmp_path / "out"),
            "--steps",
            "1",
        ]
    )
    assert "1 episode of 1 task: 1 successful" in capsys.readouterr().out
