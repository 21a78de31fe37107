"""robometer-gym eval: a policy's episodes in an environment, scored by a reward model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from robometer_gym.cli.env_and_policy import load_policy, make_env, read_env_kwargs
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
from robometer_gym.evaluation import EvaluationInterrupted, Report, evaluate
from robometer_gym.evaluation.tables import plain_text
from robometer_gym.models.loading import LazyRewardModel
from robometer_gym.tracking.trace import EpisodeTrace
from robometer_gym.validation import check_task
from robometer_gym.wrappers.single import RobometerRewardWrapper


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of robometer-gym."""
    parser = commands.add_parser(
        "eval",
        help="a policy in an environment: rewards, detected success, true success",
        description="Roll out a policy in an environment whose reward is a reward model, and "
        "compare its success detector with the environment's own success: print tables, write "
        "them as JSON and Markdown, and a plot and a video of each episode.",
        epilog='example: robometer-gym eval module:Id-v0 --task "open the drawer"',
    )
    parser.add_argument("env_id", metavar="ENV_ID", help="as gym.make takes it: Id, or module:Id")
    parser.add_argument("--task", required=True, help="the instruction: 'open the drawer'")
    parser.add_argument(
        "--policy",
        default="random",
        help="random, or sb3:ALGORITHM:PATH, such as sb3:ppo:agent.zip: a saved model of "
        "Stable-Baselines3; load only your own (default: %(default)s)",
    )
    parser.add_argument(
        "--vecnormalize",
        type=Path,
        metavar="FILE",
        help="the saved VecNormalize of an agent that was trained on normalized observations; "
        "without it such an agent acts on raw ones, and badly",
    )
    parser.add_argument(
        "--env-kwargs",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="arguments of the environment; or one JSON object",
    )
    parser.add_argument("--episodes", type=at_least(1), default=10, help="(default: %(default)s)")
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="of the first episode (default: %(default)s)"
    )
    parser.add_argument(
        "--hold",
        type=at_least(0),
        default=0,
        metavar="N",
        help="let an episode that the environment ends with success run N steps longer, so that "
        "the detector can see it (default: %(default)s)",
    )
    parser.add_argument(
        "--traces",
        type=Path,
        metavar="FILE",
        help="add the trace of each episode to this file as it ends: one JSON line",
    )
    add_loading_options(parser)
    add_setting_options(parser)
    add_common_options(parser, Path("outputs/eval"), run)


def run(arguments: argparse.Namespace) -> None:
    """Evaluate one policy."""
    # The model takes longest to load, so everything else is checked before.
    task = check_task(arguments.task)
    model = LazyRewardModel(arguments.model, **read_loading_options(arguments))
    env = RobometerRewardWrapper(
        make_env(arguments.env_id, task, read_env_kwargs(arguments.env_kwargs)),
        task,
        model,
        **read_setting_options(arguments),
    )
    with closing(env), open_traces(arguments.traces) as write_trace:
        policy = load_policy(arguments.policy, env, arguments.vecnormalize)
        arguments.out.mkdir(parents=True, exist_ok=True)
        load_model(model)
        interrupted = False
        try:
            report = evaluate(
                env,
                policy,
                arguments.episodes,
                arguments.seed,
                hold=arguments.hold,
                on_episode=write_trace,
                progress_bar=True,
            )
        except EvaluationInterrupted as error:
            report, interrupted = error.report, True
    _show(replace(report, policy=arguments.policy), arguments)
    if interrupted:
        raise KeyboardInterrupt(
            f"Interrupted after {len(report.episodes)} of {arguments.episodes} episodes."
        )


def _show(report: Report, arguments: argparse.Namespace) -> None:
    print(f"{report.env}: {arguments.task}")
    print(f"policy {report.policy}, reward model {report.reward_model}\n")
    print(plain_text(report))
    files = report.save(arguments.out, progress_bar=True)[:2]
    print_files(files + [arguments.traces] * (arguments.traces is not None))
    print(f"      and a plot and a video of each episode in {arguments.out}")


@contextmanager
def open_traces(path: Path | None) -> Iterator[Callable[[EpisodeTrace], None] | None]:
    """Open a file for traces; yield a function that adds one, or None without a file."""
    if path is None:
        yield None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:

        def write_trace(trace: EpisodeTrace) -> None:
            file.write(trace.to_json() + "\n")
            file.flush()

        yield write_trace
