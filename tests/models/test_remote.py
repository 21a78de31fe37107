"""RemoteRewardModel: the numbers of a local model, or an error in words; never anything else."""

import copy
import json
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from robometer_gym import LazyRewardModel, RobometerRewardWrapper
from robometer_gym.models.http_client import TOKEN_VARIABLE
from robometer_gym.models.remote import RemoteRewardModel
from robometer_gym.reward_model import Clip, Prediction, RewardModelError
from robometer_gym.serve.limits import Limits
from robometer_gym.testing import CountingEnv, check_reward_model
from tests.serve.servers import ChecksumModel, ServerProcess, read_metrics
from tests.test_layout import run_without

CLIP = Clip(np.full((2, 8, 8, 3), 9, np.uint8), "open the drawer")
Respond = Callable[[str, dict[str, str], bytes], tuple[int, dict[str, str], bytes]]


def same(mine: list[Prediction], clips: list[Clip]) -> bool:
    """Return whether predictions are those of a local model, bit for bit."""
    return [p.progress.tobytes() + p.success.tobytes() for p in mine] == [
        p.progress.tobytes() + p.success.tobytes() for p in ChecksumModel().predict(clips)
    ]


def frames(count: int, size: tuple[int, int] = (8, 8), seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 256, (count, *size, 3), dtype=np.uint8))


def window(images: list[Any], end: int, stream: object, length: int = 8) -> Clip:
    """Return the last frames up to `end`, of which each step is its index."""
    steps = range(max(0, end - length), end)
    return Clip([images[step] for step in steps], "open the drawer", stream, steps)


@pytest.fixture(scope="module")
def server():
    with ServerProcess() as server:
        server.wait_until_ready()
        yield server


@pytest.fixture
def remote(server):
    remote = RemoteRewardModel(server.url)
    yield remote
    remote.close()


@contextmanager
def fake_server(respond: Respond) -> Iterator[str]:
    """Serve `respond(path, headers, body) -> (status, headers, body)`; yield the URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, data = respond(self.path, dict(self.headers.items()), body)
            self.send_response(status)
            for name, value in {"Robometer-Protocol": "1", **headers}.items():
                if value:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def remote_of(respond: Respond, **options: Any) -> Iterator[RemoteRewardModel]:
    """Yield a client of a fake server."""
    with fake_server(respond) as url:
        remote = RemoteRewardModel(url, **{"timeout": 10.0, **options})
        try:
            yield remote
        finally:
            remote.close()


# --- the numbers ---


def test_it_keeps_the_contract_of_a_reward_model():
    """What works with a local model would not with a server."""
    with ServerProcess("demo") as server:
        remote = RemoteRewardModel(server.url, timeout=120.0)
        check_reward_model(remote)
        assert remote.info()["engine"]["engine"] == "fast"
        assert remote.info()["model"] == "demo"
        remote.close()


def test_no_clips_need_no_server():
    """A wrapper of which nothing is due would wait for the network."""
    assert RemoteRewardModel("http://127.0.0.1:9").predict([]) == []


def test_a_growing_window_sends_each_frame_once(server, remote):
    """Each query would cost eight times the bytes, and the network be slower than the model."""
    images = frames(40, (240, 320))
    before = read_metrics(server)["robometer_received_bytes_total"]
    for end in range(1, 41):
        clip = window(images, end, "growing")
        assert same(remote.predict([clip]), [clip])
    received = read_metrics(server)["robometer_received_bytes_total"] - before
    whole_windows = sum(min(end, 8) for end in range(1, 41)) * 240 * 320 * 3
    assert whole_windows > 6 * received


def test_one_batch_may_hold_many_windows_of_one_stream(server, remote):
    """A rollout that is scored late would send each frame eight times."""
    images = frames(100)
    clips = [window(images, end, "late") for end in range(1, 101)]
    before = read_metrics(server)["robometer_received_frames_total"]
    assert same(remote.predict(clips), clips)
    assert read_metrics(server)["robometer_received_frames_total"] - before == 100


def test_frames_of_an_old_window_are_sent_again(server, remote):
    """A server that dropped the oldest frames of a long episode would stop its rewards."""
    images = frames(300)
    for end in range(1, 301):
        clip = window(images, end, "long")
        assert same(remote.predict([clip]), [clip])
    clip = Clip([images[n] for n in (0, 150, 299)], "open the drawer", "long", (0, 150, 299))
    assert same(remote.predict([clip]), [clip])


def test_a_step_at_two_sizes_is_two_frames(remote):
    """A frame would be read with the height and width of another."""
    for size in ((8, 8), (4, 16), (8, 8)):
        clip = Clip(frames(2, size, seed=size[0]), "open the drawer", "sizes", (0, 1))
        assert same(remote.predict([clip]), [clip])


def test_a_stream_that_is_used_again_after_its_release_starts_empty(server, remote):
    """The next episode's first frames would be those of the last one."""
    for seed in range(3):
        clip = Clip(frames(2, seed=seed), "open the drawer", "again", (0, 1))
        assert same(remote.predict([clip]), [clip])
        streams = read_metrics(server)["robometer_streams"]
        remote.release("again")
        assert read_metrics(server)["robometer_streams"] == streams - 1


def test_a_server_with_room_for_less_than_a_batch_still_predicts():
    """Client and server would exchange frames without an end."""
    images = [frames(20, seed=seed) for seed in range(6)]
    limits = Limits(streams=2, stored_bytes=1000)
    with ServerProcess(limits=limits) as server:
        remote = RemoteRewardModel(server.url)
        for end in range(1, 21):
            clips = [window(images[env], end, env) for env in range(6)]
            assert same(remote.predict(clips), clips)
        remote.close()


def test_a_preference_is_that_of_the_model(remote):
    """Attempts that are compared on a server would be ranked in another order."""
    a, b = (Clip(frames(2, seed=seed), "open the drawer") for seed in (0, 1))
    assert remote.prefer(a, b) == ChecksumModel().prefer(a, b)


def test_jpeg_is_smaller_and_changes_the_frames(server):
    """A user who chose fewer bytes would not get them."""
    gradient = np.linspace(0, 255, 64, dtype=np.uint8)
    image = np.stack([np.tile(gradient, (64, 1))] * 3, axis=-1)
    remote = RemoteRewardModel(server.url, lossy_jpeg_quality=95)
    before = read_metrics(server)["robometer_received_bytes_total"]
    (prediction,) = remote.predict([Clip([image], "open the drawer")])
    assert prediction.progress.shape == (1,)
    assert read_metrics(server)["robometer_received_bytes_total"] - before < image.nbytes / 2
    remote.close()


def test_streams_keep_their_session_and_batches_are_split():
    """Of several replicas, one would have the frames and another the prediction to make."""
    sessions: dict[str, set[str]] = {}

    def respond(
        path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if path == "/info":
            return 200, {}, b'{"sessions": 4}'
        header = json.loads(body[4 : 4 + int.from_bytes(body[:4], "little")])
        for clip in header["clips"]:
            sessions.setdefault(clip["stream"], set()).add(headers["X-Session-Id"])
        values = [
            {
                "progress": [clip["steps"][-1] / 100] * clip["frames"],
                "success": [0] * clip["frames"],
            }
            for clip in header["clips"]
        ]
        return 200, {}, json.dumps({"predictions": values}).encode()

    images = frames(9)
    with remote_of(respond) as remote:
        for end in range(1, 10):
            clips = [window(images, end + env, env, 1) for env in range(8) if end + env < 10]
            expected = [np.float32(clip.steps[-1] / 100) for clip in clips if clip.steps]
            assert [p.progress[-1] for p in remote.predict(clips)] == expected
    assert len(sessions) == 8
    assert all(len(ids) == 1 for ids in sessions.values())
    assert len({id for ids in sessions.values() for id in ids}) == 4


# --- failures ---


def test_a_server_that_comes_back_in_the_middle_of_an_episode_is_used_again():
    """A restart of the server would end a training run, or change its rewards."""
    images = frames(12)
    with ServerProcess() as server:
        remote = RemoteRewardModel(server.url)
        for end in range(1, 13):
            if end == 4:
                server.restart()
            if end == 8:
                server.kill()
                restart = threading.Timer(0.3, server.restart)
                restart.start()
            clip = window(images, end, "episode")
            assert same(remote.predict([clip]), [clip])
        restart.join()
        remote.close()


def test_a_server_that_is_gone_is_an_error_within_the_timeout():
    """A robot would wait for ever, or be given a reward that no model has predicted."""
    with ServerProcess() as server:
        server.wait_until_ready()
        remote = RemoteRewardModel(server.url, timeout=3.0)
        remote.predict([CLIP])
        server.kill()
        started = time.monotonic()
        with pytest.raises(RewardModelError, match=r"gave no prediction within 3 s .*Connection"):
            remote.predict([CLIP])
        assert 1.5 < time.monotonic() - started < 30
        remote.release("an unknown stream")
        server.restart()
        server.wait_until_ready()
        assert same(remote.predict([CLIP]), [CLIP])


def test_a_server_that_is_too_slow_is_an_error_within_the_timeout():
    """A robot would stand still for as long as the model takes."""
    with ServerProcess(seconds=20.0) as server:
        remote = RemoteRewardModel(server.url, timeout=1.0)
        started = time.monotonic()
        with pytest.raises(RewardModelError, match=r"within 1 s .*Is the server running, and fast"):
            remote.predict([CLIP])
        assert time.monotonic() - started < 10


def test_a_model_that_is_loading_is_waited_for():
    """A script that starts the server and its client would see an error."""
    with ServerProcess(load_seconds=1.5) as server:
        with pytest.raises(RewardModelError, match=r"503: The reward model .* is loading"):
            RemoteRewardModel(server.url, timeout=0.2).predict([CLIP])
        remote = RemoteRewardModel(server.url)
        assert same(remote.predict([CLIP]), [CLIP])
        remote.close()


def test_a_model_that_fails_fails_only_its_own_request(server, remote):
    """One actor's bad clip would take the rewards of all the others."""
    bad = Clip(CLIP.images, "fail")
    errors: list[str] = []

    def fail() -> None:
        for _ in range(20):
            try:
                remote.predict([bad])
            except RewardModelError as error:
                errors.append(str(error))

    thread = threading.Thread(target=fail)
    thread.start()
    for _ in range(20):
        assert same(remote.predict([CLIP]), [CLIP])
    thread.join()
    assert len(errors) == 20
    assert "500: The reward model failed: ValueError: this clip cannot be predicted" in errors[0]


def test_a_token_is_required_and_comes_from_the_environment_too(monkeypatch):
    """A server in a network would work for anyone, or not even for its owner."""
    with ServerProcess(token="s3cret") as server:
        for token in (None, "another"):
            remote = RemoteRewardModel(server.url, token=token)
            with pytest.raises(RewardModelError, match=r"401: .* requires its token: pass token="):
                remote.predict([CLIP])
            remote.close()
        remote = RemoteRewardModel(server.url, token="s3cret")
        assert same(remote.predict([CLIP]), [CLIP])
        remote.close()
        monkeypatch.setenv(TOKEN_VARIABLE, "s3cret\n")
        remote = RemoteRewardModel(server.url)
        assert same(remote.predict([CLIP]), [CLIP])
        remote.close()


def ok(predictions: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, json.dumps({"predictions": predictions}).encode()


HALF = {"progress": [0.5, 0.5], "success": [0.0, 0.0]}


@pytest.mark.parametrize(
    ("response", "error"),
    [
        ((200, {"Robometer-Protocol": "2"}, b"{}"), "uses protocol 2, this client 1: install"),
        ((400, {"Robometer-Protocol": "2"}, b"{}"), "uses protocol 2, this client 1: install"),
        ((200, {"Robometer-Protocol": ""}, b"hello"), "is not a robometer-gym server"),
        ((404, {"Robometer-Protocol": ""}, b""), "responded 404 .* Start one with `robometer-gym"),
        ((413, {}, b'{"error": "too large"}'), "refused the request with 413: too large"),
        ((200, {}, b"\xff"), "holds no predictions"),
        ((200, {}, b"[]"), "holds no predictions"),
        (ok(None), "holds no predictions"),
        (ok([{"progress": [0.5, 0.5]}]), "holds no predictions"),
        (ok([]), "a list of 1 predictions"),
        (ok([HALF, HALF]), "a list of 1 predictions"),
        (ok([{**HALF, "progress": [0.5]}]), r"expected \(2,\)"),
        (ok([{**HALF, "progress": [0.5, float("nan")]}]), "expected finite values"),
        (ok([{**HALF, "success": [0.5, 1.5]}]), "expected finite values"),
        ((409, {}, b'{"missing": {"7": [0]}}'), "did not name the frames"),
        ((409, {}, b'{"missing": [0]}'), "did not name the frames"),
    ],
)
def test_a_response_that_is_no_prediction_is_an_error(response, error):
    """A reward would be made of it."""

    def respond(path: str, headers: dict[str, str], body: bytes) -> Any:
        return response if path == "/v1/predict" else (200, {}, b"{}")

    with remote_of(respond) as remote, pytest.raises(RewardModelError, match=error):
        remote.predict([CLIP])


def test_a_server_that_never_has_the_frames_is_an_error():
    """The client would send the same frames again and again."""
    requests = []

    def respond(path: str, headers: dict[str, str], body: bytes) -> Any:
        requests.append(path)
        return (409, {}, b'{"missing": {"0": [0]}}') if path != "/info" else (200, {}, b"{}")

    clip = Clip(CLIP.images, "open it", "stream", (0, 1))
    with remote_of(respond) as remote, pytest.raises(RewardModelError, match="no predictions"):
        remote.predict([clip])
    assert requests == ["/info", *["/v1/predict"] * 3]


def test_busy_responses_are_repeated_also_those_of_a_proxy():
    """A full queue, or a replica that dies behind its proxy, would be an error in the agent."""
    statuses = [503, 429, 502, 500]

    def respond(path: str, headers: dict[str, str], body: bytes) -> Any:
        if path == "/info":
            return 200, {}, b"{}"
        if statuses:
            return statuses.pop(), {"Robometer-Protocol": ""}, b"<html>busy</html>"
        return ok([HALF])

    with remote_of(respond) as remote:
        assert remote.predict([CLIP])[0].progress.tolist() == [0.5, 0.5]


def test_the_server_learns_how_long_the_client_waits():
    """It would predict for clients that have given up, and be slower for all others."""
    timeouts = []

    def respond(path: str, headers: dict[str, str], body: bytes) -> Any:
        if path == "/info":
            return 200, {}, b"{}"
        timeouts.append(json.loads(body[4 : 4 + int.from_bytes(body[:4], "little")])["timeout"])
        return ok([HALF])

    with remote_of(respond, timeout=10.0) as remote:
        remote.predict([CLIP])
    assert 0 < timeouts[0] <= 10.0


# --- processes and threads ---


def test_connections_are_used_again():
    """Each prediction would open a connection, and the system run out of ports."""
    ports = set()

    def respond(path: str, headers: dict[str, str], body: bytes) -> Any:
        ports.add(threading.get_ident())  # the fake server has a thread for each connection
        return (200, {}, b"{}") if path == "/info" else ok([HALF])

    with remote_of(respond) as remote:
        for _ in range(10):
            remote.predict([CLIP])
    assert len(ports) == 1


def test_a_copy_is_the_same_and_a_pickle_has_its_own_connections(server, remote):
    """An environment could not be copied, or two processes would share a socket."""
    clip = Clip(frames(2), "open the drawer", "pickled", (0, 1))
    assert same(remote.predict([clip]), [clip])
    assert copy.deepcopy(remote) is remote
    again = pickle.loads(pickle.dumps(remote))
    other = Clip(frames(2, seed=1), "open the drawer", "pickled", (0, 1))
    assert same(again.predict([other]), [other])  # the same name, but another stream
    assert same(remote.predict([clip]), [clip])
    again.close()


def _predict_in_child(remote: RemoteRewardModel, seed: int) -> None:
    for _ in range(10):
        clip = Clip(frames(2, seed=seed), "open the drawer", "forked", (0, 1))
        assert same(remote.predict([clip]), [clip])
    os._exit(0)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_processes_share_neither_connections_nor_streams(remote):
    """A worker would read the response, or the frames, of another one."""
    clip = Clip(frames(2), "open the drawer", "forked", (0, 1))
    assert same(remote.predict([clip]), [clip])
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=_predict_in_child, args=(remote, seed)) for seed in range(1, 5)
    ]
    for child in children:
        child.start()
    for _ in range(10):
        assert same(remote.predict([clip]), [clip])
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4


def test_a_client_needs_neither_torch_nor_gymnasium(server):
    """An actor would load the libraries that the server is there to keep away from it."""
    run_without(
        ("torch", "torchvision", "transformers", "gymnasium", "starlette", "uvicorn", "PIL"),
        f"""
import numpy as np
from robometer_gym import Clip, LazyRewardModel
model = LazyRewardModel({server.url!r}, timeout=30.0)
clip = Clip(np.full((2, 8, 8, 3), 9, np.uint8), "open the drawer", "stream", (0, 1))
assert model.predict([clip])[0].progress.shape == (2,)
model.release("stream")
""",
    )


# --- arguments ---


@pytest.mark.parametrize(
    ("url", "options", "error"),
    [
        ("ftp://host", {}, "is such as 'http://127.0.0.1:8900', got 'ftp://host'"),
        ("http://", {}, "is such as"),
        ("http://host?x=1", {}, "is such as"),
        ("http://me:secret@host", {}, r"holds no user: pass token=\.\.\. instead"),
        ("http://host", {"timeout": 0.0}, "timeout must be a positive number of seconds, got 0.0"),
        ("http://host", {"timeout": float("nan")}, "timeout must be a positive number"),
        ("http://host", {"lossy_jpeg_quality": 96}, "lossy_jpeg_quality must be 1 to 95, got 96"),
        ("http://host", {"token": "a b"}, "token in token= must be printable ASCII"),
        ("http://host", {"token": ""}, "token in token= must be printable ASCII"),
    ],
)
def test_a_wrong_argument_is_refused_at_once(url, options, error):
    """It would be noticed at the first prediction, after the environment has started."""
    with pytest.raises(ValueError, match=error):
        RemoteRewardModel(url, **options)


def test_a_url_is_a_name_everywhere(server):
    """Each wrapper and command would need an argument of its own for servers."""
    rewards = []
    for model in (server.url, ChecksumModel(verify=False)):
        env = RobometerRewardWrapper(
            CountingEnv(lengths=[32, 17]), "open it", model, predict_every=2
        )
        for seed in range(2):
            env.reset(seed=seed)
            ended = False
            while not ended:
                _, reward, terminated, truncated, _ = env.step(0)
                ended = terminated or truncated
                rewards.append(reward)
        env.close()
    half = len(rewards) // 2
    assert rewards[:half] == rewards[half:]
    assert len(set(rewards)) > 4
    assert read_metrics(server)["robometer_streams"] >= 0
    LazyRewardModel(server.url).load().close()  # type: ignore[attr-defined]


def test_options_belong_to_a_kind_of_name():
    """A device that was chosen would silently be that of the server, or a token be ignored."""
    url = "http://127.0.0.1:9"
    with pytest.raises(TypeError, match=r"device, dtype cannot be set for 'http://.*takes only"):
        LazyRewardModel(url, device="cuda", dtype="float32", timeout=3.0)
    with pytest.raises(TypeError, match="token cannot be set for 'demo', which takes only device"):
        LazyRewardModel("demo", token="s3cret")
    model = LazyRewardModel(url, token="s3cret", timeout=3.0, device=None)
    assert "s3cret" not in repr(model)
    assert model.name == url
    assert isinstance(model.load(), RemoteRewardModel)
