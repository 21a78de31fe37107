"""HTTPClient: requests to one reward server, repeated until a deadline.

Needs the standard library alone. Knows nothing of clips.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import ssl
import time
from collections.abc import Sequence
from threading import Lock
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from robometer_gym.models.wire import CONTENT_TYPE, PROTOCOL, PROTOCOL_HEADER, SESSION_HEADER
from robometer_gym.reward_model import RewardModelError

__all__ = ["TOKEN_VARIABLE", "Deadline", "HTTPClient", "Response", "check_token"]

Body = Sequence[bytes | memoryview]
"""A request body in parts."""

TOKEN_VARIABLE = "ROBOMETER_GYM_TOKEN"

_FIRST_WAIT, _LAST_WAIT = 0.02, 1.0  # seconds between tries; doubles each time


def check_token(token: str, source: str) -> str:
    """Return a token if it can be sent.

    Raises:
        ValueError: empty, or not printable ASCII without spaces. The message does not hold it.
    """
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"The token in {source} must be printable ASCII without spaces.")
    return token


class Response(NamedTuple):
    """The status of a response and the JSON object in its body."""

    status: int
    values: dict[str, Any]


class Deadline:
    """A point in time, some seconds from now.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def remaining(self) -> float:
        """Seconds until then; negative afterwards."""
        return self._end - time.monotonic()


class HTTPClient:
    """Requests to one server, over connections that are used again. Threads may share one.

    Args:
        url: "http://host:port" or "https://host:port", perhaps with a path.
        token: sent with each request; None for that of the environment, if there is one.

    Raises:
        ValueError: no URL of this kind, or a token that cannot be sent.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ValueError(
                f"The URL of a reward server is such as 'http://127.0.0.1:8900', got {url!r}."
            )
        if parts.username is not None:
            raise ValueError("The URL of a reward server holds no user: pass token=... instead.")
        self.url = url.rstrip("/")
        self._scheme, self._host, self._port = parts.scheme, parts.hostname, parts.port
        self._path = parts.path.rstrip("/")
        self._token = None if token is None else check_token(token, "token=")
        self._lock = Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self.reachable = True
        """Whether the latest exchange succeeded."""

    def send(self, path: str, body: Body | None, session: str, deadline: Deadline) -> Response:
        """Send a request until it is accepted: again after connection errors, 429 and 503.

        Every request may be repeated: it names its frames, and a prediction changes nothing.

        Args:
            path: of the request.
            body: its parts; None for a GET.
            session: requests with the same session reach the same replica.
            deadline: when to give up.

        Returns:
            A response of status 200 or 409.

        Raises:
            RewardModelError: no such response.
        """
        tries, wait = 0, _FIRST_WAIT
        while True:
            tries += 1
            retry_after = 0.0
            try:
                response, retry_after = self.exchange(path, body, session, deadline)
                if response.status in (200, 409):
                    return response
                failure = f"{response.status}: {response.values.get('error', 'no reason given')}"
                if response.status not in (429, 503):
                    raise RewardModelError(f"{self.url} refused the request with {failure}")
            except (OSError, http.client.HTTPException) as error:
                self.close()  # the other connections have probably failed as well
                failure = f"{type(error).__name__}: {error}"
            self.reachable = False
            remaining = deadline.remaining
            if remaining < _FIRST_WAIT or retry_after > remaining:
                raise RewardModelError(
                    f"{self.url} gave no prediction within {deadline.seconds:g} s "
                    f"({tries} tries); the last failure was {failure.rstrip('.')}. Is the server "
                    "running, and fast enough?"
                )
            pause = max(wait, retry_after) * random.uniform(1.0, 1.25)  # not all at the same time
            time.sleep(min(pause, remaining / 2))
            wait = min(2 * wait, _LAST_WAIT)

    def exchange(
        self, path: str, body: Body | None, session: str, deadline: Deadline
    ) -> tuple[Response, float]:
        """Send a request once; return the response and its Retry-After in seconds.

        Raises:
            OSError, http.client.HTTPException: the connection failed.
            RewardModelError: another kind of server, or another version of the protocol.
        """
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        connection = connection or self._new_connection()
        try:
            remaining = deadline.remaining
            if remaining <= 0:
                raise TimeoutError("timed out")
            connection.timeout = remaining
            if connection.sock is not None:
                connection.sock.settimeout(remaining)
            try:
                method = "GET" if body is None else "POST"
                connection.request(method, self._path + path, body, self._headers(session, body))
            except (BrokenPipeError, ConnectionResetError):
                if body is None or connection.sock is None:
                    raise
                # A server may respond, and close, before it has read a body that it refuses.
            raw = connection.getresponse()
            data = raw.read()
        except BaseException:
            connection.close()
            raise
        with self._lock:
            self._idle.append(connection)
        self._check_protocol(raw)
        self.reachable = True
        retry_after = raw.headers.get("Retry-After", "")
        return Response(raw.status, _json_object(data)), float(
            retry_after if retry_after.isdecimal() else 0
        )

    def close(self) -> None:
        """Close the idle connections. The next request opens a new one."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def __del__(self) -> None:
        for connection in self.__dict__.get("_idle", ()):
            connection.close()

    def _check_protocol(self, response: http.client.HTTPResponse) -> None:
        version = response.headers.get(PROTOCOL_HEADER)
        if version is None and response.status >= 500 and response.status != 503:
            # A proxy lost its connection to the server, as Ray's does when a replica dies.
            raise http.client.HTTPException(f"{response.status} {response.reason} from a proxy")
        if version is None and response.status not in (429, 503):  # a proxy may send these
            raise RewardModelError(
                f"{self.url} responded {response.status} {response.reason} and is not a "
                "robometer-gym server. Start one with `robometer-gym serve`."
            )
        if version is not None and version != str(PROTOCOL):
            raise RewardModelError(
                f"{self.url} uses protocol {version}, this client {PROTOCOL}: install the same "
                "version of robometer-gym on both sides."
            )

    def _new_connection(self) -> http.client.HTTPConnection:
        if self._scheme == "http":
            return http.client.HTTPConnection(self._host, self._port)
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(self._host, self._port, context=context)

    def _headers(self, session: str, body: Body | None) -> dict[str, str]:
        headers = {
            PROTOCOL_HEADER: str(PROTOCOL),
            SESSION_HEADER: session,
            "Content-Type": CONTENT_TYPE,
        }
        if body is not None:
            headers["Content-Length"] = str(sum(map(len, body)))
        token = self._token
        if token is None and (variable := os.environ.get(TOKEN_VARIABLE)):
            token = check_token(variable.strip(), TOKEN_VARIABLE)
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return headers


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
