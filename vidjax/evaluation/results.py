"""What a finished run shows: samples, reconstructions, how good they are, and a page with all of it."""

import dataclasses
import importlib.util
import resource
import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vidjax import __version__
from vidjax.data.combinations import CAPTIONS
from vidjax.data.pipeline import Dataset
from vidjax.data.transforms import to_uint8, to_unit
from vidjax.data.video_writing import contact_sheet, slug, write_mp4
from vidjax.errors import printable
from vidjax.evaluation.page import write_report
from vidjax.generation import editing
from vidjax.generation.cascade import AnyGenerator
from vidjax.generation.generator import Generator
from vidjax.generation.output import write_index, write_samples
from vidjax.generation.prompts import what_to_ask
from vidjax.metrics import drawn, retrieval
from vidjax.metrics.reconstruction import psnr, sharpness, ssim
from vidjax.models.flow_autoencoder import FlowCodec
from vidjax.models.patch_pca import patch_pca
from vidjax.models.video_model import Codec
from vidjax.recipes import latent_flow, moving
from vidjax.recipes.run import Run
from vidjax.runtime.processes import lead
from vidjax.runtime.progress import count_off, watch
from vidjax.runtime.run_files import read_figures
from vidjax.runtime.storage import AnyPath, write_json
from vidjax.training.encoded import first_windows

MAX_CLIPS_TO_EVALUATE = 64  # of larger data sets a sample is looked at
MAX_WINDOWS_PER_CLIP = 1000  # all there are, for small data sets


def show(run: Run) -> dict[str, Any]:
    """Writes samples and reconstructions into the run's folder, figures into summary.json, all into report.html, and
    prints a table.

    All processes compute, the first one writes and compares.
    """
    workdir = run.workdir
    summary: dict[str, Any] = {"device": device(), "versions": versions()}
    summary["seconds"] = read_figures(workdir, "seconds")
    generator, dataset = run.generator(), run.dataset()
    began = time.perf_counter()
    if isinstance(generator, Generator) and isinstance(generator.codec, FlowCodec):
        summary |= latent_flow.show(workdir, generator, dataset)
    elif not run.tuned:
        summary |= samples_of(workdir, generator, dataset)
    else:
        assert isinstance(generator, Generator)
        clips, texts = first_windows(dataset)
        show_run = moving.show if "picture" in generator.embedder_names else editing.show
        summary |= show_run(workdir, generator, clips, texts)
    if not lead():
        return {}
    summary["seconds"]["sampling"] = round(time.perf_counter() - began, 1)
    here = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    summary["peak_memory_gb"] = max(here, *read_figures(workdir, "peak_memory_gb").values())
    summary["next"] = next_lines(workdir, generator.embedder_names, summary["samples"][0]["caption"])
    write_json(workdir / "summary.json", summary)
    page = write_report(workdir)
    print_table(summary)
    print(f"\nOpen {printable(str(page))}. Then:")
    for line in summary["next"]:
        print("  " + line)
    return summary


def samples_of(workdir: AnyPath, generator: AnyGenerator, dataset: Dataset) -> dict[str, Any]:
    """Samples what the model learned, and measures the samples and the reconstructions of held-out windows.

    Clips that training left out are not asked for; those that are too short to hold a window back are not measured.
    """
    used, about_data = data_of(dataset)
    prompts, names = asked_for(generator, dataset, used)
    per_caption = list(np.stack(repeated(generator, prompts), axis=1))
    small = len(dataset) <= MAX_CLIPS_TO_EVALUATE
    every = dataset.windows("heldout", clips=used) if dataset.heldout and small else []
    measured = [i for i, clip in zip(used, every) if len(clip)]
    heldout = [clip for clip in every if len(clip)]
    through, codec = [], generator.codec
    if isinstance(codec, Codec) and heldout:
        each = watch(heldout, "reconstructing held-out windows", "clip", len(heldout))
        through = [generator.reconstruct(list(clip)) for clip in each]
    if not lead():
        return {}
    how = generator.defaults
    about, seeds = {"model": str(workdir), **dataclasses.asdict(how)}, range(how.per_caption)
    entries = write_samples(workdir / "samples", names, per_caption, how.fps, seeds=seeds, about=about)
    write_index(workdir / "samples", entries)
    found: dict[str, Any] = {"samples": entries, "data": about_data}
    if isinstance(codec, Codec) and through:
        found |= reconstruction(workdir, codec, dataset, measured, heldout, *zip(*through))
    if set(names) <= CAPTIONS.keys():
        found["drawn"] = drawn.shares([(video, name) for name, videos in zip(names, per_caption) for video in videos])
    texts = dataset.texts if generator.tokenize and small else []
    if texts and set(names) <= set(texts):
        of, own = dict(zip(measured, heldout)), [texts.index(name) for name in names]
        if all(i in of and texts.count(texts[i]) == 1 for i in own):
            train = dataset.windows("train", per_clip=MAX_WINDOWS_PER_CLIP, clips=own)
            found |= likeness(per_caption, [of[i] for i in own], train)
        beside_real(workdir, entries, per_caption, real_windows(dataset, used, names), how.fps)
    return found


def data_of(dataset: Dataset) -> tuple[list[int], dict[str, Any]]:
    """Returns the numbers of the clips that can be used, and for the report what there is and why others cannot be; of
    large data sets both are of a sample."""
    looked = dataset.sample_of(MAX_CLIPS_TO_EVALUATE)
    used, dropped = dataset.survey(looked)
    names = dataset.clips if dropped and len(dataset) <= MAX_CLIPS_TO_EVALUATE else {}
    sizes, frames = Counter(f"{h}x{w}" for _, h, w, _ in used.values()), [t for t, *_ in used.values()]
    about = {"clips": len(dataset), "looked_at": len(looked), "used": len(used), "sizes": dict(sizes)}
    about |= {"frames": [min(frames), max(frames)], "fps": sorted({round(fps, 2) for *_, fps in used.values()})}
    about["dropped"] = [{"clip": names[i] if names else f"clip {i}", "why": why} for i, why in dropped.items()]
    return list(used), about


def asked_for(generator: AnyGenerator, dataset: Dataset, used: Sequence[int]) -> tuple[list[str | int], list[str]]:
    """Returns the prompts of `what_to_ask`, without captions that only clips have which cannot be used."""
    prompts, names = what_to_ask(generator, dataset)
    if "text" not in generator.embedder_names or len(dataset) > MAX_CLIPS_TO_EVALUATE or len(used) == len(dataset):
        return prompts, names
    texts = dataset.texts
    kept = [name for name in names if name not in texts or name in {texts[i] for i in used}]
    return list(kept), kept


def real_windows(dataset: Dataset, used: Sequence[int], names: Sequence[str]) -> list[np.ndarray]:
    """Reads the windows of each caption's clips: held out, or where nothing is, those of the training."""
    texts = dataset.texts
    of = [[i for i in used if texts[i] == name] for name in names]
    return [np.concatenate(dataset.windows("heldout" if dataset.heldout else "train", clips=clips)) for clips in of]


def repeated(generator: AnyGenerator, prompts: Sequence[str | int]) -> list[np.ndarray]:
    """Samples videos of all prompts, once per seed."""
    seeds = range(generator.defaults.per_caption)
    return [generator(prompts, seed=seed) for seed in count_off(seeds, f"sampling {len(prompts)} prompts, seed")]


def reconstruction(
    workdir: AnyPath,
    codec: Codec,
    dataset: Dataset,
    clips: Sequence[int],
    heldout: Sequence[np.ndarray],
    decoded: Sequence[np.ndarray],
    kl: Sequence[np.ndarray],
) -> dict[str, Any]:
    """Measures how well the autoencoder codes windows that nothing trained on and in how many bits, beside the PSNR of
    a patch PCA with as many latents; pictures. `clips` are the numbers of the clips with these windows; `decoded` and
    `kl` are a clip's windows as `Generator.reconstruct` has them."""
    train = np.concatenate([clip for clip in dataset.windows("train")])
    pca = patch_pca(train, codec.autoencoder.strides, codec.autoencoder.latent_channels)
    linear = [np.asarray(to_uint8(pca.reconstruct(to_unit(clip)))) for clip in heldout]
    folder = workdir / "reconstructions"
    folder.mkdir(exist_ok=True)
    entries = []
    names = dataset.clips
    for i, (clip, original, ours) in enumerate(zip(clips, heldout, decoded)):
        name = Path(names[clip]).stem
        entries.append({"name": name, "png": f"reconstructions/{i:02d}-{slug(name)}.png"})
        contact_sheet(workdir / entries[-1]["png"], [original[:1], ours[:1]], labels=["held out", "reconstruction"])
    mean = lambda videos: float(np.mean([psnr(a, b).mean() for a, b in zip(videos, heldout)]))
    figures = {"autoencoder_psnr": mean(decoded), "pca_psnr": mean(linear)}
    return {**figures, **rate_distortion(heldout, decoded, kl), "reconstructions": entries}


def rate_distortion(
    videos: Sequence[np.ndarray], decoded: Sequence[np.ndarray], kl: Sequence[np.ndarray]
) -> dict[str, float]:
    """Measures an autoencoder on windows: the KL of its posterior to N(0, 1) in bits per pixel, which is what its
    latents would cost beside that prior; SSIM and sharpness of what was decoded."""
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
    """Writes for each sample, into `clips/`, the window of its own clips that is nearest to it."""
    for entry, videos, clip in zip(entries, samples, heldout):
        if not len(clip) or "videos" not in entry:
            continue
        closest = [clip[psnr(clip, video[None]).argmax()] for video in videos]
        entry["real"] = [f"clips/{Path(name).with_suffix('.mp4').name}" for name in entry["videos"]]
        for name, window in zip(entry["real"], closest):
            write_mp4(workdir / name, window, fps)


def likeness(
    samples: Sequence[np.ndarray], heldout: Sequence[np.ndarray], train: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Measures whether the samples show the captioned clip, better than its mean picture does, and move as much.

    Against the held-out windows; `_all`: against all windows of the clips. `train_window_psnr` is what the training
    windows themselves would score as samples, the most that learning them by heart can give.
    """
    every = [np.concatenate(pair) for pair in zip(heldout, train)]
    return {
        "captions": len(samples),
        "retrieval": retrieval.retrieval(samples, heldout),
        "sample_psnr": retrieval.sample_psnr(samples, heldout),
        "mean_window_psnr": retrieval.mean_window_psnr(train, heldout),
        "train_window_psnr": retrieval.sample_psnr(train, heldout),
        "sample_psnr_all": retrieval.sample_psnr(samples, every),
        "mean_window_psnr_all": retrieval.mean_window_psnr(train, every),
        "motion_ratio": retrieval.motion_ratio(samples, heldout),
    }


def device() -> str:
    """Names the devices: how many, of which kind."""
    first = jax.devices()[0]
    return f"{jax.device_count()} x {first.device_kind}"


def versions() -> dict[str, str]:
    """Returns the versions of vidjax and of what its numbers depend on."""
    return {"vidjax": __version__} | {
        name: version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint", "grain")
    }


def next_lines(workdir: AnyPath, conditions: Sequence[str], prompt: str) -> list[str]:
    """Returns commands that a shell takes as they are, whatever the caption or the folder's name has in it."""
    words = ["python", "-m", "vidjax.sample", "--workdir", str(workdir)]
    words += [f"--prompt={prompt}"] if "text" in conditions else ["--label=0"] if "label" in conditions else []
    words += ["--image=PICTURE"] if "picture" in conditions else []
    commands = [[*words, "--num_steps=50", "--seed=1"]]
    if importlib.util.find_spec("tensorboard"):
        commands.append(["tensorboard", "--logdir", str(workdir)])
    return [printable(shlex.join(command)) for command in commands]


def print_table(summary: Mapping[str, Any]) -> None:
    """Prints the figures of summary.json, one a line, those that there are."""
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
        **{f"samples that show {what}": share for what, share in summary.get("drawn", {}).items()},
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
