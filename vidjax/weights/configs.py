"""Converts configs of `diffusers` and `transformers` (plain JSON); what is not offered here is refused by name."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from vidjax.diffusion import schedule as schedules
from vidjax.diffusion.schedule import SPACINGS, Schedule
from vidjax.errors import InputError, check_range
from vidjax.models.autoencoder import STABLE_DIFFUSION, AutoencoderConfig
from vidjax.models.clip import ACTIVATIONS, ClipImageConfig, ClipTextConfig
from vidjax.models.layers import Over
from vidjax.models.unet import Temporal, UNetConfig
from vidjax.settings import choose
from vidjax.weights.convert import Rules
from vidjax.weights.diffusers import MODELSCOPE, TUNE_A_VIDEO

Config = Mapping[str, Any]

CLASSES = {name: name for name in ("UNet2DConditionModel", "UNet3DConditionModel")}
NOT_YET = {"T2IAdapter": "a T2I-Adapter"}
READ = "Stable Diffusion 1 and 2, Tune-A-Video, ModelScope, ZeroScope, AnimateDiff, Stable Video Diffusion, I2VGen-XL"
NORM_OVER = "vidjax_norm_over"  # in a folder of Tune-A-Video that was written here, if not as its code computes
SILU = ("silu", "swish")
UNET = {  # key: the values that the U-Net here stands for
    "act_fn": SILU,
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "center_input_sample": (False,),
    "downsample_padding": (1,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock3DCrossAttn"),
    "norm_eps": (1e-5,),
    "only_cross_attention": (False,),
    "mid_block_only_cross_attention": (None, False),
    "dual_cross_attention": (False,),
    "cross_attention_norm": (None,),
    "attention_type": ("default",),
    "transformer_layers_per_block": (1,),
    "encoder_hid_dim": (None,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "addition_embed_type": (None,),
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
}
AUTOENCODER = {
    "act_fn": SILU,
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
    "mid_block_add_attention": (True,),
    "latents_mean": (None,),
    "latents_std": (None,),
}
TOWER = {  # the most that a text encoder or an image encoder may have: several times those of the largest CLIP
    "num_hidden_layers": 256,
    "num_attention_heads": 512,
    "hidden_size": 2**16,
    "intermediate_size": 2**18,
    "max_position_embeddings": 2**16,
    "vocab_size": 2**24,
}
SCHEDULER = {"clip_sample": (False,), "thresholding": (False,), "use_beta_sigmas": (None, False)}
SCHEDULER_FILE = "scheduler/scheduler_config.json"
BY_NOISE = {"use_karras_sigmas": "karras", "use_lu_lambdas": "logsnr", "use_exponential_sigmas": "logsnr"}
SAMPLER_OF = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "pndm",
    "EulerDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "heun",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "UniPCMultistepScheduler": "unipc",
}
# The default of the class in `diffusers` first, what the sampler here does last.
OPTIONS = {
    "DDPMScheduler": {"variance_type": ("fixed_small",)},
    "PNDMScheduler": {"skip_prk_steps": (False, True), "prediction_type": ("epsilon",)},
    "DPMSolverMultistepScheduler": {
        "algorithm_type": ("dpmsolver++",),
        "solver_order": (2,),
        "solver_type": ("midpoint",),
        "lower_order_final": (True,),
        "euler_at_final": (False,),
    },
    "UniPCMultistepScheduler": {
        "solver_order": (2,),
        "solver_type": ("bh2",),
        "predict_x0": (True,),
        "lower_order_final": (True,),
        "disable_corrector": ([],),
        "solver_p": (None,),
    },
}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


def expect(config: Config, known: Mapping[str, Sequence], where: str) -> None:
    """Raises InputError for the first key whose value is none of those known; absent keys have them by default."""
    for key, values in known.items():
        if config.get(key, values[0]) not in values:
            allowed = " or ".join(map(repr, values))
            raise InputError(f"{where}: {key} is {config[key]!r}, which is not supported; only {allowed} is")


def require(config: Config, keys: Sequence[str], where: str) -> None:
    """Raises InputError for the first key that a config.json lacks."""
    for key in keys:
        if key not in config:
            raise InputError(f"{where}: {key} is missing: get the file again")


def class_of(config: Config, known: Mapping[str, str], where: str) -> str:
    """Reads the class that a config.json names. Raises InputError unless it is known, with its family's name."""
    name = config.get("_class_name", "")
    if isinstance(name, str) and name in NOT_YET:
        raise InputError(f"{where}: _class_name is {name!r}: {NOT_YET[name]}, which is not read yet; {READ} are")
    return choose(name, known, f"{where}: _class_name")


def unet_config(config: Config, norm_over: Over | None = None) -> tuple[UNetConfig, Rules]:
    """Converts a U-Net's config.json; also returns its family's own rules on keys, which go before `diffusers.unet`.

    norm_over: of ResBlocks; by default what the config says under NORM_OVER, which only folders written here do, else
    as the class of that name computes: Tune-A-Video's over the clip, all others over the frame. Raises InputError.
    """
    where = "unet/config.json"
    name = class_of(config, CLASSES, where)
    expect(config, UNET, where)
    require(config, ("block_out_channels", "down_block_types", "up_block_types", "cross_attention_dim"), where)
    if name == "UNet3DConditionModel" and "flip_sin_to_cos" not in config:
        name = "ModelScope"  # a namesake: showlab's class has that option, diffusers' has not
    written = config.get(NORM_OVER, "clip" if name == "UNet3DConditionModel" else "frame")
    norm_over = norm_over or choose(written, {"frame": "frame", "clip": "clip"}, f"{where}: {NORM_OVER}")
    dims = "2" if name == "UNet2DConditionModel" else "3"
    attend = tuple(kind == f"CrossAttnDownBlock{dims}D" for kind in config["down_block_types"])
    kinds = [("CrossAttn" if yes else "") + "{}Block" + dims + "D" for yes in attend]
    for key, expected in (("down", [k.format("Down") for k in kinds]), ("up", [k.format("Up") for k in kinds[::-1]])):
        if list(config[f"{key}_block_types"]) != expected:
            raise InputError(
                f"{where}: {key}_block_types {config[f'{key}_block_types']} is not supported; {expected} is"
            )
    channels = tuple(config["block_out_channels"])
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    common: dict[str, Any] = dict(
        in_channels=config.get("in_channels", 4),
        out_channels=config.get("out_channels", 4),
        channels=channels,
        blocks_per_level=config.get("layers_per_block", 2),
        attention_levels=attend,
        tokens_dim=config["cross_attention_dim"],
        groups=config.get("norm_num_groups", 32),
        norm_over=norm_over,
    )
    if name == "ModelScope":  # here the number is the features of a head
        features = config.get("attention_head_dim", 64)
        heads = tuple(c // features for c in channels)
        video = dict(after_resnet="convs", after_attention=Temporal(heads, attend), stem_heads=(8, features))
        return UNetConfig(**common, heads=heads, **video), MODELSCOPE
    common["heads"] = heads  # for all its name
    if name == "UNet3DConditionModel":
        return UNetConfig(**common, block="tuned"), TUNE_A_VIDEO
    return UNetConfig(**common), []


def autoencoder_config(config: Config) -> tuple[AutoencoderConfig, dict[str, float]]:
    """Converts an AutoencoderKL's config.json; also returns `shift` and `scale` of its latents. Raises InputError."""
    where = "vae/config.json"
    class_of(config, {"AutoencoderKL": "AutoencoderKL"}, where)
    require(config, ("block_out_channels",), where)
    channels, n = tuple(config["block_out_channels"]), config.get("layers_per_block", 1)
    levels, pixels = len(channels), config.get("in_channels", 3)
    known = {
        "down_block_types": (["DownEncoderBlock2D"] * levels,),
        "up_block_types": (["UpDecoderBlock2D"] * levels,),
        "out_channels": (pixels,),
    }
    expect(config, {**AUTOENCODER, **known}, where)
    ours = dataclasses.replace(
        STABLE_DIFFUSION,
        latent_channels=config.get("latent_channels", 4),
        channels=channels,
        blocks=(n,) * levels,
        decoder_blocks=(n + 1,) * levels,
        steps=((1, 2, 2),) * (levels - 1),
        groups=config.get("norm_num_groups", 32),
        in_channels=pixels,
    )
    return ours, {
        "shift": -float(config.get("shift_factor") or 0),
        "scale": float(config.get("scaling_factor", 0.18215)),
    }


def clip_text_config(config: Config) -> ClipTextConfig:
    """Converts a CLIP text encoder's config.json. Raises InputError."""
    where = "text_encoder/config.json"
    name = (config.get("architectures") or ["CLIPTextModel"])[0]
    projected = choose(name, {"CLIPTextModel": False, "CLIPTextModelWithProjection": True}, f"{where}: architecture")
    expect(config, {"use_attention_mask": (False,)}, where)
    return clip_text_tower(config, where, config.get("projection_dim", 512) if projected else None)


def clip_text_tower(config: Config, where: str, projection: int | None) -> ClipTextConfig:
    """The text tower in a config that has no other; absent keys have transformers' defaults."""
    return ClipTextConfig(
        **tower(config, where, dim=512, hidden=2048, heads=8),
        projection=projection,
        vocabulary=config.get("vocab_size", 49408),
        length=config.get("max_position_embeddings", 77),
        eos=config.get("eos_token_id", 49407),
    )


def tower(config: Config, where: str, dim: int, hidden: int, heads: int) -> dict[str, Any]:
    """What the configs of both towers call alike. Raises InputError."""
    expect(config, {"hidden_act": ("quick_gelu", *ACTIVATIONS)}, where)
    for key, most in TOWER.items():
        check_range(f"{where}: ", 1, most, **{key: config.get(key, 1)})
    return dict(
        dim=config.get("hidden_size", dim),
        hidden=config.get("intermediate_size", hidden),
        layers=config.get("num_hidden_layers", 12),
        heads=config.get("num_attention_heads", heads),
        activation=config.get("hidden_act", "quick_gelu"),
        eps=config.get("layer_norm_eps", 1e-5),
    )


def clip_configs(config: Config, preprocessor: Config) -> tuple[ClipTextConfig, ClipImageConfig]:
    """Converts a CLIPModel's config.json and preprocessor_config.json: both towers with their projections.

    Raises InputError.
    """
    where = "config.json"
    choose((config.get("architectures") or ["CLIPModel"])[0], {"CLIPModel": None}, f"{where}: architecture")
    # Files of 2022 have the keys that differ from the defaults in a second place.
    text, image = (
        {**(config.get(f"{n}_config") or {}), **(config.get(f"{n}_config_dict") or {})} for n in ("text", "vision")
    )
    shared = config.get("projection_dim", 512)
    expect(image, {"num_channels": (3,)}, f"{where}: vision_config")
    size = image.get("image_size", 224)
    return clip_text_tower(text, f"{where}: text_config", shared), ClipImageConfig(
        **tower(image, f"{where}: vision_config", dim=768, hidden=3072, heads=12),
        projection=shared,
        size=size,
        patch=image.get("patch_size", 32),
        **pixel_range(preprocessor, size),
    )


def pixel_range(preprocessor: Config, size: int) -> dict[str, tuple[float, ...]]:
    """Reads `mean` and `std` of a CLIPImageProcessor that scales the shorter side to `size`, then crops.

    Raises InputError for any other one.
    """
    known = {
        "do_resize": (True,),
        "do_center_crop": (True,),
        "do_rescale": (True,),
        "do_normalize": (True,),
        "resample": (3,),
        "rescale_factor": (1 / 255,),
        "size": ({"shortest_edge": size}, size),
        "crop_size": ({"height": size, "width": size}, size),
    }
    expect({"size": 224, "crop_size": 224, **preprocessor}, known, "preprocessor_config.json")
    defaults = {"mean": ClipImageConfig.mean, "std": ClipImageConfig.std}
    return {name: tuple(preprocessor.get(f"image_{name}", value)) for name, value in defaults.items()}


def schedule(config: Config) -> tuple[Schedule, str]:
    """Converts a scheduler_config.json, whatever sampler it names, to (Schedule, prediction).

    Raises InputError.
    """
    where = SCHEDULER_FILE
    expect(config, SCHEDULER, where)
    if config.get("timestep_type") == "continuous":
        return continuous_schedule(config)
    steps = config.get("num_train_timesteps", 1000)
    ends = dict(
        zero_snr=config.get("rescale_betas_zero_snr", False),
        set_alpha_to_one=config.get("set_alpha_to_one", config.get("_class_name") != "PNDMScheduler"),
    )
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    kinds = {
        "linear": lambda: schedules.linear(steps, start, end, **ends),
        "scaled_linear": lambda: schedules.scaled_linear(steps, start, end, **ends),
        "squaredcos_cap_v2": lambda: schedules.cosine(steps, **ends),
    }
    betas = config.get("trained_betas")
    if betas is not None:
        made = schedules.table(betas, **ends)
    else:
        made = choose(config.get("beta_schedule", "linear"), kinds, f"{where}: beta_schedule")()
    prediction = choose(config.get("prediction_type", "epsilon"), PREDICTIONS, f"{where}: prediction_type")
    spacing = next((name for key, name in BY_NOISE.items() if config.get(key)), config.get("timestep_spacing"))
    last = choose(
        config.get("final_sigmas_type", "zero"), {"zero": None, "sigma_min": 0.0}, f"{where}: final_sigmas_type"
    )
    return dataclasses.replace(
        made,
        spacing=None if spacing is None else choose(spacing, {s: s for s in SPACINGS}, f"{where}: timestep_spacing"),
        offset=config.get("steps_offset", 0),
        sigma_end=last,
    ), prediction


def continuous_schedule(config: Config) -> tuple[Schedule, str]:
    """Converts an EulerDiscreteScheduler's config whose network is told log(sigma) / 4: EDM's (Karras et al. 2022), as
    Stable Video Diffusion has it. Training draws the noise levels of SVD_Xtend. Raises InputError."""
    known = {
        "prediction_type": ("v_prediction",),
        "use_karras_sigmas": (True,),
        "timestep_spacing": ("leading", "trailing", "linspace"),  # of no consequence beside the sigmas of Karras
        "final_sigmas_type": ("zero",),
    }
    expect({"prediction_type": None, "use_karras_sigmas": None, **config}, known, SCHEDULER_FILE)
    ends = {name: config.get(name) for name in ("sigma_min", "sigma_max")}
    if not all(isinstance(value, int | float) and value > 0 for value in ends.values()):
        raise InputError(f"{SCHEDULER_FILE}: sigma_min or sigma_max is missing; Stable Video Diffusion has 0.002, 700")
    return schedules.edm(**ends, mean=0.7, std=1.6), "v"


def sampler(config: Config) -> tuple[str, str]:
    """Converts the scheduler's class to a name in `diffusion.samplers.SAMPLERS`; also returns what of the
    scheduler_config.json that sampler does not do, "" for nothing."""
    name = config.get("_class_name", "DDIMScheduler")
    if not isinstance(name, str) or name not in SAMPLER_OF:
        return "ddim", f"{SCHEDULER_FILE} names {name!r}, which is not offered: ddim takes its place"
    for key, known in OPTIONS.get(name, {}).items():
        if config.get(key, known[0]) != known[-1]:
            asked = config.get(key, known[0])
            return SAMPLER_OF[name], f"{SCHEDULER_FILE}: {key}={asked!r} of {name} is not offered: {known[-1]!r} is"
    return SAMPLER_OF[name], ""
