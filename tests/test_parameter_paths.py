"""Every recipe builds at full size without memory or data; its parameter paths are public: see parameter_paths.txt.

A line a stage: its name, how many parameters it has, the SHA-256 of their lines (path, shape, whether it trains) sorted
by path, the first path and the last; of the tiny recipe all lines. Where a change of paths or shapes is wanted:
`python tests/test_parameter_paths.py`, run in the folder of the project, writes the file again.
"""

import hashlib
import math
import tempfile
from pathlib import Path

import jax
import pytest
from test_configs import RECIPES, ROOT, config
from tiny_folder import CONFIGS, I2VGEN, STABLE_DIFFUSION_1, STABLE_VIDEO, VIDEO, write_configs

from vidjax import settings
from vidjax.models.parameters import Params, abstract_parameters
from vidjax.recipes import build as recipe
from vidjax.recipes.config import stage_names
from vidjax.training.stage import Stage, abstract_loss

FILE = Path(__file__).with_name("parameter_paths.txt")
TUNING = ["tune_a_video:default", "tune_a_video:released", "tune_a_video:dreamix", "dreambooth:full", "dreambooth:text"]
TUNING += ["dreambooth:lora", "dreambooth:video", "align_latents:default", "motion_director:default"]
TUNING += ["animate_diff:default", "svd:temporal", "svd:lora", "svd:full"]
TUNING += ["i2vgen:full", "i2vgen:temporal", "i2vgen:lora"]
TINY = ["tiny:pixels", "tiny:latent"]
NAMES = [*TINY, *RECIPES, *TUNING]
# Those whose steps tests/accelerators compiles, and with them their loss (of natops: mug's, which differs in numbers).
COMPILED = {"lvdm:sky", "lvdm_text:paper", "imagen_video:paper", "lfdm:mug", "lfdm:natops"}
RELEASED = {"lvdm:sky": 548_904_580, "lvdm_text:paper": 958_924_964}  # parameters of the released U-Nets

# Settings that neither a model nor its loss depends on, but for the size of its batch.
IDLE = {f"data.{key}" for key in ("path", "source", "split", "cache", "workers", "heldout")}
IDLE |= {f"train.{key}" for key in ("steps", "batch_size", "ema", "log_every", "save_every", "sample_every")}
IDLE |= {"train.validate_every", "optimizer", "sample", "pretrained"}  # folders of the same sizes, for recipes
OF_DIFFUSION = {"model", "conditioning", "diffusion"}  # of no meaning to an autoencoder


def settings_of(name: str, folder: Path) -> dict:
    """The config of a recipe; what it tunes lies in `folder`, without weights."""
    made = config(name, ROOT / ("tests" if name in TINY else "configs"))
    if "pretrained" in made:
        own = CONFIGS | ({"unet": VIDEO} if name.startswith("motion") else {})
        own = STABLE_VIDEO if name.startswith("svd") else I2VGEN if name.startswith("i2vgen") else own
        around = write_configs(folder / "pretrained", own if name in TUNING else STABLE_DIFFUSION_1)
        made |= dict(pretrained=str(around)) | ({} if own is STABLE_VIDEO else dict(prompt="a fox"))
    if "prior" in made.get("finetune", {}):
        made["finetune"]["prior"]["prompt"] = "a fox"
    return made


def lines_of(name: str, stage: Stage, params: Params) -> list[str]:
    """The lines of a stage of these parameters."""
    found = sorted(params.items())
    shapes = {path: "x".join(map(str, value.shape)) for path, value in found}
    each = [f"{path} {shape}{'' if stage.trainable(path) else ' frozen'}" for path, shape in shapes.items()]
    digest = hashlib.sha256("\n".join(each).encode()).hexdigest()
    line = f"{name}:{stage.name} {len(found)} {digest} {found[0][0]} {found[-1][0]}"
    return [line, *(f"  {one}" for one in each if name in TINY)]


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """Stages whose loss has been traced, by their settings; another one with those of one would be the same program."""
    found = set()
    for name in COMPILED:
        made = settings_of(name, tmp_path_factory.mktemp("folder"))
        found |= {loss_settings(made, stage_name) for stage_name in stage_names(made)}
    return found


def loss_settings(made: dict, stage_name: str) -> str:
    """The settings that the loss of a stage depends on."""
    own = settings.flatten(settings.stage_settings(made, stage_name))
    idle = IDLE | (OF_DIFFUSION if own["objective"] == "autoencoder" else set())
    return repr(sorted((key, value) for key, value in own.items() if not {key, key.split(".")[0]} & idle))


def shallow(made: dict, stage: Stage, workdir: Path) -> tuple:
    """(loss, state, batch) of a stage whose levels have one block each: those that follow have the shapes of the first,
    and tracing takes as long as a network is deep."""
    made = settings.plain(made)
    for section in (made, *made["stages"].values()):
        model = section.get("model", {})
        if "blocks_per_level" in model:
            section["model"] = {**model, "blocks_per_level": min(1, model["blocks_per_level"])}
    loss, state = abstract_loss(recipe.build(made, stage.name, workdir))
    return loss, state, recipe.example_batch(made, stage)


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_builds_with_the_parameters_of_older_versions_and_has_a_loss(name, traced, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    made = settings_of(name, tmp_path_factory.mktemp("folder"))
    known = FILE.read_text().splitlines()
    starts = [number for number, line in enumerate(known) if line.startswith(f"{name}:")]
    end = next((i for i in range(starts[-1] + 1, len(known)) if not known[i].startswith("  ")), len(known))
    lines = []
    for stage_name in stage_names(made):
        stage = recipe.build(made, stage_name, workdir)
        params = abstract_parameters(stage.abstract())
        lines += lines_of(name, stage, params)
        trained = [v for path, v in params.items() if stage.trainable(path)]
        assert trained
        if name in RELEASED and stage_name == "diffusion":
            assert sum(math.prod(v.shape) for v in trained) == RELEASED[name]
        if name in RECIPES and (depends := loss_settings(made, stage_name)) not in traced:
            assert jax.eval_shape(*shallow(made, stage, workdir)).shape == ()
            traced.add(depends)
    assert lines == known[starts[0] : end]
    assert not list(workdir.iterdir())  # building writes nothing


def test_no_recipe_is_left_out():
    known = {line.rpartition(":")[0] for line in FILE.read_text().splitlines() if not line.startswith("  ")}
    assert known == set(NAMES)


if __name__ == "__main__":
    written = []
    for each in NAMES:
        with tempfile.TemporaryDirectory() as scratch:
            made = settings_of(each, Path(scratch))
            for stage_name in stage_names(made):
                stage = recipe.build(made, stage_name, Path(scratch))
                written += lines_of(each, stage, abstract_parameters(stage.abstract()))
    FILE.write_text("\n".join(written) + "\n")
