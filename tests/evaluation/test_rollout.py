"""evaluate: which episodes count, with which truth, in every kind of environment."""

import math
import subprocess
import sys
from itertools import combinations
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from robometer_gym import Prediction, RobometerRewardWrapper
from robometer_gym.envs import ENV_ID, TASKS, TabletopReachEnv
from robometer_gym.evaluation import evaluate, value_order
from robometer_gym.evaluation.report import trace_to_dict
from robometer_gym.testing import CountingEnv, ScriptedRewardModel

TASK = "push the block"

# Per episode: the step from which the environment reports success, and the step at which the model
# detects it (a prediction every 5 steps, one vote of one); episodes have 20 steps.
DONE_AT = (3, 7, None, 12, None, None, 20, None)
DETECTED_AT = (5, 15, 10, None, None, None, 20, 20)
# By hand: both in 0, 1 and 6, only detected in 2 and 7, only true in 3, neither in 4 and 5.
BY_HAND = {
    "episodes": 8,
    "truth_known": 8,
    "detected_success_rate": 5 / 8,
    "true_success_rate": 4 / 8,
    "precision": 3 / 5,
    "recall": 3 / 4,
    "f1": 2 * (3 / 5) * (3 / 4) / (3 / 5 + 3 / 4),
    "false_success_rate": 2 / 4,
    "delay_mean": (2 + 8 + 0) / 3,
    "delay_median": 2,
    "mean_steps": (5 + 15 + 10 + 20 + 20 + 20 + 20 + 20) / 8,
    # The environment's own reward at step k is k: 15, 120, 55 and five times 210.
    "mean_env_return": (15 + 120 + 55 + 5 * 210) / 8,
}
ONE_VOTE = {"success_votes": 1, "success_window": 1}


class DoneAt(CountingEnv):
    """Reports success from a given step of each episode on, and keeps its seeds."""

    def __init__(self, done_at=DONE_AT, **kwargs) -> None:
        super().__init__(**{"lengths": [20], **kwargs})
        self.done_at = done_at
        self.seeds: list[int | None] = []

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        return super().reset(seed=seed, options=options)

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        at = self._of_episode(self.done_at)
        info["is_success"] = at is not None and self.steps >= at
        return observation, reward, terminated, truncated, info


def detects(detected_at=DETECTED_AT) -> ScriptedRewardModel:
    """Return a model of progress step / 20, which detects success from a step on."""

    def success(clip):
        at = detected_at[clip.stream.episode % len(detected_at)]
        return 0.9 if at is not None and clip.steps[-1] >= at else 0.1

    return ScriptedRewardModel(progress=lambda clip: clip.steps[-1] / 20, success=success)


def scalar(env, model, **settings) -> RobometerRewardWrapper:
    return RobometerRewardWrapper(env, TASK, model, **settings)


def vector(make, model, n: int, mode: AutoresetMode, **settings):
    from robometer_gym import make_robometer_vec

    kwargs = {"autoreset_mode": mode}
    return make_robometer_vec(make, TASK, n, model, vector_kwargs=kwargs, **settings)


def sb3(make, model, n: int, **settings):
    from robometer_gym.sb3 import make_robometer_vec_env

    return make_robometer_vec_env(make, TASK, n, model, **settings)


KINDS = {
    "next step": lambda make, model, n, **s: vector(make, model, n, AutoresetMode.NEXT_STEP, **s),
    "same step": lambda make, model, n, **s: vector(make, model, n, AutoresetMode.SAME_STEP, **s),
    "disabled": lambda make, model, n, **s: vector(make, model, n, AutoresetMode.DISABLED, **s),
    "sb3": sb3,
}


def rows(report) -> list[dict[str, Any]]:
    """Return everything but the seed, which only a scalar environment has for each episode."""
    kept = [{k: v for k, v in trace_to_dict(e).items() if k != "seed"} for e in report.episodes]
    for row in kept:
        row["return"] = pytest.approx(row["return"], abs=1e-6)
    return kept


# --- metrics ---


def test_metrics_equal_those_computed_by_hand():
    """A user would trust a detector that is worse than its metrics."""
    report = evaluate(scalar(DoneAt(), detects(), **ONE_VOTE), "random", episodes=8)
    for name, value in BY_HAND.items():
        assert getattr(report.totals, name) == pytest.approx(value), name
    assert [e.detected_step for e in report.episodes] == list(DETECTED_AT)
    assert [e.true_success_step for e in report.episodes] == list(DONE_AT)
    assert [e.num_steps for e in report.episodes] == [5, 15, 10, 20, 20, 20, 20, 20]
    assert [e.episode_return for e in report.episodes] == pytest.approx(
        [0.25, 0.75, 0.5, 1, 1, 1, 1, 1]
    )
    assert [e.final_progress for e in report.episodes] == pytest.approx(
        [0.25, 0.75, 0.5, 1, 1, 1, 1, 1]
    )
    assert report.env_steps == 130


def test_metrics_of_an_expert_equal_those_of_a_plain_loop():
    """The report of a policy would differ from its actions in the environment."""
    seeds, at = (
        range(40, 46),
        45,
    )  # the model detects success from step 40 on: two votes, at 40 and 45
    # By hand, with nothing but the environment itself.
    bare = TabletopReachEnv(task=TASKS[1], terminate_on_success=False)
    true, returns = [], []
    for seed in seeds:
        bare.reset(seed=seed)
        steps = [bare.step(bare.expert_action()) for _ in range(at)]
        true.append(next((k for k, step in enumerate(steps, 1) if step[4]["is_success"]), None))
        returns.append(sum(step[1] for step in steps))
    early = [step for step in true if step is not None]
    assert 0 < len(early) < len(seeds), "All or none succeed: the metrics would mean little."
    ours = [0.45 * share for share in (1, 0.5, 0.25, 1, 0.5, 0.25)]
    pairs = list(combinations(range(len(seeds)), 2))
    tau = sum(np.sign(ours[a] - ours[b]) * np.sign(returns[a] - returns[b]) for a, b in pairs)

    def progress(clip):
        return clip.steps[-1] / 100 / 2 ** (clip.stream.episode % 3)

    model = ScriptedRewardModel(progress=progress, success=lambda clip: clip.steps[-1] >= 40)
    env = gym.make(ENV_ID, task=TASKS[1], render_mode="rgb_array", terminate_on_success=False)
    inner = env.unwrapped
    report = evaluate(
        RobometerRewardWrapper(env, TASKS[1], model),
        lambda _: inner.expert_action(),  # type: ignore[attr-defined]
        episodes=len(seeds),
        seed=40,
    )
    assert [e.seed for e in report.episodes] == list(seeds)
    assert [e.true_success_step for e in report.episodes] == true
    assert [e.env_return for e in report.episodes] == returns
    assert [e.episode_return for e in report.episodes] == pytest.approx(ours)
    totals = report.totals
    assert totals.true_success_rate == len(early) / len(seeds)
    assert totals.precision == len(early) / len(seeds)
    assert (totals.recall, totals.false_success_rate) == (1, 1)
    assert totals.delay_mean == pytest.approx(np.mean([at - step for step in early]))
    assert totals.delay_median == np.median([at - step for step in early])
    assert totals.return_order == pytest.approx(tau / len(pairs))
    assert (totals.value_order, totals.clock_order) == (1, 1)
    assert report.tasks == (TASKS[1],)
    assert report.env == ENV_ID


def test_value_order_ends_with_the_success():
    """An expert that rests after success would look as if the model had lost count."""
    env = scalar(
        DoneAt(done_at=(12,)),
        ScriptedRewardModel(
            progress=lambda clip: clip.steps[-1] / 20 if clip.steps[-1] < 13 else 0
        ),
        predict_every=1,
    )
    (episode,) = evaluate(env, "random", episodes=1).episodes
    assert value_order(episode) == 1
    failed = evaluate(scalar(DoneAt(done_at=(None,)), detects()), "random", episodes=1)
    assert math.isnan(failed.totals.value_order)


def test_a_detected_success_may_leave_the_episode_running():
    """A detection would be dated to the end of the episode, and look late."""
    env = scalar(DoneAt(), detects(), terminate_on_success=False, **ONE_VOTE)
    report = evaluate(env, "random", episodes=8)
    assert [e.num_steps for e in report.episodes] == [20] * 8
    assert [e.detected_step for e in report.episodes] == list(DETECTED_AT)
    assert report.totals.delay_mean == pytest.approx(BY_HAND["delay_mean"])


# --- the same in every kind of environment ---


@pytest.mark.parametrize("kind", KINDS)
def test_one_environment_gives_the_same_rows_in_every_kind(kind):
    """A reset would count as a step, a last info be lost, or a metric depend on the kind."""
    alone = evaluate(scalar(DoneAt(), detects(), **ONE_VOTE), "random", episodes=8)
    env = KINDS[kind](DoneAt, detects(), 1, **ONE_VOTE)
    report = evaluate(env, "random", episodes=8)
    assert rows(report) == rows(alone)
    assert report.env_steps == alone.env_steps
    assert [len(e.frames) for e in report.episodes] == [len(e.frames) for e in alone.episodes]
    for name, value in BY_HAND.items():
        assert getattr(report.totals, name) == pytest.approx(value), name
    env.close()


@pytest.mark.parametrize("kind", KINDS)
def test_several_environments_give_the_rows_of_each(kind):
    """Frames or successes of one environment would be attributed to another."""
    alone = evaluate(scalar(DoneAt(), detects(), **ONE_VOTE), "random", episodes=4)
    env = KINDS[kind](DoneAt, detects(), 2, **ONE_VOTE)
    report = evaluate(env, "random", episodes=8, seed=5)
    one, two = rows(report)[:4], rows(report)[4:]
    assert [row.pop("env") for row in one + two] == [0] * 4 + [1] * 4
    assert one == two
    assert one == [{k: v for k, v in row.items() if k != "env"} for row in rows(alone)]
    assert [e.seed for e in report.episodes] == [5, None, None, None, 6, None, None, None]
    assert report.num_envs == 2
    env.close()


def in_processes(kind: str, n: int, **settings: Any) -> Any:
    """A few DoneAt, each in a process of its own."""
    if kind == "async":
        from robometer_gym import make_robometer_vec

        more: Any = {"vectorization_mode": "async", "vector_kwargs": {"context": "forkserver"}}
        return make_robometer_vec(DoneAt, TASK, n, detects(), **more, **settings)
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    return sb3(DoneAt, detects(), n, vec_env_cls=vec_env.SubprocVecEnv, **settings)


@pytest.mark.usefixtures("no_hanging")
@pytest.mark.parametrize("kind", ["async", "subproc"])
def test_environments_in_processes_give_the_rows_of_each(kind):
    """As above, where frames and infos come from other processes."""
    alone = evaluate(scalar(DoneAt(), detects(), **ONE_VOTE), "random", episodes=4)
    env = in_processes(kind, 2, **ONE_VOTE)
    report = evaluate(env, "random", episodes=8, seed=5)
    env.close()
    several, one = rows(report), rows(alone)
    assert [row.pop("env") for row in several] == [0] * 4 + [1] * 4
    for row in several + one:
        row["predictions"].pop("fps")  # SubprocVecEnv does not report the fps of its environments
        row["predictions"].pop("seconds")  # which need it
    assert several == [{k: v for k, v in row.items() if k != "env"} for row in one * 2]
    assert [e.seed for e in report.episodes] == [5, None, None, None, 6, None, None, None]
    for found, expected in zip(report.episodes, [*alone.episodes] * 2, strict=True):
        assert len(found.frames) == len(expected.frames)
        assert CountingEnv.read(found.frames[-1]) == CountingEnv.read(expected.frames[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_short_episodes_are_not_overrepresented(kind):
    """Of a slow and a fast environment only the fast one's episodes would be counted."""
    lengths = iter([[2], [10]])
    env = KINDS[kind](lambda: CountingEnv(lengths=next(lengths)), detects(), 2)
    report = evaluate(env, "random", episodes=5)
    assert [(e.env, e.num_steps) for e in report.episodes] == [(0, 2)] * 2 + [(1, 10)] * 3
    env.close()


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_episodes_than_environments(kind):
    """The evaluation would never end, or count more episodes than requested."""
    env = KINDS[kind](lambda: CountingEnv(lengths=[3]), detects(), 3)
    assert len(evaluate(env, "random", episodes=2).episodes) == 2
    env.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_acts_on_a_batch(kind):
    """A batch of observations would be taken for one, or each environment get the same action."""
    actions = []

    class Acts(CountingEnv):
        def step(self, action):
            actions.append(int(action))
            return super().step(action)

    env = KINDS[kind](lambda: Acts(lengths=[3], ends=["truncated"]), detects(), 2)
    shapes = set()

    def policy(observation):
        shapes.add(observation.shape)
        return np.array([0, 1])

    report = evaluate(env, policy, episodes=2)
    assert shapes == {(2, 1)}
    assert actions[:6] == [0, 1] * 3
    assert [e.num_steps for e in report.episodes] == [3, 3]
    env.close()


def test_sb3_and_its_own_evaluation_agree():
    """A user would see another return here than in SB3's logs."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.evaluation import evaluate_policy

    from robometer_gym.sb3 import make_robometer_vec_env

    # The reward depends on the frames: how light their middle is.
    model = ScriptedRewardModel(progress=lambda clip: clip.images[-1][32].mean() / 255)
    env = make_robometer_vec_env(ENV_ID, TASKS[0], 2, model, env_kwargs={"task": TASKS[0]})
    agent = PPO("MlpPolicy", env, n_steps=8, batch_size=8, seed=0, device="cpu")
    env.seed(7)
    by_sb3: Any = evaluate_policy(agent, env, 4, return_episode_rewards=True)
    returns, lengths = by_sb3
    report = evaluate(env, agent, episodes=4, seed=7)
    assert sorted(e.episode_return for e in report.episodes) == pytest.approx(
        sorted(returns), abs=1e-5
    )
    assert sorted(e.num_steps for e in report.episodes) == sorted(lengths)
    assert len({round(e.episode_return, 6) for e in report.episodes}) > 1
    assert (report.policy, report.env) == ("PPO", ENV_ID)
    assert "stable_baselines3" in report.versions
    env.close()


def test_sb3_agents_act_in_a_scalar_environment():
    """A saved agent could be evaluated only within a VecEnv."""
    from stable_baselines3 import A2C

    env = scalar(gym.make(ENV_ID, render_mode="rgb_array", max_episode_steps=7), detects())
    report = evaluate(env, A2C("MlpPolicy", env, device="cpu"), episodes=2)
    assert [e.num_steps for e in report.episodes] == [7, 7]


# --- truth ---


def test_an_environment_that_reports_nothing_has_no_truth():
    """The detector would be compared with itself, and be perfect."""
    report = evaluate(
        scalar(CountingEnv(lengths=[20]), detects(), **ONE_VOTE), "random", episodes=8
    )
    assert [e.truth_known for e in report.episodes] == [False] * 8
    assert report.totals.detected_success_rate == 5 / 8
    for name in ("true_success_rate", "precision", "recall", "f1", "false_success_rate"):
        assert math.isnan(getattr(report.totals, name)), name
    assert report.totals.value_order == 1, "A detected success counts where no truth is known."


class ReportsLate(CountingEnv):
    """Reports success only with the last step of its own."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if terminated:
            info["success"] = np.float32(self.episode % 2)
        return observation, reward, terminated, truncated, info


@pytest.mark.parametrize("kind", ["scalar", *KINDS])
def test_truth_that_comes_late_is_known_where_it_came(kind):
    """An episode that the model ended would count as a success, or a true end as unknown."""
    make = {"scalar": lambda make, model, n, **s: scalar(make(), model, **s), **KINDS}[kind]
    model = detects([5, None, None, 10])
    env = make(lambda: ReportsLate(lengths=[20]), model, 1, **ONE_VOTE)
    report = evaluate(env, "random", episodes=4)
    assert [e.truth_known for e in report.episodes] == [False, True, True, False]
    assert [e.true_success_step for e in report.episodes] == [None, 20, None, None]
    env.close()


@pytest.mark.parametrize("kind", KINDS)
def test_truth_of_one_environment_is_not_that_of_another(kind):
    """The end of one episode would be the truth of another, which has reported nothing yet."""
    lengths = iter([[3], [20]])
    env = KINDS[kind](lambda: ReportsLate(lengths=next(lengths)), detects([5]), 2, **ONE_VOTE)
    ends_itself, is_ended = evaluate(env, "random", episodes=2).episodes
    assert (ends_itself.num_steps, ends_itself.truth_known) == (3, True)
    assert (is_ended.num_steps, is_ended.truth_known) == (5, False)
    env.close()


# --- frames ---


def test_nothing_is_rendered_for_the_evaluation():
    """Frames would be rendered twice, which is the slowest part of many simulators."""
    bare = CountingEnv(lengths=[12])
    model = detects([None])
    report = evaluate(scalar(bare, model), "random", episodes=2)
    assert bare.renders == len(model.clips) == 8
    for episode in report.episodes:
        assert episode.prediction_steps.tolist() == [0, 5, 10, 12]
        assert [CountingEnv.read(f)["step"] for f in episode.frames] == [0, 5, 10, 12]
        assert episode.frame_steps == (0, 5, 10, 12)
        assert episode.progress == pytest.approx([0, 0.25, 0.5, 0.6])
        assert episode.fps == 10
    shown = [CountingEnv.read(e.frames[0])["episode"] for e in report.episodes]
    assert shown == [0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_of_their_episode(kind):
    """The plot of a failure would show the next episode's start."""
    env = KINDS[kind](lambda: CountingEnv(lengths=[12, 3]), detects([None]), 2)
    for episode, (number, steps) in zip(
        evaluate(env, "random", episodes=4).episodes,
        [(0, [0, 5, 10, 12]), (1, [0, 3])] * 2,
        strict=True,
    ):
        read = [CountingEnv.read(frame) for frame in episode.frames]
        assert [(r["episode"], r["step"]) for r in read] == [(number, step) for step in steps]
    env.close()


def test_of_several_cameras_the_first_is_shown_and_the_mean_counts():
    """A plot would show a frame of one camera with the predictions of another."""
    camera = {"wrist": "wrist", "scene": "scene"}
    env = scalar(
        CountingEnv(lengths=[5], cameras=["scene", "wrist"]),
        ScriptedRewardModel(progress=lambda clip: 0.25 + 0.5 * (clip.stream.camera == "scene")),
        camera=camera,
    )
    (episode,) = evaluate(env, "random", episodes=1).episodes
    assert [CountingEnv.read(frame)["camera"] for frame in episode.frames] == [2, 2]
    assert episode.progress.tolist() == [0.5, 0.5]
    assert episode.final_progress == 0.5


# --- seeds ---


def test_each_episode_has_a_seed_of_its_own():
    """Episode 3 of a report could not be repeated."""
    bare = DoneAt()
    report = evaluate(scalar(bare, detects()), "random", episodes=3, seed=11)
    assert bare.seeds == [11, 12, 13] == [e.seed for e in report.episodes]


def test_random_is_the_same_every_time_and_leaves_the_environment_alone():
    """Two evaluations could not be compared, or the first would change the second."""
    actions: list[list[int]] = []

    class Acts(CountingEnv):
        def reset(self, **kwargs):
            actions.append([])
            return super().reset(**kwargs)

        def step(self, action):
            actions[-1].append(int(action))
            return super().step(action)

    env = scalar(Acts(lengths=[30]), ScriptedRewardModel())
    env.action_space.seed(3)
    before = str(env.action_space.np_random.bit_generator.state)
    for seed in (0, 0, 1):
        evaluate(env, "random", episodes=1, seed=seed)
    assert actions[0] == actions[1] != actions[2]
    assert str(env.action_space.np_random.bit_generator.state) == before


# --- errors ---


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
