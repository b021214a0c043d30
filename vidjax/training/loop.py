"""Trains one stage: create or restore, loop, finish. All randomness is a function of (seed, step): resume is exact."""

import contextlib
import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu.parameter_overview import get_parameter_overview
from flax import nnx

from vidjax.data.latents import Latents
from vidjax.data.pipeline import Dataset
from vidjax.errors import InputError
from vidjax.models.parameters import merge, parameters
from vidjax.runtime import sharding
from vidjax.runtime.compiling import count_compiled, jit
from vidjax.runtime.preemption import Notice
from vidjax.runtime.processes import batch_over, lead, on_first_process, say, scatter
from vidjax.runtime.storage import write_json
from vidjax.training import provenance
from vidjax.training.checkpoint import Checkpoints
from vidjax.training.encoded import Beside, Encoded, encode_dataset
from vidjax.training.stage import Stage, abstract_batches, fit, on_device, step_flops
from vidjax.training.state import TrainState
from vidjax.training.step import make_train_step
from vidjax.training.strategies import describe
from vidjax.training.telemetry import Telemetry, check_finite, not_finite
from vidjax.training.validation import VALIDATION_CLIPS


def prepare(
    stage: Stage, mesh: jax.sharding.Mesh, dataset: Dataset | Latents
) -> tuple[TrainState, Dataset | Latents | Encoded | Beside]:
    """Makes the state at step 0 and the source of batches; a stage that tunes may encode its clips here, once."""
    encoder, model = stage.start(True)
    source = dataset
    if stage.encode is not None:
        source = encode_dataset(stage.encode, encoder, dataset, stage.tokenize, stage.seed, stage.drop)
    if stage.prior is not None:
        source = Beside(source, stage.prior(encoder))
    return create_state(stage, mesh, dataset, model), source


def held_out(stage: Stage, dataset: Dataset | Latents) -> list[dict[str, Any]]:
    """Returns the batches to validate on, one for each bucket; none if the stage does not validate, or no clip has a
    held-out window."""
    if not (stage.train.validate_every and stage.validate):
        return []
    batches = dataset.held_out(VALIDATION_CLIPS)
    if not batches:
        say(f"{stage.name}: not validated, no clip has a window in its last data.heldout={stage.data.heldout} frames")
    return batches


def mean_flops(stage: Stage, dataset: Dataset | Latents) -> float:
    """Returns the FLOPs of a training step, of several buckets the mean over the steps."""
    each = [step_flops(stage, batch) for batch in abstract_batches(stage, dataset)]
    return float(np.average(each, weights=dataset.shares))


def abstract_state(stage: Stage) -> TrainState:
    """Returns the shapes of the state, without reading weights."""
    graphdef, state = nnx.split(stage.abstract())
    return jax.eval_shape(lambda state: at_step_0(stage, nnx.merge(graphdef, state)), state)


def at_step_0(stage: Stage, model: nnx.Module, **how: Any) -> TrainState:
    """Returns the state of a stage that begins with `model`; `how` as in `TrainState.create`."""
    how |= dict(averaged=stage.averaged, frozen_dtype=stage.train.frozen_dtype)
    return TrainState.create(model, stage.optimizer, stage.trainable, **how)


def step_of(stage: Stage, mesh: jax.sharding.Mesh, state: TrainState) -> Any:
    """The jitted training step, for a state (or its shapes) that lies like this one; it gives its own away."""
    options, layout = stage.train, jax.tree.map(lambda x: x.sharding, state)
    step = make_train_step(
        stage.objective,
        stage.optimizer,
        stage.seed,
        ema=options.ema,
        accumulate=options.accumulate,
        dtype=options.dtype,
    )
    return jit(step, donate_argnums=0, out_shardings=(layout, sharding.replicated(mesh)))


def create_state(stage: Stage, mesh: jax.sharding.Mesh, dataset: Dataset | Latents, model: nnx.Module) -> TrainState:
    """The state at step 0, each array where its sharding wants it; then what the stage loads over random numbers."""
    places = lambda tree: sharding.tree_sharding(mesh, tree)
    graphdef, own = nnx.graphdef(model), parameters(model)
    own = scatter(own, places(own))
    whole = places(jax.eval_shape(lambda own: at_step_0(stage, merge(graphdef, own)), own))
    run = lambda begin, params: jit(begin, out_shardings=(whole.opt_state, whole.ema))(params)
    state = scatter(at_step_0(stage, merge(graphdef, own), run=run), whole)
    for path, value in stage.loaded(state, dataset).items():
        part = state.params if path in state.params else state.frozen
        if part[path].shape != value.shape:
            raise InputError(
                f"{stage.name}: {path} is {value.shape} where it is loaded from, {part[path].shape} in the model"
            )
        part[path] = scatter(value.astype(part[path].dtype), part[path].sharding)
        if path in state.ema:
            state.ema[path] = scatter(jnp.copy(value.astype(part[path].dtype)), part[path].sharding)
    return state


def train(stage: Stage, log_every: int | None = None, allow_changes: bool = False) -> None:
    """Run a stage to its last step, from its newest checkpoint if there is one; a finished stage is left alone.

    Ends with done.json: steps, parameters, peak memory of this process, its seconds and those that compiling took.
    SIGTERM and SIGINT end the program after the step in hand (over processes: one or two later) and a checkpoint of it,
    with exit status 143 or 130. Raises InputError on bad input, on a loss that is not finite, and where a checkpoint is
    of other settings, data or weights than these, unless `allow_changes`.
    """
    began, compiled = time.perf_counter(), count_compiled()
    mesh = sharding.make_mesh(**stage.mesh)
    if stage.parent is not None:
        on_first_process(lambda: provenance.check_source(stage.folder, stage.parent, allow_changes))
    stage.folder.mkdir(parents=True, exist_ok=True)
    stopped = None
    saved = Checkpoints(stage.folder / "checkpoints", stage.train.keep, stage.train.keep_every)
    with Notice() as notice, saved as checkpoints, contextlib.ExitStack() as ending:
        start = checkpoints.latest() or 0
        done = stage.folder / "done.json"
        if start >= stage.train.steps and done.exists():
            say(f"{stage.name}: finished, {start} steps")
            return
        dataset = stage.dataset()
        stage = fit(stage, dataset)
        options = stage.train
        sharding.check_batch(mesh, options.batch_size, options.accumulate)
        on_first_process(lambda: provenance.write(stage.folder, stage.settings, dataset, stage.parent))
        state, source = prepare(stage, mesh, dataset)
        if start:
            state = checkpoints.restore(state)
            say(f"{stage.name}: continues from step {start}")
        step_fn = step_of(stage, mesh, state)
        overview(stage, state)
        telemetry = Telemetry(stage.folder, stage.name, options.steps, start, mean_flops(stage, dataset))
        ending.callback(telemetry.close)
        heldout = held_out(stage, dataset)
        heldout = [batch_over(mesh, on_device(batch), len(batch["label"])) for batch in heldout]
        batches = source.batches(options.batch_size, start, jax.process_index(), jax.process_count())
        every = log_every or options.log_every
        unproven = start  # the step of the newest checkpoint until the next step's loss, the first of its parameters

        def validate(state: TrainState) -> dict[str, float]:
            assert stage.validate is not None
            with jax.set_mesh(mesh):
                found = [{key: float(value) for key, value in stage.validate(state, each).items()} for each in heldout]
            clips = [len(each["label"]) for each in heldout]
            return {key: float(np.average([each[key] for each in found], weights=clips)) for key in found[0]}

        def show(step: int, state: TrainState) -> None:
            assert stage.preview is not None
            telemetry.videos("samples", step, stage.preview(state, dataset), stage.fps)

        for step in range(start + 1, options.steps + 1):
            with telemetry.waiting():
                batch = next(batches)
            with jax.set_mesh(mesh):
                state, metrics = step_fn(state, sharding.put_batch(mesh, on_device(batch)))
            if step == unproven + 1 and not_finite(metrics):
                checkpoints.discard(unproven)
            last, stops = step == options.steps, notice.stops_at(step)
            validated = bool(heldout) and (step % options.validate_every == 0 or last)
            if validated:
                metrics |= validate(state)
            if step % every == 0 or last or step == 1 or validated:
                telemetry.log(step, {**metrics, "unreadable_clips": len(getattr(dataset, "broken", ()))})
            if step % options.save_every == 0 or last or stops:
                check_finite(stage.name, step, metrics)
                telemetry.flush()
                checkpoints.save(state)
                unproven = step
            if stops:
                stopped = step
                break
            if stage.preview and options.sample_every and (step % options.sample_every == 0 or last):
                show(step, state)
        if not options.steps and not start:
            checkpoints.save(state)
        if stopped is None:
            stage.finish(state, dataset)
    if stopped is not None:
        say(f"{stage.name}: stopped at step {stopped} on {notice.signal.name}, saved; the same command goes on")
        sys.exit(notice.status)
    seconds = round(time.perf_counter() - began, 1)
    memory = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    figures = {"steps": options.steps, "parameters": count(state.params), "peak_memory_gb": memory}
    figures |= {"seconds": seconds, "compile_seconds": round((count_compiled() - compiled).seconds, 1)}
    on_first_process(lambda: write_json(done, figures))


def overview(stage: Stage, state: TrainState) -> None:
    """One line on what trains, for tuning a table of it; that of all parameters goes to parameters.txt."""
    if not lead():
        return
    frozen = count(state.frozen)
    print(
        f"{stage.name}: {count(state.params):,} parameters train" + (f", {frozen:,} are frozen" if frozen else ""),
        flush=True,
    )
    if stage.listed:
        print(describe(state.params), flush=True)
    table = lambda params: get_parameter_overview(params, include_stats=False) if params else "none"
    (stage.folder / "parameters.txt").write_text(f"trained\n{table(state.params)}\n\nfrozen\n{table(state.frozen)}\n")


def count(params: Mapping[str, Any]) -> int:
    """Counts the numbers in parameters."""
    return sum(int(np.prod(value.shape)) for value in params.values())
