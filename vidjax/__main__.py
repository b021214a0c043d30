"""Starts vidjax's programs by name: `vidjax train --config=lvdm` is `python -m vidjax.main --config=lvdm`."""

import runpy
import sys

from vidjax.settings import near_match

# By the name that the command line has for it: the module, and what it does.
PROGRAMS = {
    "train": ("main", "Trains a recipe, or goes on with its run."),
    "sample": ("sample", "Samples, edits and extends videos, of a run or a folder of Stable Diffusion's kin."),
    "serve": ("serve", "Makes videos for others, over HTTP and in the browser."),
    "evaluate": ("evaluate", "Measures videos, or those that a run's model makes."),
    "report": ("report", "Writes a page about a run."),
    "export": ("export", "Writes a run's model for other programs, such as diffusers."),
    "convert": ("convert", "Turns a PyTorch file into safetensors, without running what is in it."),
    "prepare": ("prepare", "Makes a data set of videos: checks, cuts and packs them."),
    "cache": ("cache", "Encodes a run's data set once, to train on latents."),
    "benchmark": ("benchmark", "Says what a recipe costs on this machine."),
    "plan": ("plan", "Says whether a recipe fits an accelerator or a pod, and how fast, without it."),
    "watermark": ("watermark", "Says whether videos have the invisible mark of generated ones."),
}


def main() -> None:
    """Runs the program that the first argument names with those after it; lists the programs if there is none. Ends
    with one line and exit status 1 for a name that is none of them."""
    asked = sys.argv[1:2]
    if asked in ([], ["--help"], ["-h"]):
        width = max(map(len, PROGRAMS))
        print("vidjax PROGRAM [--flag=value ...], of which `vidjax PROGRAM --help` says more:")
        print(*(f"  {name:{width}}  {about}" for name, (_, about) in PROGRAMS.items()), sep="\n")
        return
    (name,) = asked
    if name not in PROGRAMS:
        sys.exit(f"error: there is no program {name!r}{near_match(name, PROGRAMS)}")
    del sys.argv[1]
    runpy.run_module(f"vidjax.{PROGRAMS[name][0]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
