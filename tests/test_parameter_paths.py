"""Parameter paths are public API: those of every stage of every recipe, with shapes, stand in parameter_paths.txt.

A line a stage: its name, how many parameters it has, the SHA-256 of their lines (path, shape, whether it trains) sorted
by path, the first path and the last; of the tiny recipe all lines. Where a change of paths or shapes is wanted:
`python tests/test_parameter_paths.py`, run in the folder of the project, writes the file again.
"""

import hashlib
import tempfile
from pathlib import Path

import pytest
from test_configs import RECIPES, ROOT, config
from tiny_folder import CONFIGS, I2VGEN, STABLE_DIFFUSION_1, STABLE_VIDEO, VIDEO, write_configs

from vidjax.models.parameters import abstract_parameters
from vidjax.recipes import build as recipe
from vidjax.recipes.config import stage_names

FILE = Path(__file__).with_name("parameter_paths.txt")
TUNING = ["tune_a_video:default", "tune_a_video:released", "tune_a_video:dreamix", "dreambooth:full", "dreambooth:text"]
TUNING += ["dreambooth:lora", "dreambooth:video", "align_latents:default", "motion_director:default"]
TUNING += ["animate_diff:default", "svd:temporal", "svd:lora", "svd:full"]
TUNING += ["i2vgen:full", "i2vgen:temporal", "i2vgen:lora"]
TINY = ["tiny:pixels", "tiny:latent"]
NAMES = [*TINY, *RECIPES, *TUNING]


def lines_of(name: str, folder: Path) -> list[str]:
    """The lines of a recipe; builds models of shapes alone."""
    made = config(name, ROOT / ("tests" if name in TINY else "configs"))
    if "pretrained" in made:
        own = CONFIGS | ({"unet": VIDEO} if name.startswith("motion") else {})
        own = STABLE_VIDEO if name.startswith("svd") else I2VGEN if name.startswith("i2vgen") else own
        around = write_configs(folder / "pretrained", own if name in TUNING else STABLE_DIFFUSION_1)
        made |= dict(pretrained=str(around)) | ({} if own is STABLE_VIDEO else dict(prompt="a fox"))
    if "prior" in made.get("finetune", {}):
        made["finetune"]["prior"]["prompt"] = "a fox"
    lines = []
    for stage_name in stage_names(made):
        stage = recipe.build(made, stage_name, folder)
        found = sorted(abstract_parameters(stage.abstract()).items())
        shapes = {path: "x".join(map(str, value.shape)) for path, value in found}
        each = [f"{path} {shape}{'' if stage.trainable(path) else ' frozen'}" for path, shape in shapes.items()]
        digest = hashlib.sha256("\n".join(each).encode()).hexdigest()
        lines.append(f"{name}:{stage_name} {len(found)} {digest} {found[0][0]} {found[-1][0]}")
        lines += [f"  {line}" for line in each] if name in TINY else []
    return lines


@pytest.mark.parametrize("name", NAMES)
def test_parameters_have_the_paths_and_shapes_that_files_of_older_versions_have(name, tmp_path):
    known = FILE.read_text().splitlines()
    starts = [number for number, line in enumerate(known) if line.startswith(f"{name}:")]
    end = next((i for i in range(starts[-1] + 1, len(known)) if not known[i].startswith("  ")), len(known))
    assert lines_of(name, tmp_path) == known[starts[0] : end]


def test_no_recipe_is_left_out():
    known = {line.rpartition(":")[0] for line in FILE.read_text().splitlines() if not line.startswith("  ")}
    assert known == set(NAMES)


if __name__ == "__main__":
    written = []
    for each in NAMES:
        with tempfile.TemporaryDirectory() as scratch:
            written += lines_of(each, Path(scratch))
    FILE.write_text("\n".join(written) + "\n")
