"""RobometerCallback: its metrics in TensorBoard, clips of false successes, and traces."""

import csv
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

from robometer_gym import Clip, read_traces
from robometer_gym.data import read_video
from robometer_gym.sb3 import RobometerCallback, make_robometer_vec_env
from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from robometer_gym.validation import MissingDependencyError

# Of episodes 0, 1, 2, 3, 0, ...: true success, and detected success.
TRUE = [True, False, True, False]
DETECTED = [True, True, False, False]
LENGTH = 6


def success(clip: Clip) -> float:
    now = CountingEnv.read(clip.images[-1])
    return float(DETECTED[now["episode"] % 4] and now["step"] == LENGTH)


def progress(clip: Clip) -> float:
    return CountingEnv.read(clip.images[-1])["step"] / 8


class SlowModel(ScriptedRewardModel):
    """Takes a millisecond at least."""

    def predict(self, clips):
        time.sleep(0.001)
        return super().predict(clips)


def learn(
    tmp_path, callback, *, truth: bool = True, episodes: int = 8, num_envs: int = 1, wrap=None
):
    """Train PPO on counted episodes; return the rows that were logged and the model."""
    kwargs = {"lengths": [LENGTH], "success": TRUE if truth else None, "size": (24, 32)}
    model = SlowModel(progress, success)
    venv = make_robometer_vec_env(
        CountingEnv,
        "push the block",
        num_envs,
        model,
        env_kwargs=kwargs,
        predict_every=3,
        success_votes=1,
    )
    venv = venv if wrap is None else wrap(venv)
    agent = PPO(
        "MlpPolicy", venv, n_steps=LENGTH * episodes, batch_size=6, n_epochs=1, device="cpu"
    )
    agent.set_logger(configure(str(tmp_path), ["csv"]))
    agent.learn(LENGTH * episodes * num_envs, callback=callback)
    venv.close()
    return rows_of(agent, tmp_path), model


def rows_of(agent, folder):
    """Return the rows that were logged."""
    agent.logger.close()
    with open(folder / "progress.csv") as file:
        return list(csv.DictReader(file))


def test_logged_metrics_are_those_of_the_episodes(tmp_path):
    """A curve in TensorBoard would differ from the predictions."""
    rows, model = learn(tmp_path, RobometerCallback())
    found = {
        k.removeprefix("robometer/"): float(v) for k, v in rows[-1].items() if "robometer" in k
    }
    # Of 8 episodes: 2 true positives, 2 false positives, 2 false negatives, 2 true negatives.
    assert found["precision"] == found["recall"] == found["f1"] == 0.5
    assert found["false_success_rate"] == 0.5
    assert found["detected_rate"] == 0.5
    assert found["final_progress"] == LENGTH / 8
    # The first baseline is predicted before the callback starts.
    predicted = model.clips[1:]
    assert found["progress"] == pytest.approx(np.mean([progress(clip) for clip in predicted]))
    assert found["success_prob"] == pytest.approx(np.mean([success(clip) for clip in predicted]))
    assert found["prediction_ms"] >= 1.0
    calls = len(model.batches)
    assert 0.0 < found["model_time_share"] < 1.0
    assert calls == 8 * 2 + 1, "a final step and the next baseline go in one batch"


def test_rollout_success_rate_is_the_environments_own(tmp_path):
    """SB3's own curve would show detected success, and hide the false ones."""
    rows, _ = learn(tmp_path, RobometerCallback())
    assert float(rows[-1]["rollout/success_rate"]) == 0.5
    assert float(rows[-1]["rollout/ep_rew_mean"]) == LENGTH / 8
    assert float(rows[-1]["rollout/ep_len_mean"]) == LENGTH


def test_without_ground_truth_there_is_no_precision(tmp_path):
    """An F1 of the model against itself would be 1.0, and mean nothing."""
    rows, _ = learn(tmp_path, callback := RobometerCallback(tmp_path / "clips"), truth=False)
    assert float(rows[-1]["robometer/detected_rate"]) == 0.5
    for name in ("precision", "recall", "f1", "false_success_rate"):
        assert f"robometer/{name}" not in rows[-1]
    assert callback.clips == []


@pytest.mark.parametrize("num_envs", [1, 3])
def test_clips_of_false_successes_are_kept(tmp_path, num_envs):
    """The number of false successes would be known, and not their cause."""
    callback = RobometerCallback(tmp_path / "clips")
    learn(tmp_path, callback, num_envs=num_envs)
    assert sorted(callback.clips) == sorted((tmp_path / "clips").iterdir())
    assert len(callback.clips) == 2 * num_envs
    for path in callback.clips:
        video = read_video(path)
        shown = [step_shown(frame) for frame in video.frames[:3]]
        assert shown == pytest.approx([0, 3, 6], abs=1.4), "the ended episode, to its last frame"


def step_shown(frame: np.ndarray) -> float:
    """Return the step that a frame of the video shows; the codec changes colors a little."""
    return float(frame[:200, :, 2].mean())


def test_at_most_max_clips_are_kept(tmp_path):
    """A model with many false successes would fill the disk."""
    callback = RobometerCallback(tmp_path / "clips", max_clips=1)
    learn(tmp_path, callback)
    assert len(callback.clips) == len(list((tmp_path / "clips").iterdir())) == 1


@pytest.mark.parametrize("number", [-1, 0, 2.5, None])
def test_a_wrong_number_of_clips_is_refused(number, tmp_path):
    """No clip would be kept, which the user would find out after a night."""
    with pytest.raises(ValueError, match=f"max_clips must be an integer >= 1, got {number}"):
        RobometerCallback(tmp_path, max_clips=number)


def test_success_in_mid_episode_counts_as_true(tmp_path):
    """An agent that passes through the goal would count as a false success."""

    class Passing(CountingEnv):
        def step(self, action):
            observation, reward, terminated, truncated, _ = super().step(action)
            return observation, reward, terminated, truncated, {"is_success": self.steps == 2}

    venv = make_robometer_vec_env(
        Passing, "push", 1, ScriptedRewardModel(0.5, 1.0), env_kwargs={"lengths": [4]}
    )
    agent = PPO("MlpPolicy", venv, n_steps=8, batch_size=8, n_epochs=1, device="cpu")
    agent.set_logger(configure(str(tmp_path), ["csv"]))
    agent.learn(8, callback=RobometerCallback())
    assert float(rows_of(agent, tmp_path)[0]["robometer/precision"]) == 1.0


def test_it_listens_through_other_wrappers_and_stops(tmp_path):
    """VecNormalize outside would make it fail, or a second training count everything twice."""
    callback = RobometerCallback()
    trackers = []

    def normalize(venv):
        trackers.append(venv.tracker)
        return VecNormalize(venv)

    rows, _ = learn(tmp_path, callback, wrap=normalize)
    assert float(rows[-1]["robometer/final_progress"]) == LENGTH / 8
    assert trackers[0].listeners == []


def test_after_an_interrupted_training_it_listens_once():
    """Ctrl-C and `learn` again: every call of the model would count double."""
    venv = make_robometer_vec_env(CountingEnv, "push", 1, ScriptedRewardModel())
    agent = PPO("MlpPolicy", venv, n_steps=8, batch_size=8, n_epochs=1, device="cpu")

    class Interrupt(RobometerCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 4:
                raise KeyboardInterrupt
            return super()._on_step()

    callback = Interrupt()
    with pytest.raises(KeyboardInterrupt):
        agent.learn(8, callback=callback)
    assert len(venv.tracker.listeners) == 1
    agent.learn(8, callback=callback)
    assert venv.tracker.listeners == []


def test_it_works_with_an_off_policy_algorithm(tmp_path):
    """SAC, which robots are trained with, would have no curves."""
    venv = make_robometer_vec_env(
        "robometer_gym/TabletopReach-v0", "move the gripper to the red block", 2,
        ScriptedRewardModel(progress=0.5), env_kwargs={"max_episode_steps": 10},
    )  # fmt: skip
    agent = SAC("MlpPolicy", venv, learning_starts=5, buffer_size=100, batch_size=8, device="cpu")
    agent.set_logger(configure(str(tmp_path), ["csv"]))
    agent.learn(100, callback=RobometerCallback())
    rows = rows_of(agent, tmp_path)
    assert float(rows[-1]["robometer/progress"]) == 0.5
    assert float(rows[-1]["rollout/success_rate"]) == 0.0


def test_an_environment_without_a_reward_model_is_refused():
    """The training would run without a reward model, and the curves would just be missing."""
    agent = PPO("MlpPolicy", make_vec_env(CountingEnv), n_steps=8, batch_size=8, device="cpu")
    with pytest.raises(ValueError, match="needs an environment with VecRobometerReward"):
        agent.learn(8, callback=RobometerCallback())


def test_videos_without_pyav_are_refused_at_once(tmp_path, monkeypatch):
    """The training would end hours later, at the first false success."""
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match=r"robometer-gym\[video\]"):
        RobometerCallback(Path(tmp_path))


def test_a_file_where_a_folder_should_be_is_refused_at_once(tmp_path):
    """The training would end hours later, at the first false success."""
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="clips_dir must be a folder"):
        RobometerCallback(tmp_path / "file")


def test_traces_are_written(tmp_path):
    """A training of days could not be replayed with another threshold."""
    file = tmp_path / "traces" / "training.jsonl"
    learn(tmp_path, RobometerCallback(traces=file), num_envs=2)
    traces = read_traces(file)
    assert [trace.env for trace in traces] == [0, 1] * 8
    assert [trace.episode for trace in traces] == [n for n in range(8) for _ in range(2)]
    for trace in traces:
        assert trace.prediction_steps.tolist() == [0, 3, 6]
        assert trace.progress.tolist() == [0, 3 / 8, 6 / 8]
        assert (trace.detected_step is not None) == DETECTED[trace.episode % 4]
        assert (trace.true_success_step is not None) == TRUE[trace.episode % 4]


def test_a_folder_in_place_of_the_trace_file_is_refused_at_once(tmp_path):
    """The error would come after the environments and the model were made."""
    with pytest.raises(IsADirectoryError, match=r"traces must be a file such as .*traces.jsonl"):
        RobometerCallback(traces=tmp_path)
