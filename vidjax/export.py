"""Exports a run's model for other programs: `python -m vidjax.export --workdir W --format FORMAT --out DIR`.

orbax: the averaged parameters by path, and the config. diffusers: for runs that tune a folder in that layout, the whole
folder again with the tuned weights; with LoRA, the adapters of the stage alone (pytorch_lora_weights.safetensors). No
class of diffusers has the layers over time of Tune-A-Video: they are left out, which leaves a tuned image model.
tune_a_video: the whole folder with them, for Tune-A-Video's own code, and for `--pretrained` here. motion_adapter:
AnimateDiff's motion modules alone, for any Stable Diffusion 1. kohya: the adapters of the stage alone in the layout of
kohya's scripts (lora.safetensors), which ComfyUI and others load. single_file: for runs that tune one file of Stable
Diffusion, Stable Video Diffusion, LVDM or VideoCrafter, that file again with the tuned weights.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from vidjax import cli
from vidjax.errors import InputError
from vidjax.runtime.outputs import open_new_folder
from vidjax.runtime.storage import parse_path, whole_folder, write_json

if TYPE_CHECKING:
    from vidjax.models.video_model import VideoModel
    from vidjax.recipes.run import Run

WORKDIR = flags.DEFINE_string("workdir", None, "A run that vidjax.main has trained.")
FORMAT = flags.DEFINE_string("format", "orbax", "orbax, diffusers, tune_a_video, motion_adapter, kohya or single_file.")
STAGE = flags.DEFINE_string("stage", None, "The stage whose model it is; default: the last one.")
OUT = flags.DEFINE_string("out", None, "A new folder.")


def main() -> None:
    """Writes the model in the format that the flags name. Raises InputError."""
    from vidjax.settings import choose

    for name, flag in (("workdir", WORKDIR), ("out", OUT)):
        if not flag.value:
            raise InputError(f"--{name} is missing")
    write = choose(FORMAT.value, FORMATS, "--format")
    from vidjax.recipes.run import Run

    out = open_new_folder(OUT.value)
    run = Run(parse_path(WORKDIR.value))
    with whole_folder(out) as part:
        write(run, part)
    print(out)


def orbax(run: "Run", out: Path) -> None:
    """Writes `parameters` (Orbax, a dict from path to array) and config.json."""
    import orbax.checkpoint as ocp

    generator = run.generator(STAGE.value)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((out / "parameters").absolute(), generator.params)
    write_json(out / "config.json", run.config)


def diffusers(run: "Run", out: Path) -> None:
    """Writes a folder that `diffusers` loads, or a LoRA for one."""
    from vidjax.models.lora import lora_tensors
    from vidjax.weights import pretrained

    model, source = load_tuned(run)
    if lora_tensors(model):
        write_adapters(run, out)
    else:
        pretrained.save(model, source, out, image=True, motion_adapter=motion_adapter_of(run))
        whole = pretrained.open_video_file(source) is not None
        if not whole and pretrained.is_tune_a_video(config_of(run, model, source)):
            print(
                "no class of diffusers has Tune-A-Video's layers over time: they are left out, this is the tuned image "
                "model; --format=tune_a_video writes them"
            )


def kohya(run: "Run", out: Path) -> None:
    """Writes the stage's adapters in kohya's layout. Raises InputError if it has none."""
    from vidjax.models.lora import lora_tensors

    if not lora_tensors(load_tuned(run)[0]):
        raise InputError(f"--format=kohya: {run.workdir} tuned no adapters; take --format=diffusers")
    write_adapters(run, out, kohya=True)


def write_adapters(run: "Run", out: Path, kohya: bool = False) -> None:
    """Writes the adapters that the stage trained, as a file for others."""
    from vidjax.models.lora import lora_tensors
    from vidjax.weights import pretrained

    model, source = load_tuned(run)
    trains = run.stage(STAGE.value).trainable
    tensors = lora_tensors(model)
    own = {path: value for path, value in tensors.items() if trains(f"{path.rpartition('.')[0]}.lora_down")}
    pretrained.save_adapters(model, own, source, out, motion_adapter_of(run), kohya)


def tune_a_video(run: "Run", out: Path) -> None:
    """Writes a folder that Tune-A-Video's own code loads. Raises InputError for a model that is none of its kind."""
    from vidjax.models.lora import lora_tensors
    from vidjax.weights import pretrained
    from vidjax.weights.configs import NORM_OVER

    model, source = load_tuned(run)
    if lora_tensors(model):
        raise InputError(f"--format=tune_a_video: {run.workdir} tuned adapters; take --format=diffusers")
    config = config_of(run, model, source)
    if not pretrained.is_tune_a_video(config):
        raise InputError(f"--format=tune_a_video: {run.workdir} has no layers of Tune-A-Video; take --format=diffusers")
    pretrained.save(model, source, out)
    if NORM_OVER in config:
        print(
            "warning: Tune-A-Video's code would compute something else with these weights, as its norms of residual "
            f"blocks go over the clip, here over the {config[NORM_OVER]}: tune with --config.model.norm_over=clip"
        )


def motion_adapter(run: "Run", out: Path) -> None:
    """Writes AnimateDiff's motion modules alone, as a MotionAdapter of diffusers. Raises InputError if there are
    none."""
    from vidjax.models.lora import lora_tensors
    from vidjax.weights import pretrained
    from vidjax.weights.animatediff import NORM_OVER

    model, source = load_tuned(run)
    if lora_tensors(model):
        raise InputError(f"--format=motion_adapter: {run.workdir} tuned adapters; take --format=diffusers")
    pretrained.save_motion_adapter(model, source, out, motion_adapter_of(run))
    if NORM_OVER in config_of(run, model, source):
        print(
            "warning: diffusers takes the norm of motion modules over the clip, AnimateDiff's code, as this run did, "
            "over each frame: its videos differ slightly there"
        )


def single_file(run: "Run", out: Path) -> None:
    """Writes the file that the run tuned again. Raises InputError if that was a folder, or the run tuned adapters."""
    from vidjax.models.lora import lora_tensors
    from vidjax.weights import pretrained

    model, source = load_tuned(run)
    if lora_tensors(model):
        raise InputError(f"--format=single_file: {run.workdir} tuned adapters; take --format=diffusers or kohya")
    pretrained.save_single_file(model, source, out)


def load_tuned(run: "Run") -> "tuple[VideoModel, str]":
    """Loads the tuned model; also returns the folder that it came from. Raises InputError if it came from none."""
    source = run.config.get("pretrained")
    if not source or not run.tuned:
        raise InputError(
            f"--format={FORMAT.value}: {run.workdir} was not tuned from a folder of diffusers, which has no such "
            "model; take --format=orbax"
        )
    return run.generator(STAGE.value).model, source


def config_of(run: "Run", model: "VideoModel", source: str) -> dict[str, Any]:
    """Makes the config.json of the model's U-Net, which came from the folder `source`. Raises InputError."""
    from vidjax.weights import pretrained

    folder = pretrained.open_model(source, motion_adapter_of(run))
    return pretrained.config_for(model.unet.config, folder.config("unet"))


def motion_adapter_of(run: "Run") -> str | None:
    """Returns the motion adapter that the run was given, if any."""
    return run.config.get("motion_adapter")


FORMATS: dict[str, Callable[["Run", Path], None]] = {
    "orbax": orbax,
    "diffusers": diffusers,
    "tune_a_video": tune_a_video,
    "motion_adapter": motion_adapter,
    "kohya": kohya,
    "single_file": single_file,
}

if __name__ == "__main__":
    cli.start(main)
