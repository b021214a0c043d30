"""From prompts or labels to videos with a trained model."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, UInt8

from vidjax.data.pipeline import Dataset
from vidjax.data.transforms import to_uint8, to_unit
from vidjax.diffusion import samplers
from vidjax.diffusion.guidance import (
    at_once,
    classifier_free,
    from_known,
    in_chunks,
    in_turn,
    keep,
    known_frames,
    reconstruction,
    regions,
)
from vidjax.diffusion.latent_motion import zero_shot
from vidjax.diffusion.null_text import at_time, null_text, pivots
from vidjax.diffusion.samplers import SAMPLERS, Denoiser, Sampler, ddim_inverse, sample
from vidjax.diffusion.schedule import SPACINGS, Schedule
from vidjax.errors import InputError, check_range, reason
from vidjax.generation import cascade
from vidjax.generation.tiles import in_tiles
from vidjax.models.conditioning import Conditioning, embed, nulls
from vidjax.models.kernels.attention import CHUNK
from vidjax.models.parameters import Params, cast, merge
from vidjax.models.unet import UNet
from vidjax.models.video_model import Codec, VideoModel
from vidjax.runtime import sharding
from vidjax.runtime.capacity import check_memory
from vidjax.runtime.compiling import jit
from vidjax.runtime.processes import batch_over, gather, run_over, scatter
from vidjax.settings import choose, construct

LOOKED_AT = 10_000  # captions of a large data set
UNCONDITIONAL = 8  # samples of a model without conditions
FRAMES = 4  # encoded or decoded at a time, where they are independent
CAPACITY = 1000  # steps that one compiled sampler serves
# Places of latents on a device up to which guidance asks the network once, about twice the batch. Processor seconds of
# one call over those of two (ModelScope's layers, 64 to 256 features; two shared cores with AVX-512, 2026-11-25): 0.95
# with 2**12 places, 1.00 with 2**14, 1.01 with 2**15: beyond it only the memory would be twice.
AT_ONCE = 2**15
SMALLER = "take fewer frames, a smaller height and width, or fewer prompts at a time"
STATIC = ("sampler", "guided", "rescale", "eta", "chunk", "told", "report")


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
    prompts: str = ""  # of edits, with ; between them
    invert: bool = True  # edits start from the inverted clip, not from noise
    null_text: int = 0  # updates a step of null-text inversion, under the clip's own prompt (theirs: 10)
    blend: tuple[float, ...] = ()  # weights of the inversions of the first so many clips
    strength: float = 1.0  # below 1, edits start from the clip under noise, this share of the steps from clean
    mask: str = ""  # a picture of the clip's size, white where edits may go
    edit_frames: str = ""  # such as 8:16, where edits may go
    chunk: int | None = None  # longer clips are worked off in chunks of so many latent frames
    overlap: int = 4
    tile: tuple[int, int, int] | None = None  # latents (t, h, w) that are encoded or decoded at once
    tile_overlap: tuple[int, int, int] = (4, 8, 8)  # in latents; see vidjax.generation.tiles
    known: int = 1  # latent frames that each part of a long video knows of the one before
    known_level: float = 0.0  # quantile of the training times at whose noise the network sees known frames
    frame_guidance: float = 1.0  # away from what it says when it sees none
    lowres_level: float = 0.3  # quantile of the training times at whose noise a cascade's stage sees the one before
    reconstruction: float = 2.0  # for models without frame masks: how strongly known frames pull at the others

    @property
    def chunks(self) -> tuple[int, int] | None:
        """(frames, overlap) of chunks, if there are any."""
        return (self.chunk, self.overlap) if self.chunk else None

    def __post_init__(self):
        choose(self.sampler, SAMPLERS, "sampler")
        if self.spacing is not None:
            choose(self.spacing, {name: None for name in SPACINGS}, "sample.spacing")
        check_range(
            "sample.", 1, num_steps=self.num_steps, per_caption=self.per_caption, chunk=self.chunk, tile=self.tile
        )
        check_range("sample.", -100, 1000, guidance_scale=self.guidance_scale, frame_guidance=self.frame_guidance)
        check_range("sample.", 0, 1000, reconstruction=self.reconstruction)
        check_range("sample.", 0, 1, rescale=self.rescale, eta=self.eta, known_level=self.known_level)
        if not 0.1 <= self.fps <= 1000:
            raise InputError(f"sample.fps={self.fps} is not between 0.1 and 1000 frames per second")
        if not 0 < self.strength <= 1:
            raise InputError(f"sample.strength={self.strength} is not above 0 and up to 1")
        for other, on in (("null_text", self.null_text), ("blend", self.blend)):
            if on and (not self.invert or self.strength < 1):
                raise InputError(f"sample.{other} works on inversions: set sample.invert=True and sample.strength=1")
        if self.null_text and self.blend:
            raise InputError("sample.null_text and sample.blend cannot be used at once; leave one out")
        if self.chunk is not None and not 0 <= self.overlap < self.chunk:
            raise InputError(f"chunks of {self.chunk} frames cannot overlap by {self.overlap}; change sample.overlap")


@dataclasses.dataclass(frozen=True)
class Subject:
    """One of several in a video: its prompt, and parameters if not the model's own, act where `mask` is true.

    The mask is of latents; one of a single frame is that of all frames.
    """

    prompt: str | int
    mask: Bool[np.ndarray, "t h w"]
    params: Params | None = None


class Generator:
    """A trained model, ready to sample. Compiles once a sampler and size of the result, for any number of steps.

    It computes over `mesh` as training does, by default over all devices on the data axis: the batch over data and
    fsdp, filled up where they do not divide it, frames over context, each parameter where it lies in training. Noise,
    schedule and guidance are fp32, the networks compute in `dtype`, by default that of the parameters. Over several
    processes all make the same calls, and each gets the whole result.
    """

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
        mesh: Mesh | None = None,
        dtype: str | None = None,
    ):
        self.graphdef, self.dtype = graphdef, dtype
        self.mesh = sharding.make_mesh() if mesh is None else mesh
        self.params = params
        self._schedule, self._prediction, self.tokenize = schedule, prediction, tokenize
        self.size, self.channels, self.defaults = size, channels, defaults
        self.below: Generator | None = None  # whose videos this one makes larger, see vidjax.generation.cascade
        self._progress: Callable[[int], None] = lambda done: None
        self._jitted = jit(self._sample, static_argnames=STATIC)
        self._inverted = jit(self._invert, static_argnames=("chunk", "report"))
        self._nulled = jit(self._null_text, static_argnames=("chunk", "updates"))
        self._moved = jit(self._in_motion, static_argnames=("frames", "steps", "sampler", "guided", "rescale"))
        self._encode = jit(lambda params, video: self._model(params).latents(video))
        self._decode = jit(self._seen)
        self._through = jit(self._reconstruct)

    @property
    def schedule(self) -> Schedule:
        """Compiled into the samplers, so it cannot be set: another one is another Generator's."""
        return self._schedule

    @property
    def prediction(self) -> str:
        """What the network says; likewise."""
        return self._prediction

    @property
    def params(self) -> Params:
        """By path, where they lie in training."""
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        self._params = self.laid(params)

    def laid(self, params: Params) -> Params:
        """Parameters of this model, where its own lie."""
        return scatter(params, sharding.parameters_sharding(self.mesh, params))

    def _cast(self, params: Params) -> Params:
        return params if self.dtype is None else cast(params, jnp.dtype(self.dtype))

    def _model(self, params: Params) -> VideoModel:
        """As it computes."""
        return merge(self.graphdef, self._cast(params))

    @property
    def model(self) -> VideoModel:
        """With the parameters as they are kept."""
        return merge(self.graphdef, self.params)

    @property
    def codec(self) -> Codec | None:
        return self.model.codec

    @property
    def embedder_names(self) -> tuple[str, ...]:
        return self.model.embedder_names

    def latent_shape(self, frames: int | None = None, size: tuple[int, int] | None = None) -> tuple[int, int, int, int]:
        """[t, h, w, c] of what is diffused for a video of that size. Raises InputError if it does not fit."""
        t, h, w = frames or self.size[0], *(size or self.size[1:])
        check_memory(t * h * w * self.channels, f"a video of {t} frames of {h}x{w} pixels", SMALLER)
        video = jax.ShapeDtypeStruct((1, t, h, w, self.channels), jnp.uint8)
        return jax.eval_shape(lambda p, v: self._model(p).latents(v), self.params, video).shape[1:]

    def _mesh(self, frames: int, chunk: int | None = None) -> Mesh:
        """Over which clips of so many latent frames are worked off: context must divide what is seen at once."""
        seen = chunk + 1 if chunk and chunk < frames else frames  # in_chunks adds the first frame
        return self.mesh if seen % self.mesh.shape["context"] == 0 else sharding.without_context(self.mesh)

    def _on(self, mesh: Mesh, params: Params) -> Params:
        return params if mesh == self.mesh else sharding.move_to_mesh(params, mesh)

    def _guided(self, how: SampleConfig, mesh: Mesh, count: int, shape: tuple[int, ...]) -> tuple[str, int]:
        """(how guidance asks: "", "apart" or "at once"; to how many videos the batch is filled up).

        At once wherever twice the batch finds devices that have no video yet, and while a device has few latents: a
        network then waits for its weights and between operations more than for products. Beyond that two calls take as
        long, and half the memory.
        """
        ways = sharding.batch_ways(mesh)
        filled = -(-count // ways) * ways
        if how.guidance_scale == 1.0:
            return "", filled
        t, h, w = min(how.chunk or shape[0], shape[0]), *shape[1:3]
        pairs = max(ways // 2, 1)
        doubled = -(-count // pairs) * pairs
        if 2 * count <= ways or 2 * doubled * t * h * w <= AT_ONCE * ways * mesh.shape["context"]:
            return "at once", doubled if 2 * doubled % ways == 0 else filled
        return "apart", filled

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
        kept: tuple[Array | np.ndarray, Array | np.ndarray] | None = None,
        known: tuple[Array | np.ndarray, Array | np.ndarray] | None = None,
        begin: Float[Array | np.ndarray, "b t h w c"] | None = None,
        nulls: Float[Array | np.ndarray, "s b m d"] | None = None,
        lowres: UInt8[np.ndarray, "b s i j c"] | None = None,
        subjects: Sequence[Subject] = (),
        progress: Callable[[int], None] | None = None,
        **options: Any,
    ) -> Float[Array, "b t h w c"]:
        """What is diffused, fp32, one a prompt: a caption, or for a class model a number (-1: none).

        `options` are fields of SampleConfig. Each prompt starts from its own standard normal noise: that of (seed,
        place in the list), or from `noise`. kept: latents [b, t, h, w, c] and a mask [t, h, w], outside of which they
        stay bit for bit. known: latents [b, t, h, w, c] and a mask [t] of frames that stay bit for bit, and with which
        the others go: a model trained with frame masks sees them under the noise of `known_level`, another is guided by
        `reconstruction`. begin: latents that get the noise of the first of the last `strength` share of the steps, all
        that is then done (Meng et al. 2022, SDEdit). nulls: null captions a step, from `null_text`. lowres: the videos
        that a stage of a cascade makes larger, by default those of the stage `below`, with the same options. subjects:
        each acts in its mask, the prompt outside of all; where masks meet, the mean of them. Raises InputError.
        """
        how = self._how(options)
        shape = self.latent_shape(frames, size)
        self._check_memory(how, len(prompts), shape, (frames or self.size[0], *(size or self.size[1:])))
        keys, own = self._start(len(prompts), shape, seed)
        noise = own if noise is None else noise
        if noise.shape != own.shape:
            raise InputError(f"the noise has shape {noise.shape}, these videos start from {own.shape}; change either")
        if not np.isfinite(noise).all():
            raise InputError("the noise to start from has values that are not finite (NaN or infinity)")
        if known is not None and (known[0].shape != own.shape or known[1].shape != shape[:1] or how.chunk):
            raise InputError(
                f"known frames are {known[0].shape}, these videos are {own.shape}, and sample.chunk be None"
            )
        times = samplers.times(make_sampler(how.sampler, how.eta), self.schedule, how.num_steps, how.spacing)
        mesh = self._mesh(shape[0], how.chunk)
        guided, filled = self._guided(how, mesh, len(prompts), shape)
        over = lambda tree, axis=0: batch_over(mesh, tree, filled, axis)
        table = None if nulls is None else (over(nulls, 1), times)
        steps = how.num_steps if begin is None else max(round(how.strength * how.num_steps), 1)
        times = np.pad(times[-1 - steps :], (0, CAPACITY - steps), "edge")
        batch = self.conditions(prompts)
        if "lowres" in self.embedder_names:
            if lowres is None:
                lowres = cascade.from_below(self, prompts, shape, seed=seed, progress=progress, **options)
            batch |= cascade.condition(self, lowres, shape, keys, how.lowres_level)
        before = cascade.steps(self.below, options)
        self._progress = (lambda done: progress(before + done)) if progress else (lambda done: None)
        others = [self._subject(subject, len(prompts), shape) for subject in subjects]
        with_mask = lambda pair: None if pair is None else (over(pair[0]), np.asarray(pair[1]))
        found = self._run(
            self._jitted,
            mesh,
            self._on(mesh, self.params),
            over(batch),
            over(self.tokens([how.negative_prompt] * len(prompts))),
            over(jnp.asarray(noise, jnp.float32)),
            np.asarray(jax.random.key_data(keys[0])),
            times,
            steps,
            how.guidance_scale,
            with_mask(kept),
            None if begin is None else over(begin),
            table,
            [(self._on(mesh, params), over(batch), mask) for params, batch, mask in others],
            with_mask(known),
            (how.known_level, how.frame_guidance if self.model.masked else how.reconstruction),
            told=how.frame_guidance != 1.0,
            sampler=how.sampler,
            guided=guided,
            rescale=how.rescale,
            eta=how.eta,
            chunk=how.chunks,
            report=progress is not None,
        )
        return finite(found[: len(prompts)])

    def _check_memory(self, how: SampleConfig, count: int, shape: tuple[int, ...], video: tuple[int, int, int]) -> None:
        """Raises InputError where not even the parameters, the videos, the U-Net's skips at its first level and, on a
        CPU, the weights of its attention there fit."""
        frames, places = shape[0], math.prod(shape[1:3])
        need = count * (2 * 4 * math.prod(shape) + math.prod(video) * self.channels)
        need += sum(value.nbytes for value in self.params.values())
        network, seen = self.model.unet, min(how.chunk or frames, frames)
        if isinstance(network, UNet):
            config, size = network.config, jnp.dtype(self.dtype or "float32").itemsize
            need += size * count * seen * places * config.channels[0] * (config.blocks_per_level + 1)
            if config.attention_levels[0] and jax.default_backend() == "cpu":
                heads = config.heads if isinstance(config.heads, int) else config.heads[0]
                need += 4 * count * seen * heads * min(CHUNK, places) * places
        t, h, w = video
        what = f"{count} videos of {t} frames of {h}x{w} pixels"
        check_memory(need, what, SMALLER)

    def _run(self, function: Callable[..., Any], mesh: Mesh, *args: Any, **static: Any) -> Any:
        """A compiled function over a mesh; what it gives, for this process. Raises InputError if memory runs out."""
        try:
            with jax.set_mesh(mesh):
                return jax.block_until_ready(gather(function(*args, **static)))
        except jax.errors.JaxRuntimeError as error:
            if not any(said in str(error) for said in ("RESOURCE_EXHAUSTED", "Out of memory")):
                raise
            raise InputError(f"{reason(error)}: {SMALLER}") from None

    def _subject(
        self, subject: Subject, count: int, shape: tuple[int, ...]
    ) -> tuple[Params, dict[str, Array], np.ndarray]:
        """(parameters, conditions of `count` videos, mask). Raises InputError for a mask of another size."""
        t, h, w, _ = shape
        if subject.mask.shape not in ((t, h, w), (1, h, w)):
            raise InputError(f"the mask of {subject.prompt!r} is {subject.mask.shape}, the latents are {(t, h, w)}")
        params = self.params if subject.params is None else self.laid(subject.params)
        return params, self.conditions([subject.prompt] * count), np.asarray(subject.mask, np.float32)

    def _how(self, options: Mapping[str, Any]) -> SampleConfig:
        """The defaults with these options. Raises InputError for what cannot be sampled."""
        how = dataclasses.replace(self.defaults, **options)
        make_sampler(how.sampler, how.eta)
        if not 1 <= how.num_steps <= CAPACITY:
            raise InputError(f"num_steps {how.num_steps} is not between 1 and {CAPACITY}")
        if how.negative_prompt and how.guidance_scale == 1.0:
            raise InputError(
                f"negative_prompt {how.negative_prompt!r} does nothing at guidance_scale 1; raise guidance_scale"
            )
        return how

    def _reporter(self, wanted: bool) -> Callable[[int], None] | None:
        """What a compiled sampler calls after each step; none unless wanted: JAX caches no program that calls back."""
        return (lambda done: self._progress(done)) if wanted else None

    def _start(self, count: int, shape: tuple[int, ...], seed: int) -> tuple[Array, Array]:
        """A key and standard normal noise for each of `count` videos: functions of (seed, place in the list), and in a
        cascade, whose stages must not start from the same numbers, of the size."""
        check_range("", 0, 2**63 - 1, seed=seed)
        key = jax.random.key(seed)
        if "lowres" in self.embedder_names:
            key = jax.random.fold_in(key, int(np.prod(shape)))
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(count))
        return keys, jax.vmap(lambda key: jax.random.normal(key, shape))(keys)

    def noise(self, count: int, frames: int | None = None, size: tuple[int, int] | None = None, seed: int = 0) -> Array:
        """What `latents` starts from."""
        return self._start(count, self.latent_shape(frames, size), seed)[1]

    def in_motion(
        self,
        prompts: Sequence[str | int],
        velocity: tuple[float, float],
        *,
        frames: int,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> Float[Array, "b t h w c"]:
        """Text2Video-Zero: latents of videos whose first frame moves by `velocity`, pixels (down, right) a frame.

        For image models that look at the first frame (`keys="first"`), without training. As `latents` otherwise.
        """
        how, codec = self._how(options), self.codec
        strides = codec.autoencoder.strides[1:] if codec else (1, 1)
        shape = self.latent_shape(1, size)
        self._check_memory(how, len(prompts), (frames, *shape[1:]), (frames, *(size or self.size[1:])))
        keys, noise = self._start(len(prompts), shape, seed)
        mesh = self._mesh(1)
        guided, filled = self._guided(how, mesh, len(prompts), (frames, *shape[1:]))
        over = partial(batch_over, mesh, size=filled)
        found = self._run(
            self._moved,
            mesh,
            self._on(mesh, self.params),
            over(self.conditions(prompts)),
            over(self.tokens([how.negative_prompt] * len(prompts))),
            over(noise),
            np.asarray(jax.random.key_data(keys[0])),
            (velocity[0] / strides[0], velocity[1] / strides[1]),
            how.guidance_scale,
            frames=frames,
            steps=(how.num_steps, how.spacing),
            sampler=(how.sampler, how.eta),
            guided=guided,
            rescale=how.rescale,
        )
        return finite(found[: len(prompts)])

    def _in_motion(
        self, params, batch, negative, noise, key, velocity, guidance_scale, *, frames, steps, sampler, guided, rescale
    ):
        denoise = self._denoiser(params, batch, negative, guidance_scale, rescale, guided=guided)
        chosen = make_sampler(*sampler)
        times = samplers.times(chosen, self.schedule, *steps)
        x, key = noise * self.schedule.std(times[0]), jax.random.wrap_key_data(key)
        return zero_shot(denoise, self.schedule, x, times, frames, velocity, key, sampler=chosen)

    def invert(
        self,
        latents: Float[Array | np.ndarray, "b t h w c"],
        prompts: Sequence[str | int],
        *,
        num_steps: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Float[Array, "b t h w c"]:
        """The noise from which DDIM in as many steps, without guidance, comes back to these latents."""
        steps = self.defaults.num_steps if num_steps is None else num_steps
        times = samplers.times(ddim_inverse(), self.schedule, steps, self.defaults.spacing)[::-1]
        times = np.pad(times, (0, CAPACITY + 1 - len(times)), "edge")
        self._progress = progress or (lambda done: None)
        latents = jnp.asarray(latents, jnp.float32)
        mesh = self._mesh(latents.shape[1], self.defaults.chunk)
        ways = sharding.batch_ways(mesh)
        over = partial(batch_over, mesh, size=-(-len(latents) // ways) * ways)
        args = self._on(mesh, self.params), over(self.conditions(prompts)), over(latents), times, steps
        static = dict(chunk=self.defaults.chunks, report=progress is not None)
        return finite(self._run(self._inverted, mesh, *args, **static)[: len(latents)])

    def _invert(self, params, batch, latents, times, num_steps, *, chunk, report):
        model = self._model(params)
        denoise = self._under(params, embed(model.embedders, batch))
        if chunk:
            denoise = in_chunks(denoise, *chunk)
        how = (ddim_inverse(), jax.random.key(0), self._reporter(report))
        return sample(denoise, self.schedule, latents, times, num_steps, *how)

    def null_text(
        self, latents: Float[Array | np.ndarray, "b t h w c"], prompts: Sequence[str | int], **options: Any
    ) -> tuple[Float[Array, "b t h w c"], Float[Array, "s b m d"]]:
        """(noise, nulls) from which sampling with guidance under these prompts comes back to the latents; as for
        `latents`, sample's `null_text` is the number of updates a step. Raises InputError for models without text."""
        how = self._how(options)
        if "text" not in self.embedder_names or how.guidance_scale == 1.0:
            raise InputError(f"null_text={how.null_text} wants a model that reads text, and guidance_scale above 1")
        times = samplers.times(ddim_inverse(), self.schedule, how.num_steps, how.spacing)
        negative = self.tokens([how.negative_prompt] * len(prompts))
        mesh = self._mesh(latents.shape[1], how.chunk)
        # the error is a mean over the videos: none is added
        conditions, negative, latents = batch_over(
            mesh, (self.conditions(prompts), negative, jnp.asarray(latents, jnp.float32)), len(prompts)
        )
        args = self._on(mesh, self.params), conditions, negative, latents, times, how.guidance_scale
        return self._run(self._nulled, mesh, *args, chunk=how.chunks, updates=how.null_text)

    def _null_text(self, params, batch, negative, latents, times, guidance_scale, *, chunk, updates):
        model = self._model(params)
        whole = (lambda denoise: in_chunks(denoise, *chunk)) if chunk else (lambda denoise: denoise)
        conditional = whole(self._denoiser(params, batch, negative, 1.0, 0.0, guided=""))
        away = embed(model.embedders, {**nulls(model.embedders, batch), **negative})
        unconditional = lambda tokens: whole(self._under(params, dataclasses.replace(away, tokens=tokens)))
        path = pivots(conditional, self.schedule, latents, times)
        found, _ = null_text(
            conditional, unconditional, self.schedule, path, times, away.tokens, guidance_scale, steps=updates
        )
        return path[0], found

    def encode(self, video: UInt8[np.ndarray, "b t h w c"]) -> Float[np.ndarray, "b s i j z"]:
        """What is diffused of a video: its latents, without noise."""
        return self._in_parts("encoder", self._encode, video)

    def decode(self, latents: Float[Array | np.ndarray, "b s i j z"]) -> UInt8[np.ndarray, "b t h w c"]:
        """Videos of latents."""
        return self._in_parts("decoder", self._decode, latents)

    def _seen(self, params, z):
        """Pixels, and whether they are any."""
        pixels = self._model(params).pixels(z)
        return to_uint8(pixels), jnp.isfinite(pixels).all(tuple(range(1, pixels.ndim)))

    def _in_parts(self, part: str, run: Callable[..., Any], x: Array | np.ndarray) -> np.ndarray:
        """Some frames at a time, if that part of the codec takes each by itself: memory does not grow with the clip. Or
        in tiles, where the recipe says so."""
        codec, how = self.codec, self.defaults
        stride = codec.autoencoder.strides[0] if isinstance(codec, Codec) and part == "encoder" else 1

        def whole(x: Array | np.ndarray) -> np.ndarray:
            mesh = self._mesh(x.shape[1] // stride)
            found = run_over(mesh, run, self._on(mesh, self.params), x)
            return check_finite(*found) if part == "decoder" else found

        if isinstance(codec, Codec) and how.tile:
            pixels = {"encoder": "strides", "decoder": "into"}[part]
            return in_tiles(whole, x, how.tile, how.tile_overlap, **{pixels: codec.autoencoder.strides})
        count = x.shape[1]
        if isinstance(codec, Codec) and codec.per_frame(part):
            count = FRAMES * self.mesh.shape["context"]
        return np.concatenate([whole(x[:, i : i + count]) for i in range(0, x.shape[1], count)], 1)

    def reconstruct(
        self, videos: Sequence[UInt8[np.ndarray, "t h w c"]]
    ) -> tuple[UInt8[np.ndarray, "b t h w c"], Float[np.ndarray, " b"]]:
        """What the codec makes of videos, as many at a time as the mesh cuts a batch into, and the KL of each one's
        posterior to N(0, 1) in nats."""
        codec, frames = self.codec, len(videos[0])
        assert codec is not None
        mesh = self._mesh(frames // codec.autoencoder.strides[0])
        ways, params = sharding.batch_ways(mesh), self._on(mesh, self.params)
        parts = [videos[i : i + ways] for i in range(0, len(videos), ways)]
        decoded, kl = zip(*(run_over(mesh, self._through, params, np.stack(part)) for part in parts))
        return np.concatenate(decoded), np.concatenate(kl)

    def _reconstruct(self, params, video):
        codec: Any = self._model(params).codec
        x = to_unit(video).astype(codec.dtype)
        return to_uint8(codec.decode(codec.encode(x)).astype(jnp.float32)), codec.autoencoder.encode(x).kl()

    def fingerprint(self) -> int:
        """A number that other parameters do not share: to know what was computed with these. The same on any mesh, as
        sums of whole numbers are."""

        def bits(x: Array) -> Array:
            return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32).sum(dtype=jnp.uint32)

        with jax.set_mesh(self.mesh):
            sums = gather(jit(lambda params: [bits(params[path]) for path in sorted(params)])(self.params))
        return sum((1 + i % 89) * int(value) for i, value in enumerate(sums))

    def conditions(self, prompts: Sequence[str | int]) -> dict[str, Array]:
        """The batch entries that the model's embedders read. Raises InputError if they do not fit the model."""
        batch = {"size": jnp.zeros((len(prompts), 0)), **self.tokens(prompts)}
        labels, names = [p if isinstance(p, int) else -1 for p in prompts], self.embedder_names
        if "label" in names:
            check_range("label of a class: ", -1, self.model.embedders["label"].classes - 1, label=tuple(labels))
            batch["label"] = jnp.asarray(labels)
        elif any(p != -1 for p in labels) and "lowres" not in names:
            raise InputError(
                f"label {max(labels)}: this model knows no classes; it knows {', '.join(names) or 'nothing'}"
            )
        return batch

    def tokens(self, prompts: Sequence[str | int]) -> dict[str, Array]:
        """The prompts as ids; nothing for a model that reads no text. Raises InputError if it is asked to."""
        names = self.embedder_names
        if "text" in names:
            assert self.tokenize is not None
            return {"tokens": jnp.asarray(np.stack([self.tokenize(str(p)) for p in prompts]))}
        if any(isinstance(p, str) and p for p in prompts):
            raise InputError(
                f"prompt {prompts[0]!r}: this model does not read text; it knows {', '.join(names) or 'no conditions'}"
            )
        return {}

    def _denoiser(self, params, batch, negative, guidance_scale, rescale, *, guided, table=None, mask=None) -> Denoiser:
        model = self._model(params)
        under = partial(self._under, params)
        cond = embed(model.embedders, batch, mask)
        if not guided:
            return under(cond)
        away = embed(model.embedders, {**nulls(model.embedders, batch), **negative}, mask)
        null = lambda t: away if table is None else dataclasses.replace(away, tokens=at_time(*table, t))
        how = dict(rescale=rescale, prediction=self.prediction)
        if guided == "at once":
            over = sharding.shard_batch
            both = lambda x, t: under(over(in_turn(cond, null(t[::2]))))(*over((x, t)))
            return at_once(self.schedule, both, guidance_scale, **how)
        return classifier_free(self.schedule, under(cond), lambda x, t: under(null(t))(x, t), guidance_scale, **how)

    def _beside(self, free, own, known, pull, key, told) -> Denoiser:
        """The denoiser `free(*own)` of frames beside known ones; `pull` is (level, strength)."""
        latents, mask = jnp.asarray(known[0], jnp.float32), jnp.asarray(known[1], jnp.float32)
        mask = jnp.broadcast_to(mask, latents.shape[:2])
        level, strength = pull
        if not self._model(own[0]).masked:
            return reconstruction(self.schedule, free(*own), latents, mask, strength)
        eps = jax.random.normal(jax.random.fold_in(key, CAPACITY), latents.shape)
        level = self.schedule.sample_t(jnp.asarray(level, jnp.float32))
        shown = known_frames(self.schedule, free(*own, mask=mask), latents, mask, level=level, eps=eps)
        return from_known(shown, free(*own), mask, strength) if told else shown

    def _under(self, params: Params, cond: Conditioning) -> Denoiser:
        """The denoiser under these conditions."""
        params = self._cast(params)

        def denoise(x, t):
            model = self._model(sharding.gather_in_loop(params, x))
            return model.denoiser(self.schedule, self.prediction, cond)(x, t)

        return denoise

    def _sample(
        self,
        params,
        batch,
        negative,
        noise,
        key,
        times,
        num_steps,
        guidance_scale,
        kept,
        begin,
        table,
        subjects,
        known,
        pull,
        *,
        sampler,
        guided,
        rescale,
        eta,
        chunk,
        told,
        report,
    ):
        key, guide = jax.random.wrap_key_data(key), dict(guided=guided, table=table)
        free = lambda *own, mask=None: self._denoiser(*own, negative, guidance_scale, rescale, mask=mask, **guide)
        ask = free if known is None else lambda *own: self._beside(free, own, known, pull, key, told)
        denoise = ask(params, batch)
        if subjects:
            own = [ask(params, batch) for params, batch, _ in subjects]
            denoise = regions([denoise, *own], [jnp.zeros(1), *(mask for *_, mask in subjects)])
        if chunk:
            denoise = in_chunks(denoise, *chunk)
        start = noise * self.schedule.std(times[0]) if begin is None else self.schedule.q_sample(begin, noise, times[0])
        if kept is not None:
            denoise = keep(self.schedule, denoise, *map(jnp.asarray, kept))
        x = sample(
            denoise,
            self.schedule,
            start,
            times,
            num_steps,
            make_sampler(sampler, eta),
            key,
            self._reporter(report),
        )
        if known is not None:
            x = jnp.where(known[1][:, None, None, None] > 0.5, known[0], x)
        if kept is None:
            return x
        latents, mask = kept  # again, as some schedules, Stable Diffusion's among them, end a little short of clean
        return jnp.where(mask[..., None], x, latents)


def finite(latents: Array) -> Array:
    """Latents of videos as they are. Raises InputError if they are none."""
    return check_finite(latents, np.isfinite(np.asarray(latents)).all(tuple(range(1, latents.ndim))))


def check_finite(videos: Any, fine: np.ndarray) -> Any:
    """The videos. Raises InputError if not all are `fine`."""
    if not np.all(fine):
        raise InputError(
            f"{int(np.sum(~fine))} of {len(fine)} videos came out as NaN or infinity, none is written: the weights are "
            "damaged, or guidance_scale, a LoRA's weight or init_noise is too large"
        )
    return videos


def what_to_ask(generator: Generator, dataset: Dataset) -> tuple[list[str | int], list[str]]:
    """Every caption of a small data set, every class, or a few unconditional samples; with a name each."""
    conditions = generator.embedder_names
    if "text" in conditions:
        texts = list(dict.fromkeys(dataset.texts[:LOOKED_AT]))[:16]
        return list(texts), texts
    if "label" in conditions:
        return list(range(dataset.num_classes)), [f"class {i}" for i in range(dataset.num_classes)]
    return [-1] * UNCONDITIONAL, [f"sample {i}" for i in range(UNCONDITIONAL)]


def make_sampler(name: str, eta: float = 0.0) -> Sampler:
    """A sampler by name; only DDIM takes an `eta`. Raises InputError."""
    make = choose(name, SAMPLERS, "sampler")
    return construct(make, {"eta": eta} if eta else {}, f"sample (sampler {name})")
