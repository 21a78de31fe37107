"""Checkpoints of a run: resuming it with the same arguments, and saving one on Ctrl-C.

Knows nothing of examples or of the objective.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainingArguments

__all__ = ["StopOnInterrupt", "find_checkpoint", "run_settings"]

logger = logging.getLogger(__name__)

# Of TrainingArguments, those that change the weights of a run. `world_size` is the number of
# processes.
_RUN_ARGUMENTS = (
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "bf16",
    "fp16",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_kwargs",
    "lr_scheduler_type",
    "max_grad_norm",
    "max_steps",
    "optim",
    "per_device_train_batch_size",
    "seed",
    "warmup_steps",
    "weight_decay",
    "world_size",
)


def run_settings(arguments: TrainingArguments, **settings: Any) -> dict[str, Any]:
    """Return the settings that a resumed run must share with the interrupted one, as JSON.

    Args:
        arguments: of the Trainer; those that change the weights are kept.
        **settings: more of them; what JSON cannot hold is written as its `str`.
    """
    chosen = {name: getattr(arguments, name) for name in _RUN_ARGUMENTS}
    encoded: dict[str, Any] = json.loads(json.dumps(chosen | settings, default=_encode))
    return encoded


def _encode(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)


def find_checkpoint(folder: Path, settings: Mapping[str, Any], *, resume: bool) -> str | None:
    """Return the last complete checkpoint of a run, and record the settings of a new run.

    Args:
        folder: the run's checkpoints.
        settings: see `run_settings`.
        resume: whether to continue the run in `folder`.

    Returns:
        The checkpoint's folder, or None if there is none and training starts from the beginning.

    Raises:
        ValueError: there are checkpoints and `resume` is False, or they were made with other
            settings.
    """
    # The state is written last: a checkpoint without it is incomplete.
    complete = [state.parent for state in folder.glob("checkpoint-*/trainer_state.json")]
    last = max(complete, key=lambda path: int(path.name.split("-")[1]), default=None)
    record = folder / "run.json"
    if last is None:
        if resume:
            logger.warning(
                "There is no checkpoint in %s yet: training starts from the beginning.", folder
            )
        folder.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(settings, indent=1) + "\n")
        return None
    if not resume:
        raise ValueError(
            f"{folder} holds the checkpoints of another run. Continue it with resume=True "
            "(--resume), or choose another folder."
        )
    recorded = json.loads(record.read_text())
    if changes := list(_differences(recorded, settings)):
        raise ValueError(
            f"The run in {folder} cannot be resumed with other arguments: {'; '.join(changes)}. "
            "Pass the same ones, or train into another folder."
        )
    return os.fspath(last)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name in sorted({*old, *new}):
        before, now = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differences(before, now, f"{prefix}{name}.")
        elif before != now:
            was, got = ("given" if isinstance(v, dict) else repr(v) for v in (before, now))
            yield f"{prefix}{name} was {was}, got {got}"


class StopOnInterrupt(TrainerCallback):  # type: ignore[misc]
    """Finish the step, save a checkpoint and stop on the first Ctrl-C; a second one stops at once.

    Within `installed()`, in the main thread of a run of one process: several processes would stop
    at different steps and wait for each other.

    Attributes:
        interrupted: whether there was a Ctrl-C.
    """

    def __init__(self) -> None:
        self.interrupted = False

    @contextmanager
    def installed(self, arguments: TrainingArguments) -> Iterator[None]:
        """Handle SIGINT within the context."""
        if arguments.world_size > 1 or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _handle(self, *_: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True

    def on_step_end(
        self, args: TrainingArguments, state: Any, control: TrainerControl, **_: Any
    ) -> None:
        """Save and stop if there was a Ctrl-C."""
        if self.interrupted:
            control.should_save = control.should_log = control.should_training_stop = True
