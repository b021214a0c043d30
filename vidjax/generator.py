"""From prompts or labels to videos with a trained model."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vidjax.conditioning import embed, nulls
from vidjax.data.pipeline import Dataset
from vidjax.data.transforms import to_uint8
from vidjax.diffusion.guidance import classifier_free
from vidjax.diffusion.samplers import SAMPLERS, Sampler, sample
from vidjax.diffusion.schedule import Schedule
from vidjax.errors import InputError
from vidjax.settings import choose, construct
from vidjax.train_state import Params, merge
from vidjax.video_model import Codec, VideoModel

UNCONDITIONAL = 8  # samples of a model without conditions
CAPACITY = 1000  # steps that one compiled sampler serves


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Defaults of a recipe's sampling; every call may override them."""

    sampler: str = "ddim"
    num_steps: int = 50
    guidance_scale: float = 1.0
    negative_prompt: str = ""  # what guidance steers away from
    rescale: float = 0.0
    eta: float = 0.0
    spacing: str | None = None
    per_caption: int = 1
    fps: float = 15.0


class Generator:
    """A trained model, ready to sample. Compiles once a sampler and size of the result, for any number of steps."""

    def __init__(
        self,
        graphdef: Any,
        params: Params,
        schedule: Schedule,
        prediction: str,
        tokenize: Callable[[str], np.ndarray] | None,
        size: tuple[int, int, int],
        channels: int,
        defaults: SampleConfig,
    ):
        self.graphdef, self.params = graphdef, params
        self.schedule, self.prediction, self.tokenize = schedule, prediction, tokenize
        self.size, self.channels, self.defaults = size, channels, defaults
        self._progress: Callable[[int], None] = lambda done: None
        self._jitted = jax.jit(self._sample, static_argnames=("sampler", "guided", "rescale", "eta"))
        self._decode = jax.jit(lambda params, z: to_uint8(self._model(params).pixels(z)))

    def _model(self, params: Params) -> VideoModel:
        return merge(self.graphdef, params)

    @property
    def codec(self) -> Codec | None:
        return self._model(self.params).codec

    @property
    def embedder_names(self) -> tuple[str, ...]:
        return self._model(self.params).embedder_names

    def latent_shape(self, frames: int | None = None, size: tuple[int, int] | None = None) -> tuple[int, int, int, int]:
        """[t, h, w, c] of what is diffused for a video of that size. Raises InputError if it does not fit."""
        t, h, w = frames or self.size[0], *(size or self.size[1:])
        video = jax.ShapeDtypeStruct((1, t, h, w, self.channels), jnp.uint8)
        return jax.eval_shape(lambda p, v: self._model(p).latents(v), self.params, video).shape[1:]

    def __call__(self, prompts: Sequence[str | int], **options: Any) -> np.ndarray:
        """uint8 videos `[b, t, h, w, c]`, one a prompt; arguments as in `latents`."""
        return self.decode(self.latents(prompts, **options))

    def latents(
        self,
        prompts: Sequence[str | int],
        *,
        frames: int | None = None,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        noise: Float[Array | np.ndarray, "b t h w c"] | None = None,
        progress: Callable[[int], None] | None = None,
        **options: Any,
    ) -> Float[Array, "b t h w c"]:
        """What is diffused, fp32, one a prompt: a caption, or for a class model a number (-1: none).

        `options` are fields of SampleConfig. Each prompt starts from its own standard normal noise: that of (seed,
        place in the list), or from `noise`. Raises InputError.
        """
        how = dataclasses.replace(self.defaults, **options)
        make_sampler(how.sampler, how.eta)
        if not 1 <= how.num_steps <= CAPACITY:
            raise InputError(f"num_steps {how.num_steps} is not between 1 and {CAPACITY}")
        guided = how.guidance_scale != 1.0
        if how.negative_prompt and not guided:
            raise InputError(
                f"negative_prompt {how.negative_prompt!r} does nothing at guidance_scale 1; raise guidance_scale"
            )
        shape = (len(prompts), *self.latent_shape(frames, size))
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(len(prompts)))
        if noise is None:
            noise = jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(keys)
        if noise.shape != shape:
            raise InputError(f"the noise has shape {noise.shape}, these videos start from {shape}; change either")
        times = np.asarray(self.schedule.timesteps(how.num_steps, how.spacing), np.float32)
        times = np.pad(times, (0, CAPACITY + 1 - len(times)), "edge")
        self._progress = progress or (lambda done: None)
        return self._jitted(
            self.params,
            self.conditions(prompts),
            self.conditions([how.negative_prompt] * len(prompts)) if how.negative_prompt else {},
            jnp.asarray(noise, jnp.float32),
            keys[0],
            times,
            how.num_steps,
            how.guidance_scale,
            sampler=how.sampler,
            guided=guided,
            rescale=how.rescale,
            eta=how.eta,
        )

    def decode(self, latents: Float[Array, "b t h w c"]) -> np.ndarray:
        """uint8 videos of latents."""
        return np.asarray(self._decode(self.params, latents))

    def conditions(self, prompts: Sequence[str | int]) -> dict[str, Array]:
        """The batch entries that the model's embedders read. Raises InputError if they do not fit the model."""
        names = self._model(self.params).embedder_names
        batch: dict[str, Array] = {"size": jnp.zeros((len(prompts), 0))}
        if any(isinstance(p, str) and p for p in prompts) and "text" not in names:
            raise InputError(
                f"prompt {prompts[0]!r}: this model does not read text; it knows {', '.join(names) or 'no conditions'}"
            )
        if "text" in names:
            assert self.tokenize is not None
            batch["tokens"] = jnp.asarray(np.stack([self.tokenize(str(p)) for p in prompts]))
        if "label" in names:
            batch["label"] = jnp.asarray([p if isinstance(p, int) else -1 for p in prompts])
        return batch

    def _sample(
        self, params, batch, negative, noise, key, times, num_steps, guidance_scale, *, sampler, guided, rescale, eta
    ):
        model = self._model(params)
        denoise = model.denoiser(self.schedule, self.prediction, embed(model.embedders, batch))
        if guided:
            away = embed(model.embedders, {**nulls(model.embedders, batch), **negative})
            null = model.denoiser(self.schedule, self.prediction, away)
            denoise = classifier_free(
                self.schedule, denoise, null, guidance_scale, rescale=rescale, prediction=self.prediction
            )
        return sample(
            denoise,
            self.schedule,
            noise * self.schedule.std(times[0]),
            times,
            num_steps,
            make_sampler(sampler, eta),
            key,
            lambda done: self._progress(done),
        )


def what_to_ask(generator: Generator, dataset: Dataset) -> tuple[list[str | int], list[str]]:
    """Every caption of a small data set, every class, or a few unconditional samples; with a name each."""
    conditions = generator.embedder_names
    if "text" in conditions:
        texts = list(dict.fromkeys(dataset.texts))[:16]
        return list(texts), texts
    if "label" in conditions:
        return list(range(dataset.num_classes)), [f"class {i}" for i in range(dataset.num_classes)]
    return [-1] * UNCONDITIONAL, [f"sample {i}" for i in range(UNCONDITIONAL)]


def make_sampler(name: str, eta: float = 0.0) -> Sampler:
    """A sampler by name; only DDIM takes an `eta`. Raises InputError."""
    make = choose(name, SAMPLERS, "sampler")
    return construct(make, {"eta": eta} if eta else {}, f"sample (sampler {name})")
