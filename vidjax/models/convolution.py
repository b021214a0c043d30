"""Convolutions over the trailing spatial axes of a video."""

from flax import nnx


class Conv(nnx.Conv):
    """A convolution whose padding keeps the size at stride 1."""

    def __init__(self, cin, cout, kernel=(3, 3), strides=1, padding=None, mode="zeros", zero=False, *, rngs):
        super().__init__(
            cin,
            cout,
            kernel,
            strides=strides,
            padding=padding or [(k // 2, k // 2) for k in kernel],
            kernel_init=nnx.initializers.zeros if zero else nnx.initializers.lecun_normal(),
            rngs=rngs,
        )
