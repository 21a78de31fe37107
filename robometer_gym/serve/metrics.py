"""Counters of a reward server, in Prometheus' text format. Knows nothing of HTTP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from time import monotonic

__all__ = ["Metrics"]

_BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128)

_COUNTERS = {
    "requests": "Requests, by path and status.",
    "clips": "Clips that were predicted.",
    "received_bytes": "Bytes of request bodies.",
    "received_frames": "Frames in request bodies.",
    "forgotten_frames": "Frames that clients had to send again.",
    "evicted_streams": "Streams that were evicted to make room for others.",
    "failed_batches": "Batches in which the model failed; their requests were then repeated alone.",
    "expired_clips": "Clips that were dropped because their client had given up.",
    "predict_seconds": "Seconds in the model.",
}


class Metrics:
    """Counts what a server does.

    Example:
        >>> metrics = Metrics()
        >>> metrics.add("clips", 3)
        >>> "robometer_clips_total 3" in metrics.text({"queued_clips": 0})
        True
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._batches: Counter[int] = Counter()
        self._started = monotonic()

    def add(self, name: str, value: float = 1, **labels: object) -> None:
        """Add to a counter."""
        assert name in _COUNTERS
        text = ",".join(f'{key}="{label}"' for key, label in labels.items())
        self._counts[name, f"{{{text}}}" if text else ""] += value  # type: ignore[assignment]

    def add_batch(self, clips: int) -> None:
        """Count a call of the model with this number of clips."""
        self._batches[clips] += 1

    def text(self, gauges: Mapping[str, float]) -> str:
        """Return all counters, the sizes of batches, and `gauges` as Prometheus reads them."""
        lines = []
        for name, description in _COUNTERS.items():
            lines += _describe(f"robometer_{name}_total", description, "counter")
            found = [(key[1], value) for key, value in self._counts.items() if key[0] == name]
            lines += [f"robometer_{name}_total{key} {value}" for key, value in found or [("", 0)]]
        lines += _describe("robometer_batch_clips", "Clips in a call of the model.", "histogram")
        for bound in _BATCH_BOUNDS:
            count = sum(n for clips, n in self._batches.items() if clips <= bound)
            lines.append(f'robometer_batch_clips_bucket{{le="{bound}"}} {count}')
        count = sum(self._batches.values())
        lines += [
            f'robometer_batch_clips_bucket{{le="+Inf"}} {count}',
            f"robometer_batch_clips_sum {sum(clips * n for clips, n in self._batches.items())}",
            f"robometer_batch_clips_count {count}",
        ]
        for name, value in {**gauges, "uptime_seconds": monotonic() - self._started}.items():
            lines += [f"# TYPE robometer_{name} gauge", f"robometer_{name} {value}"]
        return "\n".join(lines) + "\n"


def _describe(name: str, description: str, kind: str) -> list[str]:
    return [f"# HELP {name} {description}", f"# TYPE {name} {kind}"]
