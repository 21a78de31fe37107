"""EpisodeTrace: its figures, its file, and that replays equal the recorded run."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robometer_gym import EpisodeTrace, RecordTraces, RobometerRewardWrapper, read_traces, replay
from robometer_gym.reward_model import RewardModelError
from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from robometer_gym.tracking.recorder import TraceRecorder
from robometer_gym.tracking.trace import write_traces

TASK = "push the block"


def drawn_model(seed: int) -> ScriptedRewardModel:
    """Predictions that differ at every call, and that are not round in binary."""
    rng = np.random.default_rng(seed)
    return ScriptedRewardModel(
        progress=lambda clip: float(rng.random()), success=lambda clip: float(rng.random())
    )


def record(
    model: Any, episodes: int = 1, frames: Any = None, env: Any = None, **settings: Any
) -> tuple[list[EpisodeTrace], list[list[tuple[float, bool, bool]]]]:
    """Run episodes; return their traces, and reward and ends of each step as the agent saw them."""
    env = RobometerRewardWrapper(env or CountingEnv(lengths=[7]), TASK, model, **settings)
    traces: list[EpisodeTrace] = []
    lived = []
    with TraceRecorder(env.tracker, traces.append, frames=frames):
        for _ in range(episodes):
            env.reset()
            steps = []
            over = False
            while not over:
                _, reward, terminated, truncated, _ = env.step(0)
                steps.append((float(reward), terminated, truncated))
                over = terminated or truncated
            lived.append(steps)
    return traces, lived


def rewards_and_ends(trace: EpisodeTrace) -> list[tuple[float, bool, bool]]:
    return [(step.reward, step.terminated, step.truncated) for step in trace.steps]


def test_the_figures_of_a_trace_by_hand():
    """Every table and picture is made of these."""
    model = ScriptedRewardModel(progress=[0.0, 0.25, 0.5, 0.75], success=[0.0, 0.9, 0.9, 0.9])
    env = CountingEnv(lengths=[5], success=[True])
    (trace,), _ = record(model, env=env, predict_every=2, terminate_on_success=False)
    assert trace.prediction_steps.tolist() == [0, 2, 4, 5]
    assert trace.progress.tolist() == [0.0, 0.25, 0.5, 0.75]
    assert [step.reward for step in trace.steps] == [0.0, 0.25, 0.0, 0.25, 0.25]
    assert trace.episode_return == 0.75
    assert trace.env_return == 1 + 2 + 3 + 4 + 5
    assert trace.detected_step == 4  # the second vote
    assert trace.true_success_step == 5
    assert trace.truth_known
    assert trace.ended
    assert trace.final_progress == 0.75
    assert trace.predictions[2].frame_steps == (0, 2, 4)
    assert trace.reward_model == "ScriptedRewardModel"


def test_an_environment_that_reports_nothing_has_no_truth():
    """A detected success would count as a false one."""
    (trace,), _ = record(ScriptedRewardModel())
    assert not trace.truth_known
    assert trace.true_success_step is None
    assert {step.true_success for step in trace.steps} == {None}


def test_unknown_success_stays_unknown():
    """NaN and None, which some environments report, would count as success or failure."""

    class Unsure(CountingEnv):
        def step(self, action):
            *rest, info = super().step(action)
            return *rest, {**info, "is_success": math.nan if self.steps == 1 else None}

    (trace,), _ = record(ScriptedRewardModel(), env=Unsure(lengths=[3]))
    assert [step.true_success for step in trace.steps] == [None, None, None]


def test_cameras_are_averaged_and_kept_apart():
    """One camera's values would be taken for the mean, or the mean be all that is left."""
    env = CountingEnv(lengths=[2], cameras=["left", "right"])
    model = ScriptedRewardModel(progress=[0.0, 0.5, 0.25, 1.0])
    (trace,), _ = record(model, env=env, camera={"a": "left", "b": "right"})
    assert trace.progress.tolist() == [0.25, 0.625]
    assert [list(p.cameras or {}) for p in trace.predictions] == [["a", "b"], ["a", "b"]]
    (again,) = through_json([trace])
    assert again.progress.tolist() == [0.25, 0.625]
    assert rewards_and_ends(replay(again)) == rewards_and_ends(trace)


def test_frames_at_predictions_and_the_last_window():
    """A picture would show another step than it names."""
    for kept, steps in (("predictions", (0, 2, 4, 5)), ("window", (0, 2, 4, 5))):
        env = CountingEnv(lengths=[5])
        (trace,), _ = record(ScriptedRewardModel(), env=env, frames=kept, predict_every=2)
        assert trace.frame_steps == steps
        assert [CountingEnv.read(frame)["step"] for frame in trace.frames] == list(steps)
    (trace,), _ = record(ScriptedRewardModel(), frames="window", predict_every=1, max_frames=3)
    assert trace.frame_steps == (0, 4, 7)  # 3.5 is rounded to the even number
    assert [CountingEnv.read(frame)["step"] for frame in trace.frames] == [0, 4, 7]


def test_an_episode_cut_by_a_reset_is_passed_on_unended():
    """It would be missing, or count as an episode that failed."""
    env = RobometerRewardWrapper(CountingEnv(lengths=[9]), TASK, ScriptedRewardModel())
    traces: list[EpisodeTrace] = []
    with TraceRecorder(env.tracker, traces.append):
        env.reset()
        env.step(0)
        env.reset()
        env.step(0)
        env.step(0)
    assert [(trace.episode, trace.num_steps, trace.ended) for trace in traces] == [
        (0, 1, False),
        (1, 2, False),
    ]
    assert env.tracker.listeners == []


def through_json(traces: list[EpisodeTrace]) -> list[EpisodeTrace]:
    return [EpisodeTrace.from_dict(json.loads(json.dumps(t.to_dict()))) for t in traces]


settings = st.fixed_dictionaries(
    {
        "predict_every": st.integers(1, 6),
        "max_frames": st.integers(1, 9),
        "sampling": st.sampled_from(["linspace", "tail", "anchored"]),
        "pad": st.sampled_from(["none", "repeat"]),
        "signal": st.sampled_from(["delta", "potential", "progress"]),
        "mode": st.sampled_from(["replace", "shape"]),
        "gamma": st.floats(0, 1),
        "scale": st.floats(-3, 3),
        "success_threshold": st.sampled_from([0.3, 0.65, 0.9]),
        "success_bonus": st.sampled_from([0.0, 1.5]),
        "terminate_on_success": st.booleans(),
    }
)
endings = st.sampled_from(["terminated", "truncated"])


@given(settings, st.integers(1, 30), endings, st.integers(0, 10**6))
def test_a_replay_equals_the_live_run_bit_for_bit(chosen, length, end, seed):
    """A threshold chosen from replays would do something else in the environment."""
    env = CountingEnv(lengths=[length], ends=[end])
    traces, lived = record(drawn_model(seed), env=env, **chosen)
    (again,) = through_json(traces)
    for trace in (traces[0], again):
        replayed = replay(trace)
        assert rewards_and_ends(replayed) == lived[0]
        assert replayed.detected_step == traces[0].detected_step
        assert replayed.prediction_steps.tolist() == traces[0].prediction_steps.tolist()


others = st.fixed_dictionaries(
    {
        "signal": st.sampled_from(["delta", "potential", "progress"]),
        "mode": st.sampled_from(["replace", "shape"]),
        "gamma": st.floats(0, 1),
        "scale": st.floats(-3, 3),
        "success_threshold": st.floats(0, 1),
        "success_votes": st.integers(1, 3),
        "success_window": st.integers(3, 5),
        "success_bonus": st.floats(-2, 2),
        "terminate_on_success": st.booleans(),
    }
)


@given(settings, others, st.integers(1, 30), endings, st.integers(0, 10**6))
def test_a_replay_with_other_settings_equals_a_live_run_with_them(
    chosen, changed, length, end, seed
):
    """The table of all thresholds would hold figures that no run would show."""
    env = CountingEnv(lengths=[length], ends=[end])
    recording = {**chosen, "terminate_on_success": False}  # the whole episode is recorded
    (trace,), _ = record(drawn_model(seed), env=env, **recording)
    wanted = {**recording, **changed}
    (live,), lived = record(
        drawn_model(seed), env=CountingEnv(lengths=[length], ends=[end]), **wanted
    )
    assert trace.settings is not None
    replayed = replay(trace, replace(trace.settings, **wanted))
    assert rewards_and_ends(replayed) == lived[0]
    assert replayed.detected_step == live.detected_step


def test_a_replay_knows_where_the_recording_ends():
    """An episode that the detector had ended would count as one that came to its own end."""
    model = ScriptedRewardModel(success=0.9)
    (trace,), _ = record(model, predict_every=1)
    assert trace.num_steps == 1  # the baseline votes, too
    assert trace.settings is not None
    longer = replay(trace, replace(trace.settings, success_votes=3, success_window=3))
    assert longer.num_steps == 1
    assert not longer.ended


def test_a_recorded_failure_stays_a_failure():
    """A replay would invent a reward where there was none."""
    model = ScriptedRewardModel(progress=[0.0, TimeoutError("no response"), 0.75])
    env = CountingEnv(lengths=[3])
    traces, lived = record(model, env=env, predict_every=2, on_error="hold")
    (trace,) = through_json(traces)
    assert trace.predictions[1].cameras is None
    assert rewards_and_ends(replay(trace)) == lived[0]
    assert trace.settings is not None
    with pytest.raises(RewardModelError, match="recorded prediction had failed"):
        replay(trace, replace(trace.settings, on_error="raise"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("predict_every", 2),
        ("max_frames", 4),
        ("sampling", "tail"),
        ("pad", "repeat"),
        ("camera", "left"),
        ("frame_size", 64),
    ],
)
def test_settings_that_need_other_predictions_are_refused(name, value):
    """A replay would show figures of predictions that were never made."""
    (trace,), _ = record(ScriptedRewardModel())
    assert trace.settings is not None
    with pytest.raises(ValueError, match=f"{name} must be .* as in the recording"):
        replay(trace, replace(trace.settings, **{name: value}))


def test_a_video_has_nothing_to_replay():
    """It would have rewards without an environment."""
    trace = EpisodeTrace.from_values(TASK, [0], [0.5], [0.5])
    with pytest.raises(ValueError, match="it is of a video, which has no rewards"):
        replay(trace)


def test_traces_are_appended_as_episodes_end_and_read_back(tmp_path):
    """A training that was stopped would leave no traces."""
    path = tmp_path / "deep" / "traces.jsonl"
    for number in range(2):
        env = RobometerRewardWrapper(CountingEnv(lengths=[3]), TASK, drawn_model(number))
        with RecordTraces(env, path):
            env.reset()
            for step in range(3):
                assert len(path.read_text().splitlines()) == number
                env.step(step)
            assert len(path.read_text().splitlines()) == number + 1  # before it is closed
    traces = read_traces(path)
    assert [trace.num_steps for trace in traces] == [3, 3]
    write_traces(tmp_path / "copy.jsonl", traces)
    assert (tmp_path / "copy.jsonl").read_text() == path.read_text()


def test_everything_but_the_frames_is_read_back(tmp_path):
    """A figure would differ between the run and its file."""
    env = CountingEnv(lengths=[4], success=[True])
    (trace,), _ = record(drawn_model(3), env=env, frames="predictions", camera="render")
    trace = replace(trace, seed=5, fps=10.0, video="a.mp4", env=2)
    write_traces(tmp_path / "traces.jsonl", [trace])
    (again,) = read_traces(tmp_path / "traces.jsonl")
    assert again.to_dict() == trace.to_dict()
    assert again.steps == trace.steps
    assert again.settings == trace.settings
    assert again.seconds is not None
    assert again.seconds.tolist() == [0.0, 0.4]
    assert again.frames == ()


def test_numbers_that_json_lacks_are_read_back(tmp_path):
    """An environment's infinite reward would make the file unreadable elsewhere."""
    (trace,), _ = record(ScriptedRewardModel())
    steps = tuple(
        step._replace(env_reward=value)
        for step, value in zip(
            trace.steps, (math.inf, -math.inf, math.nan, 0.1, 1, 2, 3), strict=True
        )
    )
    write_traces(tmp_path / "traces.jsonl", [replace(trace, steps=steps)])
    json.loads(
        (tmp_path / "traces.jsonl").read_text(), parse_constant=lambda name: pytest.fail(name)
    )
    (again,) = read_traces(tmp_path / "traces.jsonl")
    values = [step.env_reward for step in again.steps]
    assert values[:2] == [math.inf, -math.inf]
    assert math.isnan(values[2])
    assert values[3:] == [0.1, 1, 2, 3]


def test_a_camera_that_is_a_function_goes_into_the_file_by_name(tmp_path):
    """A trace could not be written, or not be read without the user's code."""

    def view(env: Any, observation: Any) -> Any:
        return env.render()

    for camera, name in (
        (view, "camera"),
        ({"top": view, "b": "render"}, {"top": "top", "b": "render"}),
    ):
        (trace,), _ = record(drawn_model(1), camera=camera)
        (again,) = through_json([trace])
        assert again.settings is not None
        assert again.settings.camera == name
        assert rewards_and_ends(replay(again)) == rewards_and_ends(trace)


def test_a_broken_line_is_named(tmp_path):
    """One bad line in a file of thousands could not be found."""
    (trace,), _ = record(ScriptedRewardModel())
    path = tmp_path / "traces.jsonl"
    write_traces(path, [trace, trace, trace])
    lines = path.read_text().splitlines(keepends=True)
    broken = {
        "{nothing\n": "Expecting property name",
        "[]\n": "format must be 'robometer_gym.trace/1', got None",
        '{"format": "other/1"}\n': "format must be 'robometer_gym.trace/1', got 'other/1'",
        '{"format": "robometer_gym.trace/1", "task": "x"}\n': "KeyError",
        lines[0].replace('"reward": [', '"reward": [0.5, '): "not an episode trace",
        "[" * 100_000 + "\n": "recursion",
    }
    for line, message in broken.items():
        path.write_text(lines[0] + line + lines[2])
        with pytest.raises(ValueError, match=r"traces.jsonl, line 2") as caught:
            read_traces(path)
        assert message in str(caught.value)


def test_a_last_line_that_was_cut_off_can_be_left_out(tmp_path):
    """After a killed training all its traces would be lost."""
    (trace,), _ = record(ScriptedRewardModel())
    path = tmp_path / "traces.jsonl"
    write_traces(path, [trace, trace])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in (first + 1, first + 20, len(whole) - 2):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"line 2.*last_line='skip' leaves it out"):
            read_traces(path)
        assert len(read_traces(path, last_line="skip")) == 1
    path.write_bytes(b"{broken}\n" + whole[:first])
    with pytest.raises(ValueError, match="line 1"):
        read_traces(path, last_line="skip")  # only the last line can have been cut off


def test_recording_goes_on_after_a_line_that_was_cut_off(tmp_path):
    """The next episode would be glued to the cut line, and the file be unreadable."""
    path = tmp_path / "traces.jsonl"
    (trace,), _ = record(ScriptedRewardModel())
    write_traces(path, [trace, trace])
    path.write_bytes(path.read_bytes()[:-20])
    env = RobometerRewardWrapper(CountingEnv(lengths=[3]), TASK, ScriptedRewardModel())
    with RecordTraces(env, path):
        env.reset()
        for step in range(3):
            env.step(step)
    assert [each.num_steps for each in read_traces(path)] == [7, 3]


def test_filled_windows_have_a_step_for_every_frame():
    """A video of the window could not be drawn."""
    env = CountingEnv(lengths=[3])
    (trace,), _ = record(
        ScriptedRewardModel(), env=env, frames="window", pad="repeat", max_frames=6, predict_every=1
    )
    assert trace.frame_steps == (0, 1, 2, 3, 3, 3)
    assert [CountingEnv.read(frame)["step"] for frame in trace.frames] == [0, 1, 2, 3, 3, 3]
    assert trace.predictions[1].frame_steps == (0, 1, 1, 1, 1, 1)


def test_an_environment_without_a_reward_wrapper_is_refused(tmp_path):
    """The file would stay empty without a word."""
    with pytest.raises(ValueError, match="No reward wrapper is around this CountingEnv"):
        RecordTraces(CountingEnv(), tmp_path / "traces.jsonl")


def test_scored_frames_are_a_trace_without_rewards():
    """A video's curve could not be drawn by the code that draws episodes."""
    trace = EpisodeTrace.from_values(TASK, [0, 3], [0.1, 0.2], [0.0, 1.0], fps=2.0)
    assert trace.prediction_steps.tolist() == [0, 3]
    assert trace.progress.tolist() == np.array([0.1, 0.2], np.float32).tolist()
    assert trace.seconds is not None
    assert trace.seconds.tolist() == [0.0, 1.5]
    assert trace.num_steps == 0
    assert not trace.ended
    with pytest.raises(ValueError, match="got lengths 2, 1, 2"):
        EpisodeTrace.from_values(TASK, [0, 3], [0.1], [0.0, 1.0])


def test_a_recorder_takes_up_episodes_that_have_just_begun():
    """The first episode of a training, which is reset before callbacks start, would be lost."""
    model = ScriptedRewardModel(progress=[0.25, 0.5])
    env = RobometerRewardWrapper(CountingEnv(lengths=[3]), TASK, model)
    env.reset()
    traces: list[EpisodeTrace] = []
    with TraceRecorder(env.tracker, traces.append) as recorder:
        for _ in range(3):
            env.step(0)
    assert recorder.steps == 3
    (trace,) = traces
    assert trace.progress.tolist() == [0.25, 0.5]
    assert trace.num_steps == 3


def test_an_episode_that_has_made_steps_is_left_out():
    """Half an episode would count as a short one."""
    env = RobometerRewardWrapper(CountingEnv(lengths=[3]), TASK, ScriptedRewardModel())
    env.reset()
    env.step(0)
    traces: list[EpisodeTrace] = []
    with TraceRecorder(env.tracker, traces.append):
        env.step(0)
        env.step(0)
        env.reset()  # has made no step when the recorder closes
    assert traces == []
