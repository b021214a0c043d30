"""Small copies of recipes that tune a folder: all have a loss, and the one of two stages trains and samples."""

import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from test_configs import config
from tiny_folder import MIDDLE, moved, write_folder

from vidjax import settings
from vidjax.data.video_reading import read_frames
from vidjax.errors import InputError
from vidjax.generation.pretrained import load_generator
from vidjax.models.parameters import parameters
from vidjax.recipes import build as recipe
from vidjax.recipes.config import stage_names
from vidjax.recipes.run import train
from vidjax.runtime.sharding import make_mesh
from vidjax.training.loop import at_step_0
from vidjax.training.lowering import lower_step
from vidjax.weights import pretrained

CLIP = Path(__file__).parents[1] / "vidjax" / "clips" / "real" / "path.mp4"
PRIOR = dict(prompt="a fox", count=2, num_steps=2)
RECIPES = {
    "tune_a_video:released": {},
    "tune_a_video:dreamix": dict(loss=dict(own_images=2, image_share=0.35), finetune=dict(prior=PRIOR)),
    "dreambooth:text": dict(finetune=dict(prior=None)),
    "animate_diff:default": dict(data=dict(source="folder")),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("sd") / "folder", unet=MIDDLE)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Of the subject: a clip, and a picture for recipes that want stills."""
    path = tmp_path_factory.mktemp("clips")
    for kind in ("video", "image"):
        (path / kind).mkdir()
    shutil.copy(CLIP, path / "video")
    Image.fromarray(read_frames(CLIP)[0]).save(path / "image" / "0.png")
    return path


def small(name, folder, clips, sections, plain=True):
    made = config(name) | dict(pretrained=str(folder), prompt="the fox")
    stills = made["data"].get("source") == "images"
    video = {"video": str(CLIP)} if made["data"].get("source") == "clip" else {}
    data = dict(path=str(clips / ("image" if stills else "video")), frames=1 if stills else 2, size=(16, 16), workers=0)
    given = dict(
        data=data | video | sections.pop("data", {}),
        sample=dict(num_steps=2, prompts="a fox", guidance_scale=2.0),
        **sections,
    )
    for section, values in given.items():
        made[section] = {**made.get(section, {}), **values}
    for stage in made["stages"].values():
        own = dict(dtype="float32", frozen_dtype=None, remat="none") if plain else {}
        stage["train"] = {**stage["train"], **own, "batch_size": 1, "accumulate": 1, "log_every": 1}
    return made


@pytest.mark.parametrize("name", RECIPES)
def test_a_small_copy_has_a_step(name, folder, clips, tmp_path):
    """In the recipe's own dtypes; not compiled: others of the kinds train in tests/recipes/test_tuning.py and below."""
    made = small(name, folder, clips, dict(RECIPES[name]), plain=False)
    for stage_name in stage_names(made):
        stage = recipe.build(made, stage_name, tmp_path)
        recipe.check(stage)
        lowered, _ = lower_step(stage, make_mesh(), recipe.example_batch(made, stage))
        assert lowered.cost_analysis()["flops"] > 1e6


def test_two_stages_train_and_sample(folder, clips, tmp_path):
    made = small("align_latents:default", folder, clips, dict(data=dict(source="folder")))
    generator = train(made, tmp_path, max_steps=2).generator()
    for stage_name in stage_names(made):
        lines = [json.loads(line) for line in (tmp_path / stage_name / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2]
        assert all(math.isfinite(line["loss"]) for line in lines)
    assert generator(["a fox"]).std() > 0
    decoded, codec = generator.decode(np.ones((1, 2, 8, 8, 4), "f")), generator.codec
    assert not codec.per_frame("decoder") and decoded.shape == (1, 2, 16, 16, 3)
    temporal = {path for path in generator.params if "temporal_resnet" in path or "attn_temp" in path}
    assert temporal


def test_motion_modules_are_all_that_trains_and_all_that_is_exported(folder, clips, tmp_path):
    """What `export` writes of them alone makes the same model of the base again."""
    made = small("animate_diff:default", folder, clips, dict(data=dict(source="folder")))
    model = moved(recipe.build(made, "motion", tmp_path))
    params, base = parameters(model), load_generator(folder, frames=2).params
    own = {path for path in params if "temporal_attention" in path}
    assert own and params.keys() == base.keys() | own
    assert all(np.array_equal(params[path], value) for path, value in base.items())
    assert all(np.any(params[path]) for path in own)
    pretrained.save_motion_adapter(model, folder, tmp_path / "adapter", "v1")
    again = load_generator(folder, motion_adapter=tmp_path / "adapter")
    assert again.model.unet.config == model.unet.config
    assert all(np.array_equal(again.params[path], value) for path, value in params.items())


def test_a_class_to_preserve_and_clips_encoded_at_every_step_do_not_go_together(folder, clips, tmp_path):
    made = small("dreambooth:text", folder, clips, dict(finetune=dict(prior=PRIOR, encode_once=False)))
    with pytest.raises(InputError, match="encode_once"):
        recipe.build(made, "tune", tmp_path)


def test_a_plan_reads_no_weights_of_a_folder_and_knows_the_state_that_trains(folder, clips, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    made = {
        path: small("dreambooth:lora", path, clips, dict(finetune=dict(prior=PRIOR, text=True)))
        for path in (folder, bare)
    }
    stages = {path: recipe.build(settings.plain(config), "tune", tmp_path) for path, config in made.items()}
    batch = recipe.example_batch(made[bare], stages[bare])
    assert batch["prior"].keys() == batch.keys() - {"prior"}
    lowered, planned = lower_step(stages[bare], make_mesh(), batch)
    state = at_step_0(stages[folder], stages[folder].start(True)[1])
    shapes = [
        {jax.tree_util.keystr(path): (leaf.shape, leaf.dtype) for path, leaf in jax.tree.leaves_with_path(each)}
        for each in (planned, state)
    ]
    assert shapes[0] == shapes[1]
    assert lowered.cost_analysis()["flops"] > 1e6
