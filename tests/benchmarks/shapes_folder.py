"""A small Stable Diffusion that knows coloured shapes, trained here from nothing, as a folder in diffusers' layout.

    python tests/benchmarks/shapes_folder.py --out=FOLDER [--steps 400 2500]

Its autoencoder, U-Net and text encoder learn the frames of drawn clips ("a red circle moves left"). It is small enough
for two cores, and what it draws can be judged without a network: see `shapes_edits.py`.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flax import nnx

from vidjax.data.shapes import COLOURS, MOVES, SHAPES, draw
from vidjax.models.autoencoder import Autoencoder
from vidjax.models.clip import ClipText
from vidjax.models.unet import UNet
from vidjax.models.video_model import latent_statistics
from vidjax.runtime.storage import write_json
from vidjax.weights import pretrained

sys.path.append(str(Path(__file__).parents[1]))
from tiny_folder import CONFIGS, ENDS, LETTERS, write_configs

RECIPE = Path(__file__).with_name("shapes_recipe.py")
WORDS = ("a", "moves", *SHAPES, *COLOURS, *MOVES)
DIM = 96


def word_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges that make one token of each word, from its end on."""
    merges: list[tuple[str, str]] = []
    for word in words:
        end = word[-1] + "</w>"
        for letter in reversed(word[:-1]):
            merges.append((letter, end))
            end = letter + end
    return list(dict.fromkeys(merges))


def configs(
    words: Sequence[str] = WORDS,
    dim: int = DIM,
    unet: Sequence[int] = (64, 128),
    vae: Sequence[int] = (32, 64, 64, 64),
    vae_groups: int = 16,
    layers: int = 2,
    longest: int = 8,
    blocks: int = 1,
    attend_first: bool = True,
    noise: str = "scaled_linear",
) -> dict:
    """A Stable Diffusion 1 of toy size, 8x8 latents: widths of its U-Net and autoencoder, layers of its text encoder
    and the tokens that this reads, each of `words` one of them. The U-Net has `blocks` per level, and attention in
    its first level or only in the others; `noise` is the betas' schedule."""
    own = {part: dict(config) for part, config in CONFIGS.items()}
    plain = 0 if attend_first else 1
    down = ["DownBlock2D"] * plain + ["CrossAttnDownBlock2D"] * (len(unet) - plain)
    up = ["CrossAttnUpBlock2D"] * (len(unet) - plain) + ["UpBlock2D"] * plain
    own["unet"] |= dict(
        sample_size=8,
        layers_per_block=blocks,
        block_out_channels=list(unet),
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=dim,
        norm_num_groups=16,
    )
    own["vae"] |= dict(
        block_out_channels=list(vae),
        down_block_types=["DownEncoderBlock2D"] * len(vae),
        up_block_types=["UpDecoderBlock2D"] * len(vae),
        norm_num_groups=vae_groups,
    )
    own["scheduler"] |= dict(beta_schedule=noise)
    size = len(vocabulary(words))
    own["text_encoder"] |= dict(
        vocab_size=size,
        hidden_size=dim,
        intermediate_size=2 * dim,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=longest,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
    )
    return own


def vocabulary(words: Sequence[str]) -> list[str]:
    return [*LETTERS, *dict.fromkeys(a + b for a, b in word_merges(words)), *ENDS]


def start(out: Path, configs: dict, words: Sequence[str]) -> None:
    """The folder at its random start; each of the words is a token."""
    with tempfile.TemporaryDirectory() as made:
        merges = [" ".join(pair) for pair in word_merges(words)]
        bare = write_configs(Path(made) / "configs", configs, vocabulary(words), merges)
        model, rngs = pretrained.load(bare, weights=False).model, nnx.Rngs(0)
        model.unet = UNet(model.unet.config, rngs=rngs)
        model.codec.autoencoder = Autoencoder(model.codec.autoencoder.config, rngs=rngs)
        model.text.encoder = ClipText(model.text.encoder.config, rngs=rngs)
        pretrained.save(model, bare, out)


def run(stage: str, folder: Path, work: Path, steps: int, *more: str) -> Path:
    """Trains one part of the folder, with more flags; the folder that has it."""
    command = [sys.executable, "-m", "vidjax.main", f"--config={RECIPE}:{stage}", f"--workdir={work / stage}"]
    command += [f"--config.pretrained={folder}", f"--config.stages.tune.train.steps={steps}"]
    subprocess.run([*command, *more], check=True)
    out = work / f"{stage}-folder"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "vidjax.export", f"--workdir={work / stage}", "--format=diffusers"]
    subprocess.run([*command, f"--out={out}"], check=True)
    return out


def scale(folder: Path, videos: np.ndarray) -> None:
    """The deviation of these videos' latents into the autoencoder's config, as Stable Diffusion has it."""
    autoencoder = pretrained.load(folder).model.codec.autoencoder
    config = json.loads((folder / "vae" / "config.json").read_text())
    write_json(
        folder / "vae" / "config.json", config | {"scaling_factor": latent_statistics(autoencoder, [videos])["scale"]}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/shapes_folder"))
    parser.add_argument("--steps", type=int, nargs=2, default=(400, 2500), help="of the autoencoder, of the diffusion")
    args = parser.parse_args()
    if not (args.work / "start").exists():
        start(args.work / "start", configs(), WORDS)
    folder = run("autoencoder", args.work / "start", args.work, args.steps[0])
    scale(folder, np.stack([draw(s, c, "right", 8) for s in SHAPES for c in COLOURS]))
    shutil.copytree(run("diffusion", folder, args.work, args.steps[1]), args.out)
    print(args.out)


if __name__ == "__main__":
    main()
