"""Imagen Video (Ho et al. 2022): a small video from text, then more frames, then more pixels; each stage on its own.

python -m vidjax.main --config=configs/imagen_video.py:clips    the shipped clips, 4 x 16x16 to 8 x 64x64, for CPUs
python -m vidjax.main --config=configs/imagen_video.py --config.data.path=webvid.csv          the first three of theirs
python -m vidjax.main --config=configs/imagen_video.py --stage=spatial ...                    one stage alone

Stages `base`, `temporal` (every second frame is given, under noise) and `spatial` (all, smaller). As in the paper: 16
frames of 24x40 at 3 per second, 32 at 6, then 48x80; v-prediction, cosine noise, captions read by all stages, stills
beside clips where no frames are filled in, attention over time in the base model and convolutions over time in the
others, the video below at a signal-to-noise ratio of 3 in sampling. Theirs goes on to 128 frames of 768x1280 with four
stages more, reads captions with T5-XXL (here: bytes, an encoder that trains along) and has 11.6 B parameters.
"""

from ml_collections import ConfigDict

from vidjax.recipes.config import variants


def get_config(variant: str = "paper") -> ConfigDict:
    """The recipe of the paper, or of the shipped clips."""
    return variants(variant, paper=paper, clips=clips)


def paper() -> dict:
    """The first three of their stages."""
    train = dict(batch_size=64, dtype="bfloat16", remat="full", log_every=50, save_every=2_000, sample_every=20_000)
    levels = dict(blocks_per_level=2, heads=8)
    attend = (("attn1", "frame"), ("attn2", "tokens"), ("ff", "ff"))
    return dict(
        data=dict(workers=8),
        conditioning=dict(text=dict(dim=768, layers=6, heads=12, length=256, drop=0.1)),
        model=dict(in_channels=3, block=attend, after_resnet="convs", attention_levels=(False, False, True), **levels),
        diffusion=dict(schedule="cosine", steps=None, shift=1.0, prediction="v"),
        optimizer=dict(learning_rate=1e-4, warmup=5_000),
        stages=dict(
            base=dict(
                objective="diffusion",
                data=dict(frames=16, fps=3.0, size=(24, 40), images=8),
                model=dict(
                    channels=(256, 512, 1024),
                    after_resnet="none",
                    attention_levels=True,
                    block=(*attend, ("attn_temp", "zero_time")),
                    positions=True,
                ),
                train=dict(steps=500_000, **train),
                sample=dict(fps=3.0),
            ),
            temporal=dict(
                objective="diffusion",
                data=dict(frames=32, fps=6.0, size=(24, 40)),
                conditioning=dict(lowres=dict(of="base", time_factor=2)),
                model=dict(channels=(192, 384, 768)),
                train=dict(steps=500_000, **train),
            ),
            spatial=dict(
                objective="diffusion",
                data=dict(frames=32, fps=6.0, size=(48, 80), images=8),
                conditioning=dict(lowres=dict(of="temporal", space_factor=2)),
                model=dict(channels=(128, 256, 512)),
                train=dict(steps=500_000, **train),
            ),
        ),
        sample=dict(num_steps=128, guidance_scale=6.0, lowres_level=1 / 3, fps=6.0),
    )


def clips() -> dict:
    """Shows that three models make one video. To be trained as short as this, those that enlarge learn what plain
    enlargement lacks, and see little noise on the video below: at the paper's they would have to draw everything anew.
    """
    attend = (("attn1", "frame"), ("attn2", "tokens"), ("attn_temp", "time"), ("ff", "ff"))
    train = dict(ema=0.99, log_every=20, save_every=200)
    return dict(
        data=dict(frames=8, size=16, heldout=16, cache=True),
        conditioning=dict(text=dict(dim=64, layers=1, heads=4, length=64, drop=0.1)),
        model=dict(in_channels=3, blocks_per_level=1, heads=4, block=attend, after_resnet="convs", positions=True),
        diffusion=dict(schedule="cosine", steps=None, shift=1.0, prediction="x0"),
        optimizer=dict(learning_rate=1.5e-3, schedule="cosine", warmup=50, b2=0.98),
        stages=dict(
            base=dict(
                objective="diffusion",
                data=dict(frames=4, stride=2, images=2),
                model=dict(channels=(64, 96), attention_levels=(False, True), patch=2, after_resnet="none"),
                train=dict(steps=800, **train),
                sample=dict(fps=7.5),
            ),
            temporal=dict(
                objective="diffusion",
                conditioning=dict(lowres=dict(of="base", time_factor=2, residual=True, max_level=0.1)),
                model=dict(channels=(64,), attention_levels=False, patch=2),
                train=dict(steps=200, **train),
            ),
            spatial=dict(
                objective="diffusion",
                data=dict(size=64),
                conditioning=dict(lowres=dict(of="temporal", space_factor=4, residual=True, max_level=0.1)),
                model=dict(channels=(64,), attention_levels=False, patch=4, blocks_per_level=0, after_resnet="none"),
                train=dict(steps=150, **train),
            ),
        ),
        sample=dict(num_steps=20, lowres_level=0.05, per_caption=2),
    )
