"""Autoencoder, text encoder and tokenizer of a diffusers folder, for its own U-Net or a new one."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from vidjax.errors import InputError
from vidjax.models.autoencoder import Autoencoder, AutoencoderConfig
from vidjax.models.clip import ClipTextConfig
from vidjax.models.conditioning import ClipEmbedder
from vidjax.models.parameters import Params
from vidjax.models.stored import StoredText
from vidjax.models.unet import UNetConfig
from vidjax.models.video_model import Codec, VideoModel
from vidjax.weights import clip, convert
from vidjax.weights.configs import autoencoder_config, clip_text_config
from vidjax.weights.diffusers_autoencoder import AUTOENCODER_KEYS, DIFFUSERS_AUTOENCODER
from vidjax.weights.folder import Folder
from vidjax.weights.single_file import SingleFile
from vidjax.weights.sources import open_source

AUTOENCODER, TEXT, EMPTY = "codec.autoencoder.", "text.encoder.", "text.empty"  # where a VideoModel has them


class Part(NamedTuple):
    """A part of a folder and the module that it fills: rules from its keys to parameter paths and back, keys that no
    parameter has, and the name of the file of weights that is written."""

    name: str
    module: nnx.Module
    rules: convert.Rules
    keys: convert.Rules
    ignore: str = r"$^"
    file: str = "diffusion_pytorch_model"


@dataclasses.dataclass(frozen=True)
class Components:
    """Those of Stable Diffusion (Rombach et al. 2022): an AutoencoderKL, CLIP's text encoder and its tokenizer."""

    folder: Folder | SingleFile
    autoencoder: AutoencoderConfig
    scaling: Mapping[str, float]
    text: ClipTextConfig
    tokenize: Callable[[str], np.ndarray]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"guidance_scale": 7.5})  # of sampling

    @classmethod
    def of(cls, path: str | Path) -> "Components":
        """Reads the configs and the tokenizer of the folder `path`, no weights. Raises InputError."""
        folder = open_source(path)
        text = clip_text_config(folder.config("text_encoder"))
        return cls(folder, *autoencoder_config(folder.config("vae")), text, folder.tokenizer(text))

    def codec(self, rngs: nnx.Rngs) -> Codec:
        """Makes the codec, with random parameters."""
        return Codec(Autoencoder(self.autoencoder, rngs=rngs), **self.scaling)

    def embedder(self, *, drop: float = 0.1, rngs: nnx.Rngs) -> ClipEmbedder:
        """Makes the embedder of captions, with random parameters; training hides the share `drop` of them."""
        return ClipEmbedder(self.text, self.tokenize("").tolist(), drop, rngs=rngs)

    @property
    def tokens_dim(self) -> int | None:
        """Features of the tokens that the U-Net reads."""
        return self.text.dim

    def embedders(self, unet: UNetConfig, rngs: nnx.Rngs) -> dict[str, Any]:
        """Makes the embedders of the U-Net's conditions by name, with random parameters."""
        return {"text": self.embedder(rngs=rngs)}

    def parts(self, model: VideoModel) -> list[Part]:
        """The parts of the folder beside its U-Net, as the modules of `model` that they fill."""
        return [
            Part("vae", model.codec.autoencoder, DIFFUSERS_AUTOENCODER, AUTOENCODER_KEYS),
            Part("text_encoder", model.text.encoder, clip.TEXT, clip.TEXT_KEYS, clip.BUFFERS, "model"),
        ]

    def stored(self, *, drop: float = 0.1, rngs: nnx.Rngs) -> StoredText:
        """Makes the embedder for captions that the text encoder has read beforehand; takes no random numbers."""
        return StoredText(self.text.dim, self.text.length, drop)

    def parameters(self, shapes: Mapping[str, Any]) -> Params:
        """Reads the folder's weights for the paths in `shapes` that belong to its autoencoder or text encoder.

        `shapes` are the parameters of a VideoModel by path, abstract or not. Raises InputError where they do not fit.
        """
        found: Params = {}
        for part, prefix, *names in (
            ("vae", AUTOENCODER, DIFFUSERS_AUTOENCODER),
            ("text_encoder", TEXT, clip.TEXT, clip.BUFFERS),
        ):
            wanted = {path.removeprefix(prefix): v.shape for path, v in shapes.items() if path.startswith(prefix)}
            if not wanted:
                continue
            try:
                fitted = convert.fit(wanted, self.folder.tensors(part), *names)
            except InputError as error:
                raise InputError(f"{self.folder.path / part}: {error}") from None
            for path, value in fitted.items():
                convert.check_finite(value, f"{self.folder.path / part}: parameter {path}")
                found[prefix + path] = jax.device_put(np.array(value, np.float32))
        return found
