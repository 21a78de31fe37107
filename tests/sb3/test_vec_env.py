"""VecRobometerReward: episodes, tasks, and the numbers that Stable-Baselines3 shows.

test_one_truth.py compares its rewards with the scalar wrapper's, failures are in
test_worker_failures.py.
"""

import csv
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from robometer_gym import FrameCapture, RobometerRewardWrapper, SubEnvironmentError
from robometer_gym.reward_model import Clip
from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from tests.wrappers.rollouts import ONE_VOTE, TASK, progress_by_step, shown, step_all

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from robometer_gym.sb3 import VecRobometerReward, make_robometer_vec_env


def vec(model: Any, lengths: Any, counting: Any = None, **settings: Any) -> Any:
    """The wrapper under test, around one CountingEnv for each of `lengths`."""
    make: list[Any] = [
        lambda steps=steps: FrameCapture(CountingEnv(steps, **(counting or {})))
        for steps in lengths
    ]
    task = settings.pop("task", TASK)
    settings = {"predict_every": 1, **settings}
    return VecRobometerReward(DummyVecEnv(make), task, model, **settings)


def success_from(at: int, *envs: int) -> Any:
    """A model that detects success in some environments from one step of each episode on."""

    def success(clip: Clip) -> float:
        where: Any = clip.stream
        return float(shown(clip)[-1][1] >= at and where.env in envs)

    return success


# Episodes


def test_the_reset_frame_never_enters_the_old_episode():
    """A VecEnv renders the next episode already: its frame would be scored as the last."""
    model = ScriptedRewardModel(progress_by_step)
    venv = vec(model, [[2]])
    venv.reset()
    earned = [step_all(venv)[1].tolist() for _ in range(4)]
    assert earned == [[1 / 16]] * 4
    assert [shown(clip) for clip in model.clips[:4]] == [
        [(0, 0)],
        [(0, 0), (0, 1)],
        [(0, 0), (0, 1), (0, 2)],
        [(1, 0)],
    ]


def test_success_really_resets_its_environment_and_no_other():
    """The agent would believe in a new episode while the old one ran on."""
    venv = vec(ScriptedRewardModel(progress_by_step, success_from(2, 1)), [[9]] * 3, **ONE_VOTE)
    venv.reset()
    step_all(venv)
    observations, rewards, dones, infos = step_all(venv)
    assert dones.tolist() == [False, True, False]
    assert rewards.tolist() == [1 / 16] * 3
    assert observations.tolist() == [[2], [0], [2]]
    assert infos[1]["terminal_observation"].tolist() == [2]
    assert infos[1]["TimeLimit.truncated"] is False
    assert infos[1]["is_success"] is True
    assert ["terminal_observation" in info for info in infos] == [False, True, False]
    assert venv.reset_infos[1]["robometer/progress"] == 0.0
    assert step_all(venv)[0].tolist() == [[3], [1], [3]]


def test_success_at_the_time_limit_is_a_true_end():
    """PPO would add the value of going on to an episode that is over."""
    counting = {"ends": ["truncated"]}
    model = ScriptedRewardModel(progress_by_step, success_from(2, 1))
    venv = vec(model, [[2], [2]], counting, **ONE_VOTE)
    venv.reset()
    step_all(venv)
    _, _, dones, infos = step_all(venv)
    assert dones.tolist() == [True, True]
    assert [info["TimeLimit.truncated"] for info in infos] == [True, False]
    assert [info["is_success"] for info in infos] == [False, True]
    assert [env.unwrapped.episode for env in venv.venv.envs] == [1, 1]


def test_the_environments_own_success_stays():
    """`rollout/success_rate` would show the detector's opinion, not the truth."""
    venv = vec(ScriptedRewardModel(success=1.0), [[9]], {"success": [False]}, **ONE_VOTE)
    venv.reset()
    _, _, dones, infos = step_all(venv)
    assert dones.tolist() == [True]
    assert (infos[0]["is_success"], infos[0]["robometer/success"]) == (False, True)


def test_one_call_of_the_model_for_all_that_are_due():
    """Eight environments would wait for eight calls of a large model."""
    model = ScriptedRewardModel(progress_by_step)
    venv = vec(model, [[4, 99], [99], [99]], predict_every=3)
    venv.reset()
    for _ in range(6):
        step_all(venv)
    assert model.batches == [3, 3, 2, 2]  # reset; step 3; an end and its reset; step 6


def test_frames_are_rendered_only_when_they_are_kept():
    """Rendering is the slowest part of a simulator."""
    venv = vec(ScriptedRewardModel(), [[7], [99]], predict_every=3)
    venv.reset()
    for _ in range(7):
        step_all(venv)
    assert [env.unwrapped.renders for env in venv.venv.envs] == [1 + 2 + 1 + 1, 1 + 2]


def test_dict_observations():
    """Robots with cameras in their observation could not be trained."""
    cameras = {"scene": "scene", "wrist": "wrist"}
    model = ScriptedRewardModel(progress_by_step, success_from(2, 0))
    counting = {"cameras": ("scene", "wrist")}
    venv = vec(model, [[9], [9]], counting, camera=cameras, **ONE_VOTE)
    venv.reset()
    step_all(venv)
    observations, _, dones, infos = step_all(venv)
    last = infos[0]["terminal_observation"]
    assert dones.tolist() == [True, False]
    assert (last["count"].tolist(), observations["count"].tolist()) == ([2], [[0], [2]])
    assert CountingEnv.read(last["scene"]) == {"camera": 1, "episode": 0, "step": 2}
    assert CountingEnv.read(observations["wrist"][0]) == {"camera": 2, "episode": 1, "step": 0}
    assert [CountingEnv.read(clip.images[-1])["camera"] for clip in model.clips[:4]] == [1, 2] * 2


def test_rewards_are_in_double_precision():
    """DummyVecEnv rounds rewards to single precision; ours would differ from the scalar's."""

    class Tenth(CountingEnv):
        def step(self, action: Any) -> Any:
            observation, _, *rest = super().step(action)
            return observation, 0.1, *rest

    core = DummyVecEnv([lambda: FrameCapture(Tenth())])
    venv = VecRobometerReward(core, TASK, ScriptedRewardModel(), mode="shape")
    venv.reset()
    _, rewards, _, infos = step_all(venv)
    assert (rewards.dtype, rewards[0], infos[0]["env_reward"]) == (np.float64, 0.1, 0.1)


# Tasks


def test_each_environment_may_have_its_own_task():
    """All robots would be judged by one instruction."""
    model = ScriptedRewardModel()
    venv = vec(model, [[1], [9]], task=["open it", "close it"])
    venv.reset()
    step_all(venv)
    tasks = [(clip.stream.env, clip.task) for clip in model.clips]  # type: ignore[union-attr]
    assert tasks == [(0, "open it"), (1, "close it")] * 2 + [(0, "open it")]


@pytest.mark.parametrize("outside", [lambda venv: venv, VecMonitor])
def test_a_task_in_the_options_is_for_the_next_reset_only(outside):
    """Episodes would be judged by an instruction that was meant for another."""
    inner = vec(ScriptedRewardModel(), [[2], [9]])
    venv = outside(inner)
    venv.set_options({"task": "close it"})
    venv.reset()
    assert inner.tasks == ["close it", "close it"]
    assert inner.reset_infos[0]["options"] == {"task": "close it"}
    step_all(venv)
    step_all(venv)
    assert inner.tasks == [TASK, "close it"]
    venv.set_options([{}, {"task": "fold it"}])
    venv.reset()
    assert inner.tasks == [TASK, "fold it"]
    venv.reset()
    assert inner.tasks == [TASK, TASK]


# What Stable-Baselines3 shows


def script() -> ScriptedRewardModel:
    """Progress of a sixteenth per step; success at the third step of every other episode."""

    def success(clip: Clip) -> float:
        where: Any = clip.stream
        return float(where.episode % 2 == 0 and shown(clip)[-1][1] >= 3)

    return ScriptedRewardModel(progress_by_step, success)


def stack(model: Any, lengths: Any = (5,), n_envs: int = 1, **counting: Any) -> Any:
    kwargs = {"lengths": lengths, **counting}
    return make_robometer_vec_env(
        CountingEnv, TASK, n_envs, model, env_kwargs=kwargs, predict_every=1, **ONE_VOTE
    )


def test_evaluate_policy_counts_our_rewards_and_ends():
    """It would show the environment's rewards, or wait for ends that it does not see."""
    agent = PPO("MlpPolicy", stack(script()), n_steps=8, batch_size=8, device="cpu")
    returns, lengths = evaluate_policy(
        agent, stack(script()), n_eval_episodes=4, return_episode_rewards=True
    )
    assert lengths == [3, 5, 3, 5]
    assert returns == [3 / 16, 5 / 16, 3 / 16, 5 / 16]


@pytest.mark.parametrize(
    ("truth", "rate"), [(None, 0.5), ([True, True, True, False], 0.25)], ids=["model's", "own"]
)
def test_success_rates_in_training_and_evaluation(truth, rate, tmp_path):
    """The main curve would show another quantity, or not be there.

    In an environment that reports success at its own end, episodes that the model ended earlier
    are no successes.
    """
    counting = {} if truth is None else {"success": truth}
    venv = stack(script(), **counting)
    agent = PPO("MlpPolicy", venv, n_steps=32, batch_size=32, n_epochs=1, device="cpu")
    evaluation = EvalCallback(
        stack(script(), **counting), n_eval_episodes=4, eval_freq=32, verbose=0
    )
    agent.set_logger(configure(str(tmp_path), ["csv"]))
    agent.learn(64, log_interval=1, callback=evaluation)
    agent.logger.close()
    with open(tmp_path / "progress.csv", newline="") as file:
        rows = list(csv.DictReader(file))

    def shown(name: str) -> list[float]:
        return [float(row[name]) for row in rows if row[name]]

    assert shown("eval/success_rate") == [rate, rate]
    assert shown("eval/mean_reward") == [4 / 16, 4 / 16]
    assert shown("eval/mean_ep_length") == [4.0, 4.0]
    assert shown("rollout/success_rate") == [rate, rate]
    assert shown("rollout/ep_rew_mean") == [4 / 16, 4 / 16]
    assert shown("rollout/ep_len_mean") == [4.0, 4.0]


def test_training_on_the_built_in_environment():
    """The README's stack would not train."""
    venv = make_robometer_vec_env(
        "robometer_gym/TabletopReach-v0", TASK, 2, ScriptedRewardModel(0.5), seed=0, frame_size=32
    )
    agent = PPO("MlpPolicy", venv, n_steps=64, batch_size=64, n_epochs=1, device="cpu").learn(256)
    assert agent.num_timesteps == 256
    assert {entry["r"] for entry in agent.ep_info_buffer or []} == {0.0}
    venv.close()


def test_seeds_give_the_same_episodes():
    """A run could not be repeated."""

    def run() -> Any:
        venv = make_robometer_vec_env(
            "robometer_gym/TabletopReach-v0", TASK, 2, ScriptedRewardModel(), seed=7
        )
        first = venv.reset()
        return first, venv.step(np.zeros_like([venv.action_space.sample()] * 2))[0]

    for one, other in zip(run(), run(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("outside", [VecNormalize, lambda venv: VecFrameStack(venv, 3)])
def test_other_wrappers_go_outside(outside):
    """Normalized or stacked observations would mix two episodes at a success."""
    model = ScriptedRewardModel(progress_by_step, success_from(2, 1))
    venv = outside(vec(model, [[9], [9]], **ONE_VOTE))
    venv.reset()
    step_all(venv)
    observations, _, dones, infos = step_all(venv)
    assert dones.tolist() == [False, True]
    if isinstance(venv, VecFrameStack):
        assert observations.tolist() == [[0, 1, 2], [0, 0, 0]]
        assert infos[1]["terminal_observation"].tolist() == [0, 1, 2]
    else:
        assert venv.get_original_obs().tolist() == [[2], [0]]
        assert venv.get_original_reward().tolist() == [1 / 16, 1 / 16]
        assert infos[1]["terminal_observation"].shape == (1,)


def test_methods_and_attributes_of_the_environments_are_reached():
    """`env_method` and `get_attr`, which many scripts use, would stop at the wrapper."""
    venv = stack(ScriptedRewardModel(), n_envs=2)
    assert venv.get_attr("lengths") == [(5,), (5,)]
    venv.reset()
    assert [frame.shape for frame in venv.env_method("render")] == [(24, 32, 3)] * 2


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version:UserWarning")
def test_stable_baselines3_finds_nothing_wrong_with_a_captured_environment():
    """SB3 would refuse the environments, or misread them."""
    from stable_baselines3.common.env_checker import check_env

    check_env(FrameCapture(gym.make("robometer_gym/TabletopReach-v0", render_mode="rgb_array")))


# Wrong arguments


def captured() -> Any:
    return FrameCapture(CountingEnv())


def around(core: Any, task: Any = TASK, **settings: Any) -> Any:
    return VecRobometerReward(core, task, ScriptedRewardModel(), **settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: around(DummyVecEnv([CountingEnv])), "must be in a FrameCapture"),
        (lambda: around(VecNormalize(DummyVecEnv([captured]))), "got VecNormalize"),
        (lambda: around(around(DummyVecEnv([captured]))), "got VecRobometerReward"),
        (lambda: around(VecMonitor(DummyVecEnv([captured]))), "Put it outside"),
        (lambda: around(DummyVecEnv([captured]), [TASK] * 3), "each of the 1 environments"),
        (lambda: around(DummyVecEnv([captured]), ""), "task must describe"),
        (lambda: around(DummyVecEnv([captured]), camera="wrist"), "'wrist' is not a key"),
        (
            lambda: around(DummyVecEnv([lambda: FrameCapture(CountingEnv(render_mode=None))])),
            "render_mode='rgb_array'",
        ),
        (lambda: around(DummyVecEnv([captured]), gamma=2.0), "gamma must be in"),
    ],
)
def test_a_wrong_argument_is_refused_at_once(make, message):
    """The user would find out after hours, or from a message about something else."""
    with pytest.raises(ValueError, match=message):
        make()


def test_an_environment_with_model_rewards_is_refused():
    """The model's rewards would pass for the environment's own."""

    def rewarded() -> Any:
        return FrameCapture(RobometerRewardWrapper(CountingEnv(), TASK, ScriptedRewardModel()))

    with pytest.raises(SubEnvironmentError, match=r"Environment 0 .* RobometerRewardWrapper alr"):
        around(DummyVecEnv([rewarded])).reset()


def test_a_step_before_the_first_reset_is_refused_and_changes_nothing():
    """The environments' dice would have been rolled, and the next episode be another."""
    venv = vec(ScriptedRewardModel(), [[3], [3]])
    with pytest.raises(ResetNeeded, match="call reset"):
        step_all(venv)
    assert [env.unwrapped.steps for env in venv.venv.envs] == [0, 0]


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
@pytest.mark.usefixtures("no_hanging")
def test_a_wrong_number_of_actions_changes_nothing(kind, count):
    """One too many would be dropped; one too few would be waited for, or cost the episodes."""
    model = ScriptedRewardModel(progress_by_step)
    venv = make_robometer_vec_env(
        CountingEnv,
        TASK,
        2,
        model,
        vec_env_cls=kind,
        predict_every=1,
    )
    venv.reset()
    with pytest.raises(ValueError, match=f"one action for each of the 2 environments; got {count}"):
        venv.step(np.zeros(count, np.int64))
    assert step_all(venv)[1].tolist() == pytest.approx([1 / 16, 1 / 16])
    venv.close()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [({"task": " "}, ValueError, "task must describe"), ([{}], ValueError, "each of the 2 envir")],
)
def test_wrong_options_are_refused_and_change_nothing(options, error, message):
    """A typing error would be found at the next reset, or hit another environment."""
    venv = vec(ScriptedRewardModel(progress_by_step), [[9], [9]])
    venv.reset()
    with pytest.raises(error, match=message):
        venv.set_options(options)
    assert step_all(venv)[1].tolist() == [1 / 16, 1 / 16]
    assert venv.tasks == [TASK, TASK]


def test_forked_workers_are_refused():
    """Should one of them die, `step` would wait for ever: the pipes of the others hold it open."""
    venv = SubprocVecEnv([lambda: FrameCapture(CountingEnv())] * 2, start_method="fork")
    with pytest.raises(ValueError, match="start_method='fork'"):
        VecRobometerReward(venv, "push the block", ScriptedRewardModel())
    venv.close()


class Unlicensed(CountingEnv):
    """Cannot be made."""

    def __init__(self) -> None:
        raise ValueError("no license")


def test_an_environment_that_cannot_be_made_in_its_worker_is_an_error():
    """The user would see a reset connection, and look for it in the network."""
    with pytest.raises(SubEnvironmentError, match="could not be made in its worker"):
        make_robometer_vec_env(Unlicensed, TASK, 2, vec_env_cls=SubprocVecEnv)


@pytest.mark.parametrize("number", [0, -1, 2.5, "3", True])
def test_a_number_of_environments_that_is_none_is_refused(number):
    """The message would be about a list index that is out of range."""
    with pytest.raises(ValueError, match="number of environments must be an integer >= 1"):
        make_robometer_vec_env(CountingEnv, TASK, number)
