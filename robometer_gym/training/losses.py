"""The objective: L = L_preference + L_progress + L_success, each with its weight.

Pure functions on tensors. Knows nothing of episodes, of batches' making or of optimisers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from robometer_gym.models.robometer.network.modeling import Logits

__all__ = [
    "LossWeights",
    "Losses",
    "Targets",
    "preference_loss",
    "progress_loss",
    "robometer_loss",
    "success_loss",
    "two_hot",
]


@dataclass(frozen=True, eq=False)
class Targets:
    """What the heads should say of a batch, in the order of its `Logits`.

    Attributes:
        progress: (N,) float32 in [0, 1], per picture.
        progress_counts: (N,) bool, where progress is trained.
        success: (N,) float32, 1 where the task is done, else 0.
        success_counts: (N,) bool, where success is trained.
        preference: (M,) float32, per comparison: 1 where A is the better, else 0.
    """

    progress: Tensor
    progress_counts: Tensor
    success: Tensor
    success_counts: Tensor
    preference: Tensor

    def to(self, device: torch.device) -> Targets:
        """Return the same on another device."""
        return Targets(**{name: tensor.to(device) for name, tensor in vars(self).items()})


class Losses(NamedTuple):
    """The parts of the objective, scalars, unweighted, and their weighted sum."""

    total: Tensor
    preference: Tensor
    progress: Tensor
    success: Tensor


@dataclass(frozen=True)
class LossWeights:
    """What each part of the objective counts.

    `LossWeights(progress=1 / 8)` is what the released model was trained with: its code divides the
    progress loss by the number of frames once more after averaging over them (8 of them;
    robometer/trainers/rbm_heads_trainer.py:2186 at c7f38e2).

    Raises:
        ValueError: a weight that is negative or not finite.

    Example:
        >>> LossWeights(progress=1 / 8).progress
        0.125
    """

    preference: float = 1.0
    progress: float = 1.0
    success: float = 1.0

    def __post_init__(self) -> None:
        for name in ("preference", "progress", "success"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"The weight of {name} must be finite and >= 0, got {getattr(self, name)!r}."
                )


def robometer_loss(logits: Logits, targets: Targets, weights: LossWeights) -> Losses:
    """Return the objective of a batch and its parts.

    Each part is the mean over what counts of it in the batch, and 0 where nothing does.

    Source: robometer/trainers/rbm_heads_trainer.py:1768-2499 at c7f38e2, with four accidents left
    out: progress divided by the number of frames once more (see `LossWeights`), weights for the
    rarer success class which are computed and divided out again, NaN where nothing counts, and
    logits cut at 50, beyond which nothing would be learned.
    """
    preference = preference_loss(logits.preference, targets.preference)
    progress = progress_loss(logits.progress, targets.progress, targets.progress_counts)
    success = success_loss(logits.success, targets.success, targets.success_counts)
    total = (
        weights.preference * preference + weights.progress * progress + weights.success * success
    )
    return Losses(total, preference, progress, success)


def two_hot(progress: Tensor, bins: int) -> Tensor:
    """Return distributions over evenly spaced bins whose expectation is `progress`.

    Args:
        progress: (...) in [0, 1].
        bins: K >= 2, at 0, 1 / (K - 1), ..., 1.

    Returns:
        (..., K): the two neighbouring bins share the weight, the nearer has more.

    Source: robometer/data/datasets/helpers.py:55-73 at c7f38e2.

    Example:
        >>> two_hot(torch.tensor([0.5, 1.0]), bins=4).tolist()
        [[0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]]
    """
    place = progress * (bins - 1)
    return (1.0 - (place[..., None] - torch.arange(bins, device=place.device)).abs()).clamp(min=0.0)


def progress_loss(logits: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """Return the mean cross-entropy to the two-hot targets.

    Its least value is not 0 but the entropy of the targets.

    Args:
        logits: (N, K) float32.
        target: (N,) float32 in [0, 1].
        counts: (N,) bool.
    """
    wanted = two_hot(target, logits.shape[-1])
    return _mean(-(wanted * logits.log_softmax(-1)).sum(-1), counts)


def success_loss(logits: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """Return the mean binary cross-entropy.

    Args:
        logits: (N,) float32.
        target: (N,) float32, 0 or 1.
        counts: (N,) bool.
    """
    each = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return _mean(each, counts)


def preference_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean binary cross-entropy.

    Args:
        logits: (M,) float32.
        target: (M,) float32, 1 where A is the better, else 0.
    """
    each = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return _mean(each, torch.ones_like(each, dtype=torch.bool))


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    return (values * counts).sum() / counts.sum().clamp(min=1)
