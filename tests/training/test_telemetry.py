"""What a run writes while it trains survives kills and resumes, and stops at what is not a number."""

import io
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

from vidjax.errors import InputError
from vidjax.profiling.chips import CHIPS
from vidjax.training.telemetry import Telemetry, check_finite, peak_flops


def entries(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def log(folder, steps, start=0, **options):
    telemetry = Telemetry(folder, "diffusion", 10, start, **options)
    for step in steps:
        telemetry.log(step, {"loss": jax.numpy.float32(1 / step)})
    telemetry.close()


def test_a_resumed_run_leaves_one_line_a_step(tmp_path):
    log(tmp_path, [1, 2, 3, 4])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # killed here
    log(tmp_path, [3, 4, 5], start=2)
    assert [entry["step"] for entry in entries(tmp_path)] == [1, 2, 3, 4, 5]
    assert [np.float32(entry["loss"]) for entry in entries(tmp_path)] == [np.float32(1 / n) for n in (1, 2, 3, 4, 5)]


def test_lines_name_stage_step_and_loss(tmp_path, capsys):
    log(tmp_path, [4])
    first, line = capsys.readouterr().out.splitlines()
    assert first.startswith("diffusion: compiling") and line.startswith("diffusion 4/10 loss 0.25 steps/s ")
    assert re.search(r" left \d+ s$", line)


def test_flops_become_a_rate_in_proportion_to_the_steps(tmp_path):
    log(tmp_path, [5, 10], flops=3e12)
    for entry in entries(tmp_path):
        assert entry["tflops_per_second"] == pytest.approx(3 * entry["steps_per_second"], rel=1e-4)


def test_the_share_of_waiting_is_since_the_last_line(tmp_path):
    telemetry = Telemetry(tmp_path, "diffusion", 10)
    for step in (1, 2, 3):
        if step == 2:
            with telemetry.waiting():
                sum(range(10_000))
        telemetry.log(step, {"loss": 1.0})
    telemetry.close()
    first, second, third = (entry["input_wait"] for entry in entries(tmp_path))
    assert first == third == 0 < second < 1


@pytest.mark.parametrize("key", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_none_stops_the_run_before_it_is_written(tmp_path, key, value):
    telemetry = Telemetry(tmp_path, "diffusion", 10)
    telemetry.log(1, {"loss": 1.0})
    with pytest.raises(InputError, match=f"stage diffusion: the {key} of step 2 is not finite.*learning_rate"):
        telemetry.log(2, {"loss": 1.0, key: value})
    telemetry.close()
    assert [entry["step"] for entry in entries(tmp_path)] == [1]
    check_finite("diffusion", 1, {"loss": 1.0})


@pytest.mark.parametrize("channels", [1, 3])
def test_videos_arrive_in_tensorboard_frame_by_frame(tmp_path, channels):
    from tensorboardX.proto.event_pb2 import Event

    videos = np.random.default_rng(0).integers(0, 255, (2, 3, 8, 6, channels), dtype=np.uint8)
    telemetry = Telemetry(tmp_path, "diffusion", 10)
    telemetry.videos("samples", 1, videos, fps=8.0)
    telemetry.close()
    (path,) = (tmp_path / "tensorboard").glob("events*")
    data, images = path.read_bytes(), []
    while data:  # a TFRecord: length, its checksum, the event, its checksum
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        images += [value.image for value in event.summary.value]
        data = data[16 + length :]
    (image,) = images
    assert (image.height, image.width, image.colorspace) == (8, 12, channels)
    gif = Image.open(io.BytesIO(image.encoded_image_string))
    assert gif.n_frames == 3 and gif.size == (12, 8)


@pytest.mark.parametrize(
    ("kind", "name"), [("TPU v5", "v5p"), ("TPU v5 lite", "v5e"), ("NVIDIA H100 80GB HBM3", "h100")]
)
def test_the_peak_is_found_by_the_kind_that_jax_reports(monkeypatch, kind, name):
    """JAX calls a v5p "TPU v5" and a v5e "TPU v5 lite"."""

    class Device:
        device_kind = kind

    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert peak_flops() == 4 * CHIPS[name].flops
