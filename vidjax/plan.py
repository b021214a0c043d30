"""Whether a recipe fits a pod, and how fast, without the pod: `python -m vidjax.plan --config=configs/lvdm.py:sky
--stage=diffusion --topology=v5p-128`. What it says is explained in `vidjax.planning`.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from vidjax import cli
from vidjax.errors import InputError

CONFIG = config_flags.DEFINE_config_file("config", None, "A recipe and its variant.")
STAGE = flags.DEFINE_string("stage", None, "Only this stage.")
TOPOLOGY = flags.DEFINE_string("topology", None, "Such as v4-32, v5e-16, v5p-128, v6e-64 (Google's names), h100x64.")
JSON = flags.DEFINE_string("json", None, "Write the figures to this file.")


def main() -> None:
    if CONFIG.value is None or TOPOLOGY.value is None:
        raise InputError(f"--{'config' if CONFIG.value is None else 'topology'} is missing")
    import jax

    from vidjax import chips, recipe, settings
    from vidjax.planning import planned
    from vidjax.storage import path_of

    file = JSON.value and path_of(JSON.value, "--json")
    chip, count = chips.named(TOPOLOGY.value)
    # Sums of bf16 over devices stay bf16, as on accelerators; the CPU pass that widens them crashes on some of ours.
    own = f"--xla_force_host_platform_device_count={count} --xla_disable_hlo_passes=all-reduce-promotion"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {own}"
    jax.config.update("jax_platforms", "cpu")
    config = recipe.uncached(settings.checked(CONFIG.value))
    figures: dict[str, Any] = {"topology": TOPOLOGY.value, "chips": count, "stages": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in [STAGE.value] if STAGE.value else recipe.stage_names(config):
            stage = recipe.build(config, name, Path(folder))
            found = planned(stage, recipe.example_batch(config, stage), chip, count)
            shown = {key: value if isinstance(value, str) else f"{value:,.4g}" for key, value in found.items()}
            print(name, *(f"{key} {value}" for key, value in shown.items()), sep="\n  ")
            figures["stages"][name] = found
    if file:
        settings.write_json(file, figures)


if __name__ == "__main__":
    cli.start(main)
