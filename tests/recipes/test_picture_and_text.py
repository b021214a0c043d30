"""A tiny I2VGen-XL: what sampling tells it, what training shows it, from folder to run to folder, and bad folders."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_configs import config
from tiny_folder import I2VGEN, I2VGEN_MIDDLE, moved, write_folder

from vidjax.diffusion.draws import draws_at
from vidjax.errors import InputError
from vidjax.generation.pretrained import load_generator
from vidjax.models.keys import Keys
from vidjax.models.lora import lora_tensors
from vidjax.models.picture_tokens import PictureTokensTraining, make_averaging, places_of
from vidjax.recipes import build as recipe
from vidjax.runtime.sharding import make_mesh
from vidjax.training.lowering import lower_step
from vidjax.training.strategies import strategy
from vidjax.weights import lora, pretrained

CLIP = Path(__file__).parents[2] / "vidjax" / "clips" / "real" / "path.mp4"
SIZE, FRAMES = (16, 24), 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("i2vgen") / "folder", unet=I2VGEN_MIDDLE, configs=I2VGEN)


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    clips = tmp_path_factory.mktemp("clips")
    shutil.copy(CLIP, clips)
    found = config("i2vgen:full") | dict(pretrained=str(folder), prompt="the cat")
    found["data"] |= dict(path=str(clips), size=(16, 16), frames=2, workers=0)
    found["sample"] |= dict(num_steps=2)
    small = dict(steps=2, batch_size=1, log_every=1, remat="none", dtype="float32", frozen_dtype=None, ema=0.0)
    found["stages"]["tune"]["train"] |= small
    return found


def test_what_a_video_is_told_and_shown(folder):
    """Prompts, rate and picture matter, in no other example than its own."""
    generator = load_generator(folder)
    pictures = list(np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), np.uint8))
    how = dict(size=SIZE, frames=FRAMES, num_steps=2)
    sample = lambda prompts=("the cat", "a"), pictures=pictures, **more: np.asarray(
        generator.latents(list(prompts), pictures=pictures, **how | more)
    )
    base = sample()
    assert base.shape == (2, FRAMES, 8, 12, 4)
    for change in (dict(fps=7.0), dict(negative_prompt="the")):
        assert np.abs(sample(**change) - base).max() > 1e-4
    for other in (sample(("the cat", "b")), sample(pictures=[pictures[0], 255 - pictures[1]])):
        np.testing.assert_allclose(other[0], base[0], atol=1e-4 * np.abs(base).max())
        assert np.abs(other[1] - base[1]).max() > 1e-4
    with pytest.raises(InputError, match="is told the place of each frame; leave it out"):
        sample(chunk=2, overlap=0)
    with pytest.raises(InputError, match="there are 1 pictures for 2 videos"):
        sample(pictures=pictures[:1])
    with pytest.raises(InputError, match="moves a picture and has none: give it one, --image"):
        sample(pictures=None)


def test_guidance_leaves_the_latents_of_the_picture(folder):
    """Its null hides what CLIP sees alone; channels twice are twice those of once."""
    picture = pretrained.load(folder).model.picture
    entry = dict(pixels=jnp.ones((1, 32, 32, 3)), latents=jnp.ones((1, 2, 8, 8, 4)), fps=jnp.ones(1), shown=jnp.ones(1))
    own, away = jax.jit(lambda entry: (picture(entry), picture(picture.null(entry))))(entry)
    assert own["tokens"].shape == (1, 68, 24)
    np.testing.assert_array_equal(own["tokens"][:, :64], away["tokens"][:, :64])
    np.testing.assert_array_equal(own["concat"], away["concat"])
    assert (own["tokens"][:, 64:] != away["tokens"][:, 64:]).all()
    picture = pretrained.load(folder, twice=True).model.picture
    np.testing.assert_array_equal(jax.jit(picture)(entry)["concat"], 2 * own["concat"])


@pytest.mark.parametrize("n", [7, 32, 64, 88, 160])
def test_means_over_a_grid(n):
    """Each row is a mean; where the places divide evenly, over a run of its own."""
    matrix = make_averaging(n)
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)
    if n % 32 == 0:
        np.testing.assert_allclose(matrix @ np.arange(n), np.arange(n).reshape(32, -1).mean(1), rtol=1e-6)


def test_what_training_shows(folder):
    """The latents of the first frame as they are diffused, then the place of each frame; of many clips the share that
    `drop` says is hidden from CLIP."""
    model, count = pretrained.load(folder).model, 400
    embedder = model.picture
    clips = np.random.default_rng(0).integers(0, 256, (2, FRAMES, 8, 8, 3), np.uint8)
    embedder.training = PictureTokensTraining(fps=8.0)
    draw = jax.jit(
        lambda clips: embedder.draw(model.codec, clips, draws_at(jax.random.key(0), jnp.int32(0), len(clips)))
    )
    entry = draw(clips)
    encode = jax.jit(lambda x: (model.codec.latents(x), model.codec.autoencoder.encode(x / 127.5 - 1).logvar))
    mean, logvar = encode(clips[:, :1])
    spread = np.abs(entry["latents"][:, :1] - mean)
    deviation = model.codec.scale * np.exp(0.5 * logvar)
    assert (spread < 5 * deviation).all() and spread.max() > 0
    for i, place in enumerate(places_of(FRAMES)):
        assert i == 0 or (entry["latents"][:, i] == place).all()
    assert (entry["fps"] == 8).all() and (entry["shown"] == 1).all()
    embedder.training = PictureTokensTraining(drop=0.25)
    shown = draw(np.zeros((count, 1, 2, 2, 3), np.uint8))["shown"]
    assert abs(1 - shown.mean() - 0.25) < 0.08


def test_a_tuned_model_is_exported_as_the_folder_it_came_from(made, folder, tmp_path):
    """What does not train bit for bit; all of unet/ has moved; it is read again, and counts the picture twice."""
    stage = recipe.build({**made, "conditioning": dict(picture=dict(twice=True))}, "tune", tmp_path)
    lowered, _ = lower_step(stage, make_mesh(), recipe.example_batch(made, stage))
    assert lowered.cost_analysis()["flops"] > 1e6
    out = tmp_path / "out"
    pretrained.save(moved(stage), folder, out)
    for part in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "image_encoder/model"):
        before, after = (load_file(root / f"{part}.safetensors") for root in (folder, out))
        assert before.keys() == after.keys()
        still = {key for key in after if np.array_equal(before[key], after[key])}
        assert not still if part.startswith("unet") else still == set(before)
    back = pretrained.load(out)
    assert back.model.picture.twice and not pretrained.load(out, twice=False).model.picture.twice


def test_a_folder_goes_out_bit_equal(folder, tmp_path):
    pretrained.save(pretrained.load(folder).model, folder, tmp_path / "out")
    there = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
    assert there == sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.*"))
    assert all((folder / name).read_bytes() == (tmp_path / "out" / name).read_bytes() for name in there)


def test_adapters_go_out_and_come_back(folder, tmp_path):
    """Those of the U-Net, in diffusers' layout and in kohya's; what reads the picture has none."""
    model, tune = pretrained.load(folder).model, strategy("lora", rank=2)
    tune.surgery(model, Keys(0))
    tensors = lora_tensors(model)
    assert tensors and all(path.startswith("unet.") for path in tensors)
    halves = {path for path in tensors if path.endswith(("lora_down", "lora_up"))}
    for kohya, file in ((False, lora.FILE), (True, lora.KOHYA_FILE)):
        pretrained.save_adapters(model, tensors, folder, tmp_path, kohya=kohya)
        back = lora.load(tmp_path / file, 1)
        assert {path for path in back if path.endswith(("lora_down", "lora_up"))} == halves
        for path in halves:
            np.testing.assert_array_equal(back[path], tensors[path])


@pytest.mark.parametrize(
    "part, damage, said",
    [
        ("image_encoder/config.json", None, "image_encoder/config.json does not exist; a folder needs unet/, vae/, "),
        ("unet/diffusion_pytorch_model.safetensors", None, "unet has no weights"),
        (
            "unet/diffusion_pytorch_model.safetensors",
            "fps_embedding.0.bias",
            "no key for parameter add_embedding.li",
        ),
        (
            "unet/diffusion_pytorch_model.safetensors",
            "context_embedding.2.bias",
            r"unet: .*no key for parameter tokens\.linear_2\.bias; no parameter for key context_embedding\.2\.bios",
        ),
        (
            "unet/diffusion_pytorch_model.safetensors",
            "image_latents_proj_in.4.bias=",
            r"unet: .* has shape \(9,\), ",
        ),
    ],
)
def test_a_broken_folder_is_refused_in_one_line(folder, tmp_path, part, damage, said):
    broken = shutil.copytree(folder, tmp_path / "broken")
    tensors = load_file(folder / part) if damage else {}
    (broken / part).unlink()
    if damage:
        key = damage.rstrip("=")
        value = tensors.pop(key)
        tensors |= {key: np.zeros(9, "f")} if damage.endswith("=") else {key.replace("bias", "bios"): value}
        save_file(tensors, broken / part)
    with pytest.raises(InputError, match=said) as caught:
        pretrained.load(broken)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(data=dict(images=1)), "are stills, this model moves: set both to 0"),
        (dict(diffusion=dict(mean=0.7)), "has the noise levels of its folder; leave it out"),
        (
            dict(conditioning=dict(picture=dict(noise_std=0.5))),
            r"conditioning\.picture\.noise_std does not exist",
        ),
        (dict(finetune=dict(drop=1.5)), r"config\.finetune\.drop=1\.5"),
    ],
)
def test_settings_that_do_not_fit_are_refused(made, change, said, tmp_path):
    sections = {key: {**made.get(key, {}), **value} for key, value in change.items()}
    with pytest.raises(InputError, match=said):
        recipe.build(made | sections, "tune", tmp_path)
