"""TabletopReach: tasks, seeds, layouts, success and the expert."""

import pickle
from typing import Any

import numpy as np
import pytest

from robometer_gym.envs import COLORS, TASK, TASKS, TabletopReachEnv
from tests.envs.tabletop import LIMIT, Floats, expert_episode, position, render

RED, GREEN, BLUE = TASKS


def move_to(env: TabletopReachEnv, goal: Floats) -> list[dict[str, Any]]:
    """Move at full speed until the gripper is at `goal`; return the infos on the way."""
    obs, *_ = env.step(np.zeros(2))
    infos = []
    while (distance := np.linalg.norm(goal - obs[:2])) > 0.02:
        obs, _, _, _, info = env.step((goal - obs[:2]) / distance)
        infos.append(info)
    return infos


class TestTask:
    def test_instructions(self) -> None:
        """The trained demo checkpoint would get instructions that it has never seen."""
        assert TASK.format("red") == RED == "move the gripper to the red block"
        assert tuple(map(TASK.format, COLORS)) == TASKS

    def test_task_as_argument(self) -> None:
        """An env made for one task would run another."""
        for task in TASKS:
            env = TabletopReachEnv(task=task)
            assert [env.reset(seed=seed)[1]["task"] for seed in range(5)] == [task] * 5

    def test_reset_option_holds_for_one_episode(self) -> None:
        """A task given for one episode would leak into the next, or not be taken at all."""
        env = TabletopReachEnv(task=RED)
        all_options = [{"task": BLUE}, None, {}, {"other": 1}, {"task": GREEN, "other": 1}]
        played = [env.reset(seed=0, options=options)[1]["task"] for options in all_options]
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
            color = next(name for name in COLORS if TASK.format(name) == infos[0]["task"])
            assert success
            assert np.linalg.norm(seen[-1][:2] - position(seen[-1], color)) <= 0.1

    @pytest.mark.parametrize("layout", ["fixed", "random"])
    def test_observation_and_frame_hide_the_task(self, layout: str) -> None:
        """A policy or reward model could read the target from the state and ignore the task."""
        shown = []
        for task in (*TASKS, None):
            env = TabletopReachEnv(task, layout, render_mode="rgb_array")
            obs = [env.reset(seed=3)[0]]
            frames = [render(env)]
            obs.append(env.step([0.5, -1.0])[0])
            frames.append(render(env))
            obs.append(env.reset()[0])  # the next episode's table does not depend on it either
            frames.append(render(env))
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
            record = [obs.tobytes(), info["task"]]
            actions = np.random.default_rng(0).uniform(-1, 1, (20, 2))
            for action in actions:
                obs, *rest = env.step(action)
                record += [obs.tobytes(), str(rest), render(env).tobytes()]
            record.append(env.reset()[0].tobytes())
            return record

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
        """Calling the expert would change the episodes that follow."""
        queried, untouched = TabletopReachEnv(layout="random"), TabletopReachEnv(layout="random")
        for seed in (4, None, None):
            first, second = queried.reset(seed=seed), untouched.reset(seed=seed)
            np.testing.assert_array_equal(first[0], second[0])
            assert first[1] == second[1]
            for _ in range(3):
                queried.expert_action(noise)
        assert queried.np_random.random() == untouched.np_random.random()


class TestLayout:
    def test_fixed_blocks_stay_near_their_positions(self) -> None:
        """The easy variant would not be easy: a policy could not memorize the positions."""
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
        """Learning curves would show success although nothing was learned."""
        successes = 0
        for seed in range(60):
            env = TabletopReachEnv(layout="random" if seed % 2 else "fixed")
            env.reset(seed=seed)
            env.action_space.seed(seed)
            successes += any(env.step(env.action_space.sample())[2] for _ in range(LIMIT))
        assert successes <= 3

    def test_passing_over_the_block_does_not_count(self) -> None:
        """An agent would be rewarded for rushing across the block."""
        env = TabletopReachEnv(task=RED)
        obs, _ = env.reset(seed=0)
        infos = move_to(env, position(obs, "red"))
        infos += [env.step([1.0, 0.0])[-1] for _ in range(20)]
        assert not any(info["is_success"] for info in infos)

    def test_coming_to_rest_on_the_block_counts_once_slow(self) -> None:
        """The agent would have to be slower, or nearer, than documented."""
        env = TabletopReachEnv(task=RED)
        obs, _ = env.reset(seed=0)
        move_to(env, position(obs, "red"))
        saved = pickle.dumps(env)
        for speed, success in ((0.0, True), (0.24, True), (0.26, False), (1.0, False)):
            *_, terminated, truncated, info = pickle.loads(saved).step([0.0, speed])
            assert (terminated, truncated, info) == (success, False, {"is_success": success})

    @pytest.mark.parametrize(("away", "success"), [(0.0, True), (0.07, True), (0.13, False)])
    def test_resting_must_be_on_the_block(self, away: float, success: bool) -> None:
        """Stopping beside the block would count, or stopping on it would not."""
        env = TabletopReachEnv(task=BLUE)
        obs, _ = env.reset(seed=1)
        move_to(env, position(obs, "blue") - [0.0, away])
        assert env.step(np.zeros(2))[2] is success

    def test_wrong_block_does_not_count(self) -> None:
        """The instruction would not matter."""
        env = TabletopReachEnv(task=RED)
        for color in ("green", "blue"):
            obs, _ = env.reset(seed=0)
            move_to(env, position(obs, color))
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


def test_an_expert_can_follow_another_task():
    """The demo's wrong instruction would show the right one followed, or a random walk."""
    env = TabletopReachEnv()
    observation, _ = env.reset(seed=4, options={"task": TASKS[0]})
    for _ in range(80):
        observation, *_ = env.step(env.expert_action(task=TASKS[2]))
    np.testing.assert_allclose(observation[:2], observation[6:8], atol=0.03)
    with pytest.raises(ValueError, match=r"task must be one of .* got 'juggle'"):
        env.expert_action(task="juggle")


def test_the_offset_leads_to_the_named_block():
    """The covered distance of an episode would be measured to another block."""
    env = TabletopReachEnv()
    for task in TASKS:
        observation, _ = env.reset(seed=5, options={"task": task})
        block = observation[2 + 2 * TASKS.index(task) :][:2]
        np.testing.assert_allclose(env.offset, block - observation[:2], atol=1e-6)


def test_success_need_not_end_an_episode():
    """An agent would learn success from the end of the episode instead of from the model."""
    env = TabletopReachEnv(terminate_on_success=False)
    env.reset(seed=0)
    results = [env.step(env.expert_action()) for _ in range(80)]
    assert not any(terminated or truncated for _, _, terminated, truncated, _ in results)
    successes = [info["is_success"] for *_, info in results]
    assert successes[-10:] == [True] * 10
    assert [reward for _, reward, *_ in results] == [float(success) for success in successes]
