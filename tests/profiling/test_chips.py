"""The table of accelerators against the names, sizes and devices that the makers' own software has for them."""

import pytest

from vidjax.errors import InputError
from vidjax.profiling import chips
from vidjax.runtime.sharding import make_mesh


def test_names_of_topologies():
    named, table = chips.named, chips.CHIPS
    assert named("v5p-128") == (table["v5p"], 64) and named("h100x16") == (table["h100"], 16)
    assert named("v5litepod-8")[1] == named("v6e-8")[1] == named("tpu7x-8")[1] == 8
    for name in ("v5p-3", "h100x0", "h99x8", "v5p"):
        with pytest.raises(InputError, match="choose one of v4-N"):
            named(name)


def test_slices_lie_as_google_lists_them():
    """Sides of the slices on offer: https://cloud.google.com/tpu/docs/v5e, /v5p, /v4."""
    flat = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}
    assert {n: chips.slice_sides(n, 2) for n in flat} == flat
    deep = {1: (1, 1, 1), 4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8)}
    assert {n: chips.slice_sides(n, 3) for n in deep} == deep


def test_clocks_are_those_of_the_makers():
    """GHz, as far as they are published: Jouppi et al. 2023 (v4, 1.05), the book "How to scale your model" (v5e, 1.5,
    and v5p, 1.75)."""
    clocks = {name: chips.CHIPS[name].clock / 1e9 for name in ("v4", "v5e", "v5p")}
    assert clocks == pytest.approx({"v4": 1.05, "v5e": 1.5, "v5p": 1.75}, rel=0.01)


@pytest.mark.parametrize(
    "name", ["v5e-1", "v5e-8", "v4-8", "v5p-16", "v6e-4", "tpu7x-8", "h100x4", "a100x1", "b200x16"]
)
def test_devices_are_the_chips_that_were_asked_for(name, monkeypatch):
    for variable, value in chips.QUIET.items():
        monkeypatch.setenv(variable, value)
    chip, count = chips.named(name)
    found = chips.devices(name)
    if found is None:
        pytest.skip("the compiler is not installed: pip install vidjax[accelerators]")
    assert len(found) == count and {device.platform for device in found} == {chip.platform}
    assert all(chips.of_device(device) == chip for device in found)
    hosts = {device.process_index for device in found}
    assert len(hosts) == max(1, count // (4 * chip.parts if chip.cells else 8))


def test_gpus_come_in_whole_nodes():
    if chips.devices("h100x1") is None:
        pytest.skip("the compiler is not installed: pip install vidjax[accelerators]")
    with pytest.raises(InputError, match=r"h100x12: .* a multiple of 8 GPUs"):
        chips.devices("h100x12")


@pytest.mark.parametrize(
    ("name", "sizes"), [("v6e-16", (2, 2, 2, 2)), ("v5p-128", (2, 8, 2, 2)), ("v5e-8", (1, 8, 1, 1))]
)
def test_a_mesh_need_not_follow_the_sides_of_a_slice(name, sizes):
    found = chips.devices(name)
    if found is None:
        pytest.skip("the compiler is not installed: pip install vidjax[accelerators]")
    assert set(make_mesh(*sizes, devices=found).devices.flat) == set(found)
