"""Episodes whose pixels hold their numbers, and checks of the examples drawn from them.

Every frame is painted with its episode's number and its own index, so that a test reads from the
pixels which frames an example shows, and judges it without the sampler.
"""

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np

from robometer_gym.data import Episode
from robometer_gym.training.augmentation import subsample
from robometer_gym.training.sampler import (
    LabeledClip,
    PreferencePair,
    Sampler,
)

RED, GREEN, BLUE = TASKS = ("go to red", "go to green", "go to blue")


def painted_episode(
    number, length=12, task=RED, outcome="successful", partial_success=None, cutoff=1.0
):
    """Return an episode of one pixel: (its number, the frame's index, 0)."""
    frames = np.zeros((length, 1, 1, 3), np.uint8)
    frames[..., 0] = number
    frames[..., 1] = np.arange(length)[:, None, None]
    return Episode(frames, task, outcome, partial_success, cutoff)


def only_modes(modes, *names):
    """Return ratios that are 0 for all but the given modes."""
    return {mode: float(mode in names) for mode in modes}


def read_pixels(example: LabeledClip) -> tuple[int, list[int]]:
    """Return the number of a clip's episode and the indices of its frames."""
    pixels = example.clip.frames[:, 0, 0]
    (number,) = set(pixels[:, 0].tolist())
    return number, pixels[:, 1].tolist()


def draw_pair(sampler: Sampler, rng: np.random.Generator) -> PreferencePair:
    """Draw an example that has to be a preference pair."""
    pair = sampler.draw(rng)
    assert isinstance(pair, PreferencePair)
    return pair


def draw_clip(sampler: Sampler, rng: np.random.Generator) -> LabeledClip:
    """Draw an example that has to be a labeled clip."""
    example = sampler.draw(rng)
    assert isinstance(example, LabeledClip)
    return example


def better_and_worse(pair: PreferencePair) -> tuple[LabeledClip, LabeledClip]:
    """Return the better and the worse clip of a pair, by its own label."""
    return (pair.a, pair.b) if pair.a_is_better else (pair.b, pair.a)


def has_partial_success(episode: Episode) -> bool:
    """Whether the partial success of an episode is below 1."""
    return episode.partial_success is not None and episode.partial_success < 1.0


def is_complete(episode: Episode) -> bool:
    """Whether the frames of an episode show its task from beginning to success."""
    return episode.outcome == "successful" and not has_partial_success(episode)


def is_clearly_better(one: Episode, other: Episode) -> bool:
    """Whether one attempt is clearly better than another at the same task."""
    if has_partial_success(one) and has_partial_success(other):
        assert one.partial_success is not None
        assert other.partial_success is not None
        return one.partial_success - other.partial_success >= 0.2 - 1e-6
    ranks = ("failure", "suboptimal", "successful")
    return ranks.index(one.outcome) > ranks.index(other.outcome)


def success_index(episode: Episode) -> int:
    """Return the first frame that shows the task done."""
    return math.floor(episode.cutoff * len(episode) + 1e-9) - 1


def begins_before_success(indices: list[int], episode: Episode) -> bool:
    """Whether a stretch begins before its task is done; true for very short episodes."""
    return indices[0] < success_index(episode) or success_index(episode) < 2


def check_labels(example: LabeledClip, episodes) -> None:
    """Check that the labels are those of the shown frames, one by one."""
    number, indices = read_pixels(example)
    episode, length = episodes[number], len(episodes[number])
    partial = has_partial_success(episode)
    for t, i in enumerate(indices):
        progress, counts, done, known = 0.0, False, False, True
        if example.clip.task != episode.task:
            counts = True
        elif partial and i == length - 1:
            progress, counts = episode.partial_success, True
        elif not partial and episode.outcome == "successful":
            gone = (i - min(indices)) / max(1, success_index(episode) - min(indices))
            progress, counts, done = min(1.0, gone), True, gone >= 1.0
            known = done or gone < 0.5
        labels = example.labels
        assert abs(labels.progress[t] - progress) <= 1e-6
        assert labels.progress_mask[t] == counts
        assert labels.success[t] == done
        assert labels.success_mask[t] == known


def check_clip(example: LabeledClip, episodes) -> None:
    """Check that a clip is allowed, and has the labels of its frames."""
    check_labels(example, episodes)
    number, indices = read_pixels(example)
    episode = episodes[number]
    if example.clip.task != episode.task:
        assert is_complete(episode)
        assert example.clip.task in {e.task for e in episodes}
        assert all(a <= b for a, b in pairwise(indices))
    if has_partial_success(episode):
        assert indices == subsample(range(len(episode)), len(indices))
    elif all(a <= b for a, b in pairwise(indices)):
        assert begins_before_success(indices, episode)
    else:
        assert begins_before_success(indices[::-1], episode)


def mode_of_clip(example: LabeledClip, episodes) -> str:
    """Return the mode of a clip that shows every frame of its stretch."""
    number, indices = read_pixels(example)
    if example.clip.task != episodes[number].task:
        return "different_task"
    if indices[-1] < indices[0]:
        return "reverse"
    return "rewind" if indices[-1] < max(indices) else "forward"


def check_pair(pair: PreferencePair, episodes) -> str:
    """Check that the better clip is better, by a second implementation; return the pair's mode."""
    for example in (pair.a, pair.b):
        check_labels(example, episodes)
    assert pair.a.clip.task == pair.b.clip.task
    assert len(pair.a.clip) == len(pair.b.clip)
    better, worse = better_and_worse(pair)
    (good, seen), (bad, seen_of_bad) = read_pixels(better), read_pixels(worse)
    assert better.clip.task == episodes[good].task
    assert all(a <= b for a, b in pairwise(seen))  # the better one is never played backwards
    if episodes[bad].task != episodes[good].task:
        assert is_complete(episodes[good])
        assert is_complete(episodes[bad])
        assert begins_before_success(seen, episodes[good])
        assert begins_before_success(seen_of_bad, episodes[bad])
        assert not worse.labels.progress.any()
        assert worse.labels.progress_mask.all()
        assert all(a <= b for a, b in pairwise(seen_of_bad))
        return "different_task"
    if bad != good:
        assert is_clearly_better(episodes[good], episodes[bad])
        for number, indices in ((good, seen), (bad, seen_of_bad)):  # from end to end
            last = len(episodes[number]) - 1
            assert indices == subsample(range(last + 1), len(indices))
            assert indices[-1] == last
        return "different_expertise"
    assert is_complete(episodes[good])
    assert begins_before_success(seen_of_bad[::-1], episodes[good])  # it ends before success
    if success_index(episodes[good]) >= 2:
        assert better.labels.progress[-1] > worse.labels.progress[-1]
    assert seen[-1] > seen_of_bad[-1]
    assert seen[-1] >= max(seen_of_bad)
    return "reverse" if seen_of_bad[-1] < seen_of_bad[0] else "rewind"


def contents(example: Any) -> Any:
    """Return everything in an example, for comparison with ==."""
    if isinstance(example, PreferencePair):
        return contents(example.a), contents(example.b), example.a_is_better
    labels = [column.tolist() for column in example.labels]
    return example.clip.frames.tolist(), example.clip.task, labels


def matches_shares(counts: Counter[Any], expected: dict[Any, float]) -> bool:
    """Whether counts follow shares (their sum is 1), within 5 standard deviations."""
    total = sum(counts.values())
    return set(counts) <= set(expected) and all(
        abs(counts[key] - total * p) <= 5 * math.sqrt(total * p * (1 - p)) + 1e-9
        for key, p in expected.items()
    )


# The successes, of which one rests for half of its time, can be compared in all four ways; the
# others only with them.
MIXED_EPISODES = [
    painted_episode(0, 12, RED, cutoff=0.5),
    painted_episode(1, 9, RED, "suboptimal", 0.4),
    painted_episode(2, 30, GREEN, partial_success=1.0),
    painted_episode(3, 5, GREEN, "failure", 0.7),
]
