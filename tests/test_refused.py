"""What no video can come of is refused by name, before anything is written: numbers out of range, files with NaN."""

import dataclasses
import json
import shutil
from contextlib import suppress

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_folder import CONFIGS, I2VGEN, STABLE_VIDEO, write_configs, write_folder

from vidjax.errors import InputError
from vidjax.generation.adapters import merge_lora_files
from vidjax.generation.options import SampleConfig
from vidjax.generation.pretrained import load_generator
from vidjax.training.optimizer import make_optimizer
from vidjax.training.stage import TrainConfig
from vidjax.weights import pretrained
from vidjax.weights.families import family_of
from vidjax.weights.folder import CONFIGS as CONFIG_NAMES

PROMPT = ["the"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("sd") / "folder")


@pytest.fixture(scope="module")
def generator(folder):
    return load_generator(folder, defaults=SampleConfig(num_steps=1))


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(guidance_scale=float("nan")), r"sample\.guidance_scale=nan: must be at least -100 and at most 1000"),
        (dict(guidance_scale=float("inf")), r"guidance_scale=inf"),
        (dict(guidance_scale=1e38), r"guidance_scale=1e\+38"),
        (dict(eta=-5.0), r"sample\.eta=-5\.0: must be at least 0 and at most 1"),
        (dict(rescale=2.0), r"rescale=2\.0: .* at most 1"),
        (dict(known_level=float("nan")), "known_level=nan"),
        (dict(spacing="even"), "sample.spacing 'even' is not known"),
    ],
)
def test_numbers_of_sampling_have_ranges(change, says):
    with pytest.raises(InputError, match=says):
        dataclasses.replace(SampleConfig(), **change)


@pytest.mark.parametrize(
    "make, says",
    [
        (
            lambda: make_optimizer(steps=1, learning_rate=-1.0),
            r"config\.optimizer\.learning_rate=-1\.0: .*at least 0$",
        ),
        (lambda: make_optimizer(steps=1, learning_rate=float("nan")), "learning_rate=nan"),
        (lambda: make_optimizer(steps=1, b2=1.0), r"config\.optimizer\.b2=1\.0: .* at most 0\.999999"),
        (lambda: TrainConfig(steps=1, ema=0.99999999999), r"train\.ema=0\.99999999999: .* at most 0\.999999"),
    ],
)
def test_numbers_of_training_have_ranges(make, says):
    with pytest.raises(InputError, match=says):
        make()


def test_seeds_and_labels_have_ranges(generator):
    for seed in (-1, 2**63):
        with pytest.raises(InputError, match=f"seed={seed}: must be at least 0 and at most {2**63 - 1}"):
            generator.noise(1, seed=seed)
    assert generator.noise(1, seed=2**63 - 1).shape == (1, 1, 8, 8, 4)
    with pytest.raises(InputError, match="label 3: this model knows no classes; it knows text"):
        generator.latents([3])


def test_noise_latents_and_pixels_that_are_none(generator):
    noise = np.array(generator.noise(1))
    noise[0, 0, 3, 2, 1] = np.nan
    with pytest.raises(InputError, match="the noise to start from has values that are not finite"):
        generator.latents(PROMPT, noise=noise)
    whole = generator.params
    for path in ("unet.conv_out.bias", "codec.autoencoder.decoder.conv_out.bias"):
        generator.params = {**whole, path: whole[path] * np.nan}
        with pytest.raises(InputError, match="1 of 1 videos came out as NaN or infinity, none is written"):
            generator(PROMPT)
    generator.params = whole
    assert generator(PROMPT).shape == (1, 1, 16, 16, 3)


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model"])
def test_weights_that_are_none(copy, part):
    tensors = load_file(copy / f"{part}.safetensors")
    key = next(key for key, value in tensors.items() if value.ndim == 1)
    tensors[key][0] = np.inf
    save_file(tensors, copy / f"{part}.safetensors")
    with pytest.raises(InputError, match=rf"{part.split('/')[0]}: parameter \S+ has values that are not finite"):
        pretrained.load(copy)


def lora_file(path, ends=("lora_A.weight", "lora_B.weight"), rank=2, value=1.0, prefix="unet."):
    layer = f"{prefix}down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q."
    shapes = zip(ends, ((rank, 32), (32, rank)))
    save_file({layer + end: np.full(shape, value, np.float32) for end, shape in shapes}, path)
    return str(path)


def test_adapters_that_are_none(generator, tmp_path):
    whole = lora_file(tmp_path / "whole.safetensors")
    assert merge_lora_files(generator, [f"{whole}:100"])
    kohya = {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": np.zeros((2, 32), np.float32)}
    save_file(kohya, tmp_path / "kohya.safetensors")
    for file, says in (
        (f"{whole}:1e30", r"weight=1e\+30: must be at least -100 and at most 100"),
        (lora_file(tmp_path / "nan.safetensors", value=np.nan), r"to_q\.lora_A\.weight has values that are not finite"),
        (lora_file(tmp_path / "rank.safetensors", rank=0), r"to_q\.lora_A\.weight has shape \(0, 32\): .* rank 0"),
        (str(tmp_path / "kohya.safetensors"), "of kohya's keys is none of a U-Net or a text encoder of Stable"),
        (lora_file(tmp_path / "other.safetensors", prefix="model."), "in diffusers' layout: keys begin with unet"),
    ):
        with pytest.raises(InputError, match=says) as raised:
            merge_lora_files(generator, [file])
        assert "take it out" not in str(raised.value)


def change_json(path, **change):
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def test_tokenizers_that_do_not_fit(copy):
    words = copy / "tokenizer" / "vocab.json"
    known = json.loads(words.read_text())
    words.write_text(json.dumps({**known, "zebra</w>": len(known) + 5}))
    with pytest.raises(InputError, match=rf"words up to number {len(known) + 5}, the text encoder reads only"):
        pretrained.load(copy, weights=False)
    words.write_text(json.dumps(known))
    change_json(copy / "tokenizer" / "tokenizer_config.json", model_max_length=0)
    with pytest.raises(InputError, match=r"model_max_length=0 .* is not a number from 3 up"):
        pretrained.load(copy, weights=False)
    for file in (copy / "tokenizer").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="has no words, all prompts would be the same"):
        pretrained.load(copy, weights=False)


@pytest.mark.parametrize("betas", [[0.1, float("nan")], [0.1, 1.0], [], [0.0, 0.1], ["a"], 3])
def test_betas_that_are_none(copy, betas):
    change_json(copy / "scheduler" / "scheduler_config.json", trained_betas=betas)
    with pytest.raises(InputError, match="betas"):
        pretrained.load(copy, weights=False)


@pytest.mark.parametrize(
    "name, says",
    [
        ("T2IAdapter", "a T2I-Adapter, which is not read yet; Stable Diffusion 1 and 2, Tune-A-Video"),
    ],
)
def test_families_that_are_not_read_yet_are_named(copy, name, says):
    change_json(copy / "unet" / "config.json", _class_name=name)
    with pytest.raises(InputError, match=says) as raised:
        pretrained.load(copy)
    assert "did you mean" not in str(raised.value)
    shutil.move(copy / "unet" / "config.json", copy / "config.json")
    shutil.rmtree(copy / "unet")
    with pytest.raises(InputError, match=rf"has no unet/ .* of a {name}"):
        pretrained.load(copy)


@pytest.mark.parametrize("configs", [CONFIGS, STABLE_VIDEO, I2VGEN], ids=["sd", "svd", "i2vgen"])
def test_what_a_config_lacks_has_a_default_or_is_named(configs, tmp_path):
    family, path = family_of(configs["unet"]), write_configs(tmp_path / "folder", configs)
    for part in configs:
        file = path / part / CONFIG_NAMES.get(part, "config.json")
        for key in configs[part]:
            file.write_text(json.dumps({name: value for name, value in configs[part].items() if name != key}))
            named = rf"^{part}/config.json: {key} is missing: get the file again$"
            with pytest.raises(InputError, match=named) if key == "block_out_channels" else suppress(InputError):
                family.read_unet(json.loads((path / "unet" / "config.json").read_text()), None)
                family.components.of(path)
        file.write_text(json.dumps(configs[part]))


def test_a_class_that_is_no_name_is_refused(copy):
    change_json(copy / "unet" / "config.json", _class_name=["UNet2DConditionModel"])
    with pytest.raises(InputError, match=r"_class_name \['UNet2DConditionModel'\] is not known"):
        pretrained.load(copy)
    shutil.move(copy / "unet" / "config.json", copy / "config.json")
    shutil.rmtree(copy / "unet")
    with pytest.raises(InputError, match=r"has no unet/ but config\.json"):
        pretrained.load(copy)


def test_what_is_compiled_into_the_samplers_cannot_be_set(generator):
    for name in ("schedule", "prediction"):
        with pytest.raises(AttributeError):
            setattr(generator, name, getattr(generator, name))


@pytest.mark.parametrize(
    "what, says",
    [
        (dict(frames=10**9), r"videos? of 1000000000 frames of 16x16 pixels: that takes at least [\d,]+ GiB"),
        (dict(size=(10**6, 10**6)), r"a video of 1 frames of 1000000x1000000 pixels: .* there are \d+; take fewer"),
    ],
)
def test_videos_that_no_memory_holds_are_refused_before_compiling(generator, what, says):
    with pytest.raises(InputError, match=says):
        generator.latents(PROMPT, **what)


def test_models_that_no_memory_holds_are_refused_before_they_are_made(copy):
    change_json(copy / "text_encoder" / "config.json", num_hidden_layers=10**6)
    with pytest.raises(InputError, match="num_hidden_layers=1000000: must be at least 1 and at most 256"):
        pretrained.load(copy)
    wide = dict(num_hidden_layers=9, intermediate_size=2**18, hidden_size=2**16)
    change_json(copy / "text_encoder" / "config.json", **wide)
    change_json(copy / "unet" / "config.json", cross_attention_dim=2**16)
    with pytest.raises(InputError, match=r"has [\d,]+ parameters: that takes at least [\d,]+ GiB of memory"):
        pretrained.load(copy)
