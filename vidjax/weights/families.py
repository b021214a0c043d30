"""What the families of folders have of their own, by the class that the U-Net's config.json names; and of files."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vidjax.models.layers import Over
from vidjax.models.unet import UNetConfig
from vidjax.models.video_model import VideoModel
from vidjax.weights import animatediff, diffusers, i2vgen, stable_video
from vidjax.weights.components import Components
from vidjax.weights.configs import Config, unet_config
from vidjax.weights.convert import Rules
from vidjax.weights.i2vgen_refiner import RefinerFile
from vidjax.weights.lvdm import LvdmFile
from vidjax.weights.stable_video import VideoComponents
from vidjax.weights.video_file import VideoFile
from vidjax.weights.videocrafter import CrafterFile

Tensors = Mapping[str, np.ndarray]


class Family(NamedTuple):
    """A family's own, by default that of Stable Diffusion and of U-Nets that took its layers over.

    read_unet: converts the U-Net's config.json, with what its norms go over, to the U-Net and the rules on keys that go
    before `diffusers.unet`. write_config: makes the config.json say what else of the model differs from its class.
    keys: the rules back, after `diffusers.unet_keys`. ignore: keys in unet/ that are not the U-Net's; what of them
    `components`, which is what else there is, do not read, `complete` makes again from the tensors to be written, the
    config.json and the tensors of the source. frames: of the clips that it was trained on. pixels: (h, w), where the
    config.json does not say them. pictures: whether its videos begin with one.
    """

    read_unet: Callable[[Config, Over | None], tuple[UNetConfig, Rules]] = unet_config
    write_config: Callable[[dict[str, Any], VideoModel], dict[str, Any]] = lambda config, model: config
    keys: Rules = (*diffusers.TUNE_A_VIDEO_KEYS, *diffusers.MODELSCOPE_KEYS)
    ignore: str = r"$^"
    complete: Callable[[Tensors, Config, Callable[[], Tensors]], Tensors] = lambda tensors, config, source: tensors
    components: type[Components] | type[VideoComponents] = Components
    frames: Callable[[Config], int] = lambda config: 1
    pixels: tuple[int, int] | None = None
    pictures: bool = False


FAMILIES = {
    animatediff.CLASS: Family(
        read_unet=animatediff.read_unet,
        keys=diffusers.ANIMATEDIFF_KEYS,
        ignore=animatediff.BUFFERS,
        complete=lambda tensors, config, source: animatediff.add_buffers(tensors, config, source()),
        frames=lambda config: animatediff.LENGTH,
    ),
    stable_video.CLASS: Family(
        read_unet=stable_video.read_unet,
        keys=stable_video.UNET_KEYS,
        components=VideoComponents,
        frames=lambda config: config.get("num_frames", 25),
        pixels=stable_video.PIXELS,
        pictures=True,
    ),
    i2vgen.CLASS: Family(
        read_unet=i2vgen.read_unet,
        write_config=i2vgen.write_config,
        keys=i2vgen.UNET_KEYS,
        ignore=i2vgen.PICTURE,
        components=i2vgen.PictureAndText,
        frames=lambda config: i2vgen.FRAMES,
        pixels=i2vgen.PIXELS,
        pictures=True,
    ),
}

VIDEO_FILES: tuple[type[VideoFile], ...] = (LvdmFile, CrafterFile, RefinerFile)  # families of one file


def family_of(config: Config) -> Family:
    """Returns the family of the U-Net with this config.json."""
    return FAMILIES.get(str(config.get("_class_name")), Family())
