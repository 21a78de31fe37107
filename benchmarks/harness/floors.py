"""Roofline floor of a query on an H200: the least time that its operations and bytes can take.

For the 4B shape alone. Per part (vision tower, language model, its head) the larger of operations
at 790 TFLOP/s and bytes at 4.3 TB/s, in bfloat16; activations and launches count as nothing.
"""

from __future__ import annotations

__all__ = ["PROMPT_TOKENS", "floor_ms"]

_FLOPS, _BYTES = 790e12, 4.3e12  # per second

PROMPT_TOKENS = 83
"""Length of a prompt with a task of six words, by the released tokenizer."""

_BESIDE = 8  # tokens of a frame's block besides its image: "Picture k: ", start, end, progress

_LM_LAYERS, _LM_WIDTH_OF_QUERIES, _LM_WEIGHTS = 36, 4096, 3.6333e9
_HEAD_WEIGHTS = 388.3e6
_KV_BYTES = 147_456  # per token
_VIT_LAYERS, _VIT_WIDTH, _VIT_BLOCK_WEIGHTS, _VIT_MERGERS = 24, 1024, 302.0e6, 109.1e6
_VIT_BYTES, _PATCH_WEIGHTS = 0.830e9, 1536 * 1024


def floor_ms(
    size: tuple[int, int],
    batch: int,
    *,
    images: int,
    blocks: int,
    reused: int | None = None,
    head: bool = False,
) -> float:
    """Return milliseconds for one query of `batch` streams.

    Args:
        size: height and width of the images as the model sees them, multiples of 32.
        batch: number of streams.
        images: frames of a stream that go through the vision tower.
        blocks: frames of a stream that the language model reads.
        reused: frames before those that are in the KV cache, with the prompt; None if the prompt
            is not in it.
        head: whether LeRobot's logits are computed, over all tokens and two closing ones.
    """
    patches = size[0] // 16 * (size[1] // 16)
    merged = patches // 4
    encode = 2 * patches * (_VIT_BLOCK_WEIGHTS + _PATCH_WEIGHTS) + 2 * merged * _VIT_MERGERS
    encode += 4 * _VIT_WIDTH * _VIT_LAYERS * patches**2
    tokens, before = blocks * (merged + _BESIDE) + (2 if head else 0), 0
    if reused is None:
        tokens += PROMPT_TOKENS
    else:
        before = PROMPT_TOKENS + reused * (merged + _BESIDE)
    read = 2 * _LM_WEIGHTS * tokens
    read += 4 * _LM_WIDTH_OF_QUERIES * _LM_LAYERS * tokens * (before + tokens / 2)
    kept = batch * (before + tokens) * _KV_BYTES
    seconds = max(batch * images * encode / _FLOPS, _VIT_BYTES / _BYTES)
    seconds += max(batch * read / _FLOPS, (2 * _LM_WEIGHTS + kept) / _BYTES)
    if head:
        seconds += max(batch * tokens * 2 * _HEAD_WEIGHTS / _FLOPS, 2 * _HEAD_WEIGHTS / _BYTES)
    return 1000 * seconds
