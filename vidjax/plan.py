"""Whether a recipe fits a pod, and how fast, without the pod: `python -m vidjax.plan --config=configs/lvdm.py:sky
--stage=diffusion --topology=v5p-128`.

It compiles for the accelerator itself where the compiler is installed (`pip install vidjax[accelerators]`): that
program would run there, and its bytes are the compiler's own account. Elsewhere, and it says so, it compiles for as
many simulated CPU devices, which keep some bf16 arrays in fp32 and fuse less, so that activations are rather over than
under what a TPU or GPU needs.

Times are estimates, see `vidjax.profiling.costs`. To them comes what travels, at the speed of the links, nothing
overlapped. MFU counts the model's FLOPs as in the textbook, not those that rematerialisation repeats.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import flags

from vidjax import cli
from vidjax.errors import InputError
from vidjax.profiling import chips
from vidjax.profiling import layers as profiling
from vidjax.profiling.chips import GIB, Chip
from vidjax.profiling.costs import durations, most_expensive, own_bytes
from vidjax.profiling.program import collectives
from vidjax.recipes import build as recipe
from vidjax.recipes.config import stage_names
from vidjax.runtime import sharding
from vidjax.runtime.outputs import open_file
from vidjax.runtime.storage import write_json
from vidjax.training.lowering import lower_step
from vidjax.training.stage import Stage, step_flops

CONFIG = cli.define_recipe_flag()
STAGE = flags.DEFINE_string("stage", None, "Only this stage.")
TOPOLOGY = flags.DEFINE_string("topology", None, "Such as v4-32, v5e-16, v5p-128, v6e-64 (Google's names), h100x64.")
JSON = flags.DEFINE_string("json", None, "Write the figures to this file.")
SIMULATE = flags.DEFINE_bool("simulate", False, "Use simulated CPU devices even where the real compiler is installed.")


def main() -> None:
    """Plans the stages of --config on --topology."""
    config = CONFIG()
    if TOPOLOGY.value is None:
        raise InputError("--topology is missing: name one such as --topology=v5p-128")
    file = JSON.value and open_file(JSON.value, "--json")
    chip, count = chips.named(TOPOLOGY.value)
    os.environ.update(chips.QUIET)
    jax.config.update("jax_platforms", "cpu")
    devices = None if SIMULATE.value else chips.devices(TOPOLOGY.value)
    if devices is None:
        # Sums of bf16 over devices stay bf16, as on accelerators; the CPU pass that widens them crashes on some.
        own = f"--xla_force_host_platform_device_count={count} --xla_disable_hlo_passes=all-reduce-promotion"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {own}"
        why = "asked for" if SIMULATE.value else f"no compiler for {chip.kind} here: pip install vidjax[accelerators]"
        print(f"simulated CPU devices ({why})", flush=True)
    compiler = compiler_of(chip, devices)
    figures: dict[str, Any] = {"topology": TOPOLOGY.value, "chips": count, "compiler": compiler, "stages": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in [STAGE.value] if STAGE.value else stage_names(config):
            stage = recipe.largest(recipe.build(config, name, Path(folder)))
            say = partial(tell, name, time.monotonic())
            found = plan_stage(stage, recipe.example_batch(config, stage), chip, count, devices, say)
            say("done")
            print(name, *map(partial(line, found), found), sep="\n  ", flush=True)
            figures["stages"][name] = found
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, figures)


def plan_stage(
    stage: Stage,
    batch: Any,
    chip: Chip,
    count: int,
    devices: Sequence[Any] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Plans one stage: figures per device, bytes in GiB, and what to do if it does not fit.

    `devices` are those of the topology, to compile for; without them JAX's own, as many, are taken. `say` is told how
    far it is. Raises InputError for a mesh or a batch that do not fit the number of devices.
    """
    mesh = sharding.make_mesh(**stage.mesh, devices=devices)
    sharding.check_batch(mesh, stage.train.batch_size, stage.train.accumulate)
    flops = step_flops(stage, batch)
    say(f"{flops / 1e12:,.4g} TFLOP per step; tracing")
    with chips.lowering_for(chip):
        lowered, state = lower_step(stage, mesh, batch)
    say(f"compiling for {count} x {chip.kind}, which takes minutes for large models")
    compiled = lowered.compile(compiler_options=chips.COMPILER_OPTIONS[chip.platform] if devices else None)
    memory, text = compiled.memory_analysis(), compiled.as_text()
    sent = list(collectives(text))
    parts = {"parameters": state.params, "frozen": state.frozen, "average": state.ema, "optimizer": state.opt_state}
    sizes = {name: sum(map(own_bytes, jax.tree.leaves(tree))) / GIB for name, tree in parts.items()}
    kept = sum(sizes.values())
    total = memory.peak_memory_in_bytes / GIB if devices else kept + memory.temp_size_in_bytes / GIB
    travel = sum(bytes_ for _, bytes_ in sent) / (chip.network if chip.node and count > chip.node else chip.link)
    seconds, dear = durations(text, chip, flops / count, devices is not None)
    found: dict[str, Any] = {"compiler": compiler_of(chip, devices)}
    found |= {f"{name}_gib": size for name, size in sizes.items()}
    found |= {"activations_gib": total - kept, "total_gib": total, "memory_gib": chip.memory / GIB}
    for kind in sorted({kind for kind, _ in sent}):
        own = [bytes_ for other, bytes_ in sent if other == kind]
        found |= {f"{kind}_count": len(own), f"{kind}_gib": sum(own) / GIB}
    found |= {"tflop_per_step": flops / 1e12, "compute_seconds": seconds, "travel_seconds": travel}
    found |= {"step_seconds": seconds + travel, "mfu": flops / count / chip.flops / (seconds + travel)}
    paths = {path for path, _ in profiling.layers(stage.abstract())}
    found |= {"most_expensive": most_expensive(dear, paths)}
    return found | {"verdict": verdict(kept, total - kept, chip.memory / GIB, stage, mesh)}


def compiler_of(chip: Chip, devices: Sequence[Any] | None) -> str:
    """Names the compiler that a plan is by: "tpu", "cuda" or "cpu"."""
    return {"tpu": "tpu", "gpu": "cuda"}[chip.platform] if devices else "cpu"


def verdict(kept: float, activations: float, memory: float, stage: Any, mesh: Any) -> str:
    """Says in one line whether it fits, and which setting to change if not."""
    if kept + activations <= 0.9 * memory:
        return "fits"
    own = stage.train.batch_size // stage.train.accumulate // mesh.shape["data"] // mesh.shape["fsdp"]
    state, live = (
        f"parameters and optimizer are {kept:.3g} GiB per device",
        f"activations are {activations:.3g} GiB per device",
    )
    if kept > 0.45 * memory:
        return f"does not fit: {state}, raise mesh.fsdp ({mesh.shape['fsdp']})"
    if stage.train.remat != "full":
        return f"does not fit: {live}, set train.remat=full ({stage.train.remat})"
    if own > 1:
        return f"does not fit: {live} of {own} clips, raise train.accumulate or lower train.batch_size"
    return f"does not fit: {live} of one clip, raise mesh.context ({mesh.shape['context']})"


def tell(stage: str, began: float, text: str) -> None:
    """Prints how far the plan of a stage is."""
    print(f"{stage}, {time.monotonic() - began:.0f} s: {text}", flush=True)


def line(found: dict[str, Any], key: str) -> str:
    """Formats a figure, the list of operations one below the other."""
    value = found[key]
    if isinstance(value, list):
        unit = next((unit for unit in ("cycles", "ms", "gib") if value and unit in value[0]), "")
        rows = (f"{row['share']:6.1%} {row[unit]:>10,.4g} {unit}  {row['layer']}: {row['operation']}" for row in value)
        return "\n    ".join([key, *rows])
    return f"{key} {value if isinstance(value, str) else f'{value:,.4g}'}"


if __name__ == "__main__":
    cli.start(main)
