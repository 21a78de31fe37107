"""robometer-gym eval: a policy's episodes in an environment, scored by a reward model."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
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
from robometer_gym.evaluation import evaluate
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
    with ExitStack() as stack:
        stack.callback(env.close)
        policy = load_policy(arguments.policy, env)
        arguments.out.mkdir(parents=True, exist_ok=True)
        if arguments.traces is not None:
            file = stack.enter_context(arguments.traces.open("a", encoding="utf-8"))

        def write_trace(trace: EpisodeTrace) -> None:
            if arguments.traces is not None:
                file.write(trace.to_json() + "\n")
                file.flush()

        load_model(model)
        report = evaluate(
            env,
            policy,
            arguments.episodes,
            arguments.seed,
            on_episode=write_trace,
            progress_bar=True,
        )
    report = replace(report, policy=arguments.policy)
    print(f"{report.env}: {task}")
    print(f"policy {report.policy}, reward model {report.reward_model}\n")
    print(plain_text(report))
    print_files(report.save(arguments.out)[:2] + [arguments.traces] * bool(arguments.traces))
    print(f"      and a plot and a video of each episode in {arguments.out}")
