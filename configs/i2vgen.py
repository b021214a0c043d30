"""I2VGen-XL (Zhang et al. 2023), tuned on a folder of clips with captions: a picture moves as a text says.

python -m vidjax.main --config=configs/i2vgen.py --config.pretrained=FOLDER --config.data.path=CLIPS --workdir=W
python -m vidjax.sample --workdir=W --image=picture.png --prompt="..."
python -m vidjax.export --workdir=W --format=diffusers --out=DIR

FOLDER is `i2vgen-xl` in the layout of `diffusers`; --config.prompt is a caption for all clips. Its authors published
settings for this training but not the program. Theirs are the learning rate, the offset noise, the average of the
parameters, the size of clips and batches, and that nothing is dropped; --config.finetune.drop hides captions,
--config.conditioning.picture.drop pictures. Target (v) and noise levels (cosine, down to pure noise) are the folder's.
They train on 16 or 32 frames at 8 or 16 per second: the network is told data.fps. Variants: the whole U-Net with what
reads the picture trains; `:temporal` the layers over time; `:lora` adapters on attention alone.

Their network adds the picture's channels to themselves, by a slip; `diffusers` does not, nor does this unless told:
--config.conditioning.picture.twice=True. Such a run is exported with `vidjax_twice` in unet/config.json.
"""

from functools import partial

from ml_collections import ConfigDict

from vidjax.recipes.config import variants

STRATEGIES = {
    "full": dict(strategy="full", text=False),
    "temporal": dict(strategy="temporal"),
    "lora": dict(strategy="lora", rank=16),
}


def get_config(variant: str = "full") -> ConfigDict:
    """The recipe by what trains."""
    return variants(variant, **{name: partial(recipe, name) for name in STRATEGIES})


def recipe(variant: str) -> dict:
    """One stage that tunes the U-Net; autoencoder and both towers of CLIP stay."""
    return dict(
        pretrained="",
        data=dict(source="folder", path="", frames=16, size=(704, 1280), fps=8, workers=4),
        conditioning=dict(picture=dict(drop=0.0)),
        loss=dict(offset_noise=0.1),
        finetune=STRATEGIES[variant],
        stages=dict(
            tune=dict(
                objective="diffusion",
                train=dict(
                    steps=1_000_000,
                    batch_size=2,
                    ema=0.9999,
                    dtype="bfloat16",
                    frozen_dtype="bfloat16",
                    remat="full",
                    save_every=500,
                ),
                optimizer=dict(learning_rate=1e-4 if variant == "lora" else 3e-5),
            )
        ),
        sample=dict(sampler="ddim", num_steps=50, guidance_scale=9.0, fps=8.0),
    )
