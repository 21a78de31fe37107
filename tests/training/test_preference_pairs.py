"""Preference pairs: which clips are paired, and which of them is better."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from robometer_gym.training.sampler import (
    PAIR_MODES,
    Sampler,
    SamplingSettings,
)
from tests.training.painted_episodes import (
    BLUE,
    GREEN,
    MIXED_EPISODES,
    RED,
    TASKS,
    better_and_worse,
    check_pair,
    draw_pair,
    matches_shares,
    only_modes,
    painted_episode,
    read_pixels,
)


@pytest.mark.parametrize("mode", PAIR_MODES)
@pytest.mark.parametrize("max_frames", [2, 3, 8])
def test_the_better_clip_is_better(mode, max_frames):
    """The preference head would learn to prefer the worse attempt, or always A."""
    sampling = SamplingSettings(max_frames=max_frames, pair_ratios=only_modes(PAIR_MODES, mode))
    sampler, rng = Sampler(MIXED_EPISODES, sampling), np.random.default_rng(0)
    coin: Counter[str] = Counter()
    for _ in range(400):
        pair = draw_pair(sampler, rng)
        assert check_pair(pair, MIXED_EPISODES) == mode
        assert len(pair.a.clip) == max_frames
        coin["ab"[not pair.a_is_better]] += 1
    assert matches_shares(coin, {"a": 0.5, "b": 0.5})


def test_pair_modes_follow_their_ratios():
    """A user who sets a higher ratio for rewinds would get more of another mode."""
    sampling = SamplingSettings(
        pair_ratios=dict(zip(PAIR_MODES, (1.0, 2.0, 3.0, 0.5), strict=True))
    )
    sampler, rng = Sampler(MIXED_EPISODES, sampling), np.random.default_rng(0)
    drawn = Counter(check_pair(draw_pair(sampler, rng), MIXED_EPISODES) for _ in range(2500))
    # Half of the episodes are successes; the others have one mode only.
    shares = np.array([1, 2, 3, 0.5]) / 6.5 / 2 + [0, 0, 0, 0.5]
    assert matches_shares(drawn, dict(zip(PAIR_MODES, shares, strict=True)))


@pytest.mark.parametrize("mode", PAIR_MODES)
def test_a_ratio_of_zero_draws_no_pair(mode):
    """A mode that the user excluded would be trained on all the same."""
    rest = {k: float(k != mode) for k in PAIR_MODES}
    for ratios in (rest, {k: r for k, r in rest.items() if r}):  # 0 and left out are the same
        sampler = Sampler(MIXED_EPISODES, SamplingSettings(pair_ratios=ratios))
        rng = np.random.default_rng(1)
        drawn = {check_pair(draw_pair(sampler, rng), MIXED_EPISODES) for _ in range(200)}
        assert drawn == set(rest) - {mode}


def test_rewind_and_reverse_pairs_share_one_stretch():
    """A rewind of another stretch has no certain preference."""
    rng = np.random.default_rng(0)
    for mode in ("rewind", "reverse"):
        sampler = Sampler(
            [painted_episode(0, 9)], SamplingSettings(20, pair_ratios=only_modes(PAIR_MODES, mode))
        )
        for _ in range(100):
            pair = draw_pair(sampler, rng)
            better, worse = better_and_worse(pair)
            (_, seen), (_, order) = read_pixels(better), read_pixels(worse)
            assert set(seen) == set(order)  # both show one stretch
            assert better.labels.progress[-1] > worse.labels.progress[-1]
            assert worse.labels.progress.min() == 0.0


def test_independent_stretches_are_those_of_the_released_training():
    """The released pairs, some of them with the better clip behind, could not be reproduced."""
    triples = list(combinations(range(9), 3))
    # The better clip ends at the last of three frames, a rewind at the middle one.
    ends = Counter((better[2], worse[1]) for better in triples for worse in triples)
    sampling = SamplingSettings(
        20, pair_ratios=only_modes(PAIR_MODES, "rewind"), independent_stretches=True
    )
    sampler, rng = Sampler([painted_episode(0, 9)], sampling), np.random.default_rng(0)
    drawn: Counter[bool] = Counter()
    for _ in range(1500):
        better, worse = better_and_worse(draw_pair(sampler, rng))
        drawn[read_pixels(better)[1][-1] < read_pixels(worse)[1][-1]] += 1
    behind = sum(n for (one, other), n in ends.items() if one < other) / ends.total()
    assert 0.09 < behind < 0.11
    assert matches_shares(drawn, {True: behind, False: 1 - behind})


def test_a_different_task_pair_shows_one_instruction():
    """The right instruction would be trained as the wrong one."""
    episodes = [
        painted_episode(0, task=RED),
        painted_episode(1, task=GREEN),
        painted_episode(2, task=BLUE),
    ]
    sampling = SamplingSettings(pair_ratios=only_modes(PAIR_MODES, "different_task"))
    sampler, rng = Sampler(episodes, sampling), np.random.default_rng(0)
    seen: Counter[tuple[int, int]] = Counter()
    for _ in range(600):
        pair = draw_pair(sampler, rng)
        better, worse = better_and_worse(pair)
        (good, _), (bad, _) = read_pixels(better), read_pixels(worse)
        assert better.clip.task == worse.clip.task == TASKS[good] != TASKS[bad]
        assert not worse.labels.progress.any()
        assert not worse.labels.success.any()
        assert worse.labels.progress_mask.all()
        assert worse.labels.success_mask.all()
        assert better.labels.progress.any()
        seen[good, bad] += 1
    assert matches_shares(seen, {(a, b): 1 / 6 for a in range(3) for b in range(3) if a != b})


def test_only_complete_episodes_make_a_different_task_pair():
    """A failed episode may have done the other task: a good attempt would be trained as bad."""
    incomplete = [
        painted_episode(0, task=GREEN, outcome="failure"),
        painted_episode(1, task=GREEN, outcome="suboptimal"),
        painted_episode(2, task=GREEN, outcome="failure", partial_success=0.0),
        painted_episode(3, task=GREEN, partial_success=0.9),
        painted_episode(4, task=GREEN, outcome="suboptimal", partial_success=1.0),
    ]
    episodes = [*incomplete, painted_episode(5, task=RED)]
    sampling = SamplingSettings(pair_ratios=only_modes(PAIR_MODES, "different_task"))
    with pytest.raises(
        ValueError, match="No preference pair can be made of these 6 episodes of 2 task"
    ):
        Sampler(episodes, sampling)
    episodes.append(painted_episode(6, task=BLUE, partial_success=1.0))
    sampler, rng = Sampler(episodes, sampling), np.random.default_rng(0)
    drawn: Counter[tuple[int, ...]] = Counter()
    for _ in range(200):
        pair = draw_pair(sampler, rng)
        assert check_pair(pair, episodes) == "different_task"
        drawn[tuple(read_pixels(example)[0] for example in better_and_worse(pair))] += 1
    assert matches_shares(drawn, {(5, 6): 0.5, (6, 5): 0.5})


@pytest.mark.parametrize("outcome", ["suboptimal", "failure"])
def test_a_success_is_better_than_any_other_outcome(outcome):
    """Carefully collected failures would teach nothing."""
    episodes = [painted_episode(0), painted_episode(1, outcome=outcome)]
    sampler = Sampler(
        episodes, SamplingSettings(pair_ratios=only_modes(PAIR_MODES, "different_expertise"))
    )
    rng = np.random.default_rng(0)
    for _ in range(20):
        pair = draw_pair(sampler, rng)
        assert check_pair(pair, episodes) == "different_expertise"
        assert read_pixels(pair.a)[0] == (not pair.a_is_better)


def test_a_gap_of_a_fifth_makes_a_pair():
    """0.9 - 0.7 is 0.19999999999999996: some episodes with partial success would be left out."""
    sampling = SamplingSettings(pair_ratios=only_modes(PAIR_MODES, "different_expertise"))
    for j in range(80):
        low = painted_episode(0, outcome="failure", partial_success=j / 100)
        high = painted_episode(1, outcome="suboptimal", partial_success=(j + 20) / 100)
        pair = draw_pair(Sampler([low, high], sampling), np.random.default_rng(j))
        assert read_pixels(pair.a)[0] == pair.a_is_better
        near = painted_episode(1, outcome="suboptimal", partial_success=(j + 19) / 100)
        with pytest.raises(ValueError, match="No preference pair can be made of these 2 episodes"):
            Sampler([low, near], sampling)


@pytest.mark.parametrize(
    ("high", "low"),
    [
        (("successful", None), ("suboptimal", None)),
        (("suboptimal", None), ("failure", None)),
        (("successful", None), ("failure", 0.85)),  # without a partial success
        (("suboptimal", None), ("failure", 0.7)),
        (("successful", 0.3), ("suboptimal", None)),
        (("suboptimal", 0.1), ("failure", None)),
        (("failure", 0.6), ("successful", 0.3)),  # both have a partial success
        (("suboptimal", 0.5), ("suboptimal", 0.3)),
        (("successful", 1.0), ("failure", 0.95)),  # 1.0 counts as an outcome
        (("successful", None), ("suboptimal", 1.0)),
        (("suboptimal", 1.0), ("failure", 0.9)),
    ],
)
def test_partial_success_or_else_outcome_decides(high, low):
    """A failure with a high partial success would be preferred to a success without one."""
    sampling = SamplingSettings(pair_ratios=only_modes(PAIR_MODES, "different_expertise"))
    for order in (1, -1):
        episodes = [
            painted_episode(n, 9, RED, *quality) for n, quality in enumerate((high, low)[::order])
        ]
        sampler, rng = Sampler(episodes, sampling), np.random.default_rng(0)
        for _ in range(8):
            better, worse = better_and_worse(draw_pair(sampler, rng))
            assert [read_pixels(better)[0], read_pixels(worse)[0]] == [0, 1][::order]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("failure", None), ("failure", 0.9)),
        (("suboptimal", 0.1), ("suboptimal", 1.0)),
        (("successful", None), ("successful", 0.2)),
        (("successful", None), ("successful", 1.0)),
        (("suboptimal", 0.6), ("failure", 0.5)),
        (("successful", 0.9), ("failure", 0.8)),  # a gap below 0.2, whatever the outcomes
    ],
)
def test_similar_episodes_make_no_pair(one, other):
    """A coin flip would be trained as a preference."""
    sampling = SamplingSettings(pair_ratios=only_modes(PAIR_MODES, "different_expertise"))
    with pytest.raises(
        ValueError, match="No preference pair can be made of these 2 episodes of 1 task"
    ):
        Sampler([painted_episode(0, 9, RED, *one), painted_episode(1, 9, RED, *other)], sampling)


def test_every_partner_is_drawn():
    """Of many failures one would be compared over and over, and the others never."""
    shares = [0.0, 0.2, 0.3, 0.5, 0.7, 0.95]
    episodes = [
        painted_episode(n, outcome="suboptimal", partial_success=value)
        for n, value in enumerate(shares)
    ]
    others = [painted_episode(6 + n, task=GREEN, outcome="failure") for n in range(3)]
    sampling = SamplingSettings(2, pair_ratios=only_modes(PAIR_MODES, "different_expertise"))
    sampler, rng = Sampler(episodes[::-1] + others, sampling), np.random.default_rng(0)
    drawn = set()
    for _ in range(600):
        pair = draw_pair(sampler, rng)
        assert check_pair(pair, episodes)
        drawn.add(tuple(sorted(read_pixels(example)[0] for example in (pair.a, pair.b))))
    expected = {(i, j) for i, j in combinations(range(6), 2) if shares[j] - shares[i] > 0.19}
    assert drawn == expected
