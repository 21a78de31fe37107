"""Overhead of a reward server: milliseconds per query, bytes per query, clips per second.

Quantity:
    - "overhead": p50 of a query of one stream through a server on this machine, minus p50 of the
      same query in this process; both alternate, so other work meets both. Bar: 1 ms.
    - "bytes": bodies of an 8-frame window that grows by one frame per query, against the frames of
      the windows. Bar: 6 times fewer.
    - "throughput": clips per second of 64 clients, one stream and one clip per request each,
      against batches of the same size (the server's mean) in this process. Bar: 0.9.
Models: "free" returns constants; "timed" sleeps 10 ms per batch and 2.5 ms per clip, as a GPU
leaves the CPU idle; "demo" is the bundled checkpoint, which computes on the CPU that HTTP needs.
Method: server, clients and this process are separate processes; clients are threads of
--client-processes processes. The first tenth of the queries is the warm-up and does not count.
Hardware: as many CPU cores as there are, no GPU, loopback. Other work shows as noise.

    python benchmarks/reward_server.py
    python benchmarks/reward_server.py --models timed --seconds 20
    python benchmarks/reward_server.py --soak 100000
    python benchmarks/reward_server.py --replicas 1 2  # with Ray: a model of 50 ms for each clip
"""

from __future__ import annotations

import argparse
import http.client
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from harness.report import print_json

from robometer_gym import Clip, LazyRewardModel, Prediction, RemoteRewardModel, RewardModel
from robometer_gym.serve.limits import Limits
from robometer_gym.serve.server import serve

BARS = {"overhead_ms": 1.0, "bytes": 6.0, "throughput": 0.9}
WINDOW = 8
_context = multiprocessing.get_context("spawn")


class TimedModel:
    """Returns constants after a time that depends on the size of the batch.

    Args:
        per_batch: seconds.
        per_clip: seconds.
    """

    def __init__(self, per_batch: float = 0.0, per_clip: float = 0.0) -> None:
        self.per_batch, self.per_clip = per_batch, per_clip

    def predict(self, clips: Sequence[Clip]) -> list[Prediction]:
        """Wait, then return one half for each frame."""
        if seconds := self.per_batch + self.per_clip * len(clips):
            time.sleep(seconds)
        return [Prediction(*np.full((2, len(clip)), 0.5, np.float32)) for clip in clips]


def make_model(name: str) -> RewardModel:
    """Return a model by its name on the command line."""
    if name == "demo":
        return LazyRewardModel("demo", device="cpu").load()
    return TimedModel(0.01, 0.0025) if name == "timed" else TimedModel()


def run_server(name: str, limits: Limits, pipe: Any) -> None:
    """Serve a model, and send the URL through a pipe."""
    serve(LazyRewardModel(make_model(name)), port=0, limits=limits, on_start=pipe.send)


@contextmanager
def server(name: str, limits: Limits | None = None) -> Iterator[str]:
    """Start a server of a model in a process of its own; yield its URL."""
    ours, theirs = _context.Pipe()
    process = _context.Process(target=run_server, args=(name, limits or Limits(), theirs))
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def read_metrics(url: str) -> dict[str, float]:
    """Return the numbers of a server's /metrics."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    }


def growing_windows(size: tuple[int, int], stream: object) -> Iterator[Clip]:
    """Yield the windows of an episode: the newest 8 frames, one more each time."""
    frames = np.random.default_rng(0).integers(0, 256, (64, *size, 3), dtype=np.uint8)
    end = 0
    while True:
        end += 1
        steps = range(max(0, end - WINDOW), end)
        yield Clip([frames[step % 64] for step in steps], "open the drawer", stream, steps)


def measure_query(name: str, size: tuple[int, int], queries: int) -> dict[str, float]:
    """Measure time and bytes per query of one stream, remote and local by turns."""
    local = make_model(name)
    times: dict[str, list[float]] = {"local": [], "remote": []}
    with server(name) as url:
        remote = RemoteRewardModel(url)
        windows = growing_windows(size, "episode")
        frames = 0
        for _ in range(queries):
            clip = next(windows)
            frames += len(clip)
            for arm, model in (("local", local), ("remote", remote)):
                started = time.perf_counter()
                model.predict([clip])
                times[arm].append((time.perf_counter() - started) * 1e3)
        received = read_metrics(url)["robometer_received_bytes_total"]
        remote.close()
    counted = {arm: values[queries // 10 :] for arm, values in times.items()}
    p50 = {arm: statistics.median(values) for arm, values in counted.items()}
    return {
        "local_p50_ms": p50["local"],
        "remote_p50_ms": p50["remote"],
        "remote_p95_ms": statistics.quantiles(counted["remote"], n=20)[-1],
        "overhead_ms": p50["remote"] - p50["local"],
        "bytes_per_query": received / queries,
        "fewer_bytes": frames * size[0] * size[1] * 3 / received,
    }


def run_clients(url: str, size: tuple[int, int], clients: int, ready: Any, end: Any) -> None:
    """Predict with some client threads until the end is set."""
    remote = RemoteRewardModel(url)

    def predict(stream: str) -> None:
        for clip in growing_windows(size, stream):
            if end.is_set():
                return
            remote.predict([clip])

    threads = [
        threading.Thread(target=predict, args=(f"{os.getpid()}-{client}",))
        for client in range(clients)
    ]
    for thread in threads:
        thread.start()
    ready.release()
    for thread in threads:
        thread.join()


def measure_throughput(
    name: str, size: tuple[int, int], clients: int, processes: int, seconds: float
) -> dict[str, float]:
    """Measure clips per second of many clients, and of batches in this process."""
    ready, end = _context.Semaphore(0), _context.Event()
    with server(name) as url:
        arguments = (url, size, clients // processes, ready, end)
        children = [_context.Process(target=run_clients, args=arguments) for _ in range(processes)]
        for child in children:
            child.start()
        for _ in children:
            ready.acquire()
        time.sleep(max(1.0, seconds / 10))
        before, started = read_metrics(url), time.perf_counter()
        time.sleep(seconds)
        after, elapsed = read_metrics(url), time.perf_counter() - started
        end.set()
        for child in children:
            child.join()
    change = {key: after[key] - before.get(key, 0.0) for key in after}
    clips, batches = change["robometer_clips_total"], change["robometer_batch_clips_count"]
    occupancy = clips / batches
    local = measure_batches(make_model(name), size, round(occupancy), seconds)
    return {
        "remote_clips_per_s": clips / elapsed,
        "occupancy": occupancy,
        "local_clips_per_s": local,
        "throughput": clips / elapsed / local,
    }


def measure_batches(model: RewardModel, size: tuple[int, int], batch: int, seconds: float) -> float:
    """Return clips per second of batches in this process."""
    streams = [growing_windows(size, number) for number in range(batch)]
    for _ in range(2):
        model.predict([next(stream) for stream in streams])
    started, clips = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        model.predict([next(stream) for stream in streams])
        clips += batch
    return clips / (time.perf_counter() - started)


def soak(requests: int, clients: int = 8, episode: int = 20) -> list[dict[str, int]]:
    """Send requests of short episodes; return the server's and the clients' resources on the way.

    Half of the episodes are released; the server evicts the others.
    """
    samples: list[dict[str, int]] = []
    done = [0] * clients
    with server("free", Limits(streams=64)) as url:
        (process,) = multiprocessing.active_children()
        remote = RemoteRewardModel(url)

        def predict(client: int) -> None:
            number = 0
            while done[client] < requests // clients:
                stream = (client, number)
                for clip, _ in zip(growing_windows((64, 64), stream), range(episode), strict=False):
                    remote.predict([clip])
                    done[client] += 1
                if number % 2:
                    remote.release(stream)
                number += 1

        threads = [threading.Thread(target=predict, args=(client,)) for client in range(clients)]
        for thread in threads:
            thread.start()
        for tenth in range(1, 11):
            while sum(done) < requests * tenth // 10:
                time.sleep(0.05)
            sample = {"requests": sum(done)}
            for side, pid in (("server", process.pid), ("client", os.getpid())):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                values = dict(line.split(":", 1) for line in lines)
                sample[f"{side}_rss_kb"] = int(values["VmRSS"].split()[0])
                sample[f"{side}_threads"] = int(values["Threads"])
                sample[f"{side}_fds"] = len(os.listdir(f"/proc/{pid}/fd"))
            print(sample, flush=True)
            samples.append(sample)
        for thread in threads:
            thread.join()
        remote.close()
    return samples


def measure_replicas(replicas: int, seconds: float, clients: int = 16) -> float:
    """Return clips per second of Ray replicas whose model takes 50 ms for each clip."""
    import ray
    from ray import serve as ray_serve

    from robometer_gym.serve.ray import make_application, serve_on_ray

    ray.init(num_cpus=replicas + 2, include_dashboard=False, log_to_driver=False)
    model = LazyRewardModel(TimedModel(0.05))
    url = serve_on_ray(
        make_application(model, replicas=replicas, limits=Limits(batch=1)), port=8990
    )
    done = [0] * clients
    end = threading.Event()

    def predict(client: int) -> None:
        remote = RemoteRewardModel(url)
        streams = [growing_windows((64, 64), (client, number)) for number in range(2)]
        while not end.is_set():
            remote.predict([next(stream) for stream in streams])
            done[client] += len(streams)
        remote.close()

    threads = [threading.Thread(target=predict, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(5.0)  # connections and streams of both replicas
    before, started = sum(done), time.perf_counter()
    time.sleep(seconds)
    rate = (sum(done) - before) / (time.perf_counter() - started)
    end.set()
    for thread in threads:
        thread.join()
    ray_serve.shutdown()
    ray.shutdown()
    return rate


def main() -> None:
    """Measure, print tables, and last one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["free", "timed", "demo"])
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), metavar=("H", "W"))
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--client-processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--soak", type=int, metavar="N", help="only send N requests")
    parser.add_argument("--replicas", type=int, nargs="+", metavar="N", help="only measure Ray")
    arguments = parser.parse_args()
    if arguments.replicas:
        rates = {
            number: measure_replicas(number, arguments.seconds) for number in arguments.replicas
        }
        for number, rate in rates.items():
            print(f"{number} Ray replicas: {rate:.1f} clips/s, {rate / min(rates.values()):.2f} x")
        print_json("reward_server", load=os.getloadavg()[0], clips_per_s=rates)
        return
    if arguments.soak:
        print_json("reward_server", soak=soak(arguments.soak))
        return
    size = (arguments.size[0], arguments.size[1])
    results: dict[str, dict[str, float]] = {}
    print(f"{size[0]}x{size[1]}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    for name in arguments.models:
        one = measure_query(name, size, arguments.queries)
        print(
            f"{name:<6} one stream: p50 {one['remote_p50_ms']:.2f} ms remote, "
            f"{one['local_p50_ms']:.2f} ms local, overhead {one['overhead_ms']:.2f} ms (bar: "
            f"{BARS['overhead_ms']:g}); {one['bytes_per_query']:.0f} bytes per query, "
            f"{one['fewer_bytes']:.1f} times fewer (bar: {BARS['bytes']:g})"
        )
        results[name] = one
        if name == "free":
            continue  # its batches take no time, so there is nothing to compare with
        many = measure_throughput(
            name, size, arguments.clients, arguments.client_processes, arguments.seconds
        )
        print(
            f"{name:<6} {arguments.clients} clients: {many['remote_clips_per_s']:.0f} clips/s in "
            f"batches of {many['occupancy']:.1f}, local {many['local_clips_per_s']:.0f}, ratio "
            f"{many['throughput']:.2f} (bar: {BARS['throughput']:g})"
        )
        results[name] |= many
    print_json("reward_server", bars=BARS, load=os.getloadavg()[0], results=results)


if __name__ == "__main__":
    main()
