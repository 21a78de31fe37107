"""Loading of Qwen's tokenizer: rebuilt from the checked parts of tokenizer.json.

The tokenizers library trusts its files: some make it hang, others abort the process. Only the
vocabulary, the merges and the added tokens come from the file; everything else is what Qwen's
tokenizer has. Knows nothing of prompts.
"""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from robometer_gym.models.robometer.network.files import read_mapping
from robometer_gym.models.robometer.network.schema import (
    Field,
    Schema,
    boolean,
    check_fields,
    constant,
    integer,
    table,
    text,
)
from robometer_gym.reward_model import CheckpointError

__all__ = ["TOKENIZER_FILE", "read_tokenizer"]

TOKENIZER_FILE = "tokenizer.json"

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
_QWEN_SPLIT = {
    "type": "Split",
    "pattern": {"Regex": _SPLIT},
    "behavior": "Isolated",
    "invert": False,
}
_MAX_TOKENS = 1 << 20

_off = Field("null, false or empty", lambda value: value in (None, False, ""))
_BPE: Schema = {
    "type": constant("BPE"),
    **dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix"), _off),
    **dict.fromkeys(("end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges"), _off),
    "vocab": table(required=True),
    "merges": Field("a list", lambda value: isinstance(value, list), required=True),
}
_ADDED_TOKEN: Schema = {
    "id": integer(0, _MAX_TOKENS, required=True),
    "content": text(required=True),
    **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), constant(False)),
    "special": boolean(),
}


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Read a tokenizer of Qwen's kind: byte-level BPE, with or without Qwen's splitting of words.

    Raises:
        CheckpointError: missing, damaged, or of another kind; the message names the file.
    """
    file = folder / TOKENIZER_FILE
    if not file.exists():
        raise CheckpointError(
            f"{folder} has no {TOKENIZER_FILE}. "
            "Name a Qwen3-VL model that has one with processor=..."
        )
    content = read_mapping(file)
    try:
        tokenizer = _build(content)
    except CheckpointError as error:
        raise CheckpointError(f"{file} does not hold Qwen3-VL's tokenizer: {error}") from error
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    needed = ("<|im_start|>", "<|vision_start|>", "<|image_pad|>", "<|endoftext|>")
    if missing := [token for token in needed if tokenizer.token_to_id(token) is None]:
        raise CheckpointError(
            f"The tokenizer in {folder} lacks {missing}: it is not that of a Qwen3-VL model."
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def _build(content: dict[str, Any]) -> Tokenizer:
    check_fields(content, {"model": table(required=True)})
    model = content["model"]
    check_fields(model, _BPE, "model.")
    tokenizer = Tokenizer(models.BPE(vocab=_vocabulary(model), merges=_merges(model)))
    if (normalizer := content.get("normalizer")) is not None:
        _check_equal("normalizer", normalizer, {"type": "NFC"})
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(content.get("pre_tokenizer"))
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, content.get("added_tokens"))
    return tokenizer


def _vocabulary(model: dict[str, Any]) -> dict[str, int]:
    vocabulary: dict[str, int] = model["vocab"]
    ids = vocabulary.values()
    if not vocabulary or len(ids) > _MAX_TOKENS or any(type(each) is not int for each in ids):
        raise CheckpointError("model.vocab must have an integer for each token.")
    if sorted(ids) != list(range(len(ids))):
        raise CheckpointError("model.vocab must number its tokens from 0, without gaps.")
    return vocabulary


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    vocabulary, merges = model["vocab"], []
    for number, merge in enumerate(model["merges"]):
        try:
            first, second = merge.split(" ") if isinstance(merge, str) else merge
            known = first in vocabulary and second in vocabulary and first + second in vocabulary
        except (TypeError, ValueError):
            known = False
        if not known:
            raise CheckpointError(
                f"model.merges[{number}] must be two tokens that join to a third one, got "
                f"{reprlib.repr(merge)}."
            )
        merges.append((first, second))
    return merges


def _pre_tokenizer(value: object) -> Any:
    """Return the known pre-tokenizer that `value` describes: that of Qwen, or bytes alone."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    parts: Any = [value]
    if isinstance(value, dict) and value.get("type") == "Sequence":
        parts = value.get("pretokenizers")
        if not isinstance(parts, list) or len(parts) != 2:
            raise CheckpointError("pre_tokenizer must be a Split and a ByteLevel.")
    last = parts[-1]
    if isinstance(last, dict):  # without effect on tokens
        last = {key: item for key, item in last.items() if key != "trim_offsets"}
    _check_equal("pre_tokenizer", last, _BYTE_LEVEL)
    if len(parts) == 1:
        return byte_level
    _check_equal("pre_tokenizer", parts[0], _QWEN_SPLIT)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_SPLIT), "isolated"), byte_level])


def _check_equal(name: str, found: object, expected: dict[str, Any]) -> None:
    if found != expected:
        raise CheckpointError(f"{name} must be {expected}, got {reprlib.repr(found)}.")


def _add_tokens(tokenizer: Tokenizer, tokens: object) -> None:
    if not isinstance(tokens, list):
        raise CheckpointError(f"added_tokens must be a list, got {reprlib.repr(tokens)}.")
    for number, token in enumerate(tokens):
        name = f"added_tokens[{number}]"
        if not isinstance(token, dict):
            raise CheckpointError(f"{name} must be a table, got {reprlib.repr(token)}.")
        check_fields(token, _ADDED_TOKEN, f"{name}.")
    specials = []
    expected_id = tokenizer.get_vocab_size()
    for token in sorted(tokens, key=lambda token: token["id"]):
        if token["id"] != expected_id:
            raise CheckpointError(
                f"added_tokens must continue the ids of the vocabulary at {expected_id}, got "
                f"{token['id']} for {reprlib.repr(token['content'])}."
            )
        expected_id += 1
        specials.append(
            AddedToken(token["content"], normalized=False, special=token.get("special", True))
        )
    tokenizer.add_tokens(specials)
    if tokenizer.get_vocab_size() != expected_id:
        raise CheckpointError("added_tokens must have contents of their own.")
