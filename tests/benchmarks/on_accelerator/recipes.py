"""The stages that are timed, without their data and weights: shapes from configs, numbers at random."""

import dataclasses
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from flax import nnx
from tiny_folder import CONFIGS, STABLE_DIFFUSION_1, STABLE_VIDEO, write_configs

from vidjax import settings
from vidjax.models.parameters import Params, abstract_parameters, merge
from vidjax.recipes import build as recipe
from vidjax.runtime import sharding
from vidjax.training.loop import at_step_0
from vidjax.training.stage import Stage
from vidjax.training.state import TrainState

ROOT = Path(__file__).parents[3]
DIFFUSERS = {
    **STABLE_DIFFUSION_1,
    "unet": dict(
        CONFIGS["unet"],
        sample_size=64,
        block_out_channels=[320, 640, 1280, 1280],
        down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        layers_per_block=2,
        cross_attention_dim=768,
        attention_head_dim=8,
        norm_num_groups=32,
    ),
}
SVD = {  # at full size
    **STABLE_VIDEO,
    "unet": dict(
        STABLE_VIDEO["unet"],
        block_out_channels=[320, 640, 1280, 1280],
        down_block_types=["CrossAttnDownBlockSpatioTemporal"] * 3 + ["DownBlockSpatioTemporal"],
        up_block_types=["UpBlockSpatioTemporal"] + ["CrossAttnUpBlockSpatioTemporal"] * 3,
        layers_per_block=2,
        num_attention_heads=[5, 10, 20, 20],
        cross_attention_dim=1024,
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=768,
        num_frames=14,
    ),
    "vae": dict(
        STABLE_VIDEO["vae"],
        block_out_channels=[128, 256, 512, 512],
        down_block_types=["DownEncoderBlock2D"] * 4,
    ),
    "image_encoder": dict(
        STABLE_VIDEO["image_encoder"],
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=16,
        patch_size=14,
        projection_dim=1024,
    ),
}
# Item: (recipe, variant, stage, batches per device to be timed, the smallest first).
STAGES: dict[str, tuple[str, tuple[str, ...], str, tuple[int, ...]]] = {
    "sky_diffusion": ("lvdm", ("sky",), "diffusion", (16,)),
    "sky_autoencoder": ("lvdm", ("sky",), "autoencoder", (1, 4, 16)),
    "lvdm_text": ("lvdm_text", (), "diffusion", (1, 4, 16)),
    "vdm": ("vdm", ("ucf101",), "diffusion", (4, 16, 64)),
    "imagen_base": ("imagen_video", (), "base", (2, 8, 32)),
    "imagen_temporal": ("imagen_video", (), "temporal", (2, 8, 32)),
    "imagen_spatial": ("imagen_video", (), "spatial", (2, 8, 32)),
    "tune": ("tune_a_video", (), "tune", (1,)),
    "animate_diff": ("animate_diff", ("clips",), "motion", (1,)),
    "svd": ("svd", (), "tune", (1,)),
}
FOLDERS = {"tune": DIFFUSERS, "animate_diff": DIFFUSERS, "svd": SVD}  # of what is pretrained
TOY = {  # in place of those
    "sky_diffusion": ("pixels", "diffusion"),
    "sky_autoencoder": ("latent", "autoencoder"),
}
IDS = 50  # of words: all vocabularies have as many


def build(name: str, small: bool, folder: Path) -> tuple[dict[str, Any], Stage, tuple[int, ...]]:
    """(config, stage, batches per device)."""
    file, variant, stage, batches = STAGES[name]
    if small and name in TOY:
        variant, stage = TOY[name]
        config = tiny.get_config(variant)
        batches = (2,)
    else:
        config = runpy.run_path(str(ROOT / "configs" / f"{file}.py"))["get_config"](*variant)
        if "pretrained" in config:
            config.pretrained = str(write_configs(folder / name, CONFIGS if small else FOLDERS[name]))
        if name == "animate_diff":
            config.update(motion_adapter="v3", prompt="a fox walks")
        if name in ("animate_diff", "svd"):
            config.data.path = str(ROOT / "vidjax" / "clips" / "real")
        if name == "tune":
            config.prompt = "a fox walks"
            config.data.video = str(ROOT / "vidjax" / "clips" / "real" / "path.mp4")
            if small:
                config.data.frames, config.data.size = 2, (16, 16)
    config = settings.checked(config)
    return config, recipe.build(config, stage, folder), batches


def at_batch(stage: Stage, size: int) -> Stage:
    """The stage with another batch size, worked off at once."""
    return dataclasses.replace(stage, train=dataclasses.replace(stage.train, batch_size=size, accumulate=1))


def fill(shapes: Params, dtype: Any = None) -> Params:
    """Parameters on the host that keep the size of what passes through them: the same random numbers again and again,
    as a billion of new ones would take long."""
    noise, found = np.random.default_rng(0).standard_normal(1_000_003, np.float32), {}
    for path, shape in shapes.items():
        fan_in = np.prod(shape.shape[:-1]) if len(shape.shape) > 1 else 1e4
        values = np.resize(noise, shape.shape) * np.float32(fan_in**-0.5)
        values = 1 + values if path.endswith("scale") else values
        found[path] = values.astype(dtype or shape.dtype)
    return found


def draw_state(stage: Stage, mesh: jax.sharding.Mesh) -> TrainState:
    """The state at step 0 over a mesh."""
    model = stage.abstract()
    graphdef, shapes = nnx.graphdef(model), abstract_parameters(model)
    params = {path: jnp.asarray(value) for path, value in fill(shapes).items()}
    state = at_step_0(stage, merge(graphdef, params))
    return jax.device_put(state, sharding.tree_sharding(mesh, state))


def draw_batch(shapes: Mapping[str, Any]) -> dict[str, Any]:
    """A batch of these shapes: pixels, moments, features, ids; labels are 0."""
    random = np.random.default_rng(1)

    def draw(path: Any, shape: Any) -> np.ndarray:
        if jnp.issubdtype(shape.dtype, jnp.floating):
            return random.standard_normal(shape.shape, np.float32).astype(shape.dtype)
        most = 256 if shape.dtype == np.uint8 else 1 if path[-1].key == "label" else IDS
        return random.integers(0, most, shape.shape).astype(shape.dtype)

    return jax.tree_util.tree_map_with_path(draw, dict(shapes))
