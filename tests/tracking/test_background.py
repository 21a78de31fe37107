"""BackgroundPredictions: the rewards of a synchronous run, late, complete and in order."""

import copy
import pickle
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robometer_gym import EpisodeTrace, FrameCapture, RobometerRewardWrapper
from robometer_gym import RobometerVectorRewardWrapper as VectorWrapper
from robometer_gym.reward_model import Clip, Prediction
from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from robometer_gym.tracking import background
from robometer_gym.tracking.recorder import TraceRecorder

TASK = "push the block"


def progress(clip: Clip) -> float:
    """A value with many digits in binary, from the whole window."""
    steps = [CountingEnv.read(image)["step"] for image in clip.images]
    return (sum(steps) * 7 % 23) / 23


class GatedModel:
    """Predicts when the test opens the gate; counts how many clips wait before it."""

    def __init__(self, success: Any = 0.0, open_at_once: bool = False) -> None:
        self._model = ScriptedRewardModel(progress=progress, success=success)
        self._gate = threading.Event()
        self.entered = threading.Event()
        self.threads: set[int] = set()
        if open_at_once:
            self._gate.set()

    def predict(self, clips: Sequence[Clip]) -> list[Prediction]:
        self.threads.add(threading.get_ident())
        if any((clip.steps or (0,))[-1] for clip in clips):  # a reset waits for its baseline
            self.entered.set()
            assert self._gate.wait(600), "the test never opened the gate"
        return self._model.predict(clips)

    def open(self) -> None:
        self._gate.set()


def wrap(model: Any, env: Any = None, **chosen: Any) -> RobometerRewardWrapper:
    options = {"background": True, "predict_every": 2, "timeout": 20.0, **chosen}
    return RobometerRewardWrapper(env or CountingEnv(lengths=[9]), TASK, model, **options)


def run(env: RobometerRewardWrapper, seed: int = 0) -> tuple[EpisodeTrace, list[Any]]:
    """One episode: its trace, and reward, ends and info of each step as the agent saw them."""
    traces: list[EpisodeTrace] = []
    steps = []
    with TraceRecorder(env.tracker, traces.append):
        env.reset(seed=seed)
        over = False
        while not over:
            _, reward, terminated, truncated, info = env.step(0)
            steps.append((float(reward), terminated, truncated, info))
            over = terminated or truncated
    return traces[0], steps


def test_a_step_does_not_wait_for_its_prediction():
    """A robot at 10 Hz would stand still for a second at every prediction."""
    model = GatedModel()
    env = wrap(model)
    env.reset()
    rewards = [env.step(0) for _ in range(5)]  # the gate is closed: none of these can wait
    assert model.entered.wait(600)
    assert [reward for _, reward, *_ in rewards] == [0.0] * 5
    assert [info["robometer/for_step"] for *_, info in rewards] == [1] * 5
    assert [info["robometer/delay"] for *_, info in rewards] == [0, 1, 2, 3, 4]
    assert not any(info["robometer/predicted"] for *_, info in rewards)
    assert [info["env_reward"] for *_, info in rewards] == [1, 2, 3, 4, 5]
    model.open()
    env.close()


def test_predictions_are_made_in_another_thread():
    """The loop would still wait inside `step`."""
    model = GatedModel(open_at_once=True)
    run(wrap(model))
    assert threading.get_ident() not in model.threads


chosen = st.fixed_dictionaries(
    {
        "predict_every": st.integers(1, 5),
        "signal": st.sampled_from(["delta", "potential", "progress"]),
        "mode": st.sampled_from(["replace", "shape"]),
        "success_bonus": st.sampled_from([0.0, 0.7]),
        "max_wait": st.sampled_from([0.0, 0.001]),
    }
)


@settings(max_examples=50)
@given(chosen, st.integers(1, 25), st.sampled_from(["terminated", "truncated"]))
def test_every_step_has_the_reward_of_a_synchronous_run(chosen, length, end):
    """Rewards would be lost, given twice, or be those of other windows."""
    env = CountingEnv(lengths=[length], ends=[end])
    options = {**chosen, "terminate_on_success": False}
    late_env = wrap(GatedModel(progress, open_at_once=True), env, **options)
    late, steps = run(late_env)
    now, now_steps = run(
        wrap(
            ScriptedRewardModel(progress=progress, success=progress),
            CountingEnv(lengths=[length], ends=[end]),
            **{**options, "background": False},
        )
    )
    assert late.steps == now.steps  # bit for bit
    assert late.detected_step == now.detected_step
    delivered = sum(reward for reward, *_ in steps)
    assert delivered == pytest.approx(now.episode_return, abs=1e-9)
    assert [step[1:3] for step in steps] == [step[1:3] for step in now_steps]
    assert steps[-1][3]["is_success"] == now_steps[-1][3]["is_success"]
    late_env.close()


def test_rewards_arrive_with_the_number_of_their_step():
    """A buffer could not be corrected, because whose reward it is would be unknown."""
    model = GatedModel()
    env = wrap(model, CountingEnv(lengths=[20]), predict_every=2)
    baseline = env.reset()[1]["robometer/progress"]
    for _ in range(3):
        env.step(0)
    model.open()
    while True:  # the prediction of step 2 arrives at some step
        _, reward, _, _, info = env.step(0)
        if info["robometer/predicted"]:
            break
    assert info["robometer/for_step"] >= 2
    assert info["robometer/delay"] >= 0
    assert reward == pytest.approx(info["robometer/progress"] - baseline)
    env.close()


def test_success_ends_the_episode_when_the_verdict_arrives():
    """The robot would go on after success, or the episode end before anything was seen."""
    model = GatedModel(success=0.9)
    env = wrap(model, CountingEnv(lengths=[60_000], success=[False]), predict_every=1)
    env.reset()
    assert not any(env.step(0)[2] for _ in range(5))
    model.open()
    for _ in range(50_000):  # ten minutes
        _, _, terminated, truncated, info = env.step(0)
        if terminated:
            break
        threading.Event().wait(0.01)
    assert terminated
    assert not truncated
    assert info["robometer/success"]
    assert info["robometer/delay"] == 0  # everything that was owed has arrived
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    env.reset()
    env.close()


def test_potential_is_zero_at_the_step_that_really_ends_the_episode():
    """The discounted rewards would no longer add up to minus the first potential."""
    model = GatedModel(success=0.9)
    env = wrap(model, CountingEnv(lengths=[50]), predict_every=1, signal="potential", gamma=0.5)
    traces: list[EpisodeTrace] = []
    with TraceRecorder(env.tracker, traces.append):
        _, info = env.reset()
        start = info["robometer/progress"]
        for _ in range(4):
            env.step(0)
        model.open()
        while not env.step(0)[2]:
            threading.Event().wait(0.01)
    steps = traces[0].steps
    assert [step.terminated for step in steps] == [False] * (len(steps) - 1) + [True]
    discounted = sum(0.5**number * step.reward for number, step in enumerate(steps))
    assert discounted == pytest.approx(-start)
    env.close()


def test_the_end_waits_for_everything_that_is_owed():
    """The last rewards of every episode would be lost."""
    model = GatedModel()
    env = wrap(model, CountingEnv(lengths=[6]), predict_every=1)
    traces: list[EpisodeTrace] = []
    with TraceRecorder(env.tracker, traces.append):
        env.reset()
        for _ in range(5):
            env.step(0)
        threading.Timer(0.2, model.open).start()
        _, _, terminated, _, info = env.step(0)
    assert terminated
    assert info["robometer/for_step"] == 6
    assert [p.step for p in traces[0].predictions if p.cameras is not None] == list(range(7))
    env.close()


@pytest.mark.parametrize("on_error", ["raise", "hold", "env"])
def test_a_model_that_never_responds_is_given_up_after_the_timeout(on_error):
    """A training would stand still for ever."""
    model = GatedModel()
    env = wrap(model, CountingEnv(lengths=[5]), predict_every=2, timeout=0.1, on_error=on_error)
    env.reset()
    for _ in range(4):
        env.step(0)
    if on_error == "raise":
        with pytest.raises(TimeoutError, match=r"did not respond within 0.1 s"):
            env.step(0)
    else:
        _, reward, terminated, _, info = env.step(0)
        assert terminated
        assert info["robometer/errors"] == 3
        assert reward == (0.0 if on_error == "hold" else 2.0 + 4.0 + 5.0)
    model.open()
    env.close()


def collect(env: RobometerRewardWrapper, steps: int) -> list[float]:
    return [float(env.step(0)[1]) for _ in range(steps)]


def test_an_error_of_the_model_is_raised_in_the_loop():
    """It would die with its thread, and the rewards stop without a word."""
    calls = iter(range(100))

    def fail(clip: Clip) -> float:
        if next(calls) > 0:
            raise ConnectionError("the server is gone")
        return 0.5

    env = wrap(ScriptedRewardModel(progress=fail), CountingEnv(lengths=[5]))
    env.reset()
    with pytest.raises(ConnectionError, match="the server is gone"):
        collect(env, 5)
    env.close()


def test_a_full_queue_makes_the_step_wait_and_is_counted(monkeypatch):
    """Frames would fill the memory where the model is slower than the robot."""
    monkeypatch.setattr(background, "_MAX_OWED", 4)
    model = GatedModel()
    env = wrap(model, CountingEnv(lengths=[12]), predict_every=1)
    driver: Any = env._driver
    env.reset()
    for _ in range(4):
        env.step(0)
    assert driver.full == 0
    threading.Timer(0.2, model.open).start()
    env.step(0)
    assert driver.full == 1
    assert len(driver._owed) <= 4
    env.close()


def test_a_reset_in_mid_episode_keeps_rewards_out_of_the_next_one():
    """The next episode would begin with the rewards of the one that was given up."""
    model = GatedModel()
    env = wrap(model, CountingEnv(lengths=[20]), predict_every=1, signal="progress")
    env.reset()
    for _ in range(4):
        env.step(0)
    threading.Timer(0.1, model.open).start()
    _, info = env.reset()
    assert info["robometer/for_step"] == 0
    _, reward, _, _, info = env.step(0)
    assert reward == (info["robometer/progress"] if info["robometer/for_step"] == 1 else 0.0)
    env.close()


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_goes_on_in_mid_episode(twin_of):
    """A saved training could not be resumed, or lose the rewards that were owed."""
    model = ScriptedRewardModel(progress=progress)
    env = wrap(model, CountingEnv(lengths=[9]), predict_every=1)
    env.reset(seed=0)
    first = [float(env.step(0)[1]) for _ in range(4)]
    twin = twin_of(env)
    rest = [float(env.step(0)[1]) for _ in range(5)]
    twins = [float(twin.step(0)[1]) for _ in range(5)]
    assert sum(first) + sum(rest) == pytest.approx(sum(first) + sum(twins))
    env.close()
    twin.close()


def test_close_ends_the_thread():
    """Every environment would leave a thread behind."""
    before = set(threading.enumerate())
    for _ in range(5):
        env = wrap(ScriptedRewardModel(), CountingEnv(lengths=[3]))
        run(env)
        assert set(threading.enumerate()) - before
        env.close()
        for thread in set(threading.enumerate()) - before:
            thread.join(600)
        assert not set(threading.enumerate()) - before


def capture(maker: Any) -> FrameCapture:
    return FrameCapture(maker())


@settings(max_examples=20)
@given(chosen, st.lists(st.integers(1, 9), min_size=4, max_size=4))
def test_vector_environments_deliver_the_same_rewards(chosen, lengths):
    """An environment would receive the rewards of another one, or of its next episode."""

    def returns(background: bool) -> Any:
        pairs = lengths[:2], lengths[2:]
        makers = [partial(CountingEnv, lengths=pair) for pair in pairs]
        envs = gym.vector.SyncVectorEnv([partial(capture, maker) for maker in makers])
        model = ScriptedRewardModel(progress=progress)
        wrapped = VectorWrapper(
            envs,
            TASK,
            model,
            background=background,
            terminate_on_success=False,
            **chosen,
        )
        traces: list[EpisodeTrace] = []
        delivered: list[list[float]] = [[0.0], [0.0]]
        with TraceRecorder(wrapped.tracker, traces.append):
            wrapped.reset(seed=0)
            for _ in range(24):
                _, rewards, terminated, truncated, _ = wrapped.step(np.zeros(2, int))
                for env in range(2):
                    delivered[env][-1] += rewards[env]
                    if terminated[env] or truncated[env]:
                        delivered[env].append(0.0)
        wrapped.close()
        ended = [t for t in traces if t.ended]
        ended.sort(key=lambda t: (t.env, t.episode))
        return ended, [episodes[:-1] for episodes in delivered]

    late, late_returns = returns(True)
    now, now_returns = returns(False)
    assert [trace.steps for trace in late] == [trace.steps for trace in now]
    for mine, its in zip(late_returns, now_returns, strict=True):
        assert mine == pytest.approx(its, abs=1e-9)


def test_a_masked_reset_keeps_the_rewards_of_other_environments():
    """An environment that was not reset would lose its rewards."""

    def total(background: bool) -> float:
        model = GatedModel()
        makers = [partial(capture, partial(CountingEnv, lengths=[10]))] * 2
        envs = gym.vector.SyncVectorEnv(makers, autoreset_mode=gym.vector.AutoresetMode.DISABLED)
        wrapped = VectorWrapper(envs, TASK, model, predict_every=1, background=background)
        wrapped.reset(seed=0)
        if not background:
            model.open()
        rewards = [wrapped.step(np.zeros(2, int))[1][1] for _ in range(4)]
        model.open()
        wrapped.reset(options={"reset_mask": np.array([True, False])})
        rewards += [wrapped.step(np.zeros(2, int))[1][1] for _ in range(6)]
        wrapped.close()
        return float(sum(rewards))

    assert total(True) == pytest.approx(total(False))


def test_the_step_of_an_end_is_numbered_as_its_own_episodes():
    """Under SAME_STEP the last reward of an episode would be credited to step 0."""
    makers = [partial(capture, partial(CountingEnv, lengths=[3]))]
    envs = gym.vector.SyncVectorEnv(makers, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    wrapped = VectorWrapper(
        envs, TASK, GatedModel(open_at_once=True), predict_every=1, background=True, max_wait=20.0
    )
    wrapped.reset(seed=0)
    infos = [wrapped.step(np.zeros(1, int))[4] for _ in range(3)]
    assert [info["robometer/for_step"][0] for info in infos[:2]] == [1, 2]
    assert infos[2]["final_info"]["robometer/for_step"][0] == 3
    assert infos[2]["robometer/for_step"][0] == 0
    wrapped.close()


def test_an_old_failure_is_not_raised_again_after_a_reset():
    """A server that is back would look as if it were still gone."""
    gone = threading.Event()

    def progress_or_fail(clip: Clip) -> float:
        if gone.is_set():
            raise ConnectionError("the server is gone")
        return 0.5

    env = wrap(
        ScriptedRewardModel(progress=progress_or_fail), CountingEnv(lengths=[9]), predict_every=1
    )
    env.reset()
    gone.set()
    with pytest.raises(ConnectionError):
        collect(env, 9)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    gone.clear()
    for _ in range(3):
        env.reset()
    assert len(collect(env, 9)) == 9
    env.close()


def test_streams_are_released_after_their_last_prediction():
    """The engine would keep the frames of every episode that was given up."""

    class Kept(GatedModel):
        def __init__(self) -> None:
            super().__init__(open_at_once=True)
            self.streams: set[Any] = set()

        def predict(self, clips: Sequence[Clip]) -> list[Prediction]:
            self.streams |= {clip.stream for clip in clips}
            return super().predict(clips)

        def release(self, stream: Any) -> None:
            assert threading.get_ident() in self.threads  # never while another call predicts
            self.streams.discard(stream)

    model = Kept()
    env = wrap(model, CountingEnv(lengths=[9]), predict_every=1)
    for _ in range(5):
        env.reset()
        collect(env, 4)
    env.reset()
    assert len(model.streams) <= 2  # the running episode's, and perhaps the one just given up
    env.close()


def test_a_process_ends_in_order_while_the_model_predicts():
    """A training that has ended well would end with an abort."""
    program = """
from robometer_gym import RobometerRewardWrapper
from robometer_gym.testing import CountingEnv

env = RobometerRewardWrapper(
    CountingEnv(lengths=[99], size=(64, 64)), "push it", "demo", background=True, predict_every=1
)
env.reset()
for _ in range(8):
    env.step(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
