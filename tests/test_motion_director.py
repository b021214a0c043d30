"""MotionDirector's recipe, small: two stages of adapters on one model, each of which leaves the other's alone."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from as_users import latents_of
from starts import program
from test_configs import config
from tiny_folder import VIDEO_MIDDLE, write_folder

from vidjax import settings
from vidjax.errors import InputError
from vidjax.generation.adapters import merge_lora_files
from vidjax.generation.pretrained import load_generator
from vidjax.models.lora import lora_tensors, merge_loras
from vidjax.models.parameters import abstract_parameters, parameters, split
from vidjax.recipes import build as recipe
from vidjax.recipes.config import stage_names
from vidjax.recipes.run import Run
from vidjax.recipes.tuning import tuned_generator, tuned_model
from vidjax.runtime.sharding import make_mesh
from vidjax.training.encoded import first_windows
from vidjax.training.loop import prepare
from vidjax.training.stage import on_device
from vidjax.weights import lora, pretrained

ROOT = Path(__file__).parents[1]
CLIPS = ROOT / "vidjax" / "clips" / "real"


SMALL = dict(
    data=dict(frames=3, size=(16, 16), workers=0),
    finetune=dict(rank=2),
    train=dict(steps=2, log_every=1, dtype="float32", frozen_dtype="float32", remat="none"),
    optimizer=dict(learning_rate=1e-2),
    sample=dict(num_steps=2, prompts="the fox"),
)


def small(folder, clips, **sections):
    made = config("motion_director:default")
    made |= dict(pretrained=str(folder), prompt="the fox runs")
    for section, values in dict(SMALL, **sections, data=SMALL["data"] | dict(path=str(clips))).items():
        made[section] = {**made.get(section, {}), **values}
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("modelscope") / "folder", unet=VIDEO_MIDDLE)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two clips of one motion."""
    path = tmp_path_factory.mktemp("clips")
    for name in ("path", "man"):
        shutil.copy(CLIPS / f"{name}.mp4", path)
    return path


@pytest.fixture(scope="module")
def run(folder, clips, env, tmp_path_factory):
    """The folder of a run, as a user starts it, and its stages, trained in turn."""
    workdir, made = tmp_path_factory.mktemp("run"), small(folder, clips)
    for name in stage_names(made):
        recipe.check(recipe.build(made, name, workdir))
    assert not list(workdir.iterdir())
    flags = [f"--config.{name}={value}" for name, value in settings.flatten(SMALL).items()]
    named = (f"--config.pretrained={folder}", f"--config.data.path={clips}", "--config.prompt=the fox runs")
    how = (f"--config={ROOT}/configs/motion_director.py", f"--workdir={workdir}")
    done = program("main", *how, *named, *flags, env=env)
    assert done.returncode == 0, done.stderr
    stages = {name: recipe.build(Run(workdir).config, name, workdir) for name in stage_names(made)}
    assert list(stages) == ["appearance", "motion"]
    return workdir, stages


@pytest.fixture(scope="module")
def tuned(run):
    """Parameters after each stage."""
    return {name: parameters(tuned_model(stage)) for name, stage in run[1].items()}


def test_both_stages_train(run):
    for name in ("appearance", "motion"):
        lines = [json.loads(line) for line in (run[0] / name / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2]
        assert all(math.isfinite(line["loss"]) for line in lines)


def test_each_stage_changes_its_own_adapters_and_not_one_bit_of_the_rest(tuned, folder):
    base = parameters(pretrained.load(folder).model)
    appearance, motion = tuned.values()
    assert base.keys() < appearance.keys() < motion.keys()
    for before, after in ((base, appearance), (appearance, motion)):
        for path, value in before.items():
            assert np.asarray(value).tobytes() == np.asarray(after[path]).tobytes()
    for path in motion.keys() - base.keys():
        assert ("temp" in path) == (path not in appearance)
        assert np.any(motion[path])  # `up`, which starts at 0, has moved as well


def test_the_appearance_has_a_weight_in_samples(run, tuned):
    section = settings.stage_settings(Run(run[0]).config, "motion")
    assert section["finetune"]["source_weight"] == 0
    section["finetune"]["source_weight"] = 0.5
    params = tuned_generator(section, run[1]["motion"], run[1]["appearance"]).params
    for path, value in tuned["motion"].items():
        spatial = path.endswith("lora_up") and "temp" not in path
        np.testing.assert_array_equal(params[path], 0.5 * value if spatial else value)


def test_a_motion_file_on_the_folder_is_the_run(run, folder, tuned, env, tmp_path):
    """Without the appearance, which its own file has."""
    export = ("export", f"--workdir={run[0]}", "--format=diffusers")
    done = program(*export, f"--out={tmp_path / 'motion'}", env=env)
    assert done.returncode == 0, done.stderr
    generator = Run(run[0]).generator()
    ours = merge_loras(generator.params, {"run": (lora_tensors(generator.model), 1.0)})
    latents_of(f"--pretrained={folder}", tmp_path / "z", env, f"--lora={tmp_path / 'motion'}", "--prompt=the fox")
    theirs = merge_lora_files(load_generator(folder), [str(tmp_path / "motion")])
    moved = {path for path in theirs if not np.array_equal(theirs[path], tuned["motion"][path])}
    assert moved and all("temp" in path for path in moved)
    for path, value in theirs.items():
        np.testing.assert_allclose(value, ours[path], rtol=1e-5, atol=1e-6)
    done = program(*export, "--stage=appearance", f"--out={tmp_path / 'look'}", env=env)
    assert done.returncode == 0, done.stderr
    look = lora.load(tmp_path / "look", 1)
    assert look.keys() == {path for path in tuned["appearance"] if "lora" in path}
    for path, value in look.items():
        np.testing.assert_allclose(value, tuned["appearance"][path], rtol=1e-6)


def test_all_clips_are_seen_in_turn(run):
    stage = run[1]["motion"]
    dataset = stage.dataset()
    videos, texts = first_windows(dataset)
    assert len(videos) == 2 and set(texts) == {"the fox runs"}
    _, source = prepare(stage, make_mesh(**stage.mesh), dataset)
    batches = source.batches(1)
    seen = [on_device(next(batches))["video"] for _ in range(4)]
    for pair in (seen[:2], seen[2:]):
        assert not np.allclose(*pair, atol=0.1)
    for clip in seen[2:]:
        assert any(np.array_equal(clip, other) for other in seen[:2])


def test_on_an_inflated_image_model_motion_is_in_the_new_layers(clips, tmp_path):
    image = write_folder(tmp_path / "sd")
    made = small(image, clips, model=dict(key_frames="first_and_previous"))
    stage = recipe.build(made, "motion", tmp_path)
    recipe.check(stage)
    model = stage.abstract()
    params, frozen = split(abstract_parameters(model), stage.trainable)
    assert params and all("attn_temp" in path for path in params)
    assert any("attn1.to_q.lora_down" in path for path in frozen)
    with pytest.raises(InputError, match=r"on layers over time that .* has not"):
        pretrained.save_adapters(model, {path: np.zeros((2, 2)) for path in params}, image, tmp_path / "out")
    with pytest.raises(InputError, match="train that stage first"):
        prepare(stage, make_mesh(**stage.mesh), stage.dataset())
