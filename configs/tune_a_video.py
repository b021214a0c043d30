"""Tune-A-Video (Wu et al. 2023): one clip and its caption tune a Stable Diffusion, then other prompts edit the clip.

python -m vidjax.main --config=configs/tune_a_video.py --config.pretrained=FOLDER --config.data.video=clip.mp4 \\
    --config.prompt="a man is skiing" --config.sample.prompts="a panda is skiing;a man is skiing on the moon"

FOLDER is in the layout of `diffusers`, with safetensors. Clips of any length, rate, size and aspect: `data.frames`,
`data.stride` or `data.fps`, and `data.size=(height, width)`. Variant `:released` has the numerics of the paper's code;
`:dreamix` is Molad et al. 2023: everything trains, on the clip and on its frames alone, and edits start from the clip
under noise (--config.sample.strength). More faithful edits: --config.sample.null_text=10 (Mokady et al. 2022). Motions
mixed: --config.data.source=folder --config.data.path=CLIPS --config.sample.blend="(0.5, 0.5)".
Local edits: --config.sample.mask=white-where-edits-go.png, --config.sample.edit_frames=8:16. Clips too long for memory:
--config.sample.chunk=24 samples them in overlapping chunks. Ablations: --config.stages.tune.train.steps=0 (no tuning),
--config.sample.invert=False (no inversion), --config.model.key_frames=frame (no attention between frames but the one
over time).
"""

from ml_collections import ConfigDict

from vidjax.recipes.config import variants


def get_config(variant: str = "default") -> ConfigDict:
    """The recipe of the paper, its released code, or Dreamix."""
    return variants(variant, default=recipe, released=released, dreamix=dreamix)


def recipe() -> dict:
    """Queries and attention over time are tuned on one clip."""
    return dict(
        seed=33,
        pretrained="",
        data=dict(source="clip", frames=24, size=(512, 512), stride=2),
        model=dict(key_frames="first_and_previous"),
        finetune=dict(strategy="tune_a_video"),
        loss={},
        stages=dict(
            tune=dict(
                objective="diffusion",
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
        sample=dict(guidance_scale=12.5, fps=8.0),
    )


def released() -> dict:
    """The numerics of the paper's code."""
    return {**recipe(), "model": dict(key_frames="first_and_previous", norm_over="clip", released=True)}


def dreamix() -> dict:
    """Everything trains, on the clip and on its frames alone; edits start from the clip under noise."""
    made = recipe() | dict(finetune=dict(strategy="full", text=False), loss=dict(own_images=4, image_share=0.35))
    made["sample"] |= dict(invert=False, strength=0.85)
    return made
