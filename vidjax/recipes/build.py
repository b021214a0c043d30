"""From a config to the parts of a training stage: the only code that sees a whole config, and where a bad one fails."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vidjax import settings
from vidjax.data.latents import Latents
from vidjax.data.pipeline import DataConfig, Dataset
from vidjax.data.transforms import to_uint8, to_unit
from vidjax.diffusion.schedule import SCHEDULES, Schedule
from vidjax.errors import InputError, check_range
from vidjax.generation import cascade
from vidjax.generation.generator import Generator, SampleConfig, what_to_ask
from vidjax.models.autoencoder import Autoencoder, AutoencoderConfig
from vidjax.models.conditioning import EMBEDDERS
from vidjax.models.discriminator import DiscriminatorConfig, Discriminators
from vidjax.models.keys import OneKey
from vidjax.models.lowres import LowresEmbedder
from vidjax.models.parameters import Params, abstract_parameters, merge, parameters, split
from vidjax.models.patch_pca import patch_pca
from vidjax.models.text_encoder import byte_ids
from vidjax.models.unet import UNetConfig
from vidjax.models.vgg import LPIPS
from vidjax.models.video_model import Codec, VideoModel, latent_statistics
from vidjax.recipes.tuning import tuned_generator, tuning
from vidjax.runtime import run_files, sharding
from vidjax.runtime.compiling import jit
from vidjax.runtime.processes import agreed, run_over, say
from vidjax.runtime.run_files import read_statistics
from vidjax.runtime.storage import AnyPath
from vidjax.training import adversarial, objectives, provenance
from vidjax.training.checkpoint import Checkpoints
from vidjax.training.encoded import Encoder, StoredMoments, encode_once
from vidjax.training.optimizer import make_optimizer
from vidjax.training.stage import PREVIEWED, Stage, TrainConfig, abstract_batch, abstract_loss, encoded_shapes, fit
from vidjax.training.state import TrainState
from vidjax.training.validation import VALIDATION_CLIPS, by_noise_level
from vidjax.weights.components import AUTOENCODER, EMPTY, surroundings
from vidjax.weights.lpips import read_lpips

SECTIONS = (*settings.SECTIONS, "seed", "perceptual", "pretrained", "prompt")
MEASURED = 256  # clips from which the statistics of latents and patches come
OF_A_STAGE = (*SECTIONS, "objective", "source")


def stage_names(config: Mapping[str, Any]) -> list[str]:
    """The recipe's stages, each after the one that is its source."""
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


def build(config: Mapping[str, Any], name: str, workdir: AnyPath, max_steps: int | None = None) -> Stage:
    """The parts of stage `name`. Raises InputError for whatever in the config does not fit."""
    section = settings.stage_settings(config, name)
    if low := cascade.below(section):
        check_below(section, settings.stage_settings(config, low), name)
    for key in section:
        if key not in OF_A_STAGE:
            raise InputError(f"config.{key} does not exist{settings.near_match(key, OF_A_STAGE)}")
    train = settings.construct(TrainConfig, section["train"], "train")
    optimizer = settings.construct(make_optimizer, section.get("optimizer"), "optimizer", steps=train.steps)
    if max_steps is not None:  # the learning rate follows the full length, so that a capped run can go on later
        train = dataclasses.replace(train, steps=min(train.steps, max_steps))
    kind = section.get("objective", name)
    kinds = {**dict.fromkeys(objectives.OBJECTIVES, _diffusion), "autoencoder": _autoencoder}
    make = settings.choose(kind, kinds, "objective")
    if section.get("pretrained") == "":
        raise InputError("config.pretrained is empty: set --config.pretrained to a folder in the layout of diffusers")
    if tunes(section):
        make = partial(tuning, source=source_of(section, config, workdir))
    seed = section.get("seed", 0)
    check_range("config.", 0, 2**63 - 1, seed=seed)
    return make(
        section,
        workdir,
        name=name,
        folder=workdir / name,
        train=train,
        mesh=section.get("mesh", {}),
        seed=seed,
        data=settings.construct(DataConfig, section["data"], "data"),
        optimizer=optimizer,
        fps=settings.construct(SampleConfig, section.get("sample"), "sample").fps,
        settings=provenance.settings_of(section),
        parent=workdir / section["source"] if section.get("source") else None,
    )


def check_below(section: Mapping[str, Any], low: Mapping[str, Any], name: str) -> None:
    """Raises InputError unless the videos that stage `name` makes larger are those that the stage `low` makes."""
    options = section["conditioning"]["lowres"]
    embedder = settings.construct(LowresEmbedder, options, "conditioning.lowres", rngs=OneKey())
    own, below = (settings.construct(DataConfig, each["data"], "data") for each in (section, low))
    cascade.check(name, embedder, own, below)


def tunes(section: Mapping[str, Any]) -> bool:
    """Whether a stage tunes the model in the folder `config.pretrained`, by one of `training.strategies`. Without one
    it takes the folder's autoencoder and text encoder, frozen, and trains a U-Net of its own."""
    return "pretrained" in section and "finetune" in section


def source_of(section: Mapping[str, Any], config: Mapping[str, Any], workdir: AnyPath) -> Stage | None:
    """The stage from which one goes on."""
    return build(config, section["source"], workdir) if section.get("source") else None


def _autoencoder(section: Mapping[str, Any], workdir: AnyPath, **common: Any) -> Stage:
    common["data"] = dataclasses.replace(common["data"], latents="")  # they are its own, of the stage after it
    config = settings.construct(AutoencoderConfig, section["autoencoder"], "autoencoder")
    weights = section.get("perceptual", "")
    rivals = {
        kind: settings.construct(DiscriminatorConfig, options, f"discriminator.{kind}")
        for kind, options in section.get("discriminator", {}).items()
    }
    objective = adversarial.autoencoder if rivals or weights else objectives.autoencoder
    perceptual = perceptual_parameters(weights) if weights else {}

    def init(rngs: nnx.Rngs) -> Any:
        model: Any = Autoencoder(config, rngs=rngs)
        if rivals:
            model.discriminator = Discriminators(rivals, config.in_channels, rngs=rngs)
        if weights:
            model.perceptual = LPIPS(rngs=rngs)
        return model

    def loaded(state: TrainState, dataset: Dataset) -> Params:
        return {**perceptual, **(principal(state, dataset) if config.linear else {})}

    def principal(state: TrainState, dataset: Dataset) -> Params:
        """The linear path starts at the principal components of the training patches."""
        model = state.model(state.params)
        model.start_at(
            patch_pca(
                np.concatenate(dataset.windows("train", clips=dataset.sample_of(MEASURED))),
                config.strides,
                config.latent_channels,
            )
        )
        return {path: value for path, value in parameters(model).items() if not adversarial.judges(path)}

    def finish(state: TrainState, dataset: Dataset) -> None:
        windows = dataset.windows("train", clips=dataset.sample_of(MEASURED))
        found = latent_statistics(state.model(), windows, sharding.make_mesh(**common["mesh"]))
        agreed(lambda: settings.write_json(common["folder"] / "latents.json", found))

    @jit
    def beside(state: TrainState, video: jax.Array) -> jax.Array:
        model = state.model()
        return jnp.concatenate([video, to_uint8(model.decode(model.encode(to_unit(video)).mode))], 2)

    def preview(state: TrainState, dataset: Dataset) -> np.ndarray:
        """Some clips, each above its reconstruction."""
        clips = dataset.windows("train", per_clip=1, clips=range(min(PREVIEWED, len(dataset))))
        return run_over(sharding.make_mesh(**common["mesh"]), beside, state, np.concatenate(clips))

    return Stage(
        init=init,
        objective=settings.bind(objective, section.get("loss"), "loss"),
        trainable=lambda path: not path.startswith("perceptual."),
        averaged=lambda path: not adversarial.judges(path),
        loaded=loaded,
        finish=finish,
        preview=preview,
        **common,
    )


def perceptual_parameters(files: str) -> Params:
    """LPIPS's parameters, mapped from its files, under their paths in an autoencoder's stage. Raises InputError."""
    model = nnx.eval_shape(lambda: LPIPS(rngs=OneKey()))
    shapes = {path: value.shape for path, value in abstract_parameters(model).items()}
    return {f"perceptual.{path}": value for path, value in read_lpips(files, shapes).items()}


def _diffusion(section: Mapping[str, Any], workdir: AnyPath, **common: Any) -> Stage:
    schedule, prediction = process(section)

    @cache
    def sampler(graphdef: nnx.GraphDef) -> Generator:
        return _generator(section, common["data"], graphdef, {})

    def preview(state: TrainState, dataset: Dataset) -> np.ndarray:
        generator = sampler(state.graphdef)
        generator.params = {**state.ema, **state.frozen}
        prompts = what_to_ask(generator, dataset)[0][:PREVIEWED]
        if "lowres" not in generator.embedder_names:
            return generator(prompts)
        clips = np.concatenate(dataset.windows("train", per_clip=1, clips=range(len(prompts))))
        low = np.asarray(to_uint8(cascade.embedder(generator).shrink(to_unit(clips))))
        return generator(prompts[: len(low)], lowres=low)

    def loaded(state: TrainState, dataset: Dataset | Latents) -> Params:
        stored = {EMPTY: dataset.null["tokens"]} if EMPTY in state.frozen and isinstance(dataset, Latents) else {}
        return {**frozen_parameters(section, workdir, state.frozen), **stored}

    latents = common["data"].latents
    loss = objectives.OBJECTIVES[section.get("objective", common["name"])]
    objective = settings.bind(loss, section.get("loss"), "loss", schedule=schedule, prediction=prediction)
    frozen = ("codec.", "text.") if "pretrained" in section else ("codec.",)
    return Stage(
        init=lambda rngs: video_model(section, workdir, rngs=rngs),
        objective=objective,
        validate=by_noise_level(objective, schedule, common["train"].dtype),
        tokenize=tokenizer(section),
        trainable=lambda path: not path.startswith(frozen),
        loaded=loaded,
        preview=None if latents else preview,
        encoder=partial(encoder, section, workdir) if in_latents(section) else None,
        **common,
    )


def in_latents(section: Mapping[str, Any]) -> bool:
    """Whether a stage diffuses latents, of an autoencoder that an earlier stage has trained or of a folder's."""
    return bool(section.get("source") or section.get("pretrained"))


def encoder(section: Mapping[str, Any], workdir: AnyPath) -> Encoder:
    """What encodes the data of a diffusion stage. Raises InputError if its autoencoder was not trained yet."""
    graphdef, state = abstract_encoder(section, workdir)
    return merge(graphdef, frozen_parameters(section, workdir, abstract_parameters(state)))


def abstract_encoder(section: Mapping[str, Any], workdir: AnyPath) -> tuple[nnx.GraphDef, nnx.State]:
    """Its definition and the shapes of its parameters."""
    folders = "pretrained" in section and "text" in section.get("conditioning", {})

    def make() -> Encoder:
        rngs = OneKey()
        return Encoder(
            codec(section, workdir, rngs), surroundings(section["pretrained"]).embedder(rngs=rngs) if folders else None
        )

    return nnx.split(nnx.eval_shape(make))


def codec(section: Mapping[str, Any], workdir: AnyPath, rngs: nnx.Rngs) -> Codec:
    """The autoencoder of a diffusion stage, at random, with the statistics of its latents if they are known."""
    if "pretrained" in section:
        return surroundings(section["pretrained"]).codec(rngs)
    config = settings.construct(AutoencoderConfig, section["autoencoder"], "autoencoder")
    statistics = workdir / section["source"] / "latents.json"
    return Codec(Autoencoder(config, rngs=rngs), **read_statistics(statistics))


def to_encode(workdir: AnyPath, name: str | None) -> tuple[Dataset, Callable[..., Any], dict[str, Any], dict[str, Any]]:
    """(data set, `encode(batch)`, what cache.json says, what is kept beside the examples) of a stage of a run, see
    `write_latents`. Raises InputError."""
    config = uncached(read_config(workdir))
    stage = build(config, name or stage_names(config)[-1], workdir)
    about = stage.encoded_by()
    assert stage.encoder is not None
    dataset, made = stage.dataset(), stage.encoder()
    graphdef, state = nnx.split(made)
    reads = made.text is not None
    run = jit(lambda state, batch: encode_once(nnx.merge(graphdef, state), batch, reads))
    encode = lambda batch: jax.tree.map(np.asarray, run(state, batch))
    heldout = dataset.held_out(VALIDATION_CLIPS)
    null = encode({"tokens": np.asarray(stage.tokenize(""))[None]}) if reads and stage.tokenize else {}
    beside = {"heldout": heldout and encode(heldout), "null": {key: value[0] for key, value in null.items()}}
    return dataset, encode, {**about, "texts": list(dataset.texts), "num_classes": dataset.num_classes}, beside


def uncached(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a model that reads and makes videos, even if it was trained on latents."""
    return {**config, "data": {**config["data"], "latents": ""}}


def process(section: Mapping[str, Any]) -> tuple[Schedule, str]:
    """The diffusion's schedule and what the network predicts."""
    options = dict(section["diffusion"])
    prediction, name = options.pop("prediction", "eps"), options.pop("schedule", "linear")
    make = settings.choose(name, SCHEDULES, "config.diffusion.schedule")
    return settings.construct(make, options, "diffusion"), prediction


def tokenizer(section: Mapping[str, Any]) -> Callable[[str], np.ndarray] | None:
    """Captions to ids, the folder's or bytes, if the model reads text."""
    if "pretrained" in section:
        return surroundings(section["pretrained"]).tokenize
    text = section.get("conditioning", {}).get("text")
    return partial(byte_ids, length=text.get("length", 64)) if text else None


def video_model(section: Mapping[str, Any], workdir: AnyPath, *, rngs: nnx.Rngs) -> VideoModel:
    """The network of a diffusion stage at its random start; widths that follow from other parts are filled in."""
    kinds: dict[str, Any] = dict(EMBEDDERS)
    if "pretrained" in section:
        around = surroundings(section["pretrained"])
        kinds["text"] = around.stored if section["data"].get("latents") else around.embedder
    masked = section.get("loss", {}).get("frame_masks") is not None
    embedders = {
        name: settings.construct(
            settings.choose(name, kinds, "config.conditioning"), options, f"conditioning.{name}", rngs=rngs
        )
        for name, options in section.get("conditioning", {}).items()
    }
    model = dict(section["model"])
    made = None
    if in_latents(section):
        made = codec(section, workdir, rngs)
        channels = made.autoencoder.latent_channels
        if section["data"].get("images") and not made.per_frame("encoder"):
            raise InputError(
                f"config.data.images={section['data']['images']}: stills want an autoencoder that takes each frame by "
                "itself, this one looks over time; set it to 0"
            )
        if section["data"].get("latents"):
            made = StoredMoments(made.shift, made.scale)
    else:
        channels = model.pop("in_channels", 3)
    if "lowres" in embedders and embedders["lowres"].residual and process(section)[1] != "x0":
        raise InputError(
            "config.conditioning.lowres.residual=True adds to a video: set config.diffusion.prediction=x0, not "
            f"{process(section)[1]}"
        )
    if "lowres" in embedders and made is not None:
        raise InputError("config.conditioning.lowres is a video of pixels: a stage of latents cannot have it")
    unet = settings.construct(
        UNetConfig,
        model,
        "model",
        in_channels=channels + masked + channels * ("lowres" in embedders),
        out_channels=channels,
        tokens_dim=next((e.tokens_dim for e in embedders.values() if e.tokens_dim), None),
        vector_dim=sum(e.vector_dim or 0 for e in embedders.values()) or None,
    )
    return VideoModel(unet, embedders, made, masked=masked, remat=section["train"].get("remat", "none"), rngs=rngs)


def frozen_parameters(section: Mapping[str, Any], workdir: AnyPath, params: Params) -> Params:
    """What a diffusion stage does not train, under the paths in `params`: the folder's autoencoder and text encoder, or
    the averaged parameters of the autoencoder stage."""
    if "pretrained" in section:
        return surroundings(section["pretrained"]).parameters(params)
    wanted = {path.removeprefix(AUTOENCODER): value for path, value in params.items() if path.startswith(AUTOENCODER)}
    if not wanted:
        return {}
    folder = workdir / section["source"]
    if (folder / "done.json").exists() and not (folder / "latents.json").exists():
        raise InputError(
            f"{folder / 'latents.json'}, the statistics of its latents, is gone: remove {folder / 'done.json'}, and "
            "start the training again, which measures them"
        )
    with Checkpoints(workdir / section["source"] / "checkpoints", read_only=True) as checkpoints:
        return {AUTOENCODER + path: value for path, value in checkpoints.restore_ema(wanted).items()}


def check(stage: Stage, allow_changes: bool = False) -> None:
    """All that can be wrong before a stage runs: devices, batch, data, sizes. Raises InputError; compiles nothing."""
    mesh = sharding.make_mesh(**stage.mesh)
    dataset = stage.dataset()
    provenance.check_data(stage.folder, dataset, allow_changes)
    stage = fit(stage, dataset)
    for note in stage.notes:
        say(f"{stage.name}: {note}")
    if stage.train.validate_every and stage.validate is None:
        raise InputError(
            f"train.validate_every={stage.train.validate_every}: stage {stage.name} is not validated, only diffusion "
            "stages that train all their data are; leave it out"
        )
    sharding.check_batch(mesh, stage.train.batch_size, stage.train.accumulate)
    batch = abstract_batch(stage, dataset)
    loss, state = abstract_loss(stage)
    with jax.set_mesh(mesh):
        jax.eval_shape(loss, state, batch)
    params, _ = split(abstract_parameters(state), stage.trainable)
    jax.eval_shape(stage.optimizer.init, params)
    if (stage.folder / "checkpoints").is_dir():
        with Checkpoints(stage.folder / "checkpoints", read_only=True) as checkpoints:
            if checkpoints.latest() is not None:
                checkpoints.check(params)


def check_unchanged(config: Mapping[str, Any], workdir: AnyPath, allow_changes: bool = False) -> None:
    """Raises InputError if a stage of the run, also one that is not to be trained now, has other settings there."""
    for name in stage_names(config):
        made = provenance.settings_of(settings.stage_settings(config, name))
        provenance.check_settings(workdir / name, made, allow_changes)


def example_batch(config: Mapping[str, Any], stage: Stage) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch, from the config alone: the data need not be there."""
    section = settings.stage_settings(config, stage.name)
    size, data = stage.train.batch_size, stage.data
    channels = section.get("model", {}).get("in_channels", 3)
    shapes = {"video": ((size, data.frames, *data.hw, channels), np.uint8), "label": ((size,), np.int32)}
    if data.images:
        shapes["images"] = ((size, data.images, *data.hw, channels), np.uint8)
    if stage.tokenize:
        shapes["tokens"] = ((size, len(stage.tokenize(""))), np.int32)
    batch = {key: jax.ShapeDtypeStruct(*shape) for key, shape in shapes.items()}
    if data.latents:
        graphdef, state = abstract_encoder(section, stage.folder.parent)
        encode = lambda state, batch: encode_once(made := nnx.merge(graphdef, state), batch, made.text is not None)
        return jax.eval_shape(encode, state, batch)
    return encoded_shapes(stage, batch)


def read_config(workdir: AnyPath) -> dict[str, Any]:
    """The config that a run was started with. Raises InputError if `workdir` is not a run's."""
    return run_files.read_config(workdir)


def tuned(workdir: AnyPath) -> bool:
    """Whether a run's last stage tunes a folder's model."""
    config = read_config(workdir)
    return tunes(settings.stage_settings(config, stage_names(config)[-1]))


def dataset(workdir: AnyPath) -> Dataset:
    """The data of a run's last stage."""
    config = uncached(read_config(workdir))
    return build(config, stage_names(config)[-1], workdir).dataset()


def generator(workdir: AnyPath, name: str | None = None) -> Generator:
    """The model of a run's stage, by default the last one, after those whose videos it makes larger; with its averaged
    parameters. Raises InputError if it was not trained yet."""
    config = uncached(read_config(workdir))
    return trained(config, name, workdir) if name else chained(config, stage_names(config)[-1], workdir)


def chained(config: Mapping[str, Any], name: str, workdir: AnyPath) -> Generator:
    """The model of a stage, and below it those of the stages whose videos it makes larger."""
    made = trained(config, name, workdir)
    if low := cascade.below(settings.stage_settings(config, name)):
        made.below = chained(config, low, workdir)
    return made


def trained(config: Mapping[str, Any], name: str, workdir: AnyPath) -> Generator:
    """The model of one stage alone."""
    stage = build(config, name, workdir)
    section = settings.stage_settings(config, name)
    if stage.pretrained is not None:
        return tuned_generator(section, stage, source_of(section, config, workdir))
    model = stage.abstract()
    mesh = sharding.fitting_mesh(**stage.mesh)
    params, frozen = split(sharding.laid_out(mesh, abstract_parameters(model)), stage.trainable)
    with Checkpoints(stage.folder / "checkpoints", read_only=True) as checkpoints:
        params = checkpoints.restore_ema({path: value for path, value in params.items() if stage.averaged(path)})
    params = {**params, **frozen_parameters(section, workdir, frozen)}
    return _generator(section, stage.data, nnx.graphdef(model), params)


def _generator(section: Mapping[str, Any], data: DataConfig, graphdef: nnx.GraphDef, params: Params) -> Generator:
    schedule, prediction = process(section)
    every = section.get("loss", {}).get("every", 1)
    return Generator(
        graphdef,
        params,
        schedule,
        prediction,
        tokenizer(section),
        (-(-data.frames // every), *data.hw),
        3 if in_latents(section) else section["model"].get("in_channels", 3),
        settings.construct(SampleConfig, section.get("sample"), "sample"),
        sharding.fitting_mesh(**section.get("mesh", {})),
        section["train"].get("dtype"),
    )
