"""Models of other projects, from a folder of diffusers' or one file of Stable Diffusion's, train and sample here."""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from vidjax.diffusion.refinement import Refinement
from vidjax.diffusion.schedule import Schedule
from vidjax.errors import InputError
from vidjax.models.keys import Keys, OneKey
from vidjax.models.layers import Over
from vidjax.models.lora import Tensors
from vidjax.models.parameters import parameters
from vidjax.models.unet import UNetConfig
from vidjax.models.video_model import Codec, VideoModel
from vidjax.runtime.capacity import check_memory
from vidjax.runtime.storage import write_json
from vidjax.weights import animatediff, convert, diffusers, lora
from vidjax.weights.animatediff import WithMotion
from vidjax.weights.components import Part
from vidjax.weights.configs import NORM_OVER, sampler, schedule
from vidjax.weights.control import read_control
from vidjax.weights.families import VIDEO_FILES, family_of
from vidjax.weights.folder import INDEX, Folder, read_json
from vidjax.weights.single_file import SingleFile
from vidjax.weights.sources import open_source
from vidjax.weights.tensors import read
from vidjax.weights.video_file import Entries, VideoFile

RELEASED = {"_class_name": "TuneAVideoPipeline", "unet": ["tuneavideo.models.unet", "UNet3DConditionModel"]}
IMAGE = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
Source = Folder | SingleFile | WithMotion
KEPT = 4
OUTLINES: dict[str, "Pretrained"] = {}  # the last so many that were made


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A folder's model, the schedule of its diffusion, its prediction and tokenizer (None if it reads no text), and its
    size in pixels (h, w) and frames.

    `sampler` is the one that its scheduler names, `caveat` what of that scheduler is done otherwise here. `frames`: of
    the clips that it was trained on, 1 for a model of images. `defaults`: the other fields of SampleConfig in which its
    own pipeline differs from ours. `refinement`: of a model that makes finished videos larger.
    """

    model: VideoModel
    schedule: Schedule
    prediction: str
    tokenize: Callable[[str], np.ndarray] | None
    size: tuple[int, int]
    sampler: str
    caveat: str
    frames: int = 1
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    refinement: Refinement | None = None


def load(
    path: str | Path,
    *,
    inflate: str | Sequence[Sequence[str]] | Mapping[str, Any] | None = None,
    fresh: str | None = None,
    norm_over: Over | None = None,
    dtype: DTypeLike = jnp.float32,
    remat: str = "none",
    weights: bool = True,
    motion_adapter: str | Path | None = None,
    twice: bool | None = None,
    control: str | Path | None = None,
) -> Pretrained:
    """Loads a folder, or one file, with a U-Net, an autoencoder and a CLIP; images are videos of one frame.

    inflate: a name in `models.unet.BLOCKS`, or sublayers: the image U-Net with these in its transformer blocks; or any
    fields of UNetConfig. What the folder has no weights for stays at its start, which leaves images as they are: the
    parameters whose paths match the regular expression `fresh`, with `inflate` by default all over time ("temp"). Every
    other parameter without weights and all weights without a parameter are errors. norm_over: see `unet_config`. dtype:
    of all parameters; memory stays near one copy of them. weights: false for a model of shapes, which reads no weights.
    motion_adapter: AnimateDiff's motion modules for a Stable Diffusion 1, see `animatediff.read_adapter`. twice: of
    I2VGen-XL, see `models.picture_tokens`; None: as the folder says, else once. control: a network that steers it by
    pictures, see `control.read_control`. Raises InputError.
    """
    other = f"twice={twice} (--picture_twice) is of I2VGen-XL, {path} is another model: leave it out"
    if (file := open_video_file(path)) is not None:
        if twice is not None:
            raise InputError(other)
        given = dict(inflate=inflate, norm_over=norm_over, motion_adapter=motion_adapter, control=control)
        for flag, value in given.items():
            if value not in (None, ""):
                raise InputError(
                    f"{flag}={value!r} is of other models, {path} is a video model of {file.family}'s: leave it out"
                )
        return load_video_file(file, dtype, remat, weights)
    folder = open_model(path, motion_adapter)
    config = folder.config("unet")
    family = family_of(config)
    unet, rules = family.read_unet(config, norm_over)
    if inflate is not None:
        more = dict(inflate) if isinstance(inflate, Mapping) else {"block": inflate}
        unet = dataclasses.replace(unet, **more)
        fresh = fresh or "temp"
    if isinstance(folder, WithMotion) and folder.fresh:
        fresh = fresh or "temp"
    components = family.components.of(path)
    if components.tokens_dim != unet.tokens_dim:
        raise InputError(
            f"{path}: the U-Net reads tokens of {unet.tokens_dim} features, its CLIP has {components.tokens_dim}"
        )
    steer = read_control(control, weights) if control else None
    if steer:
        steer.check(unet)
    scheduler = folder.config("scheduler")
    noise, prediction = schedule(scheduler)

    def make(rngs: nnx.Rngs) -> VideoModel:
        codec = components.codec(rngs)
        embedders = components.embedders(unet, rngs) | ({"control": steer.embedder(rngs)} if steer else {})
        return VideoModel(unet, embedders, codec, remat=remat, rngs=rngs)

    model = nnx.eval_shape(lambda: make(OneKey()))
    if twice is not None:
        if not hasattr(model.embedders.get("picture"), "twice"):
            raise InputError(other)
        model.picture.twice = twice
    if weights:
        check_size(model, path, dtype)
        if steer:
            steer.load(model.control.network, dtype)
        own = Part("unet", model.unet, [*rules, *diffusers.unet(unet.blocks_per_level)], [], family.ignore)
        fill(model, lambda: make(Keys(0)), folder, [own, *components.parts(model)], fresh, dtype)
    name, caveat = sampler(scheduler)
    return Pretrained(
        model,
        noise,
        prediction,
        components.tokenize,
        family.pixels or pixel_size(config, model.codec),
        name,
        folder.caveat or caveat,
        family.frames(config),
        components.defaults,
    )


def outline(folder: str | Path, **options: Any) -> Pretrained:
    """Loads a model of shapes, see `load`; once while its files, and those of what stands beside it, stay as they are.

    A run that tunes a folder asks a dozen times, and ModelScope's takes 2.4 s of a core. What is returned is shared:
    clone the model to change it. Raises InputError.
    """
    if not Path(folder).is_dir():  # one file's words and pictures lie in folders that only it knows
        return load(folder, **options, weights=False)
    beside = [stamps(path) for name in ("motion_adapter", "control") if (path := options.get(name))]
    key = repr((str(folder), sorted(options.items()), stamps(folder), beside))
    if key not in OUTLINES:
        found = load(folder, **options, weights=False)
        if len(OUTLINES) == KEPT:
            del OUTLINES[next(iter(OUTLINES))]
        OUTLINES[key] = found
    return OUTLINES[key]


def stamps(path: str | Path) -> list[tuple[str, int, int]]:
    """Returns size and time of change of the file `path`, or of each in that folder."""
    files = [Path(path), *Path(path).rglob("*")]
    return sorted((str(file), (found := file.stat()).st_size, found.st_mtime_ns) for file in files if file.is_file())


def open_video_file(path: str | Path) -> VideoFile | None:
    """The file at `path` if it is a training run's of a video model, else None. Raises InputError."""
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    keys = read(path).places
    return next((kind(path) for kind in VIDEO_FILES if kind.fits(keys)), None)


def load_video_file(file: VideoFile, dtype: DTypeLike, remat: str, weights: bool) -> Pretrained:
    """Loads a video model that is one file. Raises InputError."""
    model = nnx.eval_shape(lambda: file.model(OneKey(), remat))
    if weights:
        check_size(model, file.path, dtype)
    for filling in file.fillings(model) if weights else ():
        try:
            convert.load(filling.module, Entries(file.all, filling.entries), [], dtype=dtype)
        except InputError as error:
            raise InputError(f"{file.path}, {filling.name}: {error}") from None
    if weights and file.folder is not None:
        fill(model, lambda: file.model(Keys(0), remat), file.folder, file.parts(model), None, dtype)
    return Pretrained(
        model,
        file.schedule(),
        file.prediction,
        file.tokenize,
        file.size,
        file.sampler,
        file.caveat,
        file.frames,
        file.defaults,
        file.refinement,
    )


def check_size(model: VideoModel, path: str | Path, dtype: DTypeLike) -> None:
    """Raises InputError if the parameters of an abstract model are more than the memory there is."""
    count = sum(math.prod(leaf.shape) for leaf in convert.parameters(model).values())
    change = f"is {path} another model?"
    check_memory(count * jnp.dtype(dtype).itemsize, f"{path} has {count:,} parameters", change)


def open_model(path: str | Path, motion_adapter: str | Path | None = None) -> Source:
    """The model at `path`, with the motion modules of an adapter if there is one. Raises InputError."""
    source = open_source(path)
    if not motion_adapter:
        return source
    family_of(config := source.config("unet")).read_unet(config, None)  # raises for one that is not read
    return WithMotion(source, animatediff.read_adapter(motion_adapter))


def moves_pictures(path: str | Path) -> bool:
    """Whether the model at `path` is of a family of folders that move pictures, which are tuned in their own way; a
    file of a video model is none. Raises InputError if there is no model."""
    if open_video_file(path) is not None:
        return False
    return family_of(open_source(path).config("unet")).pictures


def fill(
    model: VideoModel,
    make: Callable[[], VideoModel],
    folder: Source,
    parts: Sequence[Part],
    fresh: str | None,
    dtype: DTypeLike,
) -> None:
    """Gives an abstract model its weights: those of the folder's parts, and what of the U-Net is `fresh` as in
    `make()`."""
    for part in parts:
        more = {"fresh": fresh} if fresh and part.name == "unet" else {}
        try:
            convert.load(part.module, folder.tensors(part.name), part.rules, part.ignore, dtype=dtype, **more)
        except InputError as error:
            raise InputError(f"{folder.path / part.name}: {error}") from None
    convert.start(model, make, dtype)


def save(
    model: VideoModel,
    source: str | Path,
    out: str | Path,
    image: bool = False,
    motion_adapter: str | Path | None = None,
    control: str | Path | None = None,
) -> None:
    """Writes the folder `out` for `diffusers`: the weights of `model`, all else as in `source`, where it came from.

    A model that was inflated to Tune-A-Video's block becomes a folder of Tune-A-Video's code, whose network no class of
    `diffusers` is; with `image` one of the image model that is left without the layers over time. A model that was made
    with a `motion_adapter` becomes an AnimateDiffPipeline, whose motion modules also stand alone in motion_adapter/;
    the network of one that was made with `control` goes to controlnet/. Raises InputError if `out` has something in it
    already, if `control` is missing, or if the U-Net has layers that neither the source nor Tune-A-Video has.
    """
    steered = "control" in model.embedders
    if steered != (control is not None):
        raise InputError(
            f"control={control}: the model is {'steered by a network' if steered else 'steered by none'}; "
            f"{'name its folder' if steered else 'leave it out'}"
        )
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; name a new folder")
    if (file := open_video_file(source)) is not None:
        return file.write(model, out / file.path.name)
    folder = open_model(source, motion_adapter)
    config = config_for(model.unet.config, folder.config("unet"))
    config = family_of(config).write_config(config, model)
    image = image and is_tune_a_video(config)
    if image:
        config = deflate_config(config)
    if not model.codec.per_frame("decoder") and not model.codec.autoencoder.config.decoder_blend:
        raise InputError(
            "the decoder looks at several frames at once, which no class of diffusers does: export as orbax"
        )
    folder.copy_configs(out)
    write_json(out / "unet" / "config.json", config)
    if (out / INDEX).is_file():
        index = read_json(out / INDEX, "it is model_index.json of diffusers")
        write_json(out / INDEX, {**index, **(RELEASED if is_tune_a_video(config) else IMAGE if image else {})})
    leave = r"\.(attn|norm)_temp\." if image else r"$^"
    for name, file, tensors in tensors_by_part(model, source, config):
        tensors = {key: np.ascontiguousarray(value) for key, value in tensors.items() if not re.search(leave, key)}
        if name == "unet":
            tensors = family_of(config).complete(tensors, config, partial(buffers_of, folder))
            if (alone := out / "motion_adapter").is_dir():
                write_motion_modules(tensors, alone)
        save_file(dict(tensors), out / name / f"{file}.safetensors", metadata={"format": "pt"})
    if control:
        read_control(control).save(model.embedders["control"].network, out / "controlnet")


def tensors_by_part(
    model: VideoModel, source: str | Path, config: Mapping[str, Any]
) -> Iterator[tuple[str, str, dict[str, np.ndarray]]]:
    """Yields (part, file, its tensors) for each part of a model that came from `source`, under the keys of a folder
    whose U-Net has the config.json `config`."""
    family = family_of(config)
    keys = [*diffusers.unet_keys(model.unet.config.blocks_per_level), *family.keys]
    projections = "" if linear_projection(config, model.unet.config) else r"|attentions\.\d+\.proj_(in|out)"
    pointwise = rf"(conv_shortcut|quant_conv{projections})\.weight$"
    every = (Part("unet", model.unet, [], keys), *family.components.of(source).parts(model))
    for (name, file), parts in itertools.groupby(every, lambda part: (part.name, part.file)):
        made = [convert.unfit(parameters(part.module), part.keys, pointwise) for part in parts]
        yield name, file, {key: value for each in made for key, value in each.items()}


def save_single_file(model: VideoModel, source: str | Path, out: str | Path) -> None:
    """Writes the single file `source` again into the folder `out`, with the weights of `model`, which came from it.

    Raises InputError if the source is a folder, or the model has other layers than it, or a network that steers it.
    """
    if "control" in model.embedders:
        raise InputError(f"a network steers the model, for which {source} has no place; take --format=diffusers")
    out = Path(out)
    if open_video_file(source) is not None:
        return save(model, source, out)
    file = open_source(source)
    if not isinstance(file, SingleFile):
        raise InputError(f"{source} is a folder; take --format=diffusers")
    config = config_for(model.unet.config, file.config("unet"))
    if is_tune_a_video(config):
        raise InputError(f"the U-Net has layers over time that {source} has not; take --format=tune_a_video")
    out.mkdir(parents=True, exist_ok=True)
    file.write({name: tensors for name, _, tensors in tensors_by_part(model, source, config)}, out / file.path.name)


def buffers_of(folder: Source) -> Mapping[str, np.ndarray]:
    """Tensors of a source that may have the positions of motion modules; none if these are new."""
    return {} if isinstance(folder, WithMotion) and folder.fresh else folder.tensors("unet")


def write_motion_modules(tensors: Mapping[str, np.ndarray], out: Path) -> None:
    """Writes the motion modules among a U-Net's tensors in place of the weights of a MotionAdapter's folder."""
    for old in (*out.glob("*.safetensors*"), *out.glob("*.bin")):
        old.unlink()
    own = {key: value for key, value in tensors.items() if ".motion_modules." in key}
    save_file(own, out / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


def save_motion_adapter(
    model: VideoModel, source: str | Path, out: str | Path, motion_adapter: str | Path | None = None
) -> None:
    """Writes the motion modules of a model that came from `source` alone, as a MotionAdapter of diffusers.

    Raises InputError if it has none, or `out` has something in it already.
    """
    folder, out = open_model(source, motion_adapter), Path(out)
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; name a new folder")
    config = config_for(model.unet.config, folder.config("unet"))
    if config["_class_name"] != animatediff.CLASS:
        raise InputError(f"{source} has no motion modules of AnimateDiff; take --format=diffusers")
    keys = [*diffusers.unet_keys(model.unet.config.blocks_per_level), *diffusers.ANIMATEDIFF_KEYS]
    own = {path: value for path, value in parameters(model.unet).items() if "temporal_attention" in path}
    tensors = {key: np.ascontiguousarray(value) for key, value in convert.unfit(own, keys).items()}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", animatediff.adapter_config(config))
    write_motion_modules(animatediff.add_buffers(tensors, config, buffers_of(folder)), out)


def save_adapters(
    model: VideoModel,
    tensors: Tensors,
    source: str | Path,
    out: str | Path,
    motion_adapter: str | Path | None = None,
    kohya: bool = False,
) -> None:
    """Writes adapters of `model`, which came from `source`, into the folder `out`, for `diffusers` or in kohya's
    layout; those of a video model's file under the names that ModelScope's layers have there.

    Raises InputError if they are on layers that the source has not: what they adapt would be in no file.
    """
    if open_video_file(source) is not None:
        how = dict(linear_projection=True, kohya=kohya)
        lora.save(out, tensors, model.unet.config.blocks_per_level, diffusers.MODELSCOPE_KEYS, **how)
        return
    config = open_model(source, motion_adapter).config("unet")
    if config_for(model.unet.config, config) != config and any("temp" in path for path in tensors):
        raise InputError(f"the adapters are on layers over time that {source} has not; take --format=orbax")
    linear = linear_projection(config, model.unet.config)
    keys = family_of(config).keys
    lora.save(out, tensors, model.unet.config.blocks_per_level, keys, linear_projection=linear, kohya=kohya)


def linear_projection(config: dict[str, Any], unet: UNetConfig) -> bool:
    """Whether projections of transformers are linear layers there; those of ModelScope and Stable Video Diffusion
    always are, their configs are silent."""
    return config.get("use_linear_projection", unet.after_resnet != "none")


def config_for(unet: UNetConfig, source: dict[str, Any]) -> dict[str, Any]:
    """Makes the config.json of a U-Net that came from one with the config.json `source`.

    It names what the norms go over where the class of that name computes otherwise. Raises InputError."""
    family = family_of(source)
    own, _ = family.read_unet(source, unet.norm_over)
    tuned = own if own.after_attention else dataclasses.replace(own, block="tuned")
    if unet not in (own, tuned):
        raise InputError("the U-Net has layers that no class of diffusers has; only block='tuned' can be written")
    config = {
        key: value for key, value in (source if unet == own else inflate_config(source)).items() if key != NORM_OVER
    }
    made, _ = family_of(config).read_unet(config, None)
    return config if made.norm_over == unet.norm_over else {**config, NORM_OVER: unet.norm_over}


def is_tune_a_video(config: dict[str, Any]) -> bool:
    """Whether the config.json is of showlab's video U-Net."""
    return family_of(config).read_unet(config, None)[1] is diffusers.TUNE_A_VIDEO


def inflate_config(config: dict[str, Any]) -> dict[str, Any]:
    """Converts the config of an image U-Net to that of showlab's video U-Net, as their `from_pretrained_2d` does."""
    kinds = diffusers.rename_blocks(config, "2D", "3D")
    named = {
        "_class_name": "UNet3DConditionModel",
        "flip_sin_to_cos": True,
        "mid_block_type": "UNetMidBlock3DCrossAttn",
    }
    return {**config, **kinds, **named}


def deflate_config(config: dict[str, Any]) -> dict[str, Any]:
    """Converts the config of showlab's video U-Net to that of the image U-Net inside it."""
    kinds = diffusers.rename_blocks(config, "3D", "2D")
    named = {"_class_name": "UNet2DConditionModel", "mid_block_type": "UNetMidBlock2DCrossAttn"}
    return {key: value for key, value in {**config, **kinds, **named}.items() if key != NORM_OVER}


def pixel_size(config: Mapping[str, Any], codec: Codec) -> tuple[int, int]:
    """Reads the (height, width) in pixels that the U-Net with this config.json was trained with."""
    size = config.get("sample_size") or 64
    height, width = (size, size) if isinstance(size, int) else size
    return height * codec.autoencoder.strides[1], width * codec.autoencoder.strides[2]
