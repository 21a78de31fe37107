"""Training arguments: transformers' TrainingArguments with the authors' values as defaults.

Knows nothing of models or data.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import torch
from transformers import TrainingArguments

__all__ = ["training_arguments"]

# Later versions of transformers call gradient checkpointing activation checkpointing.
_CHECKPOINTING = (
    "activation_checkpointing"
    if hasattr(TrainingArguments, "activation_checkpointing")
    else "gradient_checkpointing"
)

# Arguments without an effect here, or with an obscure error, and what to do instead.
_REFUSED = {
    "label_smoothing_factor": "progress is trained on distributions over bins, not on labels.",
    "neftune_noise_alpha": "most embeddings are those of images.",
    "num_train_epochs": "examples are drawn at random, without epochs. Pass max_steps.",
    "resume_from_checkpoint": "pass resume=True (--resume).",
    **dict.fromkeys(
        ("data_seed", "group_by_length", "length_column_name", "train_sampling_strategy"),
        "examples are drawn with `seed` and `sampling`, and batched by kind.",
    ),
    **dict.fromkeys(("label_names", "remove_unused_columns"), "examples have no columns."),
    **dict.fromkeys(
        ("do_eval", "eval_on_start", "eval_steps", "eval_strategy", "load_best_model_at_end"),
        "held-out episodes are scored before and after the training. Pass eval_share.",
    ),
}


def training_arguments(output_dir: str | os.PathLike[str], **changes: Any) -> TrainingArguments:
    """Return transformers' arguments with the authors' values as defaults.

    AdamW at 2e-5 with weight decay 0.01, warm-up over a tenth of the steps followed by a cosine,
    gradients clipped at 10, seed 42; 1000 steps of 8 examples each, as in their recipe for
    fine-tuning. On a GPU bfloat16 and gradient checkpointing.

    Args:
        output_dir: the folder for checkpoints and logs.
        **changes: transformers.TrainingArguments; they override the defaults.
            `gradient_checkpointing` and `warmup_ratio` work in every version of transformers.

    Raises:
        ValueError: max_steps is not above 0, or an argument has no meaning here, such as
            `num_train_epochs` or `eval_strategy`.

    Source: configs/config.yaml and FINETUNE_ROBOMETER.md at c7f38e2.
    """
    gpu = torch.cuda.is_available() and not changes.get("use_cpu", False)
    bf16 = changes.get("bf16", gpu and not changes.get("fp16", False))
    steps = changes.get("max_steps", 1000)
    if steps < 1:
        raise ValueError(
            f"max_steps must be >= 1, got {steps!r}. Examples are drawn at random, without epochs."
        )
    if refused := next((name for name in _REFUSED if name in changes), None):
        raise ValueError(f"{refused} cannot be used here: {_REFUSED[refused]}")
    defaults = {
        "max_steps": steps,
        "per_device_train_batch_size": 8,
        "learning_rate": 2e-5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": round(changes.pop("warmup_ratio", 0.1) * steps),
        "weight_decay": 0.01,
        "max_grad_norm": 10.0,
        "seed": 42,
        "bf16": bf16,
        "dataloader_num_workers": 4 if gpu else 0,
        "dataloader_pin_memory": gpu,
        "ddp_find_unused_parameters": False,  # every head is in every batch's graph
        "logging_steps": min(10, max(1, steps // 20)),
        "save_steps": 100,
        "save_total_limit": 2,
        "report_to": ["tensorboard"] if find_spec("tensorboard") else [],
        _CHECKPOINTING: bf16,
        f"{_CHECKPOINTING}_kwargs": {"use_reentrant": False},
        "remove_unused_columns": False,  # an example has no columns
    }
    renamed = {
        name.replace("gradient_checkpointing", _CHECKPOINTING): value
        for name, value in changes.items()
    }
    return TrainingArguments(output_dir=os.fspath(output_dir), **defaults | renamed)
