"""Fine-tuning of Robometer: a subclass of transformers' Trainer, with PEFT's LoRA.

Chooses the trained weights and the Trainer's arguments. Knows nothing of how examples are drawn
(`sampler`) or of the objective (`losses`).
"""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from robometer_gym.data.episodes import Episode
from robometer_gym.models.robometer.network.modeling import RobometerModel
from robometer_gym.models.robometer.network.processor import RobometerProcessor
from robometer_gym.models.robometer.predictor import RobometerRewardModel
from robometer_gym.training.batches import Batch, Collator, NumberedExamples
from robometer_gym.training.losses import LossWeights, robometer_loss
from robometer_gym.training.sampler import Sampler, SamplingSettings
from robometer_gym.validation import MissingDependencyError

try:
    from peft import LoraConfig, PeftModel, get_peft_model  # imports accelerate too
except ImportError as error:
    raise MissingDependencyError(
        "robometer_gym.training needs accelerate and peft: pip install 'robometer-gym[train]'."
    ) from error

__all__ = ["LORA", "RobometerTrainer", "prepare_model", "train", "training_arguments"]

logger = logging.getLogger(__name__)

LORA = LoraConfig(
    r=32,
    lora_alpha=64,
    lora_dropout=0.05,
    target_modules=r"backbone\.language_model\..*\.(q|k|v|o|gate|up|down)_proj",
    modules_to_save=["progress_head", "preference_head", "success_head"],
)
"""Adapters on every projection of the language model; the heads are trained in full.

Source: FINETUNE_ROBOMETER.md at c7f38e2.
"""


def train(
    model: str | os.PathLike[str] | RobometerRewardModel,
    episodes: Sequence[Episode],
    out: str | os.PathLike[str],
    *,
    processor: str | os.PathLike[str] | None = None,
    lora: LoraConfig | None = LORA,
    train_vision: bool = False,
    sampling: SamplingSettings | None = None,
    weights: LossWeights | None = None,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    **arguments: Any,
) -> RobometerRewardModel:
    """Fine-tune a checkpoint on episodes, and write the result.

    Runs in one process or, under `accelerate launch`, in one per GPU. (FSDP and DeepSpeed are
    untested.)

    Args:
        model: a hub id, a folder, "demo", or a loaded model, which is changed in place.
        episodes: the training data.
        out: the folder for the result, as `from_pretrained` reads it, with the Trainer's log in
            `losses.json`. The Trainer's checkpoints are in `out/checkpoints`.
        processor: see `RobometerRewardModel.from_pretrained`.
        lora: adapters, merged into the weights at the end; None trains the language model in full.
        train_vision: whether to train the vision tower too, in full. It is frozen otherwise.
        sampling: which examples are drawn from the episodes.
        weights: of the three parts of the objective.
        resume: continue from the last checkpoint in `out/checkpoints`. With all other arguments
            unchanged, the losses are those of an uninterrupted run.
        callbacks: passed to transformers' Trainer.
        **arguments: of transformers.TrainingArguments, see `training_arguments` for our defaults.

    Returns:
        The trained model, ready to predict.

    Raises:
        ValueError: `out` holds checkpoints and `resume` is False; the episodes make no example;
            max_steps is not above 0; or the model is quantized.
        CheckpointError: the model cannot be loaded.
        FloatingPointError: the loss has become infinite or NaN.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> frames = np.zeros((6, 64, 64, 3), np.uint8)
        >>> with tempfile.TemporaryDirectory() as out:
        ...     model = train(
        ...         "demo",
        ...         [Episode(frames, "open the drawer")],
        ...         out,
        ...         max_steps=1,
        ...         per_device_train_batch_size=2,
        ...         disable_tqdm=True,
        ...     )  # doctest: +ELLIPSIS
        ...     sorted(path.name for path in Path(out).glob("*.safetensors"))
        {'loss': ...}
        ['model.safetensors']
    """
    sampler = Sampler(episodes, sampling)  # fails before the model is loaded
    out = Path(out)
    checkpoint = _last_checkpoint(out / "checkpoints", resume)
    settings = training_arguments(out / "checkpoints", **arguments)
    if not isinstance(model, RobometerRewardModel):
        # On the CPU: the Trainer chooses this process's GPU. Weights that are trained in full are
        # float32: an update of 2e-5 would vanish in the rounding of bfloat16.
        dtype = torch.bfloat16 if lora and settings.bf16 else torch.float32
        model = RobometerRewardModel.from_pretrained(
            model, device="cpu", dtype=dtype, processor=processor
        )
    set_seed(settings.seed)  # adapters are initialized at random
    trainer = RobometerTrainer(
        prepare_model(model.model, lora=lora, train_vision=train_vision),
        model.processor,
        sampler,
        settings,
        weights=weights,
        callbacks=list(callbacks),
    )
    if settings.bf16:  # a large model: recompute activations instead of keeping them
        trainer.model.gradient_checkpointing_enable()
    trainer.train(resume_from_checkpoint=checkpoint)
    network = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(network, PeftModel):
        network = network.merge_and_unload()
    trained = RobometerRewardModel(network, model.processor, model.config)
    if trainer.is_world_process_zero():
        trained.save_pretrained(out)
        (out / "losses.json").write_text(json.dumps(trainer.state.log_history, indent=1) + "\n")
    return trained


def training_arguments(output_dir: str | os.PathLike[str], **changes: Any) -> TrainingArguments:
    """Return transformers' arguments with the authors' values as defaults.

    AdamW at 2e-5 with weight decay 0.01, warm-up over a tenth of the steps followed by a cosine,
    gradients clipped at 10, seed 42; 1000 steps of 8 examples each, as in their recipe for
    fine-tuning. bfloat16 on a GPU.

    Args:
        output_dir: the folder for checkpoints and logs.
        **changes: any of transformers.TrainingArguments; they override the defaults.

    Source: configs/config.yaml and FINETUNE_ROBOMETER.md at c7f38e2.
    """
    gpu = torch.cuda.is_available() and not changes.get("use_cpu", False)
    steps = changes.get("max_steps", 1000)
    if steps < 1:
        raise ValueError(
            f"max_steps must be >= 1, got {steps!r}. Examples are drawn at random, without epochs."
        )
    defaults = {
        "max_steps": steps,
        "per_device_train_batch_size": 8,
        "learning_rate": 2e-5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": round(0.1 * steps),
        "weight_decay": 0.01,
        "max_grad_norm": 10.0,
        "seed": 42,
        "bf16": gpu,
        "dataloader_num_workers": 4 if gpu else 0,
        "dataloader_pin_memory": gpu,
        "ddp_find_unused_parameters": False,  # every head is in every batch's graph
        "logging_steps": min(10, max(1, steps // 20)),
        "save_steps": 100,
        "save_total_limit": 2,
        "report_to": ["tensorboard"] if find_spec("tensorboard") else [],
    }
    fixed = {"remove_unused_columns": False}  # an example has no columns
    return TrainingArguments(output_dir=os.fspath(output_dir), **defaults | changes | fixed)


def prepare_model(
    model: RobometerModel, *, lora: LoraConfig | None, train_vision: bool
) -> nn.Module:
    """Mark the trained weights and add adapters.

    Without LoRA the language model and the heads are trained; with LoRA the adapters and the heads.
    The vision tower is trained only with `train_vision`.

    Raises:
        ValueError: the model is quantized.
    """
    if model.quantization:
        raise ValueError(
            f"A model that was loaded with quantization={model.quantization!r} cannot be trained. "
            "Load it without quantization, and train it with LoRA (the default), which needs less "
            "memory than training it in full."
        )
    model.requires_grad_(True)
    prepared: nn.Module = get_peft_model(model, lora) if lora else model
    model.backbone.visual.requires_grad_(train_vision)
    return prepared


class RobometerTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer with Robometer's examples and objective.

    Logs the three parts of the loss beside their sum. Everything else is the Trainer's: devices,
    mixed precision, accumulation, checkpoints, callbacks, logs.

    Args:
        model: a `RobometerModel`, or one with PEFT's adapters.
        processor: the model's.
        sampler: draws the examples.
        arguments: see `training_arguments`; `max_steps` must be set.
        weights: of the three parts of the objective.
        **others: other arguments of the Trainer, such as callbacks.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> model = RobometerRewardModel.from_pretrained("demo", device="cpu")
        >>> with tempfile.TemporaryDirectory() as out:
        ...     trainer = RobometerTrainer(
        ...         prepare_model(model.model, lora=LORA, train_vision=False),
        ...         model.processor,
        ...         Sampler([Episode(np.zeros((6, 64, 64, 3), np.uint8), "open the drawer")]),
        ...         training_arguments(out, max_steps=2, use_cpu=True),
        ...     )
        >>> trainer.args.learning_rate
        2e-05
    """

    def __init__(
        self,
        model: nn.Module,
        processor: RobometerProcessor,
        sampler: Sampler,
        arguments: TrainingArguments,
        *,
        weights: LossWeights | None = None,
        **others: Any,
    ) -> None:
        super().__init__(
            model,
            arguments,
            data_collator=Collator(processor),
            train_dataset=NumberedExamples(sampler, arguments),
            **others,
        )
        self._weights = weights or LossWeights()
        self._parts: dict[str, list[Tensor]] = defaultdict(list)

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # the examples are random already

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, **_: Any
    ) -> Any:
        """Return the objective of one batch, with `return_outputs` also the logits."""
        logits = model(inputs["batch"])
        targets = inputs["targets"].to(logits.progress.device)
        losses = robometer_loss(logits, targets, self._weights)
        if not losses.total.isfinite():  # the Trainer would log it as 0 and continue
            raise FloatingPointError(
                f"The loss has become {losses.total.item()} at step {self.state.global_step}. "
                "Lower the learning rate, and start again or resume from an earlier checkpoint."
            )
        if model.training:
            parts = {"progress": losses.progress, "success": losses.success}
            if len(targets.preference):
                parts["preference"] = losses.preference
            for name, value in parts.items():
                self._parts[f"{name}_loss"].append(value.detach())
        return (losses.total, logits) if return_outputs else losses.total

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean of each part since the last log."""
        if "loss" in logs:
            parts = {name: torch.stack(values).mean() for name, values in self._parts.items()}
            logs |= {name: round(value.item(), 4) for name, value in parts.items()}
            self._parts.clear()
        super().log(logs, *args, **kwargs)


def _last_checkpoint(folder: Path, resume: bool) -> str | None:
    # The state is written last: a checkpoint without it is incomplete.
    complete = [state.parent for state in folder.glob("checkpoint-*/trainer_state.json")]
    last = max(complete, key=lambda path: int(path.name.split("-")[1]), default=None)
    if last and not resume:
        raise ValueError(
            f"{folder} holds the checkpoints of another run. Continue it with resume=True "
            "(--resume), or choose another folder."
        )
    if resume and not last:
        logger.warning(
            "There is no checkpoint in %s yet: training starts from the beginning.", folder
        )
    return os.fspath(last) if last else None
