"""Models that each make the video of the one before larger (Ho et al. 2021; Imagen Video, Ho et al. 2022), in a row."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float, UInt8

from vidjax.data.pipeline import DataConfig
from vidjax.errors import InputError
from vidjax.generation.generator import Generator, Prompts, Report
from vidjax.generation.options import SampleConfig, after
from vidjax.models.flow_autoencoder import FlowCodec
from vidjax.models.lowres import LowresEmbedder
from vidjax.models.parameters import Params
from vidjax.models.video_model import Codec, VideoModel

BASE = ("pictures", "picture_at")  # arguments that are the first model's
SHARED = {field.name for field in dataclasses.fields(SampleConfig)}  # options that all stages are sampled with


class Cascade:
    """Generators, the base first, each of which makes the videos of the one before larger.

    It samples as a `Generator` does; `size`, `defaults`, `model` and the like are those of the last one.
    """

    def __init__(self, generators: Sequence[Generator]):
        self.generators = tuple(generators)

    @property
    def last(self) -> Generator:
        """The generator of the largest videos."""
        return self.generators[-1]

    def num_steps(self, **options: Any) -> int:
        """Counts the steps of all samplers, under these options. Raises InputError for more than a refinement takes."""
        return sum(each.num_steps(**options) for each in self.generators)

    def sizes(
        self, frames: int | None = None, size: tuple[int, int] | None = None
    ) -> list[tuple[int, tuple[int, int]]]:
        """(frames, (height, width)) of each generator's videos, for a last one of this size. What a model with a
        refinement makes larger is as large as the one below it makes videos. Raises InputError."""
        t, (h, w) = frames or self.last.size[0], size or self.last.size[1:]
        found = [(t, (h, w))]
        for low, generator in zip(self.generators[-2::-1], self.generators[:0:-1]):
            t, h, w = (t, *low.size[1:]) if generator.refinement else embedder(generator).low_size((t, h, w))
            found.append((t, (h, w)))
        return found[::-1]

    def __call__(self, prompts: Prompts, **options: Any) -> UInt8[np.ndarray, "b t h w c"]:
        """Samples a video per prompt; arguments as in `latents`."""
        return self.decode(self.latents(prompts, **options), options.get("decode_frames"))

    def videos(
        self,
        prompts: Prompts,
        *,
        frames: int | None = None,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        progress: Report | None = None,
        **options: Any,
    ) -> Iterator[UInt8[np.ndarray, "b t h w c"]]:
        """Yields what each generator samples, the base first; `options` are fields of SampleConfig, and for the base
        `pictures` and their `picture_at`."""
        own = {name: options.pop(name) for name in BASE if name in options}
        steps, done = [generator.num_steps(**options) for generator in self.generators], 0
        for generator, count, (t, hw) in zip(self.generators, steps, self.sizes(frames, size)):
            report = after(done, progress)
            video = generator(prompts, frames=t, size=hw, seed=seed, progress=report, **own, **options)
            yield video
            done += count
            own = {"lowres": video}

    def latents(
        self,
        prompts: Prompts,
        *,
        frames: int | None = None,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        lowres: UInt8[np.ndarray, "b s i j e"] | None = None,
        progress: Report | None = None,
        **options: Any,
    ) -> Float[Array, "b t h w c"]:
        """Samples what the last generator diffuses; arguments as in `Generator.latents`.

        lowres: the videos to make larger, by default sampled by the generators before the last one, with the same seed
        and the same fields of SampleConfig; pictures are the base's. progress: is called with the number of steps of
        all generators done.
        """
        first = {name: options.pop(name) for name in BASE if name in options}
        below = Cascade(self.generators[:-1])
        report = after(self.num_steps(**options) - self.last.num_steps(**options), progress)
        if lowres is None and below.generators:
            t, hw = self.sizes(frames, size)[-2]
            shared = {name: value for name, value in options.items() if name in SHARED} | first
            *_, lowres = below.videos(prompts, frames=t, size=hw, seed=seed, progress=progress, **shared)
        more: dict[str, Any] = dict(frames=frames, size=size, seed=seed, lowres=lowres, progress=report)
        more |= {} if below.generators else first
        return self.last.latents(prompts, **more, **options)

    def decode(
        self,
        latents: Float[Array | np.ndarray, "b s i j z"],
        at_once: int | None = None,
        pictures: UInt8[np.ndarray, "b h w 3"] | None = None,
    ) -> UInt8[np.ndarray, "b t h w c"]:
        """Decodes latents of the last generator to videos, as `Generator.decode`."""
        return self.last.decode(latents, at_once, pictures)

    def reconstruct(self, videos: Sequence[UInt8[np.ndarray, "t h w c"]]) -> tuple[np.ndarray, np.ndarray]:
        """As `Generator.reconstruct`."""
        return self.last.reconstruct(videos)

    def latent_shape(self, frames: int | None = None, size: tuple[int, int] | None = None) -> tuple[int, int, int, int]:
        """As `Generator.latent_shape`."""
        return self.last.latent_shape(frames, size)

    def fingerprint(self) -> int:
        """As `Generator.fingerprint`, of the last one."""
        return self.last.fingerprint()

    @property
    def size(self) -> tuple[int, int, int]:
        """(frames, height, width) of the largest videos."""
        return self.last.size

    @property
    def defaults(self) -> SampleConfig:
        """Options of the last generator."""
        return self.last.defaults

    @property
    def model(self) -> VideoModel:
        """Model of the last generator."""
        return self.last.model

    @property
    def params(self) -> Params:
        """Parameters of the last generator by path; they can be set."""
        return self.last.params

    @params.setter
    def params(self, params: Params) -> None:
        self.last.params = params

    @property
    def codec(self) -> Codec | FlowCodec | None:
        """Codec of the last generator."""
        return self.last.codec

    @property
    def embedder_names(self) -> tuple[str, ...]:
        """Names of the conditions of the last generator."""
        return self.last.embedder_names

    @property
    def tokenize(self) -> Callable[[str], np.ndarray] | None:
        """Makes token ids of a caption, if the last generator reads text."""
        return self.last.tokenize


AnyGenerator = Generator | Cascade


def below(section: Mapping[str, Any]) -> str | None:
    """The stage whose videos a stage with these settings makes larger."""
    lowres = section.get("conditioning", {}).get("lowres")
    return lowres.get("of") if lowres else None


def check(name: str, embedder: LowresEmbedder, own: DataConfig, low: DataConfig) -> None:
    """Raises InputError unless stage `embedder.of` learns from `low` to make what stage `name` learns to enlarge."""
    wanted = embedder.low_size((own.frames, *own.hw))
    if (low.frames, *low.hw) != wanted:
        raise InputError(
            f"stage {name} makes {wanted[0]} frames of {wanted[1]}x{wanted[2]} larger, stage {embedder.of} makes "
            f"{low.frames} of {low.hw[0]}x{low.hw[1]}: change data.frames, data.size or conditioning.lowres of either"
        )
    factor = embedder.time_factor
    there = (own.stride * factor, None) if own.fps is None else (own.stride, own.fps / factor)
    if (low.stride, low.fps) != there:
        raise InputError(
            f"stage {name} is shown every {factor}. frame of its clips: stage {embedder.of} wants "
            f"data.stride={there[0]} and data.fps={there[1]}, not {low.stride} and {low.fps}"
        )


def embedder(generator: Generator | Cascade) -> LowresEmbedder:
    """The embedder that holds the factors by which a model makes videos larger."""
    return generator.model.embedders["lowres"]
