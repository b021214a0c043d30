"""Reading a folder: its files, its configs, and what is said when they are not as they should be."""

import json
import shlex
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_folder import CONFIGS, write_configs

from vidjax.diffusion import schedule as schedules
from vidjax.errors import InputError
from vidjax.models.clip import ClipTextConfig
from vidjax.models.parameters import abstract_parameters
from vidjax.models.unet import UNetConfig
from vidjax.weights import configs, pretrained
from vidjax.weights.folder import Folder
from vidjax.weights.tensors import read

UNET = dict(
    _class_name="UNet2DConditionModel",
    block_out_channels=[32, 64],
    down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
    up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
    cross_attention_dim=24,
    attention_head_dim=4,
    layers_per_block=1,
    norm_num_groups=8,
)
OURS = dict(channels=(32, 64), blocks_per_level=1, attention_levels=(True, False), tokens_dim=24, groups=8)
VIDEO = dict(
    down_block_types=["CrossAttnDownBlock3D", "DownBlock3D"],
    up_block_types=["UpBlock3D", "CrossAttnUpBlock3D"],
    _class_name="UNet3DConditionModel",
)
TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(3, dtype=np.float16),
    "c": np.arange(4).astype(jnp.bfloat16),
    "d": np.array(7),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "unet").mkdir()
    return Folder(tmp_path)


def same(tensors, expected=TENSORS):
    assert tensors.keys() == expected.keys()
    for key, value in expected.items():
        assert tensors[key].dtype == value.dtype
        np.testing.assert_array_equal(tensors[key], value)


def test_tensors_are_those_written(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    same(read(tmp_path / "x.safetensors"))


def test_shards(folder):
    parts = {"1-of-2": ["a", "c"], "2-of-2": ["b", "d"]}
    for name, keys in parts.items():
        save_file({key: TENSORS[key] for key in keys}, folder.path / "unet" / f"{name}.safetensors")
    places = {key: f"{name}.safetensors" for name, keys in parts.items() for key in keys}
    index = folder.path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    same(folder.tensors("unet"))
    (folder.path / "unet" / "2-of-2.safetensors").unlink()
    with pytest.raises(InputError, match=r"names 2-of-2.safetensors, which is not there"):
        folder.tensors("unet")


def test_full_precision_goes_before_half(folder):
    half = {"a": TENSORS["a"].astype(np.float16)}
    save_file(half, folder.path / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    same(folder.tensors("unet"), half)
    save_file(TENSORS, folder.path / "unet" / "diffusion_pytorch_model.safetensors")
    same(folder.tensors("unet"))


@pytest.mark.parametrize(
    "keep, message",
    [(4, "is no safetensors file"), (40, "is no safetensors file"), (-1, r"is cut off: it has \d+ bytes")],
)
def test_a_cut_file(folder, keep, message):
    path = folder.path / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=message):
        folder.tensors("unet")


def test_a_pickle_is_not_opened_and_its_conversion_works_as_printed(folder):
    path = folder.path / "unet" / "diffusion_pytorch_model.bin"
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"as a pickle only: convert it with python -m vidjax\.convert") as raised:
        folder.tensors("unet")
    torch = pytest.importorskip("torch")
    torch.save({key: torch.from_numpy(TENSORS[key]) for key in "ab"}, path)
    command = shlex.split(str(raised.value).split("convert it with python ")[1])
    subprocess.run([sys.executable, *command], check=True)
    same(folder.tensors("unet"), {key: TENSORS[key] for key in "ab"})


def test_what_is_no_folder(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        Folder(tmp_path / "nothing")
    (tmp_path / "vae").mkdir()
    with pytest.raises(InputError, match="has no unet/ but vae; name a folder with unet/"):
        Folder(tmp_path)
    (tmp_path / "sd.ckpt").write_bytes(b"")
    with pytest.raises(InputError, match=r"sd.ckpt is a pickle: convert it with python -m vidjax.convert .*sd.ckpt"):
        Folder(tmp_path / "sd.ckpt")


def test_missing_parts(folder):
    with pytest.raises(InputError, match=r"unet/config.json does not exist"):
        folder.config("unet")
    with pytest.raises(InputError, match="has no weights"):
        folder.tensors("unet")
    with pytest.raises(InputError, match="has no tokenizer/"):
        folder.tokenizer(ClipTextConfig(vocabulary=20))
    (folder.path / "unet" / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json is no JSON"):
        folder.config("unet")


@pytest.mark.parametrize(
    "change, ours",
    [
        ({}, dict(heads=4)),
        ({"attention_head_dim": [2, 4]}, dict(heads=(2, 4))),
        ({"num_attention_heads": 2}, dict(heads=2)),
        # Tune-A-Video: its code takes the norms of residual blocks over the clip; ours may say otherwise
        ({**VIDEO, "flip_sin_to_cos": True}, dict(heads=4, block="tuned", norm_over="clip")),
        ({**VIDEO, "flip_sin_to_cos": True, configs.NORM_OVER: "frame"}, dict(heads=4, block="tuned")),
        (
            {**VIDEO, "attention_head_dim": 8},  # ModelScope: features of a head
            dict(
                heads=(4, 8),
                after_resnet="convs",
                after_attention=dict(heads=(4, 8), levels=(True, False)),
                stem_heads=(8, 8),
            ),
        ),
    ],
)
def test_unet_configs(change, ours):
    assert configs.unet_config(UNET | change)[0] == UNetConfig(**OURS, **ours)


def test_the_norm_of_the_released_tune_a_video():
    config, _ = configs.unet_config({**UNET, **VIDEO, "flip_sin_to_cos": True}, norm_over="clip")
    assert (config.norm_over, config.attention_norm_over) == ("clip", "frame")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"_class_name": "UNet2DConditionModl"}, "_class_name 'UNet2DConditionModl' is not known; did you mean"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type is 'text_time', which is not supported"),
        ({"transformer_layers_per_block": [1, 2]}, r"transformer_layers_per_block is \[1, 2\]"),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "up_block_types .* is not supported"),
    ],
)
def test_unets_that_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        configs.unet_config(UNET | change)


SD = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


@pytest.mark.parametrize(
    "config, made",
    [
        (SD | {"_class_name": "DDIMScheduler"}, schedules.scaled_linear(1000, 0.00085, 0.012)),
        (SD | {"_class_name": "PNDMScheduler"}, schedules.scaled_linear(1000, 0.00085, 0.012, set_alpha_to_one=False)),
        (SD | {"rescale_betas_zero_snr": True}, schedules.scaled_linear(1000, 0.00085, 0.012, zero_snr=True)),
        ({"beta_schedule": "linear", "num_train_timesteps": 50}, schedules.linear(50)),
        ({"beta_schedule": "squaredcos_cap_v2"}, schedules.cosine(1000)),
        ({"trained_betas": [0.1, 0.2, 0.4]}, schedules.table(np.array([0.1, 0.2, 0.4]))),
    ],
)
def test_schedules(config, made):
    got, prediction = configs.schedule(config)
    t = jnp.linspace(-1, made.steps - 1, 7)
    np.testing.assert_allclose(got.alpha(t), made.alpha(t))
    np.testing.assert_allclose(got.sigma(t), made.sigma(t))
    assert prediction == "eps"


@pytest.mark.parametrize(
    "change, name, caveat",
    [
        ({"_class_name": "PNDMScheduler", "skip_prk_steps": True}, "pndm", ""),
        ({"_class_name": "PNDMScheduler"}, "pndm", "skip_prk_steps=False of PNDMScheduler is not offered: True is"),
        ({"_class_name": "DPMSolverMultistepScheduler"}, "dpmpp_2m", ""),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "dpmpp_2m", "solver_order=3 of DPMSolver"),
        ({"_class_name": "LMSDiscreteScheduler"}, "ddim", "names 'LMSDiscreteScheduler', which is not offered: ddim"),
        ({}, "ddim", ""),
    ],
)
def test_the_sampler_of_a_folder(change, name, caveat):
    found, said = configs.sampler(SD | change)
    assert found == name and caveat in said and bool(caveat) == bool(said)


def test_times_and_prediction():
    schedule, prediction = configs.schedule(SD | {"steps_offset": 1, "prediction_type": "v_prediction"})
    np.testing.assert_array_equal(schedule.timesteps(4), [751, 501, 251, 1, -1])
    schedule, _ = configs.schedule(SD | {"steps_offset": 1, "timestep_spacing": "trailing"})
    np.testing.assert_array_equal(schedule.timesteps(4), [999, 749, 499, 249, -1])
    assert prediction == "v"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"clip_sample": True}, "clip_sample is True, which is not supported; only False is"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid' is not known"),
        ({"timestep_spacing": ["leading"]}, r"timestep_spacing \['leading'\] is not known"),
        ({"final_sigmas_type": None}, "final_sigmas_type None is not known"),
        ({"prediction_type": "v_predicton"}, "prediction_type 'v_predicton' is not known; did you mean 'v_prediction'"),
    ],
)
def test_schedulers_that_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        configs.schedule(SD | change)


def test_autoencoder_and_text():
    vae = dict(
        _class_name="AutoencoderKL",
        block_out_channels=[8, 16],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        layers_per_block=2,
        norm_num_groups=4,
    )
    ours, scaling = configs.autoencoder_config(vae)
    assert (ours.blocks, ours.decoder_blocks, ours.strides) == ((2, 2), (3, 3), (1, 2, 2))
    assert scaling == {"shift": 0.0, "scale": 0.18215}
    # diffusers: (z - shift_factor) * scaling_factor
    assert configs.autoencoder_config(vae | {"shift_factor": 0.5})[1]["shift"] == -0.5
    with pytest.raises(InputError, match="use_quant_conv is False"):
        configs.autoencoder_config(vae | {"use_quant_conv": False})
    with pytest.raises(InputError, match="hidden_act is 'relu'"):
        configs.clip_text_config({"hidden_act": "relu"})
    with pytest.raises(InputError, match="architecture 'BertModel' is not known"):
        configs.clip_text_config({"architectures": ["BertModel"]})


def test_an_outline_is_read_once_while_the_folder_stays_as_it_is(tmp_path):
    folder = write_configs(tmp_path / "sd", CONFIGS)
    shapes = lambda model: {path: value.shape for path, value in abstract_parameters(model).items()}
    first, whole = pretrained.outline(folder), pretrained.load(folder, weights=False)
    assert shapes(first.model) == shapes(whole.model)
    assert pretrained.outline(folder) is first
    assert shapes(pretrained.outline(folder, inflate="tuned").model).keys() > shapes(first.model).keys()
    (folder / "unet" / "config.json").write_text(json.dumps(CONFIGS["unet"] | dict(block_out_channels=[16])))
    assert shapes(pretrained.outline(folder).model)["unet.conv_in.bias"] == (16,)
    with pytest.raises(InputError, match="does not exist"):
        pretrained.outline(tmp_path / "nowhere")
