"""A picture as tokens beside those of a text: CLIP's features of its patches, looked through by a few learned queries
(VideoCrafter 1, Chen et al. 2023; the resampler is Flamingo's, Alayrac et al. 2022)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from vidjax.data.transforms import to_unit
from vidjax.models.clip import ClipImage, ClipImageConfig
from vidjax.models.initial import normal
from vidjax.models.kernels.attention import attend
from vidjax.models.kernels.products import gelu
from vidjax.models.layers import LayerNorm, linear
from vidjax.models.picture import PlainPicture, clip_pixels


@dataclasses.dataclass(frozen=True)
class ResamplerConfig:
    """`queries` tokens of `out` features from any number of `source` features; the defaults are VideoCrafter's."""

    source: int = 1280
    dim: int = 1024
    out: int = 1024
    queries: int = 16
    layers: int = 4
    heads: int = 12
    head_dim: int = 64


class Look(nnx.Module):
    """Queries attend to the source and to themselves, side by side; the layer's change of them."""

    def __init__(self, config: ResamplerConfig, *, rngs: nnx.Rngs):
        inner, self.head_dim = config.heads * config.head_dim, config.head_dim
        self.norm_source, self.norm = (LayerNorm(config.dim, rngs=rngs) for _ in range(2))
        self.to_q = linear(config.dim, inner, bias=False, rngs=rngs)
        self.to_kv = linear(config.dim, 2 * inner, bias=False, rngs=rngs)
        self.to_out = linear(inner, config.dim, bias=False, rngs=rngs)

    def __call__(self, queries: Float[Array, "b q d"], source: Float[Array, "b n d"]) -> Float[Array, "b q d"]:
        queries = self.norm(queries)
        seen = jnp.concatenate([self.norm_source(source), queries], 1)
        k, v = jnp.split(self.to_kv(seen), 2, -1)
        return self.to_out(attend(self.to_q(queries), k, v, self.head_dim))


class FeedForward(nnx.Module):
    """Norm and two layers without biases, four times as wide between; its change of the queries."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(dim, rngs=rngs)
        self.fc1, self.fc2 = linear(dim, 4 * dim, bias=False, rngs=rngs), linear(4 * dim, dim, bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "*s d"]) -> Float[Array, "*s d"]:
        return self.fc2(gelu(self.fc1(self.norm(x))))


class ResamplerLayer(nnx.Module):
    """A look at the source, then a feed-forward layer, both residual."""

    def __init__(self, config: ResamplerConfig, *, rngs: nnx.Rngs):
        self.attn, self.ff = Look(config, rngs=rngs), FeedForward(config.dim, rngs=rngs)

    def __call__(self, queries: Float[Array, "b q d"], source: Float[Array, "b n d"]) -> Float[Array, "b q d"]:
        queries = queries + self.attn(queries, source)
        return queries + self.ff(queries)


class Resampler(nnx.Module):
    """A fixed number of tokens from features of any number of places."""

    def __init__(self, config: ResamplerConfig, *, rngs: nnx.Rngs):
        init = normal(config.dim**-0.5)
        self.queries = nnx.Param(init(rngs.params(), (1, config.queries, config.dim)))
        self.proj_in, self.proj_out = (
            linear(cin, cout, rngs=rngs) for cin, cout in ((config.source, config.dim), (config.dim, config.out))
        )
        self.norm_out = LayerNorm(config.out, rngs=rngs)
        self.layers = nnx.List([ResamplerLayer(config, rngs=rngs) for _ in range(config.layers)])

    def __call__(self, source: Float[Array, "b n s"]) -> Float[Array, "b q o"]:
        source = self.proj_in(source)
        queries = jnp.broadcast_to(self.queries[...], (len(source), *self.queries.shape[1:])).astype(source.dtype)
        for layer in self.layers:
            queries = layer(queries, source)
        return self.norm_out(self.proj_out(queries))


class ResampledPicture(PlainPicture):
    """A picture as the last tokens that cross-attention reads. Guidance steers away from a grey one.

    Its entry of a batch: `pixels` [b, n, n, 3] in [-1, 1], see `picture.clip_pixels`.
    """

    vector_dim = None

    def __init__(self, clip: ClipImageConfig, resampler: ResamplerConfig, *, rngs: nnx.Rngs):
        self.encoder, self.resampler = ClipImage(clip, rngs=rngs), Resampler(resampler, rngs=rngs)
        self.tokens_dim = resampler.out

    def null(self, picture: Mapping[str, Array]) -> Mapping[str, Array]:
        """Returns grey pictures."""
        return {"pixels": jnp.zeros_like(picture["pixels"])}

    def __call__(self, picture: Mapping[str, Array]) -> dict[str, Array]:
        pixels = picture["pixels"].astype(self.encoder.patch_embedding.kernel.dtype)
        return {"tokens": self.resampler(self.encoder(pixels)[0])}

    def entry(self, codec: Any, frame: UInt8[Array, "b h w 3"]) -> dict[str, Array]:
        """Makes the entry of a batch for pictures."""
        return {"pixels": clip_pixels(to_unit(frame), self.encoder.config.size)}
