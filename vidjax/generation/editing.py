"""Edits of a clip: it is inverted once, then every prompt leads the same noise to another video."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from typing import Any
from zipfile import BadZipFile
from zlib import crc32

import numpy as np
from jaxtyping import Bool, Float

from vidjax.data.pictures import read_picture
from vidjax.data.video_reading import BrokenClip
from vidjax.data.video_writing import write_mp4
from vidjax.diffusion.samplers import RANDOM
from vidjax.errors import InputError
from vidjax.generation.generator import Generator
from vidjax.generation.output import write_index, write_samples
from vidjax.runtime.processes import lead, on_first_process, say
from vidjax.runtime.progress import count_off
from vidjax.runtime.sharding import batch_ways
from vidjax.runtime.storage import AnyPath, whole_file

Latents = Float[np.ndarray, "b t h w c"]


def what_to_edit(generator: Generator, captions: Sequence[str]) -> list[str]:
    """Chooses the prompts of the edits: the recipe's, else the clips' captions; one empty one where no text is read."""
    if generator.tokenize is None:
        return [""]
    return generator.defaults.prompt_list or list(captions)


def invert_once(generator: Generator, latents: Latents, file: AnyPath) -> Latents:
    """Inverts `latents` to noise under the empty prompt (Mokady et al. 2023), once: the noise is cached in `file`.

    A file for other latents, steps or weights than these is computed again.
    """

    def make() -> np.ndarray:
        say(f"inverting the clip in {generator.defaults.num_steps} steps")
        return np.asarray(generator.invert(latents, [""] * len(latents)))

    return cached(file, stamp(generator, latents), make)


def null_text_once(generator: Generator, latents: Latents, prompt: str, folder: AnyPath) -> tuple[Latents, np.ndarray]:
    """Inverts `latents` under `prompt` to noise, and the null captions per step that lead back; both are cached."""
    how = generator.defaults
    under = f"{stamp(generator, latents)}|{prompt}{how.suffix}|{how.negative_prompt}"
    under += f"|{how.guidance_scale}|{how.null_text}"

    @cache
    def made() -> Any:
        say(f"inverting the clip with null captions in {how.num_steps} steps")
        return generator.null_text(latents, [prompt] * len(latents))

    noise, nulls = (
        cached(folder / f"null_text_{name}.npz", under, lambda i=i: np.asarray(made()[i]))
        for i, name in enumerate(("noise", "tokens"))
    )
    return noise, nulls


def stamp(generator: Generator, latents: Latents) -> str:
    """Describes all that an inversion depends on."""
    how = generator.defaults
    steps = f"{how.num_steps}|{how.spacing}|{how.chunk}|{how.overlap}"
    return f"{steps}|{generator.fingerprint()}|{crc32(np.asarray(latents))}"


def cached(file: AnyPath, key: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Returns the array cached in `file` under `key`; computes, on all processes, and stores it if there is none."""
    if on_first_process(lambda: read_cache(file, key) is not None):
        array = read_cache(file, key)
        assert array is not None
        return array
    array = make()
    on_first_process(lambda: write_cache(file, key, array))
    return array


def read_cache(file: AnyPath, key: str) -> np.ndarray | None:
    """Reads the array in `file`; None if there is none, it is damaged, or it has another key."""
    with suppress(OSError, ValueError, KeyError, EOFError, BadZipFile), file.open("rb") as opened:
        found = np.load(opened, allow_pickle=False)
        return found["array"] if str(found["stamp"]) == key else None


def write_cache(file: AnyPath, key: str, array: np.ndarray) -> None:
    """Writes the file whole, or not at all."""
    with whole_file(file) as whole:
        np.savez(whole, array=array, stamp=key)


def blend(noises: Sequence[Latents], weights: Sequence[float]) -> Latents:
    """Mixes several inversions to one start: their weighted sum, scaled back to the mean deviation of its parts.

    With two, alpha inv(V1) + (1 - alpha) inv(V2). Raises InputError if shapes or numbers do not match.
    """
    if len(noises) != len(weights) or not noises:
        raise InputError(f"{len(noises)} inversions and {len(weights)} weights to blend them; give one weight to each")
    if len({noise.shape for noise in noises}) > 1:
        raise InputError(f"inversions of shapes {', '.join(str(n.shape) for n in noises)} cannot be blended")
    mixed = sum(weight * noise for weight, noise in zip(weights, noises))
    return mixed * (np.mean([noise.std() for noise in noises]) / mixed.std())


def edits(
    generator: Generator, clips: Sequence[np.ndarray], prompts: Sequence[str], caption: str, workdir: AnyPath
) -> list[np.ndarray]:
    """Edits the first clip [t, h, w, c], which `caption` describes: a uint8 video [t, h, w, c] per prompt.

    The generator's defaults decide how edits start: from the clip's inversion, or the mixture of several clips'
    (`blend`), with `null_text` from its inversion under the caption; with `strength` from the clip under noise; else
    from noise.
    """
    clip, how = clips[0], generator.defaults
    latents, size = generator.encode(clip[None]), clip.shape[1:3]
    start: dict[str, Any] = {}
    if how.strength < 1:
        start["begin"] = latents
    elif how.null_text:
        start["noise"], start["nulls"] = null_text_once(generator, latents, caption, workdir)
    elif how.blend:
        start["noise"] = blend_clips(generator, clips[: len(how.blend)], how.blend, workdir)
    elif how.invert:
        start["noise"] = invert_once(generator, latents, workdir / "inversion.npz")
    if "picture" in generator.embedder_names:
        start["pictures"] = clip[:1]
    if how.mask or how.edit_frames:
        start["kept"] = latents, latent_mask(how.mask, how.edit_frames, clip.shape[:3], latents.shape[1:4])
    videos = []
    for some in count_off(group_prompts(generator, prompts), "sampling"):
        if len(some) > 1 and "noise" not in start:
            start["noise"] = generator.noise(1, len(clip), size)
        videos += list(generator(some, frames=len(clip), size=size, **repeat_start(start, len(some))))
    return videos


def group_prompts(generator: Generator, prompts: Sequence[str]) -> list[list[str]]:
    """Groups prompts by as many as the mesh cuts a batch into; singly where the steps draw noise, so that each prompt
    gets that of the first place."""
    how = generator.defaults
    many = 1 if how.eta or how.sampler in RANDOM else batch_ways(generator.mesh)
    return [list(prompts[i : i + many]) for i in range(0, len(prompts), many)]


def repeat_start(start: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Repeats the arguments of `Generator.latents` for one video for `count` that start alike."""
    repeat = lambda x, axis=0: np.repeat(np.asarray(x), count, axis)
    take = {"nulls": lambda x: repeat(x, 1), "kept": lambda pair: (repeat(pair[0]), pair[1])}
    return {name: take.get(name, repeat)(value) for name, value in start.items()}


def blend_clips(
    generator: Generator, clips: Sequence[np.ndarray], weights: Sequence[float], workdir: AnyPath
) -> Latents:
    """Inverts several clips, each once, and mixes the inversions."""
    noises = [
        invert_once(generator, generator.encode(clip[None]), workdir / f"inversion{f'_{i}' if i else ''}.npz")
        for i, clip in enumerate(clips)
    ]
    return blend(noises, weights)


def latent_mask(
    picture: str, frames: str, size: tuple[int, int, int], latent: tuple[int, int, int]
) -> Bool[np.ndarray, "t h w"]:
    """Makes the mask of latents that an edit may change: those with a white pixel of the picture, in a range of frames.

    size, latent: (t, h, w) of the clip and of its latents. Raises InputError for a picture of another size and for a
    range that is none of the clip's.
    """
    mask = np.ones(size, bool)
    if picture:
        try:
            white = read_picture(picture, "L") >= 128
        except BrokenClip as error:
            raise InputError(f"the mask {picture} cannot be read: {error}") from None
        if white.shape != size[1:]:
            raise InputError(
                f"the mask {picture} has {white.shape[0]}x{white.shape[1]} pixels, the clip {size[1]}x{size[2]}: "
                "make it as large"
            )
        mask &= white
    if frames:
        first, _, last = frames.partition(":")
        if not (first.isdigit() and last.isdigit() and int(first) < int(last) <= size[0]):
            raise InputError(f"edit_frames={frames!r} is no range of the clip's {size[0]} frames; write 0:{size[0]}")
        inside = np.arange(size[0])
        mask &= ((inside >= int(first)) & (inside < int(last)))[:, None, None]
    return mask_latents(mask, latent)


def mask_latents(mask: Bool[np.ndarray, "t h w"], latent: tuple[int, int, int]) -> Bool[np.ndarray, "i j k"]:
    """Makes the mask of latents (t, h, w), of those that have a pixel of a mask of pixels."""
    (t, h, w), size = latent, mask.shape
    return mask.reshape(t, size[0] // t, h, size[1] // h, w, size[2] // w).any((1, 3, 5))


def write_edits(
    workdir: AnyPath,
    clip: np.ndarray,
    prompts: Sequence[str],
    videos: Sequence[np.ndarray],
    fps: float,
    about: Mapping[str, Any] = {},
) -> Any:
    """Writes an edit per prompt, contact sheets with the source above the edit, and the source as clips/source.mp4.

    The first process writes; it returns entries for summary.json, the others none."""
    if not lead():
        return []
    write_mp4(workdir / "clips" / "source.mp4", clip, fps)
    each, above = [video[None] for video in videos], {"source": clip}
    entries = write_samples(workdir / "samples", prompts, each, fps, about=about, above=above)
    write_index(workdir / "samples", entries)
    return [{**entry, "source": "clips/source.mp4"} for entry in entries]


def reconstruction_error(generator: Generator, latents: Latents, noise: Latents, prompt: str, **options: Any) -> float:
    """Measures how faithful edits can be: ||DDIM(inversion) - latents|| / ||latents|| under `prompt`.

    `options` are fields of SampleConfig; there is no guidance unless they set it.
    """
    how = dict(guidance_scale=1.0, negative_prompt="", sampler="ddim", eta=0.0) | options
    size = dict(frames=generator.size[0], size=generator.size[1:])
    back = generator.latents([prompt] * len(latents), noise=noise, **size, **how)
    return float(np.linalg.norm(np.asarray(back) - latents) / np.linalg.norm(latents))


def show(
    workdir: AnyPath, generator: Generator, clips: Sequence[np.ndarray], captions: Sequence[str]
) -> dict[str, Any]:
    """Writes edits of the first clip into `workdir`/samples; returns entries and figures for summary.json."""
    clip, how = clips[0], generator.defaults
    prompts = what_to_edit(generator, captions[:1])
    videos = edits(generator, clips, prompts, captions[0], workdir)
    about = {"model": str(workdir), "clip": captions[0], **asdict(how)}
    found: dict[str, Any] = {"samples": write_edits(workdir, clip, prompts, videos, how.fps, about)}
    if how.invert and how.strength == 1:
        latents = np.asarray(generator.encode(clip[None]))
        noise = invert_once(generator, latents, workdir / "inversion.npz")
        found["inversion_error"] = reconstruction_error(generator, latents, noise, "")
        if how.null_text:
            noise, nulls = null_text_once(generator, latents, captions[0], workdir)
            more = dict(guidance_scale=how.guidance_scale, negative_prompt=how.negative_prompt)
            found["guided_error"] = reconstruction_error(generator, latents, noise, captions[0], **more)
            found["null_text_error"] = reconstruction_error(generator, latents, noise, captions[0], nulls=nulls, **more)
    return found
