"""RemoteRewardModel: a reward model behind HTTP, in another process or on another machine.

Sends only the frames that the server does not have. Needs numpy and the standard library.
"""

from __future__ import annotations

import http.client
import json
import logging
import math
import os
import uuid
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from typing_extensions import Self

from robometer_gym.models.http_client import Deadline, HTTPClient, Response
from robometer_gym.models.wire import FrameKey, RequestBuilder, decode_predictions, touch
from robometer_gym.reward_model import Clip, Prediction, RewardModelError

__all__ = ["RemoteRewardModel"]

logger = logging.getLogger(__name__)

_REQUEST_BYTES = 64 << 20  # a request is sent when its frames exceed this
_REQUEST_CLIPS = 64
_MAX_STREAMS = 1024  # known at a time, as by a server; released or not
_RELEASE_SECONDS = 1.0


class RemoteRewardModel:
    """The reward model of a server that `robometer-gym serve` has started.

    Threads may share one. A copy is the same object; a pickle, or a forked process, has connections
    and streams of its own.

    Args:
        url: such as "http://127.0.0.1:8900".
        token: of the server; by default that of the environment variable ROBOMETER_GYM_TOKEN, which
            keeps it out of pickles.
        timeout: seconds for one call of `predict` or `prefer`, retries included.
        lossy_jpeg_quality: None sends frames as they are. 1 to 95 sends them as JPEG, which is
            about nine times smaller at 95 and changes the predictions.

    Raises:
        ValueError: no URL of this kind, or a token, timeout or quality that cannot be used.

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
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout must be a positive number of seconds, got {timeout!r}.")
        if lossy_jpeg_quality is not None and not 1 <= lossy_jpeg_quality <= 95:
            raise ValueError(f"lossy_jpeg_quality must be 1 to 95, got {lossy_jpeg_quality!r}.")
        self._url, self._token = url, token
        self._timeout = timeout
        self._jpeg_quality = lossy_jpeg_quality
        self._process_state = _ProcessState(HTTPClient(url, token))

    @property
    def name(self) -> str:
        """The URL, which reports and traces carry."""
        return self._url

    def predict(self, clips: Sequence[Clip]) -> list[Prediction]:
        """Predict on the server.

        Raises:
            RewardModelError: no predictions within the timeout, or a server that refuses.
        """
        if not clips:
            return []
        deadline = Deadline(self._timeout)
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
        deadline = Deadline(self._timeout)
        state = self._state()
        builder = RequestBuilder(self._timeout, self._jpeg_quality)
        for clip in (a, b):
            builder.add(clip, None, range(len(clip)))
        response = state.http.send("/v1/prefer", builder.body(), state.session(0), deadline)
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
        if released is None or not state.http.reachable:
            return
        deadline = Deadline(min(self._timeout, _RELEASE_SECONDS))
        session = state.session(released.number % (state.sessions or 1))
        try:
            state.http.exchange(
                "/v1/release", [json.dumps([released.name]).encode()], session, deadline
            )
        except (OSError, http.client.HTTPException, RewardModelError) as error:
            logger.info("%s could not release a stream: %s", self.name, error)

    def info(self) -> dict[str, Any]:
        """Return the server's model, engine, protocol version and limits.

        Raises:
            RewardModelError: no response within the timeout, or a server that refuses.
        """
        state = self._state()
        deadline = Deadline(self._timeout)
        return state.http.send("/info", None, state.session(0), deadline).values

    def close(self) -> None:
        """Close the connections. The next call opens new ones."""
        self._state().http.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return itself: copies of an environment share the connections."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave out connections and streams."""
        return {**self.__dict__, "_process_state": None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__ = dict(state)
        self._process_state = _ProcessState(HTTPClient(self._url, self._token))

    def __repr__(self) -> str:
        return f"RemoteRewardModel({self.name!r})"

    def _state(self) -> _ProcessState:
        """Return the state of this process: after a fork it starts empty."""
        if self._process_state.process != os.getpid():
            self._process_state = _ProcessState(HTTPClient(self._url, self._token))
        return self._process_state

    def _split(
        self, state: _ProcessState, clips: Sequence[Clip], deadline: Deadline
    ) -> dict[int, list[int]]:
        """Return the numbers of the clips of each session; one stream stays in one session."""
        if state.sessions is None:  # a request without a body: access and version are checked first
            info = state.http.send("/info", None, state.session(0), deadline).values
            state.sessions = max(1, int(info.get("sessions", 1)))
        groups: dict[int, list[int]] = {}
        for number, clip in enumerate(clips):
            key = number if clip.stream is None else state.stream(clip.stream).number
            groups.setdefault(key % state.sessions, []).append(number)
        return groups

    def _predict_session(
        self, state: _ProcessState, session: int, clips: Sequence[Clip], deadline: Deadline
    ) -> list[Prediction]:
        """Predict clips of one session, in as many requests as needed."""
        predictions: list[Prediction] = []
        refusals = 0
        while len(predictions) < len(clips):
            rest = clips[len(predictions) :]
            if complete := refusals == 2:  # the server has evicted even those sent just now
                rest = rest[:1]
            builder = RequestBuilder(max(deadline.remaining, 1e-3), self._jpeg_quality)
            streams = _add_clips(state, builder, rest, complete)
            try:
                response = state.http.send(
                    "/v1/predict", builder.body(), state.session(session), deadline
                )
                if response.status == 409 and refusals < 2:
                    _forget_missing(state, rest, streams, response)
                    refusals += 1
                    continue
                predictions += decode_predictions(rest[: len(streams)], response.values)
                refusals = 0
            except BaseException:  # unknown which frames the server has
                for stream in filter(None, streams):
                    stream.held = {}
                raise
        return predictions


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

    def __init__(self, http: HTTPClient) -> None:
        self.http = http
        self.process = os.getpid()
        self.lock = Lock()
        self.sessions: int | None = None
        """Into how many sessions the server wants streams to be split; None until it is known."""
        self._id = uuid.uuid4().hex
        self._streams: dict[Hashable, _Stream] = {}
        self._num_streams = 0

    def session(self, number: int) -> str:
        """Return the id of a session."""
        return f"{self._id}-{number}"

    def stream(self, stream: Hashable) -> _Stream:
        """Return a stream, which is now the one used last."""
        with self.lock:
            found = self._streams.pop(stream, None)
            if found is None:
                found = _Stream(f"{self._id}/{self._num_streams}", self._num_streams)
                self._num_streams += 1
            self._streams[stream] = found
            if len(self._streams) > _MAX_STREAMS:
                del self._streams[next(iter(self._streams))]
            return found

    def remove(self, stream: Hashable) -> _Stream | None:
        """Forget a stream, and return it if it was known."""
        with self.lock:
            return self._streams.pop(stream, None)


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


def _forget_missing(
    state: _ProcessState,
    clips: Sequence[Clip],
    streams: Sequence[_Stream | None],
    response: Response,
) -> None:
    """Note that the server does not have the frames that its response names."""
    try:
        missing = {int(n): list(steps) for n, steps in response.values["missing"].items()}
        for number, steps in missing.items():
            stream = streams[number]
            height, width, _ = clips[number].images[0].shape
            with state.lock:
                for step in steps:
                    stream.held.pop(FrameKey(step, height, width), None)  # type: ignore[union-attr]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise RewardModelError(
            f"The reward server did not name the frames that it needs: {error!r}."
        ) from error
