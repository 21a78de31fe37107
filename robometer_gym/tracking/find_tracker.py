"""The reward wrapper's tracker, found in a stack of wrappers."""

from __future__ import annotations

from collections.abc import Iterator

from robometer_gym.tracking.tracker import EpisodeTracker

__all__ = ["find_tracker", "unwrap"]


def find_tracker(env: object) -> EpisodeTracker | None:
    """Return the tracker of the reward wrapper in a stack of wrappers; None where there is none.

    Args:
        env: an environment of Gymnasium or Stable-Baselines3, scalar or vector.
    """
    layers: Iterator[object] = unwrap(env)
    trackers = (getattr(layer, "__dict__", {}).get("tracker") for layer in layers)
    return next((found for found in trackers if isinstance(found, EpisodeTracker)), None)


def unwrap(env: object) -> Iterator[object]:
    """Yield an environment and everything that it wraps, the outermost first."""
    while env is not None:
        yield env
        inside = getattr(env, "__dict__", {})  # an environment's own `env` may be anything
        env = inside.get("env", inside.get("venv"))
