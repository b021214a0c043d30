"""A picture as a condition beside text: tokens of it, and latents with the place of every frame (I2VGen-XL, Zhang et
al. 2023)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Float, UInt8

from vidjax.data.transforms import to_unit
from vidjax.diffusion.draws import Draws
from vidjax.errors import InputError, check_range
from vidjax.models.attention import Attention, FeedForward
from vidjax.models.clip import ClipImage, ClipImageConfig
from vidjax.models.convolution import Conv
from vidjax.models.layers import MLP, Context, Sequential, sinusoid
from vidjax.models.picture import Pictures

GRID = 32  # rows and columns to which the latents are averaged before they become tokens


@dataclasses.dataclass(frozen=True)
class PictureTokensTraining:
    """How training shows first frames. The defaults are those of the published settings.

    fps: frames per second of the clips. drop: how often the picture's tokens by CLIP are hidden. twice: see
    `PictureTokens`; None: as the folder says.
    """

    fps: float = 8.0
    drop: float = 0.0
    twice: bool | None = None

    def __post_init__(self):
        check_range("config.conditioning.picture.", 0.0, 1.0, drop=self.drop)
        if not 0.1 <= self.fps <= 1000:
            raise InputError(f"config.data.fps={self.fps} is not between 0.1 and 1000 frames per second")


class LatentTokens(nnx.Module):
    """Latents of a picture as 64 tokens: a convolution, the mean over a grid of 32 x 32, two convolutions that halve
    it."""

    def __init__(self, channels: int, tokens_dim: int, *, rngs: nnx.Rngs):
        halve: dict[str, Any] = dict(strides=2, padding=[(1, 1), (1, 1)], rngs=rngs)
        self.conv1 = Conv(channels, 8 * channels, rngs=rngs)
        self.conv2 = Conv(8 * channels, 16 * channels, **halve)
        self.conv3 = Conv(16 * channels, tokens_dim, **halve)

    def __call__(self, latents: Float[Array, "b i j z"]) -> Float[Array, "b m d"]:
        x = jax.nn.silu(self.conv1(latents))
        down, right = (jnp.asarray(make_averaging(n), x.dtype) for n in x.shape[1:3])
        x = jnp.einsum("gi,hj,bijc->bghc", down, right, x, precision=jax.lax.Precision.HIGHEST)
        return rearrange(self.conv3(jax.nn.silu(self.conv2(x))), "b g h d -> b (g h) d")


class LatentFrames(nnx.Module):
    """Three convolutions, then attention over time and a feed-forward layer, on the channels of the latents alone."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv1 = Conv(channels, 4 * channels, rngs=rngs)
        self.conv2 = Conv(4 * channels, 4 * channels, rngs=rngs)
        self.conv3 = Conv(4 * channels, channels, rngs=rngs)
        self.over_time = Sequential(
            attn1=Attention(channels, 2, "time", head_dim=channels, rngs=rngs),
            ff=FeedForward(channels, plain=True, rngs=rngs),
        )

    def __call__(self, latents: Float[Array, "b t i j z"]) -> Float[Array, "b t i j z"]:
        x = self.conv3(jax.nn.silu(self.conv2(jax.nn.silu(self.conv1(latents)))))
        tokens = rearrange(x, "b t i j z -> b t (i j) z")
        return self.over_time(tokens, Context(emb=tokens[:, :, 0])).reshape(x.shape)


class PictureTokens(nnx.Module):
    """A picture as 64 tokens of its latents and a few by CLIP, as many as latents have channels; as channels beside
    every frame; and the frames per second as a sinusoid of `features`.

    The channels are made of the picture's latents at the first frame and of i / (t - 1) everywhere at frame i of t. In
    the published training they are added to themselves, by a slip; in `diffusers` they are not: `twice`.

    Its entry of a batch: `pixels` [b, n, n, 3] in [-1, 1] for CLIP, see `cut_squares`; `latents` [b, t, i, j, z] of
    these frames; `fps` [b]; `shown` [b], whether the tokens by CLIP are.
    """

    key, drop = "picture", 0.0  # `draw` hides it
    whole = True  # it fits pictures to the video itself: CLIP sees more of them
    Training = PictureTokensTraining

    def __init__(
        self,
        config: ClipImageConfig,
        features: int,
        tokens_dim: int,
        channels: int = 4,
        twice: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        self.encoder = ClipImage(config, rngs=rngs)
        self.tokens = MLP(tokens_dim, 4 * features, channels * tokens_dim, rngs=rngs)
        self.latent_tokens = LatentTokens(channels, tokens_dim, rngs=rngs)
        self.frames = LatentFrames(channels, rngs=rngs)
        self.vector_dim, self.tokens_dim, self.channels, self.twice = features, tokens_dim, channels, twice
        self.training = PictureTokensTraining()

    def null(self, picture: Mapping[str, Array]) -> Mapping[str, Array]:
        """Returns pictures that CLIP does not see; their latents stay. What guidance steers away from."""
        return {**picture, "shown": jnp.zeros_like(picture["shown"])}

    def __call__(self, picture: Mapping[str, Array]) -> dict[str, Array]:
        dtype = self.encoder.patch_embedding.kernel.dtype
        latents, pixels, shown = (picture[name].astype(dtype) for name in ("latents", "pixels", "shown"))
        seen = self.tokens(self.encoder(pixels)[1] * shown[:, None])
        tokens = [self.latent_tokens(latents[:, 0]), rearrange(seen, "b (n d) -> b n d", n=self.channels)]
        beside = self.frames(latents)
        return {
            "tokens": jnp.concatenate(tokens, 1),
            "vector": sinusoid(picture["fps"], self.vector_dim),
            "concat": 2 * beside if self.twice else beside,
        }

    def entry(
        self,
        codec: Any,
        frame: UInt8[Array, "b h w 3"],
        pixels: Float[Array, "b n n 3"],
        eps: Float[Array, "b i j z"],
        places: Float[Array, "b t"],
        fps: Float[Array, " b"],
    ) -> dict[str, Array]:
        """Makes the entry of a batch for pictures whose latents are drawn with `eps`; `places`: see `places_of`."""
        latents = codec.latents(frame[:, None], lambda shape: eps[:, None]).astype(jnp.float32)
        planes = jnp.broadcast_to(places[:, 1:, None, None, None], (*places[:, 1:].shape, *latents.shape[2:]))
        return {
            "pixels": pixels,
            "latents": jnp.concatenate([latents, planes], 1),
            "fps": fps,
            "shown": jnp.ones(len(fps)),
        }

    def seen(
        self,
        pictures: Pictures,
        size: tuple[int, int],
        shape: tuple[int, ...],
        normal: Callable[[tuple[int, ...]], Array],
        how: Any,
    ) -> dict[str, Any]:
        """Makes the arguments of `entry` for videos of `size` (h, w) and latents of `shape` [t, i, j, z], from pictures
        of any size, `normal(shape)` for each, and the rate `how.fps`."""
        size_of_clip = self.encoder.config.size
        squares = np.stack([scale_for_clip(each, size[1], size_of_clip) for each in pictures])
        return {
            "frame": np.stack([cut(each, size) for each in pictures]),
            "pixels": np.asarray(to_unit(squares)),
            "eps": normal(shape[1:]),
            "places": np.tile(places_of(shape[0]), (len(pictures), 1)),
            "fps": np.full(len(pictures), how.fps, np.float32),
        }

    def draw(self, codec: Any, video: UInt8[Array, "b t h w 3"], draws: Draws) -> dict[str, Array]:
        """Makes the entry for clips in training: their first frames, now and then not shown, as `training` says."""
        how, draws = self.training, draws.named("picture")
        b, t, h, w, _ = video.shape
        _, rows, columns = codec.autoencoder.strides
        eps = draws.named("noise").normal((h // rows, w // columns, codec.autoencoder.latent_channels))
        pixels = cut_squares(to_unit(video[:, 0]), self.encoder.config.size)
        places = repeat(jnp.asarray(places_of(t)), "t -> b t", b=b)
        shown = (draws.named("shown").uniforms >= how.drop).astype(jnp.float32)
        entry = self.entry(codec, video[:, 0], pixels, eps, places, jnp.full(b, how.fps, jnp.float32))
        return {**entry, "shown": shown}


def places_of(frames: int) -> Float[np.ndarray, " t"]:
    """Returns the place of each frame in its clip, 0 to 1."""
    return np.linspace(0, 1, frames, dtype=np.float32)


def cut(picture: UInt8[np.ndarray, "p q 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Scales a picture by means over boxes to cover `size` (height, width), and cuts out the middle."""
    from PIL import Image

    (p, q), (h, w) = picture.shape[:2], size
    rows, columns = (max(h, p * w // q), w) if p * w >= q * h else (h, max(w, q * h // p))
    scaled = np.asarray(Image.fromarray(picture).resize((columns, rows), Image.Resampling.BOX))
    top, left = (rows - h) // 2, (columns - w) // 2
    return scaled[top : top + h, left : left + w]


def scale_for_clip(picture: UInt8[np.ndarray, "p q 3"], side: int, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Makes what CLIP sees of a picture in a video that is `side` wide: a square of that side, see `cut`, scaled by a
    triangle filter."""
    from PIL import Image

    middle = Image.fromarray(cut(picture, (side, side)))
    return np.asarray(middle.resize((size, size), Image.Resampling.BILINEAR))


def cut_squares(frames: Float[Array, "b h w c"], size: int) -> Float[Array, "b {size} {size} c"]:
    """Computes `scale_for_clip` of the frames of a video, without its rounding to whole numbers between."""
    h, w = frames.shape[1:3]
    short = min(h, w)
    rows, columns = (max(w, n * w // short) for n in (h, w))

    def matrix(n: int, scaled: int) -> Float[np.ndarray, "m {n}"]:
        start = (scaled - w) // 2
        return (make_scaling(w, size, 1.0) @ make_scaling(n, scaled, 0.5)[start : start + w]).astype(np.float32)

    down, right = jnp.asarray(matrix(h, rows)), jnp.asarray(matrix(w, columns))
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("ih,jw,bhwc->bijc", down, right, frames.astype(jnp.float32), precision=highest)


@functools.cache
def make_scaling(n: int, size: int, reach: float) -> Float[np.ndarray, "{size} {n}"]:
    """Makes the matrix that scales n pixels to `size` as Pillow does, by a box (`reach` 0.5) or a triangle (1) that is
    as many times wider as the pixels become fewer."""
    step = n / size
    wide = max(step, 1.0)
    centre = (np.arange(size)[:, None] + 0.5) * step
    away = (np.arange(n) + 0.5 - centre) / wide
    found = ((away > -reach) & (away <= reach)) * 1.0 if reach < 1 else np.maximum(1 - np.abs(away), 0)
    return found / found.sum(1, keepdims=True)


@functools.cache
def make_averaging(n: int, size: int = GRID) -> Float[np.ndarray, "{size} {n}"]:
    """Makes the matrix whose row k is the mean of n places from k n / size, rounded down, to (k + 1) n / size, rounded
    up."""
    places, k = np.arange(n), np.arange(size)[:, None]
    inside = (places >= k * n // size) & (places < -(-(k + 1) * n // size))
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)
