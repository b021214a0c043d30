"""What attention takes of a TPU with each of its kernels, these by their compiled schedules: nothing is run.

python tests/benchmarks/kernel_cycles.py --batch=4 --tokens=1024 --features=256 --head_dim=32
python tests/benchmarks/kernel_cycles.py ... --forms=short --topology=v6e-1 --json=figures.json

Forward and backward in bf16. Elsewhere (vidjax.plan, layer_cycles.py) a kernel counts as what its products take at the
peak; here as the instructions that the compiler has put into each of its steps, times the steps: what a step leaves out
counts as well, waiting for memory does not. Wants pip install -e '.[accelerators]'; minutes on two cores.
"""

import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from absl import flags

from vidjax import cli
from vidjax.profiling.flops import called
from vidjax.runtime.storage import write_json

BATCH = flags.DEFINE_integer("batch", 4, "Sequences.", lower_bound=1)
TOKENS = flags.DEFINE_integer("tokens", 1024, "Of each.", lower_bound=1)
FEATURES = flags.DEFINE_integer("features", 256, "Of all heads.", lower_bound=1)
HEAD_DIM = flags.DEFINE_integer("head_dim", 32, "Of one head.", lower_bound=1)
FORMS = flags.DEFINE_list("forms", "short,splash", "Entries of vidjax.models.kernels.attention.ATTENTION.")
TOPOLOGY = flags.DEFINE_string("topology", "v5e-1", "One TPU chip of one core: v5e-1 or v6e-1.")
JSON = flags.DEFINE_string("json", None, "Write the figures to this file.")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        found = {form: measured(form, Path(folder)) for form in FORMS.value}
    for form, figures in found.items():
        print(form, *(f"\n  {key} {value:,.0f}" for key, value in figures.items()))
    if JSON.value:
        write_json(Path(JSON.value), found)


def measured(form: str, folder: Path) -> dict[str, float]:
    """Cycles of each kernel, of its products at the peak, and of all that is beside the kernels."""
    import jax
    import jax.numpy as jnp

    from vidjax.models.kernels.attention import ATTENTION
    from vidjax.profiling import chips
    from vidjax.profiling.program import cycles
    from vidjax.runtime import sharding

    os.environ.update(chips.QUIET)
    jax.config.update("jax_platforms", "cpu")
    chip, _ = chips.named(TOPOLOGY.value)
    mesh = sharding.make_mesh(devices=chips.devices(TOPOLOGY.value))
    size = (BATCH.value, TOKENS.value, FEATURES.value)
    x = jax.ShapeDtypeStruct(size, jnp.bfloat16, sharding=sharding.replicated(mesh))
    loss = lambda *qkv: jnp.square(ATTENTION[form](*qkv, HEAD_DIM.value).astype(jnp.float32)).sum()
    gradient = jax.grad(loss, (0, 1, 2))
    with jax.set_mesh(mesh), chips.lowering_for(chip):
        steps = dict(kernels_of(jax.make_jaxpr(gradient)(x, x, x).jaxpr))
        program = jax.jit(gradient).lower(x, x, x).compile().as_text()
    found, beside = Counter(), 0.0
    for each, number in cycles(program, chip.cells):
        name = next((name for name in steps if each.kernel and name in each.kernel), None)
        if name is None:
            beside += number
            continue
        files = sorted(folder.glob(f"*{name}*schedule-analysis_final_bundles.txt"))
        bundles = re.search(r"total scheduled bundles:\s*(\d+)", files[-1].read_text())
        assert bundles
        found[name] += int(bundles[1]) * steps[name]
        found[f"{name}, products at the peak"] += number
    kernels = sum(number for name, number in found.items() if "peak" not in name)
    return {**found, "beside the kernels": beside, "in all": kernels + beside}


def kernels_of(jaxpr: Any) -> Iterator[tuple[str, int]]:
    """(name, steps) of each Pallas kernel."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation.params["name"], prod(equation.params["grid_mapping"].grid)
            continue
        for inner in called(equation):
            yield from kernels_of(inner)


if __name__ == "__main__":
    cli.start(main)
