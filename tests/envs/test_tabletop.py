import importlib
import pickle
import re
import warnings
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

import robometer_gym.envs
from robometer_gym.envs import COLORS, ENV_ID, TASK, TASKS, TabletopReachEnv
from robometer_gym.reward_model import Frame

RED, GREEN, BLUE = TASKS
LIMIT = 100
Floats = NDArray[np.floating[Any]]


def picture(env: TabletopReachEnv) -> Frame:
    """What `env` shows now."""
    frame = env.render()
    assert frame is not None
    return frame


def centre(mask: NDArray[np.bool_]) -> Floats:
    """Where on the table the marked pixels (64, 64) have their centre: (2,)."""
    rows, columns = np.nonzero(mask)
    return (np.array([columns.mean(), rows.mean()]) + 0.5 - 32) / 24


def coloured(frame: Frame, colour: str) -> NDArray[np.bool_]:
    """Which pixels (64, 64) are of a block's colour."""
    channel = COLORS.index(colour)
    rest = np.delete(frame.astype(int), channel, axis=2).max(axis=2)
    return np.asarray(frame[..., channel] - rest > 50)


def position(obs: Floats, colour: str) -> Floats:
    """Where a block is, (2,), out of an observation."""
    index = 2 + 2 * COLORS.index(colour)
    return obs[index : index + 2]


def expert_episode(
    env: TabletopReachEnv, noise: float = 0.0, **reset: Any
) -> tuple[Floats, list[dict[str, Any]], bool]:
    """Play one episode with the expert; its observations, infos and whether it succeeded."""
    obs, info = env.reset(**reset)
    seen, infos, terminated = [obs], [info], False
    while not terminated and len(seen) <= LIMIT:
        obs, reward, terminated, _, info = env.step(env.expert_action(noise))
        assert reward == float(terminated)
        seen.append(obs)
        infos.append(info)
    return np.array(seen), infos, terminated


def go_to(env: TabletopReachEnv, goal: Floats) -> list[dict[str, Any]]:
    """Move at full speed until the gripper is at `goal`; the infos of the way."""
    obs, *_ = env.step(np.zeros(2))
    infos = []
    while (distance := np.linalg.norm(goal - obs[:2])) > 0.02:
        obs, _, _, _, info = env.step((goal - obs[:2]) / distance)
        infos.append(info)
    return infos


class TestTask:
    def test_sentences(self) -> None:
        """The trained demo checkpoint would be asked about sentences it has never seen."""
        assert TASK.format("red") == RED == "move the gripper to the red block"
        assert tuple(map(TASK.format, COLORS)) == TASKS

    def test_task_as_argument(self) -> None:
        """An env made for one task would play another."""
        for task in TASKS:
            env = TabletopReachEnv(task=task)
            assert [env.reset(seed=seed)[1]["task"] for seed in range(5)] == [task] * 5

    def test_reset_option_holds_for_one_episode(self) -> None:
        """A task given for one episode would leak into the next, or not be taken at all."""
        env = TabletopReachEnv(task=RED)
        asked = [{"task": BLUE}, None, {}, {"other": 1}, {"task": GREEN, "other": 1}]
        played = [env.reset(seed=0, options=options)[1]["task"] for options in asked]
        assert played == [BLUE, RED, RED, RED, GREEN]

    @pytest.mark.parametrize("options", [None, {"task": None}])
    def test_none_draws_every_task_from_the_seed(self, options: dict[str, Any] | None) -> None:
        """Training on all tasks would miss some, or not repeat under the same seed."""
        env = TabletopReachEnv(task=RED if options else None)
        first, again = (
            [env.reset(seed=seed, options=options)[1]["task"] for seed in range(60)]
            for _ in range(2)
        )
        assert first == again
        assert all(10 <= first.count(task) <= 30 for task in TASKS)

    def test_the_named_block_is_the_one_that_counts(self) -> None:
        """The env would report success for a task other than the one in info."""
        env = TabletopReachEnv()
        for seed in range(12):
            seen, infos, success = expert_episode(env, seed=seed)
            colour = next(name for name in COLORS if TASK.format(name) == infos[0]["task"])
            assert success
            assert np.linalg.norm(seen[-1][:2] - position(seen[-1], colour)) <= 0.1

    @pytest.mark.parametrize("layout", ["fixed", "random"])
    def test_observation_and_picture_hide_the_task(self, layout: str) -> None:
        """A policy or reward model could read the target from the state and ignore the task."""
        shown = []
        for task in (*TASKS, None):
            env = TabletopReachEnv(task, layout, render_mode="rgb_array")
            obs = [env.reset(seed=3)[0]]
            frames = [picture(env)]
            obs.append(env.step([0.5, -1.0])[0])
            frames.append(picture(env))
            obs.append(env.reset()[0])  # the next episode's table does not depend on it either
            frames.append(picture(env))
            shown.append((obs, frames))
        for other in shown[1:]:
            np.testing.assert_array_equal(shown[0][0], other[0])
            np.testing.assert_array_equal(shown[0][1], other[1])


class TestSeeds:
    @pytest.mark.parametrize("layout", ["fixed", "random"])
    def test_same_seed_same_episode(self, layout: str) -> None:
        """An experiment could not be repeated."""

        def play(seed: int) -> list[Any]:
            env = TabletopReachEnv(layout=layout, render_mode="rgb_array")
            obs, info = env.reset(seed=seed)
            told = [obs.tobytes(), info["task"]]
            actions = np.random.default_rng(0).uniform(-1, 1, (20, 2))
            for action in actions:
                obs, *rest = env.step(action)
                told += [obs.tobytes(), str(rest), picture(env).tobytes()]
            told.append(env.reset()[0].tobytes())
            return told

        assert play(7) == play(7)
        assert play(7)[0] != play(8)[0]

    def test_episodes_differ_without_a_seed(self) -> None:
        """Every episode after the first would be the same table."""
        env = TabletopReachEnv()
        starts = np.array([env.reset(seed=0 if n == 0 else None)[0] for n in range(20)])
        assert (starts.std(axis=0) > 0.01).all()

    def test_numpy_global_state_is_untouched(self) -> None:
        """The env would disturb, or be disturbed by, the randomness of the training code."""
        np.random.seed(0)
        expert_episode(TabletopReachEnv(layout="random"), noise=0.2, seed=0)
        drawn = np.random.random()
        np.random.seed(0)
        assert np.random.random() == drawn

    @pytest.mark.parametrize("noise", [0.0, 0.5])
    def test_expert_does_not_disturb_the_env(self, noise: float) -> None:
        """Asking the expert for advice would change the episodes that follow."""
        asked, alone = TabletopReachEnv(layout="random"), TabletopReachEnv(layout="random")
        for seed in (4, None, None):
            first, second = asked.reset(seed=seed), alone.reset(seed=seed)
            np.testing.assert_array_equal(first[0], second[0])
            assert first[1] == second[1]
            for _ in range(3):
                asked.expert_action(noise)
        assert asked.np_random.random() == alone.np_random.random()


class TestLayout:
    def test_fixed_blocks_stay_near_their_places(self) -> None:
        """The easy variant would not be easy: a policy could not learn the places by heart."""
        env = TabletopReachEnv()
        blocks = np.array([env.reset(seed=seed)[0][2:] for seed in range(100)])
        assert (np.ptp(blocks, axis=0) <= 0.16 + 1e-6).all()
        assert (np.ptp(blocks, axis=0) >= 0.1).all()

    def test_random_blocks_go_everywhere(self) -> None:
        """The hard variant would only seem to be one."""
        env = TabletopReachEnv(layout="random")
        blocks = np.array([env.reset(seed=seed)[0][2:] for seed in range(100)])
        assert (blocks.min(axis=0) < -0.6).all()
        assert (blocks.max(axis=0) > 0.6).all()

    @pytest.mark.parametrize(("layout", "gap"), [("fixed", 0.44), ("random", 0.55)])
    def test_nothing_overlaps_at_the_start(self, layout: str, gap: float) -> None:
        """A block would hide another, or an episode begin with its task half done."""
        env = TabletopReachEnv(layout=layout)
        for seed in range(100):
            obs, _ = env.reset(seed=seed)
            things = obs.reshape(4, 2)
            gaps = np.abs(things[:, None] - things[None]).max(axis=-1) + 9 * np.eye(4)
            assert gaps.min() >= gap
            assert np.abs(things[0]).max() <= 0.25


class TestSuccess:
    @pytest.mark.parametrize("layout", ["fixed", "random"])
    def test_expert_always_succeeds_in_about_forty_steps(self, layout: str) -> None:
        """The demo's training videos would contain failures labelled as successes."""
        env = TabletopReachEnv(layout=layout)
        lengths = []
        for seed in range(50):
            for task in TASKS:
                seen, infos, success = expert_episode(env, seed=seed, options={"task": task})
                assert success
                assert [info["is_success"] for info in infos[1:-1]] == [False] * (len(infos) - 2)
                assert infos[-1]["is_success"] is True
                lengths.append(len(seen) - 1)
        assert 36 <= np.mean(lengths) <= 44
        assert max(lengths) < 80

    def test_random_policy_rarely_succeeds(self) -> None:
        """Learning curves would show success where nothing was learnt."""
        successes = 0
        for seed in range(60):
            env = TabletopReachEnv(layout="random" if seed % 2 else "fixed")
            env.reset(seed=seed)
            env.action_space.seed(seed)
            successes += any(env.step(env.action_space.sample())[2] for _ in range(LIMIT))
        assert successes <= 3

    def test_passing_over_the_block_does_not_count(self) -> None:
        """An agent would be paid for rushing across the block."""
        env = TabletopReachEnv(task=RED)
        obs, _ = env.reset(seed=0)
        infos = go_to(env, position(obs, "red"))
        infos += [env.step([1.0, 0.0])[-1] for _ in range(20)]
        assert not any(info["is_success"] for info in infos)

    def test_coming_to_rest_on_the_block_counts_once_slow(self) -> None:
        """The agent would have to be slower, or nearer, than the documentation says."""
        env = TabletopReachEnv(task=RED)
        obs, _ = env.reset(seed=0)
        go_to(env, position(obs, "red"))
        saved = pickle.dumps(env)
        for speed, success in ((0.0, True), (0.24, True), (0.26, False), (1.0, False)):
            *_, terminated, truncated, info = pickle.loads(saved).step([0.0, speed])
            assert (terminated, truncated, info) == (success, False, {"is_success": success})

    @pytest.mark.parametrize(("away", "success"), [(0.0, True), (0.07, True), (0.13, False)])
    def test_resting_must_be_on_the_block(self, away: float, success: bool) -> None:
        """Stopping beside the block would count, or stopping on it would not."""
        env = TabletopReachEnv(task=BLUE)
        obs, _ = env.reset(seed=1)
        go_to(env, position(obs, "blue") - [0.0, away])
        assert env.step(np.zeros(2))[2] is success

    def test_wrong_block_does_not_count(self) -> None:
        """The task sentence would be of no importance."""
        env = TabletopReachEnv(task=RED)
        for colour in ("green", "blue"):
            obs, _ = env.reset(seed=0)
            go_to(env, position(obs, colour))
            for _ in range(5):
                _, reward, terminated, _, info = env.step(np.zeros(2))
                assert (reward, terminated, info["is_success"]) == (0.0, False, False)

    def test_full_speed_and_the_edge_of_the_table(self) -> None:
        """Actions would move the gripper otherwise than documented, or off the table."""
        env = TabletopReachEnv()
        start, _ = env.reset(seed=0)
        moved = env.step([1.0, -1.0])[0] - start
        assert moved[0] == pytest.approx(-moved[1], rel=1e-4)
        np.testing.assert_array_equal(moved[2:], 0.0)
        for _ in range(10):
            obs, *_ = env.step([5.0, -0.5])  # no faster than full speed
        np.testing.assert_allclose(obs[:2] - start[:2], moved[0] * np.array([11, -6]), rtol=1e-3)
        for _ in range(90):
            obs, *_ = env.step([1.0, 0.0])
        assert obs[0] == 1.0


class TestExpert:
    def test_noise(self) -> None:
        """Noisy demonstrations would be all alike, not repeatable, or outside the action space."""
        env = TabletopReachEnv(layout="random")

        def actions(seed: int, noise: float) -> Floats:
            env.reset(seed=seed)
            return np.array([env.expert_action(noise) for _ in range(400)])

        calm, noisy = actions(20, 0.0), actions(20, 0.1)
        assert (calm == calm[0]).all()
        assert np.abs(calm[0]).max() < 0.8  # so that hardly anything is clipped
        np.testing.assert_allclose((noisy - calm).std(axis=0), 0.1, rtol=0.2)
        np.testing.assert_array_equal(noisy, actions(20, 0.1))
        assert not np.allclose(noisy - calm, actions(39, 0.1) - actions(39, 0.0), atol=1e-3)
        wild = actions(20, 5.0)
        assert wild.dtype == np.float32
        assert np.abs(wild).max() == 1.0

    def test_noisy_expert_wanders_but_mostly_succeeds(self) -> None:
        """Imperfect demonstrations, which the reward model learns from, could not be collected."""
        env = TabletopReachEnv()
        episodes = [expert_episode(env, noise=0.5, seed=seed) for seed in range(30)]
        assert np.mean([success for *_, success in episodes]) > 0.8
        assert np.mean([len(seen) - 1 for seen, *_ in episodes]) > 42

    def test_slows_down(self) -> None:
        """The last frames of a demonstration would not show the gripper coming to rest."""
        seen, *_ = expert_episode(TabletopReachEnv(), seed=0)
        speed = np.linalg.norm(np.diff(seen[:, :2], axis=0), axis=1)
        assert speed[:10] == pytest.approx(speed[0], rel=1e-3)
        assert (np.diff(speed[-6:]) < 0).all()
        assert speed[-1] < 0.25 * speed[0]


class TestRender:
    def test_frame(self) -> None:
        """Recorders and reward models would refuse the frames."""
        env = TabletopReachEnv(render_mode="rgb_array")
        env.reset(seed=0)
        frame = picture(env)
        assert frame.shape == (64, 64, 3)
        assert frame.dtype == np.uint8
        assert frame.mean() > 100

    def test_frame_is_the_callers_own(self) -> None:
        """Writing on a frame, or the next step, would change frames already kept."""
        env = TabletopReachEnv(render_mode="rgb_array")
        env.reset(seed=0)
        first = picture(env)
        kept = first.copy()
        first[:] = 0
        np.testing.assert_array_equal(picture(env), kept)
        second = picture(env)
        env.step([1.0, 1.0])
        picture(env)
        np.testing.assert_array_equal(second, kept)

    def test_every_full_step_changes_the_picture(self) -> None:
        """The reward model could not see slow progress."""
        env = TabletopReachEnv(render_mode="rgb_array")
        env.reset(seed=0)
        frames = [picture(env)]
        for _ in range(10):
            env.step([0.7, 0.7])
            frames.append(picture(env))
        for before, after in pairwise(frames):
            assert not np.array_equal(before, after)

    def test_new_episode_new_picture(self) -> None:
        """The blocks of the last episode would stay in the picture."""
        env = TabletopReachEnv(layout="random", render_mode="rgb_array")
        pictures = []
        for seed in (0, 1):
            env.reset(seed=seed)
            pictures.append(picture(env))
        fresh = TabletopReachEnv(layout="random", render_mode="rgb_array")
        fresh.reset(seed=1)
        assert not np.array_equal(pictures[0], pictures[1])
        np.testing.assert_array_equal(pictures[1], picture(fresh))

    @pytest.mark.parametrize("seed", range(5))
    def test_pixels_tell_where_everything_is(self, seed: int) -> None:
        """The pictures would not hold what the reward model has to learn from them."""
        env = TabletopReachEnv(layout="random", render_mode="rgb_array")
        obs, _ = env.reset(seed=seed)
        frame = picture(env)
        for colour in COLORS:
            found = centre(coloured(frame, colour))
            np.testing.assert_allclose(found, position(obs, colour), atol=0.03)
        np.testing.assert_allclose(centre(frame.min(axis=2) > 200), obs[:2], atol=0.03)

    @pytest.mark.parametrize("colour", COLORS)
    def test_block_shows_under_the_gripper(self, colour: str) -> None:
        """At success, the reward model could not see which block was reached."""
        env = TabletopReachEnv(TASK.format(colour), render_mode="rgb_array")
        expert_episode(env, seed=0)
        frame = picture(env)
        assert coloured(frame, colour).sum() > 40
        assert (frame.min(axis=2) > 180).sum() > 15

    def test_whole_gripper_is_shown_in_every_corner(self) -> None:
        """Drawing would fail at the edge of the table, or the gripper leave the picture."""
        env = TabletopReachEnv(render_mode="rgb_array")
        for corner in ([1, 1], [1, -1], [-1, 1], [-1, -1]):
            env.reset(seed=0)
            for _ in range(LIMIT):
                obs, *_ = env.step(np.array(corner, np.float32))
            assert obs[:2].tolist() == corner
            assert (picture(env).min(axis=2) > 180).sum() > 15

    def test_no_render_mode(self) -> None:
        """Training without pictures would be stopped or flooded with warnings."""
        env = TabletopReachEnv()
        env.reset(seed=0)
        assert env.render() is None


class TestErrors:
    def test_unknown_task(self) -> None:
        """A misspelt task would train the wrong thing in silence."""
        message = "task must be one of " + ", ".join(map(repr, TASKS)) + ".*; got 'reach red'"
        with pytest.raises(ValueError, match=message):
            TabletopReachEnv(task="reach red")
        env = TabletopReachEnv(task=RED)
        before, _ = env.reset(seed=0)
        with pytest.raises(ValueError, match=message):
            env.reset(seed=1, options={"task": "reach red"})
        np.testing.assert_array_equal(env.step(np.zeros(2))[0], before)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"layout": "grid"}, "layout must be 'fixed' or 'random', got 'grid'."),
            ({"render_mode": "human"}, "render_mode must be 'rgb_array' or None, got 'human'."),
        ],
    )
    def test_wrong_arguments(self, arguments: Any, message: str) -> None:
        """A typo would fall back to a default that nobody asked for."""
        with pytest.raises(ValueError, match=re.escape(message)):
            TabletopReachEnv(**arguments)

    @pytest.mark.parametrize(
        ("action", "message"),
        [
            (np.zeros(3), r"action must be \(2,\).* got shape \(3,\)"),
            (np.zeros((1, 2)), r"action must be \(2,\).* got shape \(1, 2\)"),
            (0.5, r"action must be \(2,\).* got shape \(\)"),
            ([0.0, np.nan], r"action must be finite, got \[0.0, nan\]. Has the policy diverged"),
            ([np.inf, 0.0], r"action must be finite, got \[inf, 0.0\]"),
        ],
    )
    def test_wrong_actions(self, action: Any, message: str) -> None:
        """A diverged policy would fill the replay buffer with NaN."""
        env = TabletopReachEnv()
        obs, _ = env.reset(seed=0)
        with pytest.raises(ValueError, match=message):
            env.step(action)
        np.testing.assert_array_equal(env.step(np.zeros(2))[0], obs)

    @pytest.mark.parametrize(
        ("method", "arguments"), [("step", [np.zeros(2)]), ("render", []), ("expert_action", [])]
    )
    def test_before_reset(self, method: str, arguments: Any) -> None:
        """The user would see an AttributeError on None."""
        env = TabletopReachEnv(render_mode="rgb_array")
        with pytest.raises(ResetNeeded, match=rf"Call reset\(\) before {method}\(\)"):
            getattr(env, method)(*arguments)

    @pytest.mark.parametrize("noise", [-0.1, np.nan, np.inf])
    def test_noise_must_be_a_standard_deviation(self, noise: float) -> None:
        """Demonstrations would be NaN."""
        env = TabletopReachEnv()
        env.reset(seed=0)
        with pytest.raises(ValueError, match=f"must be finite and >= 0, got {noise}"):
            env.expert_action(noise)

    def test_noise_must_be_a_number(self) -> None:
        """The user would see numpy's error instead of ours."""
        env = TabletopReachEnv()
        env.reset(seed=0)
        with pytest.raises(TypeError, match="noise must be a number >= 0, got 'much'"):
            env.expert_action("much")  # type: ignore[arg-type]


class TestGymnasium:
    @pytest.mark.parametrize("layout", ["fixed", "random"])
    @pytest.mark.parametrize("render_mode", ["rgb_array", None])
    def test_gymnasium_check_env(self, layout: str, render_mode: str | None) -> None:
        """Gymnasium's tools would not work with the env."""
        env = gym.make(ENV_ID, layout=layout, render_mode=render_mode)
        check_env(env.unwrapped)

    def test_sb3_check_env(self) -> None:
        """Stable-Baselines3 would not train on the env."""
        checker = pytest.importorskip("stable_baselines3.common.env_checker")
        checker.check_env(TabletopReachEnv(render_mode="rgb_array"), warn=True)
        checker.check_env(gym.make(ENV_ID), warn=True)

    def test_truncated_after_a_hundred_steps(self) -> None:
        """An agent that stands still would never see a new episode."""
        env = gym.make(ENV_ID)
        env.reset(seed=0)
        ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(LIMIT)]
        assert ends == [(False, False)] * (LIMIT - 1) + [(False, True)]

    def test_spec_rebuilds_the_env(self) -> None:
        """A saved experiment could not make its environment again."""
        made = gym.make(ENV_ID, task=BLUE, layout="random", render_mode="rgb_array")
        made.reset(seed=5)
        assert made.spec is not None
        for spec in (made.spec, EnvSpec.from_json(made.spec.to_json())):
            again = gym.make(spec)
            _, info = again.reset(seed=5)
            assert info["task"] == BLUE
            np.testing.assert_array_equal(np.asarray(again.render()), np.asarray(made.render()))

    def test_importing_twice_does_not_warn(self) -> None:
        """Reloading in a notebook would warn of an overridden environment."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            importlib.reload(robometer_gym.envs)
        assert gym.spec(ENV_ID).max_episode_steps == LIMIT

    def test_pickling_in_the_middle_of_an_episode(self) -> None:
        """Subprocess workers and checkpoints could not hold the env."""
        env = TabletopReachEnv(layout="random", render_mode="rgb_array")
        env.reset(seed=0)
        env.step([1.0, 0.0])
        copy = pickle.loads(pickle.dumps(env))
        for one in (env, copy):
            one.step([0.0, 1.0])
        np.testing.assert_array_equal(picture(env), picture(copy))
        np.testing.assert_array_equal(env.expert_action(0.3), copy.expert_action(0.3))
        np.testing.assert_array_equal(env.reset()[0], copy.reset()[0])

    def test_vector_env(self) -> None:
        """The env could not be run many at a time."""
        envs = gym.make_vec(ENV_ID, num_envs=2, vectorization_mode="sync")
        obs, info = envs.reset(seed=0)
        assert obs.shape == (2, 8)
        assert set(info["task"]) <= set(TASKS)
        assert envs.step(np.zeros((2, 2), np.float32))[-1]["is_success"].tolist() == [False] * 2


def test_an_expert_who_has_misheard_goes_to_the_block_of_another_task():
    """The demo's wrong instruction would show the right one followed, or a random walk."""
    env = TabletopReachEnv()
    observation, _ = env.reset(seed=4, options={"task": TASKS[0]})
    for _ in range(80):
        observation, *_ = env.step(env.expert_action(task=TASKS[2]))
    np.testing.assert_allclose(observation[:2], observation[6:8], atol=0.03)
    with pytest.raises(ValueError, match=r"task must be one of .* got 'juggle'"):
        env.expert_action(task="juggle")


def test_the_offset_leads_to_the_named_block():
    """What an attempt has covered would be measured to another block."""
    env = TabletopReachEnv()
    for task in TASKS:
        observation, _ = env.reset(seed=5, options={"task": task})
        block = observation[2 + 2 * TASKS.index(task) :][:2]
        np.testing.assert_allclose(env.offset, block - observation[:2], atol=1e-6)


def test_success_need_not_end_an_episode():
    """An agent would learn from the end of the episode what only the model should tell it."""
    env = TabletopReachEnv(terminate_on_success=False)
    env.reset(seed=0)
    told = [env.step(env.expert_action()) for _ in range(80)]
    assert not any(terminated or truncated for _, _, terminated, truncated, _ in told)
    successes = [info["is_success"] for *_, info in told]
    assert successes[-10:] == [True] * 10
    assert [reward for _, reward, *_ in told] == [float(success) for success in successes]
