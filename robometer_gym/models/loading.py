"""LazyRewardModel: a reward model by name, loaded on first use and once per process.

Knows nothing of networks: the implementation is imported only when a name is loaded, so that a
process that never predicts never imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from threading import Lock
from typing import Any, Literal, NamedTuple, TypedDict

from typing_extensions import Self, TypeIs, Unpack

from robometer_gym.reward_model import (
    Clip,
    DescribedRewardModel,
    Prediction,
    ReleasesStreams,
    RewardModel,
    model_name,
)

__all__ = [
    "DEFAULT_REWARD_MODEL",
    "LazyRewardModel",
    "LoadingOptions",
    "RewardModelLike",
    "is_name",
]

DEFAULT_REWARD_MODEL = "lerobot/Robometer-4B"

RewardModelLike = str | os.PathLike[str] | RewardModel
"""A hub id, a folder, "demo" (the bundled small checkpoint), a server's URL, or a reward model."""

_loading = Lock()


class LoadingOptions(TypedDict, total=False):
    """How to load a name.

    `token`, `timeout` and `lossy_jpeg_quality` are those of `RemoteRewardModel`, for a URL; all
    others those of `RobometerRewardModel.from_pretrained`, for a checkpoint.
    """

    revision: str | None
    device: str | None
    dtype: str | None
    processor: str | None
    quantization: Literal["int8", "nf4", "float8"] | None
    engine: Literal["fast", "eager"]
    max_streams: int
    local_files_only: bool
    token: str | None
    timeout: float
    lossy_jpeg_quality: int | None


def is_name(reward_model: RewardModelLike) -> TypeIs[str | os.PathLike[str]]:
    """Return whether this is a name, rather than a reward model."""
    return isinstance(reward_model, str | os.PathLike)


class LazyRewardModel:
    """A reward model by name, loaded on first use.

    All that name the same model with the same options share one, per process. Copies share it
    too, and a pickle holds the name alone: the other process loads the model when it predicts.
    A reward model that is passed instead of a name is used, shared and pickled as it is.

    Args:
        reward_model: a hub id, a folder, "demo", a server's "http://host:port", or a reward model.
        **options: how to load a name, see `LoadingOptions`.

    Raises:
        TypeError: neither a name nor an object with `predict`; options for a model that is loaded
            already, or options that the kind of name does not have.
        ValueError: an empty name.

    Example:
        >>> model = LazyRewardModel("demo", device="cpu")
        >>> model.name, model
        ('demo', LazyRewardModel('demo', device='cpu'))
    """

    def __init__(self, reward_model: RewardModelLike, **options: Unpack[LoadingOptions]) -> None:
        if unknown := options.keys() - LoadingOptions.__annotations__.keys():
            raise TypeError(
                f"LazyRewardModel() got an unexpected keyword argument {min(unknown)!r}. "
                f"It takes {', '.join(LoadingOptions.__annotations__)}."
            )
        if is_name(reward_model) and not os.fspath(reward_model):
            raise ValueError(
                "reward_model must not be empty: give a hub id, a folder, 'demo' or a URL."
            )
        if not is_name(reward_model) and (
            isinstance(reward_model, type) or not callable(getattr(reward_model, "predict", None))
        ):
            raise TypeError(
                "reward_model must be a hub id, a folder, 'demo', or an object with "
                f"predict(clips) -> list of Prediction; got {reward_model!r}."
            )
        if options and not is_name(reward_model):
            raise TypeError(
                f"{', '.join(options)} cannot be set on a reward model that is loaded already: "
                "give its name, or set them where it is loaded."
            )
        self._options = options
        self._name: str | None = None
        self._model: RewardModel | None = None
        if is_name(reward_model):
            self._name = os.fspath(reward_model)
            _check_options(self._name, options)
        else:
            self._model = reward_model

    @classmethod
    def of(cls, reward_model: RewardModelLike) -> Self:
        """Return `reward_model` if it is lazy already, else a LazyRewardModel of it."""
        return reward_model if isinstance(reward_model, cls) else cls(reward_model)

    @property
    def name(self) -> str:
        """The hub id, folder or "demo"; of a model that was passed, its own name or its class."""
        return model_name(self._model) if self._name is None else self._name

    @property
    def options(self) -> LoadingOptions:
        """How the name is loaded."""
        return self._options.copy()

    def describe(self) -> dict[str, str]:
        """Return name and options but the token, and of a loaded model its own description."""
        facts = {n: str(value) for n, value in self._options.items() if n != "token"}
        if isinstance(self._model, DescribedRewardModel):
            facts |= self._model.describe()
        return {**facts, "name": self.name}

    def load(self) -> RewardModel:
        """Return the model; load it if this process has not yet.

        To be called before anything is drawn. Loading imports torch, whose triton crashes the
        process if it is imported after Mesa, the software renderer, has begun: both hold an LLVM.

        Raises:
            CheckpointError: the name cannot be loaded.
            ValueError: a device, dtype or quantization that is not there or cannot be used here.
            ImportError: the library that quantizes is not installed.
        """
        if self._model is None:
            assert self._name is not None, "else a model was passed"
            with _loading:  # the cache alone would let two threads load the same model
                self._model = _load(self._name, **self._options)
        return self._model

    def predict(self, clips: Sequence[Clip]) -> list[Prediction]:
        """Predict with the model; see `RewardModel.predict`."""
        return self.load().predict(clips)

    def release(self, stream: Hashable) -> None:
        """Release `stream`, if the model is loaded and keeps streams."""
        if isinstance(self._model, ReleasesStreams):
            self._model.release(stream)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return itself: the model may hold gigabytes, or a connection."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave out a model that was loaded by name."""
        return self.__dict__ if self._name is None else {**self.__dict__, "_model": None}

    def __repr__(self) -> str:
        shown = {**self._options, "token": "***"} if self._options.get("token") else self._options
        options = "".join(f", {name}={value!r}" for name, value in shown.items())
        return f"LazyRewardModel({self._name or self._model!r}{options})"


class _Kind(NamedTuple):
    """A kind of name: how names begin, the options that they take, and a function that loads one.

    The function is in another module, so that a process that never predicts never imports it.
    """

    prefixes: tuple[str, ...]
    options: frozenset[str]
    load: Callable[..., RewardModel]


def _load_remote(name: str, **options: Any) -> RewardModel:
    from robometer_gym.models.remote import RemoteRewardModel

    return RemoteRewardModel(name, **options)


def _load_checkpoint(name: str, **options: Any) -> RewardModel:
    from robometer_gym.models.robometer.predictor import RobometerRewardModel

    return RobometerRewardModel.from_pretrained(name, **options)


_REMOTE_OPTIONS = frozenset({"token", "timeout", "lossy_jpeg_quality"})
_KINDS = (
    _Kind(("http://", "https://"), _REMOTE_OPTIONS, _load_remote),
    _Kind(("",), frozenset(LoadingOptions.__annotations__) - _REMOTE_OPTIONS, _load_checkpoint),
)


def _kind(name: str) -> _Kind:
    return next(kind for kind in _KINDS if name.startswith(kind.prefixes))


def _check_options(name: str, options: LoadingOptions) -> None:
    """Raise if the kind of `name` does not have one of the options; None is no option."""
    kind = _kind(name)
    given = {option for option, value in options.items() if value is not None}
    if wrong := given - kind.options:
        raise TypeError(
            f"{', '.join(sorted(wrong))} cannot be set for {name!r}, which takes only "
            f"{', '.join(sorted(kind.options))}."
        )


@cache
def _load(name: str, **options: Unpack[LoadingOptions]) -> RewardModel:
    kind = _kind(name)
    return kind.load(name, **{key: v for key, v in options.items() if key in kind.options})
