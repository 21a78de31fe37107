"""robometer-gym serve: one reward model behind HTTP, for many environments."""

from __future__ import annotations

import argparse
import threading
from pathlib import Path
from typing import Any

from robometer_gym.cli.options import add_loading_options, at_least, read_loading_options
from robometer_gym.models.loading import LazyRewardModel
from robometer_gym.validation import MissingDependencyError


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of robometer-gym."""
    parser = commands.add_parser(
        "serve",
        help="a reward model as a server: reward_model='http://...' in the environments",
        description="Serve a reward model over HTTP until Ctrl-C. Environments on this or other "
        "machines use it as reward_model='http://HOST:PORT', without torch.",
        epilog="example: robometer-gym serve --model demo",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; one that other machines can reach requires a token "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--port", type=_port, default=8900, help="0 for a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="file with the token that clients must send "
        "(default: the environment variable ROBOMETER_GYM_TOKEN, or no token)",
    )
    group = parser.add_argument_group("several replicas, on Ray Serve")
    group.add_argument(
        "--ray", action="store_true", help="serve on the Ray cluster of this machine, or a new one"
    )
    group.add_argument(
        "--replicas", type=at_least(1), default=1, metavar="N", help="(default: %(default)s)"
    )
    group.add_argument(
        "--max-replicas", type=at_least(1), metavar="N", help="add replicas while requests wait"
    )
    group.add_argument(
        "--num-gpus", type=float, default=0.0, metavar="X", help="of each replica (default: 0)"
    )
    add_loading_options(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Serve until interrupted."""
    if not arguments.ray and (arguments.replicas, arguments.max_replicas) != (1, None):
        raise ValueError("--replicas and --max-replicas need --ray: one process is one replica.")
    try:
        from robometer_gym.serve.server import read_token, serve

        if arguments.ray:
            from robometer_gym.serve.ray import make_application, serve_on_ray
    except ImportError as error:
        extra = "ray" if arguments.ray else "serve"
        raise MissingDependencyError(
            f"robometer-gym serve needs more libraries ({error}): "
            f"pip install 'robometer-gym[{extra}]'."
        ) from error
    model = LazyRewardModel(arguments.model, **read_loading_options(arguments))

    def show(url: str) -> None:
        print(f"Serving {model.name} at {url}", flush=True)

    token = read_token(arguments.token_file)
    if arguments.ray:
        application = make_application(
            model,
            replicas=arguments.replicas,
            max_replicas=arguments.max_replicas,
            num_gpus=arguments.num_gpus,
            token=token,
        )
        show(serve_on_ray(application, arguments.host, arguments.port, token=token))
        threading.Event().wait()  # until Ctrl-C; then Ray ends the cluster that it started
    try:
        serve(model, arguments.host, arguments.port, token=token, on_start=show)
    except ImportError as error:  # a library that the model needs
        raise MissingDependencyError(str(error)) from error


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to 65535, got {text!r}")
    return int(text)
