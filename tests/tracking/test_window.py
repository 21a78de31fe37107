"""FrameHistory: the window shown to the model, in bounded memory."""

import pickle
import weakref
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robometer_gym.tracking.window import FrameHistory, Sampling, linspace_indices

RULES: list[Sampling] = ["linspace", "tail", "anchored"]
lengths = st.integers(1, 700)
sizes = st.integers(1, 17)


def frame(step: int) -> Any:
    """The smallest picture there is."""
    return np.full((1, 1, 3), step % 256, np.uint8)


def filled(length: int, max_frames: int, sampling: Sampling) -> FrameHistory:
    """A history after frames 0, 1, ..., length - 1."""
    history = FrameHistory(max_frames, sampling)
    for step in range(length):
        history.append(frame(step), step)
    return history


def shown(length: int, max_frames: int, sampling: Sampling) -> tuple[int, ...]:
    """Which of `length` frames are in the window."""
    return filled(length, max_frames, sampling).window()[1]


def authors_rule(total: int, wanted: int) -> list[int]:
    """What the checkpoint was trained on: all, or rint(linspace); with one frame the last."""
    if total <= wanted:
        return list(range(total))
    if wanted == 1:
        return [total - 1]
    return [int(i) for i in np.rint(np.linspace(0, total - 1, wanted))]


def anchors(length: int, max_frames: int) -> tuple[int, ...]:
    """The anchor rule, step by step: keep 0, s, 2s, ...; when full, drop every second."""
    held: list[int] = []
    stride = 1
    for step in range(length):
        if len(held) == max_frames:
            held, stride = held[::2], 2 * stride
        if step % stride == 0:
            held.append(step)
    newest = length - 1
    return tuple(held if newest in held else [*held, newest])


@given(lengths, sizes)
def test_linspace_indices_are_the_authors(length, max_frames):
    """The model would see frames spaced in a way it never saw in training."""
    assert linspace_indices(length, max_frames) == authors_rule(length, max_frames)


@given(st.integers(1, 16).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, 8 * n))))
def test_linspace_windows_are_exactly_the_authors_up_to_eight_windows(drawn):
    """Rewards would differ from the published ones for the same episode."""
    max_frames, length = drawn
    assert list(shown(length, max_frames, "linspace")) == authors_rule(length, max_frames)


@given(lengths, sizes)
def test_linspace_shows_as_many_frames_as_it_may_with_first_and_newest(length, max_frames):
    """Without the first frame the model cannot see the change since the start."""
    steps = shown(length, max_frames, "linspace")
    assert len(steps) == min(length, max_frames)
    assert steps[-1] == length - 1
    assert steps[0] == 0 or max_frames == 1
    assert all(a < b for a, b in pairwise(steps))


@given(lengths, st.integers(2, 17))
def test_linspace_in_long_episodes_is_off_by_at_most_an_eighth_of_the_spacing(length, max_frames):
    """The thinned-out history would no longer be an even view of the episode."""
    if length <= max_frames:
        return
    exact = np.linspace(0, length - 1, max_frames)
    off = np.abs(np.array(shown(length, max_frames, "linspace")) - np.rint(exact))
    assert off.max() <= (exact[1] - exact[0]) / 8


@given(lengths, sizes)
def test_tail_shows_the_newest_frames(length, max_frames):
    """LeRobot's numbers for the same video could not be reproduced."""
    expected = tuple(range(length))[-max_frames:]
    assert shown(length, max_frames, "tail") == expected


@given(lengths, st.integers(2, 17))
def test_anchored_keeps_every_stride_th_frame_and_doubles_the_stride_when_full(length, max_frames):
    """An engine with a cache would compute everything again; long episodes would not fit."""
    assert shown(length, max_frames, "anchored") == anchors(length, max_frames)


def test_anchored_window_by_window():
    """The strides above and the rule in words might agree and both be wrong."""
    assert shown(8, 8, "anchored") == (0, 1, 2, 3, 4, 5, 6, 7)
    assert shown(9, 8, "anchored") == (0, 2, 4, 6, 8)
    assert shown(10, 8, "anchored") == (0, 2, 4, 6, 8, 9)
    assert shown(15, 8, "anchored") == (0, 2, 4, 6, 8, 10, 12, 14)
    assert shown(16, 8, "anchored") == (0, 4, 8, 12, 15)
    assert shown(17, 8, "anchored") == (0, 4, 8, 12, 16)
    assert shown(33, 8, "anchored") == (0, 8, 16, 24, 32)


@given(lengths)
def test_anchored_windows_of_eight_hold_five_to_eight_frames(length):
    """The model would be shown fewer frames than it can make sense of."""
    assert min(length, 5) <= len(shown(length, 8, "anchored")) <= 8


@pytest.mark.parametrize(
    ("sampling", "episodes"),
    [
        ("anchored", {20: 1.30, 50: 1.18, 100: 1.12, 200: 1.07}),
        # In longer episodes "linspace" shows held frames, which repeat more often.
        ("linspace", {20: 3.40, 50: 4.36}),
        ("tail", {20: 5.20, 50: 6.88, 100: 7.44, 200: 7.72}),
    ],
)
def test_how_much_of_a_window_is_new(sampling, episodes):
    """What an engine can reuse decides its speed; these are the counts its design rests on."""
    for length, blocks in episodes.items():
        history = FrameHistory(8, sampling)
        before: tuple[int, ...] = ()
        new = 0
        for step in range(length):
            history.append(frame(step), step)
            now = history.window()[1]
            same = 0
            for a, b in zip(before, now, strict=False):
                if a != b:
                    break
                same += 1
            new += len(now) - same
            before = now
        assert new / length == pytest.approx(blocks, abs=0.006)


@pytest.mark.parametrize("sampling", RULES)
@given(length=st.integers(1, 100))
def test_a_window_of_one_is_the_newest_frame(sampling, length):
    """With max_frames=1 the model would predict the past."""
    assert shown(length, 1, sampling) == (length - 1,)


@pytest.mark.parametrize("sampling", RULES)
@given(
    steps=st.lists(st.integers(1, 20), min_size=1, max_size=150),
    max_frames=sizes,
    start=st.integers(0, 5),
)
def test_frames_and_steps_belong_together(sampling, steps, max_frames, start):
    """An engine would find another frame's features under a step's name."""
    history = FrameHistory(max_frames, sampling)
    frames = {}
    for step in start + np.cumsum(steps):
        frames[int(step)] = frame(int(step))
        history.append(frames[int(step)], int(step))
    images, shown_steps = history.window()
    assert len(images) == len(shown_steps) <= max_frames
    for image, step in zip(images, shown_steps, strict=True):
        assert image is frames[step]  # not copied either
    assert shown_steps[-1] == max(frames)


@pytest.mark.parametrize("sampling", RULES)
@pytest.mark.parametrize("max_frames", [1, 8, 9])
def test_memory_does_not_grow_with_the_episode(sampling, max_frames):
    """A robot that runs overnight would fill the machine with video."""
    history = FrameHistory(max_frames, sampling)
    alive = 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    most = 0
    for step in range(100_000):
        image = np.empty((1, 1, 3), np.uint8)
        alive += 1
        weakref.finalize(image, gone)
        history.append(image, step)
        del image
        most = max(most, alive)
    assert alive == len(history)
    assert most <= 8 * max_frames + 1
    assert history.window()[1][-1] == 99_999


@pytest.mark.parametrize("sampling", RULES)
@pytest.mark.parametrize("max_frames", [1, 2, 8])
def test_the_bookkeeping_does_not_grow_with_the_episode(sampling, max_frames):
    """A stride that doubled with every frame would be a number of 100,000 bits after a day."""
    short, long = (len(pickle.dumps(filled(n, max_frames, sampling))) for n in (1_000, 20_000))
    assert long < short + 1_000


def test_an_empty_history_has_no_window():
    """A prediction before the first frame would be made of nothing."""
    history = FrameHistory()
    with pytest.raises(ValueError, match="history is empty: append the episode's first frame"):
        history.window()


@pytest.mark.parametrize("max_frames", [0, -1])
def test_a_window_needs_a_frame(max_frames):
    """The mistake would show as an empty clip, much later."""
    with pytest.raises(ValueError, match=f"max_frames must be an integer >= 1, got {max_frames}."):
        FrameHistory(max_frames)


def test_only_known_rules():
    """A misspelt rule would fall back to another one."""
    message = r"sampling must be one of \('linspace', 'tail', 'anchored'\), got 'last'"
    with pytest.raises(ValueError, match=message):
        FrameHistory(8, "last")  # type: ignore[arg-type]
