"""Latent flow diffusion (Ni et al. 2023, LFDM): a stage that trains a flow autoencoder, and what the runs show whose
diffusion stage has one; that stage is as every other, see `recipes.diffusion`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vidjax import settings
from vidjax.data.pipeline import Dataset
from vidjax.data.transforms import to_uint8, to_unit
from vidjax.data.video_writing import contact_sheet
from vidjax.errors import InputError
from vidjax.generation.generator import Generator
from vidjax.generation.output import write_index, write_samples
from vidjax.models.flow_autoencoder import CHANNELS, FlowAutoencoder, FlowConfig
from vidjax.models.keys import OneKey
from vidjax.models.parameters import Params, abstract_parameters
from vidjax.models.vgg import LPIPS
from vidjax.recipes.autoencoder import CLIPS_MEASURED, perceptual_parameters
from vidjax.runtime import sharding
from vidjax.runtime.compiling import jit
from vidjax.runtime.processes import lead, on_first_process, run_over
from vidjax.runtime.storage import AnyPath, write_json
from vidjax.training.adversarial import judges
from vidjax.training.flow import flow_autoencoder as objective
from vidjax.training.stage import PREVIEWED, Stage, drawn
from vidjax.training.state import TrainState
from vidjax.weights import lfdm, lfdm_unet

UNET, CLASSES = "unet.", "label.table.embedding"  # paths of a model
SHOWN = 16  # clips whose first frames a finished run moves
LEAST = 0.02  # deviation of a channel that counts as moving: what is still keeps its scale


def flow_autoencoder(section: Mapping[str, Any], workdir: AnyPath, **common: Any) -> Stage:
    """Makes a flow autoencoder's stage; `common` are the fields of Stage that every stage has. It starts at random or
    from a released file, `pretrained`. Raises InputError."""
    config = settings.construct(FlowConfig, section["flow"], "flow")
    data, weights = common["data"], section.get("perceptual", "")
    if data.frames < 2 or data.images or data.latents:
        raise InputError(
            f"data.frames={data.frames}, data.images={data.images}, data.latents={data.latents!r}: a flow autoencoder "
            "learns from pairs of frames of videos; set 2 or more frames, no images and no latents"
        )
    model = nnx.eval_shape(lambda: FlowAutoencoder(config, rngs=OneKey()))
    FlowAutoencoder.check(model, *data.hw)
    common["data"] = data.in_multiples(2, model.multiple)
    found = perceptual_parameters(weights) if weights else {}
    if file := section.get("pretrained"):
        lfdm.check_config(config, file)
        shapes = {path: value.shape for path, value in abstract_parameters(model).items()}
        found |= lfdm.parameters(shapes, lfdm.open_file(file, f"config.stages.{common['name']}.pretrained"))
    elif config.norm == "batch":
        raise InputError(
            "config.flow.norm=batch has the statistics of a released file: name it, "
            f"--config.stages.{common['name']}.pretrained=FILE, or set config.flow.norm=group"
        )

    def init(rngs: nnx.Rngs) -> Any:
        model: Any = FlowAutoencoder(config, rngs=rngs)
        if weights:
            model.perceptual = LPIPS(rngs=rngs)
        return model

    def finish(state: TrainState, dataset: Dataset) -> None:
        each = 1 if data.window == "start" else None  # later windows of a clip may move otherwise
        windows = dataset.windows("train", each, dataset.sample_of(CLIPS_MEASURED))
        measured = {"shift": [0.0] * CHANNELS, "scale": [1.0] * CHANNELS}
        if config.unit:
            measured = flow_statistics(state.model(), windows, common["mesh"])
        on_first_process(lambda: write_json(common["folder"] / "latents.json", measured))

    @jit
    def beside(state: TrainState, video: jax.Array) -> jax.Array:
        model, x = state.model(), to_unit(video)
        return jnp.concatenate([video, to_uint8(model.decode(model.encode(x), x[:, 0]))], 2)

    def preview(state: TrainState, dataset: Dataset) -> np.ndarray:
        """Some clips, each above its first frame warped into the others."""
        clips = dataset.windows("train", per_clip=1, clips=range(min(PREVIEWED, len(dataset))))
        return run_over(sharding.make_mesh(**common["mesh"]), beside, state, np.concatenate(clips))

    return Stage(
        start=drawn(init, common["seed"], common["mesh"]),
        objective=settings.bind(objective, section.get("loss"), "loss"),
        trainable=lambda path: not judges(path),
        averaged=lambda path: not judges(path),
        loaded=lambda state, dataset: found,
        finish=finish,
        preview=preview,
        **common,
    )


def released_diffusion(params: Params, file: str, key: str) -> Params:
    """Reads the U-Net, and its condition for each class, from a released file that the setting `key` names, for the
    paths in `params`. Raises InputError for what does not fit."""
    tensors = lfdm.read_safely(file, key, "a diffusion of LFDM's")
    lfdm_unet.config_of(tensors, f"{key}={file}")
    shapes = {path.removeprefix(UNET): value.shape for path, value in params.items() if path.startswith(UNET)}
    found = {UNET + path: value for path, value in lfdm_unet.parameters(shapes, tensors).items()}
    if CLASSES in params:
        found[CLASSES] = lfdm_unet.class_vectors(tensors, params[CLASSES].shape, f"{key}={file}")
    return found


def flow_statistics(
    autoencoder: FlowAutoencoder, videos: Sequence[np.ndarray], mesh: Mapping[str, int]
) -> dict[str, list[float]]:
    """Measures `{"shift", "scale"}` for a FlowCodec: with them occlusion has mean 0 and, where it varies, variance 1;
    so has the flow, whose two directions have one scale."""
    graphdef, state = nnx.split(autoencoder)

    def sums(state: nnx.State, x: jax.Array) -> jax.Array:
        z = nnx.merge(graphdef, state).encode(to_unit(x))
        return jnp.stack([z.mean((1, 2, 3)), jnp.square(z).mean((1, 2, 3))], 1)

    run, place = jit(sums), sharding.make_mesh(**mesh)
    ways = sharding.batch_ways(place)
    clips = [clip for each in videos for clip in each]
    groups = [np.stack(clips[i : i + ways]) for i in range(0, len(clips), ways)]
    mean, square = np.concatenate([run_over(place, run, state, group) for group in groups]).mean(0).astype(np.float64)
    variance = square - mean**2
    variance[:2] = variance[:2].mean()
    return {"shift": (-mean).tolist(), "scale": (1 / np.sqrt(np.maximum(variance, LEAST**2))).tolist()}


def of_clips(generator: Generator, dataset: Dataset, count: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Samples videos of the first frames of some clips, under the clips' captions or classes; returns these, the clips
    and their names. The clips are held-out windows, where there are any."""
    chosen = dataset.sample_of(count)
    windows = dataset.windows("heldout" if dataset.heldout else "train", per_clip=1, clips=chosen)
    known, names = generator.embedder_names, []
    clips, prompts = [], []
    for index, found in zip(chosen, windows):
        if len(found):
            item = dataset.item(index)
            clips.append(found[0])
            names.append(item.text or f"clip {index}")
            prompts.append(item.text if "text" in known else item.label if "label" in known else "")
    if not clips:
        raise InputError(f"no clip has a window of data.frames={generator.size[0]} frames to take a first frame from")
    return generator(prompts, pictures=np.stack(clips)[:, 0]), np.stack(clips), names


def show(workdir: AnyPath, generator: Generator, dataset: Dataset) -> dict[str, Any]:
    """Writes videos of the clips' first frames, on sheets below the clips, into `workdir`/samples; returns entries for
    summary.json."""
    made, clips, names = of_clips(generator, dataset, SHOWN)
    if not lead():
        return {}
    how, folder = generator.defaults, workdir / "samples"
    about = {"model": str(workdir), **dataclasses.asdict(how)}
    entries = write_samples(folder, names, list(made[:, None]), how.fps, about=about)
    for entry, clip, video in zip(entries, clips, made):
        contact_sheet(workdir / entry["png"], [clip[None], video[None]], labels=["clip", entry["caption"]])
    write_index(folder, entries)
    return {"samples": entries}
