"""Train a recipe's stages in turn, then show what they learned: `python -m vidjax.main --config=configs/lvdm.py`."""

from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from vidjax import cli

CONFIG = cli.define_recipe_flag()
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where everything is written, also gs://BUCKET/RUN; the same one resumes. Default: runs/<recipe>."
)
STAGE = flags.DEFINE_string("stage", None, "Train only this stage.")
MAX_STEPS = flags.DEFINE_integer("max_steps", None, "At most this many steps in every stage.", lower_bound=1)
ALLOW_CHANGES = flags.DEFINE_bool(
    "allow_changes", False, "Let an unfinished stage go on with other settings, data or weights than it was begun with."
)
LOG_EVERY = flags.DEFINE_integer("log_every", None, "Log every that many steps.", lower_bound=1)

join_cluster = cli.define_cluster_flags()


def main() -> None:
    """Reads the flags, joins the other processes if there are any, and runs."""
    config = CONFIG()
    with join_cluster():
        run(config)


def run(config: dict[str, Any]) -> None:
    """Trains the stages of a recipe, and shows what they learned."""
    import jax

    from vidjax import settings
    from vidjax.evaluation import results
    from vidjax.recipes.run import train
    from vidjax.runtime.alike import check_alike
    from vidjax.runtime.aside import send_aside
    from vidjax.runtime.processes import on_first_process
    from vidjax.runtime.storage import absolute, parse_path
    from vidjax.runtime.workdir import open_workdir

    flagged = {f"--{flag.name}": flag.value for flag in (WORKDIR, STAGE, MAX_STEPS, LOG_EVERY, ALLOW_CHANGES)}
    check_alike({**settings.flatten(config, "config."), **flagged})
    workdir = parse_path(WORKDIR.value or default_workdir(config_flags.get_config_filename(flags.FLAGS["config"])))
    on_first_process(lambda: open_workdir(workdir))
    if isinstance(workdir, Path):
        send_aside(workdir / "errors.log")
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(absolute(workdir) / "compilation_cache"))
    made = train(config, workdir, STAGE.value, MAX_STEPS.value, LOG_EVERY.value, ALLOW_CHANGES.value)
    if not STAGE.value:
        results.show(made)


def default_workdir(config: str) -> str:
    """Names the folder of a recipe's run: configs/lvdm.py:sky -> runs/lvdm-sky."""
    path, _, variant = config.partition(":")
    return f"runs/{Path(path).stem}" + (f"-{variant}" if variant else "")


if __name__ == "__main__":
    cli.start(main)
