"""Stable Diffusion's U-Net here and in torch: seconds of a forward pass and of a tuning step, and what both cost.

    python tests/benchmarks/against_torch.py [--items forward tune_4x32x32 ...] [--repeats 7] [--json FILE]

Both sides have the same random weights, frames and trained parameters in fp32, and take turns in one process; `ratio`
is our median over theirs, below 1 where ours is faster. `load` is the machine's afterwards: above the number of cores
others had a share of them, which costs torch's threads, that wait for each other, more than ours; then `min` tells
more. Theirs is `diffusers` (scaled_dot_product_attention) on frames
in the batch; a tuning step is Tune-A-Video's (Wu et al. 2023): self-attention whose keys are the first and the previous
frame, an attention over time after each block, gradients for all queries and the attention over time alone, norm
clipped, AdamW. Ours is `make_train_step` with a clip's moments and features, as `configs/tune_a_video.py` runs it.

    frames     forward of a small U-Net at 8 to 64 frames of 16x16, its keys first and previous frame, or all
    memory     bytes that XLA plans for the tuning step at 8 frames of 16x16 under each rematerialisation policy
"""

import argparse
import datetime
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from flax import nnx

from vidjax import objectives, results
from vidjax.diffusion import schedule as schedules
from vidjax.encoded import StoredMoments, StoredText
from vidjax.finetune import strategy
from vidjax.models.unet import REMAT, UNet, UNetConfig
from vidjax.optim import make_optimizer
from vidjax.train_state import TrainState, abstract_parameters, split
from vidjax.train_step import make_train_step
from vidjax.video_model import VideoModel
from vidjax.weights.convert import load
from vidjax.weights.diffusers import TUNE_A_VIDEO, unet

TOKENS = (1, 77, 768)
TUNING = {"tune_4x32x32": (4, 32, 32), "tune_8x16x16": (8, 16, 16)}
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


def reference(tuned: bool) -> torch.nn.Module:
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
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.normal_(0.0, 0.1 if p.ndim == 1 else p[0].numel() ** -0.5, generator=generator)
    return model


def ours(theirs: torch.nn.Module, **options: Any) -> UNet:
    """The same network here, with a copy of its weights."""
    model = nnx.eval_shape(lambda: UNet(UNetConfig(**options), rngs=nnx.Rngs(0)))
    load(model, {key: value.numpy() for key, value in theirs.state_dict().items()}, [*TUNE_A_VIDEO, *unet(2)])
    return model


def inputs(frames: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.standard_normal((1, frames, height, width, 4), dtype=np.float32)
    return x, random.standard_normal(TOKENS, dtype=np.float32)


def torch_forward(model: torch.nn.Module, x: np.ndarray, tokens: np.ndarray) -> torch.Tensor:
    frames = rearrange(torch.from_numpy(x), "1 t h w c -> t c h w")
    context = torch.from_numpy(tokens).expand(len(frames), -1, -1)
    return model(frames, torch.full((len(frames),), 501), context).sample


def our_forward(model: UNet) -> Callable:
    graph, params = nnx.split(model)
    call = jax.jit(lambda params, x, t, tokens: nnx.merge(graph, params)(x, t, tokens))
    return lambda x, tokens: call(params, x, jnp.full(x.shape[:2], 501), tokens)


def difference(got: Any, expected: torch.Tensor) -> float:
    wanted = rearrange(expected.detach().numpy(), "t c h w -> 1 t h w c")
    return float(np.linalg.norm(np.asarray(got) - wanted) / np.linalg.norm(wanted))


def in_turns(repeats: int, **sides: Callable[[], Any]) -> dict[str, Any]:
    """Wall and CPU seconds of each side, the first run of each, which compiles, apart."""
    first = {name: stopwatch(run)[0] for name, run in sides.items()}
    taken = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            taken[name].append(stopwatch(run))
    found: dict[str, Any] = {}
    for name, pairs in taken.items():
        wall, cpu = zip(*pairs)
        found[name] = {
            "median": statistics.median(wall),
            "min": min(wall),
            "max": max(wall),
            "cpu_median": statistics.median(cpu),
            "first": first[name],
        }
    return found


def stopwatch(run: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(run())
    return time.perf_counter() - wall, time.process_time() - cpu


def against(repeats: int, **sides: Callable[[], Any]) -> dict[str, Any]:
    found = in_turns(repeats, **sides)
    ratios = {
        kind: found["ours"][of] / found["torch"][of]
        for kind, of in (("ratio", "median"), ("ratio_min", "min"), ("ratio_cpu", "cpu_median"))
    }
    return {**ratios, "repeats": repeats, "load": os.getloadavg()[0], **found}


def forward(repeats: int) -> dict[str, Any]:
    """One frame of 64x64 latents: a picture of 512x512."""
    theirs = reference(tuned=False)
    call, (x, tokens) = our_forward(ours(theirs)), inputs(1, 64, 64)
    with torch.no_grad():
        relative = difference(call(x, tokens), torch_forward(theirs, x, tokens))
        run = lambda: torch_forward(theirs, x, tokens)
        return {"difference": relative, **against(repeats, ours=lambda: call(x, tokens), torch=run)}


def video_model(network: UNet, remat: str) -> VideoModel:
    return VideoModel(network, {"text": StoredText(TOKENS[-1])}, StoredMoments(0.0, 0.18215), remat=remat)


def our_step() -> tuple[Callable, Any]:
    """(step, optimizer) as the recipe has them; the schedule is Stable Diffusion's."""
    noise = schedules.scaled_linear()
    optimizer = make_optimizer(steps=500, learning_rate=3e-5, clip=1.0)
    return make_train_step(partial(objectives.diffusion, schedule=noise), optimizer, 0, ema=0.0), optimizer


def batch_of(frames: int, height: int, width: int) -> dict[str, np.ndarray]:
    x, tokens = inputs(frames, height, width)
    return {"video": np.concatenate([x, np.full_like(x, -30.0)], -1), "tokens": tokens}


def tuning(size: tuple[int, int, int], repeats: int, remat: str = "none") -> dict[str, Any]:
    """One step on one clip of (frames, height, width) latents."""
    theirs = reference(tuned=True)
    network, (x, tokens) = ours(theirs, block="tuned"), inputs(*size)
    with torch.no_grad():
        relative = difference(our_forward(network)(x, tokens), torch_forward(theirs, x, tokens))
    chosen = strategy("tune_a_video").trainable
    step, optimizer = our_step()
    states = [TrainState.create(video_model(network, remat), optimizer, chosen)]
    trained = sum(p.size for p in states[0].params.values())
    del network
    compiled, batch = jax.jit(step, donate_argnums=0), batch_of(*size)

    def run():
        states[0], metrics = compiled(states[0], batch)
        return metrics["loss"]

    run_theirs, count = torch_step(theirs, x, tokens)
    assert count == trained
    return {"difference": relative, "trained": trained, "remat": remat, **against(repeats, ours=run, torch=run_theirs)}


def torch_step(model: torch.nn.Module, x: np.ndarray, tokens: np.ndarray) -> tuple[Callable[[], float], int]:
    """(step, how many parameters it trains): those of `finetune.tune_a_video`."""
    names = ("attn1.to_q.", "attn2.to_q.", "attn_temp.")
    params = [p for name, p in model.named_parameters() if any(part in name for part in names)]
    for p in params:
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(params, lr=3e-5, weight_decay=1e-2, fused=True)

    def step() -> float:
        noise = torch.randn(x.shape[1], x.shape[-1], *x.shape[2:4])
        optimizer.zero_grad(set_to_none=True)
        loss = F.mse_loss(torch_forward(model, x, tokens), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        return loss.item()

    return step, sum(p.numel() for p in params)


def frames(repeats: int) -> dict[str, Any]:
    """Seconds a frame of a small U-Net's forward pass, by keys and frames; `growth`: at the most over at the fewest."""
    found: dict[str, Any] = {}
    for keys in ("first_and_previous", "all"):
        block = [("attn1", keys), ("attn2", "tokens"), ("ff", "ff"), ("attn_temp", "zero_time")]
        call = our_forward(UNet(UNetConfig(**SMALL, block=block), rngs=nnx.Rngs(0)))
        runs = {str(n): partial(call, *inputs(n, 16, 16)) for n in LENGTHS}
        each = {n: taken["median"] / int(n) for n, taken in in_turns(repeats, **runs).items()}
        growth = each[str(LENGTHS[-1])] / each[str(LENGTHS[0])]
        found[keys] = {"seconds_per_frame": each, "growth": growth}
    return found


def memory(repeats: int) -> dict[str, Any]:
    """From the compiled steps alone: what the step's arguments take, and its intermediate results beside them."""
    step, optimizer = our_step()
    batch = batch_of(*TUNING["tune_8x16x16"])
    found = {}
    for remat in REMAT:
        make = lambda remat=remat: video_model(UNet(UNetConfig(block="tuned"), rngs=nnx.Rngs(0)), remat)
        model = nnx.eval_shape(make)
        params, frozen = split(abstract_parameters(model), strategy("tune_a_video").trainable)
        moments = jax.eval_shape(optimizer.init, params)
        count = jax.ShapeDtypeStruct((), jnp.int32)
        state = TrainState(count, params, frozen, moments, params, nnx.graphdef(model))
        sizes = jax.jit(step, donate_argnums=0).lower(state, batch).compile().memory_analysis()
        found[remat] = {
            "arguments_gb": sizes.argument_size_in_bytes / 2**30,
            "intermediate_gb": sizes.temp_size_in_bytes / 2**30,
        }
    return found


ITEMS: dict[str, Callable[[int], dict[str, Any]]] = {
    "forward": forward,
    **{name: partial(tuning, size) for name, size in TUNING.items()},
    "frames": frames,
    "memory": memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", nargs="+", choices=ITEMS, default=list(ITEMS), help="others stay as in --json")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--machine", default=f"{platform.machine()}, {os.cpu_count()} cores")
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    before = json.loads(args.json.read_text())["items"] if args.json and args.json.exists() else {}
    figures = {
        "date": datetime.date.today().isoformat(),
        "machine": args.machine,
        "versions": results.versions() | {name: version(name) for name in ("jaxlib", "torch", "diffusers")},
        "command": " ".join(["python", "tests/benchmarks/against_torch.py", *sys.argv[1:]]),
        "items": before,
    }
    for name in args.items:
        figures["items"][name] = ITEMS[name](args.repeats)
        print(name, json.dumps(figures["items"][name], indent=1), flush=True)
        gc.collect()
        if args.json:
            args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
