"""Stable Video Diffusion in one file, named as its own code names its modules, against the folder that diffusers writes
of the same weights."""

import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from parity import test_stable_video as folders  # noqa: E402
from parity.test_single_file import as_convolution, ldm_autoencoder, ldm_unet, random, same  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

from vidjax.errors import InputError  # noqa: E402
from vidjax.models.parameters import parameters  # noqa: E402
from vidjax.weights import pretrained  # noqa: E402
from vidjax.weights.sources import open_source  # noqa: E402

UNET = {**folders.UNET, "block_out_channels": (64, 128), "num_attention_heads": (1, 2)}  # 64 features a head
CLIP = {**folders.CLIP, "hidden_size": 80, "num_attention_heads": 1}
UNREAD = {  # the other halves of the two autoencoders, and what is left of OpenCLIP's text tower
    "first_stage_model.encoder.conv_in.weight": (2, 3, 3, 3),
    "conditioner.embedders.3.encoder.post_quant_conv.weight": (4, 4, 1, 1),
    "conditioner.embedders.0.open_clip.model.token_embedding.weight": (5, 4),
    "conditioner.embedders.0.open_clip.model.logit_scale": (1,),
}


def over_time(key):
    """(the key that the layer of an image model has there, whether the layer is one over time)."""
    plain = re.sub(r"\.(spatial|temporal)_res_block\.", ".", key)
    return plain, ".temporal_res_block." in key


def sgm_unet(key):
    key = re.sub(r"^add_embedding\.linear_(\d)\.", lambda m: f"label_emb.0.{2 * int(m[1]) - 2}.", key)
    key = re.sub(r"\.time_pos_embed\.linear_(\d)\.", lambda m: f".time_pos_embed.{2 * int(m[1]) - 2}.", key)
    plain, temporal = over_time(key.replace(".temporal_transformer_blocks.", ".time_stack."))
    key = ldm_unet(plain, 1)
    return re.sub(r"\.(in_layers|emb_layers|out_layers)\.", r".time_stack.\1.", key) if temporal else key


def sgm_autoencoder(key):
    plain, temporal = over_time(key.replace(".time_mixer.", ".").replace(".time_conv_out.", ".conv_out.time_mix_conv."))
    key = ldm_autoencoder(plain, 2)
    for own, other in (
        ("norm1", "in_layers.0"),
        ("conv1", "in_layers.2"),
        ("norm2", "out_layers.0"),
        ("conv2", "out_layers.3"),
    ):
        key = key.replace(f".{own}.", f".time_stack.{other}.") if temporal else key
    prefix = "first_stage_model." if key.startswith("decoder.") else "conditioner.embedders.3.encoder."
    return prefix + key


def open_clip(tower):
    """A vision tower in OpenCLIP's names: q, k and v in one, the projection transposed."""
    own = {key.removeprefix("vision_model."): value for key, value in random(tower).items()}
    state = {
        "class_embedding": own["embeddings.class_embedding"],
        "conv1.weight": own["embeddings.patch_embedding.weight"],
        "positional_embedding": own["embeddings.position_embedding.weight"],
        "proj": own["visual_projection.weight"].T,
    }
    for kind in ("weight", "bias"):
        state |= {f"ln_pre.{kind}": own[f"pre_layrnorm.{kind}"], f"ln_post.{kind}": own[f"post_layernorm.{kind}"]}
        for i in range(CLIP["num_hidden_layers"]):
            at, there = f"transformer.resblocks.{i}.", f"encoder.layers.{i}."
            three = [own[f"{there}self_attn.{q}_proj.{kind}"] for q in "qkv"]
            state[f"{at}attn.in_proj_{kind}"] = np.concatenate(three)
            for a, b in (("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")):
                state[f"{at}{a}.{kind}"] = own[f"{there}{b}.{kind}"]
            for a, b in (("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")):
                state[f"{at}{a}.{kind}"] = own[f"{there}{b}.{kind}"]
    return {f"conditioner.embedders.0.open_clip.model.visual.{key}": value for key, value in state.items()}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(the file's path, its tensors, the folder's path, the networks of diffusers and transformers by part)."""
    networks = dict(
        unet=diffusers.UNetSpatioTemporalConditionModel(**UNET),
        vae=diffusers.AutoencoderKLTemporalDecoder(**folders.VAE),
        image_encoder=transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**CLIP)),
    )
    for network in networks.values():
        network.load_state_dict({key: torch.from_numpy(value) for key, value in random(network).items()})
    folder = tmp_path_factory.mktemp("svd")
    scheduler = diffusers.EulerDiscreteScheduler(**folders.SCHEDULER)
    extractor = transformers.CLIPImageProcessor()
    made = diffusers.StableVideoDiffusionPipeline(**networks, scheduler=scheduler, feature_extractor=extractor)
    made.save_pretrained(folder)
    state = {f"model.diffusion_model.{sgm_unet(key)}": value for key, value in random(networks["unet"]).items()}
    for key, value in random(networks["vae"]).items():
        state[sgm_autoencoder(key)] = as_convolution(sgm_autoencoder(key), value)
    state |= open_clip(networks["image_encoder"]) | {key: np.ones(shape, "f") for key, shape in UNREAD.items()}
    path = tmp_path_factory.mktemp("one") / "svd_xt.safetensors"
    save_file({key: np.ascontiguousarray(value) for key, value in state.items()}, path)
    return path, state, folder, networks


def test_a_file_is_the_folder(both):
    """Every parameter is the same, every key but the unread is read exactly once; and so are schedule and defaults."""
    path, state, folder, networks = both
    file, own, theirs = open_source(path), pretrained.load(path), pretrained.load(folder)
    for part, network in networks.items():
        same(file.tensors(part), {key: value for key, value in random(network).items() if "position_ids" not in key})
    read = [own for part in networks for own, how in file.names(part).values() if how in (None, -1, 0)]
    assert sorted(read) == sorted(state.keys() - UNREAD.keys())
    expected, found = parameters(theirs.model), parameters(own.model)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], value) for name, value in expected.items())
    assert (own.schedule, own.prediction, own.defaults, own.size) == (
        theirs.schedule,
        theirs.prediction,
        theirs.defaults,
        theirs.size,
    )
    assert own.model.unet.config == theirs.model.unet.config
    assert own.model.picture.encoder.config == theirs.model.picture.encoder.config
    assert own.frames == 25 and "25" in own.caveat
    assert pretrained.moves_pictures(path)


def test_it_goes_out_as_a_folder_and_as_the_file(both, tmp_path):
    path, state, _, networks = both
    model = pretrained.load(path).model
    pretrained.save(model, path, tmp_path / "out")
    pipe = diffusers.StableVideoDiffusionPipeline.from_pretrained(tmp_path / "out")
    for part, network in networks.items():
        same({key: value.numpy() for key, value in getattr(pipe, part).state_dict().items()}, random(network))
    pretrained.save_single_file(model, path, tmp_path / "again")
    same(load_file(tmp_path / "again" / path.name), state)


def test_half_precision_is_read_and_written(both, tmp_path):
    state = both[1]
    half = {key: np.ascontiguousarray(value, np.float16) for key, value in state.items()}
    save_file(half, tmp_path / "svd.safetensors")
    found = pretrained.load(tmp_path / "svd.safetensors")
    assert found.frames == 14
    kernel = state["model.diffusion_model.out.2.weight"].astype(np.float16).astype("f").transpose(2, 3, 1, 0)
    assert np.array_equal(parameters(found.model.unet)["conv_out.kernel"], kernel)
    pretrained.save_single_file(found.model, tmp_path / "svd.safetensors", tmp_path / "out")
    again = load_file(tmp_path / "out" / "svd.safetensors")
    assert all(again[key].dtype == np.float16 and np.array_equal(again[key], value) for key, value in half.items())


MIX = "model.diffusion_model.middle_block.0.time_mixer.mix_factor"


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda s: s.pop(MIX), r"unet: .*no key for parameter mid\.0\.temporal_resnet\.mix_factor"),
        (lambda s: s.update({f"{MIX}s": s.pop(MIX)}), r"unet: .*mix_factors"),
        (lambda s: s.update({MIX: np.ones(2, "f")}), r"mix_factor has shape \(2,\)"),
        (lambda s: s.pop("model.diffusion_model.label_emb.0.0.weight"), "keys of its unet are missing or renamed"),
        (lambda s: s.update({"lora.down": np.ones(2, "f")}), r"lora\.down is no key of Stable Video Diffusion"),
        (
            lambda s: [s.pop(key) for key in list(s) if key.startswith("conditioner.embedders.3.")],
            r"has no keys conditioner\.embedders\.3\.encoder\.\*",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(both, tmp_path, change, says):
    state = dict(both[1])
    change(state)
    save_file({key: np.ascontiguousarray(value) for key, value in state.items()}, tmp_path / "svd.safetensors")
    with pytest.raises(InputError, match=says) as error:
        pretrained.load(tmp_path / "svd.safetensors")
    assert "\n" not in str(error.value)
