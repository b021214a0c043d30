"""Video models that are one file of a training run, after `vidjax.convert`: what is where in it, and out again."""

import abc
import contextlib
import dataclasses
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from vidjax.diffusion.refinement import Refinement
from vidjax.diffusion.schedule import Schedule
from vidjax.errors import InputError
from vidjax.models.autoencoder import Autoencoder, AutoencoderConfig
from vidjax.models.parameters import parameters
from vidjax.models.unet import UNetConfig
from vidjax.models.video_model import Codec, VideoModel
from vidjax.runtime.limits import from_json
from vidjax.weights import clip, convert
from vidjax.weights.components import Part
from vidjax.weights.configs import clip_text_config
from vidjax.weights.convert import Rules, rename
from vidjax.weights.diffusers_autoencoder import DIFFUSERS_AUTOENCODER
from vidjax.weights.folder import Folder
from vidjax.weights.single_file import AUTOENCODER, UNET, SingleFile
from vidjax.weights.tensors import Tensors, read, shapes_under

BESIDE = (".yaml", ".yml", ".json")  # the settings of a training, beside its file
MAX_SETTINGS = 2**20  # bytes of these
FEED_FORWARD: Rules = [
    (r"\.net\.0\.proj\.", ".proj_in."),
    (r"\.net\.2\.", ".proj_out."),
    (r"\.to_out\.0\.", ".to_out."),
]


class Entry(NamedTuple):
    """Where a parameter's tensor is: a key of the file, which third of it, and whether its kernel is transposed."""

    key: str
    part: int | None = None
    transposed: bool = False


def flip(kernel: np.ndarray) -> np.ndarray:
    """Converts the kernel of a transposed convolution, [in, out, *k] of torch's, to [out, in, *k]; and back."""
    return np.flip(kernel.swapaxes(0, 1), tuple(range(2, kernel.ndim)))


class Entries(Mapping[str, np.ndarray]):
    """Tensors of a file by parameter path, the last name as torch has it."""

    def __init__(self, tensors: Mapping[str, np.ndarray], entries: Mapping[str, Entry]):
        self.tensors, self.entries = tensors, dict(entries)

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        value = self.tensors[entry.key]
        if entry.part is not None:
            value = value.reshape(3, -1, *value.shape[1:])[entry.part]
        return flip(value) if entry.transposed else value

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class ImageParts(SingleFile):
    """What of a video model's file is in the layout of Stable Diffusion: its autoencoder and its text encoder."""

    what = "a whole checkpoint of a video model"


class Filling(NamedTuple):
    """A module of a model, what it is called in errors, and where in the file each of its parameters is."""

    name: str
    module: nnx.Module
    entries: Mapping[str, Entry]


@dataclasses.dataclass(frozen=True)
class VideoFile(abc.ABC):
    """A video model with its autoencoder. Raises InputError if something of it or beside it is missing.

    `family`: whose it is, for people. Subclasses say what its networks are, by shapes, and which sampling is its own.
    """

    path: Path
    all: Tensors = dataclasses.field(init=False)
    family: ClassVar[str]
    whole: ClassVar[bool] = True  # whether the file has the autoencoder and the text encoder
    prediction: ClassVar[str] = "eps"
    sampler: ClassVar[str] = "ddim"

    def __post_init__(self):
        object.__setattr__(self, "path", Path(self.path))
        object.__setattr__(self, "all", read(self.path))
        if self.whole and not any(key.startswith(AUTOENCODER) for key in self.all):
            raise InputError(
                f"{self.path} has no keys {AUTOENCODER}*: take the file of the whole model, with the autoencoder"
            )

    @staticmethod
    @abc.abstractmethod
    def fits(keys: Mapping[str, Any]) -> bool:
        """Whether a file with these keys is one of the family's."""

    @abc.abstractmethod
    def read_unet(self) -> UNetConfig:
        """The U-Net, as far as shapes tell it; any error means that it is not the family's."""

    @abc.abstractmethod
    def autoencoder(self) -> AutoencoderConfig:
        """The autoencoder, likewise."""

    @property
    @abc.abstractmethod
    def latents(self) -> Mapping[str, float]:
        """`scale` and `shift` of the latents, z' = scale (z + shift)."""

    @abc.abstractmethod
    def schedule(self) -> Schedule:
        """The schedule that it was trained with."""

    @abc.abstractmethod
    def embedders(self, rngs: nnx.Rngs) -> dict[str, Any]:
        """Makes the embedders of its conditions by name, with random parameters."""

    @abc.abstractmethod
    def fillings(self, model: VideoModel) -> list[Filling]:
        """The modules of a model and what fills them, the U-Net first."""

    @property
    @abc.abstractmethod
    def size(self) -> tuple[int, int]:
        """Height and width in pixels that it was trained on."""

    @property
    @abc.abstractmethod
    def frames(self) -> int:
        """Frames of the clips that it was trained on."""

    @property
    @abc.abstractmethod
    def defaults(self) -> dict[str, float]:
        """Fields of SampleConfig in which its own programs differ from ours."""

    @property
    def textual(self) -> bool:
        """Whether it reads text."""
        return True

    @property
    def caveat(self) -> str:
        """What the file does not say and is assumed, for people; "" if there is nothing."""
        return ""

    @property
    def refinement(self) -> Refinement | None:
        """How it makes a finished video larger, if it does."""
        return None

    @property
    def folder(self) -> Folder | None:
        """The folder of diffusers that has what the file has not. Raises InputError."""
        return None

    def parts(self, model: VideoModel) -> list[Part]:
        """The parts of `folder`, as the modules of `model` that they fill."""
        return []

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the U-Net by key without the prefix."""
        return shapes_under(self.all.places, UNET)

    @cached_property
    def image(self) -> ImageParts:
        """What is in the layout of Stable Diffusion."""
        return ImageParts(self.path)

    @cached_property
    def tokenize(self) -> Callable[[str], np.ndarray] | None:
        """CLIP's, from the folder tokenizer/ beside the file; None for a model that reads no text."""
        return self.image.tokenizer(clip_text_config(self.image.config("text_encoder"))) if self.textual else None

    def unet(self) -> UNetConfig:
        """The U-Net, as far as shapes tell it. Raises InputError for one that is not the family's."""
        with self._explain(f"{UNET}*"):
            return self.read_unet()

    def model(self, rngs: nnx.Rngs, remat: str = "none") -> VideoModel:
        """Makes the whole model, with random parameters. Raises InputError for one that is not the family's."""
        config = self.unet()
        with self._explain("beside the U-Net's"):
            autoencoder, embedders = self.autoencoder(), self.embedders(rngs)
        codec = Codec(Autoencoder(autoencoder, rngs=rngs), **self.latents)
        masked = config.in_channels > autoencoder.latent_channels
        return VideoModel(config, embedders, codec, masked=masked, remat=remat, rngs=rngs)

    @contextlib.contextmanager
    def _explain(self, keys: str) -> Iterator[None]:
        """Turns what goes wrong where shapes are looked up into one line."""
        try:
            yield
        except InputError:
            raise
        except (LookupError, ValueError, ArithmeticError, StopIteration) as error:
            missing = f" ({error} is missing)" if isinstance(error, KeyError) else ""
            raise InputError(f"{self.path}: its keys {keys} are not {self.family}'s{missing}: get it again") from None

    def image_fillings(self, model: VideoModel) -> list[Filling]:
        """Those of the autoencoder of frames and of the text encoder."""
        found = []
        for name, part, module, rules, ignore in (
            ("the autoencoder", "vae", model.codec.autoencoder, DIFFUSERS_AUTOENCODER, r"$^"),
            ("the text encoder", "text_encoder", model.text.encoder, clip.TEXT, clip.BUFFERS),
        ):
            keys = {key: Entry(*own) for key, own in self.image.names(part).items() if not re.search(ignore, key)}
            found.append(Filling(name, module, {rename(key, rules): entry for key, entry in keys.items()}))
        return found

    def tensors(self, model: VideoModel) -> dict[str, np.ndarray]:
        """What the file has with the parameters of `model` in it, all else as it is."""
        made = dict(self.all)
        for filling in self.fillings(model):
            values = convert.unfit(parameters(filling.module), [])
            parts: dict[str, list[np.ndarray]] = {}
            for name, entry in filling.entries.items():
                parts.setdefault(entry.key, []).append(flip(values[name]) if entry.transposed else values[name])
            for key, own in parts.items():
                place = self.all.places[key]
                made[key] = np.concatenate(own).reshape(place.shape).astype(place.dtype)
        return made

    def write(self, model: VideoModel, out: Path) -> None:
        """Writes the file again as `out`, its networks from `model`, with what stands beside it."""
        out.parent.mkdir(parents=True, exist_ok=True)
        made = {key: np.array(value, order="C") for key, value in self.tensors(model).items()}
        save_file(made, out, {"format": "pt"})
        for end in BESIDE:
            if (beside := self.path.with_suffix(end)).is_file():
                shutil.copy(beside, out.with_suffix(end))
        if self.whole and self.textual:
            shutil.copytree(self.path.parent / "tokenizer", out.parent / "tokenizer", dirs_exist_ok=True)


def settings_beside(file: Path) -> tuple[Path, dict[str, Any]]:
    """Finds the settings of the training beside its file: (where, what), {} if there are none. Raises InputError."""
    for end in BESIDE:
        if (path := file.with_suffix(end)).is_file():
            return path, read_settings(path)
    return file.with_suffix(BESIDE[0]), {}


def read_settings(path: Path) -> dict[str, Any]:
    """Reads a yaml or a JSON. Raises InputError if it is neither."""
    import yaml

    if (size := path.stat().st_size) > MAX_SETTINGS:
        raise InputError(f"{path} has {size:,} bytes; the yaml of a training has at most {MAX_SETTINGS:,}")
    try:
        text = path.read_text()
        found = from_json(text.encode()) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} has no settings but a {type(found).__name__}; it should be the yaml of the training")
    return found
