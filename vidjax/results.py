"""What a finished run shows: samples, reconstructions, how good they are, and a page with all of it."""

import dataclasses
import importlib.util
import json
import resource
import shlex
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vidjax import __version__, editing, recipe, settings
from vidjax.data.pipeline import Dataset
from vidjax.data.transforms import to_uint8, to_unit
from vidjax.data.video_io import contact_sheet, slug, write_mp4
from vidjax.encoded import first_windows
from vidjax.errors import printable
from vidjax.generator import Generator, what_to_ask
from vidjax.metrics import windows
from vidjax.metrics.reconstruction import psnr, sharpness, ssim
from vidjax.models.patch_pca import patch_pca
from vidjax.processes import lead
from vidjax.storage import AnyPath
from vidjax.video_files import write_index, write_samples
from vidjax.video_model import Codec

SMALL = 64  # clips of a data set that is evaluated whole
EVERY = 1000  # windows a clip: all there are, for small data sets


def show(workdir: AnyPath) -> dict[str, Any]:
    """Samples and reconstructions into `workdir`, figures into summary.json, all into report.html; prints a table.

    All processes compute, the first one writes and compares.
    """
    from vidjax.report import write_report

    summary: dict[str, Any] = {"device": device(), "versions": versions()}
    summary["seconds"] = left_by_stages(workdir, "seconds")
    generator = recipe.generator(workdir)
    dataset = recipe.dataset(workdir)
    began = time.perf_counter()
    if not recipe.tuned(workdir):
        summary |= samples_of(workdir, generator, dataset)
    else:
        clips, texts = first_windows(dataset)
        summary |= editing.show(workdir, generator, clips, texts)
    if not lead():
        return {}
    summary["seconds"]["sampling"] = round(time.perf_counter() - began, 1)
    here = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    summary["peak_memory_gb"] = max(here, *left_by_stages(workdir, "peak_memory_gb").values())
    summary["next"] = next_lines(workdir, generator.embedder_names, summary["samples"][0]["caption"])
    settings.write_json(workdir / "summary.json", summary)
    page = write_report(workdir)
    print_table(summary)
    print(f"\nOpen {printable(str(page))}. Then:")
    for line in summary["next"]:
        print("  " + line)
    return summary


def samples_of(workdir: AnyPath, generator: Generator, dataset: Dataset) -> dict[str, Any]:
    """Samples of what the model learned, and how good they and the reconstructions of held-out windows are."""
    prompts, names = what_to_ask(generator, dataset)
    per_caption = list(np.stack(repeated(generator, prompts), axis=1))
    heldout = dataset.windows("heldout") if dataset.heldout and len(dataset) <= SMALL else []
    whole = heldout and all(map(len, heldout))
    through = [generator.reconstruct(list(clip)) for clip in heldout] if whole and generator.codec else []
    if not lead():
        return {}
    how = generator.defaults
    about, seeds = {"model": str(workdir), **dataclasses.asdict(how)}, range(how.per_caption)
    entries = write_samples(workdir / "samples", names, per_caption, how.fps, seeds=seeds, about=about)
    write_index(workdir / "samples", entries)
    found: dict[str, Any] = {"samples": entries}
    if whole:
        if generator.codec:
            found |= reconstruction(workdir, generator.codec, dataset, heldout, *zip(*through))
        if generator.tokenize and len(per_caption) == len(heldout):
            found |= likeness(per_caption, heldout, dataset.windows("train", per_clip=EVERY))
            beside_real(workdir, found["samples"], per_caption, heldout, generator.defaults.fps)
    return found


def repeated(generator: Generator, prompts: Sequence[str | int]) -> list[np.ndarray]:
    return [generator(prompts, seed=seed) for seed in range(generator.defaults.per_caption)]


def reconstruction(
    workdir: AnyPath,
    codec: Codec,
    dataset: Dataset,
    heldout: Sequence[np.ndarray],
    decoded: Sequence[np.ndarray],
    kl: Sequence[np.ndarray],
) -> dict[str, Any]:
    """How much the autoencoder says of windows that nothing trained on and how well, beside the PSNR of a patch PCA
    with as many latents; pictures. `decoded` and `kl` are a clip's windows as `Generator.reconstruct` has them."""
    train = np.concatenate([clip for clip in dataset.windows("train")])
    pca = patch_pca(train, codec.autoencoder.strides, codec.autoencoder.latent_channels)
    linear = [np.asarray(to_uint8(pca.reconstruct(to_unit(clip)))) for clip in heldout]
    folder = workdir / "reconstructions"
    folder.mkdir(exist_ok=True)
    entries = []
    for i, (clip, original, ours) in enumerate(zip(dataset.clips, heldout, decoded)):
        name = Path(clip).stem
        entries.append({"name": name, "png": f"reconstructions/{i:02d}-{slug(name)}.png"})
        contact_sheet(workdir / entries[-1]["png"], [original[:1], ours[:1]], labels=["held out", "reconstruction"])
    mean = lambda videos: float(np.mean([psnr(a, b).mean() for a, b in zip(videos, heldout)]))
    figures = {"autoencoder_psnr": mean(decoded), "pca_psnr": mean(linear)}
    return {**figures, **rate_distortion(heldout, decoded, kl), "reconstructions": entries}


def rate_distortion(
    videos: Sequence[np.ndarray], decoded: Sequence[np.ndarray], kl: Sequence[np.ndarray]
) -> dict[str, float]:
    """Of an autoencoder on windows: the KL of its posterior to N(0, 1) in bits a pixel, which is what its latents
    would cost beside that prior; SSIM and sharpness of what was decoded."""
    bits = np.mean(np.concatenate(kl).astype(float) / np.prod(videos[0].shape[1:4])) / np.log(2)
    figures = {"autoencoder_bits_per_pixel": float(bits)}
    for name, measure in (("ssim", ssim), ("sharpness", sharpness)):
        if min(videos[0].shape[2:4]) >= 11:  # the window of SSIM
            found = [measure(a, b).mean() for a, b in zip(decoded, videos)]
            figures[f"autoencoder_{name}"] = float(np.mean(found))
    return figures


def beside_real(
    workdir: AnyPath,
    entries: Sequence[dict[str, Any]],
    samples: Sequence[np.ndarray],
    heldout: Sequence[np.ndarray],
    fps: float,
) -> None:
    """Beside each sample, in `clips/`, the held-out window of its own clip that is nearest to it."""
    for entry, videos, clip in zip(entries, samples, heldout):
        closest = [clip[psnr(clip, video[None]).argmax()] for video in videos]
        entry["real"] = [f"clips/{Path(name).with_suffix('.mp4').name}" for name in entry["videos"]]
        for name, window in zip(entry["real"], closest):
            write_mp4(workdir / name, window, fps)


def likeness(
    samples: Sequence[np.ndarray], heldout: Sequence[np.ndarray], train: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Do the samples show the captioned clip, better than its mean picture does, and moving as much?

    Against the held-out windows; `_all`: against all windows of the clips. `train_window_psnr` is what the training
    windows themselves would score as samples, the most that learning them by heart can give.
    """
    every = [np.concatenate(pair) for pair in zip(heldout, train)]
    return {
        "captions": len(samples),
        "retrieval": windows.retrieval(samples, heldout),
        "sample_psnr": windows.sample_psnr(samples, heldout),
        "mean_window_psnr": windows.mean_window_psnr(train, heldout),
        "train_window_psnr": windows.sample_psnr(train, heldout),
        "sample_psnr_all": windows.sample_psnr(samples, every),
        "mean_window_psnr_all": windows.mean_window_psnr(train, every),
        "motion_ratio": windows.motion_ratio(samples, heldout),
    }


def left_by_stages(workdir: AnyPath, figure: str) -> dict[str, float]:
    """A figure of done.json by stage."""
    return {path.parent.name: json.loads(path.read_text())[figure] for path in sorted(workdir.glob("*/done.json"))}


def device() -> str:
    first = jax.devices()[0]
    return f"{jax.device_count()} x {first.device_kind}"


def versions() -> dict[str, str]:
    return {"vidjax": __version__} | {
        name: version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint", "grain")
    }


def next_lines(workdir: AnyPath, conditions: Sequence[str], prompt: str) -> list[str]:
    """Commands that a shell takes as they are, whatever the caption or the folder's name has in it."""
    words = ["python", "-m", "vidjax.sample", "--workdir", str(workdir)]
    words += [f"--prompt={prompt}"] if "text" in conditions else ["--label=0"] if "label" in conditions else []
    commands = [[*words, "--num_steps=50", "--seed=1"]]
    if importlib.util.find_spec("tensorboard"):
        commands.append(["tensorboard", "--logdir", str(workdir)])
    return [printable(shlex.join(command)) for command in commands]


def print_table(summary: Mapping[str, Any]) -> None:
    rows = {
        "autoencoder, held-out PSNR (dB)": summary.get("autoencoder_psnr"),
        "  patch PCA of the same size (dB)": summary.get("pca_psnr"),
        "  SSIM": summary.get("autoencoder_ssim"),
        "  sharpness, of the clips'": summary.get("autoencoder_sharpness"),
        "  KL of the latents, bits a pixel": summary.get("autoencoder_bits_per_pixel"),
        "captions whose samples find their clip": summary.get("retrieval"),
        "  of": summary.get("captions"),
        "samples, PSNR to the nearest window (dB)": summary.get("sample_psnr"),
        "  the clip's mean window (dB)": summary.get("mean_window_psnr"),
        "  the clip's training windows (dB)": summary.get("train_window_psnr"),
        "samples, among all windows (dB)": summary.get("sample_psnr_all"),
        "  the clip's mean window (dB)  ": summary.get("mean_window_psnr_all"),
        "motion of samples over clips": summary.get("motion_ratio"),
        "clip inverted and back, relative error": summary.get("inversion_error"),
        "  with guidance": summary.get("guided_error"),
        "  with guidance, null-text": summary.get("null_text_error"),
        **{f"{stage} (s)": value for stage, value in summary["seconds"].items()},
        "peak memory (GB)": summary["peak_memory_gb"],
    }
    print()
    for name, value in rows.items():
        if value is not None:
            print(f"{name:<42} {value:>8.2f}" if isinstance(value, float) else f"{name:<42} {value:>8}")
