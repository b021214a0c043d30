"""What the families of folders have of their own, by the class that the U-Net's config.json names; and of files."""

from collections.abc import Callable
from typing import NamedTuple

from vidjax.models.layers import Over
from vidjax.models.unet import UNetConfig
from vidjax.weights import animatediff, diffusers, stable_video
from vidjax.weights.components import Components
from vidjax.weights.configs import Config, unet_config
from vidjax.weights.convert import Rules
from vidjax.weights.lvdm import LvdmFile
from vidjax.weights.stable_video import VideoComponents
from vidjax.weights.video_file import VideoFile
from vidjax.weights.videocrafter import CrafterFile


class Family(NamedTuple):
    """A family's own, by default that of Stable Diffusion and of U-Nets that took its layers over.

    read_unet: converts the U-Net's config.json, with what its norms go over, to the U-Net and the rules on keys that go
    before `diffusers.unet`. keys: the rules back, after `diffusers.unet_keys`. components: what is beside the U-Net.
    frames: of the clips that it was trained on. pixels: (h, w), where the config.json does not say them.
    """

    read_unet: Callable[[Config, Over | None], tuple[UNetConfig, Rules]] = unet_config
    keys: Rules = (*diffusers.TUNE_A_VIDEO_KEYS, *diffusers.MODELSCOPE_KEYS)
    components: type[Components] | type[VideoComponents] = Components
    frames: Callable[[Config], int] = lambda config: 1
    pixels: tuple[int, int] | None = None


FAMILIES = {
    animatediff.CLASS: Family(keys=diffusers.ANIMATEDIFF_KEYS, frames=lambda config: animatediff.LENGTH),
    stable_video.CLASS: Family(
        read_unet=stable_video.read_unet,
        keys=stable_video.UNET_KEYS,
        components=VideoComponents,
        frames=lambda config: config.get("num_frames", 25),
        pixels=stable_video.PIXELS,
    ),
}

VIDEO_FILES: tuple[type[VideoFile], ...] = (LvdmFile, CrafterFile)  # families of one file


def family_of(config: Config) -> Family:
    """Returns the family of the U-Net with this config.json."""
    return FAMILIES.get(config.get("_class_name", ""), Family())
