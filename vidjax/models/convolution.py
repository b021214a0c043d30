"""Convolutional layers with parameters of their own; how they run fast is in `kernels.convolution`."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vidjax.errors import InputError
from vidjax.models.initial import constant, uniform_by_fan, zeros
from vidjax.models.kernels.convolution import convolve, convolve_transposed
from vidjax.models.kernels.placement import whole
from vidjax.models.kernels.sums import add_bias


class Conv(nnx.Module):
    """`convolve` with its own kernel [*k, cin, cout] and bias, laid out as in `nnx.Conv`; `zero` starts both at zero.

    A (3, 3) kernel on a video [b, t, h, w, c] works frame by frame; (3, 1, 1) over time, (3, 3, 3) over both.
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: Sequence[int] = (3, 3),
        strides: int | Sequence[int] = 1,
        padding: Sequence[tuple[int, int]] | None = None,
        mode: str = "zeros",
        zero: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        self.kernel, self.bias = _parameters(cin, cout, kernel, zero, rngs)
        self.strides = strides if isinstance(strides, int) else tuple(strides)
        self.padding = None if padding is None else tuple(padding)
        self.mode = mode

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*e d"]:
        y = convolve(x, whole(self.kernel[...]), self.strides, self.padding, self.mode)
        return add_bias(y, self.bias[...].astype(y.dtype))

    def look_over_time(self, reach: int = 1) -> None:
        """Makes a (k, k) kernel one of (2 reach + 1, k, k) that starts as it was, each frame by itself. Raises
        InputError for other kernels, strides and paddings."""
        if self.kernel.ndim != 4 or self.strides != 1 or self.padding is not None:
            raise InputError(f"a convolution with kernel {self.kernel.shape} cannot be made to look over time")
        widen = lambda kernel: jnp.pad(kernel[None], ((reach, reach), *((0, 0),) * kernel.ndim))
        value = self.kernel.get_value()
        self.kernel.set_value(widen(value) if isinstance(value, jax.Array) else jax.eval_shape(widen, value))


class ConvTranspose(nnx.Module):
    """`convolve_transposed` with its own kernel [*k, cin, cout] and bias."""

    def __init__(
        self, cin: int, cout: int, kernel: Sequence[int], strides: Sequence[int], mode: str = "zeros", *, rngs: nnx.Rngs
    ):
        self.kernel, self.bias = _parameters(cin, cout, kernel, False, rngs)
        self.strides, self.mode = tuple(strides), mode

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*e d"]:
        y = convolve_transposed(x, whole(self.kernel[...]), self.strides, self.mode)
        return add_bias(y, self.bias[...].astype(y.dtype))


def _parameters(cin: int, cout: int, size: Sequence[int], zero: bool, rngs: nnx.Rngs) -> tuple[nnx.Param, nnx.Param]:
    init = zeros if zero else uniform_by_fan()
    return nnx.Param(init(rngs.params(), (*size, cin, cout))), nnx.Param(constant(0, cout))
