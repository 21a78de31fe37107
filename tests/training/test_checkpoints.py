"""Checkpoints: resuming a run, refusing changed arguments, and Ctrl-C."""

import dataclasses
import signal

import pytest
import torch
from transformers import TrainerCallback

from robometer_gym.training import (
    LORA,
    LossWeights,
    SamplingSettings,
    train,
)
from tests.training.quick_runs import (
    PressCtrlC,
    logged,
    noise_episodes,
    quick_arguments,
    small_model,
)

# transformers 4.57 takes checkpoints written within one second for a disk fault.
pytestmark = pytest.mark.filterwarnings("ignore:mtime may not be reliable:UserWarning")


class Interrupt(TrainerCallback):  # type: ignore[misc]
    """Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "LoRA"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, lora):
    """After a power cut a run would continue with other examples, or without its optimizer."""

    def run(out, **more):
        settings = SamplingSettings(preference_share=0.5, max_frames=3)
        arguments = quick_arguments(max_steps=6, save_steps=2, learning_rate=1e-3)
        return train(
            small_model(), noise_episodes(), out, lora=lora, sampling=settings, **arguments, **more
        )

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", callbacks=[Interrupt(3)])
    resumed = run(tmp_path / "cut", resume=True)

    def losses(out):
        return {e["step"]: (e["loss"], e["grad_norm"]) for e in logged(tmp_path / out)}

    # Equal but for rounding, which may depend on the alignment of memory.
    assert list(losses("cut")) == list(losses("whole")) == [1, 2, 3, 4, 5, 6]
    for step, values in losses("whole").items():
        assert losses("cut")[step] == pytest.approx(values, rel=1e-3)
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], tensor, rtol=0, atol=2e-5)


def test_a_folder_with_another_run_is_not_overwritten(tmp_path):
    """Two days of training would be lost to a forgotten --resume."""
    train(small_model(), noise_episodes(), tmp_path, **quick_arguments(max_steps=1, save_steps=1))
    with pytest.raises(ValueError, match=r"holds the checkpoints of another run.*--resume"):
        train(
            small_model(), noise_episodes(), tmp_path, **quick_arguments(max_steps=1, save_steps=1)
        )


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path, caplog):
    """A job script that always passes --resume could not start."""
    train(
        small_model(),
        noise_episodes(),
        tmp_path,
        resume=True,
        **quick_arguments(max_steps=1, save_strategy="no"),
    )
    assert "There is no checkpoint in" in caplog.text


def test_an_incomplete_checkpoint_is_skipped(tmp_path):
    """A run that was killed while saving could not be resumed at all."""
    arguments = quick_arguments(max_steps=4, save_steps=2)
    train(small_model(), noise_episodes(), tmp_path, **arguments)
    (tmp_path / "checkpoints" / "checkpoint-4" / "trainer_state.json").unlink()
    train(small_model(), noise_episodes(), tmp_path, resume=True, **arguments)
    assert [entry["step"] for entry in logged(tmp_path)] == [1, 2, 3, 4]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A run of two steps with a checkpoint."""
    out = tmp_path_factory.mktemp("run")
    train(small_model(), noise_episodes(), out, **quick_arguments(max_steps=2, save_steps=2))
    return out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1e-3}, r"learning_rate was 2e-05, got 0\.001\. Pass the same ones"),
        ({"per_device_train_batch_size": 2}, "per_device_train_batch_size was 4, got 2"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps was 1, got 2"),
        ({"max_steps": 9, "warmup_steps": 3}, "max_steps was 2, got 9; warmup_steps was 0, got 3"),
        ({"seed": 7}, "seed was 42, got 7"),
        ({"lora": None}, "lora was given, got None"),
        ({"lora": dataclasses.replace(LORA, r=8)}, r"arguments: lora\.r was 32, got 8\. Pass"),
        ({"train_vision": True}, "train_vision was False, got True"),
        ({"sampling": SamplingSettings(4)}, r"sampling\.max_frames was 8, got 4\. Pass"),
        ({"weights": LossWeights(progress=0.5)}, r"weights\.progress was 1\.0, got 0\.5\. Pass"),
        ({"eval_share": 0.25}, r"eval_share was 0\.0, got 0\.25\. Pass"),
        ({"model": "demo"}, "model was None, got 'demo'"),
    ],
)
def test_a_resumed_run_names_the_argument_that_changed(finished_run, changes, message):
    """A user would wait for the effect of a new learning rate that was ignored."""
    changed = {"model": small_model(), **quick_arguments(max_steps=2, save_steps=2), **changes}
    with pytest.raises(ValueError, match=message):
        train(changed.pop("model"), noise_episodes(), finished_run, resume=True, **changed)


def test_a_resumed_run_may_log_and_save_differently(tmp_path):
    """A run could not be continued with fewer checkpoints or on another logger."""
    given = quick_arguments(max_steps=2, save_steps=1)
    train(small_model(), noise_episodes(), tmp_path, **given)
    given |= {"save_steps": 2, "logging_steps": 2, "disable_tqdm": False}
    train(small_model(), noise_episodes(), tmp_path, resume=True, **given)


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_saves_a_checkpoint(tmp_path, workers):
    """Hours of training since the last checkpoint would be lost, and its losses too."""

    def run(out, **more):
        arguments = quick_arguments(max_steps=4, learning_rate=1e-3, dataloader_num_workers=workers)
        settings = SamplingSettings(max_frames=3)
        return train(small_model(), noise_episodes(), out, sampling=settings, **arguments, **more)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"after step 2 of 4, and saved in .*--resume"):
        run(tmp_path / "cut", callbacks=[PressCtrlC(2)])
    assert signal.getsignal(signal.SIGINT) is handler
    assert [entry["step"] for entry in logged(tmp_path / "cut")] == [1, 2]
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    run(tmp_path / "cut", resume=True)
    run(tmp_path / "whole")
    for entry, expected in zip(logged(tmp_path / "cut"), logged(tmp_path / "whole"), strict=True):
        assert entry["step"] == expected["step"]
        assert entry["loss"] == pytest.approx(expected["loss"], rel=1e-3)


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    """A run that hangs could be ended with `kill` alone."""
    with pytest.raises(KeyboardInterrupt) as caught:
        train(
            small_model(),
            noise_episodes(),
            tmp_path,
            callbacks=[PressCtrlC(2, times=2)],
            **quick_arguments(max_steps=4),
        )
    assert "saved" not in str(caught.value)
    assert [entry["step"] for entry in logged(tmp_path)] == [1]
    assert not list((tmp_path / "checkpoints").glob("checkpoint-*"))


def test_ctrl_c_in_the_last_step_is_too_late(tmp_path):
    """A finished training would be thrown away."""
    train(
        small_model(),
        noise_episodes(),
        tmp_path,
        callbacks=[PressCtrlC(2)],
        **quick_arguments(max_steps=2),
    )
    assert (tmp_path / "model.safetensors").exists()
