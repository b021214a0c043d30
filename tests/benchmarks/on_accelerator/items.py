"""The items of the benchmark, and the process that runs some of them: `program.py` starts it."""

import argparse
import importlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from record import Record
from turns import enter

# Part, item: (module, its function, arguments). A function gets `small` and yields (name, figures).
ITEMS: dict[str, tuple[str, ...]] = {
    "facts": ("facts", "gather"),
    "correctness/attention": ("correctness", "attention"),
    "correctness/networks": ("correctness", "networks"),
    "correctness/training": ("correctness", "training"),
    "correctness/sampling": ("correctness", "sampling"),
    "timing/tune": ("timing", "steps", "tune"),
    "timing/sky_diffusion": ("timing", "steps", "sky_diffusion"),
    "timing/attention": ("timing", "attention"),
    "timing/convolutions": ("timing", "convolutions"),
    "timing/sampling_sky": ("timing", "sampling", "sky_diffusion"),
    "timing/sky_autoencoder": ("timing", "steps", "sky_autoencoder"),
    "timing/lvdm_text": ("timing", "steps", "lvdm_text"),
    "timing/vdm": ("timing", "steps", "vdm"),
    "timing/imagen_base": ("timing", "steps", "imagen_base"),
    "timing/sampling_tune": ("timing", "sampling", "tune"),
    "timing/imagen_spatial": ("timing", "steps", "imagen_spatial"),
    "timing/imagen_temporal": ("timing", "steps", "imagen_temporal"),
    "timing/sampling_lvdm_text": ("timing", "sampling", "lvdm_text"),
    "timing/animate_diff": ("timing", "steps", "animate_diff"),
    "timing/svd": ("timing", "steps", "svd"),
    "training/rates": ("training", "rates"),
    "training": (),
}
PARTS = ("facts", "correctness", "timing", "training")
# What toy size adds nothing to: the same code runs for other items.
LARGE = ("lvdm_text", "imagen_base", "imagen_spatial", "imagen_temporal", "vdm", "sky_diffusion")
LARGE += ("sampling_tune", "sampling_lvdm_text", "animate_diff", "svd")


def choose(asked: Sequence[str], small: bool = False) -> list[str]:
    """The names of parts and items that were asked for, in order. Raises ValueError for an unknown one."""
    for name in asked:
        if name not in PARTS and name not in ITEMS:
            raise ValueError(f"part {name!r} is not known: choose some of {', '.join(dict.fromkeys((*PARTS, *ITEMS)))}")
    chosen = [name for name in ITEMS if name in asked or name.split("/")[0] in asked]
    return [name for name in chosen if not (small and name.split("/")[-1] in LARGE)]


def attempt(measure: Callable[..., Any], *args: Any, **more: Any) -> Any:
    """The figures that `measure` returns, or its error as a figure."""
    try:
        return measure(*args, **more)
    except Exception as error:
        return {"error": describe(error)}


def describe(error: Exception) -> str:
    """Kind, place and the beginning of the message, in one line."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {' '.join(str(error).split())[:800]}"


def failures(figures: Any, place: str = "") -> Iterator[str]:
    """Where in the figures there is an error, or something that did not pass."""
    if isinstance(figures, Mapping):
        if isinstance(figures.get("error"), str) or figures.get("passed") is False:
            yield place
        for key, value in figures.items():
            yield from failures(value, f"{place}/{key}" if place else key)


def summarise(figures: Mapping[str, Any]) -> str:
    failed = [*failures(figures)]
    time_taken = f"{figures['seconds']:.0f} s" if "seconds" in figures else figures.get("error", "")
    return time_taken + (f", failed: {', '.join(name or 'itself' for name in failed)}" if failed else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--platform", required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("items", nargs="+")
    args = parser.parse_args()
    enter()
    import jax

    try:
        found = jax.default_backend()
    except RuntimeError as error:
        found = f"none ({' '.join(str(error).split())[:500]})"
    if found != args.platform and not args.small:
        print(f"there is no {args.platform.upper()}: JAX finds {found}", file=sys.stderr)
        sys.exit(3)
    record = Record(args.json)
    for name in args.items:
        began, place = time.perf_counter(), name.split("/")
        module, function, *arguments = ITEMS[name]
        try:
            for key, value in getattr(importlib.import_module(module), function)(*arguments, small=args.small):
                record.put([*place, key], value)
        except Exception as error:
            traceback.print_exc()
            record.put([*place, "error"], describe(error))
        record.put([*place, "seconds"], time.perf_counter() - began)


if __name__ == "__main__":
    main()
