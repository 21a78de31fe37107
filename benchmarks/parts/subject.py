"""What is measured: one random network behind several arms, each with its own copy of it.

An arm answers a query: our engine, our eager path, LeRobot's path.
"""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from parts.lerobot_path import LeRobotPath
from parts.models import (
    RELEASED_ROWS,
    TASK,
    make_config,
    make_processor,
    question_tokens,
    random_model,
)
from parts.windows import Window
from robometer_gym import Clip, RobometerRewardModel
from robometer_gym.models.robometer.network import (
    RobometerConfig,
    RobometerModel,
    RobometerProcessor,
)

__all__ = [
    "ARMS",
    "Answers",
    "LeRobotArm",
    "Subject",
    "allocated",
    "describe",
    "make_subject",
    "quiet",
    "timed",
]

ARMS = ("lerobot", "lerobot-linear", "eager", "fast")

Answers = list[NDArray[np.float64]]
"""Per clip, (2, T): progress and success."""


class OurArm:
    """`RobometerRewardModel`, asked as a wrapper asks it."""

    def __init__(self, model: RobometerRewardModel) -> None:
        self.model = model

    def prepare(self, windows: list[Window]) -> list[Window]:
        """Nothing is done before the clock starts."""
        return windows

    def ask(self, windows: list[Window]) -> Any:
        """Make the clips and predict."""
        return self.model.predict(
            [Clip(window.frames, TASK, window.stream, window.steps) for window in windows]
        )

    def read(self, told: Any) -> Answers:
        """Return the answers as arrays."""
        return [np.array([each.progress, each.success], np.float64) for each in told]

    def release(self, windows: list[Window]) -> None:
        """Say that the streams have ended."""
        for window in windows:
            self.model.release(window.stream)


class LeRobotArm:
    """LeRobot's path, which knows no streams."""

    def __init__(self, path: LeRobotPath) -> None:
        self.path = path

    def prepare(self, windows: list[Window]) -> NDArray[np.uint8]:
        """Stack the frames, as LeRobot is given them."""
        return np.stack([np.stack(window.frames) for window in windows])

    def ask(self, videos: NDArray[np.uint8]) -> Any:
        """Predict."""
        return self.path.predict(videos, [TASK] * len(videos))

    def read(self, told: Any) -> Answers:
        """Return the answers as arrays."""
        return [np.array(each, np.float64) for each in told]

    def release(self, windows: list[Window]) -> None:
        """Forget nothing: nothing was kept."""


Arm = OurArm | LeRobotArm


@dataclass
class Subject:
    """The network that is measured, and where.

    Attributes:
        arms: by name, each with its own copy of the weights.
        resident: bytes on the GPU that each arm held when it had been made.
        cold: seconds to make each arm, and of its first query.
    """

    device: torch.device
    processor: RobometerProcessor
    config: RobometerConfig
    dtype: torch.dtype
    arms: dict[str, Arm] = field(default_factory=dict)
    resident: dict[str, int] = field(default_factory=dict)
    cold: dict[str, dict[str, float]] = field(default_factory=dict)

    def network(self, cast: torch.dtype | None = None) -> RobometerModel:
        """Return one more copy of the network, perhaps in another dtype."""
        return random_model(self.config, self.device, self.dtype, cast=cast)

    def add(self, name: str, max_streams: int) -> None:
        """Make an arm."""
        before = allocated(self.device)
        start = time.perf_counter()
        model = self.network()
        if name.startswith("lerobot"):
            path = LeRobotPath(
                model, self.processor.tokenizer, linear_patches=name.endswith("linear")
            )
            self.arms[name] = LeRobotArm(path)
        else:
            self.arms[name] = OurArm(
                RobometerRewardModel(
                    model,
                    self.processor,
                    self.config,
                    engine="fast" if name == "fast" else "eager",
                    max_streams=max_streams,
                )
            )
        synchronize(self.device)
        self.cold[name] = {"build_s": time.perf_counter() - start}
        self.resident[name] = allocated(self.device) - before


def synchronize(device: torch.device) -> None:
    """Wait for all that the device was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def allocated(device: torch.device) -> int:
    """Bytes that torch holds on a GPU; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def peak(device: torch.device) -> int:
    """Most bytes that torch held on a GPU since `forget_peak`; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def forget_peak(device: torch.device) -> None:
    """Begin to look for the peak anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def timed(device: torch.device, call: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a call returned and the seconds that it took."""
    synchronize(device)
    start = time.perf_counter()
    told = call()
    synchronize(device)
    return told, time.perf_counter() - start


@contextmanager
def quiet() -> Iterator[None]:
    """LeRobot's path gives the processor arguments that transformers warns of, at each query."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def make_subject(shape: str, vocabulary: str, device: torch.device, dtype: torch.dtype) -> Subject:
    """Return a network of one of the `SHAPES`, with no arms yet.

    Args:
        shape: by name.
        vocabulary: "released" or "small".
        device: where it is made.
        dtype: of all weights.
    """
    processor = make_processor(RELEASED_ROWS if vocabulary == "released" else None)
    return Subject(device, processor, make_config(shape, processor), dtype)


def describe(subject: Subject) -> dict[str, Any]:
    """All that somebody needs to know of the network and the machine to measure it again."""
    on_gpu = subject.device.type == "cuda"
    return {
        "vocabulary": len(subject.processor.tokenizer),
        "question_tokens": question_tokens(subject.processor),
        "dtype": str(subject.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if on_gpu else _cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _cpu_name() -> str:
    """What the CPU calls itself."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return f"CPU, {names[0]}, {len(names)} cores" if names else f"CPU, {platform.processor()}"
