"""The public test doubles: scripted model, counting env and the contract check."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from PIL import Image

from robometer_gym.reward_model import Clip, Prediction, RewardModelError
from robometer_gym.testing import CountingEnv, ScriptedRewardModel, check_reward_model


def clip(length: int = 2, value: int = 1) -> Clip:
    """Return a clip of one color."""
    return Clip(np.full((length, 4, 4, 3), value, np.uint8), "stack the cups")


def last(predictions: list[Prediction]) -> list[tuple[float, float]]:
    """Return the newest progress and success of each prediction."""
    return [(float(p.progress[-1]), float(p.success[-1])) for p in predictions]


def test_a_script_is_used_in_the_order_of_the_clips():
    """A test that expects 0.25 and then 0.75 would check something else."""
    model = ScriptedRewardModel(progress=[0.25, 0.75, 1.0], success=[0.0, 0.5, 1.0])
    first, second, third = clip(2), clip(1), clip(3)
    assert last(model.predict([first, second])) == [(0.25, 0.0), (0.75, 0.5)]
    assert last(model.predict([third])) == [(1.0, 1.0)]
    assert model.clips == [first, second, third]
    assert model.batches == [2, 1]


def test_every_frame_gets_the_scripted_value():
    """Shapes would not be those of a real model."""
    (prediction,) = ScriptedRewardModel(progress=0.25, success=0.5).predict([clip(3)])
    np.testing.assert_array_equal(prediction.progress, np.full(3, 0.25, np.float32))
    np.testing.assert_array_equal(prediction.success, np.full(3, 0.5, np.float32))
    assert prediction.progress.dtype == prediction.success.dtype == np.float32


def test_a_script_may_be_a_function_of_the_clip():
    """A script could not depend on the frames that reach the model."""
    model = ScriptedRewardModel(progress=lambda c: c.images[-1][0, 0, 0] / 4, success=len)
    assert last(model.predict([clip(1, 1), clip(1, 3)])) == [(0.25, 1.0), (0.75, 1.0)]


def test_a_script_that_is_too_short_raises():
    """A wrapper that predicts once too often would go unnoticed."""
    model = ScriptedRewardModel(progress=[0.5])
    model.predict([clip()])
    message = "The script has 1 values for progress; this is clip 2."
    with pytest.raises(IndexError, match=message):
        model.predict([clip()])


def test_an_exception_in_a_script_is_raised_for_its_clip():
    """Failures of a model could not be tested."""
    model = ScriptedRewardModel(progress=[0.25, TimeoutError("no response"), 0.75])
    model.predict([clip()])
    with pytest.raises(TimeoutError, match="no response"):
        model.predict([clip()])
    assert last(model.predict([clip()])) == [(0.75, 0.0)]


def test_released_streams_are_recorded():
    """A test could not see that a wrapper forgets to release."""
    model = ScriptedRewardModel()
    model.release("a")
    model.release("b")
    assert model.released == ["a", "b"]


@pytest.mark.parametrize("size", [(24, 32), (12, 16), (240, 320), (7, 300)])
def test_a_frame_encodes_its_step_also_after_a_resize(size):
    """Tests that shrink frames would read wrong steps, and pass or fail for no reason."""
    env = CountingEnv(lengths=[1000])
    env.reset()
    env.reset()
    for step in range(1, 311):
        env.step(0)
        if step in (1, 2, 127, 255, 256, 257, 299, 310):
            frame = env.render()
            assert frame is not None
            resized = Image.fromarray(frame).resize(size[::-1], Image.Resampling.BICUBIC)
            decoded = CountingEnv.read(np.asarray(resized))
            assert decoded == {"camera": 0, "episode": 1, "step": step}


def test_every_frame_of_a_long_episode_is_different():
    """Two steps that look the same would hide an off-by-one after step 255."""
    env = CountingEnv(lengths=[700])
    env.reset()
    steps = []
    for _ in range(700):
        observation, reward, *_ = env.step(0)
        frame = env.render()
        assert frame is not None
        steps.append(CountingEnv.read(frame)["step"])
        assert observation[0] == reward == steps[-1]
    assert steps == list(range(1, 701))


def test_no_frame_is_black():
    """Camera checks would refuse the test env's own first frame."""
    env = CountingEnv()
    for _ in range(40):
        env.reset()
        frame = env.render()
        assert frame is not None
        assert frame.any()


def test_a_mixed_frame_cannot_be_read():
    """A frame blended from two steps would be taken for one of them."""
    frame = np.ones((4, 4, 3), np.uint8)
    frame[2, 2, 2] = 7
    with pytest.raises(ValueError, match="not of one color: it was mixed from several frames"):
        CountingEnv.read(frame)


def test_cameras_of_the_counting_env_differ():
    """A wrapper that mixes up two cameras would pass its tests."""
    env = CountingEnv(cameras=["front", "wrist"])
    observation, _ = env.reset()
    env.reset()
    observation, *_ = env.step(0)
    assert CountingEnv.read(observation["front"]) == {"camera": 1, "episode": 1, "step": 1}
    assert CountingEnv.read(observation["wrist"]) == {"camera": 2, "episode": 1, "step": 1}
    assert observation["count"] == 1
    assert observation in env.observation_space


def test_the_counting_env_counts_its_renders():
    """A test could not see that frames are drawn and thrown away."""
    env = CountingEnv()
    env.reset()
    env.step(0)
    assert env.renders == 0
    env.render()
    env.render()
    assert env.renders == 2


def test_the_counting_env_ends_as_configured():
    """Termination, truncation and the env's own success would not be those a test chose."""
    env = CountingEnv(lengths=[1, 2], ends=["terminated", "truncated"], success=[True, False])
    steps = []
    for _ in range(3):
        env.reset()
        ended = False
        while not ended:
            _, reward, terminated, truncated, info = env.step(0)
            ended = terminated or truncated
            steps.append((reward, terminated, truncated, info["is_success"]))
    assert steps == [
        (1.0, True, False, True),
        (1.0, False, False, False),
        (2.0, False, True, False),
        (1.0, True, False, True),
    ]


def test_without_render_mode_there_is_no_frame():
    """An env that cannot render could not be tested."""
    env = CountingEnv(render_mode=None)
    env.reset()
    assert env.render() is None
    assert env.renders == 0


@pytest.mark.filterwarnings("ignore:.*Not able to test alternative render modes:UserWarning")
@pytest.mark.filterwarnings("ignore:.*Box observation space (max|min)imum value:UserWarning")
def test_the_counting_env_is_a_gymnasium_env():
    """Users' tests would fail on the test double instead of on their code."""
    check_env(CountingEnv())
    assert isinstance(CountingEnv(cameras=["front"]), gym.Env)


def brightness(clip: Clip) -> Prediction:
    """An honest model: the mean over all frames up to each one."""
    means = np.array([image.mean() for image in clip.images]) / 255
    running = np.cumsum(means) / np.arange(1, len(clip) + 1)
    return Prediction(running.astype(np.float32), (running / 2).astype(np.float32))


def honest(clips):
    """Return correct predictions."""
    return [brightness(clip) for clip in clips]


class Model:
    """A reward model made of one function."""

    def __init__(self, predict):
        self.predict = predict


def swaps_order(clips):
    """Swap predictions of equal length, so that only the values can show it."""
    predictions = honest(clips)
    for i, a in enumerate(clips):
        for j, b in enumerate(clips):
            if i < j and len(a) == len(b):
                predictions[i], predictions[j] = predictions[j], predictions[i]
    return predictions if len(clips) < 2 else [*predictions[1:], predictions[0]]


def pads_to_the_longest(clips):
    """Return the padding of a batch as if it were frames."""
    longest = max((len(clip) for clip in clips), default=0)
    return [
        Prediction(np.resize(p.progress, longest), np.resize(p.success, longest))
        for p in honest(clips)
    ]


def squeezes_single_frames(clips):
    """Lose the time axis of a clip of one frame."""
    return [
        Prediction(p.progress.squeeze(), p.success.squeeze()) if len(p.progress) == 1 else p
        for p in honest(clips)
    ]


def returns_float64(clips):
    """Leave the dtype to NumPy."""
    return [Prediction(p.progress.astype(np.float64), p.success) for p in honest(clips)]


def returns_nan(clips):
    """Overflow."""
    return [Prediction(p.progress, p.success * np.float32(np.nan)) for p in honest(clips)]


def returns_logits(clips):
    """Forget the last layer."""
    return [Prediction(p.progress * 10 - 5, p.success) for p in honest(clips)]


def returns_a_tuple(clips):
    """Return a tuple."""
    return tuple(honest(clips))


def returns_too_few(clips):
    """Drop the clips that do not fit into its batch."""
    return honest(clips)[:3]


def never_returns_nothing(clips):
    """Make up a prediction for no clips."""
    return honest(clips) if clips else [Prediction(np.zeros(1, np.float32), np.zeros(1, "f4"))]


def depends_on_the_batch(clips):
    """Normalize over the batch, as careless attention masks do."""
    predictions = honest(clips)
    top = max((p.progress.max() for p in predictions), default=1)
    return [Prediction((p.progress / top).astype(np.float32), p.success) for p in predictions]


def depends_on_the_batch_in_success(clips):
    """Likewise, in the success probabilities alone."""
    return [Prediction(p.progress, p.success / np.float32(len(clips))) for p in honest(clips)]


def depends_on_the_stream(clips):
    """Predict otherwise when a cache could have been used."""
    return [
        Prediction(p.progress, p.success if clip.stream is None else 1 - p.success)
        for clip, p in zip(clips, honest(clips), strict=True)
    ]


@pytest.mark.parametrize(
    ("predict", "error", "message"),
    [
        (swaps_order, RewardModelError, "returned progress of shape"),
        (pads_to_the_longest, RewardModelError, r"of shape \(8,\); expected \(1,\)"),
        (squeezes_single_frames, RewardModelError, r"of shape \(\); expected \(1,\)"),
        (returns_float64, RewardModelError, "progress must be a float32 array, got float64"),
        (returns_nan, RewardModelError, r"returned success \[nan"),
        (returns_logits, RewardModelError, r"expected finite values in \[0, 1\]"),
        (returns_a_tuple, RewardModelError, "must return a list of 4 predictions"),
        (returns_too_few, RewardModelError, "one per clip; got 3"),
        (never_returns_nothing, RewardModelError, "must return a list of 0 predictions"),
        (depends_on_the_batch, AssertionError, "progress of Clip.* in a batch and .* alone"),
        (depends_on_the_batch_in_success, AssertionError, "success of Clip.* in a batch"),
        (depends_on_the_stream, AssertionError, "success of Clip.* in a batch.* without a stream"),
    ],
)
def test_a_model_that_breaks_the_contract_is_caught(predict, error, message):
    """Such a model would give wrong rewards in training, unnoticed."""
    with pytest.raises(error, match=message):
        check_reward_model(Model(predict))


def test_a_model_that_mixes_up_its_predictions_is_caught_by_their_values():
    """With all values plausible, each environment would get the reward of another one's video."""

    def mixes(clips):
        means = [brightness(clip) for clip in reversed(clips)]
        return [
            Prediction(np.full(len(clip), p.progress[0]), np.full(len(clip), p.success[0]))
            for clip, p in zip(clips, means, strict=True)
        ]

    with pytest.raises(AssertionError, match=r"progress of Clip.* in a batch and .* alone"):
        check_reward_model(Model(mixes))


def unmoved(clips):
    """Return predictions that do not depend on the frames."""
    half = [np.full(len(clip), 0.5, np.float32) for clip in clips]
    return [Prediction(values, values) for values in half]


def writes_to_frames(clips):
    """Normalize in place, in all frames at once."""
    for clip in clips:
        clip.frames[0] = 0
    return unmoved(clips)


def writes_to_images(clips):
    """Normalize in place, frame by frame."""
    for clip in clips:
        clip.images[0][:] = 0
    return unmoved(clips)


def writes_to_images_of_streams(clips):
    """Write only to frames of a stream, as a faulty cache would."""
    for clip in clips:
        if clip.stream is not None:
            clip.images[0][:] = 0
    return unmoved(clips)


@pytest.mark.parametrize(
    "predict", [writes_to_frames, writes_to_images, writes_to_images_of_streams]
)
def test_a_model_that_changes_frames_is_caught(predict):
    """The next window holds the same frames: they would be scored after the change."""
    with pytest.raises(AssertionError, match="predict changed the frames of Clip"):
        check_reward_model(Model(predict))


def test_an_honest_model_passes():
    """Good models would be refused."""
    check_reward_model(Model(honest))


def test_the_tolerance_is_the_users():
    """A bf16 model, whose batches differ in the third digit, could not be checked at all."""

    def rounds(clips):
        shift = np.float32(0.002 if len(clips) > 1 else 0.0)
        return [Prediction(p.progress + shift, p.success) for p in honest(clips)]

    check_reward_model(Model(rounds), tolerance=0.01)
    with pytest.raises(AssertionError, match="in a batch"):
        check_reward_model(Model(rounds))


def test_a_script_may_be_an_array():
    """The array would be broadcast over the frames of the first clip."""
    model = ScriptedRewardModel(progress=np.array([0.25, 0.75]))
    clip = Clip(np.zeros((3, 4, 4, 3), np.uint8), "open it")
    assert [p.progress[-1] for p in model.predict([clip, clip])] == [0.25, 0.75]
