"""Networks that steer a U-Net by pictures: ControlNet (Zhang et al. 2023) and SparseCtrl (Guo et al. 2023).

Both are the U-Net's encoder once more, with the pictures added to its first convolution, and what they find added to
what the U-Net keeps of its own encoder. SparseCtrl sees no noisy video, but pictures of some frames and which these
are, and its own layers over time spread them.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Num

from vidjax.models.convolution import Conv
from vidjax.models.layers import linear
from vidjax.models.unet import Encoder, UNetConfig, skip_channels


@dataclasses.dataclass(frozen=True)
class ControlConfig:
    """What a network sees. channels: of its pictures, without the mask. widths: of the convolutions that bring pixels
    to the size of latents; none: the pictures are latents. sparse: some frames have one, as a mask says, and the noisy
    video is not seen."""

    channels: int = 3
    widths: Sequence[int] = (16, 32, 96, 256)
    sparse: bool = False


class Hint(nnx.Module):
    """Convolutions from pixels to features at an eighth of the size: zero at the start."""

    def __init__(self, cin: int, widths: Sequence[int], cout: int, *, rngs: nnx.Rngs):
        halve = dict(strides=2, padding=[(1, 1), (1, 1)])
        self.conv_in = Conv(cin, widths[0], rngs=rngs)
        self.blocks = nnx.List([])
        for narrow, wide in itertools.pairwise(widths):
            self.blocks.extend([Conv(narrow, narrow, rngs=rngs), Conv(narrow, wide, **halve, rngs=rngs)])
        self.conv_out = Conv(widths[-1], cout, zero=True, rngs=rngs)

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t i j d"]:
        for layer in (self.conv_in, *self.blocks):
            x = jax.nn.silu(layer(x))
        return self.conv_out(x)


class ControlNet(Encoder):
    """The encoder of a U-Net that sees pictures: what it adds to another U-Net of the same widths is zero at the start.

    Paths are those of the U-Net, and `hint, zeros.I, zero_mid`.
    """

    def __init__(self, config: UNetConfig, control: ControlConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.control, first = control, config.channels[0]
        channels = control.channels + control.sparse
        self.hint = (
            Hint(channels, control.widths, first, rngs=rngs)
            if control.widths
            else Conv(channels, first, zero=True, rngs=rngs)
        )
        self.zeros = nnx.List([linear(c, c, zero=True, rngs=rngs) for c in skip_channels(config)])
        self.zero_mid = linear(config.channels[-1], config.channels[-1], zero=True, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        t: Num[Array, "b t"],
        tokens: Float[Array, "b m d"] | None,
        hint: Float[Array, "b t i j e"],
        *,
        token_mask: Bool[Array, "b m"] | None = None,
        images: int = 0,
        remat: str = "none",
    ) -> list[Float[Array, "b t ..."]]:
        """The `residuals` of a U-Net that is called alike. `hint` are pictures in [0, 1] or latents, with the mask
        after them, 1 where there is one."""
        x = jnp.zeros_like(x) if self.control.sparse else x
        skips, x, _ = self.encode(x, t, tokens, None, token_mask, images, remat, self.hint(hint.astype(x.dtype)))
        return [*(layer(skip) for layer, skip in zip(self.zeros, skips, strict=True)), self.zero_mid(x)]


class ControlEmbedder(nnx.Module):
    """A ControlNet as a condition of a model. Its entry of a batch: `hint` as there, and `scale` [b] of what it adds.

    Guidance steers away from the empty caption under the same pictures.
    """

    key, drop, vector_dim, tokens_dim = "control", 0.0, None, None

    def __init__(self, network: ControlNet):
        self.network = network

    def null(self, entry: Mapping[str, Array]) -> Mapping[str, Array]:
        """Returns the entry: there is no caption in it."""
        return entry

    def __call__(self, entry: Mapping[str, Array]) -> dict[str, Mapping[str, Array]]:
        return {"control": entry}

    def residuals(self, x: Array, t: Array, tokens: Array | None, entry: Mapping[str, Array], **how) -> list[Array]:
        """What is added to the U-Net, see `ControlNet`, times the entry's scale."""
        scale = entry["scale"][:, None, None, None, None].astype(x.dtype)
        return [scale * each for each in self.network(x, t, tokens, entry["hint"], **how)]
