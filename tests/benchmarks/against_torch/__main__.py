"""What vidjax and torch take for the same work: forward passes, training steps, sampling, decoding.

    python tests/benchmarks/against_torch [--items forward tune_4x32x32 ...] [--repeats 7] [--json FILE]

Both sides have the same random weights, inputs and trained parameters, and take turns in one process; `ratio` is our
median over theirs, below 1 where ours is faster, `difference` how far their outputs are apart, relative. `load` is the
machine's afterwards: above the number of cores others had a share of them, which costs torch's threads, that wait for
each other, more than ours; then `min` tells more. Theirs is `diffusers` (scaled_dot_product_attention). On a GPU:
`--device=cuda --dtype=bfloat16 --paper`, and the same with `--compile`.
"""

# ruff: noqa: E402
from vidjax.runtime.memory import keep_freed_memory

keep_freed_memory()  # for both sides

import argparse
import datetime
import gc
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import decoding
import stable_diffusion
import torch
import video
from turns import Options

from vidjax.evaluation import results

ITEMS = stable_diffusion.ITEMS | video.ITEMS | decoding.ITEMS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = [name for name in ITEMS if name != stable_diffusion.LARGE]
    parser.add_argument("--items", nargs="+", choices=ITEMS, default=usual, help="others stay as in --json")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu", help="torch's")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--paper", action="store_true", help="sizes of the papers")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--machine", default=f"{platform.machine()}, {os.cpu_count()} cores")
    args = parser.parse_args()
    options = Options(args.repeats, args.device, args.dtype, args.compile, args.paper)
    torch.set_num_threads(os.cpu_count() or 1)
    figures = json.loads(args.json.read_text()) if args.json and args.json.exists() else {"items": {}}
    figures |= {
        "machine": args.machine,
        "versions": results.versions() | {name: version(name) for name in ("jaxlib", "torch", "diffusers", "av")},
    }
    for name in args.items:
        found = ITEMS[name](options)
        command = f"python tests/benchmarks/against_torch --items {name} " + " ".join(without_items(sys.argv[1:]))
        figures["items"][name] = {"date": datetime.date.today().isoformat(), "command": command.strip(), **found}
        print(name, json.dumps(figures["items"][name], indent=1), flush=True)
        gc.collect()
        if args.json:
            args.json.write_text(json.dumps(figures, indent=1) + "\n")


def without_items(arguments: list[str]) -> list[str]:
    """The flags beside --items, without a file of this machine."""
    found, skip = [], False
    for argument in arguments:
        if argument.startswith("--"):
            skip = argument.split("=")[0] in ("--items", "--json", "--machine")
        if not skip:
            found.append(argument)
    return found


if __name__ == "__main__":
    main()
