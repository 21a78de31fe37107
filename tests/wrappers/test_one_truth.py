"""One truth: every wrapper gives the same rewards, ends and infos, bit for bit.

Each wrapper of many environments writes a diary of every environment. The scalar wrapper repeats
each diary, alone, and must give the same; and an oracle that knows nothing but the documented
rules computes the expected rewards. `DiceEnv` rolls its dice in reset and step, so that
one stray call would change everything after it.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import iterate
from hypothesis import HealthCheck, given, settings

from robometer_gym import FrameCapture, RobometerRewardWrapper, RobometerVectorRewardWrapper
from robometer_gym.reward_model import Clip, Prediction
from robometer_gym.tracking.events import Stream
from tests.environments import CAMERAS, DiceEnv, Life, read
from tests.wrappers.schedules import (
    Diaries,
    Entry,
    Interruption,
    Oracle,
    Reset,
    Schedule,
    Step,
    schedules,
)

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
TASKS = ["open the drawer", "push the block", "fold the towel", "stack the cups"]
WORKERS = 3
SB3 = find_spec("stable_baselines3") is not None


class Shown(NamedTuple):
    """One clip that reached the model: pixels and all."""

    camera: str
    episode: int
    steps: tuple[int, ...]
    pixels: tuple[bytes, ...]
    task: str


class Judge:
    """A model that predicts from the schedule, lists the clips it received, and keeps no frame."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.shown: dict[int, list[Shown]] = {}
        self.calls = 0

    def predict(self, clips: Sequence[Clip]) -> list[Prediction]:
        self.calls += 1
        return [self._judge(clip) for clip in clips]

    def _judge(self, clip: Clip) -> Prediction:
        stream, steps = clip.stream, clip.steps
        assert isinstance(stream, Stream)
        assert steps is not None
        readings = [read(image) for image in clip.images]
        camera, env, episode, _ = readings[-1]
        assert readings == [(camera, env, episode, step) for step in steps]
        pixels = tuple(image.tobytes() for image in clip.images)
        seen = Shown(stream.camera, stream.episode, steps, pixels, clip.task)
        self.shown.setdefault(stream.env, []).append(seen)
        predicted = self.schedule.predict(*readings[-1])
        return Prediction(*(np.full(len(clip), value, np.float32) for value in predicted))


def plain(value: Any) -> Any:
    """The same in plain Python, so that == compares every bit, and a NaN equals a NaN."""
    if isinstance(value, dict):
        # Errors are counted over all environments: the one number that differs.
        return {key: plain(each) for key, each in value.items() if key != "robometer/errors"}
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    value = value.item() if isinstance(value, np.generic) else value
    return value.hex() if isinstance(value, float) else value


def of(infos: Mapping[str, Any], env: int) -> dict[str, Any]:
    """Return one environment's infos out of those of a vector environment."""
    own = {}
    for key, value in infos.items():
        if f"_{key}" in infos and infos[f"_{key}"][env]:
            own[key] = of(value, env) if isinstance(value, dict) else value[env]
    return own


class Gymnasium:
    """Lives a schedule with a vector environment, and writes the diaries."""

    def __init__(self, envs: RobometerVectorRewardWrapper, schedule: Schedule) -> None:
        self.envs, self.schedule = envs, schedule
        self.mode = envs.unwrapped.autoreset_mode  # type: ignore[attr-defined]
        self.everyone = range(envs.num_envs)
        self.diaries: Diaries = [[] for _ in self.everyone]
        self.over = np.zeros(envs.num_envs, np.bool_)
        self.latest: list[Any] = []

    def live(self) -> Diaries:
        self._reset(seed=self.schedule.seed)
        for now in range(self.schedule.steps):
            if now in self.schedule.interruptions:
                self._interrupt(self.schedule.interruptions[now])
            self._step()
            if self.mode is AutoresetMode.DISABLED and self.over.any():
                self._reset(self.over.copy())
        return self.diaries

    def _interrupt(self, interruption: Interruption) -> None:
        mask = None if all(interruption.envs) else np.array(interruption.envs)
        self._reset(mask, interruption.seed, interruption.task)

    def _reset(self, mask: Any = None, seed: int | None = None, task: str | None = None) -> None:
        options = None if task is None else {"task": task}
        given = options if mask is None else {**(options or {}), "reset_mask": mask.copy()}
        observations, infos = self.envs.reset(seed=seed, options=given)
        before, self.latest = self.latest, list(iterate(self.envs.observation_space, observations))
        for env in self.everyone:
            if mask is None or mask[env]:
                own = None if seed is None else seed + env
                info = of(infos, env)
                self.diaries[env].append(Reset(own, options, plain(self.latest[env]), plain(info)))
                self.over[env] = False
            else:
                assert of(infos, env) == {}
                assert plain(self.latest[env]) == plain(before[env])

    def _step(self) -> None:
        actions = [self._action(env) for env in self.everyone]
        observations, rewards, terminated, truncated, infos = self.envs.step(np.array(actions))
        self.latest = list(iterate(self.envs.observation_space, observations))
        for env in self.everyone:
            observation, info = self.latest[env], of(infos, env)
            ended = bool(terminated[env] or truncated[env])
            if self.over[env]:  # under NEXT_STEP
                assert (rewards[env], ended) == (0.0, False)
                self.diaries[env].append(Reset(None, None, plain(observation), plain(info)))
                self.over[env] = False
                continue
            last = (info.pop("final_obs"), info.pop("final_info")) if "final_obs" in info else None
            assert (last is not None) == (self.mode is AutoresetMode.SAME_STEP and ended)
            of_step = (float(rewards[env]), bool(terminated[env]), bool(truncated[env]))
            seen, seen_info = last or (observation, info)
            self.diaries[env].append(Step(actions[env], plain(seen), *of_step, plain(seen_info)))
            if last:
                self.diaries[env].append(Reset(None, None, plain(observation), plain(info)))
            else:
                self.over[env] = ended

    def _action(self, env: int) -> int:
        return action(self.schedule, env, self.diaries[env])


class StableBaselines:
    """Lives a schedule with a `VecEnv`, and writes the diaries."""

    def __init__(self, venv: Any, schedule: Schedule) -> None:
        self.venv, self.schedule = venv, schedule
        self.diaries: Diaries = [[] for _ in range(venv.num_envs)]

    def live(self) -> Diaries:
        self._reset(self.schedule.seed)
        for now in range(self.schedule.steps):
            if now in self.schedule.interruptions:
                one = self.schedule.interruptions[now]
                self._reset(one.seed, [one.task if chosen else None for chosen in one.envs])
            self._step()
        return self.diaries

    def _reset(self, seed: int | None, tasks: Sequence[str | None] | None = None) -> None:
        """Reset all; a task goes to those that have one."""
        tasks = tasks or [None] * len(self.diaries)
        if seed is not None:
            self.venv.seed(seed)
        self.venv.set_options([{} if task is None else {"task": task} for task in tasks])
        observations = self.venv.reset()
        for env, (diary, task) in enumerate(zip(self.diaries, tasks, strict=True)):
            own = None if seed is None else seed + env
            options = None if task is None else {"task": task}
            info = plain(self.venv.reset_infos[env])
            diary.append(Reset(own, options, self._of(observations, env), info))

    def _step(self) -> None:
        actions = [action(self.schedule, env, diary) for env, diary in enumerate(self.diaries)]
        observations, rewards, dones, infos = self.venv.step(np.array(actions))
        for env, (diary, info) in enumerate(zip(self.diaries, infos, strict=True)):
            done, truncated = bool(dones[env]), bool(info.pop("TimeLimit.truncated"))
            assert ("terminal_observation" in info) == done
            new = self._of(observations, env)
            seen = plain(info.pop("terminal_observation")) if done else new
            ends = (done and not truncated, truncated)
            diary.append(Step(actions[env], seen, float(rewards[env]), *ends, plain(info)))
            if done:
                diary.append(Reset(None, None, new, plain(self.venv.reset_infos[env])))

    @staticmethod
    def _of(observations: Any, env: int) -> Any:
        if isinstance(observations, dict):
            return plain({key: value[env] for key, value in observations.items()})
        return plain(observations[env])


def action(schedule: Schedule, env: int, diary: Sequence[Entry]) -> int:
    """The next action: the same wherever an environment is at the same step of the same episode."""
    episode = sum(isinstance(entry, Reset) for entry in diary)
    return schedule.action(env, episode, len(diary))


def alone(schedule: Schedule, env: int, diary: Sequence[Entry]) -> tuple[list[Entry], list[Shown]]:
    """Live a diary again with the scalar wrapper; return its own diary and its model's clips."""
    model = Judge(schedule)
    single = DiceEnv(env, schedule.cameras)
    single.live(schedule.lives)
    wrapped = RobometerRewardWrapper(single, TASKS[env], model, **schedule.rules)
    again: list[Entry] = []
    for entry in diary:
        if isinstance(entry, Reset):
            observation, info = wrapped.reset(seed=entry.seed, options=entry.options)
            again.append(Reset(entry.seed, entry.options, plain(observation), plain(info)))
        else:
            observation, reward, *ends, info = wrapped.step(entry.action)
            terminated, truncated = ends
            step = (plain(observation), float(reward), terminated, truncated, plain(info))
            again.append(Step(entry.action, *step))
    return again, model.shown[0]


def as_in_sb3(diary: Sequence[Entry]) -> list[Entry]:
    """Drop truncations at a termination, which Stable-Baselines3 does not report."""
    return [
        entry._replace(truncated=entry.truncated and not entry.terminated)
        if isinstance(entry, Step)
        else entry
        for entry in diary
    ]


def check(schedule: Schedule, diaries: Diaries, model: Judge, sb3: bool = False) -> None:
    """Check that the scalar wrapper gives the same, and that it follows the rules."""
    for env, diary in enumerate(diaries):
        again, shown = alone(schedule, env, diary)
        assert diary == (as_in_sb3(again) if sb3 else again)
        assert model.shown[env] == shown
        Oracle(schedule, env).check(again)


def cases(number: int) -> Any:
    """How many schedules are drawn."""
    return settings(max_examples=number, suppress_health_check=list(HealthCheck))


def captured(number: int, cameras: int, lives: Sequence[Life] | None = None) -> FrameCapture:
    """One environment of several."""
    env = DiceEnv(number, cameras)
    if lives is not None:
        env.live(lives)
    return FrameCapture(env)


def makers(schedule: Schedule) -> list[Any]:
    return [
        partial(captured, env, schedule.cameras, schedule.lives)
        for env in range(len(schedule.lives))
    ]


def live_in_gymnasium(core: Any, schedule: Schedule) -> Diaries:
    """Live it, and check."""
    model, tasks = Judge(schedule), TASKS[: core.num_envs]
    rewarded = RobometerVectorRewardWrapper(core, tasks, model, **schedule.rules)
    diaries = Gymnasium(rewarded, schedule).live()
    check(schedule, diaries, model)
    rewarded.env = None  # type: ignore[assignment] # in Gymnasium 1.1 its deletion would close `core`
    return diaries


def live_in_sb3(venv: Any, schedule: Schedule) -> Diaries:
    """Live it, and check."""
    from robometer_gym.sb3 import VecRobometerReward

    model, tasks = Judge(schedule), TASKS[: venv.num_envs]
    diaries = StableBaselines(
        VecRobometerReward(venv, tasks, model, **schedule.rules), schedule
    ).live()
    check(schedule, diaries, model, sb3=True)
    return diaries


def check_same_episodes(schedule: Schedule, several: Sequence[Diaries]) -> None:
    """Without interruptions all wrappers have lived the same episodes, as far as they went."""
    if not schedule.interruptions:
        for diaries in zip(*several, strict=True):
            first, *others = map(as_in_sb3, diaries)
            for other in others:
                assert all(a == b for a, b in zip(first, other, strict=False))


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Models that fail are drawn by the hundred; each would log a line."""
    caplog.set_level(logging.CRITICAL, "robometer_gym.tracking.tracker")


@cases(500)
@given(schedules())
def test_all_wrappers_of_one_process_agree(schedule):
    """The same policy would get other rewards from another wrapper around it."""
    several = [
        live_in_gymnasium(SyncVectorEnv(makers(schedule), autoreset_mode=mode), schedule)
        for mode in MODES
    ]
    if SB3:
        from stable_baselines3.common.vec_env import DummyVecEnv

        several.append(live_in_sb3(DummyVecEnv(makers(schedule)), schedule))
    check_same_episodes(schedule, several)


@pytest.fixture(scope="module")
def workers() -> Iterator[list[Any]]:
    """Environments in processes, for many schedules: one set for each autoreset mode."""
    several = []
    for mode in MODES:
        make = [partial(captured, env, len(CAMERAS)) for env in range(WORKERS)]
        shared = mode is not AutoresetMode.SAME_STEP
        several.append(AsyncVectorEnv(make, shared, context="forkserver", autoreset_mode=mode))
    yield several
    for core in several:
        core.close()


@cases(40)
@given(schedule=schedules(WORKERS, len(CAMERAS)))
def test_processes_agree(workers, schedule):
    """Running environments in worker processes would change their rewards."""
    several = []
    for core in workers:
        core.call("live", schedule.lives)
        several.append(live_in_gymnasium(core, schedule))
    check_same_episodes(schedule, several)


@pytest.fixture(scope="module")
def sb3_workers() -> Iterator[Any]:
    """Stable-Baselines3's processes, for many schedules."""
    make = [partial(captured, env, len(CAMERAS)) for env in range(WORKERS)]
    venv = pytest.importorskip("stable_baselines3.common.vec_env").SubprocVecEnv(make)
    yield venv
    venv.close()


@cases(40)
@given(schedule=schedules(WORKERS, len(CAMERAS)))
def test_processes_of_stable_baselines3_agree(sb3_workers, schedule):
    """SubprocVecEnv would give other rewards than DummyVecEnv."""
    sb3_workers.env_method("live", schedule.lives)
    live_in_sb3(sb3_workers, schedule)
