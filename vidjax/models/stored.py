"""Modules that stand in for encoders whose outputs are stored: the batch has moments and text features already."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vidjax.models.autoencoder import Posterior
from vidjax.models.video_model import Normal


class StoredMoments(nnx.Module):
    """Stands in for a `Codec`: its videos are moments (mean, logvar) [b, s, i, j, 2 z], from which it draws latents."""

    def __init__(self, shift: float, scale: float):
        self.shift, self.scale = shift, scale

    def latents(self, video: Float[Array, "b s i j m"], normal: Normal | None = None) -> Float[Array, "b s i j z"]:
        """The posterior's mean, or with `normal` a sample of it, shifted and scaled as `Codec.encode` does."""
        posterior = Posterior(*jnp.split(video, 2, -1))
        z = posterior.mode if normal is None else posterior.sample(normal(posterior.mean.shape[1:]))
        return self.scale * (z + self.shift)


class StoredText(nnx.Module):
    """Stands in for a text embedder: its captions are features [b, n, d].

    With a share `drop` of captions that training hides, the parameter `empty` [n, d] holds the features of the null
    caption; it starts at zero and is filled from where the features are stored.
    """

    key, vector_dim = "tokens", None

    def __init__(self, tokens_dim: int, length: int = 0, drop: float = 0.0):
        self.tokens_dim, self.drop = tokens_dim, drop
        self.empty = nnx.Param(jnp.zeros((length, tokens_dim))) if drop else None

    def null(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """The features of the null caption, as many times as `tokens` has examples."""
        assert self.empty is not None
        return jnp.broadcast_to(self.empty[...].astype(tokens.dtype), tokens.shape)

    def __call__(self, tokens: Float[Array, "b n d"]) -> dict[str, Array]:
        return {"tokens": tokens}
