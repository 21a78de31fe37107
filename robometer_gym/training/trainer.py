"""Fine-tuning of Robometer: a subclass of transformers' Trainer, with PEFT's LoRA.

Chooses the trained weights and the Trainer's arguments. Knows nothing of how examples are drawn
(`sampler`) or of the objective (`losses`).
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
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
from robometer_gym.training.arguments import training_arguments
from robometer_gym.training.batches import Batch, Collator, NumberedExamples
from robometer_gym.training.checkpoints import StopOnInterrupt, find_checkpoint, run_settings
from robometer_gym.training.held_out import score_episodes, split_episodes
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
    eval_share: float = 0.0,
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
            `losses.json` and, with `eval_share`, the scores in `evaluation.json`. The Trainer's
            checkpoints are in `out/checkpoints`.
        processor: see `RobometerRewardModel.from_pretrained`.
        lora: adapters, merged into the weights at the end; None trains the language model in full.
        train_vision: whether to train the vision tower too, in full. It is frozen otherwise.
        sampling: which examples are drawn from the episodes.
        weights: of the three parts of the objective.
        eval_share: the share of the episodes, of each task and outcome, that is held out of the
            training and scored before and after it, see `HeldOutScores`.
        resume: continue from the last checkpoint in `out/checkpoints`, with all other arguments
            unchanged. The losses are those of an uninterrupted run.
        callbacks: passed to transformers' Trainer.
        **arguments: of transformers.TrainingArguments, see `training_arguments` for our defaults.

    Returns:
        The trained model, ready to predict.

    Raises:
        ValueError: `out` holds checkpoints, and `resume` is False or another argument has changed;
            the episodes make no example; an argument cannot be used here; or the model is
            quantized.
        CheckpointError: the model cannot be loaded.
        FloatingPointError: the loss has become infinite or NaN.
        KeyboardInterrupt: Ctrl-C. The first one ends the step, saves a checkpoint for `resume` and
            writes `losses.json`; a second one stops at once. (In several processes, any stops at
            once.)

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
    if "output_dir" in arguments:
        raise ValueError("output_dir cannot be used here: checkpoints go to out/checkpoints.")
    out, sampling, weights = Path(out), sampling or SamplingSettings(), weights or LossWeights()
    settings = training_arguments(out / "checkpoints", **arguments)
    episodes, held_out = split_episodes(episodes, eval_share, settings.seed)
    sampler = Sampler(episodes, sampling)  # fails before the model is loaded
    fixed = run_settings(
        settings,
        model=None if isinstance(model, RobometerRewardModel) else os.fspath(model),
        lora=_given_fields(lora) if lora else None,
        train_vision=train_vision,
        sampling=asdict(sampling),
        weights=asdict(weights),
        eval_share=eval_share,
    )
    checkpoint = find_checkpoint(out / "checkpoints", fixed, resume=resume)
    if isinstance(model, RobometerRewardModel):
        model.forget()  # the fast engine shares memory between weights
    else:
        # On the CPU: the Trainer chooses this process's GPU.
        dtype = torch.bfloat16 if lora and settings.bf16 else torch.float32
        model = RobometerRewardModel.from_pretrained(
            model, device="cpu", dtype=dtype, processor=processor
        )
    set_seed(settings.seed)  # adapters are initialized at random
    network: Any = prepare_model(model.model, lora=lora, train_vision=train_vision)
    trainer = RobometerTrainer(
        network, model.processor, sampler, settings, weights=weights, callbacks=list(callbacks)
    )
    scores = {}
    if held_out and trainer.is_world_process_zero():
        untrained = RobometerRewardModel(network, model.processor, model.config, engine="eager")
        scores["before"] = score_episodes(untrained, held_out, sampling)
    _run(trainer, checkpoint, out)
    trained = RobometerRewardModel(_merge_adapters(trainer), model.processor, model.config)
    if trainer.is_world_process_zero():
        trained.save_pretrained(out)
        if held_out:
            scores["after"] = score_episodes(trained, held_out, sampling)
            figures = {moment: asdict(values) for moment, values in scores.items()}
            _write_json(out / "evaluation.json", {"episodes": len(held_out), **figures})
    return trained


def _given_fields(lora: LoraConfig) -> dict[str, Any]:
    given = {name: value for name, value in vars(lora).items() if name != "peft_version"}
    return {name: value for name, value in given.items() if value is not None}


def _run(trainer: RobometerTrainer, checkpoint: str | None, out: Path) -> None:
    """Train to the end or to a Ctrl-C, and write the log in either case."""
    interrupt = StopOnInterrupt()
    trainer.add_callback(interrupt)
    try:
        with interrupt.installed(trainer.args):
            trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        if trainer.is_world_process_zero():
            _write_json(out / "losses.json", trainer.state.log_history)
    if interrupt.interrupted and trainer.state.global_step < trainer.args.max_steps:
        raise KeyboardInterrupt(
            f"Interrupted after step {trainer.state.global_step} of {trainer.args.max_steps}, and "
            f"saved in {out / 'checkpoints'}. Continue with resume=True (--resume)."
        )


def _merge_adapters(trainer: RobometerTrainer) -> RobometerModel:
    """Return the trained network with adapters merged, its backbone in one dtype."""
    network = trainer.accelerator.unwrap_model(trainer.model)
    vision, language = network.backbone.visual, network.backbone.get_input_embeddings()
    dtype = torch.promote_types(next(vision.parameters()).dtype, language.weight.dtype)
    for parameter in network.backbone.parameters():  # one part may be trained, the other frozen
        parameter.data = parameter.data.to(dtype)
    merged: RobometerModel = (
        network.merge_and_unload() if isinstance(network, PeftModel) else network
    )
    return merged


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def prepare_model(
    model: RobometerModel, *, lora: LoraConfig | None, train_vision: bool
) -> nn.Module:
    """Mark the trained weights, convert them to float32, and add adapters.

    Without LoRA the language model and the heads are trained; with LoRA the adapters and the heads.
    The vision tower is trained only with `train_vision`. Frozen weights keep their dtype.

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
    for parameter in prepared.parameters():
        if parameter.requires_grad:  # most updates of 2e-5 vanish in the rounding of bfloat16
            parameter.data = parameter.data.float()
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
