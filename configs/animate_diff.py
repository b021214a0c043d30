"""AnimateDiff (Guo et al. 2024): motion modules between the layers of a Stable Diffusion 1, which stays as it is.

python -m vidjax.main --config=configs/animate_diff.py --config.pretrained=FOLDER --config.data.path=webvid.csv \\
    --config.sample.prompts="a boat on the sea;a fox in the snow"
python -m vidjax.main --config=configs/animate_diff.py:clips --config.pretrained=FOLDER --config.data.path=CLIPS \\
    --config.motion_adapter=ADAPTER --config.prompt="a fox runs" --config.sample.prompts="a panda runs"

FOLDER is a Stable Diffusion 1 in the layout of diffusers, or an AnimateDiff pipeline, whose own modules then train on.
The first trains new modules with the settings of the released code: `motion_adapter` v1, or v2 and v3, which take their
norms per frame. Its first stage, adapters of the picture layers for the look of the clips, is left out. The second goes
on from published ones, a MotionAdapter folder or a file of theirs, on a few clips of one's own: settings are ours.
What comes out: python -m vidjax.export --workdir=W --format=motion_adapter (or diffusers: the whole pipeline).
"""

from ml_collections import ConfigDict

from vidjax.recipes.config import variants


def get_config(variant: str = "default") -> ConfigDict:
    """The released training of motion modules, or their tuning on a few clips."""
    return variants(variant, default=released, clips=clips)


def released() -> dict:
    """New modules, learned from many captioned clips."""
    return dict(
        seed=42,
        pretrained="",
        motion_adapter="v1",
        data=dict(frames=16, size=256, stride=4, workers=8),
        model=dict(key_frames=None),
        stages=dict(
            motion=dict(
                objective="diffusion",
                finetune=dict(strategy="temporal", encode_once=False),
                train=dict(steps=100_000, batch_size=32, ema=0.0, dtype="bfloat16", remat="full", log_every=50),
                optimizer=dict(learning_rate=1e-4),
            )
        ),
        sample=dict(num_steps=25, guidance_scale=7.5, invert=False, fps=8.0),
    )


def clips() -> dict:
    """Published modules, tuned on a few clips that are encoded once."""
    return dict(
        pretrained="",
        data=dict(source="folder", frames=16, size=256, stride=4),
        model=dict(key_frames=None),
        stages=dict(
            motion=dict(
                objective="diffusion",
                finetune=dict(strategy="temporal"),
                train=dict(
                    steps=500,
                    batch_size=1,
                    ema=0.0,
                    dtype="bfloat16",
                    frozen_dtype="bfloat16",
                    remat="full",
                    save_every=250,
                ),
                optimizer=dict(learning_rate=3e-5),
            )
        ),
        sample=dict(num_steps=25, guidance_scale=7.5, invert=False, fps=8.0),
    )
