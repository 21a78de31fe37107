"""robometer-gym score: progress and success of a video, frame by frame."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from robometer_gym.cli.options import (
    add_common_options,
    add_loading_options,
    add_setting_options,
    at_least,
    load_model,
    print_files,
    read_loading_options,
    read_setting_options,
)
from robometer_gym.data import read_video
from robometer_gym.evaluation import plot_scores, score_video
from robometer_gym.evaluation.report import predictions_to_dict
from robometer_gym.models.loading import LazyRewardModel
from robometer_gym.tracking.settings import RewardSettings
from robometer_gym.tracking.trace import EpisodeTrace
from robometer_gym.validation import check_task

logger = logging.getLogger("robometer_gym")

_SETTINGS = ("sampling", "frame_size", "success_threshold")
_FPS = 3.0  # of the authors' published scores
_MANY_FRAMES = 32  # in one pass; the authors' own examples have up to 13
_BAR = 23  # characters, so that a table of two bars has less than 80 columns


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of robometer-gym."""
    parser = commands.add_parser(
        "score",
        help="progress and success of a video, frame by frame",
        description="Score a video: print a table, write a JSON file and a plot.",
        epilog='example: robometer-gym score attempt.mp4 --task "open the drawer"',
    )
    parser.add_argument("video", type=Path, help="mp4, mov, avi, mkv, webm, gif, npy or npz")
    parser.add_argument("--task", required=True, help="the instruction: 'open the drawer'")
    parser.add_argument(
        "--fps",
        type=float,
        help=f"frames scored per second of video (default: {_FPS:g}, or all frames of an array "
        "whose fps is not known)",
    )
    parser.add_argument(
        "--window",
        type=at_least(1),
        metavar="N",
        help="score each frame from at most N frames up to it, as the reward wrapper does online; "
        "for long videos (default: show the model all frames at once)",
    )
    add_loading_options(parser)
    add_setting_options(parser, _SETTINGS)
    add_common_options(parser, Path("outputs/score"), run)


def run(arguments: argparse.Namespace) -> None:
    """Score one video."""
    # The model takes longest to load, so everything else is checked before.
    check_task(arguments.task)
    settings = RewardSettings(**read_setting_options(arguments, _SETTINGS))
    # Arrays are read as a whole, and may have no rate; of video files only the sampled frames are.
    is_array = arguments.video.suffix.lower() in (".npy", ".npz")
    read_fps = _FPS if arguments.fps is None and not is_array else arguments.fps
    video = read_video(arguments.video, fps=read_fps, frame_size=settings.frame_size)
    fps = _FPS if read_fps is None and video.fps is not None else None
    frames = len(video.sample(fps))
    if arguments.window is None and frames > _MANY_FRAMES:
        logger.warning(
            "%d frames go through the model at once, which was trained with 8: "
            "--window 8 shows it 8 at a time, a lower --fps fewer in all.",
            frames,
        )
    if arguments.model == "demo":
        logger.warning("The demo checkpoint knows nothing but the built-in environment.")
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = LazyRewardModel(arguments.model, **read_loading_options(arguments))
    load_model(model)
    trace = score_video(
        model,
        video,
        arguments.task,
        fps=fps,
        window=arguments.window,
        sampling=settings.sampling,
        progress_bar=True,
    )
    print(f"{arguments.video.name}: {trace.task}")
    print(f"{frames} of {video.indices[-1] + 1} frames, scored by {arguments.model}\n")
    _print_scores(trace)
    files = [arguments.out / f"{arguments.video.stem}{suffix}" for suffix in (".json", ".png")]
    files[0].write_text(json.dumps(predictions_to_dict(trace), indent=2) + "\n", encoding="utf-8")
    plot_scores(trace, files[1], success_threshold=settings.success_threshold)
    print_files(files)


def _print_scores(trace: EpisodeTrace) -> None:
    print(f"frame       time  {'progress':<{_BAR + 6}}  success")
    seconds = trace.seconds
    for row, frame in enumerate(trace.prediction_steps):
        time = "-" if seconds is None else f"{seconds[row]:.2f} s"
        bars = f"{_format_bar(trace.progress[row])}  {_format_bar(trace.success[row])}"
        print(f"{frame:>5}  {time:>9}  {bars}".rstrip())


def _format_bar(value: float) -> str:
    return f"{value:.3f} {'#' * round(float(value) * _BAR):<{_BAR}}"
