"""Recipes small enough to train inside a test: the shipped machinery on moving shapes or on the shipped clips."""

from ml_collections import ConfigDict


def get_config(variant: str = "latent") -> ConfigDict:
    optimizer = dict(learning_rate=2e-3, warmup=2)
    train = dict(steps=6, batch_size=8, log_every=1, save_every=6, ema=0.9, sample_every=3)
    unet = dict(channels=(16,), blocks_per_level=0, attention_levels=(True,), heads=2, groups=4)
    common = dict(seed=3, mesh=dict(data=-1, fsdp=1, tensor=1, context=1))
    diffusion = dict(schedule="cosine", steps=None, shift=1.0, prediction="v")
    pixels = dict(
        data=dict(source="shapes", path="", frames=2, size=8),
        conditioning=dict(label=dict(classes=4, dim=16, drop=0.2)),
        model=dict(in_channels=3, block="ddpm", attention="plain", **unet),
        diffusion=diffusion,
        stages=dict(diffusion=dict(objective="diffusion", train=train, optimizer=optimizer)),
        sample=dict(num_steps=3, guidance_scale=2.0, per_caption=2),
    )
    latent = dict(
        data=dict(source="webvid", path="", frames=4, size=16, heldout=16, cache=True),
        autoencoder=dict(
            patch=(2, 8, 8), latent_channels=8, channels=(16,), blocks=(1,), decoder_blocks=(1,), groups=4
        ),
        conditioning=dict(text=dict(dim=16, layers=1, heads=2, length=32, drop=0.1)),
        model=dict(block=(("attn2", "tokens"), ("attn_temp", "time")), positions=True, **unet),
        diffusion=diffusion,
        stages=dict(
            autoencoder=dict(objective="autoencoder", train=train, optimizer=optimizer),
            diffusion=dict(
                objective="diffusion",
                source="autoencoder",
                train=train | dict(validate_every=3),
                optimizer=optimizer,
                loss=dict(frame_masks=dict(unconditional=0.5, first=0.5), known_level=0.2),
            ),
        ),
        sample=dict(num_steps=3, guidance_scale=1.5, per_caption=2),
    )
    return ConfigDict({**common, **{"pixels": pixels, "latent": latent}[variant]})
