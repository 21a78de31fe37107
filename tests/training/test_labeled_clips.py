"""Labeled clips: which frames are shown, with which instruction and labels."""

from collections import Counter

import numpy as np
import pytest

from robometer_gym.training.sampler import (
    CLIP_MODES,
    Sampler,
    SamplingSettings,
)
from tests.training.painted_episodes import (
    BLUE,
    GREEN,
    RED,
    TASKS,
    check_clip,
    contents,
    draw_clip,
    matches_shares,
    mode_of_clip,
    only_modes,
    painted_episode,
    read_pixels,
)


@pytest.mark.parametrize("mode", CLIP_MODES)
def test_clips_are_played_in_their_mode(mode):
    """A rewind would be labeled as if it had been played forward."""
    episodes = [
        painted_episode(0, 12, RED),
        painted_episode(1, 40, GREEN, cutoff=0.7),
        painted_episode(2, 9, BLUE),
    ]
    sampling = SamplingSettings(80, preference_share=0.0, clip_ratios=only_modes(CLIP_MODES, mode))
    sampler, rng = Sampler(episodes, sampling), np.random.default_rng(0)
    tasks: Counter[tuple[int, str]] = Counter()
    for _ in range(300):
        example = draw_clip(sampler, rng)
        assert mode_of_clip(example, episodes) == mode
        check_clip(example, episodes)
        assert len(example.clip) == 80
        tasks[read_pixels(example)[0], example.clip.task] += 1
    right = mode != "different_task"
    expected = {(n, t): 1.0 for n in range(3) for t in TASKS if (TASKS[n] == t) == right}
    assert matches_shares(tasks, {key: 1 / len(expected) for key in expected})


def test_clip_modes_follow_their_ratios():
    """A user who sets a lower ratio for reversed clips would get more of them."""
    episodes = [
        painted_episode(0, 12, RED),
        painted_episode(1, 40, GREEN),
        painted_episode(2, 9, GREEN, "failure"),
    ]
    ratios = dict(zip(CLIP_MODES, (4.0, 2.0, 1.0, 0.5), strict=True))
    sampler = Sampler(episodes, SamplingSettings(80, preference_share=0.0, clip_ratios=ratios))
    rng = np.random.default_rng(0)
    drawn: Counter[tuple[str, int]] = Counter()
    numbers: Counter[int] = Counter()
    for _ in range(2500):
        example = draw_clip(sampler, rng)
        check_clip(example, episodes)
        drawn[mode_of_clip(example, episodes), read_pixels(example)[0]] += 1
        numbers[read_pixels(example)[0]] += 1
    shares = {(mode, n): r / 7.5 / 3 for mode, r in ratios.items() for n in (0, 1)}
    failures = {(mode, 2): r / 7.0 / 3 for mode, r in ratios.items() if mode != "different_task"}
    assert matches_shares(drawn, shares | failures)
    assert matches_shares(numbers, dict.fromkeys(range(3), 1 / 3))


@pytest.mark.parametrize("mode", CLIP_MODES)
def test_a_ratio_of_zero_draws_no_clip(mode):
    """A mode that the user excluded would be trained on all the same."""
    episodes = [painted_episode(0, 12, RED), painted_episode(1, 40, GREEN)]
    ratios = {k: float(k != mode) for k in CLIP_MODES}
    sampler = Sampler(episodes, SamplingSettings(80, preference_share=0.0, clip_ratios=ratios))
    rng = np.random.default_rng(1)
    drawn = {mode_of_clip(draw_clip(sampler, rng), episodes) for _ in range(200)}
    assert drawn == set(CLIP_MODES) - {mode}


def test_only_a_complete_episode_is_shown_with_another_instruction():
    """A failure may have done the very task it is shown with: it would be trained as none."""
    episodes = [
        painted_episode(0, task=RED),
        painted_episode(1, task=RED, partial_success=1.0),
        painted_episode(2, task=RED, partial_success=0.9),
        painted_episode(3, task=RED, outcome="suboptimal", partial_success=1.0),
        painted_episode(4, task=GREEN, outcome="failure"),
        painted_episode(5, task=BLUE, outcome="suboptimal", partial_success=0.3),
    ]
    sampling = SamplingSettings(
        preference_share=0.0, clip_ratios=only_modes(CLIP_MODES, "different_task")
    )
    sampler, rng = Sampler(episodes, sampling), np.random.default_rng(0)
    drawn: Counter[tuple[int, str]] = Counter()
    for _ in range(300):
        example = draw_clip(sampler, rng)
        check_clip(example, episodes)
        drawn[read_pixels(example)[0], example.clip.task] += 1
    # The task of a failed episode is an instruction all the same.
    assert matches_shares(drawn, {(n, task): 0.25 for n in (0, 1) for task in (GREEN, BLUE)})
    with pytest.raises(ValueError, match="No labeled clip can be made of these 4"):
        Sampler(episodes[2:], sampling)


@pytest.mark.parametrize("outcome", ["successful", "suboptimal", "failure"])
def test_an_episode_with_partial_success_is_shown_to_its_end(outcome):
    """Partial success belongs to the end: a clip without it has no progress to learn."""
    episodes = [
        painted_episode(0, 40, RED, outcome, 0.6),
        painted_episode(1, 40, GREEN, outcome, 0.6),
    ]
    sampler, rng = Sampler(episodes, SamplingSettings(5, 0.0)), np.random.default_rng(0)
    for _ in range(20):
        example = draw_clip(sampler, rng)
        number, shown = read_pixels(example)
        assert example.clip.task == episodes[number].task
        assert shown == [0, 10, 20, 29, 39]  # 9.75, 19.5, 29.25
        assert example.labels.progress_mask.tolist() == [False] * 4 + [True]
        assert example.labels.progress[-1] == np.float32(0.6)


def test_an_episode_with_partial_success_is_only_played_forward():
    """A user who wants rewinds alone would get clips that are none."""
    episodes = [
        painted_episode(0, 40, partial_success=0.6),
        painted_episode(1, 9),
        painted_episode(2, task=GREEN),
    ]
    for mode in ("rewind", "reverse", "different_task"):
        sampling = SamplingSettings(80, 0.0, clip_ratios=only_modes(CLIP_MODES, mode))
        sampler, rng = Sampler(episodes, sampling), np.random.default_rng(0)
        examples = [draw_clip(sampler, rng) for _ in range(40)]
        assert {read_pixels(example)[0] for example in examples} == {1, 2}
        assert {mode_of_clip(example, episodes) for example in examples} == {mode}
        with pytest.raises(ValueError, match="No labeled clip can be made of these 1 "):
            Sampler(episodes[:1], sampling)


def test_a_partial_success_of_one_is_a_success():
    """A data set with a partial success for every episode could not be rewound."""
    plain = [painted_episode(0, 9, RED), painted_episode(1, 12, GREEN)]
    whole = [
        painted_episode(0, 9, RED, "successful", 1.0),
        painted_episode(1, 12, GREEN, "successful", 1.0),
    ]
    first, second = (Sampler(e, SamplingSettings(80, 0.5)) for e in (plain, whole))
    rngs = [np.random.default_rng(0) for _ in range(2)]
    for _ in range(60):
        assert contents(first.draw(rngs[0])) == contents(second.draw(rngs[1]))
