"""Arms of the engine benchmarks: one random network behind our engines and LeRobot's path.

Each arm has its own copy of the weights.
"""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from harness.lerobot_path import LeRobotPath
from harness.networks import (
    RELEASED_ROWS,
    TASK,
    make_config,
    make_processor,
    prompt_tokens,
    random_model,
)
from harness.report import cpu_name
from harness.windows import Window
from robometer_gym import Clip, RobometerRewardModel
from robometer_gym.models.robometer.network import (
    RobometerConfig,
    RobometerModel,
    RobometerProcessor,
)

__all__ = [
    "ARMS",
    "Arms",
    "Values",
    "allocated_bytes",
    "describe",
    "make_arms",
    "max_allocated_bytes",
    "quiet_transformers",
    "reset_max_allocated",
    "timed",
]

ARMS = ("lerobot", "lerobot-linear", "eager", "fast")

Values = list[NDArray[np.float64]]
"""Per clip, (2, T): progress and success."""


class OurArm:
    """`RobometerRewardModel`, called as a wrapper calls it."""

    def __init__(self, model: RobometerRewardModel) -> None:
        self.model = model

    def prepare(self, windows: list[Window]) -> list[Window]:
        """Return the windows: making the clips counts."""
        return windows

    def predict(self, windows: list[Window]) -> Any:
        """Make the clips and predict."""
        return self.model.predict(
            [Clip(window.frames, TASK, window.stream, window.steps) for window in windows]
        )

    def values(self, predictions: Any) -> Values:
        """Return the predictions as arrays."""
        return [np.array([each.progress, each.success], np.float64) for each in predictions]

    def release(self, windows: list[Window]) -> None:
        """Release the streams, which have ended."""
        for window in windows:
            self.model.release(window.stream)


class LeRobotArm:
    """LeRobot's path, which knows no streams."""

    def __init__(self, path: LeRobotPath) -> None:
        self.path = path

    def prepare(self, windows: list[Window]) -> NDArray[np.uint8]:
        """Stack the frames, as LeRobot receives them."""
        return np.stack([np.stack(window.frames) for window in windows])

    def predict(self, videos: NDArray[np.uint8]) -> Any:
        """Predict."""
        return self.path.predict(videos, [TASK] * len(videos))

    def values(self, predictions: Any) -> Values:
        """Return the predictions as arrays."""
        return [np.array(each, np.float64) for each in predictions]

    def release(self, windows: list[Window]) -> None:
        """Do nothing: nothing was kept."""


@dataclass
class Arms:
    """The arms by name, around copies of one network.

    Attributes:
        device: of all weights.
        processor: of all arms.
        config: of the network.
        dtype: of all weights.
        by_name: the arms that were added.
        resident: bytes on the GPU that each arm took when it was made.
        cold: seconds to make each arm, and of its first query.
    """

    device: torch.device
    processor: RobometerProcessor
    config: RobometerConfig
    dtype: torch.dtype
    by_name: dict[str, OurArm | LeRobotArm] = field(default_factory=dict)
    resident: dict[str, int] = field(default_factory=dict)
    cold: dict[str, dict[str, float]] = field(default_factory=dict)

    def network(self, cast: torch.dtype | None = None) -> RobometerModel:
        """Return one more copy of the network, perhaps in another dtype."""
        return random_model(self.config, self.device, self.dtype, cast=cast)

    def add(self, name: str, max_streams: int) -> None:
        """Make an arm."""
        before = allocated_bytes(self.device)
        self.by_name[name], seconds = timed(self.device, lambda: self._make(name, max_streams))
        self.cold[name] = {"build_s": seconds}
        self.resident[name] = allocated_bytes(self.device) - before

    def _make(self, name: str, max_streams: int) -> OurArm | LeRobotArm:
        model, linear = self.network(), name.endswith("linear")
        if name.startswith("lerobot"):
            return LeRobotArm(LeRobotPath(model, self.processor.tokenizer, linear_patches=linear))
        return OurArm(
            RobometerRewardModel(
                model,
                self.processor,
                self.config,
                engine="fast" if name == "fast" else "eager",
                max_streams=max_streams,
            )
        )


def make_arms(shape: str, vocabulary: str, device: torch.device, dtype: torch.dtype) -> Arms:
    """Return the arms of a network of one of the `SHAPES`, none added yet.

    Args:
        shape: by name.
        vocabulary: "released" or "small".
        device: of all weights.
        dtype: of all weights.
    """
    processor = make_processor(RELEASED_ROWS if vocabulary == "released" else None)
    return Arms(device, processor, make_config(shape, processor), dtype)


def allocated_bytes(device: torch.device) -> int:
    """Return torch's allocations on a GPU; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def max_allocated_bytes(device: torch.device) -> int:
    """Return the peak of torch's allocations on a GPU since the reset below; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def reset_max_allocated(device: torch.device) -> None:
    """Start to measure the peak again."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def timed(device: torch.device, call: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a call and its seconds, the device synchronized before and after."""

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    synchronize()
    start = time.perf_counter()
    result = call()
    synchronize()
    return result, time.perf_counter() - start


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers, which warns of arguments of LeRobot's path at each query."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def describe(arms: Arms) -> dict[str, Any]:
    """Return the network, the machine and the versions, by which a run can be repeated."""
    on_gpu = arms.device.type == "cuda"
    return {
        "vocabulary": len(arms.processor.tokenizer),
        "prompt_tokens": prompt_tokens(arms.processor),
        "dtype": str(arms.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if on_gpu else cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
