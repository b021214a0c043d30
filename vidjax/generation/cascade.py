"""Stages that each make the video of the one before larger (Ho et al. 2021; Imagen Video, Ho et al. 2022), in a row."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from vidjax.data.pipeline import DataConfig
from vidjax.data.transforms import to_unit
from vidjax.errors import InputError
from vidjax.models.lowres import LowresEmbedder

APART = 2**20  # what sets the keys of this noise apart from those of the steps of a sampler


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


def chain(generator: Any) -> list[Any]:
    """The generators of all stages up to this one (None: none), the base first."""
    return [*chain(generator.below), generator] if generator else []


def steps(generator: Any, options: Mapping[str, Any]) -> int:
    """Of the samplers of all stages up to this one."""
    return sum(options.get("num_steps", each.defaults.num_steps) for each in chain(generator))


def videos(
    generator: Any,
    prompts: Sequence[str | int],
    *,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    **options: Any,
) -> Iterator[UInt8[np.ndarray, "b t h w c"]]:
    """What each stage up to this one makes, the base first; arguments as in `Generator.latents`."""
    own: dict[str, Any] = {}
    if generator.below is not None:
        low = low_size(generator, (frames or generator.size[0], *(size or generator.size[1:])))
        for video in videos(generator.below, prompts, **low, **options):
            yield video
            own = {"lowres": video}
    yield generator(prompts, frames=frames, size=size, **own, **options)


def from_below(generator: Any, prompts: Sequence[str | int], shape: tuple[int, ...], **options: Any) -> np.ndarray:
    """What samples of `shape` [t, h, w, c] make larger. Raises InputError if there is no stage below."""
    if generator.below is None:
        raise InputError("this model makes a video larger and has none: give it one, or the stage that makes it")
    return generator.below(prompts, **low_size(generator, shape), **options)


def low_size(generator: Any, size: tuple[int, ...]) -> dict[str, Any]:
    """`frames` and `size` of the stage below."""
    t, h, w = embedder(generator).low_size((size[0], size[1], size[2]))
    return {"frames": t, "size": (h, w)}


def embedder(generator: Any) -> LowresEmbedder:
    """What holds the factors of a stage."""
    return generator.model.embedders["lowres"]


def condition(
    generator: Any, video: UInt8[np.ndarray, "b s i j c"], shape: tuple[int, ...], keys: Array, level: float
) -> dict[str, Any]:
    """The batch entry for samples of `shape` [t, h, w, c] that make `video` larger, with the noise of that quantile of
    the training times; `keys` are one a video. Raises InputError for a video of another size, or a level that the stage
    was not trained with."""
    made = embedder(generator)
    if not 0 <= level <= made.max_level:
        raise InputError(
            f"sample.lowres_level={level} is not between 0 and {made.max_level}, up to where the stage was trained"
        )
    low = (*made.low_size((shape[0], shape[1], shape[2])), shape[3])
    if video.shape != (len(keys), *low):
        raise InputError(f"the video to be made larger is {video.shape}, it should be {(len(keys), *low)}")
    eps = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, APART), low))(keys)
    t = generator.schedule.sample_t(jnp.full(len(keys), level, jnp.float32))
    return {made.key: made.noised(generator.schedule, jnp.asarray(to_unit(video)), t, eps)}
