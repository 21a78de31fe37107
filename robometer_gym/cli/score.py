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
from robometer_gym.data import Video, read_video
from robometer_gym.evaluation import plot_scores, score_video
from robometer_gym.evaluation.provenance import describe_model, library_versions
from robometer_gym.evaluation.report import predictions_to_dict
from robometer_gym.models.loading import LazyRewardModel
from robometer_gym.reward_model import RewardModelError
from robometer_gym.tracking.settings import RewardSettings
from robometer_gym.tracking.trace import EpisodeTrace
from robometer_gym.tracking.window import Sampling, linspace_indices
from robometer_gym.validation import check_task

logger = logging.getLogger("robometer_gym")

_SETTINGS = ("sampling", "frame_size", "success_threshold")
_FPS = 3.0  # of the authors' published scores
_MANY_FRAMES = 32  # in one pass; the authors' own examples have up to 13
_MAX_FRAMES = 128  # in one pass; the memory that attention takes grows with the square
_MAX_ROWS = 40  # of the printed table
_BAR = 23  # characters, so that a table of two bars has less than 80 columns


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of robometer-gym."""
    parser = commands.add_parser(
        "score",
        help="progress and success of a video, frame by frame",
        description="Score a video: print a table, write a JSON file and a plot.",
        epilog='example: robometer-gym score attempt.mp4 --task "open the drawer"',
    )
    parser.add_argument("video", type=_video_file, help="mp4, mov, avi, mkv, webm, gif, npy or npz")
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
        f"for long videos (default: all frames at once up to {_MAX_FRAMES}, else "
        f"{RewardSettings.max_frames})",
    )
    add_loading_options(parser)
    add_setting_options(parser, _SETTINGS)
    add_common_options(parser, Path("outputs/score"), run)


def run(arguments: argparse.Namespace) -> None:
    """Score one video."""
    # The model takes longest to load, so everything else is checked before.
    check_task(arguments.task)
    settings = RewardSettings(**read_setting_options(arguments, _SETTINGS))
    video = _read_sampled(arguments.video, arguments.fps, settings.frame_size)
    window = _choose_window(arguments.window, len(video.frames))
    if arguments.model == "demo":
        logger.warning("The demo checkpoint knows nothing but the built-in environment.")
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = LazyRewardModel(arguments.model, **read_loading_options(arguments))
    load_model(model)
    trace = _score(model, video, arguments.task, window, settings.sampling)
    print(f"{arguments.video.name}: {trace.task}")
    total = video.indices[-1] + 1
    print(f"{len(video.frames)} of {total} frames, scored by {arguments.model}\n")
    files = [arguments.out / f"{arguments.video.stem}{suffix}" for suffix in (".json", ".png")]
    _print_scores(trace, files[0])
    table = {
        "video": str(arguments.video),
        "reward_model": model.name,
        "checkpoint": describe_model(model),
        "versions": library_versions(),
        "window": window,
        "sampling": settings.sampling,
        **predictions_to_dict(trace),
    }
    files[0].write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    plot_scores(trace, files[1], success_threshold=settings.success_threshold)
    print_files(files)


def _read_sampled(path: Path, fps: float | None, frame_size: int | None) -> Video:
    """Read the frames that are scored; all frames of an array that has no rate."""
    if fps is None and path.suffix.lower() in (".npy", ".npz"):
        whole = read_video(path, frame_size=frame_size)
        if whole.fps is None:
            return whole
    return read_video(path, fps=_FPS if fps is None else fps, frame_size=frame_size)


def _score(
    model: LazyRewardModel, video: Video, task: str, window: int | None, sampling: Sampling
) -> EpisodeTrace:
    """Score a video; explain in words when memory is too small."""
    try:
        return score_video(model, video, task, window=window, sampling=sampling, progress_bar=True)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        count, height, width, _ = video.frames.shape
        raise RewardModelError(
            f"There is not enough memory for {window or count} frames of {height}x{width} at once: "
            f"give --window 8 or less, a lower --fps, a smaller --frame-size or --quantization. "
            f"({error})"
        ) from error


def _video_file(text: str) -> Path:
    """Parse the name of a video; a folder or an address is refused."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"must be a file: download {text} first")
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"must be a file, and {text} is a folder: name one in it")
    return Path(text)


def _choose_window(window: int | None, frames: int) -> int | None:
    """Return the window; warn where there are many frames, and take one where too many."""
    if window is None and frames > _MAX_FRAMES:
        window = RewardSettings.max_frames
        logger.warning(
            "%d frames are too many to go through the model at once: each is scored from at most "
            "%d frames up to it, as with --window %d. A lower --fps takes fewer in all.",
            frames,
            window,
            window,
        )
    elif window is None and frames > _MANY_FRAMES:
        logger.warning(
            "%d frames go through the model at once, which was trained with 8: "
            "--window 8 shows it 8 at a time, a lower --fps fewer in all.",
            frames,
        )
    return window


def _print_scores(trace: EpisodeTrace, file: Path) -> None:
    """Print the scores, of a long video some of them; `file` has all."""
    print(f"frame       time  {'progress':<{_BAR + 6}}  success")
    seconds = trace.seconds
    frames = trace.prediction_steps
    for row in linspace_indices(len(frames), _MAX_ROWS):
        time = "-" if seconds is None else f"{seconds[row]:.2f} s"
        bars = f"{_format_bar(trace.progress[row])}  {_format_bar(trace.success[row])}"
        print(f"{frames[row]:>5}  {time:>9}  {bars}".rstrip())
    if len(frames) > _MAX_ROWS:
        print(f"{_MAX_ROWS} of {len(frames)} rows; all of them are in {file}")


def _format_bar(value: float) -> str:
    return f"{value:.3f} {'#' * round(float(value) * _BAR):<{_BAR}}"
