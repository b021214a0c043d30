"""LFDM (Ni et al. 2023): a flow autoencoder learns to warp one frame of a clip into another, then diffusion makes the
flow of a video from its first frame and a caption or a class.

python -m vidjax.main --config=configs/lfdm.py            drawn shapes, 32x32, for CPUs
python -m vidjax.main --config=configs/lfdm.py:clips      the shipped clips
python -m vidjax.sample --workdir=W --image=picture.png --prompt="a red circle moves left"
python -m vidjax.main --config=configs/lfdm.py:mug        the paper's recipe, 40 frames of 128x128, for a GPU
python -m vidjax.main --config=configs/lfdm.py:mug_released --config.stages.flow_autoencoder.pretrained=mug.safetensors
on the released flow autoencoder (vidjax.convert FILE.pth); also :mhad and :natops, and both with _released. DATA says
how their folders lie, with frames as pictures
python -m vidjax.main --config=configs/lfdm.py:mug_both --config.stages.flow_autoencoder.pretrained=mug.safetensors \
    --config.stages.diffusion.pretrained=mug_diffusion.safetensors --config.stages.diffusion.train.steps=0
both released, as they are (with steps: trained further); see docs/moving_pictures.md for what the second file needs
--config.perceptual=FILE adds LPIPS to the flow autoencoder's loss (the paper's own is of VGG19's features)

What differs from the released code, but in _both: GroupNorm in place of BatchNorm and the U-Net of this project in
place of theirs; grids at which the identity returns the picture (there it enlarges by 1%); what is diffused is how far
pixels move, at unit variance (there: where they are taken from); captions are read by an encoder that trains (there:
BERT). Nowhere: their sampler's dynamic threshold.
"""

from functools import partial

from ml_collections import ConfigDict

from vidjax.recipes.config import variants

DATA = dict(  # frames as pictures, as the authors' preprocessing writes them
    mug="data/MUG/*/{class}/*",
    mhad="data/UTD-MHAD/crop_image/*/{class}_s*_t*_color",
    natops="data/NATOPS/split_img_data/{class}_s*_r*",
)


def get_config(variant: str = "shapes") -> ConfigDict:
    """The recipe of a data set."""
    papers = {name: partial(paper, name) for name in DATA}
    tuned = {f"{name}_released": partial(released, name) for name in DATA}
    both = {f"{name}_both": partial(both_released, name) for name in DATA}
    return variants(variant, shapes=shapes, clips=clips, **papers, **tuned, **both)


def shapes() -> dict:
    """Drawn shapes that start in the middle: the caption says where they go."""
    return dict(
        data=dict(source="shapes", frames=8, size=32, window="start", cache=True),
        flow=dict(regions=4, width=16, region_width=16, widest=64, blocks=3, levels=1, bottleneck=1, groups=8),
        conditioning=dict(text=dict(dim=64, layers=1, heads=4, length=32, drop=0.1)),
        model=dict(
            patch=2,
            channels=(48,),
            blocks_per_level=1,
            attention_levels=True,
            heads=4,
            groups=8,
            block=(("attn1", "frame"), ("attn2", "tokens"), ("attn_temp", "time"), ("ff", "ff")),
            positions=True,
        ),
        # All of a flow moves alike and shows through noise that hides a picture: without a shift, noise hides where it
        # goes at 2% of the training's times, and so little is learned from captions.
        diffusion=dict(schedule="cosine", steps=None, shift=16.0, prediction="x0"),
        stages=dict(
            flow_autoencoder=dict(
                objective="flow_autoencoder",
                train=dict(steps=600, batch_size=8, ema=0.99, log_every=25, save_every=200),
                optimizer=dict(learning_rate=2e-3, b1=0.5, schedule="cosine", warmup=20),
            ),
            diffusion=dict(
                objective="diffusion",
                source="flow_autoencoder",
                train=dict(steps=500, batch_size=8, ema=0.99, log_every=25, save_every=100),
                optimizer=dict(learning_rate=2e-3, schedule="cosine", warmup=20, b2=0.98),
            ),
        ),
        sample=dict(num_steps=20, fps=8.0),
    )


def clips() -> dict:
    """The eight shipped clips; what is held out of each is moved by its caption."""
    recipe = shapes()
    recipe["data"] = dict(frames=8, size=64, heldout=16, cache=True)
    recipe["flow"] |= dict(regions=8)
    return recipe


def paper(data_set: str) -> dict:
    """The released configuration; see above for what differs."""
    clips, batch, epochs = dict(mug=(465, 5, 1200), mhad=(431, 6, 1200), natops=(4800, 20, 140))[data_set]
    return dict(
        data=dict(source="pattern", path=DATA[data_set], frames=40, size=128, flip=True, workers=8),
        flow=dict(pad=3 if data_set == "mug" else 0),
        conditioning=dict(text=dict(dim=768, layers=6, heads=12, length=64, drop=0.1)),
        model=dict(
            channels=(64, 128, 256, 512),
            blocks_per_level=2,
            attention_levels=True,
            heads=8,
            block=(("attn1", "frame"), ("attn2", "tokens"), ("attn_temp", "relative_time"), ("ff", "ff")),
            reach=32,
        ),
        diffusion=dict(schedule="cosine", prediction="eps"),
        stages=dict(
            flow_autoencoder=dict(
                objective="flow_autoencoder",
                train=dict(steps=100 * 465, batch_size=100, dtype="bfloat16"),
                optimizer=dict(learning_rate=2e-4, b1=0.5),
            ),
            diffusion=dict(
                objective="diffusion",
                source="flow_autoencoder",
                train=dict(steps=epochs * clips // batch, batch_size=batch, dtype="bfloat16", remat="full"),
                optimizer=dict(learning_rate=2e-4, b2=0.99),
            ),
        ),
        sample=dict(sampler="ddim", eta=1.0, num_steps=200, fps=25.0),
    )


def released(data_set: str) -> dict:
    """The paper's diffusion on the released flow autoencoder, which stays as it is, with its own grids."""
    recipe = paper(data_set)
    recipe["flow"] |= dict(norm="batch", corners=True, smallest=0.0, offset=False)
    recipe["stages"]["flow_autoencoder"] |= dict(pretrained=f"{data_set}.safetensors")
    recipe["stages"]["flow_autoencoder"]["train"]["steps"] = 0
    return recipe


def both_released(data_set: str) -> dict:
    """The released U-Net on the released flow autoencoder: what is diffused is as there, the condition a class."""
    recipe = released(data_set)
    recipe["flow"] |= dict(unit=False)
    recipe["conditioning"] = dict(label=dict(classes=dict(mug=7, mhad=27, natops=24)[data_set], dim=768, drop=0.1))
    recipe["model"] = dict(network="flow_unet", channels=(64, 128, 256, 512), transposed=data_set != "natops")
    recipe["diffusion"] |= dict(max_beta=0.9999)
    recipe["stages"]["diffusion"] |= dict(pretrained=f"{data_set}_diffusion.safetensors")
    return recipe
