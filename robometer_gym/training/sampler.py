"""Training examples drawn from episodes: labeled clips and preference pairs.

A few episodes become many examples: played forward, rewound, reversed, shown with another
instruction, paired with a worse attempt. Knows nothing of networks or tokens.
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
from robometer_gym.training.augmentation import (
    forward,
    sample_order,
    subsample,
    success_index,
)
from robometer_gym.training.labels import Labels, SuccessRule, label_frames
from robometer_gym.training.preferences import (
    TaskEpisodes,
    has_partial_success,
    is_complete,
    normalize_task,
)
from robometer_gym.validation import check_count

__all__ = [
    "CLIP_MODES",
    "PAIR_MODES",
    "LabeledClip",
    "PreferencePair",
    "Sampler",
    "SamplingSettings",
]

Ratios = Mapping[str, float]

# Each mode, and the episodes that it needs, in words; `_pair_modes` and `_clip_modes` decide.
_SUCCESS = (
    "a successful episode of 3 frames or more (not one that is done from its first frames on, or "
    "with a partial_success below 1)"
)
_PAIR_NEEDS = {
    "rewind": _SUCCESS,
    "reverse": _SUCCESS,
    "different_task": "successful episodes of two tasks",
    "different_expertise": "a better and a worse attempt at one task "
    f"({' > '.join(OUTCOMES)}, or 0.2 of partial_success between them)",
}
_WHOLE = "an episode of 3 frames or more without partial_success"
_CLIP_NEEDS = {
    "forward": "an episode",
    "rewind": _WHOLE,
    "reverse": _WHOLE,
    "different_task": "a successful episode of one task and any of another",
}
PAIR_MODES, CLIP_MODES = tuple(_PAIR_NEEDS), tuple(_CLIP_NEEDS)


@dataclass(frozen=True)
class SamplingSettings:
    """Which examples are drawn, and how often.

    Args:
        max_frames: frames of each clip, >= 2.
        preference_share: the share of examples that are preference pairs; the others are labeled
            clips. The released model was trained with 1.0: a pair trains all three heads, progress
            and success on its first clip.
        pair_ratios: how often a successful episode is paired in each mode. "rewind": with itself,
            rewound; "reverse": with itself, reversed; "different_task": with an episode of another
            task; "different_expertise": with a suboptimal or failed one. An episode is left out of
            a mode for which it has no partner.
        clip_ratios: how often a clip plays "forward", "rewind" or "reverse", or is shown with the
            instruction of a "different_task"; this only for successful episodes, because a failed
            one may have done another task. An episode with a partial success is shown whole.
        independent_stretches: whether the better clip of a "rewind" or "reverse" pair is a stretch
            of its own, as in the released training. Then the better clip of about one rewind pair
            in seven (for an episode of 20 frames) ends at an earlier frame than the worse one.
        success_rule: see `label_frames`.
        min_success: see `label_frames`.

    The released training differs in three more ways, for which there is no setting. The better
    clip of a "different_expertise" pair is a random stretch if the pair was drawn for the
    successful episode. A suboptimal episode is not paired with a failed one unless both have a
    partial success. And stretches are drawn without regard to success, also beyond the cutoff, see
    `sample_order`.

    Source: robometer/data/samplers/base.py and pref.py at c7f38e2.

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
    pair_ratios: Ratios = field(default_factory=lambda: dict.fromkeys(PAIR_MODES, 1.0))
    clip_ratios: Ratios = field(default_factory=lambda: dict.fromkeys(CLIP_MODES, 1.0))
    independent_stretches: bool = False
    success_rule: SuccessRule = "done"
    min_success: float = 0.5

    def __post_init__(self) -> None:
        check_count("max_frames", self.max_frames, minimum=2)  # progress needs a first frame
        if self.success_rule not in get_args(SuccessRule):
            raise ValueError(
                f"success_rule must be one of {get_args(SuccessRule)}, got {self.success_rule!r}."
            )
        for name in ("preference_share", "min_success"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)!r}.")
        for name, known in (("pair_ratios", PAIR_MODES), ("clip_ratios", CLIP_MODES)):
            ratios: Ratios = getattr(self, name)
            if not set(ratios) <= set(known) or not all(0.0 <= r < inf for r in ratios.values()):
                raise ValueError(
                    f"{name} must give finite ratios >= 0 for some of {known}, got {dict(ratios)}."
                )
            if not sum(ratios.values()) > 0.0:
                raise ValueError(f"{name} must have a ratio above 0, got {dict(ratios)}.")


class LabeledClip(NamedTuple):
    """One clip and the labels of its frames."""

    clip: Clip
    labels: Labels


class PreferencePair(NamedTuple):
    """Two clips of equal length with one task, in the order in which they are shown."""

    a: LabeledClip
    b: LabeledClip
    a_is_better: bool


class Sampler:
    """Draw training examples from episodes.

    Args:
        episodes: of one or many tasks. Each that can serve is drawn equally often.
        settings: see `SamplingSettings`.

    Raises:
        ValueError: these episodes make no example of a kind with a share above 0.

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
        self._by_task = TaskEpisodes.group(self.episodes)
        self._tasks = list({normalize_task(e.task): e.task for e in self.episodes}.values())
        self._complete = np.array([n for n, e in enumerate(self.episodes) if is_complete(e)])
        self._complete_tasks = {normalize_task(self.episodes[n].task) for n in self._complete}
        indices, share = range(len(self.episodes)), self.settings.preference_share
        self._pair_indices = [n for n in indices if self._pair_modes(n)]
        self._clip_indices = [n for n in indices if self._clip_modes(n)]
        if share > 0.0:
            self._eligible(compare=True)
        if share < 1.0:
            self._eligible(compare=False)

    def draw_kind(self, rng: np.random.Generator) -> bool:
        """Draw whether an example is a preference pair."""
        return bool(rng.random() < self.settings.preference_share)

    def draw(
        self, rng: np.random.Generator, *, compare: bool | None = None
    ) -> PreferencePair | LabeledClip:
        """Draw one example; the same generator state draws the same one.

        Args:
            rng: source of randomness.
            compare: True for a preference pair, False for a labeled clip, None to draw the kind.

        Raises:
            ValueError: a kind without a share in the settings, which these episodes cannot make.
        """
        compare = self.draw_kind(rng) if compare is None else compare
        index = int(rng.choice(self._eligible(compare)))
        return self._draw_pair(index, rng) if compare else self._draw_clip(index, rng)

    def _eligible(self, compare: bool) -> list[int]:
        """Return the episodes that can make one kind of example: at least one."""
        indices = self._pair_indices if compare else self._clip_indices
        if not indices:
            kind = "preference pair" if compare else "labeled clip"
            needs = _PAIR_NEEDS if compare else _CLIP_NEEDS
            ratios = self.settings.pair_ratios if compare else self.settings.clip_ratios
            missing = dict.fromkeys(needs[mode] for mode, ratio in ratios.items() if ratio > 0)
            counts = Counter(episode.outcome for episode in self.episodes)
            raise ValueError(
                f"No {kind} can be made of these {len(self.episodes)} episodes of "
                f"{len(self._tasks)} tasks: "
                f"{', '.join(f'{counts[outcome]} {outcome}' for outcome in OUTCOMES)}. "
                f"Add {', or '.join(missing)}."
            )
        return indices

    def _draw_clip(self, index: int, rng: np.random.Generator) -> LabeledClip:
        episode, mode = self.episodes[index], _choose(self._clip_modes(index), rng)
        if mode == "different_task":
            own = normalize_task(episode.task)
            others = [task for task in self._tasks if normalize_task(task) != own]
            order = sample_order("forward", episode, rng)
            return self._label_clip(episode, order, others[rng.integers(len(others))])
        if has_partial_success(episode):
            return self._label_clip(episode, range(len(episode)))
        return self._label_clip(episode, sample_order(mode, episode, rng))

    def _draw_pair(self, index: int, rng: np.random.Generator) -> PreferencePair:
        episode, mode = self.episodes[index], _choose(self._pair_modes(index), rng)
        if mode in ("rewind", "reverse"):
            order = sample_order(mode, episode, rng)
            # Both show one stretch, so that one of them surely ends with more progress.
            stretch: Sequence[int] = range(min(order), max(order) + 1)
            if self.settings.independent_stretches:
                stretch = forward(len(episode), rng)
            better = self._label_clip(episode, stretch)
            worse = self._label_clip(episode, order)
        elif mode == "different_task":
            other = self._draw_other_task(episode.task, rng)
            better = self._label_clip(episode, sample_order("forward", episode, rng))
            worse = self._label_clip(other, sample_order("forward", other, rng), episode.task)
        else:
            below, above = self._worse_and_better(episode)
            chosen = int(rng.integers(len(below) + len(above)))
            partner = self.episodes[np.concatenate([below, above])[chosen]]
            low, high = (partner, episode) if chosen < len(below) else (episode, partner)
            better = self._label_clip(high, range(len(high)))
            worse = self._label_clip(low, range(len(low)))
        if rng.random() < 0.5:
            return PreferencePair(better, worse, a_is_better=True)
        return PreferencePair(worse, better, a_is_better=False)

    def _label_clip(
        self, episode: Episode, order: Sequence[int], task: str | None = None
    ) -> LabeledClip:
        shown = subsample(order, self.settings.max_frames)
        labels = label_frames(
            episode,
            shown,
            right_task=task in (None, episode.task),
            success_rule=self.settings.success_rule,
            min_success=self.settings.min_success,
        )
        return LabeledClip(Clip(episode.frames[shown], task or episode.task), labels)

    def _clip_modes(self, index: int) -> Ratios:
        """Return the modes in which an episode makes a labeled clip, with their ratios."""
        episode, length = self.episodes[index], len(self.episodes[index])
        whole = has_partial_success(episode)
        possible = {
            "forward": True,
            "rewind": length >= 3 and not whole,
            "reverse": length >= 2 and not whole,
            "different_task": len(self._tasks) > 1 and is_complete(episode),
        }
        ratios = self.settings.clip_ratios
        return {mode: r for mode, r in ratios.items() if r > 0 and possible[mode]}

    def _pair_modes(self, index: int) -> Ratios:
        """Return the modes in which an episode can be paired, with their ratios."""
        episode, length = self.episodes[index], len(self.episodes[index])
        complete, done = is_complete(episode), success_index(episode)
        possible = {
            "rewind": complete and length >= 3 and done >= 2,
            "reverse": complete and length >= 2 and done >= 1,
            "different_task": complete and len(self._complete_tasks) > 1,
            "different_expertise": any(map(len, self._worse_and_better(episode))),
        }
        ratios = self.settings.pair_ratios
        return {mode: r for mode, r in ratios.items() if r > 0 and possible[mode]}

    def _draw_other_task(self, task: str, rng: np.random.Generator) -> Episode:
        while True:  # a list per task would be long in a data set of many tasks
            index = int(rng.choice(self._complete))
            if normalize_task(self.episodes[index].task) != normalize_task(task):
                return self.episodes[index]

    def _worse_and_better(self, episode: Episode) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self._by_task[normalize_task(episode.task)].worse_and_better(episode)


def _choose(ratios: Ratios, rng: np.random.Generator) -> str:
    weights = np.array(list(ratios.values()))
    return str(rng.choice(list(ratios), p=weights / weights.sum()))
