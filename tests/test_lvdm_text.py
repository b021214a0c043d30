"""LVDM's text model: frozen parts of a folder around a U-Net of its own, and stills that see nobody else."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from starts import program
from test_configs import ROOT, config
from tiny_folder import write_folder

from vidjax.data.latents import write_latents
from vidjax.data.video_reading import Video
from vidjax.diffusion.draws import draws_at
from vidjax.errors import InputError
from vidjax.generation.pretrained import load_generator
from vidjax.models.conditioning import Conditioning, drop_conditions
from vidjax.models.parameters import parameters
from vidjax.recipes import build as recipe
from vidjax.recipes.run import Run
from vidjax.runtime import sharding
from vidjax.training.checkpoint import Checkpoints, read_json
from vidjax.training.loop import create_state
from vidjax.training.stage import on_device
from vidjax.weights import pretrained

SMALL = dict(
    data=dict(path="", frames=4, size=16, images=2, stride=1, workers=0),
    model=dict(channels=(32,), attention_levels=(True,), heads=2, blocks_per_level=0),
    sample=dict(num_steps=2),
)
TRAIN = dict(steps=2, batch_size=2, dtype="float32", remat="none", log_every=1, sample_every=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("sd") / "folder")


def small(folder) -> dict:
    made: dict[str, Any] = config("lvdm_text:paper") | dict(pretrained=str(folder))
    for section, values in SMALL.items():
        made[section] = {**made[section], **values}
    stage = made["stages"]["diffusion"]
    stage["train"] = {**stage["train"], **TRAIN}
    return made


@pytest.fixture(scope="module")
def run(folder, env, tmp_path_factory):
    """The recipe as a user trains it, at toy size."""
    workdir = tmp_path_factory.mktemp("run")
    flags = {f"{section}.{key}": value for section, values in SMALL.items() for key, value in values.items()}
    flags |= {f"stages.diffusion.train.{k}": v for k, v in TRAIN.items()} | dict(pretrained=folder)
    given = [f"--config.{key}={value}" for key, value in flags.items()]
    done = program("main", f"--config={ROOT}/configs/lvdm_text.py", f"--workdir={workdir}", *given, env=env)
    assert done.returncode == 0, done.stderr
    return workdir, env


def test_what_comes_from_the_folder_stays_as_it_is_and_what_trains_is_the_unet(run, folder):
    workdir, _ = run
    ours, theirs = Run(workdir).generator().params, parameters(pretrained.load(folder).model)
    frozen = [path for path in theirs if not path.startswith("unet.")]
    assert frozen and {path.split(".")[0] for path in ours} == {"unet", "codec", "text"}
    for path in frozen:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)
    with Checkpoints(workdir / "diffusion" / "checkpoints") as checkpoints:
        saved = checkpoints.latest()
    meta = read_json(workdir / "diffusion" / "checkpoints" / str(saved) / "meta" / "metadata")
    assert all(path.startswith("unet.") for paths in meta.values() for path in paths)


def test_captions_are_read_and_clips_encoded_as_the_folder_does(run, folder):
    ours, theirs = Run(run[0]).generator(), load_generator(folder)
    np.testing.assert_array_equal(ours.tokens(["the fox"])["tokens"], theirs.tokens(["the fox"])["tokens"])
    said = [g.model.text(g.tokens(["the fox"])["tokens"])["tokens"] for g in (ours, theirs)]
    np.testing.assert_array_equal(*said)
    video = np.random.default_rng(0).integers(0, 256, (1, 2, 16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(ours.encode(video), theirs.encode(video))


def test_sample_writes_a_video_of_a_prompt(run, tmp_path):
    workdir, env = run
    done = program("sample", f"--workdir={workdir}", "--prompt=the fox", "--frames=6", f"--out={tmp_path}", env=env)
    assert done.returncode == 0, done.stderr
    assert "warning: --frames=6, this model was trained on 4: longer videos of it tend to be still" in done.stderr
    with Video(tmp_path / "00-the-fox-seed0.mp4") as video:
        assert video.frames == 6
    export = ("export", f"--workdir={workdir}", "--format=diffusers", f"--out={tmp_path / 'folder'}")
    refused = program(*export, env=env)
    assert refused.returncode == 1 and "take --format=orbax" in refused.stderr and "Traceback" not in refused.stderr


def test_captions_drop_to_the_folders_empty_one(run):
    generator = Run(run[0]).generator()
    model, tokenize = generator.model, generator.tokenize
    assert tokenize is not None
    ids = jnp.tile(jnp.asarray(tokenize("the fox")), (1000, 1))
    lost = drop_conditions(model.embedders, {"tokens": ids}, jax.random.split(jax.random.key(0), 1000))["tokens"]
    empty = (np.asarray(lost) == tokenize("")).all(1)
    assert (empty | (lost == ids).all(1)).all()
    assert abs(empty.mean() - 0.1) < 4 * (0.1 * 0.9 / 1000) ** 0.5


def test_features_from_a_cache_train_as_captions_do(run, folder, tmp_path):
    """Dropped ones too: the same loss of the same U-Net, from moments and features and from pixels and ids."""
    dataset, encode, about, beside = Run(run[0]).encoding("diffusion")
    batch = encode(next(dataset.batches(2)))
    write_latents(tmp_path, [{key: value[i] for key, value in batch.items()} for i in range(2)], about, **beside)
    made, losses, params = small(folder) | dict(conditioning=dict(text=dict(drop=0.5))), [], {}
    train = made["stages"]["diffusion"]["train"] | dict(frozen_dtype=None)  # the cache is made by encoders in fp32
    made["stages"]["diffusion"] = {**made["stages"]["diffusion"], "train": train}
    random = np.random.default_rng(0)
    for latents in ("", str(tmp_path)):
        made["data"] = {**made["data"], "latents": latents}
        stage = recipe.build(made, "diffusion", tmp_path / "run")
        source = stage.dataset()
        state = create_state(stage, sharding.make_mesh(**stage.mesh), source, stage.start(True)[1])
        params = params or {
            path: value + 0.1 * random.standard_normal(value.shape, np.float32) for path, value in state.params.items()
        }
        state = dataclasses.replace(state, params=params, ema=params)
        loss = jax.jit(lambda state, batch, draws, stage=stage: stage.objective(state.model(), batch, draws)[0])
        first = on_device(next(source.batches(2)))
        draws = [draws_at(jax.random.key(seed), jnp.zeros((), jnp.int32), 2) for seed in range(4)]
        losses.append([loss(state, first, one) for one in draws])
    assert list(state.frozen) == ["text.empty"]  # no encoder is in memory
    np.testing.assert_allclose(*losses, rtol=1e-4)
    state = dataclasses.replace(state, frozen={"text.empty": state.frozen["text.empty"] + 1})
    assert any(abs(loss(state, first, one) / old - 1) > 1e-3 for one, old in zip(draws, losses[0]))  # some are dropped


def test_stills_beside_a_clip_do_not_see_it(run):
    """From pixels to prediction: another clip changes nothing in what is said of the stills."""
    generator = Run(run[0]).generator()
    random = np.random.default_rng(0)
    noisy = lambda value: value + 0.1 * random.standard_normal(value.shape, np.float32)
    model = generator.network.model({path: noisy(value) for path, value in generator.params.items()})
    tokens = generator.tokens(["the fox"])["tokens"]
    video = np.random.default_rng(0).integers(0, 256, (1, 6, 16, 16, 3), dtype=np.uint8)
    other = np.concatenate([video[:, :4][:, ::-1], video[:, 4:]], 1)

    @jax.jit
    def predict(video):
        x = model.latents(video)
        cond = Conditioning(tokens=model.text(tokens)["tokens"])
        return model(x, jnp.full(x.shape[:2], 500.0), cond, images=2)

    a, b = predict(video), predict(other)
    np.testing.assert_allclose(a[:, 4:], b[:, 4:], atol=1e-5)
    assert np.abs(a[:, :4] - b[:, :4]).max() > 1e-2


def test_stills_want_an_autoencoder_of_single_frames(tmp_path):
    made = config("lvdm:clips")
    made["data"] = {**made["data"], "images": 2}
    with pytest.raises(InputError, match=r"data\.images=2: stills want an autoencoder that takes each frame by itself"):
        recipe.build(made, "diffusion", tmp_path).abstract()


@pytest.mark.parametrize(
    "sections, says",
    [
        (dict(pretrained=""), "config.pretrained is empty: set --config.pretrained"),
        (dict(pretrained="/nowhere"), "the folder /nowhere does not exist"),
        (dict(conditioning=dict(text=dict(dim=3))), r"config\.conditioning\.text\.dim does not exist; known are drop"),
        (dict(conditioning=dict(text=dict(drop=0.1), label=dict(clases=3))), "did you mean 'classes'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_compiled(sections, says, folder, tmp_path):
    with pytest.raises(InputError, match=says) as caught:
        recipe.check(recipe.build({**small(folder), **sections}, "diffusion", tmp_path))
    assert "\n" not in str(caught.value)
