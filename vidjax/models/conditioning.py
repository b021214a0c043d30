"""Conditions of a denoiser besides the noisy video: labels, text, known frames, a smaller video."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from vidjax.errors import InputError, check_range
from vidjax.models.clip import ClipText, ClipTextConfig
from vidjax.models.layers import sinusoid
from vidjax.models.lowres import LowresEmbedder
from vidjax.models.text_encoder import ByteTextEncoder
from vidjax.settings import choose


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Conditioning:
    """Each part may be absent. `mask` is 1 where a frame of the noisy input is known: clean or nearly so; `concat` are
    further channels beside those of the noisy input, with s = 1 the same for all frames; `start` is what the network
    adds its output to; `control` what a ControlNet sees."""

    vector: Float[Array, "b v"] | None = None
    tokens: Float[Array, "b m d"] | None = None
    token_mask: Bool[Array, "b m"] | None = None
    mask: Float[Array, "b t"] | None = None
    concat: Float[Array, "b s h w e"] | None = None
    start: Float[Array, "b t h w c"] | None = None
    control: Mapping[str, Array] | None = None


class TextEmbedder(nnx.Module):
    """Captions as bytes: tokens for cross-attention and their pooled vector. The null caption is the empty one."""

    key = "tokens"

    def __init__(
        self, *, dim: int, layers: int = 2, heads: int = 4, length: int = 64, drop: float = 0.1, rngs: nnx.Rngs
    ):
        check_range("config.conditioning.text.", 1, dim=dim, heads=heads, length=length)
        check_range("config.conditioning.text.", 0, 256, layers=layers)
        if dim % heads:
            raise InputError(f"config.conditioning.text: dim={dim} cannot be split into heads={heads}; change either")
        self.encoder = ByteTextEncoder(dim, layers, heads, length, rngs=rngs)
        self.drop, self.length, self.vector_dim, self.tokens_dim = drop, length, dim, dim

    def null(self, ids: Int[Array, "b n"]) -> Int[Array, "b n"]:
        """Returns the ids of empty captions."""
        return jnp.zeros_like(ids)

    def __call__(self, ids: Int[Array, "b n"]) -> dict[str, Array]:
        tokens, vector, mask = self.encoder(ids)
        return {"tokens": tokens, "vector": vector, "token_mask": mask}


class ClipEmbedder(nnx.Module):
    """Captions as CLIP's token ids: features of all of them, the padding's too, as Stable Diffusion was trained with.

    `empty` are the ids of "", the null caption: begin, end and padding.
    """

    key = "tokens"

    def __init__(self, config: ClipTextConfig, empty: Sequence[int], drop: float = 0.1, *, rngs: nnx.Rngs):
        self.encoder = ClipText(config, rngs=rngs)
        self.empty, self.drop, self.vector_dim, self.tokens_dim = tuple(map(int, empty)), drop, None, config.dim

    def null(self, ids: Int[Array, "b n"]) -> Int[Array, "b n"]:
        """Returns the ids of empty captions."""
        return jnp.broadcast_to(jnp.asarray(self.empty, ids.dtype), ids.shape)

    def __call__(self, ids: Int[Array, "b n"]) -> dict[str, Array]:
        return {"tokens": self.encoder(ids)[0]}


class LabelEmbedder(nnx.Module):
    """Embeds classes: a learned vector per class, and one more for none (label -1)."""

    key = "label"

    def __init__(self, *, classes: int, dim: int, drop: float = 0.1, rngs: nnx.Rngs):
        check_range("config.conditioning.label.", 1, classes=classes, dim=dim)
        self.table = nnx.Embed(classes + 1, dim, rngs=rngs)
        self.drop, self.classes, self.vector_dim, self.tokens_dim = drop, classes, dim, None

    def null(self, label: Int[Array, " b"]) -> Int[Array, " b"]:
        """Returns labels of no class, -1."""
        return jnp.full_like(label, -1)

    def __call__(self, label: Int[Array, " b"]) -> dict[str, Array]:
        return {"vector": self.table(jnp.where(label < 0, self.classes, label))}


class RateEmbedder(nnx.Module):
    """Frames per second, as a sinusoid of `features` (VideoCrafter). `rate`: that of the clips it is trained on."""

    key, drop, tokens_dim = "fps", 0.0, None

    def __init__(self, features: int, rate: float = 8.0):
        self.vector_dim, self.rate = features, rate

    def null(self, fps: Float[Array, " b"]) -> Float[Array, " b"]:
        """Returns the rate as it is: it is never hidden."""
        return fps

    def __call__(self, fps: Float[Array, " b"]) -> dict[str, Array]:
        return {"vector": sinusoid(fps, self.vector_dim)}


# The conditions that a config may name, see docs/extending.md: classes of modules with `key`, the entry of a batch that
# they read, `drop`, how often it is lost in training, `null(entry)`, what then stands in its place, `vector_dim` and
# `tokens_dim`, the widths of what they return or None, and `__call__(entry) -> {"vector", "tokens", "token_mask",
# "concat", "start"}`, parts of a Conditioning.
EMBEDDERS: dict[str, Callable[..., Any]] = {"text": TextEmbedder, "label": LabelEmbedder, "lowres": LowresEmbedder}


def nulls(embedders: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the batch with every condition at its null value: what guidance steers away from."""
    return {**batch, **{e.key: e.null(batch[e.key]) for e in embedders.values()}}


def drop_conditions(embedders: Mapping[str, Any], batch: Mapping[str, Any], keys: Key[Array, " b"]) -> dict[str, Any]:
    """Sets each condition to its null value in a random share of the examples (Ho & Salimans 2022)."""
    out = dict(batch)
    for i, e in enumerate(embedders.values()):
        if not e.drop:
            continue
        value = batch[e.key]
        lost = jax.vmap(lambda key, i=i: jax.random.uniform(jax.random.fold_in(key, i)))(keys) < e.drop
        out[e.key] = jnp.where(lost.reshape(-1, *(1,) * (value.ndim - 1)), e.null(value), value)
    return out


def embed(
    embedders: Mapping[str, Any], batch: Mapping[str, Any], mask: Float[Array, "b t"] | None = None
) -> Conditioning:
    """Joins the parts of all embedders: vectors and channels side by side, tokens one after the other.

    Raises InputError if the batch lacks what one of them reads.
    """
    if missing := {e.key for e in embedders.values()} - batch.keys():
        raise InputError(f"the model is conditioned on {', '.join(sorted(missing))}, which was not given")
    parts = [e(batch[e.key]) for e in embedders.values()]
    join = lambda name, axis: (
        jnp.concatenate([p[name] for p in parts if name in p], axis) if any(name in p for p in parts) else None
    )
    control = next((p["control"] for p in parts if "control" in p), None)
    return Conditioning(
        join("vector", -1),
        join("tokens", 1),
        join("token_mask", 1),
        mask,
        join("concat", -1),
        join("start", -1),
        control,
    )


def _between(key: Key[Array, ""], frames: int, low: int, high: int) -> Array:
    return jnp.arange(frames) < jax.random.randint(key, (), low, high)


# Which frames are known, for one example: (key, frames) -> [frames], True = known.
FRAME_MASKS: dict[str, Callable[[Key[Array, ""], int], Array]] = {
    "unconditional": lambda key, frames: jnp.zeros(frames, bool),
    "first": lambda key, frames: jnp.arange(frames) < 1,
    "prediction": lambda key, frames: _between(key, frames, 1, max(frames // 2, 1) + 1),
    "interpolation": lambda key, frames: (jnp.arange(frames) == 0) | (jnp.arange(frames) == frames - 1),
    "random": lambda key, frames: jax.random.bernoulli(key, 0.5, (frames,)),
}


def sample_frame_masks(keys: Key[Array, " b"], frames: int, weights: Mapping[str, float]) -> Float[Array, "b t"]:
    """Draws a mask per example, of a random kind with these weights: one network learns all (He et al. 2022, section
    3.3). Where all frames of a clip would be known, as in one of a single frame, none is: every clip has a loss."""
    kinds = [choose(name, FRAME_MASKS, "frame mask") for name in weights]
    logits = jnp.log(jnp.asarray(list(weights.values()), jnp.float32))

    def one(key):
        which, shape = jax.random.split(key)
        options = jnp.stack([kind(shape, frames) for kind in kinds])
        return options[jax.random.categorical(which, logits)]

    masks = jax.vmap(one)(keys)
    return jnp.where(masks.all(1, keepdims=True), False, masks).astype(jnp.float32)
