"""Held-out episodes: the split, the figures, and that they are not trained on."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerCallback

from robometer_gym import Prediction
from robometer_gym.data import Episode
from robometer_gym.data.episodes import OUTCOMES
from robometer_gym.training import SamplingSettings, train
from robometer_gym.training.held_out import score_episodes, split_episodes
from tests.training.painted_episodes import GREEN, RED, painted_episode
from tests.training.quick_runs import TASKS, noise_episodes, quick_arguments, small_model


class Scripted:
    """Predict from the number in the pixels of an episode."""

    def __init__(self, progress, success, preferred=None):
        self.progress, self.success = progress, success
        self.preferred = preferred or progress
        self.shown = []

    def predict(self, clips):
        numbers = [int(clip.frames[0, 0, 0, 0]) for clip in clips]
        self.shown += [clip.frames[:, 0, 0, 1].tolist() for clip in clips]
        return [
            Prediction(
                np.linspace(0, self.progress[n], len(clip), dtype=np.float32),
                np.linspace(0, self.success[n], len(clip), dtype=np.float32),
            )
            for n, clip in zip(numbers, clips, strict=True)
        ]

    def prefer(self, a, b):
        one, other = (self.preferred[int(clip.frames[0, 0, 0, 0])] for clip in (a, b))
        return 0.5 + np.sign(one - other) / 2


@given(
    st.lists(st.tuples(st.sampled_from((RED, GREEN)), st.sampled_from(OUTCOMES)), max_size=60),
    st.sampled_from([0.1, 0.25, 0.5, 0.9]),
    st.integers(0, 5),
)
def test_the_split_takes_a_share_of_every_task_and_outcome(kinds, share, seed):
    """All failures could be held out, or an episode be trained on and scored."""
    episodes = [painted_episode(n, 2, *kind) for n, kind in enumerate(kinds)]
    expected = {kind: round(share * count) for kind, count in Counter(kinds).items()}
    if not any(expected.values()):
        with pytest.raises(ValueError, match=rf"eval_share={share} of {len(kinds)} episodes holds"):
            split_episodes(episodes, share, seed)
        return
    training, held_out = split_episodes(episodes, share, seed)
    numbers = [[int(e.frames[0, 0, 0, 0]) for e in part] for part in (training, held_out)]
    assert sorted(numbers[0] + numbers[1]) == list(range(len(episodes)))
    assert numbers == [sorted(part) for part in numbers]
    counts = Counter((episode.task, episode.outcome) for episode in held_out)
    assert {kind: counts[kind] for kind in expected} == expected
    again = split_episodes(episodes, share, seed)[1]
    assert [id(e) for e in again] == [id(e) for e in held_out]


def test_a_share_of_zero_holds_out_nothing():
    """A training without the option would lose data."""
    episodes = [painted_episode(n) for n in range(3)]
    assert split_episodes(episodes, 0.0, 0) == (episodes, [])


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_outside_the_range_is_refused(share):
    """Every episode would be held out, and an obscure error follow."""
    with pytest.raises(ValueError, match=r"eval_share must be in \[0, 1\), got"):
        split_episodes([painted_episode(0)], share, 0)


MIXED = [
    painted_episode(0, 9, RED),
    painted_episode(1, 20, RED, "suboptimal"),
    painted_episode(2, 9, RED, "failure"),
    painted_episode(3, 9, GREEN),
    painted_episode(4, 9, GREEN, "failure"),
    painted_episode(5, 9, GREEN),
]
PAIRS = SamplingSettings(4, pair_ratios={"different_expertise": 1.0})


def test_a_perfect_model_has_perfect_figures():
    """A better model would look worse after training."""
    values = [0.9, 0.5, 0.1, 0.8, 0.3, 0.7]
    model = Scripted(values, values)
    scores = score_episodes(model, MIXED, PAIRS)  # type: ignore[arg-type]
    assert scores.ranking == 1.0
    assert scores.threshold == pytest.approx(0.5)
    assert scores.recall == 1.0
    assert scores.preference_accuracy == 1.0
    assert model.shown[1] == [0, 6, 13, 19]  # from the first frame to the last, 6 1/3 apart


def test_figures_by_hand():
    """A model that lets failures pass would show a high recall."""
    progress = [0.5, 0.9, 0.1, 0.8, 0.3, 0.2]
    success = [0.9, 0.1, 0.2, 0.6, 0.7, 0.8]
    model = Scripted(progress, success, preferred=[-value for value in progress])
    scores = score_episodes(model, MIXED, PAIRS)  # type: ignore[arg-type]
    # Red: failure < suboptimal right, failure < success right, suboptimal < success wrong.
    # Green: one of the successes is above the failure, one below.
    assert scores.ranking == pytest.approx((1 / 3 + 0.0) / 2)
    assert scores.threshold == pytest.approx(0.7)
    assert scores.recall == pytest.approx(2 / 3)
    assert scores.preference_accuracy is not None
    assert scores.preference_accuracy < 0.5


@pytest.mark.parametrize(
    ("episodes", "missing"),
    [
        (MIXED[:1], ["ranking", "threshold", "recall", "preference_accuracy"]),
        (MIXED[2:3], ["ranking", "recall", "preference_accuracy"]),
        ([MIXED[0], MIXED[4]], ["ranking", "preference_accuracy"]),
    ],
)
def test_an_undetermined_figure_is_none(episodes, missing):
    """One held-out success would end a finished training, or be reported as a score of 0."""
    values = [0.9] * 6
    scores = score_episodes(Scripted(values, values), episodes, PAIRS)  # type: ignore[arg-type]
    assert [name for name, value in vars(scores).items() if value is None] == missing


def test_without_trained_pairs_there_is_no_preference_accuracy():
    """A head that was not trained would be reported beside those that were."""
    settings = SamplingSettings(4, preference_share=0.0)
    scores = score_episodes(Scripted([0.5] * 6, [0.5] * 6), MIXED, settings)  # type: ignore[arg-type]
    assert scores.preference_accuracy is None


class CountedFrames:
    """Frames that count how often they are read."""

    def __init__(self, frames):
        self.frames, self.reads = frames, 0

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, indices):
        self.reads += 1
        return self.frames[indices]


class ReadsInTraining(TrainerCallback):  # type: ignore[misc]
    """Record which episodes are read between the first step and the last."""

    def __init__(self, episodes):
        self.episodes = episodes

    def on_train_begin(self, args, state, control, **kwargs):
        self.before = [episode.frames.reads for episode in self.episodes]

    def on_train_end(self, args, state, control, **kwargs):
        after = [episode.frames.reads for episode in self.episodes]
        self.read = [now > then for now, then in zip(after, self.before, strict=True)]


def test_held_out_episodes_are_scored_before_and_after_and_not_trained_on(tmp_path):
    """The figures would praise a model for episodes that it has memorized."""
    plain = noise_episodes(12)
    episodes = [
        Episode(CountedFrames(e.frames), TASKS[0], OUTCOMES[n % 2]) for n, e in enumerate(plain)
    ]
    reads, settings = ReadsInTraining(episodes), SamplingSettings(max_frames=3)
    trained = train(
        small_model(),
        episodes,
        tmp_path,
        sampling=settings,
        eval_share=0.34,
        callbacks=[reads],
        **quick_arguments(max_steps=10, learning_rate=1e-2),
    )
    _, held_out = split_episodes(episodes, 0.34, seed=42)
    assert len(held_out) == 4
    assert [any(e is h for h in held_out) for e in episodes] == [not read for read in reads.read]
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["episodes"] == 4
    for moment, model in (("before", small_model()), ("after", trained)):
        expected = vars(score_episodes(model, held_out, settings))
        assert found[moment] == pytest.approx(expected, abs=1e-4)
    assert found["before"] != found["after"]


def test_without_a_share_nothing_is_scored(tmp_path):
    """Every short run would take longer."""
    train(small_model(), noise_episodes(), tmp_path, **quick_arguments(max_steps=1))
    assert not (tmp_path / "evaluation.json").exists()
