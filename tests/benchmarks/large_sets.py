"""Does a data set cost by its batches, or by its size? `python tests/benchmarks/large_sets.py --json FILE`.

Tables with as many rows as WebVid-10M, and of a thousand, whose files are links to eight shipped clips; folders with a
sub-folder for each clip. Each is measured in a process of its own: seconds until the first batch could be asked for (of
the CPU, too, as others may use the machine), seconds per batch of 8 windows, and the most memory that was held.
"""

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

BATCHES, BATCH = 20, 8
CAPTION = "aerial view of a calm lake in the mountains at sunrise with fog over the water and birds in slow motion"


def write_table(folder: Path, rows: int) -> None:
    """Rows as WebVid's are: numbers of ten digits, pages of fifty, 78 characters of a caption on average."""
    from vidjax.data.readers import SHIPPED

    clips = sorted(SHIPPED.parent.rglob("*.mp4"))[:8]
    names, pages = [str(1_066_692_580 + i) for i in range(8)], [f"{i:06d}_{i + 49:06d}" for i in range(1, 3201, 50)]
    (folder / "videos" / pages[0]).mkdir(parents=True)
    for name, clip in zip(names, clips):
        shutil.copy(clip, folder / "videos" / pages[0] / f"{name}.mp4")
    for page in pages[1:]:
        (folder / "videos" / page).symlink_to(pages[0])
    with open(folder / "results.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["videoid", "contentUrl", "duration", "page_dir", "name"])
        for i in range(rows):
            name, page = names[i % 8], pages[i // 8 % 64]
            url = f"https://ak.picdn.net/shutterstock/videos/{name}/preview/stock-footage-of-a-scene-{i:08d}.mp4"
            text = f"{CAPTION[7 * (i % 4) : 56 + i % 40]}, take {i}"
            table.writerow([name, url, "PT00H00M10S", page, text])


def write_folders(folder: Path, clips: int) -> None:
    from vidjax.data.readers import SHIPPED

    shutil.copy(next(SHIPPED.parent.rglob("*.mp4")), folder / "clip.mp4")
    for i in range(clips):
        (folder / "videos" / f"{i:06d}").mkdir(parents=True)
        os.link(folder / "clip.mp4", folder / "videos" / f"{i:06d}" / "clip.mp4")


def measure(source: str, path: str) -> dict[str, float]:
    from vidjax.data.pipeline import DataConfig, make_dataset

    memory = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20
    before, start, cpu = memory(), time.perf_counter(), time.process_time()
    dataset = make_dataset(DataConfig(source=source, path=path, frames=8, size=64), seed=0)
    batches = dataset.batches(BATCH)
    found = {"clips": len(dataset), "start_seconds": time.perf_counter() - start}
    found["start_cpu_seconds"] = time.process_time() - cpu
    seconds = []
    for _ in range(BATCHES):
        start = time.perf_counter()
        next(batches)
        seconds.append(time.perf_counter() - start)
    found |= {"batch_seconds": statistics.median(seconds), "first_batch_seconds": seconds[0]}
    return found | {"peak_gib": memory(), "peak_gib_of_imports": before}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="*", default=[1000, 10_700_000])
    parser.add_argument("--folders", type=int, nargs="*", default=[1000, 60_000])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=2, metavar=("SOURCE", "PATH"))
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return
    found: dict[str, list] = {"webvid": [], "folder": []}
    for source, sizes, write in (("webvid", args.rows, write_table), ("folder", args.folders, write_folders)):
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder), size)
                path = f"{folder}/{'results.csv' if source == 'webvid' else 'videos'}"
                done = subprocess.run(
                    [sys.executable, __file__, "--measure", source, path], capture_output=True, text=True, check=True
                )
            found[source].append({key: round(value, 4) for key, value in json.loads(done.stdout).items()})
            print(source, found[source][-1], flush=True)
    if args.json:
        args.json.write_text(json.dumps({"cores": os.cpu_count(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
