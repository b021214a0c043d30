"""The programs, run as a user runs them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from starts import program, start_each

from vidjax.weights import efficientnet

ROOT = Path(__file__).parents[1]
PIXELS = f"--config={ROOT}/tests/tiny.py:pixels"
NO_ATTENTION = "--config.model.attention_levels=(False,)"  # compiles in half the time
LATENT = (f"--config={ROOT}/tests/tiny.py:latent", NO_ATTENTION)


def losses(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})  # no step twice
    return {line["step"]: line["loss"] for line in lines}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, env):
    """A run of all stages of the small latent recipe."""
    workdir = tmp_path_factory.mktemp("run")
    done = program("main", *LATENT, f"--workdir={workdir}", env=env)
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def test_a_run_leaves_what_it_promises(trained):
    workdir, said = trained
    for stage in ("autoencoder", "diffusion"):
        assert list(losses(workdir / stage)) == [1, 2, 3, 4, 5, 6]
        assert (workdir / stage / "checkpoints" / "6").is_dir()
        assert "Total" in (workdir / stage / "parameters.txt").read_text()
        events = b"".join(path.read_bytes() for path in (workdir / stage / "tensorboard").iterdir())
        assert events.count(b"GIF89a") == 2  # every third of six steps
    lines = [json.loads(line) for line in (workdir / "diffusion" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation/loss" in line] == [3, 6]
    assert sum(name.startswith("validation/logsnr") for name in lines[-1]) == 8
    summary = json.loads((workdir / "summary.json").read_text())
    keys = {"autoencoder_psnr", "pca_psnr", "retrieval", "sample_psnr", "mean_window_psnr", "motion_ratio"}
    assert keys <= summary.keys()
    assert summary["autoencoder_psnr"] > summary["pca_psnr"] - 0.2  # the linear path starts there
    assert len(list((workdir / "samples").glob("*.png"))) == 8
    assert len(list((workdir / "samples").glob("*.mp4"))) == len(list((workdir / "clips").glob("*.mp4"))) == 16
    assert (workdir / "report.html").stat().st_size > 10_000
    assert "python -m vidjax.sample" in said


def test_the_latents_of_the_second_stage_have_unit_variance(trained):
    workdir, _ = trained
    from vidjax.recipes.run import Run

    generator, data = Run(workdir).generator(), Run(workdir).dataset()
    videos = np.concatenate(data.windows("train"))
    import jax

    model = generator.network.model(generator.params)
    latents = np.asarray(jax.jit(model.latents)(videos))
    assert abs(latents.mean()) < 1e-2
    assert abs(latents.std() - 1) < 1e-2


LARGE = ("--num_steps=2", "--height=64", "--width=64")  # enough for a mark


@pytest.fixture(scope="module")
def sampled(trained, env, tmp_path_factory):
    """Folders of videos that the program wrote: of one seed twice, of another, without a mark, and a longer one."""
    out = tmp_path_factory.mktemp("sampled")
    ask = ("sample", f"--workdir={trained[0]}", "--prompt=a tower", "--sampler=dpmpp_2m", *LARGE)
    flags = dict(
        a=["--seed=1"], b=["--seed=1"], c=["--seed=2"], bare=["--seed=1", "--nowatermark"], long=["--frames=9"]
    )
    for name, more in flags.items():
        done = program(*ask, *more, f"--out={out / name}", env=env)
        assert done.returncode == 0, done.stderr
    return out


def test_sample_writes_videos_that_its_seed_decides(sampled):
    a, b, c = (next((sampled / name).glob("*.png")).read_bytes() for name in "abc")
    assert a == b != c


def test_what_sample_writes_is_marked(sampled, env):
    """Also a video longer than the clips of the training, which is marked piece by piece."""
    videos = [next((sampled / name).glob("*.mp4")) for name in ("a", "long", "bare")]
    found = program("watermark", *(f"--video={video}" for video in videos), env=env)
    assert found.returncode == 0, found.stderr
    for line, mark in zip(found.stdout.splitlines(), (": marked", ": marked", ": not marked"), strict=True):
        assert f"{mark} (score" in line, found.stdout


def test_evaluate_judges_what_a_run_generates(trained, env, request, tmp_path):
    """Against windows of its data; by the smaller network, if it is installed."""
    name, ask = "frechet_efficientnet", ["--metrics=frechet_efficientnet", "--frames=1"]
    if efficientnet.installed() is None:
        files = request.getfixturevalue("network_files")
        name, ask = "fid", ["--metrics=fid", "--frames=1", f"--inception={files['inception']}"]
    done = program("evaluate", f"--workdir={trained[0]}", "--count=3", *ask, f"--json={tmp_path / 'f.json'}", env=env)
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "f.json").read_text())["metrics"][name]
    reference = made["reference"]
    assert made["videos"] == 3 and made["frames"] == [1, 1] and made["sizes"] == ["16x16"] == reference["sizes"]
    assert reference["videos"] >= 3 and reference["folder"] == f"training windows of {trained[0]}"
    assert made["value"] > 0
    bad = program("evaluate", f"--workdir={tmp_path}", *ask, env=env)
    assert bad.returncode == 1 and bad.stderr.count("error: ") == 1 and "Traceback" not in bad.stderr, bad.stderr


def test_sample_makes_a_video_longer_than_the_clips_of_the_training(trained, sampled, env):
    assert sorted(path.name for path in (sampled / "long").iterdir()) == [
        f"00-a-tower-seed0.{kind}" for kind in ("json", "mp4", "png", "txt")
    ]
    from vidjax.data.video_reading import Video

    with Video(sampled / "long" / "00-a-tower-seed0.mp4") as video:
        assert video.frames == 9
    ask = ("sample", f"--workdir={trained[0]}", "--prompt=a tower", "--frames=9", "--save_latents=z.npy")
    done = program(*ask, env=env)
    assert done.returncode == 1 and "--save_latents is for videos made at once" in done.stderr


def test_benchmark_counts_and_times(env, tmp_path):
    flags = ("--steps=2", "--layers=2", f"--trace={tmp_path / 'trace'}", f"--json={tmp_path / 'b.json'}")
    done = program("benchmark", PIXELS, *flags, env=env)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "b.json").read_text())["stages"]["diffusion"]
    assert all(figures[key] > 0 for key in ("step_seconds", "tflop_per_step", "parameters", "peak_memory_gb"))
    rows = figures["layers"]
    assert set(figures["attention"].values()) == {"plain"}  # small maps on a CPU
    assert "unet.up" in done.stdout and rows["unet.up"]["ms"] > 0
    assert sum(row["gflop"] for row in rows.values()) == pytest.approx(1e3 * figures["tflop_per_step"])
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
    bucket, nothing = start_each(
        "benchmark", [[PIXELS, "--json=s3://bucket/b.json"], [PIXELS, "--steps=0", "--layers=2"]], env
    )
    assert bucket.returncode == 1 and "--json=s3://bucket/b.json is no folder of a disk and no gs://" in bucket.stderr
    assert nothing.returncode == 1 and "--steps=0 runs nothing" in nothing.stderr


WRONG = {
    "did you mean 'size'": ["--config.data.sise=3"],
    "abc": ["--config.data.size=abc"],
    "3 devices": ["--config.mesh.data=3"],
    "devices": ["--config.stages.diffusion.train.batch_size=7", "--config.mesh.fsdp=2"],
    "did you mean 'diffusion'": ["--stage=difusion"],
    "there is no file": ["--config=configs/nothing.py"],
    "can't be written": ["--workdir=/proc/nothing"],
    "mount it and name the mount": ["--workdir=s3://bucket/run"],
    "finds no cluster": ["--distributed"],
    "/nowhere": ["--config.data.source=webvid", "--config.data.path=/nowhere"],
}


@pytest.fixture(scope="module")
def refused(env, tmp_path_factory):
    """{what should be said: (what became of it, the run's folder)}"""
    folders = [tmp_path_factory.mktemp("run") / "w" for _ in WRONG]
    cases = [[PIXELS, f"--workdir={folder}", *flags] for folder, flags in zip(folders, WRONG.values())]
    return dict(zip(WRONG, zip(start_each("main", cases, env), folders)))


@pytest.mark.parametrize("says", WRONG)
def test_bad_input_is_one_line_and_a_non_zero_exit(says, refused):
    done, folder = refused[says]
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and says in errors[0], done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "diffusion").exists()  # nothing was trained or compiled


OTHER = {  # what a finished run is not started again with
    "config.seed=3, not 9": ["--config.seed=9"],
    "config.model.channels=[16], not [32]": ["--config.model.channels=(32,)", "--allow_changes"],
    "config.autoencoder.groups=4, not 2": ["--config.autoencoder.groups=2", "--stage=autoencoder"],
    "the first one 'bunny.mp4', not the 48 clips": ["--config.data.source=shapes"],
    "stage autoencoder at step 6": ["--stage=diffusion"],
}


def test_a_finished_run_is_not_taken_for_another_one(trained, env, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained[0], workdir)
    config = (workdir / "config.json").read_bytes()
    latents = workdir / "autoencoder" / "latents.json"
    cases = [[*LATENT, f"--workdir={workdir}", *flags] for flags in OTHER.values()]
    refused = start_each("main", cases[:-1], env)
    latents.write_text(json.dumps(json.loads(latents.read_text()) | {"scale": 2.0}))
    refused += start_each("main", cases[-1:], env)
    for says, done in zip(OTHER, refused):
        assert done.returncode == 1 and says in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert "allow_changes" not in done.stderr  # it is finished
    assert (workdir / "config.json").read_bytes() == config


def test_a_loss_that_is_not_finite_stops_the_run(env, tmp_path):
    stage = "--config.stages.diffusion"
    flags = (f"{stage}.optimizer.learning_rate=1e30", f"{stage}.optimizer.warmup=0", "--stage=diffusion")
    flags += (f"{stage}.train.sample_every=0", f"{stage}.train.save_every=1")
    done = program("main", PIXELS, f"--workdir={tmp_path}", *flags, NO_ATTENTION, env=env)
    assert done.returncode == 1
    assert "is not finite" in done.stderr and "Traceback" not in done.stderr
    kept = [path.name for path in (tmp_path / "diffusion" / "checkpoints").iterdir()]
    assert kept == ["1.broken"]  # its own loss was finite: that of the parameters before


def test_help_imports_no_library_that_it_does_not_use(env):
    unused = ("jax", "av", "tensorflow", "torch", "transformers")
    code = f"import sys, vidjax, vidjax.main; print([m for m in {unused} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stderr
