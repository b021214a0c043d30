"""What is minimised: functions `(model, batch, draws) -> (loss, metrics)`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vidjax.data.transforms import to_unit
from vidjax.diffusion.draws import Draws
from vidjax.diffusion.schedule import Schedule
from vidjax.diffusion.weighting import WEIGHTINGS
from vidjax.errors import InputError
from vidjax.models.conditioning import dropped, embed, sample_frame_masks
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
) -> tuple[Float[Array, ""], Metrics]:
    """E ||prediction - target||^2 over noise and time (Ho et al. 2020, eq. 14), a condition dropped now and then.

    With `frame_masks` (kind: weight) some frames are known: they come with noise up to the quantile `known_level` of
    the training times, which the network is told, and do not count in the loss (conditional latent perturbation, He et
    al. 2022, section 3.3). Of latents only each `every`-th is diffused: sparse keys of a long video.

    Independent stills in `batch["images"]` follow the clip (Ho et al. 2022, section 3.1), and so do `own_images` random
    frames of the clip itself, out of order and each alone (Dreamix, Molad et al. 2023). All frames count alike, unless
    the stills have `image_share` of the loss (Dreamix: 1 - alpha); where that is 1, the network does not see the clip
    at all (MotionDirector's spatial loss). A model that makes a smaller video larger is given one made of the clip, see
    `lowres`.

    `debiased` is the weight of MotionDirector's second loss (theirs: 1), with `anchor` as its beta: see `debias`.
    Raises InputError if a clip has fewer frames than `own_images`.
    """
    times, posterior, noise, drop, masks, levels, stills, anchors, smaller = draws.split(9)
    clip = batch["video"]
    images = batch["images"].shape[1] if "images" in batch else 0
    video = jnp.concatenate([clip, batch["images"]], 1) if images else clip
    x0 = model.latents(video, posterior.normal)
    if every > 1:
        if images:
            raise InputError(f"every={every} takes latents of clips, not of stills; set data.images=0")
        x0 = x0[:, ::every]
    if own_images:
        x0 = jnp.concatenate([x0, random_frames(stills, x0[:, : x0.shape[1] - images], own_images)], 1)
        images += own_images
    if images and image_share == 1:
        if debiased:
            raise InputError(f"debiased={debiased} is a loss of clips, which image_share=1 leaves out; set either to 0")
        x0 = x0[:, -images:]
    if lowres := model.embedders.get("lowres"):
        batch = {**batch, lowres.key: lowres.draw(schedule, x0, images, smaller)}
    t = jnp.broadcast_to(schedule.sample_t(times.uniforms)[:, None], x0.shape[:2])
    mask = None
    if frame_masks is not None:
        mask = sample_frame_masks(masks.keys, x0.shape[1] - images, frame_masks)
        mask = jnp.pad(mask, ((0, 0), (0, images)))
        t = jnp.where(mask > 0, schedule.sample_t(known_level * levels.uniforms)[:, None], t)
    eps = noise.normal(x0.shape[1:])
    xt = schedule.q_sample(x0, eps, t)
    cond = embed(model.embedders, dropped(model.embedders, batch, drop.keys), mask)
    predicted = model(*schedule.network_input(xt, t), cond, images)
    residual = predicted - schedule.target(x0, eps, t, prediction)
    away = choose(distance, DISTANCES, "distance")
    unknown = jnp.ones(x0.shape[:2]) if mask is None else 1 - mask
    error = away(residual)
    if debiased:
        error += debiased * away(debias(anchors, residual, unknown, images, anchor))
    weight = choose(weighting, WEIGHTINGS, "weighting")(schedule.logsnr(t), prediction)
    share = frame_shares(unknown, images, image_share)
    return (share * weight * error.mean((2, 3, 4))).sum(1).mean(), {}


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
        own, other = draws.split(2)
        instance, metrics = objective(model, {k: v for k, v in batch.items() if k != "prior"}, own)
        prior, _ = objective(model, batch["prior"], other)
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
