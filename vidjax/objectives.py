"""What is minimised: functions `(model, batch, draws) -> (loss, metrics)`."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from vidjax.conditioning import dropped, embed, sample_frame_masks
from vidjax.data.transforms import to_unit
from vidjax.diffusion.loss import WEIGHTINGS
from vidjax.diffusion.schedule import Schedule
from vidjax.settings import choose
from vidjax.train_step import Batch, Draws, Metrics

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
) -> tuple[Float[Array, ""], Metrics]:
    """E ||prediction - target||^2 over noise and time (Ho et al. 2020, eq. 14), a condition dropped now and then.

    With `frame_masks` (kind: weight) some frames are known: they come with noise up to the quantile `known_level` of
    the training times, and do not count in the loss. Independent stills in `batch["images"]` follow the clip (Ho et al.
    2022, section 3.1).
    """
    times, posterior, noise, drop, masks, levels = draws.split(6)
    clip = batch["video"]
    images = batch["images"].shape[1] if "images" in batch else 0
    video = jnp.concatenate([clip, batch["images"]], 1) if images else clip
    x0 = model.latents(video, posterior.normal)
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
    error = choose(distance, DISTANCES, "distance")(predicted - schedule.target(x0, eps, t, prediction))
    weight = choose(weighting, WEIGHTINGS, "weighting")(schedule.logsnr(t), prediction)
    per_frame = weight * error.mean((2, 3, 4))
    unknown = jnp.ones_like(per_frame) if mask is None else 1 - mask
    return ((per_frame * unknown).sum(1) / unknown.sum(1)).mean(), {}


def autoencoder(
    model: Any, batch: Batch, draws: Draws, *, distance: str = "l2", kl_weight: float = 1e-6
) -> tuple[Float[Array, ""], Metrics]:
    """Reconstruction + kl_weight KL(q(z|x) || N(0, 1)), both a mean over elements (Kingma & Welling 2014)."""
    x = to_unit(batch["video"])
    posterior = model.encode(x)
    residual = model.decode(posterior.sample(draws.normal(posterior.mean.shape[1:]))).astype(jnp.float32) - x
    error = choose(distance, DISTANCES, "distance")(residual).mean()
    kl = posterior.kl().mean() / posterior.mean[0].size
    psnr = 10 * jnp.log10(4 / jnp.square(residual).mean((1, 2, 3, 4))).mean()
    return error + kl_weight * kl, {"reconstruction": error, "kl": kl, "psnr": psnr}


OBJECTIVES = {"autoencoder": autoencoder, "diffusion": diffusion}
