"""Limits of a reward server, all checked before memory is taken. Knows nothing of HTTP."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]

_MiB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Limits of a reward server.

    Attributes:
        body: bytes of one request's body.
        header: bytes of the JSON header in it.
        clips: clips in one request.
        frames: frames in one clip; at most `wire.STREAM_FRAMES`.
        pixels: pixels of one frame.
        task: characters of one task.
        pending_bytes: bytes of all requests that are being received or predicted.
        pending_clips: clips that wait for their prediction.
        batch: clips in one call of the model, unless a single request has more.
        streams: streams of which frames are kept.
        stored_bytes: bytes of all frames that are kept.
        connections: open connections.
        head_seconds: time for the head of a request to arrive.
        body_seconds: time for its body to arrive.
    """

    body: int = 256 * _MiB
    header: int = 1 * _MiB
    clips: int = 256
    frames: int = 64
    pixels: int = 4096 * 2160
    task: int = 4096
    pending_bytes: int = 1024 * _MiB
    pending_clips: int = 1024
    batch: int = 64
    streams: int = 1024
    stored_bytes: int = 2048 * _MiB
    connections: int = 1024
    head_seconds: float = 10.0
    body_seconds: float = 60.0
