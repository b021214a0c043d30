"""Yields the videos to evaluate, read from a folder or sampled from a run, and the reference videos."""

import dataclasses
import functools
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from vidjax.data.crops import cover_size, crop_at
from vidjax.data.source import Item, OpenClip, open_clip
from vidjax.data.video_reading import ArrayVideo, BrokenClip
from vidjax.errors import InputError, printable
from vidjax.generation.output import INDEX
from vidjax.recipes.run import Run
from vidjax.runtime.inputs import read_json
from vidjax.training.encoded import first_windows


def in_folder(path: str, flag: str) -> Iterator[Item]:
    """Yields all videos under a folder, named by their path in it; of a run's samples only those of its newest
    settings. Raises InputError at once if it is no folder."""
    from vidjax.data.readers import folder

    if not os.path.isdir(path):
        raise InputError(f"--{flag}={path} is no folder; name one with videos")
    source, own = folder(path), listed(Path(path))
    names = [Path(source[i].name).relative_to(path).as_posix() for i in range(len(source))]
    visible = [i for i, name in enumerate(names) if not name.rpartition("/")[2].startswith(".")]
    chosen = [i for i in visible if own is None or names[i] in own]
    if others := len(visible) - len(chosen):
        print(f"{others} other videos in {printable(path)} are not of its newest samples ({INDEX}): left out")
    return (dataclasses.replace(source[i], name=names[i]) for i in chosen)


def listed(folder: Path) -> set[str] | None:
    """Returns the videos that a run has listed in its folder of samples, None where there is no such list."""
    try:
        names = read_json(folder / INDEX)["videos"] if (folder / INDEX).exists() else None
    except (InputError, KeyError, TypeError):
        raise InputError(f"{folder / INDEX} is damaged: delete it, and all videos there count") from None
    return None if names is None else set(map(str, names))


def generated(run: Run, count: int, batch: int) -> Iterator[Item]:
    """Samples `count` videos of a run's model, `batch` at a time; captions are spread over the recipe's prompts or else
    the data set's, classes and the pictures that clips begin with come in turn. The same count gives the same videos;
    all processes make them together. Raises InputError at once if the run is not trained."""
    generator, dataset = run.generator(), run.dataset()
    if "text" in generator.embedder_names:
        known = generator.defaults.prompt_list or dataset.texts
    elif "label" in generator.embedder_names:
        known = list(range(dataset.num_classes))
    else:
        known = [-1]
    prompts = [known[i % len(known)] if count > len(known) else known[i * len(known) // count] for i in range(count)]
    pictures = [video[0] for video in first_windows(dataset)[0]] if "picture" in generator.embedder_names else []

    def items() -> Iterator[Item]:
        for start in range(0, count, batch):
            asked = prompts[start : start + batch]
            own = [pictures[(start + i) % len(pictures)] for i in range(batch)] if pictures else []
            more = {"pictures": np.stack(own)} if own else {}
            videos = generator(asked + asked[-1:] * (batch - len(asked)), seed=start // batch, **more)
            for i, (prompt, video) in enumerate(zip(asked, videos), start):
                yield in_memory(f"sample {i}", video, prompt if isinstance(prompt, str) else "")

    return items()


def windows(run: Run, count: int) -> Iterator[Item]:
    """Yields training windows of a run's data set, at least `count` where its clips have so many, spread over them."""
    dataset = run.dataset()
    clips = dataset.sample_of(count)
    for clip in clips:
        for i, window in enumerate(dataset.windows("train", -(-count // len(clips)), [clip])[0]):
            yield in_memory(f"clip {clip}, window {i}", window)


def in_memory(name: str, video: np.ndarray, text: str = "") -> Item:
    """Makes an item of a video uint8 [t, h, w, c] that is in memory."""
    return Item(name, text, -1, lambda: ArrayVideo(video))


def readable(
    items: Iterable[Item], frames: int | None, size: tuple[int, int] | None, unreadable: dict[str, str]
) -> Iterator[tuple[Item, np.ndarray]]:
    """Yields videos with their first frames, see `decoded`; writes to `unreadable` why others cannot be read."""
    from vidjax.runtime.progress import watch

    for item in watch(items, "judging", "video"):
        try:
            with item.open() as video:
                shown = decoded(video, frames or video.frames, size)
        except BrokenClip as error:
            unreadable[item.name] = str(error)
            print(f"warning: {printable(item.name)} is left out: {error}", file=sys.stderr)
            continue
        yield item, shown


def decoded(video: OpenClip, frames: int, size: tuple[int, int] | None) -> np.ndarray:
    """Reads the first frames, scaled to cover `size` (None: as they are) and cut to it."""
    size = size or (video.height, video.width)
    shown = video.read(range(min(frames, video.frames)), cover_size(video.height, video.width, size))
    return crop_at(shown, size, (0.5, 0.5))


@functools.lru_cache(1)
def source_frames(flag: str, path: str, frames: int, height: int, width: int) -> np.ndarray:
    """Reads as many frames of a video, from its beginning, in the size of the video that they are compared to."""
    try:
        with open_clip(path) as video:
            if video.frames < frames:
                raise InputError(f"it has {frames} frames, --{flag}={path} has {video.frames}: set --frames")
            return decoded(video, frames, (height, width))
    except BrokenClip as error:
        raise InputError(f"--{flag}={path}: {error}") from None
