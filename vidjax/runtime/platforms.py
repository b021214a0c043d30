"""Which platform a program is for: that of its mesh, not of the host."""

import jax


def platform() -> str:
    """Returns "cpu", "gpu" or "tpu": what the function that is being traced will run on.

    It is the platform of the mesh that `jax.set_mesh` names, which may be one of devices that are not here, or without
    a mesh that of JAX's default device.
    """
    return {"cuda": "gpu", "rocm": "gpu"}.get(name := _device()[0], name)


def device_kind() -> str:
    """Returns the makers' name of the chip, such as "TPU v5 lite" or "NVIDIA H100 80GB HBM3"."""
    return _device()[1]


def _device() -> tuple[str, str]:
    """(platform, kind)."""
    if device := jax.sharding.get_abstract_mesh().abstract_device:
        return device.platform, device.device_kind
    default = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(default, str):
        return default, jax.devices(default)[0].device_kind
    device = default or jax.devices()[0]
    return device.platform, device.device_kind
