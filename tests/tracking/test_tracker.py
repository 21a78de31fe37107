"""The rules of an episode, for several environments at once."""

import copy
import logging
import math
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robometer_gym.reward_model import Clip, RewardModelError
from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from robometer_gym.tracking.settings import RewardSettings
from robometer_gym.tracking.tracker import EpisodeTracker, Outcome, Start, Step, Stream

TASKS = ["open the drawer", "close the drawer", "stack the cups"]


def picture(env: int, episode: int, step: int) -> dict[str, Any]:
    """A frame that `CountingEnv.read` reads: `camera` there is the env here."""
    colour = (1 + episode % 15 + 15 * env, step // 256, step % 256)
    return {"render": np.full((4, 4, 3), colour, np.uint8)}


class Drive:
    """Brings a tracker the steps of N environments whose episodes have given lengths."""

    def __init__(self, tracker: EpisodeTracker, num_envs: int) -> None:
        self.tracker = tracker
        self.episodes = [-1] * num_envs
        self.steps = [0] * num_envs

    def begin(self, *envs: int) -> list[dict[str, Any]]:
        for env in envs:
            self.episodes[env] += 1
            self.steps[env] = 0
        starts = [Start(env, TASKS[env], picture(env, self.episodes[env], 0)) for env in envs]
        return [outcome.info for outcome in self.tracker.advance(starts)]

    def step(self, *envs: int, ends: Sequence[int] = (), reward: float = 0.0) -> list[Outcome]:
        steps = []
        for env in envs:
            self.steps[env] += 1
            due = self.tracker.due(env, ended=env in ends)
            frames = picture(env, self.episodes[env], self.steps[env]) if due else None
            steps.append(Step(env, reward, env in ends, False, frames))
        return self.tracker.advance(steps)


def drive(model: Any, num_envs: int = 2, **settings: Any) -> Drive:
    """A tracker and someone to bring it steps."""
    return Drive(EpisodeTracker(RewardSettings(**settings), model, num_envs), num_envs)


def seen(clip: Clip) -> list[tuple[int, int, int]]:
    """What a clip shows: (env, episode, step) of each frame."""
    told = [CountingEnv.read(image) for image in clip.images]
    return [(t["camera"], t["episode"], t["step"]) for t in told]


def test_all_environments_that_are_due_are_asked_about_in_one_batch():
    """A GPU would be asked N times for what it can answer at once."""
    model = ScriptedRewardModel()
    envs = drive(model, 3, predict_every=2)
    envs.begin(0, 1, 2)
    for _ in range(4):
        envs.step(0, 1, 2)
    assert model.batches == [3, 3, 3]
    envs.step(0, 1, 2, ends=[1])
    assert model.batches == [3, 3, 3, 1]


def test_a_step_on_which_nobody_is_due_asks_nobody():
    """An empty batch costs a call to the model, or a request over the network."""
    model = ScriptedRewardModel()
    envs = drive(model, 2, predict_every=3)
    envs.begin(0, 1)
    envs.step(0, 1)
    assert model.batches == [2]


def test_answers_go_to_the_environment_that_they_are_about():
    """One robot would be paid for another one's progress."""
    model = ScriptedRewardModel(progress=lambda clip: TASKS.index(clip.task) / 4 + len(clip) / 16)
    envs = drive(model, 3, predict_every=1)
    assert [i["robometer/progress"] for i in envs.begin(2, 0, 1)] == [9 / 16, 1 / 16, 5 / 16]
    outcomes = envs.step(1, 2)
    assert [o.info["robometer/progress"] for o in outcomes] == [6 / 16, 10 / 16]
    assert [o.reward for o in outcomes] == [1 / 16, 1 / 16]
    assert [o.reward for o in envs.step(0, 1, 2)] == [1 / 16] * 3


def test_episodes_of_several_environments_are_independent():
    """An episode that ends would cut or restart those of the other environments."""
    model = ScriptedRewardModel()
    envs = drive(model, 2, predict_every=2)
    envs.begin(0, 1)
    envs.step(0, 1)
    envs.step(0, 1, ends=[0])
    envs.begin(0)
    for _ in range(3):
        envs.step(0, 1)
    shows = {1: [], 0: []}  # type: dict[int, list[Any]]
    for clip in model.clips:
        told = seen(clip)
        assert len({(env, episode) for env, episode, _ in told}) == 1
        shows[told[0][0]].append([told[0][1], *(step for _, _, step in told)])
    assert shows[0] == [[0, 0], [0, 0, 2], [1, 0], [1, 0, 2]]
    assert shows[1] == [[0, 0], [0, 0, 2], [0, 0, 2, 4]]


def test_each_episode_of_each_camera_has_a_stream_of_its_own():
    """A caching engine would use one episode's frames for another."""
    model = ScriptedRewardModel()
    envs = drive(model, 2, predict_every=1)
    for _ in range(3):
        envs.begin(0, 1)
        envs.step(0, 1, ends=[0, 1])
    streams = [clip.stream for clip in model.clips]
    assert len(set(streams)) == 6
    assert streams == [s for i in (0, 4, 8) for s in (*streams[i : i + 2], *streams[i : i + 2])]
    assert all(isinstance(s, Stream) for s in streams)
    # Also two trackers, of two wrapped environments, share one model.
    other = drive(model, 1)
    other.begin(0)
    assert model.clips[-1].stream not in streams


def test_steps_name_the_frames_of_a_stream():
    """(stream, step) would name two frames, and an engine would mix them up."""
    model = ScriptedRewardModel()
    envs = drive(model, 1, predict_every=3, max_frames=3)
    envs.begin(0)
    for _ in range(17):
        envs.step(0)
    for clip in model.clips:
        assert clip.steps == tuple(step for _, _, step in seen(clip))


def test_ended_streams_are_released_once():
    """A caching engine would keep every episode of the training on the GPU."""
    model = ScriptedRewardModel()
    envs = drive(model, 2, predict_every=1)
    envs.begin(0, 1)
    first, second = (clip.stream for clip in model.clips)
    envs.step(0, 1)
    assert model.released == []
    envs.step(0, 1, ends=[1])
    assert model.released == [second]
    envs.begin(1)
    assert model.released == [second]
    envs.begin(0)  # in mid-episode
    assert model.released == [second, first]
    third = model.clips[-2].stream
    fourth = model.clips[-1].stream
    envs.tracker.close()
    assert model.released == [second, first, fourth, third]
    envs.tracker.close()
    assert len(model.released) == 4


def test_a_model_that_keeps_nothing_need_not_be_told():
    """A model with `predict` alone would fail at the end of the first episode."""

    class Plain:
        def __init__(self) -> None:
            self.predict = ScriptedRewardModel().predict

    envs = drive(Plain(), 1)
    envs.begin(0)
    envs.step(0, ends=[0])
    assert not envs.tracker.running(0)
    envs.tracker.close()


def test_a_stream_is_equal_to_itself_only():
    """After a copy of an environment one name would stand for two different episodes."""
    stream = Stream(1, 2, "wrist")
    assert stream == stream
    assert stream != Stream(1, 2, "wrist")
    assert copy.deepcopy(stream) != stream
    assert pickle.loads(pickle.dumps(stream)) != stream
    assert repr(stream) == "<env 1, episode 2, camera 'wrist'>"


def by_step(clip):
    return clip.steps[-1] / 64


def test_a_copy_shares_the_model_and_goes_on_in_mid_episode():
    """A live model of nine gigabytes would be there twice, or one with a socket not be copied."""
    model = ScriptedRewardModel(progress=by_step)
    envs = drive(model, 1, predict_every=2)
    envs.begin(0)
    for _ in range(5):
        envs.step(0)
    twin = copy.deepcopy(envs)
    for _ in range(9):
        assert twin.step(0) == envs.step(0)
    assert twin.tracker.model is envs.tracker.model is model
    mine, its = (c.stream for c in model.clips[-2:])
    assert mine != its  # from now on the same step may show different frames


def test_what_was_pickled_goes_on_in_mid_episode():
    """A training that is resumed would be paid a jump, or lose the episode's beginning."""
    envs = drive(ScriptedRewardModel(progress=by_step), 1, predict_every=2)
    envs.begin(0)
    for _ in range(5):
        envs.step(0)
    twin = pickle.loads(pickle.dumps(envs))
    for _ in range(9):
        assert twin.step(0) == envs.step(0)
    model: Any = envs.tracker.model
    twins: Any = twin.tracker.model
    assert twins is not model
    assert [seen(c) for c in twins.clips] == [seen(c) for c in model.clips]
    streams = {c.stream for c in twins.clips}
    assert len(streams) == 1  # the copied model finds what it has kept for this episode
    twin.tracker.close()
    assert set(twins.released) == streams


class Unpicklable(ScriptedRewardModel):
    def __reduce__(self):
        raise TypeError("a CUDA graph cannot be copied")


def test_a_model_loaded_by_name_is_not_copied(monkeypatch):
    """Sending an environment to a worker would send nine gigabytes, or fail."""
    model = Unpicklable()
    monkeypatch.setattr("robometer_gym.tracking.tracker.load_reward_model", lambda name: model)
    envs = drive("org/name", 1)
    envs.begin(0)
    twin = copy.deepcopy(envs)
    twin.step(0, ends=[0])
    assert twin.tracker.model is model
    assert len(model.clips) == 2


def test_a_model_is_loaded_at_the_first_prediction(monkeypatch):
    """Every worker process that only makes the environment would load the model."""
    loaded: list[str] = []

    def load(name: Any) -> ScriptedRewardModel:
        loaded.append(name)
        return ScriptedRewardModel()

    monkeypatch.setattr("robometer_gym.tracking.tracker.load_reward_model", load)
    envs = drive("org/name", 1)
    envs.tracker.close()
    assert loaded == []
    envs.begin(0)
    envs.step(0, ends=[0])
    assert loaded == ["org/name"]


def test_what_is_no_model_is_refused_at_once():
    """The mistake would show at the first reset."""
    with pytest.raises(TypeError, match="reward_model must be a hub id"):
        EpisodeTracker(RewardSettings(), 3)  # type: ignore[arg-type]


def test_running_and_task_are_those_of_the_episode():
    """A wrapper would step an episode that has ended."""
    envs = drive(ScriptedRewardModel(), 2)
    assert not envs.tracker.running(0)
    envs.begin(0, 1)
    assert envs.tracker.running(0)
    assert [envs.tracker.task(env) for env in (0, 1)] == TASKS[:2]
    envs.step(0, 1, ends=[0])
    assert not envs.tracker.running(0)
    assert envs.tracker.running(1)
    envs.tracker.close()
    assert not envs.tracker.running(1)


@given(st.integers(1, 7), st.integers(1, 30))
def test_due_at_every_nth_step_and_at_the_end(every, length):
    """Frames would be rendered and not shown, or missing where the model is asked."""
    envs = drive(ScriptedRewardModel(), 1, predict_every=every)
    envs.begin(0)
    for step in range(1, length + 1):
        assert envs.tracker.due(0, ended=True)
        assert envs.tracker.due(0, ended=False) == (step % every == 0)
        envs.step(0)


actions_of_two = st.lists(st.sampled_from(["step", "end", "reset", "rest"]), min_size=2, max_size=2)


@given(every=st.integers(1, 5), schedule=st.lists(actions_of_two, max_size=40))
def test_together_or_alone_is_the_same(every, schedule):
    """A vector env would pay other rewards than the same environments one by one."""

    def model() -> ScriptedRewardModel:
        return ScriptedRewardModel(
            progress=lambda clip: sum(s for _, _, s in seen(clip)) % 64 / 64 + len(clip) / 128,
            success=lambda clip: 1.0 if seen(clip)[-1][2] % 7 == 6 else 0.0,
        )

    def run(group: Sequence[int], num_envs: int) -> dict[int, list[Any]]:
        envs = drive(model(), num_envs, predict_every=every, success_bonus=3.0)
        paid: dict[int, list[Any]] = {env: [] for env in group}
        begun = envs.begin(*group)
        for env, info in zip(group, begun, strict=True):
            paid[env].append(info)
        for actions in schedule:
            acting = [e for e in group if actions[e] in ("step", "end")]
            resetting = [e for e in group if actions[e] == "reset"]
            acting = [e for e in acting if envs.tracker.running(e)]
            ends = [e for e in acting if actions[e] == "end"]
            if acting:
                for env, outcome in zip(acting, envs.step(*acting, ends=ends), strict=True):
                    paid[env].append(outcome)
            if resetting:
                for env, info in zip(resetting, envs.begin(*resetting), strict=True):
                    paid[env].append(info)
        return paid

    together = run([0, 1], 2)
    assert together == {**run([0], 2), **run([1], 2)}


def test_one_bad_answer_in_a_batch_costs_only_its_own_environment(caplog):
    """One NaN would stop the training of all environments, though the user chose to go on."""
    model = ScriptedRewardModel(
        progress=lambda clip: math.nan if seen(clip)[-1] == (1, 0, 1) else len(clip) / 8
    )
    envs = drive(model, 3, predict_every=1, on_error="hold")
    with caplog.at_level(logging.WARNING, "robometer_gym"):
        envs.begin(0, 1, 2)
        outcomes = envs.step(0, 1, 2)
    assert [o.reward for o in outcomes] == [0.125, 0.0, 0.125]
    assert [o.info["robometer/predicted"] for o in outcomes] == [True, False, True]
    assert [o.info["robometer/progress"] for o in outcomes] == [0.25, 0.125, 0.25]
    assert envs.tracker.errors == 1
    assert "on_error='hold' goes on: RewardModelError: reward_model returned" in caplog.text
    assert [o.reward for o in envs.step(0, 1, 2)] == [0.125, 0.25, 0.125]


def test_a_failed_batch_counts_for_each_environment(caplog):
    """The count of errors would hide how many rewards are missing."""
    model = ScriptedRewardModel(progress=[0.5, 0.5, TimeoutError("no answer")])
    envs = drive(model, 2, predict_every=1, on_error="env")
    envs.begin(0, 1)
    outcomes = envs.step(0, 1, reward=7.0)
    assert [o.reward for o in outcomes] == [7.0, 7.0]
    assert [o.info["robometer/errors"] for o in outcomes] == [2, 2]
    assert "(2 so far); on_error='env' goes on: TimeoutError: no answer" in caplog.text


def test_an_answer_that_is_no_list_is_refused():
    """Two environments would share one answer."""

    class Single:
        def predict(self, clips):
            return ScriptedRewardModel().predict(clips)[0]

    with pytest.raises(RewardModelError, match="must return a list of 2 predictions"):
        drive(Single(), 2).begin(0, 1)
