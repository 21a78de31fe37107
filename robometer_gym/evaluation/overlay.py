"""A video of an episode with what was predicted beneath it: bars that grow as the robot works.

Knows nothing of models or environments: it is given a `Run`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from robometer_gym.data.video import write_video
from robometer_gym.evaluation.plots import Run
from robometer_gym.reward_model import Frame

__all__ = ["overlay_frames", "write_overlay"]

_WIDTH = 384  # pixels, at least: room for the text
_PANEL = 112  # pixels beneath the picture
_MARGIN, _LABEL, _VALUE = 12, 84, 44
_HOLD = 1.0  # seconds that the last picture stays
_SLOWEST = 4.0  # frames per second: slower, and one waits for it

_PAPER, _INK, _PALE = (250, 250, 250), (31, 41, 51), (214, 220, 226)
_PROGRESS, _SUCCESS, _TRUE = (29, 95, 209), (217, 102, 10), (63, 155, 96)


def write_overlay(run: Run, path: str | os.PathLike[str], *, fps: float | None = None) -> None:
    """Write an episode as a video, with progress, success probability and detector beneath.

    Args:
        run: what happened and what was predicted; between predictions the last one stands.
        path: .mp4, .mov or .mkv; overwritten if it exists.
        fps: frames per second; by default that of the scores, or 20. Where the run has no frame of
            every step the video is slower by as much, to last as long as the episode did, but not
            below 4.

    Raises:
        ValueError: see `write_video`.
        MissingDependencyError: PyAV is missing.
    """
    fps = fps or _rate(run)
    frames = list(overlay_frames(run))
    write_video(path, frames + [frames[-1]] * round(_HOLD * fps), fps)


def overlay_frames(run: Run) -> Iterator[Frame]:
    """Yield each frame of an episode, enlarged where it is small, with a panel beneath it."""
    scores = run.scores
    for place, frame in enumerate(run.frames):
        step = run.step(place)
        latest = int(np.searchsorted(scores.frame_indices, step, side="right")) - 1
        canvas = _canvas(frame)
        draw = ImageDraw.Draw(canvas)
        top = canvas.height - _PANEL
        _text(draw, _MARGIN, top + 6, f"{run.name}: {scores.task}", canvas.width)
        progress = float(scores.progress[latest]) if latest >= 0 else 0.0
        success = float(scores.success[latest]) if latest >= 0 else 0.0
        _bar(draw, canvas.width, top + 32, "progress", progress, _PROGRESS)
        _bar(draw, canvas.width, top + 56, "success", success, _SUCCESS)
        _threshold(draw, canvas.width, top + 56, run.success_threshold)
        _state(draw, top + 84, run, step)
        yield np.asarray(canvas)


def _rate(run: Run) -> float:
    """Frames per second, so that the video lasts as long as the episode did."""
    fps = run.scores.fps or 20.0
    if run.frame_steps is None or len(run.frames) < 2:
        return fps
    return max(_SLOWEST, fps * (len(run.frames) - 1) / (run.step(-1) - run.step(0)))


def _canvas(frame: Frame) -> Image.Image:
    """The picture, each of its pixels as large as fits, centred above an empty panel."""
    height, width, _ = frame.shape
    times = max(1, -(-_WIDTH // width))
    large = Image.fromarray(frame).resize((width * times, height * times), Image.Resampling.NEAREST)
    canvas = Image.new("RGB", (large.width, large.height + _PANEL), _PAPER)
    canvas.paste(large)
    return canvas


def _bar(
    draw: ImageDraw.ImageDraw,
    width: int,
    top: int,
    name: str,
    value: float,
    colour: tuple[int, ...],
) -> None:
    left, right = _LABEL, width - _MARGIN - _VALUE
    _text(draw, _MARGIN, top, name, left)
    draw.rectangle((left, top + 2, right, top + 16), fill=_PALE)
    if value > 0.0:
        draw.rectangle((left, top + 2, left + round(value * (right - left)), top + 16), fill=colour)
    _text(draw, right + 8, top, f"{value:.2f}", width)


def _threshold(draw: ImageDraw.ImageDraw, width: int, top: int, threshold: float) -> None:
    left, right = _LABEL, width - _MARGIN - _VALUE
    at = left + round(threshold * (right - left))
    draw.line((at, top, at, top + 18), fill=_INK, width=2)


def _state(draw: ImageDraw.ImageDraw, top: int, run: Run, step: int) -> None:
    """Write the step, and what has been seen by now: by the detector and by the environment."""
    _text(draw, _MARGIN, top, f"step {step}", _LABEL)
    left = float(_LABEL)
    for name, at, colour in (
        ("detected", run.detected, _SUCCESS),
        ("true success", run.true_success, _TRUE),
    ):
        if at is not None and step >= at:
            size = draw.textlength(name, font=_font())
            draw.rounded_rectangle((left, top - 1, left + size + 12, top + 19), 4, fill=colour)
            draw.text((left + 6, top), name, fill=_PAPER, font=_font())
            left += size + 20


def _text(draw: ImageDraw.ImageDraw, left: int, top: int, text: str, right: int) -> None:
    """Write text in one line, cut off where there is no more room."""
    text = " ".join(text.split())
    while text and draw.textlength(text, font=_font()) > right - left:
        text = text[:-1]
    draw.text((left, top), text, fill=_INK, font=_font())


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=14)
