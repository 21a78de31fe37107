"""evaluate leaves statistics alone, holds successes, and keeps episodes after Ctrl-C."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import NormalizeObservation

from robometer_gym import RobometerRewardWrapper, make_robometer_vec
from robometer_gym.evaluation import EvaluationInterrupted, HoldSuccess, evaluate
from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from robometer_gym.tracking.trace import EpisodeTrace

TASK = "push the block"


def rising_model(success_from: int = 1_000_000) -> ScriptedRewardModel:
    """Return a model of progress step / 20 that detects success from a step on."""
    return ScriptedRewardModel(
        progress=lambda clip: clip.steps[-1] / 20,
        success=lambda clip: 0.9 * (clip.steps[-1] >= success_from),
    )


def wrapped(env: gym.Env, model=None, **settings) -> RobometerRewardWrapper:
    return RobometerRewardWrapper(env, TASK, model or rising_model(), **settings)


def normalized_venv():
    from stable_baselines3.common.vec_env import VecNormalize

    from robometer_gym.sb3 import make_robometer_vec_env

    return VecNormalize(make_robometer_vec_env(CountingEnv, TASK, 2, rising_model()))


# --- statistics ---


def test_vecnormalize_outside_changes_no_number():
    """Normalized rewards would be reported, and the training's statistics learn the evaluation."""
    venv = normalized_venv()
    venv.reset()
    for _ in range(30):
        venv.step(np.zeros(2, int))
    before = (venv.obs_rms.count, venv.ret_rms.count, venv.obs_rms.mean.tolist())
    report = evaluate(venv, "random", 4)
    assert report.totals.mean_return == pytest.approx(0.5)
    assert (venv.obs_rms.count, venv.ret_rms.count, venv.obs_rms.mean.tolist()) == before
    assert venv.training
    venv.training = False
    evaluate(venv, "random", 2)
    assert not venv.training
    venv.close()


@pytest.mark.parametrize("place", ["outside", "inside"])
def test_statistics_of_gymnasium_stay_as_they_are(place):
    """As above, with Gymnasium's wrapper for observations."""
    if place == "outside":
        normalizer = NormalizeObservation(wrapped(CountingEnv()))
        env: gym.Env[Any, Any] = normalizer
    else:
        normalizer = NormalizeObservation(CountingEnv())
        env = wrapped(normalizer)
    before = normalizer.obs_rms.count
    evaluate(env, "random", 2)
    assert normalizer.obs_rms.count == before
    assert normalizer.update_running_mean
    env.reset()
    assert normalizer.obs_rms.count == before + 1


def test_statistics_of_sub_environments_stay_as_they_are():
    """As above, where each sub-environment has its own."""
    normalizers = []

    def make():
        normalizers.append(NormalizeObservation(CountingEnv()))
        return normalizers[-1]

    envs = make_robometer_vec(make, TASK, 2, rising_model())
    before = [normalizer.obs_rms.count for normalizer in normalizers]
    evaluate(envs, "random", 2)
    assert [normalizer.obs_rms.count for normalizer in normalizers] == before
    envs.close()


# --- hold ---


def test_a_held_success_is_detected():
    """A perfect agent would get a recall of 0 where the environment ends itself on success."""
    env = CountingEnv(lengths=[7, 9], success=[True, False])
    rewarded = wrapped(env, rising_model(success_from=7))
    first, failed = evaluate(rewarded, "random", 2, hold=8).episodes
    assert (first.num_steps, first.true_success_step, first.detected_step) == (15, 7, 15)
    assert (failed.num_steps, failed.true_success_step) == (9, None)
    assert rewarded.env is env, "The environment is left as it was."
    assert evaluate(rewarded, "random", 1).episodes[0].num_steps == 7


def test_a_held_episode_ends_after_its_steps_or_at_the_limit():
    """The detector would get fewer predictions than requested, or the episode never end."""
    env = gym.wrappers.TimeLimit(CountingEnv(lengths=[4], success=[True]), 6)
    for hold, steps, truncated in ((0, 4, False), (1, 5, False), (2, 6, True), (9, 6, True)):
        (episode,) = evaluate(wrapped(env), "random", 1, hold=hold).episodes
        assert episode.num_steps == steps
        assert episode.steps[-1].truncated == truncated


@pytest.mark.parametrize("argument", [{"hold": 3}, {"every_frame": True}])
def test_vector_environments_are_refused_in_words(argument):
    """Frames of the next episode would be shown, or hold be ignored."""
    envs = make_robometer_vec(CountingEnv, TASK, 2, rising_model())
    with pytest.raises(ValueError, match=r"need a scalar environment.* in HoldSuccess when it is"):
        evaluate(envs, "random", 2, **argument)
    envs.close()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_sub_environments_can_be_held(mode):
    """The advice of the error above would not work."""
    envs = make_robometer_vec(
        lambda: HoldSuccess(CountingEnv(lengths=[7], success=[True]), 8),
        TASK,
        2,
        rising_model(success_from=7),
        vector_kwargs={"autoreset_mode": mode},
    )
    report = evaluate(envs, "random", 4)
    assert [episode.detected_step for episode in report.episodes] == [15] * 4
    assert report.totals.recall == 1
    envs.close()


def test_successes_that_end_too_early_are_warned_of(caplog):
    """A recall of 0 would look like a bad model."""
    env = wrapped(CountingEnv(lengths=[7], success=[True]), rising_model(success_from=7))
    report = evaluate(env, "random", 3)
    totals = report.totals
    assert (totals.recall, totals.undecided, totals.true_successes) == (0, 3, 3)
    assert (totals.last_frame_recall, totals.last_frame_success_rate) == (1, 1)
    (record,) = caplog.records
    assert "3 of 3 successful episodes ended before the detector could decide" in record.message
    caplog.clear()
    evaluate(env, "random", 3, hold=10)
    assert caplog.records == []


# --- every frame ---


def test_every_frame_is_kept():
    """A video would jump from prediction to prediction."""
    report = evaluate(wrapped(CountingEnv(lengths=[7, 3])), "random", 2, every_frame=True)
    for number, (episode, steps) in enumerate(zip(report.episodes, (7, 3), strict=True)):
        shown = [CountingEnv.read(frame) for frame in episode.frames]
        assert [s["step"] for s in shown] == list(episode.frame_steps) == list(range(steps + 1))
        assert {s["episode"] for s in shown} == {number}


def test_an_episode_that_a_wrapper_outside_ends_is_counted():
    """The evaluation would wait for ever, or show frames of the next episode."""
    env = gym.wrappers.RecordEpisodeStatistics(wrapped(CountingEnv(lengths=[50])))
    limited = gym.wrappers.TimeLimit(env, 6)
    report = evaluate(limited, "random", 2, seed=4, every_frame=True)
    assert [episode.num_steps for episode in report.episodes] == [6, 6]
    assert [len(episode.frames) for episode in report.episodes] == [7, 7]
    assert [episode.seed for episode in report.episodes] == [4, 5]


# --- Ctrl-C ---


def test_ctrl_c_hands_over_the_finished_episodes():
    """Hours of episodes would be lost."""
    acted = 0

    def policy(observation):
        nonlocal acted
        acted += 1
        if acted == 25:
            raise KeyboardInterrupt
        return 0

    env = wrapped(CountingEnv(lengths=[10]))
    ended: list[EpisodeTrace] = []
    with pytest.raises(EvaluationInterrupted, match="after 2 episodes") as interrupted:
        evaluate(env, policy, 9, on_episode=ended.append)
    report = interrupted.value.report
    assert [episode.num_steps for episode in report.episodes] == [10, 10]
    assert report.env_steps == 24
    assert ended == list(report.episodes)
    assert env.tracker.listeners == []
