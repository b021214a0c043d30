"""InceptionV3 as FID has it (Szegedy et al. 2015, the graph of 2015-12-05): frames to pooled features and logits."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from vidjax.models.initial import truncated_by_fan
from vidjax.models.kernels.convolution import convolve, depthwise
from vidjax.models.layers import linear

EPS = 1e-3  # of batch norm, in all feature networks


class BatchNorm(nnx.Module):
    """Stored statistics, and what they are scaled and shifted by."""

    def __init__(self, dim: int):
        self.scale, self.bias = nnx.Param(jnp.ones(dim)), nnx.Param(jnp.zeros(dim))
        self.running_mean, self.running_var = nnx.Param(jnp.zeros(dim)), nnx.Param(jnp.ones(dim))


class Unit(nnx.Module):
    """A convolution over the trailing axes, batch norm by stored statistics, `act`. padding: "SAME" (the odd pixel
    behind, as in TensorFlow) or "VALID". alone: every channel has a filter of its own."""

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: tuple[int, ...],
        strides: tuple[int, ...] | None = None,
        padding: str = "SAME",
        act: Callable[[Array], Array] = jax.nn.relu,
        alone: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        options = dict(use_bias=False, kernel_init=truncated_by_fan(), rngs=rngs)
        self.conv = nnx.Conv(cin, cout, kernel, feature_group_count=cin if alone else 1, **options)  # holds the kernel
        self.bn = BatchNorm(cout)
        self.strides, self.padding = strides or (1,) * len(kernel), padding
        self.act, self.alone = act, alone

    def __call__(self, x: Float[Array, "b *s c"]) -> Float[Array, "b *e d"]:
        kernel, bn = self.conv.kernel[...], self.bn
        scale = bn.scale[...] * lax.rsqrt(bn.running_var[...] + EPS)
        pads = lax.padtype_to_pads(x.shape[1:-1], kernel.shape[:-2], self.strides, self.padding)
        y = (depthwise if self.alone else convolve)(x, kernel * scale, self.strides, pads)
        return self.act(y + (bn.bias[...] - bn.running_mean[...] * scale))


@dataclasses.dataclass(frozen=True)
class Step:
    """A unit of a branch: its name, channels, kernel and stride; a stride of 2 goes without padding."""

    name: str
    cout: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


Branch = tuple[tuple[Step, ...], ...]  # steps one after the other; those in one tuple side by side
AVERAGE = partial(nnx.avg_pool, window_shape=(3, 3), padding="SAME", count_include_pad=False)
HIGHEST = partial(nnx.max_pool, window_shape=(3, 3), padding="SAME")
REDUCE = partial(nnx.max_pool, window_shape=(3, 3), strides=(2, 2))
POOLS = {"average": AVERAGE, "highest": HIGHEST, "reduce": REDUCE}


def chain(name: str, *shapes: tuple, first: int = 1) -> Branch:
    """Steps `name_1`, `name_2`, ... of these (channels, kernel, stride)."""
    return tuple((Step(f"{name}_{i}", *shape),) for i, shape in enumerate(shapes, first))


def fork(name: str) -> tuple[Step, Step]:
    """Two steps side by side, over rows and over columns."""
    return Step(f"{name}a", 384, (1, 3)), Step(f"{name}b", 384, (3, 1))


def block_a(pooled: int) -> tuple[Branch, ...]:
    """Branches of the blocks at 35 x 35, `pooled` channels of them after the pooling."""
    return (
        ((Step("branch1x1", 64),),),
        chain("branch5x5", (48,), (64, (5, 5))),
        chain("branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3))),
        ((Step("branch_pool", pooled),),),
    )


def block_c(c: int) -> tuple[Branch, ...]:
    """Branches of the blocks at 17 x 17, with `c` channels between factored convolutions."""
    return (
        ((Step("branch1x1", 192),),),
        chain("branch7x7", (c,), (c, (1, 7)), (192, (7, 1))),
        chain("branch7x7dbl", (c,), (c, (7, 1)), (c, (1, 7)), (c, (7, 1)), (192, (1, 7))),
        ((Step("branch_pool", 192),),),
    )


BLOCK_B: tuple[Branch, ...] = (
    ((Step("branch3x3", 384, (3, 3), 2),),),
    chain("branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3), 2)),
    (),
)
BLOCK_D: tuple[Branch, ...] = (
    chain("branch3x3", (192,), (320, (3, 3), 2)),
    chain("branch7x7x3", (192,), (192, (1, 7)), (192, (7, 1)), (192, (3, 3), 2)),
    (),
)
BLOCK_E: tuple[Branch, ...] = (
    ((Step("branch1x1", 320),),),
    (*chain("branch3x3", (384,)), fork("branch3x3_2")),
    (*chain("branch3x3dbl", (448,), (384, (3, 3))), fork("branch3x3dbl_3")),
    ((Step("branch_pool", 192),),),
)
# Name, input channels, branches, what the last branch starts with. The last block takes the highest value where others
# of its kind take the average: so did the graph that FID was published with.
BLOCKS = (
    ("Mixed_5b", 192, block_a(32), "average"),
    ("Mixed_5c", 256, block_a(64), "average"),
    ("Mixed_5d", 288, block_a(64), "average"),
    ("Mixed_6a", 288, BLOCK_B, "reduce"),
    ("Mixed_6b", 768, block_c(128), "average"),
    ("Mixed_6c", 768, block_c(160), "average"),
    ("Mixed_6d", 768, block_c(160), "average"),
    ("Mixed_6e", 768, block_c(192), "average"),
    ("Mixed_7a", 768, BLOCK_D, "reduce"),
    ("Mixed_7b", 1280, BLOCK_E, "average"),
    ("Mixed_7c", 2048, BLOCK_E, "highest"),
)


class Block(nnx.Module):
    """Branches side by side; the last one starts with a pooling."""

    def __init__(self, cin: int, branches: tuple[Branch, ...], pool: str, *, rngs: nnx.Rngs):
        self.branches, self.pool = branches, pool
        for branch in branches:
            width = cin
            for steps in branch:
                for s in steps:
                    padding = "SAME" if s.stride == 1 else "VALID"
                    unit = Unit(width, s.cout, s.kernel, (s.stride, s.stride), padding, rngs=rngs)
                    setattr(self, s.name, unit)
                width = sum(s.cout for s in steps)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        outputs = []
        for i, branch in enumerate(self.branches):
            y = POOLS[self.pool](x) if i == len(self.branches) - 1 else x
            for steps in branch:
                y = jnp.concatenate([getattr(self, s.name)(y) for s in steps], -1)
            outputs.append(y)
        return jnp.concatenate(outputs, -1)


class InceptionV3(nnx.Module):
    """Frames in [-1, 1] to features and logits; parameter paths follow pytorch-fid's file (weights/inception.py).

    FID is of 299 x 299 frames. Logits go without their bias, as in the published Inception score.
    """

    SIZE = 299

    def __init__(self, *, rngs: nnx.Rngs):
        self.Conv2d_1a_3x3 = Unit(3, 32, (3, 3), (2, 2), "VALID", rngs=rngs)
        self.Conv2d_2a_3x3 = Unit(32, 32, (3, 3), padding="VALID", rngs=rngs)
        self.Conv2d_2b_3x3 = Unit(32, 64, (3, 3), rngs=rngs)
        self.Conv2d_3b_1x1 = Unit(64, 80, (1, 1), rngs=rngs)
        self.Conv2d_4a_3x3 = Unit(80, 192, (3, 3), padding="VALID", rngs=rngs)
        for name, cin, branches, pool in BLOCKS:
            setattr(self, name, Block(cin, branches, pool, rngs=rngs))
        self.fc = linear(2048, 1008, bias=False, rngs=rngs)

    def stages(self, x: Float[Array, "b h w 3"]) -> Iterator[tuple[str, Array]]:
        """The output of every layer under its published name, in order."""
        for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"):
            yield name, (x := getattr(self, name)(x))
        yield "MaxPool_1", (x := REDUCE(x))
        for name in ("Conv2d_3b_1x1", "Conv2d_4a_3x3"):
            yield name, (x := getattr(self, name)(x))
        yield "MaxPool_2", (x := REDUCE(x))
        for name, *_ in BLOCKS:
            yield name, (x := getattr(self, name)(x))
        yield "AvgPool", (x := x.mean((1, 2)))
        yield "fc", self.fc(x)

    def __call__(self, x: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b 2048"], Float[Array, "b 1008"]]:
        """(features of the last pooling, logits of 1,008 classes without bias)."""
        *_, (_, pooled), (_, logits) = self.stages(x)
        return pooled, logits
