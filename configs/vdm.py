"""Video Diffusion Models (Ho et al. 2022): pixels, a factorised space-time U-Net, clips and stills trained together.

    python -m vidjax.main --config=configs/vdm.py             the shipped clips at 32x32: a demonstration on CPUs
    python -m vidjax.main --config=configs/vdm.py:ucf101      16 frames of 64x64, for a GPU or a pod

Frames may be known: one model makes clips from nothing, continues them, and fills the gap between two frames.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "clips") -> ConfigDict:
    small = dict(channels=(64, 128), blocks_per_level=1, attention_levels=(False, True), heads=2)
    full = dict(channels=(128, 256, 512, 1024), blocks_per_level=2, attention_levels=(False, True, True, True), heads=8)
    recipes = {
        "clips": dict(
            data=dict(source="webvid", path="", frames=8, size=32, images=2, heldout=16, cache=True),
            conditioning=dict(text=dict(dim=64, layers=1, heads=4, length=64, drop=0.1)),
            model=dict(positions=True, **small),
            train=dict(steps=1500, batch_size=8, ema=0.995, log_every=20, save_every=500),
            optimizer=dict(learning_rate=1e-3, schedule="cosine", warmup=50),
        ),
        "ucf101": dict(
            data=dict(source="ucf101", path="data/UCF-101", split="train", frames=16, size=64, images=8, workers=8),
            conditioning=dict(),
            model=full,
            train=dict(steps=200_000, batch_size=128, dtype="bfloat16", remat="full", log_every=50, save_every=2_000),
            optimizer=dict(learning_rate=3e-4, warmup=1_000),
        ),
    }
    if variant not in recipes:
        raise ValueError(f"configs/vdm.py has no variant {variant!r}: choose one of {', '.join(recipes)}")
    recipe = recipes[variant]
    return ConfigDict(
        dict(
            seed=0,
            data=recipe["data"],
            conditioning=recipe["conditioning"],
            model=dict(in_channels=3, block="vdm", attention="plain", **recipe["model"]),
            diffusion=dict(schedule="cosine", steps=None, shift=1.0, prediction="v"),
            loss=dict(frame_masks=dict(unconditional=0.6, prediction=0.25, interpolation=0.15), known_level=0.1),
            mesh=dict(data=-1, fsdp=1, tensor=1, context=1),
            stages=dict(diffusion=dict(objective="diffusion", train=recipe["train"], optimizer=recipe["optimizer"])),
            sample=dict(sampler="ddim", num_steps=50, guidance_scale=1.5, per_caption=1),
        )
    )
