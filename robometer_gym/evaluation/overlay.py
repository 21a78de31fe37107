"""write_overlay: a video of an episode with its predictions beneath each frame.

Knows nothing of models or environments: everything is read from an EpisodeTrace.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from robometer_gym.data.video import write_video
from robometer_gym.evaluation.fonts import prepare_text
from robometer_gym.evaluation.palette import DETECTED, INK, PALE, PAPER, PROGRESS, SUCCESS, TRUE
from robometer_gym.reward_model import Frame
from robometer_gym.tracking.settings import RewardSettings
from robometer_gym.tracking.trace import EpisodeTrace

__all__ = ["overlay_frames", "write_overlay"]

_MIN_WIDTH = 384  # pixels: room for the text
_PANEL = 112  # pixels beneath the frame
_MARGIN, _LABEL, _VALUE = 12, 84, 44
_FONT_SIZE = 14
_HOLD_S = 1.0  # seconds that the last frame stays
_MIN_FPS = 4.0  # a slower video is tedious to watch
_DEFAULT_FPS = 20.0


def write_overlay(
    trace: EpisodeTrace,
    path: str | os.PathLike[str],
    *,
    label: str = "",
    fps: float | None = None,
) -> None:
    """Write an episode as a video, with progress, success probability and detector beneath.

    Args:
        trace: of the episode, with frames; between predictions the latest one stays.
        path: .mp4, .mov or .mkv; overwritten if it exists.
        label: stands before the task.
        fps: frames per second; by default that of the trace, or 20. Where the trace has no frame of
            every step the video is slower by as much, to last as long as the episode did, but not
            below 4.

    Raises:
        ValueError: a trace without frames; see `write_video`.
        MissingDependencyError: PyAV is missing.
    """
    fps = fps or _playback_fps(trace)
    frames = list(overlay_frames(trace, label))
    write_video(path, frames + [frames[-1]] * round(_HOLD_S * fps), fps)


def overlay_frames(trace: EpisodeTrace, label: str = "") -> Iterator[Frame]:
    """Yield each frame of an episode, enlarged where it is small, with a panel beneath it.

    Raises:
        ValueError: a trace without frames.
    """
    if not trace.frames:
        raise ValueError(
            "This trace has no frames to show: a trace that was read from a file has none."
        )
    steps, progresses, successes = trace.prediction_steps, trace.progress, trace.success
    settings = trace.settings or RewardSettings()
    title = f"{label}: {trace.task}" if label else trace.task
    for frame, step in zip(trace.frames, trace.frame_steps, strict=True):
        latest = int(np.searchsorted(steps, step, side="right")) - 1
        progress = float(progresses[latest]) if latest >= 0 else 0.0
        success = float(successes[latest]) if latest >= 0 else 0.0
        canvas = _new_canvas(frame)
        draw = ImageDraw.Draw(canvas)
        top = canvas.height - _PANEL
        _draw_text(draw, _MARGIN, top + 6, title, canvas.width)
        _draw_bar(draw, canvas.width, top + 32, "progress", progress, PROGRESS)
        _draw_bar(draw, canvas.width, top + 56, "success", success, SUCCESS)
        _draw_threshold(draw, canvas.width, top + 56, settings.success_threshold)
        _draw_marks(draw, top + 84, trace, step)
        yield np.asarray(canvas)


def _playback_fps(trace: EpisodeTrace) -> float:
    """Return frames per second for a video that lasts as long as the episode did."""
    fps = trace.fps or _DEFAULT_FPS
    if len(trace.frames) < 2:
        return fps
    spread = trace.frame_steps[-1] - trace.frame_steps[0]
    return min(fps, max(_MIN_FPS, fps * (len(trace.frames) - 1) / spread))


def _new_canvas(frame: Frame) -> Image.Image:
    """Return the frame, enlarged by a whole factor, above an empty panel."""
    height, width, _ = frame.shape
    factor = max(1, -(-_MIN_WIDTH // width))
    large = Image.fromarray(frame).resize(
        (width * factor, height * factor), Image.Resampling.NEAREST
    )
    canvas = Image.new("RGB", (large.width, large.height + _PANEL), PAPER)
    canvas.paste(large)
    return canvas


def _draw_bar(
    draw: ImageDraw.ImageDraw, width: int, top: int, name: str, value: float, color: str
) -> None:
    left, right = _LABEL, width - _MARGIN - _VALUE
    _draw_text(draw, _MARGIN, top, name, left)
    draw.rectangle((left, top + 2, right, top + 16), fill=PALE)
    if value > 0.0:
        draw.rectangle((left, top + 2, left + round(value * (right - left)), top + 16), fill=color)
    _draw_text(draw, right + 8, top, f"{value:.2f}", width)


def _draw_threshold(draw: ImageDraw.ImageDraw, width: int, top: int, threshold: float) -> None:
    left, right = _LABEL, width - _MARGIN - _VALUE
    at = left + round(threshold * (right - left))
    draw.line((at, top, at, top + 18), fill=INK, width=2)


def _draw_marks(draw: ImageDraw.ImageDraw, top: int, trace: EpisodeTrace, step: int) -> None:
    """Write the step, and which successes have been seen so far."""
    _draw_text(draw, _MARGIN, top, f"step {step}", _LABEL)
    left = float(_LABEL)
    for name, at, color in (
        ("detected", trace.detected_step, DETECTED),
        ("true success", trace.true_success_step, TRUE),
    ):
        if at is not None and step >= at:
            size = draw.textlength(name, font=_font())
            draw.rounded_rectangle((left, top - 1, left + size + 12, top + 19), 4, fill=color)
            draw.text((left + 6, top), name, fill=PAPER, font=_font())
            left += size + 20


def _draw_text(draw: ImageDraw.ImageDraw, left: int, top: int, text: str, right: int) -> None:
    """Write text in one line; words that have no room are left out."""
    text, file = prepare_text(" ".join(text.split()))
    font = _font(file)
    words = text.split(" ")
    while len(words) > 1 and draw.textlength(text, font=font) > right - left:
        words.pop()
        text = " ".join([*words, "..."])
    while text and draw.textlength(text, font=font) > right - left:
        text = text[:-1]  # a single word, or a script without spaces
    draw.text((left, top), text, fill=INK, font=font)


@cache
def _font(file: Path | None = None) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if file is None:
        return ImageFont.load_default(size=_FONT_SIZE)
    return ImageFont.truetype(str(file), _FONT_SIZE)
