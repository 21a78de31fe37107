"""The reward server on Ray Serve: several replicas, on one machine or a cluster.

Every replica is the application of `robometer_gym.serve.app`. Requests of one session reach the
same replica, by consistent hashing, so a stream stays where its frames and its KV cache are. A
client splits its streams into several sessions. A replica that dies costs recomputation: the client
sends the frames again to another one. Needs the extra `ray`, which is imported on first use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette

from robometer_gym.models.loading import LazyRewardModel
from robometer_gym.serve.app import RewardServer
from robometer_gym.serve.limits import Limits
from robometer_gym.serve.server import check_address, read_token

if TYPE_CHECKING:
    from ray.serve import Application

__all__ = ["build", "make_application", "serve_on_ray"]

_SESSIONS_PER_REPLICA = 4  # of one client: its streams spread evenly enough


def make_application(
    reward_model: LazyRewardModel,
    *,
    replicas: int = 1,
    max_replicas: int | None = None,
    num_gpus: float = 0.0,
    token: str | None = None,
    limits: Limits | None = None,
) -> Application:
    """Return an application for `ray.serve.run`.

    Args:
        reward_model: each replica loads it before it receives requests.
        replicas: how many replicas, or the minimum if `max_replicas` is given.
        max_replicas: Ray adds replicas up to this number while many requests wait.
        num_gpus: of each replica; a fraction shares a GPU.
        token: clients must send it.
        limits: of each replica, see `Limits`.
    """
    from ray import serve
    from ray.serve.config import AutoscalingConfig, RequestRouterConfig

    limits = limits or Limits()
    sessions = _SESSIONS_PER_REPLICA * max(replicas, max_replicas or 0)

    def build_replica() -> Starlette:
        reward_model.load()
        return RewardServer(reward_model, token=token, limits=limits, sessions=sessions).app

    router: Any = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
    scaling: dict[str, Any] = {"num_replicas": replicas}
    if max_replicas is not None:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=replicas, max_replicas=max_replicas, target_ongoing_requests=32
            )
        }
    deployment: Any = serve.deployment(
        serve.ingress(build_replica)(),
        name="RewardModel",
        ray_actor_options={"num_gpus": num_gpus},
        max_ongoing_requests=limits.pending_clips,  # the replica batches what waits
        request_router_config=RequestRouterConfig(request_router_class=router),
        health_check_period_s=2,
        graceful_shutdown_timeout_s=10,
        **scaling,
    )
    application: Application = deployment.bind()
    return application


def build(arguments: Mapping[str, Any]) -> Application:
    """Return the application that a Serve config file describes.

    Args:
        arguments: "model" and its loading options under "options"; "replicas", "max_replicas",
            "num_gpus" as in `make_application`. The token comes from the environment variable
            ROBOMETER_GYM_TOKEN.

    Example, config.yaml of `serve deploy`:

        proxy_location: EveryNode
        http_options: {host: 0.0.0.0, port: 8900}
        applications:
          - name: robometer
            import_path: robometer_gym.serve.ray:build
            args: {model: lerobot/Robometer-4B, replicas: 2, max_replicas: 8, num_gpus: 1}
            runtime_env: {env_vars: {ROBOMETER_GYM_TOKEN: SECRET}}

    Raises:
        ValueError: no token, and no `allow_no_token` among the arguments.
    """
    arguments = dict(arguments)
    token = read_token(None)
    if token is None and not arguments.pop("allow_no_token", False):
        raise ValueError(
            "Other machines can reach the application of a Serve config file, so it requires a "
            "token: set ROBOMETER_GYM_TOKEN in runtime_env, or allow_no_token: true in args where "
            "the proxy binds to 127.0.0.1."
        )
    model = LazyRewardModel(arguments.pop("model"), **arguments.pop("options", {}))
    return make_application(model, token=token, **arguments)


def serve_on_ray(
    application: Application, host: str = "127.0.0.1", port: int = 8900, *, token: str | None = None
) -> str:
    """Start an application on the Ray cluster of this machine, or on a new one; return its URL.

    Raises:
        ValueError: no token where one is required.
    """
    from ray import serve
    from ray.serve.config import HTTPOptions

    check_address(host, token)
    serve.start(http_options=HTTPOptions(host=host, port=port))
    serve.run(application, name="robometer")
    return f"http://{host}:{port}"
