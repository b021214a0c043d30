"""A run of a recipe in a folder: trains it, reads its config once, hands out its stages, data and models."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import jax
import numpy as np
from flax import nnx

from vidjax import settings
from vidjax.data.pipeline import Dataset
from vidjax.errors import InputError
from vidjax.generation import cascade
from vidjax.generation.cascade import AnyGenerator, Cascade
from vidjax.generation.generator import Generator
from vidjax.models.parameters import abstract_parameters, split
from vidjax.recipes.build import build, check, check_unchanged, source_of
from vidjax.recipes.config import stage_names, tunes, uncached
from vidjax.recipes.diffusion import make_generator
from vidjax.recipes.frozen import frozen_parts
from vidjax.recipes.tuning import tuned_generator
from vidjax.runtime import run_files, sharding
from vidjax.runtime.compiling import jit
from vidjax.runtime.processes import on_first_process
from vidjax.runtime.storage import AnyPath, parse_path, write_json
from vidjax.runtime.workdir import open_workdir
from vidjax.training.checkpoint import Checkpoints
from vidjax.training.encoded import encode_once
from vidjax.training.loop import train as train_stage
from vidjax.training.stage import Stage
from vidjax.training.validation import VALIDATION_CLIPS


def train(
    config: Mapping[str, Any],
    workdir: str | AnyPath,
    stage: str | None = None,
    max_steps: int | None = None,
    log_every: int | None = None,
    allow_changes: bool = False,
) -> "Run":
    """Trains a recipe's stages in turn, or one of them, and goes on with what `workdir` has of them.

    All stages are checked before the first one trains. `max_steps` is the most per stage. `allow_changes` lets a stage
    that was begun with other settings go on. Raises InputError for a config that does not fit, before it compiles.
    """
    config = settings.checked(config)
    workdir = parse_path(workdir) if isinstance(workdir, str) else workdir
    on_first_process(lambda: open_workdir(workdir))
    check_unchanged(config, workdir, allow_changes)
    stages = [build(config, name, workdir, max_steps) for name in ([stage] if stage else stage_names(config))]
    for each in stages:
        check(each, allow_changes)
    on_first_process(lambda: write_json(workdir / "config.json", config))
    for each in stages:
        # Built again: a stage reads what the one before it has measured.
        train_stage(build(config, each.name, workdir, max_steps), log_every, allow_changes)
    return Run(workdir)


def read_config(workdir: AnyPath) -> dict[str, Any]:
    """Returns the config that a run was started with. Raises InputError if `workdir` is not a run's, or if it is
    damaged."""
    value = run_files.read_json(workdir / "config.json")
    try:
        return settings.checked(value)
    except InputError as error:
        raise InputError(f"{workdir / 'config.json'} is damaged ({error}): {run_files.REMEDY}") from None


class Run:
    """The run in `workdir`; a `stage` is by default the last one. Raises InputError if the folder holds no run."""

    def __init__(self, workdir: str | AnyPath):
        self.workdir = parse_path(workdir) if isinstance(workdir, str) else workdir
        self.config = read_config(self.workdir)  # as the run was started

    @cached_property
    def names(self) -> list[str]:
        """The stages, each after those that it starts from."""
        return stage_names(self.config)

    @cached_property
    def _videos(self) -> dict[str, Any]:
        return uncached(self.config)

    def section(self, stage: str | None = None) -> settings.Sections:
        """Returns the settings as a stage sees them, reading videos even if it was trained on stored latents."""
        return settings.stage_settings(self._videos, stage or self.names[-1])

    @property
    def tuned(self) -> bool:
        """Whether the last stage tunes the model of a folder."""
        return tunes(self.section())

    def stage(self, stage: str | None = None) -> Stage:
        """Builds a stage, which reads videos."""
        return build(self._videos, stage or self.names[-1], self.workdir)

    def dataset(self) -> Dataset:
        """Opens the data of the last stage."""
        dataset = self.stage().dataset()
        assert isinstance(dataset, Dataset)
        return dataset

    def generator(self, stage: str | None = None) -> AnyGenerator:
        """Loads a stage's model with its averaged parameters; without a name the last stage's, in a cascade with those
        whose videos it makes larger. Raises InputError if it was not trained yet."""
        if stage:
            return self._trained(stage)
        chain = [self.names[-1]]
        while low := cascade.below(self.section(chain[-1])):
            chain.append(low)
        generators = [self._trained(name) for name in chain[::-1]]
        return Cascade(generators) if len(generators) > 1 else generators[0]

    def _trained(self, stage: str) -> Generator:
        section, made = self.section(stage), self.stage(stage)
        if tunes(section):
            return tuned_generator(section, made, source_of(section, self._videos, self.workdir))
        model, mesh = made.abstract(), sharding.fitting_mesh(**made.mesh)
        params, frozen = split(sharding.with_sharding(mesh, abstract_parameters(model)), made.trainable)
        with Checkpoints(made.folder / "checkpoints", read_only=True) as checkpoints:
            params = checkpoints.restore_ema({path: value for path, value in params.items() if made.averaged(path)})
        parts = frozen_parts(section, self.workdir)
        return make_generator(section, parts, made.data, nnx.graphdef(model), {**params, **parts.parameters(frozen)})

    def encoding(self, stage: str | None = None) -> tuple[Dataset, Callable[..., Any], dict[str, Any], dict[str, Any]]:
        """Returns the data set, `encode(batch)`, what cache.json says, and what is kept beside the examples of a stage,
        see `data.latents.write_latents`. Raises InputError if the stage diffuses no latents."""
        made = self.stage(stage)
        about = made.encoded_by()
        assert made.encoder is not None
        dataset, encoder = made.dataset(), made.encoder()
        assert isinstance(dataset, Dataset)
        graphdef, state = nnx.split(encoder)
        reads = encoder.text is not None
        run = jit(lambda state, batch: encode_once(nnx.merge(graphdef, state), batch, reads))
        encode = lambda batch: jax.tree.map(np.asarray, run(state, batch))
        heldout = dataset.held_out(VALIDATION_CLIPS)
        null = encode({"tokens": np.asarray(made.tokenize(""))[None]}) if reads and made.tokenize else {}
        beside = {"heldout": list(map(encode, heldout)), "null": {key: value[0] for key, value in null.items()}}
        return dataset, encode, {**about, "texts": list(dataset.texts), "num_classes": dataset.num_classes}, beside
