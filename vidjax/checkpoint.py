"""Checkpoints of one stage through Orbax: written behind the step, complete or not there at all."""

import dataclasses
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp

from vidjax.errors import InputError
from vidjax.limits import from_json
from vidjax.train_state import Params, TrainState


class Checkpoints:
    """The checkpoints in one folder, as a context manager: leaving it waits for the last one to be on disk.

    A checkpoint is three items: `state` (step, parameters, moments), `ema` (averaged parameters, for samplers) and
    `meta` (shapes by path of both). The last `keep` stay, and one in every `keep_every` steps.
    """

    def __init__(self, folder: str | Path, keep: int = 2, keep_every: int | None = None):
        self.folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every, enable_async_checkpointing=True
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Start saving; returns as soon as the arrays are copied off the device."""
        saved = state.saved()
        ema = saved.pop("ema")
        items = {
            "state": ocp.args.StandardSave(saved),
            "ema": ocp.args.StandardSave(ema),
            "meta": ocp.args.JsonSave({"parameters": shapes(state.params), "averaged": shapes(ema)}),
        }
        self._manager.save(int(state.step), args=ocp.args.Composite(**items))

    def restore(self, state: TrainState) -> TrainState:
        """The newest checkpoint, laid out like `state` (arrays, or shapes with shardings).

        Raises: InputError if there is none or it was written by another model.
        """
        step = self.check(state.params)
        saved = jax.tree.map(_target, state.saved())
        ema = saved.pop("ema")
        items = ocp.args.Composite(state=ocp.args.StandardRestore(saved), ema=ocp.args.StandardRestore(ema))
        read = self._manager.restore(step, args=items)
        return dataclasses.replace(state, **read["state"], ema=read["ema"])

    def restore_ema(self, params: Params) -> Params:
        """The averaged parameters alone."""
        step = self.check(params, "averaged")
        items = ocp.args.Composite(ema=ocp.args.StandardRestore(jax.tree.map(_target, params)))
        return self._manager.restore(step, args=items)["ema"]

    def check(self, params: Params, what: str = "parameters") -> int:
        """The newest step. Raises InputError if there is none, or it holds others than those as its "parameters", or as
        those that are "averaged"."""
        step = self.latest()
        if step is None:
            raise InputError(f"there is no complete checkpoint in {self.folder}: train that stage first")
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        there, here = meta.get(what, meta["parameters"]), shapes(params)
        for path in sorted(there.keys() | here.keys()):
            if there.get(path) != here.get(path):
                raise InputError(
                    f"the checkpoint in {self.folder} is of another model: {path} is {there.get(path, 'absent')} there "
                    f"and {here.get(path, 'absent')} here; use the config it was trained with, or another --workdir"
                )
        return step


def shapes(params: Params) -> dict[str, list[int]]:
    return {path: list(value.shape) for path, value in params.items()}


def _target(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def read_json(path: str | Path) -> Any:
    """Raises InputError if the file is missing: the run that should have written it did not get that far. And
    if it is damaged."""
    try:
        return from_json(Path(path).read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): take another --workdir") from None
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: is this the --workdir of a vidjax run that got that far?") from None
