"""Broken and hostile files by the hundred, and what reading each of them raises.

`python -m tests.data.hostile lerobot|episodes|arrays|videos FOLDER` reads one group and prints, as
JSON, the number of cases, those that neither were read nor ended in an error that names the file,
and the peak of the process's memory. A process of its own, so that its memory is known, and so that
a hanging or killed one is a failed test.
"""

import io
import json
import logging
import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robometer_gym.data import VideoFrames, read_episodes, read_lerobot, read_video, write_video
from tests.data.videos import moving_square
from tests.memory import peak_bytes


class Case(NamedTuple):
    """One file and a function that reads it; `whole` if other episodes must survive."""

    name: str
    read: Callable[[], Any]
    names: str
    """Text that an error must contain: the path of the file or of its folder."""
    survives: bool = False
    """Whether reading must succeed, since a fault of one episode is skipped."""


NOTHING = object()
DEEP = json.loads("[" * 400 + "]" * 400)
VALUES: list[Any] = [
    *(NOTHING, None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, -0.5, 1e308),
    *(float("nan"), float("inf"), "", "x", "\x00", "\ud800", "a" * 5000, "../../../etc/passwd"),
    *("/dev/zero", "{", "{}", "{0}", "{chunk_index:1000000000d}", "{video_key.__class__}"),
    *([], [None], [1], {}, {"dtype": None}, DEEP),
]


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every value in a JSON tree."""
    for key in (
        tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    ):
        yield (*path, key)
        yield from places(tree[key], (*path, key))


def replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of a JSON tree with another value at a place, or without that place."""
    copy = json.loads(json.dumps(tree))
    parent = copy
    for key in path[:-1]:
        parent = parent[key]
    if value is NOTHING:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return copy


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Return bytes with some of them overwritten, cut out or cut off."""
    changed = bytearray(data)
    how = rng.integers(4)
    if how == 0:
        return bytes(changed[: rng.integers(len(changed))])
    if how == 1:
        start = int(rng.integers(len(changed)))
        del changed[start : start + int(rng.integers(1, 100))]
        return bytes(changed)
    # Headers stand at the beginning or at the end.
    near = [int(rng.integers(len(changed))), int(rng.integers(min(600, len(changed))))]
    near.append(len(changed) - 1 - near[1])
    for _ in range(int(rng.integers(1, 12))):
        at = near[how - 2] if how == 2 else near[int(rng.integers(3))]
        at = min(len(changed) - 1, max(0, at + int(rng.integers(-20, 20))))
        changed[at] = int(rng.choice([0, 1, 127, 128, 255, int(rng.integers(256))]))
    return bytes(changed)


# --- LeRobot datasets ---


def lerobot(folder: Path) -> Iterator[Case]:
    """Change values of info.json, columns and rows of tables, and bytes of all files."""
    from tests.data import lerobot_dataset as builder

    pa, pq, top = builder.pa, builder.pq, builder.TOP
    video = builder.write_dataset(folder / "video", succeeds=lambda episode, step: step == 3)
    image = builder.write_dataset(folder / "image", dtype="image")
    work = folder / "work"

    def fresh(source: Path) -> Path:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(source, work)
        return work

    def first_frames(**options: Any) -> list[Any]:
        return [episode.frames[[0]] for episode in read_lerobot(work, **options)]

    info = json.loads((video / "meta" / "info.json").read_text())
    fresh(video)
    for place in places(info):
        for number, value in enumerate(VALUES):
            text = json.dumps(replaced(info, place, value))
            (work / "meta" / "info.json").write_text(text, errors="surrogatepass")
            yield Case(f"info {place} {number}", first_frames, str(work))
    for text in ("", "[]", "null", "[" * 100_000, "1" * 10_000, '{"fps":', "\ufeff{}"):
        (work / "meta" / "info.json").write_text(text)
        yield Case(f"info {text[:9]}", first_frames, str(work))

    table = Path("meta", "episodes", "chunk-000", "file-001.parquet")
    rows = pq.read_table(video / table).to_pylist()  # episodes 0 to 2
    values: tuple[Any, ...] = (
        None,
        -1,
        0,
        2**40,
        2**62,
        float("nan"),
        float("inf"),
        1e300,
        "x",
        [],
        ["x"],
        [None],
    )
    for column in rows[0]:
        for value in values:
            for everywhere in (True, False):
                changed = [dict(row) for row in rows]
                for row in changed if everywhere else changed[:1]:
                    row[column] = value
                try:
                    new = pa.Table.from_pylist(changed)
                except (pa.ArrowException, OverflowError):
                    continue  # no column can hold these
                pq.write_table(new, fresh(video) / table)
                name = f"rows {column} {value} {everywhere}"
                yield Case(name, first_frames, str(work))
                same = (
                    pq.read_schema(video / table).field(column).type
                    == new.schema.field(column).type
                )
                skip = partial(first_frames, bad="skip")
                yield Case(f"{name} skip", skip, str(work), survives=same and not everywhere)
    data = Path("data", "chunk-000", "file-000.parquet")
    steps = pq.read_table(video / data).to_pylist()
    for column in ("episode_index", "next.success"):
        for value in values:
            changed = [{**step, column: value} for step in steps]
            pq.write_table(pa.Table.from_pylist(changed), fresh(video) / data)
            yield Case(f"steps {column} {value}", first_frames, str(work))
    for value in (b"", b"x", bomb_png(60_000), bomb_png(9_000), None):
        lines = pq.read_table(image / data).to_pylist()
        lines[0][top] = None if value is None else {"bytes": value, "path": None}
        pq.write_table(pa.Table.from_pylist(lines), fresh(image) / data)
        yield Case(f"image {value!r:.40}", first_frames, str(work))
    rng = np.random.default_rng(0)
    for source in (video, image):
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            for number in range(6):
                target = fresh(source) / path.relative_to(source)
                target.write_bytes(damaged(path.read_bytes(), rng))
                yield Case(f"bytes {path.relative_to(folder)} {number}", first_frames, str(work))


def bomb_png(side: int) -> bytes:
    """Return a small PNG whose header has `side` x `side` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


# --- folders of episodes ---


def episodes(folder: Path) -> Iterator[Case]:
    """Change values and bytes of lines, and name one broken video in 3,000 lines."""
    write_video(folder / "video.mp4", moving_square(), 10)
    write_video(folder / "video.mkv", moving_square(), 10)
    good = {"video": "video.mp4", "task": "open", "outcome": "failure", "partial_success": 0.5}
    good |= {"cutoff": 0.5, "frames": 12, "fps": 10.0}
    first = json.dumps(good).encode()
    path = folder / "episodes.jsonl"

    def case(name: str, *lines: bytes) -> Iterator[Case]:
        path.write_bytes(b"\n".join(lines))
        yield Case(name, lambda: read_episodes(folder), str(path))
        path.write_bytes(b"\n".join((first, *lines)))
        yield Case(f"{name} skip", lambda: read_episodes(folder, bad="skip"), str(path), True)

    for key in good:
        for number, value in enumerate(VALUES):
            line = json.dumps(replaced(good, (key,), value)).encode()
            yield from case(f"{key} {number}", line)
    for line in (b"[" * 100_000, b"1" * 10_000, b"\xff", b"\x00", b'{"a":' * 5000, b"{}" * 99):
        yield from case(f"line {line[:9]!r}", line)
    (folder / "zero.mp4").symlink_to("/dev/zero")
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    for name in ("zero.mp4", "loop.mp4", ".", "episodes.jsonl", "a" * 300 + ".mp4", "video.mp4/x"):
        yield from case(f"video {name[:20]}", json.dumps({**good, "video": name}).encode())
    rng = np.random.default_rng(0)
    for number in range(100):
        yield from case(f"bytes {number}", damaged(first, rng))
    for name in ("video.mp4", "video.mkv"):
        data = (folder / name).read_bytes()
        (folder / f"broken-{name}").write_bytes(data[: int(0.7 * len(data))])
        line = json.dumps({**good, "video": f"broken-{name}"}).encode()
        yield from case(f"3000 lines {name}", *[line] * 3000)


# --- arrays ---


def arrays(folder: Path) -> Iterator[Case]:
    """Change headers and bytes of .npy and .npz files."""
    np.save(folder / "good.npy", moving_square())
    np.savez(folder / "good.npz", frames=moving_square(), fps=10)
    np.savez_compressed(folder / "packed.npz", frames=moving_square(), fps=10)
    data = (folder / "good.npy").read_bytes()

    def case(name: str, suffix: str, content: bytes) -> Case:
        path = folder / f"case{suffix}"
        path.write_bytes(content)
        return Case(name, lambda: read_video(path), str(path))

    def npy(header: str, version: bytes = b"\x01\x00") -> bytes:
        text = header.encode("latin1").ljust(117) + b"\n"
        return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data[128:]

    shapes = ["(300000, 1000, 1000, 3)", "(-1, 48, 64, 3)", "(2**63, 1, 1, 3)", f"({2**70},)", "()"]
    shapes += ["(12, 48, 64, 3", "'x'", "None", "(1.5, 2)", "(" * 50, "(True, 48, 64, 3)", "(0,)"]
    types = ["'|u1'", "'|O'", "'<f8'", "'|V999999999'", "'|S2147483647'", "[('a', '|u1')]", "'?'"]
    types += ["None", "3", "'u1", "[]", "'<M8[ns]'", "('<u1', (9, 9))", "'|u1' + 'x'", "lambda: 0"]
    for shape in shapes:
        for kind in types:
            for order in ("False", "True", "3"):
                header = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}"
                yield case(f"header {header}", ".npy", npy(header))
                buffer = io.BytesIO()
                with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
                    archive.writestr("frames.npy", npy(header))
                yield case(f"zipped {header}", ".npz", buffer.getvalue())
    for version in (b"\x00\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09", b"\xff\xff"):
        yield case(f"version {version!r}", ".npy", npy("{}", version))
    packed = (folder / "packed.npz").read_bytes()
    for method in (0, 1, 9, 12, 14, 93, 99, 65535):  # LZMA, bzip2, unknown ones
        changed = packed.replace(
            b"\x14\x00\x00\x00\x08\x00", b"\x14\x00\x00\x00" + struct.pack("<H", method)
        )
        yield case(f"compression {method}", ".npz", changed)
    for flag in (1, 0x41, 0x2000):  # encrypted
        yield case(
            f"flag {flag}",
            ".npz",
            packed.replace(
                b"\x14\x00\x00\x00\x08\x00", b"\x14\x00" + struct.pack("<H", flag) + b"\x08\x00"
            ),
        )
    rng = np.random.default_rng(0)
    for name in ("good.npy", "good.npz", "packed.npz"):
        whole = (folder / name).read_bytes()
        for number in range(150):
            yield case(f"bytes {name} {number}", Path(name).suffix, damaged(whole, rng))


# --- videos ---


def videos(folder: Path) -> Iterator[Case]:
    """Damage video files of every type."""
    import av
    from PIL import Image

    frames = np.random.default_rng(0).integers(0, 256, (24, 48, 64, 3), np.uint8)
    write_video(folder / "good.mp4", frames, 10)
    write_video(folder / "good.mkv", frames, 10)
    shutil.copy(folder / "good.mkv", folder / "good.webm")
    with av.open(str(folder / "good.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(folder / "good.gif", save_all=True, append_images=rest, duration=100)
    rng = np.random.default_rng(1)

    def read_single(path: Path) -> Any:
        found = VideoFrames(path)
        return found[[0, len(found) - 1]]

    for suffix in (".mp4", ".mkv", ".webm", ".avi", ".gif"):
        whole = (folder / f"good{suffix}").read_bytes()
        for number in range(80):
            path = folder / f"case-{number}{suffix}"
            path.write_bytes(damaged(whole, rng))
            yield Case(f"all {path.name}", partial(read_video, path), str(path))
            yield Case(f"some {path.name}", partial(read_video, path, fps=2), str(path))
            if suffix != ".avi":
                yield Case(f"single {path.name}", partial(read_single, path), str(path))


GROUPS = {"lerobot": lerobot, "episodes": episodes, "arrays": arrays, "videos": videos}


def run(group: str, folder: Path) -> dict[str, Any]:
    """Read all cases of a group."""
    cases, failures = 0, []
    for case in GROUPS[group](folder):
        cases += 1
        try:
            case.read()
        except (ValueError, FileNotFoundError) as error:
            if case.names not in str(error):
                failures.append(f"{case.name}: names no file: {type(error).__name__} {error}"[:300])
            elif case.survives:
                failures.append(f"{case.name}: was not skipped: {error}"[:300])
        except BaseException as error:
            failures.append(f"{case.name}: {type(error).__name__} {error}"[:300])
    return {"cases": cases, "failures": failures, "peak": peak_bytes()}


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    print(json.dumps(run(sys.argv[1], Path(sys.argv[2]))))
