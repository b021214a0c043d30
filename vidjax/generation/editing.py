"""A tuned run's edits: the clip is inverted once, then every prompt leads the same noise to another video."""

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
from vidjax.errors import InputError
from vidjax.generation.generator import Generator
from vidjax.generation.output import write_index, write_samples
from vidjax.runtime.processes import lead, on_first_process, say
from vidjax.runtime.progress import count_off
from vidjax.runtime.sharding import batch_ways
from vidjax.runtime.storage import AnyPath, whole_file

Latents = Float[np.ndarray, "b t h w c"]


def split_prompts(prompts: str) -> list[str]:
    """The prompts of one string with ; between them."""
    return [prompt.strip() for prompt in prompts.split(";") if prompt.strip()]


def inverted(generator: Generator, latents: Latents, file: AnyPath) -> Latents:
    """The noise of `latents` under the empty prompt (Mokady et al. 2023), computed once and kept in `file`.

    A file for other latents, steps or weights than these is computed again.
    """

    def make() -> np.ndarray:
        say(f"inverting the clip in {generator.defaults.num_steps} steps")
        return np.asarray(generator.invert(latents, [""] * len(latents)))

    return kept(file, stamp(generator, latents), make)


def nulled(generator: Generator, latents: Latents, prompt: str, folder: AnyPath) -> tuple[Latents, np.ndarray]:
    """The noise of `latents` under `prompt`, and the null captions a step that lead back; likewise kept."""
    how = generator.defaults
    under = f"{stamp(generator, latents)}|{prompt}|{how.negative_prompt}|{how.guidance_scale}|{how.null_text}"

    @cache
    def made() -> Any:
        say(f"inverting the clip with null captions in {how.num_steps} steps")
        return generator.null_text(latents, [prompt] * len(latents))

    noise, nulls = (
        kept(folder / f"null_text_{name}.npz", under, lambda i=i: np.asarray(made()[i]))
        for i, name in enumerate(("noise", "tokens"))
    )
    return noise, nulls


def stamp(generator: Generator, latents: Latents) -> str:
    """What an inversion depends on."""
    how = generator.defaults
    steps = f"{how.num_steps}|{how.spacing}|{how.chunk}|{how.overlap}"
    return f"{steps}|{generator.fingerprint()}|{crc32(np.asarray(latents))}"


def kept(file: AnyPath, stamp: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """`make()`, by all processes, or what an earlier call with the same stamp has left whole in `file`."""
    if on_first_process(lambda: left(file, stamp) is not None):
        array = left(file, stamp)
        assert array is not None
        return array
    array = make()
    on_first_process(lambda: leave(file, stamp, array))
    return array


def left(file: AnyPath, stamp: str) -> np.ndarray | None:
    """The array in `file`, if it is whole and has that stamp."""
    with suppress(OSError, ValueError, KeyError, EOFError, BadZipFile), file.open("rb") as opened:
        found = np.load(opened, allow_pickle=False)
        return found["array"] if str(found["stamp"]) == stamp else None


def leave(file: AnyPath, stamp: str, array: np.ndarray) -> None:
    """All of it, or nothing."""
    with whole_file(file) as whole:
        np.savez(whole, array=array, stamp=stamp)


def blend(noises: Sequence[Latents], weights: Sequence[float]) -> Latents:
    """Several inversions as one start: sum of weight noise, brought back to the mean deviation of its parts.

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
    """uint8 videos [t, h, w, c], one a prompt, of the first clip [t, h, w, c], which `caption` describes.

    How they start is `sample`'s to say: from the clip's inversion, or the mixture of several clips' (`blend`), with
    `null_text` from its inversion under the caption; with `strength` from the clip under noise; else from noise.
    """
    clip, how = clips[0], generator.defaults
    latents, size = generator.encode(clip[None]), clip.shape[1:3]
    start: dict[str, Any] = {}
    if how.strength < 1:
        start["begin"] = latents
    elif how.null_text:
        start["noise"], start["nulls"] = nulled(generator, latents, caption, workdir)
    elif how.blend:
        start["noise"] = blended(generator, clips[: len(how.blend)], how.blend, workdir)
    elif how.invert:
        start["noise"] = inverted(generator, latents, workdir / "inversion.npz")
    if how.mask or how.edit_frames:
        start["kept"] = latents, latent_mask(how.mask, how.edit_frames, clip.shape[:3], latents.shape[1:4])
    videos = []
    for some in count_off(groups(generator, prompts), "sampling"):
        if len(some) > 1 and "noise" not in start:
            start["noise"] = generator.noise(1, len(clip), size)
        videos += list(generator(some, frames=len(clip), size=size, **for_each(start, len(some))))
    return videos


def groups(generator: Generator, prompts: Sequence[str]) -> list[list[str]]:
    """As many prompts at a time as the mesh cuts a batch into; one where the steps draw noise, as each prompt gets that
    of the first place."""
    how = generator.defaults
    many = 1 if how.eta or how.sampler == "ddpm" else batch_ways(generator.mesh)
    return [list(prompts[i : i + many]) for i in range(0, len(prompts), many)]


def for_each(start: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Arguments of `Generator.latents` for one video, for `count` that start alike."""
    repeat = lambda x, axis=0: np.repeat(np.asarray(x), count, axis)
    take = {"nulls": lambda x: repeat(x, 1), "kept": lambda pair: (repeat(pair[0]), pair[1])}
    return {name: take.get(name, repeat)(value) for name, value in start.items()}


def blended(generator: Generator, clips: Sequence[np.ndarray], weights: Sequence[float], workdir: AnyPath) -> Latents:
    """The inversions of several clips in one start."""
    noises = [
        inverted(generator, generator.encode(clip[None]), workdir / f"inversion{f'_{i}' if i else ''}.npz")
        for i, clip in enumerate(clips)
    ]
    return blend(noises, weights)


def latent_mask(
    picture: str, frames: str, size: tuple[int, int, int], latent: tuple[int, int, int]
) -> Bool[np.ndarray, "t h w"]:
    """Where an edit may go, latent by latent: wherever a white pixel of the picture lies, in the range of frames.

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
    t, h, w = latent
    return mask.reshape(t, size[0] // t, h, size[1] // h, w, size[2] // w).any((1, 3, 5))


def write_edits(
    workdir: AnyPath,
    clip: np.ndarray,
    prompts: Sequence[str],
    videos: Sequence[np.ndarray],
    fps: float,
    about: Mapping[str, Any] = {},
) -> Any:
    """For each prompt its edit, and a contact sheet of the source above the edit; the source in clips/source.mp4.

    The first process writes; it gets entries for summary.json."""
    if not lead():
        return []
    write_mp4(workdir / "clips" / "source.mp4", clip, fps)
    each, above = [video[None] for video in videos], {"source": clip}
    entries = write_samples(workdir / "samples", prompts, each, fps, about=about, above=above)
    write_index(workdir / "samples", entries)
    return [{**entry, "source": "clips/source.mp4"} for entry in entries]


def reconstruction_error(generator: Generator, latents: Latents, noise: Latents, prompt: str, **options: Any) -> float:
    """||DDIM(inversion) - latents|| / ||latents|| under `prompt`, by default without guidance: how faithful edits can
    be."""
    how = dict(guidance_scale=1.0, negative_prompt="", sampler="ddim", eta=0.0) | options
    size = dict(frames=generator.size[0], size=generator.size[1:])
    back = generator.latents([prompt] * len(latents), noise=noise, **size, **how)
    return float(np.linalg.norm(np.asarray(back) - latents) / np.linalg.norm(latents))


def show(
    workdir: AnyPath, generator: Generator, clips: Sequence[np.ndarray], captions: Sequence[str]
) -> dict[str, Any]:
    """Edits of the first clip into `workdir`/samples; the entries and figures of summary.json."""
    clip, how = clips[0], generator.defaults
    prompts = split_prompts(how.prompts) or [captions[0]]
    videos = edits(generator, clips, prompts, captions[0], workdir)
    about = {"model": str(workdir), "clip": captions[0], **asdict(how)}
    found: dict[str, Any] = {"samples": write_edits(workdir, clip, prompts, videos, how.fps, about)}
    if how.invert and how.strength == 1:
        latents = np.asarray(generator.encode(clip[None]))
        noise = inverted(generator, latents, workdir / "inversion.npz")
        found["inversion_error"] = reconstruction_error(generator, latents, noise, "")
        if how.null_text:
            noise, nulls = nulled(generator, latents, captions[0], workdir)
            more = dict(guidance_scale=how.guidance_scale, negative_prompt=how.negative_prompt)
            found["guided_error"] = reconstruction_error(generator, latents, noise, captions[0], **more)
            found["null_text_error"] = reconstruction_error(generator, latents, noise, captions[0], nulls=nulls, **more)
    return found
