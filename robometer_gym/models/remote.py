"""RemoteRewardModel: a reward model behind HTTP, in another process or on another machine.

Sends only the frames that the server does not have. Needs numpy and the standard library.
"""

from __future__ import annotations

import http.client
import json
import logging
import math
import os
import random
import ssl
import time
import uuid
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from typing_extensions import Self

from robometer_gym.models.wire import (
    CONTENT_TYPE,
    PROTOCOL,
    PROTOCOL_HEADER,
    SESSION_HEADER,
    FrameKey,
    RequestBuilder,
    decode_predictions,
    touch,
)
from robometer_gym.reward_model import Clip, Prediction, RewardModelError

__all__ = ["TOKEN_VARIABLE", "RemoteRewardModel", "check_token"]

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "ROBOMETER_GYM_TOKEN"

_REQUEST_BYTES = 64 << 20  # a request is sent when its frames exceed this
_REQUEST_CLIPS = 64
_MAX_STREAMS = 4096  # not released; the server evicts as well
_RELEASE_SECONDS = 1.0
_FIRST_WAIT, _LAST_WAIT = 0.02, 1.0  # seconds between tries; doubles each time


def check_token(token: str, source: str) -> str:
    """Return a token if it can be sent.

    Raises:
        ValueError: empty, or not printable ASCII without spaces. The message does not hold it.
    """
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"The token in {source} must be printable ASCII without spaces.")
    return token


class _Response(NamedTuple):
    status: int
    values: dict[str, Any]


@dataclass(eq=False)
class _Stream:
    """A stream's name on the wire, and the frames that the server should have of it."""

    name: str
    number: int
    held: dict[FrameKey, None] = field(default_factory=dict)

    def frames_to_send(self, clip: Clip, complete: bool) -> list[int]:
        """Return the indices of frames that the server does not have, and count them as sent."""
        if clip.steps is None:
            return list(range(len(clip)))
        height, width, _ = clip.images[0].shape
        keys = [FrameKey(step, height, width) for step in clip.steps]
        sent = [index for index, key in enumerate(keys) if complete or key not in self.held]
        for key in keys:
            touch(self.held, key, None)
        return sent


class _ProcessState:
    """Connections and streams, which belong to one process."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.session = uuid.uuid4().hex
        self.lock = Lock()
        self.sessions: int | None = None
        """Into how many sessions the server wants streams to be split; None until it is known."""
        self.reachable = True
        """Whether the latest exchange succeeded."""
        self._streams: dict[Hashable, _Stream] = {}
        self._numbers = 0
        self._idle: list[http.client.HTTPConnection] = []

    def stream(self, stream: Hashable) -> _Stream:
        """Return what is known of a stream."""
        with self.lock:
            found = self._streams.pop(stream, None)
            if found is None:
                found = _Stream(f"{self.session}/{self._numbers}", self._numbers)
                self._numbers += 1
            self._streams[stream] = found  # now the one used last
            if len(self._streams) > _MAX_STREAMS:
                del self._streams[next(iter(self._streams))]
            return found

    def remove(self, stream: Hashable) -> _Stream | None:
        """Forget a stream."""
        with self.lock:
            return self._streams.pop(stream, None)

    def take_connection(self) -> http.client.HTTPConnection | None:
        """Return an idle connection, the one used last, or None."""
        with self.lock:
            return self._idle.pop() if self._idle else None

    def keep_connection(self, connection: http.client.HTTPConnection) -> None:
        """Keep a connection for the next request."""
        with self.lock:
            self._idle.append(connection)

    def close_connections(self) -> None:
        """Close the idle connections."""
        with self.lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def __del__(self) -> None:
        for connection in self._idle:
            connection.close()


class RemoteRewardModel:
    """The reward model of a server that `robometer-gym serve` has started.

    Threads may share one. A copy is the same object; a pickle or a forked process has connections
    and streams of its own.

    Args:
        url: such as "http://127.0.0.1:8900".
        token: of the server; by default that of the environment variable ROBOMETER_GYM_TOKEN.
        timeout: seconds for one call of `predict` or `prefer`, retries included.
        lossy_jpeg_quality: None sends frames as they are. 1 to 95 sends them as JPEG, which is
            about nine times smaller at 95 and changes the predictions.

    Raises:
        ValueError: no URL of this kind, or a timeout or quality that cannot be used.

    Example:
        >>> RemoteRewardModel("http://127.0.0.1:8900", timeout=5.0)
        RemoteRewardModel('http://127.0.0.1:8900')
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float = 60.0,
        lossy_jpeg_quality: int | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ValueError(
                f"The URL of a reward server is such as 'http://127.0.0.1:8900', got {url!r}."
            )
        if parts.username is not None:
            raise ValueError("The URL of a reward server holds no user: pass token=... instead.")
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout must be a positive number of seconds, got {timeout!r}.")
        if lossy_jpeg_quality is not None and not 1 <= lossy_jpeg_quality <= 95:
            raise ValueError(f"lossy_jpeg_quality must be 1 to 95, got {lossy_jpeg_quality!r}.")
        self.name = url.rstrip("/")
        """The URL, which reports and traces carry."""
        self._scheme, self._host, self._port = parts.scheme, parts.hostname, parts.port
        self._path = parts.path.rstrip("/")
        self._token = None if token is None else check_token(token, "token=")
        self._timeout = timeout
        self._jpeg_quality = lossy_jpeg_quality
        self._process_state = _ProcessState()

    def predict(self, clips: Sequence[Clip]) -> list[Prediction]:
        """Predict on the server.

        Raises:
            RewardModelError: no predictions within the timeout, or a server that refuses.
        """
        if not clips:
            return []
        deadline = time.monotonic() + self._timeout
        state = self._state()
        groups = self._split(state, clips, deadline)
        if len(groups) == 1:
            (session,) = groups
            return self._predict_session(state, session, clips, deadline)
        predictions: dict[int, Prediction] = {}
        with ThreadPoolExecutor(len(groups)) as threads:
            futures = {
                threads.submit(
                    self._predict_session, state, session, [clips[n] for n in numbers], deadline
                ): numbers
                for session, numbers in groups.items()
            }
            for future, numbers in futures.items():
                predictions.update(zip(numbers, future.result(), strict=True))
        return [predictions[number] for number in range(len(clips))]

    def prefer(self, a: Clip, b: Clip) -> float:
        """Return how probable it is that `a` comes further than `b` at their task, in [0, 1].

        Raises:
            RewardModelError: no response within the timeout, or a server that refuses.
        """
        deadline = time.monotonic() + self._timeout
        builder = RequestBuilder(self._timeout, self._jpeg_quality)
        for clip in (a, b):
            builder.add(clip, None, range(len(clip)))
        response = self._send(self._state(), "/v1/prefer", builder.body(), 0, deadline)
        preference = response.values.get("preference")
        if not isinstance(preference, float) or not 0.0 <= preference <= 1.0:
            raise RewardModelError(
                f"{self.name} returned the preference {preference!r}; expected a number in [0, 1]."
            )
        return preference

    def release(self, stream: Hashable) -> None:
        """Forget `stream`, here and on the server.

        A server that cannot be reached evicts the stream later, so this raises nothing.
        """
        state = self._state()
        released = state.remove(stream)
        if released is None or not state.reachable:
            return
        deadline = time.monotonic() + min(self._timeout, _RELEASE_SECONDS)
        body = json.dumps([released.name]).encode()
        try:
            session = released.number % (state.sessions or 1)
            self._exchange(state, "/v1/release", body, session, deadline)
        except (OSError, http.client.HTTPException, RewardModelError) as error:
            logger.info("%s could not release a stream: %s", self.name, error)

    def info(self) -> dict[str, Any]:
        """Return the server's model, engine, protocol version and limits.

        Raises:
            RewardModelError: no response within the timeout, or a server that refuses.
        """
        deadline = time.monotonic() + self._timeout
        return self._send(self._state(), "/info", None, 0, deadline).values

    def close(self) -> None:
        """Close the connections. The next call opens new ones."""
        self._state().close_connections()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return itself: copies of an environment share the connections."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave out connections and streams."""
        return {name: v for name, v in self.__dict__.items() if name != "_process_state"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__ = {**state, "_process_state": _ProcessState()}

    def __repr__(self) -> str:
        return f"RemoteRewardModel({self.name!r})"

    def _state(self) -> _ProcessState:
        """Return the state of this process: after a fork it starts empty."""
        if self._process_state.process != os.getpid():
            self._process_state = _ProcessState()
        return self._process_state

    def _split(
        self, state: _ProcessState, clips: Sequence[Clip], deadline: float
    ) -> dict[int, list[int]]:
        """Return the numbers of the clips of each session; one stream stays in one session."""
        if state.sessions is None:  # a request without a body: access and version are checked first
            info = self._send(state, "/info", None, 0, deadline).values
            state.sessions = max(1, int(info.get("sessions", 1)))
        groups: dict[int, list[int]] = {}
        for number, clip in enumerate(clips):
            key = number if clip.stream is None else state.stream(clip.stream).number
            groups.setdefault(key % state.sessions, []).append(number)
        return groups

    def _predict_session(
        self, state: _ProcessState, session: int, clips: Sequence[Clip], deadline: float
    ) -> list[Prediction]:
        """Predict clips of one session, in as many requests as needed."""
        predictions: list[Prediction] = []
        refusals = 0
        while len(predictions) < len(clips):
            rest = clips[len(predictions) :]
            if complete := refusals == 2:  # the server has evicted even those sent just now
                rest = rest[:1]
            builder = RequestBuilder(deadline - time.monotonic(), self._jpeg_quality)
            streams = self._add_clips(state, builder, rest, complete)
            try:
                response = self._send(state, "/v1/predict", builder.body(), session, deadline)
                if response.status == 409 and refusals < 2:
                    self._forget(state, rest, streams, response)
                    refusals += 1
                    continue
                predictions += decode_predictions(rest[: len(streams)], response.values)
                refusals = 0
            except BaseException:  # unknown which frames the server has
                for stream in filter(None, streams):
                    stream.held = {}
                raise
        return predictions

    @staticmethod
    def _add_clips(
        state: _ProcessState, builder: RequestBuilder, clips: Sequence[Clip], complete: bool
    ) -> list[_Stream | None]:
        """Add clips to a request until it is full; return the stream of each that was added."""
        streams: list[_Stream | None] = []
        for clip in clips:
            if clip.stream is None:
                streams.append(None)
                builder.add(clip, None, range(len(clip)))
            else:
                stream = state.stream(clip.stream)
                streams.append(stream)
                with state.lock:
                    sent = stream.frames_to_send(clip, complete)
                builder.add(clip, stream.name, sent)
            if len(builder) == _REQUEST_CLIPS or builder.frame_bytes >= _REQUEST_BYTES:
                break
        return streams

    @staticmethod
    def _forget(
        state: _ProcessState,
        clips: Sequence[Clip],
        streams: Sequence[_Stream | None],
        response: _Response,
    ) -> None:
        """Note that the server does not have the frames that its response names."""
        try:
            missing = {int(n): set(steps) for n, steps in response.values["missing"].items()}
            with state.lock:
                for number, steps in missing.items():
                    stream = streams[number]
                    height, width, _ = clips[number].images[0].shape
                    for step in steps:
                        if stream is not None:
                            stream.held.pop(FrameKey(step, height, width), None)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise RewardModelError(
                f"The reward server did not name the frames that it needs: {error!r}."
            ) from error

    def _send(
        self, state: _ProcessState, path: str, body: bytes | None, session: int, deadline: float
    ) -> _Response:
        """Send a request until it is accepted: again after connection errors, 429 and 503.

        Every request may be repeated: it names its frames, and a prediction changes nothing.
        """
        tries, wait = 0, _FIRST_WAIT
        while True:
            tries += 1
            retry_after = 0.0
            try:
                response, retry_after = self._exchange(state, path, body, session, deadline)
                if response.status not in (429, 503):
                    return self._check(response)
                failure = f"{response.status}: {response.values.get('error', '')}"
            except (OSError, http.client.HTTPException) as error:
                state.close_connections()
                failure = f"{type(error).__name__}: {error}"
            state.reachable = False
            remaining = deadline - time.monotonic()
            if remaining < _FIRST_WAIT or retry_after > remaining:
                raise RewardModelError(
                    f"{self.name} gave no response within {self._timeout:g} s ({tries} tries); "
                    f"the last failure was {failure}. Is the server running, and fast enough?"
                )
            pause = max(wait, retry_after) * random.uniform(1.0, 1.25)  # not all at the same time
            time.sleep(min(pause, remaining / 2))
            wait = min(2 * wait, _LAST_WAIT)

    def _check(self, response: _Response) -> _Response:
        if response.status in (200, 409):
            return response
        raise RewardModelError(
            f"{self.name} refused the request with status {response.status}: "
            f"{response.values.get('error', 'no reason given')}"
        )

    def _exchange(
        self, state: _ProcessState, path: str, body: bytes | None, session: int, deadline: float
    ) -> tuple[_Response, float]:
        """Send a request once; return the response and its Retry-After in seconds."""
        connection = state.take_connection() or self._new_connection()
        try:
            _limit(connection, deadline)
            try:
                connection.request(
                    "GET" if body is None else "POST",
                    self._path + path,
                    body,
                    self._headers(f"{state.session}-{session}"),
                )
            except (BrokenPipeError, ConnectionResetError):
                if body is None:
                    raise
                # The server closes before it has read a body that it refuses: read why.
            raw = connection.getresponse()
            data = raw.read()
        except BaseException:
            connection.close()
            raise
        state.keep_connection(connection)
        self._check_protocol(raw)
        state.reachable = True
        retry_after = raw.headers.get("Retry-After", "")
        return _Response(raw.status, _values(data)), float(retry_after.isdecimal() and retry_after)

    def _check_protocol(self, response: http.client.HTTPResponse) -> None:
        version = response.headers.get(PROTOCOL_HEADER)
        if version is None and response.status not in (429, 503):  # these a proxy may send
            raise RewardModelError(
                f"{self.name} responded {response.status} {response.reason} and is not a "
                "robometer-gym server. Start one with `robometer-gym serve`."
            )
        if version is not None and version != str(PROTOCOL):
            raise RewardModelError(
                f"{self.name} uses protocol {version}, this client {PROTOCOL}: install the same "
                "version of robometer-gym on both sides."
            )

    def _new_connection(self) -> http.client.HTTPConnection:
        if self._scheme == "http":
            return http.client.HTTPConnection(self._host, self._port)
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(self._host, self._port, context=context)

    def _headers(self, session: str) -> dict[str, str]:
        headers = {
            PROTOCOL_HEADER: str(PROTOCOL),
            SESSION_HEADER: session,
            "Content-Type": CONTENT_TYPE,
        }
        token = self._token
        if token is None and (variable := os.environ.get(TOKEN_VARIABLE)):
            token = check_token(variable, TOKEN_VARIABLE)
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return headers


def _limit(connection: http.client.HTTPConnection, deadline: float) -> None:
    """Let the next operation on a connection end at `deadline`."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("timed out")
    connection.timeout = remaining
    if connection.sock is not None:
        connection.sock.settimeout(remaining)


def _values(data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
