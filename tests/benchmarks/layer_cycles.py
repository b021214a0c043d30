"""What one level of a recipe's U-Net costs a TPU, by its compiler's cycles: to compare two ways of writing a layer.

python tests/benchmarks/layer_cycles.py --config=configs/lvdm.py:sky --stage=diffusion --level=0 --clips=8
python tests/benchmarks/layer_cycles.py ... --only=attention --topology=v5p-2 --json figures.json

Compiled for a chip that need not be here (pip install -e '.[accelerators]'): a residual block and its attention layers,
forward and backward in bf16, with everything computed again unless --remat says otherwise. What a stage that tunes
leaves as it is has no gradient. Minutes on two cores.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx

from vidjax import cli
from vidjax.models import unet
from vidjax.models.keys import OneKey
from vidjax.models.layers import Context
from vidjax.models.parameters import abstract_parameters, cast, merge
from vidjax.profiling import chips, costs
from vidjax.profiling.flops import count_flops
from vidjax.profiling.program import cycles
from vidjax.recipes import build as recipe
from vidjax.runtime import sharding
from vidjax.runtime.storage import write_json

CONFIG = cli.define_recipe_flag()
STAGE = flags.DEFINE_string("stage", "diffusion", "The stage whose U-Net it is.")
LEVEL = flags.DEFINE_integer("level", 0, "Of the U-Net, 0 the finest.", lower_bound=0)
CLIPS = flags.DEFINE_integer("clips", 1, "At once.", lower_bound=1)
ONLY = flags.DEFINE_string("only", None, "One layer of the level: resnet, attention, ...")
REMAT = flags.DEFINE_enum("remat", "full", list(unet.REMAT), "What is computed again: as train.remat.")
TOPOLOGY = flags.DEFINE_string("topology", "v5e-1", "One TPU chip: v5e-1, v6e-1 or v5p-2.")
JSON = flags.DEFINE_string("json", None, "Write the figures to this file.")


def main() -> None:
    os.environ.update(chips.QUIET)
    jax.config.update("jax_platforms", "cpu")
    config = CONFIG()
    stage = recipe.build(config, STAGE.value, Path("nowhere"))
    model: Any = stage.abstract()
    seen = recipe.example_batch(config, stage)["video"]
    video = jax.ShapeDtypeStruct((CLIPS.value, *seen.shape[1:]), seen.dtype)
    graphdef, state = nnx.split(model)
    latents = jax.eval_shape(lambda state, video: nnx.merge(graphdef, state).latents(video), state, video)
    trains = lambda path: stage.trainable(f"unet.down.0.{path}")
    found = measured(model.unet.config, latents.shape, trains, *chips.named(TOPOLOGY.value))
    found |= {"command": " ".join(sys.argv[1:])}
    for key, value in found.items():
        print(key, value)
    if JSON.value:
        write_json(Path(JSON.value), found)


def measured(
    config: unet.UNetConfig, latents: tuple[int, ...], trains: Callable[[str], bool], chip: chips.Chip, count: int
) -> dict[str, Any]:
    """Cycles of one level, the operations that take most, and GiB beside what goes in and comes out."""
    (b, t, h, w, _), level = latents, LEVEL.value
    features = config.channels[level]
    attend, after = config.attention_levels[level], config.after_attention
    over_time = after is not None and after.levels[level]
    make = lambda: unet.stage(features, features, level, config, attend, over_time, rngs=OneKey())
    graphdef, state = nnx.split(nnx.eval_shape(make))
    mesh = sharding.make_mesh(devices=chips.devices(TOPOLOGY.value))
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.bfloat16, sharding=sharding.replicated(mesh))
    params, frozen = {}, {}
    for path, leaf in abstract_parameters(state).items():
        part, dtype = (params, leaf.dtype) if trains(path) else (frozen, jnp.bfloat16)
        part[path] = jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding.replicated(mesh))
    x = shape(b, t, h >> level, w >> level, features)
    emb, tokens = shape(b, t, 4 * config.channels[0]), shape(b, 77, config.tokens_dim or 1)

    def loss(remat, params, x, emb, tokens, frozen):
        def call(x, emb, tokens, params, frozen):
            layers = merge(graphdef, cast(params, jnp.dtype("bfloat16")), frozen)
            layers = getattr(layers, ONLY.value) if ONLY.value else layers
            return layers(x, Context(emb, tokens if config.tokens_dim else None))

        run = call if remat == "none" else jax.checkpoint(call, policy=unet.REMAT[remat])
        y = run(x, emb, tokens, params, frozen)
        return jnp.square(y.astype(jnp.float32)).sum()

    gradient = lambda remat: jax.grad(partial(loss, remat), (0, 1))
    args = (params, x, emb, tokens, frozen)
    with jax.set_mesh(mesh), chips.lowering_for(chip):
        compiled = jax.jit(gradient(REMAT.value)).lower(*args).compile()
    spent = cycles(compiled.as_text(), chip.cells)
    kinds: Counter[str] = Counter()
    for each, number in spent:
        kinds[costs.operation(each)] += number
    whole = sum(kinds.values())
    flops = count_flops(gradient("none"), *args)
    top = {name: f"{number / whole:.1%}" for name, number in kinds.most_common(12)}
    return {
        "cycles": whole,
        "seconds": whole / chip.clock,
        "mfu": flops / chip.flops / (whole / chip.clock),
        "temporaries_gib": compiled.memory_analysis().temp_size_in_bytes / chips.GIB,
        "top": top,
    }


if __name__ == "__main__":
    cli.start(main)
