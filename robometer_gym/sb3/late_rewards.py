"""LateRewards and buffers for Stable-Baselines3 that compute rewards after the step, in batches.

`VecRobometerReward(late=True)` steps without predicting and returns 0.0 as a placeholder. The
buffer of the algorithm settles all that is owed with one call of the reward model: once per
rollout (PPO, A2C, TRPO), or at the end of each episode (SAC, TD3, DQN, TQC). The windows, and so
the rewards, are those of the synchronous wrapper.

    venv = make_robometer_vec_env(env_id, task, 8, late=True, terminate_on_success=False)
    agent = PPO(
        "MlpPolicy",
        venv,
        rollout_buffer_class=LateRolloutBuffer,
        rollout_buffer_kwargs={"late": LateRewards(venv)},
    )

Knows nothing of how a reward is computed: the EpisodeTracker settles.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.buffers import (
    BaseBuffer,
    DictReplayBuffer,
    DictRolloutBuffer,
    NStepReplayBuffer,
    ReplayBuffer,
    RolloutBuffer,
)
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from robometer_gym.sb3.owed_steps import OwedSteps
from robometer_gym.sb3.vec_env import VecRobometerReward
from robometer_gym.tracking.find_tracker import unwrap

__all__ = [
    "LateDictReplayBuffer",
    "LateDictRolloutBuffer",
    "LateNStepReplayBuffer",
    "LateReplay",
    "LateReplayBuffer",
    "LateRewards",
    "LateRolloutBuffer",
]

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    _Buffer = BaseBuffer
else:
    _Buffer = object


class LateRewards:
    """Connects a buffer with the environments whose rewards it settles.

    A pickle of it is not connected: after loading a saved agent pass a new one, as in
    `SAC.load(path, venv, replay_buffer_kwargs={"late": LateRewards(venv)})`.

    Args:
        venv: the environments of the agent, `VecRobometerReward(late=True)` or wrappers around it.

    Raises:
        ValueError: no `VecRobometerReward(late=True)` in the stack, or a `VecNormalize` that
            normalizes rewards: it would do so before there are any.
    """

    def __init__(self, venv: VecEnv) -> None:
        owed: OwedSteps | None = None
        for layer in unwrap(venv):
            if isinstance(layer, VecNormalize) and layer.norm_reward:
                raise ValueError(
                    "VecNormalize(norm_reward=True) normalizes the rewards that `step` returns, "
                    "and late rewards come after it: use norm_reward=False, or late=False."
                )
            if isinstance(layer, VecRobometerReward):
                owed = layer.owed
        if owed is None:
            raise ValueError(
                f"LateRewards needs environments made with late=True, got {type(venv).__name__} "
                "without: make_robometer_vec_env(..., late=True, terminate_on_success=False)."
            )
        owed.connected = True
        self._owed: OwedSteps | None = owed

    @property
    def owed(self) -> OwedSteps:
        """The steps that are not settled yet.

        Raises:
            ValueError: this was pickled, and so lost its connection.
        """
        if self._owed is None:
            raise ValueError(
                "This buffer was loaded from a file and is connected to no environment: pass "
                'replay_buffer_kwargs={"late": LateRewards(venv)} (or rollout_buffer_kwargs) to '
                "load(), or set buffer.late = LateRewards(venv)."
            )
        return self._owed

    def assign(self, row: int) -> None:
        """Note that the rewards of the latest step belong into `row` of the buffer."""
        self.owed.entries[-1].row = row

    def settle(self, *, wait: bool = True) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Settle the steps that are owed, with predictions in one batch.

        Args:
            wait: for all of them. False takes those that were predicted in the background and
                have arrived; without `background` there are none.

        Yields:
            Row of the buffer and (N,) rewards of each step that has a row.

        Raises:
            Exception: the model failed and `on_error` is "raise". The steps are still owed, and
                their rows are not sampled.
        """
        for step in self.owed.settle(wait=wait):
            if step.row is not None and step.rewards is not None:
                yield step.row, step.rewards

    def __getstate__(self) -> dict[str, Any]:
        """Leave the environments out."""
        return {"_owed": None}


class _LateBuffer(_Buffer):
    """A buffer that notes which of its rows await their rewards."""

    rewards: NDArray[np.float32]

    def __init__(self, *args: Any, late: LateRewards, **kwargs: Any) -> None:
        self.late = late
        super().__init__(*args, **kwargs)


class _LateRollout(_LateBuffer):
    """Settles a rollout before returns and advantages are computed."""

    def reset(self) -> None:
        """Empty the buffer; steps that a callback or another loop has made are settled alone."""
        if self.late.owed.steps:
            list(self.late.settle())
        super().reset()

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Add a row whose rewards are placeholders, plus a bootstrapped value where truncated."""
        self.late.assign(self.pos)
        super().add(*args, **kwargs)

    def compute_returns_and_advantage(self, *args: Any, **kwargs: Any) -> None:
        """Settle all rows, then compute returns and advantages."""
        for row, rewards in self.late.settle():
            # Truncated rows hold the bootstrapped value already. SB3 adds it in single precision.
            self.rewards[row] += rewards.astype(np.float32)
        super().compute_returns_and_advantage(*args, **kwargs)  # type: ignore[misc]


class LateRolloutBuffer(_LateRollout, RolloutBuffer):
    """RolloutBuffer with late rewards, for PPO, A2C and TRPO; pass `late=LateRewards(venv)`.

    For other algorithms with a `rollout_buffer_class`, combine this class with theirs:
    `class LateMaskable(LateRolloutBuffer, MaskableRolloutBuffer): ...`.
    """


class LateDictRolloutBuffer(_LateRollout, DictRolloutBuffer):
    """DictRolloutBuffer with late rewards; pass `late=LateRewards(venv)`."""


class LateReplay(_LateBuffer):
    """Settles rows at the end of an episode, and samples settled rows only."""

    horizon = 1
    """How many rows, from the sampled one on, must be settled."""

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Add a row whose rewards are placeholders; settle all rows where an episode ends."""
        row = self.pos
        super().add(*args, **kwargs)
        self.late.assign(row)
        ended = self.dones[row].any()  # type: ignore[attr-defined]
        if ended or self.late.owed.steps >= self.buffer_size:  # the next row would be overwritten
            self.settle()
        else:
            self.settle(wait=False)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> Any:
        """Sample rows whose rewards are settled; where there are none, settle all first."""
        # Without memory for next observations that of the oldest row is overwritten.
        spared = int(self.full and getattr(self, "optimize_memory_usage", False))
        if self.size() - self._unsettled() - spared < 1:
            self.settle()
        unsettled = self._unsettled()
        if not unsettled:
            return super().sample(batch_size, env=env)
        # The unsettled rows are the newest ones: those before `pos`.
        count = self.size() - unsettled - spared
        oldest = self.pos + spared if self.full else 0
        rows = (oldest + np.random.randint(0, count, size=batch_size)) % self.buffer_size
        return self._get_samples(rows, env=env)

    def _unsettled(self) -> int:
        owed = self.late.owed.steps
        return owed + self.horizon - 1 if owed else 0

    def settle(self, *, wait: bool = True) -> None:
        """Write the rewards that have arrived into their rows; `wait` for all of them."""
        for row, rewards in self.late.settle(wait=wait):
            self.rewards[row] = rewards

    def __getstate__(self) -> dict[str, Any]:
        """Settle first: a file must not hold placeholders."""
        if self.late.owed.steps:
            self.settle()
        return self.__dict__


class LateReplayBuffer(LateReplay, ReplayBuffer):
    """ReplayBuffer with late rewards, for SAC, TD3, DQN and TQC; pass `late=LateRewards(venv)`."""


class LateDictReplayBuffer(LateReplay, DictReplayBuffer):
    """DictReplayBuffer with late rewards; pass `late=LateRewards(venv)`."""


class LateNStepReplayBuffer(LateReplay, NStepReplayBuffer):
    """NStepReplayBuffer with late rewards; pass `late=LateRewards(venv)`.

    A row is sampled only when the rewards of its `n_steps` are settled.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.horizon = self.n_steps
