"""evaluate: failures, wrong arguments, and environments that cannot be evaluated."""

import math
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

from robometer_gym import Prediction
from robometer_gym.evaluation import evaluate
from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from tests.evaluation.environments import KINDS, ONE_VOTE, DoneAt, detects, sb3, scalar


@pytest.mark.parametrize("error", [RuntimeError("the server is gone"), KeyboardInterrupt()])
def test_after_an_error_no_listener_stays(error):
    """Each Ctrl-C would leave a listener behind that keeps frames for ever."""
    model = ScriptedRewardModel(progress=[0.5, 0.5, 0.5, RuntimeError("the server is gone")])
    env = scalar(CountingEnv(lengths=[6]), model)

    def policy(observation):
        if isinstance(error, KeyboardInterrupt):
            raise error
        return 0

    with pytest.raises(type(error)):
        evaluate(env, policy, episodes=4)
    assert env.tracker.listeners == []


def test_failed_predictions_are_left_out():
    """on_error="hold" would end a long evaluation at its first hiccup, or show a score of NaN."""
    failed = RuntimeError("busy")
    script: list[float | Exception] = [failed, failed, failed, 0.25, failed, 0.5]
    env = scalar(CountingEnv(lengths=[8]), ScriptedRewardModel(progress=script), on_error="hold")
    blind, later = evaluate(env, "random", episodes=2).episodes
    assert len(blind.progress) == 0
    assert blind.frames == ()
    assert math.isnan(blind.final_progress)
    assert blind.episode_return == 0
    assert later.prediction_steps.tolist() == [0, 8]
    assert later.progress.tolist() == [0.25, 0.5]
    assert later.episode_return == 0.25


def test_a_response_that_is_no_prediction_is_left_out():
    """A NaN of the model would be drawn, and make every mean a NaN."""

    class Sometimes:
        def predict(self, clips):
            values = [math.nan if clip.steps[-1] == 5 else 0.5 for clip in clips]
            return [
                Prediction(*[np.full(len(clip), value, np.float32)] * 2)
                for clip, value in zip(clips, values, strict=True)
            ]

    env = scalar(CountingEnv(lengths=[8]), Sometimes(), on_error="hold")
    (episode,) = evaluate(env, "random", episodes=1).episodes
    assert episode.prediction_steps.tolist() == [0, 8]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"episodes": 0}, "episodes must be an integer >= 1, got 0."),
        ({"episodes": 2.0}, "episodes must be an integer >= 1, got 2.0."),
        ({"seed": -1}, "seed must be an integer >= 0, got -1."),
        ({"policy": "expert"}, "policy must be 'random', a model or a function, got 'expert'."),
        ({"policy": lambda _: [0, 1]}, r"The policy's action must be of shape \(\); got \(2,\)."),
    ],
)
def test_wrong_arguments_are_refused(wrong, message):
    """Nothing would be measured, and a table of nothing be written."""
    env = scalar(CountingEnv(), detects())
    with pytest.raises(ValueError, match=message):
        evaluate(env, **{"policy": "random", **wrong})
    assert env.tracker.listeners == []


@pytest.mark.parametrize("policy", [None, 3, type("Policy", (), {})])
def test_a_policy_that_cannot_act_is_refused(policy):
    """The error would come from deep inside, after the model was loaded."""
    with pytest.raises(TypeError, match=r"policy must be a model of Stable-Baselines3, a function"):
        evaluate(scalar(CountingEnv(), detects()), policy)


@pytest.mark.parametrize("kind", KINDS)
def test_an_action_for_one_environment_is_refused_for_many(kind):
    """All environments would get the same action, or only the first would act."""
    env = KINDS[kind](lambda: CountingEnv(lengths=[3]), detects(), 2)
    with pytest.raises(
        ValueError, match=r"of shape \(2,\), one action for each of 2 env.*got \(\)"
    ):
        evaluate(env, lambda observation: 0)
    env.close()


def test_an_environment_without_a_reward_wrapper_is_refused():
    """The user would not learn which wrapper is missing, and where."""
    from stable_baselines3.common.vec_env import DummyVecEnv

    with pytest.raises(ValueError, match=r"this CountingEnv.* RobometerRewardWrapper\(env"):
        evaluate(CountingEnv(), "random")
    inside = lambda: scalar(CountingEnv(), detects())  # noqa: E731
    with pytest.raises(
        ValueError, match=r"make_robometer_vec\(.*each of its sub-environments does"
    ):
        evaluate(gym.vector.SyncVectorEnv([inside]), "random")
    with pytest.raises(ValueError, match=r"make_robometer_vec_env\("):
        evaluate(DummyVecEnv([inside]), "random")
    with pytest.raises(TypeError, match=r"env must be a gymnasium.Env, .* got str."):
        evaluate("FetchPush-v4", "random")


def test_wrappers_outside_do_not_matter():
    """A user with statistics or normalization outside could not evaluate."""
    from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

    env = gym.wrappers.RecordEpisodeStatistics(scalar(DoneAt(), detects(), **ONE_VOTE))
    assert evaluate(env, "random", episodes=2).episodes[1].detected_step == 15
    venv = VecNormalize(VecMonitor(sb3(DoneAt, detects(), 1, **ONE_VOTE)), training=False)
    assert evaluate(venv, "random", episodes=2).episodes[1].detected_step == 15


def test_evaluation_needs_neither_torch_nor_sb3():
    """A user with a reward server, or without SB3, could not evaluate."""
    program = (
        "import sys; sys.modules['stable_baselines3'] = None; sys.modules['torch'] = None\n"
        "from robometer_gym import RobometerRewardWrapper\n"
        "from robometer_gym.evaluation import evaluate\n"
        "from robometer_gym.testing import CountingEnv, ScriptedRewardModel\n"
        "env = RobometerRewardWrapper(CountingEnv(), 'push', ScriptedRewardModel())\n"
        "print(evaluate(env, lambda _: 0, episodes=2).totals.episodes, 'matplotlib' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.split() == ["2", "False"], run.stderr


def test_the_models_time_is_part_of_the_whole():
    """Steps per second without the model would be below those with it."""
    report = evaluate(scalar(CountingEnv(), detects([None])), "random", episodes=3)
    assert 0 < report.model_seconds < report.seconds
    assert report.steps_per_second_without_model > report.steps_per_second > 0


def test_an_episode_without_an_end_is_warned_of(caplog):
    """The evaluation would run for ever, without a reason."""
    env = scalar(CountingEnv(lengths=[1001]), ScriptedRewardModel(0.5), predict_every=500)
    evaluate(env, "random", episodes=2)
    (record,) = caplog.records
    assert "after 1000 steps" in record.message
    assert "max_episode_steps" in record.message
    assert "TimeLimit" in record.message


def test_a_long_episode_with_an_end_is_not_warned_of(caplog):
    """Warnings that mean nothing are no longer read."""
    env = scalar(CountingEnv(lengths=[1000]), ScriptedRewardModel(0.5), predict_every=500)
    evaluate(env, "random", episodes=1)
    assert caplog.records == []
