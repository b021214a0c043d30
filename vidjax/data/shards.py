"""The steps from clips to a tfds data set in ArrayRecord files; each writes a whole file or none, always the same.

The features, the format and the metadata are those of tfds, but not its Beam writer, which groups all videos in the
runner to sort them, starts anew in another folder when it was killed, and serialises in no fixed order.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vidjax.data.pictures import Picture
from vidjax.data.readers import make_source
from vidjax.data.screening import Drop, Finding, Part, Rules, Seen, examine
from vidjax.data.source import OpenClip, Source
from vidjax.data.video_reading import Video
from vidjax.data.video_writing import Mp4Writer
from vidjax.errors import InputError
from vidjax.runtime.inputs import read_json
from vidjax.runtime.storage import whole_folder, write_json

CLIPS_PER_SHARD = 256  # unless the number of shards is given
CHUNK_BYTES = 2**30  # of frames held at a time while a part is encoded
KINDS = ("unreadable", "too short", "too small", "scene cuts", "remainder", "duplicate")


@dataclass(frozen=True)
class Job:
    """What to prepare, by which rules, in how many shards (0: one per 256 clips), with `folder` to work in."""

    source: str
    path: str
    split: str
    rules: Rules
    shards: int
    folder: str

    def at(self, *names: str) -> Path:
        """Returns a path in `folder`."""
        return Path(self.folder, *names)

    @property
    def clips(self) -> Source:
        """The clips to prepare."""
        return _source(self.source, self.path, self.split)


_source = functools.lru_cache(make_source)  # a process looks into a data set's folders once


@contextlib.contextmanager
def _whole(job: Job, path: Path) -> Iterator[Path]:
    """Yields a path in the job's own folder, which becomes `path` when the block ends."""
    part = job.at("unfinished", f"{uuid.uuid4().hex}-{path.name}")
    for folder in (part.parent, path.parent):
        folder.mkdir(parents=True, exist_ok=True)
    yield part
    os.replace(part, path)


def _write_json(job: Job, path: Path, value: Any) -> None:
    with _whole(job, path) as part:
        part.write_text(json.dumps(value, indent=1) + "\n")


def begin(job: Job) -> None:
    """Makes the folder with job.json in it. Raises InputError if there is a folder without job.json, or one that was
    begun with other settings or clips."""
    folder = Path(job.folder)
    if not os.path.isfile(job.at("job.json")):
        if os.path.isdir(folder) and any(folder.iterdir()):
            raise InputError(f"{folder} is in the way, and not of this program: move it away, or name another --out")
        with whole_folder(folder) as part:
            write_json(part / "job.json", _settings(job))
    begun = read_json(job.at("job.json"), remedy="remove the folder to begin again")
    for key, was, value in _differences(begun, _settings(job)):
        raise InputError(
            f"{job.folder} was begun with {key} {was!r}, not {value!r}: finish it so, or remove it to begin again"
        )


def is_finished(job: Job, out: Path) -> bool:
    """Returns whether this very job has made `out`."""
    if not os.path.isfile(out / "report.json"):
        return False
    report = read_json(out / "report.json", remedy="name a new --out")
    return isinstance(report, dict) and not any(_differences(report.get("settings"), _settings(job)))


def clear(job: Job) -> None:
    """Removes the job's folder, unless another job has begun it."""
    if os.path.isfile(job.at("job.json")) and not any(_differences(read_json(job.at("job.json")), _settings(job))):
        shutil.rmtree(job.folder)


def _settings(job: Job) -> dict[str, Any]:
    return {key: value for key, value in asdict(job).items() if key != "folder"} | {"clips": len(job.clips)}


def _differences(begun: Any, settings: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yields (key, value then, value now) of the settings that differ; missing ones are None."""
    begun = begun if isinstance(begun, dict) else {}
    rules = begun.get("rules") if isinstance(begun.get("rules"), dict) else {}
    for key, value in {**settings["rules"], **settings}.items():
        was = {**begun, **rules}.get(key)
        if key != "rules" and was != value:
            yield key, was, value


def piece_files(job: Job) -> list[Path]:
    """Lists the files of findings in order; each is about one clip in small sets, up to 64 in large ones."""
    size = _piece(job)
    return [job.at("found", f"{k:07d}.json") for k in range(-(-len(job.clips) // size))]


def _piece(job: Job) -> int:
    return min(max(len(job.clips) // 256, 1), 64)


def examine_piece(job: Job, number: int) -> None:
    """Examines the clips of one piece and writes the findings to its file."""
    size, clips = _piece(job), job.clips
    first = number * size
    found = [asdict(examine(clips[i], job.rules)) for i in range(first, min(first + size, len(clips)))]
    _write_json(job, piece_files(job)[number], found)


def plan(job: Job) -> dict[str, Any]:
    """Decides what goes into which shard, once all clips are examined, writes that to files and returns the report."""
    seen, chosen, dropped = Seen(job.rules), [], []
    for index, finding in enumerate(_findings(job)):
        drops = list(finding.drops)
        for part in finding.parts:
            other = seen.find(part.print)
            if other is None:
                name = part_name(finding, part)
                seen.add(part.print, name)
                chosen.append((index, part.start, part.stop, finding.frames, finding.fps, name, finding.name))
            else:
                drops.append(Drop("duplicate", f"frames {part.start} to {part.stop - 1} are those of {other}"))
        dropped += [{"clip": finding.name, "kind": drop.kind, "why": drop.why} for drop in drops]
    kinds = Counter(drop["kind"] for drop in dropped)
    report = {
        "clips read": len(job.clips),
        "clips written": len(chosen),
        "frames written": sum(stop - start for _, start, stop, *_ in chosen),
        "seconds written": round(sum((stop - start) / fps for _, start, stop, _, fps, *_ in chosen), 3),
        "dropped": {kind: kinds[kind] for kind in KINDS},
        "settings": json.loads(job.at("job.json").read_text()),
        "drops": dropped,
    }
    _write_json(job, job.at("report.json"), report)
    chosen.sort(key=lambda entry: (hashlib.md5(entry[5].encode()).digest(), entry[0]))
    count = min(job.shards or -(-len(chosen) // CLIPS_PER_SHARD), len(chosen))
    for k in range(count):
        own = chosen[k * len(chosen) // count : (k + 1) * len(chosen) // count]
        _write_json(job, job.at("planned", f"{k:05d}-of-{count:05d}.json"), own)
    return report


def _findings(job: Job) -> Iterator[Finding]:
    for path in piece_files(job):
        for found in json.loads(path.read_text()):
            parts, drops = [Part(**part) for part in found["parts"]], [Drop(**drop) for drop in found["drops"]]
            yield Finding(**{**found, "parts": parts, "drops": drops})


def part_name(finding: Finding, part: Part) -> str:
    """Names a part: the clip's name if it is all of it, else with #FIRST-LAST frame."""
    whole = part.stop - part.start == finding.frames
    return finding.name if whole else f"{finding.name}#{part.start}-{part.stop - 1}"


def shard_files(job: Job) -> list[Path]:
    """Lists the files of records in the order of `plan`."""
    split = job.split or "train"
    return [
        job.at("data", f"clips-{split}.array_record-{path.stem}") for path in sorted(job.at("planned").glob("*.json"))
    ]


def write_shard(job: Job, number: int) -> None:
    """Writes the records of one shard."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    path, about = shard_files(job)[number], features(job.clips)
    serializer = ExampleSerializer(about.get_serialized_info())
    with _whole(job, path) as part:
        writer = ArrayRecordWriter(str(part), "group_size:1")
        for entry in json.loads(sorted(job.at("planned").glob("*.json"))[number].read_text()):
            example = about.encode_example(_example(job, *entry))
            writer.write(serializer.get_tf_example(example).SerializeToString(deterministic=True))
        writer.close()


def features(clips: Source) -> Any:
    """Returns tfds's features: `video` (the bytes of a file), `caption`, `name`, and `label` where there are
    classes."""
    import numpy as np
    import tensorflow_datasets as tfds

    video = tfds.features.Tensor(shape=(), dtype=np.object_)
    label = {"label": tfds.features.ClassLabel(num_classes=clips.num_classes)} if clips.num_classes else {}
    return tfds.features.FeaturesDict(
        {"video": video, "caption": tfds.features.Text(), "name": tfds.features.Text(), **label}
    )


def _example(
    job: Job, index: int, start: int, stop: int, frames: int, fps: float, name: str, clip: str
) -> dict[str, Any]:
    item = job.clips[index]
    if item.name != clip:
        raise InputError(f"clip {index} of {job.path} was {clip} and is {item.name}: remove {job.folder}, begin again")
    with item.open() as video:
        if isinstance(video, Video | Picture) and stop - start == frames:
            data = video.encoded
        else:
            data = _encode(video, start, stop)
    label = {"label": item.label} if job.clips.num_classes else {}
    return {"video": data, "caption": item.text, "name": name, **label}


def _encode(video: OpenClip, start: int, stop: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path, count = Path(folder, "part.mp4"), max(CHUNK_BYTES // (3 * video.height * video.width), 1)
        with Mp4Writer(path, video.fps, threads=1) as out:
            for at in range(start, stop, count):
                out.write(video.read(range(at, min(at + count, stop))))
        return path.read_bytes()


def finish(job: Job, out: Path) -> None:
    """Writes the metadata beside the shards, then renames their folder to `out`."""
    import tensorflow_datasets as tfds

    data, files = job.at("data"), shard_files(job)
    planned: Sequence[Path] = sorted(job.at("planned").glob("*.json"))
    split = tfds.core.SplitInfo(
        name=job.split or "train",
        shard_lengths=[len(json.loads(path.read_text())) for path in planned],
        num_bytes=sum(path.stat().st_size for path in files),
    )
    tfds.folder_dataset.write_metadata(
        data_dir=str(data), features=features(job.clips), split_infos=[split], check_data=False
    )
    shutil.copyfile(job.at("report.json"), data / "report.json")
    try:
        data.rename(out)  # an empty folder gives way
    except OSError as error:
        raise InputError(
            f"--out={out} can't be made ({error.strerror}): move it away; the same command goes on"
        ) from None
