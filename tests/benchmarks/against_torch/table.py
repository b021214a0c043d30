"""The manual's table of figures against torch: `python tests/benchmarks/against_torch/table.py [--write]`."""

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
RESULTS, PAGE = ROOT / "tests/benchmarks/results/against-torch-cpu.json", ROOT / "docs/speed.md"
BEGIN, END = "<!-- against torch: made by tests/benchmarks/against_torch/table.py -->\n", "<!-- end -->\n"
WORK = {
    "forward": "Stable Diffusion 1.5 U-Net, forward, one 64×64 latent",
    "tune_8x16x16": "Tune-A-Video step, 8 frames of 16×16",
    "tune_4x32x32": "Tune-A-Video step, 4 frames of 32×32",
    "unet_step": "ModelScope U-Net (64 to 256 features), training step, 8 frames of 16×16",
    "sampling": "the same U-Net, 50 DDIM steps with guidance",
    "autoencoder_step": "AutoencoderKL (32 to 128 features), training step, 4 frames of 64×64",
    "decode_small": "16 frames of each shipped clip (96×96); decord",
    "decode_large": "16 frames from the middle of a clip of 336×596; decord",
}


def table(figures: dict[str, Any]) -> str:
    lines = ["| work | ours, s | torch, s | ratio |", "|---|---|---|---|"]
    for item, work in WORK.items():
        if found := figures["items"].get(item):
            ours, theirs = found["ours"]["median"], found["torch"]["median"]
            lines.append(f"| {work} | {ours:.3g} | {theirs:.3g} | {found['ratio']:.2f} |")
    return "\n".join(lines) + "\n"


def replaced(text: str, figures: dict[str, Any]) -> str:
    before, rest = text.split(BEGIN)
    return before + BEGIN + table(figures) + END + rest.split(END, 1)[1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/speed.md; otherwise it is printed")
    figures = json.loads(RESULTS.read_text())
    if parser.parse_args().write:
        PAGE.write_text(replaced(PAGE.read_text(), figures))
    else:
        print(table(figures), end="")
