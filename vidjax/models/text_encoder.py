"""A small text encoder on bytes, trained together with what reads it: no vocabulary, nothing from outside."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vidjax.errors import check_range
from vidjax.models.attention import Attention, FeedForward
from vidjax.models.initial import normal
from vidjax.models.layers import Context, LayerNorm, Sequential, look_up

PAD = 0
GRAMS, ROWS = (3, 5), 1024  # lengths of the hashed byte groups, and how many embeddings they share
UNIT = normal()


def byte_ids(text: str, length: int) -> Int[np.ndarray, " n"]:
    """UTF-8 bytes plus one, cut or padded with 0 to `length`; "" is all padding, the null prompt."""
    check_range("config.conditioning.text.", 1, 2**20, length=length)
    data = np.frombuffer(text.encode("utf-8", "replace")[:length], np.uint8).astype(np.int32) + 1
    return np.pad(data, (0, length - len(data)), constant_values=PAD)


def hashes(ids: Int[Array, "b n"], gram: int) -> Int[Array, "b n"]:
    """A number below `ROWS` for the `gram` bytes that end at each byte (a rolling polynomial modulo a prime)."""
    code = jnp.zeros_like(ids)
    for back in reversed(range(gram)):
        code = (code * 257 + jnp.pad(ids, ((0, 0), (back, 0)))[:, : ids.shape[1]]) % 1_000_003
    return code % ROWS


class ByteTextEncoder(nnx.Module):
    """Embeddings of bytes, hashed byte groups and places, then pre-norm transformer blocks that do not see the padding.

    The groups (Pagnoni et al. 2024) tell words apart from the first step on, which single bytes do not. The null prompt
    "" keeps its first padding as a token, so that attention to it is defined.
    """

    def __init__(self, dim: int, layers: int, heads: int, length: int, *, rngs: nnx.Rngs):
        self.tokens, self.places = (nnx.Embed(n, dim, embedding_init=UNIT, rngs=rngs) for n in (257, length))
        self.grams = nnx.List([nnx.Embed(ROWS, dim, embedding_init=UNIT, rngs=rngs) for _ in GRAMS])
        self.blocks = nnx.List(
            [Sequential(attn1=Attention(dim, heads, rngs=rngs), ff=FeedForward(dim, rngs=rngs)) for _ in range(layers)]
        )
        self.norm_out, self.norm_pooled = LayerNorm(dim, rngs=rngs), LayerNorm(dim, rngs=rngs)

    def __call__(self, ids: Int[Array, "b n"]) -> tuple[Float[Array, "b n d"], Float[Array, "b d"], Bool[Array, "b n"]]:
        """(tokens, their normalised mean over the real ones, which are real)."""
        mask = (ids != PAD).at[:, 0].set(True)
        x = look_up(self.tokens, ids) + look_up(self.places, jnp.arange(ids.shape[1]))
        for gram, table in zip(GRAMS, self.grams):
            x = x + look_up(table, hashes(ids, gram))
        x = x[:, None]  # one frame of n tokens
        ctx = Context(emb=jnp.zeros((*x.shape[:2], 0), x.dtype))
        for block in self.blocks:
            h = block.attn1.norm(x, ctx)
            x = block.ff(x + block.attn1.mix(h, h, mask), ctx)
        tokens = self.norm_out(x, ctx)[:, 0]
        weights = mask[..., None].astype(tokens.dtype)
        mean = (tokens * weights).sum(1) / weights.sum(1)
        return tokens, self.norm_pooled(mean, ctx), mask
