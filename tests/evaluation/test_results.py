"""What a finished run shows are the samples themselves, and beside each the held-out window that is nearest to it."""

import dataclasses
import importlib.util
import json
import shlex
import subprocess
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vidjax.data.combinations import CAPTIONS, SPLITS, show
from vidjax.data.pipeline import DataConfig, make_dataset
from vidjax.data.video_reading import probe, read_frames
from vidjax.data.video_writing import slug
from vidjax.errors import InputError
from vidjax.evaluation.page import write_report
from vidjax.evaluation.results import beside_real, next_lines, print_table, rate_distortion, samples_of
from vidjax.evaluation.videos import in_folder
from vidjax.generation.editing import write_edits
from vidjax.generation.generator import Generator
from vidjax.generation.options import SampleConfig
from vidjax.generation.output import write_index, write_samples
from vidjax.generation.prompts import what_to_ask
from vidjax.models.autoencoder import Posterior
from vidjax.runtime.storage import write_json


def clips(*levels, frames=4):
    """Videos of one grey each, [n, t, h, w, c]."""
    return np.stack([np.full((frames, 16, 16, 3), level, np.uint8) for level in levels])


def film(path):
    return read_frames(path, range(probe(path).frames))


def test_each_sample_is_a_file_with_what_made_it_beside_it(tmp_path):
    names = ["A man / a <b>plan</b>", "a man, a b plan b"]
    given = dict(seeds=[3, 7], about={"num_steps": 9})
    entries = write_samples(tmp_path / "samples", names, [clips(10, 200), clips(90, 40)], 8.0, **given)
    assert [entry["caption"] for entry in entries] == names
    assert len({name for entry in entries for name in entry["videos"]}) == 4  # though both captions make one file name
    for entry, levels in zip(entries, [(10, 200), (90, 40)]):
        sheet = np.asarray(Image.open(tmp_path / entry["png"]))
        for name, seed, level in zip(entry["videos"], (3, 7), levels, strict=True):
            assert film(tmp_path / name).shape == (4, 16, 16, 3)
            np.testing.assert_allclose(film(tmp_path / name), level, atol=3)
            assert (sheet[..., :3] == level).all(-1).sum() >= 4 * 16 * 16  # all its frames, as they are
            made = json.loads((tmp_path / name).with_suffix(".json").read_text())
            assert made["prompt"] == entry["caption"] and made["seed"] == seed and made["num_steps"] == 9
            assert f"seed{seed}" in name and (made["frames"], made["height"], made["fps"]) == (4, 16, 8.0)


@pytest.mark.parametrize("kind", ["gif", "webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_samples_may_be_animated_pictures(kind, channels, tmp_path):
    video = np.concatenate([clips(level, frames=1)[0] for level in (10, 90, 200)])[..., :channels]
    (entry,) = write_samples(tmp_path / "s", ["a"], [video[None]], 8.0, kind=kind)
    with Image.open(tmp_path / entry["videos"][0]) as picture:
        assert picture.format == kind.upper() and picture.n_frames == 3
        for i, level in enumerate((10, 90, 200)):
            picture.seek(i)
            np.testing.assert_allclose(np.asarray(picture.convert("L")), level, atol=3)


def test_images_make_sheets_and_no_films(tmp_path):
    (entry,) = write_samples(tmp_path / "s", ["class 3"], [clips(10, 200, frames=1)], 8.0, seeds=[0, 1])
    assert set(entry) == {"caption", "png"} and not list(tmp_path.rglob("*.mp4"))


def test_evaluation_counts_single_videos_of_the_newest_samples(tmp_path, capsys):
    folder = tmp_path / "samples"
    for names in (["old", "kept"], ["new", "kept"]):
        write_index(folder, write_samples(folder, names, [clips(10, 200), clips(90, 40)], 8.0, seeds=[0, 1]))
    items = list(in_folder(str(folder), "videos"))
    assert sorted(item.text for item in items) == ["kept", "kept", "new", "new"]
    with items[0].open() as video:
        assert (video.height, video.width) == (16, 16)
    assert "2 other videos" in capsys.readouterr().out
    (folder / "samples.json").write_text("[")
    with pytest.raises(InputError, match=r"samples\.json is damaged"):
        in_folder(str(folder), "videos")


def test_an_edit_and_its_source_are_files_of_their_own(tmp_path):
    source, edits = clips(10)[0], [clips(200)[0], clips(90)[0]]
    entries = write_edits(tmp_path, source, ["a", "b"], edits, 8.0)
    for entry, level in zip(entries, (200, 90)):
        (name,) = entry["videos"]
        np.testing.assert_allclose(film(tmp_path / name), level, atol=3)
        np.testing.assert_allclose(film(tmp_path / entry["source"]), 10, atol=3)
        sheet = np.asarray(Image.open(tmp_path / entry["png"]))[..., :3]
        assert all((sheet == shown).all(-1).sum() >= 4 * 16 * 16 for shown in (10, level))
    assert {item.text for item in in_folder(str(tmp_path / "samples"), "videos")} == {"a", "b"}


def test_a_second_seed_leaves_the_first_ones_files(tmp_path):
    for seed in (0, 1):
        write_samples(tmp_path / "more", ["a cat"], [clips(10 + 100 * seed)], 8.0, seeds=[seed])
    for seed in (0, 1):
        np.testing.assert_allclose(film(tmp_path / "more" / f"00-a-cat-seed{seed}.mp4"), 10 + 100 * seed, atol=3)


def test_two_programs_may_write_the_same_samples_at_once(tmp_path):
    """A reader, and each of them, sees whole files; nothing is left over."""
    errors = []

    def write():
        try:
            for _ in range(4):
                write_samples(tmp_path / "more", ["a cat"], [clips(10, 200)], 8.0, seeds=[0, 1])
                film(tmp_path / "more" / "00-a-cat-seed1.mp4")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    kinds = [f"00-a-cat-seed{seed}.{kind}" for seed in (0, 1) for kind in ("json", "mp4", "txt")]
    assert sorted(path.name for path in (tmp_path / "more").iterdir()) == sorted([*kinds, "00-a-cat.png"])


def test_the_nearest_window_of_the_own_clip_stands_beside_each_sample(tmp_path):
    samples, heldout = [clips(100, 180), clips(30)], [clips(20, 110, 170), clips(100, 40)]
    entries = write_samples(tmp_path / "samples", ["a"], samples[:1], 8.0, seeds=[0, 1])
    entries += write_samples(tmp_path / "samples", ["b"], samples[1:], 8.0)
    beside_real(tmp_path, entries, samples, heldout, 8.0)
    for entry, levels in zip(entries, ([110, 170], [40])):
        for name, level in zip(entry["real"], levels, strict=True):
            np.testing.assert_allclose(film(tmp_path / name), level, atol=3)


def test_slugs_are_safe_file_names():
    assert slug("../../A b_C!") == "a-b-c" and slug("日本") == "sample" and len(slug("x" * 500)) <= 48


def test_the_rate_is_the_posteriors_kl_in_bits_a_pixel():
    """Of mean m and variance 1 it is m^2 / 2 nats a latent."""
    posterior = Posterior(jnp.full((2, 2, 2, 2, 3), 2.0), jnp.zeros((2, 2, 2, 2, 3)))
    noise = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), dtype=np.uint8)
    figures = rate_distortion([noise], [noise], [np.asarray(posterior.kl())])
    assert np.isclose(figures["autoencoder_bits_per_pixel"], 2 * 24 / np.log(2) / (4 * 16 * 16))
    assert np.isclose(figures["autoencoder_ssim"], 1) and figures["autoencoder_sharpness"] == 1


@pytest.mark.parametrize("conditions, asks", [(("text",), ["--prompt=a cat"]), (("label",), ["--label=0"]), ((), [])])
def test_the_next_command_asks_for_what_the_model_knows(conditions, asks):
    line = next_lines(Path("w"), conditions, "a cat")[0]
    expected = ["python", "-m", "vidjax.sample", "--workdir", "w", *asks, "--num_steps=50", "--seed=1"]
    assert shlex.split(line) == expected


EVIL = ["a cat$(touch X)", "`touch X`", "a'b\"c", "--out=/etc", "a\nb; touch X #", "\x1b[2Jgone", "!x $HOME *"]


@pytest.mark.parametrize("text", EVIL)
def test_a_shell_takes_the_next_command_as_it_is_meant(text, tmp_path):
    line = next_lines(tmp_path / f"my run {text.replace('/', '')}", ("text",), text)[0]
    assert line.isprintable()
    echo = line.replace("python -m vidjax.sample", "printf %s\\\\n", 1)
    said = subprocess.run(["bash", "-c", echo], cwd=tmp_path, capture_output=True, text=True)
    assert f"--prompt={''.join(c if c.isprintable() else ' ' for c in text)}" in said.stdout.split("\n"), said
    assert not list(tmp_path.iterdir())


def test_a_program_is_named_only_where_it_is_installed(monkeypatch):
    for installed in (True, False):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=installed: found or None)
        assert any(line.startswith("tensorboard ") for line in next_lines(Path("w"), (), "")) == installed


class Draughtsman(Generator):
    """A perfect model of drawn clips: it draws what the caption says, but `wrong` properties of its own."""

    embedder_names, codec, tokenize = ("text",), None, staticmethod(str.encode)

    def __init__(self, prompts, **wrong):
        self.defaults, self.wrong = SampleConfig(prompts=prompts, per_caption=2), wrong

    def __call__(self, prompts, seed):
        found = []
        for prompt in prompts:
            what = dataclasses.replace(CAPTIONS[prompt], **self.wrong)
            start = (0.4 + 0.1 * seed, 0.5)
            found.append(show(what, start, frames=4))
        return np.stack(found)


def test_a_recipes_prompts_are_sampled_and_judged_though_no_clip_has_them(tmp_path, capsys):
    asked = [each.caption for each in SPLITS["heldout"][:3]]
    dataset = make_dataset(DataConfig(source="shapes", frames=4, size=32), seed=0)  # few clips, of other captions
    judged = {}
    for name, wrong in {"right": {}, "wrong": dict(direction="up", size="large")}.items():
        (tmp_path / name).mkdir()
        model = Draughtsman("; ".join(asked), **wrong)
        assert what_to_ask(model, dataset) == (asked, asked)
        found = samples_of(tmp_path / name, model, dataset)
        assert [entry["caption"] for entry in found["samples"]] == asked and "retrieval" not in found
        judged[name] = list(found["drawn"].values())
    assert judged == {"right": [1.0] * 5, "wrong": [0.0, 1.0, 1.0, pytest.approx(1 / 3), 0.0]}
    print_table({**found, "seconds": {}, "peak_memory_gb": 0.0})
    assert "samples that show the colour of the caption" in capsys.readouterr().out
    write_json(tmp_path / "summary.json", found)
    assert "Samples that show all four" in write_report(tmp_path).read_text()
