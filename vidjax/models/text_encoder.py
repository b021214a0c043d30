"""A small text encoder on bytes, trained together with what reads it: no vocabulary, nothing from outside."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vidjax.models.attention import Attention, FeedForward
from vidjax.models.layers import Context, LayerNorm, Stage

PAD = 0


def byte_ids(text: str, length: int) -> Int[np.ndarray, "n"]:
    """UTF-8 bytes plus one, cut or padded with 0 to `length`; "" is all padding, the null prompt."""
    data = np.frombuffer(text.encode()[:length], np.uint8).astype(np.int32) + 1
    return np.pad(data, (0, length - len(data)), constant_values=PAD)


class ByteTextEncoder(nnx.Module):
    """Embeddings of bytes and places, then pre-norm transformer blocks (Vaswani et al. 2017) that do not see the padding.

    The null prompt "" keeps its first padding as a token, so that attention to it is defined.
    """

    def __init__(self, dim: int, layers: int, heads: int, length: int, *, rngs: nnx.Rngs):
        table = lambda rows: nnx.Embed(rows, dim, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)
        self.tokens, self.places = table(257), table(length)
        block = lambda: Stage(attn1=Attention(dim, heads, rngs=rngs), ff=FeedForward(dim, rngs=rngs))
        self.blocks = nnx.List([block() for _ in range(layers)])
        self.norm_out = LayerNorm(dim, rngs=rngs)

    def __call__(
        self, ids: Int[Array, "b n"]
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b d"], Bool[Array, "b n"]]:
        """(tokens, their mean over the real ones, which are real)."""
        mask = (ids != PAD).at[:, 0].set(True)
        x = self.tokens(ids) + self.places(jnp.arange(ids.shape[1]))
        x = x[:, None]  # one frame of n tokens
        ctx = Context(emb=jnp.zeros((*x.shape[:2], 0), x.dtype))
        for block in self.blocks:
            x = x + block.attn1.mix(block.attn1.norm(x, ctx), block.attn1.norm(x, ctx), mask)
            x = block.ff(x, ctx)
        tokens = self.norm_out(x, ctx)[:, 0]
        weights = mask[..., None].astype(tokens.dtype)
        return tokens, (tokens * weights).sum(1) / weights.sum(1), mask
