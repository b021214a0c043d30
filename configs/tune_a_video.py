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
from ml_collections.config_dict import placeholder


def get_config(variant: str = "default") -> ConfigDict:
    if variant not in ("default", "released", "dreamix"):
        raise ValueError(f"configs/tune_a_video.py has no variant {variant!r}: choose default, released or dreamix")
    released, dreamix = variant == "released", variant == "dreamix"
    return ConfigDict(
        dict(
            seed=33,
            pretrained="",
            prompt="",
            data=dict(video="", source="clip", path="", frames=24, size=(512, 512), stride=2, fps=placeholder(float)),
            model=dict(
                key_frames="first_and_previous",
                norm_over="clip" if released else placeholder(str),
                released=released,
            ),
            finetune=dict(strategy="full", text=False) if dreamix else dict(strategy="tune_a_video"),
            loss=dict(own_images=4, image_share=0.35) if dreamix else {},
            mesh=dict(data=-1, fsdp=1, tensor=1, context=1),
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
                        log_every=10,
                        save_every=250,
                        sample_every=placeholder(int),
                    ),
                    optimizer=dict(learning_rate=3e-5, weight_decay=1e-2, clip=1.0),
                )
            ),
            sample=dict(
                prompts="",
                sampler="ddim",
                num_steps=50,
                guidance_scale=12.5,
                negative_prompt="",
                invert=not dreamix,
                strength=0.85 if dreamix else 1.0,
                null_text=0,
                blend=(),
                mask="",
                edit_frames="",
                chunk=placeholder(int),
                overlap=4,
                fps=8.0,
            ),
        )
    )
