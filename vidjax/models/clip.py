"""CLIP's two towers (Radford et al. 2021): what Stable Diffusion reads prompts with, and what scores frames by text."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vidjax.errors import InputError
from vidjax.models.kernels.attention import attend
from vidjax.models.kernels.products import gelu
from vidjax.models.layers import LayerNorm, linear, look_up

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's weights
    "gelu": gelu,  # OpenCLIP's
}


@dataclasses.dataclass(frozen=True)
class Tower:
    """What both towers have. `projection`: features of the space that texts and images share; None: no projection."""

    dim: int = 768
    hidden: int = 3072
    layers: int = 12
    heads: int = 12
    activation: str = "quick_gelu"
    eps: float = 1e-5
    projection: int | None = None

    def __post_init__(self):
        if self.dim % self.heads:
            raise InputError(f"CLIP's dim={self.dim} cannot be split into heads={self.heads}; change either")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"CLIP's activation {self.activation!r} is not known; choose {' or '.join(ACTIVATIONS)}")


@dataclasses.dataclass(frozen=True)
class ClipTextConfig(Tower):
    """The defaults are ViT-L's, in Stable Diffusion 1; Stable Diffusion 2 has the first 23 layers of OpenCLIP's ViT-H.

    `eos`: the id of the token to pool at. Configs written before 2023 say 2, which no text contains; it stands for the
    highest id in the text. `skip`: the last so many layers are there, but nothing goes through them.
    """

    vocabulary: int = 49408
    length: int = 77
    eos: int = 49407
    skip: int = 0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.skip < self.layers:
            raise InputError(f"CLIP's skip={self.skip} leaves none of its {self.layers} layers; lower it")


@dataclasses.dataclass(frozen=True)
class ClipImageConfig(Tower):
    """The defaults are ViT-L's at 14 pixels a patch. `mean` and `std` are of its pixels in [0, 1]."""

    dim: int = 1024
    hidden: int = 4096
    layers: int = 24
    heads: int = 16
    projection: int | None = 768
    size: int = 224
    patch: int = 14
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


class SelfAttention(nnx.Module):
    """Attention with biases everywhere; the mask is true where a query may look."""

    def __init__(self, dim: int, heads: int, *, rngs: nnx.Rngs):
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (linear(dim, dim, rngs=rngs) for _ in range(4))
        self.heads = heads

    def __call__(self, x: Float[Array, "b n d"], mask: Bool[Array, "#b #k n n"] | None = None) -> Float[Array, "b n d"]:
        q, k, v = (project(x) for project in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attend(q, k, v, x.shape[-1] // self.heads, mask))


class MLP(nnx.Module):
    """Two linear layers with one of `ACTIVATIONS` between."""

    def __init__(self, dim: int, hidden: int, activation: str, *, rngs: nnx.Rngs):
        self.fc1, self.fc2 = linear(dim, hidden, rngs=rngs), linear(hidden, dim, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, "*s d"]) -> Float[Array, "*s d"]:
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


class Layer(nnx.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: Tower, *, rngs: nnx.Rngs):
        self.layer_norm1 = LayerNorm(config.dim, config.eps, rngs=rngs)
        self.self_attn = SelfAttention(config.dim, config.heads, rngs=rngs)
        self.layer_norm2 = LayerNorm(config.dim, config.eps, rngs=rngs)
        self.mlp = MLP(config.dim, config.hidden, config.activation, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"], mask: Bool[Array, "#b #k n n"] | None = None) -> Float[Array, "b n d"]:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class ClipText(nnx.Module):
    """Token ids to features. Parameter paths follow transformers' CLIPTextModel (weights/clip.py)."""

    def __init__(self, config: ClipTextConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.token_embedding = nnx.Embed(config.vocabulary, config.dim, rngs=rngs)
        self.position_embedding = nnx.Embed(config.length, config.dim, rngs=rngs)
        self.layers = nnx.List([Layer(config, rngs=rngs) for _ in range(config.layers)])
        self.final_layer_norm = LayerNorm(config.dim, config.eps, rngs=rngs)
        self.text_projection = nnx.data(projection(config, rngs))

    def __call__(
        self, ids: Int[Array, "b n"], mask: Bool[Array, "b n"] | None = None
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b p"]]:
        """(normed features of all tokens, those of the end of the text, projected if there is a projection).

        Every token sees itself and those before it; with `mask` only where that is true. Raises InputError if there are
        more tokens than the model has places for.
        """
        n = ids.shape[1]
        if n > self.config.length:
            raise InputError(f"{n} tokens are more than CLIP's {self.config.length}; cut the ids")
        visible = jnp.tril(jnp.ones((n, n), bool))[None, None]
        if mask is not None:
            visible = visible & mask[:, None, None]
        x = look_up(self.token_embedding, ids) + look_up(self.position_embedding, jnp.arange(n))
        for layer in self.layers[: len(self.layers) - self.config.skip]:
            x = layer(x, visible)
        x = self.final_layer_norm(x)
        end = jnp.argmax(ids if self.config.eos == 2 else ids == self.config.eos, -1)
        pooled = jnp.take_along_axis(x, end[:, None, None], 1)[:, 0]
        return x, pooled if self.text_projection is None else self.text_projection(pooled)


class ClipImage(nnx.Module):
    """Frames to features. Parameter paths follow transformers' CLIPVisionModelWithProjection (weights/clip.py)."""

    def __init__(self, config: ClipImageConfig, *, rngs: nnx.Rngs):
        self.config = config
        patch, places = (config.patch, config.patch), (config.size // config.patch) ** 2 + 1
        self.class_embedding = nnx.Param(jnp.zeros(config.dim))
        self.patch_embedding = nnx.Conv(3, config.dim, patch, patch, padding="VALID", use_bias=False, rngs=rngs)
        self.position_embedding = nnx.Embed(places, config.dim, rngs=rngs)
        self.pre_layernorm = LayerNorm(config.dim, config.eps, rngs=rngs)
        self.layers = nnx.List([Layer(config, rngs=rngs) for _ in range(config.layers)])
        self.post_layernorm = LayerNorm(config.dim, config.eps, rngs=rngs)
        self.visual_projection = nnx.data(projection(config, rngs))

    def __call__(self, frames: Float[Array, "b h w c"]) -> tuple[Float[Array, "b n d"], Float[Array, "b p"]]:
        """(features of the class token and the patches, the normed one of the class, projected if it is to be).

        Pixels are in [-1, 1], like everywhere; raises InputError if the frames do not have the model's size.
        """
        config = self.config
        if frames.shape[1:3] != (config.size, config.size):
            raise InputError(f"frames are {frames.shape[1]}x{frames.shape[2]}, CLIP wants {config.size}x{config.size}")
        mean, std = (jnp.asarray(a, frames.dtype) for a in (config.mean, config.std))
        x = rearrange(self.patch_embedding(((frames + 1) / 2 - mean) / std), "b i j d -> b (i j) d")
        first = jnp.broadcast_to(self.class_embedding[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        x = jnp.concatenate([first, x], 1)
        x = self.pre_layernorm(x + look_up(self.position_embedding, jnp.arange(x.shape[1])))
        for layer in self.layers:
            x = layer(x)
        pooled = self.post_layernorm(x[:, 0])
        return x, pooled if self.visual_projection is None else self.visual_projection(pooled)


def projection(config: Tower, rngs: nnx.Rngs) -> nnx.Linear | None:
    """Makes the layer to the space that texts and images share, if the tower has one."""
    return linear(config.dim, config.projection, bias=False, rngs=rngs) if config.projection else None
