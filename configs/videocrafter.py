"""VideoCrafter 1 and 2 (Chen et al. 2023, 2024), tuned on a folder of clips.

python -m vidjax.main --config=configs/videocrafter.py --config.pretrained=model.safetensors --config.data.path=CLIPS \\
    --config.prompt="a fox runs" --config.sample.prompts="a panda runs"
python -m vidjax.export --workdir=W --format=diffusers --out=DIR

The file is `model.ckpt` of text to video or of a picture after `python -m vidjax.convert`, beside a folder tokenizer/;
it comes out again as the same file. Variants: the layers over time train; `:lora` adapters on attention alone; `:full`
the whole U-Net. A model of a picture (512) is shown each clip's first frame. How the released ones were trained is not
published in full: batch, learning rate and steps are ours. The model is told data.fps in training, and sample.fps where
it samples; where it is told none, in the first one of text, both only say how clips are read and written.
"""

from functools import partial

from ml_collections import ConfigDict

from vidjax.recipes.config import variants

STRATEGIES = {
    "temporal": dict(strategy="temporal"),
    "lora": dict(strategy="lora", rank=16),
    "full": dict(strategy="full", text=False),
}


def get_config(variant: str = "temporal") -> ConfigDict:
    """The recipe by what trains."""
    return variants(variant, **{name: partial(recipe, name) for name in STRATEGIES})


def recipe(variant: str) -> dict:
    """One stage that tunes the U-Net; autoencoder and CLIP stay."""
    return dict(
        pretrained="",
        data=dict(source="folder", path="", frames=16, size=(320, 512), fps=8),
        model=dict(key_frames=None),
        finetune=STRATEGIES[variant],
        stages=dict(
            tune=dict(
                objective="diffusion",
                train=dict(
                    steps=1_000,
                    batch_size=1,
                    ema=0.0,
                    dtype="bfloat16",
                    frozen_dtype="bfloat16",
                    remat="full",
                    save_every=250,
                ),
                optimizer=dict(learning_rate=1e-4 if variant == "lora" else 1e-5),
            )
        ),
        sample=dict(guidance_scale=12.0, eta=1.0, invert=False, fps=8.0),
    )
