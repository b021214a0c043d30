"""The products, convolutions and attention that layers are made of, each in the form that its platform runs fastest.

The platform is that of the program, not of the host: of the mesh that `jax.set_mesh` names, which may be one of devices
that are not here, or without a mesh of JAX's default device. JAX compiles a function anew for another mesh or another
of the choices below.
"""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax


@dataclasses.dataclass(frozen=True)
class Choice:
    """`textbook`: every operation in its plain form. `by_hand`: gradients may be written by hand, and then have no
    forward mode (`jax.jvp`)."""

    textbook: bool = False
    by_hand: bool = True


_choice = jax.make_user_context(Choice())


def choice() -> Choice:
    return _choice.value


@contextlib.contextmanager
def textbook() -> Iterator[None]:
    """Functions traced inside take the plain form of attention, convolutions and products."""
    with _choice(Choice(textbook=True, by_hand=False)):
        yield


@contextlib.contextmanager
def forward_mode() -> Iterator[None]:
    """Functions traced inside have forward-mode derivatives (`jax.jvp`) on every platform: no flash attention, whose
    kernels have none, and on CPUs no gradients written by hand."""
    with _choice(dataclasses.replace(choice(), by_hand=False)):
        yield


def platform() -> str:
    """ "cpu", "gpu" or "tpu": what the function that is traced will run on."""
    return {"cuda": "gpu", "rocm": "gpu"}.get(name := _device()[0], name)


def device_kind() -> str:
    """The makers' name of the chip, such as "TPU v5 lite" or "NVIDIA H100 80GB HBM3"."""
    return _device()[1]


def _device() -> tuple[str, str]:
    """(platform, kind)."""
    if device := jax.sharding.get_abstract_mesh().abstract_device:
        return device.platform, device.device_kind
    default = jax.config.jax_default_device
    if isinstance(default, str):
        return default, jax.devices(default)[0].device_kind
    device = default or jax.devices()[0]
    return device.platform, device.device_kind
