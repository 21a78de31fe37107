"""Replay: the rewards and ends of a recorded episode, computed again without the reward model.

Recorded predictions go through the tracker's own `settle`, so there is one set of rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from robometer_gym.reward_model import Clip, Prediction, RewardModelError
from robometer_gym.tracking.events import Event, Start, Step
from robometer_gym.tracking.recorder import TraceRecorder
from robometer_gym.tracking.settings import RewardSettings
from robometer_gym.tracking.trace import EpisodeTrace, TracePrediction
from robometer_gym.tracking.tracker import EpisodeTracker

__all__ = ["replay"]

_PIXEL = np.zeros((1, 1, 3), np.uint8)  # in place of frames, which nothing looks at again
_RECORDED = ("predict_every", "max_frames", "sampling", "pad", "camera", "frame_size")


def replay(trace: EpisodeTrace, settings: RewardSettings | None = None) -> EpisodeTrace:
    """Return the trace as it would have been with other settings of the reward.

    With success detected earlier the episode ends there. With success detected later, or never,
    it ends where the recording does, and `EpisodeTrace.ended` is False: how the
    environment would have continued is unknown.

    Args:
        trace: of an episode; a video has no rewards to compute.
        settings: by default those of the recording. What decides which frames are predicted
            (predict_every, max_frames, sampling, camera, frame_size) must be the recording's.

    Raises:
        ValueError: a trace without settings, or settings that need other predictions.
        RewardModelError: a recorded failure where `on_error` is "raise".

    Example:
        >>> from robometer_gym import RobometerRewardWrapper
        >>> from robometer_gym.testing import CountingEnv, ScriptedRewardModel
        >>> model = ScriptedRewardModel(progress=[0.0, 0.5])
        >>> env = RobometerRewardWrapper(CountingEnv(lengths=[3]), "push the block", model)
        >>> traces = []
        >>> with TraceRecorder(env.tracker, traces.append):
        ...     _ = env.reset()
        ...     rewards = [env.step(0)[1] for _ in range(3)]
        >>> replay(traces[0], replace(env.tracker.settings, scale=2.0)).episode_return
        1.0
    """
    if trace.settings is None:
        raise ValueError("This trace has no settings: it is of a video, which has no rewards.")
    settings = trace.settings if settings is None else settings
    for name in _RECORDED:
        recorded, wanted = getattr(trace.settings, name), getattr(settings, name)
        if recorded != wanted:
            raise ValueError(
                f"{name} must be {recorded!r} as in the recording, got {wanted!r}: other frames "
                "would have been predicted, and a replay predicts nothing."
            )
    replayed: list[EpisodeTrace] = []
    tracker = EpisodeTracker(settings, _NoModel())
    with TraceRecorder(tracker, replayed.append):
        for event, prediction in _events(trace):
            pending = tracker.observe([event])
            (outcome,) = tracker.settle(pending, _answer(pending.clips, prediction))
            if outcome.terminated or (isinstance(event, Step) and event.truncated):
                break
    unchanged = ("env", "episode", "seed", "fps", "reward_model", "video", "frames", "frame_steps")
    return replace(replayed[0], **{name: getattr(trace, name) for name in unchanged})


def _events(trace: EpisodeTrace) -> list[tuple[Event, TracePrediction | None]]:
    by_step = {prediction.step: prediction for prediction in trace.predictions}
    cameras = next(
        (p.cameras for p in trace.predictions if p.cameras is not None), {"camera": None}
    )
    frames = dict.fromkeys(cameras, _PIXEL)
    events: list[tuple[Event, TracePrediction | None]] = [
        (Start(0, trace.task, frames), by_step[0])
    ]
    for number, step in enumerate(trace.steps, 1):
        prediction = by_step.get(number)
        event = Step(
            0,
            step.env_reward,
            step.env_terminated,
            step.truncated,
            None if prediction is None else frames,
            step.true_success,
        )
        events.append((event, prediction))
    return events


def _answer(
    clips: Sequence[Clip], prediction: TracePrediction | None
) -> Sequence[Prediction] | Exception:
    if prediction is None:
        return []
    if prediction.cameras is None:
        return RewardModelError("The recorded prediction had failed.")
    return list(prediction.cameras.values())


class _NoModel:
    """The reward model of a replay, which is never called."""

    def predict(self, clips: Sequence[Clip]) -> list[Prediction]:
        raise AssertionError("a replay predicts nothing")
