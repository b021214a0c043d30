"""What a plan says of a pod, against the compiled program's own account and against collectives of known size."""

import json
import re

import pytest
import tiny
from flax import nnx
from runtime.test_sharding import eight_devices
from starts import program
from test_main import LATENT

from vidjax import settings
from vidjax.profiling.flops import count_flops
from vidjax.recipes import build as recipe
from vidjax.recipes.config import uncached
from vidjax.training.stage import step_flops


def test_bytes_a_device_are_those_of_the_compiled_program():
    """State and batch, cut by rules, against what XLA says that a device is handed; eight devices, two axes."""
    found = eight_devices("""
        import sys, tempfile
        from pathlib import Path
        sys.path.insert(0, "tests")
        import tiny
        from vidjax.profiling.costs import own_bytes
        from vidjax.training.lowering import lower_step
        from vidjax.recipes import build as recipe
        from vidjax.recipes.config import uncached
        from vidjax import settings
        config = settings.plain(tiny.get_config("pixels"))
        config["mesh"] = dict(data=2, fsdp=4, tensor=1, context=1)
        config["model"]["channels"] = (64,)
        stage = recipe.build(config, "diffusion", Path(tempfile.mkdtemp()))
        batch = recipe.example_batch(config, stage)
        mesh = sharding.make_mesh(**stage.mesh)
        lowered, state = lower_step(stage, mesh, batch)
        compiled = lowered.compile()
        own = sum(map(own_bytes, jax.tree.leaves(state)))
        clips = sum(np.prod(v.shape) * v.dtype.itemsize for v in batch.values()) / 8
        whole = sum(v.size * v.dtype.itemsize for v in jax.tree.leaves(state))
        found = [int(own + clips), compiled.memory_analysis().argument_size_in_bytes, int(whole)]
    """)
    own, handed, whole = found
    assert own == pytest.approx(handed, rel=0.01) and own < 0.8 * whole


def test_what_travels_is_what_the_collectives_of_a_program_send():
    found = eight_devices("""
        from jax.sharding import PartitionSpec as P
        from vidjax.profiling.program import collectives
        mesh = sharding.make_mesh(data=2, context=4)
        one = lambda f, out: jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P("data", "context"), out_specs=out))
        x = jax.ShapeDtypeStruct((8, 16, 32), jnp.float32)  # 4096 bytes on each device, groups of 4
        programs = {
            "all-reduce": one(lambda x: jax.lax.psum(x, "context"), P("data")),
            "all-gather": one(lambda x: jax.lax.all_gather(x, "context", axis=1, tiled=True), P("data", "context")),
            "all-to-all": one(lambda x: jax.lax.all_to_all(x, "context", 2, 1, tiled=True), P("data", None, "context")),
            "collective-permute": one(lambda x: jax.lax.ppermute(x, "context", [(i, (i + 1) % 4) for i in range(4)]),
                P("data", "context")),
        }
        found = {name: list(collectives(f.lower(x).compile().as_text())) for name, f in programs.items()}
    """)
    own = 4 * 4 * 32 * 4
    assert found == {
        "all-reduce": [["all-reduce", 2 * own * 3 / 4]],
        "all-gather": [["all-gather", own * 3]],
        "all-to-all": [["all-to-all", own * 3 / 4]],
        "collective-permute": [["collective-permute", own]],
    }


def test_what_a_loop_sends_counts_as_often_as_it_turns():
    """Two loops in one another, and one that is no loop's: 5 * 3 times, 5 times and once."""
    found = eight_devices("""
        from jax.sharding import PartitionSpec as P
        from vidjax.profiling.program import collectives
        mesh = sharding.make_mesh(data=2, context=4)
        shift = lambda x, step: jax.lax.ppermute(x, "context", [(i, (i + step) % 4) for i in range(4)]) * 1.1
        inner = lambda x: jax.lax.scan(lambda x, _: (shift(x, 1), None), x, None, length=3)[0]
        outer = lambda x: jax.lax.scan(lambda x, _: (shift(inner(x), 2), None), x, None, length=5)[0]
        own = jax.jit(jax.shard_map(lambda x: shift(outer(x), 3), mesh=mesh, in_specs=P("context"),
            out_specs=P("context")))
        text = own.lower(jax.ShapeDtypeStruct((8, 4), jnp.float32)).compile().as_text()
        found = list(collectives(text))
    """)
    assert found == [["collective-permute", 2 * 4 * 4]] * (5 * 3 + 5 + 1)


def test_the_program_plans_each_stage_and_refuses_what_cannot_be(env, tmp_path):
    ask = ("plan", *LATENT, "--topology=h100x8", "--stage=diffusion", "--simulate")
    done = program(*ask, f"--json={tmp_path / 'plan.json'}", env=env)
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    figures, dear = plan["stages"]["diffusion"], plan["stages"]["diffusion"]["most_expensive"]
    assert plan["compiler"] == figures["compiler"] == "cpu" and len(dear) == 10
    assert any(row["layer"].startswith("unet.") for row in dear) and 0 < sum(row["share"] for row in dear) < 1
    assert figures["verdict"] == "fits" and 0 < figures["mfu"] < 0.5 and figures["all-reduce_gib"] > 0
    assert figures["optimizer_gib"] == pytest.approx(2 * figures["parameters_gib"], rel=1e-3)  # Adam
    done = program(*ask, "--config.stages.diffusion.train.batch_size=7", env=env)
    assert done.returncode == 1 and re.fullmatch(r"error: batch size 7 is not divisible by 8.*\n", done.stderr), (
        done.stderr
    )


def test_a_step_on_stored_latents_does_all_but_encode_its_clips(tmp_path):
    """Counted by two routes; in FLOPs, which are the same on any machine."""
    made = settings.plain(tiny.get_config("latent"))
    flops = {}
    for latents in ("", "latents"):
        made["data"]["latents"] = latents
        stage = recipe.build(made, "diffusion", tmp_path)
        flops[latents] = step_flops(stage, recipe.example_batch(made, stage))
    whole = recipe.build(uncached(made), "diffusion", tmp_path)
    batch, (graphdef, state) = recipe.example_batch(uncached(made), whole), nnx.split(whole.abstract())
    encode = count_flops(lambda state, video: nnx.merge(graphdef, state).latents(video), state, batch["video"])
    assert flops[""] == flops["latents"] + encode and encode > 0
