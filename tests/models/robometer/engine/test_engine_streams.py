"""Streams, windows, eviction and releases, compared with full recomputation."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from robometer_gym import RobometerRewardWrapper
from robometer_gym.reward_model import Clip
from robometer_gym.tracking.window import FrameHistory
from tests.models.robometer.engine.recomputation import (
    SAMPLINGS,
    SIZES,
    TASKS,
    assert_same,
    check,
    clip,
    draw_frame,
    limit_budget,
    new_model,
    truth,
)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("max_frames", [1, 2, 8, 12])
def test_a_long_episode_under_every_sampling(sampling, max_frames):
    """From some step on (the tenth frame, the first thinning) all rewards would be wrong."""
    model, history = new_model(), FrameHistory(max_frames, sampling)
    for step in range(0, 60, 2):
        history.append(draw_frame("long", step), step)
        frames, steps = history.window()
        check(model, [Clip(frames, TASKS[0], "long", steps)])


def test_the_tenth_frame_has_a_longer_label():
    """The label of frame 10 is one token longer: all later tokens would be out of place."""
    model = new_model()
    for steps in (range(8), range(9), range(10), range(11), range(2, 13), range(101)):
        check(model, [clip("many", steps)])
    check(model, [clip("many", (*range(9), 200)), clip("other", range(10))])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_clip_of_one_frame(size):
    """The first prediction of every episode, of one frame, would be wrong."""
    model = new_model()
    for stream in ("a", "b"):
        check(model, [clip(stream, (0,), size=size)])
    check(model, [clip("a", (7,), size=size), clip("c", (0,), size=size)])


def test_one_batch_of_everything():
    """In a vector env a reward would depend on another clip's length, size or task."""
    model = new_model()
    for turn in range(1, 6):
        clips = [
            clip((task, size, start), range(start, start + turn + start), task, size)
            for task in TASKS
            for size in SIZES
            for start in (0, 3)
        ]
        check(model, clips)
        check(model, clips[::-1])


def test_a_batch_is_as_good_as_clips_one_by_one():
    """A reward would depend on how many environments run beside this one."""
    together, alone = new_model(), new_model()
    for step in range(1, 12):
        clips = [
            clip(name, range(max(0, step - k), step + 1), TASKS[k % 3], SIZES[k % 2])
            for k, name in enumerate("abcdef", start=1)
        ]
        for prediction, one in zip(together.predict(clips), clips, strict=True):
            assert_same(prediction, alone.predict([one])[0])
            assert_same(prediction, truth()(one))


def test_one_stream_twice_in_a_batch():
    """Two windows, or two instructions, of one episode would overwrite each other's cache."""
    model = new_model()
    grown, shorter, task = clip("a", (0, 1, 2, 3)), clip("a", (0, 2, 3)), TASKS[1]
    check(model, [grown, grown])
    check(model, [shorter, grown, shorter, clip("a", (0, 1, 2, 3), task), grown])
    check(model, [clip("a", (5,)), clip("a", (0, 1, 2, 3, 5)), clip("a", (0, 1, 2, 3, 5), task)])
    check(model, [clip("a", (2, 3)), clip("a", (0, 1, 2, 3, 5, 6))])
    check(model, [clip("new", (0, 1)), clip("new", (0, 2)), clip("new", (0, 1, 2))])


def test_one_stream_at_two_sizes():
    """A camera whose frames are shown large and small: one would be scored as the other."""
    model = new_model()
    for last in range(1, 6):
        for size in SIZES:
            check(model, [clip("a", range(last), size=size)])
        check(model, [clip("a", range(last + 1), size=size) for size in SIZES])


def test_two_instructions_for_one_episode_by_turns():
    """Comparing the right with a wrong instruction, as an evaluation does, would mix them up."""
    model = new_model()
    for last in range(1, 8):
        for task in TASKS:
            check(model, [clip("a", range(last), task)])


def test_clips_that_are_not_named():
    """Without both stream and steps frames of unrelated clips would be taken for the same."""
    model = new_model()
    for turn in range(4):
        frames = [draw_frame(("turn", turn), step) for step in range(4)]
        check(model, [Clip(frames, TASKS[0])])
        check(model, [Clip(frames, TASKS[0], stream="a")])
        check(model, [Clip(frames, TASKS[0], steps=(0, 1, 2, 3))])
        check(model, [Clip(frames, TASKS[0], None, (0, 1, 2, 3)), clip("a", (0, 1))])
        check(model, [Clip(np.stack(frames), TASKS[0]), Clip(np.stack(frames)[::-1], TASKS[0])])


def test_the_same_window_again():
    """A user who predicts twice would get other numbers, or an error, the second time."""
    model = new_model()
    for steps in ((0,), (0, 1, 2), (0, 2), (0, 1, 2)):
        for _ in range(3):
            check(model, [clip("a", steps)])
    copies = [frame.copy() for frame in clip("a", (0, 1, 2)).images]
    check(model, [Clip(copies, TASKS[0], "a", (0, 1, 2))])


def test_an_array_that_is_used_again_for_another_frame():
    """Renderers write every frame into one buffer: it would be taken for the frame before."""
    model, buffer = new_model(), np.zeros((64, 64, 3), np.uint8)
    for step in range(5):
        np.copyto(buffer, draw_frame("buffer", step))
        check(model, [Clip([buffer], TASKS[0])])
        check(model, [Clip([buffer], TASKS[0], "named", (step,))])
        check(model, [Clip([buffer, buffer], TASKS[0])])


def test_frames_that_lie_in_memory_in_other_ways():
    """Views, mirrored, strided or read-only frames would be read wrongly, or warned about."""
    model, wide = new_model(), draw_frame("wide", 0, (128, 128))
    alpha = np.dstack([draw_frame("alpha", 0), np.zeros((64, 64), np.uint8)])
    views = [wide[::2, ::2], wide[::-2, ::2], wide[64:, 64:], alpha[..., :3], alpha[..., 2::-1]]
    views.append(np.asfortranarray(draw_frame("fortran", 0)))
    views.append(np.swapaxes(draw_frame("swapped", 0), 0, 1))
    for number, view in enumerate(views):
        check(model, [Clip([view], TASKS[0]), Clip([view], TASKS[0], "views", (number,))])
    check(model, [Clip(views, TASKS[0]), Clip(views, TASKS[0], "all", range(len(views)))])


def test_steps_of_any_integer_type():
    """Integers of numpy, negative or huge ones would break a table, or wrap around."""
    model = new_model()
    kinds: list[Any] = [np.arange(3), np.array([-5, -1, 2**40]), range(-3, 2), (2**62, 2**62 + 1)]
    for steps in kinds:
        frames = [draw_frame("kinds", number) for number in range(len(steps))]
        check(model, [Clip(frames, TASKS[0], ("kinds", str(steps)), steps)])


# Eviction ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_streams", [1, 2, 5])
def test_more_streams_than_slots(max_streams):
    """With more environments than slots, some would get each other's rewards."""
    model = new_model(max_streams=max_streams)
    for step in range(1, 9):
        clips = [clip(env, range(step), TASKS[env % 2], SIZES[env % 2]) for env in range(6)]
        check(model, clips)
        check(model, clips[step % 3 :: 2])


def test_streams_that_come_back_after_a_long_time():
    """An environment that pauses while others go on would be scored on another's cache."""
    model = new_model(max_streams=2)
    for step in range(1, 4):
        check(model, [clip("early", range(step)), clip("other", range(step))])
    for turn in range(40):  # long enough for an idle one to lose its slot
        check(model, [clip(("later", turn // 10), range(turn % 10 + 1))])
    check(model, [clip("early", range(5)), clip("other", (0, 4)), clip(("later", 0), range(12))])


def test_streams_that_are_never_released():
    """A script that forgets `release` would fill the cache, and then get wrong numbers."""
    with limit_budget(2_000_000):
        model = new_model(max_streams=3)
        for episode in range(60):
            check(model, [clip(("episode", episode), (0, 3))])
            check(model, [clip(("episode", episode), (0, 3, 4)), clip(("episode", 0), (0, 9))])


def test_more_tasks_than_cached_prompts():
    """With an instruction per episode, an old one would get the prompt of another."""
    model = new_model(max_streams=4)
    tasks = [f"put cup {number} on plate {'x' * (number % 7)}" for number in range(45)]
    for number, task in enumerate([*tasks, *tasks[:5], *tasks[-5:]]):
        check(model, [clip(("task", number), (0, 1), task)])
    check(model, [clip(("all", number), (0,), task) for number, task in enumerate(tasks)])


def test_windows_that_outgrow_their_slot():
    """A longer clip, instruction or larger frame than before would overrun its slot."""
    model = new_model(max_streams=3)
    check(model, [clip("a", range(3)), clip("b", range(2))])
    check(model, [clip("a", range(4)), clip("b", range(3), TASKS[0] * 200)])
    check(model, [clip("a", range(5)), clip("big", range(2), size=(320, 256))])
    check(
        model, [clip("a", range(40)), clip("b", range(5)), clip("big", range(3), size=(320, 256))]
    )
    check(model, [clip("a", range(41)), clip("b", range(6))])


# Releasing ---------------------------------------------------------------------------------------


def test_a_name_may_be_used_again_once_it_was_released():
    """The next episode of an environment would be scored on the frames of the last one."""
    model = new_model()
    for episode in range(4):
        for last in range(1, 6):
            check(model, [clip("env", range(last), of=("episode", episode)), clip("b", (0, last))])
        model.release("env")


def test_releasing_an_unknown_stream():
    """The end of an episode without predictions would end the training with an error."""
    model = new_model()
    model.release("unknown")
    check(model, [clip("a", (0, 1))])
    for name in ("unknown", "a", "a", None, ("x", 1)):
        model.release(name)
    check(model, [clip("a", (0, 1), of="other frames"), clip("b", (0,))])


def test_a_released_stream_leaves_the_others_alone():
    """One environment's reset would change the rewards of the others."""
    model = new_model(max_streams=3)
    for step in range(1, 10):
        clips = [clip((env, step // 3), range(step % 3, step + 1)) for env in "abcd"]
        check(model, clips)
        if step % 3 == 2:
            model.release(("abcd"[step % 4], step // 3))


def test_frames_are_not_held_after_the_release():
    """Episode after episode, memory would fill with unused frames."""
    model = new_model()
    frames = [draw_frame("held", step).copy() for step in range(3)]
    held = [weakref.ref(frame) for frame in frames]
    model.predict([Clip(frames, TASKS[0], "held", (0, 1, 2)), Clip(frames, TASKS[0])])
    model.release("held")
    del frames
    gc.collect()
    assert [one() for one in held] == [None] * 3


def test_preferences_between_predictions():
    """Ranking attempts between two steps of an episode would disturb it, or be disturbed."""
    model, eager = new_model(), truth().model
    a, b = clip("a", range(3)), clip("b", (0, 4))
    for last in range(1, 5):
        check(model, [clip("a", range(last))])
        assert model.prefer(a, b) == pytest.approx(eager.prefer(a, b), rel=1e-5)
        check(model, [clip("a", range(last + 1)), a, b])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_an_environment_gives_the_same_rewards(sampling):
    """With the engine on, an agent would train on other rewards."""
    per_engine: dict[str, list[float]] = {"fast": [], "eager": []}
    for engine, rewards in per_engine.items():
        task = "move the gripper to the red block"
        bare = gym.make(
            "robometer_gym/TabletopReach-v0",
            render_mode="rgb_array",
            task=task,
            max_episode_steps=30,
        )
        env = RobometerRewardWrapper(
            bare,
            task=task,
            reward_model=new_model(engine, max_streams=1),
            predict_every=2,
            max_frames=4,
            sampling=sampling,
            terminate_on_success=False,
        )
        env.action_space.seed(0)
        for episode in range(2):
            env.reset(seed=episode)
            ended = False
            while not ended:
                _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
                rewards.append(float(reward))
                ended = terminated or truncated
        env.close()
    np.testing.assert_allclose(per_engine["fast"], per_engine["eager"], rtol=0, atol=1e-5)
    assert len(per_engine["fast"]) > 20
