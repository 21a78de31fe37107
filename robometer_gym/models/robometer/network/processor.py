"""Encoding of clips: token ids, positions and patches, the inputs of the backbone.

The text of prompts is in `prompt_text.py`. Knows nothing of weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from robometer_gym.models.robometer.network.config import SPECIAL_TOKENS, RobometerConfig
from robometer_gym.models.robometer.network.files import read_mapping
from robometer_gym.models.robometer.network.hub import find_files
from robometer_gym.models.robometer.network.images import ImageSettings, image_grids
from robometer_gym.models.robometer.network.prompt_text import (
    CHAT_TEMPLATE,
    image_label,
    image_text,
    preference_prompt,
    progress_prompt,
)
from robometer_gym.models.robometer.network.schema import check_fields, table
from robometer_gym.models.robometer.network.tokenizer import TOKENIZER_FILE, read_tokenizer
from robometer_gym.reward_model import CheckpointError, Clip

__all__ = [
    "Encoded",
    "RobometerProcessor",
    "load_processor",
    "token_positions",
]

_IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")


class Sample(NamedTuple):
    """One prompt, without padding.

    Attributes:
        ids: (L,) int64 token ids.
        positions: (3, L) int64: time, height and width of each token.
        patches: (P, 1536) float32, of all images.
        grids: per image, (h, w) in patches.
        progress_at: (T,) int64, the columns of `ids` at which progress and success are read: one
            per image.
        preference_at: (0,) or (1,) int64, the column at which the preference is read.
    """

    ids: Tensor
    positions: Tensor
    patches: Tensor
    grids: list[tuple[int, int]]
    progress_at: Tensor
    preference_at: Tensor


@dataclass(frozen=True, eq=False)
class Encoded:
    """A batch of prompts, padded on the right.

    Attributes:
        input_ids: (B, L) int64.
        attention_mask: (B, L) int64, 1 on tokens and 0 on padding.
        position_ids: (3, B, L) int64: time, height and width of each token.
        pixel_values: (P, 1536) float32, the patches of all images of all samples.
        image_grid_thw: (N, 3) int64, per image 1 and its height and width in patches.
        progress_at: per sample, the columns of `input_ids` at which progress and success are read,
            (T,) int64: one per image, those of A before those of B.
        preference_at: per sample, the column at which the preference is read, (0,) or (1,) int64.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    pixel_values: Tensor
    image_grid_thw: Tensor
    progress_at: list[Tensor]
    preference_at: list[Tensor]


class RobometerProcessor:
    """Turns clips into the backbone's inputs.

    Args:
        tokenizer: Qwen3-VL's; Robometer's five tokens are added to it if it lacks them.
        images: how frames are cut and normalized.
        predict_pref_progress: see `RobometerConfig`.

    Example:
        >>> import numpy as np
        >>> from robometer_gym.models.robometer.demo import byte_tokenizer
        >>> processor = RobometerProcessor(byte_tokenizer(), ImageSettings())
        >>> clip = Clip(np.zeros((2, 64, 64, 3), np.uint8), "open the drawer")
        >>> encoded = processor.encode([clip])
        >>> tuple(encoded.pixel_values.shape), len(encoded.progress_at[0])
        ((32, 1536), 2)
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        images: ImageSettings,
        *,
        predict_pref_progress: bool = True,
    ) -> None:
        known = tokenizer.get_vocab()
        tokenizer.add_tokens([t for t in SPECIAL_TOKENS if t not in known], special_tokens=True)
        self.tokenizer = tokenizer
        self.images = images
        self.predict_pref_progress = predict_pref_progress
        self._prog, self._pref, self._image, self._pad = (
            tokenizer.convert_tokens_to_ids(token)
            for token in ("<|prog_token|>", "<|pref_token|>", "<|image_pad|>", "<|endoftext|>")
        )

    @classmethod
    def from_pretrained(
        cls,
        id_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        predict_pref_progress: bool = True,
    ) -> RobometerProcessor:
        """Read tokenizer and image settings, and nothing else, from a folder or the hub.

        Raises:
            CheckpointError: not found, or not those of a Qwen3-VL model.
        """
        folder = find_files(
            id_or_path,
            (TOKENIZER_FILE, *_IMAGE_FILES),
            revision=revision,
            local_files_only=local_files_only,
        )
        return cls(
            read_tokenizer(folder),
            _read_image_settings(folder),
            predict_pref_progress=predict_pref_progress,
        )

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write tokenizer, chat template and image settings into a folder that exists."""
        self.tokenizer.save_pretrained(path)
        (Path(path) / "chat_template.jinja").write_text(CHAT_TEMPLATE)
        settings = json.dumps(self.images.to_dict(), indent=2)
        (Path(path) / _IMAGE_FILES[0]).write_text(settings + "\n")

    def encode(self, clips: Sequence[Clip]) -> Encoded:
        """Encode progress prompts, one per clip.

        Args:
            clips: B >= 1 clips; lengths, sizes and tasks may differ.
        """
        return self.collate([self.progress_sample(clip) for clip in clips])

    def encode_preference(self, pairs: Sequence[tuple[Clip, Clip]]) -> Encoded:
        """Encode preference prompts, one per pair (A, B), for the task of A."""
        return self.collate([self.preference_sample(a, b) for a, b in pairs])

    def progress_sample(self, clip: Clip) -> Sample:
        """Encode one progress prompt."""
        return self._sample([progress_prompt(clip.task), clip])

    def preference_sample(self, a: Clip, b: Clip) -> Sample:
        """Encode one preference prompt; the task is that of `a`."""
        beginning, middle, end = preference_prompt(a.task, with_progress=self.predict_pref_progress)
        return self._sample([beginning, a, middle, b, end])

    def collate(self, samples: Sequence[Sample]) -> Encoded:
        """Pad samples on the right to one length. Attention is causal, so padding has no effect."""
        return _collate(samples, self._pad)

    def token_ids(self, text: str) -> Tensor:
        """Return (L,) int64; the texts of control tokens become those tokens."""
        return torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def is_image(self, ids: Tensor) -> Tensor:
        """Return whether each token id stands for a part of an image, bool of the same shape."""
        found: Tensor = ids == self._image
        return found

    def _sample(self, parts: Sequence[str | Clip]) -> Sample:
        text, patches, grids = [], [], []
        for part in parts:
            if isinstance(part, str):
                text.append(part)
                continue
            for image in part.images:
                image_patches, grid = self.images.patches(image)
                patches.append(image_patches)
                grids.append(grid)
                text.append(image_label(len(grids)) + image_text(self.images.tokens(grid)))
        text.append("<|im_end|>\n")
        ids = self.token_ids("".join(text))
        merged = [(h // self.images.merge_size, w // self.images.merge_size) for h, w in grids]
        return Sample(
            ids=ids,
            positions=token_positions(self.is_image(ids), merged),
            patches=torch.cat(patches),
            grids=grids,
            progress_at=(ids == self._prog).nonzero()[:, 0],
            preference_at=(ids == self._pref).nonzero()[:, 0],
        )


def _collate(samples: Sequence[Sample], pad_id: int) -> Encoded:
    length = max(len(sample.ids) for sample in samples)
    input_ids = torch.full((len(samples), length), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    position_ids = torch.zeros((3, *input_ids.shape), dtype=torch.int64)
    for row, sample in enumerate(samples):
        end = len(sample.ids)
        input_ids[row, :end] = sample.ids
        attention_mask[row, :end] = 1
        position_ids[:, row, :end] = sample.positions
    return Encoded(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        pixel_values=torch.cat([sample.patches for sample in samples]),
        image_grid_thw=image_grids([grid for sample in samples for grid in sample.grids]),
        progress_at=[sample.progress_at for sample in samples],
        preference_at=[sample.preference_at for sample in samples],
    )


def token_positions(is_image: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
    """Return (3, L): the rotary position of each token in time, height and width.

    The position of a text token is one more than its predecessor's in all three. The tokens of an
    image share one time and count its rows and columns; the next token follows its longer side.

    Source: get_rope_index of transformers' Qwen3VLModel; given in closed form here because its
    signature and requirements change between versions.

    Args:
        is_image: (L,) bool, whether a token is a part of an image.
        grids: per image, (rows, columns) in tokens.
    """
    spans, end, now = [], 0, 0
    starts = (is_image & ~is_image.roll(1)).nonzero()[:, 0]  # a text token separates any two images
    for start, (rows, columns) in zip(starts.tolist(), grids, strict=True):
        spans.append((torch.arange(start - end) + now).expand(3, -1))
        now += start - end
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        spans.append(torch.stack([torch.zeros_like(row), row, column]).reshape(3, -1) + now)
        now += max(rows, columns)
        end = start + rows * columns
    spans.append((torch.arange(len(is_image) - end) + now).expand(3, -1))
    return torch.cat(spans, dim=1)


def _read_image_settings(folder: Path) -> ImageSettings:
    for name in _IMAGE_FILES:
        if not (folder / name).exists():
            continue
        config = read_mapping(folder / name)
        try:
            settings = config.get("image_processor", config)
            check_fields({"image_processor": settings}, {"image_processor": table()})
            return ImageSettings.from_dict(settings)
        except CheckpointError as error:
            raise CheckpointError(
                f"{folder / name} does not hold a Qwen3-VL image processor's settings: {error}"
            ) from error
    raise CheckpointError(
        f"{folder} has neither {' nor '.join(_IMAGE_FILES)}. "
        "Name a Qwen3-VL model that has one with processor=..."
    )


def load_processor(
    processor: str | os.PathLike[str] | None,
    folder: Path,
    config: RobometerConfig,
    *,
    name: str | os.PathLike[str],
    local_files_only: bool,
) -> RobometerProcessor:
    """Load the processor of a checkpoint: the given one, its own, or that of its base model.

    Args:
        processor: hub id or folder, or None.
        folder: of the checkpoint.
        config: of the checkpoint.
        name: of the checkpoint, for messages.
        local_files_only: make no connection to the hub.

    Raises:
        CheckpointError: not found, or not that of a Qwen3-VL model.
    """
    own = folder if (folder / TOKENIZER_FILE).exists() else config.base_model_id
    try:
        return RobometerProcessor.from_pretrained(
            processor or own,
            local_files_only=local_files_only,
            predict_pref_progress=config.predict_pref_progress,
        )
    except CheckpointError as error:
        if processor:
            raise
        raise CheckpointError(
            f"Tokenizer and image settings of {os.fspath(name)!r} were searched in "
            f"{os.fspath(own)!r}. Name a folder or hub id that has them with processor=... "
            f"({error})"
        ) from error
