"""robometer-gym demo: three policies in the built-in environment, scored by the demo checkpoint."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym

from robometer_gym.cli.options import add_common_options, at_least, load_model, print_files
from robometer_gym.envs import ENV_ID, TASKS
from robometer_gym.evaluation import evaluate, plot_episodes, write_overlay
from robometer_gym.evaluation.provenance import describe_model, library_versions
from robometer_gym.evaluation.report import trace_to_dict
from robometer_gym.models.loading import LazyRewardModel
from robometer_gym.tracking.trace import EpisodeTrace
from robometer_gym.wrappers.single import RobometerRewardWrapper

_TASK, _OTHER_TASK = TASKS[0], TASKS[2]

Episodes = Mapping[str, Sequence[EpisodeTrace]]
"""The episodes of each policy, by its name."""


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of robometer-gym."""
    parser = commands.add_parser(
        "demo",
        help="watch the reward wrapper at work: no GPU, no download",
        description="Let an expert, a random policy, and an expert who follows another instruction "
        "act in the built-in environment, rewarded by the demo checkpoint: print a table, write "
        "videos, a plot and a JSON file.",
        epilog="example: robometer-gym demo --seed 1 --episodes 3",
    )
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="of the first episode (default: %(default)s)"
    )
    parser.add_argument(
        "--episodes",
        type=at_least(1),
        default=1,
        help="of each policy; plot and videos show the first (default: %(default)s)",
    )
    add_common_options(parser, Path("outputs/demo"), run)


def run(arguments: argparse.Namespace) -> None:
    """Roll out the policies and show them."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = LazyRewardModel("demo")
    load_model(model)
    episodes = _roll_out(model, arguments.seed, arguments.episodes)
    print(f"{_TASK}\n")
    _print_table(episodes)
    print_files(_save(arguments.out, episodes, model))


def _roll_out(model: LazyRewardModel, seed: int, episodes: int) -> Episodes:
    """Roll out each policy with the same seeds."""
    env = RobometerRewardWrapper(
        # Episodes end where the model detects success: the true one is shown beside it.
        gym.make(ENV_ID, task=_TASK, render_mode="rgb_array", terminate_on_success=False),
        task=_TASK,
        reward_model=model,
    )
    tabletop: Any = env.unwrapped
    policies: dict[str, str | Callable[[Any], Any]] = {
        "expert": lambda observation: tabletop.expert_action(),
        "random": "random",
        # It goes to another block than the one that the task names.
        "wrong instruction": lambda observation: tabletop.expert_action(task=_OTHER_TASK),
    }
    try:
        return {
            name: evaluate(
                env, policy, episodes, seed, every_frame=True, progress_bar=True
            ).episodes
            for name, policy in policies.items()
        }
    finally:
        env.close()


def _print_table(episodes: Episodes) -> None:
    row = "{:<17} {:>5} {:>6} {:>8} {:>15} {:>9} {:>13}"
    print(
        row.format(
            "policy", "seed", "steps", "return", "final progress", "detected", "true success"
        )
    )
    for name, traces in episodes.items():
        for trace in traces:
            marks = (
                "no" if at is None else f"step {at}"
                for at in (trace.detected_step, trace.true_success_step)
            )
            values = (f"{trace.episode_return:+.3f}", f"{trace.final_progress:.3f}", *marks)
            print(row.format(name, trace.seed, trace.num_steps, *values))


def _save(out: Path, episodes: Episodes, model: LazyRewardModel) -> list[Path]:
    """Write demo.json, and demo.png and a video of each policy, which show its first episode."""
    files = [out / "demo.json", out / "demo.png"]
    rows = [
        {"policy": name, **trace_to_dict(trace)}
        for name, traces in episodes.items()
        for trace in traces
    ]
    table = {
        "env": ENV_ID,
        "reward_model": model.name,
        "checkpoint": describe_model(model),
        "versions": library_versions(),
        "episodes": rows,
    }
    files[0].write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    first = {name: traces[0] for name, traces in episodes.items()}
    labels = [_label(name, trace) for name, trace in first.items()]
    plot_episodes(list(first.values()), files[1], labels=labels, title=_TASK)
    for name, trace in first.items():
        files.append(out / f"{name.replace(' ', '_')}.mp4")
        write_overlay(trace, files[-1], label=name)
    return files


def _label(name: str, trace: EpisodeTrace) -> str:
    if trace.true_success_step is None:
        return f"{name}: {trace.num_steps} steps, no success"
    return f"{name}: success at step {trace.true_success_step}"
