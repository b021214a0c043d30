"""Bad inputs of one kind, all from one seed, each given to its reader: `python fuzz_inputs.py KIND COUNT`.

Runs in the folder that it fills. An input that is neither read nor refused by the documented error ends the process:
by that exception; by a signal after `LIMIT` seconds; or for memory. The number of the last one is then in ./number.
"""

import contextlib
import io
import json
import logging
import os
import resource
import signal
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

LIMIT = 20.0  # seconds an input
MEMORY = 4 * 2**30  # bytes of addresses, of what runs without JAX
ROOT = Path(__file__).parents[1]
WORDS = [
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\0\0\0\0",
    b"\0\0\xff\xff",
    b"\0\x01\0\0",
    b'"',
    b"\n",
    b"\r",
    b",",
    b"[",
]


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut, flipped, overwritten, shortened or grown; mostly near its beginning, where headers are."""
    made, kind = bytearray(data), rng.integers(6)
    near = lambda room: int(rng.integers(max(min(room, [room, 900][rng.integers(2)]), 1)))
    if kind == 0:
        return data[: near(len(data))]
    for _ in range(rng.integers(1, 9)):
        at, count = near(len(made)), int(rng.integers(1, 60))
        if kind == 1:
            made[at] ^= 1 << rng.integers(8)
        elif kind == 2:
            made[at] = rng.integers(256)
        elif kind == 3:
            word = WORDS[rng.integers(len(WORDS))]
            made[at : at + len(word)] = word
        elif kind == 4 and len(made) > 2 * count:
            del made[at : at + count]
        elif kind == 5:
            made[at:at] = made[near(len(made)) :][: 3 * count]
    return bytes(made)


ODD = [
    None,
    True,
    -1,
    0,
    1.5,
    1e300,
    2**31,
    2**62,
    2**63,
    10**30,
    "",
    "a",
    "../a",
    "/",
    "\0",
    "\ud800",
    [],
    {},
    [[1]],
    "x" * 500,
]


def altered(value: object, rng: np.random.Generator) -> object:
    """JSON with one odd value, wherever it may be, or without one of its parts."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key, made = keys[rng.integers(len(keys))], value.copy()
        if rng.random() < 0.15:
            del made[key]
        else:
            made[key] = altered(value[key], rng)
        return made
    if isinstance(value, int) and rng.random() < 0.5:
        return value + int(rng.integers(-9, 9))
    return ODD[rng.integers(len(ODD))]


def text(value: object, rng: np.random.Generator) -> bytes:
    data = json.dumps(value).encode()
    return mutated(data, rng) if rng.random() < 0.3 else data


def videos(rng: np.random.Generator) -> Iterator[Callable[[], None]]:
    """Small clips of a shipped one in many formats, damaged, read as training would."""
    import av

    from vidjax.data.readers import SHIPPED
    from vidjax.data.video_reading import Video, read_frames

    shipped = SHIPPED.parent / "real" / "box.mp4"
    frames = read_frames(shipped, range(4), (16, 16))
    formats = {"mp4": "libx264", "mkv": "ffv1", "avi": "mpeg4", "ts": "libx264", "webm": "libvpx-vp9", "flv": "flv"}
    formats |= {
        "gif": "gif rgb8",
        "1.avi": "rawvideo",
        "1.mov": "png rgb24",
        "2.mov": "qtrle rgb24",
        "mpg": "mpeg2video",
    }
    files = [shipped.read_bytes()]
    for name, (codec, *pixels) in ((name, words.split()) for name, words in formats.items()):
        with av.open(f"clip.{name}", "w") as out:
            stream = out.add_stream(codec, rate=25)
            stream.height, stream.width, stream.pix_fmt = 16, 16, (pixels or ["yuv420p"])[0]
            for frame in frames:
                out.mux(
                    stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=stream.pix_fmt))
                )
            out.mux(stream.encode(None))
        files.append(Path(f"clip.{name}").read_bytes())
        os.unlink(f"clip.{name}")

    def read(data: bytes, named: bool) -> None:
        if named:
            Path("clip.mp4").write_bytes(data)
        with Video(Path("clip.mp4") if named else data) as video:
            assert video.frames > 0 and video.fps > 0
            assert video.read(range(min(video.frames, 4))).shape[1:3] == (video.height, video.width)
            assert video.read([video.frames - 1], (9, 7)).shape == (1, 9, 7, 3)

    while True:
        for data in files:
            yield lambda data=data: read(mutated(data, rng), rng.random() < 0.1)


def tables(rng: np.random.Generator) -> Iterator[Callable[[], None]]:
    """WebVid's tables, and lists of captions beside videos."""
    from vidjax.data.readers import SHIPPED, folder, webvid
    from vidjax.data.video_reading import BrokenClip

    logging.disable(logging.WARNING)  # of rows of several lines
    clip = (SHIPPED.parent / "real" / "box.mp4").read_bytes()
    for name in ("page/1.mp4", "1.mp4"):
        Path("videos", name).parent.mkdir(parents=True, exist_ok=True)
        Path("videos", name).write_bytes(clip)
    table = b'videoid,contentUrl,duration,page_dir,name\n1,http://x,PT4S,page,"a box, ""red"""\n1,,,.,two\n'
    names = [
        "../" * 9 + "dev/zero",
        "/dev/stdin",
        "pipe:0",
        "a\0b",
        "c" * 5000,
        "concat:1",
        "http://localhost/",
        "☃",
        "\r",
        '"',
    ]
    captions = [{"1.mp4": "a box", "page/1.mp4": "two"}, [{"file": "1.mp4", "caption": "a box"}]]

    def read(path: str, source: Callable) -> None:
        clips = source(path)
        for i in range(min(len(clips), 2)):
            item = clips[i]
            assert isinstance(item.text, str) and item.text.encode() is not None
            with contextlib.suppress(BrokenClip), item.open() as video:
                video.read([0], (9, 7))

    def csv() -> None:
        row = ",".join(names[i] for i in rng.integers(len(names), size=rng.integers(1, 8))).encode()
        Path("t.csv").write_bytes(mutated(table + row + b"\n", rng))
        read("t.csv", webvid)

    def listed() -> None:
        Path("videos", "captions.json").write_bytes(text(altered(captions[rng.integers(2)], rng), rng))
        read("videos", folder)

    while True:
        yield from (csv, csv, csv, listed)


def headers(rng: np.random.Generator) -> Iterator[Callable[[], None]]:
    """Safetensors files, those of adapters with their metadata, and the indices of several files."""
    from safetensors.numpy import save

    from vidjax.weights import lora
    from vidjax.weights.tensors import read, read_shards

    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    ends = {"lora_A.weight": (2, 8), "lora_B.weight": (8, 2), "alpha": ()}
    alphas = {"unet.lora_alpha": 4, "unet.r": 2, "unet.alpha_pattern": {"attn1.to_q": 8}}
    plain = save({"a": np.ones((2, 3), np.float32), "b": np.ones(5, np.int8), "c": np.ones((), np.float16)})
    adapter = save({f"{layer}.{end}": np.ones(shape, np.float32) for end, shape in ends.items()})
    index = {"metadata": {"total_size": 31}, "weight_map": dict.fromkeys("abc", "own.safetensors")}
    Path("own.safetensors").write_bytes(plain)

    def file(data: bytes, metadata: object = None) -> bytes:
        length = int.from_bytes(data[:8], "little")
        header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
        if metadata is not None:
            header["__metadata__"] = {lora.METADATA: text(altered(metadata, rng), rng).decode("latin1")}
        made = text(altered(header, rng) if metadata is None or rng.random() < 0.3 else header, rng)
        length = len(made) if rng.random() < 0.9 else int(rng.integers(2**63)) >> int(rng.integers(63))
        return struct.pack("<Q", length) + made + (body if rng.random() < 0.9 else mutated(body, rng))

    def tensors() -> None:
        Path("a.safetensors").write_bytes(file(plain))
        for value in read("a.safetensors").values():
            assert np.asarray(value).tobytes() is not None

    def adapters() -> None:
        Path("a.safetensors").write_bytes(file(adapter, alphas))
        lora.load("a.safetensors", 2)

    def shards() -> None:
        Path("m.safetensors.index.json").write_bytes(text(altered(index, rng), rng))
        for value in read_shards("m.safetensors.index.json").values():
            assert np.asarray(value).tobytes() is not None

    while True:
        yield from (tensors, adapters, tensors, shards)


RECIPES = ("tests/tiny.py:latent", "tests/tiny.py:pixels", "configs/lvdm.py:adversary", "configs/imagen_video.py:clips")
VALUES = [
    "-1",
    "0",
    "1",
    "7",
    "1e400",
    "nan",
    "-inf",
    "1e18",
    "9" * 30,
    "abc",
    "",
    "None",
    "True",
    "()",
    "(1,)",
    "(0, -1)",
]
VALUES += [
    "(1, 2, 3, 4)",
    '("a",)',
    "{}",
    "[1, 2]",
    '((("x"',
    "../../x",
    "x" * 500,
    "\0",
    "\u202e☃",
    "0x1F",
    "-",
    "(nan,)",
]
VALUES += ['{"a": 1}', "lambda: 1", "1_000", "__import__('os').system('touch ran')", "{{}}", "\n", "(" * 300, "0.5"]


def overrides(rng: np.random.Generator) -> Iterator[Callable[[], None]]:
    """--config.NAME=VALUE of every setting of some recipes, read and built as `vidjax.main` does."""
    from absl import flags

    from vidjax import cli, main
    from vidjax.errors import InputError
    from vidjax.recipes import build as recipe
    from vidjax.recipes.config import stage_names

    def parse(*argv: str) -> dict:
        flags.FLAGS.unparse_flags()
        for name in [name for name in flags.FLAGS if name.startswith("config.")]:
            delattr(flags.FLAGS, name)
        sys.argv = ["main", *argv]
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                cli.parse(sys.argv)
        except SystemExit as end:
            line = said.getvalue()
            assert end.code == 1 and line.startswith("error: ") and line.count("\n") == 1, line
            raise InputError(line) from None
        return main.CONFIG()

    def names(config: dict, path: str = "config") -> Iterator[str]:
        for key, value in config.items():
            yield f"{path}.{key}"
            if isinstance(value, dict):
                yield from names(value, f"{path}.{key}")

    known = {file: list(names(parse(f"--config={ROOT / file}"))) for file in RECIPES}

    def build(file: str) -> None:
        def one() -> str:
            name = known[file][rng.integers(len(known[file]))]
            name = [name, name, name, name, name[:-1], f"{name}.x"][rng.integers(6)]
            return f"--{name}={VALUES[rng.integers(len(VALUES))]}"

        config = parse(f"--config={ROOT / file}", *(one() for _ in range(rng.integers(1, 3))))
        for name in stage_names(config):
            recipe.build(config, name, Path("run"))

    while True:
        for file in RECIPES:
            yield lambda file=file: build(file)


KINDS = {"videos": videos, "tables": tables, "headers": headers, "overrides": overrides}


def run(kind: str, count: int) -> Counter:
    """How many inputs were read and refused."""
    from vidjax.data.video_reading import BrokenClip
    from vidjax.errors import InputError

    found, inputs = Counter(read=0, refused=0), KINDS[kind](np.random.default_rng(0))
    number = os.open("number", os.O_CREAT | os.O_RDWR)
    for i in range(count):
        read = next(inputs)
        os.pwrite(number, b"%d" % i, 0)
        signal.setitimer(signal.ITIMER_REAL, LIMIT)
        try:
            read()
            found["read"] += 1
        except (InputError, BrokenClip) as error:
            assert str(error)
            found["refused"] += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    return found


if __name__ == "__main__":
    if sys.argv[1] != "overrides":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    kind, count = sys.argv[1], int(sys.argv[2])
    print(json.dumps(run(kind, count)))
