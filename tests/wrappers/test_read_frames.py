"""Cameras: the source of each frame, and the frames that are refused."""

import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robometer_gym.testing import CountingEnv
from robometer_gym.tracking.window import shrink
from robometer_gym.wrappers.read_frames import Cameras


class Showing(gym.Env[Any, Any]):
    """An env that renders one image, always from the same object."""

    def __init__(self, image: Any, render_mode: str | None = "rgb_array") -> None:
        self.image = image
        self.render_mode = render_mode
        self.observation_space = gym.spaces.Box(0, 1)
        self.action_space = gym.spaces.Discrete(2)

    def render(self) -> Any:
        return self.image


def noise(height: int, width: int) -> Any:
    """A frame in which no two pixels need be alike, and none is black."""
    return np.random.default_rng(0).integers(1, 256, (height, width, 3), dtype=np.uint8)


def read(image: Any, frame_size: int | None = None) -> Any:
    """Return the frame that the wrapper would keep of a rendered image."""
    return Cameras("render", frame_size, env := Showing(image)).read(env, None)["render"]


@pytest.mark.parametrize(
    ("camera", "names"),
    [
        ("render", ["render"]),
        ("wrist", ["wrist"]),
        (lambda env, observation: observation["wrist"], ["camera"]),
        ({"a": "render", "b": "wrist"}, ["a", "b"]),
    ],
)
def test_each_camera_has_a_name(camera, names):
    """Frames of two cameras would be mixed in one clip."""
    env = CountingEnv(cameras=["front", "wrist"])
    observation, _ = env.reset()
    assert list(Cameras(camera, 240, env).read(env, observation)) == names


def test_each_camera_shows_what_it_is_pointed_at():
    """The model would judge the wrist camera's image as the front's."""
    env = CountingEnv(cameras=["front", "wrist"])
    env.reset()
    observation, *_ = env.step(0)
    cameras = Cameras(
        {
            "above": "render",
            "left": "front",
            "right": lambda env, observation: observation["wrist"],
            "again": lambda env, observation: env.render(),
        },
        None,
        env,
    )
    frames = cameras.read(env, observation)
    seen = {name: CountingEnv.read(frame)["camera"] for name, frame in frames.items()}
    assert seen == {"above": 0, "left": 1, "right": 2, "again": 0}


def test_only_the_chosen_camera_is_rendered():
    """A slow renderer would run although the frames come from the observation."""
    env = CountingEnv(cameras=["front"], render_mode=None)
    observation, _ = env.reset()
    Cameras("front", None, env).read(env, observation)
    assert env.renders == 0


@pytest.mark.parametrize("render_mode", [None, "human", "rgb_array_list", "ansi"])
def test_a_render_mode_that_gives_no_frames_is_refused_at_once(render_mode):
    """The mistake would show after minutes of loading a model."""
    message = f"needs an env made with render_mode='rgb_array', got render_mode={render_mode!r}"
    with pytest.raises(ValueError, match=message):
        Cameras("render", None, Showing(None, render_mode))
    with pytest.raises(ValueError, match=message):
        Cameras({"a": "render"}, None, Showing(None, render_mode))


def test_a_key_that_is_not_there_is_refused_at_once():
    """A KeyError at the first reset would not list the keys that there are."""
    message = r"camera 'wirst' is not a key of the observation: its keys are \['count', 'wrist'\]"
    with pytest.raises(ValueError, match=message):
        Cameras("wirst", None, CountingEnv(cameras=["wrist"]))
    with pytest.raises(ValueError, match=r"camera 'wrist' is not a key.*: it is a Box"):
        Cameras({"front": "render", "b": "wrist"}, None, CountingEnv())


def test_a_render_that_gives_nothing_is_refused():
    """A None would fail deep in the image code."""
    with pytest.raises(ValueError, match=r"env.render\(\) returned None: make the env with"):
        read(None)


@pytest.mark.parametrize(
    ("image", "came"),
    [
        (noise(4, 6)[..., :1], "(4, 6, 1) uint8"),
        (noise(4, 6)[..., 0], "(4, 6) uint8"),
        (np.moveaxis(noise(4, 6), 2, 0), "(3, 4, 6) uint8"),
        (np.ones((4, 6, 4), np.uint8), "(4, 6, 4) uint8"),
        (noise(4, 6)[None], "(1, 4, 6, 3) uint8"),
        (noise(4, 6) / np.float32(255), "(4, 6, 3) float32"),
        (noise(4, 6).astype(np.int64), "(4, 6, 3) int64"),
        (noise(4, 6)[:0], "(0, 6, 3) uint8"),
        ([noise(4, 6)], "() list"),
    ],
)
def test_other_shapes_and_types_are_refused(image, came):
    """Floats or channel-first frames would be judged as noise, without a word."""
    message = f"must be (H, W, 3) uint8 RGB; got {came}. Give camera=lambda"
    with pytest.raises(ValueError, match="Frame from " + re.escape(f"env.render() {message}")):
        read(image)
    env = Showing(None)
    function = Cameras(lambda env, observation: image, None, env)
    with pytest.raises(ValueError, match="Frame from the camera function must be"):
        function.read(env, None)


def test_an_observation_that_is_no_frame_is_refused():
    """The user could not see which of the observations is meant."""
    env = CountingEnv(cameras=["front"])
    observation, _ = env.reset()
    message = r"Frame from observation\['count'\] must be \(H, W, 3\) uint8 RGB; got \(1,\) float32"
    with pytest.raises(ValueError, match=message):
        Cameras("count", None, env).read(env, observation)


@given(st.integers(0, 39), st.integers(0, 52), st.integers(0, 2), st.integers(1, 255))
def test_one_lit_pixel_is_not_black(row, column, channel, value):
    """A dark but sound image would stop the training."""
    image = np.zeros((40, 53, 3), np.uint8)
    image[row, column, channel] = value
    cameras = Cameras("render", None, env := Showing(image), max_black_frames=1)
    np.testing.assert_array_equal(cameras.read(env, None)["render"], image)


@pytest.mark.parametrize("frame_size", [None, 4, 240, 2])
def test_a_frame_is_a_copy(frame_size):
    """Renderers paint into one buffer: the whole history would show the newest frame."""
    image = noise(4, 6)
    frame = read(image, frame_size)
    before = frame.copy()
    image[:] = 255 - image
    np.testing.assert_array_equal(frame, before)
    assert not np.shares_memory(frame, image)


def test_a_frame_that_is_kept_as_it_is_keeps_every_pixel():
    """The model would see other colors, or the image upside down."""
    image = noise(30, 40)
    for size in (None, 30, 240):
        np.testing.assert_array_equal(read(image, size), image)
    upside_down = read(image[::-1], None)
    np.testing.assert_array_equal(upside_down, image[::-1])
    assert upside_down.flags.c_contiguous


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
def test_frames_shrink_to_the_size_and_are_never_enlarged(height, width, size):
    """The model would be shown sizes it was not trained on, or be slow for nothing."""
    shrunk = shrink(noise(height, width), size)
    assert shrunk.dtype == np.uint8
    if min(height, width) <= size:
        assert shrunk.shape == (height, width, 3)
    else:
        assert min(shrunk.shape[:2]) == size
        scale = size / min(height, width)
        assert shrunk.shape[0] == pytest.approx(height * scale, abs=0.5)
        assert shrunk.shape[1] == pytest.approx(width * scale, abs=0.5)
        assert shrunk.shape[2] == 3


def test_shrinking_averages_and_keeps_the_image_the_right_way_up():
    """Axes or channels that change places would turn the scene."""
    image = np.zeros((40, 80, 3), np.uint8)
    image[:20, :40] = (200, 0, 0)
    image[20:, 40:] = (0, 0, 100)
    small = shrink(image, 10)
    assert small.shape == (10, 20, 3)
    assert small[1, 1].tolist() == [200, 0, 0]
    assert small[8, 18].tolist() == [0, 0, 100]
    assert not small[1, 18].any()


def test_shrinking_a_flipped_view():
    """`camera=lambda env, _: env.render()[::-1]` turns Meta-World's image upright."""
    image = noise(64, 48)
    np.testing.assert_array_equal(shrink(image[::-1], 24), shrink(image[::-1].copy(), 24))


def test_a_key_that_an_observation_lacks_is_named():
    """A camera that drops out would end in "KeyError: 'front'"."""
    env = CountingEnv(cameras=("front",))
    observation, _ = env.reset()
    cameras = Cameras("front", None, env)
    del observation["front"]
    with pytest.raises(ValueError, match=r"no 'front', although its space has: .*\['count'\]"):
        cameras.read(env, observation)
