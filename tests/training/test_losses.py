"""Training objective, against sums by hand and against the released code's reductions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robometer_gym.models.robometer.network.modeling import Logits
from robometer_gym.training.losses import (
    Losses,
    LossWeights,
    Targets,
    preference_loss,
    progress_loss,
    robometer_loss,
    success_loss,
    two_hot,
)

BINS = 10


def released_two_hot(progress: float, bins: int = BINS) -> list[float]:
    """Return the two-hot of the released code: floor and ceiling share the distance."""
    position = (bins - 1) * progress
    below, above = math.floor(position), math.ceil(position)
    target = [0.0] * bins
    if below == above:
        target[below] = 1.0
    else:
        target[below] = above - position
        target[above] = position - below
    return target


def cross_entropy(logits: list[float], target: list[float]) -> float:
    """- sum p log softmax."""
    highest = max(logits)
    log_sum = highest + math.log(sum(math.exp(x - highest) for x in logits))
    return -sum(p * (x - log_sum) for p, x in zip(target, logits, strict=True))


def binary(logit: float, target: float) -> float:
    """- y log sigmoid(x) - (1 - y) log sigmoid(-x)."""
    softplus = max(logit, 0.0) + math.log1p(math.exp(-abs(logit)))
    return softplus - target * logit


def random_batch(frames: int = 6, pairs: int = 3) -> tuple[Logits, Targets]:
    """Return the same random numbers every time, some of them masked."""
    rng = np.random.default_rng(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.tensor(rng.normal(0, 3, shape), dtype=torch.float32).requires_grad_()

    logits = Logits(normal(frames, BINS), normal(frames), normal(pairs))
    targets = Targets(
        progress=torch.tensor(rng.random(frames), dtype=torch.float32),
        progress_mask=torch.tensor(rng.random(frames) < 0.6),
        success=torch.tensor(rng.random(frames) < 0.5).float(),
        success_mask=torch.tensor(rng.random(frames) < 0.6),
        preference=torch.tensor(rng.random(pairs) < 0.5).float(),
    )
    return logits, targets


# Two-hot


@pytest.mark.parametrize(
    ("progress", "bins", "expected"),
    [
        (0.0, 4, [1, 0, 0, 0]),
        (1.0, 4, [0, 0, 0, 1]),
        (1 / 3, 4, [0, 1, 0, 0]),
        (0.5, 4, [0, 0.5, 0.5, 0]),
        (0.25, 4, [0.25, 0.75, 0, 0]),  # place 0.75
        (0.9, 4, [0, 0, 0.3, 0.7]),  # place 2.7
        (0.3, 2, [0.7, 0.3]),
        (0.95, 10, [0, 0, 0, 0, 0, 0, 0, 0, 0.45, 0.55]),  # place 8.55
    ],
)
def test_two_hot_by_hand(progress, bins, expected):
    """The heads would be trained on another scale than predictions use."""
    assert two_hot(torch.tensor(progress), bins).tolist() == pytest.approx(expected, abs=1e-6)


@given(st.integers(2, 20), st.floats(0, 1, width=32))
def test_two_hot_is_the_released_one(bins, progress):
    """A fine-tuned model would slowly unlearn the released targets."""
    target = two_hot(torch.tensor(progress, dtype=torch.float64), bins)
    assert target.tolist() == pytest.approx(released_two_hot(progress, bins), abs=1e-6)
    assert target.min() >= 0
    assert target.sum().item() == pytest.approx(1.0)
    mean = (target * torch.linspace(0, 1, bins, dtype=torch.float64)).sum().item()
    assert mean == pytest.approx(progress, abs=1e-6)


@pytest.mark.parametrize("k", range(BINS))
def test_the_center_of_a_bin_is_one_bin(k):
    """Rounding in float32 would give a bin a negative share, or leave all at 0."""
    target = two_hot(torch.tensor(k / (BINS - 1), dtype=torch.float32), BINS)
    assert target.tolist() == pytest.approx([float(j == k) for j in range(BINS)], abs=1e-6)


def test_two_hot_keeps_the_shape():
    """A batch of clips (B, T) would change its shape."""
    assert two_hot(torch.rand(2, 3), BINS).shape == (2, 3, BINS)
    assert two_hot(torch.rand(0), BINS).shape == (0, BINS)


# The parts


def test_progress_loss_is_the_mean_cross_entropy_of_unmasked_frames():
    """Training would minimize another quantity, or scale with the mask."""
    logits, targets = random_batch()
    each = [
        cross_entropy(row, released_two_hot(target))
        for row, target in zip(logits.progress.tolist(), targets.progress.tolist(), strict=True)
    ]
    unmasked = [x for x, c in zip(each, targets.progress_mask.tolist(), strict=True) if c]
    assert 0 < len(unmasked) < len(each)
    loss = progress_loss(logits.progress, targets.progress, targets.progress_mask)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(sum(unmasked) / len(unmasked), abs=1e-6)


def test_success_loss_is_the_mean_cross_entropy_of_unmasked_frames():
    """Frames with unknown success would be trained as failures."""
    logits, targets = random_batch()
    each = map(binary, logits.success.tolist(), targets.success.tolist())
    unmasked = [x for x, c in zip(each, targets.success_mask.tolist(), strict=True) if c]
    assert 0 < len(unmasked) < len(logits.success)
    loss = success_loss(logits.success, targets.success, targets.success_mask)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(sum(unmasked) / len(unmasked), abs=1e-6)


def test_preference_loss_is_the_mean_cross_entropy():
    """A and B would be swapped, and the worse of two attempts be preferred."""
    logits, targets = random_batch()
    each = list(map(binary, logits.preference.tolist(), targets.preference.tolist()))
    loss = preference_loss(logits.preference, targets.preference)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(sum(each) / len(each), abs=1e-6)
    sure_of_a = torch.tensor([9.0])
    assert preference_loss(sure_of_a, torch.ones(1)) < 0.001
    assert preference_loss(sure_of_a, torch.zeros(1)) > 8.9


def test_the_parts_are_weighted_and_summed():
    """A weight would act on another part, or twice, or the log would show weighted parts."""
    logits, targets = random_batch()
    losses = robometer_loss(logits, targets, LossWeights(2.0, 3.0, 5.0))
    assert isinstance(losses, Losses)
    preference = preference_loss(logits.preference, targets.preference)
    progress = progress_loss(logits.progress, targets.progress, targets.progress_mask)
    success = success_loss(logits.success, targets.success, targets.success_mask)
    assert losses[1:] == (preference, progress, success)
    expected = 2 * preference.item() + 3 * progress.item() + 5 * success.item()
    assert losses.total.item() == pytest.approx(expected, rel=1e-6)
    plain = robometer_loss(logits, targets, LossWeights())
    assert plain.total.item() == pytest.approx(sum(x.item() for x in plain[1:]), rel=1e-6)


@pytest.mark.parametrize("part", ["preference", "progress", "success"])
def test_a_weight_of_zero_trains_nothing(part):
    """An ablation "without preference" would not be one."""
    logits, targets = random_batch()
    robometer_loss(logits, targets, LossWeights(**{part: 0.0})).total.backward()
    for name in ("preference", "progress", "success"):
        gradient = getattr(logits, name).grad
        assert gradient.any().item() == (name != part)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=5))
def test_the_minimal_progress_loss_is_the_entropy_of_the_targets(progress):
    """A user would wait for a loss of 0 that is impossible, or the optimum is elsewhere."""
    target = [released_two_hot(p) for p in progress]
    entropy = sum(-p * math.log(p) for row in target for p in row if p > 0) / len(progress)
    perfect = torch.tensor([[math.log(max(p, 1e-30)) for p in row] for row in target])
    mask = torch.ones(len(progress), dtype=torch.bool)
    least = progress_loss(perfect, torch.tensor(progress), mask).item()
    assert least == pytest.approx(entropy, abs=1e-5)
    for k in range(BINS):
        other = perfect.clamp(min=-8).clone()
        other[:, k] += 0.5
        assert progress_loss(other, torch.tensor(progress), mask).item() > least


# Masks


def test_an_empty_mask_gives_a_loss_of_zero():
    """One batch of failures, whose progress is unknown, would turn every weight into NaN."""
    logits, targets = random_batch()
    nothing = torch.zeros(6, dtype=torch.bool)
    targets = Targets(targets.progress, nothing, targets.success, nothing, targets.preference)
    losses = robometer_loss(logits, targets, LossWeights())
    assert losses.progress.item() == 0.0
    assert losses.success.item() == 0.0
    assert losses.total.item() == losses.preference.item() > 0
    losses.total.backward()
    assert not logits.progress.grad.any()  # type: ignore[union-attr]
    assert not logits.success.grad.any()  # type: ignore[union-attr]
    assert logits.preference.grad.all()  # type: ignore[union-attr]


@pytest.mark.parametrize(("frames", "pairs"), [(6, 0), (0, 3), (0, 0)])
def test_a_batch_without_pairs_or_frames(frames, pairs):
    """A batch of labeled clips would stop the training with NaN."""
    logits, targets = random_batch(frames, pairs)
    losses = robometer_loss(logits, targets, LossWeights())
    assert (losses.preference.item() > 0) == bool(pairs)
    assert (losses.progress.item() > 0) == bool(frames)
    losses.total.backward()
    for part in logits:
        assert part.grad is not None  # else DDP waits for an unused head
        assert part.grad.isfinite().all()


def test_masked_frames_have_no_gradient():
    """Frames of clip B and unknown progress would be trained towards their filler zeros."""
    logits, targets = random_batch()
    robometer_loss(logits, targets, LossWeights()).total.backward()
    progress, success = logits.progress.grad, logits.success.grad
    assert progress is not None
    assert success is not None
    assert torch.equal((progress != 0).any(-1), targets.progress_mask)
    assert torch.equal(success != 0, targets.success_mask)


def test_masked_frames_do_not_change_the_loss():
    """The loss of an example would depend on the others in its batch."""
    logits, targets = random_batch()
    before = robometer_loss(logits, targets, LossWeights())
    changed = Targets(
        torch.where(targets.progress_mask, targets.progress, 1 - targets.progress),
        targets.progress_mask,
        torch.where(targets.success_mask, targets.success, 1 - targets.success),
        targets.success_mask,
        targets.preference,
    )
    assert robometer_loss(logits, changed, LossWeights()) == before


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_huge_logits_stay_finite(size):
    """A head that is very sure, and wrong, would turn every weight into NaN."""
    rng = np.random.default_rng(0)
    signs = torch.tensor(rng.choice([-1.0, 1.0], (6, BINS)), dtype=torch.float32)
    logits = Logits(
        (size * signs).requires_grad_(),
        (size * signs[:, 0]).requires_grad_(),
        (size * signs[:3, 1]).requires_grad_(),
    )
    _, targets = random_batch()
    losses = robometer_loss(logits, targets, LossWeights())
    assert all(part.isfinite() for part in losses)
    losses.total.backward()
    assert all(part.grad.isfinite().all() for part in logits)  # type: ignore[union-attr]
    logit = torch.tensor([size], requires_grad=True)
    wrong = success_loss(logit, torch.tensor([float(size < 0)]), torch.ones(1) > 0)
    assert wrong.item() == 1e4
    wrong.backward()
    assert logit.grad is not None
    assert logit.grad.item() == math.copysign(1.0, size)  # unlike with clamped logits


# The released code's reductions


@given(st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=1, max_size=4))
def test_a_weight_of_an_eighth_is_the_released_progress_loss(mask):
    """Fine-tuning with the released settings would balance the heads differently."""
    rng = np.random.default_rng(1)
    mask = torch.tensor(mask)  # (B, 8)
    logits = torch.tensor(rng.normal(0, 2, (*mask.shape, BINS)), dtype=torch.float32)
    target = torch.tensor(rng.random(mask.shape), dtype=torch.float32)
    each = torch.tensor(
        [
            [
                cross_entropy(x.tolist(), released_two_hot(p.item()))
                for x, p in zip(xs, ps, strict=True)
            ]
            for xs, ps in zip(logits, target, strict=True)
        ]
    )
    masked = each * mask
    released = masked.mean(1).sum(0) / (mask.sum() + 1e-8)
    none = torch.zeros(0)
    flat = Targets(target.flatten(), mask.flatten(), target.flatten(), ~mask.flatten(), none)
    weights = LossWeights(preference=0.0, progress=1 / 8, success=0.0)
    ours = robometer_loss(Logits(logits.flatten(0, 1), target.flatten(), none), flat, weights)
    assert ours.total.item() == pytest.approx(released.item(), abs=1e-6)


def test_the_released_success_loss_is_a_plain_mean():
    """Leaving out the released class weights would change the loss."""
    logits, targets = random_batch(frames=40)
    mask = targets.success_mask
    ones = int((targets.success[mask] == 1).sum())
    zeros = int(mask.sum()) - ones
    assert ones != zeros
    weights = torch.where(targets.success == 1, zeros / ones, 1.0)
    each = torch.tensor(list(map(binary, logits.success.tolist(), targets.success.tolist())))
    released = (each * weights / (weights + 1e-8) * mask).sum() / mask.sum()
    ours = success_loss(logits.success, targets.success, mask)
    assert ours.item() == pytest.approx(released.item(), abs=1e-6)


# What is refused


@pytest.mark.parametrize("part", ["preference", "progress", "success"])
@pytest.mark.parametrize("weight", [-0.1, math.inf, -math.inf, math.nan])
def test_a_negative_or_infinite_weight_raises(part, weight):
    """The model would be trained away from its targets, or into NaN."""
    with pytest.raises(
        ValueError, match=rf"The weight of {part} must be finite and >= 0, got {weight}"
    ):
        LossWeights(**{part: weight})


def test_all_targets_move_to_the_device():
    """A tensor left behind would stop the training on a GPU at its first step."""
    moved = random_batch()[1].to(torch.device("meta"))
    assert {tensor.device.type for tensor in vars(moved).values()} == {"meta"}
    assert moved.progress_mask.dtype == torch.bool
