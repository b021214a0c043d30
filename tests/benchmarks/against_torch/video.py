"""Video networks: a training step of a latent 3D U-Net (ModelScope's, of which LVDM's is the forerunner), sampling with
it, and a training step of Stable Diffusion's autoencoder on frames.

Every parameter trains. LVDM's own code is no package; `diffusers` has the next of kin.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import steps
import torch
import torch.nn.functional as F
from einops import rearrange
from flax import nnx
from turns import Options, against

from vidjax.diffusion import samplers
from vidjax.diffusion import schedule as schedules
from vidjax.diffusion.guidance import classifier_free
from vidjax.models.autoencoder import STABLE_DIFFUSION, Autoencoder
from vidjax.models.conditioning import Conditioning
from vidjax.models.parameters import cast
from vidjax.models.stored import StoredMoments, StoredText
from vidjax.models.unet import Temporal, UNet, UNetConfig
from vidjax.models.video_model import VideoModel
from vidjax.runtime.compiling import jit
from vidjax.training import objectives
from vidjax.weights.convert import load
from vidjax.weights.diffusers import MODELSCOPE, unet
from vidjax.weights.diffusers_autoencoder import DIFFUSERS_AUTOENCODER

CLIPS = "b c t h w -> b t h w c"
TOKENS, SCALE, STEPS, GUIDANCE = (1, 77, 768), 0.18215, 50, 7.5


def unet_pair(options: Options) -> tuple[torch.nn.Module, UNet]:
    """ModelScope's U-Net there and here, with the same numbers; for two cores three levels of 64 to 256 features."""
    channels, head = ((320, 640, 1280, 1280), 64) if options.paper else ((64, 128, 256), 32)
    levels = len(channels)
    theirs = diffusers.UNet3DConditionModel(
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock3D",) * (levels - 1) + ("DownBlock3D",),
        up_block_types=("UpBlock3D",) + ("CrossAttnUpBlock3D",) * (levels - 1),
        cross_attention_dim=TOKENS[-1],
        attention_head_dim=head,
    )
    attended = (True,) * (levels - 1) + (False,)
    heads = tuple(c // head for c in channels)
    config = UNetConfig(
        channels=channels,
        attention_levels=attended,
        heads=heads,
        tokens_dim=TOKENS[-1],
        after_resnet="convs",
        after_attention=Temporal(heads, attended),
        stem_heads=(8, head),
    )
    ours = nnx.eval_shape(lambda: UNet(config, rngs=nnx.Rngs(0)))
    load(ours, tensors(steps.refill(theirs)), [*MODELSCOPE, *unet(config.blocks_per_level)])
    return theirs, ours


def tensors(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {key: value.numpy().copy() for key, value in model.state_dict().items()}


def clip(options: Options) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.standard_normal((1, 16, 32, 32, 4) if options.paper else (1, 8, 16, 16, 4), dtype=np.float32)
    return x, random.standard_normal(TOKENS, dtype=np.float32)


def to_torch(x: Any, options: Options) -> torch.Tensor:
    """[b, t, h, w, c] -> [b, c, t, h, w]"""
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy()).to(options.device)


def unet_step(options: Options) -> dict[str, Any]:
    """One step on one clip: 8 frames of 16x16 latents, at the paper's size 16 of 32x32."""
    reference, network = unet_pair(options)
    (x, tokens), model = clip(options), options.theirs(reference)
    video, context = to_torch(x, options), torch.from_numpy(tokens).to(options.device)
    predict = lambda: model(video, 501, context).sample
    graph, state = nnx.split(network)
    call = jit(lambda state, *args: nnx.merge(graph, state)(*args))
    with torch.no_grad():
        relative = steps.apart(call(state, x, jnp.full(x.shape[:2], 501), tokens), predict(), CLIPS)
    batch = {"video": steps.moments(x), "tokens": tokens}
    whole = VideoModel(network, {"text": StoredText(TOKENS[-1])}, StoredMoments(0.0, SCALE))
    run, trained = steps.ours(whole, partial(objectives.diffusion, schedule=schedules.scaled_linear()), batch, options)
    loss = lambda: F.mse_loss(predict().float(), torch.randn_like(video))
    run_theirs, count = steps.theirs(model, loss, options)
    assert count == trained
    return {"difference": relative, "trained": trained, **against(options.repeats, ours=run, torch=run_theirs)}


def sampling(options: Options) -> dict[str, Any]:
    """50 steps of DDIM with classifier-free guidance, the two passes in one batch there."""
    reference, network = unet_pair(options)
    (x, tokens), model = clip(options), options.theirs(reference)
    null = np.zeros_like(tokens)
    theirs = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
    )
    theirs.set_timesteps(STEPS)
    both = torch.from_numpy(np.concatenate([null, tokens])).to(options.device)

    def run_theirs() -> torch.Tensor:
        video = to_torch(x, options)
        with torch.no_grad(), options.autocast():
            for t in theirs.timesteps:
                away, towards = model(torch.cat([video, video]), t, both).sample.float().chunk(2)
                video = theirs.step(away + GUIDANCE * (towards - away), t, video).prev_sample
        return video.cpu()

    whole = VideoModel(network, {"text": StoredText(TOKENS[-1])}, StoredMoments(0.0, SCALE))
    graph, state = nnx.split(whole)
    schedule = schedules.scaled_linear(set_alpha_to_one=False)
    times = np.append(theirs.timesteps.numpy(), schedule.end).astype(np.float32)

    @jit
    def sampled(state: Any, x: jax.Array, tokens: jax.Array, null: jax.Array) -> jax.Array:
        under = lambda tokens: nnx.merge(graph, state).denoiser(schedule, "eps", Conditioning(tokens=tokens))
        denoise = classifier_free(schedule, under(tokens), under(null), GUIDANCE)
        return samplers.sample(denoise, schedule, x, times, STEPS, samplers.ddim(), jax.random.key(0))

    state = cast(state, jnp.dtype(options.dtype))
    run = lambda: sampled(state, x, tokens, null)
    relative = steps.apart(run(), run_theirs(), CLIPS)
    return {"difference": relative, **against(options.repeats, ours=run, torch=run_theirs)}


class Both(torch.nn.Module):
    """Encoder and decoder in one call, as a training loop compiles them."""

    def __init__(self, autoencoder: torch.nn.Module):
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, frames: torch.Tensor, sample: bool) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = self.autoencoder.encode(frames).latent_dist
        z = posterior.sample() if sample else posterior.mode()
        return self.autoencoder.decode(z).sample, posterior.kl().mean() / posterior.mean[0].numel()


def autoencoder_step(options: Options) -> dict[str, Any]:
    """One step on 4 frames of 64x64, a quarter of Stable Diffusion's widths; at the paper's size 8 of 256x256."""
    channels = (128, 256, 512, 512) if options.paper else (32, 64, 128, 128)
    reference = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=channels,
        layers_per_block=2,
        latent_channels=4,
    )
    config = dataclasses.replace(STABLE_DIFFUSION, channels=channels)
    ours = nnx.eval_shape(lambda: Autoencoder(config, rngs=nnx.Rngs(0)))
    load(ours, tensors(steps.refill(reference)), DIFFUSERS_AUTOENCODER)
    video = np.random.default_rng(0).integers(
        0, 256, (1, 8, 256, 256, 3) if options.paper else (1, 4, 64, 64, 3), np.uint8
    )
    pixels = video.astype(np.float32) / 127.5 - 1
    frames = rearrange(torch.from_numpy(pixels), "1 t h w c -> t c h w").to(options.device)
    model = options.theirs(Both(reference))
    graph, state = nnx.split(ours)
    mode = jit(lambda state, x: (m := nnx.merge(graph, state)).decode(m.encode(x).mode))
    with torch.no_grad():
        relative = steps.apart(mode(state, pixels), model(frames, False)[0], "t c h w -> 1 t h w c")
    run, trained = steps.ours(ours, objectives.autoencoder, {"video": video}, options)

    def loss() -> torch.Tensor:
        decoded, kl = model(frames, True)
        return F.mse_loss(decoded.float(), frames) + 1e-6 * kl

    run_theirs, count = steps.theirs(model, loss, options)
    assert count == trained
    return {"difference": relative, "trained": trained, **against(options.repeats, ours=run, torch=run_theirs)}


ITEMS: dict[str, Callable[[Options], dict[str, Any]]] = {
    "unet_step": unet_step,
    "autoencoder_step": autoencoder_step,
    "sampling": sampling,
}
