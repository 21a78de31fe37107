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

from robometer_gym.models.loading import LazyRewardModel
from robometer_gym.reward_model import CheckpointError, Clip, RewardModelError
from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from robometer_gym.tracking.events import Outcome, Start, Step, Stream
from robometer_gym.tracking.find_tracker import find_tracker
from robometer_gym.tracking.settings import RewardSettings
from robometer_gym.tracking.tracker import EpisodeTracker

TASKS = ["open the drawer", "close the drawer", "stack the cups"]


def paint(env: int, episode: int, step: int) -> dict[str, Any]:
    """A frame that `CountingEnv.read` reads: `camera` there is the env here."""
    color = (1 + episode % 15 + 15 * env, step // 256, step % 256)
    return {"render": np.full((4, 4, 3), color, np.uint8)}


class Drive:
    """Passes a tracker the steps of N environments."""

    def __init__(self, tracker: EpisodeTracker, num_envs: int) -> None:
        self.tracker = tracker
        self.episodes = [-1] * num_envs
        self.steps = [0] * num_envs

    def begin(self, *envs: int) -> list[dict[str, Any]]:
        for env in envs:
            self.episodes[env] += 1
            self.steps[env] = 0
        starts = [Start(env, TASKS[env], paint(env, self.episodes[env], 0)) for env in envs]
        return [outcome.info for outcome in self.tracker.advance(starts)]

    def step(self, *envs: int, ends: Sequence[int] = (), reward: float = 0.0) -> list[Outcome]:
        steps = []
        for env in envs:
            self.steps[env] += 1
            due = self.tracker.due(env, ended=env in ends)
            frames = paint(env, self.episodes[env], self.steps[env]) if due else None
            steps.append(Step(env, reward, env in ends, False, frames))
        return self.tracker.advance(steps)


def drive(model: Any, num_envs: int = 2, **settings: Any) -> Drive:
    """A tracker and its steps."""
    return Drive(EpisodeTracker(RewardSettings(**settings), model, num_envs), num_envs)


def seen(clip: Clip) -> list[tuple[int, int, int]]:
    """The (env, episode, step) of each frame of a clip."""
    frames = [CountingEnv.read(image) for image in clip.images]
    return [(f["camera"], f["episode"], f["step"]) for f in frames]


def test_all_environments_that_are_due_are_predicted_in_one_batch():
    """A GPU would run N small batches in place of one."""
    model = ScriptedRewardModel()
    envs = drive(model, 3, predict_every=2)
    envs.begin(0, 1, 2)
    for _ in range(4):
        envs.step(0, 1, 2)
    assert model.batches == [3, 3, 3]
    envs.step(0, 1, 2, ends=[1])
    assert model.batches == [3, 3, 3, 1]


def test_a_step_on_which_no_prediction_is_due_calls_no_model():
    """An empty batch costs a call to the model, or a request over the network."""
    model = ScriptedRewardModel()
    envs = drive(model, 2, predict_every=3)
    envs.begin(0, 1)
    envs.step(0, 1)
    assert model.batches == [2]


def test_predictions_go_to_their_own_environment():
    """One robot would be rewarded for another one's progress."""
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
        frames = seen(clip)
        assert len({(env, episode) for env, episode, _ in frames}) == 1
        shows[frames[0][0]].append([frames[0][1], *(step for _, _, step in frames)])
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


def test_a_model_without_streams_needs_no_release():
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
    envs = drive(LazyRewardModel(model), 1, predict_every=2)
    envs.begin(0)
    for _ in range(5):
        envs.step(0)
    twin = copy.deepcopy(envs)
    for _ in range(9):
        assert twin.step(0) == envs.step(0)
    assert twin.tracker.reward_model is envs.tracker.reward_model
    mine, its = (c.stream for c in model.clips[-2:])
    assert mine != its  # from now on the same step may show different frames


def test_a_pickled_tracker_goes_on_in_mid_episode():
    """A resumed training would get the reward of a jump, or lose the episode's beginning."""
    envs = drive(ScriptedRewardModel(progress=by_step), 1, predict_every=2)
    envs.begin(0)
    for _ in range(5):
        envs.step(0)
    twin = pickle.loads(pickle.dumps(envs))
    for _ in range(9):
        assert twin.step(0) == envs.step(0)
    model: Any = envs.tracker.reward_model
    twins: Any = twin.tracker.reward_model
    assert twins is not model
    assert [seen(c) for c in twins.clips] == [seen(c) for c in model.clips]
    streams = {c.stream for c in twins.clips}
    assert len(streams) == 1  # the copied model finds its cache of this episode
    twin.tracker.close()
    assert set(twins.released) == streams


class Unpicklable(ScriptedRewardModel):
    def __reduce__(self):
        raise TypeError("a CUDA graph cannot be copied")


def test_a_model_loaded_by_name_is_not_copied(monkeypatch):
    """Sending an environment to a worker would send nine gigabytes, or fail."""
    model = Unpicklable()
    monkeypatch.setattr("robometer_gym.models.loading._load", lambda name: model)
    envs = drive(LazyRewardModel("org/name"), 1)
    envs.begin(0)
    twin = copy.deepcopy(envs)
    twin.step(0, ends=[0])
    assert twin.tracker.reward_model.load() is model  # type: ignore[attr-defined]
    assert len(model.clips) == 2


def test_a_model_is_loaded_at_the_first_prediction(monkeypatch):
    """Every worker process that only makes the environment would load the model."""
    loaded: list[str] = []

    def load(name: Any) -> ScriptedRewardModel:
        loaded.append(name)
        return ScriptedRewardModel()

    monkeypatch.setattr("robometer_gym.models.loading._load", load)
    envs = drive(LazyRewardModel("org/name"), 1)
    envs.tracker.close()
    assert loaded == []
    envs.begin(0)
    envs.step(0, ends=[0])
    assert loaded == ["org/name"]


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
    """Frames would be rendered for nothing, or missing where a prediction is due."""
    envs = drive(ScriptedRewardModel(), 1, predict_every=every)
    envs.begin(0)
    for step in range(1, length + 1):
        assert envs.tracker.due(0, ended=True)
        assert envs.tracker.due(0, ended=False) == (step % every == 0)
        envs.step(0)


actions_of_two = st.lists(st.sampled_from(["step", "end", "reset", "rest"]), min_size=2, max_size=2)


@given(every=st.integers(1, 5), schedule=st.lists(actions_of_two, max_size=40))
def test_together_or_alone_is_the_same(every, schedule):
    """A vector env would give other rewards than the same environments one by one."""

    def model() -> ScriptedRewardModel:
        return ScriptedRewardModel(
            progress=lambda clip: sum(s for _, _, s in seen(clip)) % 64 / 64 + len(clip) / 128,
            success=lambda clip: 1.0 if seen(clip)[-1][2] % 7 == 6 else 0.0,
        )

    def run(group: Sequence[int], num_envs: int) -> dict[int, list[Any]]:
        envs = drive(model(), num_envs, predict_every=every, success_bonus=3.0)
        results: dict[int, list[Any]] = {env: [] for env in group}
        begun = envs.begin(*group)
        for env, info in zip(group, begun, strict=True):
            results[env].append(info)
        for actions in schedule:
            acting = [e for e in group if actions[e] in ("step", "end")]
            resetting = [e for e in group if actions[e] == "reset"]
            acting = [e for e in acting if envs.tracker.running(e)]
            ends = [e for e in acting if actions[e] == "end"]
            if acting:
                for env, outcome in zip(acting, envs.step(*acting, ends=ends), strict=True):
                    results[env].append(outcome)
            if resetting:
                for env, info in zip(resetting, envs.begin(*resetting), strict=True):
                    results[env].append(info)
        return results

    together = run([0, 1], 2)
    assert together == {**run([0], 2), **run([1], 2)}


def test_one_bad_prediction_in_a_batch_costs_only_its_own_environment(caplog):
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


def test_a_response_that_is_no_list_is_refused():
    """Two environments would share one prediction."""

    class Single:
        def predict(self, clips):
            return ScriptedRewardModel().predict(clips)[0]

    with pytest.raises(RewardModelError, match="must return a list of 2 predictions"):
        drive(Single(), 2).begin(0, 1)


@pytest.mark.parametrize("sampling", ["linspace", "tail", "anchored"])
def test_short_windows_are_filled_with_the_newest_frame(sampling):
    """The first predictions of an episode would differ from those of the authors' code."""
    model = ScriptedRewardModel(progress=lambda clip: len(clip) / 8)
    envs = drive(model, 1, predict_every=1, max_frames=4, sampling=sampling, pad="repeat")
    envs.begin(0)
    for _ in range(3):
        envs.step(0)
    windows = [[step for _, _, step in seen(clip)] for clip in model.clips]
    assert windows == [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 2, 2], [0, 1, 2, 3]]
    # (stream, step) names one frame, so that an engine may cache it: copies have no step.
    assert [clip.steps for clip in model.clips] == [None, None, None, (0, 1, 2, 3)]


def test_a_baseline_that_fails_begins_no_episode():
    """The next step would be rewarded from a reset that never was."""
    envs = drive(ScriptedRewardModel(progress=[TimeoutError("no response"), 0.5]), 1)
    with pytest.raises(TimeoutError, match="no response"):
        envs.begin(0)
    assert not envs.tracker.running(0)
    envs.begin(0)
    assert envs.tracker.running(0)


def test_a_checkpoint_that_cannot_be_loaded_is_no_failed_prediction():
    """A training with on_error="hold" would run for days without one reward."""

    class Missing:
        def predict(self, clips):
            raise CheckpointError("org/name cannot be found.")

    with pytest.raises(CheckpointError, match="cannot be found"):
        drive(Missing(), 1, on_error="hold").begin(0)


@given(
    every=st.integers(1, 5),
    lag=st.integers(1, 12),
    ends=st.lists(st.sampled_from(["step", "end", "reset"]), max_size=40),
    signal=st.sampled_from(["delta", "potential", "progress"]),
    mode=st.sampled_from(["replace", "shape"]),
)
def test_settling_late_gives_the_same_outcomes(every, lag, ends, signal, mode):
    """Rewards that come late would be other rewards than those that are waited for."""

    def run(lag: int | None) -> list[Outcome]:
        model = ScriptedRewardModel(
            progress=lambda clip: sum(s for _, _, s in seen(clip)) % 64 / 64,
            success=lambda clip: (seen(clip)[-1][2] % 5) / 4,
        )
        envs = drive(
            model, 1, predict_every=every, signal=signal, mode=mode, terminate_on_success=False
        )
        tracker = envs.tracker
        pending: list[Any] = []
        outcomes: list[Outcome] = []
        advance_at_once = tracker.advance

        def settle() -> None:
            first = pending.pop(0)
            outcomes.extend(tracker.settle(first, model.predict(first.clips)))

        def advance(events):
            if lag is None:
                outcomes.extend(advance_at_once(events))
                return outcomes[-len(events) :]
            pending.append(tracker.observe(events))
            if len(pending) > lag:
                settle()
            return [Outcome(0.0, False, {}) for _ in events]

        tracker.advance = advance  # type: ignore[method-assign]
        envs.begin(0)
        for action in ends:
            if action == "reset" or not tracker.running(0):
                envs.begin(0)
            else:
                envs.step(0, ends=[0] if action == "end" else [], reward=0.5)
        while pending:
            settle()
        return outcomes

    assert run(lag) == run(0) == run(None)


def test_a_listener_receives_events_with_clips_predictions_and_outcomes():
    """A trace would miss a step, or show another episode's prediction."""
    model = ScriptedRewardModel(progress=[0.25, 0.5, 0.75])
    envs = drive(model, 1, predict_every=2)
    received: list[Any] = []
    envs.tracker.listeners.append(lambda settled, seconds: received.extend(settled))
    envs.begin(0)
    outcomes = [envs.step(0)[0], envs.step(0)[0], envs.step(0, ends=[0])[0]]
    assert [each.outcome for each in received[1:]] == outcomes
    assert [each.episode for each in received] == [0] * 4
    assert [len(each.clips) for each in received] == [1, 0, 1, 1]
    assert [[float(p.progress[-1]) for p in each.predictions] for each in received] == [
        [0.25],
        [],
        [0.5],
        [0.75],
    ]
    assert [type(each.event).__name__ for each in received] == ["Start", "Step", "Step", "Step"]


def test_a_listener_sees_that_a_prediction_failed():
    """A report would take a failed prediction for a step without one."""
    model = ScriptedRewardModel(progress=[0.25, TimeoutError("no response")])
    envs = drive(model, 1, predict_every=1, on_error="hold")
    received: list[Any] = []
    envs.tracker.listeners.append(lambda settled, seconds: received.extend(settled))
    envs.begin(0)
    envs.step(0)
    assert received[1].predictions is None
    assert len(received[1].clips) == 1


def test_copies_have_no_listeners():
    """A copy's episodes would be written into the original's traces."""
    envs = drive(ScriptedRewardModel(), 1)
    envs.tracker.listeners.append(lambda settled, seconds: None)
    assert copy.deepcopy(envs.tracker).listeners == []


def test_the_tracker_is_found_in_a_stack_of_wrappers():
    """`evaluate` and `RecordTraces` would refuse an environment that is monitored."""

    class Layer:
        def __init__(self, env):
            self.env = env

    class Outer:
        def __init__(self, venv):
            self.venv = venv

    class Reward(Layer):
        tracker = None

        def __init__(self, env):
            super().__init__(env)
            self.tracker = EpisodeTracker(RewardSettings(), ScriptedRewardModel())

    reward = Reward(CountingEnv())
    assert find_tracker(Outer(Layer(reward))) is reward.tracker
    assert find_tracker(Layer(CountingEnv())) is None
