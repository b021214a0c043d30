"""LVDM's text model (He et al. 2022): a U-Net over latents of single frames, clips and stills trained together.

python -m vidjax.main --config=configs/lvdm_text.py --config.pretrained=FOLDER --config.data.path=webvid.csv
python -m vidjax.main --config=configs/lvdm_text.py:clips      the shipped clips, all parts trained here: CPU, minutes

FOLDER is a Stable Diffusion 1 in the layout of diffusers: its autoencoder (latents times 0.18215) and its CLIP text
encoder serve as they are and stay frozen; the U-Net, 958,924,964 parameters, starts at random. Layout, noise and
sampling are those of the released model; batch, stills (Ho et al. 2022: 8), learning rate and steps are ours.
"""

from ml_collections import ConfigDict

from vidjax.recipes.config import variants


def get_config(variant: str = "paper") -> ConfigDict:
    """The recipe of the paper, or of the shipped clips."""
    return variants(variant, paper=paper, clips=clips)


def paper() -> dict:
    """The released model, by a folder's autoencoder and text encoder."""
    return dict(
        pretrained="",
        data=dict(frames=16, size=256, stride=4, images=8, workers=8),
        conditioning=dict(text=dict(drop=0.1)),
        model=dict(
            channels=(320, 640, 1280, 1280),
            blocks_per_level=2,
            attention_levels=(True, True, True, False),
            heads=8,
            block="lvdm_text",
            norm_over="clip",
            attention_norm_over="clip",
            reach=16,
        ),
        diffusion=dict(schedule="scaled_linear", start=0.00085, end=0.012, prediction="eps"),
        stages=dict(
            diffusion=dict(
                objective="diffusion",
                train=dict(
                    steps=300_000,
                    batch_size=64,
                    dtype="bfloat16",
                    frozen_dtype="bfloat16",
                    remat="full",
                    log_every=50,
                    save_every=2_000,
                    sample_every=20_000,
                ),
                optimizer=dict(learning_rate=6e-5, warmup=1_000),
            )
        ),
        sample=dict(eta=1.0, guidance_scale=15.0, fps=8.0),
    )


def clips() -> dict:
    """Learns eight clips by heart, with the same parts: what it shows is that they work."""
    return dict(
        data=dict(frames=8, size=48, heldout=16, cache=True),
        autoencoder=dict(
            patch=(1, 8, 8),
            latent_channels=16,
            channels=(128,),
            blocks=(1,),
            decoder_blocks=(2,),
            kernels=((3, 3), (3, 3)),
        ),
        conditioning=dict(text=dict(dim=96, layers=1, heads=4, length=64, drop=0.1)),
        model=dict(
            channels=(64, 96),
            blocks_per_level=1,
            attention_levels=(False, True),
            heads=4,
            block="lvdm_text",
            reach=8,
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
                data=dict(images=2),
                train=dict(steps=800, log_every=20, save_every=250, sample_every=400, ema=0.99),
                optimizer=dict(learning_rate=1.5e-3, schedule="cosine", warmup=50, b2=0.98),
            ),
        ),
        sample=dict(num_steps=10, per_caption=2),
    )
