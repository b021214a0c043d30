"""Where a model is read from: a folder in the layout of diffusers, or one file as if it were such a folder."""

from pathlib import Path

from vidjax.weights.folder import Folder
from vidjax.weights.single_file import SingleFile
from vidjax.weights.stable_video_file import StableVideoFile, is_stable_video
from vidjax.weights.tensors import read


def open_source(path: str | Path) -> Folder | SingleFile:
    """The model at `path`: a folder in the layout of diffusers, or one safetensors file. Raises InputError."""
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return Folder(path)
    return StableVideoFile(path) if is_stable_video(read(path)) else SingleFile(path)
