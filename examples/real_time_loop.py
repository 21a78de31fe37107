"""Control loop at 10 Hz whose reward model takes 300 ms: the loop does not wait.

You will see: the period of the loop (median, 99th percentile, maximum) with `background=True`, the
delay of late rewards in steps, and that every reward equals that of a loop that waits.
Command: python examples/real_time_loop.py [--steps 500]
Hardware: any, without a GPU; as long as the loop takes, 50 seconds for 500 steps.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from robometer_gym import Clip, EpisodeTrace, LazyRewardModel, Prediction, RobometerRewardWrapper
from robometer_gym.envs import ENV_ID, TASKS
from robometer_gym.tracking.recorder import TraceRecorder

PERIOD = 0.1  # seconds


class SlowModel:
    """The demo checkpoint, as slow as a large one."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.model = LazyRewardModel("demo").load()

    def predict(self, clips: Sequence[Clip]) -> list[Prediction]:
        """Predict, and take at least `seconds`."""
        done = time.perf_counter() + self.seconds
        predictions = self.model.predict(clips)
        time.sleep(max(0.0, done - time.perf_counter()))
        return predictions


def run(steps: int, seconds: float, background: bool) -> tuple[list[EpisodeTrace], Any, list[int]]:
    """Return the ended traces, the periods within episodes, and the delay of each reward."""
    robot = gym.make(ENV_ID, task=TASKS[0], render_mode="rgb_array", terminate_on_success=False)
    env = RobometerRewardWrapper(
        robot, TASKS[0], SlowModel(seconds), background=background, terminate_on_success=False
    )
    traces, periods, delays = list[EpisodeTrace](), [], []
    with TraceRecorder(env.tracker, traces.append):
        over, tick = True, 0.0
        for number in range(steps):
            if over:  # the robot is moved back to its start; the baseline is predicted
                env.reset(seed=number)
                tick = time.perf_counter()
            action = env.unwrapped.expert_action()  # type: ignore[attr-defined]
            _, _, terminated, truncated, info = env.step(action)
            over = terminated or truncated
            delays.append(info.get("robometer/delay", 0))
            if background:
                time.sleep(max(0.0, tick + PERIOD - time.perf_counter()))
                if not over:  # the end waits for the rewards that are owed
                    periods.append(time.perf_counter() - tick)
                tick = time.perf_counter()
    env.close()
    return [trace for trace in traces if trace.ended], np.array(periods), delays


def main() -> None:
    """Run both loops and compare their rewards."""
    parser = argparse.ArgumentParser(description="Control loop that does not wait for rewards.")
    parser.add_argument("--steps", type=int, default=500)
    steps = parser.parse_args().steps
    late, periods, delays = run(steps, seconds=0.3, background=True)
    median, p99 = np.percentile(1000 * periods, [50, 99])
    print(f"period: median {median:.1f} ms, p99 {p99:.1f} ms, max {1000 * periods.max():.1f} ms")
    print(f"rewards: at most {max(delays)} steps late")
    now, _, _ = run(steps, seconds=0.0, background=False)
    ours, theirs = ([s.reward for trace in traces for s in trace.steps] for traces in (late, now))
    difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    print(f"largest difference from the rewards of a loop that waits: {difference:.1e}")


if __name__ == "__main__":
    main()
