"""Checkpoints of one stage through Orbax: written behind the step, complete or not there at all."""

import contextlib
import dataclasses
import re
import uuid
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp

from vidjax.errors import InputError, reason
from vidjax.models.parameters import Params
from vidjax.runtime import checksums
from vidjax.runtime.processes import is_loss, lead, on_first_process
from vidjax.runtime.run_files import REMEDY, read_json
from vidjax.runtime.storage import AnyPath, absolute, set_aside
from vidjax.training.state import TrainState

STEP = re.compile(r"0|[1-9][0-9]{0,17}")


class Checkpoints:
    """Saves and restores the checkpoints in one folder, as a context manager that waits at its end for the last one.

    A checkpoint is three items: `state` (step, parameters, moments), `ema` (averaged parameters, for samplers) and
    `meta` (shapes by path of both), and the checksums of their files. The last `keep` stay, and one in every
    `keep_every` steps. With `read_only=True` it needs no other process, writes nothing and skips broken checkpoints;
    otherwise it renames these to STEP.broken.
    """

    def __init__(self, folder: str | AnyPath, keep: int = 2, keep_every: int | None = None, *, read_only: bool = False):
        self.folder, self._read_only, self._saving = absolute(folder), read_only, 0
        if read_only:
            if wrong := self._unreadable():
                raise InputError(f"{wrong[0] / checksums.TIMES_FILE} is damaged: rename that checkpoint")
            me = jax.process_index()
            alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
            options = ocp.CheckpointManagerOptions(create=False, multiprocessing_options=alone)
        else:
            on_first_process(self._set_aside)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                keep_period=keep_every,
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            )
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, OSError) as error:  # of damaged files
            raise InputError(f"the checkpoints in {self.folder} cannot be read ({reason(error)}): {REMEDY}") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            with self._explained():
                self._manager.wait_until_finished()
        elif jax.process_count() == 1:  # over processes another one may be gone, for whom this would wait
            with contextlib.suppress(Exception):
                self._manager.wait_until_finished()
        if error is None or jax.process_count() == 1:
            self._manager.close()

    def latest(self) -> int | None:
        """Returns the step of the newest complete checkpoint; all processes call together, unless they only read."""
        return self._newest() if self._read_only else on_first_process(self._newest)

    def _newest(self) -> int | None:
        return next((step for step in self._steps() if not checksums.find_damage(self.folder / str(step))), None)

    def _steps(self) -> list[int]:
        """What is there and was finished, newest first: on a disk by its name, in a bucket by a mark."""
        there = (path for path in self._numbered() if ocp.utils.is_checkpoint_finalized(path))
        return sorted((int(path.name) for path in there), reverse=True)

    def _numbered(self) -> list[AnyPath]:
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return [path for path in found if STEP.fullmatch(path.name) and path.is_dir()]

    def _unreadable(self) -> list[AnyPath]:
        """Those whose note of their time keeps Orbax from reading any."""
        return [path for path in self._numbered() if checksums.find_damaged_times(path / checksums.TIMES_FILE)]

    def _set_aside(self) -> None:
        """Rename what is newer than the newest whole one, and say so."""
        for path in self._unreadable():
            path.rename(path.with_name(f"{path.name}.broken-{uuid.uuid4().hex[:8]}"))
            print(
                f"warning: the checkpoint {path} is broken ({checksums.TIMES_FILE} is damaged): set aside", flush=True
            )
        for step in self._steps():
            whole = self.folder / str(step)
            damage = checksums.find_damage(whole, contents=True)
            if not damage:
                return
            self._rename(whole, damage)

    def _rename(self, whole: AnyPath, damage: str) -> None:
        aside = set_aside(whole, "broken")
        print(f"warning: the checkpoint {whole} is broken ({damage}): set aside as {aside.name}", flush=True)

    def _seal(self) -> None:
        """The checksums into a checkpoint that is written but not yet finished."""
        if lead():
            for folder in self.folder.iterdir():
                if re.fullmatch(rf"{self._saving}(\..*tmp.*)?", folder.name):
                    checksums.write(folder)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Orbax's errors of saving, in one line."""
        try:
            yield
        except Exception as error:
            if is_loss(error):
                raise
            try:
                there = self._newest()
                left = "there is none yet" if there is None else f"that of step {there} is whole"
            except Exception:
                left = "the bucket does not answer"
            raise InputError(
                f"a checkpoint could not be written to {self.folder} ({reason(error)}); {left}: make room, and start "
                "the same command again"
            ) from error

    def save(self, state: TrainState) -> None:
        """Starts to save; returns as soon as the arrays are copied off the device."""
        saved = state.saved()
        ema = saved.pop("ema")
        items = {
            "state": ocp.args.StandardSave(saved),
            "ema": ocp.args.StandardSave(ema),
            "meta": ocp.args.JsonSave({"parameters": shapes(state.params), "averaged": shapes(ema)}),
        }
        with self._explained():
            self._manager.wait_until_finished()
            self._saving = int(state.step)
            self._manager.save(self._saving, args=ocp.args.Composite(**items))

    def discard(self, step: int) -> None:
        """Sets a checkpoint aside whose parameters give no finite loss, if it is there."""
        with self._explained():
            self._manager.wait_until_finished()
        whole = self.folder / str(step)
        on_first_process(lambda: self._rename(whole, "its parameters give no finite loss") if whole.exists() else None)

    def restore(self, state: TrainState) -> TrainState:
        """Reads the newest checkpoint, laid out like `state` (arrays, or shapes with shardings).

        Raises: InputError if there is none, it was written by another model, or cannot be read.
        """
        step = self.check(state.params)
        saved = jax.tree.map(_target, state.saved())
        ema = saved.pop("ema")
        items = ocp.args.Composite(state=ocp.args.StandardRestore(saved), ema=ocp.args.StandardRestore(ema))
        read = self._read(step, items)
        return dataclasses.replace(state, **read["state"], ema=read["ema"])

    def restore_ema(self, params: Params) -> Params:
        """Reads the averaged parameters alone."""
        step = self.check(params, "averaged")
        items = ocp.args.Composite(ema=ocp.args.StandardRestore(jax.tree.map(_target, params)))
        return self._read(step, items)["ema"]

    def _read(self, step: int, items: ocp.args.Composite) -> Any:
        try:
            return self._manager.restore(step, args=items)
        except Exception as error:
            if is_loss(error):
                raise
            raise InputError(
                f"the checkpoint {self.folder / str(step)} cannot be read ({reason(error)}): use the config it was "
                "written with; or rename it, and the one before is taken"
            ) from error

    def check(self, params: Params, what: str = "parameters") -> int:
        """Returns the newest step. Raises InputError if there is none, or if its "parameters" (or by `what` those that
        are "averaged") have other paths or shapes than `params`."""
        step = self.latest()
        if step is None:
            raise InputError(f"there is no complete checkpoint in {self.folder}: train that stage first")
        if step != self._steps()[0]:
            print(f"warning: {self.folder / str(self._steps()[0])} is broken: step {step} is read", flush=True)
        there, here = shapes_in(read_json(self.folder / str(step) / "meta" / "metadata"), what), shapes(params)
        for path in sorted(there.keys() | here.keys()):
            if there.get(path) != here.get(path):
                raise InputError(
                    f"the checkpoint in {self.folder} is of another model: {path} is {there.get(path, 'absent')} there "
                    f"and {here.get(path, 'absent')} here; use the config it was trained with, or another --workdir"
                )
        return step


def shapes(params: Params) -> dict[str, list[int]]:
    """Returns shapes by path, as a checkpoint keeps them."""
    return {path: list(value.shape) for path, value in params.items()}


def _target(leaf: Any) -> jax.ShapeDtypeStruct:
    """Where it is to lie: as `leaf` does, or a bare shape on one device of this process."""
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def shapes_in(meta: Any, what: str) -> Mapping[str, Any]:
    """The shapes by path that a checkpoint's `meta` has of `what`; those of its parameters, if it has no such part."""
    for part in (what, "parameters"):
        if isinstance(meta, Mapping) and isinstance(meta.get(part), Mapping):
            return meta[part]
    return {}
