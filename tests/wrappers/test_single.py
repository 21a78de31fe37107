"""RobometerRewardWrapper: which frames reach the model, and what is paid for them.

`CountingEnv` writes episode and step into every frame and `ScriptedRewardModel` remembers every
clip, so each test states both in numbers.
"""

import gc
import inspect
import logging
import math
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from hypothesis import given
from hypothesis import strategies as st

from robometer_gym import RobometerRewardWrapper
from robometer_gym.reward_model import Clip, Prediction, RewardModelError
from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from robometer_gym.tracking.settings import RewardSettings

TASK = "open the drawer"
TABLETOP = "robometer_gym/TabletopReach-v0"

# Sixty-fourths are exact in float32 and float64, so sums of them can be compared with ==.
exact = st.integers(0, 64).map(lambda n: n / 64)


def wrap(env: Any, model: Any, **settings: Any) -> RobometerRewardWrapper:
    """The wrapper under test."""
    return RobometerRewardWrapper(env, task=TASK, reward_model=model, **settings)


def play(env: Any, steps: int | None = None) -> list[tuple[float, bool, bool, dict[str, Any]]]:
    """Make `steps` steps, or go on to the end: (reward, terminated, truncated, info) of each."""
    told: list[tuple[float, bool, bool, dict[str, Any]]] = []
    while steps is None or len(told) < steps:
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        told.append((reward, terminated, truncated, info))
        if steps is None and (terminated or truncated):
            break
    return told


def rewards(env: Any, steps: int | None = None) -> list[float]:
    """What is paid at each step."""
    return [step[0] for step in play(env, steps)]


def seen(clip: Clip) -> list[tuple[int, int]]:
    """What a clip shows: (episode, step) of each frame."""
    return [(t["episode"], t["step"]) for t in map(CountingEnv.read, clip.images)]


def windows(model: ScriptedRewardModel) -> list[list[int]]:
    """The steps in each clip, after checking that it shows one episode and says which steps."""
    told = []
    for clip in model.clips:
        episodes, steps = zip(*seen(clip), strict=True)
        assert len(set(episodes)) == 1
        assert clip.steps == steps
        told.append(list(steps))
    return told


# Rule 1: a prediction at reset, every `predict_every` steps, and at the last step.


def test_the_model_is_asked_at_reset_at_every_nth_step_and_at_the_last():
    """The reward would come at the wrong steps, or the end of the episode not be judged."""
    model = ScriptedRewardModel(progress=[0.125, 0.25, 0.5, 0.75])
    env = wrap(CountingEnv(lengths=[7]), model, predict_every=3)
    _, info = env.reset()
    assert info["robometer/progress"] == 0.125
    assert info["robometer/predicted"] is True
    told = play(env)
    assert [step[0] for step in told] == [0.0, 0.0, 0.125, 0.0, 0.0, 0.25, 0.25]
    predicted = [step[3]["robometer/predicted"] for step in told]
    assert predicted == [False, False, True, False, False, True, True]
    assert windows(model) == [[0], [0, 3], [0, 3, 6], [0, 3, 6, 7]]
    assert model.batches == [1, 1, 1, 1]


def test_a_last_step_that_is_due_anyway_is_predicted_once():
    """The model would be asked twice about the same moment; the second delta would be noise."""
    model = ScriptedRewardModel(progress=[0.125, 0.25, 0.5])
    env = wrap(CountingEnv(lengths=[6]), model, predict_every=3)
    env.reset()
    assert rewards(env) == [0.0, 0.0, 0.125, 0.0, 0.0, 0.25]
    assert windows(model) == [[0], [0, 3], [0, 3, 6]]


@pytest.mark.parametrize("ends", ["terminated", "truncated"])
def test_an_episode_of_one_step(ends):
    """The shortest episode would not be paid, or be paid from 0."""
    model = ScriptedRewardModel(progress=[0.25, 0.75] * 2)
    env = wrap(CountingEnv(lengths=[1], ends=[ends]), model)
    for _ in range(2):
        env.reset()
        ((reward, terminated, truncated, _),) = play(env)
        assert (reward, terminated, truncated) == (0.5, ends == "terminated", ends == "truncated")
    assert windows(model) == [[0], [0, 1]] * 2


def test_steps_are_counted_from_the_reset_of_each_episode():
    """Predictions would drift from episode to episode."""
    model = ScriptedRewardModel()
    env = wrap(CountingEnv(lengths=[4, 3, 5]), model, predict_every=3)
    for _ in range(3):
        env.reset()
        play(env)
    assert windows(model) == [[0], [0, 3], [0, 3, 4], [0], [0, 3], [0], [0, 3], [0, 3, 5]]


def test_frames_are_rendered_only_when_they_are_kept():
    """Rendering is the slowest part of a simulator; twice as many frames, half the speed."""
    bare = CountingEnv(lengths=[23])
    env = wrap(bare, ScriptedRewardModel(), predict_every=5)
    env.reset()
    assert bare.renders == 1
    play(env, 4)
    assert bare.renders == 1
    play(env)
    assert bare.renders == 1 + 4 + 1


def test_the_default_is_every_fifth_step_and_a_window_of_eight():
    """The README's numbers would not be those of the code."""
    model = ScriptedRewardModel()
    env = wrap(CountingEnv(lengths=[60], ends=["truncated"]), model)
    env.reset()
    play(env)
    kept = np.arange(0, 61, 5)
    for i, window in enumerate(windows(model)):
        wanted = np.arange(i + 1) if i < 8 else np.rint(np.linspace(0, i, 8)).astype(int)
        assert window == kept[wanted].tolist()


@pytest.mark.parametrize(
    ("sampling", "window"),
    [("linspace", [0, 2, 3, 5]), ("tail", [2, 3, 4, 5]), ("anchored", [0, 2, 4, 5])],
)
def test_the_sampling_rule_is_the_chosen_one(sampling, window):
    """Another rule than the one in the settings would be scored."""
    model = ScriptedRewardModel()
    env = wrap(CountingEnv(), model, predict_every=1, max_frames=4, sampling=sampling)
    env.reset()
    play(env, 5)
    assert windows(model)[-1] == window


@given(
    every=st.integers(1, 7),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    ends=st.sampled_from(["terminated", "truncated"]),
    data=st.data(),
)
def test_deltas_telescope(every, lengths, ends, data):
    """How often the model is asked would change what an episode is worth."""
    asked = [1 + sum(s % every == 0 or s == n for s in range(1, n + 1)) for n in lengths]
    answers = [data.draw(st.lists(exact, min_size=n, max_size=n)) for n in asked]
    model = ScriptedRewardModel(progress=[p for episode in answers for p in episode])
    env = wrap(CountingEnv(lengths=lengths, ends=[ends]), model, predict_every=every)
    for length, episode in zip(lengths, answers, strict=True):
        env.reset()
        paid = rewards(env)
        assert len(paid) == length
        assert sum(paid) == episode[-1] - episode[0]
    assert len(model.clips) == sum(asked)


def test_the_newest_frame_is_what_is_paid_for():
    """A model tells progress for each frame; an old frame's would pay for what was long ago."""

    class Rising:
        def predict(self, clips):
            ramps = [np.arange(1, len(clip) + 1) / 8 for clip in clips]
            return [Prediction(r.astype(np.float32), (r / 2).astype(np.float32)) for r in ramps]

    env = wrap(CountingEnv(lengths=[3]), Rising(), predict_every=1)
    _, info = env.reset()
    infos = [info]
    for reward, _, _, info in play(env):
        assert reward == 0.125
        infos.append(info)
    assert [i["robometer/progress"] for i in infos] == [0.125, 0.25, 0.375, 0.5]
    assert [i["robometer/success_prob"] for i in infos] == [0.0625, 0.125, 0.1875, 0.25]


# Rule 2: nothing between predictions, and no clamp.


def test_lost_progress_is_charged():
    """With a clamp at 0 an agent earns by undoing and redoing."""
    model = ScriptedRewardModel(progress=[0.5, 0.25, 0.75, 0.0, 1.0])
    env = wrap(CountingEnv(lengths=[4]), model, predict_every=1)
    env.reset()
    assert rewards(env) == [-0.25, 0.5, -0.75, 1.0]


def test_a_high_baseline_is_no_gift():
    """The first step would be paid the progress that was there before it."""
    model = ScriptedRewardModel(progress=[0.75, 0.75, 0.75])
    env = wrap(CountingEnv(lengths=[2]), model, predict_every=1)
    env.reset()
    assert rewards(env) == [0.0, 0.0]


# Rule 3, as far as one environment goes: no frame and no number goes into the next episode.


def test_the_true_last_frame_is_scored():
    """What the agent did last, which is what succeeds, would not count."""
    model = ScriptedRewardModel()
    env = wrap(CountingEnv(lengths=[7, 4]), model, predict_every=5)
    for episode, length in enumerate((7, 4)):
        env.reset()
        play(env)
        assert seen(model.clips[-1])[-1] == (episode, length)


def test_the_next_episode_begins_from_its_own_baseline():
    """A success would be paid back at the next episode's first step."""
    model = ScriptedRewardModel(progress=[0.0, 1.0, 0.25, 0.5])
    env = wrap(CountingEnv(lengths=[2]), model)
    env.reset()
    assert rewards(env) == [0.0, 1.0]
    env.reset()
    assert rewards(env) == [0.0, 0.25]
    assert [seen(clip)[0] for clip in model.clips] == [(0, 0), (0, 0), (1, 0), (1, 0)]


def test_a_reset_in_mid_episode_begins_anew():
    """Frames of an abandoned attempt would be shown as part of the next."""
    model = ScriptedRewardModel(progress=[0.0, 0.5, 0.25, 0.75])
    env = wrap(CountingEnv(), model, predict_every=2)
    env.reset()
    assert rewards(env, 3) == [0.0, 0.5, 0.0]
    _, info = env.reset()
    assert info["robometer/progress"] == 0.25
    assert rewards(env, 2) == [0.0, 0.5]
    assert [seen(clip) for clip in model.clips] == [
        [(0, 0)],
        [(0, 0), (0, 2)],
        [(1, 0)],
        [(1, 0), (1, 2)],
    ]


@pytest.mark.parametrize("how", ["ends", "mid-episode"])
def test_each_episode_is_a_stream_of_its_own_and_is_released(how):
    """A caching engine would mix up two episodes, or never forget one."""
    model = ScriptedRewardModel()
    env = wrap(CountingEnv(lengths=[4]), model, predict_every=2)
    for _ in range(3):
        env.reset()
        play(env, None if how == "ends" else 2)
    env.close()
    episodes: dict[int, Any] = {}
    for clip in model.clips:
        assert episodes.setdefault(seen(clip)[0][0], clip.stream) is clip.stream
    assert len(set(episodes.values())) == 3
    assert model.released == list(episodes.values())


def test_frames_are_not_the_renderers_buffer():
    """MuJoCo paints into one buffer: every frame of the history would show the newest moment."""

    class Buffered(CountingEnv):
        buffer: Any = None

        def render(self):
            frame = super().render()
            if self.buffer is None:
                self.buffer = frame
            self.buffer[:] = frame
            return self.buffer

    model = ScriptedRewardModel()
    env = wrap(Buffered(lengths=[4]), model, predict_every=1)
    env.reset()
    play(env)
    assert windows(model) == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]


def test_a_failed_reset_ends_the_episode():
    """Going on would show the model frames of two episodes as one."""

    class Fails(CountingEnv):
        black = False

        def render(self):
            frame = super().render()
            assert frame is not None
            return frame * (not self.black)

    model = ScriptedRewardModel()
    bare = Fails()
    env = wrap(bare, model, predict_every=1)
    env.reset()
    play(env, 2)
    bare.black = True
    with pytest.raises(ValueError, match="entirely black"):
        env.reset()
    bare.black = False
    with pytest.raises(ResetNeeded, match=re.escape("call reset() first")):
        env.step(0)
    env.reset()
    play(env, 1)
    assert windows(model)[-1] == [0, 1]


def test_a_refused_frame_at_the_last_step_ends_the_episode():
    """Going on would step an environment that is over, and score frames of nothing."""

    class GoesBlack(CountingEnv):
        def render(self):
            frame = super().render()
            assert frame is not None
            return frame * (self.steps < 2)

    env = wrap(GoesBlack(lengths=[2]), ScriptedRewardModel())
    env.reset()
    play(env, 1)
    with pytest.raises(ValueError, match="entirely black"):
        env.step(0)
    with pytest.raises(ResetNeeded, match=re.escape("call reset() first")):
        env.step(0)


def test_no_task_among_the_options_means_the_usual_one():
    """An environment that draws its task where it is given None could not be wrapped."""
    model = ScriptedRewardModel()
    env = wrap(CountingEnv(), model)
    env.reset(options={"task": None})
    assert [clip.task for clip in model.clips] == [env.task]


def test_a_second_wrapper_is_refused():
    """The first one's payment would pass for the environment's own reward, and its verdict too."""
    env = gym.wrappers.TimeLimit(wrap(CountingEnv(), ScriptedRewardModel()), 5)
    with pytest.raises(ValueError, match="in a RobometerRewardWrapper already"):
        wrap(env, ScriptedRewardModel())


def test_a_model_that_cannot_release_costs_no_reward(caplog):
    """The last reward of an episode would be lost, and the environment not be closed."""

    class Stuck(ScriptedRewardModel):
        def release(self, stream):
            raise OSError("the server is gone")

    closed = []

    class Closes(CountingEnv):
        def close(self):
            closed.append(True)

    env = wrap(Closes(lengths=[1]), Stuck([0.25, 0.5]))
    env.reset()
    assert rewards(env) == [0.25]
    env.close()
    assert closed
    assert "could not release" in caplog.text


# The three signals, two modes, scale and bonus.


@pytest.mark.parametrize(
    ("signal", "ends", "expected"),
    [
        ("delta", "terminated", [0.0, 0.25, 0.0, 0.25, -0.5]),
        ("delta", "truncated", [0.0, 0.25, 0.0, 0.25, -0.5]),
        # gamma = 0.5: before 0.25 .25 .5 .5 .75, after .25 .5 .5 .75 .25
        ("potential", "terminated", [-0.125, 0.0, -0.25, -0.125, -0.75]),
        ("potential", "truncated", [-0.125, 0.0, -0.25, -0.125, -0.625]),
        ("progress", "terminated", [0.25, 0.5, 0.5, 0.75, 0.25]),
        ("progress", "truncated", [0.25, 0.5, 0.5, 0.75, 0.25]),
    ],
)
def test_what_each_signal_pays(signal, ends, expected):
    """The agent would learn something else than the user chose."""
    model = ScriptedRewardModel(progress=[0.25, 0.5, 0.75, 0.25] * 3)
    bare = CountingEnv(lengths=[5], ends=[ends])
    env = wrap(bare, model, predict_every=2, signal=signal, gamma=0.5)
    env.reset()
    assert rewards(env) == expected

    env = wrap(bare, model, predict_every=2, signal=signal, gamma=0.5, mode="shape")
    env.reset()
    told = play(env)
    assert [step[0] for step in told] == (np.arange(1, 6) + expected).tolist()
    assert [step[3]["env_reward"] for step in told] == [1, 2, 3, 4, 5]

    env = wrap(bare, model, predict_every=2, signal=signal, gamma=0.5, scale=-4)
    env.reset()
    assert rewards(env) == [-4 * e for e in expected]


def test_the_default_gamma_is_099():
    """Shaping with another discount than the agent's own moves its optimum."""
    model = ScriptedRewardModel(progress=[0.5, 0.75])
    env = wrap(CountingEnv(lengths=[5], ends=["truncated"]), model, signal="potential")
    env.reset()
    expected = [0.99 * 0.5 - 0.5] * 4 + [0.99 * 0.75 - 0.5]
    assert rewards(env) == pytest.approx(expected, abs=1e-12)


class EndsBothWays(CountingEnv):
    """Terminates and truncates at the same step, and says so in NumPy's bools."""

    def step(self, action):
        observation, reward, terminated, _, info = super().step(action)
        return observation, np.float32(reward), np.bool_(terminated), np.bool_(terminated), info


def test_terminated_and_truncated_at_once_is_a_true_end():
    """The potential would be kept though there is no next state."""
    model = ScriptedRewardModel(progress=[0.25, 0.5])
    env = wrap(EndsBothWays(lengths=[3]), model, signal="potential", gamma=0.5)
    env.reset()
    told = play(env)
    assert told[-1][:3] == (-0.25, True, True)
    assert len(model.clips) == 2


def test_success_is_a_true_end_for_the_potential():
    """The potential would be kept at an end that the wrapper itself makes."""
    model = ScriptedRewardModel(progress=[0.25, 0.5, 0.75], success=[0.0, 1.0, 1.0])
    env = wrap(CountingEnv(), model, predict_every=1, signal="potential", gamma=0.5)
    env.reset()
    assert [step[:3] for step in play(env)] == [(0.0, False, False), (-0.5, True, False)]


@pytest.mark.parametrize("mode", ["replace", "shape"])
def test_reward_and_ends_are_of_plain_types(mode):
    """SB3's and Gymnasium's checks refuse NumPy scalars, and JSON logs fail on them."""
    env = wrap(EndsBothWays(lengths=[3]), ScriptedRewardModel(), predict_every=2, mode=mode)
    env.reset()
    for reward, terminated, truncated, info in play(env):
        assert type(reward) is float
        assert type(terminated) is type(truncated) is bool
        assert type(info["env_reward"]) is float
        for key in ("robometer/success", "robometer/predicted"):
            assert type(info[key]) is bool
        for key in ("robometer/progress", "robometer/success_prob"):
            assert type(info[key]) is float
    assert type(info["is_success"]) is bool


def test_types_are_plain_also_where_settings_came_from_numpy():
    """A sweep over np.float32 scales would pay float32, and other sums than with floats."""
    model = ScriptedRewardModel(progress=[0.25, 0.5, 0.75], success=[0.0, 1.0, 1.0])
    env = wrap(
        CountingEnv(),
        model,
        predict_every=np.int64(1),
        scale=np.float32(2.0),
        success_bonus=np.float32(4.0),
        success_votes=np.int64(2),
    )
    env.reset()
    told = play(env)
    assert [step[:2] for step in told] == [(0.5, False), (4.5, True)]
    assert all(type(step[0]) is float and type(step[1]) is bool for step in told)
    assert type(told[-1][3]["is_success"]) is bool


# Success: votes, termination, bonus.


def test_success_needs_two_votes_and_ends_the_episode():
    """One false alarm would end the episode, or a success not end it."""
    model = ScriptedRewardModel(progress=0.5, success=[0.0, 0.9, 0.1, 0.66, 0.66])
    env = wrap(CountingEnv(lengths=[50]), model, predict_every=2, success_bonus=10.0)
    env.reset()
    told = play(env)
    assert len(told) == 8
    assert [step[0] for step in told] == [0.0] * 7 + [10.0]
    assert [step[1] for step in told] == [False] * 7 + [True]
    assert not any(step[2] for step in told)
    assert [step[3]["robometer/success"] for step in told] == [False] * 7 + [True]
    probabilities = [step[3]["robometer/success_prob"] for step in told]
    assert probabilities == np.array([0, 0.9, 0.9, 0.1, 0.1, 0.66, 0.66, 0.66], "f4").tolist()


def test_votes_and_window_are_the_chosen_ones():
    """Success would be detected too early or never."""
    model = ScriptedRewardModel(progress=0.5, success=[0.0, 0.5, 0.0, 0.5, 0.0, 0.5])
    env = wrap(
        CountingEnv(lengths=[50]),
        model,
        predict_every=1,
        success_threshold=0.5,
        success_votes=3,
        success_window=5,
    )
    env.reset()
    assert [step[1] for step in play(env)] == [False] * 4 + [True]


def test_success_at_reset_ends_nothing_yet():
    """`reset` cannot end an episode: the agent would act in an episode that is over."""
    model = ScriptedRewardModel(progress=0.5, success=1.0)
    env = wrap(CountingEnv(), model, predict_every=2, success_bonus=1.0)
    _, info = env.reset()
    assert info["robometer/success"] is False
    assert [step[:2] for step in play(env)] == [(0.0, False), (1.0, True)]


def test_without_termination_the_bonus_is_paid_once_and_success_stays():
    """An agent that leaves and comes back would collect the bonus again and again."""
    model = ScriptedRewardModel(progress=0.5, success=[0, 1, 1, 0, 0, 1, 1])
    env = wrap(
        CountingEnv(lengths=[6], ends=["truncated"]),
        model,
        predict_every=1,
        terminate_on_success=False,
        success_bonus=8.0,
        scale=4.0,
    )
    env.reset()
    told = play(env)
    assert [step[0] for step in told] == [0.0, 8.0, 0.0, 0.0, 0.0, 0.0]
    assert [step[1:3] for step in told] == [(False, False)] * 5 + [(False, True)]
    assert [step[3]["robometer/success"] for step in told] == [False] + [True] * 5
    assert told[-1][3]["is_success"] is True


def test_bonus_and_votes_begin_anew_in_each_episode():
    """A vote of the last episode would count in the next, or its bonus never be paid again."""
    model = ScriptedRewardModel(progress=0.5, success=[0, 1, 1, 0, 1, 0, 1, 1, 0, 1])
    env = wrap(CountingEnv(lengths=[3]), model, predict_every=1, success_bonus=1.0)
    env.reset()
    assert rewards(env) == [0.0, 1.0]
    _, info = env.reset()
    assert info["robometer/success"] is False
    assert rewards(env) == [0.0, 0.0, 0.0]
    env.reset()
    assert rewards(env, 1) == [0.0]


def test_success_at_the_step_that_truncates_is_both():
    """The agent would bootstrap from a state after success."""
    model = ScriptedRewardModel(progress=[0.25, 0.5], success=[1.0, 1.0])
    env = wrap(CountingEnv(lengths=[3], ends=["truncated"]), model)
    env.reset()
    reward, terminated, truncated, info = play(env)[-1]
    assert (reward, terminated, truncated) == (0.25, True, True)
    assert info["is_success"] is True


# Rule 5: info.


def test_the_infos_of_every_step():
    """Logs would be empty, or show a number for a prediction that was not made."""
    model = ScriptedRewardModel(progress=[0.25, 0.5, 0.75], success=[0.0, 0.125, 0.25])
    env = wrap(CountingEnv(lengths=[3]), model, predict_every=2)
    _, info = env.reset()
    assert info == {
        "options": None,
        "robometer/progress": 0.25,
        "robometer/success_prob": 0.0,
        "robometer/success": False,
        "robometer/predicted": True,
    }
    told = [step[3] for step in play(env)]
    assert told == [
        {
            "robometer/progress": progress,
            "robometer/success_prob": probability,
            "robometer/success": False,
            "robometer/predicted": predicted,
            "env_reward": reward,
            **end,
        }
        for progress, probability, predicted, reward, end in [
            (0.25, 0.0, False, 1.0, {}),
            (0.5, 0.125, True, 2.0, {}),
            (0.75, 0.25, True, 3.0, {"is_success": False}),
        ]
    ]


@pytest.mark.parametrize("key", ["is_success", "success"])
@pytest.mark.parametrize("truth", [True, False])
def test_the_environments_own_success_is_never_overwritten(key, truth):
    """A false success could not be seen any more: the only ground truth would be gone."""

    class Tells(CountingEnv):
        def step(self, action):
            *others, info = super().step(action)
            return (*others, {**info, key: truth})

    env = wrap(Tells(lengths=[5]), ScriptedRewardModel(success=float(not truth)), predict_every=1)
    env.reset()
    told = play(env)
    assert len(told) == (5 if truth else 1)
    for _, _, _, info in told:
        assert info[key] is truth
        assert ("is_success" in info) == (key == "is_success")
    assert told[-1][3]["robometer/success"] is not truth


@pytest.mark.parametrize("ends", ["terminated", "truncated"])
@pytest.mark.parametrize("success", [0.0, 1.0])
@pytest.mark.parametrize("terminate", [True, False])
def test_is_success_is_the_detectors_at_the_end_where_the_environment_has_none(
    ends, success, terminate
):
    """SB3's success rate would stay empty, or be counted at every step."""
    env = wrap(
        CountingEnv(lengths=[6], ends=[ends]),
        ScriptedRewardModel(success=success),
        predict_every=2,
        terminate_on_success=terminate,
    )
    for _ in range(2):
        env.reset()
        told = play(env)
        assert len(told) == (2 if success and terminate else 6)
        assert all("is_success" not in info for *_, info in told[:-1])
        assert told[-1][3]["is_success"] is bool(success)


def test_an_environment_that_tells_its_success_only_sometimes():
    """Where the environment tells nothing at a model's success, a guess would pass for truth."""

    class TellsAtTheEnd(CountingEnv):
        def step(self, action):
            observation, reward, terminated, truncated, info = super().step(action)
            if terminated or truncated:
                info = {**info, "is_success": False}
            return observation, reward, terminated, truncated, info

    model = ScriptedRewardModel(success=[0.0, 0.0, *[1.0] * 10])
    env = wrap(TellsAtTheEnd(lengths=[2, 9]), model, predict_every=2)
    env.reset()
    assert play(env)[-1][3]["is_success"] is False
    env.reset()
    _, terminated, _, info = play(env)[-1]
    assert terminated
    assert info["robometer/success"] is True
    assert "is_success" not in info


@pytest.mark.parametrize("reward", [3, np.float32(0.1), np.float64(0.1), -1.5])
def test_the_environments_reward_is_told_as_it_is(reward):
    """`env_reward` is what the agent is compared with."""

    class Pays(CountingEnv):
        def step(self, action):
            observation, _, *others = super().step(action)
            return observation, reward, *others

    model = ScriptedRewardModel(progress=[0.25, 0.5])
    env = wrap(Pays(lengths=[1]), model, scale=2.0, success_bonus=5.0)
    env.reset()
    ((paid, _, _, info),) = play(env)
    assert paid == 0.5
    assert info["env_reward"] == reward


def test_infos_and_observations_of_the_environment_pass():
    """Other wrappers and the agent would miss what the environment says."""

    class Says(CountingEnv):
        said: Any = None

        def step(self, action):
            *others, _ = super().step(action)
            self.said = {"distance": 3.0}
            return (*others, self.said)

    bare = Says(lengths=[3])
    env = wrap(bare, ScriptedRewardModel())
    observation, _ = env.reset()
    assert observation == 0
    observation, *_, info = env.step(0)
    assert observation == 1
    assert info["distance"] == 3.0
    assert bare.said == {"distance": 3.0}  # the environment's own dict is left as it was


# The task.


def test_the_model_is_told_the_task():
    """The wrong task would be rewarded."""
    model = ScriptedRewardModel()
    env = wrap(CountingEnv(lengths=[2]), model)
    assert env.task == TASK
    env.reset()
    play(env)
    assert {clip.task for clip in model.clips} == {TASK}


def test_a_task_given_at_reset_is_for_that_episode_only():
    """Every episode after it would be judged by a task that nobody gave."""
    model = ScriptedRewardModel()
    env = wrap(CountingEnv(lengths=[2]), model)
    other = "close the drawer"
    tasks = []
    for options in (None, {"task": other}, {}, {"task": other, "level": 3}, {"level": 3}):
        _, info = env.reset(options=options)
        assert info["options"] == options
        tasks.append(env.task)
        play(env)
    assert tasks == [TASK, other, TASK, other, TASK]
    assert [clip.task for clip in model.clips] == [t for t in tasks for _ in range(2)]


@pytest.mark.parametrize(
    ("task", "error"), [("", ValueError), (3, TypeError), ("<|x|>", ValueError)]
)
def test_a_bad_task_at_reset_leaves_the_episode_as_it_is(task, error):
    """A mistake in the options would cost the running episode."""
    model = ScriptedRewardModel(progress=[0.25, 0.5])
    bare = CountingEnv(lengths=[3])
    env = wrap(bare, model)
    env.reset()
    play(env, 1)
    with pytest.raises(error, match="task must"):
        env.reset(options={"task": task})
    assert bare.episode == 0
    assert rewards(env) == [0.0, 0.25]


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        ("", ValueError, "task must say what the robot should do"),
        (None, TypeError, "task must be a string"),
        ("stop <|im_end|>", ValueError, "control tokens"),
    ],
)
def test_a_bad_task_is_refused_at_once(task, error, message):
    """The mistake would show after the model was loaded."""
    with pytest.raises(error, match=message):
        RobometerRewardWrapper(CountingEnv(), task=task, reward_model="org/name")


# Cameras and frame size.


def test_several_cameras_are_one_stream_each_and_their_mean_counts():
    """Frames of two cameras would be mixed, or one camera be ignored."""
    progress = {0: [0.25, 0.5, 0.5], 2: [0.75, 0.5, 1.0]}
    success = {0: [0.0, 0.5, 0.75], 2: [0.0, 1.0, 0.75]}

    def script(table):
        def answer(clip):
            now = CountingEnv.read(clip.images[-1])
            return table[now["camera"]][now["step"]]

        return answer

    model = ScriptedRewardModel(progress=script(progress), success=script(success))
    bare = CountingEnv(cameras=["front", "wrist"])
    env = wrap(bare, model, predict_every=1, camera={"above": "render", "hand": "wrist"})
    _, info = env.reset()
    assert info["robometer/progress"] == 0.5
    told = play(env)
    assert [step[:2] for step in told] == [(0.0, False), (0.25, True)]
    assert [step[3]["robometer/success_prob"] for step in told] == [0.75, 0.75]
    assert model.batches == [2, 2, 2]
    assert bare.renders == 3
    above, hand = model.clips[::2], model.clips[1::2]
    for clips, camera in ((above, 0), (hand, 2)):
        assert {CountingEnv.read(i)["camera"] for clip in clips for i in clip.images} == {camera}
        assert [clip.steps for clip in clips] == [(0,), (0, 1), (0, 1, 2)]
        assert len({clip.stream for clip in clips}) == 1
    assert above[0].stream != hand[0].stream
    assert set(model.released) == {above[0].stream, hand[0].stream}
    assert len(model.released) == 2


@pytest.mark.parametrize("camera", ["front", lambda env, observation: observation["front"]])
def test_frames_from_the_observation(camera):
    """The frame of another step would be shown, or the env be rendered for nothing."""
    bare = CountingEnv(lengths=[3], cameras=["front"], render_mode=None)
    model = ScriptedRewardModel()
    env = wrap(bare, model, predict_every=2, camera=camera)
    env.reset()
    play(env)
    assert windows(model) == [[0], [0, 2], [0, 2, 3]]
    assert {CountingEnv.read(i)["camera"] for clip in model.clips for i in clip.images} == {1}
    assert bare.renders == 0


def test_a_camera_function_is_given_env_and_observation():
    """A function could not move the simulator's camera, or see the observation."""
    given_: list[tuple[Any, Any]] = []

    def camera(env, observation):
        given_.append((env, float(observation[0])))
        return env.render()

    inner = TimeLimit(CountingEnv(), 4)
    env = wrap(inner, ScriptedRewardModel(), predict_every=3, camera=camera)
    env.reset()
    play(env)
    assert [step for _, step in given_] == [0.0, 3.0, 4.0]
    assert all(env is inner for env, _ in given_)


@pytest.mark.parametrize(
    ("size", "frame_size", "shown"),
    [
        ((480, 640), 240, (240, 320)),
        ((640, 480), 240, (320, 240)),
        ((480, 640), None, (480, 640)),
        ((24, 32), 240, (24, 32)),
        ((240, 240), 240, (240, 240)),
        ((24, 32), 12, (12, 16)),
    ],
)
def test_frames_are_shrunk_and_never_enlarged(size, frame_size, shown):
    """The model would be four times slower, or be shown sizes that it was not trained on."""
    model = ScriptedRewardModel()
    env = wrap(CountingEnv(lengths=[2], size=size), model, frame_size=frame_size)
    env.reset()
    play(env)
    assert [clip.frames.shape for clip in model.clips] == [(1, *shown, 3), (2, *shown, 3)]
    assert windows(model) == [[0], [0, 2]]


def test_what_cannot_give_frames_is_refused_at_once():
    """The mistake would show after the model was loaded, or as a black film."""
    with pytest.raises(ValueError, match="made with render_mode='rgb_array', got render_mode=None"):
        wrap(CountingEnv(render_mode=None), "org/name")
    with pytest.raises(ValueError, match="camera 'wrist' is not a key of the observation"):
        wrap(CountingEnv(), "org/name", camera="wrist")
    with pytest.raises(ValueError, match="predict_every must be an integer >= 1, got 0"):
        wrap(CountingEnv(), "org/name", predict_every=0)
    with pytest.raises(TypeError, match="reward_model must be a hub id"):
        wrap(CountingEnv(), None)
    with pytest.raises(TypeError, match="unexpected keyword argument 'predict_evry'"):
        wrap(CountingEnv(), "org/name", predict_evry=3)


@pytest.mark.parametrize("at", [0, 2, 3])
@pytest.mark.parametrize("picture", ["black", "float"])
def test_a_bad_frame_is_refused_when_it_comes(at, picture):
    """A renderer that breaks in mid-training would go on paying."""

    class Breaks(CountingEnv):
        def render(self):
            frame: Any = super().render()
            if self.steps != at:
                return frame
            return np.zeros_like(frame) if picture == "black" else frame / 255

    message = {"black": "entirely black", "float": r"must be \(H, W, 3\) uint8 RGB; got"}
    env = wrap(Breaks(lengths=[3]), ScriptedRewardModel(), predict_every=2, on_error="hold")

    def all_steps() -> None:
        env.reset()
        play(env)

    with pytest.raises(ValueError, match=r"Frame from env.render\(\).*" + message[picture]):
        all_steps()


def test_a_camera_that_changes_its_size_is_refused():
    """Frames of two sizes cannot be one video; the model would fail without naming the camera."""

    class Zooms(CountingEnv):
        def step(self, action):
            self.size = (12, 16)
            return super().step(action)

    env = wrap(Zooms(), ScriptedRewardModel(), predict_every=1)
    env.reset()
    with pytest.raises(ValueError, match=r"of one size, got \(24, 32, 3\) and \(12, 16, 3\)"):
        env.step(0)


# on_error.

BROKEN: dict[str, Any] = {
    "exception": TimeoutError("no answer"),
    "nan": math.nan,
    "outside": 1.5,
}


class Breaks(ScriptedRewardModel):
    """Answers as scripted, but returns one value too many where the script says 2.0."""

    def _answer(self, clip):
        answer = super()._answer(clip)
        if answer.progress[0] == 2.0:
            return Prediction(np.zeros(len(clip) + 1, np.float32), answer.success)
        return answer


BROKEN["shape"] = 2.0
bad = pytest.mark.parametrize("broken", BROKEN)


def breaking(broken: str, answers: list[float | None], **settings: Any) -> RobometerRewardWrapper:
    """An env of 5 steps, asked about at 0, 2, 4 and 5; None in `answers` is where it breaks."""
    script = [BROKEN[broken] if a is None else a for a in answers]
    return wrap(CountingEnv(lengths=[5]), Breaks(script), predict_every=2, **settings)


def error_of(broken: str) -> Any:
    """The error that a broken answer must raise."""
    if broken == "exception":
        return pytest.raises(TimeoutError, match=r"^no answer$")
    message = "shape" if broken == "shape" else "expected finite values"
    return pytest.raises(RewardModelError, match=f"reward_model returned progress .*{message}")


@bad
def test_raise_at_reset(broken):
    """Training would go on without a baseline."""
    env = breaking(broken, [None, 0.25, 0.5, 0.75, 0.5])
    with error_of(broken):
        env.reset()
    with pytest.raises(ResetNeeded, match="No episode is running"):
        env.step(0)
    env.reset()
    assert rewards(env) == [0.0, 0.25, 0.0, 0.25, -0.25]


@bad
def test_raise_at_a_due_step_and_go_on(broken):
    """A user who catches the error would be paid a jump, or nothing any more."""
    env = breaking(broken, [0.25, None, 0.5, 0.75])
    env.reset()
    env.step(0)
    with error_of(broken):
        env.step(0)
    assert rewards(env) == [0.0, 0.25, 0.25]


@bad
def test_raise_at_the_last_step(broken):
    """The environment has ended: stepping it again is undefined, a reset is needed."""
    env = breaking(broken, [0.25, 0.5, 0.75, None, 0.125, 0.25, 0.5, 0.25])
    env.reset()
    play(env, 4)
    with error_of(broken):
        env.step(0)
    with pytest.raises(ResetNeeded, match="No episode is running"):
        env.step(0)
    env.reset()
    assert rewards(env) == [0.0, 0.125, 0.0, 0.25, -0.25]


def test_raise_counts_nothing():
    """An info that is always 0 would promise what nobody counts."""
    env = breaking("nan", [0.25, 0.5])
    _, info = env.reset()
    assert "robometer/errors" not in info


# Per step of the episode (reset, 1, ..., 5): what `hold` pays and the progress that is told.
NAN = math.nan
HOLDS = [
    ([None, 0.25, 0.5, 0.75], [0, 0, 0, 0.25, 0.25], [NAN, NAN, 0.25, 0.25, 0.5, 0.75]),
    ([0.25, None, 0.5, 0.75], [0, 0, 0, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25, 0.5, 0.75]),
    ([0.25, 0.5, 0.75, None], [0, 0.25, 0, 0.25, 0], [0.25, 0.25, 0.5, 0.5, 0.75, 0.75]),
    ([None, None, 0.5, 0.75], [0, 0, 0, 0, 0.25], [NAN, NAN, NAN, NAN, 0.5, 0.75]),
    ([None, None, None, None], [0, 0, 0, 0, 0], [NAN] * 6),
]
ASKED = [0, 2, 4, 5]


def unknown(answers: list[float | None]) -> list[bool]:
    """For steps 1 to 5: whether the model's part is not known.

    So it is where the model fails, and until two predictions have been made: there is no change
    without something to compare with.
    """
    failed = [step for step, a in zip(ASKED, answers, strict=True) if a is None]
    first = min((s for s, a in zip(ASKED, answers, strict=True) if a is not None), default=9)
    return [step in failed or step <= first for step in range(1, 6)]


@bad
@pytest.mark.parametrize(("answers", "paid", "progress"), HOLDS)
def test_hold_pays_nothing_and_keeps_the_last_progress(broken, answers, paid, progress, caplog):
    """A failure would be paid as lost progress, or stay silent."""
    env = breaking(broken, answers, on_error="hold")
    with caplog.at_level(logging.WARNING, "robometer_gym"):
        _, info = env.reset()
        told = play(env)
    assert [step[0] for step in told] == paid
    infos = [info, *(step[3] for step in told)]
    np.testing.assert_array_equal([i["robometer/progress"] for i in infos], progress)
    known = dict(zip(ASKED, answers, strict=True))
    assert [i["robometer/predicted"] for i in infos] == [
        known.get(step) is not None for step in range(6)
    ]
    errors = [sum(a is None for s, a in known.items() if s <= step) for step in range(6)]
    assert [i["robometer/errors"] for i in infos] == errors
    warned = [record for record in caplog.records if "on_error='hold'" in record.message]
    assert len(warned) == errors[-1]
    assert [step[1:3] for step in told] == [(False, False)] * 4 + [(True, False)]


@pytest.mark.parametrize(("answers", "paid", "progress"), HOLDS)
def test_env_pays_the_environments_reward_where_the_models_is_not_known(answers, paid, progress):
    """The user's own fallback would not be used."""
    env = breaking("exception", answers, on_error="env")
    _, info = env.reset()
    told = play(env)
    expected = [
        float(step) if missing else reward
        for step, missing, reward in zip(range(1, 6), unknown(answers), paid, strict=True)
    ]
    assert [step[0] for step in told] == expected
    np.testing.assert_array_equal(
        [i["robometer/progress"] for i in (info, *(step[3] for step in told))], progress
    )
    assert told[-1][3]["robometer/errors"] == answers.count(None)


@pytest.mark.parametrize("on_error", ["hold", "env"])
@pytest.mark.parametrize(("answers", "paid", "progress"), HOLDS)
def test_shape_always_pays_the_environments_reward_once(on_error, answers, paid, progress):
    """A failure of the model would cost the reward that the environment itself gives."""
    env = breaking("exception", answers, on_error=on_error, mode="shape")
    env.reset()
    assert rewards(env) == [k + p for k, p in zip(range(1, 6), paid, strict=True)]


@pytest.mark.parametrize("signal", ["delta", "potential", "progress"])
def test_hold_pays_nothing_at_a_failed_step_whatever_the_signal(signal):
    """A "hold" would pay a reward that no prediction stands behind."""
    env = breaking("exception", [0.25, None, 0.5, 0.75], on_error="hold", signal=signal)
    env.reset()
    assert rewards(env, 2)[-1] == 0.0


def test_errors_are_counted_over_all_episodes():
    """A model that fails now and then would look healthy in each episode."""
    env = breaking("nan", [None, 0.5, 0.5, 0.5, 0.25, None, None, 0.5], on_error="hold")
    env.reset()
    play(env)
    _, info = env.reset()
    assert info["robometer/errors"] == 1
    assert [step[3]["robometer/errors"] for step in play(env)] == [1, 2, 2, 3, 3]


def test_a_failed_prediction_does_not_vote():
    """A failure between two votes would count as a third, or wipe them out."""
    model = ScriptedRewardModel(
        progress=[0.5, 0.5, TimeoutError("no answer"), 0.5], success=[0.0, 0.9, 0.9, 0.9]
    )
    env = wrap(CountingEnv(lengths=[9]), model, predict_every=1, on_error="hold")
    env.reset()
    assert [step[1] for step in play(env)] == [False, False, True]


@given(
    every=st.integers(1, 4),
    length=st.integers(1, 20),
    data=st.data(),
)
def test_deltas_telescope_around_failures(every, length, data):
    """A failure would lose progress for good, or have it paid twice."""
    asked = 1 + sum(s % every == 0 or s == length for s in range(1, length + 1))
    answers = data.draw(st.lists(st.one_of(st.none(), exact), min_size=asked, max_size=asked))
    script = [TimeoutError() if a is None else a for a in answers]
    logging.disable()
    try:
        env = wrap(
            CountingEnv(lengths=[length]),
            ScriptedRewardModel(script),
            predict_every=every,
            on_error="hold",
        )
        env.reset()
        paid = rewards(env)
    finally:
        logging.disable(logging.NOTSET)
    known = [a for a in answers if a is not None] or [0.0]
    assert sum(paid) == known[-1] - known[0]


def test_a_model_that_cannot_be_loaded_is_an_error_whatever_on_error_says(monkeypatch):
    """A misspelt name would be "held": hours of training on rewards of 0."""

    def load(name):
        raise FileNotFoundError(f"{name} is not there")

    monkeypatch.setattr("robometer_gym.models.loading._load", load)
    for on_error in ("raise", "hold", "env"):
        env = wrap(CountingEnv(), "org/nmae", on_error=on_error)
        with pytest.raises(FileNotFoundError, match="org/nmae is not there"):
            env.reset()


# All rules at once, against formulas over the whole episode.


def expected_episode(
    settings: RewardSettings, length: int, truncated: bool, progress: Any, success: Any
) -> tuple[list[float], int, bool]:
    """What one episode of `CountingEnv` pays, how long it is, and whether it is a success.

    `progress` and `success` tell what the model would answer at each step 0, ..., length.
    """
    every, window = settings.predict_every, settings.success_window
    asked = [s for s in range(length + 1) if s % every == 0 or s == length]
    votes = [success[s] >= settings.success_threshold for s in asked]
    counts = [sum(votes[max(0, i + 1 - window) : i + 1]) for i in range(len(asked))]
    fired = [s for s, n in zip(asked, counts, strict=True) if s and n >= settings.success_votes]
    by_model = bool(fired) and settings.terminate_on_success
    ends_at = fired[0] if by_model else length
    terminated = by_model or not truncated
    latest = np.array([progress[max(a for a in asked if a <= s)] for s in range(ends_at + 1)])
    before, after = latest[:-1], latest[1:]
    if settings.signal == "delta":
        model_pays = after - before
    elif settings.signal == "progress":
        model_pays = after
    else:
        after = after.copy()
        after[-1] *= not terminated
        model_pays = settings.gamma * after - before
    paid = settings.scale * model_pays
    if settings.mode == "shape":
        paid = paid + np.arange(1, ends_at + 1)
    if fired:
        paid[fired[0] - 1] += settings.success_bonus
    return paid.tolist(), ends_at, bool(fired)


@given(
    settings=st.builds(
        RewardSettings,
        predict_every=st.integers(1, 5),
        mode=st.sampled_from(["replace", "shape"]),
        signal=st.sampled_from(["delta", "potential", "progress"]),
        gamma=st.sampled_from([0.0, 0.5, 1.0]),
        scale=st.sampled_from([1.0, 2.0, -0.5]),
        success_votes=st.integers(1, 2),
        success_window=st.integers(2, 3),
        success_bonus=st.sampled_from([0.0, 8.0]),
        terminate_on_success=st.booleans(),
    ),
    lengths=st.lists(st.integers(1, 14), min_size=1, max_size=3),
    truncated=st.booleans(),
    progress=st.lists(exact, min_size=15, max_size=15),
    success=st.lists(st.sampled_from([0.0, 0.5, 0.75, 1.0]), min_size=14, max_size=14),
)
def test_every_episode_pays_what_the_formulas_say(settings, lengths, truncated, progress, success):
    """Two settings that work alone would not work together."""
    success = [0.0, *success]
    model = ScriptedRewardModel(
        progress=lambda clip: progress[clip.steps[-1]],
        success=lambda clip: success[clip.steps[-1]],
    )
    ends: Literal["truncated", "terminated"] = "truncated" if truncated else "terminated"
    chosen = {name: getattr(settings, name) for name in settings.__dataclass_fields__}
    env = wrap(CountingEnv(lengths=lengths, ends=[ends]), model, **chosen)
    for length in lengths:
        env.reset()
        told = play(env)
        paid, ends_at, done = expected_episode(settings, length, truncated, progress, success)
        assert [step[0] for step in told] == paid
        assert len(told) == ends_at
        assert told[-1][3]["is_success"] is done


# When stepping is allowed.


def test_step_before_reset_is_refused():
    """There is no baseline: the first reward would be a gift or a crash."""
    env = wrap(CountingEnv(), ScriptedRewardModel())
    with pytest.raises(ResetNeeded, match=r"No episode is running: call reset\(\) first"):
        env.step(0)


@pytest.mark.parametrize("how", ["terminated", "truncated", "success", "closed"])
def test_step_after_the_end_is_refused(how):
    """After a model's success the environment itself would happily go on."""
    bare = CountingEnv(lengths=[4], ends=["truncated" if how == "truncated" else "terminated"])
    env = wrap(bare, ScriptedRewardModel(success=float(how == "success")), predict_every=2)
    env.reset()
    if how == "closed":
        env.close()
    else:
        play(env)
    steps = bare.steps
    with pytest.raises(ResetNeeded, match="An episode also ends when success is detected"):
        env.step(0)
    assert bare.steps == steps
    env.reset()
    env.step(0)


# Rule 6: seeds, specs, checks, copies.


def tabletop(model: Any = None, **settings: Any) -> Any:
    """The built-in environment, wrapped."""
    env = gym.make(TABLETOP, render_mode="rgb_array")
    return wrap(env, ScriptedRewardModel() if model is None else model, **settings)


def brightness(clip: Clip) -> float:
    """A model that depends on every pixel it is shown."""
    return float(np.mean([image.mean() for image in clip.images])) / 255


def test_seeds_and_random_state_of_the_environment_are_untouched():
    """Runs with and without the reward model could not be compared."""
    bare, env = gym.make(TABLETOP, render_mode="rgb_array"), tabletop()
    for seed in (3, None, 7):
        for e in (bare, env):
            e.action_space.seed(5)
        (there, _), (here, info) = bare.reset(seed=seed), env.reset(seed=seed)
        np.testing.assert_array_equal(here, there)
        for _ in range(30):
            there, reward, *_, its_info = bare.step(bare.action_space.sample())
            here, _, *_, info = env.step(env.action_space.sample())
            np.testing.assert_array_equal(here, there)
            assert info["env_reward"] == reward
            assert info["is_success"] == its_info["is_success"]
        assert (
            env.unwrapped.np_random.bit_generator.state
            == bare.unwrapped.np_random.bit_generator.state
        )


SETTINGS: dict[str, Any] = {
    "predict_every": 3,
    "max_frames": 4,
    "sampling": "tail",
    "mode": "shape",
    "signal": "potential",
    "gamma": 0.9,
    "scale": 2.0,
    "success_threshold": 0.5,
    "success_votes": 2,
    "success_window": 3,
    "success_bonus": 1.0,
    "terminate_on_success": False,
    "camera": {"above": "render"},
    "frame_size": 32,
    "on_error": "hold",
}


@pytest.fixture
def named_model(monkeypatch):
    """The reward model that every name stands for."""
    model = ScriptedRewardModel(progress=brightness)
    monkeypatch.setattr("robometer_gym.models.loading._load", lambda name: model)
    return model


@pytest.mark.parametrize("through_json", [False, True])
def test_the_spec_rebuilds_the_wrapped_environment(named_model, through_json):
    """A run could not be repeated from its stored spec, or with other settings unnoticed."""
    assert set(SETTINGS) == set(RewardSettings.__dataclass_fields__)
    env = tabletop("org/name", **SETTINGS)
    spec = EnvSpec.from_json(env.spec.to_json()) if through_json else env.spec
    again = gym.make(spec)
    assert str(again) == str(env)
    assert isinstance(again, RobometerRewardWrapper)
    assert again.spec is not None
    assert again.spec.additional_wrappers[-1].kwargs == {
        "task": TASK,
        "reward_model": "org/name",
        **SETTINGS,
    }
    runs = []
    for e in (env, again):
        named_model.clips.clear()
        e.reset(seed=3)
        e.action_space.seed(3)
        paid = rewards(e, 10)
        runs.append((paid, [(c.steps, c.task, c.frames.tolist()) for c in named_model.clips]))
    assert runs[0] == runs[1]
    assert len({*runs[0][0]}) > 1
    assert named_model.clips[-1].frames.shape == (4, 32, 32, 3)


def test_the_spec_of_a_path_goes_into_json(named_model):
    """A run on a checkpoint of one's own could not be stored."""
    env = tabletop(Path("runs") / "best")
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.spec is not None
    kwargs = again.spec.additional_wrappers[-1].kwargs
    assert kwargs == {"task": TASK, "reward_model": str(Path("runs") / "best")}


class Huge(ScriptedRewardModel):
    """A model that says when it is copied."""

    def __deepcopy__(self, memo):
        raise AssertionError("nine gigabytes were copied")


def test_a_live_model_is_shared_and_not_copied():
    """Asking an environment for its spec would copy a model of nine gigabytes."""
    model = Huge()
    env = tabletop(model)
    assert env.spec.additional_wrappers[-1].kwargs["reward_model"].load() is model
    again = gym.make(env.spec)
    again.reset(seed=0)
    assert len(model.clips) == 1


def test_a_live_model_is_not_copied_by_the_spec_of_an_outer_wrapper():
    """RecordEpisodeStatistics around the wrapper would double the memory, or lose the spec."""
    model = Huge()
    env = RecordEpisodeStatistics(tabletop(model))
    assert env.spec is not None
    kwargs = env.spec.additional_wrappers[-2].kwargs
    assert kwargs is not None
    assert kwargs["reward_model"].load() is model
    again = gym.make(env.spec)
    again.reset(seed=0)
    assert len(model.clips) == 1


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version:UserWarning")
@pytest.mark.parametrize("signal", ["delta", "progress"])
def test_gymnasium_finds_nothing_wrong(signal):
    """Other libraries rely on what this checks."""
    check_env(tabletop(ScriptedRewardModel(progress=brightness), signal=signal))


def test_stable_baselines3_finds_nothing_wrong():
    """SB3 would refuse the environment, or misread it."""
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    sb3.check_env(tabletop(ScriptedRewardModel(progress=brightness)), skip_render_check=False)


@pytest.mark.parametrize("make", [lambda m: wrap(CountingEnv(), m, predict_every=2), tabletop])
def test_a_pickled_environment_goes_on_in_mid_episode(make: Callable[[Any], Any]):
    """A run that is stored and resumed would lose an episode or be paid a jump."""
    env = make(ScriptedRewardModel(progress=[i / 32 for i in range(30)]))
    env.reset(seed=1)
    play(env, 3)
    twin = pickle.loads(pickle.dumps(env))
    action = env.action_space.sample()
    for _ in range(7):
        (here, *mine), (there, *its) = env.step(action), twin.step(action)
        np.testing.assert_array_equal(here, there)
        assert mine == its


def test_statistics_outside_count_what_is_paid_and_end_at_success():
    """Learning curves would show the environment's reward instead of the agent's."""
    model = ScriptedRewardModel(progress=[0.25, 0.5, 1.0], success=[0.0, 0.75, 0.75])
    env = RecordEpisodeStatistics(wrap(CountingEnv(), model, predict_every=3, success_bonus=4.0))
    env.reset()
    told = play(env)
    assert len(told) == 6
    episode = told[-1][3]["episode"]
    assert (episode["r"], episode["l"]) == (4.75, 6)


def test_a_time_limit_inside_is_a_truncation_that_is_judged():
    """The last frame before the time limit would not be scored."""
    model = ScriptedRewardModel(progress=[0.25, 0.75, 0.5, 1.0])
    env = wrap(TimeLimit(CountingEnv(), 3), model)
    for expected in (0.5, 0.5):
        env.reset()
        assert [step[:3] for step in play(env)] == [(0.0, False, False)] * 2 + [
            (expected, False, True)
        ]
    assert windows(model) == [[0], [0, 3]] * 2


def test_help_shows_the_settings():
    """Editors would show `**settings`."""
    assert "predict_every: int = 5" in str(inspect.signature(RobometerRewardWrapper)).replace(
        "'", ""
    )


# Rule 7: memory.


class Constant:
    """Answers the same and remembers nothing."""

    def predict(self, clips):
        half = [np.full(len(clip), 0.5, np.float32) for clip in clips]
        return [Prediction(values, values) for values in half]


def blocks() -> int:
    """How many objects are alive in this process; a frame is at least one."""
    gc.collect()
    return sys.getallocatedblocks()


@pytest.mark.parametrize("sampling", ["linspace", "tail", "anchored"])
def test_memory_does_not_grow_over_a_long_episode(sampling):
    """A robot that runs overnight would fill the machine with video."""
    env = wrap(CountingEnv(lengths=[10**9]), Constant(), predict_every=1, sampling=sampling)
    env.reset()
    for _ in range(1_000):
        env.step(0)
    early = blocks()
    for _ in range(19_000):
        env.step(0)
    assert blocks() < early + 1_000


def test_memory_does_not_grow_over_many_episodes():
    """Each episode would leave its frames behind."""
    env = wrap(CountingEnv(lengths=[3]), Constant(), predict_every=1)

    def episodes(number: int) -> int:
        for _ in range(number):
            env.reset()
            play(env)
        return blocks()

    early = episodes(50)
    assert episodes(1_000) < early + 500
