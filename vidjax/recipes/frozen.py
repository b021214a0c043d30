"""Where a diffusion stage's frozen parts come from: nowhere, an earlier stage of the run, or a folder of diffusers.

`frozen_parts` decides it once. Everything that depends on it asks the object it returns: the autoencoder, the embedder
and the tokenizer of captions, which paths do not train, their parameters, and what encodes the data beforehand.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

import numpy as np
from flax import nnx

from vidjax import settings
from vidjax.errors import InputError
from vidjax.models.autoencoder import Autoencoder, AutoencoderConfig
from vidjax.models.conditioning import EMBEDDERS
from vidjax.models.flow_autoencoder import CHANNELS, FlowAutoencoder, FlowCodec, FlowConfig, SourceEmbedder
from vidjax.models.keys import OneKey
from vidjax.models.parameters import Params, abstract_parameters, merge
from vidjax.models.text_encoder import byte_ids
from vidjax.models.video_model import Codec
from vidjax.runtime.run_files import read_statistics
from vidjax.runtime.storage import AnyPath
from vidjax.training.checkpoint import Checkpoints
from vidjax.training.encoded import Encoder
from vidjax.weights.components import AUTOENCODER, Components


@dataclasses.dataclass(frozen=True)
class FrozenParts:
    """The frozen parts of a stage that diffuses pixels: none. Captions are bytes, read by an encoder that trains."""

    section: Mapping[str, Any]
    in_latents = False
    prefixes = ("codec.",)  # of the paths that do not train

    @property
    def tokenize(self) -> Callable[[str], np.ndarray] | None:
        """Turns a caption into ids; None if the model reads no text."""
        text = self.section.get("conditioning", {}).get("text")
        return partial(byte_ids, length=text.get("length", 64)) if text else None

    @property
    def embedders(self) -> dict[str, Callable[..., Any]]:
        """The constructors of embedders, by the name of their section in `conditioning`."""
        return dict(EMBEDDERS)

    def codec(self, rngs: nnx.Rngs) -> Codec | None:
        """Makes the autoencoder with random parameters."""
        return None

    def beside(self, codec: Any) -> tuple[dict[str, Any], int]:
        """Returns the embedders that go with the codec, and how many channels they lay beside the noisy ones."""
        return {}, 0

    def text(self, rngs: nnx.Rngs) -> Any:
        """Makes the frozen text encoder with random parameters; None if the stage has none."""
        return None

    def parameters(self, params: Params) -> Params:
        """Reads the frozen parameters among the paths in `params`. Raises InputError for those that do not fit."""
        return {}

    def abstract_encoder(self) -> tuple[nnx.GraphDef, nnx.State]:
        """Returns the definition of `encoder`, and the shapes of its parameters."""
        return nnx.split(nnx.eval_shape(lambda: Encoder(self.codec(OneKey()), self.text(OneKey()))))

    def encoder(self) -> Encoder:
        """Makes what encodes the stage's data. Raises InputError if its autoencoder is not trained yet."""
        graphdef, state = self.abstract_encoder()
        return merge(graphdef, self.parameters(abstract_parameters(state)))


@dataclasses.dataclass(frozen=True)
class PartsOfStage(FrozenParts):
    """The autoencoder that an earlier stage of the run has trained, in `folder`, with the statistics of its latents."""

    folder: AnyPath
    in_latents = True

    def codec(self, rngs: nnx.Rngs) -> Codec:
        """Makes the autoencoder with random parameters; the latents' shift and scale are known once it is trained."""
        config = settings.construct(AutoencoderConfig, self.section["autoencoder"], "autoencoder")
        return Codec(Autoencoder(config, rngs=rngs), **read_statistics(self.folder / "latents.json"))

    def parameters(self, params: Params) -> Params:
        """Reads the averaged parameters of the autoencoder. Raises InputError if they or their statistics are gone."""
        wanted = {path.removeprefix(AUTOENCODER): each for path, each in params.items() if path.startswith(AUTOENCODER)}
        if not wanted:
            return {}
        if (self.folder / "done.json").exists() and not (self.folder / "latents.json").exists():
            raise InputError(
                f"{self.folder / 'latents.json'}, the statistics of its latents, is gone: remove "
                f"{self.folder / 'done.json'}, and start the training again, which measures them"
            )
        with Checkpoints(self.folder / "checkpoints", read_only=True) as checkpoints:
            return {AUTOENCODER + path: value for path, value in checkpoints.restore_ema(wanted).items()}


@dataclasses.dataclass(frozen=True)
class PartsOfFlow(PartsOfStage):
    """The flow autoencoder that an earlier stage of the run has trained: what is diffused warps first frames, whose
    features lie beside it."""

    def codec(self, rngs: nnx.Rngs) -> Any:
        """Makes the flow autoencoder with random parameters; the flow's shift and scale are known once it is
        trained."""
        config = settings.construct(FlowConfig, self.section["flow"], "flow")
        return FlowCodec(FlowAutoencoder(config, rngs=rngs), **read_statistics(self.folder / "latents.json", CHANNELS))

    def beside(self, codec: Any) -> tuple[dict[str, Any], int]:
        """Returns the embedder of first frames."""
        return {"picture": SourceEmbedder()}, codec.autoencoder.feature_channels


@dataclasses.dataclass(frozen=True)
class PartsOfFolder(FrozenParts):
    """The autoencoder, text encoder and tokenizer of a folder in the layout of diffusers."""

    path: str
    in_latents = True
    prefixes = ("codec.", "text.")

    @cached_property
    def components(self) -> Components:
        """What the folder has, its configs and tokenizer read once."""
        return Components.of(self.path)

    @property
    def tokenize(self) -> Callable[[str], np.ndarray]:
        """The folder's tokenizer."""
        return self.components.tokenize

    @property
    def embedders(self) -> dict[str, Callable[..., Any]]:
        """The constructors of embedders; that of captions is the folder's, or reads features where these are stored."""
        around, stored = self.components, self.section["data"].get("latents")
        return {**EMBEDDERS, "text": around.stored if stored else around.embedder}

    def codec(self, rngs: nnx.Rngs) -> Codec:
        """Makes the folder's autoencoder with random parameters."""
        return self.components.codec(rngs)

    def text(self, rngs: nnx.Rngs) -> Any:
        """Makes the folder's text encoder with random parameters, if the stage reads captions."""
        reads = "text" in self.section.get("conditioning", {})
        return self.components.embedder(rngs=rngs) if reads else None

    def parameters(self, params: Params) -> Params:
        """Reads the folder's weights of the autoencoder and the text encoder."""
        return self.components.parameters(params)


def frozen_parts(section: Mapping[str, Any], workdir: AnyPath) -> FrozenParts:
    """Returns what a stage with these settings does not train, by `config.pretrained` or its `source`. A stage that
    diffuses flow takes what it does not train from its `source`: its `pretrained` is a file of the U-Net."""
    if "flow" in section:
        if not section.get("source"):
            raise InputError("config.flow: name the stage that trains the flow autoencoder as this one's source")
        return PartsOfFlow(section, workdir / section["source"])
    if "pretrained" in section:
        return PartsOfFolder(section, section["pretrained"])
    return PartsOfStage(section, workdir / section["source"]) if section.get("source") else FrozenParts(section)
