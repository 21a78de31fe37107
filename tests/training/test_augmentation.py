"""Frame orders: subsampling, and forward, rewound and reversed stretches."""

from collections import Counter
from fractions import Fraction
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robometer_gym.training.augmentation import forward, reverse, rewind, subsample
from robometer_gym.training.sampler import (
    CLIP_MODES,
    Sampler,
    SamplingSettings,
)
from tests.training.painted_episodes import (
    check_clip,
    draw_clip,
    matches_shares,
    only_modes,
    painted_episode,
    read_pixels,
    success_index,
)

lengths = st.integers(1, 200)
seeds = st.integers(0, 2**32)


@pytest.mark.parametrize(
    ("length", "count", "expected"),
    [
        (9, 8, [0, 1, 2, 3, 5, 6, 7, 8]),  # 8 / 7 apart
        (15, 5, [0, 4, 7, 10, 14]),  # 3.5 and 10.5 go to the even side
        (6, 3, [0, 2, 5]),
        (4, 3, [0, 2, 3]),
        (64, 8, [0, 9, 18, 27, 36, 45, 54, 63]),
        (10, 2, [0, 9]),
        (10, 1, [9]),
        (1, 1, [0]),
        (1, 3, [0, 0, 0]),
        (3, 5, [0, 1, 2, 2, 2]),
        (5, 5, [0, 1, 2, 3, 4]),
    ],
)
def test_subsample_by_hand(length, count, expected):
    """The model would be trained on other frames than those it predicts on."""
    assert subsample(range(length), count) == expected
    backwards = [length - 1 - i for i in expected]
    assert subsample(range(length)[::-1], count) == backwards


@given(lengths, st.integers(1, 32))
def test_subsample_is_even_from_the_first_to_the_last(length, count):
    """The first frame, the origin of progress, or the current one would be missing."""
    shown = subsample([100 + i for i in range(length)], count)
    assert len(shown) == count
    assert shown[-1] == 99 + length
    places = [i - 100 for i in shown]
    if length <= count:
        assert places == [*range(length), *[length - 1] * (count - length)]
    elif count > 1:
        assert places[0] == 0
        assert all(a < b for a, b in pairwise(places))
        step = (length - 1) / (count - 1)
        assert places[:-1] == [round(i * step) for i in range(count - 1)]
        for i, place in enumerate(places):
            exact = Fraction(i * (length - 1), count - 1)
            assert abs(place - exact) <= Fraction(1, 2)


@given(lengths, seeds)
def test_forward_is_a_stretch_of_at_least_three_frames(length, seed):
    """Frames would be missing or repeated, and progress per frame would mean nothing."""
    order = forward(length, np.random.default_rng(seed))
    assert order == list(range(order[0], order[-1] + 1))
    assert len(order) >= min(3, length)
    assert 0 <= order[0] <= order[-1] < length
    backwards = reverse(length, np.random.default_rng(seed))
    assert backwards == order[::-1]


@given(st.integers(3, 200), seeds)
def test_rewind_ends_before_its_peak(length, seed):
    """A rewind that ends at its peak is a success, and would be trained as the worse of two."""
    order = rewind(length, np.random.default_rng(seed))
    start, middle, end = order[0], max(order), order[-1]
    assert 0 <= start < end < middle < length
    assert order == [*range(start, middle), *range(middle, end - 1, -1)]


def test_all_stretches_of_an_episode_are_drawn():
    """Some frames would never be trained on, such as the last one: success."""
    rng = np.random.default_rng(0)
    triples = list(combinations(range(6), 3))
    rewinds: Counter[Any] = Counter()
    stretches: Counter[Any] = Counter()
    for _ in range(4000):
        order = rewind(6, rng)
        rewinds[order[0], order[-1], max(order)] += 1
        order = forward(6, rng)
        stretches[order[0], order[-1]] += 1
    assert set(rewinds) == set(triples)
    assert matches_shares(rewinds, {triple: 1 / 20 for triple in triples})
    outer = Counter((start, end) for start, _, end in triples)
    assert set(stretches) == set(outer)
    assert matches_shares(stretches, {ends: n / 20 for ends, n in outer.items()})


@pytest.mark.parametrize("mode", ["forward", "rewind", "reverse"])
@pytest.mark.parametrize("done", [7, 4, 2, 1, 0, -1])
def test_a_stretch_reaches_back_before_success(mode, done):
    """A robot at rest, reversed, looks done: it would be trained as progress 0."""
    episodes = [painted_episode(0, 8, cutoff=max(0.1, (done + 1) / 8))]  # 0.8 frames are none
    assert success_index(episodes[0]) == done
    possible = done >= (2 if mode == "rewind" else 1)
    before = done if possible else 8  # too few frames before success: all are drawn
    length = min(8, 3 * (done + 1)) if possible else 8  # of a long rest only the beginning
    triples = list(combinations(range(length), 3))
    expected = {
        "forward": Counter((a, c, c) for a, _, c in triples if a < before),
        "rewind": Counter((a, c, b) for a, b, c in triples if b < before),
        "reverse": Counter((c, c, a) for a, _, c in triples if a < before),
    }[mode]
    sampling = SamplingSettings(20, preference_share=0.0, clip_ratios=only_modes(CLIP_MODES, mode))
    sampler, rng = Sampler(episodes, sampling), np.random.default_rng(0)
    drawn: Counter[Any] = Counter()
    for _ in range(700):
        example = draw_clip(sampler, rng)
        check_clip(example, episodes)
        _, shown = read_pixels(example)
        drawn[shown[0], max(shown), shown[-1]] += 1
    assert set(drawn) == set(expected)
    assert matches_shares(drawn, {ends: n / expected.total() for ends, n in expected.items()})
