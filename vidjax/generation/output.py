"""Writes generated videos: a file per video, beside it what made it, and per caption a picture with all its frames."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vidjax.data.animation import encode_animation
from vidjax.data.video_writing import contact_sheet, slug, write_mp4
from vidjax.runtime.storage import AnyPath, write_json

KINDS = ("mp4", "gif", "webp")
INDEX = "samples.json"  # in a run's folder of samples: {"videos": names}, those of its newest settings


def write_samples(
    folder: AnyPath,
    names: Sequence[str],
    videos: Sequence[UInt8[np.ndarray, "n t h w c"]],
    fps: float,
    *,
    seeds: Sequence[int] = (0,),
    about: Mapping[str, Any] = {},
    kind: str = "mp4",
    above: Mapping[str, UInt8[np.ndarray, "t h w c"]] = {},
) -> list[dict[str, Any]]:
    """Writes the videos of each name, one per seed, into `folder`; images become contact sheets alone.

    Returns entries for summary.json, with paths from the folder above.

    Each file NAME-seedN.mp4 has a .json (prompt, seed, size and `about`) and its prompt as .txt beside it. above: rows
    of the sheet by label, over the samples'. kind: one of `KINDS`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for i, (name, samples) in enumerate(zip(names, videos, strict=True)):
        stem = f"{i:02d}-{slug(name)}"
        moving = samples.shape[1] > 1
        entry: dict[str, Any] = {"caption": name, "png": f"{folder.name}/{stem}.png"}
        rows = list(samples[:, None]) if moving else [samples[None, :, 0]]  # images side by side
        labels = [f"{name} (seed {seed})" for seed in seeds] if moving and len(seeds) > 1 else [name] * len(rows)
        sheet = [*(video[None] for video in above.values()), *rows]
        contact_sheet(folder / f"{stem}.png", sheet, labels=[*above, *labels])
        for seed, video in zip(seeds, samples) if moving else ():
            file = folder / f"{stem}-seed{seed}.{kind}"
            write_video(file, video, fps)
            describe(file, name, seed, video.shape[:3], fps, about)
            entry.setdefault("videos", []).append(f"{folder.name}/{file.name}")
        entries.append(entry)
    return entries


def write_index(folder: AnyPath, entries: Sequence[Mapping[str, Any]]) -> None:
    """Lists the videos of these entries in a run's folder: others there are of earlier prompts or settings."""
    names = [name.rpartition("/")[2] for entry in entries for name in entry.get("videos", ())]
    write_json(folder / INDEX, {"videos": names})


def describe(
    file: AnyPath, prompt: str, seed: int, size: tuple[int, int, int], fps: float, about: Mapping[str, Any]
) -> None:
    """Writes the settings that made a video of `size` (t, h, w) beside it."""
    frames, height, width = size
    made = {"prompt": prompt, "seed": seed, "frames": frames, "height": height, "width": width, "fps": fps}
    write_json(file.with_suffix(".json"), {**made, **about})
    file.with_suffix(".txt").write_bytes(f"{prompt}\n".encode(errors="replace"))


def write_video(path: AnyPath, video: UInt8[np.ndarray, "t h w c"], fps: float) -> None:
    """Writes a video as its ending says: H.264, GIF (at most 50 frames per second, 256 colours per frame) or WebP."""
    if path.suffix == ".mp4":
        write_mp4(path, video, fps)
    else:
        path.write_bytes(encode_animation(video, fps, path.suffix[1:].upper()))
