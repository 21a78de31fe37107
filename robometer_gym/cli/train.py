"""robometer-gym train: fine-tune a checkpoint on recorded episodes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from robometer_gym.cli.options import (
    add_common_options,
    add_model_option,
    add_setting_options,
    at_least,
    print_files,
    read_setting_options,
)
from robometer_gym.data import Episode, read_episodes, read_lerobot
from robometer_gym.data.episodes import OUTCOMES
from robometer_gym.evaluation import plot_losses
from robometer_gym.evaluation.tables import count_noun
from robometer_gym.tracking.settings import RewardSettings

_SCORES = {
    "ranking": "ranking (Kendall's tau)",
    "threshold": "highest success of a failure",
    "recall": "recall above that threshold",
    "preference_accuracy": "preference accuracy",
}


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of robometer-gym."""
    parser = commands.add_parser(
        "train",
        help="fine-tune a checkpoint on your own episodes",
        description="Fine-tune a checkpoint on a folder of episodes (RecordEpisodes writes them) "
        "or on a LeRobot dataset. Writes a folder that every reward_model= takes, and a plot of "
        "the losses. For several GPUs: accelerate launch -m robometer_gym train ...",
        epilog="example: robometer-gym train --data rollouts --out outputs/mine",
    )
    _add_data_options(parser)
    add_model_option(parser)
    parser.add_argument(
        "--processor",
        help="hub id or folder of tokenizer and image settings (default: the checkpoint's own, or "
        "those of its base model)",
    )
    _add_training_options(parser)
    add_setting_options(parser, ("frame_size",))
    add_common_options(parser, Path("outputs/train"), run)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="episodes.jsonl, or LeRobot v3"
    )
    parser.add_argument("--camera", help="of a LeRobot dataset (default: the only one)")
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out episodes that cannot be read, and count"
    )


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--steps", type=at_least(1), default=1000, help="of the optimizer (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size",
        type=at_least(1),
        default=8,
        help="examples per step and GPU (default: %(default)s)",
    )
    parser.add_argument(
        "--gradient-accumulation",
        type=at_least(1),
        default=1,
        metavar="N",
        help="batches per step, for a small GPU (default: %(default)s)",
    )
    parser.add_argument("--learning-rate", type=float, default=2e-5, help="(default: %(default)s)")
    parser.add_argument(
        "--warmup-steps",
        type=at_least(0),
        metavar="N",
        help="steps in which the learning rate rises (default: a tenth of --steps)",
    )
    language_model = parser.add_mutually_exclusive_group()
    language_model.add_argument(
        "--lora-rank",
        type=at_least(1),
        metavar="R",
        help="rank of the LoRA adapters, alpha is twice the rank (default: 32)",
    )
    language_model.add_argument(
        "--full", action="store_true", help="train the language model in full, without LoRA"
    )
    parser.add_argument("--train-vision", action="store_true", help="train the vision tower too")
    parser.add_argument(
        "--save-every",
        type=at_least(1),
        default=100,
        metavar="STEPS",
        help="steps between checkpoints (default: %(default)s)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from the last checkpoint in --out"
    )
    parser.add_argument("--seed", type=at_least(0), default=42, help="(default: %(default)s)")
    parser.add_argument(
        "--eval-share",
        type=float,
        default=0.0,
        metavar="X",
        help="share of the episodes to hold out and to score before and after the training "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--report-to",
        nargs="+",
        metavar="NAME",
        help="loggers such as tensorboard or wandb, or none (default: tensorboard if installed)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Fine-tune one checkpoint."""
    episodes = _read_data(arguments)
    counted = Counter(episode.outcome for episode in episodes)
    print(
        f"{count_noun(len(episodes), 'episode')} of "
        f"{count_noun(len({episode.task for episode in episodes}), 'task')}: "
        + ", ".join(f"{counted[outcome]} {outcome}" for outcome in OUTCOMES)
    )
    from robometer_gym.training import LORA, train  # torch takes seconds to import

    rank = arguments.lora_rank or LORA.r
    lora = None if arguments.full else replace(LORA, r=rank, lora_alpha=2 * rank)
    try:
        train(
            arguments.model,
            episodes,
            arguments.out,
            processor=arguments.processor,
            lora=lora,
            train_vision=arguments.train_vision,
            eval_share=arguments.eval_share,
            resume=arguments.resume,
            **_read_training_arguments(arguments),
        )
    except KeyboardInterrupt:
        _plot_losses(arguments.out)
        raise
    if os.environ.get("RANK", "0") != "0":
        return  # of several processes, started by accelerate launch, only the first prints
    if arguments.eval_share > 0.0:
        _print_scores(json.loads((arguments.out / "evaluation.json").read_text()))
    print_files([arguments.out, *_plot_losses(arguments.out)])
    print(f"\nUse it: reward_model={str(arguments.out)!r}, or --model {arguments.out}")


def _read_training_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of transformers' Trainer; None leaves the default."""
    given = {
        "max_steps": arguments.steps,
        "per_device_train_batch_size": arguments.batch_size,
        "gradient_accumulation_steps": arguments.gradient_accumulation,
        "learning_rate": arguments.learning_rate,
        "warmup_steps": arguments.warmup_steps,
        "save_steps": arguments.save_every,
        "seed": arguments.seed,
        "report_to": arguments.report_to,
    }
    return {name: value for name, value in given.items() if value is not None}


def _plot_losses(out: Path) -> list[Path]:
    """Plot the losses if any were logged, and return the files."""
    log = out / "losses.json"
    logged = json.loads(log.read_text()) if log.exists() else []
    if not any("loss" in entry for entry in logged):
        return []
    plot_losses(logged, out / "losses.png")
    return [out / "losses.png"]


def _print_scores(evaluation: dict[str, Any]) -> None:
    """Print the scores of the held-out episodes before and after the training."""
    title = f"{evaluation['episodes']} held-out episodes"
    print(f"\n{title:<34}  before   after")
    for name, label in _SCORES.items():
        values = [evaluation[moment][name] for moment in ("before", "after")]
        columns = ("-" if value is None else f"{value:.2f}" for value in values)
        print(f"{label:<34}" + "".join(f"{column:>8}" for column in columns))


def _read_data(arguments: argparse.Namespace) -> list[Episode]:
    bad: Literal["raise", "skip"] = "skip" if arguments.skip_bad else "raise"
    try:
        if (arguments.data / "meta" / "info.json").is_file():
            episodes = read_lerobot(arguments.data, camera=arguments.camera, bad=bad)
        else:
            episodes = read_episodes(arguments.data, bad=bad)
    except ValueError as error:  # which names the argument of Python
        raise ValueError(str(error).replace("bad='skip'", "--skip-bad")) from error
    settings = RewardSettings(**read_setting_options(arguments, ("frame_size",)))
    return [episode.shrink(settings.frame_size or sys.maxsize) for episode in episodes]
