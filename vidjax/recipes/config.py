"""A recipe's sections: what they may hold, in what order the stages run, and what holds of a config as a whole.

A recipe lists what differs from the defaults, which the functions and dataclasses in `OPTIONS` own. All other options
can be set beside it, on the command line: `complete` gives every section every option, to be parsed by its type.
"""

import json
import typing
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vidjax import settings
from vidjax.data.pipeline import DataConfig
from vidjax.diffusion.schedule import SCHEDULES
from vidjax.errors import InputError
from vidjax.generation import cascade
from vidjax.generation.generator import SampleConfig
from vidjax.models.autoencoder import AutoencoderConfig
from vidjax.models.conditioning import EMBEDDERS, FRAME_MASKS
from vidjax.models.discriminator import DiscriminatorConfig
from vidjax.models.flow_autoencoder import FlowConfig
from vidjax.models.flow_unet import FlowUNetConfig
from vidjax.models.picture import PictureTraining
from vidjax.models.picture_tokens import PictureTokensTraining
from vidjax.models.unet import UNetConfig
from vidjax.recipes.tuning import Prior, TunedConfig
from vidjax.runtime.sharding import make_mesh
from vidjax.training import adversarial, flow, objectives
from vidjax.training.optimizer import make_optimizer
from vidjax.training.stage import TrainConfig
from vidjax.training.strategies import STRATEGIES

SECTIONS = (*settings.SECTIONS, "seed", "perceptual", "pretrained", "motion_adapter", "prompt")
OF_A_STAGE = (*SECTIONS, "objective", "source")


def _options(*owners: Callable[..., Any], without: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """What any of several owners may be given, but for what follows from other settings."""
    found = {name: hint for owner in owners for name, hint in settings.options(owner).items()}
    return {**{name: hint for name, hint in found.items() if name not in without}, **more}


# By section the types of what may be set in it, and for sections within sections the same again.
OPTIONS: dict[str, Any] = dict(
    data=_options(DataConfig),
    autoencoder=_options(AutoencoderConfig),
    flow=_options(FlowConfig),
    discriminator={kind: _options(DiscriminatorConfig) for kind in ("frame", "clip")},
    model=_options(
        UNetConfig, TunedConfig, FlowUNetConfig, without=("out_channels", "tokens_dim", "vector_dim"), network=str
    ),
    conditioning={
        **{name: _options(kind, without=("rngs",)) for name, kind in EMBEDDERS.items()},
        "picture": _options(PictureTraining, PictureTokensTraining, without=("fps",)),
    },
    diffusion=_options(*SCHEDULES.values(), schedule=str, prediction=str),
    loss=_options(
        objectives.diffusion,
        objectives.autoencoder,
        adversarial.autoencoder,
        flow.flow_autoencoder,
        without=("schedule", "prediction"),
        frame_masks=dict.fromkeys(FRAME_MASKS, float),
    ),
    optimizer=_options(make_optimizer, without=("steps",)),
    mesh=_options(make_mesh, without=("devices",)),
    train=_options(TrainConfig),
    sample=_options(SampleConfig),
    finetune=_options(
        *STRATEGIES.values(), strategy=str, encode_once=bool, drop=float, source_weight=float, prior=_options(Prior)
    ),
    seed=int,
    perceptual=str,
    pretrained=str,
    motion_adapter=str,
    prompt=str,
)
OWNERS: dict[str, Callable[..., Any]] = {
    "data": DataConfig,
    "autoencoder": AutoencoderConfig,
    "flow": FlowConfig,
    "model": TunedConfig,
    "optimizer": make_optimizer,
    "train": TrainConfig,
    "finetune.prior": Prior,
}


def variants(name: str, **recipes: Mapping[str, Any] | Callable[[], Mapping[str, Any]]) -> ConfigDict:
    """Returns the recipe of that name, which may be given as a function that makes it. Raises InputError."""
    if name not in recipes:
        raise InputError(f"there is no variant {name!r}{settings.near_match(name, recipes)}")
    made = recipes[name]
    return ConfigDict(made() if callable(made) else made)


def complete(config: Mapping[str, Any]) -> ConfigDict:
    """Returns the sections of a recipe with every option that there is, by its type alone: what flags may set."""
    own = dict(objective=str, source=str)
    stages = {name: _typed({**OPTIONS, **own}, stage) for name, stage in config["stages"].items()}
    common = {key: value for key, value in config.items() if key != "stages"}
    made = ConfigDict({**_typed(OPTIONS, common), "stages": stages})
    made.lock()
    return made


def _typed(known: Mapping[str, Any], listed: Any) -> dict[str, Any]:
    """A placeholder for each option in `known`; what is listed beside these stays."""
    listed = listed if isinstance(listed, Mapping) else {}
    found: dict[str, Any] = {}
    for key, hint in known.items():
        inner = hint if isinstance(hint, Mapping) else {}
        found[key] = _typed(inner, listed.get(key)) if inner else placeholder(_flag_type(hint))
    for key in listed.keys() - known.keys():
        found[key] = _typed({}, listed[key]) if isinstance(listed[key], Mapping) else listed[key]
    for key, value in listed.items():
        if isinstance(value, Mapping) and key in known and not isinstance(known[key], Mapping):
            found[key] = _typed({}, value)
    return found


def _flag_type(hint: Any) -> type:
    """How a flag is read: as text, number or truth where only that is possible, else as a literal of Python."""
    kinds = {kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)}
    kind = kinds.pop() if len(kinds) == 1 else None
    if typing.get_origin(hint) is typing.Literal or kind is str:
        return str
    return kind if kind in (int, float, bool) and not typing.get_args(hint) else object


def overridden(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config with other values, such as {"data.size": 32}, also of options that it does not list."""
    made = settings.plain(config)
    for path, value in values.items():
        *sections, name = path.split(".")
        section = made
        for key in sections:
            if not isinstance(section.get(key), dict):
                section[key] = {}
            section = section[key]
        value = settings.plain(value)
        both = isinstance(value, dict) and isinstance(section.get(name), dict)
        section[name] = {**section[name], **value} if both else value
    return made


def default_settings() -> dict[str, Any]:
    """Returns the values that settings have where a recipe lists none, by dotted name, as JSON has them; not of those
    that may be None, which a record leaves out too."""
    found: dict[str, Any] = {}
    for section, owner in OWNERS.items():
        kinds = settings.options(owner)
        values = settings.defaults(owner).items()
        found[section] = {name: value for name, value in values if type(None) not in typing.get_args(kinds[name])}
    return json.loads(json.dumps({"seed": 0, "perceptual": "", "prompt": "", **settings.flatten(found)}))


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
    if section.get("motion_adapter") and not tunes(section):
        raise InputError(
            "config.motion_adapter goes onto config.pretrained, which this stage does not tune: leave it out"
        )


def tunes(section: Mapping[str, Any]) -> bool:
    """Says whether a stage tunes the model in the folder `config.pretrained`, by one of `training.strategies`. Without
    one it takes the folder's autoencoder and text encoder, frozen, and trains a U-Net of its own."""
    return "pretrained" in section and "finetune" in section


def uncached(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config of a model that reads and makes videos, even if it was trained on latents."""
    return {**config, "data": {**config["data"], "latents": ""}}
