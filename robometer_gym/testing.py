"""Public test doubles: a scripted model, an env that counts, and the contract of a reward model.

With these a test states exactly which frames reached the model and what was paid for them, with
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

Answer = float | Exception
Script = Sequence[Answer] | NDArray[Any] | Callable[[Clip], float]


class ScriptedRewardModel:
    """A reward model that answers from a script and remembers what it was asked.

    Args:
        progress: the answers in the order in which clips are asked about, or a function of the
            clip. Every frame of a clip gets the same value. An exception in the list is raised
            when its turn comes.
        success: likewise, the success probabilities; one number serves for all.

    Attributes:
        clips: every clip asked about, in order.
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
        """Answer from the script.

        Raises:
            IndexError: the script has fewer answers than clips were asked about.
            Exception: whatever the script holds at this place.
        """
        self.batches.append(len(clips))
        return [self._answer(clip) for clip in clips]

    def release(self, stream: Hashable) -> None:
        """Remember that `stream` has ended."""
        self.released.append(stream)

    def _answer(self, clip: Clip) -> Prediction:
        asked = len(self.clips)
        self.clips.append(clip)
        values = {}
        for name, script in self._scripts.items():
            if callable(script):
                answer: Answer = script(clip)
            elif isinstance(script, Sequence | np.ndarray):
                if asked >= len(script):
                    raise IndexError(
                        f"The script has {len(script)} answers for {name}; "
                        f"this is question {asked + 1}."
                    )
                answer = script[asked]
            else:
                answer = script
            if isinstance(answer, Exception):
                raise answer
            values[name] = np.full(len(clip), answer, np.float32)
        return Prediction(**values)


End = Literal["terminated", "truncated"]


class CountingEnv(gym.Env[Any, Any]):
    """An environment whose every frame says which episode and step it shows.

    The action does nothing. The env's own reward at step k is k, its observation is k, and its
    frames are of one colour, from which `CountingEnv.read` gets the numbers back, also after a
    resize.

    Args:
        lengths: steps of each episode; the list is gone through again and again.
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
        """How many times `render` was called: frames cost time, so tests count them."""
        self.episode = -1
        self.steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin the next episode; `info["options"]` holds the options as they came."""
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
        """Paint camera 0: (H, W, 3) uint8, or None without a render mode."""
        if self.render_mode is None:
            return None
        self.renders += 1
        return self._paint(0)

    @staticmethod
    def read(frame: NDArray[np.uint8]) -> dict[str, int]:
        """Get back what a frame (H, W, 3) says: camera (0 is render), episode (mod 15) and step."""
        red, green, blue = (int(value) for value in frame[0, 0])
        if not (frame == frame[0, 0]).all():
            raise ValueError("This frame is not of one colour: it was mixed from several frames.")
        camera, episode = divmod(red - 1, 15)
        return {"camera": camera, "episode": episode, "step": green * 256 + blue}

    def _paint(self, camera: int) -> Frame:
        colour = (1 + self.episode % 15 + 15 * camera, self.steps // 256 % 256, self.steps % 256)
        return np.full((*self.size, 3), colour, np.uint8)

    def _observation(self) -> Any:
        number = np.array([self.steps], np.float32)
        if not self.cameras:
            return number
        views = {name: self._paint(camera) for camera, name in zip(count(1), self.cameras)}
        return {"count": number, **views}

    def _of_episode(self, values: Sequence[Any]) -> Any:
        return values[self.episode % len(values)]


def check_reward_model(model: RewardModel, *, tolerance: float = 1e-4) -> None:
    """Raise unless `model` keeps the contract of `RewardModel`.

    Asks for ragged batches (several lengths, sizes and tasks), and checks shapes, dtypes and
    ranges; that a batch equals its clips one by one; that the last frame's answer does not depend
    on whether frames come with a stream; and that no clip is changed.

    Args:
        model: the model under test.
        tolerance: largest allowed difference between a batch and its clips one by one.

    Raises:
        RewardModelError: an answer that cannot be a prediction.
        AssertionError: answers that disagree, or a clip that was changed.

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
        for other, what in ((alone, "alone"), (anonymous, "without a stream")):
            for name in ("progress", "success"):
                mine, its = getattr(together[index], name), getattr(other[index], name)
                if not np.allclose(mine, its, rtol=0, atol=tolerance):
                    raise AssertionError(
                        f"{name} of {clip_} is {mine.tolist()} in a batch "
                        f"and {its.tolist()} {what}."
                    )
        now = np.stack(clip_.images)
        if not (np.array_equal(now, before[index]) and np.array_equal(clip_.frames, now)):
            raise AssertionError(f"predict changed the frames of {clip_}.")
    check_predictions([], model.predict([]))
