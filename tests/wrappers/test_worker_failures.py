"""Failures of environments, their processes, the renderer and the model, in vector environments.

Always an error that names the environment, never a hang, and no process or file that stays. The
same tests run on every vector environment: Gymnasium's and Stable-Baselines3's, with and without
processes.
"""

import os
import signal
from collections.abc import Callable
from functools import partial
from glob import glob
from typing import Any

import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from robometer_gym import (
    FrameCapture,
    RewardModelError,
    RobometerVectorRewardWrapper,
    SubEnvironmentError,
    make_robometer_vec,
)
from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from robometer_gym.wrappers.worker_failures import close_workers, report_dead_workers
from tests.environments import Trouble
from tests.wrappers.rollouts import TASK, step_all

pytestmark = pytest.mark.usefixtures("no_hanging")

WORKERS = {"context": "forkserver"}


def captured(**trouble: Any) -> FrameCapture:
    return FrameCapture(Trouble(**trouble))


def gymnasium(
    kind: Any, mode: AutoresetMode, makers: list[Any], model: Any, **settings: Any
) -> Any:
    more = WORKERS if kind is AsyncVectorEnv else {}
    core = kind(makers, autoreset_mode=mode, **more)
    return RobometerVectorRewardWrapper(core, TASK, model, predict_every=1, **settings)


def stable_baselines3(kind: str, makers: list[Any], model: Any, **settings: Any) -> Any:
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common import vec_env

    from robometer_gym.sb3 import VecRobometerReward

    more = {"start_method": "forkserver"} if kind == "SubprocVecEnv" else {}
    core = getattr(vec_env, kind)(makers, **more)
    return VecRobometerReward(core, TASK, model, predict_every=1, **settings)


ONE_PROCESS: dict[str, Callable[..., Any]] = {
    "sync, next step": partial(gymnasium, SyncVectorEnv, AutoresetMode.NEXT_STEP),
    "sync, same step": partial(gymnasium, SyncVectorEnv, AutoresetMode.SAME_STEP),
    "sync, disabled": partial(gymnasium, SyncVectorEnv, AutoresetMode.DISABLED),
    "dummy": partial(stable_baselines3, "DummyVecEnv"),
}
PROCESSES: dict[str, Callable[..., Any]] = {
    "async, next step": partial(gymnasium, AsyncVectorEnv, AutoresetMode.NEXT_STEP),
    "async, same step": partial(gymnasium, AsyncVectorEnv, AutoresetMode.SAME_STEP),
    "subproc": partial(stable_baselines3, "SubprocVecEnv"),
}
every_kind = pytest.mark.parametrize("kind", [*ONE_PROCESS, *PROCESSES])
every_one_process = pytest.mark.parametrize("kind", ONE_PROCESS)
every_processes = pytest.mark.parametrize("kind", PROCESSES)


def make(kind: str, trouble: dict[str, Any], model: Any = None, envs: int = 2, at: int = 1) -> Any:
    """Return environments of which number `at` has trouble."""
    makers = [partial(captured, **(trouble if env == at else {})) for env in range(envs)]
    return {**ONE_PROCESS, **PROCESSES}[kind](makers, model or ScriptedRewardModel(0.5))


def run(envs: Any, steps: int) -> None:
    """Reset, and make some steps."""
    envs.reset()
    for _ in range(steps):
        step_all(envs)


def processes(envs: Any) -> list[Any]:
    return list(getattr(envs.unwrapped, "processes", []))


def check_nothing_stays(envs: Any) -> None:
    """Close, and look for processes and files."""
    workers = processes(envs)
    envs.close()
    for worker in workers:
        assert not worker.is_alive()
        with pytest.raises(ProcessLookupError):
            os.kill(worker.pid, 0)
        assert glob(f"/dev/shm/*-{worker.pid}-*") == []


def check_goes_on(envs: Any) -> None:
    """After the error and a reset all is as if nothing had been."""
    with pytest.raises(ResetNeeded, match="call reset"):
        step_all(envs)
    envs.reset()
    assert step_all(envs)[1].tolist() == [0.0] * envs.num_envs


# An environment raises


@every_kind
@pytest.mark.parametrize("at", [(0, 0), (0, 2)], ids=["reset", "step"])
def test_an_environment_that_raises_is_named(kind, at):
    """One of many robots fails, and the message does not name it; or the training hangs."""
    envs = make(kind, {"what": "raise", "episode": at[0], "step": at[1]})
    with pytest.raises(SubEnvironmentError, match=r"Environment 1 .*gripper is stuck") as caught:
        run(envs, 2)
    assert "in _happen" in str(caught.value)  # its own traceback
    check_goes_on(envs)
    check_nothing_stays(envs)


@pytest.mark.parametrize(
    "kind", [kind for kind in {**ONE_PROCESS, **PROCESSES} if "dis" not in kind]
)
@pytest.mark.parametrize("success", [0.0, 1.0], ids=["its own end", "success"])
def test_an_environment_that_raises_in_an_autoreset_is_named(kind, success):
    """An automatic reset fails, and the message is about a step or about nothing."""
    trouble = {"what": "raise", "episode": 1, "step": 0, "lengths": [9 if success else 2]}
    seen = ScriptedRewardModel(0.5, lambda clip: success * (len(clip) > 1 and clip.stream.env == 1))
    envs = make(kind, trouble, seen)
    with pytest.raises(SubEnvironmentError, match="Environment 1 failed: RuntimeError"):
        run(envs, 4)
    check_goes_on(envs)
    check_nothing_stays(envs)


@every_kind
def test_an_environment_without_a_reward_is_named(kind):
    """None would become a NaN in an array, and be learned from."""
    envs = make(kind, {"what": "nothing"})
    envs.reset()
    message = "Environment 1 failed: TypeError: The environment's reward must be a number, got None"
    with pytest.raises(SubEnvironmentError, match=message):
        step_all(envs)
    check_nothing_stays(envs)


# The renderer fails


@every_one_process
@pytest.mark.parametrize("at", [0, 1], ids=["reset", "step"])
def test_a_bad_frame_in_one_of_eight_environments_is_named(kind, at):
    """One broken renderer of eight would poison the rewards of its environment unseen."""
    envs = make(kind, {"what": "none", "step": at}, envs=8, at=5)
    with pytest.raises(SubEnvironmentError, match=r"Environment 5 .*render\(\) returned None"):
        run(envs, 1)
    check_goes_on(envs)


@every_one_process
@pytest.mark.parametrize("at", [0, 1], ids=["reset", "step"])
def test_after_a_failure_no_other_environment_is_touched(kind, at):
    """Without MUJOCO_GL the first one fails, and the second aborts the process without a word."""
    envs = make(kind, {"what": "none", "step": at}, at=0)
    with pytest.raises(SubEnvironmentError, match=r"Environment 0 .*render\(\) returned None"):
        run(envs, 1)
    assert envs.unwrapped.envs[1].unwrapped.renders == at
    check_goes_on(envs)


@every_processes
def test_a_bad_frame_in_a_process_is_named(kind):
    """As above, where the environments run in processes."""
    envs = make(kind, {"what": "none"})
    envs.reset()
    with pytest.raises(SubEnvironmentError, match=r"Environment 1 .*render\(\) returned None"):
        step_all(envs)
    check_goes_on(envs)
    check_nothing_stays(envs)


# A process ends


@every_processes
@pytest.mark.parametrize(("what", "code"), [("die", -9), ("exit", 3)])
def test_a_worker_that_dies_at_a_step_is_named(kind, what, code):
    """Out of memory, the system kills one worker; a night's training waits for it until morning."""
    envs = make(kind, {"what": what})
    envs.reset()
    with pytest.raises(
        SubEnvironmentError, match=rf"process of environment 1 \(exit code {code}\) has died"
    ):
        step_all(envs)
    check_nothing_stays(envs)


@every_processes
def test_a_worker_that_dies_in_the_first_reset_is_named(kind):
    """As above; and what the others have sent by then would stay in shared memory for ever."""
    envs = make(kind, {"what": "die", "step": 0})
    with pytest.raises(
        SubEnvironmentError, match=r"process of environment 1 \(exit code -9\) has died"
    ):
        envs.reset()
    check_nothing_stays(envs)


@every_processes
def test_a_worker_that_is_killed_between_steps_is_named(kind):
    """As above."""
    envs = make(kind, {})
    envs.reset()
    victim = processes(envs)[0]
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    with pytest.raises(
        SubEnvironmentError, match=r"process of environment 0 \(exit code -9\) has died"
    ):
        step_all(envs)
    check_nothing_stays(envs)


@every_processes
def test_close_after_a_worker_was_killed_ends_the_others(kind):
    """`close` would wait for the dead one's reply for ever."""
    envs = make(kind, {})
    envs.reset()
    os.kill(processes(envs)[0].pid, signal.SIGKILL)
    check_nothing_stays(envs)


@every_processes
def test_after_an_interrupt_no_reply_is_waited_for(kind, monkeypatch):
    """Ctrl-C would come back at the next reset or close; or a step's reply pass for a reset's."""
    envs = make(kind, {})
    envs.reset()
    workers = processes(envs)

    def interrupted() -> None:
        for worker in workers:
            os.kill(worker.pid, signal.SIGINT)  # a terminal sends it to the whole group
        raise KeyboardInterrupt

    monkeypatch.setattr(envs.unwrapped, "step_wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        step_all(envs)
    assert not any(worker.is_alive() for worker in workers)
    with pytest.raises((SubEnvironmentError, ClosedEnvironmentError)):
        envs.reset()
    check_nothing_stays(envs)


def test_the_broken_pipe_of_something_else_passes():
    """A model on a server that is gone would be reported as a dead environment."""
    core = SyncVectorEnv([captured])
    with pytest.raises(ConnectionResetError, match="server"), report_dead_workers(core):
        raise ConnectionResetError("server")


def test_workers_end_even_if_closing_fails():
    """Processes would stay behind because one of them could not close its window."""
    core = AsyncVectorEnv([captured] * 2, **WORKERS)  # type: ignore[arg-type]
    workers = list(core.processes)

    def close() -> None:
        raise RuntimeError("the window is gone")

    with pytest.raises(RuntimeError, match="window"):
        close_workers(core, close)
    assert not any(worker.is_alive() for worker in workers)


@every_processes
@pytest.mark.filterwarnings("ignore:.*ERROR:UserWarning")  # how Gymnasium logs it
def test_an_observation_that_does_not_fit_ends_in_an_error_and_not_in_a_hang(kind):
    """The vector environment itself refuses it, in the worker or here; nothing may wait then."""
    envs = make(kind, {"what": "misshapen"})
    envs.reset()
    with pytest.raises((ValueError, SubEnvironmentError)):
        step_all(envs)
    check_nothing_stays(envs)


# The model fails


@every_one_process
@pytest.mark.parametrize("failure", [RuntimeError("out of memory"), float("nan")])
@pytest.mark.parametrize("at", [0, 1, 3], ids=["reset", "step", "end"])
def test_a_model_that_fails_is_an_error_and_a_reset_goes_on(kind, failure, at):
    """A NaN would be learned from; or one failure would end a training that could go on."""
    script: list[Any] = [0.5] * 99
    script[2 * at] = failure
    expected = RuntimeError if isinstance(failure, RuntimeError) else RewardModelError
    envs = make(kind, {"lengths": [3]}, ScriptedRewardModel(script))
    with pytest.raises(expected, match=r"out of memory|<env [01], episode 0"):
        run(envs, 3)
    check_goes_on(envs)


def test_a_model_that_fails_leaves_the_workers_alive():
    """Processes that take minutes to start would be lost to a passing error."""
    model = ScriptedRewardModel([0.5, 0.5, RuntimeError("busy"), *[0.5] * 9])
    envs = make("async, same step", {}, model)
    envs.reset()
    with pytest.raises(RuntimeError, match="busy"):
        step_all(envs)
    assert all(worker.is_alive() for worker in processes(envs))
    check_goes_on(envs)
    check_nothing_stays(envs)


# Light workers


def loaded_modules(env: Any, _: Any) -> Any:
    """A camera whose frame shows whether its process has imported torch."""
    import sys

    heavy = {"torch", "transformers", "stable_baselines3"} & set(sys.modules)
    return np.full((4, 4, 3), 1 + len(heavy), np.uint8)


def test_workers_import_no_torch():
    """Sixteen workers would hold sixteen times torch: gigabytes, and a minute to start."""
    model = ScriptedRewardModel()
    envs = make_robometer_vec(
        CountingEnv,
        TASK,
        2,
        model,
        vectorization_mode="async",
        vector_kwargs={"context": "spawn"},
        camera=loaded_modules,
    )
    envs.reset()
    assert [int(clip.images[0].max()) for clip in model.clips] == [1, 1]
    envs.close()
