"""Tuning a model that moves pictures: what it is told and shown in training, and a tiny one from run to folder."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from as_users import latents_of, picture_of, run, tune
from flax import nnx
from safetensors.numpy import load_file
from test_configs import config
from tiny_folder import STABLE_VIDEO, STABLE_VIDEO_MIDDLE, write_folder

from vidjax.diffusion import weighting
from vidjax.diffusion.draws import draws_at
from vidjax.errors import InputError
from vidjax.models.autoencoder import Autoencoder
from vidjax.models.picture import PictureTraining, motion_of
from vidjax.recipes import build as recipe
from vidjax.training.strategies import strategy
from vidjax.weights import pretrained

CLIP = Path(__file__).parents[2] / "vidjax" / "clips" / "real" / "path.mp4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("svd") / "folder", unet=STABLE_VIDEO_MIDDLE, configs=STABLE_VIDEO)


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    clips = tmp_path_factory.mktemp("clips")
    shutil.copy(CLIP, clips)
    found = config("svd:temporal") | dict(pretrained=str(folder))
    found["data"] |= dict(path=str(clips), size=(16, 16), frames=2, workers=0)
    found["sample"] |= dict(num_steps=2)
    found["stages"]["tune"]["train"] |= dict(steps=2, log_every=1, remat="none", dtype="float32", frozen_dtype=None)
    return found


def test_what_training_tells_and_shows(folder, monkeypatch):
    """Each clip its own noise, motion and rate; the mean latents of its first frame, not scaled; and of many clips
    token and latents are hidden as InstructPix2Pix hides them."""
    monkeypatch.setattr(Autoencoder, "encode", nnx.jit(Autoencoder.encode))
    model = pretrained.load(folder).model
    embedder, count = model.picture, 600
    clips = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 4, 3), np.uint8)
    clips[2, 1] = clips[2, 0]  # does not move
    embedder.training = PictureTraining(fps=8.0, noise_std=0.0, noise_mean=-1e9, drop=0.0)
    draw = lambda clips: embedder.draw(model.codec, clips, draws_at(jax.random.key(0), jnp.int32(0), len(clips)))
    still = draw(jnp.asarray(clips))
    np.testing.assert_allclose(still["numbers"][:, 0], 7)
    np.testing.assert_allclose(still["numbers"][:, 1], motion_of(jnp.asarray(clips)))
    assert still["numbers"][2, 1] == 0 and (still["numbers"][:2, 1] > 0).all() and still["shown"].all()
    mean = model.codec.autoencoder.encode(jnp.asarray(clips[:, :1] / 127.5 - 1, jnp.float32)).mode
    np.testing.assert_allclose(still["latents"], mean, atol=1e-4)

    embedder.training = PictureTraining(motion=127.0, drop=0.1)
    many = np.zeros((count, 1, 2, 2, 3), np.uint8)
    drawn = draw(jnp.asarray(many))
    levels = np.log(drawn["numbers"][:, 2])
    assert len(np.unique(levels)) == count and abs(levels.mean() + 3) < 0.1 and abs(levels.std() - 0.5) < 0.05
    assert (drawn["numbers"][:, 1] == 127).all()
    kinds = [(drawn["shown"] == jnp.array(kind)).all(1).mean() for kind in ((0, 1), (0, 0), (1, 0), (1, 1))]
    np.testing.assert_allclose(kinds, [0.1, 0.1, 0.1, 0.7], atol=0.05)


def test_the_loss_of_v_is_theirs_of_x0(folder):
    """(1 + sigma^2) / sigma^2 on x0, as SVD_Xtend weighs it, is 1 on what the network predicts; the levels are drawn
    from its log-normal distribution."""
    known = pretrained.load(folder, weights=False)
    sigma = np.array([0.01, 0.7, 3.0, 500.0], np.float32)
    logsnr = known.schedule.logsnr(sigma)
    np.testing.assert_allclose(weighting.uniform(logsnr, "v"), 1)
    np.testing.assert_allclose(weighting.x0_error(logsnr, "v") * (1 + sigma**2) / sigma**2, 1, rtol=1e-5)
    levels = np.log(known.schedule.sample_t((jnp.arange(10_000) + 0.5) / 10_000))
    np.testing.assert_allclose([levels.mean(), levels.std()], [0.7, 1.6], atol=0.01)
    np.testing.assert_allclose(known.schedule.timesteps(25)[[0, 24, 25]], [700, 0.002, 0], rtol=1e-5)


def test_a_run_is_exported_as_the_folder_it_came_from(folder, env, tmp_path):
    """By the programs: what was not trained bit for bit; all else has moved; and the folder samples as the run does."""
    workdir, out = tune("svd.py:temporal", folder, tmp_path / "run", env), tmp_path / "out"
    run("export", f"--workdir={workdir}", "--format=diffusers", f"--out={out}", env=env)
    for part in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "image_encoder/model"):
        before, after = (load_file(root / f"{part}.safetensors") for root in (folder, out))
        assert before.keys() == after.keys()
        moved = {key for key in after if not np.array_equal(before[key], after[key])}
        over_time = {key for key in before if "temporal" in key or "time_mixer" in key or "time_pos" in key}
        assert moved == (over_time if part.startswith("unet") else set())
    how = (f"--image={picture_of(tmp_path)}", "--motion_bucket=90", "--fps=9")
    ours = latents_of(f"--workdir={workdir}", tmp_path / "ours", env, *how)
    theirs = latents_of(f"--pretrained={out}", tmp_path / "theirs", env, *how)
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-4 * np.abs(ours).max())


def test_adapters_go_out_and_come_back(folder, tmp_path):
    """In diffusers' layout and in kohya's."""
    from vidjax.models.keys import Keys
    from vidjax.models.lora import lora_tensors
    from vidjax.weights import lora

    model, tune = pretrained.load(folder).model, strategy("lora", rank=2)
    tune.surgery(model, Keys(0))
    tensors = lora_tensors(model)
    assert tensors and all(path.startswith("unet.") for path in tensors)
    halves = {path for path in tensors if path.endswith(("down", "up"))}
    for kohya, file, name in (
        (False, lora.FILE, ".temporal_transformer_blocks.0.attn1.to_q.lora_A.weight"),
        (True, lora.KOHYA_FILE, "_temporal_transformer_blocks_0_attn1_to_q.lora_down.weight"),
    ):
        pretrained.save_adapters(model, tensors, folder, tmp_path, kohya=kohya)
        assert any(name in key for key in load_file(tmp_path / file))
        back = lora.load(tmp_path / file, 1)
        assert {path for path in back if path.endswith(("down", "up"))} == halves
        for path in halves:
            np.testing.assert_array_equal(back[path], tensors[path])


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(data=dict(fps=None)), "config.data.fps is missing"),
        (dict(prompt="a cat"), "reads no text"),
        (dict(finetune=dict(encode_once=True)), "under new noise at every step"),
        (
            dict(conditioning=dict(picture=dict(drop=0.5))),
            r"config\.conditioning\.picture\.drop=0\.5: must be at least 0",
        ),
        (dict(conditioning=dict(picture=dict(nois=0.5))), r"config\.conditioning\.picture\.nois does not exist"),
    ],
)
def test_settings_that_do_not_fit_are_refused(made, change, said, tmp_path):
    sections = {key: {**made[key], **value} if isinstance(value, dict) else value for key, value in change.items()}
    with pytest.raises(InputError, match=said):
        recipe.build(made | sections, "tune", tmp_path)
