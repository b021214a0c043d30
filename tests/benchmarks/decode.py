"""Decoding speed per core as a ratio to a bare PyAV loop over the same files in the same run.

    python tests/benchmarks/decode.py [--rounds 15] [--json FILE]

Whole clips: every frame as RGB. Windows: 16 frames from the middle, where the bare loop opens, seeks and decodes. Both
sides use one thread; rounds alternate between them and the medians are compared.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from vidjax.data.shapes import draw
from vidjax.data.sources import SHIPPED
from vidjax.data.video_io import read_frames, resize, write_mp4


def bare_whole(path):
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def bare_window(path, first, count):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        start = int(first / (stream.average_rate * stream.time_base))
        container.seek(start, stream=stream)
        frames = []
        for frame in container.decode(stream):
            if frame.pts >= start:
                frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == count:
                return np.stack(frames)
        raise AssertionError("the clip ended before the window")


def compare(ours, bare, paths, rounds):
    """(our frames per CPU second, bare frames per CPU second), medians over alternating rounds."""
    rates = ([], [])
    for _ in range(rounds):
        for rate, read in zip(rates, (ours, bare)):
            begin = time.process_time()
            frames = sum(len(read(path)) for path in paths)
            rate.append(frames / (time.process_time() - begin))
    return float(np.median(rates[0])), float(np.median(rates[1]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = {"cpu_count": os.cpu_count(), "av": av.__version__}
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "large.mp4"
        noise = np.random.default_rng(0).integers(0, 40, (1, 336, 596, 1), np.uint8)
        write_mp4(large, resize(draw("circle", "red", "left", 150, 96), (336, 596)) // 2 + noise, 25)
        sets = {"shipped 96x96": sorted(SHIPPED.parent.rglob("*.mp4")), "336x596, 150 frames": [large]}
        for name, paths in sets.items():
            first = 16 if len(paths) > 1 else 75
            window = bare_window(paths[0], first, 16)
            np.testing.assert_array_equal(read_frames(paths[0], range(first, first + 16)), window)
            results[f"{name}, whole"] = compare(read_frames, bare_whole, paths, args.rounds)
            results[f"{name}, window of 16"] = compare(
                lambda p, first=first: read_frames(p, range(first, first + 16)),
                lambda p, first=first: bare_window(p, first, 16),
                paths,
                args.rounds,
            )
    for name, value in results.items():
        if isinstance(value, tuple):
            ours, bare = value
            print(f"{name:36s} ours {ours:7.0f} frames/s   bare {bare:7.0f} frames/s   ratio {ours / bare:.2f}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
