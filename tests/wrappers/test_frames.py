"""RobometerRewardWrapper: frames from each kind of camera, and frames that it refuses."""

from typing import Any

import pytest
from gymnasium.wrappers import TimeLimit

from robometer_gym.testing import CountingEnv, ScriptedRewardModel
from tests.wrappers.rollouts import play, windows, wrap


def test_several_cameras_are_one_stream_each_and_their_mean_counts():
    """Frames of two cameras would be mixed, or one camera be ignored."""
    progress = {0: [0.25, 0.5, 0.5], 2: [0.75, 0.5, 1.0]}
    success = {0: [0.0, 0.5, 0.75], 2: [0.0, 1.0, 0.75]}

    def script(table):
        def predict(clip):
            now = CountingEnv.read(clip.images[-1])
            return table[now["camera"]][now["step"]]

        return predict

    model = ScriptedRewardModel(progress=script(progress), success=script(success))
    bare = CountingEnv(cameras=["front", "wrist"])
    env = wrap(bare, model, predict_every=1, camera={"above": "render", "hand": "wrist"})
    _, info = env.reset()
    assert info["robometer/progress"] == 0.5
    results = play(env)
    assert [step[:2] for step in results] == [(0.0, False), (0.25, True)]
    assert [step[3]["robometer/success_prob"] for step in results] == [0.75, 0.75]
    assert model.batches == [2, 2, 2]
    assert bare.renders == 3
    above, hand = model.clips[::2], model.clips[1::2]
    for clips, camera in ((above, 0), (hand, 2)):
        assert {CountingEnv.read(i)["camera"] for clip in clips for i in clip.images} == {camera}
        assert [clip.steps for clip in clips] == [(0,), (0, 1), (0, 1, 2)]
        assert len({clip.stream for clip in clips}) == 1
    assert above[0].stream != hand[0].stream
    assert set(model.released) == {above[0].stream, hand[0].stream}
    assert len(model.released) == 2


@pytest.mark.parametrize("camera", ["front", lambda env, observation: observation["front"]])
def test_frames_from_the_observation(camera):
    """The frame of another step would be shown, or the env be rendered for nothing."""
    bare = CountingEnv(lengths=[3], cameras=["front"], render_mode=None)
    model = ScriptedRewardModel()
    env = wrap(bare, model, predict_every=2, camera=camera)
    env.reset()
    play(env)
    assert windows(model) == [[0], [0, 2], [0, 2, 3]]
    assert {CountingEnv.read(i)["camera"] for clip in model.clips for i in clip.images} == {1}
    assert bare.renders == 0


def test_a_camera_function_is_given_env_and_observation():
    """A function could not move the simulator's camera, or see the observation."""
    given_: list[tuple[Any, Any]] = []

    def camera(env, observation):
        given_.append((env, float(observation[0])))
        return env.render()

    inner = TimeLimit(CountingEnv(), 4)
    env = wrap(inner, ScriptedRewardModel(), predict_every=3, camera=camera)
    env.reset()
    play(env)
    assert [step for _, step in given_] == [0.0, 3.0, 4.0]
    assert all(env is inner for env, _ in given_)


@pytest.mark.parametrize(
    ("size", "frame_size", "shown"),
    [
        ((480, 640), 240, (240, 320)),
        ((640, 480), 240, (320, 240)),
        ((480, 640), None, (480, 640)),
        ((24, 32), 240, (24, 32)),
        ((240, 240), 240, (240, 240)),
        ((24, 32), 12, (12, 16)),
    ],
)
def test_frames_are_shrunk_and_never_enlarged(size, frame_size, shown):
    """The model would be four times slower, or be shown sizes that it was not trained on."""
    model = ScriptedRewardModel()
    env = wrap(CountingEnv(lengths=[2], size=size), model, frame_size=frame_size)
    env.reset()
    play(env)
    assert [clip.frames.shape for clip in model.clips] == [(1, *shown, 3), (2, *shown, 3)]
    assert windows(model) == [[0], [0, 2]]


def test_what_cannot_give_frames_is_refused_at_once():
    """The mistake would show after the model was loaded, or as a black film."""
    with pytest.raises(ValueError, match="made with render_mode='rgb_array', got render_mode=None"):
        wrap(CountingEnv(render_mode=None), "org/name")
    with pytest.raises(ValueError, match="camera 'wrist' is not a key of the observation"):
        wrap(CountingEnv(), "org/name", camera="wrist")
    with pytest.raises(ValueError, match="predict_every must be an integer >= 1, got 0"):
        wrap(CountingEnv(), "org/name", predict_every=0)
    with pytest.raises(TypeError, match="reward_model must be a hub id"):
        wrap(CountingEnv(), None)
    with pytest.raises(TypeError, match="unexpected keyword argument 'predict_evry'"):
        wrap(CountingEnv(), "org/name", predict_evry=3)


@pytest.mark.parametrize("at", [0, 2, 3])
def test_a_bad_frame_is_refused_when_it_comes(at):
    """A renderer that breaks in mid-training would go on giving rewards."""

    class Breaks(CountingEnv):
        def render(self):
            frame: Any = super().render()
            if self.steps != at:
                return frame
            return frame / 255

    env = wrap(Breaks(lengths=[3]), ScriptedRewardModel(), predict_every=2, on_error="hold")

    def all_steps() -> None:
        env.reset()
        play(env)

    with pytest.raises(ValueError, match=r"Frame from env.render\(\) must be \(H, W, 3\) uint8"):
        all_steps()


def test_a_camera_that_changes_its_size_is_refused():
    """Frames of two sizes cannot be one video; the model would fail without naming the camera."""

    class Zooms(CountingEnv):
        def step(self, action):
            self.size = (12, 16)
            return super().step(action)

    env = wrap(Zooms(), ScriptedRewardModel(), predict_every=1)
    env.reset()
    with pytest.raises(ValueError, match=r"of one size, got \(24, 32, 3\) and \(12, 16, 3\)"):
        env.step(0)


def test_frames_are_not_the_renderers_buffer():
    """MuJoCo paints into one buffer: every frame of the history would show the newest moment."""

    class Buffered(CountingEnv):
        buffer: Any = None

        def render(self):
            frame = super().render()
            if self.buffer is None:
                self.buffer = frame
            self.buffer[:] = frame
            return self.buffer

    model = ScriptedRewardModel()
    env = wrap(Buffered(lengths=[4]), model, predict_every=1)
    env.reset()
    play(env)
    assert windows(model) == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]
