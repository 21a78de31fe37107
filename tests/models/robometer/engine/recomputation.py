"""Small random models, clips, and full recomputation, for the tests of the fast engine."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from functools import cache, lru_cache
from typing import Any
from unittest import mock

import numpy as np
import torch

from robometer_gym import RobometerRewardModel
from robometer_gym.models.robometer.demo import byte_tokenizer, demo_config, random_model
from robometer_gym.models.robometer.engine import engine as engine_module
from robometer_gym.models.robometer.engine.engine import Engine
from robometer_gym.models.robometer.network import (
    RobometerConfig,
    RobometerModel,
    RobometerProcessor,
)
from robometer_gym.models.robometer.network.images import ImageSettings
from robometer_gym.models.robometer.network.prompt_text import PHRASES
from robometer_gym.reward_model import Clip, Frame, Prediction
from robometer_gym.tracking.window import Sampling

SINGLE, DOUBLE = torch.float32, torch.float64
TOLERANCE = {SINGLE: 1e-5, DOUBLE: 1e-6}
TASKS = ("open it", "close the drawer, 'slowly'", "把红色的杯子放在桌子上")
SIZES = ((64, 64), (64, 96), (40, 100))  # the last one is resized
SAMPLINGS: tuple[Sampling, ...] = ("anchored", "linspace", "tail")
PROCESSOR = RobometerProcessor(byte_tokenizer(PHRASES), ImageSettings())


def small_config(hidden_size: int = 96) -> RobometerConfig:
    """The demo architecture with one more layer on both sides, neither first nor last.

    And with a second level of features that are added to the language model's layers.
    """
    demo = demo_config(PROCESSOR).backbone
    text = {**demo["text_config"], "num_hidden_layers": 3, "hidden_size": hidden_size}
    vision = {**demo["vision_config"], "depth": 3, "deepstack_visual_indexes": [0, 1]}
    vision["out_hidden_size"] = hidden_size
    return RobometerConfig({**demo, "text_config": text, "vision_config": vision})


CONFIG = small_config()


@cache
def shared_network(dtype: torch.dtype, seed: int) -> RobometerModel:
    network = random_model(CONFIG, seed)
    network.backbone.to(dtype)
    return network


def new_model(
    engine: Any = "fast",
    dtype: torch.dtype = SINGLE,
    seed: int = 0,
    max_streams: int = 64,
    *,
    own: bool = False,
) -> RobometerRewardModel:
    """A model with empty caches; with weights of its `own` if they are to be changed."""
    network = shared_network(dtype, seed)
    return RobometerRewardModel(
        copy.deepcopy(network) if own else network,
        PROCESSOR,
        CONFIG,
        engine=engine,
        max_streams=max_streams,
    )


def eager_twin(model: RobometerRewardModel) -> RobometerRewardModel:
    """The eager model around the network of another."""
    return RobometerRewardModel(model.model, model.processor, model.config, engine="eager")


def engine_of(model: RobometerRewardModel) -> Engine:
    engine = model._fast_engine()
    assert engine is not None
    return engine


def graph_count(model: RobometerRewardModel) -> int:
    graphs = model.engine_info()["graphs"]
    assert graphs.endswith("captured"), graphs
    return int(graphs.split()[0])


@lru_cache(maxsize=10_000)
def draw_frame(name: Hashable, step: int, size: tuple[int, int] = SIZES[0]) -> Frame:
    """Blocks of color: two frames differ much more than adjacent pixels do."""
    rng = np.random.default_rng([*repr((name, step)).encode(), *size])
    small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    rows, columns = np.arange(size[0]) * 4 // size[0], np.arange(size[1]) * 4 // size[1]
    drawn: Frame = small[rows][:, columns]
    drawn.flags.writeable = False
    return drawn


def clip(
    stream: Hashable,
    steps: Sequence[int],
    task: str = TASKS[0],
    size: tuple[int, int] = SIZES[0],
    *,
    of: Hashable = None,
    named: bool = True,
) -> Clip:
    """A clip of these steps of a stream; without stream and steps if it is None or not `named`.

    The frames are those of `of`, if it is not None.
    """
    frames = [draw_frame(stream if of is None else of, step, size) for step in steps]
    if named and stream is not None:
        return Clip(frames, task, stream, tuple(steps))
    return Clip(frames, task)


class Truth:
    """Full recomputation by an eager model; every window is computed once."""

    def __init__(self, model: RobometerRewardModel) -> None:
        self.model = model
        self._known: dict[tuple[Any, ...], Prediction] = {}

    def __call__(self, clip: Clip) -> Prediction:
        key = (clip.task, *(image.tobytes() for image in clip.images), clip.images[0].shape)
        if key not in self._known:
            (self._known[key],) = self.model.predict([Clip(clip.images, clip.task)])
        return self._known[key]


@cache
def truth(dtype: torch.dtype = SINGLE, seed: int = 0) -> Truth:
    return Truth(new_model("eager", dtype, seed))


def assert_same(
    ours: Prediction, right: Prediction | tuple[Any, Any], tolerance: float = 1e-5
) -> None:
    progress, success = (right.progress, right.success) if isinstance(right, Prediction) else right
    for values, expected in ((ours.progress, progress), (ours.success, success)):
        assert values.dtype == np.float32
        assert values.flags.writeable
        np.testing.assert_allclose(values, expected, rtol=tolerance, atol=0)


def assert_close(
    ours: Sequence[Prediction], right: Sequence[Prediction], tolerance: float = 1e-5
) -> None:
    assert len(ours) == len(right)
    for one, other in zip(ours, right, strict=True):
        assert_same(one, other, tolerance)


def check(
    model: RobometerRewardModel, clips: Sequence[Clip], recompute: Truth | None = None
) -> None:
    """Predict, and compare each prediction with full recomputation."""
    recompute = recompute or truth()
    assert_close(model.predict(clips), [recompute(each) for each in clips])


def limit_budget(budget: int | None) -> Any:
    """Give the engine so many bytes for its caches; None: the default."""
    default = engine_module._CPU_BUDGET
    return mock.patch.object(engine_module, "_CPU_BUDGET", default if budget is None else budget)
