"""A smaller video as a condition, under noise: what a stage of a cascade makes larger (Ho et al. 2021, 2022)."""

from collections.abc import Mapping
from typing import Any

import jax
from einops import repeat
from flax import nnx
from jaxtyping import Array, Float

from vidjax.diffusion.draws import Draws
from vidjax.diffusion.schedule import Schedule
from vidjax.errors import InputError
from vidjax.models.layers import sinusoid


class LowresEmbedder(nnx.Module):
    """A video with every `time_factor`-th frame, in `space_factor` times fewer rows and columns, brought to size and
    laid beside the channels of the noisy one, and the level of the noise that it is under, embedded as a time is.

    The noise is that of conditioning augmentation (Ho et al. 2021, section 4.2): the stage learns not to trust details
    of the one before. In training the level is random, up to the quantile `max_level` of the training times. `of` names
    the stage whose videos these are. `residual`: the network, which then predicts x0, adds to the enlarged video, less
    the more noise that is under; it starts as plain enlargement.
    """

    key, drop, tokens_dim, vector_dim = "lowres", 0.0, None, 64

    def __init__(
        self,
        *,
        of: str,
        time_factor: int = 1,
        space_factor: int = 1,
        max_level: float = 1.0,
        residual: bool = False,
        rngs: nnx.Rngs,
    ):
        if min(time_factor, space_factor) < 1 or time_factor * space_factor == 1:
            raise InputError(
                f"config.conditioning.lowres: time_factor={time_factor} and space_factor={space_factor} make nothing "
                "larger; set one of them to 2 or more"
            )
        if not 0 <= max_level <= 1:
            raise InputError(f"config.conditioning.lowres.max_level={max_level} is not between 0 and 1")
        self.of, self.time_factor, self.space_factor, self.max_level = of, time_factor, space_factor, max_level
        self.residual = residual

    def null(self, low: Mapping[str, Array]) -> Mapping[str, Array]:
        """Guidance does not steer away from it."""
        return low

    def low_size(self, size: tuple[int, int, int]) -> tuple[int, int, int]:
        """(frames, height, width) of the smaller video. Raises InputError if the factors do not divide `size`."""
        factors = (self.time_factor, self.space_factor, self.space_factor)
        if any(n % factor for n, factor in zip(size, factors)):
            raise InputError(
                f"{size[0]} frames of {size[1]}x{size[2]} do not divide by time_factor={self.time_factor} and "
                f"space_factor={self.space_factor} of config.conditioning.lowres; change either"
            )
        t, h, w = (n // factor for n, factor in zip(size, factors))
        return t, h, w

    def shrink(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b s i j c"]:
        """Every n-th frame, bilinear with anti-aliasing."""
        size = self.low_size(x.shape[1:4])
        x = x[:, :: self.time_factor]
        return jax.image.resize(x, (x.shape[0], *size, x.shape[4]), "linear") if self.space_factor > 1 else x

    def enlarge(self, low: Float[Array, "b s i j c"]) -> Float[Array, "b t h w c"]:
        """Bilinear, each frame repeated."""
        b, s, i, j, c = low.shape
        if self.space_factor > 1:
            low = jax.image.resize(low, (b, s, i * self.space_factor, j * self.space_factor, c), "linear")
        return repeat(low, "b s h w c -> b (s n) h w c", n=self.time_factor)

    def noised(
        self, schedule: Schedule, low: Float[Array, "b s i j c"], t: Float[Array, " b"], eps: Float[Array, "b s i j c"]
    ) -> dict[str, Any]:
        """What the embedder is called with: the video at time t of the diffusion, and how the network is told."""
        return {
            "video": schedule.q_sample(low, eps, t),
            "level": schedule.noise_embedding(t),
            "trust": schedule.alpha(t),
        }

    def draw(self, schedule: Schedule, x0: Float[Array, "b t h w c"], images: int, draws: Draws) -> dict[str, Any]:
        """The same of the clips x0 themselves, in training. Raises InputError for stills where frames are filled in."""
        if images and self.time_factor > 1:
            raise InputError(f"{images} stills have no frames between them: set data.images=0, or lowres.time_factor=1")
        low = self.shrink(x0)
        t = schedule.sample_t(self.max_level * draws.named("lowres.levels").uniforms)
        return self.noised(schedule, low, t, draws.named("lowres.noise").normal(low.shape[1:]))

    def __call__(self, low: Mapping[str, Array]) -> dict[str, Array]:
        large = self.enlarge(low["video"])
        parts = {"vector": sinusoid(low["level"], self.vector_dim), "concat": large}
        if self.residual:  # alpha y is the mean of x given y = alpha x + sigma eps, at unit variance
            parts["start"] = low["trust"][:, None, None, None, None] * large
        return parts
