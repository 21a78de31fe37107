"""Late rewards: the same rewards as synchronous ones, in their own rows, before they are used."""

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib import TQC, TRPO, MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from robometer_gym import read_traces
from robometer_gym.evaluation import evaluate
from robometer_gym.sb3 import (
    LateDictReplayBuffer,
    LateDictRolloutBuffer,
    LateNStepReplayBuffer,
    LateReplayBuffer,
    LateRewards,
    LateRolloutBuffer,
    RobometerCallback,
    make_robometer_vec_env,
)
from robometer_gym.testing import CountingEnv, ScriptedRewardModel

TASK = "push the block"


class Walk(gym.Env[Any, Any]):
    """A walk whose frames show where it is: rewards depend on the actions.

    Episodes end by termination at the right border, and by truncation after `limit` steps.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as in gym.Env

    def __init__(
        self, limit: int = 9, discrete: bool = True, cameras: bool = False, border: float = 2
    ) -> None:
        self.render_mode = "rgb_array"
        self.limit, self.cameras, self.border = limit, cameras, border
        self.action_space = (
            gym.spaces.Discrete(3) if discrete else gym.spaces.Box(-1, 1, (1,), np.float32)
        )
        place = gym.spaces.Box(-9, 9, (2,), np.float32)
        image = gym.spaces.Box(0, 255, (36, 36, 3), np.uint8)
        self.observation_space = (
            gym.spaces.Dict({"place": place, "left": image, "right": image}) if cameras else place
        )

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.steps = float(self.np_random.uniform(-1, 1)), 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.place += (int(action) - 1) / 3 if np.ndim(action) == 0 else float(action[0]) / 3
        return (
            self._observe(),
            0.1 * self.place,
            self.place > self.border,
            self.steps >= self.limit,
            {},
        )

    def render(self) -> Any:
        return self._paint(0)

    def _paint(self, offset: int) -> Any:
        value = int(np.clip(100 + 30 * self.place, 1, 200)) + offset
        return np.full((36, 36, 3), value, np.uint8)

    def _observe(self) -> Any:
        place = np.array([self.place, self.steps / self.limit], np.float32)
        if not self.cameras:
            return place
        return {"place": place, "left": self._paint(3), "right": self._paint(7)}


def model() -> ScriptedRewardModel:
    """Predictions from the pixels of the whole window, with many digits in binary."""

    def mean(clip: Any) -> float:
        return float(np.mean([image[0, 0, 0] for image in clip.images])) / 255

    def success(clip: Any) -> float:
        return float(clip.images[-1][0, 0, 0]) / 255

    return ScriptedRewardModel(progress=mean, success=success)


def make(
    late: bool, reward_model: Any = None, n_envs: int = 2, env: Any = None, **chosen: Any
) -> Any:
    return make_robometer_vec_env(
        Walk,
        TASK,
        n_envs,
        reward_model or model(),
        seed=3,
        env_kwargs=env or {},
        late=late,
        terminate_on_success=False,
        **chosen,
    )


def weights(agent: Any) -> list[Any]:
    return [tensor.numpy() for tensor in agent.policy.state_dict().values()]


def train(
    algorithm: Any, steps: int, late: bool, buffer: Any = None, env: Any = None, **chosen: Any
) -> tuple[Any, ScriptedRewardModel]:
    scripted = model()
    venv = make(late, scripted, env=env, **chosen)
    kwargs: dict[str, Any] = {"n_steps": 16, "seed": 0, "device": "cpu"}
    kwargs["policy_kwargs"] = {"net_arch": [8]}
    if algorithm is not A2C:
        kwargs["batch_size"] = 16
    if algorithm is PPO:
        kwargs["n_epochs"] = 2
    if late:
        kwargs |= {
            "rollout_buffer_class": buffer,
            "rollout_buffer_kwargs": {"late": LateRewards(venv)},
        }
    policy = "MultiInputPolicy" if (env or {}).get("cameras") else "MlpPolicy"
    agent = algorithm(policy, venv, **kwargs).learn(steps)
    venv.close()
    return agent, scripted


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_training_on_late_rewards_gives_the_same_weights(algorithm):
    """Late rewards would train another agent, and every experiment with them be another one."""
    late, late_model = train(algorithm, 5000, True, LateRolloutBuffer, predict_every=4)
    now, now_model = train(algorithm, 5000, False, predict_every=4)
    for mine, its in zip(weights(late), weights(now), strict=True):
        assert np.array_equal(mine, its)
    rollouts = -(-5000 // 32)
    assert len(late_model.batches) == rollouts < len(now_model.batches) / 4


@settings(max_examples=12)
@given(
    chosen=st.fixed_dictionaries(
        {
            "predict_every": st.integers(1, 7),
            "signal": st.sampled_from(["delta", "potential", "progress"]),
            "mode": st.sampled_from(["replace", "shape"]),
            "success_bonus": st.sampled_from([0.0, 0.3]),
            "sampling": st.sampled_from(["linspace", "tail", "anchored"]),
        }
    ),
    limit=st.integers(3, 40),
)
def test_weights_are_the_same_for_every_setting(chosen, limit):
    """One setting would silently train on other rewards."""
    env = {"limit": limit}
    late, _ = train(PPO, 160, True, LateRolloutBuffer, env, **chosen)
    now, _ = train(PPO, 160, False, None, env, **chosen)
    for mine, its in zip(weights(late), weights(now), strict=True):
        assert np.array_equal(mine, its)


def test_weights_are_the_same_with_dict_observations_and_several_cameras():
    """The window of one camera would be predicted in another one's place."""
    env = {"cameras": True}
    chosen = {"camera": {"a": "left", "b": "right"}, "predict_every": 2}
    late, _ = train(PPO, 160, True, LateDictRolloutBuffer, env, **chosen)
    now, _ = train(PPO, 160, False, None, env, **chosen)
    for mine, its in zip(weights(late), weights(now), strict=True):
        assert np.array_equal(mine, its)


def test_trpo_trains_to_the_same_weights():
    """Users of sb3-contrib would train on other rewards."""
    late, _ = train(TRPO, 160, True, LateRolloutBuffer, predict_every=3)
    now, _ = train(TRPO, 160, False, predict_every=3)
    for mine, its in zip(weights(late), weights(now), strict=True):
        assert np.array_equal(mine, its)


def test_a_buffer_of_another_library_can_be_late():
    """MaskablePPO has a buffer of its own, and would train on placeholders."""

    class LateMaskable(LateRolloutBuffer, MaskableRolloutBuffer):
        pass

    def trained(late: bool) -> Any:
        venv = make(late, predict_every=3)
        kwargs: dict[str, Any] = {}
        if late:
            kwargs = {
                "rollout_buffer_class": LateMaskable,
                "rollout_buffer_kwargs": {"late": LateRewards(venv)},
            }
        agent = MaskablePPO(
            "MlpPolicy", venv, n_steps=16, batch_size=16, seed=0, device="cpu", **kwargs
        )
        return agent.learn(96, use_masking=False)

    for mine, its in zip(weights(trained(True)), weights(trained(False)), strict=True):
        assert np.array_equal(mine, its)


def test_an_algorithm_that_chooses_its_own_buffer_is_refused():
    """RecurrentPPO would train on placeholders."""
    venv = make(True)
    agent = RecurrentPPO("MlpLstmPolicy", venv, n_steps=16, batch_size=16, device="cpu")
    with pytest.raises(ValueError, match=r"choose their buffer themselves \(RecurrentPPO\)"):
        agent.learn(32)


def test_tqc_stores_the_synchronous_rewards():
    """Users of sb3-contrib would learn from other rewards."""

    def rewards(late: bool) -> Any:
        venv = make(late, env={"discrete": False}, predict_every=3)
        agent: Any = TQC(
            "MlpPolicy",
            venv,
            buffer_size=200,
            learning_starts=10**6,
            replay_buffer_class=LateReplayBuffer if late else ReplayBuffer,
            replay_buffer_kwargs={"late": LateRewards(venv)} if late else {},
            policy_kwargs={"net_arch": [4]},
            seed=0,
            device="cpu",
        ).learn(60)
        if late:
            agent.replay_buffer.settle()
        return agent.replay_buffer.rewards

    assert np.array_equal(rewards(True), rewards(False))


class Watched(LateReplayBuffer):
    """Fails where a row is sampled whose reward is a placeholder."""

    sampled = 0

    def _get_samples(self, batch_inds: Any, env: Any = None) -> Any:
        owed = {each.row for each in self.late.owed.entries if each.is_step}
        assert not owed & set(batch_inds.tolist())
        type(self).sampled += len(batch_inds)
        return super()._get_samples(batch_inds, env)


def agent_of(
    algorithm: Any,
    late: bool,
    size: int,
    buffer: Any,
    optimize: bool = False,
    background: bool = False,
) -> Any:
    env = {"discrete": algorithm is DQN, "limit": 11}
    venv = make(late, env=env, predict_every=3, background=background)
    kwargs: dict[str, Any] = {"late": LateRewards(venv)} if late else {}
    if optimize:
        kwargs["handle_timeout_termination"] = False
    return algorithm(
        "MlpPolicy",
        venv,
        buffer_size=2 * size,
        learning_starts=10,
        batch_size=8,
        replay_buffer_class=buffer if late else ReplayBuffer,
        replay_buffer_kwargs=kwargs,
        optimize_memory_usage=optimize,
        policy_kwargs={"net_arch": [8]},
        seed=0,
        device="cpu",
    )


@pytest.mark.parametrize("algorithm", [SAC, DQN])
@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("size", [1000, 30, 12])
def test_every_row_holds_its_synchronous_reward(algorithm, optimize, size):
    """Rewards would land in other rows after the buffer has wrapped, or never."""
    Watched.sampled = 0
    late = agent_of(algorithm, True, size, Watched, optimize)
    now = agent_of(algorithm, False, size, None, optimize)
    for agent in (late, now):  # the same actions: random ones
        agent.learning_starts = 10**6
        agent.learn(2 * (200 if size == 1000 else size * 10))
    late.replay_buffer.settle()
    mine, its = late.replay_buffer, now.replay_buffer
    assert np.array_equal(mine.observations, its.observations)
    assert np.array_equal(mine.rewards, its.rewards)
    assert np.array_equal(mine.dones, its.dones)


@pytest.mark.parametrize("size", [1000, 20])
def test_no_unsettled_row_is_ever_sampled(size):
    """The agent would learn that a step had the reward 0."""
    Watched.sampled = 0
    agent_of(SAC, True, size, Watched).learn(400)
    assert Watched.sampled > 1000


def test_rows_of_n_steps_wait_for_all_their_rewards():
    """One placeholder would spoil the returns of the rows before it."""

    class WatchedNStep(LateNStepReplayBuffer):
        def _get_samples(self, batch_inds: Any, env: Any = None) -> Any:
            owed = {each.row for each in self.late.owed.entries if each.is_step}
            for row in batch_inds.tolist():
                span = {(row + step) % self.buffer_size for step in range(self.n_steps)}
                assert not owed & span
            return super()._get_samples(batch_inds, env)

    venv = make(True, env={"discrete": False}, predict_every=3)
    agent = SAC(
        "MlpPolicy",
        venv,
        buffer_size=80,
        learning_starts=10,
        batch_size=8,
        replay_buffer_class=WatchedNStep,
        replay_buffer_kwargs={"late": LateRewards(venv), "n_steps": 3, "gamma": 0.99},
        policy_kwargs={"net_arch": [8]},
        device="cpu",
    )
    agent.learn(400)


def test_the_traces_of_a_late_training_hold_its_last_steps(tmp_path):
    """The end of every training would be missing from its record."""
    venv = make(True, env={"discrete": True, "limit": 11}, predict_every=3)
    agent: Any = DQN(
        "MlpPolicy",
        venv,
        buffer_size=200,
        learning_starts=10**6,
        replay_buffer_class=LateReplayBuffer,
        replay_buffer_kwargs={"late": LateRewards(venv)},
        policy_kwargs={"net_arch": [4]},
        device="cpu",
    )
    agent.learn(48, callback=RobometerCallback(traces=tmp_path / "traces.jsonl"))
    traces = read_traces(tmp_path / "traces.jsonl")
    assert sum(trace.num_steps for trace in traces) == 48
    assert not agent.replay_buffer.late.owed.steps


def test_dict_observations_off_policy():
    """Rewards of agents that see images would stay placeholders."""
    venv = make(True, env={"cameras": True, "discrete": False}, camera="left")
    agent: Any = SAC(
        "MultiInputPolicy",
        venv,
        buffer_size=60,
        learning_starts=20,
        batch_size=4,
        replay_buffer_kwargs={"late": LateRewards(venv)},
        policy_kwargs={"net_arch": [4]},
        replay_buffer_class=LateDictReplayBuffer,
        device="cpu",
    )
    agent.learn(60)
    agent.replay_buffer.settle()
    assert np.abs(agent.replay_buffer.rewards[:30]).max() > 0


@pytest.mark.parametrize("algorithm", [SAC, DQN])
def test_rewards_from_the_background_land_in_their_own_rows(algorithm):
    """A robot that does not wait would learn from rewards of other steps."""

    class Watch(LateReplayBuffer):
        def _get_samples(self, batch_inds: Any, env: Any = None) -> Any:
            assert not {o.row for o in self.late.owed.entries if o.is_step} & set(
                batch_inds.tolist()
            )
            return super()._get_samples(batch_inds, env)

    late = agent_of(algorithm, True, 300, Watch, background=True)
    owed = late.get_env().owed
    assert owed.tracker.releaser is owed._thread  # else an end waits for a running prediction
    now = agent_of(algorithm, False, 300, None)
    for agent in (late, now):
        agent.learning_starts = 10**6
        agent.learn(400)
    late.learning_starts = 0
    for _ in range(5):
        late.train(gradient_steps=1, batch_size=64)
    late.replay_buffer.settle()
    assert np.array_equal(late.replay_buffer.rewards, now.replay_buffer.rewards)
    late.get_env().close()


def test_a_saved_replay_buffer_holds_rewards_and_no_placeholders(tmp_path):
    """A training that is resumed would learn from zeros."""
    agent = agent_of(SAC, True, 100, LateReplayBuffer)
    agent.learn(31)
    assert agent.replay_buffer.late.owed.steps
    agent.save_replay_buffer(tmp_path / "buffer.pkl")
    assert not agent.replay_buffer.late.owed.steps
    saved = pickle.loads((tmp_path / "buffer.pkl").read_bytes())
    assert np.array_equal(saved.rewards, agent.replay_buffer.rewards)
    with pytest.raises(ValueError, match=r"loaded from a file and is connected to no environment"):
        _ = saved.late.owed.steps


def test_a_saved_agent_goes_on_with_new_environments(tmp_path):
    """An agent could not be saved, or would carry the environments along."""
    agent, _ = train(PPO, 64, True, LateRolloutBuffer)
    agent.save(tmp_path / "agent.zip")
    venv = make(True)
    again = PPO.load(
        tmp_path / "agent.zip", venv, rollout_buffer_kwargs={"late": LateRewards(venv)}
    )
    again.learn(64)
    assert all(np.isfinite(each).all() for each in weights(again))


def test_late_rewards_without_a_buffer_are_refused():
    """The agent would train on zeros."""
    venv = make(True)
    with pytest.raises(ValueError, match=r"With late=True a buffer must settle the rewards"):
        PPO("MlpPolicy", venv, n_steps=16, batch_size=16, device="cpu").learn(32)


def test_an_end_by_success_is_refused():
    """The episode would go on although success ends it by its settings."""
    with pytest.raises(ValueError, match="late=True needs terminate_on_success=False"):
        make_robometer_vec_env(CountingEnv, TASK, 1, model(), late=True)


def test_normalized_rewards_are_refused():
    """Placeholders would set the scale of the rewards."""
    venv = VecNormalize(make(True), norm_reward=True)
    with pytest.raises(ValueError, match="normalizes the rewards that `step` returns"):
        LateRewards(venv)
    LateRewards(VecNormalize(make(True), norm_reward=False))


def test_evaluation_on_late_environments_is_refused():
    """It would wait for ever: their episodes are settled by an agent's buffer."""
    venv = make(True)
    LateRewards(venv)
    with pytest.raises(ValueError, match="made with late=True"):
        evaluate(venv, "random", episodes=1)


def test_environments_that_are_not_late_are_refused():
    """Their rewards would be settled twice, or not at all."""
    with pytest.raises(ValueError, match="needs environments made with late=True"):
        LateRewards(make(False))


def test_steps_made_by_another_loop_do_not_shift_the_rows():
    """After an interrupted rollout every reward would belong to another step."""

    def stop(local: Any, _: Any) -> bool:
        return bool(local["n_steps"] < 5)

    def interrupted(late: bool) -> Any:
        venv = make(late, predict_every=2)
        kwargs: dict[str, Any] = {}
        if late:
            kwargs = {
                "rollout_buffer_class": LateRolloutBuffer,
                "rollout_buffer_kwargs": {"late": LateRewards(venv)},
            }
        agent = PPO("MlpPolicy", venv, n_steps=16, batch_size=16, device="cpu", seed=0, **kwargs)
        agent.learn(64, callback=stop)
        return agent.learn(64, reset_num_timesteps=False)

    for mine, its in zip(weights(interrupted(True)), weights(interrupted(False)), strict=True):
        assert np.array_equal(mine, its)


def test_an_episode_longer_than_the_buffer_is_settled_in_parts():
    """Its frames would fill the memory, and its rewards land in the rows of later steps."""

    def filled(late: bool) -> Any:
        venv = make(late, env={"discrete": False, "limit": 1000, "border": 1000}, predict_every=3)
        agent: Any = SAC(
            "MlpPolicy",
            venv,
            buffer_size=40,
            learning_starts=10**6,
            replay_buffer_class=LateReplayBuffer if late else ReplayBuffer,
            replay_buffer_kwargs={"late": LateRewards(venv)} if late else {},
            policy_kwargs={"net_arch": [4]},
            seed=0,
            device="cpu",
        )
        agent.learn(150)
        assert not late or venv.owed.steps < 20
        return agent.replay_buffer

    late, now = filled(True), filled(False)
    late.settle()
    assert not now.dones.any()
    assert np.array_equal(late.rewards, now.rewards)


def failing(error: Any) -> ScriptedRewardModel:
    calls = iter(range(10**6))

    def progress(clip: Any) -> float:
        number = next(calls)
        if number > 20:
            if isinstance(error, Exception):
                raise error
            return float(error)
        return 0.5

    return ScriptedRewardModel(progress=progress)


@pytest.mark.parametrize("error", [TimeoutError("no response"), float("nan")])
def test_a_model_that_fails_stops_the_training_in_words(error):
    """Placeholders would be kept as if they were rewards."""
    venv = make(True, failing(error))
    agent = PPO(
        "MlpPolicy",
        venv,
        n_steps=16,
        batch_size=16,
        rollout_buffer_class=LateRolloutBuffer,
        rollout_buffer_kwargs={"late": LateRewards(venv)},
        device="cpu",
    )
    with pytest.raises((TimeoutError, RuntimeError), match=r"no response|expected finite values"):
        agent.learn(320)


def test_rows_whose_model_failed_stay_owed_and_are_predicted_again():
    """A lost connection would leave zeros in the buffer that look like rewards."""
    broken = {"now": True}

    def progress(clip: Any) -> float:
        if broken["now"] and len(clip) > 1:
            raise ConnectionError("the server is gone")
        return float(np.mean([image[0, 0, 0] for image in clip.images])) / 255

    def buffer_of(late: bool, reward_model: Any) -> Any:
        venv = make(late, reward_model, env={"discrete": False, "limit": 11}, predict_every=3)
        agent: Any = SAC(
            "MlpPolicy",
            venv,
            buffer_size=200,
            learning_starts=10**6,
            replay_buffer_class=LateReplayBuffer if late else ReplayBuffer,
            replay_buffer_kwargs={"late": LateRewards(venv)} if late else {},
            policy_kwargs={"net_arch": [4]},
            seed=0,
            device="cpu",
        )
        try:
            agent.learn(22)
        except ConnectionError:
            with pytest.raises(ConnectionError):
                agent.replay_buffer.sample(4)
        return agent.replay_buffer

    late = buffer_of(True, ScriptedRewardModel(progress=progress))
    assert late.late.owed.steps == 11
    broken["now"] = False
    late.sample(4)
    assert late.late.owed.steps == 0
    now = buffer_of(False, ScriptedRewardModel(progress=progress))
    assert np.array_equal(late.rewards[:11], now.rewards[:11])
    assert np.abs(late.rewards[:11]).max() > 0


@pytest.mark.parametrize("place", range(50))
def test_an_interrupt_leaves_no_placeholder_in_a_settled_row(place):
    """After Ctrl-C the agent would go on learning from zeros."""
    calls = iter(range(10**6))

    class Interrupted(ScriptedRewardModel):
        def predict(self, clips: Any) -> Any:
            if next(calls) == 2:
                raise KeyboardInterrupt
            return super().predict(clips)

    scripted = model()
    interrupted = Interrupted(scripted._scripts["progress"], scripted._scripts["success"])
    venv = make(True, interrupted, env={"discrete": False, "limit": 4 + place}, predict_every=2)
    agent: Any = SAC(
        "MlpPolicy",
        venv,
        buffer_size=400,
        learning_starts=10**6,
        replay_buffer_class=LateReplayBuffer,
        replay_buffer_kwargs={"late": LateRewards(venv)},
        policy_kwargs={"net_arch": [4]},
        seed=place,
        device="cpu",
    )
    with pytest.raises(KeyboardInterrupt):
        agent.learn(400)
    buffer = agent.replay_buffer
    owed = {each.row for each in buffer.late.owed.entries if each.is_step}
    assert owed
    before = buffer.rewards.copy()
    buffer.settle()
    changed = set(np.flatnonzero((buffer.rewards != before).any(axis=1)).tolist())
    assert changed <= owed
    assert not buffer.late.owed.steps


def test_failures_are_counted_where_training_goes_on():
    """Missing rewards would go unnoticed."""
    venv = make(True, failing(float("nan")), on_error="hold")
    agent = PPO(
        "MlpPolicy",
        venv,
        n_steps=16,
        batch_size=16,
        rollout_buffer_class=LateRolloutBuffer,
        rollout_buffer_kwargs={"late": LateRewards(venv)},
        device="cpu",
    )
    agent.learn(64)
    assert venv.tracker.errors > 0


def test_late_rewards_of_a_network_equal_synchronous_ones():
    """A large batch would give other rewards than small ones."""
    from robometer_gym.envs import ENV_ID, TASKS

    def rewards(late: bool) -> Any:
        torch.manual_seed(0)
        venv = make_robometer_vec_env(
            ENV_ID,
            TASKS[0],
            2,
            "demo",
            seed=0,
            env_kwargs={"task": TASKS[0]},
            late=late,
            terminate_on_success=False,
        )
        kwargs: dict[str, Any] = {}
        if late:
            kwargs = {
                "rollout_buffer_class": LateRolloutBuffer,
                "rollout_buffer_kwargs": {"late": LateRewards(venv)},
            }
        agent = PPO("MlpPolicy", venv, n_steps=60, batch_size=40, device="cpu", seed=0, **kwargs)
        agent.learn(120)
        return agent.rollout_buffer.rewards

    assert np.allclose(rewards(True), rewards(False), rtol=0, atol=1e-5)
