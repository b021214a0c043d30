"""Model folders as `diffusers` and `transformers` write them: a config, weights or a tokenizer per part."""

import dataclasses
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vidjax.errors import InputError
from vidjax.models.clip import ClipTextConfig
from vidjax.runtime.limits import from_json
from vidjax.weights.tensors import Tensors, read, read_shards

INDEX = "model_index.json"
STEMS = ("diffusion_pytorch_model", "model")  # of diffusers' and of transformers' files
PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")
LAYOUT = "unet/, vae/, text_encoder/, tokenizer/ and scheduler/"
PICTURE_LAYOUT = "unet/, vae/, image_encoder/, feature_extractor/ and scheduler/"  # of Stable Video Diffusion
STEERS = ("ControlNetModel", "SparseControlNetModel")  # classes of networks beside a pipeline, see `control`
CONFIGS = {"scheduler": "scheduler_config.json", "feature_extractor": "preprocessor_config.json"}


@dataclasses.dataclass(frozen=True)
class Folder:
    """Reads the parts of a pipeline. Raises InputError if it is no folder in that layout."""

    path: Path
    caveat = ""  # a folder says all that is asked

    def __post_init__(self):
        path = Path(self.path)
        object.__setattr__(self, "path", path)
        if path.is_file():
            pickle = f"*{path.suffix}" in PICKLES
            remedy = unpickle(path) if pickle else "name a folder, or a checkpoint as safetensors"
            raise InputError(f"{path} is {'a pickle' if pickle else 'no folder'}: {remedy}")
        if not path.is_dir():
            raise InputError(f"the folder {path} does not exist; name one with {LAYOUT}")
        if not (path / "unet").is_dir():
            there = ", ".join(sorted(p.name for p in path.iterdir())) or "nothing"
            kind = path / "config.json"
            name = read_json(kind, f"name a folder with {LAYOUT}").get("_class_name") if kind.is_file() else None
            of = f" of a {name}" if isinstance(name, str) else ""
            beside = {"MotionAdapter": "--motion_adapter"} | dict.fromkeys(STEERS, "--control")
            also = f", and this one as {beside[name]}" if of and name in beside else ""
            raise InputError(f"{path} has no unet/ but {there}{of}; name a folder with {LAYOUT}{also}")

    def config(self, part: str) -> dict[str, Any]:
        """Reads the part's JSON: config.json, or what `CONFIGS` says."""
        layout = PICTURE_LAYOUT if part in ("image_encoder", "feature_extractor") else LAYOUT
        return read_json(self.path / part / CONFIGS.get(part, "config.json"), f"a folder needs {layout}")

    def tensors(self, part: str) -> Tensors:
        """Reads the part's weights, see `read_weights`."""
        return read_weights(self.path / part)

    def copy_configs(self, out: Path) -> None:
        """Copies all but weights; `out` may be there."""
        parts = ("unet", "vae", "text_encoder", "image_encoder")
        leave = lambda within, names: [n for n in names if Path(within).name in parts and n != "config.json"]
        shutil.copytree(self.path, out, ignore=leave, dirs_exist_ok=True)

    def tokenizer(self, text: ClipTextConfig) -> Callable[[str], np.ndarray]:
        """Reads the part tokenizer/, see `clip_tokenizer`."""
        path = self.path / "tokenizer"
        if not path.is_dir():
            raise InputError(f"{self.path} has no tokenizer/; a folder needs {LAYOUT}")
        return clip_tokenizer(path, text)


def read_json(path: Path, needs: str) -> dict[str, Any]:
    """Reads a config. Raises InputError, with what the folder `needs`, if it is not there, or is no JSON."""
    try:
        config = from_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; {needs}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} is no config but {str(config)[:99]}; {needs}")
    return config


def read_weights(folder: Path) -> Tensors:
    """Maps the weights of a folder into memory, by key: full precision if it is there, else the fp16 variant.

    Raises InputError if there are none in safetensors files, with a line that converts what is there.
    """
    for stem in STEMS:
        for variant in ("", ".fp16"):
            if (path := folder / f"{stem}{variant}.safetensors").is_file():
                return read(path)
            for index in (f"{stem}.safetensors.index{variant}.json", f"{stem}{variant}.safetensors.index.json"):
                if (folder / index).is_file():
                    return read_shards(folder / index)
    pickles = sorted(path for kind in PICKLES for path in folder.glob(kind))
    if pickles:
        raise InputError(f"{folder} has its weights as a pickle only: {unpickle(pickles[0])}")
    raise InputError(f"{folder} has no weights; there should be {STEMS[0]}.safetensors or {STEMS[1]}.safetensors")


def read_file(path: str | Path) -> Tensors:
    """Maps the weights in one safetensors file. Raises InputError, for a pickle with the line that converts it."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}; name one with the published weights as safetensors")
    if f"*{path.suffix}" in PICKLES:
        raise InputError(f"{path} is a pickle: {unpickle(path)}")
    return read(path)


def clip_tokenizer(folder: Path, text: ClipTextConfig) -> Callable[[str], np.ndarray]:
    """Makes `tokenize(text) -> int32 [n]`: ids with begin and end, cut or padded to at most the model's places.

    Raises InputError if the folder has no tokenizer, one without words, or one that is not of this text encoder.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that it finds no torch is no news to anyone here
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder)
    except Exception as error:  # many kinds, by what is wrong in which of its files
        raise InputError(f"{folder} has no tokenizer of CLIP: {' '.join(str(error).split())[:200]}") from error
    known = tokenizer.get_vocab()
    if len(known.keys() - set(tokenizer.all_special_tokens)) < 2:
        raise InputError(
            f"{folder} has no words, all prompts would be the same: get its vocab.json and merges.txt again"
        )
    if (most := max(known.values())) >= text.vocabulary:
        raise InputError(
            f"{folder} has words up to number {most}, the text encoder reads only those below {text.vocabulary} "
            "(vocab_size): take the tokenizer and the text encoder of one model"
        )
    limit = tokenizer.model_max_length
    if not isinstance(limit, int) or limit < 3:
        raise InputError(f"{folder}: model_max_length={limit!r} of its tokenizer_config.json is not a number from 3 up")
    length = min(text.length, limit)

    def tokenize(text: str) -> np.ndarray:
        ids = tokenizer(text, padding="max_length", truncation=True, max_length=length).input_ids
        return np.asarray(ids, np.int32)

    return tokenize


def unpickle(path: Path) -> str:
    """Writes the command that converts a file of PyTorch's to safetensors, for an error."""
    to = path.with_name({"pytorch_model": "model"}.get(path.stem, path.stem) + ".safetensors")
    return f"convert it with python -m vidjax.convert {shlex.quote(str(path))} --out={shlex.quote(str(to))}"
