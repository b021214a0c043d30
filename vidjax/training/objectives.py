"""What is minimised: functions `(model, batch, draws) -> (loss, metrics)`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vidjax.data.transforms import to_unit
from vidjax.diffusion.draws import Draws
from vidjax.diffusion.schedule import Schedule
from vidjax.diffusion.weighting import WEIGHTINGS
from vidjax.errors import InputError
from vidjax.models.conditioning import Conditioning, RateEmbedder, drop_conditions, embed, sample_frame_masks
from vidjax.settings import choose
from vidjax.training.step import Batch, Metrics, Objective

DISTANCES = {"l2": jnp.square, "l1": jnp.abs, "charbonnier": lambda x: jnp.sqrt(x**2 + 1e-4)}


def diffusion(
    model: Any,
    batch: Batch,
    draws: Draws,
    *,
    schedule: Schedule,
    prediction: str = "eps",
    weighting: str = "uniform",
    distance: str = "l2",
    frame_masks: Mapping[str, float] | None = None,
    known_level: float = 0.0,
    every: int = 1,
    debiased: float = 0.0,
    anchor: float = 1.0,
    own_images: int = 0,
    image_share: float | None = None,
    offset_noise: float = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
    """E ||prediction - target||^2 over noise and time (Ho et al. 2020, eq. 14), with conditions dropped at random.

    frame_masks, known_level: weights of the kinds of frames that are known, and their noise, see `sample_known` and
    `sample_times`. every, own_images: which latents are diffused, see `clips_to_diffuse` and `stills`. image_share: the
    stills' share of the loss, by default all frames count alike (Dreamix: 1 - alpha); where it is 1, the network does
    not see the clip (MotionDirector's spatial loss). debiased, anchor: weight (theirs: 1) and beta of MotionDirector's
    second loss, see `debias`. offset_noise: weight of further noise that is one number for each channel of a frame, so
    that the mean changes, too (VGen: 0.1). A model that enlarges a smaller video is given one made of the clip, see
    `models.lowres`. Raises InputError where these contradict each other, the data or the model.
    """
    clip, still = clips_to_diffuse(model, batch, draws, every, own_images)
    images = still.shape[1]
    if images and image_share == 1:
        if debiased:
            raise InputError(f"debiased={debiased} is a loss of clips, which image_share=1 leaves out; set either to 0")
        clip = clip[:, :0]
    x0 = jnp.concatenate([clip, still], 1)
    known = sample_known(draws, clip.shape[1], images, frame_masks)
    t = sample_times(schedule, draws, known, known_level)
    eps = draws.named("noise").normal(x0.shape[1:])
    if offset_noise:
        eps += offset_noise * draws.named("offset_noise").normal((x0.shape[1], 1, 1, x0.shape[-1]))
    cond = sample_conditions(model, batch, draws, schedule, x0, images, known)
    predicted = model(*schedule.network_input(schedule.q_sample(x0, eps, t), t), cond, images)
    residual = predicted - schedule.target(x0, eps, t, prediction)
    away = choose(distance, DISTANCES, "distance")
    error = away(residual)
    if debiased:
        error += debiased * away(debias(draws.named("anchors"), residual, 1 - known, images, anchor))
    weight = choose(weighting, WEIGHTINGS, "weighting")(schedule.logsnr(t), prediction)
    share = frame_shares(1 - known, images, image_share)
    return (share * weight * error.mean((2, 3, 4))).sum(1).mean(), {}


# What a stage that trains a denoising network may name as its `objective`: `loss(model, batch, draws, *, schedule,
# prediction, **options)`, the options being the config's section `loss`. One of one's own is a further entry, see
# docs/extending.md.
OBJECTIVES: dict[str, Callable[..., tuple[Float[Array, ""], Metrics]]] = {"diffusion": diffusion}


def clips_to_diffuse(
    model: Any, batch: Batch, draws: Draws, every: int = 1, own_images: int = 0
) -> tuple[Float[Array, "b t h w c"], Float[Array, "b s h w c"]]:
    """Latents of each clip, and those of the stills beside it, each a clip of its own.

    Stills are the independent ones in `batch["images"]` (Ho et al. 2022, section 3.1), then `own_images` random frames
    of the clip, out of order (Dreamix, Molad et al. 2023). Of a clip's latents only each `every`-th is kept: sparse
    keys of a long video. Raises InputError for `every` with stills, and for clips of fewer frames than `own_images`.
    """
    images = batch["images"].shape[1] if "images" in batch else 0
    if images and every > 1:
        raise InputError(f"every={every} takes latents of clips, not of stills; set data.images=0")
    video = jnp.concatenate([batch["video"], batch["images"]], 1) if images else batch["video"]
    x0 = model.latents(video, draws.named("posterior").normal)
    clip, stills = jnp.split(x0, [x0.shape[1] - images], 1)
    clip = clip[:, ::every]
    if own_images:
        stills = jnp.concatenate([stills, random_frames(draws.named("own_images"), clip, own_images)], 1)
    return clip, stills


def sample_known(
    draws: Draws, frames: int, images: int, kinds: Mapping[str, float] | None
) -> Float[Array, "b {frames}+{images}"]:
    """Masks with 1 at known frames, of a kind drawn with these weights; no still is known, nor any frame by default."""
    if kinds is None:
        return jnp.zeros((len(draws.keys), frames + images))
    masks = sample_frame_masks(draws.named("frame_masks").keys, frames, kinds)
    return jnp.pad(masks, ((0, 0), (0, images)))


def sample_times(
    schedule: Schedule, draws: Draws, known: Float[Array, "b t"], known_level: float = 0.0
) -> Float[Array, "b t"]:
    """A time per example, and one for all its known frames, up to the quantile `known_level` of the training times:
    the network is told of both (conditional latent perturbation, He et al. 2022, section 3.3)."""
    t, level = schedule.sample_t(draws.named("times").uniforms), draws.named("known_levels").uniforms
    return jnp.where(known > 0, schedule.sample_t(known_level * level)[:, None], t[:, None])


def sample_conditions(
    model: Any,
    batch: Batch,
    draws: Draws,
    schedule: Schedule,
    x0: Float[Array, "b t h w c"],
    images: int,
    known: Float[Array, "b t"],
) -> Conditioning:
    """What the network is told beside noise and time: the batch's conditions, some at their null value, the rate that
    its clips all have, a smaller video of `x0` under noise for a model that enlarges one, the clips' first frames for
    a model that moves pictures."""
    if lowres := model.embedders.get("lowres"):
        batch = {**batch, lowres.key: lowres.draw(schedule, x0, images, draws)}
    if isinstance(rate := model.embedders.get("fps"), RateEmbedder):  # one's own of that name reads the batch
        batch = {**batch, rate.key: jnp.full(len(x0), rate.rate)}
    if picture := model.embedders.get("picture"):
        batch = {**batch, picture.key: picture.draw(model.codec, batch["video"], draws)}
    return embed(model.embedders, drop_conditions(model.embedders, batch, draws.named("dropped").keys), known)


def random_frames(draws: Draws, x: Float[Array, "b t h w c"], count: int) -> Float[Array, "b s h w c"]:
    """`count` different frames of each clip, in random order."""
    if count > x.shape[1]:
        raise InputError(f"own_images={count} frames cannot be taken from clips of {x.shape[1]}; take fewer")
    pick = lambda key, frames: frames[jax.random.permutation(key, len(frames))[:count]]
    return jax.vmap(pick)(draws.keys, x)


def debias(
    draws: Draws, residual: Float[Array, "b t h w c"], unknown: Float[Array, "b t"], images: int, beta: float
) -> Float[Array, "b t h w c"]:
    """sqrt(beta^2 + 1) e_i - beta e_anchor of prediction minus target (Zhao et al. 2023, MotionDirector).

    phi of their equation is linear, so that of the residual is the difference of those of both. The anchor is a random
    unknown frame of the same clip. What is wrong in all frames alike, as appearance is, counts (sqrt(beta^2 + 1) -
    beta)^2 as much, 0.17 for beta = 1. The last `images` frames, alone as they are, have no debiased loss.
    """
    clip = residual.shape[1] - images
    choices = jnp.where(unknown[:, :clip] > 0, 0.0, -jnp.inf)
    frame = jax.vmap(jax.random.categorical)(draws.keys, choices)
    anchor = jnp.take_along_axis(residual, frame[:, None, None, None, None], 1)
    return jnp.pad(jnp.sqrt(beta**2 + 1.0) * residual[:, :clip] - beta * anchor, ((0, 0), (0, images), *((0, 0),) * 3))


def frame_shares(unknown: Float[Array, "b t"], images: int, image_share: float | None) -> Float[Array, "b t"]:
    """What each frame contributes to the loss of its example, 1 in all: the known ones nothing."""
    if image_share is None or not images:
        return unknown / unknown.sum(1, keepdims=True)
    clip = unknown[:, : unknown.shape[1] - images]
    stills = jnp.full((len(unknown), images), image_share / images)
    return jnp.concatenate([(1 - image_share) * clip / clip.sum(1, keepdims=True), stills], 1)


def with_prior(objective: Objective, weight: float = 1.0) -> Objective:
    """objective(instance) + weight objective(class): prior preservation (Ruiz et al. 2022, DreamBooth, eq. 2).

    The batch carries in `prior` a batch of its own, as many examples of the class, made by the model before it is
    tuned; its draws are independent. Raises InputError without it.
    """

    def both(model: Any, batch: Batch, draws: Draws) -> tuple[Float[Array, ""], Metrics]:
        if "prior" not in batch:
            raise InputError(f"prior preservation wants examples of the class in 'prior'; batches have {sorted(batch)}")
        own = {key: value for key, value in batch.items() if key != "prior"}
        instance, metrics = objective(model, own, draws.named("instance"))
        prior, _ = objective(model, batch["prior"], draws.named("prior"))
        return instance + weight * prior, {**metrics, "instance": instance, "prior": prior}

    return both


def autoencoder(
    model: Any, batch: Batch, draws: Draws, *, distance: str = "l2", kl_weight: float = 1e-6
) -> tuple[Float[Array, ""], Metrics]:
    """Reconstruction + kl_weight KL(q(z|x) || N(0, 1)), both a mean over elements (Kingma & Welling 2014)."""
    x = to_unit(batch["video"])
    posterior = model.encode(x)
    decoded = model.decode(posterior.sample(draws.normal(posterior.mean.shape[1:]))).astype(jnp.float32)
    error = choose(distance, DISTANCES, "distance")(decoded - x).mean()
    kl = posterior.kl().mean() / posterior.mean[0].size
    return error + kl_weight * kl, {"reconstruction": error, "kl": kl, "psnr": decoded_psnr(decoded, x)}


def decoded_psnr(decoded: Float[Array, "b t h w c"], x: Float[Array, "b t h w c"]) -> Float[Array, ""]:
    """Mean over the videos of a batch, in dB."""
    return 10 * jnp.log10(4 / jnp.square(decoded - x).mean((1, 2, 3, 4))).mean()
