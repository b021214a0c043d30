"""Every option of every section can be set beside what a recipe lists, by its type, and the recipe stays what it is."""

import sys
from pathlib import Path

import pytest
from absl import flags
from test_configs import config
from test_parameter_paths import NAMES, TINY

from vidjax import cli
from vidjax.errors import InputError
from vidjax.recipes import build as recipe
from vidjax.recipes.config import OPTIONS, complete, default_settings, overridden, variants
from vidjax.runtime.workdir import open_workdir
from vidjax.settings import plain
from vidjax.training import provenance

ROOT = Path(__file__).parents[2]


def read(monkeypatch, file, *arguments):
    """The recipe as a program reads it from its command line."""
    values = flags.FlagValues()
    monkeypatch.setattr(sys, "argv", ["main", f"--config={ROOT / 'configs' / file}", *arguments])
    own = cli.define_recipe_flag(values)
    values(sys.argv)
    return own()


def test_an_option_that_no_recipe_lists_is_set_on_the_command_line(monkeypatch, tmp_path):
    listed = read(monkeypatch, "ddpm.py:fashion")
    assert "remat" not in listed["stages"]["diffusion"]["train"] and "mesh" not in listed
    made = read(
        monkeypatch,
        "ddpm.py:fashion",
        "--config.stages.diffusion.train.remat=full",
        "--config.data.size=(16, 24)",
        "--config.data.flip",
        "--config.optimizer.clip=None",
        "--config.mesh.fsdp=1",
        "--config.seed=7",
    )
    stage = recipe.build(made, "diffusion", tmp_path)
    assert stage.train.remat == "full" and stage.abstract().remat == "full"
    assert stage.data.hw == (16, 24) and stage.data.flip and stage.seed == 7
    assert made["optimizer"] == {"clip": None} and made["mesh"] == {"fsdp": 1}
    kept = {key: value for key, value in made.items() if key in ("model", "conditioning", "diffusion", "sample")}
    assert kept == {key: listed[key] for key in kept}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TINY])
def test_every_recipe_takes_every_option_for_all_and_for_each_of_its_stages(name):
    made = config(name)
    whole = complete(made)

    def missing(known, section):
        for key, hint in known.items():
            if key not in section:
                yield key
            elif isinstance(hint, dict):
                yield from missing(hint, section[key])

    for section in (whole, *whole.stages.values()):
        assert not list(missing(OPTIONS, section))
    assert plain(made) == overridden(made, {})


def test_a_variant_is_chosen_by_name():
    assert plain(variants("b", a=dict(seed=1), b=lambda: dict(seed=2))) == {"seed": 2}
    with pytest.raises(InputError, match="no variant 'skyy'; did you mean 'sky'"):
        variants("skyy", sky={}, clips={})


def test_a_setting_that_is_no_longer_listed_is_the_same_if_it_is_the_default(tmp_path):
    """A stage that an older recipe began, which listed defaults, goes on with one that does not."""
    open_workdir(tmp_path)
    (tmp_path / "a" / "checkpoints" / "3").mkdir(parents=True)
    record = tmp_path / "a" / provenance.NAME
    record.write_text('{"settings": {"seed": 0, "data.stride": 1, "data.size": 32, "optimizer.clip": 2.0}}')
    check = lambda **now: provenance.check_settings(tmp_path / "a", now, False, default_settings())
    same = {"data.size": 32, "optimizer.clip": 2.0}
    check(**same)
    check(**same, **{"data.flip": False})
    for other in (same | {"data.size": 64}, same | {"data.stride": 2}, {"data.size": 32}):
        with pytest.raises(InputError, match="trained with"):
            check(**other)
