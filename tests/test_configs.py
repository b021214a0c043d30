"""Small copies of recipes train, and each says what is wrong with it before anything runs."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from vidjax import settings
from vidjax.errors import InputError
from vidjax.recipes import build as recipe
from vidjax.recipes.config import stage_names
from vidjax.training.loop import train

ROOT = Path(__file__).parents[1]
DEFAULTS = dict(lvdm="clips", ddpm="fashion", vdm="clips", dreambooth="full", tune_a_video="default")
DEFAULTS |= dict(align_latents="default", motion_director="default", lvdm_text="paper", imagen_video="paper")
DEFAULTS |= dict(animate_diff="default", svd="temporal", videocrafter="temporal", i2vgen="full", lfdm="shapes")
RECIPES = ["lvdm:clips", "lvdm:sky", "lvdm:ucf101", "lvdm:taichi", "ddpm:mnist", "ddpm:fashion", "ddpm:cifar10"]
RECIPES += ["lvdm_text:paper", "lvdm_text:clips", "imagen_video:paper", "imagen_video:clips"]
RECIPES += ["lvdm:adversary", "lvdm:sky_prediction", "lvdm:sky_interpolation", "lvdm:long", "vdm:clips", "vdm:ucf101"]
RECIPES += ["lvdm:faceforensics", "lvdm:mead", "lvdm:webvid", "lvdm:shapes"]
RECIPES += ["lfdm:shapes", "lfdm:clips", "lfdm:mug", "lfdm:natops"]


def config(name: str, folder: Path = ROOT / "configs") -> dict:
    file, variant = name.split(":")
    spec = importlib.util.spec_from_file_location(file, folder / f"{file}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return settings.plain(module.get_config(variant))


# What makes a copy of a recipe small enough to train inside a test: everything else stays as the recipe has it. That of
# lvdm:clips is tests/tiny.py, which tests/test_main.py trains, that of lvdm_text:paper in tests/test_lvdm_text.py;
# others have no part that none of these has.
SMALL = {
    "lvdm:sky": dict(
        data=dict(source="shapes", path="", frames=8, size=16),
        autoencoder=dict(
            channels=(32, 32),
            blocks=(0, 1),
            decoder_channels=(32, 4),
            decoder_blocks=(1, 0),
            steps=((2, 2, 2),),
            decoder_steps=((2, 2, 2),),
        ),
        model=dict(channels=(32,)),
    ),
    "ddpm:fashion": dict(data=dict(source="shapes", path="", size=8), model=dict(in_channels=3, channels=(16,))),
    "vdm:ucf101": dict(data=dict(source="shapes", path="", frames=4, size=8, images=2), model=dict(channels=(32,))),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_small_copy_of_a_recipe_trains_two_steps(name, tmp_path):
    made = config(name)
    for section, values in SMALL[name].items():
        made[section] = {**made[section], **values}
    made["data"] = {**made["data"], "workers": 0}
    made["model"] = {**made["model"], "blocks_per_level": 0, "attention_levels": (False,), "heads": 2}
    for stage in made["stages"].values():
        own = {**stage["train"], "batch_size": 4, "accumulate": 2, "log_every": 1, "sample_every": None}
        stage["train"] = own | dict(dtype="float32", remat="none")  # else compiles half as long again
        if "discriminator" in stage:
            stage["discriminator"] = {"frame": dict(channels=4, layers=1, groups=2)}
            stage["loss"] = {**stage["loss"], "start": 1}
    for stage_name in stage_names(made):
        stage = recipe.build(made, stage_name, tmp_path, max_steps=2)
        train(stage)
        lines = (tmp_path / stage_name / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2]
        assert all(math.isfinite(json.loads(line)["loss"]) for line in lines)


def tiny(**sections) -> dict:
    made = config("tiny:pixels", ROOT / "tests")
    for section, values in sections.items():
        made[section] = {**made.get(section, {}), **values}
    return made


@pytest.mark.parametrize(
    "sections, says",
    [
        (dict(data=dict(sise=3)), "config.data.sise does not exist; did you mean 'size'"),
        (dict(data=dict(source="webvid", path="/nowhere")), "/nowhere"),
        (dict(model=dict(chanels=(16,))), "did you mean 'channels'"),
        (dict(optimizer=dict(learning_rat=1.0)), "did you mean 'learning_rate'"),
        (dict(diffusion=dict(schedule="cosin")), "did you mean 'cosine'"),
        (dict(mesh=dict(data=3)), "3 devices, there are 1"),
        (dict(loss=dict(weighting="min_snrr")), "did you mean 'min_snr'"),
        (dict(wrong=dict()), "config.wrong does not exist"),
        (dict(mesh=dict(dat=1)), "config.mesh.dat does not exist; did you mean 'data'"),
        (dict(model=dict(blocks_per_level=10**20)), "at least 0 and at most 64"),
        (dict(model=dict(heads=0)), "heads=.*must be at least 1"),
        (dict(model=dict(channels="abc")), "config.model.channels='abc' is not"),
        (dict(data=dict(fps=math.nan)), "config.data.fps=nan is not"),
        (dict(data=dict(frames=-1)), "data.frames=-1: must be at least 1"),
        (dict(data=dict(size=10**6)), "GiB at once"),
        (dict(diffusion=dict(schedule="linear", steps=10**15, shift=None)), "config.diffusion.shift does not exist"),
        (dict(diffusion=dict(steps=10**15)), "steps=1000000000000000 is not possible"),
        (dict(sample=dict(fps=1e-9)), "sample.fps=1e-09 is not between"),
        (dict(conditioning=dict(label=dict(classes=0, dim=8))), "classes=0: must be at least 1"),
    ],
)
def test_bad_input_fails_before_anything_is_compiled(sections, says, tmp_path):
    with pytest.raises(InputError, match=says) as caught:
        recipe.check(recipe.build(tiny(**sections), "diffusion", tmp_path))
    assert "\n" not in str(caught.value)


def test_a_size_that_the_strides_do_not_divide_is_refused(tmp_path):
    made = config("tiny:latent", ROOT / "tests")
    made["data"] = {**made["data"], "size": 20}
    with pytest.raises(InputError, match="do not divide by the autoencoder's strides"):
        recipe.check(recipe.build(made, "autoencoder", tmp_path))


def test_stages_are_ordered_by_their_sources():
    stages = {"b": {"source": "a"}, "c": {"source": "b"}, "a": {}}
    assert stage_names({"stages": stages}) == ["a", "b", "c"]
    with pytest.raises(InputError, match="circle"):
        stage_names({"stages": {"a": {"source": "b"}, "b": {"source": "a"}}})


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.py")), ids=lambda file: file.stem)
def test_every_setting_can_be_set_on_the_command_line(file):
    """ConfigDict's own methods hide settings of their names from it."""

    def names(config):
        for key, value in config.items():
            yield key
            if isinstance(value, dict):
                yield from names(value)

    assert not {name for name in names(config(f"{file.stem}:{DEFAULTS[file.stem]}")) if hasattr(ConfigDict, name)}
