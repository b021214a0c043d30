"""Whether a recipe fits a pod, and how fast, without the pod: `python -m vidjax.plan --config=configs/lvdm.py:sky
--stage=diffusion --topology=v5p-128`. What it says is explained in `vidjax.profiling.planning`.

It compiles for the accelerator itself where the compiler is installed (`pip install vidjax[accelerators]`), else for
simulated CPU devices, and says which.
"""

import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from vidjax import cli
from vidjax.errors import InputError
from vidjax.runtime.storage import write_json

CONFIG = cli.define_recipe_flag()
STAGE = flags.DEFINE_string("stage", None, "Only this stage.")
TOPOLOGY = flags.DEFINE_string("topology", None, "Such as v4-32, v5e-16, v5p-128, v6e-64 (Google's names), h100x64.")
JSON = flags.DEFINE_string("json", None, "Write the figures to this file.")
SIMULATE = flags.DEFINE_bool("simulate", False, "Use simulated CPU devices even where the real compiler is installed.")


def main() -> None:
    config = CONFIG()
    if TOPOLOGY.value is None:
        raise InputError("--topology is missing: name one such as --topology=v5p-128")
    import jax

    from vidjax.profiling import chips
    from vidjax.profiling.planning import compiler_of, planned
    from vidjax.recipes import build as recipe
    from vidjax.recipes.config import stage_names
    from vidjax.runtime.outputs import open_file

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
            stage = recipe.build(config, name, Path(folder))
            say = partial(tell, name, time.monotonic())
            found = planned(stage, recipe.example_batch(config, stage), chip, count, devices, say)
            say("done")
            print(name, *map(partial(line, found), found), sep="\n  ", flush=True)
            figures["stages"][name] = found
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, figures)


def tell(stage: str, began: float, text: str) -> None:
    print(f"{stage}, {time.monotonic() - began:.0f} s: {text}", flush=True)


def line(found: dict[str, Any], key: str) -> str:
    """A figure as it is printed; the list of operations one below the other."""
    value = found[key]
    if isinstance(value, list):
        unit = "cycles" if value and "cycles" in value[0] else "gib"
        rows = (f"{row['share']:6.1%} {row[unit]:>10,.4g} {unit}  {row['layer']}: {row['operation']}" for row in value)
        return "\n    ".join([key, *rows])
    return f"{key} {value if isinstance(value, str) else f'{value:,.4g}'}"


if __name__ == "__main__":
    cli.start(main)
