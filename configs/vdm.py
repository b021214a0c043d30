"""Video Diffusion Models (Ho et al. 2022): pixels, a factorised space-time U-Net, clips and stills trained together.

    python -m vidjax.main --config=configs/vdm.py             the shipped clips at 32x32: a demonstration on CPUs
    python -m vidjax.main --config=configs/vdm.py:ucf101      16 frames of 64x64, for a GPU or a pod

Frames may be known: one model makes clips from nothing, continues them, and fills the gap between two frames.
"""

from functools import partial

from ml_collections import ConfigDict

from vidjax.recipes.config import variants


def get_config(variant: str = "clips") -> ConfigDict:
    """The recipe of a data set."""
    small = dict(channels=(64, 128), blocks_per_level=1, attention_levels=(False, True), heads=2)
    full = dict(channels=(128, 256, 512, 1024), blocks_per_level=2, attention_levels=(False, True, True, True), heads=8)
    recipes = {
        "clips": dict(
            data=dict(frames=8, size=32, images=2, heldout=16, cache=True),
            conditioning=dict(text=dict(dim=64, layers=1, heads=4, length=64, drop=0.1)),
            model=dict(positions=True, **small),
            train=dict(steps=1500, ema=0.995, log_every=20, save_every=500),
            optimizer=dict(learning_rate=1e-3, schedule="cosine", warmup=50),
        ),
        "ucf101": dict(
            data=dict(source="ucf101", path="data/UCF-101", frames=16, size=64, images=8, workers=8),
            conditioning=dict(),
            model=full,
            train=dict(steps=200_000, batch_size=128, dtype="bfloat16", remat="full", log_every=50, save_every=2_000),
            optimizer=dict(learning_rate=3e-4, warmup=1_000),
        ),
    }
    return variants(variant, **{name: partial(recipe, **own) for name, own in recipes.items()})


def recipe(data: dict, conditioning: dict, model: dict, train: dict, optimizer: dict) -> dict:
    """One stage on clips and stills."""
    return dict(
        data=data,
        conditioning=conditioning,
        model=dict(in_channels=3, block="vdm", attention="plain", **model),
        diffusion=dict(schedule="cosine", steps=None, shift=1.0, prediction="v"),
        loss=dict(frame_masks=dict(unconditional=0.6, prediction=0.25, interpolation=0.15), known_level=0.1),
        stages=dict(diffusion=dict(objective="diffusion", train=train, optimizer=optimizer)),
        sample=dict(guidance_scale=1.5),
    )
