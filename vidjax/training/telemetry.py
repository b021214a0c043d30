"""Reports a run while it trains: a progress bar or plain lines, metrics.jsonl, TensorBoard."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from vidjax.data.animation import encode_animation
from vidjax.errors import InputError
from vidjax.profiling import chips
from vidjax.runtime.compiling import count_compiled
from vidjax.runtime.log_file import LogFile
from vidjax.runtime.processes import lead, say
from vidjax.runtime.progress import format_duration
from vidjax.runtime.run_files import read_metrics
from vidjax.runtime.storage import AnyPath, Growing
from vidjax.training.event_file import EventFile

FLUSH_SECONDS = 30  # after which a bucket gets the metrics again


def peak_flops() -> float | None:
    """Peak bf16 FLOP/s of all devices together, or None where it is not known (CPUs)."""
    chip = chips.of_device(jax.devices()[0])
    return chip and chip.flops * jax.device_count()


class Telemetry:
    """Writes a stage's metrics, from the first process only: `metrics.jsonl` (one JSON a logged step), TensorBoard
    events, and a bar on a terminal or a line elsewhere. On resume the entries after the restored step are dropped."""

    def __init__(self, folder: AnyPath, stage: str, steps: int, start: int = 0, flops: float | None = None):
        self.stage, self.steps, self.flops = stage, steps, flops
        self._last, self._waited, self._compiled = (start, time.perf_counter()), 0.0, count_compiled()
        if not lead():
            return
        from tqdm import tqdm

        self._files, self._copied = Growing(folder), time.monotonic()
        path = self._files.here / "metrics.jsonl"
        kept = [line for line in read_metrics(folder / path.name) if line["step"] <= start]
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in kept))
        part.replace(path)
        self._file = LogFile(path)
        self._board = EventFile(self._files.here / "tensorboard", start + 1)
        say(f"{stage}: compiling, then steps {start + 1} to {steps}")
        self._bar = tqdm(total=steps, initial=start, desc=stage, unit="step") if sys.stderr.isatty() else None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for input. An accelerator may work meanwhile: `input_wait` bounds how long it starves."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Scalars of the step just done; since the last call, the rate, the share of the time that the loop waited for
        input, and the seconds in which programs were compiled. Raises InputError as `check_finite` does."""
        values = {key: float(value) for key, value in metrics.items()}
        (last, then), now = self._last, time.perf_counter()
        self._last = (step, now)
        if step > last:
            values["steps_per_second"] = (step - last) / (now - then)
            values["input_wait"], self._waited = self._waited / (now - then), 0.0
            if self.flops:
                values["tflops_per_second"] = self.flops * values["steps_per_second"] / 1e12
                if peak := peak_flops():
                    values["mfu"] = values["tflops_per_second"] * 1e12 / peak
        compiled, self._compiled = count_compiled() - self._compiled, count_compiled()
        if compiled.programs:
            values["compile_seconds"] = compiled.seconds
        check_finite(self.stage, step, values)
        if not lead():
            return
        self._file.append(f"{json.dumps({'step': step, **values})}\n".encode())
        value = self._board.summary.Value
        self._board.add(step, *(value(tag=key, simple_value=number) for key, number in values.items()))
        shown = {"loss": f"{values['loss']:.4g}", "steps/s": f"{values.get('steps_per_second', math.nan):.3g}"}
        shown |= {"compiled in": str(compiled)} if compiled.seconds >= 1 else {}
        if "steps_per_second" in values and not compiled.seconds:
            shown["left"] = format_duration((self.steps - step) / values["steps_per_second"])
        if self._bar is not None:
            self._bar.set_postfix(shown)
            self._bar.update(step - self._bar.n)
        else:
            say(f"{self.stage} {step}/{self.steps} " + " ".join(f"{k} {v}" for k, v in shown.items()))
        if time.monotonic() - self._copied > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """So that whoever goes on from a checkpoint that is saved now finds the metrics up to it."""
        if lead():
            self._file.flush()
            self._board.flush()
            self._files.copy()
            self._copied = time.monotonic()

    def videos(self, name: str, step: int, videos: np.ndarray, fps: float) -> None:
        """uint8 `[n, t, h, w, c]` side by side as one animation in TensorBoard."""
        if not lead():
            return
        strip = np.concatenate(list(videos), axis=2)
        summary = self._board.summary
        height, width, colorspace = strip.shape[1:]
        picture = summary.Image(
            height=height, width=width, colorspace=colorspace, encoded_image_string=encode_animation(strip, fps)
        )
        self._board.add(step, summary.Value(tag=name, image=picture))

    def close(self) -> None:
        """Closes the files and copies the rest to a bucket."""
        if lead():
            self._file.close()
            self._board.close()
            self._files.copy()
            if self._bar is not None:
                self._bar.close()


def not_finite(metrics: Mapping[str, Any]) -> list[str]:
    """Which of a step's loss and gradient norm are no finite number."""
    return [key for key in ("loss", "grad_norm") if key in metrics and not math.isfinite(float(metrics[key]))]


def check_finite(stage: str, step: int, metrics: Mapping[str, Any]) -> None:
    """Raises InputError if the loss or the gradient of a step is not a finite number."""
    if bad := not_finite(metrics):
        raise InputError(
            f"stage {stage}: the {' and the '.join(bad)} of step {step} is not finite; the newest checkpoint gave a "
            "finite loss: lower config.optimizer.learning_rate or set config.train.dtype=float32, and start again with "
            "--allow_changes to go on from there"
        )
