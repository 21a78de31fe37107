"""Environments of each kind for the tests of evaluate, and a model that detects on a schedule."""

from gymnasium.vector import AutoresetMode

from robometer_gym import RobometerRewardWrapper, make_robometer_vec
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
