"""The pure functions that a generator compiles: a network, its parameters and one request become latents or pixels."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Key, Num, UInt8, UInt32

from vidjax.data.transforms import to_uint8, to_unit
from vidjax.diffusion import null_text as null_texts
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
from vidjax.diffusion.samplers import Denoiser, Sampler, ddim_inverse
from vidjax.diffusion.schedule import Schedule
from vidjax.errors import InputError
from vidjax.generation.options import CAPACITY, Look, Masked, Report, SampleConfig, make_sampler
from vidjax.models.conditioning import Conditioning, embed, nulls
from vidjax.models.lowres import LowresEmbedder
from vidjax.models.parameters import Params, cast, merge
from vidjax.models.video_model import Codec, VideoModel
from vidjax.runtime import sharding

APART = 2**20  # what sets the keys of a low-resolution video's noise apart from those of the steps of a sampler
# Places of latents on a device up to which guidance asks the network once, about twice the batch. Processor seconds of
# one call over those of two (ModelScope's layers, 64 to 256 features; two shared cores with AVX-512, 2026-11-25): 0.95
# with 2**12 places, 1.00 with 2**14, 1.01 with 2**15: beyond it only the memory would be twice.
AT_ONCE = 2**15

Conditions = Mapping[str, Array | Mapping[str, Array]]  # batch entries that embedders read


@dataclasses.dataclass(frozen=True)
class Network:
    """A network without its parameters, what its output means, and the dtype that it computes in."""

    graphdef: nnx.GraphDef
    schedule: Schedule
    prediction: str
    dtype: str | None = None  # None: that of the parameters

    def cast(self, params: Params) -> Params:
        """Casts parameters to the dtype of the computation."""
        return params if self.dtype is None else cast(params, jnp.dtype(self.dtype))

    def model(self, params: Params) -> VideoModel:
        """Merges the definition with parameters, in the dtype of the computation."""
        return merge(self.graphdef, self.cast(params))

    def denoiser(self, params: Params, cond: Conditioning) -> Denoiser:
        """Makes the denoiser under these conditions; parameters that fsdp cuts are gathered in each call."""
        params = self.cast(params)

        def denoise(x: Float[Array, "b t h w c"], t: Float[Array, "b t"]) -> tuple[Array, Array]:
            model = self.model(sharding.gather_in_loop(params, x))
            return model.denoiser(self.schedule, self.prediction, cond)(x, t)

        return denoise


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Region:
    """One subject of a request: its parameters and conditions act where `mask` [t, h, w] is 1."""

    params: Params
    conditions: Conditions
    mask: Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of one batch, as arrays: a compiled function serves all requests of the same shapes.

    conditions, negative: what the embedders read, and what guidance steers away from in place of their null values.
    noise: standard normal latents. begin: latents to begin with, under the noise of the first time if there is `noise`.
    key: raw data of a key. times: decreasing, filled up to the sampler's capacity. nulls: null captions per step, and
    the times of the steps. kept, known: latents and a mask, see `Generator.latents`; level and strength of known
    frames. velocity: latents per frame, (down, right).
    """

    conditions: Conditions
    negative: Conditions = dataclasses.field(default_factory=dict)
    noise: Array | None = None
    begin: Array | None = None
    key: Array | np.ndarray | None = None
    times: Array | np.ndarray | None = None
    num_steps: ArrayLike = 0
    guidance_scale: ArrayLike = 1.0
    nulls: tuple[Array, Array | np.ndarray] | None = None
    kept: Masked | None = None
    known: Masked | None = None
    level: ArrayLike = 0.0
    strength: ArrayLike = 1.0
    subjects: Sequence[Region] = ()
    velocity: tuple[ArrayLike, ArrayLike] = (0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Options:
    """What a program is compiled for. guidance: "" for none, "apart" in two calls of the network, "at once" in one."""

    sampler: str = "ddim"
    eta: float = 0.0
    guidance: str = ""
    rescale: float = 0.0
    chunks: tuple[int, int] | None = None
    with_frame_guidance: bool = False
    report: bool = False  # JAX caches no program that calls back
    look: bool = False


@dataclasses.dataclass(frozen=True)
class Motion:
    """A video of one moving frame, as a program is compiled for it."""

    frames: int
    num_steps: int
    spacing: str | None


@partial(jax.jit, static_argnums=(1, 2))
def draw_noise(
    key: Key[Array, ""], count: int, shape: tuple[int, ...]
) -> tuple[Key[Array, " b"], Float[Array, "b t h w c"]]:
    """A key and standard normal noise of `shape` for each of `count` videos, by their place in the list."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(count))
    return keys, jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def guidance_mode(how: SampleConfig, mesh: Mesh, count: int, shape: tuple[int, ...]) -> tuple[str, int]:
    """Chooses how guidance calls the network for `count` videos of `shape` [t, h, w, c], see `Options`; and to how many
    the batch is filled up.

    At once wherever twice the batch finds devices that have no video yet, and while a device has few latents: a
    network then waits for its weights and between operations more than for products. Beyond that two calls take as
    long, and half the memory.
    """
    ways = sharding.batch_ways(mesh)
    filled = -(-count // ways) * ways
    if not how.guides:
        return "", filled
    t, h, w = min(how.chunk or shape[0], shape[0]), *shape[1:3]
    pairs = max(ways // 2, 1)
    doubled = -(-count // pairs) * pairs
    if 2 * count <= ways or 2 * doubled * t * h * w <= AT_ONCE * ways * mesh.shape["context"]:
        return "at once", doubled if 2 * doubled % ways == 0 else filled
    return "apart", filled


def sample(
    network: Network,
    params: Params,
    request: Request,
    options: Options,
    report: Report | None = None,
    look: Look | None = None,
) -> Float[Array, "b t h w c"]:
    """Samples latents from the request's noise. `report` is called with the number of steps done, and `look` with it
    and the clean latents that are predicted there, if options say so."""
    assert request.noise is not None and request.times is not None
    schedule, times = network.schedule, request.times
    denoise = all_subjects(network, params, request, options)
    if options.chunks:
        denoise = in_chunks(denoise, *options.chunks)
    start = request.noise * schedule.std(times[0])
    if request.begin is not None:
        start = schedule.q_sample(request.begin, request.noise, times[0])
    if request.kept is not None:
        latents, mask = request.kept
        denoise = keep(schedule, denoise, jnp.asarray(latents), jnp.asarray(mask))
    sampler, key = make_sampler(options.sampler, options.eta), random_key(request)
    seen = dict(progress=report if options.report else None, look=look if options.look else None)
    x = samplers.sample(denoise, schedule, start, times, request.num_steps, sampler, key, **seen)
    return put_back(x, request)


def random_key(request: Request) -> Key[Array, ""]:
    """Wraps the request's key data."""
    assert request.key is not None
    return jax.random.wrap_key_data(jnp.asarray(request.key))


def put_back(x: Float[Array, "b t h w c"], request: Request) -> Float[Array, "b t h w c"]:
    """Sets known and kept latents to their values, bit for bit: some schedules, Stable Diffusion's among them, end a
    little short of clean."""
    if request.known is not None:
        latents, mask = request.known
        x = jnp.where(mask[:, None, None, None] > 0.5, latents, x)
    if request.kept is not None:
        latents, mask = request.kept
        x = jnp.where(mask[..., None], x, latents)
    return x


def all_subjects(network: Network, params: Params, request: Request, options: Options) -> Denoiser:
    """Makes the denoiser of a request: the prompt's, and where subjects are, theirs."""
    denoise = beside_known(network, params, request.conditions, request, options)
    if not request.subjects:
        return denoise
    own = [beside_known(network, one.params, one.conditions, request, options) for one in request.subjects]
    return regions([denoise, *own], [jnp.zeros(1), *(one.mask for one in request.subjects)])


def beside_known(
    network: Network, params: Params, conditions: Conditions, request: Request, options: Options
) -> Denoiser:
    """Makes the denoiser of frames beside the known ones, if there are any."""
    if request.known is None:
        return guided(network, params, conditions, request, options)
    latents, mask = (jnp.asarray(part, jnp.float32) for part in request.known)
    mask = jnp.broadcast_to(mask, latents.shape[:2])
    free = guided(network, params, conditions, request, options)
    if not network.model(params).masked:
        return reconstruction(network.schedule, free, latents, mask, request.strength)
    eps = jax.random.normal(jax.random.fold_in(random_key(request), CAPACITY), latents.shape)
    level = network.schedule.sample_t(jnp.asarray(request.level, jnp.float32))
    aware = guided(network, params, conditions, request, options, mask)
    shown = known_frames(network.schedule, aware, latents, mask, level=level, eps=eps)
    return from_known(shown, free, mask, request.strength) if options.with_frame_guidance else shown


def guided(
    network: Network,
    params: Params,
    conditions: Conditions,
    request: Request,
    options: Options,
    mask: Float[Array, "b t"] | None = None,
) -> Denoiser:
    """Makes the denoiser under these conditions, with the guidance that `options` name; `mask`: of known frames."""
    embedders = network.model(params).embedders
    cond = embed(embedders, conditions, mask)
    if not options.guidance:
        return network.denoiser(params, cond)
    away = embed(embedders, {**nulls(embedders, conditions), **request.negative}, mask)

    def null(t: Float[Array, "b t"]) -> Conditioning:
        return (
            away if request.nulls is None else dataclasses.replace(away, tokens=null_texts.at_time(*request.nulls, t))
        )

    def unconditional(x: Float[Array, "b t h w c"], t: Float[Array, "b t"]) -> tuple[Array, Array]:
        return network.denoiser(params, null(t))(x, t)

    def both(x: Float[Array, "b2 t h w c"], t: Float[Array, "b2 t"]) -> tuple[Array, Array]:
        pairs = sharding.shard_batch(in_turn(cond, null(t[::2])))
        return network.denoiser(params, pairs)(*sharding.shard_batch((x, t)))

    schedule, scale, how = network.schedule, request.guidance_scale, dict(prediction=network.prediction)
    if options.guidance == "at once":
        return at_once(schedule, both, scale, rescale=options.rescale, **how)
    return classifier_free(
        schedule, network.denoiser(params, cond), unconditional, scale, rescale=options.rescale, **how
    )


def move(
    network: Network, params: Params, request: Request, options: Options, motion: Motion
) -> Float[Array, "b t h w c"]:
    """Samples latents of videos whose first frame moves, from the noise of one frame (Text2Video-Zero)."""
    assert request.noise is not None
    denoise = guided(network, params, request.conditions, request, options)
    sampler = make_sampler(options.sampler, options.eta)
    times = samplers.times(sampler, network.schedule, motion.num_steps, motion.spacing)
    x, key = request.noise * network.schedule.std(times[0]), random_key(request)
    return zero_shot(denoise, network.schedule, x, times, motion.frames, request.velocity, key, sampler=sampler)


def invert(
    network: Network,
    params: Params,
    request: Request,
    options: Options,
    report: Report | None = None,
    sampler: Sampler | None = None,
) -> Float[Array, "b t h w c"]:
    """Carries `begin` up the request's times, here growing ones, to noise, by default by `ddim_inverse`."""
    assert request.begin is not None and request.times is not None
    denoise = guided(network, params, request.conditions, request, options)
    if options.chunks:
        denoise = in_chunks(denoise, *options.chunks)
    progress = report if options.report else None
    how = (request.times, request.num_steps, sampler or ddim_inverse(), jax.random.key(0), progress)
    return samplers.sample(denoise, network.schedule, request.begin, *how)


def null_text(
    network: Network, params: Params, request: Request, options: Options, updates: int
) -> tuple[Float[Array, "b t h w c"], Float[Array, "s b m d"]]:
    """Inverts `begin` to noise, and finds null captions per step with which guided DDIM comes back to it."""
    assert request.begin is not None and request.times is not None
    schedule, times = network.schedule, request.times
    embedders = network.model(params).embedders
    away = embed(embedders, {**nulls(embedders, request.conditions), **request.negative})

    def whole(denoise: Denoiser) -> Denoiser:
        return in_chunks(denoise, *options.chunks) if options.chunks else denoise

    def unconditional(tokens: Float[Array, "b m d"]) -> Denoiser:
        return whole(network.denoiser(params, dataclasses.replace(away, tokens=tokens)))

    conditional = whole(guided(network, params, request.conditions, request, options))
    path = null_texts.pivots(conditional, schedule, request.begin, times)
    found, _ = null_texts.null_text(
        conditional, unconditional, schedule, path, times, away.tokens, request.guidance_scale, steps=updates
    )
    return path[0], found


def see_pictures(network: Network, params: Params, seen: Mapping[str, Array]) -> dict[str, Array]:
    """Makes the batch entry of pictures from the arguments of its `entry`, one per picture each."""
    model = network.model(params)
    return model.embedders["picture"].entry(model.codec, **seen)


def encode(network: Network, params: Params, video: Num[Array, "b t h w c"]) -> Float[Array, "b s i j z"]:
    """Encodes videos to what is diffused, without noise."""
    return network.model(params).latents(video)


def decode(
    network: Network, params: Params, latents: Float[Array, "b s i j z"]
) -> tuple[UInt8[Array, "b t h w c"], Bool[Array, " b"]]:
    """Decodes latents to pixels; and whether those of each video are finite."""
    pixels = network.model(params).pixels(latents)
    return to_uint8(pixels), jnp.isfinite(pixels).all(tuple(range(1, pixels.ndim)))


def reconstruct(
    network: Network, params: Params, video: UInt8[Array, "b t h w c"]
) -> tuple[UInt8[Array, "b t h w c"], Float[Array, " b"]]:
    """Encodes and decodes videos; with the KL of each one's posterior to N(0, 1) in nats."""
    codec = network.model(params).codec
    assert isinstance(codec, Codec)
    x = to_unit(video).astype(codec.dtype)
    return to_uint8(codec.decode(codec.encode(x)).astype(jnp.float32)), codec.autoencoder.encode(x).kl()


def checksum(params: Params) -> list[UInt32[Array, ""]]:
    """Sums the bits of each parameter, in fp32, as whole numbers: the same sum on any mesh."""

    def bits(x: Array) -> UInt32[Array, ""]:
        return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32).sum(dtype=jnp.uint32)

    return [bits(params[path]) for path in sorted(params)]


def lowres_conditions(
    schedule: Schedule,
    embedder: LowresEmbedder,
    video: UInt8[np.ndarray, "b s i j c"],
    shape: tuple[int, ...],
    keys: Key[Array, " b"],
    level: float,
) -> dict[str, Mapping[str, Array]]:
    """Makes the batch entry for samples of `shape` [t, h, w, c] that make `video` larger, one key per video.

    The video is under the noise of the quantile `level` of the training times. Raises InputError for a video of another
    size, and for a level that the stage was not trained with.
    """
    if not 0 <= level <= embedder.max_level:
        raise InputError(
            f"sample.lowres_level={level} is not between 0 and {embedder.max_level}, up to where the stage was trained"
        )
    low = (*embedder.low_size((shape[0], shape[1], shape[2])), shape[3])
    if video.shape != (len(keys), *low):
        raise InputError(f"the video to be made larger is {video.shape}, it should be {(len(keys), *low)}")
    eps = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, APART), low))(keys)
    t = schedule.sample_t(jnp.full(len(keys), level, jnp.float32))
    return {embedder.key: embedder.noised(schedule, jnp.asarray(to_unit(video)), t, eps)}
