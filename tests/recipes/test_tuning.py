"""Tuning as a user runs it: what may change changes, all else stays, and the clip comes back better than before."""

import dataclasses
import json
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from starts import program, start_each
from test_configs import config
from tiny_folder import MIDDLE, write_folder

from vidjax.data.video_reading import Video
from vidjax.diffusion.draws import draws_at
from vidjax.errors import InputError
from vidjax.generation import editing
from vidjax.models.conditioning import embed
from vidjax.models.lora import lora_tensors, merge_loras
from vidjax.models.parameters import parameters
from vidjax.recipes import build as recipe
from vidjax.recipes.run import Run
from vidjax.runtime.sharding import make_mesh
from vidjax.runtime.storage import write_json
from vidjax.training.checkpoint import Checkpoints
from vidjax.training.encoded import Beside, encode_clips, encode_once, first_windows, stand_in
from vidjax.training.loop import prepare, train
from vidjax.training.objectives import diffusion, with_prior
from vidjax.training.optimizer import make_optimizer
from vidjax.training.state import TrainState
from vidjax.training.step import make_train_step
from vidjax.weights import lora, pretrained

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "vidjax" / "clips" / "real" / "path.mp4"
PLAIN = ("stages.tune.train.dtype=float32", "stages.tune.train.frozen_dtype=float32", "stages.tune.train.remat=none")
SMALL = ("data.size=(16, 16)", "data.frames=4", "data.stride=1", "stages.tune.train.log_every=5", "sample.num_steps=10")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("sd") / "folder", unet=MIDDLE)


def asked(folder, workdir, *overrides):
    """The flags of a small run."""
    flags = (f"data.video={CLIP}", "prompt=the fox", f"pretrained={folder}", "sample.prompts=a fox walks;a cat")
    given = [f"--config.{flag}" for flag in (*flags, *PLAIN, *SMALL, *overrides)]
    return [f"--config={ROOT}/configs/tune_a_video.py", f"--workdir={workdir}", *given]


@pytest.fixture(scope="module")
def run(folder, env, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("tuned")
    more = (
        "stages.tune.train.steps=40",
        "stages.tune.optimizer.learning_rate=1e-2",
        "stages.tune.train.sample_every=40",
        "sample.guidance_scale=3.0",
    )
    done = program("main", *asked(folder, workdir, *more), env=env)
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture(scope="module")
def tuned(run):
    return Run(run).generator()


def test_edits_lie_beside_their_source(run):
    summary = json.loads((run / "summary.json").read_text())
    assert [entry["caption"] for entry in summary["samples"]] == ["a fox walks", "a cat"]
    for entry in summary["samples"]:
        (edit,) = entry["videos"]
        for name in (edit, entry["source"]):
            with Video(run / name) as video:
                assert (video.frames, video.height, video.width) == (4, 16, 16)
        made = json.loads((run / edit).with_suffix(".json").read_text())
        assert made["prompt"] == entry["caption"] and made["seed"] == 0
        assert (run / entry["png"]).stat().st_size > 0
    assert np.isfinite(summary["inversion_error"])


def test_only_what_the_strategy_names_has_changed(tuned, folder):
    tuned, base = tuned.params, parameters(pretrained.load(folder, inflate="tuned").model)
    assert tuned.keys() == base.keys()
    changed = {path for path in base if not np.array_equal(tuned[path], base[path])}
    named = {p for p in base if re.search(r"attn[12]\.to_q|attn_temp\.to", p)}
    assert changed <= named
    assert {path for path in named if "attn1.to_q" in path or "attn_temp.to_out" in path} <= changed


def test_no_steps_leave_the_model_as_it_was(run, folder, tmp_path):
    """The ablation without tuning."""
    made = Run(run).config
    made["stages"]["tune"]["train"] |= dict(steps=0)
    write_json(tmp_path / "config.json", made)
    train(recipe.build(made, "tune", tmp_path))
    untuned, base = (
        Run(tmp_path).generator("tune").params,
        parameters(pretrained.load(folder, inflate="tuned").model),
    )
    assert untuned.keys() == base.keys()
    for path, value in base.items():
        np.testing.assert_array_equal(untuned[path], value, err_msg=path)


def test_training_shows_the_edits(run):
    events = b"".join(path.read_bytes() for path in (run / "tune").rglob("events.out*"))
    assert events.count(b"GIF89a") == 1


def test_what_training_shows_last_is_what_the_run_ends_with(run, tuned):
    stage = recipe.build(Run(run).config, "tune", run)
    dataset = stage.dataset()
    state, _ = prepare(stage, make_mesh(**stage.mesh), dataset)
    with Checkpoints(stage.folder / "checkpoints") as checkpoints:
        shown = stage.preview(checkpoints.restore(state), dataset)
    clips, texts = first_windows(dataset)
    ended = editing.edits(tuned, clips, ["a fox walks", "a cat"], texts[0], run)
    np.testing.assert_allclose(shown.astype(int), np.stack(ended).astype(int), atol=1)


def test_tuning_learns_the_clip(run):
    lines = [json.loads(line) for line in (run / "tune" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines]
    assert np.mean(losses[-4:]) < 0.8 * losses[0]


def test_the_inversion_is_kept_until_something_it_depends_on_changes(run, tuned):
    generator = tuned
    clip = Run(run).dataset().windows("train", per_clip=1)[0][0]
    latents = generator.encode(clip[None])
    with np.load(run / "inversion.npz") as kept:
        noise = kept["array"]
    written = (run / "inversion.npz").stat().st_mtime_ns
    np.testing.assert_array_equal(editing.invert_once(generator, latents, run / "inversion.npz"), noise)
    assert (run / "inversion.npz").stat().st_mtime_ns == written
    other = editing.invert_once(generator, latents + 1, run / "inversion.npz")
    assert not np.allclose(other, noise)


def test_inversion_then_sampling_returns_the_latents(run, tuned, monkeypatch):
    generator = tuned
    calmer = {p: v * 0.3 if p.startswith("unet.conv_out") else v for p, v in generator.params.items()}
    monkeypatch.setattr(generator, "params", calmer)
    latents = generator.encode(Run(run).dataset().windows("train", per_clip=1)[0][0][None])
    errors = []
    for steps in (10, 400):
        noise = generator.invert(latents, ["the fox"], num_steps=steps)
        back = generator.latents(["the fox"], noise=noise, num_steps=steps, guidance_scale=1.0)
        errors.append(float(jnp.linalg.norm(back - latents) / jnp.linalg.norm(latents)))
    assert errors[1] < 0.1 < errors[0], errors


def test_zero_shot_motion_moves_the_first_frame(folder, env, tmp_path):
    flags = [
        f"--pretrained={folder}",
        "--inflate=zero_shot",
        "--prompt=the fox",
        f"--save_latents={tmp_path / 'z.npy'}",
    ]
    flags += ["--motion=0,4", "--frames=3", "--num_steps=20", "--guidance_scale=1", f"--out={tmp_path / 'out'}"]
    done = program("sample", *flags, env=env)
    assert done.returncode == 0, done.stderr
    z = np.load(tmp_path / "z.npy")[0]
    likeness = lambda a, b: np.corrcoef(a.ravel(), b.ravel())[0, 1]
    assert likeness(z[1][:, 2:], z[0][:, :-2]) > likeness(z[1], z[0])  # 4 pixels are 2 latents


def test_outside_the_mask_an_edit_keeps_the_clip_bit_for_bit(run, tuned, tmp_path):
    generator = tuned
    clip = Run(run).dataset().windows("train", per_clip=1)[0][0]
    white = np.zeros((16, 16), np.uint8)
    white[4:10, 7:9] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    latents = generator.encode(clip[None])
    mask = editing.latent_mask(str(tmp_path / "mask.png"), "1:3", clip.shape[:3], latents.shape[1:4])
    expected = np.zeros((4, 8, 8), bool)
    expected[1:3, 2:5, 3:5] = True
    np.testing.assert_array_equal(mask, expected)
    edited = generator.latents(["a cat"], frames=4, size=(16, 16), kept=(latents, mask), num_steps=5)
    np.testing.assert_array_equal(np.asarray(edited)[0][~mask], latents[0][~mask])
    assert not np.allclose(np.asarray(edited)[0][mask], latents[0][mask], atol=0.1)
    for picture, frames, says in (
        ("", "2:9", "no range of the clip's 4"),
        ("/nowhere.png", "", "cannot be read"),
        (str(tmp_path / "mask.png"), "", "16x16 pixels, the clip 8x8"),
    ):
        with pytest.raises(InputError, match=says):
            editing.latent_mask(picture, frames, (4, 8, 8), (4, 4, 4))


def test_null_text_leads_guidance_back_to_the_clip(run, tuned, tmp_path):
    """Two routes: sampling with the null captions ends where their search did, nearer to the clip than without."""
    generator = tuned
    latents = generator.encode(Run(run).dataset().windows("train", per_clip=1)[0][0][None])
    options = dict(num_steps=5, guidance_scale=3.0)
    noise, nulls = generator.null_text(latents, ["the fox"], null_text=10, **options)
    far = lambda x: float(jnp.linalg.norm(x - latents) / jnp.linalg.norm(latents))
    plain = far(generator.latents(["the fox"], noise=noise, **options))
    found = far(generator.latents(["the fox"], noise=noise, nulls=nulls, **options))
    assert found < 0.8 * plain, (found, plain)
    with pytest.raises(InputError, match="guidance_scale above 1"):
        generator.null_text(latents, ["the fox"], null_text=20, guidance_scale=1.0)


def test_edits_start_from_as_much_of_the_clip_as_the_strength_leaves(run, tuned):
    generator = tuned
    latents = generator.encode(Run(run).dataset().windows("train", per_clip=1)[0][0][None])
    edit = lambda strength: generator.latents(["a cat"], begin=latents, strength=strength)
    far = [float(jnp.linalg.norm(edit(strength) - latents)) for strength in (0.1, 0.3, 0.6)]
    assert far[0] < far[1] < far[2], far


def test_the_inversions_of_two_clips_are_blended(tuned, tmp_path):
    clips = list(np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), np.uint8))
    mixed = editing.blend_clips(tuned, clips, (0.3, 0.7), tmp_path)
    alone = [editing.invert_once(tuned, tuned.encode(clip[None]), tmp_path / "one.npz") for clip in clips]
    np.testing.assert_allclose(mixed, editing.blend(alone, (0.3, 0.7)), rtol=1e-5)


def test_chunks_tile_a_clip(tuned, monkeypatch):
    """Chunks with frames seen apart are near the whole."""
    generator = tuned
    whole = generator.latents(["a cat"], frames=4, size=(16, 16), num_steps=4)
    parts = generator.latents(["a cat"], frames=4, size=(16, 16), num_steps=4, chunk=3, overlap=1)
    assert np.corrcoef(np.ravel(parts), np.ravel(whole))[0, 1] > 0.5
    noise = generator.invert(whole, ["a cat"], num_steps=4)
    monkeypatch.setattr(generator, "defaults", dataclasses.replace(generator.defaults, chunk=3, overlap=1))
    assert np.corrcoef(np.ravel(generator.invert(whole, ["a cat"], num_steps=4)), np.ravel(noise))[0, 1] > 0.5


def test_blended_inversions_have_the_deviation_of_their_parts():
    a, b = np.random.default_rng(0).standard_normal((2, 1, 2, 4, 4, 3))
    mixed = editing.blend([a, b], [0.3, 0.7])
    assert mixed.std() == pytest.approx((a.std() + b.std()) / 2)
    np.testing.assert_allclose(np.corrcoef(mixed.ravel(), (0.3 * a + 0.7 * b).ravel())[0, 1], 1)
    np.testing.assert_allclose(editing.blend([a], [1.0]), a)
    with pytest.raises(InputError, match="cannot be blended"):
        editing.blend([a, b[:, :1]], [0.5, 0.5])


def test_an_exported_folder_is_the_tuned_model(run, tuned, env, tmp_path):
    flags = [f"--workdir={run}", "--format=tune_a_video", f"--out={tmp_path / 'sd'}"]
    image = [f"--workdir={run}", "--format=diffusers", f"--out={tmp_path / 'image'}"]
    done, refused, left_out = start_each("export", [flags, flags, image], env)
    assert done.returncode == 0 and "would compute something else" in done.stdout, done.stderr
    assert refused.returncode == 1 and "is not empty" in refused.stderr
    assert left_out.returncode == 0 and "no class of diffusers has" in left_out.stdout, left_out.stderr
    images = parameters(pretrained.load(tmp_path / "image").model)
    assert images.keys() == {path for path in tuned.params if "temp" not in path}
    assert all(np.array_equal(value, tuned.params[path]) for path, value in images.items())
    again = parameters(pretrained.load(tmp_path / "sd").model)
    assert again.keys() == tuned.params.keys()
    assert all(np.array_equal(again[path], value) for path, value in tuned.params.items())


@pytest.fixture(scope="module")
def dreambooth(folder, env, tmp_path_factory):
    pictures, workdir = tmp_path_factory.mktemp("pictures"), tmp_path_factory.mktemp("dreambooth")
    with Video(CLIP) as video:
        for i, frame in enumerate(video.read([0, 20, 40])):
            Image.fromarray(frame).save(pictures / f"{i}.jpg")
    flags = (f"data.path={pictures}", "prompt=sks fox", f"pretrained={folder}", "sample.prompts=sks fox;a fox")
    flags += (
        "finetune.prior.prompt=a fox",
        "finetune.prior.count=2",
        "finetune.prior.num_steps=2",
        "data.size=(16, 16)",
    )
    flags += ("stages.tune.train.steps=3", "stages.tune.train.log_every=1", "sample.num_steps=2", "finetune.rank=2")
    flags += ("stages.tune.optimizer.learning_rate=1e-2", "finetune.text=True", *PLAIN)
    given = [f"--workdir={workdir}", *(f"--config.{flag}" for flag in flags)]
    done = program("main", f"--config={ROOT}/configs/dreambooth.py:lora", *given, env=env)
    assert done.returncode == 0, done.stderr
    return workdir


def test_dreambooth_has_a_loss_of_the_class_beside_its_own(dreambooth):
    lines = [json.loads(line) for line in (dreambooth / "tune" / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["loss"] == pytest.approx(line["instance"] + line["prior"], rel=1e-3)
    with np.load(dreambooth / "tune" / "class.npz") as kept:
        assert kept["array"].shape == (2, 1, 16, 16, 3)
    assert len(list((dreambooth / "samples").glob("*.png"))) == 2


def test_an_exported_adapter_merged_is_the_tuned_model(dreambooth, folder, env, tmp_path):
    flags = [f"--workdir={dreambooth}", "--format=diffusers", f"--out={tmp_path / 'lora'}"]
    done = program("export", *flags, env=env)
    assert done.returncode == 0, done.stderr
    base = parameters(pretrained.load(folder).model)
    merged = merge_loras(base, {"fox": (lora.load(tmp_path / "lora", blocks_per_level=1), 1.0)})
    ours = merge_loras(base, {"fox": (lora_tensors(Run(dreambooth).generator().model), 1.0)})
    changed = {path.split(".")[0] for path in base if not np.array_equal(merged[path], base[path])}
    assert changed == {"unet", "text"}
    for path in base:
        np.testing.assert_allclose(merged[path], ours[path], rtol=1e-5, atol=1e-6)


def test_the_prior_holds_the_class_where_it_was(folder):
    """Tuned with prior preservation, the model's answer for the class prompt drifts less (Ruiz et al. 2022, fig. 6)."""
    base = pretrained.load(folder)
    random = np.random.default_rng(0)
    subject, kind = (random.integers(0, 256, (2, 1, 16, 16, 3), np.uint8) for _ in "ab")
    encode = partial(encode_clips, encode_once, base.model, seed=0)
    source = Beside(encode(subject, [base.tokenize("zz fox")] * 2), encode(kind, [base.tokenize("the fox")] * 2))
    loss = partial(diffusion, schedule=base.schedule, prediction=base.prediction)
    probe = jax.tree.map(jnp.asarray, next(source.batches(2))["prior"])

    def answer(model):
        draws = draws_at(jax.random.key(1), jnp.zeros((), jnp.int32), 2)
        x0 = model.latents(probe["video"])
        xt = base.schedule.q_sample(x0, draws.normal(x0.shape[1:]), jnp.full((2, 1), 300.0))
        return model(xt, jnp.full((2, 1), 300.0), embed(model.embedders, probe))

    optimizer = make_optimizer(steps=40, learning_rate=1e-3)
    start = TrainState.create(stand_in(pretrained.load(folder).model), optimizer)

    def weighed(weight):
        """`with_prior(loss, weight)`, for one program that takes any weight."""

        def objective(model, batch, draws):
            _, metrics = with_prior(loss)(model, batch, draws)
            return metrics["instance"] + weight * metrics["prior"], metrics

        return objective

    step = jax.jit(lambda state, batch, weight: make_train_step(weighed(weight), optimizer, 0)(state, batch))
    drift, ask = {}, jax.jit(lambda state: answer(state.model(state.params)))
    for weight in (0.0, 2.0):
        state, before = start, ask(start)
        for batch, _ in zip(source.batches(2), range(40)):
            batch.pop("substituted")
            state, _ = step(state, batch, weight)
        after = ask(state)
        target = draws_at(jax.random.key(1), jnp.zeros((), jnp.int32), 2).normal(before.shape[1:])
        drift[weight] = float(jnp.linalg.norm(after - target) / jnp.linalg.norm(before - target))
    assert drift[2.0] < 0.95 * drift[0.0], drift


WRONG = {
    "/nowhere does not exist": (None, "pretrained", "/nowhere"),
    "did you mean 'tune_a_video'": ("finetune", "strategy", "tune_a_vidio"),
    "has kind 'frst', which is not known": ("model", "key_frames", "frst"),
    "15": ("data", "size", (15, 16)),
    "cannot overlap by 4": ("sample", "chunk", 4),
    "2 weights for 1 clips": ("sample", "blend", (0.5, 0.5)),
    "strength=1.5": ("sample", "strength", 1.5),
    "cannot be read": ("sample", "mask", "/nowhere.png"),
    "did you mean 'ddim'": ("sample", "sampler", "dimm"),
}


@pytest.mark.parametrize("says", WRONG)
def test_bad_input_is_one_line_before_anything_is_compiled(says, folder, tmp_path):
    made = config("tune_a_video:default") | dict(pretrained=str(folder), prompt="the fox")
    made["data"] = {**made["data"], "video": str(CLIP), "size": (16, 16), "frames": 4, "stride": 1}
    section, key, value = WRONG[says]
    made = {**made, key: value} if section is None else {**made, section: {**made.get(section, {}), key: value}}
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        recipe.check(recipe.build(made, "tune", tmp_path))
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
