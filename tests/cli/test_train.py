"""robometer-gym train: from recorded episodes to a checkpoint."""

from robometer_gym import RobometerRewardModel
from robometer_gym.cli.main import main
from robometer_gym.data import EpisodeWriter
from robometer_gym.envs.scripted_episodes import Script, make_scripted_episode


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
