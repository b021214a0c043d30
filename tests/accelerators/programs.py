"""Programs of shipped recipes for accelerators that are not there: widths and depths shrunk, so that they compile in
seconds; frames, pixels and so tokens as the recipe has them, so that the same kernels are chosen."""

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from test_configs import config
from tiny_folder import CONFIGS, I2VGEN, STABLE_VIDEO, VIDEO, write_configs

from vidjax.data.transforms import to_uint8
from vidjax.diffusion.guidance import classifier_free
from vidjax.diffusion.samplers import SAMPLERS, ddim_inverse, sample
from vidjax.models.conditioning import embed, nulls
from vidjax.models.parameters import abstract_parameters, cast, merge
from vidjax.profiling import chips, costs
from vidjax.profiling import layers as profiling
from vidjax.recipes import build as recipe
from vidjax.recipes.config import tunes
from vidjax.recipes.diffusion import process
from vidjax.runtime import sharding
from vidjax.runtime.compiling import jit
from vidjax.settings import stage_settings
from vidjax.training.lowering import lower_step
from vidjax.training.stage import Stage
from vidjax.weights import pretrained

WIDTH, HEADS = 64, 2
# Of the compilers: a quarter of the time, the same kernels, collectives and dtypes. Processor seconds of the step of a
# one-level U-Net for a v5e: 82 with the defaults, 22 so.
QUICK = {
    "tpu": {"exec_time_optimization_effort": -1.0, "memory_fitting_effort": -1.0},
    "gpu": {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
}
# What folders have around their U-Nets of one level, whose blocks are one in the middle and one on the way up: 64x64
# latents of 512x512 pixels, 77 words, pictures as 257 tokens.
UNET = dict(sample_size=64, block_out_channels=[WIDTH], cross_attention_dim=WIDTH, layers_per_block=0)
VAE = dict(
    block_out_channels=[8] * 4,
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    layers_per_block=0,
)
TEXT = dict(hidden_size=WIDTH, max_position_embeddings=77)
PICTURE = dict(hidden_size=WIDTH, projection_dim=WIDTH, patch_size=14, image_size=224)
PICTURES = dict(image_encoder=PICTURE, feature_extractor=dict(crop_size=224, size=224))
FOLDERS = {  # by recipe: the folder of tests, and what it has of a real one; all others tune a Stable Diffusion 1
    "motion_director": (
        {**CONFIGS, "unet": VIDEO},
        dict(unet=UNET | dict(attention_head_dim=WIDTH // HEADS), vae=VAE, text_encoder=TEXT),
    ),
    "svd": (
        STABLE_VIDEO,
        dict(
            unet=UNET | dict(num_attention_heads=[HEADS]),
            vae=VAE | dict(block_out_channels=[32] * 4, layers_per_block=2),
            **PICTURES,
        ),
    ),
    "i2vgen": (
        I2VGEN,
        dict(unet=UNET | dict(attention_head_dim=WIDTH // HEADS), vae=VAE, text_encoder=TEXT, **PICTURES),
    ),
}
FOLDERS["videocrafter"] = FOLDERS["motion_director"]  # whose layers are those of its second version
IMAGE = (CONFIGS, dict(unet=UNET | dict(attention_head_dim=HEADS), vae=VAE, text_encoder=TEXT))


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program: its text and the dtype that its networks compute in; of a training step how many arguments it
    may keep, the bytes of one device's arguments by their shapes, and the compiler's account of its memory."""

    text: str
    dtype: str
    state: int = 0
    given: int = 0
    memory: Any = None


@functools.cache
def mesh_of(topology: str, axes: tuple[int, ...]) -> jax.sharding.Mesh:
    return sharding.make_mesh(*axes, devices=chips.devices(topology))


def shrunk(name: str, stage: str, ways: int) -> dict[str, Any]:
    """The config of a recipe with one block, on the way up, in each level down to the first with attention, `WIDTH`
    features, one clip for each of `ways` devices, two where it accumulates; an autoencoder to train halves once."""
    made, recipe_name = config(name), name.split(":")[0]
    if "pretrained" in made:
        made["pretrained"] = _folder(recipe_name)
        if "text_encoder" in FOLDERS.get(recipe_name, IMAGE)[0]:
            made["prompt"] = "th"
        if made.get("finetune", {}).get("prior"):
            made["finetune"]["prior"]["prompt"] = "th"
    if "motion_adapter" in made:  # with modules in the middle, too: what follows them has gradients
        made["motion_adapter"] = "v2"
    if "rank" in made.get("finetune", {}):
        made["finetune"]["rank"] = 4
    common = made.get("model", {})
    for section in (made, *made["stages"].values()):
        model = {**common, **section.get("model", {})}
        if "model" in section and "channels" in model:
            section["model"] = _narrow(model)
        train = section.get("train", {})
        if "batch_size" in train:
            train["accumulate"] = min(train.get("accumulate", 1), 2)
            train["batch_size"] = ways * train["accumulate"]
        for part in section.get("discriminator", {}).values():
            part |= dict(channels=16, layers=1, groups=4)
    text = made.get("conditioning", {}).get("text", {})
    if "dim" in text:
        text |= dict(dim=WIDTH, layers=1, heads=HEADS)
    if "flow" in made:
        made["flow"] |= dict(width=16, region_width=16, widest=16, blocks=1, bottleneck=1, groups=8)
    if "autoencoder" in made:
        auto = made["autoencoder"]
        if stage == "autoencoder" and "steps" in auto:  # one of three that are alike
            auto |= {key: auto[key][:2] for key in ("channels", "blocks")} | {"steps": auto["steps"][:1]}
            auto |= {key: auto[key][-2:] for key in ("decoder_channels", "decoder_blocks")}
            auto["decoder_steps"] = auto["decoder_steps"][-1:]
        auto |= dict(channels=[8] * len(auto["channels"]), groups=4, blocks=[min(n, 1) for n in auto["blocks"]])
        auto["decoder_blocks"] = [min(n, 1) for n in auto["decoder_blocks"]]
        if auto.get("decoder_channels"):
            auto["decoder_channels"] = [8] * (len(auto["channels"]) - 1) + [auto["latent_channels"]]
    return made


def _narrow(model: dict[str, Any]) -> dict[str, Any]:
    levels, attend = len(model["channels"]), model.get("attention_levels", True)
    attend = [attend] * levels if isinstance(attend, bool) else list(attend)
    depth = attend.index(True) + 1 if True in attend else levels
    narrow = dict(channels=[WIDTH] * depth, attention_levels=attend[:depth], heads=HEADS, blocks_per_level=0)
    return {**model, **narrow}


@functools.cache
def _folder(name: str) -> str:
    """What a recipe tunes, without weights."""
    configs, own = FOLDERS.get(name, IMAGE)
    configs = {part: {**config, **own.get(part, {})} for part, config in configs.items()}
    return str(write_configs(Path(tempfile.mkdtemp()) / "folder", configs))


def built(name: str, stage: str, topology: str, axes: tuple[int, ...]) -> tuple[dict[str, Any], Stage, Any, chips.Chip]:
    """(config, stage, mesh, chip) of a shrunk recipe."""
    chip, _ = chips.named(topology)
    mesh = mesh_of(topology, axes)
    made = shrunk(name, stage, axes[0] * axes[1])
    made["mesh"] = dict(zip(sharding.AXES, axes))
    return made, recipe.build(made, stage, Path(tempfile.gettempdir()) / "nowhere"), mesh, chip


def compiled(lowered: Any, chip: chips.Chip) -> Any:
    return lowered.compile(compiler_options={**chips.COMPILER_OPTIONS[chip.platform], **QUICK[chip.platform]})


def training(name: str, stage_name: str, topology: str, axes: tuple[int, ...] = (1, 1, 1, 1)) -> Program:
    """The training step of a stage."""
    made, stage, mesh, chip = built(name, stage_name, topology, axes)
    batch = recipe.example_batch(made, stage)
    with chips.lowering_for(chip):
        lowered, state = lower_step(stage, mesh, batch)
    program = compiled(lowered, chip)
    kept = len(jax.tree.leaves((state.params, state.opt_state, state.ema)))
    clips = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch)) // (axes[0] * axes[1])
    given = sum(map(costs.own_bytes, jax.tree.leaves(state))) + clips
    return Program(program.as_text(), stage.train.dtype, kept, given, program.memory_analysis())


def using(what: str, name: str, stage_name: str, topology: str, axes: tuple[int, ...] = (1, 1, 1, 1)) -> Program:
    """A program that uses the model of a stage, in the dtype that it trains in: "sampling" by two steps with guidance,
    "inversion" by two, "encoding" or "decoding" a batch of clips."""
    made, stage, mesh, chip = built(name, stage_name, topology, axes)
    dtype, size = stage.train.dtype, stage.train.batch_size
    if tunes(section := stage_settings(made, stage_name)):
        known = pretrained.load(made["pretrained"], weights=False)
        model, schedule, prediction = stage.start(False)[0], known.schedule, known.prediction
    else:
        model, (schedule, prediction) = stage.abstract(), process(section)
    graphdef = nnx.graphdef(model)
    network = lambda params: merge(graphdef, cast(params, jnp.dtype(dtype)))
    whole = lambda shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.batch_sharding(mesh))
    params = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding.parameter_sharding(mesh, path, leaf.shape))
        for path, leaf in abstract_parameters(model).items()
    }
    batch = {"label": whole((size,), jnp.int32)}
    if stage.tokenize:
        batch["tokens"] = whole((size, len(stage.tokenize(""))), jnp.int32)
    video = whole((size, stage.data.frames, *stage.data.hw, made["model"].get("in_channels", 3)), jnp.uint8)
    latents = jax.eval_shape(lambda params, video: network(params).latents(video), params, video)
    x, times = whole(latents.shape), np.asarray(schedule.timesteps(2), np.float32)

    def sampling(net, batch, x):
        ask = lambda batch: net.denoiser(schedule, prediction, embed(net.embedders, batch))
        denoise = classifier_free(schedule, ask(batch), ask(nulls(net.embedders, batch)), 2.0, prediction=prediction)
        return sample(denoise, schedule, x, times, 2, SAMPLERS["ddim"](), jax.random.key(0))

    def inversion(net, batch, x):
        denoise = net.denoiser(schedule, prediction, embed(net.embedders, batch))
        return sample(denoise, schedule, x, times[::-1], 2, ddim_inverse(), jax.random.key(0))

    programs: dict[str, tuple[Callable, tuple]] = {
        "sampling": (sampling, (params, batch, x)),
        "inversion": (inversion, (params, batch, x)),
        "encoding": (lambda net, video: net.latents(video), (params, video)),
        "decoding": (lambda net, x: to_uint8(net.pixels(x)), (params, x)),
    }
    function, arguments = programs[what]

    def program(params, *rest):
        net = network(params)
        with profiling.layer_names(net):
            return function(net, *rest)

    with jax.set_mesh(mesh), chips.lowering_for(chip):
        lowered = jit(program).lower(*arguments)
    return Program(compiled(lowered, chip).as_text(), dtype)
