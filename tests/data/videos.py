"""Videos for the tests of data: frames that show their number, and a fake PyAV container."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest


def moving_square(length: int = 12, height: int = 48, width: int = 64) -> np.ndarray:
    """Return a white square that moves over gray: (T, H, W, 3) uint8, easy for a codec."""
    frames = np.full((length, height, width, 3), 60, np.uint8)
    for step, frame in enumerate(frames):
        frame[16:32, 3 * step : 3 * step + 16] = 230
    return frames


def numbered_frames(length: int) -> np.ndarray:
    """Return frames that show their number as bright squares, one per bit: (T, 48, 64, 3) uint8."""
    bits = np.arange(length)[:, None] >> np.arange(12) & 1
    squares = np.where(bits, 220, 40).astype(np.uint8).reshape(length, 3, 4, 1)
    return squares.repeat(16, axis=1).repeat(16, axis=2).repeat(3, axis=3)


def read_numbers(frames: np.ndarray) -> list[int]:
    """Return the numbers that `numbered_frames` show."""
    squares = frames.reshape(len(frames), 3, 16, 4, 16, 3).mean(axis=(2, 4, 5))
    return [int(row @ (1 << np.arange(12))) for row in squares.reshape(-1, 12) > 130]


def write_numbered_video(
    path: Path,
    length: int = 300,
    *,
    times: list[int] | None = None,
    flags: str = "",
    **options: str,
) -> Path:
    """Write `numbered_frames` with libx264 at 10 frames per second.

    Args:
        path: the file.
        length: number of frames.
        times: the time of each frame, in tenths of a second; None is 0, 1, 2, ...
        flags: movflags of the file.
        options: options of libx264, whose default is groups of 250 frames with B-frames.
    """
    av = pytest.importorskip("av")
    with av.open(str(path), "w", options={"movflags": flags} if flags else {}) as container:
        stream = container.add_stream("libx264", rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10)
        for image, time in zip(numbered_frames(length), times or range(length), strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


class FakeContainer:
    """A file as PyAV opens it, with frames that no encoder would write.

    Args:
        images: the decoded frames.
        corrupt: whether PyAV marks them as corrupt.
        late: ticks by which all but the first are later than their packets.
        timed: whether packets and frames have times.
    """

    def __init__(
        self, images: list[np.ndarray], corrupt: bool = False, late: int = 0, timed: bool = True
    ) -> None:
        self.images, self.corrupt, self.late, self.timed = images, corrupt, late, timed
        self.streams = self
        self.video = [self]
        self.format = SimpleNamespace(name="fake")
        self.codec_context = SimpleNamespace(width=64, height=48)
        self.average_rate = None
        self.index = 0
        self.index_entries: list[object] = []
        self.start_time = 0
        self.time_base = Fraction(1)

    def demux(self) -> Iterator[SimpleNamespace]:
        for number in range(len(self.images)):
            yield SimpleNamespace(
                pts=number if self.timed else None,
                duration=1,
                time_base=self.time_base,
                stream_index=0,
                size=1,
                is_discard=False,
            )

    def decode(self, stream: object) -> Iterator[SimpleNamespace]:
        for number, image in enumerate(self.images):
            yield SimpleNamespace(
                pts=number + self.late * (number > 0) if self.timed else None,
                is_corrupt=self.corrupt,
                side_data={},
                rotation=0,
                to_ndarray=lambda format, image=image: image,
            )

    def seek(self, offset: int, stream: object) -> None:
        pass

    def __enter__(self) -> "FakeContainer":
        return self

    def __exit__(self, *error: object) -> None:
        pass
