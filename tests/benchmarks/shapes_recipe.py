"""How `shapes_folder.py` trains: single frames of drawn clips, the autoencoder first, then U-Net and text encoder."""

from ml_collections import ConfigDict


def get_config(variant: str) -> ConfigDict:
    first = variant == "autoencoder"
    return ConfigDict(
        dict(
            seed=0,
            pretrained="",
            prompt="",
            data=dict(source="shapes", path="", frames=1, size=(64, 64), workers=1),
            model=dict(key_frames=None),
            finetune=dict(strategy="autoencoder" if first else "full", encode_once=False),
            mesh=dict(data=-1, fsdp=1, tensor=1, context=1),
            stages=dict(
                tune=dict(
                    objective=variant,
                    train=dict(steps=400, batch_size=8 if first else 16, ema=0.99, log_every=20),
                    optimizer=dict(learning_rate=2e-3 if first else 1e-3, warmup=50, schedule="cosine", clip=1.0),
                )
            ),
            sample=dict(prompts="a red circle;a blue square", num_steps=25, guidance_scale=3.0, invert=False),
        )
    )
