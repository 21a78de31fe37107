"""The plot of learning curves: its mean, band and baselines, read from the pixels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robometer_gym.evaluation import plot_learning_curves

PROGRESS, SUCCESS = (29, 95, 209), (217, 102, 10)
STEPS = [0, 500, 1000]


def plot(tmp_path: Path, curves, **options) -> np.ndarray:
    """Plot and return the PNG as (H, W, 3) int."""
    plot_learning_curves(curves, tmp_path / "curves.png", **options)
    with Image.open(tmp_path / "curves.png") as image:
        pixels: np.ndarray = np.asarray(image.convert("RGB")).astype(int)
    return pixels


def has_color(pixels: np.ndarray, color) -> np.ndarray:
    """Return (H, W) bool where a pixel has a color."""
    near: np.ndarray = (np.abs(pixels - np.array(color)) < 12).all(axis=2)
    return near


def test_the_band_spans_the_runs_and_the_line_is_their_mean(tmp_path):
    """One lucky seed would pass for the usual result."""
    scale = plot(tmp_path, {"low": [(STEPS, [0.0] * 3)], "high": [(STEPS, [1.0] * 3)]})[:, 600:620]
    height = np.nonzero(has_color(scale, PROGRESS))[0].max()
    height -= np.nonzero(has_color(scale, SUCCESS))[0].min()
    pixels = plot(tmp_path, {"": [(STEPS, [0.5, 0.2, 0.2]), (STEPS, [0.5, 0.2, 0.8])]})
    band = has_color(pixels, 255 - 0.2 * (255 - np.array(PROGRESS)))  # alpha 0.2 on white
    near_the_end = int(0.98 * np.nonzero(band)[1].max())
    shaded = np.nonzero(band[:, near_the_end])[0]
    line = np.nonzero(has_color(pixels, PROGRESS)[:, near_the_end])[0].mean()
    assert np.ptp(shaded) == pytest.approx(0.6 * height, rel=0.1)
    assert line == pytest.approx((shaded.min() + shaded.max()) / 2, abs=0.03 * height)


def test_curves_at_0_and_1_are_not_hidden_by_the_frame(tmp_path):
    """A policy that never succeeds would look as if it had not been measured."""
    flat = {"low": [(STEPS, [0.0] * 3)], "high": [(STEPS, [1.0] * 3)]}
    pixels = plot(tmp_path, flat, baselines={"random policy": 0.5}, title="$5 and 50 %")
    for color in (PROGRESS, SUCCESS):
        assert (has_color(pixels, color).sum(axis=0) >= 2).sum() > 800


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({"a": []}, r"The runs of 'a' must have the same steps, and be at least one\."),
        ({"a": [(STEPS, [0] * 3), ([0, 1], [0] * 2)]}, "must have the same steps"),
        ({str(n): [(STEPS, [0] * 3)] for n in range(5)}, "at most 4 labels, got 5"),
    ],
)
def test_runs_that_cannot_be_averaged_are_refused(tmp_path, curves, message):
    """The mean over other steps would be a curve that no agent has."""
    with pytest.raises(ValueError, match=message):
        plot(tmp_path, curves)
