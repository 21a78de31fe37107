"""A reward server in a process of its own, which tests kill and restart.

`python -m tests.serve.servers` forks the server, so that a restart takes no time for imports.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Hashable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from robometer_gym.models.loading import LazyRewardModel
from robometer_gym.reward_model import Clip, Frame, Prediction
from robometer_gym.serve.limits import Limits
from tests.paths import ROOT


def _checksum(image: Frame, start: int = 0) -> int:
    return zlib.crc32(np.ascontiguousarray(image).data, start)


class ChecksumModel:
    """A model whose numbers depend on every byte of the frames so far, and on the task.

    It also refuses a frame that differs from one of the same stream and step.

    Args:
        seconds: how long a call takes.
        verify: whether to compare the frames of a stream with those of earlier calls.
    """

    def __init__(self, seconds: float = 0.0, *, verify: bool = True) -> None:
        self.seconds = seconds
        self.verify = verify
        self._streams: dict[Hashable, dict[tuple[int, ...], int]] = {}

    def predict(self, clips: Sequence[Clip]) -> list[Prediction]:
        time.sleep(self.seconds)
        return [self._predict(clip) for clip in clips]

    def release(self, stream: Hashable) -> None:
        self._streams.pop(stream, None)

    def prefer(self, a: Clip, b: Clip) -> float:
        first, second = self.predict([a, b])
        return float(0.5 + (first.progress[-1] - second.progress[-1]) / 2)

    def _predict(self, clip: Clip) -> Prediction:
        if clip.task == "fail":
            raise ValueError("this clip cannot be predicted")
        value, values = zlib.crc32(clip.task.encode()), []
        for index, image in enumerate(clip.images):
            if self.verify and clip.stream is not None and clip.steps is not None:
                seen = self._streams.setdefault(clip.stream, {})
                known = seen.setdefault((clip.steps[index], *image.shape), _checksum(image))
                assert known == _checksum(image), f"{clip} has another frame at this step"
            value = _checksum(image, value)
            values.append(value)
        numbers = np.array(values, np.uint32)
        return Prediction(
            (numbers >> 8).astype(np.float32) / np.float32(2**24),
            (numbers & 0xFFFF).astype(np.float32) / np.float32(2**16),
        )


class ServerProcess:
    """A server of a `ChecksumModel`, or of a named model, on a loopback address.

    Args:
        model: a name, or None for a `ChecksumModel`.
        seconds: how long the `ChecksumModel` takes for a call.
        token: of the server.
        limits: of the server.
        load_seconds: how long its model takes to load.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        seconds: float = 0.0,
        token: str | None = None,
        limits: Limits | None = None,
        load_seconds: float = 0.0,
    ) -> None:
        options = {
            "model": model,
            "seconds": seconds,
            "token": token,
            "limits": asdict(limits or Limits()),
            "load_seconds": load_seconds,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.serve.servers", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.pid, self.url = 0, ""
        self._read_start()

    @property
    def address(self) -> str:
        """The "host:port" of the server."""
        return self.url.removeprefix("http://")

    def wait_until_ready(self) -> None:
        """Wait until the model is loaded."""
        status = 0
        while status != 200:
            connection = http.client.HTTPConnection(self.address, timeout=60)
            connection.request("GET", "/ready")
            status = connection.getresponse().status
            connection.close()

    def kill(self) -> None:
        """Kill the server without a warning."""
        self._command("kill")
        self._read()

    def restart(self) -> None:
        """Kill the server if it runs, and start it on the same port."""
        self._command("restart")
        self._read_start()

    def status(self, name: str) -> int:
        """Return a number from /proc: VmRSS and VmHWM in kB, Threads; or FDs."""
        if name == "FDs":
            return len(os.listdir(f"/proc/{self.pid}/fd"))
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: Any) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()

    def _command(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _read_start(self) -> None:
        pid, self.url = self._read().split()
        self.pid = int(pid)


def read_metrics(server: ServerProcess) -> dict[str, float]:
    """Return the numbers of a server's /metrics."""
    connection = http.client.HTTPConnection(server.address, timeout=20)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def _fork(options: dict[str, Any], port: int) -> tuple[int, str]:
    """Fork a server; return its process id and URL."""
    from robometer_gym.serve.server import serve

    class SlowToLoad(LazyRewardModel):
        def load(self) -> Any:
            time.sleep(options["load_seconds"])
            return super().load()

    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        try:
            serve(
                SlowToLoad(options["model"] or ChecksumModel(options["seconds"])),
                port=port,
                token=options["token"],
                limits=Limits(**options["limits"]),
                on_start=lambda url: os.write(writer, url.encode()),
            )
        finally:
            os._exit(0)
    os.close(writer)
    url = os.read(reader, 100).decode()
    os.close(reader)
    return pid, url


def _kill(pid: int) -> None:
    if pid:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _main() -> None:
    options = json.loads(sys.argv[1])
    if options["model"]:
        import robometer_gym.models.robometer.predictor  # noqa: F401 - not again in each server
    pid, url = _fork(options, 0)
    print(pid, url, flush=True)
    for line in sys.stdin:
        _kill(pid)
        pid = 0
        if line.strip() == "restart":
            pid, url = _fork(options, int(url.rsplit(":", 1)[1]))
            print(pid, url, flush=True)
        else:
            print("killed", flush=True)
    _kill(pid)


if __name__ == "__main__":
    _main()
