"""Whole pipelines against diffusers: text to latents to pixels, from the same folder and the same noise."""

import copy
import json
import shutil
import string
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from flax import nnx  # noqa: E402

from vidjax.errors import InputError  # noqa: E402
from vidjax.generation.adapters import merge_lora_files  # noqa: E402
from vidjax.generation.pretrained import load_generator  # noqa: E402
from vidjax.models.lora import lora_tensors  # noqa: E402
from vidjax.models.parameters import parameters  # noqa: E402
from vidjax.training.strategies import strategy  # noqa: E402
from vidjax.weights import convert, lora, pretrained  # noqa: E402
from vidjax.weights.configs import NORM_OVER  # noqa: E402
from vidjax.weights.folder import Folder  # noqa: E402

LENGTH = 12
LETTERS = [a + end for a in "!" + string.ascii_lowercase for end in ("", "</w>")]
VOCABULARY = [*LETTERS, "th", "the</w>", "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
MERGES = ["t h", "th e</w>", "c a", "ca t</w>"]

UNETS = {
    # `attention_head_dim` is the number of heads.
    "sd1": dict(attention_head_dim=4),
    "sd2": dict(attention_head_dim=(2, 4), use_linear_projection=True),
}
ACTIVATIONS = {"sd1": "quick_gelu", "sd2": "gelu"}
NOISE = dict(
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    set_alpha_to_one=False,
    steps_offset=1,
    clip_sample=False,
)
PREDICTIONS = {"sd1": "epsilon", "sd2": "v_prediction"}


def refill(model, gain=1.0):
    """Random weights that keep the size of what goes through: nothing is zero, no scale is one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            is_scale = p.ndim == 1 and name.endswith("weight")
            p.copy_(1 + 0.2 * noise if is_scale else gain * noise * (0.1 if p.ndim == 1 else p[0].numel() ** -0.5))
    return model.eval()


def tokenizer(folder, family):
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(VOCABULARY)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    pad = "!" if family == "sd2" else "<|endoftext|>"
    return transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token=pad, model_max_length=LENGTH
    )


def unet(family):
    return refill(
        diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=24,
            norm_num_groups=8,
            **UNETS[family],
        )
    )


def autoencoder():
    return refill(
        diffusers.AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            norm_num_groups=4,
        ),
        gain=0.5,
    )


def text_encoder(family):
    return refill(
        transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=len(VOCABULARY),
                hidden_size=24,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=LENGTH,
                hidden_act=ACTIVATIONS[family],
                bos_token_id=0,
                eos_token_id=2,
                pad_token_id=1,
            )
        )
    )


def pipeline(folder, family):
    """A pipeline of tiny networks, and saved in `folder`."""
    pipe = diffusers.StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=text_encoder(family),
        tokenizer=tokenizer(folder.with_name(folder.name + "_vocabulary"), family),
        unet=unet(family),
        scheduler=diffusers.DDIMScheduler(**NOISE, prediction_type=PREDICTIONS[family]),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


PROMPTS = ["the cat", "a dog on the moon in a very long story"]


@pytest.fixture(scope="module", params=UNETS)
def pipe(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "model"
    return folder, pipeline(folder, request.param)


@pytest.fixture(scope="module")
def generator(pipe):
    return load_generator(pipe[0])


def theirs(pipe, noise, output="latent", steps=10, **options):
    """diffusers' result as [b, t, h, w, c]."""
    out = pipe(
        PROMPTS,
        num_inference_steps=steps,
        latents=torch.from_numpy(np.moveaxis(noise[:, 0], -1, 1).copy()),
        output_type=output,
        **options,
    ).images
    return np.asarray(out)[:, None] if output == "np" else np.moveaxis(out.numpy(), 1, -1)[:, None]


def noise_like(shape):
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def error(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def test_latents_and_pixels(pipe, generator):
    _, reference = pipe
    assert generator.size == (1, 16, 16)
    noise = noise_like((2, 1, 8, 8, 4))
    latents = generator.latents(PROMPTS, noise=noise, num_steps=10, guidance_scale=7.5)
    expected = theirs(reference, noise, guidance_scale=7.5)
    assert error(latents, expected) <= 1e-3
    assert error(latents, theirs(reference, noise, guidance_scale=1.0)) > 0.1  # the guidance is seen
    pixels = theirs(reference, noise, "np", guidance_scale=7.5)
    ours = generator.decode(latents)
    assert pixels.std() > 0.05
    assert np.abs(ours / 255 - pixels).max() <= 1 / 255


def test_adapters_of_both_networks_from_one_file(pipe, tmp_path):
    """Written here, loaded there with a weight, merged here: the same pictures' latents."""
    folder, _ = pipe
    reference = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    reference.set_progress_bar_config(disable=True)
    generator = load_generator(folder)
    model, random = generator.model, np.random.default_rng(1)
    strategy("lora", rank=3, alpha=5, text=True, targets=r"\.(to_q|to_out|ff\.proj_in)$").surgery(model, nnx.Rngs(0))
    tensors = {
        k: v if k.endswith("alpha") else 0.3 * random.standard_normal(v.shape, "f")
        for k, v in lora_tensors(model).items()
    }
    file = lora.save(tmp_path, tensors, blocks_per_level=1)
    noise, plain = noise_like((2, 1, 8, 8, 4)), generator.params
    ask = lambda: generator.latents(PROMPTS, noise=noise, num_steps=2, guidance_scale=3.0)
    base = ask()
    generator.params = merge_lora_files(generator, [f"{file}:0.7"])
    reference.load_lora_weights(tmp_path, weight_name=lora.FILE, adapter_name="both")
    reference.set_adapters("both", 0.7)
    assert reference.get_list_adapters() == {"unet": ["both"], "text_encoder": ["both"]}
    expected = theirs(reference, noise, steps=2, guidance_scale=3.0)
    assert error(ask(), expected) <= 1e-3 and error(base, expected) > 0.05
    # And theirs: what peft made, their pipeline wrote.
    states = {
        f"{part}_lora_layers": peft.get_peft_model_state_dict(getattr(reference, part), adapter_name="both")
        for part in ("unet", "text_encoder")
    }
    diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path / "again", **states)
    generator.params = plain
    generator.params = merge_lora_files(generator, [f"{tmp_path / 'again'}:0.7"])
    assert error(ask(), expected) <= 1e-3


def test_there_and_back(pipe, tmp_path):
    """What we write, diffusers loads, and it is what we read."""
    folder, reference = pipe
    model = pretrained.load(folder).model
    pretrained.save(model, folder, tmp_path / "out")
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    for part in ("unet", "vae", "text_encoder"):
        before, after = (getattr(p, part).state_dict() for p in (reference, again))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    noise = noise_like((2, 1, 8, 8, 4))
    np.testing.assert_array_equal(theirs(again, noise, steps=2), theirs(reference, noise, steps=2))
    with pytest.raises(InputError, match="out is not empty"):
        pretrained.save(model, folder, tmp_path / "out")


def test_negative_prompt(pipe, generator):
    _, reference = pipe
    noise = noise_like((2, 1, 8, 8, 4))
    latents = generator.latents(PROMPTS, noise=noise, num_steps=3, guidance_scale=4.0, negative_prompt="a bad cat")
    options = dict(guidance_scale=4.0, negative_prompt=["a bad cat"] * 2)
    assert error(latents, theirs(reference, noise, steps=3, **options)) <= 1e-3
    assert error(latents, theirs(reference, noise, steps=3, guidance_scale=4.0)) > 0.01
    with pytest.raises(InputError, match="negative_prompt 'bad' does nothing at guidance_scale 1"):
        generator.latents(PROMPTS, guidance_scale=1.0, negative_prompt="bad")
    with pytest.raises(InputError, match=r"the noise has shape \(2, 1, 8, 9, 4\)"):
        generator.latents(PROMPTS, noise=noise_like((2, 1, 8, 9, 4)))


def test_inflation_leaves_images_and_stills_as_they_are(pipe, tmp_path):
    folder, _ = pipe
    image, video = pretrained.load(folder).model, pretrained.load(folder, inflate="tuned").model
    x, tokens = jnp.asarray(noise_like((1, 1, 8, 8, 4))), jnp.asarray(noise_like((1, 12, 24)))
    predict = lambda model, frames: jax.jit(model.unet)(jnp.repeat(x, frames, 1), jnp.full((1, frames), 500.0), tokens)
    expected = predict(image, 1)
    np.testing.assert_allclose(predict(video, 1), expected, atol=1e-5)
    np.testing.assert_allclose(predict(video, 3), jnp.repeat(expected, 3, 1), atol=1e-5)
    with pytest.raises(InputError, match=r"unet: the checkpoint does not fit .* no key for parameter .*attn_temp"):
        pretrained.load(folder, inflate="tuned", fresh="attn_tmp")
    # Written, it is a folder of Tune-A-Video, which needs no inflation.
    pretrained.save(video, folder, tmp_path / "video")
    again = pretrained.load(tmp_path / "video").model
    before, after = (parameters(model) for model in (video, again))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[path], after[path]) for path in before)


def test_layers_that_no_other_code_has_are_not_written(pipe, tmp_path):
    model = pretrained.load(pipe[0], inflate="lvdm_text").model
    with pytest.raises(InputError, match="only block='tuned' can be written"):
        pretrained.save(model, pipe[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_dtype(pipe):
    loaded = pretrained.load(pipe[0], dtype=jnp.bfloat16, inflate="tuned")
    assert {leaf.dtype for leaf in parameters(loaded.model).values()} == {jnp.dtype("bfloat16")}


def test_the_program(pipe, tmp_path):
    """As a user runs it: from a noise file to a latents file, both prompts in one batch."""
    folder, reference = pipe
    noise = noise_like((2, 1, 6, 8, 4))
    np.save(tmp_path / "noise.npy", noise)
    flags = {
        "pretrained": folder,
        "negative_prompt": "bad",
        "height": 12,
        "width": 16,
        "sampler": "ddim",
        "num_steps": 3,
        "guidance_scale": 4.0,
        "init_noise": tmp_path / "noise.npy",
        "save_latents": tmp_path / "latents.npy",
        "out": tmp_path / "out",
    }
    prompts = [f"--prompt={prompt}" for prompt in PROMPTS]
    command = [sys.executable, "-m", "vidjax.sample", *prompts, *(f"--{k}={v}" for k, v in flags.items())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = theirs(reference, noise, steps=3, guidance_scale=4.0, negative_prompt=["bad"] * 2)
    assert error(np.load(tmp_path / "latents.npy"), expected) <= 1e-3
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def tuned(folder, **options):
    """A video model on the folder whose queries and layers over time have moved."""
    model, random = pretrained.load(folder, inflate="tuned", **options).model, np.random.default_rng(2)
    for path, leaf in convert.parameters(model).items():
        if "temp" in path or "to_q" in path:
            leaf.set_value(leaf[...] + 0.05 * random.standard_normal(leaf.shape, "f"))
    return model


def test_of_a_tuned_video_model_diffusers_runs_the_image_model(pipe, tmp_path):
    """With the tuned queries; its pictures are ours of one frame, but for the layers over time."""
    folder, reference = pipe
    model = tuned(folder)
    pretrained.save(model, folder, tmp_path / "out", image=True)
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out", safety_checker=None)
    again.set_progress_bar_config(disable=True)
    before, after = (p.unet.state_dict() for p in (reference, again))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) == ("to_q" not in key) for key in before)
    generator, noise = load_generator(folder), noise_like((2, 1, 8, 8, 4))
    generator.params = {path: value for path, value in parameters(model).items() if path in generator.params}
    latents = generator.latents(PROMPTS, noise=noise, num_steps=3, guidance_scale=4.0)
    assert error(latents, theirs(again, noise, steps=3, guidance_scale=4.0)) <= 1e-3
    assert error(latents, theirs(reference, noise, steps=3, guidance_scale=4.0)) > 0.01


def test_a_folder_of_tune_a_video_is_what_its_code_reads(pipe, tmp_path):
    """Its published layout: the image model's keys and shapes, and in each block attn_temp and norm_temp."""
    folder, reference = pipe
    pretrained.save(tuned(folder), folder, tmp_path / "out")
    config, index = (
        json.loads((tmp_path / "out" / name).read_text()) for name in ("unet/config.json", "model_index.json")
    )
    assert config["down_block_types"] == ["CrossAttnDownBlock3D", "DownBlock3D"]
    assert (config["_class_name"], config["mid_block_type"]) == ("UNet3DConditionModel", "UNetMidBlock3DCrossAttn")
    assert index["unet"] == ["tuneavideo.models.unet", "UNet3DConditionModel"]
    expected = {key: tuple(value.shape) for key, value in reference.unet.state_dict().items()}
    for key, (width, *_) in list(expected.items()):
        if key.endswith("transformer_blocks.0.norm1.weight"):
            block = key.removesuffix("norm1.weight")
            expected |= {f"{block}norm_temp.{end}": (width,) for end in ("weight", "bias")}
            expected |= {f"{block}attn_temp.{to}.weight": (width, width) for to in ("to_q", "to_k", "to_v", "to_out.0")}
            expected[f"{block}attn_temp.to_out.0.bias"] = (width,)
    written = Folder(tmp_path / "out").tensors("unet")
    assert {key: value.shape for key, value in written.items()} == expected


def test_what_the_norms_go_over_is_read_from_the_class_and_from_our_mark(pipe, tmp_path):
    folder, _ = pipe
    for norm_over in ("frame", "clip"):
        out = tmp_path / norm_over
        pretrained.save(tuned(folder, norm_over=norm_over), folder, out)
        assert pretrained.load(out, weights=False).model.unet.config.norm_over == norm_over
        config = json.loads((out / "unet" / "config.json").read_text())
        assert config.pop(NORM_OVER, "clip") == norm_over  # what their code computes needs no mark
        pretrained.save(pretrained.load(out).model, out, tmp_path / f"{norm_over}-again")
        assert json.loads((tmp_path / f"{norm_over}-again" / "unet" / "config.json").read_text()) == json.loads(
            (out / "unet" / "config.json").read_text()
        )
    assert pretrained.load(folder, weights=False, inflate="tuned").model.unet.config.norm_over == "frame"


def test_a_folder_samples_with_its_own_scheduler(pipe, tmp_path):
    """PNDM, which most folders name: nothing is asked for, and it is what their pipeline makes."""
    folder, reference = pipe
    if reference.scheduler.config.prediction_type != "epsilon":
        pytest.skip("of v theirs takes another mean")
    shutil.copytree(folder, tmp_path / "sd")
    config = {**NOISE, "skip_prk_steps": True}
    scheduler = diffusers.PNDMScheduler(**{key: value for key, value in config.items() if key != "clip_sample"})
    scheduler.save_pretrained(tmp_path / "sd" / "scheduler")
    generator, noise = load_generator(tmp_path / "sd"), noise_like((2, 1, 8, 8, 4))
    assert generator.defaults.sampler == "pndm"
    asked, reference.scheduler = reference.scheduler, scheduler
    expected = theirs(reference, noise, steps=8, guidance_scale=7.5)
    reference.scheduler = asked
    assert error(generator.latents(PROMPTS, noise=noise, num_steps=8), expected) <= 1e-3
    assert error(theirs(reference, noise, steps=8, guidance_scale=7.5), expected) > 0.01


class OverTheClip(torch.nn.Module):
    """A GroupNorm as Tune-A-Video's code has it, on [1, c, t, h, w]; here the frames are the batch."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x.transpose(0, 1)[None])[0].transpose(0, 1)


def test_norms_of_residual_blocks_over_the_clip_are_those_of_the_released_code(pipe):
    """All of them and the one before the output; those in front of transformers stay over the frame."""
    folder, reference = pipe
    network = copy.deepcopy(reference.unet)
    for module in list(network.modules()):
        for name in ("norm1", "norm2", "conv_norm_out"):
            if isinstance(norm := getattr(module, name, None), torch.nn.GroupNorm):
                setattr(module, name, OverTheClip(norm))
    x, tokens = noise_like((1, 3, 8, 8, 4)), noise_like((1, 12, 24))
    with torch.no_grad():
        frames = torch.from_numpy(np.moveaxis(x[0], -1, 1).copy())
        expected = network(frames, 500, torch.from_numpy(tokens).expand(3, -1, -1)).sample.numpy()
    ask = lambda over: jax.jit(pretrained.load(folder, norm_over=over).model.unet)(x, jnp.full((1, 3), 500.0), tokens)
    assert error(ask("clip")[0], np.moveaxis(expected, 1, -1)) <= 1e-5
    assert error(ask("frame")[0], np.moveaxis(expected, 1, -1)) > 0.01
