"""DDPM on images (Ho et al. 2020), class-conditional with guidance: an image is a video of one frame.

python -m vidjax.main --config=configs/ddpm.py:mnist      through tfds, which downloads it; also :cifar10
python -m vidjax.main --config=configs/ddpm.py:fashion --config.data.path=FOLDER    IDX files, as Fashion-MNIST comes
"""

from functools import partial

from ml_collections import ConfigDict

from vidjax.recipes.config import variants


def get_config(variant: str = "mnist") -> ConfigDict:
    """The recipe of a data set."""
    digits = dict(patch=2, channels=(64, 64), attention_levels=(False, True), heads=2, groups=8)
    images = dict(channels=(128, 256, 256, 256), attention_levels=(False, True, False, False), heads=4, groups=32)
    recipes = {
        "mnist": dict(data=dict(source="tfds", path="mnist", size=28), model=dict(in_channels=1, **digits), steps=1500),
        "fashion": dict(
            data=dict(source="idx", path="data/fashion", size=28), model=dict(in_channels=1, **digits), steps=1500
        ),
        "cifar10": dict(
            data=dict(source="tfds", path="cifar10", size=32, flip=True),
            model=dict(in_channels=3, **images),
            steps=500_000,
        ),
    }
    return variants(variant, **{name: partial(recipe, large=name == "cifar10", **own) for name, own in recipes.items()})


def recipe(data: dict, model: dict, steps: int, large: bool) -> dict:
    """One stage on images; `large` for colours and long trainings."""
    return dict(
        data=dict(frames=1, cache=not large, workers=2, **data),
        conditioning=dict(label=dict(classes=10, dim=128, drop=0.1)),
        model=dict(block="ddpm", attention="plain", blocks_per_level=2 if large else 1, **model),
        diffusion=dict(schedule="cosine", steps=1000, prediction="v"),
        stages=dict(
            diffusion=dict(
                objective="diffusion",
                train=dict(
                    steps=steps,
                    batch_size=128 if large else 32,
                    ema=0.9999 if large else 0.995,
                    log_every=50,
                    save_every=5_000 if large else 500,
                ),
                optimizer=dict(learning_rate=2e-4 if large else 2e-3, schedule="cosine", warmup=100),
            )
        ),
        sample=dict(sampler="dpmpp_2m", num_steps=20, guidance_scale=2.0, per_caption=8),
    )
