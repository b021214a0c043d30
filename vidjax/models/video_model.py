"""The whole network as one module: denoising U-Net, embedders of its conditions, frozen codec of its latents."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Num, UInt8

from vidjax.data.transforms import to_unit
from vidjax.diffusion.schedule import Schedule
from vidjax.models.conditioning import Conditioning
from vidjax.models.convolution import Conv
from vidjax.models.flow_unet import FlowUNet, FlowUNetConfig
from vidjax.models.unet import UNet, UNetConfig
from vidjax.runtime.compiling import jit
from vidjax.runtime.processes import run_over
from vidjax.runtime.sharding import batch_ways

NETWORKS: dict[type, Callable[..., Any]] = {UNetConfig: UNet, FlowUNetConfig: FlowUNet}
Normal = Callable[[tuple[int, ...]], Array]  # shape an example -> standard normal [b, *shape]


class Codec(nnx.Module):
    """An autoencoder, and what makes its latents zero-mean and of unit variance: z' = scale (z + shift)."""

    def __init__(self, autoencoder: Any, shift: float = 0.0, scale: float = 1.0):
        self.autoencoder, self.shift, self.scale = autoencoder, shift, scale

    def encode(self, x: Float[Array, "b t h w c"], normal: Normal | None = None) -> Float[Array, "b s i j z"]:
        """Latents of videos in [-1, 1]: the posterior's mean, or with `normal` a sample of it."""
        posterior = self.autoencoder.encode(x)
        z = posterior.mode if normal is None else posterior.sample(normal(posterior.mean.shape[1:]))
        return self.scale * (z + self.shift)

    def latents(self, video: Num[Array, "b t h w c"], normal: Normal | None = None) -> Float[Array, "b s i j z"]:
        """`encode` of pixels 0 to 255, in the dtype of the parameters."""
        return self.encode(to_unit(video).astype(self.dtype), normal)

    @property
    def dtype(self) -> jnp.dtype:
        """That of the autoencoder's parameters."""
        return self.autoencoder.dtype

    def per_frame(self, part: str) -> bool:
        """Whether the "encoder" or the "decoder" takes every frame by itself."""
        config, modules = self.autoencoder.config, nnx.iter_modules(getattr(self.autoencoder, part))
        flat = all(module.kernel.ndim == 4 for _, module in modules if isinstance(module, Conv))
        return config.strides[0] == 1 and config.norm_over == "frame" and flat

    def decode(self, z: Float[Array, "b s i j z"]) -> Float[Array, "b t h w c"]:
        """Returns the videos in [-1, 1] of latents."""
        return self.autoencoder.decode(z / self.scale - self.shift)


def latent_statistics(
    autoencoder: Any, videos: Sequence[UInt8[np.ndarray, "_ t h w c"]], mesh: Mesh | None = None
) -> dict[str, float]:
    """`{"shift", "scale"}` for a Codec, measured: over all latents of the videos, mean 0 and variance 1. With a mesh,
    over which the parameters lie, as many videos at a time as it has parts of a batch."""
    graphdef, state = nnx.split(autoencoder)
    encode = jit(lambda state, x: nnx.merge(graphdef, state).encode(to_unit(x)).mean)
    clips = [clip for each in videos for clip in each]
    if mesh is None:
        parts = [np.asarray(encode(state, clip[None])) for clip in clips]
    else:
        ways = batch_ways(mesh)
        groups = [np.stack(clips[i : i + ways]) for i in range(0, len(clips), ways)]
        parts = [run_over(mesh, encode, state, group) for group in groups]
    z = np.concatenate([part.ravel() for part in parts])
    return {"shift": -float(z.mean()), "scale": 1 / float(z.std())}


def one_time(t: Float[Array, "b t"], known: Float[Array, "b t"]) -> tuple[Float[Array, "b t"], Float[Array, "b 1"]]:
    """The time of the unknown frames for all, and that of the known ones, 0 where none is: it was then any in training,
    and tells nothing."""
    level = jnp.where(known > 0.5, t, 0).max(1, keepdims=True)
    others = jnp.where(known > 0.5, -jnp.inf, t).max(1, keepdims=True)
    return jnp.where(jnp.isfinite(others), jnp.broadcast_to(others, t.shape), t), level


class VideoModel(nnx.Module):
    """Predicts what the objective asks of it, from noisy latents (pixels, if there is no codec) and conditions.

    With `masked`, the U-Net sees one channel more: 1 where a frame is known. Where it has a table of noise levels
    (LVDM's of known frames), it is told one time, that of the unknown frames, and the level of the known ones.
    """

    def __init__(
        self,
        unet: UNet | FlowUNet | UNetConfig | FlowUNetConfig,
        embedders: Mapping[str, Any],
        codec: Any = None,  # a Codec, or what has its `latents`
        *,
        masked=False,
        remat="none",
        rngs: nnx.Rngs | None = None,
    ):
        self.unet = NETWORKS[type(unet)](unet, rngs=rngs) if type(unet) in NETWORKS else unet
        self.embedder_names = tuple(embedders)
        for name, embedder in embedders.items():
            setattr(self, name, embedder)
        self.codec = nnx.data(codec)
        self.masked, self.remat = masked, remat

    @property
    def embedders(self) -> dict[str, Any]:
        """The embedders of the conditions by name."""
        return {name: getattr(self, name) for name in self.embedder_names}

    def latents(self, video: Num[Array, "b t h w c"], normal: Normal | None = None) -> Float[Array, "b s i j z"]:
        """What is diffused, in fp32: the video in [-1, 1], or a codec's latents of it (see Codec.encode)."""
        return to_unit(video) if self.codec is None else self.codec.latents(video, normal).astype(jnp.float32)

    def pixels(self, latents: Float[Array, "b s i j z"]) -> Float[Array, "b t h w c"]:
        """The video in [-1, 1] of what was diffused."""
        return latents if self.codec is None else self.codec.decode(latents.astype(self.dtype)).astype(jnp.float32)

    @property
    def dtype(self) -> jnp.dtype:
        """That of the U-Net's parameters."""
        return self.unet.conv_in.kernel.dtype

    def __call__(
        self, x: Float[Array, "b t h w c"], t: Float[Array, "b t"], cond: Conditioning, images: int = 0
    ) -> Float[Array, "b t h w c"]:
        own = lambda a: None if a is None else a.astype(self.dtype)
        tokens, vector = own(cond.tokens), own(cond.vector)
        if self.masked:
            known = jnp.zeros(x.shape[:2]) if cond.mask is None else cond.mask
            x = jnp.concatenate([x, jnp.broadcast_to(known[..., None, None, None], (*x.shape[:-1], 1))], -1)
            if isinstance(self.unet, UNet) and self.unet.config.vector_levels:
                t, vector = one_time(t, known)
        if cond.concat is not None:
            beside = jnp.broadcast_to(cond.concat, (*x.shape[:-1], cond.concat.shape[-1]))
            x = jnp.concatenate([x, beside], -1)
        x = x.astype(self.dtype)
        how: dict[str, Any] = dict(token_mask=cond.token_mask, images=images, remat=self.remat)
        if cond.control is not None:
            how["residuals"] = self.embedders["control"].residuals(x, t, tokens, cond.control, **how)
        out = self.unet(x, t, tokens, vector, **how)
        return out.astype(jnp.float32) + (0.0 if cond.start is None else cond.start)

    def denoiser(self, schedule: Schedule, prediction: str, cond: Conditioning):
        """`denoise(xt, t) -> (x0, eps)` under these conditions."""

        def denoise(xt: Float[Array, "b t h w c"], t: Float[Array, "b t"]):
            return schedule.x0_eps(self(*schedule.network_input(xt, t), cond), xt, t, prediction)

        return denoise
