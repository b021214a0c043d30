"""The accelerators that vidjax knows: what their makers say of them, and XLA's compilers for them, which need none.

A device made here runs nothing, but programs lower and compile for it as they do on the chip. TPUs want `libtpu`, GPUs
`jax-cuda13-plugin` and, for flash attention, cuDNN: the extra `accelerators`.
"""

import contextlib
import functools
import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from vidjax.errors import InputError

GIB = 2.0**30
# Keep libtpu from looking for a TPU and its network: for a program that compiles alone, before JAX loads the library.
QUIET = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
QUIET |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # by several processes at once: there is no chip to quarrel about
# Beside `GpuTargetConfigProto`'s fields that are the same on every GPU below.
GPU = dict(
    threads_per_block_limit=1024,
    threads_per_warp=32,
    shared_memory_per_block=49152,
    threads_per_core_limit=2048,
    block_dim_limit_x=2**31 - 1,
    block_dim_limit_y=65535,
    block_dim_limit_z=65535,
    registers_per_core_limit=65536,
    registers_per_block_limit=65536,
)


@dataclass(frozen=True)
class Chip:
    """From the maker's data sheet, for what JAX calls a device: dense bf16 FLOP/s, bytes of memory, bytes per second
    from memory and to other chips (for a GPU out of its node of `node`: over the network)."""

    kind: str  # how `Device.device_kind` begins
    flops: float
    memory: float
    bandwidth: float
    link: float
    cores: int = 1  # as the name of a slice counts them
    cells: int = 0  # of a TPU's matrix units: a multiplication and an addition per cycle each
    form: str = ""  # of a TPU: how `topologies` calls it
    sides: int = 2  # of the grid or torus that a slice is
    parts: int = 1  # devices per chip of that grid
    node: int = 0
    network: float = 50e9
    gpu: dict[str, Any] = field(default_factory=dict, compare=False)  # what XLA wants to know of a GPU

    @property
    def platform(self) -> str:
        """As `jax.Device.platform` has it of the real one."""
        return "tpu" if self.cells else "gpu"

    @property
    def clock(self) -> float:
        """Cycles per second of a TPU: those at which its matrix units give the data sheet's FLOP/s."""
        return self.flops / (2 * self.cells)


def _gpu(cores: int, fpus: int, shared: int, cache: int, clock: float, memory: int, capability: int) -> dict[str, Any]:
    return dict(
        core_count=cores,
        fpus_per_core=fpus,
        shared_memory_per_core=shared,
        shared_memory_per_block_optin=shared - 1024,
        l2_cache_size=cache,
        clock_rate_ghz=clock,
        device_memory_size=memory,
        capability=capability,
    )


_V5E = Chip("TPU v5 lite", 197e12, 16 * GIB, 819e9, 100e9, cells=4 * 128**2, form="v5e")
# "TPU v5" is what a v5p calls itself, so v5e stands before it; a "TPU7x" is half of a chip.
CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32 * GIB, 1228e9, 150e9, cores=2, cells=8 * 128**2, form="v4", sides=3),
    "v5e": _V5E,
    "v5litepod": _V5E,
    "v5p": Chip("TPU v5", 459e12, 95 * GIB, 2765e9, 300e9, cores=2, cells=8 * 128**2, form="v5p", sides=3),
    "v6e": Chip("TPU v6 lite", 918e12, 32 * GIB, 1640e9, 224e9, cells=4 * 256**2, form="v6e"),
    "tpu7x": Chip("TPU7x", 1153e12, 96 * GIB, 3690e9, 300e9, cells=4 * 256**2, form="tpu7x", sides=3, parts=2),
    "a100": Chip(
        "NVIDIA A100", 312e12, 80 * GIB, 2039e9, 300e9, node=8,
        gpu=_gpu(108, 64, 167936, 41943040, 1.41, 85100068864, 8),
    ),
    "h100": Chip(
        "NVIDIA H100", 989e12, 80 * GIB, 3352e9, 450e9, node=8,
        gpu=_gpu(132, 128, 233472, 52428800, 1.98, 84942979072, 9),
    ),
    "h200": Chip(
        "NVIDIA H200", 989e12, 141 * GIB, 4800e9, 450e9, node=8,
        gpu=_gpu(132, 128, 233472, 52428800, 1.98, 151397597184, 9),
    ),
    "b200": Chip(
        "NVIDIA B200", 2250e12, 180 * GIB, 7672e9, 900e9, node=8,
        gpu=_gpu(148, 128, 233472, 132644864, 1.965, 191514411008, 10),
    ),
}  # fmt: skip


def named(name: str) -> tuple[Chip, int]:
    """Reads a topology's name, Google's of a slice or `h100x64`: the chip and how many of them. Raises InputError."""
    found = re.fullmatch(r"([a-z]+\d+[a-z]*)(?:-|x)(\d+)", name)
    if not found or found[1] not in CHIPS or int(found[2]) < 1 or int(found[2]) % CHIPS[found[1]].cores:
        known = ", ".join(f"{kind}{'x' if chip.node else '-'}N" for kind, chip in CHIPS.items())
        raise InputError(f"--topology={name} is not known: choose one of {known} (v4 and v5p count two cores a chip)")
    return CHIPS[found[1]], int(found[2]) // CHIPS[found[1]].cores


def of_device(device: Any) -> Chip | None:
    """The entry of `CHIPS` that a JAX device is, real or not."""
    return next((chip for chip in CHIPS.values() if device.device_kind.startswith(chip.kind)), None)


@functools.cache
def devices(name: str) -> list[Any] | None:
    """Makes the devices of a topology, to compile for; None where the package with the compiler is not installed.

    The same ones at each call, as arrays on others are not on these. They lie as in the slice of that name:
    `sharding.make_mesh(..., devices=devices(name))`. Raises InputError.
    """
    from jax.experimental import topologies

    chip, count = named(name)
    if chip.platform == "tpu":
        if not find_spec("libtpu"):
            return None
        sides = slice_sides(count // chip.parts or 1, chip.sides)
        hosts = {} if sides[0] % 2 == sides[1] % 2 == 0 else {"chips_per_host_bounds": (1, 1, 1)}
        config = {"chip_config_name": "megacore"} if chip.form == "v4" else {}  # both cores of a chip as one device
        topology = f"{chip.form}:{'x'.join(map(str, sides))}"
        return topologies.get_topology_desc(topology, "tpu", **hosts, **config).devices[:count]
    if not (find_spec("jax_plugins") and find_spec("jax_plugins.xla_cuda13")):
        return None
    if count > chip.node and count % chip.node:
        raise InputError(f"--topology={name}: more than a node wants whole ones, a multiple of {chip.node} GPUs")
    shape = f"1x{-(-count // chip.node)}x{min(count, chip.node)}"  # slices, nodes, GPUs
    kind = name.rpartition("x")[0]
    return topologies.get_topology_desc(kind, "cuda", topology=shape, target_config=target_config(chip)).devices


def slice_sides(count: int, axes: int) -> tuple[int, ...]:
    """The grid of a slice of so many chips: as square as can be, short sides first, odd ones last (a host has 2x2)."""
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    grids = (grid for grid in itertools.combinations_with_replacement(divisors, axes) if math.prod(grid) == count)
    return tuple(sorted(min(grids, key=sum), key=lambda side: (side % 2, side)))


def target_config(chip: Chip) -> str:
    """XLA's `GpuTargetConfigProto` of a GPU, as text."""
    facts = {**GPU, **chip.gpu, "memory_bandwidth": int(chip.bandwidth)}
    major = facts.pop("capability")
    lines = [f"{key}: {value}" for key, value in facts.items()]
    return (
        f"gpu_device_info {{ {' '.join(lines)} cuda_compute_capability {{ major: {major} }} }} "
        f'platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{chip.kind}"'
    )


@contextlib.contextmanager
def lowering_for(chip: Chip) -> Iterator[None]:
    """Around the lowering of a program for a GPU that is not there: JAX's cuDNN attention asks the local GPU for its
    compute capability, before it takes heads wider than 128 for instance; inside, the chip answers."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    if chip.platform != "gpu":
        yield
        return
    own = (chip.gpu["capability"], 0)
    version = lambda capability: tuple(map(int, capability.split(".")))
    answers: dict[str, Any] = dict(
        check_compute_capability=lambda capability: own >= version(capability),
        is_cuda_compute_capability_equal=lambda capability: own == version(capability),
    )
    before = {name: getattr(cudnn, name) for name in answers}
    for name, answer in answers.items():
        setattr(cudnn, name, answer)
    try:
        yield
    finally:
        for name, answer in before.items():
            setattr(cudnn, name, answer)


# For `compile(compiler_options=...)` where there is no hardware. GPU kernels cannot be timed against each other, so
# matrix products are cuBLAS's: XLA's own, untuned, do not compile for some shapes (98304 x 64 by 64 x 64 in bf16).
COMPILER_OPTIONS: dict[str, dict[str, Any]] = {
    "gpu": {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False},
    "tpu": {},
}
