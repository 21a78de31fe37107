"""The wire format of docs/server.md, from a client that uses none of this package's code."""

import http.client
import json
import re
import struct
from typing import Any

import numpy as np
import pytest

from robometer_gym.reward_model import Clip
from tests.serve.servers import ChecksumModel, ServerProcess

TOKEN = "a-token"


@pytest.fixture(scope="module")
def server():
    with ServerProcess(token=TOKEN) as server:
        server.wait_until_ready()
        yield server


class OtherClient:
    """A client as one would write it from the documentation."""

    def __init__(self, address: str, token: str | None = TOKEN) -> None:
        self.connection = http.client.HTTPConnection(address, timeout=20)
        self.headers = {"Content-Type": "application/x-robometer", "Robometer-Protocol": "1"}
        if token is not None:
            self.headers["Authorization"] = f"Bearer {token}"

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
        self.connection.request(method, path, body, self.headers)
        response = self.connection.getresponse()
        assert response.getheader("Robometer-Protocol") == "1"
        data = response.read()
        kind = response.getheader("Content-Type", "")
        return response.status, json.loads(data) if "json" in kind else data.decode()

    def post(self, path: str, header: dict[str, Any], frames: list[bytes]) -> tuple[int, Any]:
        text = json.dumps(header).encode()
        return self.request("POST", path, struct.pack("<I", len(text)) + text + b"".join(frames))


@pytest.fixture
def client(server):
    client = OtherClient(server.address)
    yield client
    client.connection.close()


FRAMES = [np.full((4, 5, 3), value, np.uint8) for value in (1, 50, 200)]
RAW = [frame.tobytes() for frame in FRAMES]
CLIP = {"task": "open the drawer", "frames": 2, "height": 4, "width": 5}


def predicted(frames: list[Any]) -> dict[str, Any]:
    (prediction,) = ChecksumModel().predict([Clip(frames, "open the drawer")])
    return {
        "progress": prediction.progress.tolist(),
        "success": prediction.success.tolist(),
    }


def test_a_clip_without_a_stream(client):
    """A client in another language could not be written from the documentation."""
    clip = {**CLIP, "stream": None, "steps": None, "sent": [0, 1]}
    status, values = client.post("/v1/predict", {"clips": [clip]}, RAW[:2])
    assert (status, values) == (200, {"predictions": [predicted(FRAMES[:2])]})


def test_a_stream_sends_each_frame_once(client):
    """The documented way to save bytes would fail, or change the numbers."""
    first = {**CLIP, "stream": "a", "steps": [0, 5], "sent": [0, 1]}
    second = {**CLIP, "frames": 3, "stream": "a", "steps": [0, 5, 9], "sent": [2]}
    client.post("/v1/predict", {"clips": [first]}, RAW[:2])
    status, values = client.post("/v1/predict", {"clips": [second], "timeout": 5.0}, RAW[2:])
    assert (status, values) == (200, {"predictions": [predicted(FRAMES)]})


def test_missing_frames_are_named_by_clip_and_step(client):
    """A client would not know what to send again after a restart."""
    clips = [
        {**CLIP, "stream": None, "steps": None, "sent": [0, 1]},
        {**CLIP, "stream": "lost", "steps": [3, 8], "sent": [1]},
    ]
    status, values = client.post("/v1/predict", {"clips": clips}, [*RAW[:2], RAW[1]])
    assert status == 409
    assert values["missing"] == {"1": [3]}
    clips[1]["sent"] = [0]  # the server kept the other one
    status, values = client.post("/v1/predict", {"clips": clips}, [*RAW[:2], RAW[0]])
    assert (status, values["predictions"]) == (200, [predicted(FRAMES[:2])] * 2)


def test_a_released_stream_is_forgotten(client):
    """Ended episodes would fill the server's memory."""
    clip = {**CLIP, "stream": "released", "steps": [0, 5], "sent": [0, 1]}
    client.post("/v1/predict", {"clips": [clip]}, RAW[:2])
    assert client.request("POST", "/v1/release", b'["released", "unknown"]') == (200, {})
    status, values = client.post("/v1/predict", {"clips": [{**clip, "sent": []}]}, [])
    assert (status, values["missing"]) == (409, {"0": [0, 5]})


def test_a_preference(client):
    """Attempts could not be compared from another language."""
    clips = [{**CLIP, "frames": 1, "stream": None, "steps": None, "sent": [0]} for _ in range(2)]
    status, values = client.post("/v1/prefer", {"clips": clips}, RAW[:2])
    expected = ChecksumModel().prefer(*(Clip([f], "open the drawer") for f in FRAMES[:2]))
    assert (status, values) == (200, {"preference": expected})
    status, values = client.post("/v1/prefer", {"clips": clips[:1]}, RAW[:1])
    assert (status, values["error"]) == (400, "A preference needs two clips of one task.")


def test_jpeg_frames_are_decoded(client):
    """The documented lossy encoding would be refused, or its pixels be taken for raw ones."""
    from io import BytesIO

    from PIL import Image

    data = BytesIO()
    Image.fromarray(FRAMES[1]).save(data, "JPEG", quality=95)
    decoded = np.asarray(Image.open(BytesIO(data.getvalue())))
    clip = {**CLIP, "frames": 1, "stream": None, "steps": None, "sent": [0]}
    header = {"clips": [clip], "jpeg": [len(data.getvalue())]}
    status, values = client.post("/v1/predict", header, [data.getvalue()])
    assert (status, values) == (200, {"predictions": [predicted([decoded])]})


def test_info_health_ready_and_metrics(client, server):
    """An orchestrator could not watch the server, or a client not learn its limits."""
    status, info = client.request("GET", "/info")
    assert status == 200
    assert info["protocol"] == 1
    assert info["model"] == "ChecksumModel"
    assert info["limits"]["frames"] == 64
    assert info["sessions"] == 1
    status, text = client.request("GET", "/metrics")
    assert status == 200
    assert "\n# TYPE robometer_batch_clips histogram\n" in text
    anonymous = OtherClient(server.address, token=None)
    assert anonymous.request("GET", "/health") == (200, {"status": "alive"})
    assert anonymous.request("GET", "/ready") == (200, {"status": "ready"})
    for method, path in (("GET", "/info"), ("GET", "/metrics"), ("POST", "/v1/release")):
        status, values = anonymous.request(method, path, b"[]" if method == "POST" else None)
        assert (status, "requires its token" in values["error"]) == (401, True)
    anonymous.connection.close()


@pytest.mark.parametrize(
    ("headers", "status", "error"),
    [
        ({"Authorization": "Bearer another"}, 401, "requires its token"),
        ({"Authorization": "Bearer \xfc"}, 401, "requires its token"),
        ({"Robometer-Protocol": "2"}, 400, "uses protocol 1 .*, the client 2"),
        ({"Content-Type": "text/plain"}, 415, "Content-Type must be application/x-robometer"),
    ],
)
def test_a_refusal_states_its_reason(client, headers, status, error):
    """A user would see a closed connection and not learn why."""
    client.headers |= headers
    clip = {**CLIP, "stream": None, "steps": None, "sent": [0, 1]}
    came, values = client.post("/v1/predict", {"clips": [clip]}, RAW[:2])
    assert came == status
    assert re.search(error, values["error"])
