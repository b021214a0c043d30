"""Reads the tensors of PyTorch's files (.ckpt, .pth, .pt, .bin) as data: no code that a file names can run.

Such a file is a zip archive of one pickle and of the bytes of each storage. The pickle is not loaded: `Reader` goes
through its opcodes as `pickletools` lists them, knows containers and tensors, and makes an inert `Unknown` of
everything else.
"""

import dataclasses
import math
import os
import pickletools
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vidjax.errors import InputError
from vidjax.runtime.inputs import open_regular
from vidjax.runtime.limits import MAX_FILE

WRAPPED = "_forward_module."  # what keys of DeepSpeed's files begin with
STORAGES: dict[str, np.dtype] = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": jnp.dtype(jnp.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}
AGAIN = "get it again, or save its state dict with a PyTorch since 1.6"
DEEPEST = 32  # containers in each other


@dataclasses.dataclass(frozen=True)
class Named:
    """A class or function that the pickle names; it is not looked up."""

    name: str


@dataclasses.dataclass(frozen=True)
class Unknown:
    """What the pickle would make by a call that is none of a tensor's."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """A row of numbers in the archive."""

    dtype: np.dtype
    key: str
    size: int


@dataclasses.dataclass(frozen=True)
class View:
    """A tensor: a strided view of a storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Tensors(Mapping[str, np.ndarray]):
    """Tensors by the keys that lead to them, joined by dots, mapped into memory and not read before they are used.

    Keys of a training run's file begin in its `state_dict`, or in the `module` of DeepSpeed, if it has one; states of
    optimizers are left out. Raises InputError for what is no such file, a part of one, or one whose tensors do not lie
    within their storages.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with open_regular(self.path) as file:
            self.size = os.fstat(file.fileno()).st_size
            try:
                archive = zipfile.ZipFile(file)
                (pickle,) = (each for each in archive.infolist() if each.filename.endswith("/data.pkl"))
                if pickle.file_size > MAX_FILE or pickle.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"its list of tensors has {pickle.file_size} bytes")
                root = pickle.filename.removesuffix("data.pkl")
                self.starts = {
                    each.filename.removeprefix(f"{root}data/"): (_start(file, each), each.file_size)
                    for each in archive.infolist()
                    if each.filename.startswith(f"{root}data/") and each.compress_type == zipfile.ZIP_STORED
                }
                if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
                    raise ValueError("its numbers have their high bytes first")
                tree = Reader().read(archive.read(pickle))
            except Exception as error:  # of many kinds, by which byte is wrong
                why = " ".join(str(error).split())[:200] or type(error).__name__
                raise InputError(f"{self.path} is no file of tensors that PyTorch saved ({why}): {AGAIN}") from None
        state, module = (tree.get(name) if isinstance(tree, dict) else None for name in ("state_dict", "module"))
        if isinstance(state, dict):
            tree = state
        elif isinstance(module, dict) and any(str(key).startswith(WRAPPED) for key in module):
            tree = module
        self.views = {key.removeprefix(WRAPPED): view for key, view in _flatten(tree, "")}
        for key, view in self.views.items():
            self._check(key, view)

    def _check(self, key: str, view: View) -> None:
        start, size = self.starts.get(view.storage.key, (0, -1))
        last = view.offset + sum((n - 1) * step for n, step in zip(view.shape, view.strides))
        inside = 0 in view.shape or (min((view.offset, *view.strides)) >= 0 and last < view.storage.size)
        whole = size == view.storage.size * view.storage.dtype.itemsize and start + size <= self.size
        if not inside or not whole or len(view.shape) > 32:
            raise InputError(f"{self.path}: {key} of shape {view.shape} does not lie within its numbers: {AGAIN}")

    def __getitem__(self, key: str) -> np.ndarray:
        view = self.views[key]
        if 0 in view.shape:
            return np.zeros(view.shape, view.storage.dtype)
        start, _ = self.starts[view.storage.key]
        row = np.memmap(self.path, view.storage.dtype, "r", start, (view.storage.size,))[view.offset :]
        strides = [step * view.storage.dtype.itemsize for step in view.strides]
        return np.lib.stride_tricks.as_strided(row, view.shape, strides, writeable=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self.views)

    def __len__(self) -> int:
        return len(self.views)


def _start(file: Any, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of an entry begin: after its own header, which repeats its name and has extras of its own."""
    file.seek(entry.header_offset + 26)
    name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return entry.header_offset + 30 + name + extra


def _flatten(tree: Any, path: str, depth: int = 0) -> Iterator[tuple[str, View]]:
    if isinstance(tree, View):
        yield path, tree
    elif isinstance(tree, dict | list | tuple) and depth < DEEPEST:
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            if isinstance(key, str | int) and not (depth == 0 and str(key).startswith(("optimizer", "lr_sched"))):
                yield from _flatten(value, f"{path}.{key}" if path else str(key), depth + 1)


class Reader:
    """A machine for the opcodes of a pickle that cannot call anything: it pushes, pops and builds containers."""

    def __init__(self):
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def read(self, pickle: bytes) -> Any:
        """The value that the pickle describes. Raises ValueError, LookupError or TypeError for a broken one."""
        for opcode, argument, _ in pickletools.genops(pickle):
            if opcode.name in PUSHED:
                self.stack.append(argument)
            elif opcode.name in CONSTANTS:
                self.stack.append(CONSTANTS[opcode.name]())
            elif opcode.name in OPCODES:
                OPCODES[opcode.name](self, argument)
            elif opcode.name not in ("PROTO", "FRAME", "STOP"):
                raise ValueError(f"its list of tensors has the opcode {opcode.name}")
        return self.stack[-1]

    def above_mark(self) -> list[Any]:
        """Pops what was pushed since the last mark."""
        return self.top(len(self.stack) - self.marks.pop())

    def top(self, count: int) -> list[Any]:
        """Pops `count` values, in the order in which they were pushed."""
        values = self.stack[len(self.stack) - count :]
        if not 0 <= count == len(values):
            raise ValueError("it is cut off")
        del self.stack[len(self.stack) - count :]
        return values

    def set_items(self, pairs: Sequence[Any]) -> None:
        """Sets keys and values, one after the other, of the dict on top; of what is not known, nothing."""
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(zip(pairs[::2], pairs[1::2]))

    def append(self, values: Sequence[Any]) -> None:
        """Appends to the list on top; to what is not known, nothing."""
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def call(self, _: Any) -> None:
        """What a call would give: a tensor, a dict, or something that is not known."""
        function, arguments = self.top(2)
        name = function.name if isinstance(function, Named) else ""
        self.stack.append(_called(name, arguments))

    def stored(self, _: Any) -> None:
        """A storage, by the words that PyTorch has for it."""
        kind, named, key, _, size = self.top(1)[0]
        if kind != "storage" or named.name not in STORAGES or type(size) is not int or not isinstance(key, str):
            raise ValueError(f"it has numbers of the kind {getattr(named, 'name', named)}")
        self.stack.append(Storage(STORAGES[named.name], key, size))


def _called(name: str, arguments: Any) -> Any:
    if name == "torch._utils._rebuild_tensor_v2":
        storage, offset, shape, strides = arguments[:4]
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, Storage) or any(type(n) is not int or not 0 <= n < 2**63 for n in numbers):
            raise ValueError("a tensor of it has no storage, or no shape")
        if len(shape) != len(strides) or math.prod(shape) >= 2**63:
            raise ValueError(f"a tensor of it has the shape {shape}")
        return View(storage, offset, tuple(shape), tuple(strides))
    if name == "torch._utils._rebuild_parameter":
        return arguments[0]
    return {} if name in ("collections.OrderedDict", "collections.defaultdict", "builtins.dict") else Unknown()


def _repeat(place: Callable[[Reader, Any], int]) -> Callable[[Reader, Any], None]:
    return lambda reader, argument: reader.memo.__setitem__(place(reader, argument), reader.stack[-1])


CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": Unknown,
}
PUSHED = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
OPCODES: dict[str, Callable[[Reader, Any], Any]] = {
    "MARK": lambda reader, _: reader.marks.append(len(reader.stack)),
    "POP": lambda reader, _: reader.stack.pop(),
    "POP_MARK": lambda reader, _: reader.above_mark(),
    "DUP": lambda reader, _: reader.stack.append(reader.stack[-1]),
    "PUT": _repeat(lambda _, place: place),
    "BINPUT": _repeat(lambda _, place: place),
    "LONG_BINPUT": _repeat(lambda _, place: place),
    "MEMOIZE": _repeat(lambda reader, _: len(reader.memo)),
    "GET": lambda reader, place: reader.stack.append(reader.memo[place]),
    "BINGET": lambda reader, place: reader.stack.append(reader.memo[place]),
    "LONG_BINGET": lambda reader, place: reader.stack.append(reader.memo[place]),
    "TUPLE": lambda reader, _: reader.stack.append(tuple(reader.above_mark())),
    "TUPLE1": lambda reader, _: reader.stack.append(tuple(reader.top(1))),
    "TUPLE2": lambda reader, _: reader.stack.append(tuple(reader.top(2))),
    "TUPLE3": lambda reader, _: reader.stack.append(tuple(reader.top(3))),
    "LIST": lambda reader, _: reader.stack.append(reader.above_mark()),
    "DICT": lambda reader, _: reader.stack.append(dict(zip(*[iter(reader.above_mark())] * 2))),
    "FROZENSET": lambda reader, _: (reader.above_mark(), reader.stack.append(Unknown()))[1],
    "ADDITEMS": lambda reader, _: reader.above_mark(),
    "APPEND": lambda reader, _: reader.append(reader.top(1)),
    "APPENDS": lambda reader, _: reader.append(reader.above_mark()),
    "SETITEM": lambda reader, _: reader.set_items(reader.top(2)),
    "SETITEMS": lambda reader, _: reader.set_items(reader.above_mark()),
    "GLOBAL": lambda reader, name: reader.stack.append(Named(name.replace(" ", "."))),
    "STACK_GLOBAL": lambda reader, _: reader.stack.append(Named(".".join(reader.top(2)))),
    "REDUCE": Reader.call,
    "NEWOBJ": Reader.call,
    "NEWOBJ_EX": lambda reader, _: reader.stack.append((reader.top(3), Unknown())[1]),
    "INST": lambda reader, _: reader.stack.append((reader.above_mark(), Unknown())[1]),
    "OBJ": lambda reader, _: reader.stack.append((reader.above_mark(), Unknown())[1]),
    "BUILD": lambda reader, _: reader.top(1),
    "BINPERSID": Reader.stored,
}
