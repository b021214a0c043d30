"""Clips cut over eight simulated devices: the same numbers as on one, and no more on the wire than it takes."""

import pytest
from runtime.test_sharding import eight_devices

MODEL = """
import collections, re
from flax import nnx
from vidjax.profiling import program
from vidjax.models import kernels
from vidjax.models.unet import UNet, UNetConfig
from vidjax.models.parameters import merge, parameters

BLOCK = (("attn1", "first_and_previous"), ("attn2", "tokens"), ("ff", "ff"), ("attn_temp", "relative_time"))

def network(**more):
    small = dict(in_channels=3, out_channels=3, channels=(16,), blocks_per_level=0, attention_levels=True)
    small |= dict(heads=4, groups=4, block=BLOCK, tokens_dim=6, norm_over="clip", after_resnet="convs", reach=3)
    model = UNet(UNetConfig(**{**small, **more}), rngs=nnx.Rngs(0))
    random = np.random.default_rng(0)
    params = {k: v + 0.2 * random.standard_normal(v.shape, np.float32) for k, v in parameters(model).items()}
    graphdef = nnx.graphdef(model)

    def loss(params, batch):
        video = merge(graphdef, params)(batch["x"], batch["t"], batch.get("tokens"))
        return jnp.square(video - batch["x"]).mean(), video

    return loss, params

def examples(b, frames=8, size=8):
    draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
    return {"x": draw(1, b, frames, size, size, 3), "t": 500 * jnp.abs(draw(2, b, frames)), "tokens": draw(3, b, 5, 6)}

def on(mesh, batch, params):
    put = lambda tree, of: jax.device_put(tree, jax.tree.map(of, tree))
    return put(params, lambda x: sharding.replicated(mesh)), put(batch, lambda x: sharding.batch_sharding(mesh))
"""


@pytest.fixture(scope="module")
def meshes():
    return eight_devices(
        MODEL
        + """
loss, params = network()
batch = examples(4)
both = jax.jit(jax.value_and_grad(loss, has_aux=True))
(expected, video), slope = both(params, batch)
found = {}
for sizes in ((2, 1, 1, 4), (1, 2, 2, 2)):
    mesh = sharding.make_mesh(*sizes)
    layout = sharding.tree_sharding(mesh, params)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, layout)
        (value, made), gradient = both(placed, on(mesh, batch, {})[1])
    error = lambda a, b: float(np.abs(np.asarray(a) - b).max() / (np.abs(b).max() + 1e-6))
    found[" ".join(map(str, sizes))] = {
        "loss": error(value, expected),
        "video": error(made, video),
        "slope": max(error(gradient[k], slope[k]) for k in params),
        "cut": sum("tensor" in str(placed[k].sharding.spec) for k in params),
    }
"""
    )


@pytest.mark.parametrize("sizes", ["2 1 1 4", "1 2 2 2"])
def test_a_mesh_of_any_shape_gives_what_one_device_gives(meshes, sizes):
    found = meshes[sizes]
    assert found["loss"] < 1e-5 and found["video"] < 1e-4 and found["slope"] < 1e-3
    assert (found["cut"] > 10) == (sizes.split()[2] != "1")  # data, fsdp, tensor, context


@pytest.fixture(scope="module")
def traffic():
    return eight_devices(
        MODEL
        + """
loss, params = network(block=(("attn1", "frame"), ("attn_temp", "time")), after_resnet="none", norm_over="frame",
    tokens_dim=None)
layers = len({path.split(".attn_temp")[0] for path in params if ".attn_temp" in path})
gradient = lambda params, batch: jax.grad(lambda *a: loss(*a)[0])(params, batch)
forward = lambda params, batch: loss(params, batch)[1].sum()
found = {"layers": layers, "memory": {}}
mesh = sharding.make_mesh(data=2, context=4)
batch = {k: v for k, v in examples(4, 8, 16).items() if k != "tokens"}
with jax.set_mesh(mesh):
    for name, function in (("forward", forward), ("gradient", gradient)):
        with kernels.textbook():  # as it is on accelerators
            text = jax.jit(function).lower(*on(mesh, batch, params)).compile().as_text()
        kinds = re.findall(r"= .*? (all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?[(]", text)
        found[name] = dict(collections.Counter(kinds))
        found[name + " bytes"] = sum(size for kind, size in program.collectives(text) if kind == "all-to-all")
for ways in (1, 8):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:ways]).reshape(1, 1, 1, ways), sharding.AXES)
    with jax.set_mesh(mesh):
        compiled = jax.jit(gradient).lower(*on(mesh, {k: examples(1, 8, 32)[k] for k in "xt"}, params)).compile()
    found["memory"][ways] = compiled.memory_analysis().temp_size_in_bytes
"""
    )


def test_a_layer_over_time_costs_two_exchanges_and_nothing_else_travels(traffic):
    """There and back, and as many for the gradient; also where a device has several clips."""
    assert traffic["forward"] == {"all-to-all": 2 * traffic["layers"]}
    assert traffic["gradient"] == {"all-to-all": 4 * traffic["layers"]}


def test_an_exchange_sends_what_another_device_needs_and_no_byte_more(traffic):
    """Of a device's 2 clips of 2 frames of 16x16 pixels with 16 features in fp32, three quarters are for others."""
    least = 4 * (2 * 2 * 16 * 16 * 16) * 3 / 4
    assert traffic["forward bytes"] == 2 * traffic["layers"] * least
    assert traffic["gradient bytes"] == 4 * traffic["layers"] * least


def test_activations_a_device_fall_as_one_over_the_devices(traffic):
    assert traffic["memory"]["8"] < 1.25 * traffic["memory"]["1"] / 8


def test_what_cannot_be_cut_is_refused():
    found = eight_devices(
        MODEL
        + """
loss, params = network()
mesh = sharding.make_mesh(data=2, context=4)
with jax.set_mesh(mesh):
    found = [message(lambda: jax.eval_shape(loss, params, examples(2, frames)))[:70] for frames in (6,)]
odd = {"a.kernel": jnp.ones((8, 8))}
found.append(message(lambda: sharding.tree_sharding(sharding.make_mesh(data=2, tensor=4), odd)))
found += [sharding.split_over_slices(dict(data=d, fsdp=f, tensor=2, context=1), 4) for d, f in ((8, 4), (2, 4))]
found.append(message(lambda: sharding.split_over_slices(dict(data=3, fsdp=2, tensor=2, context=2), 4)))
"""
    )
    frames, tensor, eight, two, slices = found
    assert frames.startswith("mesh context=4 does not divide 6 (latent) frames: set config.mesh")
    assert "set config.mesh.tensor=1" in tensor
    assert eight == [[2, 4, 2, 1], [4, 1, 1, 1]] and two == [[1, 2, 2, 1], [2, 2, 1, 1]]
    assert "4 slices want a mesh" in slices
