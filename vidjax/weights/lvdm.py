"""LVDM (He et al. 2022) in one file: its unconditional U-Net, the one of text, and either's autoencoder.

The file is a training run's, as safetensors (`vidjax.convert FILE.ckpt`). Shapes say what the networks are. How latents
are scaled and which betas they were trained with stands in the yaml of the training, a .yaml or .json beside the file.
"""

import dataclasses
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from vidjax.diffusion import schedule as schedules
from vidjax.diffusion.schedule import Schedule
from vidjax.errors import InputError
from vidjax.models.autoencoder import LVDM, Autoencoder, AutoencoderConfig
from vidjax.models.conditioning import ClipEmbedder
from vidjax.models.parameters import parameters
from vidjax.models.unet import UNetConfig
from vidjax.models.video_model import Codec, VideoModel
from vidjax.runtime.limits import from_json
from vidjax.weights import clip, convert
from vidjax.weights.configs import autoencoder_config, clip_text_config
from vidjax.weights.convert import Rules, rename
from vidjax.weights.diffusers_autoencoder import DIFFUSERS_AUTOENCODER
from vidjax.weights.single_file import AUTOENCODER, LDM, UNET, SingleFile
from vidjax.weights.tensors import Tensors, read

EMA = "model_ema."
MAX_SETTINGS = 2**20  # bytes of a yaml
RELATIVE = r"\.relative_position_([kv])\.embeddings_table$"
FEED_FORWARD: Rules = [
    (r"\.net\.0\.proj\.", ".proj_in."),
    (r"\.net\.2\.", ".proj_out."),
    (r"\.to_out\.0\.", ".to_out."),
]
SUBLAYERS = ("attn1", "attn2", "ff", "attn1_temp", "attn2_temp")  # in the order of their norms' numbers

# Keys of the U-Nets to parameter paths, once qkv is parted.
PLAIN: Rules = [
    *LDM,
    (r"\.attention" + RELATIVE, r".attention.layer.attn_temp.relative.\1"),
    (r"\.attention\.(\w+)_s\.", r".attention.layer.attn1.\1."),
    (r"\.attention\.(\w+)_t\.", r".attention.layer.attn_temp.\1."),
    (r"(\.attention\..*)\.proj_out\.", r"\1.to_out."),
    (r"^label_emb\.", "add_embedding."),
]
TEXTUAL: Rules = [
    *LDM,
    (r"\.transformer_blocks\.", ".blocks."),
    (r"\.attn([12])_tmp\.", r".attn\1_temp."),
    (RELATIVE, r".relative.\1"),
    *[(rf"(blocks\.\d+)\.norm{i}\.", rf"\1.{name}.norm.") for i, name in enumerate(SUBLAYERS, 1)],
    *FEED_FORWARD,
]
# Keys of the autoencoder that looks over time: a level's blocks follow its sampling.
AUTOENCODER_3D: Rules = [
    (r"\.(conv|convt)\.(weight|bias)$", r".\2"),
    (r"^encoder\.conv_first\.", "encoder.conv_in."),
    (r"^encoder\.final_block\.0\.", "encoder.norm_out."),
    (r"^encoder\.final_block\.2\.", "encoder.conv_out."),
    (r"^encoder\.conv_blocks\.(\d+)\.down\.", r"encoder.down.\1.downsample.conv."),
    (r"^decoder\.conv_blocks\.(\d+)\.up\.", r"decoder.up.\1.upsample.conv."),
    (r"^encoder\.conv_blocks\.(\d+)\.res\.", lambda m: f"encoder.down.{int(m[1]) + 1}.resnet_0."),
    (r"^decoder\.conv_blocks\.(\d+)\.res(\d)\.", lambda m: f"decoder.up.{int(m[1]) + 1}.resnet_{int(m[2]) - 1}."),
]
TRANSPOSED = r"^decoder\.up\.\d+\.upsample\.conv\.weight$"


class Entry(NamedTuple):
    """Where a parameter's tensor is: a key of the file, which third of it, and whether its kernel is transposed."""

    key: str
    part: int | None = None
    transposed: bool = False


def flip(kernel: np.ndarray) -> np.ndarray:
    """Converts the kernel of a transposed convolution, [in, out, *k] of torch's, to [out, in, *k]; and back."""
    return np.flip(kernel.swapaxes(0, 1), tuple(range(2, kernel.ndim)))


def original_of(key: str, keys: Mapping[str, Any]) -> str | None:
    """The key of the convolution whose weight stands under `key` a second time, if it is one of these."""
    if not key.endswith(".weight"):
        return None
    inner = (f"{key.removesuffix('.weight')}.{name}.weight" for name in ("conv", "convt"))
    return next((each for each in inner if each in keys), None)


def averaged(key: str) -> str:
    """The key under which a file has the average over the training of a tensor of the U-Net."""
    return f"{EMA}{('diffusion_model.' + key).replace('.', '')}"


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


class Part(NamedTuple):
    """A module of a model, the tensors that fill it, and what converts their names."""

    name: str
    module: nnx.Module
    tensors: Mapping[str, np.ndarray]
    rules: Rules = ()
    ignore: str = r"$^"


def is_lvdm(keys: Mapping[str, Any]) -> bool:
    """Whether a file has one of LVDM's U-Nets: attention over time inside its attention modules."""
    return any(key.startswith(UNET) and (".qkv_t." in key or ".attn1_tmp." in key) for key in keys)


@dataclasses.dataclass(frozen=True)
class LvdmFile:
    """A checkpoint of LVDM. Raises InputError if something of it or beside it is missing."""

    path: Path
    all: Tensors = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "path", Path(self.path))
        object.__setattr__(self, "all", read(self.path))
        if not any(key.startswith(AUTOENCODER) for key in self.all):
            raise InputError(
                f"{self.path} has no keys {AUTOENCODER}*: take the file of the whole model, with the autoencoder"
            )

    @cached_property
    def settings(self) -> dict[str, Any]:
        """`model.params` of the training's yaml beside the file, {} if there is none. Raises InputError."""
        for end in (".yaml", ".yml", ".json"):
            if (path := self.path.with_suffix(end)).is_file():
                found = read_settings(path)
                inner = found.get("model", found)
                inner = inner.get("params", inner) if isinstance(inner, dict) else inner
                if not isinstance(inner, dict):
                    raise InputError(f"{path} has no model.params; it should be the yaml of the training")
                return inner
        return {}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the U-Net by key without the prefix."""
        return {key[len(UNET) :]: place.shape for key, place in self.all.places.items() if key.startswith(UNET)}

    @property
    def textual(self) -> bool:
        """Whether it is the model of text."""
        return any(".attn1_tmp." in key for key in self.shapes)

    def number(self, name: str, default: int | float | None) -> float:
        """Reads a number of the settings. Raises InputError if it is none, or there is neither it nor a default."""
        value = self.settings.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            beside = self.path.with_suffix(".yaml")
            raise InputError(
                f"{self.path} does not say its {name} ({value!r} is given): put the yaml of its training beside it as "
                f'{beside.name}, or a {self.path.stem}.json such as {{"scale_factor": 0.334, "shift_factor": 1.46}}'
            )
        return float(value)

    def schedule(self) -> Schedule:
        """The schedule: by default that of the paper's models, of text or without."""
        low, high = (0.00085, 0.012) if self.textual else (0.0015, 0.0155)
        steps = int(self.number("timesteps", 1000))
        return schedules.scaled_linear(steps, self.number("linear_start", low), self.number("linear_end", high))

    def unet(self) -> UNetConfig:
        """The U-Net, as far as shapes tell it. Raises InputError for one that is not LVDM's."""
        try:
            return self._unet()
        except InputError:
            raise
        except (KeyError, IndexError, ValueError, StopIteration):
            raise InputError(f"{self.path}: its keys {UNET}* are not LVDM's: get it again") from None

    def _unet(self) -> UNetConfig:
        shapes, textual = self.shapes, self.textual
        at = lambda key: int(key.split(".")[1])
        blocks = {
            at(key): shape[0] for key, shape in shapes.items() if re.match(r"input_.*\.out_layers\.3\.weight", key)
        }
        downs = sorted(at(key) for key in shapes if re.match(r"input_.*\.0\.op\.weight", key))
        ends = [*downs, max(blocks) + 1]
        n, channels = ends[0] - 1, [blocks[end - 1] for end in ends]
        probe = "norm" if textual else "norm_s"
        attends = [f"input_blocks.{level * (n + 1) + 1}.1.{probe}.weight" in shapes for level in range(len(channels))]
        tables = {at(key): shape for key, shape in shapes.items() if re.match(r"input_.*relative_position_k", key)}
        head = {level: tables[level * (n + 1) + 1][1] for level, yes in enumerate(attends) if yes}
        last = next(shape for key, shape in shapes.items() if re.match(r"middle_.*relative_position_k", key))
        heads = [
            channels[-1] // last[1] if not yes else c // head[level]
            for level, (c, yes) in enumerate(zip(channels, attends))
        ]
        common: dict[str, Any] = dict(
            in_channels=shapes["input_blocks.0.0.weight"][1],
            out_channels=shapes["out.2.weight"][0],
            channels=tuple(channels),
            blocks_per_level=n,
            attention_levels=tuple(attends),
            heads=tuple(heads),
            norm_over="clip",
            reach=(last[0] - 1) // 2,
            scale_shift=shapes["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * channels[0],
        )
        if textual:
            tokens = next(shape[1] for key, shape in shapes.items() if key.endswith(".attn2.to_k.weight"))
            return UNetConfig(**common, block="lvdm_text", attention_norm_over="clip", tokens_dim=tokens)
        levels = shapes.get("label_emb.weight", (None,))[0]
        plain = dict(block="lvdm", attention="plain", tokens_dim=None, transposed=True, vector_levels=levels)
        return UNetConfig(**common, **plain)

    @cached_property
    def latents(self) -> dict[str, float]:
        """`scale` and `shift` of the latents, z' = scale (z + shift)."""
        default = (0.18215, 0.0) if self.textual else (None, None)
        return dict(zip(("scale", "shift"), map(self.number, ("scale_factor", "shift_factor"), default)))

    def codec(self, rngs: nnx.Rngs) -> Codec:
        """Makes the autoencoder with random parameters."""
        return Codec(Autoencoder(self.autoencoder(), rngs=rngs), **self.latents)

    def autoencoder(self) -> AutoencoderConfig:
        """That of the frames of the model of text, that of clips of the others."""
        if self.textual:
            return autoencoder_config(self._image._autoencoder())[0]
        own = {key[len(AUTOENCODER) :]: place.shape for key, place in self.all.places.items()}
        try:
            width, latent = own["encoder.conv_first.conv.weight"][0], own["post_quant_conv.weight"][0]
        except KeyError as error:
            raise InputError(f"{self.path} has no {AUTOENCODER}{error.args[0]}: get it again") from None
        return dataclasses.replace(
            LVDM,
            latent_channels=latent,
            channels=tuple(width * 2**i for i in range(4)),
            decoder_channels=(2 * width, 4 * width, 8 * width, latent),
        )

    @cached_property
    def _image(self) -> SingleFile:
        """What of the model of text is in the layout of Stable Diffusion: autoencoder and text encoder."""
        return SingleFile(self.path)

    def embedders(self, rngs: nnx.Rngs) -> dict[str, Any]:
        """Makes the embedder of captions of the model of text."""
        if not self.textual:
            return {}
        text = clip_text_config(self._image._text())
        assert self.tokenize is not None
        return {"text": ClipEmbedder(text, self.tokenize("").tolist(), rngs=rngs)}

    @cached_property
    def tokenize(self) -> Callable[[str], np.ndarray] | None:
        """CLIP's, from the folder tokenizer/ beside the file, for the model of text."""
        return self._image.tokenizer(clip_text_config(self._image._text())) if self.textual else None

    def unet_entries(self) -> dict[str, Entry]:
        """The U-Net's tensors by parameter path: their averages over the training, if the file has these."""
        rules, entries = TEXTUAL if self.textual else PLAIN, {}
        for key in self.shapes:
            source = averaged(key) if averaged(key) in self.all.places else UNET + key
            if m := re.search(r"\.qkv_([st])\.", key):
                for part, letter in enumerate("qkv"):
                    entries[rename(key.replace(m[0], f".to_{letter}_{m[1]}."), rules)] = Entry(source, part)
            else:
                entries[rename(key, rules)] = Entry(source)
        return entries

    def autoencoder_entries(self) -> dict[str, Entry]:
        """The tensors of the autoencoder of clips by parameter path; its convolutions' weights are there twice."""
        entries = {}
        for key in self.all.places:
            own = key.removeprefix(AUTOENCODER)
            if key == own or own.startswith("loss.") or original_of(key, self.all.places):
                continue
            name = rename(own, AUTOENCODER_3D)
            entries[name] = Entry(key, transposed=bool(re.match(TRANSPOSED, name)))
        return entries

    def parts(self, model: VideoModel) -> list[Part]:
        """The modules of a model and what fills them."""
        unet = Part("the U-Net", model.unet, Entries(self.all, self.unet_entries()))
        if not self.textual:
            entries = Entries(self.all, self.autoencoder_entries())
            return [unet, Part("the autoencoder", model.codec.autoencoder, entries)]
        return [
            unet,
            Part("the autoencoder", model.codec.autoencoder, self._image.tensors("vae"), DIFFUSERS_AUTOENCODER),
            Part("the text encoder", model.text.encoder, self._image.tensors("text_encoder"), clip.TEXT, clip.BUFFERS),
        ]

    @property
    def defaults(self) -> dict[str, float]:
        """Fields of SampleConfig in which its own programs differ from ours."""
        return {"fps": 8.0, **({"guidance_scale": 15.0, "eta": 1.0} if self.textual else {})}

    @property
    def frames(self) -> int:
        """Frames of the clips that it was trained on."""
        return int(self.unet().reach) * self.autoencoder().strides[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels that it was trained on."""
        size = self.settings.get("image_size", 32)
        height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
        if not isinstance(height, int) or not isinstance(width, int):
            raise InputError(f"the yaml beside {self.path}: image_size={size!r} is no number of latents")
        _, h, w = self.autoencoder().strides
        return height * h, width * w

    def write(self, model: VideoModel, out: Path) -> None:
        """Writes the file again as `out`, the U-Net and the autoencoder of clips from `model`, with what stands beside
        it; averages over the training are the model's, too. The model of text has its other parts as they were: raises
        InputError if these have changed."""
        made = dict(self.all)
        for part in self.parts(model)[1:] if self.textual else ():
            own = parameters(part.module)
            kept = convert.fit(
                {path: value.shape for path, value in own.items()}, part.tensors, part.rules, part.ignore
            )
            if not all(np.array_equal(own[path], kept[path].astype(own[path].dtype)) for path in own):
                raise InputError(f"{part.name} was trained, too, and goes into no file of LVDM's: export as orbax")
        sources = [(model.unet, self.unet_entries())]
        if not self.textual:
            sources.append((model.codec.autoencoder, self.autoencoder_entries()))
        for module, entries in sources:
            tensors = convert.unfit(parameters(module), [])
            parts: dict[str, list[np.ndarray]] = {}
            for name, entry in entries.items():
                value = tensors[name]
                parts.setdefault(entry.key, []).append(flip(value) if entry.transposed else value)
            for key, values in parts.items():
                made[key] = np.concatenate(values).reshape(self.all.places[key].shape)
        for key in self.shapes:  # the trained and the averaged ones are the same now
            if averaged(key) in self.all.places:
                made[UNET + key] = made[averaged(key)]
        for key in made:
            if original := original_of(key, made):
                made[key] = made[original]
        save_file({key: np.array(value, order="C") for key, value in made.items()}, out, {"format": "pt"})
        for end in (".yaml", ".yml", ".json"):
            if (beside := self.path.with_suffix(end)).is_file():
                shutil.copy(beside, out.with_suffix(end))


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
