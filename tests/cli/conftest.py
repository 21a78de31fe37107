"""Fixtures of the commands: a short video, and a scripted model in place of every checkpoint."""

from pathlib import Path

import numpy as np
import pytest

from robometer_gym.data import write_video
from robometer_gym.models import loading
from robometer_gym.testing import ScriptedRewardModel


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Twenty frames at 10 fps, (20, 48, 64, 3)."""
    frames = np.full((20, 48, 64, 3), 60, np.uint8)
    for step, frame in enumerate(frames):
        frame[16:32, 2 * step : 2 * step + 16] = 230
    write_video(tmp_path / "film.mp4", frames, 10)
    return tmp_path / "film.mp4"


class LoadedModel(ScriptedRewardModel):
    """Stands in for every checkpoint; keeps the names and options that it was loaded by."""

    def __init__(self) -> None:
        super().__init__(progress=0.5, success=0.25)
        self.names: list[str] = []
        self.options: list[dict[str, object]] = []

    def load(self, name, **options):
        self.names.append(name)
        self.options.append(options)
        return self


@pytest.fixture
def model(monkeypatch) -> LoadedModel:
    """Loaded in place of every checkpoint."""
    loaded = LoadedModel()
    monkeypatch.setattr(loading, "_load", loaded.load)
    return loaded
