"""The page is self-contained, says what the files say and nothing else, and puts up with whatever is missing."""

import base64
import io
import itertools
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from vidjax.errors import InputError
from vidjax.evaluation.page import write_report

EVIL = '<script>alert("x")</script>&"'


class Page(HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.sources, self.text = [], [], ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "data", "poster", "xlink:href")]

    def handle_data(self, data):
        self.text += data


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def run(tmp_path):
    workdir = tmp_path / "lvdm"
    picture(workdir / "samples/a.png")
    picture(workdir / "reconstructions/a.png")
    (workdir / "samples/a.mp4").write_bytes(b"not really a film")
    for stage, losses in {"autoencoder": np.geomspace(1, 1e-3, 30), "diffusion": [0.5, float("nan"), 0.25]}.items():
        (workdir / stage).mkdir()
        lines = [json.dumps({"step": i, "loss": loss, "grad_norm": 1.0}) for i, loss in enumerate(losses, 1)]
        (workdir / stage / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 9, "lo')
    (workdir / "config.json").write_text(
        json.dumps({"data": {"source": EVIL}, "stages": {"diffusion": {"train": {"steps": 3}}}})
    )
    summary = {
        "autoencoder_psnr": 28.14,
        "pca_psnr": 26.8,
        "retrieval": 7,
        "captions": 8,
        "motion_ratio": float("nan"),
        "seconds": {"autoencoder": 30.1, EVIL: 341.0},
        "sample_psnr_all": 30.79,
        "mean_window_psnr_all": 31.26,
        "data": {
            "clips": 9,
            "looked_at": 9,
            "used": 8,
            "sizes": {"96x128": 8},
            "frames": [24, 30],
            "fps": [12.5],
            "dropped": [{"clip": f"{EVIL}.mp4", "why": "no frames in it"}],
        },
        "samples": [{"caption": EVIL, "mp4": "samples/a.mp4", "png": "samples/a.png", "real": "../secret.png"}],
        "reconstructions": [
            {"name": "a", "png": "reconstructions/a.png"},
            {"name": "b", "png": "reconstructions/b.png"},
        ],
        "next": [f'python -m vidjax.sample --prompt "{EVIL}"'],
    }
    picture(tmp_path / "secret.png")
    (workdir / "summary.json").write_text(json.dumps(summary))
    return workdir


def test_everything_is_inside_the_page(run):
    page = Page(write_report(run))
    assert "script" not in page.tags and "link" not in page.tags
    outside = [source for source in page.sources if not source.startswith(("data:", "#"))]
    assert not outside
    inside = [base64.b64decode(source.split(",", 1)[1]) for source in page.sources if source.startswith("data:")]
    assert (run / "samples/a.mp4").read_bytes() in inside
    assert (
        inside.count((run / "samples/a.png").read_bytes()) == 2
    )  # the sheet and the reconstruction, not ../secret.png
    assert Image.open(io.BytesIO(inside[-1])).size == (8, 8)


def test_what_files_say_stays_text(run):
    page = Page(write_report(run))
    assert page.text.count(EVIL) == 6  # header, caption, timing, command, source, clip; the config shows it as JSON
    assert page.tags.count("svg") == 2


def test_figures_stand_beside_what_they_are_held_against(run):
    text = Page(write_report(run)).text
    assert "28.1 dB" in text and "26.8 dB: PCA" in text and "7 of 8" in text and "5 min 41 s" in text
    assert "Motion" not in text and "nan" not in text


def test_missing_parts_are_left_out(run):
    for name in ("summary.json", "config.json"):
        (run / name).unlink()
    page = Page(write_report(run))
    assert "Curves" in page.text and "Samples" not in page.text and page.tags.count("svg") == 2
    for path in run.rglob("*.jsonl"):
        path.unlink()
    with pytest.raises(InputError, match=r"--workdir=.*lvdm holds no run"):
        write_report(run)


def test_a_run_with_settings_alone_has_a_page(tmp_path):
    (tmp_path / "config.json").write_text('{"data": {"source": "shapes", "frames": 8}}')
    text = Page(write_report(tmp_path)).text
    assert "config.data.frames" in text and "not finished" in text


def test_the_data_are_told_with_what_was_dropped_and_why(run):
    text = Page(write_report(run)).text
    for said in ("8 of 9", "96x128 (8 clips)", "24 to 30", "12.5", f"{EVIL}.mp4", "no frames in it"):
        assert said in text
    assert "30.8 dB" in text and "31.3 dB" in text  # among all windows


def test_every_sample_and_what_it_is_held_against_is_shown(run):
    names = {"videos": ["a", "b"], "real": ["c", "d"], "source": ["e"]}
    summary = json.loads((run / "summary.json").read_text())
    summary["samples"] = [{"caption": "x", **{key: [f"samples/{n}.mp4" for n in each] for key, each in names.items()}}]
    for name in "abcde":
        (run / "samples" / f"{name}.mp4").write_bytes(name.encode() * 9)
    (run / "summary.json").write_text(json.dumps(summary))
    inside = [base64.b64decode(source.split(",", 1)[1]) for source in Page(write_report(run)).sources if "," in source]
    assert all(inside.count(name.encode() * 9) == 1 for name in "abcde")


ODD = [None, True, -1, 1.5, 1e308, 10**400, "", "a", "\0", "\ud800", [], {}, [[1]], [{}], {"a": [1]}, "x" * 300]


def test_odd_values_in_a_runs_own_files_make_a_page(run):
    """Wherever they are: what cannot be shown is left out. Each value at each key, every other key as it was."""
    summary = json.loads((run / "summary.json").read_text())
    for stage in ("autoencoder", "diffusion"):  # whose curves take long
        (run / stage / "metrics.jsonl").rename(run / stage / "kept")
    keys = [*summary, "versions", "device", "peak_memory_gb"]
    for first, half in itertools.product(range(len(ODD)), range(2)):
        odd = {key: ODD[(first + i) % len(ODD)] for i, key in enumerate(keys) if i % 2 == half}
        (run / "summary.json").write_text(json.dumps(summary | odd))
        write_report(run)
    for odd in ODD:
        sample = {"caption": odd, "png": odd, "videos": odd, "real": [odd]}
        (run / "summary.json").write_text(json.dumps({"samples": [sample, odd], "reconstructions": [odd, sample]}))
        (run / "config.json").write_text(json.dumps({"data": odd, "seed": odd, "stages": {"diffusion": odd}}))
        lines = [{"step": odd, "loss": 1}, {"step": 1, "loss": odd, "psnr": odd}, odd]
        (run / "diffusion" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
        write_report(run)


@pytest.mark.parametrize("content", [None, b"", b"[1", b"3", b"[" * 10**5, b"\xff\xfe\0", b"1" * 5000])
def test_damaged_files_of_the_run_are_a_warning_at_most(run, content):
    """All of them; one or two at a time are damaged in fuzz_programs.py."""
    for name in ("summary.json", "config.json", "diffusion/metrics.jsonl"):
        (run / name).unlink()
        if content is None:
            (run / name).mkdir()
        else:
            (run / name).write_bytes(content)
    assert "Curves" in Page(write_report(run)).text
