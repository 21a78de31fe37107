"""A random model, episodes of noise and arguments for training runs of seconds."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import torch
from transformers import TrainerCallback

from robometer_gym import Clip, RobometerRewardModel
from robometer_gym.data import Episode
from robometer_gym.models.robometer.demo import byte_tokenizer, demo_config, random_model
from robometer_gym.models.robometer.network.images import ImageSettings
from robometer_gym.models.robometer.network.processor import RobometerProcessor
from robometer_gym.models.robometer.network.prompt_text import PHRASES
from robometer_gym.training.sampler import PreferencePair

TASKS = ("open the drawer", "close the door")


def small_model(seed: int = 0) -> RobometerRewardModel:
    """Return a random model with short prompts."""
    processor = RobometerProcessor(byte_tokenizer([*PHRASES, *TASKS]), ImageSettings())
    config = demo_config(processor)
    return RobometerRewardModel(random_model(config, seed), processor, config)


def noise_episodes(count: int = 8, length: int = 3) -> list[Episode]:
    """Return episodes of noise, in which every frame is different."""
    rng = np.random.default_rng(0)
    return [
        Episode(rng.integers(0, 256, (length, 64, 64, 3), np.uint8), TASKS[number % 2])
        for number in range(count)
    ]


def whole_clip(episode: Episode) -> Clip:
    """Return a clip of every frame."""
    return Clip(episode.frames[range(len(episode))], episode.task)


def quick_arguments(**changes):
    """Return arguments for a few quick steps."""
    return {
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "disable_tqdm": True,
        "report_to": [],
        "use_cpu": True,
        **changes,
    }


def copy_parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of every parameter."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def example_bytes(example) -> bytes:
    """Return the tasks and frames of an example."""
    pair = isinstance(example, PreferencePair)
    clips = [example.a.clip, example.b.clip] if pair else [example.clip]
    return b"".join(clip.task.encode() + clip.frames.tobytes() for clip in clips)


def logged(out: Path) -> list[dict[str, float]]:
    """Return the logged steps of a run."""
    return [entry for entry in json.loads((out / "losses.json").read_text()) if "loss" in entry]


class PressCtrlC(TrainerCallback):  # type: ignore[misc]
    """Ctrl-C in the terminal, within a step: every process of the group receives it."""

    def __init__(self, step: int, times: int = 1) -> None:
        self.step, self.times = step, times
        self.others = set(multiprocessing.active_children())

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            for _ in range(self.times):
                for process in set(multiprocessing.active_children()) - self.others:
                    assert process.pid is not None
                    os.kill(process.pid, signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
