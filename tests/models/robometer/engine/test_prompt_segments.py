"""Prompt segments: tokenized one by one, they must equal the whole prompt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robometer_gym.models.robometer.demo import byte_tokenizer
from robometer_gym.models.robometer.engine.prompt_segments import Prompts
from robometer_gym.models.robometer.network.images import ImageSettings
from robometer_gym.models.robometer.network.processor import RobometerProcessor
from robometer_gym.models.robometer.network.prompt_text import PHRASES
from robometer_gym.reward_model import Clip
from robometer_gym.validation import check_task
from tests.models.robometer.reference import REAL_PROCESSOR

BYTES = RobometerProcessor(byte_tokenizer(), ImageSettings())
PHRASED = RobometerProcessor(byte_tokenizer([*PHRASES, "Picture ", ". Picture"]), ImageSettings())


def is_task(text: str) -> bool:
    try:
        check_task(text)
    except ValueError:
        return False
    return True


# Ends that a tokenizer might join with what follows, and everything else that can be typed.
TASKS = (
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
    | st.sampled_from(
        ["open it.", "go\n", "x ", " y", "1", "<think>", "Picture 1: ", "'", "{task}"]
    )
    | st.text("aZ 1.:'\n<|>P", min_size=1, max_size=12)
).filter(is_task)


def assert_pieces_are_the_whole(
    processor: RobometerProcessor, task: str, length: int, height: int, width: int
) -> None:
    prompts = Prompts(processor)
    whole = processor.progress_sample(Clip(np.zeros((length, height, width, 3), np.uint8), task))
    (grid,) = set(whole.grids)
    pieces = [prompts.beginning(task), *(prompts.block(k + 1, grid) for k in range(length))]
    tail = len(processor.token_ids("<|im_end|>\n"))
    ids = np.concatenate([piece.ids for piece in pieces])
    np.testing.assert_array_equal(ids, whole.ids[:-tail])
    starts = np.cumsum([0, *(piece.advance for piece in pieces)])
    positions = [piece.positions + start for piece, start in zip(pieces, starts, strict=False)]
    np.testing.assert_array_equal(np.concatenate(positions, axis=1), whole.positions[:, :-tail])
    assert (len(ids), starts[-1]) == prompts.extent(task, grid, length)
    ends = np.cumsum([len(piece.ids) for piece in pieces])
    assert (ends[1:] - 1).tolist() == whole.progress_at.tolist()
    for piece in pieces:
        (columns,) = np.nonzero(processor.is_image(torch.from_numpy(piece.ids)).numpy())
        first, past = piece.image
        assert columns.tolist() == list(range(first, past))


@settings(max_examples=60)
@given(TASKS, st.integers(1, 13), st.sampled_from([(64, 64), (64, 160), (240, 320)]))
def test_pieces_of_bytes_are_the_whole(task, length, size):
    """The demo checkpoint would read another prompt than the one it was trained on."""
    assert_pieces_are_the_whole(BYTES, task, length, *size)
    assert_pieces_are_the_whole(PHRASED, task, length, *size)


@pytest.fixture(scope="module")
def real() -> RobometerProcessor:
    if not REAL_PROCESSOR.is_dir():
        pytest.skip("shared/data/qwen3-vl-processor is not beside this checkout: no real tokenizer")
    return RobometerProcessor.from_pretrained(REAL_PROCESSOR)


@settings(max_examples=150)
@given(task=TASKS, length=st.integers(1, 13), size=st.sampled_from([(64, 64), (96, 64)]))
def test_pieces_of_the_real_tokenizer_are_the_whole(real, task, length, size):
    """The published checkpoint would read other tokens: no error, only worse rewards."""
    assert_pieces_are_the_whole(real, task, length, *size)


def test_the_label_of_the_first_image_belongs_to_the_beginning(real):
    """No control token separates them: tokenized apart, the text at the seam may differ."""
    beginning = Prompts(real).beginning("open it")
    assert real.tokenizer.decode(beginning.ids).endswith("predict 0 progress.Picture 1: ")
    assert len(Prompts(real).block(1, (4, 4)).ids) == 4 + 3
    assert len(Prompts(real).block(2, (4, 4)).ids) == 4 + 8
    assert len(Prompts(real).block(10, (4, 4)).ids) == 4 + 9
