"""The manual's extensions run as they stand, from a file of one's own, and a recipe may name them."""

import ast
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vidjax.diffusion.draws import draws_at
from vidjax.diffusion.samplers import SAMPLERS, sample, times
from vidjax.errors import InputError
from vidjax.models.conditioning import EMBEDDERS, embed, nulls
from vidjax.models.sublayers import SUBLAYERS, Site, block
from vidjax.recipes.build import build
from vidjax.training.objectives import OBJECTIVES, diffusion

MANUAL = Path(__file__).parents[1] / "docs" / "extending.md"
TABLES = {"every_second": SUBLAYERS, "fps": EMBEDDERS, "perturbed": OBJECTIVES, "consistency": SAMPLERS}


@pytest.fixture(scope="module")
def mine():
    """The names of the manual's file, whose entries leave the tables again."""
    names: dict = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", MANUAL.read_text(), re.DOTALL)), names)
    yield names
    for name, table in TABLES.items():
        del table[name]


def test_frames_look_at_every_second_one(mine):
    layer = block((("attn1", "every_second"),), Site(8, 2, nnx.Rngs(0)))
    look, x = jax.jit(lambda x: layer.attn1.mix(x, x)), jax.random.normal(jax.random.key(0), (1, 4, 3, 8))
    reached = lambda frame: np.abs(look(x) - look(x.at[:, frame].add(1.0))).max((0, 2, 3)) > 1e-6
    assert reached(2).all() and not reached(3)[:3].any()


def test_the_condition_is_heard(mine):
    named = embed({"fps": mine["model"].fps}, mine["batch"]).vector
    assert not np.allclose(named[0], named[1]) and set(
        nulls(mine["model"].embedders, mine["batch"])["fps"].tolist()
    ) == {0}
    assert "fps" in mine["gradient"]


def test_without_strength_the_objective_is_that_of_the_package(mine):
    def both(state):
        model, draws = nnx.merge(mine["graphdef"], state), draws_at(jax.random.key(0), jnp.int32(0), 2)
        how = dict(schedule=mine["process"], prediction="v")
        own = mine["perturbed"](model, mine["batch"], draws, **how, strength=0.0)[0]
        return own, diffusion(model, mine["batch"], draws, **how)[0]

    np.testing.assert_allclose(*jax.jit(both)(mine["state"]), rtol=1e-5)


def test_the_sampler_ends_on_what_an_exact_denoiser_knows(mine):
    process, sampler, x0 = mine["process"], SAMPLERS["consistency"](), jnp.full((2, 3), 0.7)
    denoise = lambda xt, t: process.x0_eps(x0, xt, t, "x0")
    noise = jax.random.normal(jax.random.key(0), x0.shape)
    found = sample(denoise, process, noise, times(sampler, process, 3), 3, sampler, jax.random.key(1))
    np.testing.assert_allclose(found, x0, atol=1e-6)
    assert mine["videos"].shape == (2, 4, 8, 8, 3)


def test_a_recipe_names_them(mine, tmp_path):
    config = dict(
        data=dict(source="shapes", path="", frames=4, size=8),
        conditioning=dict(fps=dict(dim=16)),
        model=dict(
            in_channels=3, channels=(8,), blocks_per_level=0, attention_levels=(True,), heads=2, groups=4,
            block=(("attn1", "every_second"),),
        ),
        diffusion=dict(schedule="cosine", steps=None, prediction="v"),
        stages=dict(base=dict(objective="perturbed", train=dict(steps=2, batch_size=2), loss=dict(strength=0.2))),
        sample=dict(sampler="consistency"),
    )  # fmt: skip
    stage = build(config, "base", tmp_path)
    assert stage.objective.func is mine["perturbed"] and stage.objective.keywords["strength"] == 0.2
    graphdef, state = nnx.split(stage.abstract())
    loss = lambda state, batch, draws: stage.objective(nnx.merge(graphdef, state), batch, draws)[0]
    assert jax.eval_shape(loss, state, mine["batch"], draws_at(jax.random.key(0), jnp.int32(0), 2)).shape == ()
    config["stages"]["base"]["objective"] = "perturbd"
    with pytest.raises(InputError, match="did you mean 'perturbed'"):
        build(config, "base", tmp_path)


def test_no_module_of_the_package_edits_anothers_table():
    """`TABLE[name] = ...` and TABLE.update(...) stand at most where TABLE is made."""
    changes = ("update", "setdefault", "pop", "append", "extend")
    for file in (MANUAL.parents[1] / "vidjax").rglob("*.py"):
        tree = ast.parse(file.read_text())
        own = {t.id for n in tree.body if isinstance(n, ast.Assign | ast.AnnAssign) for t in targets(n) if is_name(t)}
        edited = [t.value for n in ast.walk(tree) if isinstance(n, ast.Assign) for t in targets(n) if is_entry(t)]
        edited += [n.func.value for n in ast.walk(tree) if isinstance(n, ast.Call) and is_change(n.func, changes)]
        names = {node.id if is_name(node) else getattr(node, "attr", "") for node in edited}
        assert not {name for name in names - own if name.isupper()}, file


def targets(node):
    return node.targets if isinstance(node, ast.Assign) else [node.target]


def is_name(node):
    return isinstance(node, ast.Name)


def is_entry(node):
    return isinstance(node, ast.Subscript)


def is_change(function, changes):
    return isinstance(function, ast.Attribute) and function.attr in changes
