"""Patch discriminators: a map of scores, each of how real one patch of a frame, or of a clip, looks."""

import dataclasses
from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import jax
from flax import nnx
from jaxtyping import Array, Float

from vidjax.errors import InputError, check_range
from vidjax.models.convolution import Conv
from vidjax.models.layers import Context, GroupNorm, Over

KINDS: tuple[Over, ...] = ("frame", "clip")  # what a patch is of, and what its norms are over
LEAK = 0.2


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """pix2pix's PatchGAN (Isola et al. 2017, appendix 6.1.2) with the layout of VQGAN's (Esser et al. 2021).

    layers: convolutions of stride 2; with 3 a patch is 70 x 70 pixels. norm: theirs is BatchNorm, whose running state
    no module here has, so "group" (within an example) or "none".
    """

    channels: int = 64
    layers: int = 3
    norm: Literal["group", "none"] = "group"
    groups: int = 32

    def __post_init__(self):
        if self.norm not in ("group", "none"):
            raise InputError(f"discriminator norm={self.norm!r}: take 'group' or 'none'")
        check_range("discriminator.", 1, channels=self.channels, groups=self.groups)
        check_range("discriminator.", 0, 16, layers=self.layers)
        if self.norm == "group" and self.channels % self.groups:
            raise InputError(f"discriminator channels={self.channels} do not divide into {self.groups} groups")

    @property
    def least(self) -> int:
        """Pixels a side from which there is a score."""
        return 3 * 2**self.layers  # the two convolutions of stride 1 take a row each


class PatchDiscriminator(nnx.Module):
    """Scores [b, t, i, j, 1] of frames, by (4, 4) convolutions; or of clips, by (4, 4, 4) ones that halve the time too.

    Over time the padding is 2, not 1: so no clip is too short.
    """

    def __init__(self, config: DiscriminatorConfig, over: Over = "frame", channels: int = 3, *, rngs: nnx.Rngs):
        self.config = config
        axes = 2 if over == "frame" else 3
        padding = [(1, 1)] * 2 if over == "frame" else [(2, 2), (1, 1), (1, 1)]
        conv = lambda cin, cout, stride: Conv(cin, cout, (4,) * axes, stride, padding, rngs=rngs)
        widths = [config.channels * min(2**n, 8) for n in range(config.layers + 1)]
        self.conv_in = conv(channels, widths[0], 2)
        self.convs, self.norms = nnx.List([]), nnx.List([])
        for n, (cin, cout) in enumerate(pairwise(widths), 1):
            self.convs.append(conv(cin, cout, 2 if n < config.layers else 1))
            if config.norm == "group":
                self.norms.append(GroupNorm(cout, config.groups, over=over, rngs=rngs))
        self.conv_out = conv(widths[-1], 1, 1)

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b s i j 1"]:
        """Raises InputError for frames without a whole patch."""
        if min(x.shape[2:4]) < self.config.least:
            raise InputError(
                f"frames of {x.shape[2]}x{x.shape[3]} are too small for a discriminator of {self.config.layers} layers:"
                f" take at least {self.config.least} pixels, or fewer layers"
            )
        ctx = Context(emb=x[:, :, 0, 0, :0])
        h = jax.nn.leaky_relu(self.conv_in(x), LEAK)
        for n, conv in enumerate(self.convs):
            h = conv(h)
            h = jax.nn.leaky_relu(self.norms[n](h, ctx) if self.norms else h, LEAK)
        return self.conv_out(h)


class Discriminators(nnx.Module):
    """One or both of `KINDS`; `discriminators(x)` is a list of their scores. Raises InputError for others."""

    def __init__(self, configs: Mapping[str, DiscriminatorConfig], channels: int = 3, *, rngs: nnx.Rngs):
        if not configs or not set(configs) <= set(KINDS):
            raise InputError(f"discriminators of {sorted(configs)} do not exist; take some of {', '.join(KINDS)}")
        self.kinds = tuple(kind for kind in KINDS if kind in configs)
        for kind in self.kinds:
            setattr(self, kind, PatchDiscriminator(configs[kind], kind, channels, rngs=rngs))

    def __call__(self, x: Float[Array, "b t h w c"]) -> list[Array]:
        return [getattr(self, kind)(x) for kind in self.kinds]
