"""A recipe's sections: which there are, in what order its stages run, and what holds of a config as a whole."""

from collections.abc import Mapping
from typing import Any

from vidjax import settings
from vidjax.errors import InputError
from vidjax.generation import cascade

SECTIONS = (*settings.SECTIONS, "seed", "perceptual", "pretrained", "prompt")
OF_A_STAGE = (*SECTIONS, "objective", "source")


def stage_names(config: Mapping[str, Any]) -> list[str]:
    """Returns the recipe's stages, each after those that it starts from. Raises InputError for a circle of sources."""
    stages = settings.plain(config["stages"])
    ordered: list[str] = []

    def add(name: str, path: tuple[str, ...] = ()) -> None:
        if name in path:
            raise InputError(f"config.stages: {' <- '.join((*path, name))} is a circle of sources")
        stage = settings.choose(name, stages, "stage")
        for source in filter(None, (stage.get("source"), cascade.below(stage))):
            add(source, (*path, name))
        if name not in ordered:
            ordered.append(name)

    for name in stages:
        add(name)
    return ordered


def check_names(section: Mapping[str, Any]) -> None:
    """Raises InputError for an entry of a stage that does not exist, or an empty name of a folder."""
    for key in section:
        if key not in OF_A_STAGE:
            raise InputError(f"config.{key} does not exist{settings.near_match(key, OF_A_STAGE)}")
    if section.get("pretrained") == "":
        raise InputError("config.pretrained is empty: set --config.pretrained to a folder in the layout of diffusers")


def tunes(section: Mapping[str, Any]) -> bool:
    """Says whether a stage tunes the model in the folder `config.pretrained`, by one of `training.strategies`. Without
    one it takes the folder's autoencoder and text encoder, frozen, and trains a U-Net of its own."""
    return "pretrained" in section and "finetune" in section


def uncached(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config of a model that reads and makes videos, even if it was trained on latents."""
    return {**config, "data": {**config["data"], "latents": ""}}
