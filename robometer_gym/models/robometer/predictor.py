"""RobometerRewardModel: clips in, numpy predictions out.

The public class of the model half. Knows nothing of environments or rewards.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import Never

from robometer_gym.models.robometer.engine.engine import Engine
from robometer_gym.models.robometer.engine.fused_weights import WeightVersions, unfuse_parameters
from robometer_gym.models.robometer.engine.text_decoder import unsupported_reason
from robometer_gym.models.robometer.network.checkpoint import (
    CHECKPOINT_FILES,
    load_checkpoint,
    save_checkpoint,
)
from robometer_gym.models.robometer.network.config import Format, RobometerConfig
from robometer_gym.models.robometer.network.eager import predict_eagerly
from robometer_gym.models.robometer.network.hub import find_files
from robometer_gym.models.robometer.network.loading_arguments import (
    refuse_unknown_arguments,
    resolve_device,
    resolve_dtype,
)
from robometer_gym.models.robometer.network.modeling import (
    Quantization,
    RobometerModel,
    check_compatible,
)
from robometer_gym.models.robometer.network.processor import RobometerProcessor, load_processor
from robometer_gym.models.robometer.network.quantize import check_quantization, quantize
from robometer_gym.models.robometer.network.weights_hash import weights_hash
from robometer_gym.reward_model import (
    CheckpointError,
    Clip,
    Prediction,
    RewardModelError,
    check_clips,
)
from robometer_gym.validation import check_count

__all__ = ["RobometerRewardModel"]

EngineName = Literal["fast", "eager"]

_engine_lock = Lock()  # threads that share a model must share its engine


class RobometerRewardModel:
    """Robometer as a `RewardModel`.

    Args:
        model: the network, with weights, on its device.
        processor: made for the same backbone.
        config: configuration of the network.
        engine: "fast" caches the frames of a stream, see `Clip`, and computes only new ones;
            "eager" computes every clip from its beginning. The numbers are the same up to rounding.
        max_streams: maximum number of streams whose keys and values the fast engine caches.

    Raises:
        CheckpointError: network and processor do not belong together.
        ValueError: another engine, or `max_streams` is no integer >= 1.

    Example:
        >>> import numpy as np
        >>> model = RobometerRewardModel.from_pretrained("demo")
        >>> clip = Clip(np.zeros((3, 64, 64, 3), np.uint8), "move the gripper to the red block")
        >>> model.predict([clip])[0].progress.shape
        (3,)
    """

    def __init__(
        self,
        model: RobometerModel,
        processor: RobometerProcessor,
        config: RobometerConfig,
        *,
        engine: EngineName = "fast",
        max_streams: int = 64,
    ) -> None:
        check_compatible(model, processor)
        if engine not in get_args(EngineName):
            raise ValueError(f"engine must be one of {get_args(EngineName)}, got {engine!r}.")
        self.model = model.eval()
        self.processor = processor
        self.config = config
        self.name = type(self).__name__
        """Hub id or folder of the checkpoint."""
        self.revision: str | None = None
        """Commit on the hub."""
        self._max_streams = check_count("max_streams", max_streams)
        self._eager_reason = "engine='eager' was requested" if engine == "eager" else ""
        self._engine: Engine | None = None  # made at the first prediction: it fuses weights
        self._hash: tuple[WeightVersions, str] | None = None
        self._process = os.getpid()

    @classmethod
    def from_pretrained(
        cls,
        id_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        processor: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        engine: EngineName = "fast",
        max_streams: int = 64,
        quantization: Quantization | None = None,
        **unknown: Never,
    ) -> RobometerRewardModel:
        """Load a checkpoint in LeRobot's or the authors' format.

        Args:
            id_or_path: a hub id ("lerobot/Robometer-4B", "robometer/Robometer-4B"), a folder, or
                "demo", the small checkpoint that comes with the package.
            revision: branch, tag or commit on the hub.
            device: where to run; by default the GPU if there is one.
            dtype: of the backbone; by default bfloat16 on a GPU and float32 on a CPU.
            processor: a hub id or folder with tokenizer and image settings; by default the
                checkpoint's own, or else those of its base model.
            local_files_only: make no connection to the hub.
            engine: "fast" or "eager", see `RobometerRewardModel`.
            max_streams: see `RobometerRewardModel`.
            quantization: "int8" or "nf4" to fit on a small card; "float8" for speed, on a GPU of
                compute capability 8.9 or more (Ada, Hopper) in bfloat16. Changes the numbers, and
                such a model cannot be saved or trained; see `network.quantize`.
            **unknown: refused, with a hint for arguments of other libraries.

        Raises:
            CheckpointError: it cannot be found, read or trusted; the message has the reason.
            ValueError: an unknown dtype, engine or quantization, or a device that is not there or
                cannot compute in "float8".
            ImportError: quantization without bitsandbytes or, for "float8", torchao.
            TypeError: an unknown argument; the message has this package's name for it.
        """
        refuse_unknown_arguments(unknown)
        device = resolve_device(device)
        dtype = resolve_dtype(dtype, device)
        if quantization is not None:
            check_quantization(quantization, device, dtype)
        folder = find_files(
            id_or_path, CHECKPOINT_FILES, revision=revision, local_files_only=local_files_only
        )
        # Before quantization the whole model may not fit on the device.
        load_on = torch.device("cpu") if quantization else device
        model, config = load_checkpoint(folder, device=load_on, dtype=dtype)
        if quantization:
            model = quantize(model, quantization, device)
        used = load_processor(
            processor, folder, config, name=id_or_path, local_files_only=local_files_only
        )
        try:
            check_compatible(model, used)
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from error
        revision = folder.name if folder.parent.name == "snapshots" else None
        made = cls(model, used, config, engine=engine, max_streams=max_streams)
        made.name, made.revision = os.fspath(id_or_path), revision
        return made

    def save_pretrained(self, path: str | os.PathLike[str], format: Format = "lerobot") -> None:
        """Write a folder that `from_pretrained` reads, tokenizer and image settings included.

        Args:
            path: the folder; created if necessary.
            format: "lerobot" (readable by LeRobot) or "upstream" (by the authors' code).

        Raises:
            ValueError: another format, or quantized weights, which neither format supports.
        """
        if self.model.quantization:
            raise ValueError(
                f"This model was loaded with quantization={self.model.quantization!r}, and no "
                "published format holds quantized weights. Save the checkpoint that it was loaded "
                "from."
            )
        save_checkpoint(self.model, self.config, Path(path), format)
        self.processor.save_pretrained(path)

    @torch.inference_mode()
    def predict(self, clips: Sequence[Clip]) -> list[Prediction]:
        """Score clips; lengths, sizes and tasks may differ from clip to clip.

        The value at a frame depends on the frames up to it only.

        Args:
            clips: any number of clips. The released model was trained with 8 frames of about 240
                pixels; more and larger ones are accepted.

        Returns:
            One Prediction per clip, in order: (T,) float32 progress and success in [0, 1].

        Raises:
            RewardModelError: in a process that was forked after the model had been loaded.
            TypeError: no sequence of clips.
        """
        self._check_process()
        clips = check_clips(clips)
        with self.model.evaluating():
            if (engine := self._fast_engine()) is not None:
                return engine.predict(clips)
            return predict_eagerly(self.model, self.processor, clips)

    def release(self, stream: Hashable) -> None:
        """Drop the cache of a stream: its episode has ended."""
        # Not in a forked process: there a thread of the parent may hold the lock for ever.
        if (engine := self._engine) is not None and self._process == os.getpid():
            engine.release(stream)

    def forget(self) -> None:
        """Drop all caches, and give each weight its own memory again.

        Call it after a change of weights that torch does not count: a write to `parameter.data`,
        a step of a fused optimizer in evaluation mode, or adapters that were switched or merged.
        The engine finds every other change by itself, `training.train` included. Call it also
        before another library saves `model`: the fast engine fuses weights, and some libraries do
        not save views.
        """
        self._engine = self._hash = None
        unfuse_parameters(self.model)

    def engine_info(self) -> dict[str, Any]:
        """Return the engine in use, the reason, and the state and use of the caches.

        Example:
            >>> RobometerRewardModel.from_pretrained("demo", engine="eager").engine_info()
            {'engine': 'eager', 'reason': "engine='eager' was requested", 'quantization': None}
        """
        if (engine := self._fast_engine()) is not None:
            return {"engine": "fast", **engine.info()}
        kind = self.model.quantization
        return {"engine": "eager", "reason": self._eager_reason, "quantization": kind}

    @torch.inference_mode()
    def prefer(self, a: Clip, b: Clip) -> float:
        """Return the probability that `a` makes more progress than `b` at the task of `a`.

        Predicted in both orders and averaged, so that
        `prefer(a, b) + prefer(b, a) == 1` for clips of one task. It was trained on pairs of
        equal length.

        Returns:
            A probability in [0, 1].

        Raises:
            ValueError: the clips have different tasks.
            RewardModelError: in a process that was forked after the model had been loaded.
        """
        self._check_process()
        if a.task != b.task:
            raise ValueError(
                f"prefer compares two attempts at one task, got {a.task!r} and {b.task!r}."
            )
        batch = self.processor.encode_preference([(a, b), (b, a)])
        with self.model.evaluating():
            a_first, b_first = self.model(batch).preference.sigmoid().tolist()
        return float(a_first + (1.0 - b_first)) / 2.0

    def compute_reward(
        self,
        clips: Sequence[Clip],
        output: Literal["progress", "success"] | None = None,
        success_threshold: float | None = None,
    ) -> NDArray[np.float32]:
        """Return one number per clip, as LeRobot's method of this name does.

        Args:
            clips: any number of clips. Of a longer one, only the last `config.max_frames` frames
                are used.
            output: "progress" of the last frame, or "success": 1.0 where the last frame's success
                probability is above `success_threshold`, else 0.0. By default the one of the
                checkpoint's configuration.
            success_threshold: in [0, 1]; by default that of the checkpoint's configuration.

        Returns:
            (N,) float32 in [0, 1].

        Raises:
            ValueError: another output, or a threshold that is no probability.
        """
        output = self.config.reward_output if output is None else output
        if success_threshold is None:
            success_threshold = self.config.success_threshold
        if output not in ("progress", "success"):
            raise ValueError(f"output must be 'progress' or 'success', got {output!r}.")
        if not 0.0 <= success_threshold <= 1.0:
            raise ValueError(f"success_threshold must be in [0, 1], got {success_threshold!r}.")
        cropped = [clip.last(self.config.max_frames) for clip in check_clips(clips)]
        last = [getattr(prediction, output)[-1] for prediction in self.predict(cropped)]
        values = np.array(last, np.float32)
        return values if output == "progress" else (values > success_threshold).astype(np.float32)

    def describe(self) -> dict[str, str]:
        """Return the checkpoint's name, its commit on the hub, dtype, and a hash of the weights.

        The hash of the released model takes seconds on a CPU; it is kept until weights change.
        Quantized weights have none.

        Example:
            >>> model = RobometerRewardModel.from_pretrained("demo", device="cpu")
            >>> sorted(model.describe())
            ['dtype', 'name', 'weights']
        """
        facts = {"name": self.name, "dtype": str(self.model.backbone.dtype).removeprefix("torch.")}
        if self.revision is not None:
            facts["revision"] = self.revision
        if self.model.quantization:
            return {**facts, "quantization": self.model.quantization}
        if self._hash is None or self._hash[0].changed():
            self._hash = WeightVersions(self.model), weights_hash(self.model)
        return {**facts, "weights": self._hash[1]}

    def __repr__(self) -> str:
        """Return the checkpoint, its commit on the hub, the engine, the device and the dtype."""
        revision = f", revision={self.revision!r}" if self.revision else ""
        engine = "eager" if self._eager_reason else "fast"
        device, dtype = self.model.backbone.device, self.model.backbone.dtype
        return (
            f"RobometerRewardModel({self.name!r}{revision}, engine={engine!r}, "
            f"device={str(device)!r}, dtype={dtype})"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave the caches out: another process has other streams."""
        if self.model.quantization == "float8":
            raise RewardModelError(
                "torch cannot pickle weights in float8. Give the other process the name of the "
                "checkpoint, and let it load its own model."
            )
        self.forget()  # each view would be written with the whole fused matrix
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "_process": os.getpid()}

    def _check_process(self) -> None:
        """Raise in a forked process: torch's threads and CUDA do not survive a fork."""
        if os.getpid() != self._process:
            raise RewardModelError(
                "This model was loaded before the process was forked, and torch does not work in a "
                "forked process. Start the workers of a vector environment with "
                "context='spawn' (gym.make_vec: vector_kwargs={'context': 'spawn'}; SubprocVecEnv: "
                "start_method='spawn')."
            )

    def _fast_engine(self) -> Engine | None:
        """Return the engine, made if necessary; None if the eager path predicts."""
        with _engine_lock:
            if self._engine is not None and self._engine.model is not self.model:
                self._engine = None  # `model` was assigned
            if self._engine is None and not self._eager_reason:
                self._eager_reason = unsupported_reason(self.model.backbone.language_model)
                if not self._eager_reason:
                    self._engine = Engine(
                        self.model,
                        self.processor,
                        max_frames=self.config.max_frames,
                        max_streams=self._max_streams,
                    )
            return self._engine
