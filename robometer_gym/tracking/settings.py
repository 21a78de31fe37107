"""RewardSettings: the arguments of all reward wrappers, their defaults and their ranges.

One table for every wrapper, so that the scalar, the vector and the Stable-Baselines3 one cannot
drift apart. Knows nothing of how a setting takes effect.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal, TypedDict, TypeVar, get_args

import numpy as np

from robometer_gym.tracking.shaping import Mode, Signal
from robometer_gym.tracking.success import SuccessDetector
from robometer_gym.tracking.window import FrameHistory, Sampling
from robometer_gym.validation import check_count

__all__ = [
    "Camera",
    "OnError",
    "RewardOptions",
    "RewardSettings",
    "expose_settings_in_signature",
    "read_settings",
]

Camera = str | Callable[[Any, Any], Any]
"""One source of frames: "render", an observation key, or a function of (env, observation)."""

OnError = Literal["raise", "hold", "env"]

Pad = Literal["none", "repeat"]


class RewardOptions(TypedDict, total=False):
    """The fields of `RewardSettings` as keyword arguments, for type checkers and editors."""

    predict_every: int
    max_frames: int
    sampling: Sampling
    pad: Pad
    mode: Mode
    signal: Signal
    gamma: float
    scale: float
    success_threshold: float
    success_votes: int
    success_window: int
    success_bonus: float
    terminate_on_success: bool
    camera: Camera | Mapping[str, Camera]
    frame_size: int | None
    background: bool
    max_wait: float
    timeout: float
    max_black_frames: int | None
    on_error: OnError


@dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """Settings of the reward. All of them go into JSON, except a camera that is a function.

    Attributes:
        predict_every: environment steps between predictions, >= 1. One more is made at reset and
            one at the last step of an episode.
        max_frames: most frames that the model is shown at once, >= 1. 8 is what the released
            checkpoint was trained with.
        sampling: which of the kept frames are shown: "linspace" spreads them over the whole
            episode, first and current one always in (the authors' rule, exact up to
            `8 * max_frames` kept frames); "tail" shows the last ones (LeRobot's rule); "anchored"
            mostly appends, which an engine with a cache can use. See
            `robometer_gym.tracking.window.FrameHistory`.
        pad: "repeat" fills a window of fewer than `max_frames` frames with copies of the newest
            frame, as the authors' code does; "none" shows it as it is. Filled windows are
            computed without the engine's cache.
        mode: "replace": the model's reward alone; "shape": added to the environment's.
        signal: "delta": the progress made since the previous prediction, 0 between predictions;
            "potential": gamma * progress after - progress before on each step, where progress
            counts as 0 at a true end; "progress": the latest progress on each step.
            docs/arguments.md explains the choice.
        gamma: the discount in "potential", in [0, 1]. Pass the agent's own.
        scale: multiplies the signal. Finite.
        success_threshold: a prediction votes "done" when its success probability reaches this.
        success_votes: votes that make a success.
        success_window: how many of the latest predictions vote. The one at reset votes too, but
            nothing is detected before the first step.
        success_bonus: added once, when success is detected; not scaled. Finite.
        terminate_on_success: whether a detected success ends the episode (`terminated`).
        camera: where frames come from: "render"; a key of the observation, whose value is
            (H, W, 3) uint8; a function of (env, observation) that returns such a frame; or a dict
            of these, name to camera: then one prediction is made per camera and the mean counts.
        frame_size: frames are shrunk so that their shortest edge is this many pixels; never
            enlarged. 240 is what the checkpoint was trained on. None keeps the source's size.
        background: predict in a thread, and let the environment go on. Rewards arrive some steps
            late; see `robometer_gym.tracking.background.BackgroundPredictions`.
        max_wait: with `background`, seconds that a step waits for its own prediction, >= 0.
        timeout: with `background`, seconds that the end of an episode waits for everything that is
            owed, >= 0; then `on_error` decides.
        max_black_frames: a camera whose first frames are entirely black is refused after this many
            of them: its renderer is probably broken. Other black frames go to the model, with one
            warning. 1 refuses a black first frame; None never refuses.
        on_error: what happens when the model fails: "raise"; "hold" takes 0 for the model's part
            and keeps the last progress; "env" gives the environment's reward. The last two log a
            warning and count in `info["robometer/errors"]`. A model that cannot be loaded raises
            in any case.

    Raises:
        ValueError: a number outside its range, or a name that is none of the choices.
        TypeError: a value of the wrong kind.

    Example:
        >>> RewardSettings(predict_every=0)
        Traceback (most recent call last):
            ...
        ValueError: predict_every must be an integer >= 1, got 0.
    """

    predict_every: int = 5
    max_frames: int = 8
    sampling: Sampling = "linspace"
    pad: Pad = "none"
    mode: Mode = "replace"
    signal: Signal = "delta"
    gamma: float = 0.99
    scale: float = 1.0
    success_threshold: float = 0.65
    success_votes: int = 2
    success_window: int = 2
    success_bonus: float = 0.0
    terminate_on_success: bool = True
    camera: Camera | Mapping[str, Camera] = "render"
    frame_size: int | None = 240
    background: bool = False
    max_wait: float = 0.0
    timeout: float = 60.0
    max_black_frames: int | None = 10
    on_error: OnError = "raise"

    def __post_init__(self) -> None:
        for name in ("predict_every", "max_frames", "success_votes", "success_window"):
            self._check_count(name)
        for name in ("frame_size", "max_black_frames"):
            if getattr(self, name) is not None:
                self._check_count(name)
        for name in (
            "gamma",
            "scale",
            "success_threshold",
            "success_bonus",
            "max_wait",
            "timeout",
        ):
            self._check_number(name)
        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"gamma must be in [0, 1], got {self.gamma!r}.")
        for name in ("max_wait", "timeout"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be seconds >= 0, got {getattr(self, name)!r}.")
        for name, choices in (
            ("pad", Pad),
            ("mode", Mode),
            ("signal", Signal),
            ("on_error", OnError),
        ):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"{name} must be one of {get_args(choices)}, got {getattr(self, name)!r}."
                )
        for name in ("terminate_on_success", "background"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}.")
        self._check_camera()
        self.new_history()
        self.new_detector()

    def due(self, step: int, ended: bool) -> bool:
        """Return whether a prediction, and so a frame, belongs to a step.

        Args:
            step: which step of its episode it is, from 1.
            ended: whether the environment ended the episode with it.
        """
        return ended or step % self.predict_every == 0

    def new_history(self) -> FrameHistory:
        """Make the frame store of one camera."""
        return FrameHistory(self.max_frames, self.sampling)

    def new_detector(self) -> SuccessDetector:
        """Make the success detector of one environment."""
        return SuccessDetector(self.success_threshold, self.success_votes, self.success_window)

    def _check_count(self, name: str) -> None:
        # As an int: a NumPy number does not go into JSON.
        object.__setattr__(self, name, check_count(name, getattr(self, name)))

    def _check_number(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise TypeError(f"{name} must be a number, got {value!r}.")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value!r}.")
        object.__setattr__(self, name, float(value))

    def _check_camera(self) -> None:
        several = isinstance(self.camera, Mapping)
        cameras = self.camera.values() if isinstance(self.camera, Mapping) else [self.camera]
        if not cameras or not all(isinstance(c, str) or callable(c) for c in cameras):
            raise TypeError(
                "camera must be 'render', an observation key, a function of (env, observation), "
                f"or a dict of these{' with at least one entry' if several else ''}; "
                f"got {self.camera!r}."
            )


def read_settings(called: Callable[..., Any], settings: RewardOptions) -> RewardSettings:
    """Return the settings that a class or function was called with.

    Args:
        called: a class or function with `**settings`, which an error names.
        settings: what came in there.

    Raises:
        TypeError: `called` has no such argument.
        Exception: see `RewardSettings`.
    """
    for name in settings:
        if name not in RewardOptions.__annotations__:
            known = list(inspect.signature(called).parameters)
            close = get_close_matches(name, known, n=1, cutoff=0.75)
            hint = f"Did you mean {close[0]}?" if close else f"It takes {', '.join(known)}."
            if "env_kwargs" in known and not close:
                hint += f" An argument of the environment goes into env_kwargs={{{name!r}: ...}}."
            raise TypeError(
                f"{called.__name__}() got an unexpected keyword argument {name!r}. {hint}"
            )
    return RewardSettings(**settings)


_Called = TypeVar("_Called", bound=Callable[..., Any])


def expose_settings_in_signature(called: _Called) -> _Called:
    """Show the settings and their defaults in place of `**settings`: in help() and editors."""
    signature = inspect.signature(called)
    listed = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    settings = [
        inspect.Parameter(
            f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type
        )
        for f in fields(RewardSettings)
    ]
    called.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*listed, *settings]
    )
    return called
