"""A stage of a recipe as the training loop sees it: what trains, on what, and what is minimised."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from vidjax import settings
from vidjax.data.latents import Latents, fingerprint
from vidjax.data.pipeline import DataConfig, Dataset, make_dataset
from vidjax.diffusion.draws import Draws, draws_at
from vidjax.errors import InputError, check_range
from vidjax.models.keys import Keys, OneKey
from vidjax.models.parameters import Params, abstract_parameters, merge, parameters, split
from vidjax.profiling.flops import count_with_gradient, flops_by_scope
from vidjax.runtime import sharding
from vidjax.runtime.compiling import jit
from vidjax.runtime.platforms import platform
from vidjax.runtime.storage import AnyPath
from vidjax.training.encoded import Encoded, Encoder
from vidjax.training.state import TrainState
from vidjax.training.step import Objective

PREVIEWED = 4  # videos that training shows


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how large, how precise. `dtype` is what the networks compute in; parameters are fp32."""

    steps: int
    batch_size: int = 8
    accumulate: int = 1
    ema: float = 0.9999
    dtype: str = "float32"
    remat: str = "none"  # what the backward pass computes again, by a name in `models.unet.REMAT`
    log_every: int = 10
    save_every: int = 1000
    keep: int = 2
    keep_every: int | None = None
    sample_every: int | None = None  # videos into TensorBoard
    validate_every: int | None = None  # the loss on held-out windows, by noise level
    frozen_dtype: str | None = None  # what the part that does not train is kept in

    def __post_init__(self):
        for name in ("batch_size", "accumulate", "log_every", "save_every", "keep", "keep_every"):
            check_range("train.", 1, **{name: getattr(self, name)})
        for name in ("steps", "sample_every", "validate_every"):
            check_range("train.", 0, **{name: getattr(self, name)})
        check_range("train.", 0, 0.999999, ema=self.ema)
        for name in filter(None, (self.dtype, self.frozen_dtype)):
            if name not in ("float32", "bfloat16", "float16"):
                raise InputError(f"train.dtype={name!r} is not known; choose float32, bfloat16 or float16")


@dataclasses.dataclass(frozen=True)
class Stage:
    """What the training loop needs to know of one stage of a recipe.

    What is called between steps or after the last is called in all processes, with the state as it lies over them.
    `start(weights)` returns (encoder, model): the model with the parameters it starts from (`weights` false: shapes
    alone), see `drawn`; and what encodes its data once, by `encode(encoder, batch) -> batch`, if anything does.
    """

    name: str
    folder: AnyPath
    train: TrainConfig
    mesh: dict[str, int]
    seed: int
    data: DataConfig
    start: Callable[[bool], tuple[Any, Any]]
    objective: Objective
    optimizer: optax.GradientTransformation
    tokenize: Callable[[str], np.ndarray] | None = None
    trainable: Callable[[str], bool] = lambda path: True
    averaged: Callable[[str], bool] = lambda path: True  # of what trains: what later stages and other programs get
    loaded: Callable[[TrainState, Dataset], Params] = lambda state, dataset: {}  # what does not start at random
    finish: Callable[[TrainState, Dataset], None] = lambda state, dataset: None  # after the last step
    preview: Callable[[TrainState, Dataset], np.ndarray] | None = None  # uint8 videos [b, t, h, w, c], to look at
    validate: Callable[[TrainState, Any], dict[str, Any]] | None = None  # figures of a batch that nothing trains on
    fps: float = 15.0
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # what its numbers depend on, to be recorded
    notes: tuple[str, ...] = ()  # what of the config was changed to fit the data, for people
    listed: bool = False  # whether a table of what trains is printed
    parent: AnyPath | None = None  # the folder of the stage whose weights it reads

    encode: Callable[[Any, Any], Any] | None = None
    drop: float = 0.0  # the share of captions that it hides, of clips encoded once
    prior: Callable[[Any], Encoded] | None = None  # (encoder): examples of the class, beside each batch

    encoder: Callable[[], Encoder] | None = None  # what may encode its data beforehand, see vidjax.cache

    def __post_init__(self):
        settings.bind(sharding.make_mesh, self.mesh, "mesh")

    def dataset(self) -> Dataset | Latents:
        """Opens the data set, or the latents that were made of it. Raises InputError."""
        if self.data.latents:
            return Latents(self.data.latents, self.encoded_by())
        return make_dataset(self.data, seed=self.seed, tokenize=self.tokenize)

    def encoded_by(self) -> dict[str, Any]:
        """What latents depend on: examples and weights. Raises InputError if the stage has nothing to encode with."""
        if self.encoder is None:
            raise InputError(f"stage {self.name} does not diffuse latents: leave config.data.latents out")
        speed = ("latents", "workers", "prefetch", "cache")
        data = {key: value for key, value in dataclasses.asdict(self.data).items() if key not in speed}
        return {"data": data, "seed": self.seed, "weights": fingerprint(parameters(self.encoder()))}

    def abstract(self) -> nnx.Module:
        """The model with shapes for parameters (where they cost something)."""
        return self.start(False)[1]


def drawn(
    init: Callable[[nnx.Rngs], nnx.Module], seed: int, mesh: Mapping[str, int]
) -> Callable[[bool], tuple[None, nnx.Module]]:
    """Returns the `Stage.start` of a model with random parameters, each made where it lies on the mesh."""

    shapes = cache(lambda: nnx.eval_shape(lambda: init(OneKey())))

    def start(weights: bool) -> tuple[None, nnx.Module]:
        model = nnx.clone(shapes())
        if not weights:
            return None, model
        # numbers of the kind "rbg" compile in half the time of the default ones
        make = lambda: parameters(init(Keys(jax.random.key(seed, impl="rbg"))))
        whole = sharding.make_mesh(**mesh)
        places = sharding.tree_sharding(whole, abstract_parameters(model))
        if whole.size == 1 and platform() == "cpu":
            # one by one: those of one shape share a program, which a process compiles once, in milliseconds
            return None, merge(nnx.graphdef(model), jax.device_put(make(), places))
        return None, merge(nnx.graphdef(model), jit(make, out_shardings=places)())

    return start


def abstract_loss(stage: Stage) -> tuple[Callable[..., Any], Any]:
    """`loss(parameters, batch)` of a stage, and the shapes of the parameters."""
    graphdef, state = nnx.split(stage.abstract())
    return lambda state, batch: stage.objective(nnx.merge(graphdef, state), batch, first_draws(stage))[0], state


def first_draws(stage: Stage) -> Draws:
    """The draws of a first step, of seed 0."""
    return draws_at(jax.random.key(0), jnp.zeros((), jnp.int32), stage.train.batch_size)


def step_flops(stage: Stage, batch: Mapping[str, Any]) -> float:
    """FLOPs of a training step on a batch of these shapes: the loss and its gradient by what trains, which is three
    times the forward pass where everything does. Work done again under rematerialisation does not count."""
    return count_with_gradient(*plain_loss(stage, batch))


def step_flops_by_scope(stage: Stage, batch: Mapping[str, Any]) -> dict[str, float]:
    """The same by scope, as `flops_by_scope` has them."""
    loss, *args = plain_loss(stage, batch)
    return flops_by_scope(jax.grad(loss), *args)


def plain_loss(stage: Stage, batch: Mapping[str, Any]) -> tuple[Any, ...]:
    """`loss(trained, frozen, batch)` of a stage without rematerialisation, and the shapes of its arguments."""
    model = stage.abstract()
    if hasattr(model, "remat"):
        model.remat = "none"
    graphdef = nnx.graphdef(model)
    trained, frozen = split(abstract_parameters(nnx.state(model)), stage.trainable)
    at = lambda trained, frozen: merge(graphdef, trained, frozen)
    loss = lambda trained, frozen, batch: stage.objective(at(trained, frozen), batch, first_draws(stage))[0]
    return loss, trained, frozen, batch


def fit(stage: Stage, dataset: Dataset | Latents) -> Stage:
    """The stage with a batch that a small data set fills, and a note if that is smaller than the config's."""
    train, clips = stage.train, len(dataset)
    if stage.encode is not None or isinstance(dataset, Latents) or clips >= train.batch_size:
        return stage
    ways = sharding.batch_ways(sharding.make_mesh(**stage.mesh))
    size = clips // ways * ways
    if not size:
        raise InputError(f"{clips} clips for {ways} devices that share a batch: add clips, or take fewer devices")
    parts = max(n for n in range(1, train.accumulate + 1) if size // ways % n == 0)
    note = f"data.path has {clips} clips: train.batch_size={size} in place of {train.batch_size}"
    note += f", accumulate={parts} in place of {train.accumulate}" if parts != train.accumulate else ""
    fitted = dataclasses.replace(train, batch_size=size, accumulate=parts)
    return dataclasses.replace(stage, train=fitted, notes=(*stage.notes, note))


def abstract_batches(stage: Stage, dataset: Dataset | Latents) -> list[dict[str, jax.ShapeDtypeStruct]]:
    """Shapes of what the training step sees of a batch of each bucket, read off the first one."""
    size, found = stage.train.batch_size, []
    for bucket in range(len(dataset.shares)):
        # one example: a data set that is encoded once may be smaller than a batch
        batch = on_device(next(dataset.batches(1, bucket=bucket)))
        shapes = {k: jax.ShapeDtypeStruct((size, *v.shape[1:]), v.dtype) for k, v in batch.items()}
        found.append(encoded_shapes(stage, shapes))
    return found


def encoded_shapes(stage: Stage, batch: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch once it is encoded, if the stage does that."""
    if (encode := stage.encode) is None:
        return batch
    graphdef, state = nnx.split(stage.start(False)[0])
    shapes = jax.eval_shape(lambda state, batch: encode(nnx.merge(graphdef, state), batch), state, batch)
    return {**shapes, "prior": shapes} if stage.prior else shapes


def on_device(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A batch without the entries that only the host reads."""
    return {key: value for key, value in batch.items() if key not in ("index", "substituted")}
