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
from ml_collections.config_dict import placeholder


def get_config(variant: str = "default") -> ConfigDict:
    if variant != "default":
        raise ValueError(f"configs/motion_director.py has no variant {variant!r}")
    return ConfigDict(
        dict(
            seed=0,
            pretrained="",
            prompt="",
            data=dict(source="folder", path="", frames=16, size=(384, 384), stride=1, fps=placeholder(float)),
            model=dict(key_frames=placeholder(str)),
            finetune=dict(rank=32),
            optimizer=dict(learning_rate=5e-4, weight_decay=1e-4),
            train=dict(
                steps=300,
                batch_size=1,
                ema=0.0,
                dtype="bfloat16",
                frozen_dtype="bfloat16",
                remat="full",
                log_every=10,
                save_every=150,
                sample_every=placeholder(int),
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1, context=1),
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
            sample=dict(prompts="", num_steps=30, guidance_scale=12.0, invert=False, fps=8.0),
        )
    )
