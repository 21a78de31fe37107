"""evaluate: which episodes count, with which truth, in every kind of environment."""

import math
from itertools import combinations
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from robometer_gym import RobometerRewardWrapper
from robometer_gym.envs import ENV_ID, TASKS, TabletopReachEnv
from robometer_gym.evaluation import evaluate, value_order
from robometer_gym.evaluation.report import trace_to_dict
from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from tests.evaluation.environments import (
    BY_HAND,
    DETECTED_AT,
    DONE_AT,
    KINDS,
    ONE_VOTE,
    TASK,
    DoneAt,
    detects,
    sb3,
    scalar,
)


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
