"""LFDM's diffusion files: their keys and shapes, and one of random weights."""

import math

import numpy as np

from vidjax.models.flow_unet import FlowUNetConfig

SMALL = dict(in_channels=9, channels=(16, 32), heads=2, vector_dim=12)
Shapes = dict[str, tuple[int, ...]]


def layout(config: FlowUNetConfig) -> Shapes:
    """Keys and shapes of a released file, but for the schedule's tables."""
    made: Shapes = {}
    dims = (config.channels[0], *config.channels)
    emb, inner = 4 * dims[0], config.heads * config.head_dim

    def add(name, *shape, bias=True):
        made[f"{name}.weight"] = shape
        if bias:
            made[f"{name}.bias"] = shape[:1]

    def block(name, cin, cout, embedded=True):
        if embedded:
            add(f"{name}.mlp.1", 2 * cout, emb + (config.vector_dim or 0))
        for part, wide in (("block1", cin), ("block2", cout)):
            add(f"{name}.{part}.proj", cout, wide, 1, 3, 3)
            add(f"{name}.{part}.norm", cout)
        if cin != cout:
            add(f"{name}.res_conv", cout, cin, 1, 1, 1)

    def attention(name, dim, kind):
        made[f"{name}.fn.norm.gamma"] = (1, dim, 1, 1, 1)
        ones, inside = ((1, 1), f"{name}.fn.fn") if kind == "linear" else ((), f"{name}.fn.fn.fn")
        add(f"{inside}.to_qkv", 3 * inner, dim, *ones, bias=False)
        add(f"{inside}.to_out", dim, inner, *ones, bias=kind == "linear")
        if kind == "time":
            made[f"{inside}.rotary_emb.freqs"] = (min(32, config.head_dim) // 2,)

    def level(name, cin, cout):
        block(f"{name}.0", cin, cout)
        block(f"{name}.1", cout, cout)
        attention(f"{name}.2", cout, "linear")
        attention(f"{name}.3", cout, "time")

    add("time_rel_pos_bias.relative_attention_bias", 32, config.heads, bias=False)
    add("init_conv", dims[0], config.in_channels, 1, 7, 7)
    attention("init_temporal_attn", dims[0], "time")
    add("time_mlp.1", emb, dims[0])
    add("time_mlp.3", emb, emb)
    last = len(dims) - 2
    for i in range(last + 1):
        level(f"downs.{i}", dims[i], dims[i + 1])
        level(f"ups.{last - i}", 2 * dims[i + 1], dims[i])
        if i < last:
            add(f"downs.{i}.4", dims[i + 1], dims[i + 1], 1, 4, 4)
        if i:
            name, size = ("4", 4) if config.transposed else ("4.1", 3)
            add(f"ups.{last - i}.{name}", dims[i], dims[i], 1, size, size)
    block("mid_block1", dims[-1], dims[-1])
    attention("mid_spatial_attn", dims[-1], "space")
    attention("mid_temporal_attn", dims[-1], "time")
    block("mid_block2", dims[-1], dims[-1])
    for name, count in (("final_conv", config.out_channels - 1), ("occlusion_map", 1)):
        block(f"{name}.0", 2 * dims[0], dims[0], False)
        add(f"{name}.1", count, dims[0], 1, 1, 1)
    return {f"denoise_fn.{key}": shape for key, shape in made.items()}


def draw(config: FlowUNetConfig) -> dict[str, np.ndarray]:
    """A file of random weights, with a table of the schedule and NATOPS's null condition beside them."""
    rng, made = np.random.default_rng(0), {}
    for key, shape in layout(config).items():
        value = rng.standard_normal(shape, np.float32)
        if key.endswith("freqs"):
            value = 10_000 ** -(np.arange(*shape, dtype=np.float32) / shape[0])
        elif key.endswith((".gamma", ".norm.weight")):
            value = 1 + 0.3 * value
        elif len(shape) > 1 and "bias" not in key:
            value = value / np.float32(math.sqrt(math.prod(shape[1:])))
        made[key] = value
    return {
        **made,
        "betas": np.ones(1000, np.float32),
        "denoise_fn.null_cond_emb": np.full((1, config.vector_dim), 0.5, np.float32),
    }
