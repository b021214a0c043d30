"""Stable Video Diffusion (Blattmann et al. 2023), tuned on a folder of clips: a picture moves as they do.

python -m vidjax.main --config=configs/svd.py --config.pretrained=FOLDER --config.data.path=CLIPS --workdir=W
python -m vidjax.sample --workdir=W --image=picture.png
python -m vidjax.export --workdir=W --format=diffusers --out=DIR

FOLDER is `stable-video-diffusion-img2vid` (14 frames) or `-xt` (data.frames=25) in the layout of `diffusers`. Variants:
the layers over time train; `:lora` adapters on attention alone; `:full` the whole U-Net. Noise, weighting and dropout
are those of the recipe that people share, SVD_Xtend. Its slips are mended:

- every clip is told the level of its own picture's noise (there: the whole batch that of its first clip);
- the network is told data.fps - 1, as where it samples (there: 7 for 7 frames per second);
- the network is told each clip's own motion (there: 127 for all; --config.conditioning.picture.motion=127);
- the picture's latents are the mean, as where it samples (there: a random draw);
- gradients are clipped, --config.optimizer.clip (there: commented out);
- what trains is what the variant says, all layers over time (there: `temporal_transformer_blocks` alone, in spite of
  its README).
"""

from functools import partial

from ml_collections import ConfigDict

from vidjax.recipes.config import variants

STRATEGIES = {
    "temporal": dict(strategy="temporal"),
    "lora": dict(strategy="lora", rank=16),
    "full": dict(strategy="full"),
}


def get_config(variant: str = "temporal") -> ConfigDict:
    """The recipe by what trains."""
    return variants(variant, **{name: partial(recipe, name) for name in STRATEGIES})


def recipe(variant: str) -> dict:
    """One stage that tunes the U-Net; autoencoder and CLIP stay."""
    return dict(
        pretrained="",
        data=dict(source="folder", path="", frames=14, size=(320, 512), fps=7, workers=4),
        conditioning=dict(picture=dict(noise_mean=-3.0, noise_std=0.5, drop=0.1)),
        diffusion=dict(mean=0.7, std=1.6),
        finetune=STRATEGIES[variant],
        stages=dict(
            tune=dict(
                objective="diffusion",
                train=dict(
                    steps=10_000,
                    batch_size=1,
                    ema=0.0,
                    dtype="bfloat16",
                    frozen_dtype="bfloat16",
                    remat="full",
                    save_every=500,
                ),
                optimizer=dict(learning_rate=1e-4 if variant == "lora" else 1e-5),
            )
        ),
        sample=dict(sampler="euler", num_steps=25, guidance_scale=3.0, first_guidance=1.0, fps=7.0),
    )
