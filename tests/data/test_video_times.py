"""Times of a video's frames: true ones at uneven rates, sampling by them, and memory."""

import subprocess
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robometer_gym.data import Video, VideoFrames, read_video, sample_at_fps, write_video
from robometer_gym.data import video as video_module
from tests.data.videos import moving_square, numbered_frames, read_numbers
from tests.paths import ROOT


def write_at(path: Path, ticks: list[int], clock: int) -> Path:
    """Write frames that show their number, each at a time in ticks of a clock (per second)."""
    av = pytest.importorskip("av")
    options = {"video_track_timescale": str(clock)} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, clock)
        for image, tick in zip(numbered_frames(len(ticks)), ticks, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, clock)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def seconds_of(video: Video) -> list[float]:
    """Return the times of a video that has some."""
    assert video.seconds is not None
    return [float(second) for second in video.seconds]


def test_jitter_is_read(tmp_path):
    """A sound recording of a phone would be refused, in the middle of a training."""
    ticks = [20 * n + n // 25 for n in range(300)]  # each 25th frame is 1/600 s late
    path = write_at(tmp_path / "phone.mp4", ticks, 600)
    frames = VideoFrames(path)
    assert read_numbers(frames[[299, 0, 25, 24]]) == [299, 0, 25, 24]
    video = read_video(path)
    assert seconds_of(video) == pytest.approx([tick / 600 for tick in ticks], abs=1e-9)


SLOW_THEN_FAST = [n / 2 for n in range(16)] + [8 + n / 30 for n in range(60)]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_an_uneven_video_is_sampled_by_time(tmp_path, name):
    """Scores would be of other moments than stated: 1.3 s for 4.5 s."""
    path = write_at(tmp_path / name, [round(1000 * t) for t in SLOW_THEN_FAST], 1000)
    whole = read_video(path)
    assert seconds_of(whole) == pytest.approx(SLOW_THEN_FAST, abs=2e-3)
    positions = whole.sample(3)
    times = np.array(SLOW_THEN_FAST)[positions]
    assert positions[0] == 0
    assert positions[-1] == len(SLOW_THEN_FAST) - 1
    # Each moment of the 10 s has a sampled frame as near as the video and 3 per second allow.
    for moment in np.linspace(0, SLOW_THEN_FAST[-1], 100):
        best = np.abs(np.array(SLOW_THEN_FAST) - moment).min()
        assert np.abs(times - moment).min() <= best + 1 / 3
    sampled = read_video(path, fps=3)
    assert sampled.indices.tolist() == positions == read_numbers(sampled.frames)
    assert seconds_of(sampled) == pytest.approx(times.tolist(), abs=2e-3)


@pytest.mark.parametrize("name", ["even.mp4", "even.mkv", "even.avi", "even.npz"])
def test_reading_at_a_rate_is_reading_and_sampling(tmp_path, name):
    """`score --fps` would show other frames than the ones that it reports."""
    path = tmp_path / name
    if name.endswith("npz"):
        np.savez(path, frames=numbered_frames(50), fps=10)
    else:
        write_at(path, list(range(0, 3000, 60)), 600)
    whole, part = read_video(path), read_video(path, fps=2)
    expected = sample_at_fps(50, whole.fps or 0, 2)
    assert part.indices.tolist() == whole.sample(2) == expected
    assert read_numbers(part.frames) == expected
    assert seconds_of(part) == [seconds_of(whole)[index] for index in expected]
    assert part.fps == whole.fps
    assert part.sample(2) == list(range(len(expected)))


@given(
    st.lists(st.integers(1, 200), min_size=0, max_size=40),
    st.floats(0.05, 60),
)
def test_sampling_always_has_the_first_and_the_last_frame(gaps, fps):
    """A clip would be scored on its first frame alone, or a position be twice in a sample."""
    seconds = np.cumsum([0, *gaps]) / 100
    total = len(seconds)
    native = (total - 1) / seconds[-1] if total > 1 else 30.0
    video = Video(np.zeros((total, 2, 2, 3), np.uint8), native, seconds)
    positions = video.sample(fps)
    assert positions[0] == 0
    assert positions[-1] == total - 1
    assert positions == sorted(set(positions))
    duration = seconds[-1] * total / max(1, total - 1)
    assert len(positions) <= max(2, round(duration * fps) + 1)


def test_times_and_indices_must_fit_the_frames():
    """Scores would get the times of other frames."""
    with pytest.raises(ValueError, match=r"seconds must be \(12,\), one value per frame; got \(3,"):
        Video(moving_square(), 10.0, np.zeros(3))
    with pytest.raises(ValueError, match=r"indices must be \(12,\), one value per frame; got \(2,"):
        Video(moving_square(), 10.0, indices=np.zeros(2, np.int64))


def test_an_unknown_rate_cannot_be_sampled_while_reading(tmp_path):
    """An explicit --fps would be ignored silently for a .npy."""
    np.save(tmp_path / "video.npy", moving_square())
    with pytest.raises(ValueError, match=r"video\.npy: fps=3 needs the video's own rate"):
        read_video(tmp_path / "video.npy", fps=3)
    with pytest.raises(ValueError, match="fps must be a number of frames per second > 0, got 0"):
        read_video(tmp_path / "video.npy", fps=0)


@pytest.mark.parametrize("name", ["video.mp4", "video.mkv"])
def test_reading_holds_the_frames_once(tmp_path, name):
    """15 s at 1080p60 would take 10.8 GB for 5.6 GB of frames."""
    path = write_at(tmp_path / name, list(range(0, 12000, 60)), 600)
    read_video(path)  # imports and caches
    tracemalloc.start()
    try:
        frames = read_video(path).frames
        _, peak = tracemalloc.get_traced_memory()
        del frames
        tracemalloc.reset_peak()
        few = read_video(path, fps=0.5).frames
        _, sampled_peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.2 * 200 * 48 * 64 * 3
    assert sampled_peak < 1.5 * few.nbytes + 500_000


MEASURE_PEAK = """
import sys
from robometer_gym.data import read_video
from tests.memory import peak_bytes

read_video(sys.argv[1], fps=0.1)  # imports, and the decoder's own memory
before = peak_bytes()
frames = read_video(sys.argv[1]).frames
print((peak_bytes() - before) / frames.nbytes)
"""


def test_the_decoder_keeps_no_frames(tmp_path):
    """Memory that Python does not count would grow with the video: by half of its frames."""
    path = tmp_path / "large.mp4"
    write_video(path, np.broadcast_to(moving_square(1, 480, 640), (200, 480, 640, 3)), 10)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE_PEAK, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert 0.9 < float(done.stdout) < 1.2


def test_frames_that_do_not_fit_are_refused_before_memory_is_taken(tmp_path, monkeypatch):
    """The program would be killed, or end in an allocator's error that gives no advice."""
    path = write_at(tmp_path / "video.mp4", list(range(0, 6000, 60)), 600)
    monkeypatch.setattr(video_module, "_MAX_BYTES", 50 * 48 * 64 * 3)
    message = r"video\.mp4: its 100 frames of 48x64 take .* GiB, more than .* Pass fps="
    with pytest.raises(ValueError, match=message):
        read_video(path)
    assert len(read_video(path, fps=1).frames) == 10
    assert len(read_video(path, frame_size=24).frames) == 100
