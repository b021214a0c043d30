"""MotionDirector (Zhao et al. 2023): one to five clips teach a video model a motion, for other subjects and scenes.

python -m vidjax.main --config=configs/motion_director.py --config.pretrained=FOLDER --config.data.path=CLIPS \\
    --config.prompt="a person is skateboarding" --config.sample.prompts="a panda is skateboarding;an alien skates"

CLIPS is a folder of videos of the same motion. FOLDER has layers over time of its own (ModelScope, ZeroScope); those of
an image model are made with --config.model.key_frames=first_and_previous. First adapters of the spatial layers learn
from single frames what the clips look like; then, with these in place and still, adapters of the layers over time learn
how they move. Samples leave the first ones out: --config.stages.motion.finetune.source_weight=1 keeps the appearance.
Each as a file for such a FOLDER: python -m vidjax.export --workdir=W --format=diffusers --stage=motion --out=DIR. On an
image model only --stage=appearance is one: no other code has the layers that its motion is in, take --format=orbax.
"""

from ml_collections import ConfigDict

from vidjax.recipes.config import variants


def get_config(variant: str = "default") -> ConfigDict:
    """The recipe; it has no variants."""
    return variants(
        variant,
        default=dict(
            pretrained="",
            data=dict(source="folder", frames=16, size=(384, 384)),
            model=dict(key_frames=None),
            finetune=dict(rank=32),
            optimizer=dict(learning_rate=5e-4, weight_decay=1e-4),
            train=dict(
                steps=300,
                batch_size=1,
                ema=0.0,
                dtype="bfloat16",
                frozen_dtype="bfloat16",
                remat="full",
                save_every=150,
            ),
            stages=dict(
                appearance=dict(
                    objective="diffusion",
                    finetune=dict(strategy="appearance_lora"),
                    loss=dict(own_images=1, image_share=1.0),  # one random frame of the clip
                ),
                motion=dict(
                    objective="diffusion",
                    source="appearance",
                    finetune=dict(strategy="motion_lora", source_weight=0.0),
                    loss=dict(debiased=1.0),
                ),
            ),
            sample=dict(num_steps=30, guidance_scale=12.0, invert=False, fps=8.0),
        ),
    )
