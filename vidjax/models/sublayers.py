"""What the blocks of a transformer are made of: one table from a sublayer's kind to what makes it."""

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from flax import nnx

from vidjax.errors import InputError
from vidjax.models.attention import COUNTED, KEY_FRAMES, Attention, FeedForward, FrameKeys
from vidjax.models.layers import GroupNorm, Sequential
from vidjax.models.temporal import Blend, FramePositions, RelativeAttention

Sublayers = Iterable[tuple[str, str]]  # (name, kind) in order


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a sublayer stands: the numbers that it may be made from.

    `zero`: it starts as the identity. `positions`: attention over time adds sinusoids of the frame after its norm,
    `relative`: it has relative positions in its keys and values.
    `plain`: no transformer around it normalises the features, so attention does, by GroupNorm. `picture_tokens`: how
    many of the tokens are a picture's, the last ones.
    """

    dim: int
    heads: int
    rngs: nnx.Rngs
    tokens_dim: int | None = None
    groups: int = 32
    reach: int = 16
    transposed: bool = False
    plain: bool = False
    zero: bool = False
    positions: bool = False
    relative: bool = False
    picture_tokens: int = 0


def attend(
    site: Site,
    keys: str | Callable[[int], FrameKeys],
    *,
    zero: bool = False,
    positions: bool = False,
    relative: bool = False,
) -> Attention:
    """Makes the attention to `keys` of this site (see `Attention`): to a name there, or to the frames that a function
    of the number of frames returns. `relative`: with relative positions; `zero`: it starts as the identity."""
    more: dict[str, Any] = dict(positions=positions, zero=zero or site.zero or site.plain)
    if relative:
        more["relative"] = RelativeAttention(site.dim // site.heads, site.reach, site.transposed, rngs=site.rngs)
    if site.plain:
        over = "pixel" if keys == "time" else "frame"
        more |= dict(norm=GroupNorm(site.dim, site.groups, over=over, rngs=site.rngs), bias=True)
    if keys == "tokens":
        more |= dict(kv_dim=site.tokens_dim, picture_tokens=site.picture_tokens)
    return Attention(site.dim, site.heads, keys, rngs=site.rngs, **more)


def blend(site: Site) -> Blend:
    """Makes Stable Video Diffusion's temporal block, mixed with what comes into it."""
    sublayers = [(name, kind) for name, kind in BLENDED if kind != "tokens" or site.tokens_dim]
    return Blend(block(sublayers, dataclasses.replace(site, zero=True, positions=False, relative=False)))


BLENDED = (("positions", "positions"), ("ff_in", "ff"), ("attn1", "time"), ("attn2", "tokens"), ("ff", "ff"))

# From a sublayer's kind to `make(site) -> layer`, a layer being `layer(x [b, t, n, c], ctx) -> x`. These are the kinds
# that a config's block may name; a kind of one's own is a further entry, see docs/extending.md. Every layer over time
# that joins the block of an image model starts as the identity.
SUBLAYERS: dict[str, Callable[..., Callable]] = {
    "frame": partial(attend, keys="frame"),
    "tokens": partial(attend, keys="tokens"),
    "time": lambda site: attend(site, "time", positions=site.positions, relative=site.relative),
    "zero_time": lambda site: attend(site, "time", zero=True),
    "relative_time": lambda site: attend(site, "time", zero=True, relative=True),
    **{name: partial(attend, keys=name) for name in KEY_FRAMES},
    "ff": lambda site: FeedForward(site.dim, site.zero, rngs=site.rngs),
    "positions": lambda site: FramePositions(site.dim, site.zero, rngs=site.rngs),
    "blend": blend,
}


def check_kind(name: str, kind: str) -> None:
    """Raises InputError unless `kind` is in `SUBLAYERS`; after a colon some take a number, 1 or more."""
    base, colon, number = kind.partition(":")
    counts = base in COUNTED and number.isdecimal() and int(number) >= 1
    if base not in SUBLAYERS or (colon and not counts):
        known = ", ".join(each + (f", {each}:N" if each in COUNTED else "") for each in SUBLAYERS)
        raise InputError(f"sublayer {name!r} of the block has kind {kind!r}, which is not known; choose one of {known}")


def block(sublayers: Sublayers, site: Site) -> Sequential:
    """Makes the named sublayers that stand at one site, in this order. Raises InputError for an unknown kind."""
    return Sequential(**{name: _sublayer(name, kind, site) for name, kind in sublayers})


def _sublayer(name: str, kind: str, site: Site) -> Callable:
    check_kind(name, kind)
    base, colon, _ = kind.partition(":")
    return SUBLAYERS[base](site, **({"keys": kind} if colon else {}))
