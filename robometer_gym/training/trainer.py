"""Train or fine-tune Robometer: transformers' Trainer underneath, LoRA from PEFT.

Knows what a question is turned into and which weights move; what is asked and what the answers
cost is said in `sampling` and `losses`.
"""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from robometer_gym.data.episodes import Episode
from robometer_gym.models.robometer.network.modeling import RobometerModel
from robometer_gym.models.robometer.network.processor import Encoded, RobometerProcessor
from robometer_gym.models.robometer.predictor import RobometerRewardModel
from robometer_gym.training.augmentation import Pair, Question, Sampler, SamplingSettings
from robometer_gym.training.losses import LossWeights, Targets, robometer_loss

__all__ = ["LORA", "RobometerTrainer", "prepare_model", "train", "training_arguments"]

logger = logging.getLogger(__name__)

_HEADS = ("progress_head", "preference_head", "success_head")

LORA = LoraConfig(
    r=32,
    lora_alpha=64,
    lora_dropout=0.05,
    target_modules=r"backbone\.language_model\..*\.(q|k|v|o|gate|up|down)_proj",
    modules_to_save=list(_HEADS),
)
"""Adapters on every projection of the language model; the heads are trained whole.

Source: FINETUNE_ROBOMETER.md at c7f38e2.
"""


class Batch(TypedDict):
    """What the network is given, and what its heads should say."""

    batch: Encoded
    targets: Targets


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

    Runs in one process or, under `accelerate launch`, in one per GPU. (Neither FSDP nor DeepSpeed
    has been tried.)

    Args:
        model: a hub id, a folder, "demo", or a model that is there; that one is changed.
        episodes: what to learn from.
        out: the folder that the result is written to, as `from_pretrained` reads it, with what
            was logged in `losses.json`. The Trainer's checkpoints go to `out/checkpoints`.
        processor: see `RobometerRewardModel.from_pretrained`.
        lora: adapters, merged into the weights at the end; None trains the language model whole.
        train_vision: whether the vision tower is trained too, whole. It is frozen otherwise.
        sampling: which questions are made of the episodes.
        weights: of the three parts of the objective.
        resume: go on from the last checkpoint in `out/checkpoints`. Losses are then the same as if
            the run had never stopped, if everything else is given as before.
        callbacks: told about every step, as transformers' Trainer tells them.
        **arguments: of transformers.TrainingArguments, see `training_arguments` for ours.

    Returns:
        The trained model, ready to predict.

    Raises:
        ValueError: `out` holds the checkpoints of a run that is not to be resumed; or of these
            episodes no question can be made; or max_steps is not above 0; or the model is
            quantised.
        CheckpointError: the model cannot be loaded.
        FloatingPointError: the loss has become infinite or NaN.

    Example:
        >>> import tempfile
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
    sampler = Sampler(
        episodes, sampling
    )  # what cannot be asked is found before the model is loaded
    out = Path(out)
    checkpoint = _last_checkpoint(out / "checkpoints", resume)
    wanted = training_arguments(out / "checkpoints", **arguments)
    if not isinstance(model, RobometerRewardModel):
        # On the CPU: the Trainer knows which of several GPUs is this process's own. Weights that
        # are trained whole are float32: an update of 2e-5 would vanish in a bfloat16's rounding.
        dtype = torch.bfloat16 if lora and wanted.bf16 else torch.float32
        model = RobometerRewardModel.from_pretrained(
            model, device="cpu", dtype=dtype, processor=processor
        )
    set_seed(wanted.seed)  # adapters begin with random numbers
    trainer = RobometerTrainer(
        prepare_model(model.model, lora=lora, train_vision=train_vision),
        model.processor,
        sampler,
        wanted,
        weights=weights,
        callbacks=list(callbacks),
    )
    if wanted.bf16:  # a large model, then: recompute activations rather than keep them
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
    """Return transformers' arguments with the authors' values where they gave one.

    AdamW at 2e-5 with weight decay 0.01, warm-up over a tenth of the steps and a cosine after it,
    gradients clipped at 10, seed 42; 1000 steps of 8 questions each, as in their recipe for
    fine-tuning. On a GPU bfloat16.

    Args:
        output_dir: where checkpoints and logs go.
        **changes: any of transformers.TrainingArguments, over these.

    Source: configs/config.yaml and FINETUNE_ROBOMETER.md at c7f38e2.
    """
    gpu = torch.cuda.is_available() and not changes.get("use_cpu", False)
    steps = changes.get("max_steps", 1000)
    if steps < 1:
        raise ValueError(
            f"max_steps must be >= 1, got {steps!r}. Questions are drawn anew: there are no epochs."
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
        "ddp_find_unused_parameters": False,  # every head has its part in every batch
        "logging_steps": min(10, max(1, steps // 20)),
        "save_steps": 100,
        "save_total_limit": 2,
        "report_to": ["tensorboard"] if find_spec("tensorboard") else [],
    }
    fixed = {"remove_unused_columns": False}  # a question has no columns
    return TrainingArguments(output_dir=os.fspath(output_dir), **defaults | changes | fixed)


def prepare_model(
    model: RobometerModel, *, lora: LoraConfig | None, train_vision: bool
) -> nn.Module:
    """Mark which weights are trained, and put adapters in.

    Without LoRA the language model and the heads are trained; with it adapters and the heads. The
    vision tower is frozen unless it is to be trained.

    Raises:
        ValueError: the model is quantised.
    """
    if model.quantization:
        raise ValueError(
            f"A model that was loaded with quantization={model.quantization!r} cannot be trained. "
            "Load it without, and train it with LoRA (the default), which needs less memory than "
            "training it whole."
        )
    model.requires_grad_(True)
    prepared: nn.Module = get_peft_model(model, lora) if lora else model
    model.backbone.visual.requires_grad_(train_vision)
    return prepared


class RobometerTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer with Robometer's questions and objective.

    Logs the three parts of the loss beside their sum. Everything else is the Trainer's: devices,
    mixed precision, accumulation, checkpoints, callbacks, logs.

    Args:
        model: a `RobometerModel`, or one with PEFT's adapters.
        processor: its own.
        sampler: draws the questions.
        arguments: see `training_arguments`; `max_steps` must be set.
        weights: of the three parts of the objective.
        **others: of the Trainer, such as callbacks.

    Example:
        >>> import tempfile
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
            data_collator=_Collator(processor),
            train_dataset=_Questions(sampler, arguments),
            **others,
        )
        self._weights = weights or LossWeights()
        self._parts: dict[str, list[Tensor]] = defaultdict(list)

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # they are drawn at random as it is

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, **_: Any
    ) -> Any:
        """Return the objective of one batch, and the logits if they are wanted."""
        logits = model(inputs["batch"])
        targets = inputs["targets"].to(logits.progress.device)
        losses = robometer_loss(logits, targets, self._weights)
        if not losses.total.isfinite():  # the Trainer would log it as 0, and go on
            raise FloatingPointError(
                f"The loss has become {losses.total.item()} at step {self.state.global_step}. "
                "Lower the learning rate, and begin again or resume from before."
            )
        if model.training:
            parts = {"progress": losses.progress, "success": losses.success}
            if len(targets.preference):
                parts["preference"] = losses.preference
            for name, value in parts.items():
                self._parts[f"{name}_loss"].append(value.detach())
        return (losses.total, logits) if return_outputs else losses.total

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the means of the parts since the last log."""
        if "loss" in logs:
            parts = {name: torch.stack(values).mean() for name, values in self._parts.items()}
            logs |= {name: round(value.item(), 4) for name, value in parts.items()}
            self._parts.clear()
        super().log(logs, *args, **kwargs)


class _Questions(Dataset[Pair | Question]):
    """Every question of a whole training, drawn when its number comes up.

    Nothing but the number decides what is drawn, so that workers do not repeat one another and a
    run that was interrupted goes on with the questions that it had not had. All questions of a
    batch are of one kind, so that the shorter ones are not padded.
    """

    def __init__(self, sampler: Sampler, arguments: TrainingArguments) -> None:
        self._sampler, self._seed = sampler, arguments.seed
        self._batch: int = arguments.train_batch_size
        batches = arguments.max_steps * arguments.gradient_accumulation_steps
        self._size: int = batches * arguments.world_size * self._batch

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, number: int) -> Pair | Question:
        of_batch = np.random.default_rng([self._seed, number // self._batch])
        compare = self._sampler.draw_kind(of_batch)
        return self._sampler.draw(np.random.default_rng([self._seed, number, 1]), compare=compare)


class _Collator:
    """From questions to one batch. In a comparison progress and success are asked of A alone."""

    def __init__(self, processor: RobometerProcessor) -> None:
        self._processor = processor

    def __call__(self, questions: Sequence[Pair | Question]) -> Batch:
        samples, labels, preferences = [], [], []
        for question in questions:
            if isinstance(question, Pair):
                a, b = question.a, question.b
                samples.append(self._processor.preference_sample(a.clip, b.clip))
                labels += [a.labels, b.labels.not_counted()]
                preferences.append(float(question.a_is_better))
            else:
                samples.append(self._processor.progress_sample(question.clip))
                labels.append(question.labels)
        progress, progress_counts, success, success_counts = (
            torch.from_numpy(np.concatenate(column)) for column in zip(*labels, strict=True)
        )
        targets = Targets(
            progress, progress_counts, success, success_counts, torch.tensor(preferences)
        )
        return {"batch": self._processor.collate(samples), "targets": targets}


def _last_checkpoint(folder: Path, resume: bool) -> str | None:
    # Its state is written last: what lacks it was cut off while it was saved.
    whole = [state.parent for state in folder.glob("checkpoint-*/trainer_state.json")]
    last = max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)
    if last and not resume:
        raise ValueError(
            f"{folder} holds the checkpoints of another run. Go on with it (resume=True, or "
            "--resume), or choose another folder."
        )
    if resume and not last:
        logger.warning("There is no checkpoint in %s yet: training starts anew.", folder)
    return os.fspath(last) if last else None
