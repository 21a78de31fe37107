"""Requests that no client should send: refused, within the limits of memory, and without harm."""

import contextlib
import json
import random
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from robometer_gym.models.remote import RemoteRewardModel
from robometer_gym.reward_model import Clip
from robometer_gym.serve.limits import Limits
from tests.serve.servers import ChecksumModel, ServerProcess, read_metrics

MiB = 1 << 20
LIMITS = Limits(
    body=4 * MiB,
    pending_bytes=32 * MiB,
    stored_bytes=16 * MiB,
    streams=20,
    head_seconds=0.5,
    body_seconds=0.5,
)
CLIP = {"task": "open it", "frames": 1, "height": 4, "width": 5, "sent": [0]}
GOOD = Clip(np.full((2, 24, 32, 3), 9, np.uint8), "open the drawer")


@pytest.fixture(scope="module")
def server():
    with ServerProcess(limits=LIMITS) as server:
        server.wait_until_ready()
        yield server


def assert_works(server: ServerProcess) -> None:
    """Assert that a good request still has the right response."""
    remote = RemoteRewardModel(server.url, timeout=10.0)
    (mine,), (other,) = remote.predict([GOOD]), ChecksumModel().predict([GOOD])
    remote.close()
    assert mine.progress.tobytes() == other.progress.tobytes()


def exchange(server: ServerProcess, data: bytes) -> int | None:
    """Send bytes; return the status of the response, or None if the connection was closed."""
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        with contextlib.suppress(OSError):  # it may respond, and close, before all is sent
            connection.sendall(data)
        with contextlib.suppress(ConnectionError):
            head = connection.recv(4096)
            return int(head.split()[1]) if head.startswith(b"HTTP/1.1 ") else None
    return None


def request(body: bytes, length: int | str | None = None, path: str = "/v1/predict") -> bytes:
    length = len(body) if length is None else length
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-robometer\r\n"
        f"Content-Length: {length}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def body(header: Any, frames: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<I", len(text)) + text + frames


def clips(*values: dict[str, Any]) -> dict[str, Any]:
    return {"clips": [{**CLIP, **value} for value in values]}


FRAME = bytes(60)
BAD_BODIES = {
    "nothing": b"",
    "half a length": b"\x01\x00",
    "a header longer than the body": struct.pack("<I", 999) + b"{}",
    "a header beyond the limit": struct.pack("<I", 2**31) + b"{}",
    "bad UTF-8": body(b'{"clips": "\xff\xfe"}'),
    "no JSON": body(b"clips"),
    "deep JSON": body(b"[" * 100_000),
    "deep objects": body(b'{"clips":' * 50_000),
    "a list": body([]),
    "a huge integer": body(b'{"clips": [], "timeout": 1' + b"0" * 5000 + b"}"),
    "a timeout that is NaN": body(b'{"clips": [], "timeout": NaN}'),
    "an endless timeout": body(b'{"clips": [], "timeout": Infinity}'),
    "a height that is NaN": body(
        b'{"clips":[{"task":"a","frames":1,"height":NaN,"width":5,"sent":[0]}]}', FRAME
    ),
    "a negative height": body(clips({"height": -4}), FRAME),
    "a zero width": body(clips({"width": 0}), FRAME),
    "a float as height": body(clips({"height": 4.0}), FRAME),
    "true as height": body(clips({"height": True}), FRAME),
    "text as height": body(clips({"height": "4"}), FRAME),
    "no frames": body(clips({"frames": 0, "sent": []})),
    "too many frames": body(clips({"frames": 65, "sent": list(range(65))}), FRAME * 65),
    "huge frames": body(clips({"height": 10**6, "width": 10**6}), FRAME),
    "frames beyond the body's limit": body(clips({"height": 2000, "width": 2000}), FRAME),
    "a frame too few": body(clips({}), FRAME[:-1]),
    "a byte too many": body(clips({}), FRAME + b"x"),
    "an index beyond the frames": body(clips({"sent": [1]}), FRAME),
    "a negative index": body(clips({"sent": [-1]}), FRAME),
    "an index twice": body(clips({"frames": 2, "sent": [0, 0]}), FRAME * 2),
    "nothing sent of no stream": body(clips({"sent": []})),
    "steps that decrease": body(
        clips({"frames": 2, "stream": "a", "steps": [5, 0], "sent": [0, 1]}), FRAME * 2
    ),
    "too few steps": body(clips({"stream": "a", "steps": []}), FRAME),
    "a huge step": body(clips({"stream": "a", "steps": [2**70]}), FRAME),
    "a stream with spaces": body(clips({"stream": "a b", "steps": [0]}), FRAME),
    "a long stream": body(clips({"stream": "a" * 129, "steps": [0]}), FRAME),
    "a number as stream": body(clips({"stream": 5, "steps": [0]}), FRAME),
    "an empty task": body(clips({"task": " "}), FRAME),
    "no task": body(clips({"task": None}), FRAME),
    "a control token in the task": body(clips({"task": "<|prog_token|>"}), FRAME),
    "a lone surrogate in the task": body(clips({"task": "\ud800"}), FRAME),
    "a long task": body(clips({"task": "a" * 5000}), FRAME),
    "too many clips": body(clips(*[{}] * 257), FRAME * 257),
    "a clip that is a list": body({"clips": [[]]}),
    "clips that are an object": body({"clips": {}}),
    "no JPEG": body({**clips({}), "jpeg": [60]}, FRAME),
    "too few JPEG sizes": body({**clips({}), "jpeg": []}, FRAME),
    "a negative JPEG size": body({**clips({}), "jpeg": [-60]}, FRAME),
    "JPEG sizes as text": body({**clips({}), "jpeg": "60"}, FRAME),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body_is_refused(server, name):
    """It would reach the model, crash the server, or reserve memory that is not there."""
    assert exchange(server, request(BAD_BODIES[name])) == 400
    assert_works(server)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request(b"", length=5 * MiB), 413),
        (request(b"", length=10**14), 413),
        (request(b"", length=10**15 * 10), 411),
        (request(b"", length="-5"), 400),
        (request(b"", length="five"), 400),
        (request(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"), 411),
        (request(b"[" * 9999, path="/v1/release"), 400),
        (request(b'"all"', path="/v1/release"), 400),
        (request(b"[" + b'"a",' * 2000 + b'"a"]', path="/v1/release"), 400),
        (request(b"", length=2 * MiB, path="/v1/release"), 413),
        (b"GET /v1/predict HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"POST /v2/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 404),
        (b"\x16\x03\x01 this is TLS \r\n\r\n", 400),
    ],
    ids=lambda value: value if isinstance(value, int) else repr(value[:40]),
)
def test_a_bad_request_is_refused(server, data, status):
    """A client that is no client of ours could stop the server."""
    assert exchange(server, data) == status
    assert_works(server)


def test_a_head_without_an_end_is_refused(server):
    """It would fill the memory before any limit of this package is looked at."""
    head = b"GET / HTTP/1.1\r\nHost: x\r\nLarge: " + b"x" * 10 * MiB
    assert exchange(server, head) in (None, 400)
    assert_works(server)


def damage(rng: random.Random) -> bytes:
    """Return a request whose body is one good body, damaged at random."""
    good = body(clips({"stream": "fuzz", "steps": [rng.randrange(9)]}), FRAME)
    data = bytearray(rng.choice([good, *BAD_BODIES.values()]))
    kind = rng.randrange(4)
    if kind == 0 and data:
        del data[rng.randrange(len(data)) :]
    elif kind == 1:
        for _ in range(rng.randrange(1, 20)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 2:
        data += rng.randbytes(rng.randrange(1, 5000))
    else:
        start = rng.randrange(len(data) + 1)
        data[start:start] = rng.choice(
            [b"NaN", b"-1", b"null", b"[", b"{", b'"', b"\xff", b"9" * 50]
        )
    length = rng.choice([None, None, None, rng.randrange(10_000), rng.randrange(10**12)])
    return request(bytes(data), length)


def test_a_thousand_damaged_requests_do_no_harm(server):
    """A broken client would take the rewards of all the others with it."""
    rng = random.Random(0)
    assert_works(server)
    before = server.status("VmRSS")
    requests = [damage(rng) for _ in range(1000)]
    with ThreadPoolExecutor(64) as threads:  # those that are too short take until the timeout
        statuses = list(threads.map(partial(exchange, server), requests))
    assert_works(server)
    for status in statuses:
        # Some damage makes another valid request: of an unknown frame (409), or of other bytes.
        assert status is None or status in (200, 409) or 400 <= status < 500
    assert sum(status is not None and 400 <= status < 500 for status in statuses) > 800
    assert server.status("VmHWM") - before < 64 * 1024  # kB
    assert read_metrics(server)["robometer_pending_bytes"] == 0


@pytest.mark.parametrize(
    "part",
    [
        b"",
        b"POST /v1/pre",
        b"POST /v1/predict HTTP/1.1\r\nHost: x\r\n",
        request(b"\x09", length=100_000),
        request(body(clips({}), FRAME[:-1]), length=len(body(clips({}), FRAME))),
    ],
)
def test_a_slow_sender_is_cut_off(server, part):
    """Connections that send nothing would use up all that the server may open."""
    started = time.monotonic()
    assert exchange(server, part) in (None, 408)
    assert time.monotonic() - started < 15
    assert_works(server)


def test_large_bodies_of_many_clients_stay_within_the_limit():
    """Together they would take more memory than the server may use."""
    limits = replace(LIMITS, head_seconds=20.0, body_seconds=20.0)
    with ServerProcess(limits=limits) as server:
        server.wait_until_ready()
        send_large_bodies(server)


def send_large_bodies(server: ServerProcess) -> None:
    frames = bytes(3 * MiB)
    header = clips({"height": 1024, "width": 1024, "stream": "large", "steps": [0]})
    data = request(body(header, frames))
    before = server.status("VmRSS")
    statuses: list[int | None] = []

    def send() -> None:
        for _ in range(4):
            statuses.append(exchange(server, data))

    threads = [threading.Thread(target=send) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 429, None}
    assert statuses.count(200) >= 5
    limit = LIMITS.pending_bytes + LIMITS.stored_bytes + 64 * MiB  # what the interpreter takes
    assert server.status("VmHWM") - before < limit / 1024
    assert_works(server)


def test_a_full_queue_responds_429_and_nothing_is_lost():
    """Clients would wait without an end, or get no prediction, when the server is too slow."""
    limits = Limits(pending_clips=2, batch=1)
    predictions: list[bytes] = []
    with ServerProcess(seconds=0.1, limits=limits) as server:
        remote = RemoteRewardModel(server.url, timeout=60.0)

        def predict() -> None:
            predictions.append(remote.predict([GOOD])[0].progress.tobytes())

        threads = [threading.Thread(target=predict) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        metrics = read_metrics(server)
        remote.close()
    assert set(predictions) == {ChecksumModel().predict([GOOD])[0].progress.tobytes()}
    assert len(predictions) == 8
    assert metrics['robometer_requests_total{path="/v1/predict",status="429"}'] > 0
