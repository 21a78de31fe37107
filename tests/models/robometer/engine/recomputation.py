"""Small random networks, clips to ask them about, and what full recomputation says of these.

For the tests of the fast engine. Only the public surface of `RobometerRewardModel` is used.
"""

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
from robometer_gym.models.robometer.network import (
    RobometerConfig,
    RobometerModel,
    RobometerProcessor,
)
from robometer_gym.models.robometer.network.images import ImageSettings
from robometer_gym.models.robometer.network.processor import PHRASES
from robometer_gym.reward_model import Clip, Frame, Prediction
from robometer_gym.tracking.window import Sampling

SINGLE, DOUBLE = torch.float32, torch.float64
TOLERANCE = {SINGLE: 1e-5, DOUBLE: 1e-6}
TASKS = ("open it", "close the drawer, 'slowly'", "把红色的杯子放在桌子上")
SIZES = ((64, 64), (64, 96), (40, 100))  # the last one is resized
SAMPLINGS: tuple[Sampling, ...] = ("anchored", "linspace", "tail")
STREAMS = (0, "left", ("env", 1), 3.5, frozenset({2}))


def small_config(processor: RobometerProcessor) -> RobometerConfig:
    """The demo architecture, with a layer more on both sides: one that is neither first nor last.

    And with a second level of features that are added to the language model's layers.
    """
    demo = demo_config(processor).backbone
    text = {**demo["text_config"], "num_hidden_layers": 3}
    vision = {**demo["vision_config"], "depth": 3, "deepstack_visual_indexes": [0, 1]}
    return RobometerConfig({**demo, "text_config": text, "vision_config": vision})


@cache
def parts() -> tuple[RobometerProcessor, RobometerConfig]:
    processor = RobometerProcessor(byte_tokenizer(PHRASES), ImageSettings())
    return processor, small_config(processor)


@cache
def shared_network(dtype: torch.dtype, seed: int) -> RobometerModel:
    network = random_model(parts()[1], seed)
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
    """A model with nothing in its caches; with weights of its `own` if they are to be changed."""
    network = shared_network(dtype, seed)
    return RobometerRewardModel(
        copy.deepcopy(network) if own else network, *parts(), engine=engine, max_streams=max_streams
    )


@lru_cache(maxsize=10_000)
def picture(name: Hashable, step: int, size: tuple[int, int] = SIZES[0]) -> Frame:
    """Blocks of colour: two pictures differ much more than neighbouring pixels do."""
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
    """A clip of these steps of a stream.

    The pictures are those of `of`, if it is not None. Stream and steps are told if it is `named`.
    """
    frames = [picture(stream if of is None else of, step, size) for step in steps]
    return Clip(frames, task, stream, tuple(steps)) if named else Clip(frames, task)


class Truth:
    """What full recomputation says; every window is computed once."""

    def __init__(self, dtype: torch.dtype = SINGLE, seed: int = 0) -> None:
        self.model = new_model("eager", dtype, seed)
        self._known: dict[tuple[Any, ...], Prediction] = {}

    def __call__(self, asked: Clip) -> Prediction:
        key = (asked.task, *(image.tobytes() for image in asked.images), asked.images[0].shape)
        if key not in self._known:
            (self._known[key],) = self.model.predict([Clip(asked.images, asked.task)])
        return self._known[key]


@cache
def truth(dtype: torch.dtype = SINGLE, seed: int = 0) -> Truth:
    return Truth(dtype, seed)


def assert_same(
    answer: Prediction, right: Prediction | tuple[Any, Any], tolerance: float = 1e-5
) -> None:
    progress, success = (right.progress, right.success) if isinstance(right, Prediction) else right
    for ours, its in ((answer.progress, progress), (answer.success, success)):
        assert ours.dtype == np.float32
        assert ours.flags.writeable
        np.testing.assert_allclose(ours, its, rtol=tolerance, atol=0)


def check(model: RobometerRewardModel, clips: Sequence[Clip], its: Truth | None = None) -> None:
    """Ask, and compare each answer with full recomputation."""
    answers = model.predict(clips)
    assert len(answers) == len(clips)
    its = its or truth()
    for answer, asked in zip(answers, clips, strict=True):
        assert_same(answer, its(asked))


def scarce(budget: int | None) -> Any:
    """Leave the engine so many bytes for its caches; None: as many as it takes."""
    usual = engine_module._CPU_BUDGET
    return mock.patch.object(engine_module, "_CPU_BUDGET", usual if budget is None else budget)
