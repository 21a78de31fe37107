"""Which frames are shown, with which instruction, and which of two attempts is the better.

Every frame is painted with its episode's number and its own, so that what was drawn can be read
from the pictures, and judged without asking the sampler.
"""

import math
from collections import Counter
from fractions import Fraction
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robometer_gym.data import Episode
from robometer_gym.training.augmentation import (
    CLIPS,
    PAIRS,
    Pair,
    Question,
    Sampler,
    SamplingSettings,
    forward,
    reverse,
    rewind,
    subsample,
)

RED, GREEN, BLUE = TASKS = ("go to red", "go to green", "go to blue")
lengths = st.integers(1, 200)
seeds = st.integers(0, 2**32)


def painted(number, length=12, task=RED, outcome="successful", partial_success=None, cutoff=1.0):
    """An episode of one pixel: (its number, the frame's number, 0)."""
    frames = np.zeros((length, 1, 1, 3), np.uint8)
    frames[..., 0] = number
    frames[..., 1] = np.arange(length)[:, None, None]
    return Episode(frames, task, outcome, partial_success, cutoff)


def only(kinds, *names):
    """Ratios of which all but these are 0."""
    return {kind: float(kind in names) for kind in kinds}


def read(question: Question) -> tuple[int, list[int]]:
    """Of which episode a question shows which frames."""
    pixels = question.clip.frames[:, 0, 0]
    (number,) = set(pixels[:, 0].tolist())
    return number, pixels[:, 1].tolist()


def draw_pair(sampler: Sampler, rng: np.random.Generator) -> Pair:
    """Draw a question, which has to be a comparison."""
    pair = sampler.draw(rng)
    assert isinstance(pair, Pair)
    return pair


def draw_clip(sampler: Sampler, rng: np.random.Generator) -> Question:
    """Draw a question, which has to be one about one clip."""
    question = sampler.draw(rng)
    assert isinstance(question, Question)
    return question


def by_worth(pair: Pair) -> tuple[Question, Question]:
    """The better and the worse of a pair, as it says itself."""
    return (pair.a, pair.b) if pair.a_is_better else (pair.b, pair.a)


def is_judged(episode: Episode) -> bool:
    """Whether somebody said how much of its task was done, and not all of it."""
    return episode.partial_success is not None and episode.partial_success < 1.0


def is_finished(episode: Episode) -> bool:
    """Whether its frames show its task, done from beginning to end."""
    return episode.outcome == "successful" and not is_judged(episode)


def is_surely_better(one: Episode, other: Episode) -> bool:
    """Whether an attempt is better than another at the same task, said once more."""
    if is_judged(one) and is_judged(other):
        assert one.partial_success is not None
        assert other.partial_success is not None
        return one.partial_success - other.partial_success >= 0.2 - 1e-6
    ranks = ("failure", "suboptimal", "successful")
    return ranks.index(one.outcome) > ranks.index(other.outcome)


def done_at(episode: Episode) -> int:
    """The frame at which the task is done."""
    return math.floor(episode.cutoff * len(episode) + 1e-9) - 1


def begins_in_time(indices: list[int], episode: Episode) -> bool:
    """Whether a stretch begins before its task is done; very short ways are let pass."""
    return indices[0] < done_at(episode) or done_at(episode) < 2


def check_labels(question: Question, episodes) -> None:
    """Labels are those of the frames that are seen, frame by frame."""
    number, indices = read(question)
    episode, length = episodes[number], len(episodes[number])
    judged = is_judged(episode)
    for t, i in enumerate(indices):
        progress, counts, done, known = 0.0, False, False, True
        if question.clip.task != episode.task:
            counts = True
        elif judged and i == length - 1:
            progress, counts = episode.partial_success, True
        elif not judged and episode.outcome == "successful":
            gone = (i - min(indices)) / max(1, done_at(episode) - min(indices))
            progress, counts, done = min(1.0, gone), True, gone >= 1.0
            known = done or gone < 0.5
        labels = question.labels
        assert abs(labels.progress[t] - progress) <= 1e-6
        assert labels.progress_counts[t] == counts
        assert labels.success[t] == done
        assert labels.success_counts[t] == known


def check_clip(question: Question, episodes) -> None:
    """What is shown may be asked about, and is labelled as what it is."""
    check_labels(question, episodes)
    number, indices = read(question)
    episode = episodes[number]
    if question.clip.task != episode.task:
        assert is_finished(episode)
        assert question.clip.task in {e.task for e in episodes}
        assert all(a <= b for a, b in pairwise(indices))
    if is_judged(episode):
        assert indices == subsample(range(len(episode)), len(indices))
    elif all(a <= b for a, b in pairwise(indices)):
        assert begins_in_time(indices, episode)
    else:
        assert begins_in_time(indices[::-1], episode)


def kind_of_clip(question: Question, episodes) -> str:
    """In which way a clip was played, of which no frame was left out."""
    number, indices = read(question)
    if question.clip.task != episodes[number].task:
        return "different_task"
    if indices[-1] < indices[0]:
        return "reverse"
    return "rewind" if indices[-1] < max(indices) else "forward"


def check_pair(pair: Pair, episodes) -> str:
    """The better one is better, whatever the sampler says; which kind of comparison it is."""
    for question in (pair.a, pair.b):
        check_labels(question, episodes)
    assert pair.a.clip.task == pair.b.clip.task
    assert len(pair.a.clip) == len(pair.b.clip)
    better, worse = by_worth(pair)
    (good, seen), (bad, seen_of_bad) = read(better), read(worse)
    assert better.clip.task == episodes[good].task
    assert all(a <= b for a, b in pairwise(seen))  # the better one is never played backwards
    if episodes[bad].task != episodes[good].task:
        assert is_finished(episodes[good])
        assert is_finished(episodes[bad])
        assert begins_in_time(seen, episodes[good])
        assert begins_in_time(seen_of_bad, episodes[bad])
        assert not worse.labels.progress.any()
        assert worse.labels.progress_counts.all()
        assert all(a <= b for a, b in pairwise(seen_of_bad))
        return "different_task"
    if bad != good:
        assert is_surely_better(episodes[good], episodes[bad])
        for number, indices in ((good, seen), (bad, seen_of_bad)):  # from end to end
            last = len(episodes[number]) - 1
            assert indices == subsample(range(last + 1), len(indices))
            assert indices[-1] == last
        return "different_expertise"
    assert is_finished(episodes[good])
    assert begins_in_time(seen_of_bad[::-1], episodes[good])  # it ends before success
    if done_at(episodes[good]) >= 2:
        assert better.labels.progress[-1] > worse.labels.progress[-1]
    assert seen[-1] > seen_of_bad[-1]
    assert seen[-1] >= max(seen_of_bad)
    return "reverse" if seen_of_bad[-1] < seen_of_bad[0] else "rewind"


def told(question: Any) -> Any:
    """Everything that a question says, to be compared with ==."""
    if isinstance(question, Pair):
        return told(question.a), told(question.b), question.a_is_better
    labels = [column.tolist() for column in question.labels]
    return question.clip.frames.tolist(), question.clip.task, labels


def close_to(counts: Counter[Any], expected: dict[Any, float]) -> bool:
    """Whether numbers are what shares (their sum is 1) lead to, within 5 standard deviations."""
    total = sum(counts.values())
    return set(counts) <= set(expected) and all(
        abs(counts[key] - total * p) <= 5 * math.sqrt(total * p * (1 - p)) + 1e-9
        for key, p in expected.items()
    )


# Frames


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
    """The model would be trained on other frames than it is asked about."""
    assert subsample(range(length), count) == expected
    backwards = [length - 1 - i for i in expected]
    assert subsample(range(length)[::-1], count) == backwards


@given(lengths, st.integers(1, 32))
def test_subsample_is_even_from_the_first_to_the_last(length, count):
    """The first frame, which progress is measured from, or the current one would be missing."""
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
def test_forward_is_a_stretch_of_three_frames_at_least(length, seed):
    """Frames would be left out or come twice, and progress per frame would mean nothing."""
    order = forward(length, np.random.default_rng(seed))
    assert order == list(range(order[0], order[-1] + 1))
    assert len(order) >= min(3, length)
    assert 0 <= order[0] <= order[-1] < length
    backwards = reverse(length, np.random.default_rng(seed))
    assert backwards == order[::-1]


@given(st.integers(3, 200), seeds)
def test_rewind_goes_there_and_not_all_the_way_back(length, seed):
    """A rewind that ends at its peak is a success, and would be taught as the worse of two."""
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
    assert close_to(rewinds, {triple: 1 / 20 for triple in triples})
    outer = Counter((start, end) for start, _, end in triples)
    assert set(stretches) == set(outer)
    assert close_to(stretches, {ends: n / 20 for ends, n in outer.items()})


# Pairs

# The successes, of which one rests for half of its time, can be compared in all four ways; the
# others only with them.
ABLE = [
    painted(0, 12, RED, cutoff=0.5),
    painted(1, 9, RED, "suboptimal", 0.4),
    painted(2, 30, GREEN, partial_success=1.0),
    painted(3, 5, GREEN, "failure", 0.7),
]


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("max_frames", [2, 3, 8])
def test_the_better_one_is_better(kind, max_frames):
    """The preference head would learn to prefer the worse attempt, or always A."""
    choice = SamplingSettings(max_frames=max_frames, pair_ratios=only(PAIRS, kind))
    sampler, rng = Sampler(ABLE, choice), np.random.default_rng(0)
    coin: Counter[str] = Counter()
    for _ in range(400):
        pair = draw_pair(sampler, rng)
        assert check_pair(pair, ABLE) == kind
        assert len(pair.a.clip) == max_frames
        coin["ab"[not pair.a_is_better]] += 1
    assert close_to(coin, {"a": 0.5, "b": 0.5})


def test_pairs_are_drawn_as_often_as_asked():
    """Who asks for more rewinds would get more of something else."""
    choice = SamplingSettings(pair_ratios=dict(zip(PAIRS, (1.0, 2.0, 3.0, 0.5), strict=True)))
    sampler, rng = Sampler(ABLE, choice), np.random.default_rng(0)
    drawn = Counter(check_pair(draw_pair(sampler, rng), ABLE) for _ in range(2500))
    # Half of the episodes are successes, and of the others there is one kind only.
    shares = np.array([1, 2, 3, 0.5]) / 6.5 / 2 + [0, 0, 0, 0.5]
    assert close_to(drawn, dict(zip(PAIRS, shares, strict=True)))


@pytest.mark.parametrize("kind", PAIRS)
def test_a_ratio_of_zero_draws_no_pair(kind):
    """Who has no use for one kind of comparison would train on it all the same."""
    rest = {k: float(k != kind) for k in PAIRS}
    for ratios in (rest, {k: r for k, r in rest.items() if r}):  # 0 and left out are the same
        sampler = Sampler(ABLE, SamplingSettings(pair_ratios=ratios))
        rng = np.random.default_rng(1)
        drawn = {check_pair(draw_pair(sampler, rng), ABLE) for _ in range(200)}
        assert drawn == set(rest) - {kind}


def test_pairs_are_what_they_look_like():
    """The released model was trained so; a rewind of another stretch would be no sure answer."""
    rng = np.random.default_rng(0)
    for kind in ("rewind", "reverse"):
        sampler = Sampler([painted(0, 9)], SamplingSettings(20, pair_ratios=only(PAIRS, kind)))
        for _ in range(100):
            pair = draw_pair(sampler, rng)
            better, worse = by_worth(pair)
            (_, seen), (_, order) = read(better), read(worse)
            assert set(seen) == set(order)  # both show one stretch
            assert better.labels.progress[-1] > worse.labels.progress[-1]
            assert worse.labels.progress.min() == 0.0


def test_another_task_is_shown_with_this_ones_instruction():
    """The model would be told that the right instruction is the wrong one."""
    episodes = [painted(0, task=RED), painted(1, task=GREEN), painted(2, task=BLUE)]
    choice = SamplingSettings(pair_ratios=only(PAIRS, "different_task"))
    sampler, rng = Sampler(episodes, choice), np.random.default_rng(0)
    seen: Counter[tuple[int, int]] = Counter()
    for _ in range(600):
        pair = draw_pair(sampler, rng)
        better, worse = by_worth(pair)
        (good, _), (bad, _) = read(better), read(worse)
        assert better.clip.task == worse.clip.task == TASKS[good] != TASKS[bad]
        assert not worse.labels.progress.any()
        assert not worse.labels.success.any()
        assert worse.labels.progress_counts.all()
        assert worse.labels.success_counts.all()
        assert better.labels.progress.any()
        seen[good, bad] += 1
    assert close_to(seen, {(a, b): 1 / 6 for a in range(3) for b in range(3) if a != b})


def test_only_finished_tasks_are_shown_with_each_others_instruction():
    """Who failed at one task may have done the other: a good attempt would be taught as bad."""
    unfinished = [
        painted(0, task=GREEN, outcome="failure"),
        painted(1, task=GREEN, outcome="suboptimal"),
        painted(2, task=GREEN, outcome="failure", partial_success=0.0),
        painted(3, task=GREEN, partial_success=0.9),
        painted(4, task=GREEN, outcome="suboptimal", partial_success=1.0),
    ]
    episodes = [*unfinished, painted(5, task=RED)]
    choice = SamplingSettings(pair_ratios=only(PAIRS, "different_task"))
    with pytest.raises(ValueError, match="No comparison can be made of these 6 episodes of 2 task"):
        Sampler(episodes, choice)
    episodes.append(painted(6, task=BLUE, partial_success=1.0))
    sampler, rng = Sampler(episodes, choice), np.random.default_rng(0)
    drawn: Counter[tuple[int, ...]] = Counter()
    for _ in range(200):
        pair = draw_pair(sampler, rng)
        assert check_pair(pair, episodes) == "different_task"
        drawn[tuple(read(question)[0] for question in by_worth(pair))] += 1
    assert close_to(drawn, {(5, 6): 0.5, (6, 5): 0.5})


@pytest.mark.parametrize("outcome", ["suboptimal", "failure"])
def test_a_success_is_better_than_anything_that_is_none(outcome):
    """The failures that somebody collected with care would teach nothing."""
    episodes = [painted(0), painted(1, outcome=outcome)]
    sampler = Sampler(episodes, SamplingSettings(pair_ratios=only(PAIRS, "different_expertise")))
    rng = np.random.default_rng(0)
    for _ in range(20):
        pair = draw_pair(sampler, rng)
        assert check_pair(pair, episodes) == "different_expertise"
        assert read(pair.a)[0] == (not pair.a_is_better)


def test_a_fifth_more_is_surely_better():
    """0.9 - 0.7 is 0.19999999999999996: judged attempts would be left out at random."""
    choice = SamplingSettings(pair_ratios=only(PAIRS, "different_expertise"))
    for j in range(80):
        low = painted(0, outcome="failure", partial_success=j / 100)
        high = painted(1, outcome="suboptimal", partial_success=(j + 20) / 100)
        pair = draw_pair(Sampler([low, high], choice), np.random.default_rng(j))
        assert read(pair.a)[0] == pair.a_is_better
        near = painted(1, outcome="suboptimal", partial_success=(j + 19) / 100)
        with pytest.raises(ValueError, match="No comparison can be made of these 2 episodes"):
            Sampler([low, near], choice)


@pytest.mark.parametrize(
    ("high", "low"),
    [
        (("successful", None), ("suboptimal", None)),
        (("suboptimal", None), ("failure", None)),
        (("successful", None), ("failure", 0.85)),  # that nobody judged it takes nothing from it
        (("suboptimal", None), ("failure", 0.7)),
        (("successful", 0.3), ("suboptimal", None)),
        (("suboptimal", 0.1), ("failure", None)),
        (("failure", 0.6), ("successful", 0.3)),  # both were judged
        (("suboptimal", 0.5), ("suboptimal", 0.3)),
        (("successful", 1.0), ("failure", 0.95)),  # a whole success is none that was judged
        (("successful", None), ("suboptimal", 1.0)),
        (("suboptimal", 1.0), ("failure", 0.9)),
    ],
)
def test_judgements_or_else_outcomes_decide(high, low):
    """A failure that nearly did it would be preferred to a success that nobody judged."""
    choice = SamplingSettings(pair_ratios=only(PAIRS, "different_expertise"))
    for order in (1, -1):
        episodes = [painted(n, 9, RED, *said) for n, said in enumerate((high, low)[::order])]
        sampler, rng = Sampler(episodes, choice), np.random.default_rng(0)
        for _ in range(8):
            better, worse = by_worth(draw_pair(sampler, rng))
            assert [read(better)[0], read(worse)[0]] == [0, 1][::order]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("failure", None), ("failure", 0.9)),
        (("suboptimal", 0.1), ("suboptimal", 1.0)),
        (("successful", None), ("successful", 0.2)),
        (("successful", None), ("successful", 1.0)),
        (("suboptimal", 0.6), ("failure", 0.5)),
        (("successful", 0.9), ("failure", 0.8)),  # nearly alike, whatever they are called
    ],
)
def test_a_comparison_of_attempts_that_are_alike_raises(one, other):
    """A coin would be taught as a preference."""
    choice = SamplingSettings(pair_ratios=only(PAIRS, "different_expertise"))
    with pytest.raises(ValueError, match="No comparison can be made of these 2 episodes of 1 task"):
        Sampler([painted(0, 9, RED, *one), painted(1, 9, RED, *other)], choice)


def test_every_partner_is_drawn():
    """Of many failures one would be compared over and over, and the rest never."""
    worths = [0.0, 0.2, 0.3, 0.5, 0.7, 0.95]
    episodes = [
        painted(n, outcome="suboptimal", partial_success=value) for n, value in enumerate(worths)
    ]
    others = [painted(6 + n, task=GREEN, outcome="failure") for n in range(3)]
    choice = SamplingSettings(2, pair_ratios=only(PAIRS, "different_expertise"))
    sampler, rng, drawn = Sampler(episodes[::-1] + others, choice), np.random.default_rng(0), set()
    for _ in range(600):
        pair = draw_pair(sampler, rng)
        assert check_pair(pair, episodes)
        drawn.add(tuple(sorted(read(question)[0] for question in (pair.a, pair.b))))
    surely = {(i, j) for i, j in combinations(range(6), 2) if worths[j] - worths[i] > 0.19}
    assert drawn == surely


# Clips


@pytest.mark.parametrize("kind", CLIPS)
def test_clips_are_played_as_asked(kind):
    """A rewind would be labelled as if it had been played forward."""
    episodes = [painted(0, 12, RED), painted(1, 40, GREEN, cutoff=0.7), painted(2, 9, BLUE)]
    choice = SamplingSettings(80, preference_share=0.0, clip_ratios=only(CLIPS, kind))
    sampler, rng = Sampler(episodes, choice), np.random.default_rng(0)
    tasks: Counter[tuple[int, str]] = Counter()
    for _ in range(300):
        question = draw_clip(sampler, rng)
        assert kind_of_clip(question, episodes) == kind
        check_clip(question, episodes)
        assert len(question.clip) == 80
        tasks[read(question)[0], question.clip.task] += 1
    right = kind != "different_task"
    expected = {(n, t): 1.0 for n in range(3) for t in TASKS if (TASKS[n] == t) == right}
    assert close_to(tasks, {key: 1 / len(expected) for key in expected})


def test_clips_are_drawn_as_often_as_asked():
    """Who asks for fewer reversed clips would get more."""
    episodes = [painted(0, 12, RED), painted(1, 40, GREEN), painted(2, 9, GREEN, "failure")]
    ratios = dict(zip(CLIPS, (4.0, 2.0, 1.0, 0.5), strict=True))
    sampler = Sampler(episodes, SamplingSettings(80, preference_share=0.0, clip_ratios=ratios))
    rng = np.random.default_rng(0)
    drawn: Counter[tuple[str, int]] = Counter()
    numbers: Counter[int] = Counter()
    for _ in range(2500):
        question = draw_clip(sampler, rng)
        check_clip(question, episodes)
        drawn[kind_of_clip(question, episodes), read(question)[0]] += 1
        numbers[read(question)[0]] += 1
    shares = {(kind, n): r / 7.5 / 3 for kind, r in ratios.items() for n in (0, 1)}
    failures = {(kind, 2): r / 7.0 / 3 for kind, r in ratios.items() if kind != "different_task"}
    assert close_to(drawn, shares | failures)
    assert close_to(numbers, dict.fromkeys(range(3), 1 / 3))


@pytest.mark.parametrize("kind", CLIPS)
def test_a_ratio_of_zero_draws_no_clip(kind):
    """Who has no use for one way of playing would train on it all the same."""
    episodes = [painted(0, 12, RED), painted(1, 40, GREEN)]
    ratios = {k: float(k != kind) for k in CLIPS}
    sampler = Sampler(episodes, SamplingSettings(80, preference_share=0.0, clip_ratios=ratios))
    rng = np.random.default_rng(1)
    drawn = {kind_of_clip(draw_clip(sampler, rng), episodes) for _ in range(200)}
    assert drawn == set(CLIPS) - {kind}


def test_only_a_finished_task_is_shown_with_another_instruction():
    """A failure may have done just what it is shown with: the right answer would be taught away."""
    episodes = [
        painted(0, task=RED),
        painted(1, task=RED, partial_success=1.0),
        painted(2, task=RED, partial_success=0.9),
        painted(3, task=RED, outcome="suboptimal", partial_success=1.0),
        painted(4, task=GREEN, outcome="failure"),
        painted(5, task=BLUE, outcome="suboptimal", partial_success=0.3),
    ]
    choice = SamplingSettings(preference_share=0.0, clip_ratios=only(CLIPS, "different_task"))
    sampler, rng = Sampler(episodes, choice), np.random.default_rng(0)
    drawn: Counter[tuple[int, str]] = Counter()
    for _ in range(300):
        question = draw_clip(sampler, rng)
        check_clip(question, episodes)
        drawn[read(question)[0], question.clip.task] += 1
    # What others failed at is an instruction all the same.
    assert close_to(drawn, {(n, task): 0.25 for n in (0, 1) for task in (GREEN, BLUE)})
    with pytest.raises(ValueError, match="No question about one clip can be made of these 4"):
        Sampler(episodes[2:], choice)


@pytest.mark.parametrize("kind", ["forward", "rewind", "reverse"])
@pytest.mark.parametrize("done", [7, 4, 2, 1, 0, -1])
def test_a_stretch_reaches_back_before_success(kind, done):
    """A robot at rest, played backwards, looks done: it would be taught as having come nowhere."""
    episodes = [painted(0, 8, cutoff=max(0.1, (done + 1) / 8))]  # eight tenths of a frame is none
    assert done_at(episodes[0]) == done
    possible = done >= (2 if kind == "rewind" else 1)
    before = done if possible else 8  # where hardly a frame leads there, all are drawn
    length = min(8, 3 * (done + 1)) if possible else 8  # of a long rest only the beginning
    triples = list(combinations(range(length), 3))
    expected = {
        "forward": Counter((a, c, c) for a, _, c in triples if a < before),
        "rewind": Counter((a, c, b) for a, b, c in triples if b < before),
        "reverse": Counter((c, c, a) for a, _, c in triples if a < before),
    }[kind]
    choice = SamplingSettings(20, preference_share=0.0, clip_ratios=only(CLIPS, kind))
    sampler, rng = Sampler(episodes, choice), np.random.default_rng(0)
    drawn: Counter[Any] = Counter()
    for _ in range(700):
        question = draw_clip(sampler, rng)
        check_clip(question, episodes)
        _, shown = read(question)
        drawn[shown[0], max(shown), shown[-1]] += 1
    assert set(drawn) == set(expected)
    assert close_to(drawn, {ends: n / expected.total() for ends, n in expected.items()})


@pytest.mark.parametrize("outcome", ["successful", "suboptimal", "failure"])
def test_a_judged_attempt_is_shown_to_its_end(outcome):
    """What was judged is the end: a clip without it has no progress to learn."""
    episodes = [painted(0, 40, RED, outcome, 0.6), painted(1, 40, GREEN, outcome, 0.6)]
    sampler, rng = Sampler(episodes, SamplingSettings(5, 0.0)), np.random.default_rng(0)
    for _ in range(20):
        question = draw_clip(sampler, rng)
        number, shown = read(question)
        assert question.clip.task == episodes[number].task
        assert shown == [0, 10, 20, 29, 39]  # 9.75, 19.5, 29.25
        assert question.labels.progress_counts.tolist() == [False] * 4 + [True]
        assert question.labels.progress[-1] == np.float32(0.6)


def test_a_judged_attempt_is_not_asked_about_where_nothing_is_played_forward():
    """Who asks for rewinds alone would get clips that are none."""
    episodes = [painted(0, 40, partial_success=0.6), painted(1, 9), painted(2, task=GREEN)]
    for kind in ("rewind", "reverse", "different_task"):
        choice = SamplingSettings(80, 0.0, clip_ratios=only(CLIPS, kind))
        sampler, rng = Sampler(episodes, choice), np.random.default_rng(0)
        questions = [draw_clip(sampler, rng) for _ in range(40)]
        assert {read(question)[0] for question in questions} == {1, 2}
        assert {kind_of_clip(question, episodes) for question in questions} == {kind}
        with pytest.raises(ValueError, match="No question about one clip can be made of these 1 "):
            Sampler(episodes[:1], choice)


def test_a_whole_partial_success_is_a_success_like_any_other():
    """A data set that judges all its episodes could not be rewound, or shown as another task."""
    plain = [painted(0, 9, RED), painted(1, 12, GREEN)]
    whole = [painted(0, 9, RED, "successful", 1.0), painted(1, 12, GREEN, "successful", 1.0)]
    first, second = (Sampler(e, SamplingSettings(80, 0.5)) for e in (plain, whole))
    rngs = [np.random.default_rng(0) for _ in range(2)]
    for _ in range(60):
        assert told(first.draw(rngs[0])) == told(second.draw(rngs[1]))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_comparisons_have_their_share(share):
    """The preference head would starve, or everything else."""
    sampler = Sampler(ABLE, SamplingSettings(2, preference_share=share))
    rng = np.random.default_rng(0)
    drawn: Counter[bool] = Counter()
    kinds: Counter[bool] = Counter()
    for _ in range(800):
        drawn[isinstance(sampler.draw(rng), Pair)] += 1
        kinds[sampler.draw_kind(rng)] += 1
    assert close_to(drawn, {True: share, False: 1 - share})
    assert close_to(kinds, {True: share, False: 1 - share})


def test_the_caller_may_choose_the_kind():
    """A batch would mix questions of two lengths, and half of it be padding."""
    sampler = Sampler(ABLE, SamplingSettings(preference_share=0.5))
    rng = np.random.default_rng(0)
    for compare in (True, False):
        kind = Pair if compare else Question
        assert all(isinstance(sampler.draw(rng, compare=compare), kind) for _ in range(20))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_caller_may_choose_what_the_settings_leave_out(share):
    """An evaluation in the other kind would need a second sampler of the same episodes."""
    sampler, rng = Sampler(ABLE, SamplingSettings(preference_share=share)), np.random.default_rng(0)
    for _ in range(20):
        assert check_pair(sampler.draw(rng, compare=True), ABLE) in PAIRS  # type: ignore[arg-type]
        question = sampler.draw(rng, compare=False)
        assert isinstance(question, Question)
        check_clip(question, ABLE)


@pytest.mark.parametrize(
    ("rule", "expected"), [("done", [0, 0, 0, 1, 1, 1, 1]), ("released", [0, 0, 1, 1, 1, 1, 1])]
)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_rule_for_success_reaches_the_labels(rule, expected, share):
    """The released labels could be asked for and would not come."""
    episodes = [painted(0, 7, cutoff=0.6), painted(1, 7, outcome="failure")]
    choice = SamplingSettings(
        7,
        share,
        pair_ratios=only(PAIRS, "different_expertise"),
        clip_ratios=only(CLIPS, "forward"),
        success_rule=rule,
    )
    sampler, rng, found = Sampler(episodes, choice), np.random.default_rng(0), 0
    for _ in range(100):
        drawn = sampler.draw(rng)
        for question in (drawn.a, drawn.b) if isinstance(drawn, Pair) else (drawn,):
            # 0.6 * 7: four frames lead there, and frame 2 has come 2 / 3 of the way.
            if read(question) == (0, list(range(7))):
                found += 1
                assert question.labels.success.tolist() == expected
    assert found


# Any data set


@st.composite
def data_sets(draw):
    """Episodes of all kinds, many of which are too short for some questions."""
    judged = {
        "successful": [None, 0.9, 1.0],
        "suboptimal": [None, 0.3, 0.5, 0.7, 1.0],
        "failure": [None, 0.0, 0.2, 0.85],
    }
    episodes = []
    for number in range(draw(st.integers(1, 5))):
        outcome = draw(st.sampled_from(sorted(judged)))
        value = draw(st.sampled_from(judged[outcome]))
        length, task = draw(st.integers(1, 12)), draw(st.sampled_from(TASKS[:2]))
        cutoff = draw(st.sampled_from([1.0, 0.5, 0.2])) if outcome == "successful" else 1.0
        episodes.append(painted(number, length, task, outcome, value, cutoff))
    return episodes


def able_pairs(episodes, number) -> set[str]:
    """In which ways an episode can be compared, said once more."""
    episode = episodes[number]
    ways = set()
    if is_finished(episode):
        # Of frames that all show the task done none has come farther than another.
        ways |= {"rewind"} if done_at(episode) >= 2 else set()
        ways |= {"reverse"} if done_at(episode) >= 1 else set()
        others = {e.task for e in episodes if is_finished(e)} - {episode.task}
        ways |= {"different_task"} if others else set()
    alike = [e for e in episodes if e.task == episode.task]
    if any(is_surely_better(e, episode) or is_surely_better(episode, e) for e in alike):
        ways.add("different_expertise")
    return ways


def able_clips(episodes, number) -> set[str]:
    """In which ways an episode can be asked about, said once more."""
    episode = episodes[number]
    if is_judged(episode):
        return {"forward"}
    ways = {"forward"}
    ways |= {"rewind"} if len(episode) >= 3 else set()
    ways |= {"reverse"} if len(episode) >= 2 else set()
    if is_finished(episode) and {e.task for e in episodes} != {episode.task}:
        ways.add("different_task")
    return ways


@pytest.mark.parametrize(("length", "kind"), [(3, "rewind"), (2, "reverse")])
def test_the_shortest_that_will_do(length, kind):
    """Short episodes would never be rewound or reversed, though they could be."""
    episodes = [painted(0, length)]
    pairs = SamplingSettings(4, pair_ratios=only(PAIRS, kind))
    clips = SamplingSettings(4, preference_share=0.0, clip_ratios=only(CLIPS, kind))
    rng = np.random.default_rng(0)
    assert check_pair(draw_pair(Sampler(episodes, pairs), rng), episodes) == kind
    assert kind_of_clip(draw_clip(Sampler(episodes, clips), rng), episodes) == kind


@settings(max_examples=60)
@given(data_sets(), st.sets(st.sampled_from(PAIRS), min_size=1), st.integers(2, 9), seeds)
def test_what_an_episode_cannot_serve_is_left_out(episodes, kinds, max_frames, seed):
    """One episode of a single frame would stop a training in the middle of the night."""
    choice = SamplingSettings(max_frames, pair_ratios=only(PAIRS, *kinds))
    ways = set().union(*(able_pairs(episodes, number) for number in range(len(episodes)))) & kinds
    if not ways:
        with pytest.raises(ValueError, match="No comparison can be made"):
            Sampler(episodes, choice)
        return
    sampler, rng = Sampler(episodes, choice), np.random.default_rng(seed)
    for _ in range(20):
        pair = draw_pair(sampler, rng)
        kind = check_pair(pair, episodes)
        assert kind in ways
        assert any(kind in able_pairs(episodes, read(question)[0]) for question in (pair.a, pair.b))


@settings(max_examples=60)
@given(
    data_sets(),
    st.sets(st.sampled_from(CLIPS), min_size=1),
    st.sampled_from([2, 3, 8, 30]),
    seeds,
)
def test_what_an_episode_cannot_be_asked_is_left_out(episodes, kinds, max_frames, seed):
    """As above, of questions about one clip."""
    choice = SamplingSettings(max_frames, 0.0, clip_ratios=only(CLIPS, *kinds))
    ways = [able_clips(episodes, number) & kinds for number in range(len(episodes))]
    if not any(ways):
        with pytest.raises(ValueError, match="No question about one clip can be made"):
            Sampler(episodes, choice)
        return
    sampler, rng = Sampler(episodes, choice), np.random.default_rng(seed)
    for _ in range(20):
        question = draw_clip(sampler, rng)
        check_clip(question, episodes)
        assert len(question.clip) == max_frames
        assert ways[read(question)[0]]
        if max_frames == 30:  # else a rewind may look like something else
            assert kind_of_clip(question, episodes) in ways[read(question)[0]]


@given(seeds, st.floats(0, 1))
def test_the_same_state_draws_the_same_question(seed, share):
    """A run that was interrupted could not go on where it was, and no result be repeated."""
    first, second = (Sampler(ABLE, SamplingSettings(preference_share=share)) for _ in range(2))
    second.draw(np.random.default_rng(7))  # what was drawn before is of no account
    rngs = [np.random.default_rng(seed) for _ in range(2)]
    for _ in range(3):
        assert told(first.draw(rngs[0])) == told(second.draw(rngs[1]))
    assert rngs[0].random() == rngs[1].random()


def test_only_the_frames_that_are_shown_are_read():
    """A thousand videos would be decoded whole for eight frames of each."""

    class Reads:
        asked: list[list[int]] = []  # noqa: RUF012 - of this test alone

        def __len__(self):
            return 100

        def __getitem__(self, indices):
            self.asked.append(list(indices))
            return np.zeros((len(indices), 2, 2, 3), np.uint8)

    Sampler([Episode(Reads(), RED)]).draw(np.random.default_rng(0))
    assert [len(indices) for indices in Reads.asked] == [8, 8]


# What is refused


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"max_frames": 1}, "max_frames must be an integer >= 2, got 1: progress is counted"),
        ({"max_frames": 0}, "max_frames must be an integer >= 2, got 0"),
        ({"max_frames": -3}, "max_frames must be an integer >= 2, got -3"),
        ({"max_frames": 8.0}, "max_frames must be an integer >= 2, got 8.0"),
        ({"max_frames": True}, "max_frames must be an integer >= 2, got True"),
        ({"max_frames": "8"}, "max_frames must be an integer >= 2, got '8'"),
        ({"success_rule": "relased"}, r"success_rule must be one of \('done', .*got 'relased'"),
        ({"success_rule": None}, r"success_rule must be one of \('done', 'released'\), got None"),
        ({"preference_share": -0.1}, r"preference_share must be in \[0, 1\], got -0.1"),
        ({"preference_share": 1.1}, r"preference_share must be in \[0, 1\], got 1.1"),
        ({"preference_share": math.nan}, r"preference_share must be in \[0, 1\], got nan"),
        (
            {"pair_ratios": {"rewound": 1.0}},
            "pair_ratios must give finite ratios .* got {'rewound'",
        ),
        ({"pair_ratios": {"forward": 1.0}}, "pair_ratios must give finite ratios >= 0 for some of"),
        (
            {"pair_ratios": {"rewind": 1.0, "reverse": -1.0}},
            "pair_ratios must give finite ratios >= 0",
        ),
        ({"pair_ratios": {}}, "pair_ratios must have a ratio above 0, got {}"),
        ({"pair_ratios": {"rewind": 0.0}}, "pair_ratios must have a ratio above 0, got {'rewind'"),
        ({"pair_ratios": {"rewind": math.nan}}, "pair_ratios must .*, got {'rewind': nan}"),
        ({"pair_ratios": {"rewind": math.inf}}, "pair_ratios must give .*, got {'rewind': inf}"),
        ({"clip_ratios": {"forward": math.inf}}, "clip_ratios must give .*, got {'forward': inf}"),
        ({"clip_ratios": {"forward": math.nan}}, "clip_ratios must .*, got {'forward': nan}"),
        ({"clip_ratios": {"different_expertise": 1.0}}, "clip_ratios must give finite ratios >= 0"),
        (
            {"clip_ratios": {"forward": -1.0}},
            "clip_ratios must give finite ratios >= 0 for some of",
        ),
        ({"clip_ratios": {"forward": 0.0}}, "clip_ratios must have a ratio above 0, got"),
    ],
)
def test_bad_settings_raise(bad, message):
    """A slip would be trained with for hours before anybody notices."""
    with pytest.raises(ValueError, match=message):
        SamplingSettings(**bad)


@pytest.mark.parametrize(
    ("episodes", "kinds"),
    [
        ([], PAIRS),
        ([painted(0, 1)], PAIRS),
        ([painted(0, 2)], ["rewind"]),
        ([painted(0, 1)], ["reverse"]),
        ([painted(0), painted(1)], ["different_task", "different_expertise"]),
        ([painted(0), painted(1), painted(2, 9, GREEN, "failure")], ["different_task"]),
        ([painted(0), painted(1, task=GREEN, outcome="failure")], ["different_expertise"]),
        ([painted(0, 9, RED, "failure"), painted(1, 9, GREEN, "suboptimal")], PAIRS),
    ],
)
def test_a_data_set_without_any_comparison_raises(episodes, kinds):
    """Training would wait for ever for a question, or end with an error from NumPy."""
    tasks = len({episode.task for episode in episodes})
    message = rf"No comparison can be made of these {len(episodes)} episodes of {tasks} tasks"
    for share in (1.0, 0.5):
        choice = SamplingSettings(preference_share=share, pair_ratios=only(PAIRS, *kinds))
        with pytest.raises(ValueError, match=message):
            Sampler(episodes, choice)


@pytest.mark.parametrize(("length", "kind"), [(9, "different_task"), (2, "rewind"), (1, "reverse")])
def test_a_data_set_without_any_clip_raises(length, kind):
    """As above, of questions about one clip."""
    for share in (0.0, 0.5):
        choice = SamplingSettings(
            preference_share=share,
            pair_ratios=only(PAIRS, "different_expertise"),
            clip_ratios=only(CLIPS, kind),
        )
        episodes = [painted(0, length), painted(1, length, outcome="failure")]
        message = "No question about one clip can be made of these 2 episodes of 1 tasks"
        with pytest.raises(ValueError, match=message):
            Sampler(episodes, choice)


def test_what_is_missing_is_told_without_what_is_not():
    """The one thing to do would stand behind a page of settings, or not be what was asked for."""
    failures = [painted(n, outcome="failure") for n in range(3)]
    with pytest.raises(ValueError, match="No comparison") as caught:
        Sampler(failures)
    told = str(caught.value)
    assert "of these 3 episodes of 1 tasks: 0 successful, 0 suboptimal, 3 failure. Add " in told
    assert told.count("a successful episode of 3 frames") == 1
    assert "or successful episodes of two tasks, or a better and a worse attempt" in told
    assert "Settings" not in told
    for more in (painted(3), painted(3, outcome="suboptimal")):  # what it says is enough
        Sampler([*failures, more])
    with pytest.raises(ValueError, match=r"3 failure\. Add successful episodes of two tasks\.$"):
        Sampler(failures, SamplingSettings(pair_ratios=only(PAIRS, "different_task")))


def test_a_kind_that_cannot_be_drawn_raises():
    """The settings leave it out, so that nobody has looked; NumPy would say "a cannot be empty"."""
    rng = np.random.default_rng(0)
    shorts = [painted(0, 1), painted(1, 1)]
    sampler = Sampler(shorts, SamplingSettings(preference_share=0.0))
    with pytest.raises(ValueError, match="No comparison can be made of these 2 episodes of 1 task"):
        sampler.draw(rng, compare=True)
    assert isinstance(sampler.draw(rng, compare=False), Question)
    sampler = Sampler([painted(0)], SamplingSettings(clip_ratios=only(CLIPS, "different_task")))
    with pytest.raises(ValueError, match="No question about one clip can be made of these 1 epis"):
        sampler.draw(rng, compare=False)
    assert isinstance(sampler.draw(rng, compare=True), Pair)


def test_a_task_in_other_spelling_is_the_same_task():
    """A success would be taught as none, because somebody wrote its sentence with a capital."""
    episodes = [painted(0, task="Open the drawer"), painted(1, task="open the  drawer ")]
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match="can be made of these 2 episodes of 1 tasks"):
            Sampler(
                episodes,
                SamplingSettings(
                    preference_share=share,
                    pair_ratios={"different_task": 1.0},
                    clip_ratios={"different_task": 1.0},
                ),
            )
