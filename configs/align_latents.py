"""Align your Latents (Blattmann et al. 2023): layers over time, in a Stable Diffusion that is otherwise frozen.

python -m vidjax.main --config=configs/align_latents.py --config.pretrained=FOLDER --config.data.path=webvid.csv

Stage `temporal` trains attention and convolutions over time on captioned clips; stage `decoder` then lets the
autoencoder's decoder look at neighbouring frames, against flicker. Both start as the image model, frame by frame.
`--config.data.source=folder` reads a folder of clips. The paper's discriminator on the decoder's clips is left out.
"""

from ml_collections import ConfigDict

from vidjax.recipes.config import variants


def get_config(variant: str = "default") -> ConfigDict:
    """The recipe; it has no variants."""
    train = dict(dtype="bfloat16", frozen_dtype="bfloat16", remat="full", log_every=50)
    return variants(
        variant,
        default=dict(
            pretrained="",
            data=dict(size=(320, 512), stride=4, workers=8),
            model=dict(key_frames="frame", convs=True),
            stages=dict(
                temporal=dict(
                    objective="diffusion",
                    finetune=dict(strategy="temporal", encode_once=False),
                    train=dict(steps=100_000, batch_size=32, accumulate=4, **train),
                    optimizer=dict(learning_rate=1e-4, warmup=1000),
                ),
                decoder=dict(
                    objective="autoencoder",
                    source="temporal",
                    finetune=dict(strategy="temporal_decoder"),
                    train=dict(steps=20_000, accumulate=4, **train),
                    optimizer=dict(learning_rate=3e-5),
                    loss=dict(distance="l1", kl_weight=0.0),
                ),
            ),
            sample=dict(guidance_scale=7.5, invert=False),
        ),
    )
