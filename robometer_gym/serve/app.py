"""The ASGI application of a reward server: routes, access, limits and status codes.

docs/server.md describes the requests and responses. Knows nothing of sockets or environments.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, TypeVar

import anyio
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import robometer_gym
from robometer_gym.models.loading import LazyRewardModel
from robometer_gym.models.wire import (
    CONTENT_TYPE,
    LENGTH,
    PROTOCOL,
    PROTOCOL_HEADER,
    encode_predictions,
)
from robometer_gym.reward_model import Clip, Frame
from robometer_gym.serve.batcher import Batcher, ExpiredError
from robometer_gym.serve.frame_store import FrameStore
from robometer_gym.serve.limits import Limits
from robometer_gym.serve.metrics import Metrics
from robometer_gym.serve.requests import RequestError, read_frames, read_header, read_names

__all__ = ["RewardServer"]

logger = logging.getLogger(__name__)

_RETRY = {"Retry-After": "1"}
_DEFAULT_TIMEOUT = 600.0

T = TypeVar("T")


class _HTTPError(Exception):
    """A response other than 200, and its reason."""

    def __init__(self, status: int, message: str, **values: Any) -> None:
        super().__init__(message)
        self.status = status
        self.values = values


class RewardServer:
    """One reward model as an ASGI application, `RewardServer.app`.

    Args:
        reward_model: a name or a model; a name is loaded when the application starts.
        token: clients must send it as `Authorization: Bearer TOKEN`; None for no token.
        limits: see `Limits`.
        sessions: into how many sessions a client splits its streams, for several replicas.
        on_load_error: called if the model cannot be loaded.

    Example:
        >>> from robometer_gym.testing import ScriptedRewardModel
        >>> server = RewardServer(LazyRewardModel(ScriptedRewardModel(progress=0.5)))
        >>> type(server.app).__name__
        'Starlette'
    """

    def __init__(
        self,
        reward_model: LazyRewardModel,
        *,
        token: str | None = None,
        limits: Limits | None = None,
        sessions: int = 1,
        on_load_error: Callable[[Exception], object] = lambda error: None,
    ) -> None:
        self._model = reward_model
        self._token = token
        self._limits = limits or Limits()
        self._sessions = sessions
        self._on_load_error = on_load_error
        self._metrics = Metrics()
        self._store = FrameStore(self._limits)
        self._batcher = Batcher(reward_model, self._limits, self._metrics)
        self._pending_bytes = 0
        self.app = Starlette(
            routes=[
                self._route("/v1/predict", self._predict, "POST"),
                self._route("/v1/prefer", self._prefer, "POST"),
                self._route("/v1/release", self._release, "POST"),
                self._route("/info", self._info),
                self._route("/metrics", self._get_metrics),
                self._route("/health", self._health, public=True),
                self._route("/ready", self._ready, public=True),
            ],
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        worker = asyncio.create_task(self._batcher.run(self._on_load_error))
        try:
            yield
        finally:
            worker.cancel()
            self._batcher.close()

    def _route(
        self,
        path: str,
        handler: Callable[[Request], Awaitable[Response]],
        method: str = "GET",
        *,
        public: bool = False,
    ) -> Route:
        """Return a route that checks access, turns a refusal into a response, and counts it."""

        async def respond(request: Request) -> Response:
            try:
                if not public:
                    self._check_access(request)
                response = await handler(request)
            except _HTTPError as refusal:
                response = await self._refuse(request, refusal)
            response.headers[PROTOCOL_HEADER] = str(PROTOCOL)
            self._metrics.add("requests", path=path, status=response.status_code)
            return response

        return Route(path, respond, methods=[method])

    def _check_access(self, request: Request) -> None:
        if self._token is not None:
            came = request.headers.get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(came, b"Bearer " + self._token.encode()):
                raise _HTTPError(
                    401,
                    "This reward server requires its token: pass token=..., or set "
                    "ROBOMETER_GYM_TOKEN.",
                )
        version = request.headers.get(PROTOCOL_HEADER, str(PROTOCOL))
        if version != str(PROTOCOL):
            raise _HTTPError(
                400,
                f"This reward server uses protocol {PROTOCOL} (robometer-gym "
                f"{robometer_gym.__version__}), the client {version[:20]}. Install the same "
                "version of robometer-gym on both sides.",
                protocol=PROTOCOL,
            )

    async def _refuse(self, request: Request, refusal: _HTTPError) -> Response:
        """Respond to a request, and discard its body so that the client reads the response."""
        with anyio.move_on_after(self._limits.head_seconds):
            try:
                if 0 < _content_length(request) <= self._limits.body:
                    async for _ in request.stream():
                        pass
            except (ClientDisconnect, RuntimeError, _HTTPError):
                pass  # RuntimeError: the body has been read already
        headers = _RETRY if refusal.status in (429, 503) else {}
        return JSONResponse(
            {"error": str(refusal), **refusal.values}, refusal.status, headers=headers
        )

    async def _predict(self, request: Request) -> Response:
        async with self._read_clips(request) as (clips, timeout):
            work = self._batcher.predict(clips, timeout or _DEFAULT_TIMEOUT)
            return JSONResponse(encode_predictions(await _model_errors(work)))

    async def _prefer(self, request: Request) -> Response:
        async with self._read_clips(request) as (clips, _):
            prefer = getattr(self._batcher.loaded, "prefer", None)
            if prefer is None:
                raise _HTTPError(501, f"{self._model.name} cannot compare clips.")
            if len(clips) != 2 or clips[0].task != clips[1].task:
                raise _HTTPError(400, "A preference needs two clips of one task.")
            work = self._batcher.call(prefer, *clips)
            return JSONResponse({"preference": await _model_errors(work)})

    async def _release(self, request: Request) -> Response:
        length = _content_length(request)
        if length > self._limits.header:
            raise _HTTPError(413, f"A release must have at most {self._limits.header} bytes.")
        try:
            values = json.loads(await self._read(request, bytearray(), length))
            streams = read_names(values, self._limits)
        except (ValueError, RecursionError) as error:
            raise _HTTPError(400, f"A release must be a JSON list of streams: {error}") from None
        for stream in streams:
            self._store.release(stream)
        self._batcher.release(streams)
        return JSONResponse({})

    async def _info(self, request: Request) -> Response:
        engine_info = getattr(self._batcher.loaded, "engine_info", None)
        return JSONResponse(
            {
                "protocol": PROTOCOL,
                "version": robometer_gym.__version__,
                "model": self._model.name,
                "options": {k: v for k, v in self._model.options.items() if k != "token"},
                "ready": self._batcher.loaded is not None,
                "engine": None if engine_info is None else await self._batcher.call(engine_info),
                "sessions": self._sessions,
                "limits": asdict(self._limits),
            }
        )

    async def _get_metrics(self, request: Request) -> Response:
        gauges = {
            "queued_clips": self._batcher.queued_clips,
            "pending_bytes": self._pending_bytes,
            "streams": len(self._store),
            "stored_bytes": self._store.total_bytes,
            "ready": int(self._batcher.loaded is not None),
        }
        return PlainTextResponse(self._metrics.text(gauges), media_type="text/plain; version=0.0.4")

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def _ready(self, request: Request) -> Response:
        self._check_ready()
        return JSONResponse({"status": "ready"})

    def _check_ready(self) -> None:
        if self._batcher.load_error is not None:
            raise _HTTPError(500, f"No reward model: {self._batcher.load_error}")
        if self._batcher.loaded is None:
            raise _HTTPError(503, f"The reward model {self._model.name} is loading.")

    @asynccontextmanager
    async def _read_clips(self, request: Request) -> AsyncIterator[tuple[list[Clip], float | None]]:
        """Read the clips of a request and its timeout; its bytes are pending until the end."""
        self._check_ready()
        if request.headers.get("content-type") != CONTENT_TYPE:
            raise _HTTPError(415, f"Content-Type must be {CONTENT_TYPE}.")
        length = _content_length(request)
        if length > self._limits.body:
            raise _HTTPError(
                413, f"A body must have at most {self._limits.body} bytes, not {length}."
            )
        if self._batcher.queued_clips >= self._limits.pending_clips:
            raise _HTTPError(429, f"{self._batcher.queued_clips} clips are waiting already.")
        reserved = 2 * length  # the body, and its frames one by one
        self._reserve(reserved)
        try:
            data = await self._read(request, bytearray(), LENGTH.size)
            start = LENGTH.size + LENGTH.unpack_from(data)[0]
            if start > min(length, self._limits.header):
                raise _HTTPError(400, f"The header must have at most {self._limits.header} bytes.")
            await self._read(request, data, start)
            header = read_header(data[LENGTH.size : start], self._limits)
            if start + header.body_bytes != length:
                raise _HTTPError(
                    400,
                    f"The body must have {start + header.body_bytes} bytes as its header states, "
                    f"not {length}.",
                )
            if (decoded := header.raw_bytes - header.body_bytes) > 0:  # JPEG
                self._reserve(decoded)
                reserved += decoded
            await self._read(request, data, length)
            frames = read_frames(header, data, start)
            del data
            clips, missing = self._store.assemble(header.clips, frames)
            self._count(length, frames, missing)
            if missing:
                raise _HTTPError(409, "Frames are missing.", missing=missing)
            yield clips, header.timeout
        except RequestError as error:
            raise _HTTPError(400, str(error)) from None
        finally:
            self._pending_bytes -= reserved

    def _reserve(self, size: int) -> None:
        if self._pending_bytes + size > self._limits.pending_bytes:
            raise _HTTPError(429, f"Requests of {self._pending_bytes} bytes are waiting already.")
        self._pending_bytes += size

    async def _read(self, request: Request, data: bytearray, length: int) -> bytearray:
        """Receive until `data` has `length` bytes, or some more."""
        if len(data) >= length:
            return data
        try:
            with anyio.fail_after(self._limits.body_seconds):
                async for chunk in request.stream():
                    data += chunk
                    if len(data) >= length:
                        return data
        except TimeoutError:
            raise _HTTPError(408, "The body did not arrive in time.") from None
        except (ClientDisconnect, RuntimeError):
            pass
        raise _HTTPError(400, f"The body ended after {len(data)} bytes.")

    def _count(self, length: int, frames: list[list[Frame]], missing: dict[int, list[int]]) -> None:
        self._metrics.add("received_bytes", length)
        self._metrics.add("received_frames", sum(map(len, frames)))
        self._metrics.add("forgotten_frames", sum(map(len, missing.values())))
        if evicted := self._store.evicted:
            self._metrics.add("evicted_streams", len(evicted))
            self._batcher.release(evicted)
            self._store.evicted = []


def _content_length(request: Request) -> int:
    value = request.headers.get("content-length", "")
    if not (value.isascii() and value.isdigit() and len(value) < 16):
        raise _HTTPError(411, "A request needs a Content-Length.")
    return int(value)


async def _model_errors(work: Awaitable[T]) -> T:
    """Await the model; its errors become responses."""
    try:
        return await work
    except ExpiredError:
        raise _HTTPError(503, "The request waited longer than its timeout.") from None
    except Exception as error:
        logger.warning("The reward model failed.", exc_info=error)
        raise _HTTPError(
            500, f"The reward model failed: {type(error).__name__}: {error}"
        ) from error
