"""Public test doubles: a scripted model, an env that counts, and the contract of a reward model.

With these a test states exactly which frames reached the model and which rewards came back, with
no network, no GPU and no download. Knows nothing of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import count
from typing import Any, Literal, SupportsFloat

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from robometer_gym.reward_model import Clip, Frame, Prediction, RewardModel, check_predictions

__all__ = ["CountingEnv", "ScriptedRewardModel", "check_reward_model"]

Value = float | Exception
Script = Sequence[Value] | NDArray[Any] | Callable[[Clip], float]


class ScriptedRewardModel:
    """A reward model that predicts from a script and records the clips that it gets.

    Args:
        progress: one value per clip, in the order of the clips; or a function of the clip; or one
            number for all clips. Every frame of a clip gets the same value. An exception in the
            list is raised for its clip.
        success: likewise, the success probabilities.

    Attributes:
        clips: every clip that was passed to `predict`, in order.
        batches: how many clips each call of `predict` had.
        released: every stream that was released, in order.

    Example:
        >>> import numpy as np
        >>> model = ScriptedRewardModel(progress=[0.25, 0.75], success=0.0)
        >>> clip = Clip(np.zeros((3, 8, 8, 3), np.uint8), "stack the cups")
        >>> [float(p.progress[-1]) for p in model.predict([clip, clip])]
        [0.25, 0.75]
        >>> model.clips[0].task, model.batches
        ('stack the cups', [2])
    """

    def __init__(self, progress: Script | float = 0.5, success: Script | float = 0.0) -> None:
        self._scripts = {"progress": progress, "success": success}
        self.clips: list[Clip] = []
        self.batches: list[int] = []
        self.released: list[Hashable] = []

    def predict(self, clips: Sequence[Clip]) -> list[Prediction]:
        """Return one prediction per clip, from the script.

        Raises:
            IndexError: the script has fewer values than there were clips.
            Exception: the exception that the script holds for a clip.
        """
        self.batches.append(len(clips))
        return [self._predict_clip(clip) for clip in clips]

    def release(self, stream: Hashable) -> None:
        """Record that `stream` has ended."""
        self.released.append(stream)

    def _predict_clip(self, clip: Clip) -> Prediction:
        index = len(self.clips)
        self.clips.append(clip)
        values = {}
        for name, script in self._scripts.items():
            if callable(script):
                value: Value = script(clip)
            elif isinstance(script, Sequence | np.ndarray):
                if index >= len(script):
                    raise IndexError(
                        f"The script has {len(script)} values for {name}; this is clip {index + 1}."
                    )
                value = script[index]
            else:
                value = script
            if isinstance(value, Exception):
                raise value
            values[name] = np.full(len(clip), value, np.float32)
        return Prediction(**values)


End = Literal["terminated", "truncated"]


class CountingEnv(gym.Env[Any, Any]):
    """An environment whose every frame encodes the episode and step that it shows.

    The action does nothing. The env's own reward at step k is k, its observation is k, and each
    frame is of one color, which `CountingEnv.read` decodes, also after a resize.

    Args:
        lengths: steps of each episode; the list repeats.
        ends: how each episode ends, likewise.
        size: (height, width) of the frames.
        cameras: names of further image observations; with any, the observation is a dict
            {"count": ..., name: (H, W, 3) uint8, ...}.
        success: per episode, the `is_success` that the env itself reports, or None for an env
            that reports nothing.
        render_mode: "rgb_array" or None.

    Example:
        >>> env = CountingEnv(lengths=[3])
        >>> _ = env.reset(seed=0)
        >>> _ = env.step(0)
        >>> CountingEnv.read(env.render())
        {'camera': 0, 'episode': 0, 'step': 1}
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - as in gym.Env

    def __init__(
        self,
        lengths: Sequence[int] = (10,),
        ends: Sequence[End] = ("terminated",),
        *,
        size: tuple[int, int] = (24, 32),
        cameras: Sequence[str] = (),
        success: Sequence[bool] | None = None,
        render_mode: str | None = "rgb_array",
    ) -> None:
        self.lengths, self.ends, self.success = tuple(lengths), tuple(ends), success
        self.size, self.cameras, self.render_mode = size, tuple(cameras), render_mode
        self.action_space = gym.spaces.Discrete(2)
        number = gym.spaces.Box(0, np.inf, (1,), np.float32)
        image = gym.spaces.Box(0, 255, (*size, 3), np.uint8)
        self.observation_space = (
            gym.spaces.Dict({"count": number, **dict.fromkeys(self.cameras, image)})
            if self.cameras
            else number
        )
        self.renders = 0
        """Number of calls of `render`: frames cost time, so tests count them."""
        self.episode = -1
        self.steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start the next episode; `info["options"]` holds the options."""
        super().reset(seed=seed)
        self.episode += 1
        self.steps = 0
        return self._observation(), {"options": options}

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Count one step; reward k at step k."""
        self.steps += 1
        ended = self.steps >= self._of_episode(self.lengths)
        end = self._of_episode(self.ends)
        info = {}
        if self.success is not None:
            info["is_success"] = ended and self._of_episode(self.success)
        return (
            self._observation(),
            float(self.steps),
            ended and end == "terminated",
            ended and end == "truncated",
            info,
        )

    def render(self) -> Frame | None:
        """Return the frame of camera 0: (H, W, 3) uint8, or None without a render mode."""
        if self.render_mode is None:
            return None
        self.renders += 1
        return self._paint_frame(0)

    @staticmethod
    def read(frame: NDArray[np.uint8]) -> dict[str, int]:
        """Decode a frame (H, W, 3): camera (0 is render), episode (modulo 15) and step."""
        red, green, blue = (int(value) for value in frame[0, 0])
        if not (frame == frame[0, 0]).all():
            raise ValueError("This frame is not of one color: it was mixed from several frames.")
        camera, episode = divmod(red - 1, 15)
        return {"camera": camera, "episode": episode, "step": green * 256 + blue}

    def _paint_frame(self, camera: int) -> Frame:
        color = (1 + self.episode % 15 + 15 * camera, self.steps // 256 % 256, self.steps % 256)
        return np.full((*self.size, 3), color, np.uint8)

    def _observation(self) -> Any:
        number = np.array([self.steps], np.float32)
        if not self.cameras:
            return number
        views = {name: self._paint_frame(camera) for camera, name in zip(count(1), self.cameras)}
        return {"count": number, **views}

    def _of_episode(self, values: Sequence[Any]) -> Any:
        return values[self.episode % len(values)]


def check_reward_model(model: RewardModel, *, tolerance: float = 1e-4) -> None:
    """Raise unless `model` keeps the contract of `RewardModel`.

    Predicts ragged batches (several lengths, sizes and tasks), and checks shapes, dtypes and
    ranges; that a batch equals its clips one by one; that predictions do not depend on whether
    frames come with a stream; and that no clip is changed.

    Args:
        model: the model under test.
        tolerance: largest allowed difference between a batch and its clips one by one.

    Raises:
        RewardModelError: a result that is not a prediction.
        AssertionError: predictions that disagree, or a clip that was changed.

    Example:
        >>> check_reward_model(ScriptedRewardModel(progress=0.3))
    """
    rng = np.random.default_rng(0)

    def clip(length: int, height: int, width: int, task: str, stream: Hashable = None) -> Clip:
        frames = rng.integers(0, 256, (length, height, width, 3), dtype=np.uint8)
        steps = tuple(range(0, 5 * length, 5)) if stream is not None else None
        return Clip(frames, task, stream, steps)

    clips = [
        clip(1, 64, 64, "open the drawer"),
        clip(8, 64, 64, "push the red block to the left"),
        clip(3, 96, 64, "open the drawer", stream="episode 1"),
        clip(5, 64, 128, "fold the towel {twice}, 'neatly'"),
    ]
    before = [np.stack(clip.images) for clip in clips]
    together = check_predictions(clips, model.predict(clips))
    alone = [check_predictions([clip], model.predict([clip]))[0] for clip in clips]
    unnamed = [Clip(clip.frames, clip.task) for clip in clips]
    anonymous = check_predictions(unnamed, model.predict(unnamed))
    for index, clip_ in enumerate(clips):
        for other, how in ((alone, "alone"), (anonymous, "without a stream")):
            for name in ("progress", "success"):
                mine, its = getattr(together[index], name), getattr(other[index], name)
                if not np.allclose(mine, its, rtol=0, atol=tolerance):
                    raise AssertionError(
                        f"{name} of {clip_} is {mine.tolist()} in a batch and {its.tolist()} {how}."
                    )
        now = np.stack(clip_.images)
        if not (np.array_equal(now, before[index]) and np.array_equal(clip_.frames, now)):
            raise AssertionError(f"predict changed the frames of {clip_}.")
    check_predictions([], model.predict([]))
