"""DreamBooth (Ruiz et al. 2022): a few pictures, or clips, of a subject teach a Stable Diffusion its name.

python -m vidjax.main --config=configs/dreambooth.py --config.pretrained=FOLDER --config.data.path=PICTURES \\
    --config.prompt="a photo of sks dog" --config.finetune.prior.prompt="a photo of a dog" \\
    --config.sample.prompts="sks dog on the moon;a photo of a dog"

Pictures of the class are made once by the untuned model and kept; --config.finetune.prior.count=0 goes without.
Variants: `:lora` trains adapters alone (--config.finetune.text=True: in the text encoder as well), `:text` the text
encoder too, `:video` tunes on clips (DreamBooth-V; --config.data.path is a folder of videos).
"""

from functools import partial

from ml_collections import ConfigDict

from vidjax.recipes.config import variants

VARIANTS = {
    "full": dict(strategy="full", text=False),
    "text": dict(strategy="full", text=True),
    "lora": dict(strategy="lora", rank=16, text=False),
    "video": dict(strategy="full", text=False),
}


def get_config(variant: str = "full") -> ConfigDict:
    """The recipe by what trains."""
    return variants(variant, **{name: partial(recipe, name) for name in VARIANTS})


def recipe(variant: str) -> dict:
    """One stage that tunes on pictures, or on clips."""
    video, lora = variant == "video", variant == "lora"
    return dict(
        pretrained="",
        data=dict(source="folder" if video else "images", frames=8 if video else 1, size=(512, 512)),
        model=dict(key_frames="first_and_previous" if video else None),
        finetune=dict(prior=dict(prompt=""), **VARIANTS[variant]),
        stages=dict(
            tune=dict(
                objective="diffusion",
                train=dict(
                    steps=800,
                    batch_size=1,
                    ema=0.0,
                    dtype="bfloat16",
                    frozen_dtype="bfloat16",
                    remat="full",
                    save_every=400,
                ),
                optimizer=dict(learning_rate=1e-4 if lora else 5e-6),
            )
        ),
        sample=dict(guidance_scale=7.5, invert=False),
    )
