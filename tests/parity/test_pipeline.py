"""Whole pipelines against diffusers: text to latents to pixels, from the same folder and the same noise."""

import json
import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from vidjax import pretrained  # noqa: E402
from vidjax.errors import InputError  # noqa: E402
from vidjax.train_state import parameters  # noqa: E402

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
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
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
    return pretrained.generator(pipe[0])


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
    assert generator.size == (1, 64, 64)
    noise = noise_like((2, 1, 8, 8, 4))
    latents = generator.latents(PROMPTS, noise=noise, num_steps=10, guidance_scale=7.5)
    expected = theirs(reference, noise, guidance_scale=7.5)
    assert error(latents, expected) <= 1e-3
    assert error(latents, theirs(reference, noise, guidance_scale=1.0)) > 0.1  # the guidance is seen
    pixels = theirs(reference, noise, "np", guidance_scale=7.5)
    ours = generator.decode(latents)
    assert pixels.std() > 0.05
    assert np.abs(ours / 255 - pixels).max() <= 1 / 255


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


def test_dtype(pipe):
    loaded = pretrained.load(pipe[0], dtype=jnp.bfloat16, inflate="tuned")
    assert {leaf.dtype for leaf in parameters(loaded.model).values()} == {jnp.dtype("bfloat16")}
