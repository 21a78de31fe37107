"""The command robometer-gym: score a video, evaluate a policy, train on episodes, see a demo.

Reads arguments, prints tables and says where files are; the work is done elsewhere. Nothing
imports this module. Also: python -m robometer_gym.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from gymnasium.error import DependencyNotInstalled

import robometer_gym
from robometer_gym.cli.demo import DemoEpisode, run_demo, save_demo
from robometer_gym.cli.env_and_policy import load_policy, make_env, read_env_kwargs
from robometer_gym.data import Episode, read_episodes, read_lerobot, read_video
from robometer_gym.data.episodes import OUTCOMES
from robometer_gym.evaluation import Scores, evaluate, plot_losses, plot_scores, score_video
from robometer_gym.evaluation.tables import plain_text
from robometer_gym.models.loading import DEFAULT_REWARD_MODEL, LazyRewardModel
from robometer_gym.reward_model import RewardModel, RewardModelError
from robometer_gym.tracking.settings import RewardSettings
from robometer_gym.validation import MissingDependencyError, check_task
from robometer_gym.wrappers.single import RobometerRewardWrapper

__all__ = ["main"]

# What a user can most often mend; CheckpointError is a RewardModelError, and FileNotFoundError an
# OSError. Anything else is a bug of ours and keeps its traceback.
_USER_ERRORS = (
    RewardModelError,
    ValueError,
    TypeError,
    OSError,
    FloatingPointError,
    DependencyNotInstalled,
    MissingDependencyError,
)

_FPS = 3.0  # what the authors' published scores were made with
_MANY_FRAMES = 32  # in one pass; the authors' own examples have up to 13
_BAR = 23  # characters, so that a table of two bars has less than 80 columns


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; those of the process by default.

    Returns:
        0, or 2 after an error that the user can mend, or 130 after Ctrl-C.

    Raises:
        SystemExit: from argparse: 0 after --help and --version, 2 after wrong arguments.
    """
    arguments = _parser().parse_args(argv)
    try:
        with _log_to_stderr(arguments.log_level):
            arguments.run(arguments)
    except KeyboardInterrupt:
        print("robometer-gym: interrupted", file=sys.stderr)
        return 130
    except _USER_ERRORS as error:
        if arguments.debug:
            raise
        print(f"robometer-gym: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def _log_to_stderr(level: int) -> Iterator[None]:
    """Show what the package has to say, and leave its logger as it was."""
    logger = logging.getLogger("robometer_gym")
    handler, before = logging.StreamHandler(), logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="robometer-gym",
        description="Robometer, a video-language reward model, from the command line.",
        epilog="example: robometer-gym demo",
    )
    parser.add_argument("--version", action="version", version=robometer_gym.__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_score(commands)
    _add_eval(commands)
    _add_train(commands)
    _add_demo(commands)
    return parser


def _add_score(commands: Any) -> None:
    parser = commands.add_parser(
        "score",
        help="progress and success of a video, frame by frame",
        description="Score a video: print a table, write a JSON file and a picture.",
        epilog='example: robometer-gym score attempt.mp4 --task "open the drawer"',
    )
    parser.add_argument("video", type=Path, help="mp4, mov, avi, mkv, webm, gif, npy or npz")
    parser.add_argument("--task", required=True, help="what the robot should do, in words")
    _add_predicting_model(parser)
    _add_score_frames(parser)
    _add_common(parser, Path("outputs/score"), _score)


def _add_eval(commands: Any) -> None:
    parser = commands.add_parser(
        "eval",
        help="a policy in an environment: what is paid and detected, what is true",
        description="Let a policy act in an environment, paid by a reward model, and compare its "
        "success detector with the environment's own success: print tables, write them as JSON "
        "and Markdown, and a picture and a video of each episode.",
        epilog='example: robometer-gym eval module:Id-v0 --task "open the drawer"',
    )
    parser.add_argument("env_id", metavar="ENV_ID", help="as gym.make takes it: Id, or module:Id")
    parser.add_argument("--task", required=True, help="what the robot should do, in words")
    parser.add_argument(
        "--policy",
        default="random",
        help="random, sb3:PATH (a saved model of Stable-Baselines3; load only your own) or "
        "sb3:ppo:PATH (default: %(default)s)",
    )
    parser.add_argument(
        "--env-kwargs",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="arguments of the environment; or one JSON object",
    )
    _add_predicting_model(parser)
    parser.add_argument("--episodes", type=_at_least(1), default=10, help="(default: %(default)s)")
    parser.add_argument(
        "--seed", type=_at_least(0), default=0, help="of the first episode (default: %(default)s)"
    )
    parser.add_argument(
        "--predict-every",
        type=_at_least(1),
        default=RewardSettings.predict_every,
        metavar="STEPS",
        help="environment steps between predictions (default: %(default)s)",
    )
    _add_frame_size(parser)
    _add_common(parser, Path("outputs/eval"), _eval)


def _add_score_frames(parser: argparse.ArgumentParser) -> None:
    """Which frames the model is shown."""
    parser.add_argument(
        "--fps",
        type=float,
        help=f"frames scored per second of video (default: {_FPS:g}, or all frames of an array "
        "whose fps is not known)",
    )
    parser.add_argument(
        "--window",
        type=_at_least(1),
        metavar="N",
        help="score each frame from at most N frames up to it, as the reward wrapper does online; "
        "for long videos (default: show the model all frames at once)",
    )
    _add_frame_size(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default=DEFAULT_REWARD_MODEL,
        help="hub id, folder, or 'demo' (default: %(default)s)",
    )
    parser.add_argument(
        "--processor",
        help="hub id or folder of tokenizer and image settings (default: the checkpoint's own, "
        "or those of its base model)",
    )


def _add_predicting_model(parser: argparse.ArgumentParser) -> None:
    """Which model predicts, where, and in how many bits; see `_load`."""
    _add_model(parser)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    parser.add_argument("--dtype", help="(default: bfloat16 on a GPU, float32 on a CPU)")
    parser.add_argument(
        "--quantization", metavar="KIND", help="int8 or nf4, for small cards; float8, for speed"
    )


def _add_frame_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--frame-size",
        type=_at_least(0),
        default=RewardSettings.frame_size,
        metavar="PIXELS",
        help="shrink frames to this shortest edge, as the reward wrapper does; 0 keeps their size "
        "(default: %(default)s)",
    )


def _add_train(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="fine-tune a checkpoint on your own episodes",
        description="Fine-tune a checkpoint on a folder of episodes (RecordEpisodes writes them) "
        "or on a LeRobot dataset. Writes a folder that every reward_model= takes, and a picture of "
        "the losses. For several GPUs: accelerate launch -m robometer_gym train ...",
        epilog="example: robometer-gym train --data rollouts --out outputs/mine",
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="episodes.jsonl, or LeRobot v3"
    )
    parser.add_argument("--camera", help="of a LeRobot dataset (default: the only one)")
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out what cannot be read, and count it"
    )
    _add_model(parser)
    parser.add_argument(
        "--steps", type=_at_least(1), default=1000, help="of the optimiser (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size",
        type=_at_least(1),
        default=8,
        help="questions per step and GPU (default: %(default)s)",
    )
    parser.add_argument("--learning-rate", type=float, default=2e-5, help="(default: %(default)s)")
    parser.add_argument(
        "--full", action="store_true", help="train the language model whole, not with LoRA"
    )
    parser.add_argument("--train-vision", action="store_true", help="train the vision tower too")
    parser.add_argument(
        "--save-every",
        type=_at_least(1),
        default=100,
        metavar="STEPS",
        help="steps between checkpoints (default: %(default)s)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in --out"
    )
    parser.add_argument("--seed", type=_at_least(0), default=42, help="(default: %(default)s)")
    _add_frame_size(parser)
    _add_common(parser, Path("outputs/train"), _train)


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="watch the reward wrapper at work: no GPU, no download",
        description="Let an expert, a random policy, and an expert who follows another instruction "
        "act in the built-in environment, paid by the demo reward model: print a table, write "
        "videos, a picture and a JSON file.",
        epilog="example: robometer-gym demo --seed 1 --episodes 3",
    )
    parser.add_argument(
        "--seed", type=_at_least(0), default=0, help="of the first episode (default: %(default)s)"
    )
    parser.add_argument(
        "--episodes",
        type=_at_least(1),
        default=1,
        help="of each policy; picture and videos show the first (default: %(default)s)",
    )
    _add_common(parser, Path("outputs/demo"), _demo)


def _add_common(
    parser: argparse.ArgumentParser, out: Path, run: Callable[[argparse.Namespace], None]
) -> None:
    parser.add_argument(
        "--out", type=Path, default=out, metavar="DIR", help="where files go (default: %(default)s)"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run, log_level=logging.INFO)


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be an integer >= {least}, got {text!r}")
        return int(text)

    return parse


def _load(arguments: argparse.Namespace) -> RewardModel:
    options = ("device", "dtype", "processor", "quantization")
    try:
        return LazyRewardModel(
            arguments.model, **{name: getattr(arguments, name) for name in options}
        ).load()
    except ImportError as error:
        raise MissingDependencyError(str(error)) from error


def _score(arguments: argparse.Namespace) -> None:
    # The model takes longest to come, so all that may be wrong with the rest is looked at first.
    check_task(arguments.task)
    video = read_video(arguments.video, frame_size=arguments.frame_size or None)
    fps = _FPS if arguments.fps is None and video.fps is not None else arguments.fps
    video.sample(fps)
    if arguments.window is None and len(video.sample(fps)) > _MANY_FRAMES:
        logging.getLogger("robometer_gym").warning(
            "%d frames go through the model at once, which was trained with 8: "
            "--window 8 shows it 8 at a time, a lower --fps fewer in all.",
            len(video.sample(fps)),
        )
    if arguments.model == "demo":
        logging.getLogger("robometer_gym").warning(
            "The demo checkpoint knows nothing but the built-in environment."
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    scores = score_video(
        _load(arguments), video, arguments.task, fps=fps, window=arguments.window, progress_bar=True
    )
    print(f"{arguments.video.name}: {scores.task}")
    print(f"{len(scores)} of {len(video.frames)} frames, scored by {arguments.model}\n")
    _print_scores(scores)
    files = [arguments.out / f"{arguments.video.stem}{suffix}" for suffix in (".json", ".png")]
    scores.save_json(files[0])
    plot_scores(scores, video.frames[scores.frame_indices], files[1])
    _print_files(files)


def _eval(arguments: argparse.Namespace) -> None:
    task = check_task(arguments.task)
    env = make_env(arguments.env_id, task, read_env_kwargs(arguments.env_kwargs))
    policy = load_policy(arguments.policy, env)
    arguments.out.mkdir(parents=True, exist_ok=True)
    env = RobometerRewardWrapper(
        env,
        task,
        _load(arguments),
        predict_every=arguments.predict_every,
        frame_size=arguments.frame_size or None,
    )
    try:
        report = evaluate(env, policy, arguments.episodes, arguments.seed, progress_bar=True)
    finally:
        env.close()
    report = replace(report, policy=arguments.policy, reward_model=arguments.model)
    print(f"{report.env}: {task}")
    print(f"{report.policy}, paid by {report.reward_model}\n")
    print(plain_text(report))
    _print_files(report.save(arguments.out)[:2])
    print(f"      and a picture and a video of each episode in {arguments.out}")


def _train(arguments: argparse.Namespace) -> None:
    episodes = _read_training_data(arguments)
    counted = Counter(episode.outcome for episode in episodes)
    print(
        f"{len(episodes)} episodes of {len({episode.task for episode in episodes})} tasks: "
        + ", ".join(f"{counted[outcome]} {outcome}" for outcome in OUTCOMES)
    )
    from robometer_gym.training import LORA, train  # torch takes seconds to come

    train(
        arguments.model,
        episodes,
        arguments.out,
        processor=arguments.processor,
        lora=None if arguments.full else LORA,
        train_vision=arguments.train_vision,
        resume=arguments.resume,
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        save_steps=arguments.save_every,
        seed=arguments.seed,
    )
    if os.environ.get("RANK", "0") != "0":
        return  # of several processes, started by accelerate launch, the first one tells
    logged = json.loads((arguments.out / "losses.json").read_text())
    _print_files([arguments.out, arguments.out / "losses.png"])
    plot_losses(logged, arguments.out / "losses.png")
    print(f"\nUse it: reward_model={str(arguments.out)!r}, or --model {arguments.out}")


def _read_training_data(arguments: argparse.Namespace) -> list[Episode]:
    bad: Literal["raise", "skip"] = "skip" if arguments.skip_bad else "raise"
    if (arguments.data / "meta" / "info.json").is_file():
        episodes = read_lerobot(arguments.data, camera=arguments.camera, bad=bad)
    else:
        episodes = read_episodes(arguments.data, bad=bad)
    return [episode.shrink(arguments.frame_size or sys.maxsize) for episode in episodes]


def _print_scores(scores: Scores) -> None:
    print(f"frame       time  {'progress':<{_BAR + 6}}  success")
    for row, frame in enumerate(scores.frame_indices):
        time = "-" if scores.seconds is None else f"{scores.seconds[row]:.2f} s"
        bars = f"{_bar(scores.progress[row])}  {_bar(scores.success[row])}"
        print(f"{frame:>5}  {time:>9}  {bars}".rstrip())


def _bar(value: float) -> str:
    return f"{value:.3f} {'#' * round(float(value) * _BAR):<{_BAR}}"


def _demo(arguments: argparse.Namespace) -> None:
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = LazyRewardModel("demo")
    episodes = run_demo(model, seed=arguments.seed, episodes=arguments.episodes)
    print(f"{episodes[0].run.scores.task}\n")
    _print_episodes(episodes)
    _print_files(save_demo(arguments.out, episodes))


def _print_episodes(episodes: Sequence[DemoEpisode]) -> None:
    row = "{:<17} {:>5} {:>6} {:>8} {:>15} {:>9} {:>13}"
    print(
        row.format(
            "policy", "seed", "steps", "return", "final progress", "detected", "true success"
        )
    )
    for episode in episodes:
        run = episode.run
        marks = ("no" if at is None else f"step {at}" for at in (run.detected, run.true_success))
        final = f"{run.scores.progress[-1]:.3f}"
        print(row.format(run.name, episode.seed, run.steps, f"{episode.paid:+.3f}", final, *marks))


def _print_files(files: Sequence[Path]) -> None:
    print("\nWrote " + "\n      ".join(map(str, files)))


if __name__ == "__main__":
    sys.exit(main())
