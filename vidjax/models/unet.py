"""One U-Net for images and videos: a schedule of stages, each a few named layers."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Num

from vidjax.errors import InputError, check_range
from vidjax.models.attention import OnTokens, Transformer
from vidjax.models.convolution import Conv
from vidjax.models.free_u import amplify_half, scale_low_frequencies
from vidjax.models.kernels.attention import save_flash
from vidjax.models.layers import (
    MLP,
    Context,
    Downsample,
    GroupNorm,
    Over,
    Positions,
    ResBlock,
    Sequential,
    Upsample,
    look_up,
    silu_norm,
    sinusoid,
)
from vidjax.models.patch_pca import from_patches, to_patches
from vidjax.models.sublayers import Site, block, check_kind
from vidjax.models.temporal import Blend, TemporalConvs

Block = tuple[tuple[str, str], ...]

SPATIAL = (("attn1", "frame"), ("attn2", "tokens"), ("ff", "ff"))
BLOCKS: dict[str, Block] = {
    "ddpm": (("attn1", "frame"),),
    "spatial": SPATIAL,  # Stable Diffusion
    "zero_shot": (("attn1", "first"), ("attn2", "tokens"), ("ff", "ff")),  # Text2Video-Zero
    "tuned": (("attn1", "first_and_previous"), ("attn2", "tokens"), ("ff", "ff"), ("attn_temp", "zero_time")),
    "vdm": (("attn1", "frame"), ("attn2", "tokens"), ("attn_temp", "relative_time")),
    "lvdm": (("attn1", "frame"), ("attn_temp", "relative_time")),
    "lvdm_text": (
        ("attn1", "frame"),
        ("attn1_temp", "relative_time"),
        ("attn2", "tokens"),
        ("attn2_temp", "relative_time"),
        ("ff", "ff"),
    ),
    "blend": (*SPATIAL, ("temporal", "blend")),  # Stable Video Diffusion
}
OVER_TIME = (("attn1", "time"), ("attn2", "time"), ("ff", "ff"))  # ModelScope, AnimateDiff
ONCE_OVER_TIME = (("attn1", "time"), ("ff", "ff"))  # SparseCtrl


@dataclasses.dataclass(frozen=True)
class Temporal:
    """A transformer over time of its own after the spatial one: ModelScope's, VideoCrafter's, AnimateDiff's motion
    module."""

    heads: Sequence[int]  # a level
    levels: Sequence[bool]
    mid: bool = True
    positions: bool = False  # sinusoidal, added after each norm (AnimateDiff)
    relative: bool = False  # relative positions in its keys and values, here and in the stem (VideoCrafter 1)
    norm_over: Over = "clip"  # AnimateDiff's own code: "frame"; diffusers' port of it: "clip"
    longest: int | None = None  # frames that its positions were trained on; None: any number
    attentions: int = 2  # SparseCtrl: 1


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """What a U-Net is made of; the defaults are Stable Diffusion 1.

    `heads` and `attention_levels` may be one value for all levels, `block` a name in `BLOCKS` or a tuple of
    (name, kind) sublayers, `after_attention` a dict. Raises InputError where the numbers do not fit each other.
    """

    # Size.
    in_channels: int = 4
    out_channels: int = 4
    patch: int = 1  # pixels (height and width) that become one position's features (Hoogeboom et al. 2023)
    border: int = 1  # rows of zeros above and below what a level halves; 2: I2VGen-XL's second stage
    channels: Sequence[int] = (320, 640, 1280, 1280)
    blocks_per_level: int = 2
    # Attention: sublayers in order, at which levels, with how many heads.
    block: str | Sequence[Sequence[str]] = "spatial"
    attention: str = "transformer"  # with projections around the block; "plain": without (DDPM, VDM, LVDM)
    attention_levels: bool | Sequence[bool] = (True, True, True, False)
    heads: int | Sequence[int] = 8
    # Conditions beside the time.
    tokens_dim: int | None = 768  # None: no cross-attention, the sublayers of kind "tokens" are left out
    picture_tokens: int = 0  # so many of the tokens, the last, are a picture's and attended to apart (VideoCrafter)
    vector_dim: int | None = None  # features of a class, fps...: an MLP of them joins the time embedding
    vector_levels: int | None = None  # in place of it a table of so many numbers, 0 and up (LVDM's known frames)
    positions: bool = False  # an MLP of the (t, h, w) coordinates after conv_in
    # Norms and residual blocks.
    groups: int = 32
    norm_over: Over = "frame"  # GroupNorm of ResBlocks and of the output
    attention_norm_over: Over = "frame"  # GroupNorm in front of a transformer ("clip": LVDM's text model)
    scale_shift: bool = False  # the time embedding scales and shifts the second norm
    # Time.
    after_resnet: str = "none"  # "convs": ModelScope; "blend": Stable Video Diffusion
    after_attention: Temporal | Mapping[str, Any] | None = None
    stem_heads: Sequence[int] | None = None  # (heads, head_dim) of a temporal transformer before the first stage
    reach: int = 16  # of relative positions
    transposed: bool = False  # the slip of LVDM's released unconditional checkpoints, see RelativeAttention
    free_u: Sequence[Sequence[float]] = ()  # factors (backbone, skip) of the first stages on the way up, see `free_u`
    uneven_eps: bool = False  # norms of ResBlocks have eps 1e-6 going up, and going down at levels that attend (SVD)

    def __post_init__(self):
        for name, value in resolve(self).items():
            object.__setattr__(self, name, value)
        check_config(self)


def resolve(config: UNetConfig) -> dict:
    """The short forms a config file may use, written out."""
    levels = len(config.channels)
    per_level = lambda a: tuple(a) if isinstance(a, Sequence) else (a,) * levels
    block = config.block
    if isinstance(block, str):
        if block not in BLOCKS:
            raise InputError(f"block {block!r} is not known; choose one of {', '.join(BLOCKS)} or list the sublayers")
        block = BLOCKS[block]
    block = tuple((name, kind) for name, kind in block)
    if config.tokens_dim is None:
        block = tuple((name, kind) for name, kind in block if kind != "tokens")
    after = config.after_attention
    if isinstance(after, Mapping):
        after = Temporal(**after)
    if after is not None:
        after = dataclasses.replace(after, heads=tuple(after.heads), levels=tuple(after.levels))
    return dict(
        channels=tuple(config.channels),
        attention_levels=per_level(config.attention_levels),
        heads=per_level(config.heads),
        block=block,
        after_attention=after,
        stem_heads=None if config.stem_heads is None else tuple(config.stem_heads),
        free_u=tuple(tuple(pair) for pair in config.free_u),
    )


def check_config(config: UNetConfig) -> None:
    """Raises InputError where the numbers do not fit each other, or a name is not known."""
    levels = len(config.channels)
    if not levels:
        raise InputError("channels is empty: give the features of each level, such as (64, 128)")
    for name in ("channels", "heads", "groups", "patch", "in_channels", "out_channels", "reach"):
        check_range("", 1, **{name: getattr(config, name)})
    check_range("", 0, 64, blocks_per_level=config.blocks_per_level)
    check_range("", 0, 2**16, picture_tokens=config.picture_tokens)
    check_range("", 1, 2, border=config.border)
    stages = levels * (config.blocks_per_level + 1)
    if any(len(pair) != 2 for pair in config.free_u) or len(config.free_u) > stages:
        raise InputError(f"free_u={config.free_u} must be pairs (backbone, skip), at most the {stages} of the way up")
    for name in ("attention_levels", "heads"):
        if len(getattr(config, name)) != levels:
            raise InputError(f"{name}={getattr(config, name)} must have one entry for each of the {levels} channels")
    for dim, heads in zip(config.channels, config.heads):
        if dim % config.groups:
            raise InputError(f"channels={dim} cannot be split into groups={config.groups}; change either")
        if dim % heads:
            raise InputError(f"channels={dim} cannot be split into heads={heads}; change either")
    names = [name for name, _ in config.block]
    if len(set(names)) < len(names):
        raise InputError(f"block names a sublayer twice: {names}")
    for name, kind in config.block:
        check_kind(name, kind)
    if config.vector_levels is not None:
        check_range("", 1, vector_levels=config.vector_levels)
        if config.vector_dim:
            raise InputError(f"vector_levels={config.vector_levels} stands in place of vector_dim; leave either out")
    for name, known in dict(attention=("transformer", "plain"), after_resnet=("none", "convs", "blend")).items():
        if getattr(config, name) not in known:
            raise InputError(f"{name}={getattr(config, name)!r} is not known; choose one of {', '.join(known)}")


# What stands in a slot.


def site(dim: int, heads: int, config: UNetConfig, rngs: nnx.Rngs, positions: bool = False) -> Site:
    """Returns the site of a block's sublayers in this U-Net."""
    return Site(
        dim,
        heads,
        rngs,
        tokens_dim=config.tokens_dim,
        groups=config.groups,
        reach=config.reach,
        transposed=config.transposed,
        plain=config.attention == "plain",
        positions=positions,
        relative=config.after_attention is not None and config.after_attention.relative,
        picture_tokens=config.picture_tokens,
    )


def attention(dim: int, heads: int, config: UNetConfig, *, rngs: nnx.Rngs) -> Transformer | OnTokens:
    """Makes the config's block, within a transformer or by itself."""
    inside = block(config.block, site(dim, heads, config, rngs))
    if config.attention == "plain":
        return OnTokens(inside)
    return Transformer(dim, [inside], None, config.attention_norm_over, config.groups, rngs=rngs)


def temporal(
    dim, heads, head_dim, config: UNetConfig, positions=False, norm_over: Over = "clip", sublayers=OVER_TIME, *, rngs
):
    """A transformer over time of its own; its inner width need not be that of the video."""
    inner = heads * head_dim
    blocks = [block(sublayers, site(inner, heads, config, rngs, positions))]
    return Transformer(dim, blocks, inner, norm_over, config.groups, zero=True, rngs=rngs)


def stage(
    cin: int,
    cout: int,
    level: int,
    config: UNetConfig,
    attend: bool,
    over_time: bool,
    eps: float = 1e-5,
    *,
    rngs,
    **more,
) -> Sequential:
    """ResBlock and attention of one level, each followed by its temporal layer, and a sampler in `more`."""
    emb, groups = 4 * config.channels[0], config.groups
    common = dict(groups=groups, eps=eps, rngs=rngs)
    resnet = ResBlock(cin, cout, emb, norm_over=config.norm_over, scale_shift=config.scale_shift, **common)
    layers: dict[str, Callable] = {"resnet": resnet}
    if config.after_resnet == "convs":
        layers["temporal_resnet"] = TemporalConvs(cout, groups, rngs=rngs)
    elif config.after_resnet == "blend":
        layers["temporal_resnet"] = Blend(ResBlock(cout, cout, emb, (3, 1, 1), "clip", **common))
    if attend and config.block:
        layers["attention"] = attention(cout, config.heads[level], config, rngs=rngs)
    if over_time:
        after = config.after_attention
        heads, sublayers = after.heads[level], OVER_TIME if after.attentions == 2 else ONCE_OVER_TIME
        layers["temporal_attention"] = temporal(
            cout, heads, cout // heads, config, after.positions, after.norm_over, sublayers, rngs=rngs
        )
    return Sequential(**layers, **more)


def save_matmuls(prim, *_, **params) -> bool:
    """Keep what convolutions and weight matrices put out; norms, activations and attention are computed again."""
    if prim.name == "dot_general":
        return not params["dimension_numbers"][1][0]
    return prim.name == "conv_general_dilated"


REMAT: dict[str, Callable | None] = {
    "none": None,  # everything is kept for the backward pass
    "dots": save_matmuls,
    "attention": save_flash,  # and on TPUs and GPUs what flash attention puts out
    "full": jax.checkpoint_policies.nothing_saveable,  # only what goes into a stage is kept
}


def run(layers: Callable, ctx: Context, remat: str, *x: Array) -> Array:
    """Applies layers to features side by side, as the policy of `REMAT` says."""
    call = lambda x, ctx: layers(jnp.concatenate(x, -1), ctx)
    call = call if remat == "none" else jax.checkpoint(call, policy=REMAT[remat])
    return call(x, ctx)


def skip_channels(config: UNetConfig) -> list[int]:
    """Features of what a U-Net's first half keeps for the second, in order."""
    levels = [[c] * (config.blocks_per_level + 1) for c in config.channels]
    return [config.channels[0], *itertools.chain(*levels)][:-1]


class Encoder(nnx.Module):
    """The half of a U-Net on the way down, its middle included, which ControlNets have as well; paths are `UNet`'s."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        channels, n = config.channels, config.blocks_per_level
        emb, last, after = 4 * channels[0], len(channels) - 1, config.after_attention
        self.config = config
        self.time_embedding = MLP(channels[0], emb, emb, rngs=rngs)
        add = MLP(config.vector_dim, emb, emb, rngs=rngs) if config.vector_dim else None
        self.add_embedding = nnx.data(nnx.Embed(config.vector_levels, emb, rngs=rngs) if config.vector_levels else add)
        self.patch = (1, config.patch, config.patch)
        self.conv_in = Conv(config.in_channels * config.patch**2, channels[0], rngs=rngs)
        stem = {}
        if config.positions:
            stem["positions"] = Positions(channels[0], rngs=rngs)
        if config.stem_heads:
            stem["temporal_in"] = temporal(channels[0], *config.stem_heads, config, rngs=rngs)
        self.stem = Sequential(**stem)
        self.down, cin = nnx.List([]), channels[0]
        for level, cout in enumerate(channels):
            for _ in range(n):
                self.down.append(self.stage_at(level, cin, rngs=rngs))
                cin = cout
            if level < last:
                self.down.append(Sequential(downsample=Downsample(cin, config.border, rngs=rngs)))
        over_time = after is not None and after.mid
        self.mid = nnx.List(
            [
                stage(cin, cin, last, config, True, over_time, rngs=rngs),
                stage(cin, cin, last, config, False, False, rngs=rngs),
            ]
        )

    def stage_at(self, level: int, cin: int, up: bool = False, *, rngs: nnx.Rngs, **more) -> Sequential:
        """Makes a stage of that level."""
        config, after = self.config, self.config.after_attention
        over_time, attend = after is not None and after.levels[level], config.attention_levels[level]
        eps = 1e-6 if config.uneven_eps and (up or attend) else 1e-5
        return stage(cin, config.channels[level], level, config, attend, over_time, eps, rngs=rngs, **more)

    def encode(
        self,
        x: Float[Array, "b t h w c"],
        t: Num[Array, "b t"],
        tokens: Float[Array, "b m d"] | None,
        vector: Float[Array, "b v"] | None,
        token_mask: Bool[Array, "b m"] | None,
        images: int,
        remat: str,
        beside: ArrayLike = 0.0,
    ) -> tuple[list[Array], Array, Context]:
        """Returns (what is kept for the way up, the middle's output, what the layers look at).

        The arguments are those of `UNet`; `beside` is added to the first convolution's output. Raises InputError.
        """
        self.check_inputs(x, tokens, vector, images, remat)
        emb = self.time_embedding(sinusoid(t.astype(jnp.float32), self.config.channels[0]).astype(x.dtype))
        if isinstance(self.add_embedding, nnx.Embed):
            emb = emb + look_up(self.add_embedding, vector[:, 0].astype(jnp.int32))[:, None]
        elif self.add_embedding is not None:
            emb = emb + self.add_embedding(vector)[:, None]
        ctx = Context(emb, tokens, token_mask, images)

        skips = [run(self.stem, ctx, remat, self.conv_in(to_patches(x, self.patch)) + beside)]
        for layers in self.down:
            skips.append(run(layers, ctx, remat, skips[-1]))
        x = skips[-1]
        for layers in self.mid:
            x = run(layers, ctx, remat, x)
        return skips, x, ctx

    def check_inputs(self, x, tokens, vector, images, remat) -> None:
        """Raises InputError for inputs that the U-Net was not built for."""
        config = self.config
        vector_dim = 1 if config.vector_levels else config.vector_dim
        for name, value, dim in (("tokens", tokens, config.tokens_dim), ("vector", vector, vector_dim)):
            if value is None and dim is not None:
                raise InputError(f"the U-Net was built with {name}_dim={dim} and is called without {name}")
            if value is not None and value.shape[-1] != dim:
                raise InputError(f"{name} have {value.shape[-1]} features, the U-Net was built with {name}_dim={dim}")
        if tokens is not None and tokens.shape[1] < config.picture_tokens:
            raise InputError(
                f"{tokens.shape[1]} tokens are fewer than picture_tokens={config.picture_tokens} of the U-Net"
            )
        if not 0 <= images <= x.shape[1]:
            raise InputError(f"images={images} stills cannot be among {x.shape[1]} frames")
        longest = config.after_attention.longest if isinstance(config.after_attention, Temporal) else None
        if longest and x.shape[1] - images > longest:
            raise InputError(
                f"{x.shape[1] - images} frames are more than the {longest} whose places the layers over time have "
                "learned: take fewer, in chunks (sample.chunk) one less"
            )
        if any(size % config.patch for size in x.shape[2:4]):
            raise InputError(
                f"maps of {x.shape[2]}x{x.shape[3]} do not divide into the U-Net's patches of {config.patch}"
            )
        if remat not in REMAT:
            raise InputError(f"remat={remat!r} is not known; choose one of {', '.join(REMAT)}")


class UNet(Encoder):
    """The U-Net of Ho et al. (2020) and its descendants on images and videos.

    Paths are `conv_in, time_embedding, add_embedding, stem.{positions, temporal_in}, {down, mid, up}.I.{resnet,
    temporal_resnet, attention, temporal_attention, downsample, upsample}, conv_norm_out, conv_out`; stage I is
    `level * (blocks_per_level + 1) + i`. The parameters of an image model are a subset, by path, of those of its
    inflations.
    """

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        channels, n, skips = config.channels, config.blocks_per_level, skip_channels(config)
        self.up, cin = nnx.List([]), channels[-1]
        for level in reversed(range(len(channels))):
            for i in range(n + 1):
                more = {"upsample": Upsample(channels[level], config.border, rngs=rngs)} if level and i == n else {}
                self.up.append(self.stage_at(level, cin + skips.pop(), up=True, rngs=rngs, **more))
                cin = channels[level]
        self.conv_norm_out = GroupNorm(cin, config.groups, over=config.norm_over, rngs=rngs)
        self.conv_out = Conv(cin, config.out_channels * config.patch**2, zero=True, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        t: Num[Array, "b t"],
        tokens: Float[Array, "b m d"] | None = None,
        vector: Float[Array, "b v"] | None = None,
        *,
        token_mask: Bool[Array, "b m"] | None = None,
        images: int = 0,
        remat: str = "none",
        residuals: Sequence[Float[Array, "b t ..."]] | None = None,
    ) -> Float[Array, "b t h w o"]:
        """The prediction for noisy `x` at network times `t`, one for each frame.

        `token_mask` is true at real tokens. The last `images` frames are independent stills, which layers over time
        leave alone. `remat` names a policy of `REMAT`. `residuals` are added to what the way up takes from the way
        down, in order, and the last of them to the middle (ControlNet, Zhang et al. 2023).
        Raises InputError when a condition that the model was built for is missing, or one is given that it lacks.
        """
        skips, x, ctx = self.encode(x, t, tokens, vector, token_mask, images, remat)
        if residuals is not None:
            skips = [skip + more for skip, more in zip(skips, residuals[:-1], strict=True)]
            x = x + residuals[-1]
        for layers, factors in itertools.zip_longest(self.up, self.config.free_u):
            skip = skips.pop()
            if factors:
                x, skip = amplify_half(x, factors[0]), scale_low_frequencies(skip, factors[1])
            size = skips[-1].shape[2:4] if skips else None
            x = run(layers, dataclasses.replace(ctx, size=size), remat, x, skip)
        return from_patches(self.conv_out(silu_norm(self.conv_norm_out, x, ctx)), self.patch)
