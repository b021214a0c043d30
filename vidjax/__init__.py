"""Video diffusion models in JAX: train, tune and sample. What notebooks need is here by name, see docs/api.md.

Importing the package imports nothing else: a name's module is imported when the name is asked for.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULES = {"guidance": "diffusion.guidance", "samplers": "diffusion.samplers", "schedules": "diffusion.schedule"}
_NAMES = {
    "Autoencoder": "models.autoencoder.Autoencoder",
    "AutoencoderConfig": "models.autoencoder.AutoencoderConfig",
    "Cascade": "generation.cascade.Cascade",
    "InputError": "errors.InputError",
    "Pretrained": "weights.pretrained.Pretrained",
    "Run": "recipes.run.Run",
    "UNet": "models.unet.UNet",
    "UNetConfig": "models.unet.UNetConfig",
    "load_folder": "weights.pretrained.load",
    "read_frames": "data.video_reading.read_frames",
    "load_generator": "generation.pretrained.load_generator",
    "to_uint8": "data.transforms.to_uint8",
    "to_unit": "data.transforms.to_unit",
    "train": "recipes.run.train",
    "write_mp4": "data.video_writing.write_mp4",
}


def __getattr__(name: str) -> Any:
    """Imports a public name (PEP 562)."""
    if name in _MODULES:
        return import_module(f"vidjax.{_MODULES[name]}")
    if name not in _NAMES:
        raise AttributeError(f"module 'vidjax' has no attribute {name!r}")
    module, _, attribute = _NAMES[name].rpartition(".")
    return getattr(import_module(f"vidjax.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_NAMES})
