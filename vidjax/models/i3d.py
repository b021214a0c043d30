"""I3D, Inception-v1 inflated to three dimensions (Carreira & Zisserman 2017): clips to logits, which FVD takes."""

from collections.abc import Iterator

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vidjax.errors import InputError
from vidjax.models.inception import Unit
from vidjax.models.layers import linear

LAYERS: dict[str, tuple] = {  # units: (in, out, kernel, stride); poolings: (window, stride); the rest: in, and widths
    "Conv3d_1a_7x7": (3, 64, (7, 7, 7), (2, 2, 2)),
    "MaxPool3d_2a_3x3": ((1, 3, 3), (1, 2, 2)),
    "Conv3d_2b_1x1": (64, 64, (1, 1, 1), (1, 1, 1)),
    "Conv3d_2c_3x3": (64, 192, (3, 3, 3), (1, 1, 1)),
    "MaxPool3d_3a_3x3": ((1, 3, 3), (1, 2, 2)),
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "MaxPool3d_4a_3x3": ((3, 3, 3), (2, 2, 2)),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "MaxPool3d_5a_2x2": ((2, 2, 2), (2, 2, 2)),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}


class Mixed(nnx.Module):
    """Four branches: a point, two times a point and a cube, a pooling and a point."""

    def __init__(self, cin: int, *widths: int, rngs: nnx.Rngs):
        point, cube = (1, 1, 1), (3, 3, 3)
        self.b0 = Unit(cin, widths[0], point, rngs=rngs)
        self.b1a, self.b1b = Unit(cin, widths[1], point, rngs=rngs), Unit(widths[1], widths[2], cube, rngs=rngs)
        self.b2a, self.b2b = Unit(cin, widths[3], point, rngs=rngs), Unit(widths[3], widths[4], cube, rngs=rngs)
        self.b3b = Unit(cin, widths[5], point, rngs=rngs)

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w d"]:
        pooled = nnx.max_pool(x, (3, 3, 3), padding="SAME")
        return jnp.concatenate([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], -1)


class I3D(nnx.Module):
    """Clips in [-1, 1] to logits; parameter paths follow pytorch-i3d's files (weights/i3d.py).

    FVD is of 224 x 224 pixels; there the published pooling covers the whole last map, as the one here always does.
    """

    SIZE = 224
    FRAMES = 9  # at least: the last pooling is over two of the eighth part

    def __init__(self, *, rngs: nnx.Rngs):
        for name, shape in LAYERS.items():
            if name.startswith("Conv"):
                setattr(self, name, Unit(*shape, rngs=rngs))
            elif name.startswith("Mixed"):
                setattr(self, name, Mixed(*shape, rngs=rngs))
        self.logits = linear(1024, 400, rngs=rngs)

    def stages(self, x: Float[Array, "b t h w 3"]) -> Iterator[tuple[str, Array]]:
        """The output of every layer under its published name, in order. Raises InputError for too few frames."""
        if x.shape[1] < self.FRAMES:
            raise InputError(f"I3D wants clips of {self.FRAMES} frames or more, these have {x.shape[1]}")
        for name, shape in LAYERS.items():
            pool = name.startswith("MaxPool")
            x = nnx.max_pool(x, *shape, padding="SAME") if pool else getattr(self, name)(x)
            yield name, x
        yield "AvgPool", (x := nnx.avg_pool(x, (2, *x.shape[2:4]))[:, :, 0, 0])
        yield "logits", self.logits(x)

    def __call__(self, x: Float[Array, "b t h w 3"]) -> Float[Array, "b 400"]:
        """Logits of the 400 classes of Kinetics, their mean over time."""
        *_, (_, logits) = self.stages(x)
        return logits.mean(1)
