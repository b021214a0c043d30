"""EfficientNet-Lite0 (Tan & Le 2019; Google's Lite: ReLU6, no squeeze-and-excitation): frames to pooled features."""

from functools import partial

import jax
from flax import nnx
from jaxtyping import Array, Float

from vidjax.models.inception import Unit

BLOCKS = (  # how many, kernel, stride of the first, expansion, channels: their table 1, which Lite0 does not scale
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
Relu6 = partial(Unit, act=jax.nn.relu6)
Linear = partial(Unit, act=lambda x: x)


class Block(nnx.Module):
    """An inverted residual (Sandler et al. 2018): wider by a point, each channel over space, narrower by a point."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int, expansion: int, *, rngs: nnx.Rngs):
        width, self.adds = cin * expansion, stride == 1 and cin == cout
        self.expand = nnx.data(Relu6(cin, width, (1, 1), rngs=rngs) if expansion > 1 else None)
        self.depthwise = Relu6(width, width, (kernel, kernel), (stride, stride), alone=True, rngs=rngs)
        self.project = Linear(width, cout, (1, 1), rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.adds else y


class EfficientNetLite0(nnx.Module):
    """Frames, (pixel - 127) / 128, to 1,280 features before the classifier; weights/efficientnet.py reads its file.

    It was trained on ImageNet at 224 x 224.
    """

    SIZE = 224

    def __init__(self, *, rngs: nnx.Rngs):
        self.stem = Relu6(3, 32, (3, 3), (2, 2), rngs=rngs)
        blocks, cin = [], 32
        for repeats, kernel, stride, expansion, cout in BLOCKS:
            for i in range(repeats):
                blocks.append(Block(cin, cout, kernel, 1 if i else stride, expansion, rngs=rngs))
                cin = cout
        self.blocks = nnx.List(blocks)
        self.head = Relu6(cin, 1280, (1, 1), rngs=rngs)

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b 1280"]:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x).mean((1, 2))
