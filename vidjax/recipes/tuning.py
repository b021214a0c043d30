"""Stages that tune a model of another project: its weights from a folder, a strategy, and clips encoded once."""

import dataclasses
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from vidjax import settings
from vidjax.data.pipeline import DataConfig, Dataset, make_dataset, open_source
from vidjax.data.short_clips import fit_window
from vidjax.errors import InputError, check_range
from vidjax.generation import editing
from vidjax.generation.editing import cached
from vidjax.generation.generator import Generator
from vidjax.generation.options import SampleConfig
from vidjax.models.keys import Keys
from vidjax.models.layers import Over
from vidjax.models.parameters import Params, abstract_parameters, parameters, split
from vidjax.models.video_model import VideoModel
from vidjax.recipes.diffusion import multiples
from vidjax.runtime import sharding
from vidjax.runtime.storage import AnyPath
from vidjax.training import objectives
from vidjax.training.checkpoint import Checkpoints
from vidjax.training.encoded import Encoded, encode_clips, encode_once, first_windows, stand_in
from vidjax.training.stage import PREVIEWED, Stage
from vidjax.training.state import TrainState
from vidjax.training.strategies import strategy
from vidjax.weights import convert, pretrained


@dataclasses.dataclass(frozen=True)
class TunedConfig:
    """How an image U-Net becomes one of videos. The defaults start as the image model, frame by frame.

    key_frames: what a frame's self-attention looks at (see `models.attention`); None: the model stays what it is.
    convs: four convolutions over time behind each residual block (Blattmann et al. 2023, Align your Latents).
    norm_over: by default as the folder's class computes. "clip" and `released` (a random bias where the layers over
    time put out, so that they are not the identity at the start) are the numerics of Tune-A-Video's released code.
    """

    key_frames: str | None = "first_and_previous"
    convs: bool = False
    norm_over: Over | None = None
    released: bool = False

    @property
    def inflation(self) -> dict[str, Any] | None:
        """The fields of UNetConfig that change; None if nothing does."""
        if self.key_frames is None:
            return None
        block = (("attn1", self.key_frames), ("attn2", "tokens"), ("ff", "ff"), ("attn_temp", "zero_time"))
        return {"block": block, **({"after_resnet": "convs"} if self.convs else {})}


@dataclasses.dataclass(frozen=True)
class Prior:
    """DreamBooth's prior preservation: `count` videos of the class `prompt`, made by the model before it is tuned."""

    prompt: str
    count: int = 100
    weight: float = 1.0
    num_steps: int = 50

    def __post_init__(self):
        if not self.prompt.strip():
            raise InputError(
                "config.finetune.prior.prompt is empty: name the class, such as 'a photo of a dog', or set "
                "config.finetune.prior.count=0"
            )
        if self.count < 1:
            raise InputError(f"config.finetune.prior.count={self.count} is not a number of pictures")


def class_videos(generator: Generator, prior: Prior, file: AnyPath) -> UInt8[np.ndarray, "n t h w c"]:
    """Samples the class from the untuned model, once: the videos are kept in `file`, and made again for another prompt,
    number or model."""
    stamp = f"{dataclasses.replace(prior, weight=1.0)}|{generator.size}|{generator.defaults}|{generator.fingerprint()}"
    make = lambda seed: generator([prior.prompt], seed=seed, num_steps=prior.num_steps)
    return cached(file, stamp, lambda: np.concatenate([make(seed) for seed in range(prior.count)]))


def tuning(section: Mapping[str, Any], workdir: Any, *, source: Stage | None = None, **common: Any) -> Stage:
    """Makes a stage that tunes `config.pretrained`, or goes on from the stage `source`, whose parameters it adds to.

    Raises InputError for what in the folder or the config does not fit.
    """
    folder, seed = section["pretrained"], common["seed"]
    options = dict(section.get("finetune", {}))
    options.pop("source_weight", None)  # for samples alone
    given = options.pop("prior", None)
    prior = settings.construct(Prior, given, "finetune.prior") if given and given.get("count", 1) else None
    once = options.pop("encode_once", section.get("objective") != "autoencoder")
    drop = options.pop("drop", None)
    check_range("config.finetune.", 0, 1, drop=drop)
    tune = strategy(options.pop("strategy", "full"), **options)
    model = settings.construct(TunedConfig, section.get("model"), "model")
    how = dict(
        inflate=model.inflation,
        norm_over=model.norm_over,
        remat=section["train"].get("remat", "none"),
        motion_adapter=section.get("motion_adapter"),
    )
    if model.inflation and pretrained.open_video_file(folder) is not None:
        raise InputError(f"{folder} is a video model: config.model.key_frames is of image models, set it to None")
    known = pretrained.outline(folder, **how)
    if known.refinement:
        raise InputError(f"{folder} makes finished videos larger; it is not tuned here, take it as --refine")
    tokenize, told = known.tokenize, known.model.embedders
    check_conditions(section, common["data"], known.model)
    once = once and "picture" not in told
    if prior and not once:
        raise InputError("config.finetune.prior wants clips that are encoded once; leave encode_once or the prior out")
    reads = once and tokenize is not None and not tune.text  # captions are encoded once, too

    def models(weights: bool) -> tuple[VideoModel, VideoModel]:
        rngs = Keys(seed)
        if source is not None:
            loaded = tuned_model(source, weights)
        else:
            loaded = pretrained.load(folder, **how).model if weights else nnx.clone(known.model)
            if model.released and weights:
                random_biases(loaded, rngs)
        tune.surgery(loaded, rngs)
        if drop is not None:
            loaded.text.drop = drop
        if "fps" in told:
            loaded.fps.rate = float(common["data"].fps)
        return loaded, stand_in(loaded, text=reads) if once else loaded

    if section.get("prompt"):
        common["data"] = dataclasses.replace(common["data"], caption=section["prompt"])
    common["data"], note = fitted(common["data"].in_multiples(*multiples(known.model, known.model.codec)))
    common |= dict(notes=(note,) if note else (), listed=True)
    check_samples(section, common["data"], known.model, once)
    if section.get("objective") == "autoencoder":
        return Stage(
            start=lambda weights: (full := models(weights)[0], full.codec.autoencoder),
            objective=settings.bind(objectives.autoencoder, section.get("loss"), "loss"),
            trainable=tune.trainable,
            **common,
        )
    loss = objectives.OBJECTIVES[section.get("objective", common["name"])]
    objective = settings.bind(loss, section.get("loss"), "loss", schedule=known.schedule, prediction=known.prediction)
    data = common["data"]
    encode = partial(encode_once, text=reads)

    def class_examples(encoder: VideoModel) -> Encoded:
        assert tokenize is not None
        generator = generator_of(section, known, data, nnx.graphdef(encoder), parameters(encoder))
        videos = class_videos(generator, prior, common["folder"] / "class.npz")
        return encode_clips(encode, encoder, videos, [tokenize(prior.prompt)] * len(videos), seed)

    @cache
    def whole() -> tuple[Generator, Params]:
        """The model that samples, and the part of its parameters that training does not see."""
        full, model = models(True)
        trains = parameters(model)
        rest = {path: value for path, value in parameters(full).items() if path not in trains}
        generator = generator_of(section, known, data, nnx.graphdef(full), {})
        return generator, generator.lay_out(rest)

    def preview(state: TrainState, dataset: Dataset) -> np.ndarray:
        """What the run would end with now: the edits of its first prompts."""
        generator, rest = whole()
        generator.params = weighed(section, source, {**rest, **state.frozen, **state.ema})
        clips, texts = first_windows(dataset)
        prompts = editing.what_to_edit(generator, texts)[:PREVIEWED]
        return np.stack(editing.edits(generator, clips, prompts, texts[0], common["folder"] / "preview"))

    return Stage(
        start=models,
        preview=preview,
        encode=encode if once else None,
        drop=drop or 0.0,
        objective=objectives.with_prior(objective, prior.weight) if prior else objective,
        prior=class_examples if prior else None,
        tokenize=known.tokenize,
        trainable=tune.trainable,
        **common,
    )


def fitted(data: DataConfig) -> tuple[DataConfig, str]:
    """Fits the window to short clips, see `fit_window`; leaves it as it is where there are no clips, as in a plan."""
    try:
        source = open_source(data)
    except InputError:
        return data, ""
    return fit_window(data, source)


def check_samples(section: Mapping[str, Any], data: DataConfig, model: VideoModel, once: bool) -> None:
    """Raises InputError for settings that would fail after the training, or do nothing in it."""
    for key, works in (("flip", False), ("images", 0), ("crop", "center")):
        if once and getattr(data, key) != works:
            raise InputError(f"config.data.{key} has no effect: tuning encodes each clip's first window, once")
    sample = settings.construct(SampleConfig, section.get("sample"), "sample")
    if "text" in model.embedders and not (sample.prompt_list or section.get("prompt")):
        raise InputError("there is no prompt: set --config.prompt, what the clip shows, or --config.sample.prompts")
    if len(sample.blend) > 1 and len(sample.blend) > (clips := len(make_dataset(data, seed=0))):
        raise InputError(f"config.sample.blend={sample.blend} has {len(sample.blend)} weights for {clips} clips")
    t, h, w = model.codec.autoencoder.strides
    if data.frames % t == 0 and data.hw[0] % h == 0 and data.hw[1] % w == 0:  # otherwise the autoencoder says so
        latent = (data.frames // t, data.hw[0] // h, data.hw[1] // w)
        editing.latent_mask(sample.mask, sample.edit_frames, (data.frames, *data.hw), latent)


def check_conditions(section: Mapping[str, Any], data: DataConfig, model: VideoModel) -> None:
    """Raises InputError for settings of conditions that the model has not, and for those that it needs."""
    told, tune = model.embedders, section.get("finetune", {})
    if "fps" in told and data.fps is None:
        raise InputError("config.data.fps is missing: the model is told the frames per second of its clips, such as 8")
    if "picture" in told and section.get("sample", {}).get("invert", True):
        raise InputError("config.sample.invert: videos of a picture start from noise; set it to False")
    if "picture" in told and tune.get("encode_once"):
        raise InputError("config.finetune.encode_once: this model sees the first frames themselves; leave it out")
    for name, given in {
        "prompt": section.get("prompt"),
        "sample.prompts": section.get("sample", {}).get("prompts"),
        "finetune.drop": tune.get("drop"),
        "finetune.prior": (tune.get("prior") or {}).get("count", 1) if tune.get("prior") else None,
    }.items():
        if given and "text" not in told:
            raise InputError(f"config.{name}: {section['pretrained']} reads no text; leave it out")


def random_biases(model: VideoModel, rngs: nnx.Rngs) -> None:
    """Draws the biases of the released Tune-A-Video's start: torch's, uniform within 1 / sqrt(fan in), behind each
    attention over time, whose weight alone is zero."""
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if path[-3:] == ("attn_temp", "to_out", "bias"):
            bound = leaf.shape[0] ** -0.5
            leaf.set_value(jax.random.uniform(rngs.params(), leaf.shape, leaf.dtype, -bound, bound))


def tuned_model(stage: Stage, weights: bool = True) -> VideoModel:
    """Loads what a stage has tuned, text encoder and autoencoder included, with its averaged parameters if
    `weights`."""
    encoder, model = stage.start(weights)
    full = model if encoder is None else encoder
    if weights:
        trained, _ = split(abstract_parameters(nnx.state(model)), stage.trainable)
        with Checkpoints(stage.folder / "checkpoints", read_only=True) as checkpoints:
            params = checkpoints.restore_ema(trained)
        for path, leaf in convert.parameters(model).items():
            if path in params:
                leaf.set_value(params[path])
    return full


def tuned_generator(section: Mapping[str, Any], stage: Stage, source: Stage | None = None) -> Generator:
    """Makes the generator of the tuned model. What a `source` stage has adapted counts `config.finetune.source_weight`
    as much, 1 by default: MotionDirector leaves the appearance out, so that other appearances move alike."""
    full = tuned_model(stage)
    known = pretrained.outline(section["pretrained"], motion_adapter=section.get("motion_adapter"))
    params = {path: jnp.asarray(value) for path, value in parameters(full).items()}
    return generator_of(section, known, stage.data, nnx.graphdef(full), weighed(section, source, params))


def weighed(section: Mapping[str, Any], source: Stage | None, params: Params) -> Params:
    """Scales, among the parameters, what `source` has adapted by `config.finetune.source_weight`."""
    weight = section.get("finetune", {}).get("source_weight", 1.0)
    own = [path for path in params if source is not None and source.trainable(path) and path.endswith(".lora_up")]
    return {**params, **({path: weight * params[path] for path in own} if weight != 1 else {})}


def generator_of(
    section: Mapping[str, Any], known: pretrained.Pretrained, data: DataConfig, graphdef: nnx.GraphDef, params: Params
) -> Generator:
    """Makes the generator of a tuned model with these parameters, for videos of the size of its clips."""
    size = (data.frames, *data.hw)
    sample = settings.construct(SampleConfig, section.get("sample"), "sample")
    mesh, dtype = sharding.fitting_mesh(**section.get("mesh", {})), section["train"].get("dtype")
    return Generator(graphdef, params, known.schedule, known.prediction, known.tokenize, size, 3, sample, mesh, dtype)
