"""LeRobot's prediction path, step by step, on transformers' public API.

Written after `rewards/robometer/processor_robometer.py` and `modeling_robometer.py` of LeRobot
0.6.1 (7427f31); every step of theirs is here once, in their order, and no other. Left out, because
they cost next to nothing: the registries and dictionaries that carry tensors from one step to the
next. The only addition: the caller gets every frame's values, as `decode_progress_outputs` has
them, and not the last one's alone.

LeRobot's own two files, run beside this with the same weights (tiny shape, 224x224, a CPU,
transformers 5.23), gave the same predictions to the last bit, and took 1.00 (one clip of 8 frames)
and 0.97 (four clips) of its time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from qwen_vl_utils import process_vision_info
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from robometer_gym.models.robometer.network import RobometerModel
from robometer_gym.models.robometer.network.prompt_text import PHRASES

if transformers.__version__.startswith("4."):  # the same classes under other names
    from transformers import Qwen2TokenizerFast as Tokenizer
    from transformers import Qwen2VLImageProcessorFast as ImageProcessor
else:
    from transformers import PreTrainedTokenizerFast as Tokenizer
    from transformers import Qwen2VLImageProcessor as ImageProcessor

__all__ = ["LeRobotPath"]

_MAX_FRAMES = 8
_INPUTS = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw", "mm_token_type_ids")

# Qwen3-VL's own template for one user message, without its other branches.
_TEMPLATE = (
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


class LeRobotPath:
    """Predicts from numpy frames as LeRobot's processor and model do together.

    Args:
        model: its weights become part of this object, so pass a copy.
        tokenizer: Qwen3-VL's with Robometer's tokens.
        linear_patches: whether to embed patches by a matrix product. LeRobot has a convolution
            there, which some versions of torch and cuDNN compute very slowly.
    """

    def __init__(
        self,
        model: RobometerModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        linear_patches: bool = False,
    ) -> None:
        self.network = _with_language_head(model.backbone)
        # LeRobot's heads compute in the dtype of their weights; ours always in float32.
        self.progress_head = nn.Sequential(*model.progress_head).eval()
        self.success_head = nn.Sequential(*model.success_head).eval()
        self.processor = _make_processor(tokenizer)
        self._prog = tokenizer.convert_tokens_to_ids("<|prog_token|>")
        if linear_patches:
            visual = self.network.model.visual
            visual.patch_embed = _LinearPatches(visual.patch_embed.proj)

    def predict(
        self, videos: NDArray[np.uint8], tasks: Sequence[str]
    ) -> list[tuple[list[float], list[float]]]:
        """Return progress and success of every frame of every video.

        Args:
            videos: (B, T, H, W, 3) uint8; LeRobot takes videos of one length and size.
            tasks: B instructions.
        """
        frames = torch.as_tensor(videos)
        samples = [_to_numpy(frames[row]) for row in range(frames.shape[0])]
        inputs = self._encode(samples, tasks)
        device = self.network.device
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        self.network.eval()
        with torch.no_grad():
            progress, success = self._logits(inputs)
        return _decode(progress, success)

    def _encode(self, samples: list[NDArray[np.uint8]], tasks: Sequence[str]) -> dict[str, Tensor]:
        messages = [
            _conversation(frames, task) for frames, task in zip(samples, tasks, strict=True)
        ]
        texts = [
            self.processor.apply_chat_template(
                message,
                tokenize=False,
                add_generation_prompt=False,
                add_vision_id=True,
                enable_thinking=False,
                fps=1,
            )
            for message in messages
        ]
        images, _, video_options = process_vision_info(
            messages,
            return_video_kwargs=True,
            return_video_metadata=True,
            image_patch_size=self.processor.image_processor.patch_size,
        )
        encoded = self.processor(
            text=texts,
            images=images,
            padding=True,
            truncation=False,
            max_length=1024,
            return_tensors="pt",
            do_resize=False,
            **video_options,
        )
        return {name: encoded[name] for name in _INPUTS if name in encoded}

    def _logits(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        outputs = self.network(**inputs, output_hidden_states=True, return_dict=True)
        hidden = outputs.hidden_states[-1]
        if transformers.__version__.startswith("4."):  # the state before the norm
            hidden = self.network.model.language_model.norm(hidden)
        rows, columns = (inputs["input_ids"] == self._prog).nonzero(as_tuple=True)
        progress, success = [], []
        for row in range(hidden.shape[0]):
            states = hidden[row, columns[rows == row]]
            progress.append(self.progress_head(states))
            success.append(self.success_head(states).squeeze(-1))
        return torch.stack(progress), torch.stack(success)


class _LinearPatches(nn.Module):
    """The same embedding as the convolution's, as a matrix product."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.proj = convolution

    def forward(self, patches: Tensor) -> Tensor:
        weight = self.proj.weight
        return functional.linear(patches.to(weight.dtype), weight.flatten(1), self.proj.bias)


def _with_language_head(backbone: Any) -> Any:
    """Return the model that LeRobot runs, around an existing backbone."""
    with torch.device("meta"):
        network = Qwen3VLForConditionalGeneration(backbone.config)
    network.model = backbone
    network.lm_head.weight = backbone.get_input_embeddings().weight  # tied, as in the 4B
    return network.eval()


def _make_processor(tokenizer: PreTrainedTokenizerFast) -> Any:
    patches = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return Qwen3VLProcessor(
        ImageProcessor(**patches, **half),
        Tokenizer(
            tokenizer_object=tokenizer.backend_tokenizer,
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
        ),
        Qwen3VLVideoProcessor(**patches, **half),
        chat_template=_TEMPLATE,
    )


def _to_numpy(video: Tensor) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] = video[-_MAX_FRAMES:].detach().cpu().numpy()
    return np.clip(array, 0, 255).astype(np.uint8)


def _conversation(frames: NDArray[np.uint8], task: str) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = [{"type": "text", "text": f"{PHRASES[1]}{task}{PHRASES[2]}"}]
    for image in [Image.fromarray(frame) for frame in frames]:
        content.append({"type": "image", "image": image})
        content.append({"type": "text", "text": "<|prog_token|>"})
    return [{"role": "user", "content": content}]


def _decode(progress: Tensor, success: Tensor) -> list[tuple[list[float], list[float]]]:
    """Decode sample by sample on the host, (B, T, K) and (B, T)."""
    predictions = []
    for progress_logits, success_logits in zip(progress, success, strict=True):
        logits = progress_logits.detach().float().cpu()
        bins = torch.linspace(0.0, 1.0, logits.shape[-1])
        values = (torch.softmax(logits, dim=-1) * bins).sum(dim=-1).flatten().tolist()
        probabilities = torch.sigmoid(success_logits.detach().float().cpu()).flatten().tolist()
        predictions.append((values, probabilities))
    return predictions
