"""Running a reward server in this process: address, token, sockets and signals."""

from __future__ import annotations

import ipaddress
import os
import socket
from asyncio import BaseTransport, TimerHandle, Transport
from collections.abc import Callable
from pathlib import Path
from typing import cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from robometer_gym.models.http_client import TOKEN_VARIABLE, check_token
from robometer_gym.models.loading import LazyRewardModel
from robometer_gym.serve.app import RewardServer
from robometer_gym.serve.limits import Limits

__all__ = ["check_address", "read_token", "serve"]

_SHUTDOWN_SECONDS = 10


def check_address(host: str, token: str | None) -> None:
    """Raise if other machines could reach the server without a token.

    Raises:
        ValueError: `host` is not a loopback address, and there is no token.
    """
    if token is None and not _is_loopback(host):
        raise ValueError(
            f"A server on {host} can be reached from other machines, so it needs a token: pass "
            f"--token-file, or set {TOKEN_VARIABLE}. Or serve on 127.0.0.1."
        )


def read_token(file: Path | None) -> str | None:
    """Return the token in `file`, or that of the environment, or None.

    Raises:
        OSError: the file cannot be read.
        ValueError: the token is empty, or not printable ASCII without spaces.
    """
    token = os.environ.get(TOKEN_VARIABLE) if file is None else file.read_text().strip()
    return None if token is None else check_token(token, str(file or TOKEN_VARIABLE))


def serve(
    reward_model: LazyRewardModel,
    host: str = "127.0.0.1",
    port: int = 8900,
    *,
    token: str | None = None,
    limits: Limits | None = None,
    on_start: Callable[[str], object] = print,
) -> None:
    """Serve until the process is interrupted or terminated.

    Args:
        reward_model: loaded after the server has started; until then it responds 503.
        host: an address of this machine; "0.0.0.0" for all of them.
        port: 0 for a free one.
        token: clients must send it. Required unless `host` is a loopback address.
        limits: see `Limits`.
        on_start: called with the server's URL once it accepts connections.

    Raises:
        ValueError: no token where one is required.
        OSError: the address cannot be used.
        Exception: as raised when the model was loaded.
    """
    check_address(host, token)
    limits = limits or Limits()
    errors: list[Exception] = []

    def stop(error: Exception) -> None:
        errors.append(error)
        server.should_exit = True

    app = RewardServer(reward_model, token=token, limits=limits, on_load_error=stop).app
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=type("Protocol", (_Protocol,), {"head_seconds": limits.head_seconds}),
            loop="asyncio",
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            server_header=False,
            date_header=False,
            limit_concurrency=limits.connections,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        )
    )
    with _listen(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        on_start(f"http://{shown}:{listener.getsockname()[1]}")
        server.run(sockets=[listener])
    if errors:
        raise errors[0]


class _Protocol(H11Protocol):
    """HTTP with a limit on the time in which the head of a request must arrive."""

    head_seconds: float
    _head_timer: TimerHandle | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(cast(Transport, transport))
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._waits_for_head():
            self._stop_timer()
        elif self._head_timer is None:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _waits_for_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.head_seconds, self._close_if_waiting)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _close_if_waiting(self) -> None:
        self._head_timer = None
        if self._waits_for_head():
            self.transport.close()


def _listen(host: str, port: int) -> socket.socket:
    # asyncio sets TCP_NODELAY only where the protocol is named, and a response is two small writes:
    # without it, each waits 40 ms for the client's delayed acknowledgment.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
