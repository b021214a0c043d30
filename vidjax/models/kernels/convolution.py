"""Convolution over the trailing spatial axes of anything, in the form that the platform runs fastest."""

import functools
import itertools
from collections.abc import Callable, Sequence
from math import prod

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jaxtyping import Array, Float

from vidjax.models import kernels
from vidjax.models.kernels.placement import Spec, local, ways
from vidjax.models.kernels.products import WIDTH
from vidjax.runtime.platforms import platform

Pairs = tuple[tuple[int, int], ...]

# On CPUs a convolution with at most this many output pixels a map, or with a kernel that outweighs all pixels together,
# is cheaper as one matrix product over its columns: 8 maps of 2x2x256 0.7 ms, XLA's own 7.7; 2 of 8x8x640, forward and
# backward, 16, 40.
TINY = 8


def convolve(
    x: Float[Array, "*b c"],
    kernel: Float[Array, "*k c d"],
    strides: int | Sequence[int] = 1,
    padding: Sequence[tuple[int, int]] | None = None,
    mode: str = "zeros",
    implementation: str | None = None,
) -> Float[Array, "*e d"]:
    """Cross-correlates the last `len(k)` spatial axes of `x` with `kernel`; all axes before them are batch.

    padding: (before, after) for each spatial axis, by default k // 2 on both sides. mode: what stands there, "zeros" or
    "edge" (the border repeated). implementation: a name in `CONVOLUTIONS`, by default the one of `FASTEST` for the
    platform; they are equal up to rounding. The result has the dtype of `x`.
    """
    size = kernel.shape[:-2]
    n = len(size)
    steps = (strides,) * n if isinstance(strides, int) else tuple(strides)
    pads = tuple((k // 2, k // 2) for k in size) if padding is None else tuple((lo, hi) for lo, hi in padding)
    if mode not in ("zeros", "edge"):
        raise ValueError(f"padding mode {mode!r}: expected 'zeros' or 'edge'")
    name = implementation or choose_convolution()

    own = functools.partial(_convolve_own, strides=steps, padding=pads, mode=mode, name=name)
    cut = own_part(x.ndim - n - 1, size)
    return local(own, (x, cut), (kernel.astype(x.dtype), ()), out=cut) if cut else own(x, kernel.astype(x.dtype))


def _convolve_own(x: Array, kernel: Array, strides: tuple[int, ...], padding: Pairs, mode: str, name: str) -> Array:
    """`convolve` of what one device has."""
    n, out = kernel.ndim - 2, kernel.shape[-1]
    batch = x.shape[: x.ndim - n - 1]
    x = x.reshape(-1, *x.shape[x.ndim - n - 1 :])
    if name == "planes" and (count := choose_columns(x.shape, kernel.shape, strides, padding)) > 1:
        x, kernel, strides, padding = _columns_as_features(x, kernel, strides, padding, mode, count)
    if mode == "edge":
        x, padding = repeat_borders(x, padding), ((0, 0),) * n
    y = CONVOLUTIONS[name](x, kernel, strides, padding)
    return y.reshape(*batch, *y.shape[1:-2], y.shape[-2] * y.shape[-1] // out, out)


def repeat_borders(x: Float[Array, "n *s c"], pads: Sequence[tuple[int, int]]) -> Float[Array, "n *p c"]:
    """Pads each spatial axis by (before, after) with copies of its first and last entries: joined to it on TPUs, by
    reading them on GPUs."""
    if platform() == "cpu":
        return jnp.pad(x, ((0, 0), *pads, (0, 0)), mode="edge")
    return (_read if platform() == "gpu" else _join_borders)(x, tuple(pads))


def _join_borders(x: Array, pads: Pairs) -> Array:
    """`repeat_borders`, the last axis first, whose entries are neighbours. The TPU compiler's cycles of a (3, 3, 3)
    convolution, forward and backward, by `_sum_of_parts` and so, for v5e: 16 x 128 x 128 x 128 14.2 M and 11.8 M, 8 x
    64 x 64 x 256 5.3 M and 4.4 M.
    """
    for axis, (before, after) in reversed([*enumerate(pads, 1)]):
        first, last = (lax.slice_in_dim(x, at, at + 1, axis=axis) for at in (0, x.shape[axis] - 1))
        x = jnp.concatenate([*[first] * before, x, *[last] * after], axis)
    return x


def _sum_of_parts(x: Array, pads: Pairs) -> Array:
    """`repeat_borders` as the array and its borders, each padded with zeros: XLA fuses that with what comes before and
    after."""
    zero = jnp.zeros((), x.dtype)
    for axis, (before, after) in enumerate(pads, 1):
        size = x.shape[axis]
        first, last = (lax.slice_in_dim(x, at, at + 1, axis=axis) for at in (0, size - 1))
        widths = [(before, after), *((i, size + before + after - 1 - i) for i in range(before))]
        widths += [(before + size + i, after - 1 - i) for i in range(after)]
        parts = [x, *[first] * before, *[last] * after]
        only = lambda width, axis=axis, axes=x.ndim: [(*width, 0) if i == axis else (0, 0, 0) for i in range(axes)]
        x = functools.reduce(jnp.add, [lax.pad(part, zero, only(width)) for part, width in zip(parts, widths)])
    return x


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _read(x: Array, pads: Pairs) -> Array:
    """`repeat_borders`, each entry read where it stands, and nothing else. On an H200 16 x 8 x 128 x 128 x 64 in bf16,
    with the convolution after it, takes 1.22 ms so, by `_sum_of_parts` 1.80, by `jnp.pad` 3.47. The derivative is that
    of `_sum_of_parts`: the transpose of reading would add entry by entry."""
    for axis, (before, after) in enumerate(pads, 1):
        x = jnp.take(x, jnp.clip(jnp.arange(-before, x.shape[axis] + after), 0, x.shape[axis] - 1), axis, mode="clip")
    return x


@_read.defjvp
def _derivative_of_reading(pads: Pairs, x: tuple[Array], change: tuple[Array]) -> tuple[Array, Array]:
    return _read(*x, pads), _sum_of_parts(*change, pads)


def choose_convolution() -> str:
    """The entry of `CONVOLUTIONS` that is fastest on the program's platform."""
    return "plain" if kernels.choice().textbook else FASTEST.get(platform(), "plain")


def own_part(batch: int, size: Sequence[int]) -> Spec:
    """What of a video a convolution takes by itself, where clips are cut: each frame, or over time alone each row."""
    if ways("context") == 1:
        return ()
    if len(size) == 2 and batch == 2:
        return "batch", "context"
    return ("batch", None, "context") if len(size) == 3 and batch == 1 and size[1] == 1 else ()


def convolve_by_xla(x: Array, kernel: Array, strides: tuple[int, ...], padding: Pairs) -> Array:
    """XLA's own convolution: [n, *spatial, c] with [*k, c, d]."""
    axes = "THW"[3 - len(strides) :]
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def canonical(x: Array, kernel: Array, strides: tuple[int, ...], padding: Pairs) -> Array:
    """`convolve_by_xla` over two axes, whose gradients are convolutions of the same layout.

    XLA's CPU compiler brings others into that layout only outside of loops and branches. Inside (gradient accumulation,
    a discriminator that is not always at work, guidance by a gradient) it walks them element by element: the kernel
    gradients of a discriminator of 64x64 frames took 1.76 s, not 0.13.
    """
    return convolve_by_xla(x, kernel, strides, padding)


def _forward(x: Array, kernel: Array, strides: tuple[int, ...], padding: Pairs) -> tuple[Array, tuple[Array, Array]]:
    return convolve_by_xla(x, kernel, strides, padding), (x, kernel)


def _backward(strides: tuple[int, ...], padding: Pairs, kept: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    """Of the input: the slope, spread out by the stride, with the kernel turned around; of the kernel: the input with
    the slope, so spread, as its kernel and the batch as its channels."""
    x, kernel = kept
    sizes = list(zip(x.shape[1:3], slope.shape[1:3], kernel.shape, strides, padding))
    before = [k - 1 - lo for _, _, k, _, (lo, _) in sizes]
    spread = [(m - 1) * s + 1 for _, m, _, s, _ in sizes]
    labels = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"))
    around = [(b, n + k - 1 - b - wide) for (n, _, k, _, _), b, wide in zip(sizes, before, spread)]
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    to_x = lax.conv_general_dilated(slope, turned, (1, 1), around, lhs_dilation=strides, **labels)
    around = [(lo, wide + k - 1 - n - lo) for (n, _, k, _, (lo, _)), wide in zip(sizes, spread)]
    images, filters = x.transpose(3, 1, 2, 0), slope.transpose(1, 2, 0, 3)
    to_kernel = lax.conv_general_dilated(images, filters, (1, 1), around, rhs_dilation=strides, **labels)
    return to_x, to_kernel.transpose(1, 2, 0, 3)


canonical.defvjp(_forward, _backward)


def folded(x: Array, kernel: Array, strides: tuple[int, ...], padding: Pairs) -> Array:
    """`convolve_by_xla` without its slow CPU cases: three axes are a sum over two, tiny maps and single axes products.

    Milliseconds forward and backward on two AVX-512 cores, plain and folded, over 8 x 32 x 32 x 64: (3, 3, 3) 48 + 121,
    10 + 23; (1, 3, 3) 17 + 47, 3 + 9; (3, 1, 1) 6 + 14, 2 + 10; over 8 x 64 x 64 x 32 strided (4, 4, 4) 60 + 1389,
    13 + 98; over 8 x 2 x 2 x 256 (1, 3, 3) 1.3 + 4.6, 0.8 + 1.4.
    """
    if len(strides) == 1:  # a map of one column
        return folded(x[:, :, None], kernel[:, None], (*strides, 1), (*padding, (0, 0)))[:, :, 0]
    if len(strides) == 2:
        pixels = prod(_outputs(x.shape[1:3], kernel.shape, strides, padding))
        tiny = pixels <= TINY or len(x) * pixels < max(kernel.shape[2:])
        whole = canonical if kernels.choice().by_hand else convolve_by_xla
        return (_columns if tiny else whole)(x, kernel, strides, padding)
    if kernel.shape[1:3] == strides[1:] == (1, 1) and padding[1:] == ((0, 0),) * 2:
        return _pixels_as_one(folded, x, kernel, strides, padding)
    return _over_time(folded, x, kernel, strides, padding)


def planes(x: Array, kernel: Array, strides: tuple[int, ...], padding: Pairs) -> Array:
    """`convolve_by_xla`, three axes as a sum over two: of these alone XLA's TPU compiler keeps the matrix unit busy.

    Its cycles of a (3, 3, 3) convolution with borders repeated by `_sum_of_parts`, forward and backward, for v5e: 16 x
    256 x 256 x 64 102.1 M, so 69.3 M; 16 x 128 x 128 x 128 18.5 M, so 14.7 M. In bf16 each plane's sum is rounded.
    """
    if len(strides) < 3 or kernel.shape[0] == 1 or kernel.shape[1:3] == (1, 1):
        return convolve_by_xla(x, kernel, strides, padding)
    return _over_time(convolve_by_xla, x, kernel, strides, padding)


def choose_columns(x: Sequence[int], kernel: Sequence[int], strides: Sequence[int], padding: Pairs) -> int:
    """Returns how many columns of a map are one, with features side by side, where a TPU convolves over three axes: 4
    or 2 if these are whole steps of the stride that make up the output, and their features fit in a row of its memory,
    those of what they give in two; else 1, as where features are cut over devices."""
    if len(strides) < 3 or kernel[0] == 1 or kernel[2] == 1 or ways("heads") > 1:
        return 1
    *_, c, d = kernel
    columns, step = _outputs(x[1:], kernel, strides, padding)[2], strides[2]
    fits = lambda count, out: count == out * step and columns % out == 0 and count * c <= WIDTH and out * d <= 2 * WIDTH
    return next((count for count in (4, 2) if fits(count, count // step)), 1)


def _columns_as_features(
    x: Array, kernel: Array, strides: tuple[int, ...], padding: Pairs, mode: str, count: int
) -> tuple[Array, Array, tuple[int, ...], Pairs]:
    """An input [n, t, h, w, c] padded along w as `mode` says, whose w / count groups of columns have count c features,
    the kernel that takes it, zero where a tap would meet no input of its own, strides and padding that are left.

    The TPU compiler's cycles of a (3, 3, 3) convolution with repeated borders, forward and backward, for v5e, one
    column at a time and two: 16 x 256 x 256 x 64 63.0 M, so 30.7 M; from 3 features to 64 24.8 M, four 11.2 M.
    """
    taps, step, out = kernel.shape[2], strides[2], count // strides[2]
    groups = _outputs(x.shape[1:], kernel.shape, strides, padding)[2] // out
    met = -(-((out - 1) * step + taps) // count)  # groups of the input by one of the output
    pads = lambda axis, before, after: [(before * (i == axis), after * (i == axis), 0) for i in range(5)]
    pad = lambda a, axis, before, after: lax.pad(a, jnp.zeros((), a.dtype), pads(axis, before, after))
    x = _join_borders(x, ((0, 0), (0, 0), padding[2])) if mode == "edge" else pad(x, 3, *padding[2])
    x = pad(x, 3, 0, (groups + met - 1) * count - x.shape[3])
    x = x.reshape(*x.shape[:3], groups + met - 1, count * x.shape[-1])
    # Output column o of a group meets column m of its input by the tap m - o step, if there is one.
    kernels = [pad(kernel, 2, o * step, met * count - taps - o * step) for o in range(out)]
    kernel = rearrange(jnp.stack(kernels, -2), "t h (g i) c o d -> t h g (i c) (o d)", g=met)
    return x, kernel, (*strides[:2], 1), (*padding[:2], (0, 0))


def stacked(x: Array, kernel: Array, strides: tuple[int, ...], padding: Pairs) -> Array:
    """`convolve_by_xla`, three axes as two, with the frames that a kernel meets side by side as channels: XLA lays two
    axes out for a GPU's tensor cores, three not. The backward pass puts them side by side anew.

    Milliseconds on an H200 in bf16, plain and so: (3, 3, 3) over 16 x 8 x 128 x 128 x 64 with repeated borders 2.1 and
    1.8, with gradients 5.8 and 4.5; over 16 x 16 x 256 x 256 x 3 6.7 and 3.3; (3, 1, 1) over 2 x 16 x 8 x 8 x 1280 with
    gradients 0.56 and 0.21. In a step of lvdm:sky the encoder takes 12 ms, not 44.
    """
    if len(strides) < 3:
        return convolve_by_xla(x, kernel, strides, padding)
    if kernel.shape[1:3] == strides[1:] == (1, 1) and padding[1:] == ((0, 0),) * 2:
        return _pixels_as_one(convolve_by_xla, x, kernel, strides, padding)
    taps, frames = len(kernel), _outputs(x.shape[1:], kernel.shape, strides, padding)[0]

    @jax.checkpoint
    def run(x: Array, kernel: Array) -> Array:
        x = jnp.concatenate(_frames_met(x, taps, frames, strides[0], padding[0]), -1)
        side_by_side = rearrange(kernel, "t h w c d -> h w (t c) d")
        return convolve_by_xla(x, side_by_side, strides[1:], padding[1:])

    y = run(x, kernel)
    return y.reshape(-1, frames, *y.shape[1:])


def _over_time(run: Callable[..., Array], x: Array, kernel: Array, strides: tuple[int, ...], padding: Pairs) -> Array:
    """A convolution over (t, h, w) as a sum of convolutions over (h, w), one for each tap in time."""
    frames = _outputs(x.shape[1:], kernel.shape, strides, padding)[0]
    met = _frames_met(x, len(kernel), frames, strides[0], padding[0])
    total = functools.reduce(jnp.add, [run(part, tap, strides[1:], padding[1:]) for part, tap in zip(met, kernel)])
    return total.reshape(-1, frames, *total.shape[1:])


def _frames_met(x: Array, taps: int, frames: int, stride: int, padding: tuple[int, int]) -> list[Array]:
    """What each tap in time meets: one frame for each output's, [n frames, h, w, c]."""
    x = jnp.pad(x, ((0, 0), padding, (0, 0), (0, 0), (0, 0)))
    met = (lax.slice_in_dim(x, tap, tap + (frames - 1) * stride + 1, stride, axis=1) for tap in range(taps))
    return [part.reshape(-1, *part.shape[2:]) for part in met]


def _pixels_as_one(
    run: Callable[..., Array], x: Array, kernel: Array, strides: tuple[int, ...], padding: Pairs
) -> Array:
    """A convolution over time alone as one over two axes, time and all pixels."""
    y = run(x.reshape(*x.shape[:2], -1, x.shape[-1]), kernel[:, 0], (strides[0], 1), (padding[0], (0, 0)))
    return y.reshape(*y.shape[:2], *x.shape[2:4], -1)


def _outputs(spatial: Sequence[int], size: Sequence[int], strides: Sequence[int], padding: Pairs) -> tuple[int, ...]:
    return tuple((n + lo + hi - k) // s + 1 for n, k, s, (lo, hi) in zip(spatial, size, strides, padding))


def _columns(x: Array, kernel: Array, strides: tuple[int, ...], padding: Pairs) -> Array:
    """Every output's neighbourhood as one long vector, then one matrix product (im2col)."""
    shifted = jnp.concatenate(_shifted(x, kernel.shape, strides, padding), -1)
    cout = kernel.shape[-1]
    return (shifted.reshape(-1, shifted.shape[-1]) @ kernel.reshape(-1, cout)).reshape(*shifted.shape[:-1], cout)


def _shifted(x: Array, size: Sequence[int], strides: Sequence[int], padding: Pairs) -> list[Array]:
    """What each tap of a kernel over two axes meets: one map of the output's size a tap."""
    rows, cols = _outputs(x.shape[1:3], size, strides, padding)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    return [
        x[:, i : i + (rows - 1) * strides[0] + 1 : strides[0], j : j + (cols - 1) * strides[1] + 1 : strides[1]]
        for i, j in itertools.product(*map(range, size[:2]))
    ]


def depthwise(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "k l 1 c"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> Float[Array, "n i j c"]:
    """Every channel with its own filter, as a sum of shifted maps: XLA fuses it. Its grouped convolution takes 5 to 40
    times as long on two AVX2 cores (28x28x240 with 5x5: 127 ms, this 5)."""
    taps = kernel.reshape(-1, x.shape[-1])
    return sum(part * tap for part, tap in zip(_shifted(x, kernel.shape, strides, tuple(padding)), taps))


CONVOLUTIONS: dict[str, Callable] = {
    "plain": convolve_by_xla,
    "folded": folded,
    "planes": planes,
    "stacked": stacked,
}
FASTEST = {"cpu": "folded", "gpu": "stacked", "tpu": "planes"}


def convolve_transposed(
    x: Float[Array, "*b c"],
    kernel: Float[Array, "*k c d"],
    strides: Sequence[int],
    mode: str = "zeros",
    implementation: str | None = None,
) -> Float[Array, "*e d"]:
    """Enlarges each of the last `len(k)` spatial axes of `x` by its stride, 1 (any kernel) or 2 (kernel 4).

    The input is padded by k - s, the odd one in front, `strides - 1` zeros are put between its elements, and the kernel
    slides over that: torch's ConvTranspose with padding k - 1 after the same padding, its kernel flipped. With "edge"
    padding this is LVDM's upsampling (He et al. 2022).
    """
    size, n = kernel.shape[:-2], len(strides)
    if any(s != 1 and (s, k) != (2, 4) for s, k in zip(strides, size)):
        raise ValueError(
            f"transposed convolution with kernel {size}, strides {tuple(strides)}: stride 2 goes with kernel 4"
        )
    batch = x.shape[: x.ndim - n - 1]
    x = x.reshape(-1, *x.shape[x.ndim - n - 1 :])
    pads = [((k - s + 1) // 2, (k - s) // 2) for k, s in zip(size, strides)]
    x = repeat_borders(x, pads) if mode == "edge" else jnp.pad(x, ((0, 0), *pads, (0, 0)))
    phases = []  # output o = s m + r meets only the taps -r mod s, and these on inputs from m + (r > 0) on
    for phase in itertools.product(*(range(s) for s in strides)):
        taps = kernel[tuple(slice(-r % s, None, s) for r, s in zip(phase, strides))]
        window = tuple(slice(int(r > 0), None if r or s == 1 else -1) for r, s in zip(phase, strides))
        y = convolve(x[(slice(None), *window)], taps, padding=((0, 0),) * n, implementation=implementation)
        phases.append(y)
    y = jnp.stack(phases, -2).reshape(*phases[0].shape[:-1], *strides, -1)
    y = y.transpose(0, *(i for a in range(1, n + 1) for i in (a, a + n)), 2 * n + 1)
    return y.reshape(*batch, *(m * s for m, s in zip(phases[0].shape[1:], strides)), -1)
