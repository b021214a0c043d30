"""What a run has learned, for other programs: `python -m vidjax.export --workdir W --format orbax|diffusers --out DIR`.

orbax: the averaged parameters by path, and the config. diffusers: for runs that tune a folder in that layout, the whole
folder again with the tuned weights; with LoRA, the adapters of the stage alone (pytorch_lora_weights.safetensors).
"""

from collections.abc import Callable
from pathlib import Path

from absl import flags

from vidjax import cli
from vidjax.errors import InputError
from vidjax.storage import AnyPath, local, path_of, whole_folder

WORKDIR = flags.DEFINE_string("workdir", None, "A run that vidjax.main has trained.")
FORMAT = flags.DEFINE_string("format", "orbax", "orbax or diffusers.")
STAGE = flags.DEFINE_string("stage", None, "The stage whose model it is; default: the last one.")
OUT = flags.DEFINE_string("out", None, "A new folder.")


def main() -> None:
    from vidjax.settings import choose

    for name, flag in (("workdir", WORKDIR), ("out", OUT)):
        if not flag.value:
            raise InputError(f"--{name} is missing")
    write = choose(FORMAT.value, FORMATS, "--format")
    workdir, out = path_of(WORKDIR.value), local(OUT.value)
    with whole_folder(out) as part:
        write(workdir, part)
    print(out)


def orbax(workdir: AnyPath, out: Path) -> None:
    """`parameters` (Orbax, a dict from path to array) and config.json."""
    import orbax.checkpoint as ocp

    from vidjax import recipe, settings

    generator = recipe.generator(workdir, STAGE.value)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((out / "parameters").absolute(), generator.params)
    settings.write_json(out / "config.json", recipe.read_config(workdir))


def diffusers(workdir: AnyPath, out: Path) -> None:
    """A folder that `diffusers` loads, or a LoRA for one."""
    from vidjax import pretrained, recipe
    from vidjax.models.lora import lora_tensors

    config = recipe.read_config(workdir)
    source = config.get("pretrained")
    if not source or not recipe.tuned(workdir):
        raise InputError(
            f"--format=diffusers: {workdir} was not tuned from a folder of diffusers, which has no such model; "
            "take --format=orbax"
        )
    model = recipe.generator(workdir, STAGE.value).model
    if tensors := lora_tensors(model):
        trains = recipe.build(config, STAGE.value or recipe.stage_names(config)[-1], workdir).trainable
        own = {path: value for path, value in tensors.items() if trains(f"{path.rpartition('.')[0]}.lora_down")}
        pretrained.save_adapters(model, own, source, out)
    else:
        pretrained.save(model, source, out)


FORMATS: dict[str, Callable[[AnyPath, Path], None]] = {"orbax": orbax, "diffusers": diffusers}

if __name__ == "__main__":
    cli.start(main)
