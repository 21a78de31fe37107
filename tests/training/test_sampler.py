"""The sampler: shares, determinism, any data set, and refused input."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robometer_gym.data import Episode
from robometer_gym.training.sampler import (
    CLIP_MODES,
    PAIR_MODES,
    LabeledClip,
    PreferencePair,
    Sampler,
    SamplingSettings,
)
from tests.training.painted_episodes import (
    GREEN,
    MIXED_EPISODES,
    RED,
    TASKS,
    check_clip,
    check_pair,
    contents,
    draw_clip,
    draw_pair,
    has_partial_success,
    is_clearly_better,
    is_complete,
    matches_shares,
    mode_of_clip,
    only_modes,
    painted_episode,
    read_pixels,
    success_index,
)

seeds = st.integers(0, 2**32)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_preference_pairs_have_their_share(share):
    """The preference head, or the other two, would get too few examples."""
    sampler = Sampler(MIXED_EPISODES, SamplingSettings(2, preference_share=share))
    rng = np.random.default_rng(0)
    drawn: Counter[bool] = Counter()
    kinds: Counter[bool] = Counter()
    for _ in range(800):
        drawn[isinstance(sampler.draw(rng), PreferencePair)] += 1
        kinds[sampler.draw_kind(rng)] += 1
    assert matches_shares(drawn, {True: share, False: 1 - share})
    assert matches_shares(kinds, {True: share, False: 1 - share})


def test_the_caller_may_choose_the_kind():
    """A batch would mix examples of two lengths, and half of it would be padding."""
    sampler = Sampler(MIXED_EPISODES, SamplingSettings(preference_share=0.5))
    rng = np.random.default_rng(0)
    for compare in (True, False):
        kind = PreferencePair if compare else LabeledClip
        assert all(isinstance(sampler.draw(rng, compare=compare), kind) for _ in range(20))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_caller_may_choose_a_kind_without_a_share(share):
    """An evaluation of the other kind would need a second sampler of the same episodes."""
    sampler = Sampler(MIXED_EPISODES, SamplingSettings(preference_share=share))
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert check_pair(sampler.draw(rng, compare=True), MIXED_EPISODES) in PAIR_MODES  # type: ignore[arg-type]
        example = sampler.draw(rng, compare=False)
        assert isinstance(example, LabeledClip)
        check_clip(example, MIXED_EPISODES)


@pytest.mark.parametrize(
    ("rule", "expected"), [("done", [0, 0, 0, 1, 1, 1, 1]), ("released", [0, 0, 1, 1, 1, 1, 1])]
)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_success_rule_reaches_the_labels(rule, expected, share):
    """The released labels would be selected and not used."""
    episodes = [painted_episode(0, 7, cutoff=0.6), painted_episode(1, 7, outcome="failure")]
    sampling = SamplingSettings(
        7,
        share,
        pair_ratios=only_modes(PAIR_MODES, "different_expertise"),
        clip_ratios=only_modes(CLIP_MODES, "forward"),
        success_rule=rule,
    )
    sampler, rng, found = Sampler(episodes, sampling), np.random.default_rng(0), 0
    for _ in range(100):
        drawn = sampler.draw(rng)
        for example in (drawn.a, drawn.b) if isinstance(drawn, PreferencePair) else (drawn,):
            # 0.6 * 7: four frames up to success, and the progress of frame 2 is 2 / 3.
            if read_pixels(example) == (0, list(range(7))):
                found += 1
                assert example.labels.success.tolist() == expected
    assert found


@st.composite
def data_sets(draw):
    """Episodes of all kinds, many too short for some modes."""
    partial = {
        "successful": [None, 0.9, 1.0],
        "suboptimal": [None, 0.3, 0.5, 0.7, 1.0],
        "failure": [None, 0.0, 0.2, 0.85],
    }
    episodes = []
    for number in range(draw(st.integers(1, 5))):
        outcome = draw(st.sampled_from(sorted(partial)))
        value = draw(st.sampled_from(partial[outcome]))
        length, task = draw(st.integers(1, 12)), draw(st.sampled_from(TASKS[:2]))
        cutoff = draw(st.sampled_from([1.0, 0.5, 0.2])) if outcome == "successful" else 1.0
        episodes.append(painted_episode(number, length, task, outcome, value, cutoff))
    return episodes


def possible_pair_modes(episodes, number) -> set[str]:
    """Return the modes in which an episode can be paired, by a second implementation."""
    episode = episodes[number]
    modes = set()
    if is_complete(episode):
        # Among frames that all show success, none has more progress than another.
        modes |= {"rewind"} if success_index(episode) >= 2 else set()
        modes |= {"reverse"} if success_index(episode) >= 1 else set()
        others = {e.task for e in episodes if is_complete(e)} - {episode.task}
        modes |= {"different_task"} if others else set()
    alike = [e for e in episodes if e.task == episode.task]
    if any(is_clearly_better(e, episode) or is_clearly_better(episode, e) for e in alike):
        modes.add("different_expertise")
    return modes


def possible_clip_modes(episodes, number) -> set[str]:
    """Return the modes in which an episode makes a clip, by a second implementation."""
    episode = episodes[number]
    if has_partial_success(episode):
        return {"forward"}
    modes = {"forward"}
    modes |= {"rewind"} if len(episode) >= 3 else set()
    modes |= {"reverse"} if len(episode) >= 2 else set()
    if is_complete(episode) and {e.task for e in episodes} != {episode.task}:
        modes.add("different_task")
    return modes


@pytest.mark.parametrize(("length", "mode"), [(3, "rewind"), (2, "reverse")])
def test_the_shortest_episode_serves(length, mode):
    """Short episodes would never be rewound or reversed, though they could be."""
    episodes = [painted_episode(0, length)]
    pairs = SamplingSettings(4, pair_ratios=only_modes(PAIR_MODES, mode))
    clips = SamplingSettings(4, preference_share=0.0, clip_ratios=only_modes(CLIP_MODES, mode))
    rng = np.random.default_rng(0)
    assert check_pair(draw_pair(Sampler(episodes, pairs), rng), episodes) == mode
    assert mode_of_clip(draw_clip(Sampler(episodes, clips), rng), episodes) == mode


@settings(max_examples=60)
@given(data_sets(), st.sets(st.sampled_from(PAIR_MODES), min_size=1), st.integers(2, 9), seeds)
def test_an_episode_is_left_out_of_impossible_pair_modes(episodes, modes, max_frames, seed):
    """One episode of a single frame would stop a training run after hours."""
    sampling = SamplingSettings(max_frames, pair_ratios=only_modes(PAIR_MODES, *modes))
    possible = (possible_pair_modes(episodes, number) for number in range(len(episodes)))
    modes = set().union(*possible) & modes
    if not modes:
        with pytest.raises(ValueError, match="No preference pair can be made"):
            Sampler(episodes, sampling)
        return
    sampler, rng = Sampler(episodes, sampling), np.random.default_rng(seed)
    for _ in range(20):
        pair = draw_pair(sampler, rng)
        mode = check_pair(pair, episodes)
        assert mode in modes
        assert any(
            mode in possible_pair_modes(episodes, read_pixels(example)[0])
            for example in (pair.a, pair.b)
        )


@settings(max_examples=60)
@given(
    data_sets(),
    st.sets(st.sampled_from(CLIP_MODES), min_size=1),
    st.sampled_from([2, 3, 8, 30]),
    seeds,
)
def test_an_episode_is_left_out_of_impossible_clip_modes(episodes, modes, max_frames, seed):
    """One episode of a single frame would stop a training run after hours."""
    sampling = SamplingSettings(max_frames, 0.0, clip_ratios=only_modes(CLIP_MODES, *modes))
    modes = [possible_clip_modes(episodes, number) & modes for number in range(len(episodes))]
    if not any(modes):
        with pytest.raises(ValueError, match="No labeled clip can be made"):
            Sampler(episodes, sampling)
        return
    sampler, rng = Sampler(episodes, sampling), np.random.default_rng(seed)
    for _ in range(20):
        example = draw_clip(sampler, rng)
        check_clip(example, episodes)
        assert len(example.clip) == max_frames
        assert modes[read_pixels(example)[0]]
        if max_frames == 30:  # with fewer, a rewind may look like another mode
            assert mode_of_clip(example, episodes) in modes[read_pixels(example)[0]]


@given(seeds, st.floats(0, 1))
def test_the_same_state_draws_the_same_example(seed, share):
    """An interrupted run could not continue where it was, and no result be reproduced."""
    first, second = (
        Sampler(MIXED_EPISODES, SamplingSettings(preference_share=share)) for _ in range(2)
    )
    second.draw(np.random.default_rng(7))  # earlier draws do not matter
    rngs = [np.random.default_rng(seed) for _ in range(2)]
    for _ in range(3):
        assert contents(first.draw(rngs[0])) == contents(second.draw(rngs[1]))
    assert rngs[0].random() == rngs[1].random()


def test_only_the_frames_that_are_shown_are_read():
    """A thousand videos would be decoded in full for eight frames of each."""

    class CountedFrames:
        read: list[list[int]] = []  # noqa: RUF012 - of this test alone

        def __len__(self):
            return 100

        def __getitem__(self, indices):
            self.read.append(list(indices))
            return np.zeros((len(indices), 2, 2, 3), np.uint8)

    Sampler([Episode(CountedFrames(), RED)]).draw(np.random.default_rng(0))
    assert [len(indices) for indices in CountedFrames.read] == [8, 8]


@pytest.mark.parametrize(
    ("episodes", "modes"),
    [
        ([], PAIR_MODES),
        ([painted_episode(0, 1)], PAIR_MODES),
        ([painted_episode(0, 2)], ["rewind"]),
        ([painted_episode(0, 1)], ["reverse"]),
        ([painted_episode(0), painted_episode(1)], ["different_task", "different_expertise"]),
        (
            [painted_episode(0), painted_episode(1), painted_episode(2, 9, GREEN, "failure")],
            ["different_task"],
        ),
        (
            [painted_episode(0), painted_episode(1, task=GREEN, outcome="failure")],
            ["different_expertise"],
        ),
        (
            [painted_episode(0, 9, RED, "failure"), painted_episode(1, 9, GREEN, "suboptimal")],
            PAIR_MODES,
        ),
    ],
)
def test_a_data_set_without_any_pair_raises(episodes, modes):
    """Training would wait for an example forever, or end with an error from NumPy."""
    tasks = len({episode.task for episode in episodes})
    message = rf"No preference pair can be made of these {len(episodes)} episodes of {tasks} tasks"
    for share in (1.0, 0.5):
        sampling = SamplingSettings(
            preference_share=share, pair_ratios=only_modes(PAIR_MODES, *modes)
        )
        with pytest.raises(ValueError, match=message):
            Sampler(episodes, sampling)


@pytest.mark.parametrize(("length", "mode"), [(9, "different_task"), (2, "rewind"), (1, "reverse")])
def test_a_data_set_without_any_clip_raises(length, mode):
    """Training would wait for an example forever, or end with an error from NumPy."""
    for share in (0.0, 0.5):
        sampling = SamplingSettings(
            preference_share=share,
            pair_ratios=only_modes(PAIR_MODES, "different_expertise"),
            clip_ratios=only_modes(CLIP_MODES, mode),
        )
        episodes = [painted_episode(0, length), painted_episode(1, length, outcome="failure")]
        message = "No labeled clip can be made of these 2 episodes of 1 tasks"
        with pytest.raises(ValueError, match=message):
            Sampler(episodes, sampling)


def test_the_error_names_only_the_missing_episodes():
    """The remedy would be hidden in a page of settings, or not be enough."""
    failures = [painted_episode(n, outcome="failure") for n in range(3)]
    with pytest.raises(ValueError, match="No preference pair") as caught:
        Sampler(failures)
    message = str(caught.value)
    assert "of these 3 episodes of 1 tasks: 0 successful, 0 suboptimal, 3 failure. Add " in message
    assert message.count("a successful episode of 3 frames") == 1
    assert "or successful episodes of two tasks, or a better and a worse attempt" in message
    assert "Settings" not in message
    for outcome in ("successful", "suboptimal"):  # following the message is enough
        Sampler([*failures, painted_episode(3, outcome=outcome)])
    with pytest.raises(ValueError, match=r"3 failure\. Add successful episodes of two tasks\.$"):
        Sampler(failures, SamplingSettings(pair_ratios=only_modes(PAIR_MODES, "different_task")))


def test_a_kind_that_cannot_be_drawn_raises():
    """NumPy's error would be "a cannot be empty": a kind without a share is not checked before."""
    rng = np.random.default_rng(0)
    shorts = [painted_episode(0, 1), painted_episode(1, 1)]
    sampler = Sampler(shorts, SamplingSettings(preference_share=0.0))
    with pytest.raises(
        ValueError, match="No preference pair can be made of these 2 episodes of 1 task"
    ):
        sampler.draw(rng, compare=True)
    assert isinstance(sampler.draw(rng, compare=False), LabeledClip)
    sampler = Sampler(
        [painted_episode(0)], SamplingSettings(clip_ratios=only_modes(CLIP_MODES, "different_task"))
    )
    with pytest.raises(ValueError, match="No labeled clip can be made of these 1 epis"):
        sampler.draw(rng, compare=False)
    assert isinstance(sampler.draw(rng, compare=True), PreferencePair)


def test_a_task_in_other_spelling_is_the_same_task():
    """A success would be trained as none, because its instruction begins with a capital."""
    episodes = [
        painted_episode(0, task="Open the drawer"),
        painted_episode(1, task="open the  drawer "),
    ]
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
