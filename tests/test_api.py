"""The public names come without imports, and the code of docs/api.md runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_folder import MIDDLE, write_folder

import vidjax
from vidjax.data.shapes import draw
from vidjax.data.video_writing import write_mp4

MANUAL = Path(__file__).parents[1] / "docs" / "api.md"


def test_importing_the_package_imports_nothing_else(env):
    code = "import sys; before = set(sys.modules); import vidjax; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert not {"jax", "numpy", "flax", "absl"} & set(done.stdout.split()), done.stdout
    assert [name for name in done.stdout.split() if name.startswith("vidjax")] == ["vidjax"]


def test_every_public_name_is_there_and_in_the_manual():
    text = MANUAL.read_text()
    for name in {*vidjax._NAMES, *vidjax._MODULES}:
        assert getattr(vidjax, name) is not None and name in dir(vidjax)
        assert re.search(rf"\b{name}\b", text), name
    with pytest.raises(AttributeError, match="no attribute 'UNett'"):
        _ = vidjax.UNett


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    write_folder(folder / "stable-diffusion-v1-5", unet=MIDDLE)
    write_mp4(folder / "clip.mp4", draw("circle", "red", "left"), 8)
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for code in re.findall(r"```python\n(.*?)```", MANUAL.read_text(), re.DOTALL):
            exec(code, names)
    return names | {"folder": folder}


def test_a_notebook_reads_samples_and_writes(example):
    assert example["video"].shape == (1, 4, 16, 16, 3) and np.abs(example["video"]).max() <= 1
    assert vidjax.read_frames(example["folder"] / "edited.mp4").shape == (4, 16, 16, 3)
    for name in ("edited", "sampled"):
        assert np.isfinite(example[name]).all()


def test_a_dict_trains_and_its_run_samples(example, monkeypatch):
    """Two routes to a video: the run that trained, and the folder that it left."""
    monkeypatch.chdir(example["folder"])
    trained = example["run"].generator()([0, 3], num_steps=4, guidance_scale=2.0, seed=1)
    np.testing.assert_array_equal(example["videos"], trained)
    assert example["noise"].shape == example["latents"].shape == (2, 2, 8, 8, 3)


def test_an_autoencoder_keeps_shapes(example):
    assert example["again"].shape == example["video"].shape
    assert example["posterior"].mode.shape == (1, 2, 4, 4, 8)
