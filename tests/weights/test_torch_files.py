"""Files of PyTorch's are read without running what they say; broken ones are refused in one line.

That whole files of PyTorch's own come out as they went in is in tests/parity/test_torch_files.py.
"""

import contextlib
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from vidjax.errors import InputError
from vidjax.weights.tensors import read
from vidjax.weights.torch_files import Tensors

NUMBERS = np.arange(24, dtype=np.float32)


class Storage:
    """What a pickle of PyTorch's names beside itself."""

    def __init__(self, key="0", size=24, kind="FloatStorage"):
        self.key, self.size, self.kind = key, size, kind


class Call:
    """Any call, as a pickle asks for one."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def tensor(monkeypatch):
    """Makes a tensor as PyTorch pickles it, without PyTorch."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2():
        raise AssertionError("this is called by nobody")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    for kind in ("FloatStorage", "OddStorage"):
        setattr(torch, kind, type(kind, (), {"__module__": "torch"}))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return lambda storage, offset, shape, strides: Call(_rebuild_tensor_v2, storage, offset, shape, strides, False, {})


def save(path, tree, numbers=NUMBERS, protocol=2, compression=zipfile.ZIP_STORED):
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, Storage):
                return "storage", getattr(sys.modules["torch"], value.kind), value.key, "cpu", value.size

    with zipfile.ZipFile(path, "w", compression) as archive:
        with archive.open("archive/data.pkl", "w") as file:
            Pickler(file, protocol).dump(tree)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", numbers.tobytes())
    return path


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensors_are_the_views_that_the_file_describes(tensor, tmp_path, protocol):
    state = OrderedDict(whole=tensor(Storage(), 0, (4, 6), (6, 1)), turned=tensor(Storage(), 1, (3, 2), (1, 6)))
    tree = {"state_dict": {"net": state, "scalar": tensor(Storage(), 5, (), ())}, "optimizer": state, "epoch": 3}
    found = Tensors(save(tmp_path / "a.ckpt", tree, protocol=protocol))
    assert set(found) == {"net.whole", "net.turned", "scalar"}
    np.testing.assert_array_equal(found["net.whole"], NUMBERS.reshape(4, 6))
    np.testing.assert_array_equal(found["net.turned"], NUMBERS.reshape(4, 6)[:2, 1:4].T)
    assert found["scalar"] == 5
    wrapped = {f"_forward_module.{key}": value for key, value in tree["state_dict"].items()}
    assert set(Tensors(save(tmp_path / "b.ckpt", {"module": wrapped, "epoch": 3}, protocol=protocol))) == set(found)
    alone = {"module": tree["state_dict"]["scalar"]}
    assert set(Tensors(save(tmp_path / "c.ckpt", alone, protocol=protocol))) == {"module"}


def test_nothing_that_a_file_says_is_run(tensor, tmp_path):
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w')"
    tree = {"w": tensor(Storage(), 0, (24,), (1,)), "bad": Call(eval, code), "worse": Call(os.system, f"touch {mark}")}
    path = save(tmp_path / "a.ckpt", tree)
    assert [*Tensors(path)] == ["w"] and not mark.exists()
    with zipfile.ZipFile(path) as archive:  # the same file would have done it
        pickle.loads(pickle.dumps({"bad": Call(eval, code)}))
        assert b"eval" in archive.read("archive/data.pkl") and mark.exists()


BROKEN = {
    "beyond its numbers": lambda t: t(Storage(), 1, (24,), (1,)),
    "far beyond": lambda t: t(Storage(), 0, (2**40, 2**40), (1, 1)),
    "before its numbers": lambda t: t(Storage(), -1, (3,), (1,)),
    "backwards": lambda t: t(Storage(), 5, (3,), (-1,)),
    "another size": lambda t: t(Storage(size=25), 0, (3,), (1,)),
    "numbers that are not there": lambda t: t(Storage(key="7"), 0, (3,), (1,)),
    "another kind": lambda t: t(Storage(kind="OddStorage"), 0, (3,), (1,)),
    "no storage": lambda t: t("0", 0, (3,), (1,)),
    "strides of another shape": lambda t: t(Storage(), 0, (3, 2), (1,)),
}


@pytest.mark.parametrize("make", BROKEN.values(), ids=BROKEN)
def test_a_tensor_outside_its_numbers_is_refused(make, tensor, tmp_path):
    with pytest.raises(InputError, match=r"a\.ckpt") as found:
        Tensors(save(tmp_path / "a.ckpt", {"w": make(tensor)}))
    assert "\n" not in str(found.value) and "get it again" in str(found.value)


def test_parts_of_a_file_and_other_files_are_refused(tensor, tmp_path):
    path = save(tmp_path / "a.ckpt", {"w": tensor(Storage(), 0, (24,), (1,))})
    content = path.read_bytes()
    for size in (0, 1, 30, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match="get it again"):
            Tensors(path)
    path.write_bytes(pickle.dumps({"w": 1}))  # the form before PyTorch 1.6
    with pytest.raises(InputError, match=r"PyTorch since 1\.6"):
        Tensors(path)
    random = np.random.default_rng(0)
    for _ in range(500):  # flipped bytes: an InputError or tensors, nothing else
        bad = bytearray(content)
        bad[random.integers(len(bad))] = random.integers(256)
        path.write_bytes(bad)
        with contextlib.suppress(InputError):
            sum(float(value.sum()) for value in Tensors(path).values())


def test_the_program_writes_what_the_file_has(tensor, tmp_path, env):
    path = save(tmp_path / "a.ckpt", {"state_dict": {"turned": tensor(Storage(), 1, (3, 2), (1, 6))}})
    command = [sys.executable, "-m", "vidjax.convert", str(path), f"--out={tmp_path / 'b' / 'a.safetensors'}"]
    subprocess.run(command, env=env, check=True)
    np.testing.assert_array_equal(read(tmp_path / "b" / "a.safetensors")["turned"], Tensors(path)["turned"])
    done = subprocess.run(command[:3], env=env, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "error: FILE is missing\n"
