"""RobometerVectorRewardWrapper: resets, ends, batches, tasks, statistics, wrong arguments.

test_one_truth.py compares its rewards with the scalar wrapper's, failures are in
test_worker_failures.py. Known defects of other reward wrappers, and the tests that would fail on
each; "scalar" are those of the scalar wrapper:

1.  one benchmark's environments only, rewards shifted: scalar `test_frames_from_the_observation`,
    `test_the_environments_reward_is_unchanged`
2.  the model at every step, no batches: `test_one_call_of_the_model_for_all_that_are_due`, scalar
    `test_predictions_come_at_reset_at_every_nth_step_and_at_the_last`
3.  other windows than the scalar wrapper, growing lists: test_one_truth.py, scalar
    `test_memory_does_not_grow_over_a_long_episode`
4.  `test_the_reset_frame_never_enters_the_old_episode_under_same_step`
5.  `test_the_reset_step_has_neither_prediction_nor_reward_under_next_step`
6.  `test_after_a_success_the_first_delta_is_that_of_the_new_episode`
7.  `test_a_success_really_resets_its_environment_and_no_other`
8.  `test_a_high_baseline_is_no_gift`
9.  `test_the_environments_own_success_stands_beside_the_models`
10. `test_a_model_given_by_name_is_loaded_at_the_first_reset`,
    test_worker_failures.py `test_workers_import_no_torch`, scalar
    `test_the_spec_rebuilds_the_wrapped_environment`
11. and 12. are the model's: test_checkpoint.py, test_processor.py
"""

from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from robometer_gym import (
    FrameCapture,
    RobometerRewardWrapper,
    RobometerVectorRewardWrapper,
    make_robometer_vec,
)
from robometer_gym.reward_model import Clip
from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from tests.wrappers.rollouts import (
    DISABLED,
    NEXT,
    ONE_VOTE,
    SAME,
    TASK,
    every_mode,
    mask,
    progress_by_step,
    shown,
    step_all,
    vector,
)


def of(model: ScriptedRewardModel, env: int) -> list[list[tuple[int, int]]]:
    """Return the frames that the model received of one environment."""
    return [shown(clip) for clip in model.clips if clip.stream.env == env]  # type: ignore[union-attr]


def success_at(env: int, episode: int, at: int) -> Any:
    """A model that detects success in one environment, from one step of one episode on."""

    def success(clip: Clip) -> float:
        where: Any = clip.stream
        (now, number), own = shown(clip)[-1], where.env
        return float((own, now) == (env, episode) and number >= at)

    return success


# Resets and ends


def test_the_reset_frame_never_enters_the_old_episode_under_same_step():
    """The last frame would be the first of the next episode, and the delta of the end wrong."""
    model = ScriptedRewardModel(progress_by_step)
    envs = vector(model, [[2, 3], [3, 3]], SAME)
    envs.reset()
    earned = [step_all(envs)[1].tolist() for _ in range(3)]
    assert earned == [[1 / 16, 1 / 16], [1 / 16, 1 / 16], [1 / 16, 1 / 16]]
    old = [[(0, 0)], [(0, 0), (0, 1)], [(0, 0), (0, 1), (0, 2)]]
    assert of(model, 0) == [*old, [(1, 0)], [(1, 0), (1, 1)]]
    assert of(model, 1)[3:] == [[(0, 0), (0, 1), (0, 2), (0, 3)], [(1, 0)]]


def test_the_reset_step_has_neither_prediction_nor_reward_under_next_step():
    """A step whose action is ignored would get the progress of a fresh scene as reward."""
    model = ScriptedRewardModel(lambda clip: 0.5)
    envs = vector(model, [[1, 2], [3]], NEXT, signal="progress")
    envs.reset()
    assert step_all(envs)[1].tolist() == [0.5, 0.5]
    _, rewards, terminated, _, infos = step_all(envs)
    assert rewards.tolist() == [0.0, 0.5]
    assert not terminated.any()
    assert infos["_env_reward"].tolist() == [False, True]
    assert infos["robometer/predicted"].tolist() == [True, True]
    assert of(model, 0) == [[(0, 0)], [(0, 0), (0, 1)], [(1, 0)]]


@every_mode
def test_after_a_success_the_first_delta_is_that_of_the_new_episode(mode):
    """The next episode would begin with the difference to the old one's progress."""
    table = {(0, 0): 0.25, (0, 1): 1.0, (1, 0): 0.5, (1, 1): 0.625}
    model = ScriptedRewardModel(lambda clip: table[shown(clip)[-1]], success_at(0, 0, 1))
    envs = vector(model, [[9]], mode, **ONE_VOTE)
    envs.reset()
    _, rewards, terminated, _, _ = step_all(envs)
    assert (rewards[0], terminated[0]) == (0.75, True)
    if mode is NEXT:
        assert step_all(envs)[1].tolist() == [0.0]
    if mode is DISABLED:
        envs.reset(options=mask(envs, 0))
    assert step_all(envs)[1].tolist() == [0.125]
    assert of(model, 0) == [[(0, 0)], [(0, 0), (0, 1)], [(1, 0)], [(1, 0), (1, 1)]]


@every_mode
def test_a_success_really_resets_its_environment_and_no_other(mode):
    """The agent would believe in a new episode while the old one ran on, or another one's end."""
    model = ScriptedRewardModel(progress_by_step, success_at(1, 0, 2))
    envs = vector(model, [[9]] * 3, mode, **ONE_VOTE)
    envs.reset()
    step_all(envs)
    observations, _, terminated, truncated, infos = step_all(envs)
    assert (terminated.tolist(), truncated.any()) == ([False, True, False], False)
    if mode is SAME:
        assert observations[:, 0].tolist() == [2, 0, 2]
        assert infos["final_obs"][1].tolist() == [2]
        assert infos["_final_obs"].tolist() == infos["_final_info"].tolist() == [False, True, False]
        assert infos["final_info"]["is_success"].tolist() == [False, True, False]
        assert infos["robometer/success"].tolist() == [False, False, False]
    elif mode is NEXT:
        assert observations[:, 0].tolist() == [2, 2, 2]
        observations, *_ = step_all(envs)
        assert observations[:, 0].tolist() == [3, 0, 3]
    else:
        observations, infos = envs.reset(options=mask(envs, 1))
        assert observations[:, 0].tolist() == [2, 0, 2]
        assert infos["_robometer/progress"].tolist() == [False, True, False]
    assert [env.unwrapped.episode for env in envs.unwrapped.envs] == [0, 1, 0]


@every_mode
def test_several_successes_and_ends_at_one_step(mode):
    """Two environments that end at once, one of itself, would mix up their last infos."""
    model = ScriptedRewardModel(
        progress_by_step, lambda clip: float(clip.stream.env < 2 and len(clip) > 2)
    )
    envs = vector(model, [[9], [9], [2], [9]], mode, **ONE_VOTE)
    envs.reset()
    step_all(envs)
    _, rewards, terminated, _, infos = step_all(envs)
    assert terminated.tolist() == [True, True, True, False]
    assert rewards.tolist() == [1 / 16] * 4
    last = infos["final_info"] if mode is SAME else infos
    assert last["env_reward"].tolist() == [2.0, 2.0, 2.0, 0.0 if mode is SAME else 2.0]
    assert last["is_success"].tolist()[:3] == [True, True, False]
    if mode is SAME:
        assert infos["_env_reward"].tolist() == [False, False, False, True]
        assert [final is None for final in infos["final_obs"]] == [False, False, False, True]


@pytest.mark.parametrize("ends", ["terminated", "truncated"])
def test_success_at_the_step_that_ends_anyway_resets_once(ends):
    """The environment would be reset twice, and an episode be skipped."""
    model = ScriptedRewardModel(progress_by_step, success_at(0, 0, 2))
    for mode, steps in ((NEXT, 3), (SAME, 2)):
        envs = vector(model, [[2, 9]], mode, {"ends": [ends]}, **ONE_VOTE)
        envs.reset()
        assert [step_all(envs)[2].tolist() for _ in range(steps)][1] == [True]
        assert [env.unwrapped.episode for env in envs.unwrapped.envs] == [1]
        assert step_all(envs)[0].tolist() == [[1.0]]


@every_mode
def test_a_high_baseline_is_no_gift(mode):
    """The first step's reward would be the progress that the scene showed before it."""
    envs = vector(ScriptedRewardModel(0.75), [[2], [3]], mode)
    envs.reset()
    for _ in range(7):
        _, rewards, terminated, _, _ = step_all(envs)
        assert rewards.tolist() == [0.0, 0.0]
        if mode is DISABLED and terminated.any():
            envs.reset(options={"reset_mask": terminated})


def test_the_environments_own_success_stands_beside_the_models():
    """A false success could not be seen: the detector would stand for the truth."""
    model = ScriptedRewardModel(success=1.0)
    envs = vector(model, [[9]], NEXT, {"success": [False]}, **ONE_VOTE)
    envs.reset()
    infos = step_all(envs)[4]
    assert infos["robometer/success"].tolist() == [True]
    assert infos["is_success"].tolist() == [False]


class ReportsSuccessOnce(CountingEnv):
    """Reports success at its first step alone."""

    def step(self, action: Any) -> Any:
        *rest, info = super().step(action)
        return *rest, {"success": False} if self.steps == 1 else info


def test_an_environment_that_reports_success_between_predictions_reports_it():
    """The detector would stand for the truth in an environment that reports it now and then."""
    core = SyncVectorEnv([lambda: FrameCapture(ReportsSuccessOnce([3]))] * 2)
    envs = RobometerVectorRewardWrapper(core, TASK, ScriptedRewardModel(), predict_every=3)
    envs.reset()
    infos = [step_all(envs)[4] for _ in range(3)][-1]
    assert infos["robometer/success"].tolist() == [False, False]
    assert "is_success" not in infos


class ReportsArrays(gym.Wrapper[Any, Any, Any, Any]):
    """Reports arrays whose shape changes, and integers that become floats at reset."""

    def reset(self, **kwargs: Any) -> Any:
        observation, info = self.env.reset(**kwargs)
        return observation, {**info, "path": np.zeros(3), "height": 0.5}

    def step(self, action: Any) -> Any:
        *rest, info = self.env.step(action)
        return *rest, {**info, "path": np.ones(2), "height": 1}


@pytest.mark.parametrize("end", ["its own", "by success"])
def test_infos_of_the_reset_are_those_of_the_environment_under_same_step(end):
    """The infos of the reset would be forced into the shapes of the step's."""
    model = ScriptedRewardModel(success=float(end == "by success"))
    core = SyncVectorEnv(
        [lambda: FrameCapture(ReportsArrays(CountingEnv([1])))], autoreset_mode=SAME
    )
    if end == "by success":
        core.envs[0].unwrapped.lengths = (9,)  # type: ignore[attr-defined]
    envs = RobometerVectorRewardWrapper(core, TASK, model, predict_every=1, **ONE_VOTE)
    envs.reset()
    infos = step_all(envs)[4]
    assert infos["final_info"]["path"].tolist() == [[1, 1]]
    assert infos["path"].tolist() == [[0, 0, 0]]
    assert infos["height"].tolist() == [0.5]
    assert "env_reward" not in infos


# What reaches the model, and when


def test_one_call_of_the_model_for_all_that_are_due():
    """Eight environments would wait for eight calls of a large model, one after the other."""
    model = ScriptedRewardModel(progress_by_step)
    envs = vector(model, [[4], [5], [6, 9], [9]], NEXT, predict_every=3)
    envs.reset()
    for _ in range(7):
        step_all(envs)
    # reset; step 3; the ends at 4, 5, 6 with resets and the sixth step between them
    assert model.batches == [4, 4, 1, 2, 3, 1]


@every_mode
def test_frames_are_rendered_only_when_they_are_kept(mode):
    """Rendering is the slowest part of a simulator; every second frame would be for nothing."""
    envs = vector(ScriptedRewardModel(), [[7], [99]], mode, predict_every=3)
    envs.reset()
    for _ in range(7):
        step_all(envs)
    renders = [env.unwrapped.renders for env in envs.unwrapped.envs]
    assert renders == [1 + 2 + 1 + (mode is SAME), 1 + 2]


def test_frames_come_from_a_dict_observation():
    """Robots with several cameras in their observation could not be wrapped."""
    model = ScriptedRewardModel(progress_by_step)
    cameras = {"scene": "scene", "wrist": "wrist"}
    envs = vector(model, [[2], [3]], SAME, {"cameras": ("scene", "wrist")}, camera=cameras)
    observations, _ = envs.reset()
    assert observations["scene"].shape == (2, 24, 32, 3)
    infos = [step_all(envs)[4] for _ in range(2)][-1]
    assert sorted(infos["final_obs"][0]) == ["count", "scene", "wrist"]
    streams: list[Any] = [clip.stream for clip in model.clips[:4]]
    assert [stream.camera for stream in streams] == ["scene", "wrist"] * 2
    assert [CountingEnv.read(clip.images[-1])["camera"] for clip in model.clips[:4]] == [1, 2] * 2


def test_a_model_given_by_name_is_loaded_at_the_first_reset(monkeypatch):
    """Gigabytes would be read for an environment that is only looked at."""
    loaded = []

    def load(name: Any) -> ScriptedRewardModel:
        loaded.append(name)
        return ScriptedRewardModel()

    monkeypatch.setattr("robometer_gym.models.loading._load", load)
    envs = vector("some/model", [[3], [3]])
    assert loaded == []
    envs.reset()
    step_all(envs)
    assert loaded == ["some/model"]


# Tasks


def test_each_environment_may_have_its_own_task():
    """All robots would be judged by one instruction."""
    model = ScriptedRewardModel()
    envs = vector(model, [[1], [9]], task=["open the drawer", "close it"])
    envs.reset()
    step_all(envs)
    step_all(envs)
    assert envs.tasks == ["open the drawer", "close it"]
    assert {(clip.stream.env, clip.task) for clip in model.clips} == {  # type: ignore[union-attr]
        (0, "open the drawer"),
        (1, "close it"),
    }


@every_mode
def test_a_task_among_the_options_is_for_the_episodes_that_begin_with_it(mode):
    """An episode would be judged by an instruction that was meant for another."""
    model = ScriptedRewardModel()
    envs = vector(model, [[9], [3]], mode)
    envs.reset()
    _, infos = envs.reset(options={"task": "close it", **mask(envs, 1)})
    assert envs.tasks == [TASK, "close it"]
    assert infos["options"]["task"].tolist() == [None, "close it"]
    for _ in range(3):
        step_all(envs)
    if mode is DISABLED:
        envs.reset(options=mask(envs, 1))
    step_all(envs)
    assert envs.tasks == [TASK, TASK]
    envs.reset(options={"task": "fold it"})
    assert envs.tasks == ["fold it", "fold it"]


# What stands outside


@every_mode
@pytest.mark.parametrize("end", ["its own", "by success"])
def test_statistics_outside_count_our_rewards(mode, end):
    """Learning curves would show the environment's reward, or episodes that never end."""
    by_success = end == "by success"
    model = ScriptedRewardModel(progress_by_step, success_at(0, 0, 3) if by_success else 0.0)
    lengths = [[9 if by_success else 3, 9], [9]]
    envs = RecordEpisodeStatistics(vector(model, lengths, mode, **ONE_VOTE, success_bonus=2.0))
    envs.reset()
    infos = [step_all(envs)[4] for _ in range(3)][-1]
    assert infos["_episode"].tolist() == [True, False]
    assert infos["episode"]["r"].tolist() == [3 / 16 + 2.0 * by_success, 0.0]
    assert infos["episode"]["l"].tolist() == [3, 0]
    if mode is DISABLED:
        envs.reset(options=mask(envs, 0))
    infos = [step_all(envs)[4] for _ in range(6)][-1]
    assert infos["episode"]["r"].tolist() == [0.0, 9 / 16]
    assert infos["episode"]["l"].tolist() == [0, 9]


@every_mode
def test_statistics_of_the_whole_stack_are_right_in_every_episode(mode):
    """Gymnasium before 1.4 loses the first step of each later episode under SAME_STEP."""
    envs = make_robometer_vec(
        CountingEnv,
        TASK,
        2,
        ScriptedRewardModel(lambda clip: shown(clip)[-1][1] / 8),
        env_kwargs={"lengths": [4]},
        vector_kwargs={"autoreset_mode": mode},
        predict_every=1,
    )
    envs.reset()
    found: list[tuple[list[float], list[int]]] = []
    while len(found) < 3:
        _, _, terminated, _, infos = step_all(envs)
        if "episode" in infos:
            found.append((infos["episode"]["r"].tolist(), infos["episode"]["l"].tolist()))
            if mode is DISABLED:
                envs.reset(options={"reset_mask": terminated})
    assert found == [([0.5, 0.5], [4, 4])] * 3
    assert list(envs.return_queue) == [0.5] * 6


@every_mode
def test_the_autoreset_mode_is_that_of_the_environments(mode):
    """TorchRL and others read it, as they do from Gymnasium's vector environments."""
    assert vector(ScriptedRewardModel(), [[3]], mode).autoreset_mode is mode


class NoMetadata(CountingEnv):
    """Has None as metadata, like robosuite."""

    metadata = None  # type: ignore[assignment]


def test_an_environment_without_metadata():
    """Robosuite's environments could not be put into a vector: 'NoneType' is not iterable."""
    envs = make_robometer_vec(NoMetadata, TASK, 2, ScriptedRewardModel())
    envs.reset()
    assert step_all(envs)[1].tolist() == [0.0, 0.0]
    assert RobometerRewardWrapper(NoMetadata(), TASK, ScriptedRewardModel()).metadata == {}


def test_the_whole_stack_from_an_id():
    """The few lines of the README would not run."""
    envs = make_robometer_vec(
        "robometer_gym/TabletopReach-v0",
        TASK,
        3,
        ScriptedRewardModel(0.25),
        env_kwargs={"max_episode_steps": 4},
        vector_kwargs={"autoreset_mode": SAME},
        wrappers=[lambda env: TimeLimit(env, 2)],
        frame_size=32,
    )
    assert isinstance(envs, RecordEpisodeStatistics)
    envs.reset(seed=0)
    step_ = [envs.step(envs.action_space.sample()) for _ in range(2)][-1]
    assert step_[3].tolist() == [True] * 3
    assert step_[4]["episode"]["l"].tolist() == [2] * 3
    envs.close()


def test_a_copy_of_a_vector_goes_on_alone():
    """A copy for evaluation would share episodes with the training, or could not be made."""
    envs = vector(ScriptedRewardModel(progress_by_step), [[9], [9]])
    envs.reset()
    step_all(envs)
    copy = deepcopy(envs)
    assert copy.tracker.reward_model is envs.tracker.reward_model
    assert step_all(copy)[1].tolist() == step_all(envs)[1].tolist() == [1 / 16, 1 / 16]
    assert copy.unwrapped.envs[0].unwrapped.steps == 2
