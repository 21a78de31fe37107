"""Training objective: L = L_preference + L_progress + L_success, each with its weight.

Pure functions on tensors. Knows nothing of episodes, of how batches are made or of optimizers.
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
    """Targets of the heads for a batch, in the order of its `Logits`.

    Attributes:
        progress: (N,) float32 in [0, 1], per frame.
        progress_mask: (N,) bool, True for frames whose progress is trained.
        success: (N,) float32, 1 if the task is done, else 0, per frame.
        success_mask: (N,) bool, True for frames whose success is trained.
        preference: (M,) float32, per preference pair: 1 if clip A is the better one, else 0.
    """

    progress: Tensor
    progress_mask: Tensor
    success: Tensor
    success_mask: Tensor
    preference: Tensor

    def to(self, device: torch.device) -> Targets:
        """Return the targets on another device."""
        return Targets(**{name: tensor.to(device) for name, tensor in vars(self).items()})


class Losses(NamedTuple):
    """The three parts of the objective, unweighted scalars, and their weighted sum."""

    total: Tensor
    preference: Tensor
    progress: Tensor
    success: Tensor


@dataclass(frozen=True)
class LossWeights:
    """Weights of the three parts of the objective.

    The released model was trained with `LossWeights(progress=1 / 8)`: its code averages the
    progress loss over the 8 frames and then divides it by their number again
    (robometer/trainers/rbm_heads_trainer.py:2186 at c7f38e2).

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

    Each part is the mean over its unmasked entries in the batch, and 0 if there are none.

    Source: robometer/trainers/rbm_heads_trainer.py:1768-2499 at c7f38e2, without four of its
    accidents: progress divided by the number of frames a second time (see `LossWeights`), weights
    for the rarer success class that cancel out, NaN for an empty mask, and logits clamped at 50,
    beyond which they have no gradient.
    """
    preference = preference_loss(logits.preference, targets.preference)
    progress = progress_loss(logits.progress, targets.progress, targets.progress_mask)
    success = success_loss(logits.success, targets.success, targets.success_mask)
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
        (..., K): the two adjacent bins share the weight, the nearer has more.

    Source: robometer/data/datasets/helpers.py:55-73 at c7f38e2.

    Example:
        >>> two_hot(torch.tensor([0.5, 1.0]), bins=4).tolist()
        [[0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]]
    """
    position = progress[..., None] * (bins - 1)
    distance = (position - torch.arange(bins, device=progress.device)).abs()
    return (1.0 - distance).clamp(min=0.0)


def progress_loss(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean cross-entropy to the two-hot targets.

    Its minimum is not 0 but the entropy of the targets.

    Args:
        logits: (N, K) float32.
        target: (N,) float32 in [0, 1].
        mask: (N,) bool, True for frames in the mean.
    """
    distribution = two_hot(target, logits.shape[-1])
    return _masked_mean(-(distribution * logits.log_softmax(-1)).sum(-1), mask)


def success_loss(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean binary cross-entropy.

    Args:
        logits: (N,) float32.
        target: (N,) float32, 0 or 1.
        mask: (N,) bool, True for frames in the mean.
    """
    each = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return _masked_mean(each, mask)


def preference_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean binary cross-entropy.

    Args:
        logits: (M,) float32.
        target: (M,) float32, 1 if clip A is the better one, else 0.
    """
    each = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return _masked_mean(each, torch.ones_like(each, dtype=torch.bool))


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp(min=1)
