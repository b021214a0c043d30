"""I2VGen-XL's second stage (Zhang et al. 2023), SR600: a U-Net in one file, which makes a finished video larger.

The file is its authors', as safetensors (`vidjax.convert FILE.pth`), with the U-Net alone. It lies in the folder of
I2VGen-XL, or of a Stable Diffusion 2, whose autoencoder and text encoder it takes. The words that its authors add to
every prompt, and those that guidance steers away from, stand in their sr600_infer.yaml, beside the file under its name.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vidjax.diffusion import schedule as schedules
from vidjax.diffusion.refinement import Refinement
from vidjax.diffusion.schedule import Schedule
from vidjax.errors import InputError
from vidjax.models.autoencoder import AutoencoderConfig
from vidjax.models.unet import UNetConfig
from vidjax.models.video_model import VideoModel
from vidjax.weights import i2vgen
from vidjax.weights.components import Components, Part
from vidjax.weights.convert import Rules, rename
from vidjax.weights.folder import Folder
from vidjax.weights.video_file import Entry, Filling, VideoFile, settings_beside
from vidjax.weights.videocrafter import CRAFTER, unet_of

KIND = "UNetSD_SR600"  # what its settings call it
FREE_U = ((1.1, 0.6), (1.2, 0.4))
ENTRIES = 700  # of the table of 1000, the first, that it samples with
PIXELS, FRAMES = (720, 1280), 16
OURS = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "out.")

# Its keys to VideoCrafter's, whose layers are in other places.
PLACES: Rules = [
    (r"^input_blocks\.0\.1\.", "init_attn.0."),
    (r"^(input_blocks\.\d+)\.op\.", r"\1.0.op."),
]


class RefinerFile(VideoFile):
    """The second stage. Raises InputError if something of it or beside it is missing."""

    family, whole = "I2VGen-XL's second stage", False
    prediction, sampler = "v", "dpmpp_2m_sde"

    @staticmethod
    def fits(keys: Mapping[str, Any]) -> bool:
        """Whether a file has a U-Net in the layout of its authors' projects, with layers over time at its entrance.

        ModelScope's text to video has the same keys there.
        """
        return "input_blocks.0.1.proj_in.weight" in keys and "time_embed.0.weight" in keys

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Those beside the file, {} if there are none. Raises InputError for those of another model."""
        path, found = settings_beside(self.path)
        network = found.get("UNet", {})
        kind = network.get("type") if isinstance(network, dict) else network
        if found and kind != KIND:
            raise InputError(f"{path}: its UNet is {str(kind)[:99]!r}, not {KIND!r}: take sr600_infer.yaml, or none")
        return found

    @property
    def caveat(self) -> str:
        """That ModelScope's file would be taken for it, and that words are missing, unless its settings are there."""
        if self.settings:
            return ""
        beside = self.path.with_suffix(".yaml").name
        return (
            f"it is taken for I2VGen-XL's second stage, as ModelScope's text to video would be, without the words that "
            f"its authors add to prompts: put their sr600_infer.yaml beside it as {beside}"
        )

    @cached_property
    def components(self) -> Components:
        """What the folder of the file has around its own U-Net. Raises InputError."""
        try:
            known = Components.of(self.path.parent)
        except InputError as error:
            raise InputError(
                f"{self.path} is a U-Net alone, put it into the folder of I2VGen-XL or of a Stable Diffusion 2: {error}"
            ) from None
        own = known.folder.config("unet").get("_class_name") == i2vgen.CLASS
        return dataclasses.replace(known, text=dataclasses.replace(known.text, skip=i2vgen.SKIP if own else 0))

    @property
    def folder(self) -> Folder:
        """The folder of the file."""
        assert isinstance(self.components.folder, Folder)
        return self.components.folder

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the U-Net, by VideoCrafter's keys."""
        return {rename(key, PLACES): place.shape for key, place in self.all.places.items()}

    @cached_property
    def tokenize(self) -> Callable[[str], np.ndarray]:
        """CLIP's, from the folder."""
        return self.components.tokenize

    def read_unet(self) -> UNetConfig:
        """The U-Net, by its shapes. Raises InputError for one of theirs that has more."""
        if others := sorted(key for key in self.all if not key.startswith(OURS)):
            raise InputError(
                f"{self.path} has {others[0]}: it is none of I2VGen-XL's second stage but another U-Net, such as the "
                "first, which is read as a folder of diffusers"
            )
        return dataclasses.replace(unet_of(self.shapes), border=2, free_u=FREE_U)

    def autoencoder(self) -> AutoencoderConfig:
        """That of the folder."""
        return self.components.autoencoder

    @property
    def latents(self) -> Mapping[str, float]:
        """`scale` and `shift` of the latents, the folder's."""
        return self.components.scaling

    def schedule(self) -> Schedule:
        """That of its sampling, which tells the network the nearest entry."""
        return dataclasses.replace(schedules.cosine_between(used=ENTRIES), noise_embedding=jnp.round)

    @property
    def refinement(self) -> Refinement:
        """Up to its last level, under the cosine that the first stage is trained with."""
        return Refinement(schedules.cosine(), ENTRIES - 1)

    def embedders(self, rngs: nnx.Rngs) -> dict[str, Any]:
        """Makes the embedder of captions."""
        unet, known = self.unet(), self.components
        if known.tokens_dim != unet.tokens_dim:
            raise InputError(
                f"{self.path} reads tokens of {unet.tokens_dim} features, the CLIP of its folder has {known.tokens_dim}"
            )
        return {"text": known.embedder(rngs=rngs)}

    def fillings(self, model: VideoModel) -> list[Filling]:
        """The U-Net."""
        return [Filling("the U-Net", model.unet, self.entries())]

    def entries(self) -> dict[str, Entry]:
        """Where each parameter of the U-Net is."""
        return {rename(key, [*PLACES, *CRAFTER]): Entry(key) for key in self.all}

    def parts(self, model: VideoModel) -> list[Part]:
        """The autoencoder and the text encoder."""
        return self.components.parts(model)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of what it makes."""
        return PIXELS

    @property
    def frames(self) -> int:
        """Frames of a clip of the first stage."""
        return FRAMES

    @property
    def defaults(self) -> dict[str, Any]:
        """Fields of SampleConfig in which its own program differs from ours."""
        words = self.settings.get("embedder", {})
        read = lambda name: str(words.get(name, "")) if isinstance(words, dict) else ""
        own = {"negative_prompt": read("negative_prompt"), "suffix": read("positive_prompt")}
        return {"num_steps": 30, "guidance_scale": 9.0, "rescale": 0.3, **own}
