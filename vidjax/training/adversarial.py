"""An autoencoder before judges: reconstruction, perception, KL and both sides of a game with discriminators, as one
scalar whose gradient is each side's own."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from vidjax.data.transforms import to_unit
from vidjax.diffusion.draws import Draws
from vidjax.settings import choose
from vidjax.training.objectives import DISTANCES, decoded_psnr
from vidjax.training.step import Batch, Metrics

JUDGES = ("discriminator", "perceptual")  # where they are on the model: all other paths are those of an autoencoder
LEAST, MOST = 1e-4, 1e4  # of VQGAN's adaptive weight: what is added below the line, and the bound

Scores = Sequence[Float[Array, "_ ..."]]


def judges(path: str) -> bool:
    """Whether a parameter belongs to a judge, which neither encodes nor decodes."""
    return path.startswith(tuple(f"{name}." for name in JUDGES))


def autoencoder(
    model: Any,
    batch: Batch,
    draws: Draws,
    *,
    distance: str = "l1",
    kl_weight: float = 1e-6,
    reduction: str = "mean",
    perceptual_weight: float = 1.0,
    disc_weight: float = 0.5,
    start: int = 0,
) -> tuple[Float[Array, ""], Metrics]:
    """Distance + perceptual_weight LPIPS + kl_weight KL + disc_weight w adversary (Esser et al. 2021, VQGAN, eq. 5-7),
    plus the hinge loss of the discriminators, all of it minimised at once.

    The autoencoder's gradient is that of the first line, with w = |grad distance| / |grad adversary| at the decoder's
    last kernel; the discriminators' is that of the hinge loss. Before step `start` there is no adversary, and no work
    for it. reduction: distance, LPIPS and KL are a "mean" over elements, or the "sum" of an example's, as in the
    released VQGAN and LVDM; it matters to w, which is bounded. With accumulation w is that of each micro-batch.
    """
    x = to_unit(batch["video"])
    dtype, posterior = model.dtype, model.encode(x)
    noise = draws.normal(posterior.mean.shape[1:])
    decoded, features = model.decode_features(posterior.sample(noise.astype(dtype)))
    decoded = decoded.astype(jnp.float32)
    sizes = {"mean": (1, 1), "sum": (x[0].size, posterior.mean[0].size)}
    pixels, latents = choose(reduction, sizes, "reduction")
    away = choose(distance, DISTANCES, "distance")

    def likeness(y: Array) -> tuple[Array, Metrics]:
        parts = {"reconstruction": away(y - x).mean()}
        loss = parts["reconstruction"]
        if hasattr(model, "perceptual"):
            parts["perceptual"] = model.perceptual(y, x).mean()
            loss += perceptual_weight * parts["perceptual"]
        return pixels * loss, parts

    fixed = stop_gradient(decoded)
    (loss, metrics), slope = jax.value_and_grad(likeness, has_aux=True)(fixed)
    kl = posterior.kl().mean() / posterior.mean[0].size
    metrics |= {"kl": kl, "psnr": decoded_psnr(decoded, x)}
    total = latents * kl_weight * kl
    if hasattr(model, "discriminator"):

        def play() -> tuple[Array, Array, Metrics]:
            real, fake = model.discriminator(x.astype(dtype)), model.discriminator(fixed.astype(dtype))
            rival_loss = hinge(real, fake)
            score = lambda y: generator_loss(freeze(model.discriminator)(y.astype(dtype)))
            lost, against = jax.value_and_grad(score)(fixed)
            weight = adaptive_weight(*last_norms(model.decoder, features, slope, against))
            parts = {"adversary": lost, "adaptive_weight": weight, "discriminator": rival_loss}
            return rival_loss, disc_weight * weight * against, parts

        skip = lambda: jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), jax.eval_shape(play))
        rival_loss, against, parts = jax.lax.cond(draws.step >= start, play, skip)
        total += rival_loss
        loss += disc_weight * parts["adaptive_weight"] * parts["adversary"]
        slope += against
        metrics |= parts
    return total + with_slope(loss, slope, decoded), metrics


def with_slope(value: Float[Array, ""], slope: Float[Array, " *s"], x: Float[Array, " *s"]) -> Float[Array, ""]:
    """`value`, whose derivative by `x` is `slope`: what was worked out already is not differentiated again."""
    return stop_gradient(value) + (stop_gradient(slope) * (x - stop_gradient(x))).sum()


def hinge(real: Scores, fake: Scores) -> Float[Array, ""]:
    """What discriminators minimise (Lim & Ye 2017): half of the mean of max(0, 1 - real) and of max(0, 1 + fake)."""
    halves = [jax.nn.relu(1 - r.astype(jnp.float32)).mean() for r in real]
    halves += [jax.nn.relu(1 + f.astype(jnp.float32)).mean() for f in fake]
    return 0.5 * sum(halves, jnp.zeros(()))


def generator_loss(fake: Scores) -> Float[Array, ""]:
    """What the autoencoder minimises: the mean score of what it makes, negative."""
    return -sum((f.astype(jnp.float32).mean() for f in fake), jnp.zeros(()))


def adaptive_weight(likeness: Float[Array, ""], adversary: Float[Array, ""]) -> Float[Array, ""]:
    """Of two norms of gradients their ratio, bounded (Esser et al. 2021, eq. 7)."""
    return jnp.clip(likeness / (adversary + LEAST), 0, MOST)


def last_norms(decoder: Any, features: Array, *slopes: Float[Array, "b t h w c"]) -> list[Float[Array, ""]]:
    """Norms of the gradients by the decoder's last kernel, of losses with these derivatives by the video. That takes
    one convolution each, not the whole way back."""
    graphdef, kernel, rest = nnx.split(decoder, lambda path, value: path == ("conv_out", "kernel"), ...)
    last = lambda kernel: nnx.merge(graphdef, kernel, rest).last(features)
    kernel, rest, features = stop_gradient((kernel, rest, features))
    out, pull = jax.vjp(last, kernel)
    return [optax.global_norm(jax.tree.map(lambda g: g.astype(jnp.float32), pull(s.astype(out.dtype)))) for s in slopes]


def freeze(module: Any) -> Any:
    """Returns the module with parameters that get no gradient."""
    graphdef, state = nnx.split(module)
    return nnx.merge(graphdef, stop_gradient(state))
