"""Stable Diffusion 1.5's U-Net: a forward pass and Tune-A-Video steps, and what these cost as frames grow.

A tuning step is Tune-A-Video's (Wu et al. 2023): self-attention whose keys are the first and the previous frame, an
attention over time after each block, gradients for all queries and the attention over time alone, norm clipped, AdamW.
Ours is `make_train_step` with a clip's moments and features, as `configs/tune_a_video.py` runs it; theirs has the
frames in the batch.

    frames     forward of a small U-Net at 8 to 64 frames of 16x16, its keys first and previous frame, or all
    memory     bytes that XLA plans for the tuning step at 8 frames of 16x16 under each rematerialisation policy
"""

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
from turns import Options, against, in_turns

from vidjax.diffusion import schedule as schedules
from vidjax.models.parameters import abstract_parameters, cast, split
from vidjax.models.stored import StoredMoments, StoredText
from vidjax.models.unet import REMAT, UNet, UNetConfig
from vidjax.models.video_model import VideoModel
from vidjax.runtime.compiling import jit
from vidjax.training import objectives
from vidjax.training.state import TrainState
from vidjax.training.step import make_train_step
from vidjax.training.strategies import strategy
from vidjax.weights.convert import load
from vidjax.weights.diffusers import TUNE_A_VIDEO, unet

TOKENS = (1, 77, 768)
FRAMES = "t c h w -> 1 t h w c"
TUNING = {"tune_4x32x32": (4, 32, 32), "tune_8x16x16": (8, 16, 16), "tune_24x64x64": (24, 64, 64)}
LARGE = "tune_24x64x64"  # of 512x512 pixels, for a GPU
LENGTHS = (8, 16, 32, 64)
SMALL = dict(channels=(64, 128), blocks_per_level=1, attention_levels=True, heads=4)


class FirstAndPrevious:
    """diffusers' processor of self-attention, but with the keys of Tune-A-Video's equation 4, for frames in the batch
    of one clip."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        q, k, v = (to(hidden_states).unflatten(-1, (attn.heads, -1)) for to in (attn.to_q, attn.to_k, attn.to_v))
        frames = torch.arange(len(k))
        look = torch.stack([torch.zeros_like(frames), (frames - 1).clamp(min=0)], 1)
        k, v = (a[look].flatten(1, 2) for a in (k, v))
        out = F.scaled_dot_product_attention(*(a.transpose(1, 2) for a in (q, k, v)))
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def add_time(block: torch.nn.Module) -> None:
    """x + attention over the frames of one clip, pixel by pixel, after a transformer block, under showlab's names."""
    attn, dim = block.attn1, block.norm1.weight.shape[0]
    block.norm_temp = torch.nn.LayerNorm(dim)
    block.attn_temp = diffusers.models.attention_processor.Attention(dim, heads=attn.heads, dim_head=dim // attn.heads)

    def after(block, _, x):
        over_time = x.transpose(0, 1)
        return x + block.attn_temp(block.norm_temp(over_time)).transpose(0, 1)

    block.register_forward_hook(after)


def sd(tuned: bool) -> torch.nn.Module:
    """diffusers' U-Net of Stable Diffusion 1.5, made Tune-A-Video's with `tuned`, random in every parameter."""
    with torch.device("meta"):
        model = diffusers.UNet2DConditionModel(cross_attention_dim=TOKENS[-1])
        if tuned:
            for name, module in model.named_modules():
                if name.endswith("attn1"):
                    module.set_processor(FirstAndPrevious())
            for module in model.modules():
                if isinstance(module, diffusers.models.attention.BasicTransformerBlock):
                    add_time(module)
    return steps.refill(model.to_empty(device="cpu").requires_grad_(False))


def ours(theirs: torch.nn.Module, **options: Any) -> UNet:
    """The same network here, with a copy of its weights."""
    model = nnx.eval_shape(lambda: UNet(UNetConfig(**options), rngs=nnx.Rngs(0)))
    load(model, {key: value.numpy() for key, value in theirs.state_dict().items()}, [*TUNE_A_VIDEO, *unet(2)])
    return model


def inputs(frames: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.standard_normal((1, frames, height, width, 4), dtype=np.float32)
    return x, random.standard_normal(TOKENS, dtype=np.float32)


def torch_forward(model: torch.nn.Module, x: np.ndarray, tokens: np.ndarray, options: Options) -> torch.Tensor:
    frames = rearrange(torch.from_numpy(x), "1 t h w c -> t c h w").to(options.device)
    context = torch.from_numpy(tokens).to(options.device).expand(len(frames), -1, -1)
    with options.autocast():
        return model(frames, torch.full((len(frames),), 501, device=options.device), context).sample


def our_forward(model: UNet, dtype: str = "float32") -> Callable:
    graph, params = nnx.split(model)
    params = cast(params, jnp.dtype(dtype))
    call = jit(lambda params, x, t, tokens: nnx.merge(graph, params)(x, t, tokens))
    return lambda x, tokens: call(params, x.astype(dtype), jnp.full(x.shape[:2], 501), tokens.astype(dtype))


def forward(options: Options) -> dict[str, Any]:
    """One frame of 64x64 latents: a picture of 512x512."""
    reference = sd(tuned=False)
    call, (x, tokens) = our_forward(ours(reference), options.dtype), inputs(1, 64, 64)
    model = options.theirs(reference)
    with torch.no_grad():
        relative = steps.apart(call(x, tokens), torch_forward(model, x, tokens, options), FRAMES)
        run = lambda: torch_forward(model, x, tokens, options).cpu()
        return {"difference": relative, **against(options.repeats, ours=lambda: call(x, tokens), torch=run)}


def video_model(network: UNet, remat: str) -> VideoModel:
    return VideoModel(network, {"text": StoredText(TOKENS[-1])}, StoredMoments(0.0, 0.18215), remat=remat)


OBJECTIVE = partial(objectives.diffusion, schedule=schedules.scaled_linear())


def batch_of(frames: int, height: int, width: int) -> dict[str, np.ndarray]:
    x, tokens = inputs(frames, height, width)
    return {"video": steps.moments(x), "tokens": tokens}


def tuning(size: tuple[int, int, int], options: Options, remat: str = "none") -> dict[str, Any]:
    """One step on one clip of (frames, height, width) latents."""
    reference = sd(tuned=True)
    network, (x, tokens) = ours(reference, block="tuned"), inputs(*size)
    got = our_forward(network, options.dtype)(x, tokens)
    model = options.theirs(reference)
    with torch.no_grad():
        relative = steps.apart(got, torch_forward(model, x, tokens, options), FRAMES)
    run, trained = steps.ours(
        video_model(network, remat), OBJECTIVE, batch_of(*size), options, strategy("tune_a_video").trainable
    )
    del network

    def loss() -> torch.Tensor:
        noise = torch.randn(x.shape[1], x.shape[-1], *x.shape[2:4], device=options.device)
        return F.mse_loss(torch_forward(model, x, tokens, options).float(), noise)

    own = lambda name: any(part in name for part in ("attn1.to_q.", "attn2.to_q.", "attn_temp."))
    run_theirs, count = steps.theirs(model, loss, options, own)
    assert count == trained
    sides = against(options.repeats, ours=run, torch=run_theirs)
    return {"difference": relative, "trained": trained, "remat": remat, **sides}


def frames(options: Options) -> dict[str, Any]:
    """Seconds a frame of a small U-Net's forward pass, by keys and frames; `growth`: at the most over at the fewest."""
    found: dict[str, Any] = {}
    for keys in ("first_and_previous", "all"):
        block = [("attn1", keys), ("attn2", "tokens"), ("ff", "ff"), ("attn_temp", "zero_time")]
        call = our_forward(UNet(UNetConfig(**SMALL, block=block), rngs=nnx.Rngs(0)))
        runs = {str(n): partial(call, *inputs(n, 16, 16)) for n in LENGTHS}
        each = {n: taken["median"] / int(n) for n, taken in in_turns(options.repeats, **runs).items()}
        growth = each[str(LENGTHS[-1])] / each[str(LENGTHS[0])]
        found[keys] = {"seconds_per_frame": each, "growth": growth}
    return found


def memory(options: Options) -> dict[str, Any]:
    """From the compiled steps alone: what the step's arguments take, and its intermediate results beside them."""
    step = make_train_step(OBJECTIVE, steps.optimizer(), 0, ema=0.0, dtype=options.dtype)
    batch = batch_of(*TUNING["tune_8x16x16"])
    found = {}
    for remat in REMAT:
        make = lambda remat=remat: video_model(UNet(UNetConfig(block="tuned"), rngs=nnx.Rngs(0)), remat)
        model = nnx.eval_shape(make)
        params, frozen = split(abstract_parameters(model), strategy("tune_a_video").trainable)
        moments = jax.eval_shape(steps.optimizer().init, params)
        count = jax.ShapeDtypeStruct((), jnp.int32)
        state = TrainState(count, params, frozen, moments, params, nnx.graphdef(model))
        sizes = jit(step, donate_argnums=0).lower(state, batch).compile().memory_analysis()
        found[remat] = {
            "arguments_gb": sizes.argument_size_in_bytes / 2**30,
            "intermediate_gb": sizes.temp_size_in_bytes / 2**30,
        }
    return found


ITEMS: dict[str, Callable[[Options], dict[str, Any]]] = {
    "forward": forward,
    **{name: partial(tuning, size) for name, size in TUNING.items()},
    "frames": frames,
    "memory": memory,
}
