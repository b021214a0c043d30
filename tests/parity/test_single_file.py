"""Single files of Stable Diffusion's own layout against diffusers' converters of them: the same tensors, key by key."""

import json
import re
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.loaders import single_file_utils as theirs  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402
from tiny_folder import write_configs  # noqa: E402

from vidjax.errors import InputError  # noqa: E402
from vidjax.weights import pretrained  # noqa: E402
from vidjax.weights.configs import autoencoder_config, clip_text_config, unet_config  # noqa: E402
from vidjax.weights.single_file import AUTOENCODER, CLIP, OPEN_CLIP, UNET, SingleFile  # noqa: E402

LAYERS = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
]
LAYERS += [("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection")]
OUTER = [("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2")]
OUTER += [("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2")]


def random(model):
    generator = np.random.default_rng(0)
    return {key: generator.standard_normal(value.shape, np.float32) for key, value in model.state_dict().items()}


def ldm_unet(key, blocks):
    """The U-Net's keys as `openaimodel.py` of the original code numbers its modules."""
    for own, other in OUTER:
        key = re.sub(rf"^{own}\.", f"{other}.", key)
    if m := re.match(r"(down|up)_blocks\.(\d+)\.(\w+?)s\.(\d+)\.(.*)", key):
        half, level, kind, i, rest = m[1], int(m[2]), m[3], int(m[4]), m[5]
        if half == "down":
            place = level * (blocks + 1) + 1 + (blocks if kind == "downsampler" else i)
            inner = {"resnet": "0", "attention": "1", "downsampler": "0.op"}[kind]
        else:
            place = level * (blocks + 1) + (blocks if kind == "upsampler" else i)
            inner = {"resnet": "0", "attention": "1", "upsampler": "1.conv" if level == 0 else "2.conv"}[kind]
        rest = rest.removeprefix("conv.") if "sampler" in kind else rest
        key = f"{'input' if half == 'down' else 'output'}_blocks.{place}.{inner}.{rest}"
    key = re.sub(r"^mid_block\.resnets\.0\.", "middle_block.0.", key)
    key = re.sub(r"^mid_block\.resnets\.1\.", "middle_block.2.", key)
    key = re.sub(r"^mid_block\.attentions\.0\.", "middle_block.1.", key)
    if re.match(r"((in|out)put_blocks\.\d+|middle_block)\.[02]\.(?!op|conv\.)", key) and "input_blocks.0." not in key:
        for own, other in LAYERS:
            key = key.replace(f".{own}.", f".{other}.")
    return key


def ldm_autoencoder(key, levels):
    key = re.sub(r"^decoder\.up_blocks\.(\d+)\.", lambda m: f"decoder.up.{levels - 1 - int(m[1])}.", key)
    key = re.sub(r"^encoder\.down_blocks\.", "encoder.down.", key)
    key = re.sub(r"\.(down|up)samplers\.0\.", r".\1sample.", key)
    key = re.sub(r"\.mid_block\.resnets\.(\d)\.", lambda m: f".mid.block_{int(m[1]) + 1}.", key)
    key = key.replace(".mid_block.attentions.0.", ".mid.attn_1.").replace(".resnets.", ".block.")
    key = key.replace(".conv_shortcut.", ".nin_shortcut.").replace(".conv_norm_out.", ".norm_out.")
    if "attn_1" in key:
        key = key.replace(".group_norm.", ".norm.").replace(".to_out.0.", ".proj_out.")
        key = re.sub(r"\.to_([qkv])\.", r".\1.", key)
    return key


def as_convolution(key, value):
    """Attention of the original autoencoder and U-Net has 1x1 convolutions where diffusers may have matrices."""
    return value[..., None, None] if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", key) else value


@pytest.fixture(scope="module", params=["1", "2"])
def files(request, tmp_path_factory):
    """(a file, U-Net, autoencoder and text encoder of diffusers with what is in it)."""
    from transformers import CLIPTextConfig, CLIPTextModel

    second = request.param == "2"
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(64, 128),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=(1, 2) if second else 8,
        use_linear_projection=second,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    text = CLIPTextModel(
        CLIPTextConfig(hidden_size=128, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, vocab_size=99)
    )
    state = {UNET + ldm_unet(key, 2): value for key, value in random(unet).items()}
    for key, value in random(vae).items():
        own = AUTOENCODER + ldm_autoencoder(key, 2)
        state[own] = as_convolution(own, value)
    state |= (
        open_clip(text)
        if second
        else {
            f"{CLIP}{'' if key.startswith('text_model.') else 'text_model.'}{key}": value
            for key, value in random(text).items()
        }
    )
    state["model_ema.decay"] = np.float32(0.5).reshape(1)
    folder = tmp_path_factory.mktemp("single")
    shutil.copytree(write_configs(tmp_path_factory.mktemp("words") / "folder") / "tokenizer", folder / "tokenizer")
    path = folder / f"sd{request.param}.safetensors"
    save_file({key: np.ascontiguousarray(value) for key, value in state.items()}, path)
    return SingleFile(path), state, unet, vae, text


def open_clip(text, own=None):
    """A text tower with one layer more than is read, in OpenCLIP's names; `own`: its tensors, else random ones."""
    own, n = own or random(text), text.config.num_hidden_layers
    own = {key.removeprefix("text_model."): value for key, value in own.items()}
    layer = lambda i: {
        key[len(f"encoder.layers.{i}.") :]: v for key, v in own.items() if key.startswith(f"encoder.layers.{i}.")
    }
    state = {
        "token_embedding.weight": own["embeddings.token_embedding.weight"],
        "positional_embedding": own["embeddings.position_embedding.weight"],
        "ln_final.weight": own["final_layer_norm.weight"],
        "ln_final.bias": own["final_layer_norm.bias"],
        "text_projection": np.ones((text.config.hidden_size,) * 2, np.float32),
        "logit_scale": np.ones((1,), np.float32),
    }
    for i in range(n + 1):
        values, at = layer(min(i, n - 1)), f"transformer.resblocks.{i}."
        for kind in ("weight", "bias"):
            state[f"{at}attn.in_proj_{kind}"] = np.concatenate([values[f"self_attn.{q}_proj.{kind}"] for q in "qkv"])
            for a, b in (("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")):
                state[f"{at}{a}.{kind}"] = values[f"{b}.{kind}"]
            for a, b in (("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")):
                state[f"{at}{a}.{kind}"] = values[f"{b}.{kind}"]
    return {OPEN_CLIP + key: value for key, value in state.items()}


def same(got, wanted):
    assert set(got) == set(wanted)
    for key, value in wanted.items():
        np.testing.assert_array_equal(got[key].reshape(value.shape), value.numpy() if torch.is_tensor(value) else value)


def test_the_tensors_are_those_that_diffusers_converts(files):
    file, state, unet, vae, text = files
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
    same(file.tensors("unet"), theirs.convert_ldm_unet_checkpoint(dict(tensors), dict(unet.config)))
    same(file.tensors("vae"), theirs.convert_ldm_vae_checkpoint(dict(tensors), dict(vae.config)))
    open_clip = any(key.startswith(OPEN_CLIP) for key in state)
    found = file.tensors("text_encoder")
    own = {key.removeprefix("text_model."): value for key, value in random(text).items()}
    same({key.removeprefix("text_model."): found[key] for key in found}, own)
    if not open_clip:
        same(found, theirs.convert_ldm_clip_checkpoint(dict(tensors)))


def test_the_configs_are_those_of_the_models(files):
    file, _, unet, vae, text = files
    ours, rules = unet_config(file.config("unet"))
    assert (ours, rules) == unet_config(json.loads(unet.to_json_string()))
    assert autoencoder_config(file.config("vae")) == autoencoder_config(json.loads(vae.to_json_string()))
    read = clip_text_config(file.config("text_encoder"))
    wanted = text.config
    assert (read.dim, read.hidden, read.layers, read.heads) == (
        wanted.hidden_size,
        wanted.intermediate_size,
        wanted.num_hidden_layers,
        wanted.num_attention_heads,
    )


def test_it_loads_and_goes_out_as_a_pipeline_of_diffusers(files, tmp_path):
    file, _, unet, vae, _ = files
    found = pretrained.load(file.path)
    assert found.prediction == ("v" if unet.config.use_linear_projection else "eps")
    assert ("Stable Diffusion 2" in found.caveat) == bool(unet.config.use_linear_projection)
    pretrained.save(found.model, file.path, tmp_path / "out")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    for ours, wanted in ((pipe.unet, unet), (pipe.vae, vae)):
        same({key: value.numpy() for key, value in ours.state_dict().items()}, random(wanted))


def test_it_goes_out_as_the_file(files, tmp_path):
    """All of it, also what nothing here reads."""
    file, state, *_ = files
    pretrained.save_single_file(pretrained.load(file.path).model, file.path, tmp_path / "out")
    same(load_file(tmp_path / "out" / file.path.name), state)


def test_a_file_of_something_else_is_refused(tmp_path):
    save_file({"lora_unet.down": np.zeros((2, 2), np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(
        InputError, match=r"has no keys model\.diffusion_model\.\* but lora_unet\.down: name a checkpoint"
    ):
        SingleFile(tmp_path / "a.safetensors")


def test_what_does_not_fit_is_refused_in_one_line(files, tmp_path):
    file, state, *_ = files
    key, lost = "model.diffusion_model.out.2.weight", r"keys of its unet are missing or renamed \('out\.2\.weight'\)"
    for name, change, says in (
        ("missing", {key: None}, lost),
        ("renamed", {key: None, key + "s": state[key]}, lost),
        ("shaped", {key: np.zeros((3, 3), "f")}, r"unet: .*conv_out\.weight has shape \(3, 3\)"),
    ):
        (tmp_path / name).mkdir()
        shutil.copytree(file.path.parent / "tokenizer", tmp_path / name / "tokenizer")
        found = {k: np.ascontiguousarray(v) for k, v in {**state, **change}.items() if v is not None}
        save_file(found, tmp_path / name / "sd.safetensors")
        with pytest.raises(InputError, match=says) as raised:
            pretrained.load(tmp_path / name / "sd.safetensors")
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="has no place for motion of its unet; take --format=diffusers"):
        file.write({"unet": {**file.tensors("unet"), "motion": np.zeros(1, "f")}}, tmp_path / "out.safetensors")
