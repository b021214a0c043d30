"""What autoencoders are made of: residual blocks without a time, and two ways to change the size of a map."""

from flax import nnx
from jaxtyping import Array, Float

from vidjax.models.convolution import Conv, ConvTranspose
from vidjax.models.layers import Context, GroupNorm, Over, linear, silu_norm

Kernel = tuple[int, ...]


class ResBlock(nnx.Module):
    """GroupNorm-SiLU-convolution twice beside the identity, with a kernel for each convolution.

    (3, 3) twice is Stable Diffusion's, (3, 3, 3) twice on padding "edge" LVDM's; (3, 3) and (3, 1, 1) split a frame's
    convolution from that over time.
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        kernels: tuple[Kernel, Kernel] = ((3, 3), (3, 3)),
        groups: int = 32,
        norm_over: Over = "frame",
        mode: str = "zeros",
        eps: float = 1e-6,
        *,
        rngs: nnx.Rngs,
    ):
        self.norm1 = GroupNorm(cin, groups, eps, norm_over, rngs=rngs)
        self.conv1 = Conv(cin, cout, kernels[0], mode=mode, rngs=rngs)
        self.norm2 = GroupNorm(cout, groups, eps, norm_over, rngs=rngs)
        self.conv2 = Conv(cout, cout, kernels[1], mode=mode, rngs=rngs)
        self.conv_shortcut = nnx.data(linear(cin, cout, rngs=rngs) if cin != cout else None)

    def __call__(self, x: Float[Array, "b t h w c"], ctx: Context) -> Float[Array, "b t h w d"]:
        h = self.conv1(silu_norm(self.norm1, x, ctx))
        h = self.conv2(silu_norm(self.norm2, h, ctx))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Halve(nnx.Module):
    """A (3, 3) convolution of stride 2, padded below and to the right only (Stable Diffusion's autoencoder)."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.conv = Conv(dim, dim, strides=2, padding=[(0, 1), (0, 1)], rngs=rngs)

    def __call__(self, x: Float[Array, "b t h w c"], ctx: Context) -> Float[Array, "b t i j c"]:
        return self.conv(x)


class Shrink(nnx.Module):
    """A (4, 4, 4) convolution with any of its strides 2 or 1, on repeated borders (LVDM)."""

    def __init__(self, cin: int, cout: int, strides: tuple[int, int, int], *, rngs: nnx.Rngs):
        padding = [((5 - s) // 2, (4 - s) // 2) for s in strides]
        self.conv = Conv(cin, cout, (4, 4, 4), strides, padding, "edge", rngs=rngs)

    def __call__(self, x: Float[Array, "b t h w c"], ctx: Context) -> Float[Array, "b s i j d"]:
        return self.conv(x)


class Stretch(nnx.Module):
    """The transposed convolution that undoes the sizes of `Shrink` (LVDM)."""

    def __init__(self, cin: int, cout: int, strides: tuple[int, int, int], *, rngs: nnx.Rngs):
        self.conv = ConvTranspose(cin, cout, (4, 4, 4), strides, "edge", rngs=rngs)

    def __call__(self, x: Float[Array, "b s i j c"], ctx: Context) -> Float[Array, "b t h w d"]:
        return self.conv(x)
