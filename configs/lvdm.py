"""LVDM (He et al. 2022): a 3-D autoencoder, then latent diffusion of video.

python -m vidjax.main --config=configs/lvdm.py            eight shipped captioned clips, 64x64, two CPU cores, minutes
python -m vidjax.main --config=configs/lvdm.py:sky        the paper's recipe, 16 frames of 256x256: a GPU or a pod
also :ucf101 and :taichi, and beyond the paper :faceforensics, :mead and :webvid (with captions): DATA says how they lie
--config.stages.autoencoder.perceptual=FILE adds their LPIPS term (vgg and heads, safetensors)
python -m vidjax.main --config=configs/lvdm.py:shapes     drawn shapes, captions whose combinations training never saw
python -m vidjax.main --config=configs/lvdm.py:adversary  the shipped clips, the autoencoder against discriminators

Long videos, by frames that are known (`python -m vidjax.sample --frames=1000 ...`):
python -m vidjax.main --config=configs/lvdm.py:long       one model for all kinds of known frames, drawn shapes, CPU
also :sky_prediction (keys, each 4th latent) and :sky_interpolation (what lies between two keys)
"""

import dataclasses
from functools import partial

from ml_collections import ConfigDict

from vidjax.data.combinations import SPLITS
from vidjax.models.autoencoder import LVDM
from vidjax.recipes.config import variants

DATA = dict(  # as each is published, Tai-Chi as LVDM reads it; "data" may be a link to where they are
    sky=dict(source="frames", path="data/sky_timelapse/sky_{split}"),
    ucf101=dict(source="ucf101", path="data/UCF-101"),
    taichi=dict(source="folder", path="data/taichi/{split}"),
    faceforensics=dict(source="folder", path="data/FaceForensics++/original_sequences/youtube/c23/videos"),
    mead=dict(source="pattern", path="data/MEAD/*/video/front/{class}/{level}/*.mp4"),
    webvid=dict(source="webvid", path="data/webvid"),
)


def get_config(variant: str = "clips") -> ConfigDict:
    """The recipe of a data set; how long videos are made is in the name."""
    return variants(
        variant,
        clips=clips,
        adversary=adversary,
        **{name: partial(paper, name) for name in DATA},
        sky_prediction=lambda: known(64, 4, dict(unconditional=0.5, first=0.5)),
        sky_interpolation=lambda: known(20, 1, dict(unconditional=0.1, interpolation=0.9)),
        long=long,
        shapes=shapes,
    )


def clips() -> dict:
    """A text-to-video model of eight clips. It learns them by heart: what it shows is that every part works."""
    return dict(
        data=dict(frames=8, size=64, heldout=16, cache=True),
        autoencoder=dict(patch=(2, 8, 8), latent_channels=16, channels=(128,), blocks=(1,), decoder_blocks=(2,)),
        conditioning=dict(text=dict(dim=96, layers=1, heads=4, length=64, drop=0.1)),
        model=dict(
            channels=(64, 96),
            blocks_per_level=1,
            attention_levels=(False, True),
            heads=(4, 4),
            block=(("attn1", "frame"), ("attn2", "tokens"), ("attn_temp", "time"), ("ff", "ff")),
            positions=True,
        ),
        diffusion=dict(schedule="cosine", steps=None, shift=2.0, prediction="x0"),
        stages=dict(
            autoencoder=dict(
                objective="autoencoder",
                train=dict(steps=120, ema=0.99),
                optimizer=dict(learning_rate=2e-3, schedule="cosine", warmup=20),
                loss=dict(distance="l2", kl_weight=1e-5),
            ),
            diffusion=dict(
                objective="diffusion",
                source="autoencoder",
                loss=dict(weighting="min_snr"),  # all levels alike learn little of what moves: it shows at low noise
                train=dict(
                    steps=1400,
                    log_every=20,
                    save_every=250,
                    sample_every=700,
                    validate_every=350,
                    ema=0.99,
                ),
                optimizer=dict(learning_rate=1.5e-3, schedule="cosine", warmup=50, b2=0.98),
            ),
        ),
        sample=dict(num_steps=10, per_caption=2),
    )


def adversary() -> dict:
    """`clips`, whose autoencoder plays against a small discriminator of frames and one of clips once it is blurred."""
    made = clips()
    critic = dict(channels=16, layers=2, groups=4)
    stage = made["stages"]["autoencoder"]
    stage |= dict(discriminator=dict(frame=critic, clip=critic))
    stage["loss"] |= dict(disc_weight=0.1, start=60)
    stage["optimizer"] |= dict(groups=dict(discriminator=dict(b1=0.5, b2=0.9, weight_decay=0.0)))
    return made


def paper(data_set: str) -> dict:
    """The released configuration with the batches of 8 GPUs; raise `accumulate` where fewer are at hand.

    Their discriminator normalises over the batch, ours over each frame; LPIPS is off until its weights are named.
    """
    batch, epochs_steps = (3, 200_000) if data_set == "sky" else (2, 300_000)
    text = dict(text=dict(dim=768, layers=6, heads=12, length=128, drop=0.1)) if data_set == "webvid" else {}
    return dict(
        data=dict(**DATA[data_set], frames=16, size=256, workers=8),
        autoencoder=dataclasses.asdict(LVDM),
        conditioning=text,
        model=dict(
            channels=(256, 512, 768, 1024),
            blocks_per_level=3,
            attention_levels=(False, True, True, True),
            heads=(4, 4, 4, 4),
            block="lvdm_text" if text else "lvdm",
            attention="plain",
            scale_shift=True,
            norm_over="clip",
            reach=4,
        ),
        diffusion=dict(schedule="lvdm", prediction="eps"),
        stages=dict(
            autoencoder=dict(
                objective="autoencoder",
                train=dict(
                    steps=200_000, batch_size=16, accumulate=2, dtype="bfloat16", log_every=50, save_every=2_000
                ),
                optimizer=dict(
                    learning_rate=1.6e-5 if data_set == "taichi" else 3.6e-5,
                    b1=0.5,
                    b2=0.9,
                    weight_decay=0.0,
                    clip=None,
                    groups=dict(discriminator=dict()),
                ),
                discriminator=dict(frame=dict(channels=64, layers=3)),
                loss=dict(distance="l1", kl_weight=0.0, reduction="sum", disc_weight=0.5, start=50_000),
            ),
            diffusion=dict(
                objective="diffusion",
                source="autoencoder",
                train=dict(
                    steps=epochs_steps,
                    batch_size=16 * batch,
                    accumulate=2,
                    dtype="bfloat16",
                    remat="full",
                    log_every=50,
                    save_every=2_000,
                    sample_every=20_000,
                ),
                optimizer=dict(learning_rate=6e-5),
                loss=dict(distance="l1"),
            ),
        ),
        sample=dict(sampler="ddpm", num_steps=1000, per_caption=8, fps=8.0),
    )


def known(frames: int, every: int, masks: dict) -> dict:
    """The paper's models of long videos: the sky model with frames known in one way, at levels up to a quarter."""
    recipe = paper("sky")
    recipe["data"]["frames"] = frames
    stage = recipe["stages"]["diffusion"]
    stage["loss"] |= dict(frame_masks=masks, known_level=0.25, every=every)
    stage["train"]["batch_size"], stage["optimizer"]["learning_rate"] = 32, 8e-5
    recipe["sample"] |= dict(known_level=0.1, frame_guidance=1.1)
    return recipe


def long() -> dict:
    """Drawn shapes that cross the picture and come in again, 32x32; half of the clips are continued ones."""
    recipe = clips()
    recipe["data"] = dict(source="shapes", frames=16, size=32, cache=True)
    recipe["autoencoder"] |= dict(latent_channels=32)
    recipe["conditioning"] = dict()
    recipe["diffusion"]["shift"] = 4.0  # one shape on a bare field: what moves where is decided under much noise
    masks = dict(unconditional=0.25, prediction=0.5, interpolation=0.25)
    block = (("attn1", "frame"), ("attn_temp", "relative_time"), ("ff", "ff"))
    small = dict(channels=(64,), blocks_per_level=2, attention_levels=True, heads=4)
    recipe["model"] |= dict(block=block, after_resnet="convs", **small)
    recipe["stages"]["diffusion"]["loss"] = dict(frame_masks=masks, known_level=0.25)
    recipe["stages"]["diffusion"]["train"] |= dict(steps=1000, validate_every=None)
    recipe["sample"] |= dict(num_steps=25, known=2, known_level=0.1, fps=8.0)
    return recipe


def shapes() -> dict:
    """Drawn shapes whose captions say size, colour, shape and direction; samples are of captions never trained on."""
    recipe = clips()
    recipe["data"] = dict(source="combinations", frames=8, size=32, window="start", cache=True)
    recipe["autoencoder"] |= dict(patch=(8, 8, 8), latent_channels=96)  # a latent is all frames of 8x8 pixels
    recipe["conditioning"]["text"] |= dict(layers=0, length=48)  # words by themselves: none changes what another says
    block = (("attn1", "frame"), ("attn2", "tokens"), ("ff", "ff"))
    recipe["model"] |= dict(channels=(128,), attention_levels=True, heads=4, block=block, scale_shift=True)
    recipe["diffusion"]["shift"] = 4.0  # one shape on a bare field: what is where is decided under much noise
    recipe["stages"]["autoencoder"]["train"] |= dict(steps=300)
    stage = recipe["stages"]["diffusion"]
    del stage["loss"]
    stage["train"] |= dict(steps=2400, batch_size=16, sample_every=None, validate_every=None, ema=0.995)
    unseen = ";".join(c.caption for c in SPLITS["heldout"])
    recipe["sample"] |= dict(num_steps=20, guidance_scale=1.5, per_caption=1, fps=8.0, prompts=unseen)
    return recipe
