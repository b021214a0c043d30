"""A picture as a condition: the video begins with it (Stable Video Diffusion, Blattmann et al. 2023)."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from vidjax.data.transforms import to_unit
from vidjax.diffusion.draws import Draws
from vidjax.errors import InputError, check_range
from vidjax.models.clip import ClipImage, ClipImageConfig
from vidjax.models.layers import sinusoid

Pictures = Sequence[UInt8[np.ndarray, "_ _ 3"]] | UInt8[np.ndarray, "_ _ _ 3"]
MOTION = 127 / 0.1  # what the network is told of clips whose pixels, in [-1, 1], differ by 1 from frame to frame


@dataclasses.dataclass(frozen=True)
class PictureTraining:
    """How training shows first frames. The defaults are those of the recipe SVD_Xtend, but for `motion`.

    fps: frames per second of the clips. motion: what the network is told of the motion in all clips (theirs: 127);
    None: what `motion_of` measures in each. noise_mean, noise_std: of the logarithm of the noise that the picture is
    under. drop: how often the picture's token alone, its latents alone, and both are hidden, each (Brooks et al. 2023,
    InstructPix2Pix).
    """

    fps: float = 7.0
    motion: float | None = None
    noise_mean: float = -3.0
    noise_std: float = 0.5
    drop: float = 0.1

    def __post_init__(self):
        check_range("config.conditioning.picture.", 0.0, 1 / 3, drop=self.drop)
        check_range("config.conditioning.picture.", 0.0, 255.0, motion=self.motion)
        check_range("config.conditioning.picture.", 0.0, 10.0, noise_std=self.noise_std)
        if not 0.1 <= self.fps <= 1000:
            raise InputError(f"config.data.fps={self.fps} is not between 0.1 and 1000 frames per second")


class PictureEmbedder(nnx.Module):
    """A picture as one token, by CLIP, and as latents beside those of every frame; and three numbers: frames per second
    less one, motion, and the noise that the latents' picture was under, each as a sinusoid of `features`.

    Its entry of a batch: `pixels` [b, n, n, 3] in [-1, 1] for CLIP, see `clip_pixels`; `latents` [b, 1, i, j, z], of
    zero mean and not scaled to unit variance; `numbers` [b, 3]; `shown` [b, 2], whether the token and the latents are.
    """

    key, drop = "picture", 0.0  # `draw` hides it
    whole = False  # pictures have the size of the video
    Training = PictureTraining

    def __init__(self, config: ClipImageConfig, features: int = 256, *, rngs: nnx.Rngs):
        self.encoder = ClipImage(config, rngs=rngs)
        self.features, self.vector_dim, self.tokens_dim = features, 3 * features, config.projection
        self.training = PictureTraining()

    def null(self, picture: Mapping[str, Array]) -> Mapping[str, Array]:
        """Returns pictures of which neither token nor latents are shown; what guidance steers away from."""
        return {**picture, "shown": jnp.zeros_like(picture["shown"])}

    def __call__(self, picture: Mapping[str, Array]) -> dict[str, Array]:
        token, beside = picture["shown"].T
        pixels = picture["pixels"].astype(self.encoder.patch_embedding.kernel.dtype)
        tokens = self.encoder(pixels)[1] * token[:, None].astype(pixels.dtype)
        concat = picture["latents"] * beside[:, None, None, None, None]
        vector = sinusoid(picture["numbers"], self.features).reshape(len(token), -1)
        return {"tokens": tokens[:, None], "vector": vector, "concat": concat}

    def entry(
        self,
        codec: Any,
        frame: UInt8[Array, "b h w 3"],
        eps: Float[Array, "b h w 3"],
        level: Float[Array, " b"],
        fps: Float[Array, " b"],
        motion: Float[Array, " b"],
    ) -> dict[str, Array]:
        """Makes the entry of a batch for pictures whose latents are those under noise of standard deviation `level`."""
        x = to_unit(frame)
        noisy = x + level[:, None, None, None] * eps
        latents = codec.autoencoder.encode(noisy[:, None].astype(codec.dtype)).mode.astype(jnp.float32)
        return {
            "pixels": clip_pixels(x, self.encoder.config.size),
            "latents": latents,
            "numbers": jnp.stack([fps - 1, motion, level], 1),
            "shown": jnp.ones((len(level), 2)),
        }

    def seen(
        self,
        pictures: Pictures,
        size: tuple[int, int],
        shape: tuple[int, ...],
        normal: Callable[[tuple[int, ...]], Array],
        how: Any,
    ) -> dict[str, Any]:
        """Makes the arguments of `entry` for pictures of `size` (h, w), `normal(shape)` for each, and what of a
        SampleConfig the network is told. Raises InputError for pictures of another size."""
        frames = stack_of_size(pictures, size)
        each = lambda value: np.full(len(pictures), value, np.float32)
        told = {"level": each(how.picture_noise), "fps": each(how.fps), "motion": each(how.motion_bucket)}
        return {"frame": frames, "eps": normal((*size, 3)), **told}

    def draw(self, codec: Any, video: UInt8[Array, "b t h w 3"], draws: Draws) -> dict[str, Array]:
        """Makes the entry for clips in training: their first frames, under noise of a random level, and now and then
        not shown, each as `training` says."""
        how, draws = self.training, draws.named("picture")
        level = jnp.exp(how.noise_mean + how.noise_std * draws.named("level").normal(()))
        eps = draws.named("noise").normal(video.shape[2:])
        motion = motion_of(video) if how.motion is None else jnp.full_like(level, how.motion)
        fps = jnp.full_like(level, how.fps)
        u = draws.named("shown").uniforms
        token, beside = u >= 2 * how.drop, (u < how.drop) | (u >= 3 * how.drop)
        shown = jnp.stack([token, beside], 1).astype(jnp.float32)
        return {**self.entry(codec, video[:, 0], eps, level, fps, motion), "shown": shown}


class PlainPicture(nnx.Module):
    """A picture of the size of the video as a condition with which nothing else is told, nor anything drawn."""

    key, drop = "picture", 0.0
    whole = False

    @abc.abstractmethod
    def entry(self, codec: Any, frame: UInt8[Array, "b h w 3"]) -> dict[str, Array]:
        """Makes the entry of a batch for pictures."""

    def seen(
        self,
        pictures: Pictures,
        size: tuple[int, int],
        shape: tuple[int, ...],
        normal: Callable[[tuple[int, ...]], Array],
        how: Any,
    ) -> dict[str, Any]:
        """Makes the arguments of `entry` for pictures of `size` (h, w). Raises InputError for those of another size."""
        return {"frame": stack_of_size(pictures, size)}

    def draw(self, codec: Any, video: UInt8[Array, "b t h w 3"], draws: Draws) -> dict[str, Array]:
        """Makes the entry for clips in training: their first frames, always shown."""
        return self.entry(codec, video[:, 0])


def stack_of_size(pictures: Pictures, size: tuple[int, int]) -> UInt8[np.ndarray, "b h w 3"]:
    """Stacks pictures. Raises InputError for one that is not of `size` (h, w)."""
    if wrong := [each.shape for each in pictures if each.shape != (*size, 3)]:
        raise InputError(f"a picture is {wrong[0]}, these videos begin with {(*size, 3)}")
    return np.stack(pictures)


def motion_of(video: UInt8[Array, "b t h w c"]) -> Float[Array, " b"]:
    """Measures motion as 0 to 255: the mean difference of consecutive frames' pixels, 127 where it is a twentieth of
    their range. How the numbers that Stable Video Diffusion was trained with were measured is not published."""
    x = to_unit(video)
    differ = jnp.abs(x[:, 1:] - x[:, :-1]).mean((1, 2, 3, 4)) if video.shape[1] > 1 else jnp.zeros(len(x))
    return jnp.clip(MOTION * differ, 0, 255)


def clip_pixels(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b {size} {size} c"]:
    """Scales pictures in [-1, 1] to squares without cropping, as Stable Video Diffusion does for CLIP: a Gaussian blur
    against aliasing, then bicubic interpolation with the corners' centres aligned."""
    down, right = (jnp.asarray(scaling(n, size)) for n in x.shape[1:3])
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("ih,jw,bhwc->bijc", down, right, x.astype(jnp.float32), precision=highest)


@functools.cache
def scaling(n: int, size: int) -> Float[np.ndarray, "{size} {n}"]:
    """The matrix of `clip_pixels` along one axis: blurs n pixels, then interpolates them at `size` places.

    The blur's deviation is (n / size - 1) / 2 pixels, 0.001 at least; its kernel is four deviations long, at least 3
    and odd, edges are reflected. Interpolation is Keys' cubic (1981) with a = -0.75.
    """
    deviation = max((n / size - 1) / 2, 0.001)
    length = int(max(4 * deviation, 3)) | 1
    reach = np.arange(length) - length // 2
    kernel = np.exp(-(reach**2) / (2 * deviation**2))
    kernel /= kernel.sum()
    ends = 2 * max(n - 1, 1)
    reflected = np.abs((np.arange(n)[:, None] + reach + ends) % ends)
    reflected = np.minimum(reflected, ends - reflected).clip(0, n - 1)
    blur = np.zeros((n, n))
    np.add.at(blur, (np.arange(n)[:, None], reflected), kernel)

    places = np.arange(size) * ((n - 1) / max(size - 1, 1))
    low = np.floor(places).astype(int)
    cubic, a = np.zeros((size, n)), -0.75
    for tap in (-1, 0, 1, 2):
        d = np.abs(places - low - tap)
        near, far = ((a + 2) * d - (a + 3)) * d * d + 1, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        np.add.at(cubic, (np.arange(size), (low + tap).clip(0, n - 1)), np.where(d <= 1, near, far))
    return (cubic @ blur).astype(np.float32)
