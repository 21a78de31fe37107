"""Reference implementation of Robometer: eager, one clip at a time.

Made only of public parts: the processor's chat template and call, qwen-vl-utils for the images,
transformers' Qwen3-VL with eager attention, and three heads written out with
`torch.nn.functional`. It reads the checkpoint's files itself and knows nothing of
our network, so that a test which compares the two compares two independent readings of the
published recipe. Slow on purpose: no batching, no cache, nothing clever.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
import transformers
from numpy.typing import NDArray
from PIL import Image
from qwen_vl_utils import process_vision_info
from safetensors.torch import load_file
from transformers import (
    AutoProcessor,
    Qwen3VLConfig,
    Qwen3VLModel,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from robometer_gym.reward_model import Clip
from tests.paths import SHARED_DATA

if transformers.__version__.startswith("4."):  # the same things had other names there
    from transformers import Qwen2TokenizerFast as Tokenizer
    from transformers import Qwen2VLImageProcessorFast as ImageProcessor
else:
    from transformers import PreTrainedTokenizerFast as Tokenizer
    from transformers import Qwen2VLImageProcessor as ImageProcessor

DATA = SHARED_DATA
"""Folder of the real tokenizer, beside the checkout; it may be missing."""
REAL_PROCESSOR = DATA / "qwen3-vl-processor"

ADDED_TOKENS = (
    "<|split_token|>",
    "<|reward_token|>",
    "<|pref_token|>",
    "<|sim_token|>",
    "<|prog_token|>",
)

# The published prompts, letter by letter: one changed word is another model.
PROGRESS_PROMPT = (
    "The task for the robot is '%s'. Given the trajectory video, predict the task progress at each "
    "frame, how far along the robot is towards completing the task, a float between 0 and 1, where "
    "0 is the starting state and 1 is when the task is completed. If the robot is not performing "
    "the same task, predict 0 progress."
)
PREFERENCE_PROMPT = (
    "Given these two trajectories for the task '%s', evaluate which one makes more progress "
    "towards the task. Return A for the first trajectory and B for the second trajectory."
)
PREFERENCE_WITH_PROGRESS = (
    " Also predict the task progress at each frame of the first trajectory, how far along the "
    "robot is towards completing the task, a float between 0 and 1, where 0 is the starting state "
    "and 1 is when the task is completed. If the robot is not performing the same task, predict 0 "
    "progress."
)

# For tokenizers without a template: the output of Qwen3-VL's own for one user message.
CHAT_TEMPLATE = (
    "{%- set seen = namespace(images=0) -%}"
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\n' -}}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}"
    "{%- set seen.images = seen.images + 1 -%}"
    "{%- if add_vision_id -%}{{- 'Picture ' ~ seen.images ~ ': ' -}}{%- endif -%}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- else -%}{{- part.text -}}{%- endif -%}"
    "{%- endfor -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
)


@lru_cache
def load_processor(folder: Path) -> Any:
    """Return transformers' own Qwen3-VL processor with the five added tokens.

    Args:
        folder: a processor folder; one that holds only a tokenizer gets Qwen3-VL's image settings.
    """
    if (folder / "processor_config.json").is_file() and folder == REAL_PROCESSOR:
        processor = AutoProcessor.from_pretrained(
            folder, do_sample_frames=False, padding_side="right"
        )
    else:
        patches = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
        half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        tokenizer = Tokenizer(
            tokenizer_file=str(folder / "tokenizer.json"),
            pad_token="<|endoftext|>",
            eos_token="<|im_end|>",
            padding_side="right",
        )
        processor = Qwen3VLProcessor(
            ImageProcessor(**patches, **half),
            tokenizer,
            Qwen3VLVideoProcessor(**patches, **half),
            chat_template=CHAT_TEMPLATE,
        )
    for token in ADDED_TOKENS:
        if token not in processor.tokenizer.get_vocab():
            processor.tokenizer.add_special_tokens({"additional_special_tokens": [token]})
    return processor


def _images(clip: Clip) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for frame in clip.frames:
        parts.append({"type": "image", "image": Image.fromarray(frame)})
        parts.append({"type": "text", "text": "<|prog_token|>"})
    return parts


def progress_message(clip: Clip) -> list[dict[str, Any]]:
    """The progress prompt of a clip."""
    prompt = PROGRESS_PROMPT.replace("%s", clip.task)
    return [{"role": "user", "content": [{"type": "text", "text": prompt}, *_images(clip)]}]


def preference_message(a: Clip, b: Clip, *, with_progress: bool = True) -> list[dict[str, Any]]:
    """The preference prompt: is `a` better than `b` at the task of `a`?

    Args:
        a: shown first.
        b: shown second.
        with_progress: whether the checkpoint's training requested progress too, as in the released
            one.
    """

    def text(words: str) -> dict[str, Any]:
        return {"type": "text", "text": words}

    prompt = PREFERENCE_PROMPT + (PREFERENCE_WITH_PROGRESS if with_progress else "")
    content = [
        text(prompt.replace("%s", a.task)),
        text("This is Trajectory A. "),
        *_images(a),
        text("<|split_token|>"),
        text("This is Trajectory B. "),
        *_images(b),
        text("Now predict the preference between the two trajectories."),
        text("<|pref_token|>"),
    ]
    return [{"role": "user", "content": content}]


def encode(processor: Any, messages: list[list[dict[str, Any]]]) -> dict[str, torch.Tensor]:
    """Template, image loading and processor call, with the published settings."""
    texts = [
        processor.apply_chat_template(
            message, tokenize=False, add_generation_prompt=False, add_vision_id=True
        )
        for message in messages
    ]
    images, _ = process_vision_info(messages, image_patch_size=processor.image_processor.patch_size)
    return dict(
        processor(
            text=texts,
            images=images,
            padding=True,
            truncation=False,
            return_tensors="pt",
            do_resize=False,
        )
    )


class Reference:
    """The published recipe on one checkpoint folder of either format, in float32.

    Args:
        folder: the checkpoint.
        processor_folder: where the tokenizer lies, when not in `folder`.

    Attributes:
        backbone: transformers' model, up to and including its last RMSNorm.
        tensors: every tensor of the checkpoint, float32, under its name in the file.
    """

    def __init__(self, folder: Path, processor_folder: Path | None = None) -> None:
        self.tensors = {
            name: tensor.float()
            for file in sorted(folder.glob("*.safetensors"))
            for name, tensor in load_file(file).items()
        }
        self.processor = load_processor(processor_folder or folder)
        self.backbone = _backbone(json.loads((folder / "config.json").read_text()), self.tensors)

    @torch.no_grad()
    def hidden(self, message: list[dict[str, Any]], token: str, shift: int = 0) -> torch.Tensor:
        """The last hidden states (n, hidden) at each `token`, or `shift` columns after it."""
        inputs = encode(self.processor, [message])
        states: torch.Tensor = self.backbone(**inputs).last_hidden_state[0]
        token_id = self.processor.tokenizer.convert_tokens_to_ids(token)
        return states[torch.nonzero(inputs["input_ids"][0] == token_id)[:, 0] + shift]

    def head(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (n, out) of one head."""

        def layer(index: int) -> tuple[torch.Tensor, torch.Tensor]:
            prefix = f"{name}_head.{index}"
            return self.tensors[f"{prefix}.weight"], self.tensors[f"{prefix}.bias"]

        hidden = F.linear(hidden, *layer(0))
        hidden = F.layer_norm(hidden, hidden.shape[-1:], *layer(1))
        return F.linear(F.gelu(hidden), *layer(4))

    def predict(
        self, clip: Clip, shift: int = 0
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Progress and success of one clip, (T,) float32 each."""
        hidden = self.hidden(progress_message(clip), "<|prog_token|>", shift)
        bins = torch.softmax(self.head("progress", hidden), dim=-1)
        progress = (bins * torch.linspace(0, 1, bins.shape[-1])).sum(-1)
        return progress.numpy(), torch.sigmoid(self.head("success", hidden))[:, 0].numpy()

    def prefer(self, a: Clip, b: Clip) -> float:
        """P(a is better than b), the mean over both orders."""
        first, second = self.prefer_in_order(a, b), self.prefer_in_order(b, a)
        return (first + 1 - second) / 2

    def prefer_in_order(self, a: Clip, b: Clip) -> float:
        """P(a is better than b) with `a` shown first."""
        hidden = self.hidden(preference_message(a, b), "<|pref_token|>")
        return torch.sigmoid(self.head("preference", hidden)).item()


def _backbone(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    prefix = "model."
    if "vlm_config" in config:  # LeRobot's format: one level deeper
        config, prefix = config["vlm_config"], "model.model."
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith((f"{prefix}visual.", f"{prefix}language_model."))
    }
    if "language_model.embed_tokens.weight" not in state:  # tied, and saved under its other name
        state["language_model.embed_tokens.weight"] = tensors["model.lm_head.weight"]
    text = dict(config["text_config"])
    rope = text.get("rope_parameters") or {**text["rope_scaling"], "rope_theta": text["rope_theta"]}
    # Both spellings, so that any version of transformers reads the one it knows.
    text |= {"rope_parameters": rope, "rope_scaling": rope, "rope_theta": rope["rope_theta"]}
    parts = {"text_config": text, "vision_config": config["vision_config"]}
    ids = {name: value for name, value in config.items() if name.endswith("_token_id")}
    full = Qwen3VLConfig(**parts, **ids)
    backbone = Qwen3VLModel._from_config(full, attn_implementation="eager", dtype=torch.float32)
    backbone.load_state_dict(state, strict=True)
    rotary = backbone.language_model.rotary_emb
    steps = torch.arange(0, text["head_dim"], 2) / text["head_dim"]
    torch.testing.assert_close(rotary.inv_freq, 1 / rope["rope_theta"] ** steps)
    assert list(rotary.mrope_section) == list(rope["mrope_section"])
    return backbone.eval()
