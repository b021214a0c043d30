"""Files are data: nothing in the package unpickles, evaluates or starts what a file says, and outputs stay in place."""

import ast
from pathlib import Path

import numpy as np
import pytest

from vidjax.cli import fail
from vidjax.data.video_writing import slug
from vidjax.errors import InputError
from vidjax.generation.editing import cached, latent_mask
from vidjax.sample import read_noise

ROOT = Path(__file__).parents[1]
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch", "yaml", "subprocess"}
MODULES |= {"tarfile", "code", "ctypes", "msgpack"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "yaml.load", "pickle.load"}


def named(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def dangers(code: str) -> list[str]:
    """What in some code could run what a file says."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(node.module)
        elif isinstance(node, ast.Call):
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            unsafe = named(node.func) in CALLS or "trust_remote_code" in given or given.get("shell") == "True"
            loads = named(node.func) in ("np.load", "numpy.load") or "allow_pickle" in given
            if unsafe or (loads and given.get("allow_pickle") != "False"):
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("file", sorted((ROOT / "vidjax").rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_no_code_of_a_file_can_run(file):
    known = {
        "vidjax/clips/make_clips.py": ["subprocess"],  # ffmpeg, where the clips were cut: no part of a program
        "vidjax/runtime/memory.py": ["ctypes"],  # a setting of the C library, with constants; it opens no file
        "vidjax/serving/reading.py": ["subprocess"],  # this Python, without a shell, for the decoding of uploads
        "vidjax/serving/tuner.py": ["subprocess"],  # vidjax.main and vidjax.report, without a shell
        "vidjax/weights/video_file.py": ["yaml"],  # its safe_load, which makes plain values alone
    }
    assert set(dangers(file.read_text())) <= set(known.get(file.relative_to(ROOT).as_posix(), []))


UNSAFE = ["import pickle", "from torch import load", "eval('1')", "np.load(f)", "np.load(f, allow_pickle=True)"]
UNSAFE += ["run(c, shell=True)", "import os; os.system(c)", "M.from_pretrained(f, trust_remote_code=True)"]


@pytest.mark.parametrize("code", UNSAFE)
def test_what_could_run_is_found(code):
    assert dangers(code)


CAPTIONS = [
    "../../x",
    "/etc/passwd",
    "a" * 300,
    "",
    "\u202e☃ 東京",
    "..",
    "CON",
    "a\0b",
    "C:\\x",
    "nul.txt",
    "\n",
    "-rf",
    "\ud800",
]


@pytest.mark.parametrize("caption", CAPTIONS)
def test_a_caption_becomes_a_name_in_the_folder(caption, tmp_path):
    name = f"00-{slug(caption)}"
    assert 0 < len(name) < 64 and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    (tmp_path / name).touch()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def npy(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header.encode() + data


@pytest.mark.parametrize(
    "data",
    [
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}\n"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-5,)}\n"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n", b"cos\nsystem\n(S'touch ran'\ntR."),
        npy("{'descr': '<f4', 'shape': " + "(" * 9000),
        npy("[1]\n"),
        b"PK\x03\x04 no archive",
        b"",
    ],
)
def test_noise_that_is_none_is_refused(tmp_path, data):
    (tmp_path / "noise.npy").write_bytes(data)
    with pytest.raises(InputError, match="cannot be read"):
        read_noise(tmp_path / "noise.npy")


def test_an_inversion_that_is_damaged_is_made_again(tmp_path):
    file, array = tmp_path / "inversion.npz", np.arange(6.0)
    for data in (b"PK\x03\x04 no archive", b"", None):
        if data is not None:
            file.write_bytes(data)
        np.testing.assert_array_equal(cached(file, "stamp", lambda: array), array)
    np.testing.assert_array_equal(cached(file, "stamp", lambda: pytest.fail("it was kept")), array)
    whole = file.read_bytes()
    file.write_bytes(whole[:-30])
    np.testing.assert_array_equal(cached(file, "stamp", lambda: array + 1), array + 1)


def test_a_mask_that_is_no_picture_is_refused(tmp_path):
    (tmp_path / "mask.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\xff" * 20)
    for name in ("mask.png", "nothing.png", "."):
        with pytest.raises(InputError, match="cannot be read"):
            latent_mask(str(tmp_path / name), "", (2, 8, 8), (2, 2, 2))


def test_an_error_is_one_line_whatever_it_quotes(capsys):
    with pytest.raises(SystemExit) as end:
        fail("the key a\nb\r\x1b[2J\u2028c is wrong")
    assert end.value.code == 1 and capsys.readouterr().err == "error: the key a b  [2J c is wrong\n"
