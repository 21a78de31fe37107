"""Episode: the state of one running episode. Read and changed by the EpisodeTracker alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from robometer_gym.reward_model import Clip, Frame, Prediction
from robometer_gym.tracking.events import Settled, Start, Stream
from robometer_gym.tracking.settings import RewardSettings

__all__ = ["Episode", "MeanPrediction", "mean_prediction"]


class MeanPrediction(NamedTuple):
    """The newest frame's prediction, averaged over all cameras."""

    progress: float
    success: float


class Episode:
    """State of one episode of one environment."""

    def __init__(
        self,
        settings: RewardSettings,
        start: Start,
        number: int = -1,
        reports_success: bool = False,
    ) -> None:
        self.number = number
        self.task = start.task
        self.reports_success = reports_success  # for the env's whole life: some report it only late
        self.running = False
        self.steps = 0
        self.latest: MeanPrediction | None = None
        self.detector = settings.new_detector()
        self.padded_length = settings.max_frames if settings.pad == "repeat" else 0
        self.start: Settled | None = None  # kept until the first step is settled
        self.histories = {camera: settings.new_history() for camera in start.frames}
        self.streams = {camera: Stream(start.env, number, camera) for camera in start.frames}
        self.frame_steps: tuple[int, ...] = ()  # of the latest window
        self.append(start.frames)

    def append(self, frames: Mapping[str, Frame]) -> None:
        """Add the frame of each camera at the current step."""
        for camera, frame in frames.items():
            self.histories[camera].append(frame, self.steps)

    def clips(self) -> list[Clip]:
        """Return the window of each camera, as a clip to predict."""
        clips = []
        for camera, history in self.histories.items():
            frames, steps = history.window()
            missing = self.padded_length - len(frames)
            self.frame_steps = (*steps, *[steps[-1]] * missing)
            if missing > 0:  # a repeated frame has no step of its own
                frames = [*frames, *[frames[-1]] * missing]
                clips.append(Clip(frames, self.task, self.streams[camera]))
            else:
                clips.append(Clip(frames, self.task, self.streams[camera], steps))
        return clips


def mean_prediction(predictions: Sequence[Prediction]) -> MeanPrediction:
    """Return the mean over cameras of the newest frame's prediction."""
    count = len(predictions)
    return MeanPrediction(
        sum(float(p.progress[-1]) for p in predictions) / count,
        sum(float(p.success[-1]) for p in predictions) / count,
    )
