"""A deployment of two replicas of the demo checkpoint, of which one is killed; prints JSON.

A program of its own: Ray starts processes, and its warnings are not errors of this package.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from robometer_gym.models.loading import LazyRewardModel
from robometer_gym.models.remote import RemoteRewardModel
from robometer_gym.reward_model import Clip, Prediction
from robometer_gym.serve.ray import make_application, serve_on_ray
from tests.serve.schedules import Schedule

CLIENTS, BATCHES = 8, 12
PIDS = 2**22


class DemoWithPid:
    """The demo checkpoint, whose success is the process id of its replica."""

    def predict(self, clips: Sequence[Clip]) -> list[Prediction]:
        pid = np.float32(os.getpid() / PIDS)
        return [
            Prediction(each.progress, np.full(len(each.progress), pid, np.float32))
            for each in LazyRewardModel("demo", device="cpu").predict(clips)
        ]


def run_client(url: str, client: int, results: dict[str, Any], halfway: threading.Barrier) -> None:
    """Predict a drawn schedule; note differences from the local model, and replicas by stream."""
    remote, local = RemoteRewardModel(url, timeout=120.0), LazyRewardModel("demo", device="cpu")
    schedule = Schedule(seed=client, envs=4)
    try:
        for number, clips in enumerate(islice(schedule, BATCHES)):
            if number == BATCHES // 2:
                halfway.wait(1200)
            predictions = remote.predict(clips)
            for clip, mine, other in zip(clips, predictions, local.predict(clips), strict=True):
                results["difference"].append(float(abs(mine.progress - other.progress).max()))
                if clip.stream is not None and number < BATCHES // 2:
                    replicas = results["replicas"].setdefault(id(clip.stream), set())
                    replicas.add(round(float(mine.success[-1]) * PIDS))
                    results["streams"].append(clip.stream)  # keeps the id its own
            for stream in schedule.ended:
                remote.release(stream)
            schedule.ended = []
    except Exception as error:
        results["errors"].append(repr(error))
        halfway.abort()
    remote.close()


def main() -> None:
    """Deploy, predict, kill a replica half-way, and print the results."""
    import ray
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    results: dict[str, Any] = {"difference": [], "replicas": {}, "streams": [], "errors": []}
    try:
        model = LazyRewardModel(DemoWithPid())
        url = serve_on_ray(make_application(model, replicas=2, token="s3cret"), port=port)
        os.environ["ROBOMETER_GYM_TOKEN"] = "s3cret"
        halfway = threading.Barrier(CLIENTS + 1)
        threads = [
            threading.Thread(target=run_client, args=(url, client, results, halfway))
            for client in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        halfway.wait(1200)
        names = [each for each in ray.util.list_named_actors(True) if "RewardModel" in each["name"]]
        time.sleep(0.5)  # requests are on their way
        ray.kill(ray.get_actor(names[0]["name"], namespace=names[0]["namespace"]))
        for thread in threads:
            thread.join()
    finally:
        serve.shutdown()
        ray.shutdown()
    print(
        json.dumps(
            {
                "errors": results["errors"],
                "predictions": len(results["difference"]),
                "difference": max(results["difference"], default=None),
                "streams": len(results["replicas"]),
                "replicas": len(set().union(*results["replicas"].values())),
                "replicas_of_a_stream": max(map(len, results["replicas"].values()), default=0),
                "actors": len(names),
            }
        )
    )


if __name__ == "__main__":
    main()
