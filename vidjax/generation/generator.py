"""From prompts or labels to videos with a trained model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, Num, UInt8

from vidjax.diffusion import samplers
from vidjax.diffusion.refinement import Refinement
from vidjax.diffusion.samplers import ddim, ddim_inverse
from vidjax.diffusion.schedule import Schedule
from vidjax.errors import InputError, check_range, reason
from vidjax.generation import sampling
from vidjax.generation.options import (
    CAPACITY,
    SMALLER,
    Latents,
    Look,
    Masked,
    Prompts,
    Report,
    SampleConfig,
    Shape,
    Subject,
    after,
    check_finite,
    check_known,
    check_noise,
    check_subject,
    make_sampler,
    with_options,
)
from vidjax.generation.pictures import hints, known_pictures, resize_linear
from vidjax.generation.sampling import Conditions, Motion, Network, Options, Region, Request
from vidjax.generation.tiles import in_tiles
from vidjax.models.conditioning import RateEmbedder
from vidjax.models.flow_autoencoder import FlowCodec
from vidjax.models.kernels.attention import CHUNK
from vidjax.models.parameters import Params, merge
from vidjax.models.unet import UNet
from vidjax.models.video_model import Codec, VideoModel
from vidjax.runtime import sharding
from vidjax.runtime.capacity import check_memory
from vidjax.runtime.compiling import jit
from vidjax.runtime.processes import batch_over, gather, run_over, scatter

FRAMES_AT_ONCE = 4  # encoded or decoded at a time, where they are independent


class Generator:
    """A trained model, ready to sample. Compiles once per sampler and size of the result, for any number of steps.

    It computes over `mesh` as training does, by default over all devices on the data axis: the batch over data and
    fsdp, filled up where they do not divide it, frames over context, each parameter where it lies in training. Noise,
    schedule and guidance are fp32, the networks compute in `dtype`, by default that of the parameters. Over several
    processes all make the same calls, and each gets the whole result.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        params: Params,
        schedule: Schedule,
        prediction: str,
        tokenize: Callable[[str], np.ndarray] | None,
        size: tuple[int, int, int],
        channels: int,
        defaults: SampleConfig,
        mesh: Mesh | None = None,
        dtype: str | None = None,
        refinement: Refinement | None = None,
    ):
        self.network = network = Network(graphdef, schedule, prediction, dtype)
        self.refinement = refinement
        self.mesh = sharding.make_mesh() if mesh is None else mesh
        self.params = params
        self.tokenize, self.size, self.channels, self.defaults = tokenize, size, channels, defaults
        self._progress: Report | None = None
        self._look: Look | None = None
        seen = dict(report=self._report, look=self._show)
        self._sample = jit(partial(sampling.sample, network, **seen), static_argnames="options")
        self._invert = jit(partial(sampling.invert, network, report=self._report), static_argnames="options")
        if refinement is not None:
            back = partial(sampling.invert, replace(network, schedule=refinement.schedule), sampler=ddim())
            self._back = jit(partial(back, report=self._report), static_argnames="options")
        self._null_text = jit(partial(sampling.null_text, network), static_argnames=("options", "updates"))
        self._move = jit(partial(sampling.move, network), static_argnames=("options", "motion"))
        self._see_pictures = jit(partial(sampling.see_pictures, network))
        self._encode = jit(partial(sampling.encode, network))
        self._decode = jit(partial(sampling.decode, network))
        self._reconstruct = jit(partial(sampling.reconstruct, network))

    @property
    def params(self) -> Params:
        """Parameters by path, where they lie in training."""
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        self._params = self.lay_out(params)

    def lay_out(self, params: Params) -> Params:
        """Moves parameters of this model to where its own lie."""
        return scatter(params, sharding.parameters_sharding(self.mesh, params))

    @property
    def schedule(self) -> Schedule:
        """The schedule; compiled into the samplers, so it cannot be set: another one is another Generator's."""
        return self.network.schedule

    @property
    def prediction(self) -> str:
        """What the network's output means: "eps", "v", "x0" or "flow"; cannot be set either."""
        return self.network.prediction

    @property
    def model(self) -> VideoModel:
        """The model with the parameters as they are kept, in their own dtype."""
        return merge(self.network.graphdef, self.params)

    @property
    def codec(self) -> Codec | FlowCodec | None:
        """The model's codec; None for a model of pixels."""
        return self.model.codec

    @property
    def embedder_names(self) -> tuple[str, ...]:
        """Names of the model's conditions, such as "text"."""
        return self.model.embedder_names

    def latent_shape(self, frames: int | None = None, size: tuple[int, int] | None = None) -> tuple[int, int, int, int]:
        """[t, h, w, c] of what is diffused for a video of that size. Raises InputError if it does not fit."""
        t, h, w = self._video_size(frames, size)
        check_memory(t * h * w * self.channels, f"a video of {t} frames of {h}x{w} pixels", SMALLER)
        video = jax.ShapeDtypeStruct((1, t, h, w, self.channels), jnp.uint8)
        return jax.eval_shape(partial(sampling.encode, self.network), self.params, video).shape[1:]

    def _video_size(self, frames: int | None, size: tuple[int, int] | None) -> tuple[int, int, int]:
        """(t, h, w) in pixels, by default as trained."""
        return frames or self.size[0], *(size or self.size[1:])

    def _mesh(self, frames: int, chunk: int | None = None) -> Mesh:
        """The mesh for clips of so many latent frames: context must divide what is seen at once."""
        seen = chunk + 1 if chunk and chunk < frames else frames  # in_chunks adds the first frame
        return self.mesh if seen % self.mesh.shape["context"] == 0 else sharding.without_context(self.mesh)

    def _on(self, mesh: Mesh, params: Params) -> Params:
        return params if mesh == self.mesh else sharding.move_to_mesh(params, mesh)

    def __call__(self, prompts: Prompts, **options: Any) -> UInt8[np.ndarray, "b t h w c"]:
        """Samples a video per prompt; arguments as in `latents`."""
        latents = self.latents(prompts, **options)
        return self.decode(latents, options.get("decode_frames"), options.get("pictures"))

    def latents(
        self,
        prompts: Prompts,
        *,
        frames: int | None = None,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        noise: Float[Array | np.ndarray, "b t h w c"] | None = None,
        kept: Masked | None = None,
        known: Masked | None = None,
        begin: Float[Array | np.ndarray, "b t h w c"] | None = None,
        nulls: Float[Array | np.ndarray, "s b m d"] | None = None,
        lowres: UInt8[np.ndarray, "b s i j e"] | None = None,
        pictures: Sequence[UInt8[np.ndarray, "_ _ e"]] | UInt8[np.ndarray, "n p q e"] | None = None,
        picture_at: Sequence[int] = (0,),
        subjects: Sequence[Subject] = (),
        progress: Report | None = None,
        look: Look | None = None,
        **options: Any,
    ) -> Float[Array, "b t h w c"]:
        """Samples latents in fp32, or pixels in [-1, 1] of a model of pixels, per prompt.

        `options` are fields of SampleConfig. Each prompt starts from its own standard normal noise: that of (seed,
        place in the list), or from `noise`. kept: latents [b, t, h, w, c] and a mask [t, h, w], outside of which they
        stay bit for bit. known: latents [b, t, h, w, c] and a mask [t] of frames that stay bit for bit, and with which
        the others go: a model trained with frame masks sees them under the noise of `known_level`, another is guided by
        `reconstruction`. begin: latents that get the noise of the first of the last `strength` share of the steps, all
        that is then done (Meng et al. 2022, SDEdit). nulls: null captions per step, from `null_text`. lowres: the
        videos that a stage of a cascade makes larger, or, of any size, a model with a `refinement`. pictures: what the
        frames `picture_at` of the videos look like, one video's after the other's, of their size; a model with
        `picture.whole` takes them of any. subjects: each acts in its mask, the prompt outside of all; where masks meet,
        the mean of them. progress: is called with the number of steps done, look: with that and the clean latents that
        are predicted there. Raises InputError.
        """
        how, shape = with_options(self.defaults, options), self.latent_shape(frames, size)
        self._check_memory(how, len(prompts), shape, self._video_size(frames, size))
        keys, own = self._start(len(prompts), shape, seed)
        if self.refinement is not None:
            noise, progress = self._refined(lowres, noise, shape, self._video_size(frames, size), how, progress)
        noise = own if noise is None else noise
        check_noise(noise, own.shape)
        video, names = self._video_size(frames, size), self.embedder_names
        if pictures is not None and not {"picture", "control"} & set(names):
            known = self._known_pictures(pictures, picture_at, video, len(prompts), known)
        check_known(known, own.shape, how.chunk)
        conditions = {
            **self.conditions(how.complete(prompts), how.fps),
            **self._lowres_conditions(lowres, shape, keys, how.lowres_level),
        }
        if "picture" in names:
            conditions |= self._picture_conditions(pictures, picture_at, video[1:], shape, keys, how)
        if "control" in names:
            conditions |= self._control_conditions(pictures, picture_at, video, len(prompts), how)
        mesh = self._mesh(shape[0], how.chunk)
        guidance, filled = sampling.guidance_mode(how, mesh, len(prompts), shape)
        over = partial(batch_over, mesh, size=filled)
        times = self._times(how)
        steps = how.num_steps if begin is None else max(round(how.strength * how.num_steps), 1)
        request = Request(
            conditions=over(conditions),
            negative=over(self.tokens([how.negative_prompt] * len(prompts))),
            noise=over(jnp.asarray(noise, jnp.float32)),
            begin=None if begin is None else over(begin),
            key=np.asarray(jax.random.key_data(keys))[0],
            times=np.pad(times[-1 - steps :], (0, CAPACITY - steps), "edge"),
            num_steps=steps,
            guidance_scale=how.guidance(shape[0]),
            nulls=None if nulls is None else (over(nulls, axis=1), times),
            kept=None if kept is None else (over(kept[0]), np.asarray(kept[1])),
            known=None if known is None else (over(known[0]), np.asarray(known[1])),
            level=how.known_level,
            strength=how.frame_guidance if self.model.masked else how.reconstruction,
            subjects=[self._region(subject, mesh, len(prompts), filled, shape, how) for subject in subjects],
        )
        seen = dict(report=progress is not None, look=look is not None)
        static = Options(how.sampler, how.eta, guidance, how.rescale, how.chunks, how.frame_guidance != 1.0, **seen)
        self._progress, self._look = progress, look
        return self._run(self._sample, mesh, request, count=len(prompts), options=static)

    def _refined(
        self,
        video: UInt8[np.ndarray, "b s i j e"] | None,
        noise: Float[Array | np.ndarray, "b t h w c"] | None,
        shape: Shape,
        size: Shape,
        how: SampleConfig,
        progress: Report | None,
    ) -> tuple[Float[Array, "b t h w c"], Report | None]:
        """What the second model begins with in place of noise, from the `video` that it makes as large as `size`
        (t, h, w); and a report that counts on. The way back goes under the negative prompt, without guidance. Raises
        InputError for a video that is missing or has other frames."""
        assert self.refinement is not None
        if noise is not None or how.chunk:
            raise InputError(
                "this model begins with a video and makes it at once: leave init_noise and sample.chunk out"
            )
        if video is None:
            raise InputError(
                "this model makes a video larger and has none: give it one, --video, or sample the model that makes "
                "it, with this one as --refine"
            )
        if video.shape[1] != size[0]:
            raise InputError(f"the video to be made larger has {video.shape[1]} frames, it should have {size[0]}")
        begin = self.encode(resize_linear(video, (size[1], size[2])))
        times = self.refinement.inversion_times(how.num_steps)
        mesh, count = self._mesh(shape[0]), len(begin)
        ways = sharding.batch_ways(mesh)
        over = partial(batch_over, mesh, size=-(-count // ways) * ways)
        request = Request(
            conditions=over(self.conditions([how.negative_prompt] * count, how.fps)),
            begin=over(begin),
            times=np.pad(times, (0, CAPACITY - len(times)), "edge"),
            num_steps=len(times) - 1,
        )
        self._progress = progress
        ends = self._run(self._back, mesh, request, count=count, options=Options(report=progress is not None))
        return self.schedule.sigma(self.refinement.level) * ends, after(len(times) - 1, progress)

    def _times(self, how: SampleConfig) -> Float[np.ndarray, " n"]:
        """Falling times of the sampler; a refinement's are its own whatever the spacing."""
        if self.refinement is not None:
            return self.refinement.times(how.num_steps, self.schedule.clean)
        return samplers.times(make_sampler(how.sampler, how.eta), self.schedule, how.num_steps, how.spacing)

    def num_steps(self, **options: Any) -> int:
        """Counts the steps of the sampler under these options, and those back to noise of a model that makes videos
        larger."""
        steps = options.get("num_steps", self.defaults.num_steps)
        return steps + (len(self.refinement.inversion_times(steps)) - 1 if self.refinement else 0)

    def _check_memory(self, how: SampleConfig, count: int, shape: Shape, video: Shape) -> None:
        """Raises InputError where not even the parameters, the videos, the U-Net's skips at its first level and, on a
        CPU, the weights of its attention there fit."""
        frames, places = shape[0], math.prod(shape[1:3])
        need = count * (2 * 4 * math.prod(shape) + math.prod(video) * self.channels)
        need += sum(value.nbytes for value in self.params.values())
        network, seen = self.model.unet, min(how.chunk or frames, frames)
        if isinstance(network, UNet):
            config, size = network.config, jnp.dtype(self.network.dtype or "float32").itemsize
            need += size * count * seen * places * config.channels[0] * (config.blocks_per_level + 1)
            if config.attention_levels[0] and jax.default_backend() == "cpu":
                heads = config.heads if isinstance(config.heads, int) else config.heads[0]
                need += 4 * count * seen * heads * min(CHUNK, places) * places
        t, h, w = video
        check_memory(need, f"{count} videos of {t} frames of {h}x{w} pixels", SMALLER)

    def _run(
        self, function: Callable[..., Any], mesh: Mesh, request: Request, *, count: int, **static: Any
    ) -> Float[Array, "b t h w c"]:
        """The first `count` latents of a compiled function over a mesh. Raises InputError if they are not finite."""
        found = self._compute(function, mesh, request, **static)[:count]
        check_finite(found, np.isfinite(np.asarray(found)).all(tuple(range(1, found.ndim))))
        return found

    def _compute(self, function: Callable[..., Any], mesh: Mesh, request: Request, **static: Any) -> Any:
        """The result of a compiled function over a mesh, on this process. Raises InputError if memory runs out."""
        try:
            with jax.set_mesh(mesh):
                return jax.block_until_ready(gather(function(self._on(mesh, self.params), request, **static)))
        except jax.errors.JaxRuntimeError as error:
            if not any(said in str(error) for said in ("RESOURCE_EXHAUSTED", "Out of memory")):
                raise
            raise InputError(f"{reason(error)}: {SMALLER}") from None

    def _report(self, done: ArrayLike) -> None:
        """Passes the number of steps on to whoever asked last."""
        if self._progress is not None:
            self._progress(done)

    def _show(self, done: ArrayLike, latents: ArrayLike) -> None:
        """Passes the clean latents that are predicted on to whoever asked last."""
        if self._look is not None:
            self._look(done, latents)

    def _region(self, subject: Subject, mesh: Mesh, count: int, filled: int, shape: Shape, how: SampleConfig) -> Region:
        """A subject of `count` videos as arrays, over the mesh. Raises InputError for a mask of another size."""
        check_subject(subject, shape)
        params = self.params if subject.params is None else self.lay_out(subject.params)
        conditions = batch_over(mesh, self.conditions(how.complete([subject.prompt] * count), how.fps), filled)
        return Region(self._on(mesh, params), conditions, np.asarray(subject.mask, np.float32))

    def _start(self, count: int, shape: Shape, seed: int) -> tuple[Key[Array, " b"], Float[Array, "b t h w c"]]:
        """A key and standard normal noise for each of `count` videos: functions of (seed, place in the list), and in a
        cascade, whose stages must not start from the same numbers, of the size."""
        check_range("", 0, 2**63 - 1, seed=seed)
        key = jax.random.key(seed)
        if "lowres" in self.embedder_names:
            key = jax.random.fold_in(key, int(np.prod(shape)))
        return sampling.draw_noise(key, count, shape)

    def noise(
        self, count: int, frames: int | None = None, size: tuple[int, int] | None = None, seed: int = 0
    ) -> Float[Array, "b t h w c"]:
        """Draws the standard normal noise that `latents` starts from."""
        return self._start(count, self.latent_shape(frames, size), seed)[1]

    def in_motion(
        self,
        prompts: Prompts,
        velocity: tuple[float, float],
        *,
        frames: int,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> Float[Array, "b t h w c"]:
        """Samples latents of videos whose first frame moves by `velocity`, pixels (down, right) per frame.

        Text2Video-Zero, for image models that look at the first frame (`keys="first"`), without training. As `latents`
        otherwise. Raises InputError for models that are shown pictures or a video.
        """
        how, codec = with_options(self.defaults, options), self.codec
        self._check_text_alone("--motion", "leave it out")
        if how.first_guidance is not None:
            raise InputError("sample.first_guidance is of videos whose frames are sampled together; leave it out")
        strides = codec.autoencoder.strides[1:] if codec else (1, 1)
        shape = self.latent_shape(1, size)
        clip = (frames, *shape[1:])
        self._check_memory(how, len(prompts), clip, self._video_size(frames, size))
        keys, noise = self._start(len(prompts), shape, seed)
        mesh = self._mesh(1)
        guidance, filled = sampling.guidance_mode(how, mesh, len(prompts), clip)
        over = partial(batch_over, mesh, size=filled)
        request = Request(
            conditions=over(self.conditions(how.complete(prompts), how.fps)),
            negative=over(self.tokens([how.negative_prompt] * len(prompts))),
            noise=over(noise),
            key=np.asarray(jax.random.key_data(keys))[0],
            guidance_scale=how.guidance_scale,
            velocity=(velocity[0] / strides[0], velocity[1] / strides[1]),
        )
        static = Options(how.sampler, how.eta, guidance, how.rescale)
        motion = Motion(frames, how.num_steps, how.spacing)
        return self._run(self._move, mesh, request, count=len(prompts), options=static, motion=motion)

    def invert(
        self,
        latents: Float[Array | np.ndarray, "b t h w c"],
        prompts: Prompts,
        *,
        num_steps: int | None = None,
        progress: Report | None = None,
    ) -> Float[Array, "b t h w c"]:
        """Finds the noise from which DDIM in as many steps, without guidance, comes back to these latents. Raises
        InputError for models that are shown pictures or a video."""
        self._check_text_alone("inversion", "edit with sample.invert=False and sample.strength below 1")
        how = self.defaults
        steps = how.num_steps if num_steps is None else num_steps
        times = samplers.times(ddim_inverse(), self.schedule, steps, how.spacing)[::-1]
        latents = jnp.asarray(latents, jnp.float32)
        mesh = self._mesh(latents.shape[1], how.chunk)
        ways = sharding.batch_ways(mesh)
        over = partial(batch_over, mesh, size=-(-len(latents) // ways) * ways)
        request = Request(
            conditions=over(self.conditions(prompts)),
            begin=over(latents),
            times=np.pad(times, (0, CAPACITY + 1 - len(times)), "edge"),
            num_steps=steps,
        )
        static = Options(chunks=how.chunks, report=progress is not None)
        self._progress = progress
        return self._run(self._invert, mesh, request, count=len(latents), options=static)

    def null_text(
        self, latents: Float[Array | np.ndarray, "b t h w c"], prompts: Prompts, **options: Any
    ) -> tuple[Float[Array, "b t h w c"], Float[Array, "s b m d"]]:
        """Finds (noise, nulls) from which sampling with guidance under these prompts comes back to the latents.

        As for `latents`; the option `null_text` is the number of updates per step. Raises InputError for models without
        text.
        """
        self._check_text_alone("null_text", "leave it out")
        how = with_options(self.defaults, options)
        if "text" not in self.embedder_names or how.guidance_scale == 1.0:
            raise InputError(f"null_text={how.null_text} wants a model that reads text, and guidance_scale above 1")
        if how.first_guidance is not None:
            raise InputError("sample.first_guidance and null_text are not for one model; leave one out")
        mesh = self._mesh(latents.shape[1], how.chunk)
        over = partial(batch_over, mesh, size=len(prompts))  # the error is a mean over the videos: none is added
        request = Request(
            conditions=over(self.conditions(how.complete(prompts), how.fps)),
            negative=over(self.tokens([how.negative_prompt] * len(prompts))),
            begin=over(jnp.asarray(latents, jnp.float32)),
            times=samplers.times(ddim_inverse(), self.schedule, how.num_steps, how.spacing),
            guidance_scale=how.guidance_scale,
        )
        static = Options(chunks=how.chunks)
        return self._compute(self._null_text, mesh, request, options=static, updates=how.null_text)

    def encode(self, video: Num[np.ndarray, "b t h w c"]) -> Float[np.ndarray, "b s i j z"]:
        """Encodes videos, pixels from 0 to 255, to latents, without noise."""
        return self._in_parts("encoder", self._encode, video)

    def decode(
        self,
        latents: Float[Array | np.ndarray, "b s i j z"],
        at_once: int | None = None,
        pictures: UInt8[np.ndarray, "b h w 3"] | None = None,
    ) -> UInt8[np.ndarray, "b t h w c"]:
        """Decodes latents to videos, `at_once` frames at a time, by default those of `defaults`: of a decoder that
        looks over time each such part ends without its neighbours. pictures: what the videos begin with, for latents
        that are the flow by which these are warped. Raises InputError if they are not finite."""
        if isinstance(self.codec, FlowCodec) and pictures is not None:
            latents = self.codec.beside(jnp.asarray(latents), jnp.asarray(pictures))
        return self._in_parts("decoder", self._decode, latents, at_once or self.defaults.decode_frames)

    def _in_parts(self, part: str, run: Callable[..., Any], x: Latents, at_once: int | None = None) -> np.ndarray:
        """Runs a part of the codec on `at_once` frames at a time, or some if it takes each by itself, so that memory
        does not grow with the clip; or in tiles, where the recipe says so."""
        codec, how = self.codec, self.defaults
        stride = codec.autoencoder.strides[0] if isinstance(codec, Codec) and part == "encoder" else 1

        def whole(x: Latents) -> np.ndarray:
            mesh = self._mesh(x.shape[1] // stride)
            found = run_over(mesh, run, self._on(mesh, self.params), x)
            if part == "encoder":
                return found
            check_finite(*found)
            return found[0]

        if isinstance(codec, Codec) and how.tile:
            pixels = {"encoder": "strides", "decoder": "into"}[part]
            return in_tiles(whole, x, how.tile, how.tile_overlap, **{pixels: codec.autoencoder.strides})
        count = at_once or x.shape[1]
        if not at_once and codec is not None and codec.per_frame(part):
            count = FRAMES_AT_ONCE * self.mesh.shape["context"]
        return np.concatenate([whole(x[:, i : i + count]) for i in range(0, x.shape[1], count)], 1)

    def reconstruct(
        self, videos: Sequence[UInt8[np.ndarray, "t h w c"]]
    ) -> tuple[UInt8[np.ndarray, "b t h w c"], Float[np.ndarray, " b"]]:
        """Encodes and decodes videos, as many at a time as the mesh cuts a batch into; with the KL of each one's
        posterior to N(0, 1) in nats."""
        codec, frames = self.codec, len(videos[0])
        assert codec is not None
        mesh = self._mesh(frames // codec.autoencoder.strides[0])
        ways, params = sharding.batch_ways(mesh), self._on(mesh, self.params)
        parts = [videos[i : i + ways] for i in range(0, len(videos), ways)]
        decoded, kl = zip(*(run_over(mesh, self._reconstruct, params, np.stack(part)) for part in parts))
        return np.concatenate(decoded), np.concatenate(kl)

    def fingerprint(self) -> int:
        """Computes a number that other parameters do not share: to know what was computed with these."""
        with jax.set_mesh(self.mesh):
            sums = gather(jit(sampling.checksum)(self.params))
        return sum((1 + i % 89) * int(value) for i, value in enumerate(sums))

    def conditions(self, prompts: Prompts, fps: float | None = None) -> dict[str, Array]:
        """Makes the batch entries that the model's embedders read, `fps` by default that of `defaults`. Raises
        InputError if they do not fit the model."""
        batch = {"size": jnp.zeros((len(prompts), 0)), **self.tokens(prompts)}
        if isinstance(self.model.embedders.get("fps"), RateEmbedder):
            batch["fps"] = jnp.full(len(prompts), self.defaults.fps if fps is None else fps)
        labels, names = [p if isinstance(p, int) else -1 for p in prompts], self.embedder_names
        if "label" in names:
            check_range("label of a class: ", -1, self.model.embedders["label"].classes - 1, label=tuple(labels))
            batch["label"] = jnp.asarray(labels)
        elif any(p != -1 for p in labels) and "lowres" not in names:
            raise InputError(
                f"label {max(labels)}: this model knows no classes; it knows {', '.join(names) or 'nothing'}"
            )
        return batch

    def _check_text_alone(self, what: str, remedy: str) -> None:
        """Raises InputError for a model that is shown more than a caption, which `what` has not."""
        others = sorted({"picture", "control", "lowres"} & set(self.embedder_names))
        if others or self.refinement is not None:
            known = f"knows {', '.join(others)}" if others else "makes finished videos larger"
            raise InputError(f"{what} is of models of text alone, this one {known}; {remedy}")

    def _lowres_conditions(
        self, lowres: UInt8[np.ndarray, "b s i j c"] | None, shape: Shape, keys: Key[Array, " b"], level: float
    ) -> Conditions:
        """The batch entry of a stage of a cascade, see `sampling.lowres_conditions`; none for other models."""
        if "lowres" not in self.embedder_names:
            return {}
        if lowres is None:
            raise InputError("this model makes a video larger and has none: give it one, or the stage that makes it")
        embedder = self.model.embedders["lowres"]
        return sampling.lowres_conditions(self.schedule, embedder, lowres, shape, keys, level)

    def _known_pictures(
        self,
        pictures: UInt8[np.ndarray, "n p q e"],
        picture_at: Sequence[int],
        video: Shape,
        count: int,
        known: Masked | None,
    ) -> Masked:
        """Pictures as known frames, see `known_pictures`. Raises InputError for a model that learned no masks of
        frames."""
        if not self.model.masked or known is not None:
            raise InputError(
                f"this model sees no picture, it knows {', '.join(self.embedder_names) or 'no conditions'}: those that "
                "do move pictures (Stable Video Diffusion, I2VGen-XL and others), are a Stable Diffusion with "
                "--control, or learned frame masks"
            )
        stride = self.codec.autoencoder.strides[0] if self.codec else 1
        return known_pictures(pictures, picture_at, count, (*video, self.channels), self.encode, stride)

    def _control_conditions(
        self,
        pictures: UInt8[np.ndarray, "n p q e"] | None,
        picture_at: Sequence[int],
        video: Shape,
        count: int,
        how: SampleConfig,
    ) -> Conditions:
        """The batch entry of a model with a ControlNet, see `hints`. Raises InputError for pictures that are missing or
        do not fit."""
        if how.chunk:
            raise InputError("sample.chunk is not for models with --control; leave either out")
        if pictures is None:
            raise InputError("--control steers by pictures and has none: give it one, --image")
        control = self.model.embedders["control"].network.control
        encode = None if control.widths else self.encode
        hint = hints(pictures, picture_at, count, (*video, self.channels), encode, control.sparse)
        return {"control": {"hint": jnp.asarray(hint), "scale": jnp.full(count, how.control_scale)}}

    def _picture_conditions(
        self,
        pictures: Sequence[UInt8[np.ndarray, "_ _ e"]] | UInt8[np.ndarray, "n p q e"] | None,
        picture_at: Sequence[int],
        size: tuple[int, ...],
        shape: Shape,
        keys: Key[Array, " b"],
        how: SampleConfig,
    ) -> Conditions:
        """The batch entry of a model that moves pictures. Raises InputError for pictures that are missing, too many or
        too few, of another size, or of other frames than the first."""
        count = len(keys)
        if tuple(picture_at) != (0,):
            raise InputError("--image_at: the picture of this model is its first frame; leave it out")
        if pictures is None:
            raise InputError("this model moves a picture and has none: give it one, --image")
        if how.chunk and self.model.picture.whole:
            raise InputError(f"sample.chunk={how.chunk}: this model is told the place of each frame; leave it out")
        if len(pictures) != count:
            raise InputError(f"there are {len(pictures)} pictures for {count} videos; give one each")
        normal = lambda shape: jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, sampling.APART), shape))(
            keys
        )
        seen = self.model.embedders["picture"].seen(pictures, size, shape, normal, how)
        mesh = self._mesh(1)
        entry = run_over(mesh, self._see_pictures, self._on(mesh, self.params), seen)
        return {"picture": jax.tree.map(jnp.asarray, entry)}

    def tokens(self, prompts: Prompts) -> dict[str, Array]:
        """Makes ids of the prompts; nothing for a model that reads no text. Raises InputError if it is asked to."""
        names = self.embedder_names
        if "text" in names:
            assert self.tokenize is not None
            return {"tokens": jnp.asarray(np.stack([self.tokenize(str(p)) for p in prompts]))}
        if any(isinstance(p, str) and p for p in prompts):
            raise InputError(
                f"prompt {prompts[0]!r}: this model does not read text; it knows {', '.join(names) or 'no conditions'}"
            )
        return {}
