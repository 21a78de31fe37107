"""From episodes to questions with answers: which frames, which instruction, which of two is better.

Few trajectories become many questions: played forward, rewound, reversed, shown with another
instruction, compared with a worse attempt. Knows nothing of networks or tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from robometer_gym.data.episodes import OUTCOMES, Episode
from robometer_gym.reward_model import Clip
from robometer_gym.training.labels import Labels, SuccessRule, count_leading, label_frames

__all__ = [
    "Pair",
    "Question",
    "Sampler",
    "SamplingSettings",
    "forward",
    "reverse",
    "rewind",
    "subsample",
]

Ratios = Mapping[str, float]

# Two attempts are compared when one came this much farther. Source: pref.py at c7f38e2; a little
# less here, because 0.9 - 0.7 is 0.19999999999999996.
_SURELY = 0.2 - 1e-9

PAIRS = ("rewind", "reverse", "different_task", "different_expertise")
CLIPS = ("forward", "rewind", "reverse", "different_task")

# Of what episodes each can be made, in words; `_partners` and `_ways` decide.
_SUCCESS = (
    "a successful episode of 3 frames or more (not one that is done from its first frames on, or "
    "with a partial_success below 1)"
)
_TO_COMPARE = {
    "rewind": _SUCCESS,
    "reverse": _SUCCESS,
    "different_task": "successful episodes of two tasks",
    "different_expertise": "a better and a worse attempt at one task "
    f"({' > '.join(OUTCOMES)}, or 0.2 of partial_success between them)",
}
_UNJUDGED = "an episode of 3 frames or more without partial_success"
_TO_ASK = {
    "forward": "an episode",
    "rewind": _UNJUDGED,
    "reverse": _UNJUDGED,
    "different_task": "a successful episode of one task and any of another",
}


@dataclass(frozen=True)
class SamplingSettings:
    """How questions are drawn.

    Args:
        max_frames: frames of each clip, >= 2.
        preference_share: the share of questions that compare two clips; the others ask about the
            progress of one. The released model was trained with 1.0: a comparison trains all
            three heads, progress and success on the first of its clips.
        pair_ratios: how often a successful episode is compared with what. "rewind": with itself
            played back before its end; "reverse": played backwards; "different_task": with an
            episode of another task; "different_expertise": with a suboptimal or failed one. What
            an episode has no partner for is left out.
        clip_ratios: how often a clip is played "forward", "rewind" or "reverse", or shown with the
            instruction of a "different_task"; this only after a success, for nobody has said where
            a failed attempt went. An episode whose partial success was judged is shown whole.
        success_rule: see `label_frames`.
        min_success: see `label_frames`.

    Raises:
        ValueError: a number outside its range, an unknown rule, or ratios with other names, that
            are negative or not finite, or without any above 0.

    Example:
        >>> SamplingSettings(preference_share=0.5, clip_ratios={"forward": 1.0, "rewind": 1.0})
        ... # doctest: +ELLIPSIS
        SamplingSettings(max_frames=8, preference_share=0.5, ...)
    """

    max_frames: int = 8
    preference_share: float = 1.0
    pair_ratios: Ratios = field(default_factory=lambda: dict.fromkeys(PAIRS, 1.0))
    clip_ratios: Ratios = field(default_factory=lambda: dict.fromkeys(CLIPS, 1.0))
    success_rule: SuccessRule = "done"
    min_success: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.max_frames, int | np.integer) or self.max_frames < 2:
            raise ValueError(
                f"max_frames must be an integer >= 2, got {self.max_frames!r}: progress is counted "
                "from the first frame."
            )
        if self.success_rule not in get_args(SuccessRule):
            raise ValueError(
                f"success_rule must be one of {get_args(SuccessRule)}, got {self.success_rule!r}."
            )
        for name in ("preference_share", "min_success"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)!r}.")
        for name, known in (("pair_ratios", PAIRS), ("clip_ratios", CLIPS)):
            ratios: Ratios = getattr(self, name)
            if not set(ratios) <= set(known) or not all(0.0 <= r < inf for r in ratios.values()):
                raise ValueError(
                    f"{name} must give finite ratios >= 0 for some of {known}, got {dict(ratios)}."
                )
            if not sum(ratios.values()) > 0.0:
                raise ValueError(f"{name} must have a ratio above 0, got {dict(ratios)}.")


class Question(NamedTuple):
    """One clip, and what its frames should be answered with."""

    clip: Clip
    labels: Labels


class Pair(NamedTuple):
    """Two clips at one task, of equal length, in the order in which they are shown."""

    a: Question
    b: Question
    a_is_better: bool


class Sampler:
    """Draws questions from episodes.

    Args:
        episodes: of one or many tasks. Of those that can serve each is drawn equally often.
        settings: how.

    Raises:
        ValueError: no question of the kinds that the settings ask for can be made of these
            episodes.

    Example:
        >>> frames = np.zeros((20, 64, 64, 3), np.uint8)
        >>> sampler = Sampler([Episode(frames, "open the drawer")])
        >>> pair = sampler.draw(np.random.default_rng(0))
        >>> len(pair.a.clip), len(pair.b.clip), pair.a.clip.task
        (8, 8, 'open the drawer')
    """

    def __init__(
        self, episodes: Sequence[Episode], settings: SamplingSettings | None = None
    ) -> None:
        self.settings = settings or SamplingSettings()
        self.episodes = list(episodes)
        self._attempts = _by_task(self.episodes)
        self._tasks = list({_plain(e.task): e.task for e in self.episodes}.values())
        self._finished = np.array([n for n, e in enumerate(self.episodes) if _is_finished(e)])
        self._finished_tasks = {_plain(self.episodes[n].task) for n in self._finished}
        numbers, share = range(len(self.episodes)), self.settings.preference_share
        self._paired = [n for n in numbers if self._partners(n)]
        self._asked = [n for n in numbers if self._ways(n)]
        if share > 0.0:
            self._able(compare=True)
        if share < 1.0:
            self._able(compare=False)

    def draw_kind(self, rng: np.random.Generator) -> bool:
        """Draw whether a question is to compare two clips."""
        return bool(rng.random() < self.settings.preference_share)

    def draw(self, rng: np.random.Generator, *, compare: bool | None = None) -> Pair | Question:
        """Draw one question; the same generator state draws the same one.

        Args:
            rng: draws.
            compare: whether it is to compare two clips; None draws that too.

        Raises:
            ValueError: a kind that the settings leave out and that cannot be made.
        """
        compare = self.draw_kind(rng) if compare is None else compare
        number = int(rng.choice(self._able(compare)))
        return self._draw_pair(number, rng) if compare else self._draw_clip(number, rng)

    def _able(self, compare: bool) -> list[int]:
        """Return the episodes of which a question of one kind can be made: one at least."""
        able = self._paired if compare else self._asked
        if not able:
            kind = "comparison" if compare else "question about one clip"
            needs = _TO_COMPARE if compare else _TO_ASK
            ratios = self.settings.pair_ratios if compare else self.settings.clip_ratios
            what = dict.fromkeys(needs[way] for way, ratio in ratios.items() if ratio > 0)
            counted = Counter(episode.outcome for episode in self.episodes)
            raise ValueError(
                f"No {kind} can be made of these {len(self.episodes)} episodes of "
                f"{len(self._tasks)} tasks: "
                f"{', '.join(f'{counted[outcome]} {outcome}' for outcome in OUTCOMES)}. "
                f"Add {', or '.join(what)}."
            )
        return able

    def _draw_clip(self, number: int, rng: np.random.Generator) -> Question:
        episode, way = self.episodes[number], _choose(self._ways(number), rng)
        if way == "different_task":
            others = [task for task in self._tasks if _plain(task) != _plain(episode.task)]
            order = _play("forward", episode, rng)
            return self._ask(episode, order, others[rng.integers(len(others))])
        if _is_judged(episode):
            return self._ask(episode, range(len(episode)))
        return self._ask(episode, _play(way, episode, rng))

    def _draw_pair(self, number: int, rng: np.random.Generator) -> Pair:
        episode, way = self.episodes[number], _choose(self._partners(number), rng)
        if way in ("rewind", "reverse"):
            # Both show one stretch, so that it is sure which of them ends farther on.
            order = _play(way, episode, rng)
            better = self._ask(episode, range(min(order), max(order) + 1))
            worse = self._ask(episode, order)
        elif way == "different_task":
            other = self._draw_of_other_task(episode.task, rng)
            better = self._ask(episode, _play("forward", episode, rng))
            worse = self._ask(other, _play("forward", other, rng), episode.task)
        else:
            below, above = self._unequal(episode)
            chosen = int(rng.integers(len(below) + len(above)))
            partner = self.episodes[np.concatenate([below, above])[chosen]]
            low, high = (partner, episode) if chosen < len(below) else (episode, partner)
            better, worse = self._ask(high, range(len(high))), self._ask(low, range(len(low)))
        if rng.random() < 0.5:
            return Pair(better, worse, a_is_better=True)
        return Pair(worse, better, a_is_better=False)

    def _ask(self, episode: Episode, order: Sequence[int], task: str | None = None) -> Question:
        shown = subsample(order, self.settings.max_frames)
        labels = label_frames(
            episode,
            shown,
            right_task=task in (None, episode.task),
            success_rule=self.settings.success_rule,
            min_success=self.settings.min_success,
        )
        return Question(Clip(episode.frames[shown], task or episode.task), labels)

    def _ways(self, number: int) -> Ratios:
        """In which ways an episode can be asked about, and how often each."""
        episode, length = self.episodes[number], len(self.episodes[number])
        whole = _is_judged(episode)
        able = {
            "forward": True,
            "rewind": length >= 3 and not whole,
            "reverse": length >= 2 and not whole,
            "different_task": len(self._tasks) > 1 and _is_finished(episode),
        }
        return {way: r for way, r in self.settings.clip_ratios.items() if r > 0 and able[way]}

    def _partners(self, number: int) -> Ratios:
        """With what an episode can be compared, and how often each."""
        episode, length = self.episodes[number], len(self.episodes[number])
        finished = _is_finished(episode)
        able = {
            "rewind": finished and length >= 3 and _done_at(episode) >= 2,
            "reverse": finished and length >= 2 and _done_at(episode) >= 1,
            "different_task": finished and len(self._finished_tasks) > 1,
            "different_expertise": any(map(len, self._unequal(episode))),
        }
        return {way: r for way, r in self.settings.pair_ratios.items() if r > 0 and able[way]}

    def _draw_of_other_task(self, task: str, rng: np.random.Generator) -> Episode:
        while True:  # a list for each task would be long where there are many
            number = int(rng.choice(self._finished))
            if _plain(self.episodes[number].task) != _plain(task):
                return self.episodes[number]

    def _unequal(self, episode: Episode) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the episodes of the same task that are surely worse, and those surely better."""
        return self._attempts[_plain(episode.task)].unequal(episode)


class _Attempts(NamedTuple):
    """The attempts at one task, and what was said of each."""

    numbers: NDArray[np.int64]
    ranks: NDArray[np.int64]  # 0 failure, 1 suboptimal, 2 successful
    shares: NDArray[np.float64]  # NaN where partial success was not judged

    def unequal(self, episode: Episode) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """By partial success where both were judged, or else by outcome."""
        rank, share = _what_is_said(episode)
        gap = self.shares - share
        judged = ~np.isnan(gap)
        worse = np.where(judged, gap <= -_SURELY, self.ranks < rank)
        better = np.where(judged, gap >= _SURELY, self.ranks > rank)
        return self.numbers[worse], self.numbers[better]


def _by_task(episodes: Sequence[Episode]) -> dict[str, _Attempts]:
    numbers: dict[str, list[int]] = {}
    for number, episode in enumerate(episodes):
        numbers.setdefault(_plain(episode.task), []).append(number)
    sorted_out = {}
    for task, of_task in numbers.items():
        ranks, shares = zip(*(_what_is_said(episodes[n]) for n in of_task), strict=True)
        sorted_out[task] = _Attempts(np.array(of_task), np.array(ranks), np.array(shares))
    return sorted_out


def _plain(task: str) -> str:
    """The sentence without what makes no difference, so that nobody's spelling is another task."""
    return " ".join(task.casefold().split())


def _what_is_said(episode: Episode) -> tuple[int, float]:
    rank = len(OUTCOMES) - 1 - OUTCOMES.index(episode.outcome)
    share = episode.partial_success
    return rank, share if share is not None and _is_judged(episode) else np.nan


def _is_judged(episode: Episode) -> bool:
    """Whether its partial success says more than its outcome."""
    return episode.partial_success not in (None, 1.0)


def _is_finished(episode: Episode) -> bool:
    """Whether it is known what its frames show: the task, done from beginning to end."""
    return episode.outcome == "successful" and not _is_judged(episode)


def _play(way: str, episode: Episode, rng: np.random.Generator) -> list[int]:
    """Draw a stretch of an episode, played in one of three ways.

    A forward stretch begins, and another one ends, before the task is done: of frames that all
    show it done none has come farther than another.
    """
    done = _done_at(episode)
    play = {"forward": forward, "rewind": rewind, "reverse": reverse}[way]
    earliest = 0 if way == "forward" else -1
    possible = done >= (2 if way == "rewind" else 1)
    length = min(len(episode), 3 * (done + 1)) if possible else len(episode)  # or few would fit
    while True:
        order = play(length, rng)
        if order[earliest] < done or not possible:
            return order


def _done_at(episode: Episode) -> int:
    """Return the first frame that shows a successful episode's task done."""
    return count_leading(len(episode), episode.cutoff) - 1


def forward(length: int, rng: np.random.Generator) -> list[int]:
    """Draw a stretch of an episode: all frames from one to another, three at least.

    Source: robometer/data/samplers/pref.py at c7f38e2, which draws three frames in order and
    takes the outer two.

    Args:
        length: frames of the episode; one of less than three is taken whole.
        rng: draws.
    """
    if length < 3:
        return list(range(length))
    start, _, end = np.sort(rng.choice(length, 3, replace=False))
    return list(range(start, end + 1))


def rewind(length: int, rng: np.random.Generator) -> list[int]:
    """Draw a stretch of an episode that is played forward, and then back before its end.

    Args:
        length: frames of the episode, >= 3.
        rng: draws.

    Source: the paper's "video rewind", robometer/data/samplers/pref.py at c7f38e2: from `start` to
    `middle` and back to `end`, start < end < middle.
    """
    start, end, middle = np.sort(rng.choice(length, 3, replace=False))
    return [*range(start, middle + 1), *range(middle - 1, end - 1, -1)]


def reverse(length: int, rng: np.random.Generator) -> list[int]:
    """Draw a stretch of an episode that is played backwards."""
    return forward(length, rng)[::-1]


def subsample(order: Sequence[int], count: int) -> list[int]:
    """Return `count` entries, evenly spaced from the first to the last.

    Of fewer there are, all, and the last one again until there are `count`; of one wanted, the
    last.

    Source: robometer/data/datasets/helpers.py:194-231 and 277-339 at c7f38e2.

    Example:
        >>> subsample(range(10, 20), 4), subsample([3, 4, 5], 5)
        ([10, 13, 16, 19], [3, 4, 5, 5, 5])
    """
    if len(order) <= count:
        return [*order, *[order[-1]] * (count - len(order))]
    if count == 1:
        return [order[-1]]
    return [order[int(i)] for i in np.rint(np.linspace(0, len(order) - 1, count))]


def _choose(ratios: Ratios, rng: np.random.Generator) -> str:
    weights = np.array(list(ratios.values()))
    return str(rng.choice(list(ratios), p=weights / weights.sum()))
